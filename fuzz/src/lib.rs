//! What the fuzz targets share: problems made from the fuzzer's bytes ([`problem`], [`data`]), calls of the library
//! ([`calls`]), an exact oracle's bounds ([`bounds`]) and the checks themselves, a module per group of targets.
//!
//! A problem is made the same way from the same bytes on every machine, so what libFuzzer saves reproduces.

#[allow(missing_docs, reason = "the tests' helpers, documented where that helps")]
#[path = "../../tests/common/mod.rs"]
pub mod common;

pub mod agreement;
pub mod bounds;
pub mod c_abi;
pub mod calls;
pub mod data;
pub mod forward;
pub mod gradients;
pub mod layer;
pub mod merge;
pub mod problem;
