//! The order of arithmetic: how a channel's elements are cut into blocks and chunks.
//!
//! A *block* is at most [`BLOCK`] elements of a channel: some whole planes, or a segment of one. Its sums are taken at
//! once, lane by lane; blocks merge in order into *chunks*, chunks in order into the channel. All this follows from the
//! shape alone, so the bits do not depend on layout, level, threads or caches.

#![forbid(unsafe_code)]

use std::ops::Range;

use crate::ground::geometry::{Block, Geometry};
use crate::ground::sizes::{LANES, fuzzed};

/// The most elements of a block: 16 KiB of f32 stay in L1 for a second look, and f64 sums over them lose nothing that
/// f32 results could show (`Element::CONDITION_LIMIT` counts on this size).
pub const BLOCK: usize = fuzzed(4096, 64);

/// With many channels blocks are shorter, down to this: in NHWC the rows of a block are a task's least, and must leave
/// enough of them to share out. Shorter ones would show in NCHW, where each costs a sum over lanes.
const SHORT_BLOCK: usize = BLOCK / 4;

/// Elements of all channels of a block, where the two bounds above allow it.
const BLOCK_ROWS: usize = fuzzed(1 << 19, 1 << 11);

/// The most chunks of a channel, which bounds the scratch memory for their states.
const MAX_CHUNKS: usize = fuzzed(256, 8);

/// The cut of n * s elements per channel into blocks and chunks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Blocks {
    n: usize,
    s: usize,
    /// Planes per block; 1 where a plane has several segments.
    planes: usize,
    /// Segments per plane.
    segments: usize,
    /// Positions per segment, a multiple of [`LANES`] where there are several.
    segment: usize,
    /// Blocks per chunk.
    chunk: usize,
}

impl Blocks {
    pub fn of(geometry: &Geometry) -> Self {
        let Geometry { n, c, s, .. } = *geometry;
        let most = (BLOCK_ROWS / c).clamp(SHORT_BLOCK, BLOCK);
        // Evenly: as many blocks as needed, none much shorter than the others.
        let (planes, segment) = if s <= most {
            (n.div_ceil(n.div_ceil(most / s)), s)
        } else {
            (1, s.div_ceil(s.div_ceil(most)).next_multiple_of(LANES))
        };
        let segments = s.div_ceil(segment);
        let blocks = Self { n, s, planes, segments, segment, chunk: 1 };
        Self { chunk: blocks.len().div_ceil(MAX_CHUNKS), ..blocks }
    }

    /// The number of blocks.
    pub fn len(&self) -> usize {
        self.n.div_ceil(self.planes) * self.segments
    }

    pub fn get(&self, index: usize) -> Block {
        let (sample, segment) = (index / self.segments * self.planes, index % self.segments);
        let position = segment * self.segment;
        Block {
            samples: sample..(sample + self.planes).min(self.n),
            positions: position..(position + self.segment).min(self.s),
        }
    }

    /// The number of chunks.
    pub fn chunks(&self) -> usize {
        self.len().div_ceil(self.chunk)
    }

    /// The blocks of a chunk.
    pub fn chunk(&self, index: usize) -> Range<usize> {
        index * self.chunk..((index + 1) * self.chunk).min(self.len())
    }

    /// All of a channel, as one part.
    pub fn whole(&self) -> Block {
        Block { samples: 0..self.n, positions: 0..self.s }
    }
}

/// Geometries around every threshold, for the tests of what is made of them.
#[cfg(test)]
pub mod grid {
    use super::*;
    use crate::ground::geometry::Pattern;

    pub const PATTERNS: [Pattern; 2] = [Pattern::Along, Pattern::Across];
    pub const SIZES: [usize; 16] = [1, 2, 7, 15, 16, 17, 49, 63, 64, 65, 513, 784, 4095, 4096, 4097, 50_176];

    pub fn geometries() -> impl Iterator<Item = Geometry> {
        PATTERNS.into_iter().flat_map(|pattern| {
            SIZES.into_iter().flat_map(move |n| {
                SIZES
                    .into_iter()
                    .flat_map(move |c| SIZES.into_iter().map(move |s| Geometry::new(n, c, s, pattern)))
            })
        })
    }
}

#[cfg(test)]
mod tests {
    use super::grid::*;
    use super::*;

    #[test]
    fn blocks_are_a_partition_in_order() {
        for geometry in geometries() {
            let blocks = Blocks::of(&geometry);
            let (mut sample, mut position, mut elements) = (0, 0, 0);
            for index in 0..blocks.chunks() {
                assert!(!blocks.chunk(index).is_empty(), "{geometry:?}");
                for index in blocks.chunk(index) {
                    let block = blocks.get(index);
                    assert_eq!(
                        (block.samples.start, block.positions.start),
                        (sample, position),
                        "{geometry:?}"
                    );
                    assert!((1..=BLOCK).contains(&block.count()), "{geometry:?} {block:?}");
                    elements += block.count();
                    (sample, position) = if block.positions.end == geometry.s {
                        (block.samples.end, 0)
                    } else {
                        assert!(block.samples.len() == 1 && block.positions.end.is_multiple_of(LANES));
                        (sample, block.positions.end)
                    };
                }
            }
            assert_eq!((sample, position, elements), (geometry.n, 0, geometry.m()), "{geometry:?}");
        }
    }

    #[test]
    fn scratch_states_are_a_small_part_of_the_tensor() {
        for geometry in geometries().filter(|geometry| geometry.m() > BLOCK) {
            let chunks = Blocks::of(&geometry).chunks();
            assert!(chunks <= MAX_CHUNKS && chunks <= geometry.m().div_ceil(SHORT_BLOCK / 2), "{geometry:?}");
        }
    }
}
