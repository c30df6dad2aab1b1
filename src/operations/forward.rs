//! Statistics and training.

use std::ops::Range;

use crate::ground::geometry::{Block, Run};
use crate::ground::sizes::GROUP;
use crate::ground::slices::{Output, Sink};
use crate::ground::sums::{MergeWeights, Sum};
use crate::ground::welford::Welford;
use crate::kernel::Vectorized;
use crate::kernel::channels::*;
use crate::kernel::fused::Bare;
use crate::kernel::map::formulas::{Normalize, NormalizeBatch};
use crate::kernel::room::Waiting;
use crate::kernel::scales::{ORDINARY_SCALE, SCALE};
use crate::operations::given::{Affine, After, Kind};
use crate::operations::memory::{Loops, Memory, Mixed, Own, Part};
use crate::operations::tiles;
use crate::schedule::blocks::Samples;
use crate::schedule::engine::{Follow, Operation, Task};
use crate::simd::Level;

/// Statistics, and with `y` the normalization by them.
pub struct Forward<'a, T: Vectorized, M: Memory<T> = Own> {
    pub x: M::In<'a>,
    pub y: Option<M::Out<'a>>,
    pub affine: Affine<'a, T>,
    pub after: After<'a, T, M>,
    pub statistics: Statistics<'a, T>,
}

/// Where the statistics go.
#[derive(Clone, Copy)]
pub enum Statistics<'a, T: Vectorized> {
    States(Output<'a, Welford>),
    /// Those of some samples, as they merge.
    Part(Output<'a, T::Moments>, Samples<'a>),
}

impl<'a, T: Vectorized> Forward<'a, T, Mixed> {
    /// Of tensors as the kernels take them, if all are.
    pub fn own(&self) -> Result<Forward<'a, T>, T::Half> {
        let Self { x, y, affine, ref after, statistics } = *self;
        let y = y.map(Sink::whole).transpose()?;
        Ok(Forward { x: x.whole()?, y, affine, after: after.own()?, statistics })
    }
}

impl<T: Vectorized> Loops<T> for Forward<'_, T> {
    fn sum_and_map(&self, task: &mut Task<'_, T>, part: (&Range<usize>, &Run)) -> bool {
        let (Some(pending), Some(y)) = (task.pending.clone(), self.y) else { return false };
        let (terms, inputs) = (T::Plain::default(), [self.x]);
        match self.after.kind() {
            Kind::Nothing => {
                task.sums_and_map(terms, (NormalizeBatch, Bare), inputs, y, part, &pending);
            }
            Kind::Activation(activated) => {
                task.sums_and_map(terms, (NormalizeBatch, activated), inputs, y, part, &pending);
            }
            Kind::More => self.after.fuse(|epilogue| {
                let formula = (Normalize, epilogue);
                task.sums_and_map::<_, _, _, 1, ORDINARY_SCALE>(terms, formula, inputs, y, part, &pending);
            }),
        }
        true
    }

    fn map_part(&self, task: &mut Task<'_, T>, part: Part<'_>) {
        if let Some(y) = self.y {
            task.normalize(NormalizeBatch, self.x, y, &self.after, part);
        }
    }
}

impl<T: Vectorized> Loops<T> for Forward<'_, T, Mixed> {
    fn map_part(&self, task: &mut Task<'_, T>, part: Part<'_>) {
        if let Some(y) = self.y {
            tiles::normalize(NormalizeBatch, (self.x, y), &self.after, task, part);
        }
    }
}

impl<T: Vectorized, M: Memory<T>> Operation<T> for Forward<'_, T, M>
where
    Self: Loops<T>,
{
    type State = T::Moments;
    const READS: usize = 1;
    const TILED: bool = M::TILED;

    fn element(&self) -> usize {
        M::bytes(self.x)
    }

    fn beside(&self) -> usize {
        self.after.reads()
    }

    fn reduces(&self) -> bool {
        true
    }

    fn samples(&self) -> Option<Samples<'_>> {
        match self.statistics {
            Statistics::States(_) => None,
            Statistics::Part(_, samples) => Some(samples),
        }
    }

    fn maps(&self) -> bool {
        self.y.is_some()
    }

    fn waiting(waiting: &mut Waiting<T>) -> &mut [T::Moments] {
        &mut waiting.moments
    }

    fn begin(&self, _: &mut Task<'_, T>, _: &Range<usize>) {}

    /// Plain sums first. Where the variance is small against the mean they are too coarse, and another look, at
    /// elements that are still in cache, takes sums about the mean that they gave.
    fn sum(&self, task: &mut Task<'_, T>, channels: &Range<usize>, run: &Run, states: &mut [T::Moments]) {
        let count = run.first.count() as f64;
        let part = (channels, run);
        if !self.sum_and_map(task, part) {
            M::sums(task, T::Plain::default(), [self.x], part);
        }
        for look in 0..T::LOOKS {
            let sizes = (run.count * channels.len(), count);
            if !T::look_again(task.level, &mut task.scratch.sums, sizes, look == 0) {
                break;
            }
            if run.count > 1 {
                // Some of the blocks: one by one.
                for index in 0..run.count {
                    let (block, place) = run.block_and_place(index);
                    let of_block = &mut states[place * channels.len()..][..channels.len()];
                    self.sum(task, channels, &Run::of(block), of_block);
                }
                return;
            }
            task.scratch.sums.scaled = T::PAIRS;
            task.lay_out_centers(channels);
            M::sums(task, T::Pivoted::default(), [self.x], part);
        }
        T::moments(task.level, &task.scratch.sums, count, states);
    }

    fn merge(&self, level: Level, left: (&mut [T::Moments], f64), right: (&[T::Moments], f64)) {
        let weights = match self.samples() {
            Some(Samples { weights: Some(_), .. }) => MergeWeights::of_weights(left.1, right.1),
            _ => MergeWeights::new(left.1, right.1),
        };
        T::dispatch(level, Merge { left: left.0, right: right.0, weights });
    }

    fn weigh(&self, states: &mut [T::Moments], weight: f64) {
        states.iter_mut().for_each(|state| *state = state.weighed(weight));
    }

    fn follow(&self, task: &mut Task<'_, T>, channels: &Range<usize>, states: &[T::Moments], wanted: Follow) {
        let rows = (&SCALE[..], ORDINARY_SCALE);
        task.follow(channels, states, wanted.coefficients, rows, |task, group, states, at| {
            let count = task.geometry.m() as u64;
            if wanted.outputs {
                // SAFETY: in bounds; each channel belongs to one task.
                unsafe {
                    match self.statistics {
                        Statistics::States(to) => {
                            let to = to.part(group.clone()).iter_mut();
                            to.zip(states).for_each(|(to, state)| *to = Welford::of(count, *state));
                        }
                        Statistics::Part(to, _) => to.part(group.clone()).copy_from_slice(states),
                    }
                }
            }
            if let Some(at) = at {
                let Affine { gamma, eps, .. } = self.affine;
                // By the states that are returned, to the bit: of f64 these may hold a little less.
                let mut returned = [T::Moments::default(); GROUP];
                let mut moments = states;
                if T::PAIRS {
                    let as_returned = |state: &T::Moments| Welford::of(count, *state).moments();
                    returned.iter_mut().zip(states).for_each(|(to, state)| *to = as_returned(state));
                    moments = &returned[..states.len()];
                }
                task.batch_scales(group, (moments, count as f64), (gamma, eps), (true, &[]));
                self.affine.coefficients(task, group, (SCALE, at));
            }
        });
    }

    fn map(&self, task: &mut Task<'_, T>, channels: &Range<usize>, column: usize, part: &Block) {
        self.map_part(task, (channels, column, part));
    }

    fn can_pipeline(&self, task: &Task<'_, T>) -> bool {
        task.scratch.ordinary && !M::TILED
    }
}
