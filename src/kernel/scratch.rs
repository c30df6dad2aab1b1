//! Scratch memory of a thread: sums, scales and coefficients of the channels at hand.

#![forbid(unsafe_code)]

use std::cell::Cell;

use super::scales::Scales;
use crate::ground::sizes::{BAND, GROUP, LANES, SMALL_PLANE, SPAN};

/// Columns of coefficients: the channels of a span, or those of a group once for each of its lanes. The last vector of
/// them can be loaded whole.
pub const COLUMNS: usize = GROUP * SMALL_PLANE;

/// Columns of sums: those, or the lanes of a band's channels.
pub const SUMS: usize = if COLUMNS > BAND * LANES { COLUMNS } else { BAND * LANES };
const _: () = assert!(SPAN <= COLUMNS && GROUP * LANES <= COLUMNS);

/// The most coefficients per channel that a kernel takes.
pub const COEFFICIENTS: usize = 10;

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
    /// In backward of f64: the mean beside its center, where `pivots` has the low part of it.
    pub(crate) besides: [f64; BAND],
    /// Of f64: whether there is a unit other than 1, or in backward a center other than 0.
    pub(crate) scaled: bool,
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
                lanes: [[0.0; SUMS + LANES]; 4],
                totals: [[0.0; BAND]; 4],
                centers: [0.0; COLUMNS + LANES],
                units: [1.0; COLUMNS + LANES],
                channel_units: [1.0; BAND],
                besides: [0.0; BAND],
                scaled: false,
                pivots: [0.0; BAND],
            },
            scales: Scales::new(),
            coefficients: [[T::default(); COLUMNS + LANES]; COEFFICIENTS],
            ordinary: false,
        })
    }
}

/// An element type that has scratch memory.
pub trait WithScratch: Sized {
    /// Calls `f` with this thread's scratch memory.
    fn with_scratch(f: impl FnOnce(&mut Scratch<Self>));
}

macro_rules! with_scratch {
    ($($element:ty),*) => {$(
        impl WithScratch for $element {
            fn with_scratch(f: impl FnOnce(&mut Scratch<Self>)) {
                thread_local! {
                    static SCRATCH: Cell<Option<Box<Scratch<$element>>>> = const { Cell::new(None) };
                }
                // Taken out while in use, and made anew where the thread is past giving out its own.
                let kept = SCRATCH.try_with(Cell::take).ok().flatten();
                let mut scratch = kept.unwrap_or_else(Scratch::new);
                f(&mut scratch);
                let _ = SCRATCH.try_with(|cell| cell.set(Some(scratch)));
            }
        }
    )*};
}
with_scratch!(f32, f64);
