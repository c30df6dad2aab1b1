//! Maps rows whose columns are channels (NHWC) or the positions of small planes (NCHW), tile by tile.

use std::ops::Range;

use super::formulas::Formula;
use super::ragged::RaggedRows;
use super::{AHEAD_BYTES, Map};
use crate::ground::geometry::{Block, Geometry};
use crate::ground::sizes::{LANES, TILE_COLUMNS, TILE_ROWS};
use crate::kernel::columns::Columns;
use crate::kernel::fused::Fused;
use crate::kernel::scratch::load_rows;
use crate::simd::Lanes;

impl<T: Copy, O: Formula<IN, K>, E: Fused<T, O, IN, K>, const IN: usize, const K: usize>
    Map<'_, T, O, E, IN, K>
{
    /// Maps a part row by row.
    ///
    /// # Safety
    /// As of `part`.
    #[inline(always)]
    pub unsafe fn rows_of_part<S: Lanes<T>, const NON_TEMPORAL: bool, const PREFETCH: bool>(
        &self,
        s: S,
        columns: Columns,
        stride: usize,
    ) {
        let Geometry { c, s: plane, .. } = *self.geometry;
        let Block { samples, positions } = &self.part;
        let width = self.channels.len();
        let at = |sample| self.geometry.offset(sample, self.channels.start, positions.start);
        // Rows follow each other from plane to plane where parts are whole planes.
        let whole = positions.len() == plane;
        let (planes, rows) =
            if whole { (1, samples.len() * plane) } else { (samples.len(), positions.len()) };
        let rows = if columns.positions > 1 { samples.len() } else { rows };
        let rest = rows % columns.rows * columns.positions * c;
        let (rows, width) = (rows / columns.rows, columns.width(width));
        for sample in samples.clone().take(planes) {
            // SAFETY: says the caller; parts of small planes are whole planes.
            unsafe { self.rows::<S, NON_TEMPORAL, PREFETCH>(s, at(sample), stride, rows, width, rest) };
        }
    }

    /// The first `width` elements of `rows` rows, `stride` elements apart, and the first `rest` of the row pipelined them.
    ///
    /// Vectors follow the output's lines where the rows are all aligned alike. Rows with nothing between them then begin
    /// and end at its lines, in the middle of the channels; what lies before the first and after the last is done apart:
    /// a line written in part goes through the caches, next to others that do not.
    ///
    /// # Safety
    /// Inputs and output have the elements; if `NON_TEMPORAL`, the stride is a multiple of a line.
    #[inline(always)]
    pub unsafe fn rows<S: Lanes<T>, const NON_TEMPORAL: bool, const PREFETCH: bool>(
        &self,
        s: S,
        at: usize,
        stride: usize,
        rows: usize,
        width: usize,
        rest: usize,
    ) {
        let seamless = width == stride && stride.is_multiple_of(LANES) && rows > 0;
        let head = if seamless { self.head(at).min(width) } else { 0 };
        let last = rows - usize::from(seamless);
        // One loop over them, or the compiler makes code for each.
        for (row, rows, columns) in [
            (0, 1, 0..head),
            (0, last, head..head + width),
            (last, rows - last, head..width),
            (rows, 1, 0..rest),
        ] {
            // SAFETY: says the caller.
            unsafe {
                self.aligned_rows::<S, NON_TEMPORAL, PREFETCH>(s, at + row * stride, stride, rows, columns)
            };
        }
    }

    /// Some columns of `rows` rows, tile by tile.
    ///
    /// # Safety
    /// As of `rows`.
    #[inline(always)]
    unsafe fn aligned_rows<S: Lanes<T>, const NON_TEMPORAL: bool, const PREFETCH: bool>(
        &self,
        s: S,
        at: usize,
        stride: usize,
        rows: usize,
        columns: Range<usize>,
    ) {
        for row in (0..rows).step_by(TILE_ROWS) {
            let (at, rows) = (at + row * stride, (rows - row).min(TILE_ROWS));
            let mut column = columns.start;
            while column < columns.end {
                // Tiles meet at the output's lines.
                let tile = if self.fused.in_order() { columns.len() } else { TILE_COLUMNS };
                let end = (column + self.head(at + column) + tile).min(columns.end);
                // SAFETY: says the caller.
                unsafe { self.tile::<S, NON_TEMPORAL, PREFETCH>(s, at, stride, rows, column..end) };
                column = end;
            }
        }
    }

    /// A tile of [`Map::aligned_rows`].
    ///
    /// # Safety
    /// As there.
    #[inline(always)]
    unsafe fn tile<S: Lanes<T>, const NON_TEMPORAL: bool, const PREFETCH: bool>(
        &self,
        s: S,
        at: usize,
        stride: usize,
        rows: usize,
        columns: Range<usize>,
    ) {
        // Rows that share one load of the coefficients: fewer where they fall on the same sets of L1, and from memory, which
        // serves few streams at once; but not one, for which coefficients of many channels come from L2 for every row.
        let bytes = stride * size_of::<T>();
        let batch_rows = match (self.prefetches::<S, PREFETCH>(), IN) {
            _ if self.fused.in_order() => 1,
            _ if bytes.is_multiple_of(4096) && self.access.l1_ways < 12 => 2,
            (false, _) if bytes.is_multiple_of(4096 / IN) => 4,
            (false, _) => 8,
            (_, 1) => 4,
            _ => 2,
        };
        let (far, width) = (AHEAD_BYTES / size_of::<T>(), columns.len());
        // Some batches down, or some columns to the right in long rows.
        let ahead = if batch_rows * width > far || self.fused.in_order() {
            far / batch_rows
        } else {
            far.div_ceil(batch_rows * width) * batch_rows * stride
        };
        for row in (0..rows).step_by(batch_rows) {
            let batch = row..(row + batch_rows).min(rows);
            let at = at + row * stride;
            let mut column = columns.start;
            if NON_TEMPORAL {
                column = (column + self.head(at + column)).min(columns.end);
                if column > columns.start {
                    let (rows, columns) = (batch.len(), columns.start..column);
                    s.apart(RaggedRows { map: self, at, stride, rows, columns });
                }
            }
            // In order there is one row, whose loop over rows would keep its counters in memory.
            while self.fused.in_order() && column + S::N <= columns.end {
                let (k, at) = (self.coefficients(s, column), at + column);
                self.prefetch_at::<S, NON_TEMPORAL, PREFETCH>(
                    s,
                    at.wrapping_add(ahead),
                    at.wrapping_add(ahead),
                );
                // SAFETY: the row has N more elements.
                unsafe { self.vector::<S, NON_TEMPORAL>(s, at, k) };
                column += S::N;
            }
            while column + S::N <= columns.end {
                let k = self.coefficients(s, column);
                for row in 0..batch.len() {
                    let at = at + row * stride + column;
                    self.prefetch_at::<S, NON_TEMPORAL, PREFETCH>(
                        s,
                        at.wrapping_add(ahead),
                        at.wrapping_add(ahead),
                    );
                    // SAFETY: the row has N more elements.
                    unsafe { self.vector::<S, NON_TEMPORAL>(s, at, k) };
                }
                column += S::N;
            }
            if column < columns.end {
                let (rows, columns) = (batch.len(), column..columns.end);
                s.apart(RaggedRows { map: self, at, stride, rows, columns });
            }
        }
    }

    /// The coefficients of the vector of columns from `column` on.
    #[inline(always)]
    pub fn coefficients<S: Lanes<T>>(&self, s: S, column: usize) -> [S::Vector; K] {
        load_rows(s, self.coefficients, O::ROWS, column)
    }
}
