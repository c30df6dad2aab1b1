//! What the columns of coefficients and sums are.

#![forbid(unsafe_code)]

use std::ops::Range;

use super::scratch::COLUMNS;
use crate::ground::geometry::{Geometry, Pattern};
use crate::ground::sizes::{GROUP, LANES};

/// What columns are, and so how coefficients per channel are laid out for them: (row, channel, position).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Columns {
    /// Rows that are walked as one long run: rows that end inside a vector would waste the rest of it.
    pub rows: usize,
    /// Positions of a channel that lie side by side in a row: those of small planes, else 1.
    pub positions: usize,
}

impl Columns {
    /// A channel each.
    pub const CHANNELS: Self = Self { rows: 1, positions: 1 };

    /// What they are for sums over these channels of a problem.
    pub fn of_sums(geometry: &Geometry, channels: &Range<usize>) -> Self {
        match geometry.pattern {
            Pattern::Along if geometry.small_planes() => Self { rows: 1, positions: geometry.s },
            Pattern::Across if geometry.c < GROUP => Self::of_rows(geometry, channels, geometry.lanes(), 1),
            _ => Self::CHANNELS,
        }
    }

    /// What they are for an elementwise loop over these channels, which may take planes as rows of positions.
    pub fn of_map(geometry: &Geometry, channels: &Range<usize>, planes_as_rows: bool) -> Self {
        let positions = match geometry.pattern {
            Pattern::Along if planes_as_rows => geometry.s,
            Pattern::Along => return Self::CHANNELS,
            Pattern::Across => 1,
        };
        // As few rows as are whole lines together: single ones do not lie to lines alike, and could not be written past
        // the caches. Of short rows more, for long runs.
        let width = geometry.c * positions;
        let rows = if width < GROUP { LANES } else { LANES >> width.trailing_zeros().min(4) };
        Self::of_rows(geometry, channels, rows, positions)
    }

    /// This many rows, if there are whole ones that end inside a vector, and their columns are not too many.
    fn of_rows(geometry: &Geometry, channels: &Range<usize>, rows: usize, positions: usize) -> Self {
        let width = geometry.c * positions;
        let whole = channels.len() == geometry.c && !width.is_multiple_of(LANES) && rows * width <= COLUMNS;
        Self { rows: if whole { rows } else { 1 }, positions }
    }

    /// The columns of some channels.
    pub fn width(self, channels: usize) -> usize {
        self.rows * channels * self.positions
    }
}
