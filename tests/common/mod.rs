//! What the test binaries share.
#![allow(dead_code, reason = "each test binary uses a part")]

pub mod data;
pub mod exact;
pub mod fused;
#[cfg(feature = "half")]
pub mod half;
pub mod matrix;
pub mod others;
