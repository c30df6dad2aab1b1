//! Deals out work to the threads of the pool that is set, or to none.

#![forbid(unsafe_code)]

use std::ops::Range;

use super::pool::{self, Pool};
#[cfg(feature = "rayon")]
use super::rayon_pool::{self, Rayon};
use super::shares::{Shares, Work};

/// The pool where none is set.
#[cfg(feature = "rayon")]
const DEFAULT: &dyn Pool = &Rayon;
#[cfg(not(feature = "rayon"))]
const DEFAULT: &dyn Pool = &CallingThread;

#[cfg(not(feature = "rayon"))]
struct CallingThread;

#[cfg(not(feature = "rayon"))]
impl Pool for CallingThread {
    fn threads(&self) -> usize {
        1
    }
    fn run(&self, tasks: usize, task: &(dyn Fn(usize) + Sync)) {
        (0..tasks).for_each(task);
    }
}

fn current<R>(f: impl FnOnce(&dyn Pool) -> R) -> R {
    pool::current(|pool| f(pool.unwrap_or(DEFAULT)))
}

/// The number of threads that a call may spread over. Asking may start a pool.
pub fn workers() -> usize {
    match pool::current_limit() {
        1 => 1,
        limit => {
            current(
                |pool| {
                    if pool.inside() { 1 } else { pool.threads().min(limit).clamp(1, pool::MOST_THREADS) }
                },
            )
        }
    }
}

/// Whether the threads are at hand sooner than it takes to wake them.
pub fn awake() -> bool {
    current(|pool| pool.awake())
}

/// A call that is large enough for several threads ends.
pub fn ended() {
    #[cfg(feature = "rayon")]
    if pool::current(|pool| pool.is_none()) {
        rayon_pool::ended();
    }
}

/// Deals out 0..`units` as ranges, about `tasks` of them, in any order, to `threads` threads: this one, and others of the
/// pool. Each calls `work` with those that it takes, neighbours mostly; `backwards` from the end of what it took last time.
/// Behind a pointer, or every operation would bring its own copy of the machinery.
pub fn deal(units: usize, tasks: usize, threads: usize, backwards: bool, work: Work<'_>) {
    let tasks = tasks.min(units);
    let threads = threads.min(tasks);
    if threads > 1 {
        let shares = Shares::new(units, tasks, threads, backwards);
        return current(|pool| shares.run(pool, threads, work));
    }
    let range = |i: usize| -> Range<usize> { i * units / tasks..(i + 1) * units / tasks };
    if backwards { work(&mut (0..tasks).rev().map(range)) } else { work(&mut (0..tasks).map(range)) }
}
