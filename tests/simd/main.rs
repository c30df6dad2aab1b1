//! The floating-point environment. It starts rayon's global pool in an environment of its own, so no other tests are in
//! this process.

#[path = "../common/mod.rs"]
mod common;
mod environment;
