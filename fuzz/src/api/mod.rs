//! The layer, and what else callers from Rust see.

pub mod domains;
pub mod fold;
pub mod layer;
pub mod renorm;
