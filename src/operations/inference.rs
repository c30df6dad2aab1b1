//! Inference.

use std::ops::Range;

use crate::ground::geometry::Block;
use crate::ground::slices::{Input, Output};
use crate::kernel::Vectorized;
use crate::kernel::map::formulas::Normalize;
use crate::kernel::scales::{ORDINARY_SCALE, SCALE};
use crate::operations::given::{Affine, Given};
use crate::schedule::engine::{Operation, Task};
use crate::simd::Level;

/// Normalization by given statistics.
pub struct Inference<'a, T> {
    pub x: Input<'a, T>,
    pub y: Output<'a, T>,
    pub affine: Affine<'a, T>,
    pub given: Given<'a, T>,
}

impl<T: Vectorized> Operation<T> for Inference<'_, T> {
    type State = ();
    const READS: usize = 1;
    const FINISH_DERIVES: bool = false;

    fn reduces(&self) -> bool {
        false
    }
    fn prepare(&self, _: &mut Task<'_, T>, _: &Range<usize>) {}
    fn reduce(&self, _: &mut Task<'_, T>, _: &Range<usize>, _: &Block, _: &mut [()]) {}
    fn merge(&self, _: Level, _: (&mut [()], usize), _: (&[()], usize)) {}
    fn derive(&self, task: &mut Task<'_, T>, channels: &Range<usize>, _: &[()]) {
        let Affine { gamma, eps, .. } = self.affine;
        self.given.scales(task, channels, (gamma, eps), (true, &[]));
    }
    fn finish(&self, _: &mut Task<'_, T>, _: &Range<usize>, _: &[()]) {}

    fn maps(&self) -> bool {
        true
    }

    fn coefficients(&self, task: &mut Task<'_, T>, channels: &Range<usize>, at: usize, _: &[()]) {
        self.affine.coefficients(task, channels, at);
    }

    fn lay_out(&self, task: &mut Task<'_, T>, channels: &Range<usize>) {
        task.lay_out_rows(channels, &SCALE, ORDINARY_SCALE);
    }

    fn map(&self, task: &mut Task<'_, T>, channels: &Range<usize>, column: usize, part: &Block) {
        task.normalize(Normalize, self.x, self.y, (channels, column, part));
    }
}
