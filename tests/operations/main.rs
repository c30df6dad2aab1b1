//! The operations on slices: exact to the bounds, and the same bits however they are run.

mod accuracy;
mod activations;
#[path = "../common/mod.rs"]
mod common;
mod fused;
mod gradients;
mod known_bugs;
mod matrix;
mod properties;
