//! A round of tasks: the calling thread does them, and helpers do some if they come in time.
//!
//! Scopes and parallel iterators of rayon's wait until every job of theirs has run, if only to find that nothing is left to
//! do, and from outside of the pool they leave all work to its threads; one that sleeps takes 40 microseconds and more to
//! come. Without that wait, calls from outside are 1.05 to 1.8 times as fast, from inside 1.02 to 1.1 times (3 to 26 MB,
//! 2 threads).

use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::{hint, iter, thread};

/// What a thread does with the numbers of the tasks that it takes: it takes the next one by asking for it.
type Work<'a> = &'a (dyn Fn(&mut dyn Iterator<Item = usize>) + Sync);

/// What helpers share with the caller, who may be gone when they come.
struct Round {
    /// The caller's [`Work`], there until every task has been done.
    work: *const (),
    tasks: usize,
    /// Whether each part's are taken from the last to the first.
    backwards: bool,
    /// How many have been taken, or tried to be, of the part of them that each thread begins with.
    taken: Vec<AtomicUsize>,
    /// Tasks that have not been done.
    left: AtomicUsize,
    /// What the last thread to panic said.
    panic: Mutex<Option<Box<dyn Any + Send>>>,
    call: fn(Helper),
}

// SAFETY: `Work` is `Sync`; all else is so by itself.
unsafe impl Send for Round {}
// SAFETY: as above.
unsafe impl Sync for Round {}

/// A thread that takes part, or is called to.
pub struct Helper {
    round: Arc<Round>,
    number: usize,
}

impl Helper {
    /// Calls two more and does tasks until all have been taken: first those of its own part, which are neighbours.
    pub fn help(self) {
        let Self { round, number } = self;
        let Round { tasks, backwards, ref taken, .. } = *round;
        let parts = taken.len();
        for number in (2 * number + 1..parts).take(2) {
            // One for whom that fails is one who never comes. Unwinding from here would leave the others without a caller.
            let helper = Self { round: Arc::clone(&round), number };
            let _ = catch_unwind(|| (round.call)(helper));
        }
        let mut rest = (number..parts).chain(0..number).flat_map(|part| {
            let [start, end] = [part, part + 1].map(|part| part * tasks / parts);
            let next = move || Some(start + taken[part].fetch_add(1, Ordering::Relaxed));
            let numbers = iter::from_fn(next).take_while(move |number| *number < end);
            numbers.map(move |number| if backwards { start + end - 1 - number } else { number })
        });
        // Once, unless it panics.
        while let Some(first) = rest.next() {
            let mut done = 0;
            let mut tasks = iter::once(first).chain(&mut rest).inspect(|_| done += 1);
            // SAFETY: a task has been taken, by no one else, and not been counted as done: the caller waits for it.
            let work = unsafe { *round.work.cast::<Work<'_>>() };
            if let Err(panic) = catch_unwind(AssertUnwindSafe(|| work(&mut tasks))) {
                *round.panic.lock().unwrap_or_else(PoisonError::into_inner) = Some(panic);
            }
            round.left.fetch_sub(done, Ordering::Release);
        }
        // A thread of the pool looks for work for ten to twenty microseconds before it sleeps. It begins with that when the round is
        // over, and its caller may begin with the next (1.01 to 1.05 times as fast with 0.4 to 6 MB).
        let mut looks = if number > 0 { LOOKS } else { 0 };
        while looks > 0 && round.left.load(Ordering::Relaxed) > 0 {
            hint::spin_loop();
            looks -= 1;
        }
    }
}

/// How often to look whether the last tasks have been done, 50 microseconds or less.
const LOOKS: usize = 1000;

/// Deals out 0..`tasks`, in any order, to this thread and to `helpers` others, for which `call` is to find a thread: each
/// soon, late or never. Each that gets a task calls `work`, mostly once, which is to take what it can: first those of a part
/// that is its own in every such round, in order or `backwards`.
pub fn run(tasks: usize, helpers: usize, backwards: bool, work: Work<'_>, call: fn(Helper)) {
    let round = Arc::new(Round {
        work: (&raw const work).cast(),
        tasks,
        backwards,
        taken: (0..=helpers).map(|_| AtomicUsize::new(0)).collect(),
        left: AtomicUsize::new(tasks),
        panic: Mutex::new(None),
        call,
    });
    Helper { round: Arc::clone(&round), number: 0 }.help();
    for look in 0.. {
        match round.left.load(Ordering::Acquire) {
            0 => break,
            _ if look < LOOKS => hint::spin_loop(),
            _ => thread::yield_now(),
        }
    }
    let panic = round.panic.lock().unwrap_or_else(PoisonError::into_inner).take();
    if let Some(panic) = panic {
        resume_unwind(panic);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Runs rounds and looks whether each task has been done once when they return.
    fn every_task_is_done_once(call: fn(Helper)) {
        for tasks in [1, 2, 3, 7, 8, 100] {
            for helpers in [0, 1, 2, 3, 7] {
                let done: Vec<_> = (0..tasks).map(|_| AtomicUsize::new(0)).collect();
                run(
                    tasks,
                    helpers,
                    tasks % 2 == 0,
                    &|tasks| tasks.for_each(|i| _ = done[i].fetch_add(1, Ordering::Relaxed)),
                    call,
                );
                assert!(done.into_iter().all(|times| times.into_inner() == 1), "{tasks} {helpers}");
            }
        }
    }

    fn on_a_thread(helper: Helper) {
        thread::spawn(|| helper.help());
    }

    #[test]
    fn helpers_that_come_share_the_tasks() {
        (0..20).for_each(|_| every_task_is_done_once(on_a_thread));
        // They do come: two tasks that wait for each other.
        let both = std::sync::Barrier::new(2);
        run(2, 1, false, &|tasks| tasks.for_each(|_| _ = both.wait()), on_a_thread);
    }

    #[test]
    fn helpers_that_never_come_leave_the_tasks_to_the_caller() {
        every_task_is_done_once(drop);
    }

    #[test]
    fn a_call_that_panics_is_a_helper_that_never_comes() {
        every_task_is_done_once(|_| panic!("no one"));
    }

    #[test]
    fn helpers_that_come_too_late_find_nothing_to_do() {
        static LATE: Mutex<Vec<Helper>> = Mutex::new(Vec::new());
        every_task_is_done_once(|helper| LATE.lock().unwrap().push(helper));
        let mut came = 0;
        loop {
            // Those that they call come later still.
            let late = std::mem::take(&mut *LATE.lock().unwrap());
            if late.is_empty() {
                break;
            }
            came += late.len();
            late.into_iter().for_each(Helper::help);
        }
        assert_eq!(came, 6 * (1 + 2 + 3 + 7));
    }

    #[test]
    fn a_panic_is_the_callers_once_all_tasks_are_done() {
        for call in [drop, on_a_thread] {
            let done = AtomicUsize::new(0);
            let task = |i| {
                done.fetch_add(1, Ordering::Relaxed);
                assert!(i != 2, "the third");
            };
            let panic =
                catch_unwind(AssertUnwindSafe(|| run(5, 2, false, &|tasks| tasks.for_each(task), call)))
                    .unwrap_err();
            assert_eq!(panic.downcast_ref(), Some(&"the third"));
            assert_eq!(done.into_inner(), 5);
        }
    }
}
