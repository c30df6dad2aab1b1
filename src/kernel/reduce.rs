//! Sums over one block of a group of channels: of a term, and of the product of two terms, per channel.
//!
//! Element s of a plane goes to lane s mod 16, in f64; of small planes, to a lane of its own. Lanes beyond the sixteenth
//! are added to the first sixteen, these summed by halves: l and l + 8, then l and l + 4, l + 2, l + 1. Along a plane, a
//! vector takes the lanes of one channel. Elsewhere the lanes of a group's channels are the columns of a matrix, and a
//! vector takes neighbouring columns. Either way one lane of one channel adds up the same numbers in the same order.

use std::hint::black_box;
use std::marker::PhantomData;
use std::ops::Range;

use super::columns::Columns;
use super::scratch::Sums;
use super::terms::{About, Terms};
use crate::ground::double::Double;
use crate::ground::geometry::{Block, Geometry, Pattern};
use crate::ground::sizes::LANES;
use crate::ground::slices::Input;
use crate::simd::{Kernel, Lanes, prefetch};

/// What else is done while planes are summed: with the vectors of one other plane for each.
pub trait Interleave<T> {
    /// Whether there is anything to do.
    const ANY: bool;
    /// Where that is, in a plane.
    type Plane<S: Lanes<T>>;

    /// Begins with these positions of the plane that has this place among the other ones.
    fn begin<S: Lanes<T>>(
        &self,
        s: S,
        sample: usize,
        channel: usize,
        positions: &Range<usize>,
    ) -> Self::Plane<S>;
    /// Does the next vector, if there is one.
    fn step<S: Lanes<T>>(&self, s: S, plane: &mut Self::Plane<S>);
    /// Does what is left.
    fn finish<S: Lanes<T>>(&self, s: S, plane: Self::Plane<S>);
}

/// Nothing else.
pub struct NoInterleave;

impl<T> Interleave<T> for NoInterleave {
    const ANY: bool = false;
    type Plane<S: Lanes<T>> = ();

    #[inline(always)]
    fn begin<S: Lanes<T>>(&self, _: S, _: usize, _: usize, _: &Range<usize>) {}
    #[inline(always)]
    fn step<S: Lanes<T>>(&self, _: S, (): &mut ()) {}
    #[inline(always)]
    fn finish<S: Lanes<T>>(&self, _: S, (): ()) {}
}

/// The sums of one block, to `sums.totals`.
pub struct Reduce<'a, T, O, M, const IN: usize> {
    pub geometry: &'a Geometry,
    pub inputs: [Input<'a, T>; IN],
    pub channels: Range<usize>,
    pub block: Block,
    pub sums: &'a mut Sums,
    pub interleave: M,
    pub terms: PhantomData<O>,
}

impl<T: Copy, O: Terms<IN>, M: Interleave<T>, const IN: usize> Kernel<T> for Reduce<'_, T, O, M, IN> {
    #[inline(always)]
    fn run<S: Lanes<T>>(mut self, s: S) {
        debug_assert!(self.inputs.iter().all(|input| input.len() == self.geometry.len()));
        // SAFETY: the inputs have the geometry's length, and channels and block lie within it.
        unsafe {
            if self.geometry.pattern == Pattern::Along && !self.geometry.small_planes() {
                self.along(s);
                if O::PAIRS {
                    self.sum_lanes_of_pairs(LANES);
                }
                return;
            }
            self.matrices(s);
        }
        let lanes = self.geometry.lanes().min(self.block.positions.len());
        if O::PAIRS {
            return self.sum_lanes_of_pairs(lanes);
        }
        let Sums { lanes: columns, totals, .. } = self.sums;
        for ((columns, sums), scale) in columns.iter_mut().zip(totals).zip(Self::unscale::<S>()) {
            let sums = &mut sums[..self.channels.len()];
            match self.geometry.pattern {
                Pattern::Along => sum_lanes_of_planes(s, columns, lanes, sums),
                Pattern::Across => sum_lanes_of_rows(columns, lanes, sums),
            }
            sums.iter_mut().for_each(|sum| *sum *= scale);
        }
    }
}

/// Lanes in neighbouring columns: `columns[channel * lanes + lane]`. By vectors: lanes one by one, or what the compiler
/// makes of loops over them, took a third of the time of 7x7 planes.
#[inline(always)]
fn sum_lanes_of_planes<T, S: Lanes<T>>(s: S, columns: &[f64], lanes: usize, sums: &mut [f64]) {
    if lanes <= 4 {
        for (channel, sum) in sums.iter_mut().enumerate() {
            let of = |lane: usize| if lane < lanes { columns[channel * lanes + lane] } else { 0.0 };
            *sum = (of(0) + of(2)) + (of(1) + of(3));
        }
        return;
    }
    for (channel, sum) in sums.iter_mut().enumerate() {
        let mut first = [s.zero_wide(); 2];
        for at in (0..lanes).step_by(LANES) {
            let sixteen = &columns[channel * lanes + at..][..LANES];
            for (part, first) in first.iter_mut().enumerate().take(LANES / S::N) {
                // SAFETY: the part has N values.
                let more = unsafe { s.load_wide(sixteen[part * S::N..][..S::N].as_ptr()) };
                // The others are the next channel's. A sum that began with 0 is not -0, so that 0 more changes nothing.
                let count = (lanes - at).saturating_sub(part * S::N).min(S::N);
                let more = if count < S::N { s.keep_first(more, count) } else { more };
                *first = s.add_wide(*first, more);
            }
        }
        *sum = s.sum_lanes(first);
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

/// The same of pairs.
#[inline(always)]
fn sum_lanes_of_plane_pairs([columns, low_columns]: [&[f64]; 2], lanes: usize, totals: [&mut [f64]; 2]) {
    let [totals, low_totals] = totals;
    for (channel, (total, low_total)) in totals.iter_mut().zip(low_totals).enumerate() {
        let (mut first, mut low_first) = ([0.0; LANES], [0.0; LANES]);
        for at in (0..lanes).step_by(LANES) {
            let from = channel * lanes + at;
            let (sixteen, low_sixteen) = (&columns[from..][..LANES], &low_columns[from..][..LANES]);
            // The others are the next channel's.
            let count = (lanes - at).min(LANES);
            for lane in 0..LANES {
                let keep = |value| if lane < count { value } else { 0.0 };
                let sum = Double::sum(first[lane], keep(sixteen[lane]));
                (first[lane], low_first[lane]) =
                    (sum.high, low_first[lane] + keep(low_sixteen[lane]) + sum.low);
            }
        }
        for half in [8, 4, 2, 1] {
            for lane in 0..half {
                let sum = Double::sum(first[lane], first[lane + half]);
                (first[lane], low_first[lane]) =
                    (sum.high, (low_first[lane] + low_first[lane + half]) + sum.low);
            }
        }
        (*total, *low_total) = (first[0], low_first[0]);
    }
}

/// The same of pairs.
#[inline(always)]
fn sum_lanes_of_row_pairs(columns: [&mut [f64]; 2], lanes: usize, totals: [&mut [f64]; 2]) {
    let channels = totals[0].len();
    let [columns, low_columns] = columns.map(|columns| &mut columns[..lanes * channels]);
    let (first, more) = columns.split_at_mut(lanes.min(LANES) * channels);
    let (low_first, low_more) = low_columns.split_at_mut(lanes.min(LANES) * channels);
    for (more, low_more) in more.chunks(first.len()).zip(low_more.chunks(first.len())) {
        add_pairs((first, low_first), (more, low_more));
    }
    for half in [8, 4, 2, 1] {
        let half = (half * channels).min(first.len());
        let (low, high) = first.split_at_mut(half);
        let (low_low, low_high) = low_first.split_at_mut(half);
        add_pairs((low, low_low), (high, low_high));
    }
    totals[0].copy_from_slice(&first[..channels]);
    totals[1].copy_from_slice(&low_first[..channels]);
}

/// Adds pairs to others.
#[inline(always)]
fn add_pairs(to: (&mut [f64], &mut [f64]), from: (&[f64], &[f64])) {
    for ((to, low_to), (from, low_from)) in to.0.iter_mut().zip(to.1).zip(from.0.iter().zip(from.1)) {
        let sum = Double::sum(*to, *from);
        (*to, *low_to) = (sum.high, (*low_to + *low_from) + sum.low);
    }
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

/// Of one sample's planes of a group, the later ones to ask for.
struct Later {
    /// Channels to go on, modulo those of the group.
    channels: usize,
    /// Where the first channel's plane is, for channels from which that ends in the group and for others.
    starts: [usize; 2],
}

impl Later {
    #[inline(always)]
    fn plane(&self, channel: usize, channels: usize, plane: usize) -> usize {
        let channel = channel + self.channels;
        if channel < channels {
            self.starts[0] + channel * plane
        } else {
            self.starts[1] + (channel - channels) * plane
        }
    }
}

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

    /// `rows` rows of a plane in NHWC, of a `batch` if there are so many: each lane's are a matrix; or the sixteens of rows
    /// are one, the rest another.
    #[inline(always)]
    fn of_rows(
        geometry: &Geometry,
        channels: &Range<usize>,
        (rows, batch): (usize, usize),
        part: usize,
        (first, far): (bool, usize),
    ) -> Self {
        let c = geometry.c;
        let (full, rest) = (rows / LANES, rows % LANES);
        let ahead = far.next_multiple_of(batch * c);
        let (stride, width) = (LANES * c, LANES * c);
        let whole = Self { skip: 0, stride, rows: full, column: 0, width, first, ahead, ahead_last: ahead };
        match Columns::of_sums(geometry, channels) {
            Columns::CHANNELS => {
                let (rows, width) = (full + usize::from(part < rest), channels.len());
                // Some lanes down, or the first lanes of the next batch.
                let down = (far / (batch / LANES * width)).clamp(1, LANES);
                let ahead = if part + down < LANES { down } else { down + batch - LANES } * c;
                Self { skip: part * c, rows, column: part * width, width, ahead, ahead_last: ahead, ..whole }
            }
            _ if part == 0 => Self { width: if full > 0 { whole.width } else { 0 }, ..whole },
            _ => {
                Self { skip: full * LANES * c, rows: 1, width: rest * c, first: first && full == 0, ..whole }
            }
        }
    }
}

/// How far ahead in the order of reading to prefetch: 200 ns at the 40 GB/s that a core gets, enough for a miss of
/// caches and TLB at a jump to another sample. Half or twice of it lose 5 to 20 %; none, 30 to 60 % (beyond L2).
const AHEAD_BYTES: usize = 8192;

impl<T: Copy, O: Terms<IN>, M: Interleave<T>, const IN: usize> Reduce<'_, T, O, M, IN> {
    /// That in elements.
    const AHEAD: usize = AHEAD_BYTES / size_of::<T>();

    /// The same along planes: of pairs twice as far, since their arithmetic keeps what is read next waiting (two inputs: 1.05 to
    /// 1.07 times as fast).
    const AHEAD_ALONG: usize = Self::AHEAD * if O::PAIRS { 2 } else { 1 };

    /// The same where the rows of small planes are read: 1.1 times as fast with two inputs as twice of it (NHWC 7 x 7).
    const AHEAD_ROWS: usize = Self::AHEAD / IN;

    /// How many sixteens of a plane's rows make a batch: enough to make up for loading and storing the sums, and few enough
    /// for what is asked for ahead to stay in L1, whose sets rows a power of two apart compete for (4 of two inputs are 1.08
    /// times as fast as 8, of one 0.9 times).
    const SIXTEENS: usize = 8 / IN;

    /// How many samples of small planes make a batch, as of `SIXTEENS`, and how far ahead to ask.
    ///
    /// In NCHW for a quarter of what would do alone: all of a batch's lines are asked for at once (7 x 7, 8 x 8, 5 x 5: 1.02 to
    /// 1.1 times as fast as for all of it). In NHWC, samples that are whole pages apart share a set of L1, whose 12 ways hold the
    /// batch's lines and few more, so that only the next position's are asked for (1024 and 2048 channels of 7 x 7: 1.15 to 1.28
    /// times as fast as twice as far, with two inputs as twice as many); half pages apart they share two (512 channels, one input:
    /// 1.15 times as fast as half as many), quarters apart four (768 and 1280 channels, two inputs: 1.1 to 1.19 times as fast as
    /// twice as many).
    /// Of single positions so few that the next batch, which is asked for, is not much further than `AHEAD_ROWS` (4096x512, two
    /// inputs: 4 are 1.2 to 1.3 times as fast as 8).
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

    /// Adds whole vectors into their sums.
    ///
    /// # Safety
    /// All that the sweep touches can be read.
    #[inline(always)]
    unsafe fn sweep<S: Lanes<T>, N: Interleave<T>, const U: usize>(
        s: S,
        sweep: &Sweep<IN, T>,
        about: [About<S::Wide>; U],
        sums: &mut [O::Sums<S::Wide>; U],
        (interleave, plane): (&N, &mut N::Plane<S>),
    ) {
        for row in 0..sweep.rows {
            interleave.step(s, plane);
            for u in 0..U {
                let mut x = [s.zero_wide(); IN];
                for (x, from) in x.iter_mut().zip(sweep.from) {
                    let at = row * sweep.stride + u * sweep.apart;
                    prefetch::<false, T, S>(s, from.wrapping_add(at.wrapping_add(sweep.ahead)));
                    // SAFETY: says the caller.
                    *x = s.widen(unsafe { s.load(from.add(at)) });
                }
                sums[u] = O::add(s, sums[u], x, about[u]);
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
        mut about: About<S::Wide>,
        sums: &mut O::Sums<S::Wide>,
    ) {
        let mut x = [s.zero_wide(); IN];
        for (x, from) in x.iter_mut().zip(from) {
            // SAFETY: says the caller.
            *x = s.widen(unsafe { s.load_first(from, count) });
        }
        // Lanes beyond add zeros: x is zero there, and so must be what it is about. (A sum that began with 0 is not -0.)
        if O::CENTERED {
            about.center = s.keep_first(about.center, count);
        }
        *sums = O::add(s, *sums, x, about);
    }

    /// The sums at `column` so far, or zero at a block's start.
    #[inline(always)]
    fn sums<S: Lanes<T>>(&self, s: S, column: usize, first: bool) -> O::Sums<S::Wide> {
        let mut sums = O::sums(s.zero_wide());
        if !first {
            for (sum, lanes) in sums.as_mut().iter_mut().zip(&self.sums.lanes) {
                let lanes = &lanes[column..column + S::N];
                // SAFETY: the slice has N values.
                *sum = unsafe { s.load_wide(lanes.as_ptr()) };
            }
        }
        sums
    }

    #[inline(always)]
    fn put<S: Lanes<T>>(&mut self, s: S, column: usize, sums: O::Sums<S::Wide>) {
        for (sum, lanes) in sums.as_ref().iter().zip(&mut self.sums.lanes) {
            let lanes = &mut lanes[column..column + S::N];
            // SAFETY: the slice has N values.
            unsafe { s.store_wide(lanes.as_mut_ptr(), *sum) };
        }
    }

    /// The sums of pairs over lanes, to the totals.
    #[inline(always)]
    fn sum_lanes_of_pairs(&mut self, lanes: usize) {
        let channels = self.channels.len();
        let Sums { lanes: [a, a_low, b, b_low], totals: [sum, sum_low, other, other_low], .. } = self.sums;
        for (columns, totals) in [([a, a_low], [sum, sum_low]), ([b, b_low], [other, other_low])] {
            let totals = totals.map(|totals| &mut totals[..channels]);
            match self.geometry.pattern {
                Pattern::Along => {
                    sum_lanes_of_plane_pairs(columns.map(|columns| &columns[..]), lanes, totals)
                }
                Pattern::Across => {
                    sum_lanes_of_row_pairs(columns.map(|columns| &mut columns[..]), lanes, totals)
                }
            }
        }
    }

    /// What to multiply the sums by in the end.
    #[inline(always)]
    fn unscale<S: Lanes<T>>() -> [f64; 2] {
        O::POWERS.map(|power| {
            if power == 0 { 1.0 } else { 1.0 / if power == 1 { S::SCALE } else { S::SCALE * S::SCALE } }
        })
    }

    /// The planes of a sample's channels follow each other, so samples go outside and sums wait in memory.
    ///
    /// # Safety
    /// Channels and block lie within the geometry, whose length the inputs have.
    #[inline(always)]
    unsafe fn along<S: Lanes<T>>(&mut self, s: S) {
        let channels = self.channels.len();
        // Two inputs have additions enough in one channel, and planes enough to be read at once; so has what else is done.
        let step = if IN == 1 && !M::ANY { S::STREAMS } else { 1 };
        for sample in self.block.samples.clone() {
            let later = self.later(sample, step);
            let mut channel = 0;
            // SAFETY: the channels lie within the group.
            unsafe {
                while step == 2 && channel + 2 <= channels {
                    self.planes::<S, 2>(s, sample, channel, &later);
                    channel += 2;
                }
                while channel < channels {
                    self.planes::<S, 1>(s, sample, channel, &later);
                    channel += 1;
                }
            }
        }
    }

    /// Where the planes, or the segments of them, are that are read so much later than one sample's that it takes about as
    /// long as what is asked for does to come.
    #[inline(always)]
    fn later(&self, sample: usize, step: usize) -> Later {
        let (Geometry { n, s: plane, .. }, positions) = (*self.geometry, &self.block.positions);
        let channels = self.channels.len();
        let planes = Self::AHEAD_ALONG.div_ceil(positions.len()).next_multiple_of(step);
        let round = |rounds: usize| {
            // A plane is followed by the next sample's, a segment by the plane's next, all by the next group's.
            let (samples, position) = if positions.len() == plane {
                (rounds, 0)
            } else {
                let position = positions.start + rounds * positions.len();
                (position / plane, position % plane)
            };
            if sample + samples < n {
                self.geometry.offset(sample + samples, self.channels.start, position)
            } else {
                self.geometry.offset(0, self.channels.end, 0)
            }
        };
        let rounds = planes / channels;
        Later { channels: planes % channels, starts: [round(rounds), round(rounds + 1)] }
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
        later: &Later,
    ) {
        let Block { samples, positions } = &self.block;
        let plane = self.geometry.s;
        let first = sample == samples.start;
        let last = sample + 1 == samples.end;
        let at = self.geometry.offset(sample, self.channels.start + channel, positions.start);
        let len = positions.len();
        // Within the planes if they are long, to the later ones at their end.
        let ahead = Self::AHEAD_ALONG / U;
        let near = len.saturating_sub(ahead) / LANES;
        let beyond = later.plane(channel, self.channels.len(), plane).wrapping_sub(at + near * LANES);
        let mut about = [Self::about_nothing(s); U];
        for (u, about) in about.iter_mut().enumerate() {
            if O::CENTERED {
                about.center = s.splat_wide(-S::SCALE * self.sums.centers[channel + u]);
            }
            if O::SCALED {
                about.unit = s.splat_wide(self.sums.units[channel + u]);
            }
        }
        let mut other = self.interleave.begin(s, sample, channel, positions);
        // Of the last sample; the sixteen lanes are one vector, or two.
        let mut totals = [[O::sums(s.zero_wide()); U]; 2];
        for (part, totals) in totals.iter_mut().enumerate().take(LANES / S::N) {
            let lane = part * S::N;
            let column = |u| (channel + u) * LANES + lane;
            let mut sums = [O::sums(s.zero_wide()); U];
            for (u, sums) in sums.iter_mut().enumerate() {
                *sums = self.sums(s, column(u), first);
            }
            let rows = (len + LANES - S::N).saturating_sub(lane) / LANES;
            // SAFETY: row r reads the N elements from lane + 16 * r, the last of which end within `len`.
            unsafe {
                let from = self.inputs.map(|x| x.as_ptr().add(at).wrapping_add(lane));
                let near = near.min(rows);
                let sweep = Sweep { from, apart: plane, stride: LANES, rows: near, ahead };
                Self::sweep::<S, M, U>(s, &sweep, about, &mut sums, (&self.interleave, &mut other));
                let from = from.map(|x| x.wrapping_add(near * LANES));
                let sweep = Sweep { from, rows: rows - near, ahead: beyond, ..sweep };
                Self::sweep::<S, M, U>(s, &sweep, about, &mut sums, (&self.interleave, &mut other));
            }
            let done = lane + rows * LANES;
            if done < len {
                for (u, sums) in sums.iter_mut().enumerate() {
                    // SAFETY: len - done elements are left of the plane, fewer than N.
                    unsafe {
                        let from = self.inputs.map(|x| x.as_ptr().add(at + u * plane + done));
                        Self::tail::<S>(s, from, len - done, about[u], sums);
                    }
                }
            }
            if last && !O::PAIRS {
                *totals = sums;
                continue;
            }
            for (u, sums) in sums.into_iter().enumerate() {
                self.put(s, column(u), sums);
            }
        }
        self.interleave.finish(s, other);
        if last && !O::PAIRS {
            let [low, high] = totals;
            for (u, (low, high)) in low.into_iter().zip(high).enumerate() {
                let (low, high) = (low.as_ref(), high.as_ref());
                for (i, scale) in Self::unscale::<S>().into_iter().enumerate() {
                    self.sums.totals[i][channel + u] = s.sum_lanes([low[i], high[i]]) * scale;
                }
            }
        }
    }

    /// The lanes of the group's channels as columns of matrices, one below the other.
    ///
    /// # Safety
    /// Channels and block lie within the geometry, whose length the inputs have.
    #[inline(always)]
    unsafe fn matrices<S: Lanes<T>>(&mut self, s: S) {
        let Block { samples, positions } = self.block.clone();
        let geometry = self.geometry;
        let small = geometry.small_planes();
        let columns = Columns::of_sums(geometry, &self.channels);
        let (planes, step, far) = if small {
            let (samples, far) = Self::batch(geometry, columns);
            (samples, positions.len(), far)
        } else {
            (1, Self::SIXTEENS * LANES, Self::AHEAD)
        };
        for sample in samples.clone().step_by(planes) {
            let planes = (samples.end - sample).min(planes);
            for row in positions.clone().step_by(step) {
                let start = (sample == samples.start && row == positions.start, far);
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
        let Matrix { width, rows, stride, .. } = *matrix;
        let at = at + matrix.skip;
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
        }
        if done < width && rows > 0 {
            let mut sums = self.sums(s, matrix.column + done, matrix.first);
            let about = self.about(s, done);
            for row in 0..rows {
                // SAFETY: the row has width - done more columns, fewer than N.
                unsafe {
                    let from = self.inputs.map(|x| x.as_ptr().add(at + done + row * stride));
                    Self::tail::<S>(s, from, width - done, about, &mut sums);
                }
            }
            self.put(s, matrix.column + done, sums);
        }
    }

    /// `U` vectors of columns from the matrix's column `done` on, in step.
    ///
    /// # Safety
    /// The inputs have all these elements.
    #[inline(always)]
    unsafe fn strip<S: Lanes<T>, const U: usize>(&mut self, s: S, at: usize, matrix: &Matrix, done: usize) {
        let Matrix { stride, rows, column, width, first, ahead, ahead_last, .. } = *matrix;
        let ahead = if done + ahead < width { ahead } else { ahead_last };
        let mut sums = [O::sums(s.zero_wide()); U];
        let mut about = [Self::about_nothing(s); U];
        for u in 0..U {
            sums[u] = self.sums(s, column + done + u * S::N, first);
            about[u] = self.about(s, done + u * S::N);
        }
        // SAFETY: says the caller.
        unsafe {
            let from = self.inputs.map(|x| x.as_ptr().add(at + done));
            let sweep = Sweep { from, apart: S::N, stride, rows, ahead };
            Self::sweep::<S, NoInterleave, U>(s, &sweep, about, &mut sums, (&NoInterleave, &mut ()));
        }
        for (u, sums) in sums.into_iter().enumerate() {
            self.put(s, column + done + u * S::N, sums);
        }
    }

    /// What terms are about that are about nothing.
    #[inline(always)]
    fn about_nothing<S: Lanes<T>>(s: S) -> About<S::Wide> {
        let one = if O::PAIRS { s.splat_wide(black_box(1.0)) } else { s.zero_wide() };
        About { center: s.zero_wide(), unit: one, one }
    }

    /// What the vector of columns from `column` on is about.
    #[inline(always)]
    fn about<S: Lanes<T>>(&self, s: S, column: usize) -> About<S::Wide> {
        let mut about = Self::about_nothing(s);
        if O::CENTERED {
            let centers = &self.sums.centers[column..column + S::N];
            // SAFETY: `centers` has N values.
            let centers = unsafe { s.load_wide(centers.as_ptr()) };
            about.center = s.add_product(s.zero_wide(), centers, s.splat_wide(-S::SCALE));
        }
        if O::SCALED {
            let units = &self.sums.units[column..column + S::N];
            // SAFETY: `units` has N values.
            about.unit = unsafe { s.load_wide(units.as_ptr()) };
        }
        about
    }
}
