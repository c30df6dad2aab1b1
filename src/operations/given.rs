//! What an operation is given: per channel scale and shift, statistics; and what comes after.

use std::ops::Range;

use crate::ground::sizes::GROUP;
use crate::ground::slices::{Output, Source};
use crate::ground::welford::Welford;
use crate::kernel::Vectorized;
use crate::kernel::activations::{Activation, ActivationOf};
use crate::kernel::bits::BitWriter;
use crate::kernel::channels::*;
use crate::kernel::fused::{Activated, Epilogue, Masked, Recomputed};
use crate::operations::memory::{Memory, Mixed, Own};
use crate::schedule::engine::Task;

/// Scale and shift, checked.
#[derive(Clone, Copy)]
pub struct Affine<'a, T> {
    pub gamma: Option<&'a [T]>,
    pub beta: Option<&'a [T]>,
    pub eps: f64,
}

impl<T: Vectorized> Affine<'_, T> {
    /// Writes the coefficients of normalization to these rows, from the scales.
    pub fn coefficients(
        &self,
        task: &mut Task<'_, T>,
        channels: &Range<usize>,
        (rows, at): ([usize; 5], usize),
    ) {
        let beta = self.beta.map(|beta| &beta[channels.clone()]);
        T::dispatch(task.level, Deviations { rows, at, scratch: task.scratch });
        T::dispatch(task.level, Factors { beta, rows, at, scratch: task.scratch });
    }
}

/// What comes after a normalization, checked.
#[derive(Clone, Copy)]
pub struct After<'a, T: Vectorized, M: Memory<T> = Own> {
    pub activation: Activation,
    /// What is added before.
    pub residual: Option<M::In<'a>>,
    /// Where to write which of how many elements backward lets through.
    pub mask: Option<(Output<'a, u64>, usize)>,
}

impl<T: Vectorized, M: Memory<T>> After<'_, T, M> {
    pub const NOTHING: Self = Self { activation: Activation::Identity, residual: None, mask: None };

    pub fn kind(&self) -> Kind<T> {
        match (self.activation, self.residual, self.mask) {
            (Activation::Identity, None, None) => Kind::Nothing,
            (activation, None, None) => Kind::Activation(Activated(ActivationOf::new(activation))),
            _ => Kind::More,
        }
    }

    /// Tensors that are read beside.
    pub fn reads(&self) -> usize {
        usize::from(self.residual.is_some())
    }
}

impl<'a, T: Vectorized> After<'a, T, Mixed> {
    /// Of tensors as the kernels take them, if all are.
    pub fn own(&self) -> Result<After<'a, T>, T::Half> {
        let Self { activation, residual, mask } = *self;
        Ok(After { activation, residual: residual.map(Source::whole).transpose()?, mask })
    }
}

impl<T: Vectorized> After<'_, T> {
    /// Calls a task's map with it.
    pub fn fuse(&self, map: impl FnOnce(Epilogue<'_, T>)) {
        let writer = self.mask.map(|mask| BitWriter::new(mask.0, mask.1));
        let Self { activation, residual, .. } = *self;
        map(Epilogue { activation: ActivationOf::new(activation), residual, mask: writer.as_ref() });
        if let Some(writer) = writer {
            // SAFETY: the map pushed elements of its own.
            unsafe { writer.flush() };
        }
    }
}

/// How much that is.
pub enum Kind<T> {
    Nothing,
    Activation(Activated<T>),
    More,
}

/// What the sums and the map of a backward pass take in place of dy.
#[derive(Clone, Copy)]
pub enum Upstream<'a, T> {
    Recomputed(Recomputed<T>),
    Masked(Masked<'a, T>),
}

impl<'a, T: Copy> Upstream<'a, T> {
    /// With a place for what it is.
    pub fn with_dz(self, dz: Option<Output<'a, T>>) -> Self {
        match self {
            Upstream::Masked(masked) => Upstream::Masked(Masked { dz, ..masked }),
            recomputed => recomputed,
        }
    }
}

/// The statistics that an operation is given.
#[derive(Clone, Copy)]
pub enum Given<'a, T> {
    /// Those of the batch that the tensor is, or is a part of, with its elements per channel.
    Batch(&'a [Welford], u64),
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
            Given::Batch(states, count) => {
                // Copied, since LLVM vectorizes a loop over three of a state's four fields with loads that go past the last
                // state, into memory that may not be there (AVX2, rustc 1.95; tests/ground/memory.rs).
                let mut moments = [T::Moments::default(); GROUP];
                for (moments, state) in moments.iter_mut().zip(&states[channels.clone()]) {
                    *moments = state.moments();
                }
                let moments = (&moments[..channels.len()], *count as f64);
                task.batch_scales(channels, moments, (gamma, eps), (normalize, sums));
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
