//! The operations as the engine runs them: which sums, which coefficients, which map.

use std::marker::PhantomData;
use std::ops::Range;

use crate::ground::error::Error;
use crate::ground::geometry::{Block, Geometry, Pattern};
use crate::ground::moments::MergeWeights;
use crate::ground::sizes::GROUP;
use crate::ground::slices::{Input, Output};
use crate::ground::welford::Welford;
use crate::kernel::Vectorized;
use crate::kernel::channels::*;
use crate::kernel::columns::Columns;
use crate::kernel::map::Map;
use crate::kernel::map::formulas::{Formula, FrozenGradient, InputGradient, Normalize, NormalizeBatch};
use crate::kernel::map::pipelined::Pipelined;
use crate::kernel::precision::GradientSums;
use crate::kernel::reduce::{Interleave, NoInterleave, Reduce};
use crate::kernel::scales::{GRADIENT, ORDINARY_GRADIENT, ORDINARY_SCALE, SCALE, Scales};
use crate::kernel::scratch::{Scratch, Sums};
use crate::kernel::terms::Terms;
use crate::schedule::engine::{self, Operation, Task};
use crate::simd::Level;

/// A checked call.
pub enum Job<'a, T> {
    Forward(Forward<'a, T>),
    Inference(Inference<'a, T>),
    Backward(Backward<'a, T>),
}

/// A type of tensor elements that there are kernels for: `f32` or `f64`. Sealed.
pub trait Element: Vectorized {
    /// Runs an operation. The one place where the kernels are instantiated, in this crate and not in its users'.
    #[doc(hidden)]
    fn run(level: Level, geometry: &Geometry, job: &Job<'_, Self>) -> Result<(), Error>;
}

macro_rules! elements {
    ($($element:ty),*) => {$(
        impl Element for $element {
            fn run(level: Level, geometry: &Geometry, job: &Job<'_, Self>) -> Result<(), Error> {
                match job {
                    Job::Forward(operation) => engine::run(level, geometry, operation),
                    Job::Inference(operation) => engine::run(level, geometry, operation),
                    Job::Backward(operation) => engine::run(level, geometry, operation),
                }
            }
        }
    )*};
}
elements!(f32, f64);

/// Scale and shift, checked.
#[derive(Clone, Copy)]
pub struct Affine<'a, T> {
    pub gamma: Option<&'a [T]>,
    pub beta: Option<&'a [T]>,
    pub eps: f64,
}

impl<T: Vectorized> Affine<'_, T> {
    /// Writes the coefficients of [`SCALE`], from the scales.
    fn coefficients(&self, task: &mut Task<'_, T>, channels: &Range<usize>, at: usize) {
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
    fn scales(
        &self,
        task: &mut Task<'_, T>,
        channels: &Range<usize>,
        (gamma, eps): (Option<&[T]>, f64),
        (normalize, sums): (bool, &[T::Gradients]),
    ) {
        match self {
            Given::Batch(states) => {
                // Copied, since LLVM vectorizes a loop over three of a state's four fields with loads that go past the last
                // state, into memory that may not be there (AVX2, rustc 1.95; tests/memory.rs).
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

impl<T: Vectorized> Task<'_, T> {
    /// As [`Given::scales`], of the batch's own moments.
    fn batch_scales(
        &mut self,
        channels: &Range<usize>,
        moments: &[T::Moments],
        (gamma, eps): (Option<&[T]>, f64),
        (normalize, sums): (bool, &[T::Gradients]),
    ) {
        let gamma = gamma.map(|gamma| &gamma[channels.clone()]);
        let (count, scratch) = (self.geometry.m() as f64, &mut *self.scratch);
        T::dispatch(self.level, BatchScales { moments, count, gamma, eps, normalize, sums, scratch });
    }

    /// Lays out the coefficients of these channels, which have been written from column 0 on, for the loops over them: the
    /// first `ordinary` rows where no channel needs the others.
    fn lay_out_rows(&mut self, channels: &Range<usize>, rows: &[usize], ordinary: usize) {
        let rows = if self.scratch.ordinary { &rows[..ordinary] } else { rows };
        let columns = Columns::of_map(self.geometry, channels);
        let whole_rows = self.geometry.pattern == Pattern::Across && channels.len() == self.geometry.c;
        if columns != Columns::CHANNELS || whole_rows {
            let kernel = LayOut { scratch: self.scratch, rows, channels: channels.len(), columns };
            T::dispatch(self.level, kernel);
        }
    }

    /// Lays out centers for the loops over these channels.
    fn lay_out_centers(&mut self, channels: &Range<usize>) {
        let columns = Columns::of_sums(self.geometry, channels);
        if columns != Columns::CHANNELS {
            let sums = &mut self.scratch.sums;
            let scaled = sums.scaled;
            let kernel = LayOutCenters { sums, scaled, channels: channels.len(), columns };
            T::dispatch(self.level, kernel);
        }
    }

    /// Sums over a block, to the scratch.
    fn sums<O: Terms<IN>, const IN: usize>(
        &mut self,
        terms: O,
        inputs: [Input<'_, T>; IN],
        part: (&Range<usize>, &Block),
    ) {
        sum_up(self.level, self.geometry, terms, inputs, part, &mut self.scratch.sums, NoInterleave);
    }

    /// The same, while the group that was put off is mapped.
    fn sums_and_map<O: Terms<IN>, F: Formula<IN, K>, const IN: usize, const K: usize>(
        &mut self,
        terms: O,
        formula: F,
        inputs: [Input<'_, T>; IN],
        output: Output<'_, T>,
        part: (&Range<usize>, &Block),
        pending: &Range<usize>,
    ) {
        let (level, geometry) = (self.level, self.geometry);
        let whole = Block { samples: 0..geometry.n, positions: 0..geometry.s };
        let (map, sums) = self.map_of(formula, inputs, output, (pending, 0, &whole));
        sum_up(level, geometry, terms, inputs, part, sums, Pipelined(map));
    }

    /// Normalizes a part, by a formula of its own if all channels are ordinary.
    fn normalize(
        &mut self,
        ordinary: impl Formula<1, ORDINARY_SCALE>,
        x: Input<'_, T>,
        y: Output<'_, T>,
        part: (&Range<usize>, usize, &Block),
    ) {
        if self.scratch.ordinary {
            self.apply(ordinary, [x], y, part);
        } else {
            self.apply::<_, 1, 5>(Normalize, [x], y, part);
        }
    }

    /// Maps a part.
    fn apply<O: Formula<IN, K>, const IN: usize, const K: usize>(
        &mut self,
        formula: O,
        inputs: [Input<'_, T>; IN],
        output: Output<'_, T>,
        part: (&Range<usize>, usize, &Block),
    ) {
        let level = self.level;
        let (map, _) = self.map_of(formula, inputs, output, part);
        T::dispatch(level, map);
    }

    /// The map of a part, and what can be summed in beside it.
    fn map_of<'b, O: Formula<IN, K>, const IN: usize, const K: usize>(
        &'b mut self,
        _: O,
        inputs: [Input<'b, T>; IN],
        output: Output<'b, T>,
        (channels, column, part): (&Range<usize>, usize, &Block),
    ) -> (Map<'b, T, O, IN, K>, &'b mut Sums) {
        let (channels, part) = (channels.clone(), part.clone());
        let Scratch { sums, coefficients, .. } = &mut *self.scratch;
        let map = Map {
            geometry: self.geometry,
            inputs,
            output,
            channels,
            column,
            part,
            store: self.store,
            prefetch: self.prefetch,
            l1_ways: self.l1_ways,
            coefficients,
            formula: PhantomData,
        };
        (map, sums)
    }
}

/// Sums over a block, to `sums`, with something else interleave.
fn sum_up<T: Vectorized, O: Terms<IN>, M: Interleave<T>, const IN: usize>(
    level: Level,
    geometry: &Geometry,
    _: O,
    inputs: [Input<'_, T>; IN],
    (channels, block): (&Range<usize>, &Block),
    sums: &mut Sums,
    interleave: M,
) {
    let (channels, block) = (channels.clone(), block.clone());
    T::dispatch(
        level,
        Reduce { geometry, inputs, channels, block, sums, interleave, terms: PhantomData::<O> },
    );
}

/// Statistics, and with `y` the normalization by them.
pub struct Forward<'a, T> {
    pub x: Input<'a, T>,
    pub y: Option<Output<'a, T>>,
    pub affine: Affine<'a, T>,
    pub states: Output<'a, Welford>,
}

impl<T: Vectorized> Operation<T> for Forward<'_, T> {
    type State = T::Moments;
    const READS: usize = 1;
    const FINISH_DERIVES: bool = false;

    fn reduces(&self) -> bool {
        true
    }

    fn prepare(&self, _: &mut Task<'_, T>, _: &Range<usize>) {}

    /// Plain sums first. Where the variance is small against the mean they are too coarse, and another look, at
    /// elements that are still in cache, takes sums about the mean that they gave.
    fn reduce(
        &self,
        task: &mut Task<'_, T>,
        channels: &Range<usize>,
        block: &Block,
        states: &mut [T::Moments],
    ) {
        let count = block.count() as f64;
        let part = (channels, block);
        match (task.pending.clone(), self.y) {
            (Some(pending), Some(y)) => {
                let (terms, formula) = (T::Plain::default(), NormalizeBatch);
                task.sums_and_map(terms, formula, [self.x], y, part, &pending);
            }
            _ => task.sums(T::Plain::default(), [self.x], part),
        }
        for look in 0..T::LOOKS {
            let again = T::look_again(task.level, &mut task.scratch.sums, (channels.len(), count), look == 0);
            if !again {
                break;
            }
            task.scratch.sums.scaled = T::PAIRS;
            task.lay_out_centers(channels);
            task.sums(T::Pivoted::default(), [self.x], part);
        }
        T::moments(task.level, &task.scratch.sums, count, states);
    }

    fn merge(&self, level: Level, left: (&mut [T::Moments], usize), right: (&[T::Moments], usize)) {
        let weights = MergeWeights::new(left.1 as u64, right.1 as u64);
        T::dispatch(level, Merge { left: left.0, right: right.0, weights });
    }

    fn derive(&self, task: &mut Task<'_, T>, channels: &Range<usize>, moments: &[T::Moments]) {
        let Affine { gamma, eps, .. } = self.affine;
        task.batch_scales(channels, moments, (gamma, eps), (true, &[]));
    }

    fn finish(&self, task: &mut Task<'_, T>, channels: &Range<usize>, states: &[T::Moments]) {
        // SAFETY: in bounds; each channel belongs to one task.
        let out = unsafe { self.states.part(channels.clone()) };
        for (out, state) in out.iter_mut().zip(states) {
            *out = Welford::of(task.geometry.m() as u64, *state);
        }
    }

    fn maps(&self) -> bool {
        self.y.is_some()
    }

    fn can_pipeline(&self, task: &Task<'_, T>) -> bool {
        task.scratch.ordinary
    }

    fn coefficients(&self, task: &mut Task<'_, T>, channels: &Range<usize>, at: usize, _: &[T::Moments]) {
        self.affine.coefficients(task, channels, at);
    }

    fn lay_out(&self, task: &mut Task<'_, T>, channels: &Range<usize>) {
        task.lay_out_rows(channels, &SCALE, ORDINARY_SCALE);
    }

    fn map(&self, task: &mut Task<'_, T>, channels: &Range<usize>, column: usize, part: &Block) {
        if let Some(y) = self.y {
            task.normalize(NormalizeBatch, self.x, y, (channels, column, part));
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

impl<T: Vectorized> Backward<'_, T> {
    /// The sums of a block, while the group that was put off is mapped if there is one.
    fn reduce_by(&self, terms: impl Terms<2>, task: &mut Task<'_, T>, part: (&Range<usize>, &Block)) {
        let inputs = [self.x, self.dy];
        match (task.pending.clone(), self.dx) {
            (Some(pending), Some(dx)) => {
                let formula = InputGradient;
                task.sums_and_map::<_, _, 2, ORDINARY_GRADIENT>(terms, formula, inputs, dx, part, &pending);
            }
            _ => task.sums(terms, inputs, part),
        }
    }
}

impl<T: Vectorized> Operation<T> for Backward<'_, T> {
    type State = T::Gradients;
    const READS: usize = 2;
    const FINISH_DERIVES: bool = true;

    fn reduces(&self) -> bool {
        let per_channel = [&self.dgamma, &self.dbeta, &self.dmean, &self.dvar];
        per_channel.iter().any(|output| output.is_some()) || matches!(self.given, Given::Batch(_))
    }

    fn prepare(&self, task: &mut Task<'_, T>, channels: &Range<usize>) {
        let count = task.geometry.m() as f64;
        let sums = &mut task.scratch.sums;
        sums.scaled = false;
        for (i, channel) in channels.clone().enumerate() {
            match self.given {
                Given::Batch(states) => T::batch_center(sums, i, states[channel].moments(), count),
                Given::Frozen { mean, var } => {
                    T::given_center(sums, i, mean[channel].to_f64(), var[channel].to_f64() + self.eps);
                }
            }
        }
        task.lay_out_centers(channels);
    }

    fn reduce(
        &self,
        task: &mut Task<'_, T>,
        channels: &Range<usize>,
        block: &Block,
        states: &mut [T::Gradients],
    ) {
        let part = (channels, block);
        if T::PAIRS && task.scratch.sums.scaled {
            self.reduce_by(T::ScaledGradient::default(), task, part);
        } else {
            self.reduce_by(T::Gradient::default(), task, part);
        }
        for (i, state) in states.iter_mut().enumerate() {
            *state = T::Gradients::of_block(&task.scratch.sums, i);
        }
    }

    fn merge(&self, _: Level, left: (&mut [T::Gradients], usize), right: (&[T::Gradients], usize)) {
        for (left, right) in left.0.iter_mut().zip(right.0) {
            *left = left.merge(*right);
        }
    }

    fn derive(&self, task: &mut Task<'_, T>, channels: &Range<usize>, sums: &[T::Gradients]) {
        self.given.scales(task, channels, (self.gamma, self.eps), (false, sums));
    }

    /// dL/dmean and dL/dvar as S. Ioffe and C. Szegedy (2015) write them. In the former, the term with dL/dvar has the
    /// factor sum(x - mean), which is zero for a batch's own mean and not part of it for a frozen one.
    fn finish(&self, task: &mut Task<'_, T>, channels: &Range<usize>, states: &[T::Gradients]) {
        let Scales { unit, gain, invstd, .. } = &task.scratch.scales;
        let write = |output: &Option<Output<'_, T>>, value: &dyn Fn(usize, &T::Gradients) -> f64| {
            if let Some(output) = output {
                // SAFETY: in bounds; each channel belongs to one task.
                let out = unsafe { output.part(channels.clone()) };
                for (i, (out, sums)) in out.iter_mut().zip(states).enumerate() {
                    *out = T::from_f64(value(i, sums));
                }
            }
        };
        write(&self.dbeta, &|_, sums| sums.dy());
        write(&self.dgamma, &|i, sums| sums.dy_d() * invstd[i]);
        write(&self.dmean, &|i, sums| -(gain[i] * sums.dy()) * unit[i]);
        write(&self.dvar, &|i, sums| {
            -0.5 * gain[i] * invstd[i] * (sums.dy_d() * invstd[i]) * unit[i] * unit[i]
        });
    }

    fn maps(&self) -> bool {
        self.dx.is_some()
    }

    fn can_pipeline(&self, task: &Task<'_, T>) -> bool {
        task.scratch.ordinary && matches!(self.given, Given::Batch(_))
    }

    fn coefficients(&self, task: &mut Task<'_, T>, _: &Range<usize>, at: usize, states: &[T::Gradients]) {
        T::dispatch(task.level, Deviations { at, scratch: task.scratch });
        // Frozen statistics' dx has no part in them, and must not: it is the same with other gradients and without.
        let sums = if matches!(self.given, Given::Batch(_)) { states } else { &[] };
        let count = task.geometry.m() as f64;
        T::dispatch(task.level, GradientFactors { sums, count, at, scratch: task.scratch });
    }

    fn lay_out(&self, task: &mut Task<'_, T>, channels: &Range<usize>) {
        task.lay_out_rows(channels, &GRADIENT, ORDINARY_GRADIENT);
    }

    fn map(&self, task: &mut Task<'_, T>, channels: &Range<usize>, column: usize, part: &Block) {
        let Some(dx) = self.dx else { return };
        match self.given {
            Given::Batch(_) => {
                let (inputs, part) = ([self.x, self.dy], (channels, column, part));
                if task.scratch.ordinary {
                    task.apply::<_, 2, ORDINARY_GRADIENT>(InputGradient, inputs, dx, part);
                } else {
                    task.apply::<_, 2, 10>(InputGradient, inputs, dx, part);
                }
            }
            Given::Frozen { .. } => {
                task.apply(FrozenGradient, [self.dy], dx, (channels, column, part));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernel::map::Store;
    use crate::schedule::machine::Machine;
    use crate::schedule::plan::Plan;
    use crate::schedule::policies::{Schedule, Setting, Traffic};
    use crate::schedule::tuning::Tuning;

    /// A group that is mapped while the next is summed gets the bits that it gets by itself, and no one else's do change:
    /// on the machines, and with the tensors, for which plans choose that, and elsewhere.
    #[test]
    fn overlap_changes_no_bit() {
        for level in Level::available() {
            overlap_changes_no_bit_of::<f32>(*level);
            overlap_changes_no_bit_of::<f64>(*level);
        }
    }

    fn overlap_changes_no_bit_of<T: Vectorized>(level: Level) {
        const CANARY: f64 = 12345.0;
        for (n, c, s) in
            [(3, 5, 100), (2, 7, 196), (1, 9, 18), (1, 4, 17), (4, 6, 784), (33, 4, 81), (2, 3, 9000)]
        {
            let geometry = Geometry { n, c, s, pattern: Pattern::Along };
            let len = geometry.len();
            // Channel 1 is not ordinary, channel 2 takes a second look.
            let value = |i: usize, seed: usize| {
                let noise = ((i * 2 + seed).wrapping_mul(0x9E37_79B9) >> 7 & 0xFFFF) as f64 / 65536.0 - 0.5;
                T::from_f64(match i / s % c {
                    1 => noise * 1e-37,
                    2 => noise + 3e5,
                    _ => noise,
                })
            };
            let tensor = |seed| (0..len).map(|i| value(i, seed)).collect::<Vec<T>>();
            let (x, dy) = (tensor(1), tensor(2));
            let gamma: Vec<T> = (0..c).map(|channel| T::from_f64(1.5 - channel as f64)).collect();
            let affine = Affine { gamma: Some(&gamma), beta: None, eps: 1e-5 };
            for (group, offset) in [(1, 0), (2, 1), (3, 15), (2, 16)] {
                let [apart, overlapped] = [false, true].map(|overlap| {
                    let traffic = Traffic { element: size_of::<T>(), reads: 2, reduces: true, maps: true };
                    let (machine, tuning) = (Machine::get(), Tuning::DEFAULT);
                    let plan = Plan {
                        schedule: Schedule::ChannelBlocked,
                        store: Store::NonTemporal,
                        channel_group: group,
                        software_pipelining: overlap,
                        ..Plan::new(&Setting { geometry, traffic, machine, tuning, threads: 1 })
                    };
                    let mut states = vec![Welford::new(); c];
                    let mut outputs =
                        [vec![T::from_f64(CANARY); len + 40], vec![T::from_f64(CANARY); len + 40]];
                    let [y, dx] =
                        outputs.each_mut().map(|output| Output::new(&mut output[offset + 4..][..len]));
                    let x = Input::new(&x);
                    let forward = Forward { x, y: Some(y), affine, states: Output::new(&mut states) };
                    engine::run_by(plan, level, &geometry, &forward).unwrap();
                    let mut sums = [vec![T::from_f64(0.0); c], vec![T::from_f64(0.0); c]];
                    let [dgamma, dbeta] = sums.each_mut().map(|sums| Some(Output::new(sums)));
                    let backward = Backward {
                        x,
                        dy: Input::new(&dy),
                        given: Given::Batch(&states),
                        gamma: affine.gamma,
                        eps: affine.eps,
                        dx: Some(dx),
                        dgamma,
                        dbeta,
                        dmean: None,
                        dvar: None,
                    };
                    engine::run_by(plan, level, &geometry, &backward).unwrap();
                    let numbers = |values: &Vec<T>| {
                        values.iter().map(|value| value.to_f64().to_bits()).collect::<Vec<_>>()
                    };
                    [&outputs[0], &outputs[1], &sums[0], &sums[1]].map(numbers)
                });
                let canary = CANARY.to_bits();
                assert!(
                    overlapped[..2]
                        .iter()
                        .all(|output| output[..offset + 4].iter().all(|bits| *bits == canary))
                );
                assert_eq!(apart, overlapped, "{level} {geometry:?} groups of {group}, offset {offset}");
            }
        }
    }
}
