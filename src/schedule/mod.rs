//! How a problem is cut and handed out: blocks, which fix the order of arithmetic, and all that only speed depends on.

pub mod blocks;
pub mod engine;
pub mod machine;
pub mod plan;
pub mod policies;
pub mod ranges;
pub mod tree;
pub mod tuning;
