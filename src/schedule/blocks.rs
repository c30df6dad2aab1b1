//! The order of arithmetic: how a channel's elements are cut into blocks, and the tree in which these merge.
//!
//! A *block* is some whole planes ([`granularity`] of them, from a multiple of it on) or a segment of one plane. Its sums are
//! taken at once, lane by lane. Blocks are the leaves of a binary tree over their numbers: a node's two halves merge, one that
//! ends before its right half begins is its left half. The number of a block follows from where its samples are in the batch,
//! so that a part of a batch, of samples from one multiple of the granularity to another, is some whole subtrees of it. No cut follows
//! from how many samples or channels there are: the bits of a channel are those of its elements alone, whatever it is computed
//! with, and however the batch was split.

#![forbid(unsafe_code)]

use std::ops::Range;

use crate::ground::geometry::{Block, Geometry, Run};
use crate::ground::sizes::{BAND, LANES, fuzzed};
use crate::kernel::room::WAITING;
use crate::schedule::tree::{Node, Tree};

/// The most elements of a block: 16 KiB of f32 stay in L1 for a second look, and f64 sums over them lose nothing that
/// f32 results could show (`Element::CONDITION_LIMIT` counts on this size).
pub const BLOCK: usize = fuzzed(4096, 64);

/// The fewest elements of a block of whole planes, but for those of very small ones: shorter ones would show, where each costs a
/// sum over lanes; longer ones are more samples that a batch cannot be split between.
const SHORT_BLOCK: usize = fuzzed(1024, 16);

/// The most samples of a block.
const MOST_SAMPLES: usize = fuzzed(256, 8);

/// The same of planes of [`PLANE`] positions and more: what every process of many has of a batch.
const MOST_PLANES: usize = fuzzed(16, 8);

/// From how many positions on a sample's are for `MOST_PLANES`.
const PLANE: usize = 32;

/// Chunks of a channel up to which each is one block: enough to share out, and scratch memory for their states that no one
/// notices.
const CHUNKS: usize = fuzzed(256, 8);

/// The level of the largest chunk: where a thread keeps the states of one chunk that wait for others there is room for so many
/// of a band.
const LARGEST_CHUNK: u32 = fuzzed(7, 3) as u32;
const _: () = assert!(LARGEST_CHUNK as usize * BAND <= WAITING);

/// The samples of a block of planes of `s` positions, a power of two: a batch that is split between multiples of it has the
/// bits of the whole.
pub fn granularity(s: usize) -> usize {
    let most = if s >= PLANE { MOST_PLANES } else { MOST_SAMPLES };
    SHORT_BLOCK.div_ceil(s.max(1)).next_power_of_two().min(most)
}

/// Some samples of a tensor, from one on and before another, each with its weight if they have any: how often its elements count.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Samples<'a> {
    pub first: usize,
    pub end: usize,
    /// Of all samples of the tensor.
    pub weights: Option<&'a [f64]>,
}

impl Samples<'_> {
    /// All of a problem, without weights.
    pub fn all(geometry: &Geometry) -> Self {
        Self { first: 0, end: geometry.samples(), weights: None }
    }

    /// The weight of a block's elements, which are of one sample if there are weights.
    pub fn weight(&self, geometry: &Geometry, block: &Block) -> f64 {
        let sample = if geometry.positions_are_samples() { &block.positions } else { &block.samples };
        self.weights.map_or(1.0, |weights| weights[sample.start])
    }

    /// Elements per channel of a block, each as often as its weight says.
    pub fn count(&self, geometry: &Geometry, block: &Block) -> f64 {
        self.weight(geometry, block) * block.count() as f64
    }

    /// Elements per channel of all, likewise.
    pub fn count_all(&self, geometry: &Geometry) -> f64 {
        let blocks = Blocks::of_samples(geometry, self);
        blocks.count(0..blocks.len(), |block| self.count(geometry, block))
    }
}

/// The cut of n * s elements per channel into blocks, and of these into chunks: subtrees that are handed out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Blocks {
    /// Where the part begins, of which n and s are the sizes.
    first: (usize, usize),
    n: usize,
    s: usize,
    /// Samples per block; 1 where a plane has several segments.
    planes: usize,
    /// Segments per plane.
    segments: usize,
    /// Positions per segment, a multiple of [`LANES`] where there are several.
    segment: usize,
    /// The level of chunks in the tree, whose leaves are blocks. No bit depends on it.
    level: u32,
}

impl Blocks {
    /// Of all samples.
    #[cfg(test)]
    pub fn of(geometry: &Geometry) -> Self {
        Self::of_samples(geometry, &Samples::all(geometry))
    }

    /// Of these samples, the first of which is taken for a multiple of the granularity; with weights each is a block of its own.
    pub fn of_samples(geometry: &Geometry, samples: &Samples<'_>) -> Self {
        let Samples { first, end, weights } = *samples;
        let (first, n, s) = match geometry.positions_are_samples() {
            true => ((0, first), 1, end - first),
            false => ((first, 0), end - first, geometry.s),
        };
        let granularity = |s| if weights.is_some() { 1 } else { granularity(s) };
        let (planes, segment) = if geometry.positions_are_samples() {
            (1, s.min(granularity(1)))
        } else if s <= BLOCK {
            (granularity(s), s)
        } else {
            // Evenly: as many as needed, none much shorter than the others.
            (1, s.div_ceil(s.div_ceil(BLOCK)).next_multiple_of(LANES))
        };
        let blocks = Self { first, n, s, planes, segments: s.div_ceil(segment), segment, level: 0 };
        let level = (0..LARGEST_CHUNK).find(|level| Self { level: *level, ..blocks }.chunks() <= CHUNKS);
        Self { level: level.unwrap_or(LARGEST_CHUNK), ..blocks }
    }

    /// With chunks of this level at least, as far as there is room for what waits in them.
    pub fn in_chunks(self, level: u32) -> Self {
        Self { level: self.level.max(level.min(LARGEST_CHUNK)), ..self }
    }

    /// The number of blocks.
    pub fn len(&self) -> usize {
        self.n.div_ceil(self.planes) * self.segments
    }

    pub fn get(&self, index: usize) -> Block {
        let (sample, segment) = (index / self.segments * self.planes, index % self.segments);
        let position = segment * self.segment;
        self.block(
            sample..(sample + self.planes).min(self.n),
            position..(position + self.segment).min(self.s),
        )
    }

    /// The blocks from one on and before another, as many as merge with each other first and are all whole, `most` at most.
    pub fn run(&self, blocks: Range<usize>, most: usize) -> Run {
        let first = self.get(blocks.start);
        if most.min(blocks.len()) < 2 {
            return Run::of(first);
        }
        let by_samples = self.segments == 1;
        let left = match by_samples {
            true => (self.first.0 + self.n - first.samples.start) / self.planes,
            false => (self.first.1 + self.s - first.positions.start) / self.segment,
        };
        let most = most.min(left).min(blocks.len()).max(1).ilog2();
        Run { first, count: 1 << self.leaf(blocks.start).trailing_zeros().min(most), by_samples }
    }

    /// The count of these blocks, of each of which it is known, added up as their states merge: a sum of weights is rounded.
    pub fn count(&self, blocks: Range<usize>, of: impl Fn(&Block) -> f64) -> f64 {
        const AT_ONCE: usize = 64;
        let mut tree = Tree::EMPTY;
        let mut next = blocks.start;
        while next < blocks.end {
            let (leaf, run) = (self.leaf(next), self.run(next..blocks.end, AT_ONCE));
            let mut counts = [0.0; AT_ONCE];
            counts.iter_mut().enumerate().take(run.count).for_each(|(i, count)| *count = of(&run.get(i)));
            let mut pairs = run.count / 2;
            while pairs > 0 {
                (0..pairs).for_each(|i| counts[i] = counts[2 * i] + counts[2 * i + 1]);
                pairs /= 2;
            }
            tree.complete(leaf, &mut |_, _| ());
            tree.push(Node { leaf, count: counts[0], place: 0 });
            next += run.count;
        }
        tree.finish(&mut |_, _| ())
    }

    /// Elements per channel of some blocks of one sample, or of all of some.
    pub fn elements(&self, blocks: Range<usize>) -> usize {
        let (first, last) = (self.get(blocks.start), self.get(blocks.end - 1));
        match first.samples == last.samples {
            true => first.samples.len() * (last.positions.end - first.positions.start),
            false => (last.samples.end - first.samples.start) * self.s,
        }
    }

    /// Samples and positions of the part, where they are in the tensor.
    fn block(&self, samples: Range<usize>, positions: Range<usize>) -> Block {
        let shifted = |range: Range<usize>, by| range.start + by..range.end + by;
        Block { samples: shifted(samples, self.first.0), positions: shifted(positions, self.first.1) }
    }

    /// The number of a block among the leaves of the tree, where the segments of a sample are a subtree.
    pub fn leaf(&self, index: usize) -> usize {
        ((index / self.segments) << self.sample_level()) + index % self.segments
    }

    /// The level of a sample's subtree.
    fn sample_level(&self) -> u32 {
        self.segments.next_power_of_two().ilog2()
    }

    /// What a chunk is of: blocks of samples, and segments of each, all if they are several.
    fn chunk_sizes(&self) -> (usize, usize) {
        let above = self.level.saturating_sub(self.sample_level());
        (1 << above, if self.level < self.sample_level() { 1 << self.level } else { self.segments })
    }

    /// The number of chunks.
    pub fn chunks(&self) -> usize {
        let (samples, segments) = self.chunk_sizes();
        self.n.div_ceil(self.planes).div_ceil(samples) * self.segments.div_ceil(segments)
    }

    /// The blocks of a chunk.
    pub fn chunk(&self, index: usize) -> Range<usize> {
        let (samples, segments) = self.chunk_sizes();
        let of_sample = self.segments.div_ceil(segments);
        let (sample, segment) = (index / of_sample * samples, index % of_sample * segments);
        let end = (sample + samples - 1) * self.segments + (segment + segments).min(self.segments);
        sample * self.segments + segment..end.min(self.len())
    }

    /// All of a channel, as one part.
    pub fn whole(&self) -> Block {
        self.block(0..self.n, 0..self.s)
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

    /// Chunks are whole subtrees, in order: what merges within them and then between them, merges as in one tree.
    #[test]
    fn chunks_are_subtrees() {
        for geometry in geometries() {
            let blocks = Blocks::of(&geometry);
            for chunk in 0..blocks.chunks() {
                let range = blocks.chunk(chunk);
                let first = blocks.leaf(range.start);
                let leaves = 1 << blocks.level;
                assert!(first.is_multiple_of(leaves) && blocks.leaf(range.end - 1) - first < leaves);
                let next = blocks.leaf(range.end);
                assert!(range.end == blocks.len() || next >= first + leaves, "{blocks:?} {chunk}");
            }
        }
    }

    /// Runs are the blocks one by one, and whole subtrees.
    #[test]
    fn runs_are_subtrees_of_whole_blocks() {
        for (geometry, most) in geometries().flat_map(|geometry| [1, 4, 64].map(|most| (geometry, most))) {
            let blocks = Blocks::of(&geometry);
            let mut index = 0;
            while index < blocks.len().min(2000) {
                let run = blocks.run(index..blocks.len(), most);
                let (leaf, next) = (blocks.leaf(index), blocks.leaf(index + run.count - 1) + 1);
                assert!(leaf.is_multiple_of(run.count) && next - leaf == run.count && run.count <= most);
                let mut places = (0..run.count).map(|i| run.place(i)).collect::<Vec<_>>();
                for (i, place) in places.iter().enumerate() {
                    assert_eq!(run.get(i), blocks.get(index + i));
                    // Neighbours that merge first are halves of all.
                    assert_eq!(run.count > 1 && i % 2 == 1, *place >= run.count.div_ceil(2) && run.count > 1);
                }
                places.sort_unstable();
                assert!(places.into_iter().eq(0..run.count));
                index += run.count;
            }
            for chunk in (0..blocks.chunks()).map(|chunk| blocks.chunk(chunk)) {
                let counts = chunk.clone().map(|index| blocks.get(index).count());
                assert_eq!(blocks.elements(chunk), counts.sum::<usize>());
            }
            // One by one, of counts whose sums are rounded.
            let count = |block: &Block| 1.0 / (3 + block.samples.start + block.positions.start) as f64;
            let some = 0..blocks.len().min(2000);
            let mut tree = Tree::EMPTY;
            for index in some.clone() {
                let leaf = blocks.leaf(index);
                tree.complete(leaf, &mut |_, _| ());
                tree.push(Node { leaf, count: count(&blocks.get(index)), place: 0 });
            }
            assert_eq!(blocks.count(some, count), tree.finish(&mut |_, _| ()));
        }
    }

    /// The cut of a plane follows from its positions, that of samples from its positions too.
    #[test]
    fn no_cut_follows_from_samples_or_channels() {
        for geometry in geometries() {
            let blocks = Blocks::of(&geometry);
            for more in [1, 2, 100] {
                let larger =
                    Geometry::new(geometry.n + more, geometry.c + more, geometry.s, geometry.pattern);
                let larger = Blocks::of(&larger);
                let whole = geometry.n / blocks.planes * blocks.segments;
                for index in (0..whole).step_by(1 + whole / 50) {
                    assert_eq!(
                        (larger.get(index), larger.leaf(index)),
                        (blocks.get(index), blocks.leaf(index))
                    );
                }
            }
        }
        for (s, most) in [(1, 256), (31, 256), (32, 16), (1023, 16), (1024, 1), (1 << 40, 1)] {
            assert!(
                cfg!(fuzzing) || (1..=most).contains(&granularity(s)) && granularity(s).is_power_of_two()
            );
        }
    }

    #[test]
    fn scratch_states_are_a_small_part_of_the_tensor() {
        for geometry in geometries().filter(|geometry| geometry.m() > BLOCK) {
            let blocks = Blocks::of(&geometry);
            let (chunks, elements) = (blocks.chunks(), geometry.m());
            assert!(chunks <= elements.div_ceil(MOST_SAMPLES) && blocks.len() < chunks << (blocks.level + 1));
            assert!(chunks <= CHUNKS || blocks.level == LARGEST_CHUNK, "{geometry:?}");
        }
    }
}
