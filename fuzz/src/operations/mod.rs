//! The operations on slices.

pub mod agreement;
pub mod forward;
pub mod fused;
pub mod gradients;
pub mod half;
pub mod splits;
