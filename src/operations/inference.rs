//! Inference.

use std::ops::Range;

use crate::ground::geometry::Block;
use crate::ground::slices::{Input, Output};
use crate::kernel::Vectorized;
use crate::kernel::map::formulas::Normalize;
use crate::kernel::scales::{ORDINARY_SCALE, SCALE};
use crate::operations::given::{Affine, After, Given};
use crate::schedule::engine::{Follow, Operation, Task};
use crate::simd::Level;

/// Normalization by given statistics.
pub struct Inference<'a, T> {
    pub x: Input<'a, T>,
    pub y: Output<'a, T>,
    pub affine: Affine<'a, T>,
    pub after: After<'a, T>,
    pub given: Given<'a, T>,
}

impl<T: Vectorized> Operation<T> for Inference<'_, T> {
    type State = ();
    const READS: usize = 1;

    fn beside(&self) -> usize {
        self.after.reads()
    }

    fn reduces(&self) -> bool {
        false
    }
    fn maps(&self) -> bool {
        true
    }
    fn begin(&self, _: &mut Task<'_, T>, _: &Range<usize>) {}
    fn sum(&self, _: &mut Task<'_, T>, _: &Range<usize>, _: &Block, _: &mut [()]) {}
    fn merge(&self, _: Level, _: (&mut [()], usize), _: (&[()], usize)) {}

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
        task.normalize(Normalize, self.x, self.y, &self.after, (channels, column, part));
    }
}
