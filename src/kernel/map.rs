//! One output element from the elements at the same place of one or two inputs and the coefficients of its channel.

use std::marker::PhantomData;
use std::ops::Range;

use super::{Columns, Scratch};
use crate::plan::{Block, Reach};
use crate::problem::{Geometry, Pattern};
use crate::simd::{Kernel, LINE, Lanes, prefetch, prefetch_to_write};
use crate::split::{Input, Output};

/// An elementwise formula of `IN` tensors and `K` coefficients per channel.
pub trait Formula<const IN: usize, const K: usize>: Copy {
    fn apply<T, S: Lanes<T>>(s: S, x: [S::Vector; IN], k: [S::Vector; K]) -> S::Vector;
}

/// The deviation of x from the mean, scaled: x * prescale - mean_high - mean_low ([`super::channels::Scales`]). The product
/// is exact, the first difference is so near the mean, where it matters.
#[inline(always)]
pub fn deviation<T, S: Lanes<T>>(
    s: S,
    x: S::Vector,
    [prescale, mean_high, mean_low]: [S::Vector; 3],
) -> S::Vector {
    s.sub(s.sub(s.mul(x, prescale), mean_high), mean_low)
}

/// y = d * factor + beta.
#[derive(Clone, Copy)]
pub struct Normalize;

impl Formula<1, 5> for Normalize {
    #[inline(always)]
    fn apply<T, S: Lanes<T>>(
        s: S,
        [x]: [S::Vector; 1],
        [p, h, l, factor, beta]: [S::Vector; 5],
    ) -> S::Vector {
        s.add(s.mul(deviation(s, x, [p, h, l]), factor), beta)
    }
}

/// dx = gamma * invstd * (dy - mean(dy) - xhat * mean(dy * xhat)), with the half of gamma * invstd that is a power of two
/// multiplied into each term, the rest into the sum ([`super::channels::GradientFactors`]).
#[derive(Clone, Copy)]
pub struct InputGradient;

impl Formula<2, 7> for InputGradient {
    #[inline(always)]
    fn apply<T, S: Lanes<T>>(
        s: S,
        [x, dy]: [S::Vector; 2],
        [p, h, l, half, mean_dy, slope, rest]: [S::Vector; 7],
    ) -> S::Vector {
        let along_x = s.mul(deviation(s, x, [p, h, l]), slope);
        s.mul(s.sub(s.sub(s.mul(dy, half), mean_dy), along_x), rest)
    }
}

/// dx = gamma * invstd * dy: the statistics did not depend on x.
#[derive(Clone, Copy)]
pub struct FrozenGradient;

impl Formula<1, 2> for FrozenGradient {
    #[inline(always)]
    fn apply<T, S: Lanes<T>>(s: S, [dy]: [S::Vector; 1], [half, rest]: [S::Vector; 2]) -> S::Vector {
        s.mul(s.mul(dy, half), rest)
    }
}

/// Applies a formula to a part of a group of channels. `k` says which rows of the scratch's coefficients it takes.
pub struct Map<'a, T, O, const IN: usize, const K: usize> {
    pub geometry: &'a Geometry,
    pub inputs: [Input<'a, T>; IN],
    pub output: Output<'a, T>,
    pub channels: Range<usize>,
    /// The column of the first of them; 0 where vectors take several channels.
    pub column: usize,
    pub part: Block,
    pub reach: Reach,
    /// Whether the inputs are in L2 already: then the next task's are asked for.
    pub fits: bool,
    pub scratch: &'a Scratch<T>,
    pub k: [usize; K],
    pub formula: PhantomData<O>,
}

/// [`Reach`] as a parameter.
const NEAR: usize = Reach::Near as usize;
const FAR: usize = Reach::Far as usize;
const PAST: usize = Reach::Past as usize;

/// As of the reduction, but for the sake of the stores too: each asks for its line first, and at a jump for its page.
const AHEAD_BYTES: usize = 8192;

impl<T: Copy, O: Formula<IN, K>, const IN: usize, const K: usize> Kernel<T> for Map<'_, T, O, IN, K> {
    #[inline(always)]
    fn run<S: Lanes<T>>(self, s: S) {
        debug_assert!(self.inputs.iter().all(|input| input.len() == self.geometry.len()));
        debug_assert!(self.output.len() == self.geometry.len());
        // SAFETY: inputs and output have the geometry's length, and channels and part lie within it.
        unsafe {
            match self.reach {
                Reach::Near => self.part::<S, NEAR>(s),
                Reach::Far => self.part::<S, FAR>(s),
                Reach::Past => {
                    self.part::<S, PAST>(s);
                    s.fence();
                }
            }
        }
    }
}

impl<T: Copy, O: Formula<IN, K>, const IN: usize, const K: usize> Map<'_, T, O, IN, K> {
    /// How many of the elements from `at` on to write one by one before the output is aligned to a line.
    #[inline(always)]
    fn head<const REACH: usize>(&self, at: usize) -> usize {
        if REACH == PAST { self.output.as_ptr().wrapping_add(at).align_offset(LINE) } else { 0 }
    }

    /// Asks for what will soon be read and written.
    #[inline(always)]
    fn ask<const REACH: usize>(&self, read: usize, written: usize) {
        if REACH != NEAR {
            for input in &self.inputs {
                prefetch(input.as_ptr().wrapping_add(read));
            }
        }
        if REACH == FAR {
            prefetch_to_write(self.output.as_ptr().wrapping_add(written));
        }
    }

    /// One vector at `at`.
    ///
    /// # Safety
    /// Inputs and output have its elements; for `PAST`, the output is aligned to a line there.
    #[inline(always)]
    unsafe fn vector<S: Lanes<T>, const REACH: usize>(&self, s: S, at: usize, k: [S::Vector; K]) {
        let mut x = [s.zero(); IN];
        // SAFETY: says the caller.
        unsafe {
            for (x, input) in x.iter_mut().zip(&self.inputs) {
                *x = s.load(input.as_ptr().add(at));
            }
            let (y, at) = (s.canonical_nan(O::apply(s, x, k)), self.output.as_ptr().add(at));
            if REACH == PAST { s.stream(at, y) } else { s.store(at, y) }
        }
    }

    /// `count` elements at `at`, fewer than a line or a vector has.
    ///
    /// # Safety
    /// Inputs and output have these elements.
    #[inline(always)]
    unsafe fn few<S: Lanes<T>>(&self, s: S, at: usize, count: usize, k: [S::Vector; K]) {
        let mut x = [s.zero(); IN];
        for done in (0..count).step_by(S::N) {
            let count = (count - done).min(S::N);
            // SAFETY: says the caller.
            unsafe {
                for (x, input) in x.iter_mut().zip(&self.inputs) {
                    *x = s.load_first(input.as_ptr().add(at + done), count);
                }
                let y = s.canonical_nan(O::apply(s, x, k));
                s.store_first(self.output.as_ptr().add(at + done), y, count);
            }
        }
    }

    /// # Safety
    /// Channels and part lie within the geometry, whose length inputs and output have.
    #[inline(always)]
    unsafe fn part<S: Lanes<T>, const REACH: usize>(&self, s: S) {
        let Geometry { c, s: plane, pattern, .. } = *self.geometry;
        let Block { samples, positions } = &self.part;
        let width = self.channels.len();
        let at = |sample| self.geometry.offset(sample, self.channels.start, positions.start);
        // SAFETY: says the caller; parts of small planes are whole planes.
        unsafe {
            match (pattern, Columns::of_map(self.geometry, &self.channels)) {
                (_, Columns::Positions(_)) => {
                    self.rows::<S, REACH>(s, at(samples.start), c * plane, samples.len(), width * plane);
                }
                (Pattern::Along, _) => {
                    // The run of a sample's channels is contiguous. After it the next sample's is read, or one of those
                    // after that: what lies behind it is another task's, and asking to write that would take it away.
                    let run = (width - 1) * plane + positions.len();
                    let (runs, rest) =
                        (AHEAD_BYTES / size_of::<T>() / run, AHEAD_BYTES / size_of::<T>() % run);
                    let ahead = runs * c * plane + rest;
                    for sample in samples.clone() {
                        for channel in 0..width {
                            let near = (run - rest).saturating_sub(channel * plane);
                            let ahead = (near, ahead, ahead + c * plane - run);
                            let at = at(sample) + channel * plane;
                            let next = self.fits.then_some(width * plane);
                            self.run_of::<S, REACH>(
                                s,
                                at,
                                positions.len(),
                                self.column + channel,
                                ahead,
                                next,
                            );
                        }
                    }
                }
                (Pattern::Across, columns) => {
                    // Rows follow each other from plane to plane where parts are whole planes.
                    let whole = positions.len() == plane;
                    let (planes, rows) =
                        if whole { (1, samples.len() * plane) } else { (samples.len(), positions.len()) };
                    for sample in samples.clone().take(planes) {
                        let at = at(sample);
                        if let Columns::Rows(repeated) = columns {
                            let (run, full) = (repeated * c, rows / repeated);
                            self.rows::<S, REACH>(s, at, run, full, run);
                            self.rows::<S, NEAR>(s, at + full * run, run, 1, (rows % repeated) * c);
                        } else {
                            self.rows::<S, REACH>(s, at, c, rows, width);
                        }
                    }
                }
            }
        }
    }

    /// `len` elements of the channel of a column. The first of `ahead` says how many of them look ahead by the second, the
    /// others by the third.
    ///
    /// # Safety
    /// Inputs and output have the elements.
    #[inline(always)]
    unsafe fn run_of<S: Lanes<T>, const REACH: usize>(
        &self,
        s: S,
        at: usize,
        len: usize,
        column: usize,
        (near, ahead, beyond): (usize, usize, usize),
        next: Option<usize>,
    ) {
        let mut k = [s.zero(); K];
        for (k, row) in k.iter_mut().zip(self.k) {
            *k = s.splat(self.scratch.coefficients[row][column]);
        }
        // SAFETY: the run has `len` elements from `at` on.
        unsafe {
            let mut done = self.head::<REACH>(at).min(len);
            self.few(s, at, done, k);
            for (end, ahead) in [(near.min(len), ahead), (len, beyond)] {
                while done + S::N <= end {
                    self.ask::<REACH>(at + done + next.unwrap_or(ahead), at + done + ahead);
                    self.vector::<S, REACH>(s, at + done, k);
                    done += S::N;
                }
            }
            self.few(s, at + done, len - done, k);
        }
    }

    /// The first `width` elements of `rows` rows, `stride` elements apart; past the caches only if the rows are all
    /// aligned alike.
    ///
    /// # Safety
    /// Inputs and output have the elements.
    #[inline(always)]
    unsafe fn rows<S: Lanes<T>, const REACH: usize>(
        &self,
        s: S,
        at: usize,
        stride: usize,
        rows: usize,
        width: usize,
    ) {
        // SAFETY: says the caller.
        unsafe {
            if REACH == PAST && !(stride * size_of::<T>()).is_multiple_of(LINE) {
                self.aligned_rows::<S, FAR>(s, at, stride, rows, width);
            } else {
                self.aligned_rows::<S, REACH>(s, at, stride, rows, width);
            }
        }
    }

    /// # Safety
    /// As of `rows`; for `PAST`, the stride is a multiple of a line.
    #[inline(always)]
    unsafe fn aligned_rows<S: Lanes<T>, const REACH: usize>(
        &self,
        s: S,
        at: usize,
        stride: usize,
        rows: usize,
        width: usize,
    ) {
        // Rows that share one load of the coefficients. From far fewer, or of two inputs one, since memory serves few
        // streams at once (backward with 512 channels and more: 1.1 times as fast as four); but of small planes' positions,
        // which have 49 times the coefficients, as many as from near (7 x 7: 1.0 to 1.2 times as fast as four or one).
        let batch_rows = match (REACH, IN) {
            (NEAR, _) => 8,
            _ if self.geometry.pattern == Pattern::Along => 8,
            (_, 1) => 4,
            _ => 1,
        };
        if width == 0 {
            return;
        }
        let far = AHEAD_BYTES / size_of::<T>();
        // Some batches down, or some columns to the right in long rows.
        let ahead = if batch_rows * width > far {
            far / batch_rows
        } else {
            far.div_ceil(batch_rows * width) * batch_rows * stride
        };
        for row in (0..rows).step_by(batch_rows) {
            let batch = row..(row + batch_rows).min(rows);
            let at = at + row * stride;
            let mut column = self.head::<REACH>(at).min(width);
            // SAFETY: says the caller.
            unsafe { self.few_rows(s, at, stride, batch.len(), 0..column) };
            while column + S::N <= width {
                let k = self.coefficients(s, column);
                for row in 0..batch.len() {
                    let at = at + row * stride + column;
                    self.ask::<REACH>(at.wrapping_add(ahead), at.wrapping_add(ahead));
                    // SAFETY: the row has N more elements.
                    unsafe { self.vector::<S, REACH>(s, at, k) };
                }
                column += S::N;
            }
            // SAFETY: says the caller.
            unsafe { self.few_rows(s, at, stride, batch.len(), column..width) };
        }
    }

    /// Some columns of `rows` rows, fewer than a line or a vector has.
    ///
    /// # Safety
    /// Inputs and output have the elements.
    #[inline(always)]
    unsafe fn few_rows<S: Lanes<T>>(
        &self,
        s: S,
        at: usize,
        stride: usize,
        rows: usize,
        columns: Range<usize>,
    ) {
        for column in columns.clone().step_by(S::N) {
            let k = self.coefficients(s, column);
            let count = (columns.end - column).min(S::N);
            for row in 0..rows {
                // SAFETY: says the caller.
                unsafe { self.few(s, at + row * stride + column, count, k) };
            }
        }
    }

    /// The coefficients of the vector of columns from `column` on.
    #[inline(always)]
    fn coefficients<S: Lanes<T>>(&self, s: S, column: usize) -> [S::Vector; K] {
        let mut k = [s.zero(); K];
        for (k, row) in k.iter_mut().zip(self.k) {
            let row = &self.scratch.coefficients[row][column..column + S::N];
            // SAFETY: `row` has N values.
            *k = unsafe { s.load(row.as_ptr()) };
        }
        k
    }
}
