//! Tensors of 16-bit numbers as lanes of their own take them, where those are ([`HalfLanes`](crate::simd::half::HalfLanes)): as they lie,
//! not in tiles.

use std::ops::Range;

use crate::ground::slices::{Input, Output, Sink, Source};
use crate::kernel::Vectorized;
use crate::operations::given::After;
use crate::operations::memory::Mixed;
use crate::schedule::engine::Task;
use crate::simd::Level;

/// The tensors of a map.
type Tensors<'a, T, const IN: usize, const OUT: usize> = ([Input<'a, T>; IN], [Option<Output<'a, T>>; OUT]);

/// x, y and what comes after a normalization.
type Normalized<'a, T> = (Input<'a, T>, Output<'a, T>, After<'a, T>);

/// Tensors that are read, if they are all of the same numbers and the level has lanes over those.
fn to_read<'a, T: Vectorized, const N: usize>(
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

/// One that is written, if it is of these numbers.
fn to_write<'a, T: Vectorized>(half: T::Half, tensor: Sink<'a, T>) -> Option<Output<'a, T>> {
    match tensor {
        Sink::Half(tensor, other) if other == half => T::elements_mut(tensor),
        _ => None,
    }
}

/// What is summed, if sums over these channels are laid out for it.
pub fn to_sum<'a, T: Vectorized, const IN: usize>(
    task: &Task<'_, T>,
    inputs: [Source<'a, T>; IN],
    channels: &Range<usize>,
) -> Option<(T::Half, [Input<'a, T>; IN])> {
    to_read(task.level, inputs).filter(|_| task.is_laid_out_for_sums(channels))
}

/// What is mapped, if there are kernels for these channels, and coefficients are laid out for it.
pub fn to_map<'a, T: Vectorized, const IN: usize, const OUT: usize>(
    task: &Task<'_, T>,
    inputs: [Source<'a, T>; IN],
    outputs: [Option<Sink<'a, T>>; OUT],
    channels: &Range<usize>,
) -> Option<(T::Half, Tensors<'a, T, IN, OUT>)> {
    let (half, inputs) = to_read(task.level, inputs)?;
    let mut written = [None; OUT];
    for (written, output) in written.iter_mut().zip(outputs) {
        if let Some(output) = output {
            *written = Some(to_write(half, output)?);
        }
    }
    (task.scratch.ordinary && task.is_laid_out(channels)).then_some((half, (inputs, written)))
}

/// The same of a normalization.
pub fn to_normalize<'a, T: Vectorized>(
    task: &Task<'_, T>,
    (x, y): (Source<'a, T>, Sink<'a, T>),
    after: &After<'a, T, Mixed>,
    channels: &Range<usize>,
) -> Option<(T::Half, Normalized<'a, T>)> {
    // Without a residual x once more.
    let inputs = [x, after.residual.unwrap_or(x)];
    let (half, ([x, residual], [y])) = to_map(task, inputs, [Some(y)], channels)?;
    let After { activation, mask, .. } = *after;
    let after = After { activation, residual: after.residual.map(|_| residual), mask };
    Some((half, (x, y?, after)))
}
