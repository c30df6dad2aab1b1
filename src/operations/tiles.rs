//! Tensors of 16-bit numbers: parts of them become tiles of elements in a thread's own memory, which the kernels work on as on
//! tensors of their own, and results are narrowed from there. So no kernel knows of 16-bit numbers, and the bits are those of the
//! operation on widened tensors by construction; what that costs is some loads and stores in L1, where memory sets the pace nothing.

use std::marker::PhantomData;
use std::ops::Range;

use crate::ground::geometry::{Block, Geometry, Pattern};
use crate::ground::half::Halves;
use crate::ground::scalar::Scalar;
use crate::ground::sizes::{LANES, fuzzed};
use crate::ground::slices::{Input, Output, Sink, Source};
use crate::kernel::Vectorized;
use crate::kernel::bits::{BitWriter, Bits, words};
use crate::kernel::fused::{AsRead, Bare, Masked, Read, ReadMasked, ReadRecomputed, Recomputed};
use crate::kernel::map::formulas::{Formula, GradientAlone, Normalize};
use crate::kernel::map::{Access, Prefetch, Store};
use crate::kernel::reduce::interleave::NoInterleave;
use crate::kernel::reduce::{Piece, Reduce};
use crate::kernel::scales::ORDINARY_SCALE;
use crate::kernel::scratch::{Scratch, Sums, TILE, Tiles};
use crate::kernel::terms::Terms;
use crate::operations::given::{After, Kind};
use crate::operations::memory::{Memory, Mixed, Part};
use crate::schedule::engine::Task;
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
}

impl Place {
    /// Writes the tile's bits.
    ///
    /// # Safety
    /// The tensor has the place, whose bits no one else writes.
    unsafe fn write_bits(&self, tile: &[u64], mask: &BitWriter<'_>) {
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

/// The tensors as lanes over 16-bit numbers take them, if they are all of the same numbers and the level has such lanes.
fn halves<'a, T: Vectorized, const N: usize>(
    level: Level,
    tensors: [Source<'a, T>; N],
) -> Option<(T::Half, [Input<'a, T>; N])> {
    let Source::Half(first, half) = *tensors.first()? else { return None };
    let mut elements = [T::elements(first)?; N];
    for (element, tensor) in elements.iter_mut().zip(tensors) {
        match tensor {
            Source::Half(tensor, other) if other == half => *element = T::elements(tensor)?,
            _ => return None,
        }
    }
    T::has_half_lanes(level, half).then_some((half, elements))
}

/// The same of one that is written.
fn half_to_write<'a, T: Vectorized>(half: T::Half, tensor: Sink<'a, T>) -> Option<Output<'a, T>> {
    match tensor {
        Sink::Half(tensor, other) if other == half => T::elements_mut(tensor),
        _ => None,
    }
}

/// The pieces of a block of some channels that are summed one after the other: which of the channels, which samples and positions.
fn sum_pieces(
    geometry: &Geometry,
    channels: usize,
    block: &Block,
) -> impl Iterator<Item = (Range<usize>, Block, Piece)> {
    let (samples, positions) = (block.samples.clone(), block.positions.clone());
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
                };
                (some.clone(), Block { samples: samples.clone(), positions }, piece)
            })
        })
    })
}

/// The places, each with how far it is from there to the next; from the last as far as to it.
fn looking_ahead<V>(
    places: impl Iterator<Item = ((Place, Geometry), V)>,
) -> impl Iterator<Item = ((Place, Geometry), V)> {
    let (mut places, mut ahead) = (places.peekable(), 0);
    std::iter::from_fn(move || {
        let ((place, geometry), value) = places.next()?;
        ahead = places.peek().map_or(ahead, |((next, _), _)| next.at.wrapping_sub(place.at));
        Some(((Place { ahead, ..place }, geometry), value))
    })
}

/// A piece of a block, in tiles.
struct Summed<'a, T, const IN: usize> {
    inputs: [Input<'a, T>; IN],
    geometry: Geometry,
    piece: Piece,
}

impl<T: Vectorized, const IN: usize> Summed<'_, T, IN> {
    fn reduce<O: Terms<IN>, R: Read<T, IN>>(self, level: Level, sums: &mut Sums, read: R) {
        let Self { inputs, geometry, piece } = self;
        let block = Block { samples: 0..geometry.n, positions: 0..geometry.s };
        let (geometry, channels) = (&geometry, 0..geometry.c);
        let (interleave, terms) = (NoInterleave, PhantomData::<O>);
        T::dispatch(
            level,
            Reduce { geometry, inputs, channels, block, piece, sums, read, interleave, terms },
        );
    }
}

/// As [`halves`], of tensors whose sums are laid out for them.
fn halves_to_sum<'a, T: Vectorized, const IN: usize>(
    task: &Task<'_, T>,
    inputs: [Source<'a, T>; IN],
    channels: &Range<usize>,
) -> Option<(T::Half, [Input<'a, T>; IN])> {
    halves(task.level, inputs).filter(|_| task.is_laid_out_for_sums(channels))
}

/// Sums over a block by lanes over 16-bit numbers.
fn reduce_halves<T: Vectorized, O: Terms<IN>, R: Read<T, IN>, const IN: usize>(
    (level, half): (Level, T::Half),
    geometry: &Geometry,
    inputs: [Input<'_, T>; IN],
    (channels, block): (&Range<usize>, &Block),
    sums: &mut Sums,
    read: R,
) {
    let (piece, channels, block) = (Piece::whole(geometry, block), channels.clone(), block.clone());
    let (interleave, terms) = (NoInterleave, PhantomData::<O>);
    T::dispatch_half(
        level,
        half,
        Reduce { geometry, inputs, channels, block, piece, sums, read, interleave, terms },
    );
}

/// Sums over a block: each piece of it is read into tiles, in which `masked` takes the last input's place, and reduced.
fn sums<T: Vectorized, const IN: usize>(
    task: &mut Task<'_, T>,
    inputs: [Source<'_, T>; IN],
    (channels, block): (&Range<usize>, &Block),
    masked: Option<Masked<'_, T>>,
    reduce: impl Fn(Level, Summed<'_, T, IN>, &mut Scratch<T>),
) {
    const { assert!(IN >= 1 && IN <= 2) };
    let (level, geometry) = (task.level, task.geometry);
    let Some(tiles) = task.tiles.take() else { return };
    let places = sum_pieces(geometry, channels.len(), block).map(|(some, part, piece)| {
        let some = channels.start + some.start..channels.start + some.end;
        (Place::of(geometry, &some, &part), piece)
    });
    for ((place, geometry), piece) in looking_ahead(places) {
        let mut read = inputs.map(|_| None);
        for ((read, input), tile) in read.iter_mut().zip(inputs).zip(&mut tiles.tensors) {
            // SAFETY: the tensors have the channels and the block, and no one writes to what is summed.
            *read = Some(unsafe { place.read(level, input, tile) });
        }
        if let (Some(masked), Some(dy)) = (masked, read[IN - 1]) {
            // SAFETY: the mask has a bit for each element of the tensor.
            let mask = masked.mask.map(|mask| unsafe { place.bits(mask, &mut tiles.bits) });
            let masked = Masked { mask, dz: None, ..masked };
            // In a form of its own: it has no coefficients.
            let flat = Geometry::new(1, 1, place.len(), Pattern::Along);
            let whole = Block { samples: 0..1, positions: 0..flat.s };
            tile_task(task, &flat).apply((GradientAlone, masked), [dy.as_input()], dy, (&(0..1), 0, &whole));
        }
        // All have been read.
        let inputs = read.map(|tile| tile.map_or(Input::new(&[]), |tile| tile.as_input()));
        reduce(level, Summed { inputs, geometry, piece }, task.scratch);
    }
    task.tiles = Some(tiles);
}

/// A task in tiles of this form, which are read and written through the caches.
fn tile_task<'t, T>(task: &'t mut Task<'_, T>, geometry: &'t Geometry) -> Task<'t, T> {
    let access = Access { store: Store::Temporal, prefetch: Prefetch::None, ..task.access };
    let (level, scratch) = (task.level, &mut *task.scratch);
    Task { level, geometry, access, scratch, tiles: None, tiled: false, pending: None }
}

impl<T: Vectorized> Memory<T> for Mixed {
    type In<'a> = Source<'a, T>;
    type Out<'a> = Sink<'a, T>;
    const TILED: bool = true;

    fn bytes(x: Source<'_, T>) -> usize {
        x.bytes()
    }

    fn sums<O: Terms<IN>, const IN: usize>(
        task: &mut Task<'_, T>,
        _: O,
        inputs: [Source<'_, T>; IN],
        part: (&Range<usize>, &Block),
    ) {
        if O::OF_HALVES
            && let Some((half, inputs)) = halves_to_sum(task, inputs, part.0)
        {
            let sums = &mut task.scratch.sums;
            return reduce_halves::<_, O, _, IN>(
                (task.level, half),
                task.geometry,
                inputs,
                part,
                sums,
                AsRead,
            );
        }
        sums(task, inputs, part, None, |level, summed, scratch| {
            summed.reduce::<O, _>(level, &mut scratch.sums, AsRead);
        });
    }
}

/// The sums of x and g, which is found from u anew; its coefficients are in the scratch.
pub fn sums_recomputed<T: Vectorized, O: Terms<2>>(
    task: &mut Task<'_, T>,
    _: O,
    inputs: [Source<'_, T>; 2],
    recomputed: Recomputed<T>,
    part: (&Range<usize>, &Block),
) {
    if O::OF_HALVES
        && let Some((half, inputs)) = halves_to_sum(task, inputs, part.0)
    {
        let Scratch { sums, coefficients, .. } = &mut *task.scratch;
        let read = ReadRecomputed { recomputed, coefficients };
        return reduce_halves::<_, O, _, 2>((task.level, half), task.geometry, inputs, part, sums, read);
    }
    sums(task, inputs, part, None, |level, summed, scratch| {
        let Scratch { sums, coefficients, .. } = scratch;
        summed.reduce::<O, _>(level, sums, ReadRecomputed { recomputed, coefficients });
    });
}

/// The same by what the forward pass kept.
pub fn sums_masked<T: Vectorized, O: Terms<2>>(
    task: &mut Task<'_, T>,
    _: O,
    inputs: [Source<'_, T>; 2],
    masked: Masked<'_, T>,
    part: (&Range<usize>, &Block),
) {
    if O::OF_HALVES
        && let Some((half, inputs)) = halves_to_sum(task, inputs, part.0)
    {
        let (sums, read) = (&mut task.scratch.sums, ReadMasked { masked, x: inputs[0] });
        return reduce_halves::<_, O, _, 2>((task.level, half), task.geometry, inputs, part, sums, read);
    }
    sums(task, inputs, part, Some(masked), |level, summed, scratch| {
        summed.reduce::<O, _>(level, &mut scratch.sums, AsRead);
    });
}

/// The pieces of a part of some channels that are mapped one after the other. Rows of all these channels stay whole.
fn map_pieces(
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

/// A part of an operation's tensors, to be mapped in tiles.
pub struct Mapped<'t, T> {
    pub task: Task<'t, T>,
    pub tiles: &'t mut Tiles<T>,
    pub place: Place,
    pub column: usize,
    /// How results are written to the tensors.
    pub store: Store,
}

/// Calls `each` with each piece of a part.
pub fn map<T: Vectorized>(
    task: &mut Task<'_, T>,
    (channels, column, part): Part<'_>,
    mut each: impl FnMut(Mapped<'_, T>),
) {
    let (geometry, access) = (task.geometry, task.access);
    let Some(tiles) = task.tiles.take() else { return };
    let places = map_pieces(geometry, channels.len(), part, access.planes_as_rows).map(|(some, part)| {
        let column = column + some.start;
        let some = channels.start + some.start..channels.start + some.end;
        (Place::of(geometry, &some, &part), column)
    });
    for ((place, geometry), column) in looking_ahead(places) {
        each(Mapped { task: tile_task(task, &geometry), tiles, place, column, store: access.store });
    }
    task.tiles = Some(tiles);
}

/// By lanes over 16-bit numbers, if that can be: then something.
fn normalize_halves<T: Vectorized>(
    ordinary: impl Formula<1, ORDINARY_SCALE>,
    (x, y): (Source<'_, T>, Sink<'_, T>),
    after: &After<'_, T, Mixed>,
    task: &mut Task<'_, T>,
    part: Part<'_>,
) -> Option<()> {
    let (half, [x, residual]) = halves(task.level, [x, after.residual.unwrap_or(x)])?;
    let y = half_to_write(half, y)?;
    if !task.scratch.ordinary || !task.is_laid_out(part.0) {
        return None;
    }
    match after.kind() {
        Kind::Nothing => task.apply_half(half, (ordinary, Bare), [x], y, part),
        Kind::Activation(activated) => task.apply_half(half, (ordinary, activated), [x], y, part),
        Kind::More => {
            let After { activation, mask, .. } = *after;
            After { activation, residual: after.residual.map(|_| residual), mask }.fuse(|epilogue| {
                task.apply_half::<_, _, 1, ORDINARY_SCALE>(half, (Normalize, epilogue), [x], y, part);
            });
        }
    }
    Some(())
}

/// The tensors of a backward pass's map by lanes over 16-bit numbers, if that can be: x and dy, dx and dz.
pub fn halves_to_map<'a, T: Vectorized>(
    task: &Task<'_, T>,
    inputs: [Source<'a, T>; 2],
    (dx, dz): (Sink<'a, T>, Option<Sink<'a, T>>),
    channels: &Range<usize>,
) -> Option<(T::Half, [Input<'a, T>; 2], Output<'a, T>, Option<Output<'a, T>>)> {
    let (half, inputs) = halves(task.level, inputs)?;
    let dx = half_to_write(half, dx)?;
    let dz = match dz {
        None => None,
        Some(dz) => Some(half_to_write(half, dz)?),
    };
    (task.scratch.ordinary && task.is_laid_out(channels)).then_some((half, inputs, dx, dz))
}

/// As [`Task::normalize`].
pub fn normalize<T: Vectorized>(
    ordinary: impl Formula<1, ORDINARY_SCALE>,
    (x, y): (Source<'_, T>, Sink<'_, T>),
    after: &After<'_, T, Mixed>,
    task: &mut Task<'_, T>,
    part: Part<'_>,
) {
    if normalize_halves(ordinary, (x, y), after, task, part).is_some() {
        return;
    }
    let writer = after.mask.map(|(mask, elements)| BitWriter::new(mask, elements));
    map(task, part, |mapped| {
        let Mapped { mut task, tiles: Tiles { tensors: [first, second], bits }, place, column, store } =
            mapped;
        let (level, Geometry { n, c, s, .. }) = (task.level, *task.geometry);
        // SAFETY: the tensors have the part, which is the task's.
        let (tile, residual) = unsafe {
            let residual = after.residual.map(|z| place.read(level, z, second).as_input());
            (place.read(level, x, first), residual)
        };
        let bits = &mut bits[..words(place.len())];
        let mask = writer.as_ref().map(|_| (Output::new(&mut *bits), place.len()));
        let own = After { activation: after.activation, residual, mask };
        let whole = Block { samples: 0..n, positions: 0..s };
        task.normalize(ordinary, tile.as_input(), tile, &own, (&(0..c), column, &whole));
        // SAFETY: as above.
        unsafe {
            place.write(level, tile, y, store);
            if let Some(writer) = &writer {
                place.write_bits(bits, writer);
            }
        }
    });
    if let Some(writer) = writer {
        // SAFETY: the part is the task's.
        unsafe { writer.flush() };
    }
}
