//! The only user of rayon: hands tasks to the current thread pool, or to nobody.

#![forbid(unsafe_code)]

use std::cell::Cell;
use std::ops::Range;
use std::time::{Duration, Instant};

#[cfg(feature = "rayon")]
use super::round;

#[cfg(feature = "capi")]
thread_local! {
    /// Whether the calls of this thread stay on it.
    static SERIAL: Cell<bool> = const { Cell::new(false) };
}

/// Runs `f`, which has calls of this thread only, without the pool.
#[cfg(feature = "capi")]
pub fn serially<R>(f: impl FnOnce() -> R) -> R {
    /// Puts the former state back, on unwinding too.
    struct Restore(bool);
    impl Drop for Restore {
        fn drop(&mut self) {
            SERIAL.set(self.0);
        }
    }
    let _restore = Restore(SERIAL.replace(true));
    f()
}

/// Makes the pool that calls from outside of any run in.
#[cfg(feature = "capi")]
pub fn set_threads(threads: usize) -> Result<(), String> {
    #[cfg(all(unix, feature = "rayon"))]
    if super::fork::is_child() {
        return Err("a child of fork() has no pool".to_owned());
    }
    #[cfg(feature = "rayon")]
    return rayon::ThreadPoolBuilder::new()
        .num_threads(threads)
        .build_global()
        .map_err(|error| error.to_string());
    #[cfg(not(feature = "rayon"))]
    return if threads == 1 { Ok(()) } else { Err("built without threads".to_owned()) };
}

/// The number of threads that tasks may spread over: those of the pool that the call runs in.
pub fn workers() -> usize {
    #[cfg(feature = "capi")]
    if SERIAL.get() {
        return 1;
    }
    #[cfg(all(unix, feature = "rayon"))]
    if super::fork::is_child() {
        return 1;
    }
    #[cfg(all(feature = "capi", feature = "rayon"))]
    return pool_threads();
    #[cfg(all(not(feature = "capi"), feature = "rayon"))]
    return rayon::current_num_threads();
    #[cfg(not(feature = "rayon"))]
    1
}

/// rayon panics where it cannot start its pool, and at every later try. A C program has no other pool to give: 1 then.
#[cfg(all(feature = "capi", feature = "rayon"))]
fn pool_threads() -> usize {
    use std::sync::atomic::{AtomicBool, Ordering};
    static FAILED: AtomicBool = AtomicBool::new(false);
    if FAILED.load(Ordering::Relaxed) && !inside_pool() {
        return 1;
    }
    std::panic::catch_unwind(rayon::current_num_threads).unwrap_or_else(|_| {
        FAILED.store(true, Ordering::Relaxed);
        1
    })
}

thread_local! {
    /// When this thread's last call that is large enough for several threads ended.
    static ENDED: Cell<Option<Instant>> = const { Cell::new(None) };
}

/// A call that is large enough for several threads ends.
pub fn ended() {
    // Some of wasm's have no clock, and asking for the time would panic.
    if cfg!(all(feature = "rayon", not(target_family = "wasm"))) {
        ENDED.set(Some(Instant::now()));
    }
}

/// Whether the last such call of this thread ended so short a while ago that the threads that took part in it are awake: rayon's
/// look for work for ten to twenty microseconds, then one takes 40 to come. If none took part, as in the first of many calls in
/// a row, they wake up once. (0.4 MB: in a row, from outside of the pool, 1.4 to 1.6 times as fast as on one thread; with pauses
/// of 30 microseconds and more on one thread inference is 1.7 times as fast, training 1.1.)
pub fn in_a_row() -> bool {
    const AWAKE: Duration = Duration::from_micros(20);
    ENDED.get().is_some_and(|ended| ended.elapsed() < AWAKE)
}

/// Whether the calling thread is one of a pool's.
#[cfg(feature = "rayon")]
fn inside_pool() -> bool {
    rayon::current_thread_index().is_some()
}

/// Deals out 0..`units` as ranges, about `tasks` of them, in any order, to `threads` threads: this one, and others of the
/// pool. Each calls `work` with those that it takes, neighbours mostly; `backwards` from the end of what it took last time.
/// Behind a pointer, or every operation would bring its own copy of the machinery.
pub fn deal(
    units: usize,
    tasks: usize,
    threads: usize,
    backwards: bool,
    work: &(dyn Fn(&mut dyn Iterator<Item = Range<usize>>) + Sync),
) {
    let tasks = tasks.min(units);
    let range = |i| i * units / tasks..(i + 1) * units / tasks;
    #[cfg(feature = "rayon")]
    if threads > 1 && tasks > 1 {
        // From outside one more than there need be: the system may let one of them wait for the core that the caller is on,
        // while others are idle (after 1 ms without a call, 0.7 times as fast with one less).
        let helpers = threads.min(tasks) - usize::from(inside_pool());
        return round::run(tasks, helpers, backwards, &|tasks| work(&mut tasks.map(range)), call);
    }
    let _ = threads;
    if backwards { work(&mut (0..tasks).rev().map(range)) } else { work(&mut (0..tasks).map(range)) }
}

/// Leaves it to the pool to run a helper, unless some have not come for long: then all of its threads are busy, and more
/// and more jobs would wait there.
#[cfg(feature = "rayon")]
fn call(helper: round::Helper) {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};
    const MOST: usize = 8;
    thread_local! {
        /// Those that this thread has called and that have not come.
        static CALLED: Arc<AtomicUsize> = Arc::default();
    }
    let Ok(called) = CALLED.try_with(Arc::clone) else { return };
    if called.load(Ordering::Relaxed) < MOST {
        called.fetch_add(1, Ordering::Relaxed);
        rayon::spawn(move || {
            called.fetch_sub(1, Ordering::Relaxed);
            helper.help();
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn calls_with_pauses_are_not_in_a_row() {
        assert!(!in_a_row());
        ended();
        std::thread::sleep(Duration::from_millis(1));
        assert!(!in_a_row());
    }
}
