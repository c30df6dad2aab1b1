//! One output element from the elements at the same place of one or two inputs and the coefficients of its channel.

use std::marker::PhantomData;
use std::ops::Range;

use super::{Columns, Scratch};
use crate::plan::Block;
use crate::problem::{Geometry, Pattern};
use crate::simd::{Kernel, LINE, Lanes};
use crate::split::{Input, Output};

/// An elementwise formula of `IN` tensors and `K` coefficients per channel.
pub trait Formula<const IN: usize, const K: usize>: Copy {
    fn apply<T, S: Lanes<T>>(s: S, x: [S::Vector; IN], k: [S::Vector; K]) -> S::Vector;
}

/// The deviation of x from the mean, scaled: x * prescale - mean_high - mean_low ([`super::channels::Scale`]). The product
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
/// multiplied into each term, the rest into the sum ([`super::channels::Scale::halves`]).
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
    pub part: Block,
    /// Whether to write past the caches.
    pub stream: bool,
    pub scratch: &'a Scratch<T>,
    pub k: [usize; K],
    pub formula: PhantomData<O>,
}

impl<T: Copy, O: Formula<IN, K>, const IN: usize, const K: usize> Kernel<T> for Map<'_, T, O, IN, K> {
    #[inline(always)]
    fn run<S: Lanes<T>>(self, s: S) {
        debug_assert!(self.inputs.iter().all(|input| input.len() == self.geometry.len()));
        debug_assert!(self.output.len() == self.geometry.len());
        // SAFETY: inputs and output have the geometry's length, and channels and part lie within it.
        unsafe {
            if self.stream {
                self.part::<S, true>(s);
            } else {
                self.part::<S, false>(s);
            }
        }
        if self.stream {
            s.fence();
        }
    }
}

impl<T: Copy, O: Formula<IN, K>, const IN: usize, const K: usize> Map<'_, T, O, IN, K> {
    /// How many of the elements from `at` on to write one by one before the output is aligned to a line.
    #[inline(always)]
    fn head<const STREAM: bool>(&self, at: usize) -> usize {
        if STREAM { self.output.as_ptr().wrapping_add(at).align_offset(LINE) } else { 0 }
    }

    /// One vector at `at`.
    ///
    /// # Safety
    /// Inputs and output have its elements; for `STREAM`, the output is aligned to a line there.
    #[inline(always)]
    unsafe fn vector<S: Lanes<T>, const STREAM: bool>(&self, s: S, at: usize, k: [S::Vector; K]) {
        let mut x = [s.zero(); IN];
        // SAFETY: says the caller.
        unsafe {
            for (x, input) in x.iter_mut().zip(&self.inputs) {
                *x = s.load(input.as_ptr().add(at));
            }
            let (y, at) = (s.canonical_nan(O::apply(s, x, k)), self.output.as_ptr().add(at));
            if STREAM { s.stream(at, y) } else { s.store(at, y) }
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
    unsafe fn part<S: Lanes<T>, const STREAM: bool>(&self, s: S) {
        let Geometry { c, s: plane, pattern, .. } = *self.geometry;
        let Block { samples, positions } = &self.part;
        let width = self.channels.len();
        let at = |sample| self.geometry.offset(sample, self.channels.start, positions.start);
        // SAFETY: says the caller; parts of small planes are whole planes.
        unsafe {
            match (pattern, Columns::of(self.geometry, &self.channels)) {
                (_, Columns::Positions(_)) => {
                    self.rows::<S, STREAM>(s, at(samples.start), c * plane, samples.len(), width * plane);
                }
                (Pattern::Along, _) => {
                    for sample in samples.clone() {
                        for (channel, at) in (at(sample)..).step_by(plane).take(width).enumerate() {
                            self.run_of::<S, STREAM>(s, at, positions.len(), channel);
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
                            self.rows::<S, STREAM>(s, at, run, full, run);
                            self.rows::<S, false>(s, at + full * run, run, 1, (rows % repeated) * c);
                        } else {
                            self.rows::<S, STREAM>(s, at, c, rows, width);
                        }
                    }
                }
            }
        }
    }

    /// `len` elements of one channel, the group's `channel`th.
    ///
    /// # Safety
    /// Inputs and output have the elements.
    #[inline(always)]
    unsafe fn run_of<S: Lanes<T>, const STREAM: bool>(&self, s: S, at: usize, len: usize, channel: usize) {
        let mut k = [s.zero(); K];
        for (k, row) in k.iter_mut().zip(self.k) {
            *k = s.splat(self.scratch.coefficients[row][channel]);
        }
        // SAFETY: the run has `len` elements from `at` on.
        unsafe {
            let mut done = self.head::<STREAM>(at).min(len);
            self.few(s, at, done, k);
            while done + S::N <= len {
                self.vector::<S, STREAM>(s, at + done, k);
                done += S::N;
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
    unsafe fn rows<S: Lanes<T>, const STREAM: bool>(
        &self,
        s: S,
        at: usize,
        stride: usize,
        rows: usize,
        width: usize,
    ) {
        // SAFETY: says the caller.
        unsafe {
            if STREAM && (stride * size_of::<T>()).is_multiple_of(LINE) {
                self.aligned_rows::<S, true>(s, at, stride, rows, width);
            } else {
                self.aligned_rows::<S, false>(s, at, stride, rows, width);
            }
        }
    }

    /// # Safety
    /// As of `rows`; for `STREAM`, the stride is a multiple of a line.
    #[inline(always)]
    unsafe fn aligned_rows<S: Lanes<T>, const STREAM: bool>(
        &self,
        s: S,
        at: usize,
        stride: usize,
        rows: usize,
        width: usize,
    ) {
        /// Rows that share one load of the coefficients.
        const BATCH: usize = 8;
        for row in (0..rows).step_by(BATCH) {
            let batch = row..(row + BATCH).min(rows);
            let mut column = 0;
            while column < width {
                let k = self.coefficients(s, column);
                let head = self.head::<STREAM>(at + column);
                let count = if head == 0 { S::N } else { head.min(S::N) }.min(width - column);
                for row in batch.clone() {
                    let at = at + row * stride + column;
                    // SAFETY: the row has `count` more elements.
                    unsafe {
                        if head == 0 && count == S::N {
                            self.vector::<S, STREAM>(s, at, k);
                        } else {
                            self.few(s, at, count, k);
                        }
                    }
                }
                column += count;
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
