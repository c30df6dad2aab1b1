//! The operations on slices that the caller owns, each a builder: operands, then checks, then the engine.
//!
//! Options belong to these builders, so that an operation has one function however many options it takes. Nothing is
//! written before everything has been checked. An empty problem (no channels, or no elements per channel) is no error.

#![forbid(unsafe_code)]

mod backward;
mod forward;
pub mod operands;

pub use backward::Backward;
pub use forward::{Inference, Statistics, Training};
#[cfg(feature = "capi")]
pub(crate) use operands::{Normalizer, Operand};
