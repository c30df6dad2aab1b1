//! Along planes: a vector takes the lanes of one channel.

use super::interleave::Interleave;
use super::{Reduce, Sweep};
use crate::ground::geometry::{Block, Geometry};
use crate::ground::sizes::LANES;
use crate::kernel::fused::Read;
use crate::kernel::terms::Terms;
use crate::simd::Lanes;

/// Of one sample's planes of a group, the later ones, to prefetch.
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

impl<T: Copy, O: Terms<IN>, R: Read<T, IN>, M: Interleave<T>, const IN: usize> Reduce<'_, T, O, R, M, IN> {
    /// The planes of a sample's channels follow each other, so samples go outside and sums wait in memory.
    ///
    /// # Safety
    /// Channels and block lie within the geometry, whose length the inputs have.
    #[inline(always)]
    pub unsafe fn along<S: Lanes<T>>(&mut self, s: S) {
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

    /// Where the planes, or the segments of them, are that are read so much later than one sample's that a prefetch takes about
    /// as long.
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
        let first = self.piece.first && sample == samples.start;
        let last = self.piece.last && sample + 1 == samples.end;
        let place = self.piece.column + channel;
        let at = self.geometry.offset(sample, self.channels.start + channel, positions.start);
        let len = positions.len();
        // Within the planes if they are long, to the later ones at their end.
        let ahead = Self::AHEAD_ALONG / U;
        let near = len.saturating_sub(ahead) / LANES;
        let beyond = later.plane(channel, self.channels.len(), plane).wrapping_sub(at + near * LANES);
        let mut about = [(self.about_nothing(s), self.read.splats(s, place)); U];
        for (u, (about, k)) in about.iter_mut().enumerate() {
            *k = self.read.splats(s, place + u);
            if O::CENTERED {
                about.center = s.splat_wide(-S::SCALE * self.sums.centers[place + u]);
            }
            if O::SCALED {
                about.unit = s.splat_wide(self.sums.units[place + u]);
            }
        }
        let mut other = self.interleave.begin(s, sample, channel, positions);
        // Of the last sample; the sixteen lanes are one vector, or two.
        let mut totals = [[O::sums(s.zero_wide()); U]; 2];
        for (part, totals) in totals.iter_mut().enumerate().take(LANES / S::N) {
            let lane = part * S::N;
            let column = |u| (place + u) * LANES + lane;
            let mut sums = [O::sums(s.zero_wide()); U];
            for (u, sums) in sums.iter_mut().enumerate() {
                *sums = self.sums(s, column(u), first);
            }
            let rows = (len + LANES - S::N).saturating_sub(lane) / LANES;
            // SAFETY: row r reads the N elements from lane + 16 * r, the last of which end within `len`.
            unsafe {
                let from = self.inputs.map(|x| x.as_ptr().wrapping_add(at).wrapping_add(lane));
                let near = near.min(rows);
                let sweep = Sweep { from, apart: plane, stride: LANES, rows: near, ahead };
                Self::sweep::<S, M, U>(
                    s,
                    &sweep,
                    &self.read,
                    about,
                    &mut sums,
                    (&self.interleave, &mut other),
                );
                let from = from.map(|x| x.wrapping_add(near * LANES));
                let sweep = Sweep { from, rows: rows - near, ahead: beyond, ..sweep };
                Self::sweep::<S, M, U>(
                    s,
                    &sweep,
                    &self.read,
                    about,
                    &mut sums,
                    (&self.interleave, &mut other),
                );
            }
            let done = lane + rows * LANES;
            if done < len {
                for (u, sums) in sums.iter_mut().enumerate() {
                    // SAFETY: len - done elements are left of the plane, fewer than N.
                    unsafe {
                        let from = self.inputs.map(|x| x.as_ptr().wrapping_add(at + u * plane + done));
                        Self::tail::<S>(s, from, len - done, &self.read, about[u], sums);
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
                    self.sums.totals[i][self.piece.totals + place + u] =
                        s.sum_lanes([low[i], high[i]]) * scale;
                }
            }
        }
    }
}
