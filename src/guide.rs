//! Pages for users, which hold no code.

#![forbid(unsafe_code)]

#[doc = include_str!("../docs/linking.md")]
pub mod linking {}

#[doc = include_str!("../docs/accuracy.md")]
pub mod accuracy {}
