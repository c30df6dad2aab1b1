//! What an operation is given per channel: scale and shift, statistics.

use std::ops::Range;

use crate::ground::sizes::GROUP;
use crate::ground::welford::Welford;
use crate::kernel::Vectorized;
use crate::kernel::channels::*;
use crate::schedule::engine::Task;

/// Scale and shift, checked.
#[derive(Clone, Copy)]
pub struct Affine<'a, T> {
    pub gamma: Option<&'a [T]>,
    pub beta: Option<&'a [T]>,
    pub eps: f64,
}

impl<T: Vectorized> Affine<'_, T> {
    /// Writes the coefficients of [`SCALE`], from the scales.
    pub fn coefficients(&self, task: &mut Task<'_, T>, channels: &Range<usize>, at: usize) {
        let beta = self.beta.map(|beta| &beta[channels.clone()]);
        T::dispatch(task.level, Deviations { at, scratch: task.scratch });
        T::dispatch(task.level, Factors { beta, at, scratch: task.scratch });
    }
}

/// The statistics that an operation is given.
#[derive(Clone, Copy)]
pub enum Given<'a, T> {
    /// The batch's own.
    Batch(&'a [Welford]),
    /// A mean and a variance per channel.
    Frozen { mean: &'a [T], var: &'a [T] },
}

impl<T: Vectorized> Given<'_, T> {
    /// Derives the scales of normalization (`normalize`) or of a backward pass.
    pub fn scales(
        &self,
        task: &mut Task<'_, T>,
        channels: &Range<usize>,
        (gamma, eps): (Option<&[T]>, f64),
        (normalize, sums): (bool, &[T::Gradients]),
    ) {
        match self {
            Given::Batch(states) => {
                // Copied, since LLVM vectorizes a loop over three of a state's four fields with loads that go past the last
                // state, into memory that may not be there (AVX2, rustc 1.95; tests/ground/memory.rs).
                let mut moments = [T::Moments::default(); GROUP];
                for (moments, state) in moments.iter_mut().zip(&states[channels.clone()]) {
                    *moments = state.moments();
                }
                task.batch_scales(channels, &moments[..channels.len()], (gamma, eps), (normalize, sums));
            }
            Given::Frozen { mean, var } => {
                let gamma = gamma.map(|gamma| &gamma[channels.clone()]);
                let (mean, var) = (&mean[channels.clone()], &var[channels.clone()]);
                let scratch = &mut *task.scratch;
                T::dispatch(task.level, GivenScales { mean, var, gamma, eps, normalize, scratch });
            }
        }
    }
}
