//! Sums over one block of a group of channels: of a term, and of the product of two terms, per channel.
//!
//! Element s of a plane goes to lane s mod 16, in f64; of small planes, to a lane of its own. Lanes beyond the sixteenth
//! are added to the first sixteen, these summed by halves: l and l + 8, then l and l + 4, l + 2, l + 1. Along a plane, a
//! vector takes the lanes of one channel. Elsewhere the lanes of a group's channels are the columns of a matrix, and a
//! vector takes neighbouring columns. Either way one lane of one channel adds up the same numbers in the same order.

pub mod interleave;
mod lanes;
mod matrices;
mod planes;

use std::marker::PhantomData;
use std::ops::Range;

use super::fused::Read;
use super::scratch::Sums;
use super::terms::{About, Terms};
use crate::ground::geometry::{Block, Geometry, Pattern, Run};
use crate::ground::sizes::LANES;
use crate::ground::slices::Input;
use crate::simd::{Kernel, Lanes, prefetch};
use interleave::Interleave;
use lanes::{sum_lanes_of_planes, sum_lanes_of_rows};

/// Which piece of a block's sums is taken at once. Its elements may be given piece by piece, channel by channel or in the
/// order of lanes: samples, and where planes are not small sixteens of positions.
#[derive(Debug, Clone, Copy)]
pub struct Piece {
    /// The first channel's place among the sums; 0 where vectors take several channels.
    pub column: usize,
    /// Whether there are no sums yet.
    pub first: bool,
    /// Whether the sums are complete with it, and are summed over lanes.
    pub last: bool,
    /// How many lanes the block has.
    pub lanes: usize,
    /// Where its totals begin.
    pub totals: usize,
}

impl Piece {
    /// All of the block.
    pub fn whole(geometry: &Geometry, block: &Block) -> Self {
        let lanes = geometry.lanes().min(block.positions.len());
        Self { column: 0, first: true, last: true, lanes, totals: 0 }
    }
}

/// The sums of each block of a run, to `sums.totals`.
pub struct Reduce<'a, T, O, R, M, const IN: usize> {
    pub geometry: &'a Geometry,
    pub inputs: [Input<'a, T>; IN],
    pub channels: Range<usize>,
    pub run: Run,
    /// That at hand.
    pub block: Block,
    pub piece: Piece,
    pub sums: &'a mut Sums,
    /// What is summed of the inputs.
    pub read: R,
    pub interleave: M,
    pub terms: PhantomData<O>,
}

impl<T: Copy, O: Terms<IN>, R: Read<T, IN>, M: Interleave<T>, const IN: usize> Kernel<T>
    for Reduce<'_, T, O, R, M, IN>
{
    const INTERLEAVES: bool = M::ANY;
    const OF_HALVES: bool = O::OF_HALVES && !M::ANY;

    #[inline(always)]
    fn run<S: Lanes<T>>(mut self, s: S) {
        for index in 0..self.run.count {
            if index > 0 {
                let (block, place) = self.run.block_and_place(index);
                (self.block, self.piece.totals) = (block, place * self.channels.len());
            }
            self.sum_block(s);
        }
    }
}

impl<T: Copy, O: Terms<IN>, R: Read<T, IN>, M: Interleave<T>, const IN: usize> Reduce<'_, T, O, R, M, IN> {
    #[inline(always)]
    fn sum_block<S: Lanes<T>>(&mut self, s: S) {
        debug_assert!(self.inputs.iter().all(|input| input.len() == self.geometry.len()));
        let along = self.geometry.pattern == Pattern::Along && !self.geometry.small_planes();
        debug_assert!(along || !M::ANY);
        // SAFETY: the inputs have the geometry's length, and channels and block lie within it. Software pipelining is of planes that are
        // not small, says its policy.
        unsafe {
            if M::ANY || along {
                self.along(s);
                if O::PAIRS && self.piece.last {
                    self.sum_lanes_of_pairs(LANES);
                }
                return;
            }
            self.matrices(s);
        }
        if !self.piece.last {
            return;
        }
        let Piece { lanes, totals: first, .. } = self.piece;
        if O::PAIRS {
            return self.sum_lanes_of_pairs(lanes);
        }
        let Sums { lanes: columns, totals, .. } = self.sums;
        for ((columns, sums), scale) in columns.iter_mut().zip(totals).zip(Self::unscale::<S>()) {
            let sums = &mut sums[first..][..self.channels.len()];
            match self.geometry.pattern {
                Pattern::Along => sum_lanes_of_planes(s, columns, lanes, sums),
                Pattern::Across => sum_lanes_of_rows(columns, lanes, sums),
            }
            sums.iter_mut().for_each(|sum| *sum *= scale);
        }
    }
}

/// What a vector of columns is about, and what reading it takes.
type Column<T, R, S, const IN: usize> =
    (About<<S as Lanes<T>>::Wide>, <R as Read<T, IN>>::Coefficients<<S as Lanes<T>>::Vector>);

/// `U` neighbouring vectors going down `rows` rows together.
struct Sweep<const IN: usize, T> {
    /// The first vector's first row in each input.
    from: [*const T; IN],
    /// Elements from one vector to the next.
    apart: usize,
    /// Elements from one row to the next.
    stride: usize,
    rows: usize,
    /// Elements from what is read to what is prefetched.
    ahead: usize,
}

/// How far ahead in the order of reading to prefetch, in bytes: what a core reads while a miss of caches and TLB takes.
const AHEAD_BYTES: usize = 8192;

impl<T: Copy, O: Terms<IN>, R: Read<T, IN>, M: Interleave<T>, const IN: usize> Reduce<'_, T, O, R, M, IN> {
    /// That in elements.
    const AHEAD: usize = AHEAD_BYTES / size_of::<T>();

    /// The same along planes: of pairs twice as far, since their arithmetic keeps what is read next waiting.
    const AHEAD_ALONG: usize = Self::AHEAD * if O::PAIRS { 2 } else { 1 };

    /// Adds whole vectors into their sums.
    ///
    /// # Safety
    /// All that the sweep touches can be read.
    #[inline(always)]
    unsafe fn sweep<S: Lanes<T>, N: Interleave<T>, const U: usize>(
        s: S,
        sweep: &Sweep<IN, T>,
        read: &R,
        about: [Column<T, R, S, IN>; U],
        sums: &mut [O::Sums<S::Wide>; U],
        (interleave, plane): (&N, &mut N::Plane<S>),
    ) {
        for row in 0..sweep.rows {
            interleave.step(s, plane);
            for u in 0..U {
                let at = row * sweep.stride + u * sweep.apart;
                let mut from = sweep.from;
                for from in &mut from {
                    *from = from.wrapping_add(at);
                    prefetch::<false, T, S>(s, from.wrapping_add(sweep.ahead));
                }
                // SAFETY: says the caller.
                let x = unsafe { read.read(s, from, about[u].1) };
                sums[u] = O::add(s, sums[u], x, about[u].0);
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
        read: &R,
        (mut about, k): Column<T, R, S, IN>,
        sums: &mut O::Sums<S::Wide>,
    ) {
        // SAFETY: says the caller.
        let x = unsafe { read.read_first(s, from, count, k) };
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

    /// What to multiply the sums by in the end.
    #[inline(always)]
    fn unscale<S: Lanes<T>>() -> [f64; 2] {
        O::POWERS.map(|power| {
            if power == 0 { 1.0 } else { 1.0 / if power == 1 { S::SCALE } else { S::SCALE * S::SCALE } }
        })
    }

    /// What terms are about that are about nothing.
    #[inline(always)]
    fn about_nothing<S: Lanes<T>>(&self, s: S) -> About<S::Wide> {
        let one = if O::BY_ONE { s.splat_wide(self.sums.one) } else { s.zero_wide() };
        About { center: s.zero_wide(), unit: one, one }
    }

    /// What the vector of columns from `column` on is about, and what reading it takes.
    #[inline(always)]
    fn about<S: Lanes<T>>(&self, s: S, column: usize) -> Column<T, R, S, IN> {
        let mut about = self.about_nothing(s);
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
        (about, self.read.coefficients(s, column))
    }
}
