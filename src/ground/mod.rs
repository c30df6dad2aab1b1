//! What everything above stands on: what a number is, shapes of memory, sizes, errors, Welford states.

pub mod double;
pub mod error;
pub mod exponential;
pub mod extended;
pub mod geometry;
pub mod half;
pub mod memory;
pub mod moments;
pub mod scalar;
pub mod sizes;
pub mod slices;
pub mod sums;
pub mod welford;
