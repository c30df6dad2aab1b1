//! Inference.

use std::ops::Range;

use crate::ground::geometry::{Block, Run};
use crate::kernel::Vectorized;
use crate::kernel::map::formulas::Normalize;
use crate::kernel::room::Waiting;
use crate::kernel::scales::{ORDINARY_SCALE, SCALE};
use crate::operations::given::{Affine, After, Given};
use crate::operations::memory::{Loops, Memory, Mixed, Own, Part};
use crate::operations::tiles;
use crate::schedule::engine::{Follow, Operation, Task};
use crate::simd::Level;

/// Normalization by given statistics.
pub struct Inference<'a, T: Vectorized, M: Memory<T> = Own> {
    pub x: M::In<'a>,
    pub y: M::Out<'a>,
    pub affine: Affine<'a, T>,
    pub after: After<'a, T, M>,
    pub given: Given<'a, T>,
}

impl<'a, T: Vectorized> Inference<'a, T, Mixed> {
    /// Of tensors as the kernels take them, if all are.
    pub fn own(&self) -> Result<Inference<'a, T>, T::Half> {
        let Self { x, y, affine, ref after, given } = *self;
        Ok(Inference { x: x.whole()?, y: y.whole()?, affine, after: after.own()?, given })
    }
}

impl<T: Vectorized> Loops<T> for Inference<'_, T> {
    fn map_part(&self, task: &mut Task<'_, T>, part: Part<'_>) {
        task.normalize(Normalize, self.x, self.y, &self.after, part);
    }
}

impl<T: Vectorized> Loops<T> for Inference<'_, T, Mixed> {
    fn map_part(&self, task: &mut Task<'_, T>, part: Part<'_>) {
        tiles::normalize(Normalize, (self.x, self.y), &self.after, task, part);
    }
}

impl<T: Vectorized, M: Memory<T>> Operation<T> for Inference<'_, T, M>
where
    Self: Loops<T>,
{
    type State = ();
    const READS: usize = 1;
    const TILED: bool = M::TILED;

    fn element(&self) -> usize {
        M::bytes(self.x)
    }

    fn beside(&self) -> usize {
        self.after.reads()
    }

    fn reduces(&self) -> bool {
        false
    }
    fn maps(&self) -> bool {
        true
    }
    fn waiting(_: &mut Waiting<T>) -> &mut [()] {
        &mut []
    }
    fn begin(&self, _: &mut Task<'_, T>, _: &Range<usize>) {}
    fn sum(&self, _: &mut Task<'_, T>, _: &Range<usize>, _: &Run, _: &mut [()]) {}
    fn merge(&self, _: Level, _: (&mut [()], f64), _: (&[()], f64)) {}
    fn weigh(&self, _: &mut [()], _: f64) {}

    fn follow(&self, task: &mut Task<'_, T>, channels: &Range<usize>, states: &[()], wanted: Follow) {
        let rows = (&SCALE[..], ORDINARY_SCALE);
        task.follow(channels, states, wanted.coefficients, rows, |task, group, _, at| {
            if let Some(at) = at {
                let Affine { gamma, eps, .. } = self.affine;
                self.given.scales(task, group, (gamma, eps), (true, &[]));
                self.affine.coefficients(task, group, (SCALE, at));
            }
        });
    }

    fn map(&self, task: &mut Task<'_, T>, channels: &Range<usize>, column: usize, part: &Block) {
        self.map_part(task, (channels, column, part));
    }
}
