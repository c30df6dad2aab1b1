//! The kernels: two loops over tensors ([`reduce`] and [`map`]), each for both access patterns, and arithmetic on
//! arrays of channels ([`looks`], [`channels`]), with what is done beside the loops ([`fused`], [`activations`]). An operation is a few lines of terms that the loops are generic over.

pub mod activations;
pub mod bits;
pub mod channels;
pub mod columns;
pub mod fused;
pub mod looks;
pub mod map;
pub mod precision;
pub mod reduce;
pub mod room;
pub mod scales;
pub mod scratch;
pub mod terms;

use crate::simd::half::HalfLanes;
use precision::Precision;
use room::WithScratch;

/// A number that kernels can be run for.
pub trait Vectorized: Precision + HalfLanes + WithScratch {}
impl<T: Precision + HalfLanes + WithScratch> Vectorized for T {}
