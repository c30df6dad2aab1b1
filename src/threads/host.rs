//! A C host's threads, as functions of its own.

use std::ffi::c_void;

use super::pool::Pool;
use super::sync::{AtomicUsize, LOOKS, Ordering, hint};

/// A task of the library's, to be called with the argument that came with it and each number below the number of tasks.
pub type HostTask = unsafe extern "C" fn(argument: *mut c_void, number: usize);

/// The threads of the program's own, as functions that get `context`, may be called from any thread, and neither throw nor
/// jump out.
#[derive(Debug, Clone, Copy)]
#[repr(C)]
pub struct HostPool {
    /// sizeof(batchnorm_threadpool).
    pub size: usize,
    /// Whatever the functions want.
    pub context: *mut c_void,
    /// How many tasks can run at the same time: 1 to 4096; what is less or more is taken for those.
    pub threads: Option<unsafe extern "C" fn(context: *mut c_void) -> usize>,
    /// Calls `task` with `argument` and each number below `tasks`, which is at most what `threads` says, and returns when
    /// all calls have: in any order, on any threads, late or one after the other. A call that is left out is made up for;
    /// one that is under way when `run` returns, or comes later, uses memory that is gone.
    pub run: Option<
        unsafe extern "C" fn(context: *mut c_void, tasks: usize, task: HostTask, argument: *mut c_void),
    >,
    /// Whether the calling thread is running a task of the pool's, so that the call stays on it: 0 or not. Null for never.
    pub inside: Option<unsafe extern "C" fn(context: *mut c_void) -> i32>,
    /// Whether the threads are at hand within a microsecond or two (they spin), so that problems of less than a megabyte
    /// are worth it: 0 or not. Null for never.
    pub awake: Option<unsafe extern "C" fn(context: *mut c_void) -> i32>,
}

/// A [`HostPool`] whose functions are there and do what they have to.
pub struct Host {
    context: *mut c_void,
    threads: unsafe extern "C" fn(*mut c_void) -> usize,
    run: unsafe extern "C" fn(*mut c_void, usize, HostTask, *mut c_void),
    inside: Option<unsafe extern "C" fn(*mut c_void) -> i32>,
    awake: Option<unsafe extern "C" fn(*mut c_void) -> i32>,
}

// SAFETY: the context is the functions' own, which may be called from any thread, says the caller of `new`.
unsafe impl Sync for Host {}

impl Host {
    /// `None` if a function is missing that has to be there.
    ///
    /// # Safety
    /// The functions can be called with the context as long as this is used, from any thread. They neither throw nor jump
    /// out. None of `run`'s calls of `task` is under way, or still to come, when it returns.
    pub unsafe fn new(pool: &HostPool) -> Option<Self> {
        let HostPool { context, threads, run, inside, awake, .. } = *pool;
        Some(Self { context, threads: threads?, run: run?, inside, awake })
    }
}

impl Pool for Host {
    fn threads(&self) -> usize {
        // SAFETY: `new`'s caller says that it can be called.
        unsafe { (self.threads)(self.context) }
    }

    fn inside(&self) -> bool {
        // SAFETY: as above.
        self.inside.is_some_and(|inside| unsafe { inside(self.context) } != 0)
    }

    fn awake(&self) -> bool {
        // SAFETY: as above.
        self.awake.is_some_and(|awake| unsafe { awake(self.context) } != 0)
    }

    fn run(&self, tasks: usize, task: &(dyn Fn(usize) + Sync)) {
        /// # Safety
        /// `argument` is the one that `run` passes, and `run` has not returned.
        unsafe extern "C" fn call(argument: *mut c_void, number: usize) {
            // SAFETY: it points to `round` below, says the caller.
            unsafe { &*argument.cast::<Round<'_>>() }.call(number);
        }
        let looks = if self.awake() { 0 } else { LOOKS };
        let round = Round { task, looks, begun: AtomicUsize::new(0), ended: AtomicUsize::new(0) };
        // SAFETY: as above; no call of `call` goes on once it has returned.
        unsafe { (self.run)(self.context, tasks, call, (&raw const round).cast_mut().cast()) }
    }
}

/// The calls of a task.
struct Round<'a> {
    task: &'a (dyn Fn(usize) + Sync),
    /// How often to look for others' ends before a call returns. A thread whose host lets it sleep as soon as it has to wait
    /// takes longer to wake up than the others take to end, which end at about the same time.
    looks: usize,
    begun: AtomicUsize,
    ended: AtomicUsize,
}

impl Round<'_> {
    fn call(&self, number: usize) {
        self.begun.fetch_add(1, Ordering::Relaxed);
        (self.task)(number);
        self.ended.fetch_add(1, Ordering::Relaxed);
        // Of those that have begun: others may come on this very thread.
        for _ in 0..self.looks {
            if self.ended.load(Ordering::Relaxed) >= self.begun.load(Ordering::Relaxed) {
                break;
            }
            hint::spin_loop();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    unsafe extern "C" fn three(_: *mut c_void) -> usize {
        3
    }

    unsafe extern "C" fn counted(context: *mut c_void, tasks: usize, task: HostTask, argument: *mut c_void) {
        // SAFETY: the context is the test's counter; the task is called before this returns.
        unsafe {
            (*context.cast::<AtomicUsize>()).fetch_add(1, Ordering::Relaxed);
            (0..tasks).rev().for_each(|number| task(argument, number));
        }
    }

    unsafe extern "C" fn yes(_: *mut c_void) -> i32 {
        1
    }

    #[test]
    fn functions_are_a_pool() {
        let runs = AtomicUsize::new(0);
        let context = (&raw const runs).cast_mut().cast();
        let functions = HostPool {
            size: size_of::<HostPool>(),
            context,
            threads: Some(three),
            run: Some(counted),
            inside: None,
            awake: None,
        };
        // SAFETY: the functions above keep to it.
        let new = |functions| unsafe { Host::new(&functions) };
        let host = new(functions).unwrap();
        let sum = AtomicUsize::new(0);
        host.run(5, &|number| _ = sum.fetch_add(1 << number, Ordering::Relaxed));
        assert_eq!((host.threads(), runs.load(Ordering::Relaxed)), (3, 1));
        assert_eq!((host.inside(), host.awake()), (false, false));
        assert_eq!(sum.into_inner(), 31);
        assert!(new(HostPool { inside: Some(yes), ..functions }).unwrap().inside());
        assert!(new(HostPool { awake: Some(yes), ..functions }).unwrap().awake());
        assert!(new(HostPool { threads: None, ..functions }).is_none());
        assert!(new(HostPool { run: None, ..functions }).is_none());
    }
}
