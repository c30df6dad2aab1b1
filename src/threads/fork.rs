//! Whether this process is a child of fork(): it has its calling thread and none of the pool's.
//!
//! Others may have held the pool's locks at the fork, for good as far as the child can see. So it stays away from the
//! pool, and its calls do all of their work themselves.

use std::ffi::c_int;
use std::sync::atomic::{AtomicBool, Ordering};

type Handler = Option<unsafe extern "C" fn()>;

unsafe extern "C" {
    fn pthread_atfork(prepare: Handler, parent: Handler, child: Handler) -> c_int;
}

static CHILD: AtomicBool = AtomicBool::new(false);

unsafe extern "C" fn in_child() {
    CHILD.store(true, Ordering::Relaxed);
}

/// Whether this process has been forked since the first time that this was asked, which is before the pool starts.
pub fn is_child() -> bool {
    static WATCHED: AtomicBool = AtomicBool::new(false);
    // Twice does no harm. A lock that has whoever comes second wait could itself be held at a fork.
    if !WATCHED.load(Ordering::Acquire) {
        // SAFETY: the handler stores to an atomic, which every child may do. Without memory for it, forks go unnoticed.
        let _ = unsafe { pthread_atfork(None, None, Some(in_child)) };
        WATCHED.store(true, Ordering::Release);
    }
    CHILD.load(Ordering::Relaxed)
}
