//! The kernels: two loops over tensors ([`reduce`] and [`map`]), each for both access patterns, and arithmetic on
//! arrays of channels ([`channels`]). An operation is a few lines of terms that the loops are generic over.

pub mod channels;
pub mod columns;
pub mod map;
pub mod reduce;
pub mod scales;
pub mod scratch;

use crate::ground::scalar::Scalar;
use crate::simd::Dispatch;
use scratch::WithScratch;

/// A number that kernels can be run for.
pub trait Vectorized: Scalar + Dispatch + WithScratch {}
impl<T: Scalar + Dispatch + WithScratch> Vectorized for T {}
