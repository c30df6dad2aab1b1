//! States and slices.

#[path = "../common/mod.rs"]
mod common;
mod memory;
mod welford;
