//! Pages for users, which hold no code.

#![forbid(unsafe_code)]

#[doc = include_str!("../docs/linking.md")]
pub mod linking {}

#[doc = include_str!("../docs/accuracy.md")]
pub mod accuracy {}

#[doc = include_str!("../docs/scope.md")]
pub mod scope {}

/// The program in README.md compiles and runs as it stands there.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
pub mod readme {}
