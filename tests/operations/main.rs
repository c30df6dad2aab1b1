//! The operations on slices: exact to the bounds, and the same bits however they are run.

mod accuracy;
#[path = "../common/mod.rs"]
mod common;
mod gradients;
mod known_bugs;
mod matrix;
mod properties;
