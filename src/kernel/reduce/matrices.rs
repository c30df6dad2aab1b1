//! Down matrices: a vector takes neighbouring columns, which are lanes of channels or positions of small planes.

use std::ops::Range;

use super::interleave::{Interleave, NoInterleave};
use super::{Reduce, Sweep};
use crate::ground::geometry::{Block, Geometry};
use crate::kernel::columns::Columns;
use crate::kernel::fused::Read;
use crate::kernel::terms::Terms;
use crate::simd::{Kernel, Lanes};

/// Rows whose columns are lanes of channels. The center of column i is that of the sums.
struct Matrix {
    /// Elements from the batch's first to the matrix's.
    skip: usize,
    /// Elements from one row to the next.
    stride: usize,
    rows: usize,
    /// The first column's place among the sums.
    column: usize,
    width: usize,
    /// Whether there are no sums yet.
    first: bool,
    /// As of [`Sweep`].
    ahead: usize,
    /// The same of the last columns, from which `ahead` columns on there are none in these rows.
    ahead_last: usize,
}

impl Matrix {
    /// Down some samples of small planes. Positions (NCHW) or rows that fill no vector (NHWC, few channels) are all one
    /// matrix, else each position has its own.
    #[inline(always)]
    fn of_small_planes(
        geometry: &Geometry,
        channels: &Range<usize>,
        rows: usize,
        part: usize,
        (first, far): (bool, usize),
    ) -> Self {
        let Geometry { c, s: plane, .. } = *geometry;
        let (stride, columns) = (c * plane, channels.len() * plane);
        // Some columns to the right, or the next batch's first columns.
        let ahead = far / rows;
        let ahead_last = (rows * stride + ahead).saturating_sub(columns);
        let whole = Self { skip: 0, stride, rows, column: 0, width: columns, first, ahead, ahead_last };
        match Columns::of_sums(geometry, channels) {
            Columns::CHANNELS => {
                let width = channels.len();
                // Some positions down, or the next batch.
                let down = (far / (rows * width)).max(1);
                let ahead = if part + down < plane { down * c } else { rows * stride };
                Self { skip: part * c, column: part * width, width, ahead, ahead_last: ahead, ..whole }
            }
            _ if part == 0 => whole,
            _ => Self { width: 0, ..whole },
        }
    }

    /// `rows` rows of a plane in NHWC, of a `batch` if there are so many: each lane's are a matrix; or those that fill all lanes
    /// are one, the rest another.
    #[inline(always)]
    fn of_rows(
        geometry: &Geometry,
        channels: &Range<usize>,
        (rows, batch): (usize, usize),
        part: usize,
        (first, far): (bool, usize),
    ) -> Self {
        let (c, lanes) = (geometry.c, geometry.period());
        let (full, rest) = (rows / lanes, rows % lanes);
        let ahead = far.next_multiple_of(batch * c);
        let (stride, width) = (lanes * c, lanes * c);
        let whole = Self { skip: 0, stride, rows: full, column: 0, width, first, ahead, ahead_last: ahead };
        match Columns::of_sums(geometry, channels) {
            Columns::CHANNELS => {
                let (rows, width) = (full + usize::from(part < rest), channels.len());
                // Some lanes down, or the first lanes of the next batch.
                let down = (far / (batch / lanes * width)).clamp(1, lanes);
                let ahead = if part + down < lanes { down } else { down + batch - lanes } * c;
                Self { skip: part * c, rows, column: part * width, width, ahead, ahead_last: ahead, ..whole }
            }
            _ if part == 0 => Self { width: if full > 0 { whole.width } else { 0 }, ..whole },
            _ => {
                Self { skip: full * lanes * c, rows: 1, width: rest * c, first: first && full == 0, ..whole }
            }
        }
    }
}

/// Columns that fill no vector, as a function of its own.
struct RaggedColumns<'r, 'a, T, O, R, M, const IN: usize> {
    reduce: &'r mut Reduce<'a, T, O, R, M, IN>,
    at: usize,
    stride: usize,
    rows: usize,
    columns: Range<usize>,
    /// As of [`Matrix`].
    column: usize,
    first: bool,
}

impl<T: Copy, O: Terms<IN>, R: Read<T, IN>, M: Interleave<T>, const IN: usize> Kernel<T>
    for RaggedColumns<'_, '_, T, O, R, M, IN>
{
    #[inline(always)]
    fn run<S: Lanes<T>>(self, s: S) {
        let Self { reduce, at, stride, rows, columns, column, first } = self;
        let mut sums = reduce.sums(s, column + columns.start, first);
        let about = reduce.about(s, columns.start);
        for row in 0..rows {
            // SAFETY: the row has the columns, fewer than N, said who made this.
            unsafe {
                let from = reduce.inputs.map(|x| x.as_ptr().wrapping_add(at + columns.start + row * stride));
                Reduce::<T, O, R, M, IN>::tail::<S>(s, from, columns.len(), &reduce.read, about, &mut sums);
            }
        }
        reduce.put(s, column + columns.start, sums);
    }
}

impl<T: Copy, O: Terms<IN>, R: Read<T, IN>, M: Interleave<T>, const IN: usize> Reduce<'_, T, O, R, M, IN> {
    /// The distance to prefetch at where the rows of small planes are read, in elements.
    const AHEAD_ROWS: usize = Self::AHEAD / IN;

    /// How many sixteens of a plane's rows make a batch: enough to make up for loading and storing the sums, and few enough
    /// for what is prefetched to stay in L1.
    const SIXTEENS: usize = 8 / IN;

    /// The fewest rows of a lane at once where they are samples, whose lanes are few: a lane's often share a set of L1.
    const SAMPLES: usize = 4;

    /// The most, a block's, which short rows make: as many as stay in L1, so that sums are loaded and stored but once.
    const SHORT_SAMPLES: usize = 64;

    /// Bytes of a batch of short rows: half of L1.
    const SHORT_BYTES: usize = 16 << 10;

    /// The rows of a plane, or samples, that make a batch.
    fn rows(geometry: &Geometry) -> usize {
        let each = match geometry.positions_are_samples() {
            true => {
                let lane = geometry.c * geometry.period() * size_of::<T>() * IN;
                (Self::SHORT_BYTES / lane).clamp(Self::SAMPLES, Self::SHORT_SAMPLES)
            }
            false => Self::SIXTEENS,
        };
        each * geometry.period()
    }

    /// How many samples of small planes make a batch, as of `SIXTEENS`, and how far ahead to prefetch.
    ///
    /// In NCHW all of a batch's lines are prefetched at once: near, unless rows are short. In NHWC, samples that are whole pages
    /// apart share a set of L1, which has room for little more than the batch's own lines.
    fn batch(geometry: &Geometry, columns: Columns) -> (usize, usize) {
        const NEXT: usize = 1;
        let stride = geometry.c * geometry.s;
        match stride * size_of::<T>() {
            bytes if columns != Columns::CHANNELS && bytes <= 4096 => (16, Self::AHEAD),
            _ if columns != Columns::CHANNELS => (16, Self::AHEAD / 4),
            _ if geometry.s == 1 => ((2 * Self::AHEAD_ROWS / stride).clamp(2, 16), Self::AHEAD_ROWS),
            bytes if bytes.is_multiple_of(4096) => (8 / IN, NEXT),
            bytes if bytes.is_multiple_of(2048 / IN) => (16 / IN, NEXT),
            _ => (16, Self::AHEAD_ROWS),
        }
    }

    /// The lanes of the group's channels as columns of matrices, one below the other.
    ///
    /// # Safety
    /// Channels and block lie within the geometry, whose length the inputs have.
    #[inline(always)]
    pub unsafe fn matrices<S: Lanes<T>>(&mut self, s: S) {
        let Block { samples, positions } = self.block.clone();
        let geometry = self.geometry;
        let small = geometry.small_planes();
        let columns = Columns::of_sums(geometry, &self.channels);
        let (planes, step, far) = if small {
            let (samples, far) = Self::batch(geometry, columns);
            (samples, positions.len(), far)
        } else {
            (1, Self::rows(geometry), Self::AHEAD)
        };
        for sample in samples.clone().step_by(planes) {
            let planes = (samples.end - sample).min(planes);
            for row in positions.clone().step_by(step) {
                let first = self.piece.first && sample == samples.start && row == positions.start;
                let start = (first, far);
                let rows = (positions.end - row).min(step);
                let at = geometry.offset(sample, self.channels.start, row);
                let parts = if columns == Columns::CHANNELS { rows.min(geometry.lanes()) } else { 2 };
                for part in 0..parts {
                    let matrix = if small {
                        Matrix::of_small_planes(geometry, &self.channels, planes, part, start)
                    } else {
                        Matrix::of_rows(geometry, &self.channels, (rows, step), part, start)
                    };
                    // SAFETY: says the caller; the matrix has the block's rows and the group's columns.
                    unsafe { self.sum_columns(s, at, &matrix) };
                }
            }
        }
    }

    /// Adds the rows of a matrix, whose batch begins at offset `at`, into the sums of its columns.
    ///
    /// The last vector of a row adds zeros to (or, at a block's start, writes zeros over) up to N - 1 sums past the
    /// matrix's. They belong to the next matrix, which comes later, or to no one.
    ///
    /// # Safety
    /// The inputs have all these elements.
    #[inline(always)]
    unsafe fn sum_columns<S: Lanes<T>>(&mut self, s: S, at: usize, matrix: &Matrix) {
        let width = matrix.width;
        let mut done = 0;
        // SAFETY: the vectors lie within the columns.
        unsafe {
            while S::STREAMS == 2 && done + 2 * S::N <= width {
                self.strip::<S, 2>(s, at, matrix, done);
                done += 2 * S::N;
            }
            while done + S::N <= width {
                self.strip::<S, 1>(s, at, matrix, done);
                done += S::N;
            }
            self.ragged(s, at, matrix, done);
        }
    }

    /// The columns from `done` on, which fill no vector.
    ///
    /// # Safety
    /// As of `sum_columns`.
    #[inline(always)]
    unsafe fn ragged<S: Lanes<T>>(&mut self, s: S, at: usize, matrix: &Matrix, done: usize) {
        let Matrix { width, rows, stride, column, first, skip, .. } = *matrix;
        if done < width && rows > 0 {
            let at = at + skip;
            s.apart(RaggedColumns { reduce: self, at, stride, rows, columns: done..width, column, first });
        }
    }

    /// `U` neighbouring vectors of columns from the matrix's column `done` on, in step.
    ///
    /// # Safety
    /// The inputs have all these elements.
    #[inline(always)]
    unsafe fn strip<S: Lanes<T>, const U: usize>(&mut self, s: S, at: usize, matrix: &Matrix, done: usize) {
        let Matrix { stride, rows, column, width, first, ahead, ahead_last, skip } = *matrix;
        let at = at + skip;
        let ahead = if done + ahead < width { ahead } else { ahead_last };
        let mut sums = [O::sums(s.zero_wide()); U];
        let mut about = [(self.about_nothing(s), self.read.splats(s, 0)); U];
        for u in 0..U {
            sums[u] = self.sums(s, column + done + u * S::N, first);
            about[u] = self.about(s, done + u * S::N);
        }
        // SAFETY: says the caller.
        unsafe {
            let from = self.inputs.map(|x| x.as_ptr().wrapping_add(at + done));
            let sweep = Sweep { from, apart: S::N, stride, rows, ahead };
            Self::sweep::<S, NoInterleave, U>(
                s,
                &sweep,
                &self.read,
                about,
                &mut sums,
                (&NoInterleave, &mut ()),
            );
        }
        for (u, sums) in sums.into_iter().enumerate() {
            self.put(s, column + done + u * S::N, sums);
        }
    }
}
