//! Software pipelining: a group is mapped while the next is summed, a vector of one, a vector of the other.

use std::ops::Range;

use super::Map;
use super::formulas::Formula;
use super::planes::Plane;
use crate::ground::sizes::LANES;
use crate::kernel::fused::Fused;
use crate::kernel::reduce::interleave::Interleave;
use crate::simd::Lanes;

/// The map of a group, by non-temporal stores, while another of as many channels is summed: a vector of each in turns,
/// since larger turns lose the gain on the way to where they go on.
pub struct Pipelined<'a, T, O, E, const IN: usize, const K: usize>(pub Map<'a, T, O, E, IN, K>);

impl<T: Copy, O: Formula<IN, K>, E: Fused<T, O, IN, K>, const IN: usize, const K: usize> Interleave<T>
    for Pipelined<'_, T, O, E, IN, K>
{
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
        let planes = channels.len() - channel;
        // SAFETY: sample and channel lie within the geometry, whose length inputs and output have.
        unsafe { self.0.begin(s, run, channel, planes, positions, self.0.splats(s, column + channel)) }
    }

    #[inline(always)]
    fn step<S: Lanes<T>>(&self, s: S, plane: &mut Self::Plane<S>) {
        if plane.done + S::N <= plane.end {
            // SAFETY: as above, and the plane's vectors follow the output's lines.
            unsafe { self.0.vector::<S, true>(s, plane.run + plane.done, plane.k) };
            plane.done += S::N;
        }
    }

    #[inline(always)]
    fn finish<S: Lanes<T>>(&self, s: S, mut plane: Self::Plane<S>) {
        while plane.done + S::N <= plane.end {
            self.step(s, &mut plane);
        }
        // SAFETY: as above.
        unsafe { self.0.finish::<S, true>(s, &mut plane) };
    }
}

#[cfg(test)]
mod tests {
    use super::super::formulas::Normalize;
    use super::*;
    use crate::ground::geometry::{Block, Geometry, Pattern};
    use crate::ground::slices::{Input, Output};
    use crate::kernel::fused::Bare;
    use crate::kernel::map::{Access, Prefetch, Store};
    use crate::kernel::scratch::{COEFFICIENTS, Row};
    use crate::simd::Kernel;
    use crate::simd::{Dispatch, Level};
    use std::marker::PhantomData;

    /// Planes in pieces that end at multiples of `LANES`, down to a last one of a single position.
    struct InPieces<'a>(Pipelined<'a, f32, Normalize, Bare, 1, 4>, usize);

    impl Kernel<f32> for InPieces<'_> {
        const INTERLEAVES: bool = true;

        #[inline(always)]
        fn run<S: Lanes<f32>>(self, s: S) {
            let Self(pipelined, size) = self;
            let Geometry { n, s: len, .. } = *pipelined.0.geometry;
            for sample in 0..n {
                for start in (0..len).step_by(size) {
                    for channel in 0..pipelined.0.channels.len() {
                        let mut plane =
                            pipelined.begin(s, sample, channel, &(start..(start + size).min(len)));
                        for _ in 0..size / LANES {
                            pipelined.step(s, &mut plane);
                        }
                        pipelined.finish(s, plane);
                    }
                }
            }
            s.fence();
        }
    }

    #[test]
    fn pipelined_in_pieces_maps_its_channels_once_and_nothing_else() {
        const CANARY: f32 = 12345.0;
        let coefficients: [Row<f32>; COEFFICIENTS] =
            std::array::from_fn(|row| std::array::from_fn(|column| (row * 7 + column) as f32));
        for (c, s) in [(3, 97), (5, 81), (4, 100), (3, 96), (3, 64), (4, 16), (3, 17)] {
            let geometry = Geometry::new(2, c, s, Pattern::Along);
            let x: Vec<f32> = (0..geometry.len()).map(|i| i as f32).collect();
            for (offset, size) in [(0, 16), (1, 16), (5, 32), (11, 48), (15, 48), (16, 96)] {
                for level in Level::available().iter().filter(|level| level.interleaves()) {
                    let mut y = vec![CANARY; x.len() + 64];
                    let map = Map {
                        geometry: &geometry,
                        inputs: [Input::new(&x)],
                        output: Output::new(&mut y[offset..][..x.len()]),
                        channels: 1..c,
                        column: 0,
                        part: Block { samples: 0..2, positions: 0..s },
                        access: Access {
                            store: Store::NonTemporal,
                            prefetch: Prefetch::Own,
                            l1_ways: 8,
                            planes_as_rows: false,
                        },
                        coefficients: &coefficients,
                        formula: PhantomData::<Normalize>,
                        fused: Bare,
                    };
                    f32::dispatch(*level, InPieces(Pipelined(map), size));
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
