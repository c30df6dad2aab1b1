//! What the fuzz targets share: problems made from the fuzzer's bytes, calls of the library, an exact oracle's bounds
//! ([`shared`]), and the checks themselves, in folders that mirror the floors of the library.
//!
//! A problem is made the same way from the same bytes on every machine, so what libFuzzer saves reproduces.

#[allow(missing_docs, reason = "the tests' helpers, documented where that helps")]
#[path = "../../tests/common/mod.rs"]
pub mod common;

pub mod api;
pub mod ffi;
pub mod ground;
pub mod operations;
pub mod shared;
