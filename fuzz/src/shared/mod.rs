//! What the checks of every floor need.

pub mod bounds;
pub mod calls;
pub mod data;
pub mod problem;
