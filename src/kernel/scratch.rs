//! Scratch memory: sums, scales and coefficients of the channels at hand.

#![forbid(unsafe_code)]

use super::scales::Scales;
use crate::ground::sizes::{BAND, GROUP, LANES, SMALL_PLANE, SPAN};
use crate::simd::{Lanes, load};

/// Columns of coefficients: the channels of a span, or those of a group once for each of its lanes. The last vector of
/// them can be loaded whole.
pub const COLUMNS: usize = GROUP * SMALL_PLANE;

/// Columns of sums: those, or the lanes of a band's channels.
pub const SUMS: usize = if COLUMNS > BAND * LANES { COLUMNS } else { BAND * LANES };
const _: () = assert!(SPAN <= COLUMNS && GROUP * LANES <= COLUMNS);

/// The most coefficients per channel that a kernel takes.
pub const COEFFICIENTS: usize = 15;

/// What a task needs beside its part of the tensors. Kept per thread: clearing it anew would cost a small problem more
/// than its arithmetic.
#[repr(align(64))]
pub struct Scratch<T> {
    pub(crate) sums: Sums,
    /// How a group of channels is normalized.
    pub(crate) scales: Scales,
    /// Coefficients per column ([`Columns`](super::columns::Columns)).
    pub(crate) coefficients: [Row<T>; COEFFICIENTS],
    /// Whether they are all of ordinary channels.
    pub(crate) ordinary: bool,
}

/// Elements of a tile: sixteen rows of a band's channels, or all columns that there are sums for.
pub const TILE: usize = BAND * LANES;
const _: () = assert!(TILE >= SUMS);

/// Where parts of two tensors of 16-bit numbers are elements for a while.
#[repr(align(64))]
pub struct Tiles<T> {
    pub(crate) tensors: [[T; TILE]; 2],
    /// Bits of a mask.
    pub(crate) bits: [u64; TILE / u64::BITS as usize],
}

/// What a block is summed in.
pub struct Sums {
    /// Two sums or two pairs of them per lane and channel of the block at hand; a vector of padding lets the last store be
    /// whole.
    pub(crate) lanes: [[f64; SUMS + LANES]; 4],
    /// The same, summed over lanes.
    pub(crate) totals: [[f64; BAND]; 4],
    /// What a block's sums are about, per column ([`Columns`](super::columns::Columns)).
    pub(crate) centers: [f64; COLUMNS + LANES],
    /// Powers of two that x is multiplied by before, per column.
    pub(crate) units: [f64; COLUMNS + LANES],
    /// The same per channel, in statistics.
    pub(crate) channel_units: [f64; BAND],
    /// 1, which the compiler does not know: it would take a product with it away.
    pub(crate) one: f64,
    /// In backward of f64: the mean beside its center, where `pivots` has the low part of it.
    pub(crate) besides: [f64; BAND],
    /// Of f64: whether there is a unit other than 1, or in backward a center other than 0.
    pub(crate) scaled: bool,
    /// The pivot per channel that a block's sums are about; in backward, what the mean is beside its center.
    pub(crate) pivots: [f64; BAND],
}

/// One coefficient per column, and a vector of padding.
pub type Row<T> = [T; COLUMNS + LANES];

/// The vector of columns from `column` on, of each of `rows`.
#[inline(always)]
pub fn load_rows<T, S: Lanes<T>, const K: usize>(
    s: S,
    coefficients: &[Row<T>; COEFFICIENTS],
    rows: [usize; K],
    column: usize,
) -> [S::Vector; K] {
    let mut k = [s.zero(); K];
    for (k, row) in k.iter_mut().zip(rows) {
        *k = load(s, &coefficients[row][column..]);
    }
    k
}

/// One column in all lanes, of each of `rows`.
#[inline(always)]
pub fn splat_rows<T: Copy, S: Lanes<T>, const K: usize>(
    s: S,
    coefficients: &[Row<T>; COEFFICIENTS],
    rows: [usize; K],
    column: usize,
) -> [S::Vector; K] {
    let mut k = [s.zero(); K];
    for (k, row) in k.iter_mut().zip(rows) {
        *k = s.splat(coefficients[row][column]);
    }
    k
}
