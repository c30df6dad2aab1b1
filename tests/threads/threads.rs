//! The host's threads: every operation has the same bits on pools of every kind, good ones and odd ones.

use std::cell::Cell;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{Sender, channel};
use std::sync::{Arc, Condvar, Mutex};
use std::time::Duration;

use batchnorm::threads::{Pool, limit, with};
use batchnorm::{Shape, Welford, statistics};

use crate::common::matrix::{Bits, FNV_START, LAYOUTS, Placement, Problem, run};

type Task<'a> = &'a (dyn Fn(usize) + Sync);

/// Everything, on problems for one thread and for several, in chunks and whole.
fn hash() -> u64 {
    fn problem<T: Bits>(dims: &[usize], hash: u64) -> u64 {
        let problem = Problem::<T>::new(dims, 9);
        LAYOUTS.into_iter().fold(hash, |hash, layout| {
            run(&problem, layout, Placement { inputs: 3, outputs: 5 }, std::iter::empty()).hash(hash)
        })
    }
    let dims: [&[usize]; 6] =
        [&[3, 5, 19], &[8, 64, 14, 14], &[2, 3, 30_000], &[5000, 33], &[1, 1, 150_000], &[40, 70, 7, 7]];
    dims.into_iter().fold(FNV_START, |hash, dims| problem::<f64>(dims, problem::<f32>(dims, hash)))
}

fn alone() -> u64 {
    limit(1, hash)
}

thread_local! {
    /// Whether this thread is running a task.
    static INSIDE: Cell<bool> = const { Cell::new(false) };
}

/// Runs a task as one of a pool's own.
fn inside(task: Task<'_>, number: usize) {
    INSIDE.set(true);
    task(number);
    INSIDE.set(false);
}

/// Threads that wait for tasks, as an engine has them.
struct Workers {
    senders: Vec<Mutex<Sender<Job>>>,
    runs: AtomicUsize,
    late: Duration,
}

/// A task's address, its number, and where to say that it is done.
struct Job(usize, usize, Arc<(Mutex<usize>, Condvar)>);

impl Workers {
    fn new(threads: usize, late: Duration) -> Self {
        let senders = (1..threads).map(|_| {
            let (sender, jobs) = channel::<Job>();
            std::thread::spawn(move || {
                for Job(task, number, done) in jobs {
                    // SAFETY: `run` waits until this has been done.
                    let task = unsafe { *(task as *const Task<'_>) };
                    inside(task, number);
                    *done.0.lock().unwrap() += 1;
                    done.1.notify_one();
                }
            });
            Mutex::new(sender)
        });
        Self { senders: senders.collect(), runs: AtomicUsize::new(0), late }
    }
}

impl Pool for Workers {
    fn threads(&self) -> usize {
        self.senders.len() + 1
    }

    fn inside(&self) -> bool {
        INSIDE.get()
    }

    fn run(&self, tasks: usize, task: Task<'_>) {
        assert!(tasks <= self.threads());
        self.runs.fetch_add(1, Ordering::Relaxed);
        let done = Arc::new((Mutex::new(0), Condvar::new()));
        inside(task, 0);
        std::thread::sleep(self.late);
        for (number, sender) in (1..tasks).zip(&self.senders) {
            let job = Job((&raw const task) as usize, number, Arc::clone(&done));
            sender.lock().unwrap().send(job).unwrap();
        }
        let count = done.0.lock().unwrap();
        drop(done.1.wait_while(count, |count| *count < tasks - 1).unwrap());
    }
}

/// A pool that runs tasks in some way of its own.
struct Odd(fn(usize, Task<'_>));

impl Pool for Odd {
    fn threads(&self) -> usize {
        5
    }
    fn run(&self, tasks: usize, task: Task<'_>) {
        self.0(tasks, task);
    }
}

#[test]
fn the_same_bits_on_a_pool_of_its_own_and_on_a_late_one() {
    let expected = alone();
    for threads in [1, 2, 3, 7] {
        for late in [Duration::ZERO, Duration::from_micros(300)] {
            let pool = Workers::new(threads, late);
            assert_eq!(with(&pool, hash), expected, "{threads} {late:?}");
            assert_eq!(pool.runs.load(Ordering::Relaxed) > 0, threads > 1, "its threads are used");
        }
    }
}

#[test]
fn the_same_bits_on_odd_pools() {
    let expected = alone();
    let pools: [(&str, Odd); 8] = [
        ("serial", Odd(|tasks, task| (0..tasks).for_each(task))),
        ("out of order", Odd(|tasks, task| (0..tasks).rev().for_each(task))),
        ("each twice", Odd(|tasks, task| (0..2 * tasks).for_each(|i| task(i / 2)))),
        ("none", Odd(|_, _| ())),
        ("but one", Odd(|tasks, task| task(tasks - 1))),
        ("numbers that there are not", Odd(|tasks, task| (0..tasks).for_each(|i| task(usize::MAX - i)))),
        (
            "a thread for each",
            Odd(|tasks, task| {
                std::thread::scope(|scope| (0..tasks).for_each(|i| _ = scope.spawn(move || task(i))));
            }),
        ),
        (
            "the same task on several threads at once",
            Odd(|_, task| {
                std::thread::scope(|scope| (0..3).for_each(|_| _ = scope.spawn(|| task(1))));
            }),
        ),
    ];
    for (name, pool) in &pools {
        assert_eq!(with(pool, hash), expected, "{name}");
    }
}

/// What a pool says of its size need not be so.
#[test]
fn the_same_bits_whatever_number_of_threads_a_pool_says() {
    struct Says(usize);
    impl Pool for Says {
        fn threads(&self) -> usize {
            self.0
        }
        fn run(&self, tasks: usize, task: Task<'_>) {
            assert!(tasks <= self.0, "{tasks} of {}", self.0);
            (0..tasks).for_each(task);
        }
    }
    let expected = alone();
    for power in [1, 12, 20, 40, 58, 60, 61, 63] {
        for threads in [(1 << power) - 1, 1 << power] {
            assert_eq!(with(&Says(threads), hash), expected, "{threads}");
        }
    }
    assert_eq!(with(&Says(usize::MAX), hash), expected);
}

#[cfg(feature = "rayon")]
#[test]
fn the_same_bits_on_rayons_pool() {
    assert_eq!(hash(), alone());
}

/// Large enough for several threads, if they are awake and if they are not.
fn large() {
    let shape = Shape::nchw(&[8, 64, 64, 16]).unwrap();
    let mut states = [Welford::new(); 64];
    statistics(&shape, &vec![2.0f32; shape.len()], &mut states).unwrap();
    assert!(states.iter().all(|state| state.mean() == 2.0));
}

#[test]
fn limits_and_calls_from_inside_are_kept() {
    static MOST: AtomicUsize = AtomicUsize::new(0);
    let pool = Odd(|tasks, task| {
        MOST.fetch_max(tasks, Ordering::Relaxed);
        (0..tasks).for_each(task);
    });
    let most = |f: &dyn Fn()| {
        with(&pool, f);
        MOST.swap(0, Ordering::Relaxed)
    };
    assert_eq!(most(&large), 5);
    assert_eq!(most(&|| limit(3, large)), 3);
    assert_eq!(most(&|| limit(1, large)), 0);
    assert_eq!(most(&|| limit(3, || limit(0, large))), 3);
    assert_eq!(most(&|| limit(9, large)), 5);
    // On another thread neither is set.
    assert_eq!(most(&|| std::thread::scope(|scope| _ = scope.spawn(|| limit(1, large)))), 0);

    let workers = Workers::new(3, Duration::ZERO);
    with(&workers, || {
        large();
        let runs = workers.runs.load(Ordering::Relaxed);
        INSIDE.set(true);
        large();
        INSIDE.set(false);
        assert_eq!((runs, workers.runs.load(Ordering::Relaxed)), (1, 1));
    });
}

/// A call from a task of the pool that it is made on.
#[test]
fn calls_within_tasks() {
    let workers = Workers::new(3, Duration::ZERO);
    let calls = AtomicUsize::new(0);
    workers.run(3, &|_| {
        with(&workers, large);
        calls.fetch_add(1, Ordering::Relaxed);
    });
    assert_eq!(calls.into_inner(), 3);
}

#[test]
fn a_panic_of_the_pool_is_the_callers_and_leaves_all_well() {
    let pool = Odd(|tasks, task| {
        (1..tasks).for_each(task);
        panic!("the pool's own");
    });
    let call = std::panic::AssertUnwindSafe(|| with(&pool, large));
    let panic = std::panic::catch_unwind(call).unwrap_err();
    assert_eq!(panic.downcast_ref(), Some(&"the pool's own"));
    large();
}
