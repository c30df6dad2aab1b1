//! The kernels: two loops over tensors ([`reduce`] and [`map`]), each for both access patterns, and arithmetic on
//! arrays of channels ([`channels`]). An operation is a few lines of terms that the loops are generic over.

pub mod channels;
pub mod map;
pub mod reduce;

use std::ops::Range;

use channels::Scales;

use crate::plan::{BAND, GROUP, SPAN};
use crate::problem::{Geometry, Pattern, SMALL_PLANE};
use crate::simd::LANES;

/// Columns of coefficients: the channels of a span, or those of a group once for each of its lanes. The last vector of
/// them can be loaded whole.
pub const COLUMNS: usize = GROUP * SMALL_PLANE;

/// Columns of sums: those, or the lanes of a band's channels.
pub const SUMS: usize = if COLUMNS > BAND * LANES { COLUMNS } else { BAND * LANES };
const _: () = assert!(SPAN <= COLUMNS && GROUP * LANES <= COLUMNS);

/// The most coefficients per channel that a kernel takes.
pub const COEFFICIENTS: usize = 7;

/// What a task needs beside its part of the tensors. Kept per thread: clearing it anew would cost a small problem more
/// than its arithmetic.
#[repr(align(64))]
pub struct Scratch<T> {
    pub(crate) sums: Sums,
    /// How a group of channels is normalized.
    pub(crate) scales: Scales,
    /// Coefficients per column ([`Columns`]).
    pub(crate) coefficients: [Row<T>; COEFFICIENTS],
    /// Whether they are all of ordinary channels.
    pub(crate) ordinary: bool,
}

/// What a block is summed in.
pub struct Sums {
    /// Two sums per lane and channel of the block at hand; a vector of padding lets the last store be whole.
    pub(crate) lanes: [[f64; SUMS + LANES]; 2],
    /// The same, summed over lanes.
    pub(crate) totals: [[f64; BAND]; 2],
    /// What a block's sums are about, per column ([`Columns`]).
    pub(crate) centers: [f64; COLUMNS + LANES],
    /// The pivot per channel that a block's sums are about; in backward, what the mean is beside its center.
    pub(crate) pivots: [f64; BAND],
}

/// One coefficient per column, and a vector of padding.
pub type Row<T> = [T; COLUMNS + LANES];

impl<T: Copy + Default> Scratch<T> {
    /// In a box of its own, since it is too large for a stack to be taken for granted.
    pub fn new() -> Box<Self> {
        Box::new(Self {
            sums: Sums {
                lanes: [[0.0; SUMS + LANES]; 2],
                totals: [[0.0; BAND]; 2],
                centers: [0.0; COLUMNS + LANES],
                pivots: [0.0; BAND],
            },
            scales: Scales::new(),
            coefficients: [[T::default(); COLUMNS + LANES]; COEFFICIENTS],
            ordinary: false,
        })
    }
}

/// What columns are, and so how coefficients per channel are laid out for them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Columns {
    /// Channels.
    Channels,
    /// (row, channel) of this many rows that are walked as one long run: rows that end inside a vector would waste the
    /// rest of it.
    Rows(usize),
    /// (channel, position) of small planes with this many positions.
    Positions(usize),
}

impl Columns {
    /// What they are for sums over these channels of a problem.
    pub fn of_sums(geometry: &Geometry, channels: &Range<usize>) -> Self {
        match geometry.pattern {
            Pattern::Along if geometry.small_planes() => Self::Positions(geometry.s),
            Pattern::Across if geometry.c < GROUP => Self::of_rows(geometry, channels, geometry.lanes()),
            _ => Self::Channels,
        }
    }

    /// What they are for an elementwise loop over these channels.
    pub fn of_map(geometry: &Geometry, channels: &Range<usize>) -> Self {
        let c = geometry.c;
        match geometry.pattern {
            Pattern::Along if geometry.tiny_planes() => Self::Positions(geometry.s),
            Pattern::Across if c < GROUP => Self::of_rows(geometry, channels, geometry.lanes()),
            // As few rows as are whole lines together: single ones do not lie to lines alike, and could not be written past the
            // caches (72, 100, 200, 520, 1000 channels: training 1.3 to 1.7 times as fast, inference 1.2 to 2.6, backward 1.16
            // to 1.4).
            Pattern::Across => Self::of_rows(geometry, channels, LANES >> c.trailing_zeros()),
            _ => Self::Channels,
        }
    }

    /// This many rows, if there are whole ones that end inside a vector, and their columns are not too many.
    fn of_rows(geometry: &Geometry, channels: &Range<usize>, rows: usize) -> Self {
        let c = geometry.c;
        let whole = channels.len() == c && !c.is_multiple_of(LANES) && rows * c <= COLUMNS;
        if whole { Self::Rows(rows) } else { Self::Channels }
    }
}
