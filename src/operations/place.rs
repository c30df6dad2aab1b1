//! Parts of tensors of 16-bit numbers: where they are, how they are cut, and their way to tiles and back.

use std::ops::Range;

use crate::ground::geometry::{Block, Geometry, Pattern};
use crate::ground::half::Halves;
use crate::ground::scalar::Scalar;
use crate::ground::sizes::{LANES, fuzzed};
use crate::ground::slices::{Input, Output, Sink, Source};
use crate::kernel::bits::{BitWriter, Bits};
use crate::kernel::map::Store;
use crate::kernel::reduce::Piece;
use crate::kernel::scratch::TILE;
use crate::schedule::ranges::pieces;
use crate::simd::Level;
use crate::simd::half::Rows;

/// Elements of a tile that is mapped: three of them stay in L1. Longer rows are tiles all the same.
const MAPPED: usize = fuzzed(4096, 64);

/// Where a tile's elements are in a tensor: rows of equal length.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Place {
    /// The first one's offset.
    pub at: usize,
    pub rows: usize,
    pub width: usize,
    /// Elements from one row to the next.
    pub stride: usize,
    /// Elements to the next tile's first, which is prefetched.
    pub ahead: usize,
}

impl Place {
    /// Of a block's elements of some channels, and their form by themselves. Of several samples they are all positions.
    pub fn of(geometry: &Geometry, channels: &Range<usize>, block: &Block) -> (Self, Geometry) {
        let Geometry { c, s, pattern, .. } = *geometry;
        let (samples, positions) = (block.samples.len(), block.positions.len());
        debug_assert!(samples == 1 || positions == s);
        let at = geometry.offset(block.samples.start, channels.start, block.positions.start);
        let (rows, width, stride) = match pattern {
            Pattern::Along if positions == s => (samples, channels.len() * s, c * s),
            Pattern::Along => (channels.len(), positions, s),
            Pattern::Across => (samples * positions, channels.len(), c),
        };
        let place = match width == stride {
            true => Self { at, rows: 1, width: rows * width, stride, ahead: 0 },
            false => Self { at, rows, width, stride, ahead: 0 },
        };
        (place, geometry.tile(samples, channels.len(), positions))
    }

    pub fn len(&self) -> usize {
        self.rows * self.width
    }

    /// The offset of the first element of each row, in the tensor and in the tile.
    fn starts(&self) -> impl Iterator<Item = (usize, usize)> {
        let Self { at, rows, width, stride, .. } = *self;
        (0..rows).map(move |row| (at + row * stride, row * width))
    }

    /// Fills the tile.
    ///
    /// # Safety
    /// The tensor has the place, and no one writes there meanwhile.
    pub unsafe fn read<'t, T: Scalar>(
        &self,
        level: Level,
        from: Source<'_, T>,
        tile: &'t mut [T; TILE],
    ) -> Output<'t, T> {
        let tile = &mut tile[..self.len()];
        let Self { at, rows, width, stride, ahead } = *self;
        // SAFETY: says the caller; the tile has as many elements.
        unsafe {
            match from {
                Source::Whole(from) => {
                    for (at, to) in self.starts() {
                        from.as_ptr().add(at).copy_to_nonoverlapping(tile[to..].as_mut_ptr(), width);
                    }
                }
                Source::Half(from, half) => {
                    let (from, to) = (from.as_ptr().add(at), tile.as_mut_ptr().cast::<f32>());
                    debug_assert!(size_of::<T>() == size_of::<f32>());
                    Rows { from, to, rows, width, from_stride: stride, to_stride: width, ahead }
                        .widen(level, half.half());
                }
            }
        }
        Output::new(tile)
    }

    /// Writes what the tile has, rounded if the tensor is of 16-bit numbers.
    ///
    /// # Safety
    /// The tensor has the place, and no one else uses it meanwhile; the tile is the place's.
    pub unsafe fn write<T: Scalar>(&self, level: Level, tile: Output<'_, T>, to: Sink<'_, T>, store: Store) {
        let Self { at, rows, width, stride, ahead } = *self;
        let tile = tile.as_ptr().cast_const();
        // SAFETY: says the caller.
        unsafe {
            match to {
                Sink::Whole(to) => {
                    for (at, from) in self.starts() {
                        tile.add(from).copy_to_nonoverlapping(to.as_ptr().add(at), width);
                    }
                }
                Sink::Half(to, half) => {
                    let (from, to) = (tile.cast::<f32>(), to.as_ptr().add(at));
                    debug_assert!(size_of::<T>() == size_of::<f32>());
                    let rows = Rows { from, to, rows, width, from_stride: width, to_stride: stride, ahead };
                    rows.narrow(level, half.half(), store == Store::NonTemporal);
                }
            }
        }
    }

    /// Gathers the tile's bits.
    ///
    /// # Safety
    /// The tensor has the place.
    pub unsafe fn bits<'t>(&self, mask: Bits<'_>, tile: &'t mut [u64]) -> Bits<'t> {
        let words = &mut tile[..self.len().div_ceil(64)];
        words.fill(0);
        for (at, to) in self.starts() {
            for done in (0..self.width).step_by(32) {
                let count = (self.width - done).min(32);
                // SAFETY: says the caller.
                let bits = unsafe { u64::from(mask.from(at + done)) } & !(u64::MAX << count);
                let (word, offset) = ((to + done) / 64, (to + done) % 64);
                words[word] |= bits << offset;
                if offset + count > 64 {
                    words[word + 1] |= bits >> (64 - offset);
                }
            }
        }
        Bits(Input::new(words))
    }

    /// Writes the tile's bits.
    ///
    /// # Safety
    /// The tensor has the place, whose bits no one else writes.
    pub unsafe fn write_bits(&self, tile: &[u64], mask: &BitWriter<'_>) {
        for (at, from) in self.starts() {
            for done in (0..self.width).step_by(LANES) {
                let count = (self.width - done).min(LANES);
                let (word, offset) = ((from + done) / 64, (from + done) % 64);
                let high = tile.get(word + 1).map_or(0, |high| high << 1 << (63 - offset));
                let bits = tile[word] >> offset | high;
                // SAFETY: says the caller.
                unsafe { mask.push_complement(at + done, !(bits as u32), count, LANES) };
            }
        }
    }
}

/// The pieces of a block of some channels that are summed one after the other: which of the channels, which samples and positions.
pub fn sum_pieces(
    geometry: &Geometry,
    channels: usize,
    block: Block,
) -> impl Iterator<Item = (Range<usize>, Block, Piece)> {
    let Block { samples, positions } = block;
    let lanes = geometry.lanes().min(positions.len());
    let at_once = |elements: usize| (TILE / elements).max(1);
    let (some, planes, rows) = match geometry.pattern {
        _ if geometry.small_planes() => (channels, at_once(channels * positions.len()), positions.len()),
        Pattern::Along => {
            let some = channels.min(at_once(positions.len()));
            (some, at_once(some * positions.len()), positions.len())
        }
        Pattern::Across => (channels, 1, at_once(channels) / LANES * LANES),
    };
    pieces(0..channels, some).flat_map(move |some| {
        let (all_samples, all_positions) = (samples.clone(), positions.clone());
        pieces(samples.clone(), planes).flat_map(move |samples| {
            let (some, all_samples, all_positions) =
                (some.clone(), all_samples.clone(), all_positions.clone());
            pieces(all_positions.clone(), rows).map(move |positions| {
                let piece = Piece {
                    column: some.start,
                    first: samples.start == all_samples.start && positions.start == all_positions.start,
                    last: samples.end == all_samples.end && positions.end == all_positions.end,
                    lanes,
                    totals: 0,
                };
                (some.clone(), Block { samples: samples.clone(), positions }, piece)
            })
        })
    })
}

/// The pieces of a part of some channels that are mapped one after the other. Rows of all these channels stay whole.
pub fn map_pieces(
    geometry: &Geometry,
    channels: usize,
    part: &Block,
    planes_as_rows: bool,
) -> impl Iterator<Item = (Range<usize>, Block)> {
    let Block { samples, positions } = part.clone();
    let whole = positions.len() == geometry.s;
    let at_once = |elements: usize| (MAPPED / elements).max(1);
    let plane = positions.len();
    // Of several samples all channels, or one after the other where they are not all positions.
    let (some, planes, rows) = match geometry.pattern {
        Pattern::Along if planes_as_rows => (channels, at_once(channels * plane), plane),
        Pattern::Along if plane > MAPPED => (1, 1, MAPPED),
        Pattern::Along => {
            let some = channels.min(at_once(plane));
            (some, if whole && some == channels { at_once(channels * plane) } else { 1 }, plane)
        }
        Pattern::Across if whole && channels * plane <= MAPPED => {
            (channels, at_once(channels * plane), plane)
        }
        Pattern::Across => (channels, 1, at_once(channels)),
    };
    pieces(samples, planes).flat_map(move |samples| {
        let positions = positions.clone();
        pieces(0..channels, some).flat_map(move |some| {
            let samples = samples.clone();
            pieces(positions.clone(), rows)
                .map(move |positions| (some.clone(), Block { samples: samples.clone(), positions }))
        })
    })
}

/// The places, each with how far it is from there to the next; from the last as far as to it.
pub fn looking_ahead<V>(
    places: impl Iterator<Item = ((Place, Geometry), V)>,
) -> impl Iterator<Item = ((Place, Geometry), V)> {
    let (mut places, mut ahead) = (places.peekable(), 0);
    std::iter::from_fn(move || {
        let ((place, geometry), value) = places.next()?;
        ahead = places.peek().map_or(ahead, |((next, _), _)| next.at.wrapping_sub(place.at));
        Some(((Place { ahead, ..place }, geometry), value))
    })
}
