//! Sums over one block of a group of channels: of a term, and of the product of two terms, per channel.
//!
//! Element s of a plane goes to lane s mod 16, in f64; of small planes, to a lane of its own. Lanes beyond the sixteenth
//! are added to the first sixteen, these summed by halves: l and l + 8, then l and l + 4, l + 2, l + 1. Along a plane, a
//! vector takes the lanes of one channel. Elsewhere the lanes of a group's channels are the columns of a matrix, and a
//! vector takes neighbouring columns. Either way one lane of one channel adds up the same numbers in the same order.

use std::marker::PhantomData;
use std::ops::Range;

use super::{Columns, Scratch};
use crate::plan::{Block, GROUP};
use crate::problem::{Geometry, Pattern};
use crate::simd::{Kernel, LANES, Lanes, prefetch};
use crate::split::Input;

/// What is summed: from `IN` tensors and `K` coefficients per channel.
pub trait Terms<const IN: usize, const K: usize>: Copy {
    /// The terms (a, b) of one vector: a and a * b are summed.
    fn terms<T, S: Lanes<T>>(s: S, x: [S::Vector; IN], k: [S::Vector; K]) -> (S::Vector, S::Vector);
}

/// x and x * x.
#[derive(Clone, Copy)]
pub struct Plain;

impl Terms<1, 0> for Plain {
    #[inline(always)]
    fn terms<T, S: Lanes<T>>(_: S, [x]: [S::Vector; 1], _: [S::Vector; 0]) -> (S::Vector, S::Vector) {
        (x, x)
    }
}

/// d = x - pivot and d * d.
#[derive(Clone, Copy)]
pub struct Pivoted;

impl Terms<1, 1> for Pivoted {
    #[inline(always)]
    fn terms<T, S: Lanes<T>>(s: S, [x]: [S::Vector; 1], [pivot]: [S::Vector; 1]) -> (S::Vector, S::Vector) {
        let d = s.sub(x, pivot);
        (d, d)
    }
}

/// dy and dy * d, d the scaled deviation of x from the mean ([`super::channels::Scale`]).
#[derive(Clone, Copy)]
pub struct GradientTerms;

impl Terms<2, 3> for GradientTerms {
    #[inline(always)]
    fn terms<T, S: Lanes<T>>(s: S, [x, dy]: [S::Vector; 2], k: [S::Vector; 3]) -> (S::Vector, S::Vector) {
        (dy, super::map::deviation(s, x, k))
    }
}

/// The sums of one block, to `scratch.sums`.
pub struct Reduce<'a, T, O, const IN: usize, const K: usize> {
    pub geometry: &'a Geometry,
    pub inputs: [Input<'a, T>; IN],
    pub channels: Range<usize>,
    pub block: Block,
    pub scratch: &'a mut Scratch<T>,
    pub terms: PhantomData<O>,
}

impl<T: Copy, O: Terms<IN, K>, const IN: usize, const K: usize> Kernel<T> for Reduce<'_, T, O, IN, K> {
    #[inline(always)]
    fn run<S: Lanes<T>>(mut self, s: S) {
        let channels = self.channels.len();
        debug_assert!(self.inputs.iter().all(|input| input.len() == self.geometry.len()));
        // SAFETY: the inputs have the geometry's length, and channels and block lie within it.
        unsafe {
            match (self.geometry.pattern, self.geometry.small_planes()) {
                (Pattern::Along, false) => self.along(s),
                (Pattern::Along, true) => self.along_small(s),
                (Pattern::Across, false) => self.across(s),
                (Pattern::Across, true) => self.across_small(s),
            }
        }
        let lanes = self.geometry.lanes().min(self.block.positions.len());
        let Scratch { lanes: [a, b], sums: [sum_a, sum_b], .. } = self.scratch;
        for (columns, sums) in [(a, sum_a), (b, sum_b)] {
            match self.geometry.pattern {
                Pattern::Along => {
                    let pitch = if self.geometry.small_planes() { lanes } else { LANES };
                    sum_lanes_of_planes(columns, pitch, lanes, &mut sums[..channels]);
                }
                Pattern::Across => sum_lanes_of_rows(columns, lanes, &mut sums[..channels]),
            }
        }
    }
}

/// Lanes in neighbouring columns: `columns[channel * pitch + lane]`.
#[inline(always)]
fn sum_lanes_of_planes(columns: &[f64], pitch: usize, lanes: usize, sums: &mut [f64]) {
    for (columns, sum) in columns.chunks_exact(pitch).zip(sums) {
        let mut first = [0.0; LANES];
        let sixteens = columns[..lanes].chunks_exact(LANES);
        let rest = sixteens.remainder();
        for sixteen in sixteens {
            first.iter_mut().zip(sixteen).for_each(|(first, more)| *first += more);
        }
        first.iter_mut().zip(rest).for_each(|(first, more)| *first += more);
        for half in [8, 4, 2, 1] {
            let (low, high) = first.split_at_mut(half);
            low.iter_mut().zip(high).for_each(|(low, high)| *low += *high);
        }
        *sum = first[0];
    }
}

/// Lanes in rows: `columns[lane * channels + channel]`.
#[inline(always)]
fn sum_lanes_of_rows(columns: &mut [f64], lanes: usize, sums: &mut [f64]) {
    let channels = sums.len();
    let (first, more) = columns[..lanes * channels].split_at_mut(lanes.min(LANES) * channels);
    for more in more.chunks(first.len()) {
        first.iter_mut().zip(more).for_each(|(first, more)| *first += more);
    }
    for half in [8, 4, 2, 1] {
        let (low, high) = first.split_at_mut((half * channels).min(first.len()));
        low.iter_mut().zip(high).for_each(|(low, high)| *low += *high);
    }
    sums.copy_from_slice(&first[..channels]);
}

/// `U` neighbouring vectors going down `rows` rows together.
struct Sweep<const IN: usize, T> {
    /// The first vector's first row in each input.
    from: [*const T; IN],
    /// Elements from one vector to the next.
    apart: usize,
    /// Elements from one row to the next.
    stride: usize,
    rows: usize,
    /// Elements from what is read to what will be read a while later, and is asked for now.
    ahead: usize,
}

/// How far ahead to prefetch: what the memory delivers to one core in about the time it takes to deliver anything.
const AHEAD_BYTES: usize = 2048;

impl<T: Copy, O: Terms<IN, K>, const IN: usize, const K: usize> Reduce<'_, T, O, IN, K> {
    /// Adds whole vectors into their sums.
    ///
    /// # Safety
    /// All that the sweep touches can be read.
    #[inline(always)]
    unsafe fn sweep<S: Lanes<T>, const U: usize>(
        s: S,
        sweep: &Sweep<IN, T>,
        k: [[S::Vector; K]; U],
        sums: &mut [[S::Sums; 2]; U],
    ) {
        for row in 0..sweep.rows {
            for u in 0..U {
                let mut x = [s.zero(); IN];
                for (x, from) in x.iter_mut().zip(sweep.from) {
                    let at = row * sweep.stride + u * sweep.apart;
                    prefetch(from.wrapping_add(at + sweep.ahead));
                    // SAFETY: says the caller.
                    *x = unsafe { s.load(from.add(at)) };
                }
                let (a, b) = O::terms(s, x, k[u]);
                sums[u] = [s.sum(sums[u][0], a), s.sum_product(sums[u][1], a, b)];
            }
        }
    }

    /// Adds the first `count` lanes of a vector into its sums.
    ///
    /// # Safety
    /// `count` < N elements can be read at each of `from`.
    #[inline(always)]
    unsafe fn tail<S: Lanes<T>>(
        s: S,
        from: [*const T; IN],
        count: usize,
        k: [S::Vector; K],
        sums: &mut [S::Sums; 2],
    ) {
        let mut x = [s.zero(); IN];
        for (x, from) in x.iter_mut().zip(from) {
            // SAFETY: says the caller.
            *x = unsafe { s.load_first(from, count) };
        }
        let (a, b) = O::terms(s, x, k);
        let (a, b) = (s.keep_first(a, count), s.keep_first(b, count));
        *sums = [s.sum(sums[0], a), s.sum_product(sums[1], a, b)];
    }

    /// The sums at `column` so far, or zero at a block's start.
    #[inline(always)]
    fn sums<S: Lanes<T>>(&self, s: S, column: usize, first: bool) -> [S::Sums; 2] {
        if first {
            return [s.zero_sums(); 2];
        }
        let [a, b] = &self.scratch.lanes;
        let (a, b) = (&a[column..column + S::N], &b[column..column + S::N]);
        // SAFETY: both slices have N values.
        unsafe { [s.load_sums(a.as_ptr()), s.load_sums(b.as_ptr())] }
    }

    #[inline(always)]
    fn put<S: Lanes<T>>(&mut self, s: S, column: usize, sums: [S::Sums; 2]) {
        let [a, b] = &mut self.scratch.lanes;
        let (a, b) = (&mut a[column..column + S::N], &mut b[column..column + S::N]);
        // SAFETY: both slices have N values.
        unsafe {
            s.store_sums(a.as_mut_ptr(), sums[0]);
            s.store_sums(b.as_mut_ptr(), sums[1]);
        }
    }

    /// The planes of a sample's channels follow each other, so samples go outside and sums wait in memory.
    ///
    /// # Safety
    /// Channels and block lie within the geometry, whose length the inputs have.
    #[inline(always)]
    unsafe fn along<S: Lanes<T>>(&mut self, s: S) {
        for sample in self.block.samples.clone() {
            let first = sample == self.block.samples.start;
            let mut channel = 0;
            while channel + S::STREAMS <= self.channels.len() {
                // SAFETY: the channels lie within the group.
                unsafe {
                    match S::STREAMS {
                        2 => self.planes::<S, 2>(s, sample, channel, first),
                        _ => self.planes::<S, 1>(s, sample, channel, first),
                    }
                }
                channel += S::STREAMS;
            }
            while channel < self.channels.len() {
                // SAFETY: as above.
                unsafe { self.planes::<S, 1>(s, sample, channel, first) };
                channel += 1;
            }
        }
    }

    /// One sample's planes of `U` channels, in step.
    ///
    /// # Safety
    /// As of `along`; the group has `channel + U` channels.
    #[inline(always)]
    unsafe fn planes<S: Lanes<T>, const U: usize>(
        &mut self,
        s: S,
        sample: usize,
        channel: usize,
        first: bool,
    ) {
        let geometry = self.geometry;
        let at = geometry.offset(sample, self.channels.start + channel, self.block.positions.start);
        let len = self.block.positions.len();
        let run = self.channels.len() * geometry.s;
        let ahead = AHEAD_BYTES / size_of::<T>();
        let mut k = [[s.zero(); K]; U];
        for (u, k) in k.iter_mut().enumerate() {
            for (k, row) in k.iter_mut().zip(&self.scratch.coefficients) {
                *k = s.splat(row[channel + u]);
            }
        }
        for lane in (0..LANES).step_by(S::N) {
            let column = |u| (channel + u) * LANES + lane;
            let mut sums = [[s.zero_sums(); 2]; U];
            for (u, sums) in sums.iter_mut().enumerate() {
                *sums = self.sums(s, column(u), first);
            }
            let rows = (len + LANES - S::N).saturating_sub(lane) / LANES;
            // The group's planes of a sample are one run; what comes after its end is the next sample's.
            let near =
                run.saturating_sub(channel * geometry.s + self.block.positions.start + ahead).div_ceil(LANES);
            let near = near.min(rows);
            let beyond = ahead + geometry.c * geometry.s - run;
            // SAFETY: row r reads the N elements from lane + 16 * r, the last of which end within `len`.
            unsafe {
                let from = self.inputs.map(|x| x.as_ptr().add(at).wrapping_add(lane));
                let sweep = Sweep { from, apart: geometry.s, stride: LANES, rows: near, ahead };
                Self::sweep::<S, U>(s, &sweep, k, &mut sums);
                let from = from.map(|x| x.wrapping_add(near * LANES));
                let sweep = Sweep { from, rows: rows - near, ahead: beyond, ..sweep };
                Self::sweep::<S, U>(s, &sweep, k, &mut sums);
            }
            let done = lane + rows * LANES;
            if done < len {
                for (u, sums) in sums.iter_mut().enumerate() {
                    // SAFETY: len - done elements are left of the plane, fewer than N.
                    unsafe {
                        let from = self.inputs.map(|x| x.as_ptr().add(at + u * geometry.s + done));
                        Self::tail::<S>(s, from, len - done, k[u], sums);
                    }
                }
            }
            for (u, sums) in sums.into_iter().enumerate() {
                self.put(s, column(u), sums);
            }
        }
    }

    /// Rows in batches of sixteen times a few: the columns' sums stay in registers down a batch and wait in memory
    /// from one to the next.
    ///
    /// # Safety
    /// Channels and block lie within the geometry, whose length the inputs have.
    #[inline(always)]
    unsafe fn across<S: Lanes<T>>(&mut self, s: S) {
        /// Sixteens of rows per batch: enough to make up for loading and storing the sums.
        const BATCH: usize = 8;
        let (c, width) = (self.geometry.c, self.channels.len());
        let flat = matches!(Columns::of(self.geometry, &self.channels), Columns::Rows(_));
        let Block { samples, positions } = self.block.clone();
        for sample in samples.clone() {
            let rows = positions.len();
            let mut row = 0;
            while row < rows {
                let first = sample == samples.start && row == 0;
                let at = self.geometry.offset(sample, self.channels.start, positions.start + row);
                let batch = (rows - row).min(BATCH * LANES);
                let (full, rest) = (batch / LANES, batch % LANES);
                // SAFETY: the batch lies within the block, column runs within its rows.
                unsafe {
                    if flat {
                        self.columns(s, at, LANES * c, full, 0, LANES * c, first);
                        self.columns(s, at + full * LANES * c, 0, 1, 0, rest * c, first && full == 0);
                    } else {
                        for lane in 0..LANES.min(batch) {
                            let full = full + usize::from(lane < rest);
                            self.columns(s, at + lane * c, LANES * c, full, lane * width, width, first);
                        }
                    }
                }
                row += batch;
            }
        }
    }

    /// Small planes of neighbouring channels, as columns down the samples.
    ///
    /// # Safety
    /// Channels and block lie within the geometry, whose length the inputs have.
    #[inline(always)]
    unsafe fn along_small<S: Lanes<T>>(&mut self, s: S) {
        let Geometry { c, s: plane, .. } = *self.geometry;
        let at = self.geometry.offset(self.block.samples.start, self.channels.start, 0);
        // SAFETY: small planes are never cut, so the block's samples have these columns.
        unsafe {
            let width = self.channels.len() * plane;
            self.columns(s, at, c * plane, self.block.samples.len(), 0, width, true);
        }
    }

    /// Positions of small planes, as rows of columns down the samples.
    ///
    /// # Safety
    /// Channels and block lie within the geometry, whose length the inputs have.
    #[inline(always)]
    unsafe fn across_small<S: Lanes<T>>(&mut self, s: S) {
        let Geometry { c, s: plane, .. } = *self.geometry;
        let at = self.geometry.offset(self.block.samples.start, self.channels.start, 0);
        let (stride, rows) = (c * plane, self.block.samples.len());
        let width = self.channels.len();
        // SAFETY: small planes are never cut, so the block's samples have these columns.
        unsafe {
            if let Columns::Rows(_) = Columns::of(self.geometry, &self.channels) {
                return self.columns(s, at, stride, rows, 0, stride, true);
            }
            for lane in 0..plane {
                self.columns(s, at + lane * c, stride, rows, lane * width, width, true);
            }
        }
    }

    /// Down `rows` rows of `width` columns from offset `at`, into the sums from `column` on. The columns are channels,
    /// or (row, channel) in a flat run, for which the coefficients are repeated.
    ///
    /// The last vector of a run adds zeros to (or, at a block's start, writes zeros over) up to N - 1 sums past its
    /// end. They belong to the next run, which comes later, or to no one.
    ///
    /// # Safety
    /// The inputs have all these elements.
    #[inline(always)]
    #[expect(clippy::too_many_arguments, reason = "one rectangle; a struct would only rename them")]
    unsafe fn columns<S: Lanes<T>>(
        &mut self,
        s: S,
        at: usize,
        stride: usize,
        rows: usize,
        column: usize,
        width: usize,
        first: bool,
    ) {
        if rows == 0 {
            return;
        }
        let mut done = 0;
        while done + S::STREAMS * S::N <= width {
            // SAFETY: the vectors lie within the columns.
            unsafe {
                let at = at + done;
                match S::STREAMS {
                    2 => self.strip::<S, 2>(s, at, stride, rows, column + done, done, first),
                    _ => self.strip::<S, 1>(s, at, stride, rows, column + done, done, first),
                }
            }
            done += S::STREAMS * S::N;
        }
        while done + S::N <= width {
            // SAFETY: as above.
            unsafe { self.strip::<S, 1>(s, at + done, stride, rows, column + done, done, first) };
            done += S::N;
        }
        if done < width {
            let mut sums = self.sums(s, column + done, first);
            let k = self.coefficients(s, done);
            for row in 0..rows {
                // SAFETY: the row has width - done more columns, fewer than N.
                unsafe {
                    let from = self.inputs.map(|x| x.as_ptr().add(at + done + row * stride));
                    Self::tail::<S>(s, from, width - done, k, &mut sums);
                }
            }
            self.put(s, column + done, sums);
        }
    }

    /// `U` vectors of columns, in step.
    ///
    /// # Safety
    /// The inputs have all these elements.
    #[inline(always)]
    #[expect(clippy::too_many_arguments, reason = "one rectangle; a struct would only rename them")]
    unsafe fn strip<S: Lanes<T>, const U: usize>(
        &mut self,
        s: S,
        at: usize,
        stride: usize,
        rows: usize,
        column: usize,
        coefficient: usize,
        first: bool,
    ) {
        let mut sums = [[s.zero_sums(); 2]; U];
        let mut k = [[s.zero(); K]; U];
        for u in 0..U {
            sums[u] = self.sums(s, column + u * S::N, first);
            k[u] = self.coefficients(s, coefficient + u * S::N);
        }
        // SAFETY: says the caller.
        unsafe {
            let from = self.inputs.map(|x| x.as_ptr().add(at));
            Self::sweep::<S, U>(s, &Sweep { from, apart: S::N, stride, rows, ahead: GROUP }, k, &mut sums);
        }
        for (u, sums) in sums.into_iter().enumerate() {
            self.put(s, column + u * S::N, sums);
        }
    }

    /// The coefficients of the vector of columns from `column` on.
    #[inline(always)]
    fn coefficients<S: Lanes<T>>(&self, s: S, column: usize) -> [S::Vector; K] {
        let mut k = [s.zero(); K];
        for (k, row) in k.iter_mut().zip(&self.scratch.coefficients) {
            let row = &row[column..column + S::N];
            // SAFETY: `row` has N values.
            *k = unsafe { s.load(row.as_ptr()) };
        }
        k
    }
}
