//! Tensors of 16-bit numbers by lanes of their own, where those are: not in tiles, but as they lie.

use std::marker::PhantomData;
use std::ops::Range;

use crate::ground::geometry::{Block, Geometry};
use crate::ground::slices::{Input, Output, Sink, Source};
use crate::kernel::Vectorized;
use crate::kernel::fused::{Bare, Read};
use crate::kernel::map::formulas::{Formula, Normalize};
use crate::kernel::reduce::interleave::NoInterleave;
use crate::kernel::reduce::{Piece, Reduce};
use crate::kernel::scales::ORDINARY_SCALE;
use crate::kernel::scratch::Sums;
use crate::kernel::terms::Terms;
use crate::operations::given::{After, Kind};
use crate::operations::memory::{Mixed, Part};
use crate::schedule::engine::Task;
use crate::simd::Level;

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

/// As [`halves`], of tensors whose sums are laid out for them.
pub fn to_sum<'a, T: Vectorized, const IN: usize>(
    task: &Task<'_, T>,
    inputs: [Source<'a, T>; IN],
    channels: &Range<usize>,
) -> Option<(T::Half, [Input<'a, T>; IN])> {
    halves(task.level, inputs).filter(|_| task.is_laid_out_for_sums(channels))
}

/// Sums over a block by lanes over 16-bit numbers.
pub fn reduce<T: Vectorized, O: Terms<IN>, R: Read<T, IN>, const IN: usize>(
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

/// By lanes over 16-bit numbers, if that can be: then something.
pub fn normalize<T: Vectorized>(
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

/// A backward pass's tensors as such lanes take them: x and dy, dx and dz.
pub struct Gradients<'a, T: Vectorized> {
    pub half: T::Half,
    pub inputs: [Input<'a, T>; 2],
    pub dx: Output<'a, T>,
    pub dz: Option<Output<'a, T>>,
}

/// The same, if its map can be by such lanes.
pub fn to_map<'a, T: Vectorized>(
    task: &Task<'_, T>,
    inputs: [Source<'a, T>; 2],
    (dx, dz): (Sink<'a, T>, Option<Sink<'a, T>>),
    channels: &Range<usize>,
) -> Option<Gradients<'a, T>> {
    let (half, inputs) = halves(task.level, inputs)?;
    let dx = half_to_write(half, dx)?;
    let dz = match dz {
        None => None,
        Some(dz) => Some(half_to_write(half, dz)?),
    };
    (task.scratch.ordinary && task.is_laid_out(channels)).then_some(Gradients { half, inputs, dx, dz })
}
