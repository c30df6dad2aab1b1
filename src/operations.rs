//! The operations as the engine runs them: which sums, which coefficients, which map.

use std::marker::PhantomData;
use std::ops::Range;

use crate::element::Element;
use crate::engine::{self, Operation, Task};
use crate::kernel::channels::*;
use crate::kernel::map::{Formula, FrozenGradient, InputGradient, Map, Normalize};
use crate::kernel::reduce::{GradientTerms, Pivoted, Plain, Reduce, Terms};
use crate::kernel::{Columns, Scratch};
use crate::plan::{Block, GROUP};
use crate::problem::{Geometry, Pattern};
use crate::simd::Level;
use crate::split::{Input, Output};
use crate::welford::{MergeWeights, Moments, Welford};

/// A checked call.
pub enum Job<'a, T> {
    Forward(Forward<'a, T>),
    Inference(Inference<'a, T>),
    Backward(Backward<'a, T>),
}

/// Runs a job; called through `Element::run` alone.
pub fn run<T: Element>(level: Level, geometry: &Geometry, job: &Job<'_, T>) {
    match job {
        Job::Forward(operation) => engine::run(level, geometry, operation),
        Job::Inference(operation) => engine::run(level, geometry, operation),
        Job::Backward(operation) => engine::run(level, geometry, operation),
    }
}

/// Scale and shift, checked.
#[derive(Clone, Copy)]
pub struct Affine<'a, T> {
    pub gamma: Option<&'a [T]>,
    pub beta: Option<&'a [T]>,
    pub eps: f64,
}

impl<T: Element> Affine<'_, T> {
    /// Writes the coefficients of [`SCALE`], from the scales.
    fn coefficients(&self, task: &mut Task<'_, T>, channels: &Range<usize>, at: usize) {
        let beta = self.beta.map(|beta| &beta[channels.clone()]);
        T::dispatch(task.level, Deviations { at, scratch: task.scratch });
        T::dispatch(task.level, Factors { beta, at, scratch: task.scratch });
        task.lay_out(channels, at, &SCALE, ORDINARY_SCALE);
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

impl<T: Element> Given<'_, T> {
    /// Derives the scales of normalization (`normalize`) or of a backward pass.
    fn scales(
        &self,
        task: &mut Task<'_, T>,
        channels: &Range<usize>,
        (gamma, eps): (Option<&[T]>, f64),
        (normalize, sums): (bool, &[GradientSums]),
    ) {
        match self {
            Given::Batch(states) => {
                // Copied, since LLVM vectorizes a loop over three of a state's four fields with loads that go past the last
                // state, into memory that may not be there (AVX2, rustc 1.95; tests/memory.rs).
                let mut moments = [Moments::default(); GROUP];
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

impl<T: Element> Task<'_, T> {
    /// As [`Given::scales`], of the batch's own moments.
    fn batch_scales(
        &mut self,
        channels: &Range<usize>,
        moments: &[Moments],
        (gamma, eps): (Option<&[T]>, f64),
        (normalize, sums): (bool, &[GradientSums]),
    ) {
        let gamma = gamma.map(|gamma| &gamma[channels.clone()]);
        let (count, scratch) = (self.geometry.m() as f64, &mut *self.scratch);
        T::dispatch(self.level, BatchScales { moments, count, gamma, eps, normalize, sums, scratch });
    }

    /// Lays out coefficients for the loops over these channels, the first of which has column `at`: the first `ordinary`
    /// rows where no channel needs the others.
    fn lay_out(&mut self, channels: &Range<usize>, at: usize, rows: &[usize], ordinary: usize) {
        let rows = if self.scratch.ordinary { &rows[..ordinary] } else { rows };
        let columns = Columns::of_map(self.geometry, channels);
        let whole_rows = self.geometry.pattern == Pattern::Across && at + channels.len() == self.geometry.c;
        if columns != Columns::Channels || whole_rows {
            let kernel = LayOut { scratch: self.scratch, rows, channels: at + channels.len(), columns };
            T::dispatch(self.level, kernel);
        }
    }

    /// Lays out centers for the loops over these channels.
    fn lay_out_centers(&mut self, channels: &Range<usize>) {
        let columns = Columns::of_sums(self.geometry, channels);
        if columns != Columns::Channels {
            let kernel = LayOutCenters { scratch: self.scratch, channels: channels.len(), columns };
            T::dispatch(self.level, kernel);
        }
    }

    /// Sums over a block, to the scratch.
    fn sums<O: Terms<IN>, const IN: usize>(
        &mut self,
        _: O,
        inputs: [Input<'_, T>; IN],
        channels: &Range<usize>,
        block: &Block,
    ) {
        let (channels, block) = (channels.clone(), block.clone());
        let kernel = Reduce {
            geometry: self.geometry,
            inputs,
            channels,
            block,
            scratch: self.scratch,
            terms: PhantomData::<O>,
        };
        T::dispatch(self.level, kernel);
    }

    /// Normalizes a part.
    fn normalize(&mut self, x: Input<'_, T>, y: Output<'_, T>, part: (&Range<usize>, usize, &Block)) {
        if let (true, Some((ordinary, _))) = (self.scratch.ordinary, SCALE.split_first_chunk()) {
            self.apply::<_, 1, ORDINARY_SCALE>(Normalize, *ordinary, [x], y, part);
        } else {
            self.apply(Normalize, SCALE, [x], y, part);
        }
    }

    /// Maps a part.
    fn apply<O: Formula<IN, K>, const IN: usize, const K: usize>(
        &mut self,
        _: O,
        k: [usize; K],
        inputs: [Input<'_, T>; IN],
        output: Output<'_, T>,
        (channels, column, part): (&Range<usize>, usize, &Block),
    ) {
        let (channels, part) = (channels.clone(), part.clone());
        let kernel = Map {
            geometry: self.geometry,
            inputs,
            output,
            channels,
            column,
            part,
            reach: self.reach,
            asked: self.asked,
            scratch: self.scratch,
            k,
            formula: PhantomData::<O>,
        };
        T::dispatch(self.level, kernel);
    }
}

/// Statistics, and with `y` the normalization by them.
pub struct Forward<'a, T> {
    pub x: Input<'a, T>,
    pub y: Option<Output<'a, T>>,
    pub affine: Affine<'a, T>,
    pub states: Output<'a, Welford>,
}

impl<T: Element> Operation<T> for Forward<'_, T> {
    type State = Moments;
    const READS: usize = 1;
    const FINISH_DERIVES: bool = false;

    fn reduces(&self) -> bool {
        true
    }

    fn prepare(&self, _: &mut Task<'_, T>, _: &Range<usize>) {}

    /// Plain sums first. Where the variance is small against the mean they are too coarse, and a second look, at
    /// elements that are still in cache, takes sums about the mean that they gave.
    fn reduce(&self, task: &mut Task<'_, T>, channels: &Range<usize>, block: &Block, states: &mut [Moments]) {
        let count = block.count() as f64;
        task.sums(Plain, [self.x], channels, block);
        let mut again = false;
        let condition =
            Condition { scratch: task.scratch, channels: channels.len(), count, again: &mut again };
        T::dispatch(task.level, condition);
        if again {
            task.lay_out_centers(channels);
            task.sums(Pivoted, [self.x], channels, block);
        }
        T::dispatch(task.level, BlockMoments { scratch: task.scratch, count, moments: states });
    }

    fn merge(&self, level: Level, left: (&mut [Moments], usize), right: (&[Moments], usize)) {
        let weights = MergeWeights::new(left.1 as u64, right.1 as u64);
        T::dispatch(level, Merge { left: left.0, right: right.0, weights });
    }

    fn derive(&self, task: &mut Task<'_, T>, channels: &Range<usize>, moments: &[Moments]) {
        let Affine { gamma, eps, .. } = self.affine;
        task.batch_scales(channels, moments, (gamma, eps), (true, &[]));
    }

    fn finish(&self, task: &mut Task<'_, T>, channels: &Range<usize>, states: &[Moments]) {
        // SAFETY: in bounds; each channel belongs to one task.
        let out = unsafe { self.states.part(channels.clone()) };
        for (out, state) in out.iter_mut().zip(states) {
            *out = Welford::from_moments(task.geometry.m() as u64, *state);
        }
    }

    fn maps(&self) -> bool {
        self.y.is_some()
    }

    fn coefficients(&self, task: &mut Task<'_, T>, channels: &Range<usize>, at: usize, _: &[Moments]) {
        self.affine.coefficients(task, channels, at);
    }

    fn map(&self, task: &mut Task<'_, T>, channels: &Range<usize>, column: usize, part: &Block) {
        if let Some(y) = self.y {
            task.normalize(self.x, y, (channels, column, part));
        }
    }
}

/// Normalization by given statistics.
pub struct Inference<'a, T> {
    pub x: Input<'a, T>,
    pub y: Output<'a, T>,
    pub affine: Affine<'a, T>,
    pub given: Given<'a, T>,
}

impl<T: Element> Operation<T> for Inference<'_, T> {
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

    fn map(&self, task: &mut Task<'_, T>, channels: &Range<usize>, column: usize, part: &Block) {
        task.normalize(self.x, self.y, (channels, column, part));
    }
}

/// Gradients, each optional.
pub struct Backward<'a, T> {
    pub x: Input<'a, T>,
    pub dy: Input<'a, T>,
    pub given: Given<'a, T>,
    pub gamma: Option<&'a [T]>,
    pub eps: f64,
    pub dx: Option<Output<'a, T>>,
    pub dgamma: Option<Output<'a, T>>,
    pub dbeta: Option<Output<'a, T>>,
    pub dmean: Option<Output<'a, T>>,
    pub dvar: Option<Output<'a, T>>,
}

impl<T: Element> Operation<T> for Backward<'_, T> {
    type State = GradientSums;
    const READS: usize = 2;
    const FINISH_DERIVES: bool = true;

    fn reduces(&self) -> bool {
        let per_channel = [&self.dgamma, &self.dbeta, &self.dmean, &self.dvar];
        per_channel.iter().any(|output| output.is_some()) || matches!(self.given, Given::Batch(_))
    }

    fn prepare(&self, task: &mut Task<'_, T>, channels: &Range<usize>) {
        let Scratch { centers, pivots, .. } = &mut *task.scratch;
        for ((channel, center), beside) in channels.clone().zip(centers).zip(pivots) {
            (*center, *beside) = match self.given {
                Given::Batch(states) => (states[channel].moments().mean, states[channel].moments().mean_low),
                Given::Frozen { mean, .. } => (mean[channel].to_f64(), 0.0),
            };
        }
        task.lay_out_centers(channels);
    }

    fn reduce(
        &self,
        task: &mut Task<'_, T>,
        channels: &Range<usize>,
        block: &Block,
        states: &mut [GradientSums],
    ) {
        task.sums(GradientTerms, [self.x, self.dy], channels, block);
        let Scratch { sums: [dy, dy_d], pivots, .. } = &*task.scratch;
        for (i, state) in states.iter_mut().enumerate() {
            *state = GradientSums { dy: dy[i], dy_d: dy_d[i] - pivots[i] * dy[i] };
        }
    }

    fn merge(&self, _: Level, left: (&mut [GradientSums], usize), right: (&[GradientSums], usize)) {
        for (left, right) in left.0.iter_mut().zip(right.0) {
            left.dy += right.dy;
            left.dy_d += right.dy_d;
        }
    }

    fn derive(&self, task: &mut Task<'_, T>, channels: &Range<usize>, sums: &[GradientSums]) {
        self.given.scales(task, channels, (self.gamma, self.eps), (false, sums));
    }

    /// dL/dmean and dL/dvar as S. Ioffe and C. Szegedy (2015) write them. In the former, the term with dL/dvar has the
    /// factor sum(x - mean), which is zero for a batch's own mean and not part of it for a frozen one.
    fn finish(&self, task: &mut Task<'_, T>, channels: &Range<usize>, states: &[GradientSums]) {
        let Scales { gain, invstd, .. } = &task.scratch.scales;
        let write = |output: &Option<Output<'_, T>>, value: &dyn Fn(usize, &GradientSums) -> f64| {
            if let Some(output) = output {
                // SAFETY: in bounds; each channel belongs to one task.
                let out = unsafe { output.part(channels.clone()) };
                for (i, (out, sums)) in out.iter_mut().zip(states).enumerate() {
                    *out = T::from_f64(value(i, sums));
                }
            }
        };
        write(&self.dbeta, &|_, sums| sums.dy);
        write(&self.dgamma, &|i, sums| sums.dy_d * invstd[i]);
        write(&self.dmean, &|i, sums| -(gain[i] * sums.dy));
        write(&self.dvar, &|i, sums| -0.5 * gain[i] * invstd[i] * (sums.dy_d * invstd[i]));
    }

    fn maps(&self) -> bool {
        self.dx.is_some()
    }

    fn coefficients(
        &self,
        task: &mut Task<'_, T>,
        channels: &Range<usize>,
        at: usize,
        states: &[GradientSums],
    ) {
        T::dispatch(task.level, Deviations { at, scratch: task.scratch });
        // Frozen statistics' dx has no part in them, and must not: it is the same with other gradients and without.
        let sums = if matches!(self.given, Given::Batch(_)) { states } else { &[] };
        let count = task.geometry.m() as f64;
        T::dispatch(task.level, GradientFactors { sums, count, at, scratch: task.scratch });
        task.lay_out(channels, at, &GRADIENT, ORDINARY_GRADIENT);
    }

    fn map(&self, task: &mut Task<'_, T>, channels: &Range<usize>, column: usize, part: &Block) {
        let Some(dx) = self.dx else { return };
        match self.given {
            Given::Batch(_) => {
                let (inputs, part) = ([self.x, self.dy], (channels, column, part));
                if let (true, Some((ordinary, _))) = (task.scratch.ordinary, GRADIENT.split_first_chunk()) {
                    task.apply::<_, 2, ORDINARY_GRADIENT>(InputGradient, *ordinary, inputs, dx, part);
                } else {
                    task.apply(InputGradient, GRADIENT, inputs, dx, part);
                }
            }
            Given::Frozen { .. } => {
                task.apply(FrozenGradient, [HALF, REST], [self.dy], dx, (channels, column, part));
            }
        }
    }
}
