//! One output element from the elements at the same place of one or two inputs and the coefficients of its channel.

use std::marker::PhantomData;
use std::ops::Range;

use super::columns::Columns;
use super::reduce::Meanwhile;
use super::scales::{GRADIENT, HALF, ORDINARY_GRADIENT, ORDINARY_SCALE, REST, SCALE};
use super::scratch::{COEFFICIENTS, Row};
use crate::ground::geometry::{Block, Geometry, Pattern};
use crate::ground::sizes::{LANES, LINE, TILE_COLUMNS, TILE_ROWS};
use crate::ground::slices::{Input, Output};
use crate::simd::{Kernel, Lanes, prefetch};

/// How far from the core the tensors of a map are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reach {
    /// Near enough for the caches' own prefetching.
    Near,
    /// Far enough for prefetching to pay.
    Far,
    /// So far that outputs are written past the caches.
    Past,
}

/// Which inputs a map of planes asks for ahead of time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Asked {
    /// Its own.
    Own,
    /// The next task's: its own stayed in L2 from statistics to output.
    Next,
    /// None. On a mesh what is asked for takes buffers that stores past the caches need (backward 1.06 times as fast
    /// without, training 1.05).
    Nothing,
}

/// An elementwise formula of `IN` tensors and `K` coefficients per channel.
pub trait Formula<const IN: usize, const K: usize>: Copy {
    /// The rows of coefficients that it takes.
    const ROWS: [usize; K];
    /// Whether an element of the output can be NaN: then it must be the canonical one.
    const CAN_BE_NAN: bool = true;

    fn apply<T, S: Lanes<T>>(s: S, x: [S::Vector; IN], k: [S::Vector; K]) -> S::Vector;
}

/// y = d * factor + beta, where d is the deviation of x from the mean. The first difference is exact so near the mean, where
/// it matters.
#[derive(Clone, Copy)]
pub struct Normalize;

impl Formula<1, ORDINARY_SCALE> for Normalize {
    const ROWS: [usize; ORDINARY_SCALE] = *SCALE.first_chunk().unwrap();

    #[inline(always)]
    fn apply<T, S: Lanes<T>>(s: S, [x]: [S::Vector; 1], [h, l, factor, beta]: [S::Vector; 4]) -> S::Vector {
        s.add(s.mul(s.sub(s.sub(x, h), l), factor), beta)
    }
}

/// The same with the statistics of x itself, of ordinary channels, whose elements are finite: their deviations are no more than
/// sqrt(m * var), which is below 2^52, their products with the factor below 2^92; and beta's NaN is the canonical one. (NCHW:
/// 1.03 to 1.05 times as fast, AVX2 1.06 to 1.14, portable 1.1 to 1.2.)
#[derive(Clone, Copy)]
pub struct NormalizeBatch;

impl Formula<1, ORDINARY_SCALE> for NormalizeBatch {
    const ROWS: [usize; ORDINARY_SCALE] = <Normalize as Formula<1, ORDINARY_SCALE>>::ROWS;
    const CAN_BE_NAN: bool = false;

    #[inline(always)]
    fn apply<T, S: Lanes<T>>(s: S, x: [S::Vector; 1], k: [S::Vector; 4]) -> S::Vector {
        <Normalize as Formula<1, ORDINARY_SCALE>>::apply(s, x, k)
    }
}

/// For any channel: of x * prescale ([`super::scales::Scales`]), which is exact, and just x of an ordinary channel.
impl Formula<1, 5> for Normalize {
    const ROWS: [usize; 5] = SCALE;

    #[inline(always)]
    fn apply<T, S: Lanes<T>>(
        s: S,
        [x]: [S::Vector; 1],
        [h, l, factor, beta, prescale]: [S::Vector; 5],
    ) -> S::Vector {
        <Self as Formula<1, 4>>::apply(s, [s.mul(x, prescale)], [h, l, factor, beta])
    }
}

/// dx = gamma * invstd * (dy - mean(dy) - xhat * mean(dy * xhat)).
///
/// Of ordinary channels, whose sums are finite, and so are x and dy: then nothing but the product with the slope can overflow,
/// which is 0 where the last factor is.
#[derive(Clone, Copy)]
pub struct InputGradient;

impl Formula<2, ORDINARY_GRADIENT> for InputGradient {
    const ROWS: [usize; ORDINARY_GRADIENT] = *GRADIENT.first_chunk().unwrap();
    const CAN_BE_NAN: bool = false;

    #[inline(always)]
    fn apply<T, S: Lanes<T>>(
        s: S,
        [x, dy]: [S::Vector; 2],
        [h, l, mean_dy, slope, rest]: [S::Vector; 5],
    ) -> S::Vector {
        let along_x = s.mul(s.sub(s.sub(x, h), l), slope);
        s.mul(s.sub(s.sub(dy, mean_dy), along_x), rest)
    }
}

/// For any channel: with the half of gamma * invstd that is a power of two multiplied into each term, the rest into the sum
/// ([`super::channels::GradientFactors`]).
impl Formula<2, 7> for InputGradient {
    const ROWS: [usize; 7] = GRADIENT;

    #[inline(always)]
    fn apply<T, S: Lanes<T>>(
        s: S,
        [x, dy]: [S::Vector; 2],
        [h, l, mean_dy, slope, rest, prescale, half]: [S::Vector; 7],
    ) -> S::Vector {
        let (x, dy) = (s.mul(x, prescale), s.mul(dy, half));
        <Self as Formula<2, 5>>::apply(s, [x, dy], [h, l, mean_dy, slope, rest])
    }
}

/// dx = gamma * invstd * dy: the statistics did not depend on x.
#[derive(Clone, Copy)]
pub struct FrozenGradient;

impl Formula<1, 2> for FrozenGradient {
    const ROWS: [usize; 2] = [HALF, REST];

    #[inline(always)]
    fn apply<T, S: Lanes<T>>(s: S, [dy]: [S::Vector; 1], [half, rest]: [S::Vector; 2]) -> S::Vector {
        s.mul(s.mul(dy, half), rest)
    }
}

/// Applies a formula to a part of a group of channels.
pub struct Map<'a, T, O, const IN: usize, const K: usize> {
    pub geometry: &'a Geometry,
    pub inputs: [Input<'a, T>; IN],
    pub output: Output<'a, T>,
    pub channels: Range<usize>,
    /// The column of the first of them; 0 where vectors take several channels.
    pub column: usize,
    pub part: Block,
    pub reach: Reach,
    pub asked: Asked,
    pub coefficients: &'a [Row<T>; COEFFICIENTS],
    pub formula: PhantomData<O>,
}

/// What is left of a plane: from `done` to `end`, both from where its sample's run begins.
pub struct Plane<V, const K: usize> {
    run: usize,
    channel: usize,
    done: usize,
    end: usize,
    k: [V; K],
}

/// The map of a group, past the caches, while another of as many channels is summed: a vector of one, a vector of the other.
/// (By turns of 1 KiB, with a place to go on from in memory, half of the gain was lost to the way there.)
pub struct Behind<'a, T, O, const IN: usize, const K: usize>(pub Map<'a, T, O, IN, K>);

impl<T: Copy, O: Formula<IN, K>, const IN: usize, const K: usize> Meanwhile<T> for Behind<'_, T, O, IN, K> {
    const ANY: bool = true;
    type Plane<S: Lanes<T>> = Plane<S::Vector, K>;

    #[inline(always)]
    fn begin<S: Lanes<T>>(
        &self,
        s: S,
        sample: usize,
        channel: usize,
        positions: &Range<usize>,
    ) -> Self::Plane<S> {
        let Map { geometry, channels, column, .. } = &self.0;
        debug_assert!(channel < channels.len() && geometry.s >= LANES);
        let run = geometry.offset(sample, channels.start, 0);
        // SAFETY: sample and channel lie within the geometry, whose length inputs and output have.
        unsafe { self.0.begin(s, run, channel, positions, self.0.splats(s, column + channel)) }
    }

    #[inline(always)]
    fn step<S: Lanes<T>>(&self, s: S, plane: &mut Self::Plane<S>) {
        if plane.done + S::N <= plane.end {
            // SAFETY: as above, and the plane's vectors follow the output's lines.
            unsafe { self.0.vector::<S, PAST>(s, plane.run + plane.done, plane.k) };
            plane.done += S::N;
        }
    }

    #[inline(always)]
    fn finish<S: Lanes<T>>(&self, s: S, mut plane: Self::Plane<S>) {
        while plane.done + S::N <= plane.end {
            self.step(s, &mut plane);
        }
        // SAFETY: as above.
        unsafe { self.0.finish::<S, PAST>(s, &mut plane) };
    }
}

/// [`Reach`] as a parameter.
const NEAR: usize = Reach::Near as usize;
const FAR: usize = Reach::Far as usize;
const PAST: usize = Reach::Past as usize;
/// `PAST`, with nothing asked for ahead: of planes of 7 x 7, finding out where to took a third of the instructions.
const QUIET: usize = PAST + 1;

/// What to ask for along a run.
struct Ahead {
    /// The elements up to here ask the first of `ahead` further on, the others the second.
    near: usize,
    ahead: [usize; 2],
    /// How far on to ask for inputs instead, if not for this task's; 0 asks for nothing new.
    next: Option<usize>,
}

/// As of the reduction, but for the sake of the stores too: each asks for its line first, and at a jump for its page.
const AHEAD_BYTES: usize = 8192;

impl<T: Copy, O: Formula<IN, K>, const IN: usize, const K: usize> Kernel<T> for Map<'_, T, O, IN, K> {
    #[inline(always)]
    fn run<S: Lanes<T>>(self, s: S) {
        debug_assert!(self.inputs.iter().all(|input| input.len() == self.geometry.len()));
        debug_assert!(self.output.len() == self.geometry.len());
        let columns = Columns::of_map(self.geometry, &self.channels);
        let stride = self.stride(columns);
        // SAFETY: inputs and output have the geometry's length, and channels and part lie within it.
        unsafe {
            match self.reach {
                Reach::Near => self.part::<S, NEAR>(s, columns, stride),
                // Whole lines go past the caches or none: rows must lie to them alike.
                Reach::Past if stride.is_none_or(|stride| stride.is_multiple_of(LANES)) => {
                    self.part::<S, PAST>(s, columns, stride);
                    s.fence();
                }
                _ => self.part::<S, FAR>(s, columns, stride),
            }
        }
    }
}

impl<T: Copy, O: Formula<IN, K>, const IN: usize, const K: usize> Map<'_, T, O, IN, K> {
    /// How many of the elements from `at` on lie before the output's next line.
    #[inline(always)]
    fn head(&self, at: usize) -> usize {
        self.output.as_ptr().wrapping_add(at).align_offset(LINE)
    }

    /// Asks for what will soon be read and written.
    #[inline(always)]
    fn ask<S: Lanes<T>, const REACH: usize>(&self, s: S, read: usize, written: usize) {
        if REACH == FAR || REACH == PAST {
            for input in &self.inputs {
                prefetch::<false, T, S>(s, input.as_ptr().wrapping_add(read));
            }
        }
        if REACH == FAR {
            prefetch::<true, T, S>(s, self.output.as_ptr().wrapping_add(written));
        }
    }

    #[inline(always)]
    fn apply<S: Lanes<T>>(s: S, x: [S::Vector; IN], k: [S::Vector; K]) -> S::Vector {
        let y = O::apply(s, x, k);
        if O::CAN_BE_NAN { s.canonical_nan(y) } else { y }
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
            let (y, at) = (Self::apply(s, x, k), self.output.as_ptr().add(at));
            if REACH >= PAST { s.stream(at, y) } else { s.store(at, y) }
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
                let y = Self::apply(s, x, k);
                s.store_first(self.output.as_ptr().add(at + done), y, count);
            }
        }
    }

    /// Elements from one row to the next, unless planes are mapped.
    #[inline(always)]
    fn stride(&self, columns: Columns) -> Option<usize> {
        let Geometry { c, pattern, .. } = *self.geometry;
        match columns {
            Columns::Positions(positions) => Some(c * positions),
            Columns::Rows(repeated) => Some(c * repeated),
            Columns::Channels => (pattern == Pattern::Across).then_some(c),
        }
    }

    /// The stride is that of the columns: derived here once more, backward took 1.07 to 1.2 times as long.
    ///
    /// # Safety
    /// Channels and part lie within the geometry, whose length inputs and output have; columns and stride are theirs.
    #[inline(always)]
    unsafe fn part<S: Lanes<T>, const REACH: usize>(&self, s: S, columns: Columns, stride: Option<usize>) {
        let Geometry { c, s: plane, .. } = *self.geometry;
        let Block { samples, positions } = &self.part;
        let width = self.channels.len();
        let at = |sample| self.geometry.offset(sample, self.channels.start, positions.start);
        // SAFETY: says the caller; parts of small planes are whole planes.
        unsafe {
            match stride {
                None => {
                    // The run of a sample's channels is contiguous. After it the next sample's is read, or one of those
                    // after that: what lies behind it is another task's, and asking to write that would take it away.
                    let len = positions.len();
                    let run = width * len;
                    let (runs, rest) =
                        (AHEAD_BYTES / size_of::<T>() / run, AHEAD_BYTES / size_of::<T>() % run);
                    let near = runs * c * plane + rest;
                    let ahead = Ahead {
                        near: run - rest,
                        ahead: [near, near + c * plane - run],
                        next: match self.asked {
                            Asked::Own => None,
                            Asked::Next => Some(width * plane),
                            Asked::Nothing => Some(0),
                        },
                    };
                    let quiet = REACH == PAST && self.asked == Asked::Nothing;
                    for sample in samples.clone() {
                        if quiet {
                            self.planes::<S, QUIET>(s, at(sample), len, &ahead);
                        } else {
                            self.planes::<S, REACH>(s, at(sample), len, &ahead);
                        }
                    }
                }
                Some(stride) => {
                    // Rows follow each other from plane to plane where parts are whole planes.
                    let whole = positions.len() == plane;
                    let (planes, rows) =
                        if whole { (1, samples.len() * plane) } else { (samples.len(), positions.len()) };
                    let (rows, width, rest) = match columns {
                        Columns::Positions(_) => (samples.len(), width * plane, 0),
                        Columns::Rows(repeated) => (rows / repeated, stride, rows % repeated * c),
                        Columns::Channels => (rows, width, 0),
                    };
                    for sample in samples.clone().take(planes) {
                        self.rows::<S, REACH>(s, at(sample), stride, rows, width, rest);
                    }
                }
            }
        }
    }

    /// The planes of a sample's channels, `len` elements each, one behind the other. (Planes of 7 x 7 as rows of positions,
    /// with coefficients for each, took 1.7 to 3 times as long: their rows fall on few sets of L1.)
    ///
    /// # Safety
    /// Inputs and output have the elements.
    #[inline(always)]
    unsafe fn planes<S: Lanes<T>, const REACH: usize>(&self, s: S, at: usize, len: usize, ahead: &Ahead) {
        let width = self.channels.len();
        // SAFETY: the run has `width * len` elements from `at` on.
        unsafe {
            if len < LANES {
                for channel in 0..width {
                    self.few(s, at + channel * len, len, self.splats(s, self.column + channel));
                }
                return;
            }
            let mut plane = self.begin(s, at, 0, &(0..len), self.splats(s, self.column));
            for _ in 0..width {
                while plane.done + S::N <= plane.end {
                    self.ask_along::<S, REACH>(s, at, plane.done, ahead);
                    self.vector::<S, REACH>(s, at + plane.done, plane.k);
                    plane.done += S::N;
                }
                if plane.done < plane.end {
                    self.ask_along::<S, REACH>(s, at, plane.done, ahead);
                }
                self.finish::<S, REACH>(s, &mut plane);
            }
        }
    }

    /// Begins with some of a plane's positions, whole [`LANES`] but for its last, in the run of the part that begins at offset
    /// `run`. Vectors follow the output's lines: what lies before a run's first line is done here.
    ///
    /// # Safety
    /// Inputs and output have the run, whose planes have [`LANES`] elements at least.
    #[inline(always)]
    unsafe fn begin<S: Lanes<T>>(
        &self,
        s: S,
        run: usize,
        channel: usize,
        positions: &Range<usize>,
        k: [S::Vector; K],
    ) -> Plane<S::Vector, K> {
        let len = self.part.positions.len();
        let head = self.head(run).min(len);
        // A vector that the positions end in is theirs, and so is what lies in the next plane too, if it begins in them; one that
        // they begin in belongs to those before.
        let vector_at = |at: usize| head + at.saturating_sub(head).next_multiple_of(S::N);
        let start = channel * len;
        if start + positions.start == 0 {
            // SAFETY: says the caller.
            unsafe { self.few(s, run, head, k) };
        }
        let done = vector_at(start + positions.start);
        let end = vector_at(start + positions.end).min(start + len);
        Plane { run, channel, done, end, k }
    }

    /// The end of a plane, less than a vector, with what of the next one shares a vector with it. Goes on to that.
    ///
    /// # Safety
    /// As of `begin`.
    #[inline(always)]
    unsafe fn finish<S: Lanes<T>, const REACH: usize>(&self, s: S, plane: &mut Plane<S::Vector, K>) {
        let at = plane.run + plane.done;
        let left = plane.end.saturating_sub(plane.done);
        plane.channel += 1;
        // SAFETY: says the caller; behind a run's last plane there may be no more.
        unsafe {
            if plane.channel == self.channels.len() {
                self.few(s, at, left, plane.k);
                return;
            }
            let next = self.splats(s, self.column + plane.channel);
            if left > 0 {
                for (k, next) in plane.k.iter_mut().zip(next) {
                    *k = s.select_first(*k, next, left);
                }
                self.vector::<S, REACH>(s, at, plane.k);
                plane.done += S::N;
            }
            plane.end += self.part.positions.len();
            plane.k = next;
        }
    }

    /// As `ask`, `done` elements into the run that begins at `at`.
    #[inline(always)]
    fn ask_along<S: Lanes<T>, const REACH: usize>(&self, s: S, at: usize, done: usize, ahead: &Ahead) {
        let written = ahead.ahead[usize::from(done >= ahead.near)];
        self.ask::<S, REACH>(s, at + done + ahead.next.unwrap_or(written), at + done + written);
    }

    /// The coefficients of a column.
    #[inline(always)]
    fn splats<S: Lanes<T>>(&self, s: S, column: usize) -> [S::Vector; K] {
        let mut k = [s.zero(); K];
        for (k, row) in k.iter_mut().zip(O::ROWS) {
            *k = s.splat(self.coefficients[row][column]);
        }
        k
    }

    /// The first `width` elements of `rows` rows, `stride` elements apart, and the first `rest` of the row behind them.
    ///
    /// Vectors follow the output's lines where the rows are all aligned alike. Rows with nothing between them then begin
    /// and end at its lines, in the middle of the channels; what lies before the first and after the last is done apart.
    /// (A line written in part goes through the caches, next to others that do not: 4 times as slow with 64 channels.)
    ///
    /// # Safety
    /// Inputs and output have the elements; for `PAST`, the stride is a multiple of a line.
    #[inline(always)]
    unsafe fn rows<S: Lanes<T>, const REACH: usize>(
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
            unsafe { self.aligned_rows::<S, REACH>(s, at + row * stride, stride, rows, columns) };
        }
    }

    /// Some columns of `rows` rows, tile by tile.
    ///
    /// # Safety
    /// As of `rows`.
    #[inline(always)]
    unsafe fn aligned_rows<S: Lanes<T>, const REACH: usize>(
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
                let end = (column + self.head(at + column) + TILE_COLUMNS).min(columns.end);
                // SAFETY: says the caller.
                unsafe { self.tile::<S, REACH>(s, at, stride, rows, column..end) };
                column = end;
            }
        }
    }

    /// A tile of [`Map::aligned_rows`].
    ///
    /// # Safety
    /// As there.
    #[inline(always)]
    unsafe fn tile<S: Lanes<T>, const REACH: usize>(
        &self,
        s: S,
        at: usize,
        stride: usize,
        rows: usize,
        columns: Range<usize>,
    ) {
        // Rows that share one load of the coefficients. Fewer where they fall on the same sets of L1, whose ways are of 4 KiB:
        // with 512 channels and more, four are 1.04 to 1.15 times as fast in backward, with 1024 in inference (0.9 with 256).
        // From far fewer, of two inputs two, since memory serves few streams at once; but not one, for which backward's
        // coefficients of many channels come from L2 for every row (two are 1.1 to 1.3 times as fast as one, and 1.2 times
        // as fast as four with 1024 channels).
        let batch_rows = match (REACH, IN) {
            (NEAR, _) if (stride * size_of::<T>()).is_multiple_of(4096 / IN) => 4,
            (NEAR, _) => 8,
            (_, 1) => 4,
            _ => 2,
        };
        let (far, width) = (AHEAD_BYTES / size_of::<T>(), columns.len());
        // Some batches down, or some columns to the right in long rows.
        let ahead = if batch_rows * width > far {
            far / batch_rows
        } else {
            far.div_ceil(batch_rows * width) * batch_rows * stride
        };
        for row in (0..rows).step_by(batch_rows) {
            let batch = row..(row + batch_rows).min(rows);
            let at = at + row * stride;
            let mut column = columns.start;
            if REACH == PAST {
                column = (column + self.head(at + column)).min(columns.end);
                // SAFETY: says the caller.
                unsafe { self.few_rows(s, at, stride, batch.len(), columns.start..column) };
            }
            while column + S::N <= columns.end {
                let k = self.coefficients(s, column);
                for row in 0..batch.len() {
                    let at = at + row * stride + column;
                    self.ask::<S, REACH>(s, at.wrapping_add(ahead), at.wrapping_add(ahead));
                    // SAFETY: the row has N more elements.
                    unsafe { self.vector::<S, REACH>(s, at, k) };
                }
                column += S::N;
            }
            // SAFETY: says the caller.
            unsafe { self.few_rows(s, at, stride, batch.len(), column..columns.end) };
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
        for (k, row) in k.iter_mut().zip(O::ROWS) {
            let row = &self.coefficients[row][column..column + S::N];
            // SAFETY: `row` has N values.
            *k = unsafe { s.load(row.as_ptr()) };
        }
        k
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::simd::{Dispatch, Level};

    /// Planes in pieces that end at multiples of `LANES`, down to a last one of a single position.
    struct InPieces<'a>(Behind<'a, f32, Normalize, 1, 4>, usize);

    impl Kernel<f32> for InPieces<'_> {
        #[inline(always)]
        fn run<S: Lanes<f32>>(self, s: S) {
            let Self(behind, size) = self;
            let Geometry { n, s: len, .. } = *behind.0.geometry;
            for sample in 0..n {
                for start in (0..len).step_by(size) {
                    for channel in 0..behind.0.channels.len() {
                        let mut plane = behind.begin(s, sample, channel, &(start..(start + size).min(len)));
                        for _ in 0..size / LANES {
                            behind.step(s, &mut plane);
                        }
                        behind.finish(s, plane);
                    }
                }
            }
            s.fence();
        }
    }

    #[test]
    fn behind_in_pieces_maps_its_channels_once_and_nothing_else() {
        const CANARY: f32 = 12345.0;
        let coefficients: [Row<f32>; COEFFICIENTS] =
            std::array::from_fn(|row| std::array::from_fn(|column| (row * 7 + column) as f32));
        for (c, s) in [(3, 97), (5, 81), (4, 100), (3, 96), (3, 64), (4, 16), (3, 17)] {
            let geometry = Geometry { n: 2, c, s, pattern: Pattern::Along };
            let x: Vec<f32> = (0..geometry.len()).map(|i| i as f32).collect();
            for (offset, size) in [(0, 16), (1, 16), (5, 32), (11, 48), (15, 48), (16, 96)] {
                for level in Level::available() {
                    let mut y = vec![CANARY; x.len() + 64];
                    let map = Map {
                        geometry: &geometry,
                        inputs: [Input::new(&x)],
                        output: Output::new(&mut y[offset..][..x.len()]),
                        channels: 1..c,
                        column: 0,
                        part: Block { samples: 0..2, positions: 0..s },
                        reach: Reach::Past,
                        asked: Asked::Own,
                        coefficients: &coefficients,
                        formula: PhantomData::<Normalize>,
                    };
                    f32::dispatch(*level, InPieces(Behind(map), size));
                    for (i, y) in y.iter().enumerate() {
                        let expected = match i.checked_sub(offset) {
                            Some(i) if i < x.len() && i / s % c > 0 => {
                                let k = coefficients.each_ref().map(|row| row[i / s % c - 1]);
                                (x[i] - k[0] - k[1]) * k[2] + k[3]
                            }
                            _ => CANARY,
                        };
                        assert_eq!(*y, expected, "{level} {c} {s}, {offset}, {size}: {i}");
                    }
                }
            }
        }
    }
}
