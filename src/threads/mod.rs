//! Who does the tasks: the calling thread, and threads of a pool that come in time.

#[cfg(all(unix, feature = "rayon"))]
mod fork;
pub mod pool;
#[cfg(feature = "rayon")]
mod round;
