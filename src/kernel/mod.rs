//! The kernels: two loops over tensors ([`reduce`] and [`map`]), each for both access patterns, and arithmetic on
//! arrays of channels ([`channels`]). An operation is a few lines of terms that the loops are generic over.

pub mod channels;
pub mod map;
pub mod reduce;

use std::ops::Range;

use crate::plan::{GROUP, SPAN};
use crate::problem::{Geometry, Pattern};
use crate::simd::LANES;

/// Columns of coefficients: the channels of a span, or those of a group once for each of 16 rows. The last vector of
/// them can be loaded whole.
pub const COLUMNS: usize = GROUP * LANES;
const _: () = assert!(SPAN + LANES <= COLUMNS);

/// The most coefficients per channel that a kernel takes.
pub const COEFFICIENTS: usize = 6;

/// What a task needs beside its part of the tensors. Kept per thread: clearing it anew would cost a small problem more
/// than its arithmetic.
pub struct Scratch<T> {
    /// Two sums per lane and channel of the block at hand; a vector of padding lets the last store be whole.
    pub(crate) lanes: [[f64; COLUMNS + LANES]; 2],
    /// The same, summed over lanes.
    pub(crate) sums: [[f64; GROUP]; 2],
    /// The pivot per channel that a block's sums are about.
    pub(crate) pivots: [f64; GROUP],
    /// Coefficients per channel, repeated over 16 rows where rows are shorter than vectors.
    pub(crate) coefficients: [[T; COLUMNS]; COEFFICIENTS],
}

impl<T: Copy + Default> Scratch<T> {
    /// In a box of its own, since it is too large for a stack to be taken for granted.
    pub fn new() -> Box<Self> {
        Box::new(Self {
            lanes: [[0.0; COLUMNS + LANES]; 2],
            sums: [[0.0; GROUP]; 2],
            pivots: [0.0; GROUP],
            coefficients: [[T::default(); COLUMNS]; COEFFICIENTS],
        })
    }
}

/// Whether a task that takes all `channels` of its tensor walks sixteen rows as one long run: rows that end inside a
/// vector would waste the rest of it, sixteen of them never do.
pub fn flat(geometry: &Geometry, channels: &Range<usize>) -> bool {
    let c = geometry.c;
    geometry.pattern == Pattern::Across && channels.len() == c && c < GROUP && !c.is_multiple_of(LANES)
}
