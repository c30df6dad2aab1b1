//! What the columns of coefficients and sums are.

#![forbid(unsafe_code)]

use std::ops::Range;

use super::scratch::COLUMNS;
use crate::ground::geometry::{Geometry, Pattern};
use crate::ground::sizes::{GROUP, LANES};

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
