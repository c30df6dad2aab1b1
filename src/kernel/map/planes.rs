//! Maps planes (NCHW): a run of them at a time, vectors at the output's lines, across the borders between planes.

use std::ops::Range;

use super::formulas::Formula;
use super::ragged::RaggedPlanes;
use super::{AHEAD_BYTES, Map, Prefetch};
use crate::ground::geometry::{Block, Geometry};
use crate::ground::sizes::LANES;
use crate::kernel::fused::Fused;
use crate::kernel::scratch::splat_rows;
use crate::simd::Lanes;

/// What is left of a plane: from `done` to `end`, both from where its sample's run begins.
pub struct Plane<V, const K: usize> {
    pub run: usize,
    /// Planes of the run from this one on.
    pub planes: usize,
    pub channel: usize,
    pub done: usize,
    pub end: usize,
    pub k: [V; K],
}

/// What to prefetch along a run.
pub struct Ahead {
    /// Elements up to here prefetch the first of `ahead` further on, the others the second.
    near: usize,
    ahead: [usize; 2],
    /// How far on to prefetch inputs instead, if not this task's.
    next: Option<usize>,
}

impl<T: Copy, O: Formula<IN, K>, E: Fused<T, O, IN, K>, const IN: usize, const K: usize>
    Map<'_, T, O, E, IN, K>
{
    /// Maps a part plane by plane.
    ///
    /// # Safety
    /// As of `part`.
    #[inline(always)]
    pub unsafe fn planes_of_part<S: Lanes<T>, const NON_TEMPORAL: bool, const PREFETCH: bool>(&self, s: S) {
        let Geometry { c, s: plane, .. } = *self.geometry;
        let Block { samples, positions } = &self.part;
        let width = self.channels.len();
        let at = |sample| self.geometry.offset(sample, self.channels.start, positions.start);
        // The run of a sample's channels is contiguous. After it the next sample's is read, or one of those
        // after that: what lies pipelined it is another task's, and prefetching that to write it would take it away.
        let len = positions.len();
        let run = width * len;
        let (runs, rest) = (AHEAD_BYTES / size_of::<T>() / run, AHEAD_BYTES / size_of::<T>() % run);
        let near = runs * c * plane + rest;
        let next = match self.access.prefetch {
            Prefetch::NextTask => Some(width * plane),
            _ => None,
        };
        // All channels' runs are one.
        let (samples, planes, ahead) = if run == c * plane {
            let ahead = [AHEAD_BYTES / size_of::<T>(); 2];
            let one = samples.start..samples.start + 1;
            (one, samples.len() * width, Ahead { near: 0, ahead, next: None })
        } else {
            let ahead = [near, near + c * plane - run];
            (samples.clone(), width, Ahead { near: run - rest, ahead, next })
        };
        for sample in samples {
            // SAFETY: says the caller.
            unsafe { self.planes::<S, NON_TEMPORAL, PREFETCH>(s, at(sample), len, planes, &ahead) };
        }
    }

    /// So many planes, `len` elements each, one pipelined the other: of a sample's channels, or of samples of all channels.
    ///
    /// # Safety
    /// Inputs and output have the elements.
    #[inline(always)]
    pub unsafe fn planes<S: Lanes<T>, const NON_TEMPORAL: bool, const PREFETCH: bool>(
        &self,
        s: S,
        at: usize,
        len: usize,
        planes: usize,
        ahead: &Ahead,
    ) {
        // SAFETY: the run has `planes * len` elements from `at` on.
        unsafe {
            if len < LANES {
                s.apart(RaggedPlanes { map: self, at, len, planes, channel: 0 });
                return;
            }
            let mut plane = self.begin(s, at, 0, planes, &(0..len), self.splats(s, self.column));
            for _ in 0..planes {
                while plane.done + S::N <= plane.end {
                    self.prefetch_along::<S, NON_TEMPORAL, PREFETCH>(s, at, plane.done, ahead);
                    self.vector::<S, NON_TEMPORAL>(s, at + plane.done, plane.k);
                    plane.done += S::N;
                }
                if plane.done < plane.end {
                    self.prefetch_along::<S, NON_TEMPORAL, PREFETCH>(s, at, plane.done, ahead);
                }
                self.finish::<S, NON_TEMPORAL>(s, &mut plane);
            }
        }
    }

    /// Begins with some of a plane's positions, whole [`LANES`] but for its last, in the run of the part that begins at offset
    /// `run`. Vectors follow the output's lines: what lies before a run's first line is done here.
    ///
    /// # Safety
    /// Inputs and output have the run, whose planes have [`LANES`] elements at least.
    #[inline(always)]
    pub unsafe fn begin<S: Lanes<T>>(
        &self,
        s: S,
        run: usize,
        channel: usize,
        planes: usize,
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
            s.apart(RaggedPlanes { map: self, at: run, len: head, planes: 1, channel });
        }
        let done = vector_at(start + positions.start);
        let end = vector_at(start + positions.end).min(start + len);
        Plane { run, planes, channel, done, end, k }
    }

    /// The end of a plane, less than a vector, with what of the next one shares a vector with it. Goes on to that.
    ///
    /// # Safety
    /// As of `begin`.
    #[inline(always)]
    pub unsafe fn finish<S: Lanes<T>, const NON_TEMPORAL: bool>(
        &self,
        s: S,
        plane: &mut Plane<S::Vector, K>,
    ) {
        let at = plane.run + plane.done;
        let left = plane.end.saturating_sub(plane.done);
        plane.planes -= 1;
        // SAFETY: says the caller; behind a run's last plane there may be no more.
        unsafe {
            if plane.planes == 0 {
                let channel = plane.channel;
                s.apart(RaggedPlanes { map: self, at, len: left, planes: 1, channel });
                return;
            }
            plane.channel += 1;
            if plane.channel == self.channels.len() {
                plane.channel = 0;
            }
            let next = self.splats(s, self.column + plane.channel);
            if left > 0 {
                for (k, next) in plane.k.iter_mut().zip(next) {
                    *k = s.select_first(*k, next, left);
                }
                self.vector::<S, NON_TEMPORAL>(s, at, plane.k);
                plane.done += S::N;
            }
            plane.end += self.part.positions.len();
            plane.k = next;
        }
    }

    /// As `prefetch_at`, `done` elements into the run that begins at `at`.
    #[inline(always)]
    fn prefetch_along<S: Lanes<T>, const NON_TEMPORAL: bool, const PREFETCH: bool>(
        &self,
        s: S,
        at: usize,
        done: usize,
        ahead: &Ahead,
    ) {
        let written = ahead.ahead[usize::from(done >= ahead.near)];
        self.prefetch_at::<S, NON_TEMPORAL, PREFETCH>(
            s,
            at + done + ahead.next.unwrap_or(written),
            at + done + written,
        );
    }

    /// The coefficients of a column.
    #[inline(always)]
    pub fn splats<S: Lanes<T>>(&self, s: S, column: usize) -> [S::Vector; K] {
        splat_rows(s, self.coefficients, O::ROWS, column)
    }
}
