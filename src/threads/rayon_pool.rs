//! The only user of rayon: the pool that the call is made in, or the program's.

#![forbid(unsafe_code)]

use std::cell::Cell;
use std::error::Error as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use rayon::{ThreadPoolBuildError, ThreadPoolBuilder};

#[cfg(feature = "capi")]
use super::pool::MOST_THREADS;
use super::pool::Pool;
use super::round::{self, Helper};
use crate::ground::memory;

/// The threads of the pool that the call is made in. The calling thread takes part, and waits for none of them that has
/// not begun.
pub struct Rayon;

impl Pool for Rayon {
    fn threads(&self) -> usize {
        #[cfg(unix)]
        if super::fork::is_child() {
            return 1;
        }
        if inside_pool() || started() { rayon::current_num_threads() } else { 1 }
    }

    /// Whether the last large call of this thread ended so short a while ago that the threads that took part in it are awake:
    /// they look for more for a while. If none took part, as in the first of many calls in a row, they wake up once.
    fn awake(&self) -> bool {
        // As long as rayon's threads look for work before they sleep.
        const AWAKE: Duration = Duration::from_micros(20);
        ENDED.get().is_some_and(|ended| ended.elapsed() < AWAKE)
    }

    fn run(&self, tasks: usize, task: &(dyn Fn(usize) + Sync)) {
        // From outside one more than there need be: the system may let one of them wait for the core that the caller is on,
        // while others are idle.
        let helpers = tasks - usize::from(inside_pool());
        if memory::is_there(CALL_BYTES) {
            round::run(tasks, helpers, task, call);
        } else {
            (0..tasks).for_each(task);
        }
    }
}

thread_local! {
    /// When this thread's last call that is large enough for several threads ended.
    static ENDED: Cell<Option<Instant>> = const { Cell::new(None) };
}

/// A call that is large enough for several threads ends.
pub fn ended() {
    // Some of wasm's have no clock, and asking for the time would panic.
    if cfg!(not(target_family = "wasm")) {
        ENDED.set(Some(Instant::now()));
    }
}

/// Whether the calling thread is one of a pool's.
fn inside_pool() -> bool {
    rayon::current_thread_index().is_some()
}

/// What a round and a job of it take at most, with what rayon's queue grows by. rayon and `Arc` abort where they get none.
const CALL_BYTES: usize = 4 << 10;

/// Leaves it to the pool to run a helper, unless some have not come for long: then all of its threads are busy, and more
/// and more jobs would wait there.
fn call(helper: Helper) {
    const MOST: usize = 8;
    thread_local! {
        /// Those that this thread has called and that have not come.
        static CALLED: Arc<AtomicUsize> = Arc::default();
    }
    if !memory::is_there(CALL_BYTES) {
        return;
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

/// What is known of the program's pool.
static POOL: AtomicU8 = AtomicU8::new(UNKNOWN);
const UNKNOWN: u8 = 0;
const STARTED: u8 = 1;
const FAILED: u8 = 2;

/// Starts the program's pool unless it is running. rayon would do so by itself, with a panic where it cannot, and again
/// with every later call.
fn started() -> bool {
    match POOL.load(Ordering::Relaxed) {
        UNKNOWN => (),
        known => return known == STARTED,
    }
    // Its threads would abort where they get no memory for their first steps, and so does the question how many there are
    // to be. The next call tries again.
    if !memory::is_there(SYSTEM_BYTES) {
        return false;
    }
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    if !memory::is_there(threads.saturating_mul(THREAD_BYTES).saturating_add(SYSTEM_BYTES)) {
        return false;
    }
    // Where there are no threads at all, rayon makes do with the current one, but not when it is asked in this way.
    if cfg!(not(target_family = "wasm")) && failed(&ThreadPoolBuilder::new().build_global()) {
        return false;
    }
    // It panics only if someone else has tried to start it before, and could not.
    let works = std::panic::catch_unwind(rayon::current_num_threads).is_ok();
    POOL.store(if works { STARTED } else { FAILED }, Ordering::Relaxed);
    works
}

/// A thread's stack, as long as no one asks for another, and what it allocates when it starts.
const THREAD_BYTES: usize = (2 << 20) + (64 << 10);

/// More than allocators keep for later: the system is asked, from which stacks come.
const SYSTEM_BYTES: usize = 64 << 20;

/// Whether the pool could not be started, then noted, or else was running.
fn failed(result: &Result<(), ThreadPoolBuildError>) -> bool {
    // What the system says; none if there is a pool already.
    let failed = result.as_ref().is_err_and(|error| error.source().is_some());
    if failed {
        POOL.store(FAILED, Ordering::Relaxed);
    }
    failed
}

/// Makes the pool that calls from outside of any run in.
#[cfg(feature = "capi")]
pub fn set_threads(threads: usize) -> Result<(), String> {
    #[cfg(unix)]
    if super::fork::is_child() {
        return Err("a child of fork() has no pool".to_owned());
    }
    if threads > MOST_THREADS {
        return Err(format!("threads is {threads}, must be at most {MOST_THREADS}"));
    }
    // rayon tries but once, and then says that there is a pool.
    if POOL.load(Ordering::Relaxed) == FAILED {
        return Err("the pool could not be started before, and calls stay on their threads".to_owned());
    }
    let result = ThreadPoolBuilder::new().num_threads(threads).build_global();
    failed(&result);
    result.map_err(|error| error.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn calls_with_pauses_are_not_in_a_row() {
        assert!(!Rayon.awake());
        ended();
        std::thread::sleep(Duration::from_millis(1));
        assert!(!Rayon.awake());
    }
}
