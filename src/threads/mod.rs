//! Who does the tasks: the calling thread, and threads of a pool that come in time.

pub mod pool;
#[cfg(feature = "rayon")]
mod round;
