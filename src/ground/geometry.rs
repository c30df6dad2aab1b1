//! The form of a problem that everything above works on: which axis is contiguous, how many samples, channels, positions.

#![forbid(unsafe_code)]

use std::ops::Range;

use crate::ground::sizes::{LANES, SAMPLE_LANES, SMALL_PLANE};

/// Which axis is contiguous.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pattern {
    /// The reduced axis: a channel of a sample is a contiguous plane.
    Along,
    /// The kept axis: the channels of a position are adjacent.
    Across,
}

/// A non-empty problem, lowered from a shape: n samples of c channels over planes of s positions.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Geometry {
    pub n: usize,
    pub c: usize,
    pub s: usize,
    pub pattern: Pattern,
    small_planes: bool,
    positions_are_samples: bool,
}

impl Geometry {
    pub fn new(n: usize, c: usize, s: usize, pattern: Pattern) -> Self {
        // One sample's have the same bits either way.
        let small_planes = s <= if n > 1 { SMALL_PLANE } else { LANES };
        Self { n, c, s, pattern, small_planes, positions_are_samples: false }
    }

    /// Of n samples of c channels with one position each, which are taken as the positions of one sample.
    pub fn of_single_positions(n: usize, c: usize) -> Self {
        Self { small_planes: false, positions_are_samples: true, ..Self::new(1, c, n, Pattern::Across) }
    }

    /// A part of it in memory of its own, of so many samples, channels, positions: sums over it are taken in the same order.
    pub fn tile(&self, n: usize, c: usize, s: usize) -> Self {
        Self { n, c, s, ..*self }
    }

    /// Whether positions are what the tensor's axes have for samples.
    pub fn positions_are_samples(&self) -> bool {
        self.positions_are_samples
    }

    /// The samples that the tensor's axes have.
    pub fn samples(&self) -> usize {
        if self.positions_are_samples { self.s } else { self.n }
    }

    /// Whether planes are so small that each of their positions is a lane of its own, summed down the samples: then the
    /// positions of neighbouring channels, which are contiguous, fill vectors that single planes would leave half empty.
    pub fn small_planes(&self) -> bool {
        self.small_planes
    }

    /// The number of lanes that a channel's elements are dealt out to: position s goes to lane s of small planes, else to
    /// lane s mod 16, or mod 4 where positions are samples.
    pub fn lanes(&self) -> usize {
        if self.small_planes() { self.s } else { self.s.min(self.period()) }
    }

    /// Positions of planes that are not small from one in a lane to the next.
    pub fn period(&self) -> usize {
        if self.positions_are_samples { SAMPLE_LANES } else { LANES }
    }

    /// Elements per channel.
    pub fn m(&self) -> usize {
        self.n * self.s
    }

    /// Elements of the tensor.
    pub fn len(&self) -> usize {
        self.n * self.c * self.s
    }

    /// Offset of an element in the tensor.
    #[inline(always)]
    pub fn offset(&self, sample: usize, channel: usize, position: usize) -> usize {
        match self.pattern {
            Pattern::Along => (sample * self.c + channel) * self.s + position,
            Pattern::Across => (sample * self.s + position) * self.c + channel,
        }
    }
}

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

/// Blocks of one size, one after the other, that merge with each other before they do with others: a power of two of them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Run {
    pub first: Block,
    pub count: usize,
    /// Whether the next one is of the next samples, and not of the next positions.
    pub by_samples: bool,
}

impl Run {
    /// A single one.
    pub fn of(first: Block) -> Self {
        Self { first, count: 1, by_samples: true }
    }

    /// The block of this number, and the place of its sums. Once for all kernels, which are many.
    #[inline(never)]
    pub fn block_and_place(&self, index: usize) -> (Block, usize) {
        (self.get(index), self.place(index))
    }

    /// The block of this number.
    pub fn get(&self, index: usize) -> Block {
        let Block { samples, positions } = self.first.clone();
        let after = |range: Range<usize>| {
            let by = index * range.len();
            range.start + by..range.end + by
        };
        match self.by_samples {
            true => Block { samples: after(samples), positions },
            false => Block { samples, positions: after(positions) },
        }
    }

    /// The place of its sums among those of all: in the order of reversed bits, in which the first half of what is there merges
    /// with the other half, time and again.
    pub fn place(&self, index: usize) -> usize {
        index.reverse_bits().checked_shr(usize::BITS - self.count.ilog2()).unwrap_or(0)
    }
}
