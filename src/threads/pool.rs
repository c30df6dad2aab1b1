//! The interface to threads, and which of them the calls of a stretch of code use.

use std::cell::Cell;

/// More threads than any machine has cores for. What a pool says beyond that is taken for this.
pub const MOST_THREADS: usize = 4096;

/// Threads that run tasks: a host's own, in place of rayon's.
///
/// A pool may run the tasks late, in any order, several at once or one after the other, on one thread or many, the calling
/// one or others. A task that it runs twice does no harm, and one that it leaves out is done by the calling thread. When
/// [`run`](Pool::run) returns, no task may be running any more, and none may begin later.
pub trait Pool: Sync {
    /// How many tasks can run at the same time, the calling thread counted if it runs some. 0 is taken for 1, and what is
    /// beyond 4096 for that.
    fn threads(&self) -> usize;

    /// Whether the calling thread is running a task of this pool. A call made there stays on its thread.
    fn inside(&self) -> bool {
        false
    }

    /// Whether the threads are at hand within a microsecond or two, so that small problems (0.25 to 1 MB) are worth it.
    fn awake(&self) -> bool {
        true
    }

    /// Calls `task` with each number below `tasks`, which is at most [`threads`](Pool::threads), and returns when all
    /// calls have. `task` does not panic.
    fn run(&self, tasks: usize, task: &(dyn Fn(usize) + Sync));
}

/// What holds for the calls of a thread.
#[derive(Clone, Copy)]
struct Scope {
    /// A `&dyn Pool` in a frame of [`with`]; null for rayon's.
    pool: *const (),
    limit: usize,
}

thread_local! {
    static SCOPE: Cell<Scope> = const { Cell::new(Scope { pool: std::ptr::null(), limit: usize::MAX }) };
}

/// Runs `f` with another scope; the former one comes back on unwinding too.
fn scoped<R>(change: impl FnOnce(&mut Scope), f: impl FnOnce() -> R) -> R {
    struct Restore(Scope);
    impl Drop for Restore {
        fn drop(&mut self) {
            SCOPE.set(self.0);
        }
    }
    let mut scope = SCOPE.get();
    let _restore = Restore(scope);
    change(&mut scope);
    SCOPE.set(scope);
    f()
}

/// Runs `f` with the calls that it makes on this thread spread over `pool`. The innermost `with` holds.
pub fn with<R>(pool: &dyn Pool, f: impl FnOnce() -> R) -> R {
    scoped(|scope| scope.pool = (&raw const pool).cast(), f)
}

/// Runs `f` with the calls that it makes on this thread spread over `threads` threads at most; 1 keeps them on the
/// calling thread, 0 changes nothing. Of nested limits the lowest holds.
///
/// ```
/// use batchnorm::{Shape, Welford, threads};
/// let (shape, mut states) = (Shape::nchw(&[2, 1])?, [Welford::new()]);
/// threads::limit(1, || batchnorm::statistics(&shape, &[1.0f32, 3.0], &mut states))?;
/// # Ok::<(), batchnorm::Error>(())
/// ```
pub fn limit<R>(threads: usize, f: impl FnOnce() -> R) -> R {
    scoped(|scope| scope.limit = if threads == 0 { scope.limit } else { scope.limit.min(threads) }, f)
}

/// The limit that holds now.
pub fn current_limit() -> usize {
    SCOPE.get().limit
}

/// Calls `f` with the pool that is set now, if one is.
pub fn current<R>(f: impl FnOnce(Option<&dyn Pool>) -> R) -> R {
    let pool = SCOPE.get().pool.cast::<&dyn Pool>();
    // SAFETY: it is null, or points into a frame of `with` on this thread, which puts the former pointer back before it
    // ends, and which outlives `f`.
    f(unsafe { pool.as_ref() }.copied())
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Numbered(usize);

    impl Pool for Numbered {
        fn threads(&self) -> usize {
            self.0
        }
        fn run(&self, tasks: usize, task: &(dyn Fn(usize) + Sync)) {
            (0..tasks).for_each(task);
        }
    }

    fn set() -> (Option<usize>, usize) {
        (current(|pool| pool.map(Pool::threads)), current_limit())
    }

    #[test]
    fn scopes_nest_and_end() {
        const ALL: usize = usize::MAX;
        assert_eq!(set(), (None, ALL));
        with(&Numbered(3), || {
            assert_eq!(set(), (Some(3), ALL));
            limit(2, || {
                with(&Numbered(5), || assert_eq!(set(), (Some(5), 2)));
                limit(4, || assert_eq!(set(), (Some(3), 2)));
                limit(0, || assert_eq!(set(), (Some(3), 2)));
                limit(1, || assert_eq!(set(), (Some(3), 1)));
                std::thread::scope(|scope| _ = scope.spawn(|| assert_eq!(set(), (None, ALL))));
                assert_eq!(set(), (Some(3), 2));
            });
            let panic = || with(&Numbered(7), || limit(1, || std::panic::resume_unwind(Box::new(()))));
            std::panic::catch_unwind(panic).unwrap_err();
            assert_eq!(set(), (Some(3), ALL));
        });
        assert_eq!(set(), (None, ALL));
    }
}
