//! The operations on slices: exact to the bounds, and the same bits however they are run.

mod accuracy;
mod activations;
#[path = "../common/mod.rs"]
mod common;
mod fused;
mod gradients;
#[cfg(feature = "half")]
mod half;
mod known_bugs;
mod matrix;
mod properties;
mod splits;
mod weights;

/// Whether `BATCHNORM_EXHAUSTIVE` is set, as in a step of `.ci/run`: tests on so much data that they take minutes then have all of it.
fn exhaustive() -> bool {
    std::env::var_os("BATCHNORM_EXHAUSTIVE").is_some()
}
