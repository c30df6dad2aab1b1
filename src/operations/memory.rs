//! Where tensors are: in memory as the kernels take them ([`Own`]), or of 16-bit numbers, which lanes of their own take or which become
//! tiles first ([`Mixed`]).

use std::ops::Range;

use crate::ground::geometry::{Block, Run};
use crate::ground::slices::{Input, Output};
use crate::kernel::Vectorized;
use crate::kernel::fused::{Masked, Recomputed};
use crate::kernel::terms::Terms;
use crate::schedule::engine::Task;

/// A part of a tensor: channels, the column of the first one's coefficients, and what of each.
pub type Part<'a> = (&'a Range<usize>, usize, &'a Block);

/// A way for tensors to be in memory.
pub trait Memory<T: Vectorized>: Copy + Sync + 'static {
    /// A tensor that is read.
    type In<'a>: Copy + Sync;
    /// A tensor that is written.
    type Out<'a>: Copy + Sync;
    /// Whether operations work on tiles.
    const TILED: bool;

    /// Bytes of an element of a tensor.
    fn bytes(x: Self::In<'_>) -> usize;

    /// As [`Task::sums`].
    fn sums<O: Terms<IN>, const IN: usize>(
        task: &mut Task<'_, T>,
        terms: O,
        inputs: [Self::In<'_>; IN],
        part: (&Range<usize>, &Run),
    );
    /// As [`Task::sums_recomputed`].
    fn sums_recomputed<O: Terms<2>>(
        task: &mut Task<'_, T>,
        terms: O,
        inputs: [Self::In<'_>; 2],
        recomputed: Recomputed<T>,
        part: (&Range<usize>, &Run),
    );
    /// As [`Task::sums_masked`].
    fn sums_masked<O: Terms<2>>(
        task: &mut Task<'_, T>,
        terms: O,
        inputs: [Self::In<'_>; 2],
        masked: Masked<'_, T>,
        part: (&Range<usize>, &Run),
    );
}

/// An operation's loops over its tensors, which depend on where they are.
pub trait Loops<T: Vectorized> {
    /// The sums of a run, while the group that is pending is mapped; false if there is none.
    fn sum_and_map(&self, _: &mut Task<'_, T>, _: (&Range<usize>, &Run)) -> bool {
        false
    }
    /// Maps a part.
    fn map_part(&self, task: &mut Task<'_, T>, part: Part<'_>);
}

/// As the kernels take them.
#[derive(Clone, Copy)]
pub struct Own;

/// Of elements or of 16-bit numbers, each tensor as it is.
#[derive(Clone, Copy)]
pub struct Mixed;

impl<T: Vectorized> Memory<T> for Own {
    type In<'a> = Input<'a, T>;
    type Out<'a> = Output<'a, T>;
    const TILED: bool = false;

    fn bytes(_: Input<'_, T>) -> usize {
        size_of::<T>()
    }

    fn sums<O: Terms<IN>, const IN: usize>(
        task: &mut Task<'_, T>,
        terms: O,
        inputs: [Input<'_, T>; IN],
        part: (&Range<usize>, &Run),
    ) {
        task.sums(terms, inputs, part);
    }

    fn sums_recomputed<O: Terms<2>>(
        task: &mut Task<'_, T>,
        terms: O,
        inputs: [Input<'_, T>; 2],
        recomputed: Recomputed<T>,
        part: (&Range<usize>, &Run),
    ) {
        task.sums_recomputed(terms, inputs, recomputed, part);
    }

    fn sums_masked<O: Terms<2>>(
        task: &mut Task<'_, T>,
        terms: O,
        inputs: [Input<'_, T>; 2],
        masked: Masked<'_, T>,
        part: (&Range<usize>, &Run),
    ) {
        task.sums_masked(terms, inputs, masked, part);
    }
}
