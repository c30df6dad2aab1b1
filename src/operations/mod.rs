//! The operations as the engine runs them: which sums, which coefficients, which map.

pub mod backward;
pub mod fold;
pub mod forward;
pub mod given;
mod halves;
pub mod inference;
pub mod memory;
mod place;
pub mod storage;
mod task;
mod tiles;

use crate::ground::error::Error;
use crate::ground::geometry::Geometry;
use crate::kernel::Vectorized;
use crate::schedule::engine;
use crate::simd::Level;
use backward::Backward;
use fold::Fold;
use forward::Forward;
use inference::Inference;
use memory::Mixed;
use storage::Storage;

/// A checked call.
pub enum Job<'a, T: Vectorized> {
    Forward(Forward<'a, T, Mixed>),
    Inference(Inference<'a, T, Mixed>),
    Backward(Backward<'a, T, Mixed>),
}

/// A number that there are kernels for: `f32` or `f64`. Sealed.
pub trait Element: Vectorized + Storage<Arithmetic = Self> {
    /// Runs an operation. The one place where the kernels are instantiated, in this crate and not in its users'.
    #[doc(hidden)]
    fn run(level: Level, geometry: &Geometry, job: &Job<'_, Self>) -> Result<(), Error>;

    /// The same of folding, which no engine runs.
    #[doc(hidden)]
    fn fold(fold: &Fold<'_, Self>);
}

/// Runs an operation on the tensors themselves if they are all elements, else, if there are others to an element, in tiles.
macro_rules! run {
    ($level:ident, $geometry:ident, $operation:ident, $half:pat => $otherwise:expr) => {
        match $operation.own() {
            Ok(own) => engine::run($level, $geometry, &own),
            Err($half) => $otherwise,
        }
    };
}

/// Runs an operation on tensors of 16-bit numbers, if there are any.
#[cfg(any(feature = "half", feature = "capi"))]
fn in_tiles<O: engine::Operation<f32>>(
    _: crate::ground::half::Half,
    level: Level,
    geometry: &Geometry,
    operation: &O,
) -> Result<(), Error> {
    engine::run(level, geometry, operation)
}
#[cfg(not(any(feature = "half", feature = "capi")))]
fn in_tiles<O>(half: std::convert::Infallible, _: Level, _: &Geometry, _: &O) -> Result<(), Error> {
    match half {}
}

impl Element for f32 {
    fn fold(fold: &Fold<'_, Self>) {
        fold.run();
    }

    fn run(level: Level, geometry: &Geometry, job: &Job<'_, Self>) -> Result<(), Error> {
        match job {
            Job::Forward(operation) => {
                run!(level, geometry, operation, half => in_tiles(half, level, geometry, operation))
            }
            Job::Inference(operation) => {
                run!(level, geometry, operation, half => in_tiles(half, level, geometry, operation))
            }
            Job::Backward(operation) => {
                run!(level, geometry, operation, half => in_tiles(half, level, geometry, operation))
            }
        }
    }
}

impl Element for f64 {
    fn fold(fold: &Fold<'_, Self>) {
        fold.run();
    }

    fn run(level: Level, geometry: &Geometry, job: &Job<'_, Self>) -> Result<(), Error> {
        match job {
            Job::Forward(operation) => run!(level, geometry, operation, half => match half {}),
            Job::Inference(operation) => run!(level, geometry, operation, half => match half {}),
            Job::Backward(operation) => run!(level, geometry, operation, half => match half {}),
        }
    }
}
