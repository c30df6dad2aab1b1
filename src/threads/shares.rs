//! Work dealt out in shares: who takes part does those of a part of its own, then what others have left.
//!
//! Counters, one a part, say what has been taken. So it does not matter who calls [`Shares::take`], how often, when, or
//! with which number: everything is done once, and the calling thread does what no one else has.

use std::any::Any;
use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::{Mutex, PoisonError};

use super::pool::Pool;
use super::sync::{AtomicUsize, LOOKS, Ordering, hint, thread};

/// What a thread does with the shares that it takes, as ranges of units: it takes the next one by asking for it.
pub type Work<'a> = &'a (dyn Fn(&mut dyn Iterator<Item = Range<usize>>) + Sync);

/// The most parts, so that their counters need no allocation. More threads than that share parts.
const MOST: usize = 64;

/// 0..`units` in `shares` shares, of which neighbours make up a part.
pub struct Shares {
    units: usize,
    shares: usize,
    parts: usize,
    /// Whether each part's are taken from the last to the first.
    backwards: bool,
    /// How many have been taken, or tried to be, of each part.
    taken: [AtomicUsize; MOST],
    /// Shares that have not been done.
    left: AtomicUsize,
    /// What the last thread to panic said.
    panic: Mutex<Option<Box<dyn Any + Send>>>,
}

impl Shares {
    /// For about so many `threads`.
    pub fn new(units: usize, shares: usize, threads: usize, backwards: bool) -> Self {
        Self {
            units,
            shares,
            parts: threads.clamp(1, MOST),
            backwards,
            taken: std::array::from_fn(|_| AtomicUsize::new(0)),
            left: AtomicUsize::new(shares),
            panic: Mutex::new(None),
        }
    }

    /// Has `work` done by `threads` of the pool's, or by this thread. A panic of `work` is this call's, once all others
    /// have been done.
    ///
    /// `work` may take nothing as long as some other thread takes all.
    pub fn run(&self, pool: &dyn Pool, threads: usize, work: Work<'_>) {
        let ran = catch_unwind(AssertUnwindSafe(|| {
            pool.run(threads, &|number| self.take(number % self.parts, work))
        }));
        // All has been done by now, if the pool has kept its word.
        for look in 0.. {
            self.take(0, work);
            match self.left.load(Ordering::Acquire) {
                0 => break,
                _ if look < LOOKS => hint::spin_loop(),
                _ => thread::yield_now(),
            }
        }
        let panic = self.panic.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(panic) = ran.err().or(panic) {
            resume_unwind(panic);
        }
    }

    /// Does shares until all have been taken: first those of a part.
    fn take(&self, own: usize, work: Work<'_>) {
        if self.left.load(Ordering::Relaxed) == 0 {
            return;
        }
        let Self { units, shares, parts, backwards, .. } = *self;
        let mut rest = (own..parts).chain(0..own).flat_map(|part| {
            let [start, end] = [part, part + 1].map(|part| part * shares / parts);
            let next = move || Some(start + self.taken[part].fetch_add(1, Ordering::Relaxed));
            let numbers = std::iter::from_fn(next).take_while(move |number| *number < end);
            numbers.map(move |number| {
                let number = if backwards { start + end - 1 - number } else { number };
                number * units / shares..(number + 1) * units / shares
            })
        });
        // Once, unless it panics.
        loop {
            let mut taken = 0;
            let mut counted = rest.by_ref().inspect(|_| taken += 1);
            let panic = catch_unwind(AssertUnwindSafe(|| work(&mut counted))).err();
            let ends = panic.is_none() || taken == 0;
            if let Some(panic) = panic {
                // One that panics before it takes any would do so for ever: nobody does the rest then.
                taken += if ends { rest.by_ref().count() } else { 0 };
                *self.panic.lock().unwrap_or_else(PoisonError::into_inner) = Some(panic);
            }
            // The last that this thread does with the caller's memory.
            self.left.fetch_sub(taken, Ordering::Release);
            if ends {
                return;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::AtomicBool;

    /// A pool that runs tasks in some way of its own.
    struct Odd(fn(usize, &(dyn Fn(usize) + Sync)));

    impl Pool for Odd {
        fn threads(&self) -> usize {
            4
        }
        fn run(&self, tasks: usize, task: &(dyn Fn(usize) + Sync)) {
            self.0(tasks, task);
        }
    }

    /// Asserts that each unit is done once on a pool.
    fn each_once(pool: &dyn Pool) {
        for (units, shares, threads) in [(1, 1, 1), (5, 5, 2), (100, 7, 4), (1000, 100, 3), (300, 300, 200)] {
            let done: Vec<_> = (0..units).map(|_| AtomicUsize::new(0)).collect();
            let count = |unit: usize| _ = done[unit].fetch_add(1, Ordering::Relaxed);
            Shares::new(units, shares, threads, units % 2 == 0)
                .run(pool, threads, &|ranges| ranges.flatten().for_each(count));
            assert!(done.into_iter().all(|times| times.into_inner() == 1), "{units} {shares} {threads}");
        }
    }

    #[test]
    fn any_pool_does_all_once() {
        each_once(&Odd(|tasks, task| (0..tasks).for_each(task)));
        each_once(&Odd(|tasks, task| (0..tasks).rev().for_each(task)));
        each_once(&Odd(|tasks, task| (0..2 * tasks).for_each(|i| task(i / 2))));
        each_once(&Odd(|_, _| ()));
        each_once(&Odd(|_, task| task(usize::MAX)));
        each_once(&Odd(|tasks, task| {
            thread::scope(|scope| (0..tasks).for_each(|i| _ = scope.spawn(move || task(i))));
        }));
    }

    /// A thread without memory takes nothing.
    #[test]
    fn a_thread_that_takes_nothing_leaves_all_to_others() {
        let (refused, done) = (AtomicBool::new(false), AtomicUsize::new(0));
        let pool = Odd(|tasks, task| (0..tasks).for_each(task));
        Shares::new(10, 10, 4, false).run(&pool, 4, &|ranges| {
            if refused.swap(true, Ordering::Relaxed) {
                ranges.for_each(|_| _ = done.fetch_add(1, Ordering::Relaxed));
            }
        });
        assert_eq!(done.into_inner(), 10);
    }

    #[test]
    fn a_panic_is_the_callers_once_all_is_done() {
        let done = AtomicUsize::new(0);
        let share = |range: Range<usize>| {
            done.fetch_add(1, Ordering::Relaxed);
            assert!(range.start != 2, "the third");
        };
        let pool = Odd(|tasks, task| (0..tasks).for_each(task));
        let run = || Shares::new(5, 5, 2, false).run(&pool, 2, &|ranges| ranges.for_each(share));
        let panic = catch_unwind(AssertUnwindSafe(run)).unwrap_err();
        assert_eq!((panic.downcast_ref(), done.into_inner()), (Some(&"the third"), 5));
    }

    #[test]
    fn panics_of_the_pool_and_of_work_that_does_not_begin_are_the_callers() {
        let pool = Odd(|_, _| panic!("the pool"));
        let done = AtomicUsize::new(0);
        let count = |_| _ = done.fetch_add(1, Ordering::Relaxed);
        let run = || Shares::new(5, 5, 2, false).run(&pool, 2, &|ranges| ranges.for_each(count));
        let panic = catch_unwind(AssertUnwindSafe(run)).unwrap_err();
        assert_eq!((panic.downcast_ref(), done.into_inner()), (Some(&"the pool"), 5));
        let pool = Odd(|tasks, task| (0..tasks).for_each(task));
        let run = || Shares::new(5, 5, 2, false).run(&pool, 2, &|_| panic!("the work"));
        let panic = catch_unwind(AssertUnwindSafe(run)).unwrap_err();
        assert_eq!(panic.downcast_ref(), Some(&"the work"));
    }
}
