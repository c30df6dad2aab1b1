//! States.

pub mod merge;
