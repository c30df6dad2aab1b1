//! Whose threads large problems run on: those of the current rayon pool (feature `rayon`), unless a [`Pool`] of the
//! caller's is set for a stretch of code by [`with`]; and how many of them at most ([`limit`]). Results have the same bits
//! on all.
//!
//! ```
//! use batchnorm::{Shape, Welford, threads};
//!
//! /// Threads that live for one call; an engine would hand the tasks to its own.
//! struct Scoped;
//!
//! impl threads::Pool for Scoped {
//!     fn threads(&self) -> usize {
//!         4
//!     }
//!     fn run(&self, tasks: usize, task: &(dyn Fn(usize) + Sync)) {
//!         std::thread::scope(|scope| {
//!             (1..tasks).for_each(|number| _ = scope.spawn(move || task(number)));
//!             task(0);
//!         });
//!     }
//! }
//!
//! let shape = Shape::nchw(&[8, 16, 32, 32])?;
//! let (x, mut states) = (vec![2.0f32; shape.len()], [Welford::new(); 16]);
//! threads::with(&Scoped, || batchnorm::statistics(&shape, &x, &mut states))?;
//! assert_eq!(states[15].mean(), 2.0);
//! # Ok::<(), batchnorm::Error>(())
//! ```

pub(crate) mod deal;
#[cfg(all(unix, feature = "rayon"))]
mod fork;
#[cfg(feature = "capi")]
pub mod host;
mod pool;
#[cfg(feature = "rayon")]
pub(crate) mod rayon_pool;
#[cfg(feature = "rayon")]
mod round;
mod shares;
mod sync;

pub use pool::{Pool, limit, with};
