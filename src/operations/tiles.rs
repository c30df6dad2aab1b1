//! Tensors of 16-bit numbers for which there are no lanes ([`halves`]): parts of them become tiles of elements in a thread's own memory,
//! which the kernels work on as on tensors of their own, and results are narrowed from there.

use std::marker::PhantomData;
use std::ops::Range;

use crate::ground::geometry::{Block, Geometry, Pattern, Run};
use crate::ground::scalar::Scalar;
use crate::ground::slices::{Input, Output, Sink, Source};
use crate::kernel::Vectorized;
use crate::kernel::bits::{BitWriter, words};
use crate::kernel::fused::{AsRead, Masked, Read, ReadRecomputed, Recomputed};
use crate::kernel::map::formulas::{Formula, GradientAlone};
use crate::kernel::map::{Access, Prefetch, Store};
use crate::kernel::reduce::interleave::NoInterleave;
use crate::kernel::reduce::{Piece, Reduce};
use crate::kernel::scales::ORDINARY_SCALE;
use crate::kernel::scratch::{Scratch, Sums, Tiles};
use crate::kernel::terms::Terms;
use crate::operations::given::After;
use crate::operations::halves;
use crate::operations::memory::{Memory, Mixed, Part};
use crate::operations::place::{Place, looking_ahead, map_pieces, sum_pieces};
use crate::schedule::engine::Task;
use crate::simd::Level;

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
        let (geometry, channels, run) = (&geometry, 0..geometry.c, Run::of(block.clone()));
        let (interleave, terms) = (NoInterleave, PhantomData::<O>);
        T::dispatch(
            level,
            Reduce { geometry, inputs, channels, run, block, piece, sums, read, interleave, terms },
        );
    }
}

/// Sums over each block of a run: each piece of it is read into tiles, in which `masked` takes the last input's place, and reduced.
fn sums<T: Vectorized, const IN: usize>(
    task: &mut Task<'_, T>,
    inputs: [Source<'_, T>; IN],
    (channels, run): (&Range<usize>, &Run),
    masked: Option<Masked<'_, T>>,
    reduce: impl Fn(Level, Summed<'_, T, IN>, &mut Scratch<T>),
) {
    const { assert!(IN >= 1 && IN <= 2) };
    let (level, geometry) = (task.level, task.geometry);
    let Some(tiles) = task.tiles.take() else { return };
    let places = (0..run.count).flat_map(|index| {
        let (block, place) = run.block_and_place(index);
        let totals = place * channels.len();
        sum_pieces(geometry, channels.len(), block).map(move |(some, part, piece)| {
            let some = channels.start + some.start..channels.start + some.end;
            (Place::of(geometry, &some, &part), Piece { totals, ..piece })
        })
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
fn tile_task<'t, T: Scalar>(task: &'t mut Task<'_, T>, geometry: &'t Geometry) -> Task<'t, T> {
    let access = Access { store: Store::Temporal, prefetch: Prefetch::None, ..task.access };
    let (level, scratch) = (task.level, &mut *task.scratch);
    Task { level, geometry, access, scratch, tiles: None, tiled: false, half: None, pending: None }
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
        terms: O,
        inputs: [Source<'_, T>; IN],
        part: (&Range<usize>, &Run),
    ) {
        if O::OF_HALVES
            && let Some((half, inputs)) = halves::to_sum(task, inputs, part.0)
        {
            return task.of_halves(half, |task| task.sums(terms, inputs, part));
        }
        sums(task, inputs, part, None, |level, summed, scratch| {
            summed.reduce::<O, _>(level, &mut scratch.sums, AsRead);
        });
    }

    fn sums_recomputed<O: Terms<2>>(
        task: &mut Task<'_, T>,
        terms: O,
        inputs: [Source<'_, T>; 2],
        recomputed: Recomputed<T>,
        part: (&Range<usize>, &Run),
    ) {
        if O::OF_HALVES
            && let Some((half, inputs)) = halves::to_sum(task, inputs, part.0)
        {
            return task.of_halves(half, |task| task.sums_recomputed(terms, inputs, recomputed, part));
        }
        sums(task, inputs, part, None, |level, summed, scratch| {
            let Scratch { sums, coefficients, .. } = scratch;
            summed.reduce::<O, _>(level, sums, ReadRecomputed { recomputed, coefficients });
        });
    }

    fn sums_masked<O: Terms<2>>(
        task: &mut Task<'_, T>,
        terms: O,
        inputs: [Source<'_, T>; 2],
        masked: Masked<'_, T>,
        part: (&Range<usize>, &Run),
    ) {
        if O::OF_HALVES
            && let Some((half, inputs)) = halves::to_sum(task, inputs, part.0)
        {
            return task.of_halves(half, |task| task.sums_masked(terms, inputs, masked, part));
        }
        sums(task, inputs, part, Some(masked), |level, summed, scratch| {
            summed.reduce::<O, _>(level, &mut scratch.sums, AsRead);
        });
    }
}

/// A part of an operation's tensors, to be mapped in tiles.
pub struct Mapped<'t, T: Scalar> {
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

/// As [`Task::normalize`].
pub fn normalize<'a, T: Vectorized>(
    ordinary: impl Formula<1, ORDINARY_SCALE>,
    (x, y): (Source<'a, T>, Sink<'a, T>),
    after: &After<'a, T, Mixed>,
    task: &mut Task<'_, T>,
    part: Part<'_>,
) {
    if let Some((half, (x, y, after))) = halves::to_normalize(task, (x, y), after, part.0) {
        return task.of_halves(half, |task| task.normalize(ordinary, x, y, &after, part));
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
