//! The layer.

pub mod layer;
