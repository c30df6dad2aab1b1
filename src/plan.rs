//! How a problem is cut: into blocks and chunks, which fix the order of arithmetic, and into tasks, which do not.
//!
//! A *block* is at most [`BLOCK`] elements of a channel: some whole planes, or a segment of one. Its sums are taken at
//! once, lane by lane; blocks merge in order into *chunks*, chunks in order into the channel. All this follows from n
//! and s alone, so the bits do not depend on layout, level, threads or caches. Those steer only the *tasks*: which
//! channels and chunks one task takes.

#![forbid(unsafe_code)]

use std::ops::Range;

use crate::problem::{Geometry, Pattern};
use crate::simd::LANES;

/// The most elements of a block: 16 KiB of f32 stay in L1 for a second look, and f64 sums over them lose nothing that
/// f32 results could show (`Element::CONDITION_LIMIT` counts on this size). Fuzzing shrinks it to reach every merge.
pub const BLOCK: usize = if cfg!(fuzzing) { 64 } else { 4096 };

/// Blocks per chunk. A chunk is the least that tasks share a channel by.
const CHUNK: usize = 4;

/// The most chunks of a channel, which bounds the scratch memory for their states.
const MAX_CHUNKS: usize = 4096;

/// The most channels that a task takes at once; its states and coefficients stay in L1.
pub const GROUP: usize = 64;

/// What one task's part of the tensor should fit in: half of the smallest L2 of today's servers and desktops, where
/// the statistics have just put the data that normalization reads again.
const CACHE_BYTES: usize = 512 << 10;

/// From this many bytes read and written on, what is written would be gone from the last-level cache before anyone
/// reads it, and writing past it saves reading the lines first: measured 57 against 43 GB/s copying 100 MB (4 cores,
/// 32 MB of L3), even at 50 MB, 81 against 180 at 25 MB.
const STREAM_BYTES: usize = 48 << 20;

/// Tensors below this are done on the calling thread: waking a pool costs several microseconds.
const PARALLEL_BYTES: usize = 128 << 10;

/// Tasks per thread, so that an unlucky thread can be relieved of some.
const TASKS_PER_THREAD: usize = 4;

/// A part of every channel: some samples, some positions of each.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Block {
    pub samples: Range<usize>,
    pub positions: Range<usize>,
}

impl Block {
    /// Elements per channel.
    pub fn count(&self) -> usize {
        self.samples.len() * self.positions.len()
    }
}

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
        let Geometry { n, s, .. } = *geometry;
        let (planes, segment) = if s <= BLOCK {
            (BLOCK / s, s)
        } else {
            (1, s.div_ceil(s.div_ceil(BLOCK)).next_multiple_of(LANES))
        };
        let segments = s.div_ceil(segment);
        let blocks = Self { n, s, planes, segments, segment, chunk: 1 };
        Self { chunk: CHUNK.max(blocks.len().div_ceil(MAX_CHUNKS)), ..blocks }
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

/// Blocks, and how channels and chunks are dealt out to tasks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Plan {
    pub blocks: Blocks,
    /// Channels of the tensor.
    pub channels: usize,
    /// Channels per task.
    pub group: usize,
    /// Whether a task takes some channels whole, from statistics to output, or one chunk of them at a time.
    pub whole: bool,
    /// Whether to use the thread pool.
    pub parallel: bool,
    /// Whether to write outputs past the caches.
    pub stream: bool,
}

impl Plan {
    /// `bytes` is an element's, `reads` the number of tensors that the operation reads; `workers` the threads to use,
    /// asked for large problems only: asking may start a pool.
    pub fn new(geometry: &Geometry, bytes: usize, reads: usize, workers: impl Fn() -> usize) -> Self {
        let blocks = Blocks::of(geometry);
        let element_bytes = reads * bytes;
        let stream = geometry.len().saturating_mul(element_bytes + bytes) >= STREAM_BYTES;
        let large = geometry.len().saturating_mul(element_bytes) >= PARALLEL_BYTES;
        let workers = if large { workers() } else { 1 };
        let parallel = workers > 1;
        let c = geometry.c;
        let fitting = CACHE_BYTES / geometry.m().saturating_mul(element_bytes).clamp(1, CACHE_BYTES);
        let sharing = if parallel { c / (workers * TASKS_PER_THREAD) } else { c };
        let group = fitting.min(sharing);
        let (group, whole) = match geometry.pattern {
            // One channel at a time, however long it is, as long as there are enough of them for the threads.
            Pattern::Along => (group.clamp(1, GROUP), c >= workers),
            // A cache line's worth of channels must fit with all its rows, or rows are read in part again and again.
            Pattern::Across if fitting >= LANES.min(c) && c >= workers * LANES => {
                (group.next_multiple_of(LANES).min(GROUP), true)
            }
            Pattern::Across => (GROUP, workers == 1 && c <= GROUP && fitting >= c),
        };
        Self { blocks, channels: c, group, whole, parallel, stream }
    }

    /// The number of channel groups.
    pub fn groups(&self) -> usize {
        self.channels.div_ceil(self.group)
    }

    /// The channels of a group.
    pub fn channels(&self, group: usize) -> Range<usize> {
        group * self.group..((group + 1) * self.group).min(self.channels)
    }
}
