//! The operations on slices.

pub mod agreement;
pub mod forward;
pub mod gradients;
