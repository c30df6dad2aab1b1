//! Backward, through a batch's statistics and with frozen ones.

use std::ops::Range;

use crate::ground::double::product;
use crate::ground::geometry::{Block, Geometry, Run};
use crate::ground::sizes::GROUP;
use crate::ground::slices::{Input, Output, Sink};
use crate::ground::sums::Sum;
use crate::kernel::Vectorized;
use crate::kernel::activations::{Activation, ActivationOf};
use crate::kernel::bits::Bits;
use crate::kernel::channels::*;
use crate::kernel::columns::Columns;
use crate::kernel::fused::{Bare, Masked, Recomputed};
use crate::kernel::map::formulas::*;
use crate::kernel::precision::GradientSums;
use crate::kernel::room::Waiting;
use crate::kernel::scales::{FORWARD, GRADIENT, ORDINARY_GRADIENT, SCALE, Scales};
use crate::kernel::scratch::Tiles;
use crate::kernel::terms::Terms;
use crate::operations::given::{Affine, Given, Upstream};
use crate::operations::halves;
use crate::operations::memory::{Loops, Memory, Mixed, Own, Part};
use crate::operations::tiles::{self, Mapped};
use crate::schedule::blocks::Samples;
use crate::schedule::engine::{Follow, Operation, Task};
use crate::schedule::ranges::pieces;
use crate::simd::Level;

/// Gradients, each optional.
#[derive(Clone, Copy)]
pub struct Backward<'a, T: Vectorized, M: Memory<T> = Own> {
    pub x: M::In<'a>,
    pub dy: M::In<'a>,
    pub given: Given<'a, T>,
    pub sums: Sums<'a, T>,
    pub affine: Affine<'a, T>,
    /// What came after the normalization, and which elements it let through, if that was kept.
    pub activation: Activation,
    pub mask: Option<Bits<'a>>,
    pub dz: Option<M::Out<'a>>,
    pub dx: Option<M::Out<'a>>,
    pub dgamma: Option<Output<'a, T>>,
    pub dbeta: Option<Output<'a, T>>,
    pub dmean: Option<Output<'a, T>>,
    pub dvar: Option<Output<'a, T>>,
}

/// The sums that gradients follow from.
#[derive(Clone, Copy)]
pub enum Sums<'a, T: Vectorized> {
    /// Of the tensors.
    Own,
    /// Of all parts of the batch; with weights of samples, over elements of so much weight per channel.
    Joined(&'a [T::Gradients], Option<f64>),
    /// Of some samples, which are not followed any further.
    Part(Output<'a, T::Gradients>, Samples<'a>),
}

impl<T: Vectorized, M: Memory<T>> Backward<'_, T, M> {
    /// The elements per channel of the batch whose statistics are given.
    pub fn count(&self) -> Option<u64> {
        match self.given {
            Given::Batch(_, count) => Some(count),
            Given::Frozen { .. } => None,
        }
    }

    /// Those that the states are of.
    fn summed(&self, task: &Task<'_, T>) -> f64 {
        self.count().unwrap_or(task.geometry.m() as u64) as f64
    }

    /// Whether something per channel is wanted.
    fn writes(&self) -> bool {
        let per_channel = [&self.dgamma, &self.dbeta, &self.dmean, &self.dvar];
        per_channel.iter().any(|output| output.is_some())
    }

    /// What the sums and the map take in place of dy, if anything; where dz goes is for the map to say.
    fn upstream(&self) -> Option<Upstream<'_, T>> {
        let Self { activation, mask, dz, .. } = *self;
        let of = ActivationOf::new(activation);
        match (activation, mask) {
            (Activation::Identity, _) if dz.is_none() => None,
            (Activation::Identity, _) => {
                Some(Upstream::Masked(Masked { activation: of, mask: None, dz: None }))
            }
            (_, None) => Some(Upstream::Recomputed(Recomputed(of))),
            (_, Some(_)) => Some(Upstream::Masked(Masked { activation: of, mask, dz: None })),
        }
    }

    /// Whether sums are of x times a unit, and about a center, in f64.
    fn is_scaled(&self, task: &Task<'_, T>) -> bool {
        T::PAIRS && task.scratch.sums.scaled
    }

    /// Whether that takes u, and so u's coefficients.
    fn takes_u(&self) -> bool {
        self.activation != Activation::Identity && self.mask.is_none()
    }

    /// Writes u's coefficients, from column `at` on.
    fn forward_coefficients(&self, task: &mut Task<'_, T>, group: &Range<usize>, at: usize) {
        let Affine { gamma, eps, .. } = self.affine;
        self.given.scales(task, group, (gamma, eps), (true, &[]));
        self.affine.coefficients(task, group, (FORWARD, at));
    }

    /// dL/dmean and dL/dvar as S. Ioffe and C. Szegedy (2015) write them. In the former, the term with dL/dvar has the
    /// factor sum(x - mean), which is zero for a batch's own mean and not part of it for a frozen one.
    fn write(&self, scales: &Scales, channels: &Range<usize>, states: &[T::Gradients]) {
        let Scales { unit, gain, invstd, .. } = scales;
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
        write(&self.dmean, &|i, sums| product([-gain[i], sums.dy(), unit[i]]));
        write(&self.dvar, &|i, sums| {
            product([-0.5, gain[i], invstd[i], sums.dy_d() * invstd[i], unit[i], unit[i]])
        });
    }
}

impl<T: Vectorized> Loops<T> for Backward<'_, T> {
    fn sum_and_map(&self, task: &mut Task<'_, T>, part: (&Range<usize>, &Run)) -> bool {
        let (Some(pending), Some(dx)) = (task.pending.clone(), self.dx) else { return false };
        if self.is_scaled(task) {
            self.sum_and_map_by(T::ScaledGradient::default(), task, dx, (part, &pending));
        } else {
            self.sum_and_map_by(T::Gradient::default(), task, dx, (part, &pending));
        }
        true
    }

    fn map_part(&self, task: &mut Task<'_, T>, part: Part<'_>) {
        let inputs = [self.x, self.dy];
        let Some(dx) = self.dx else {
            if let (Some(dz), Some(Upstream::Masked(masked))) = (self.dz, self.upstream()) {
                task.apply((GradientAlone, masked), [self.dy], dz, part);
            }
            return;
        };
        let upstream = self.upstream().map(|upstream| upstream.with_dz(self.dz));
        match (&self.given, upstream, task.scratch.ordinary) {
            (Given::Batch(..), None, true) => {
                task.apply::<_, _, 2, ORDINARY_GRADIENT>((InputGradient, Bare), inputs, dx, part);
            }
            (Given::Batch(..), None, false) => {
                task.apply::<_, _, 2, 10>((InputGradient, Bare), inputs, dx, part);
            }
            (Given::Batch(..), Some(Upstream::Recomputed(recomputed)), true) => {
                let formula = (InputGradientThrough, recomputed);
                task.apply::<_, _, 2, ORDINARY_THROUGH>(formula, inputs, dx, part);
            }
            (Given::Batch(..), Some(Upstream::Recomputed(recomputed)), false) => {
                let formula = (InputGradientThrough, recomputed);
                task.apply::<_, _, 2, ANY_THROUGH>(formula, inputs, dx, part);
            }
            (Given::Batch(..), Some(Upstream::Masked(masked)), true) => {
                task.apply::<_, _, 2, ORDINARY_GRADIENT>((InputGradient, masked), inputs, dx, part);
            }
            (Given::Batch(..), Some(Upstream::Masked(masked)), false) => {
                task.apply::<_, _, 2, 10>((InputGradient, masked), inputs, dx, part);
            }
            (Given::Frozen { .. }, None, _) => {
                task.apply((FrozenGradient, Bare), [self.dy], dx, part);
            }
            (Given::Frozen { .. }, Some(Upstream::Recomputed(recomputed)), _) => {
                task.apply((FrozenGradientThrough, recomputed), inputs, dx, part);
            }
            (Given::Frozen { .. }, Some(Upstream::Masked(masked)), _) => {
                task.apply((FrozenGradient, masked), [self.dy], dx, part);
            }
        }
    }
}

impl<T: Vectorized> Backward<'_, T> {
    fn sum_and_map_by(
        &self,
        terms: impl Terms<2>,
        task: &mut Task<'_, T>,
        dx: Output<'_, T>,
        (part, pending): ((&Range<usize>, &Run), &Range<usize>),
    ) {
        let (formula, inputs) = ((InputGradient, Bare), [self.x, self.dy]);
        task.sums_and_map::<_, _, _, 2, ORDINARY_GRADIENT>(terms, formula, inputs, dx, part, pending);
    }
}

impl<'a, T: Vectorized> Backward<'a, T, Mixed> {
    /// Of tensors as the kernels take them, if all are.
    pub fn own(&self) -> Result<Backward<'a, T>, T::Half> {
        let (x, dy) = (self.x.whole()?, self.dy.whole()?);
        let (dx, dz) = (self.dx.map(Sink::whole).transpose()?, self.dz.map(Sink::whole).transpose()?);
        Ok(self.with((x, dy), (dx, dz), self.mask))
    }

    /// The same by these sums, and with what is per channel.
    pub fn by<'b>(
        &self,
        sums: Sums<'b, T>,
        [dgamma, dbeta, dmean, dvar]: [Option<Output<'b, T>>; 4],
    ) -> Backward<'b, T, Mixed>
    where
        'a: 'b,
    {
        let Self { x, dy, given, affine, activation, mask, dx, dz, .. } = *self;
        Backward { x, dy, given, sums, affine, activation, mask, dz, dx, dgamma, dbeta, dmean, dvar }
    }

    /// The same of other tensors.
    fn with<'b>(
        &self,
        (x, dy): (Input<'b, T>, Input<'b, T>),
        (dx, dz): (Option<Output<'b, T>>, Option<Output<'b, T>>),
        mask: Option<Bits<'b>>,
    ) -> Backward<'b, T>
    where
        'a: 'b,
    {
        let Self { given, sums, affine, activation, dgamma, dbeta, dmean, dvar, .. } = *self;
        Backward { x, dy, given, sums, affine, activation, mask, dz, dx, dgamma, dbeta, dmean, dvar }
    }
}

impl<T: Vectorized> Loops<T> for Backward<'_, T, Mixed> {
    fn map_part(&self, task: &mut Task<'_, T>, part: Part<'_>) {
        let by_batch = matches!(self.given, Given::Batch(..));
        let (inputs, outputs) = ([self.x, self.dy], [self.dx, self.dz]);
        // dz alone and frozen statistics' dx are mapped in tiles.
        if self.dx.is_some()
            && by_batch
            && let Some((half, ([x, dy], [dx, dz]))) = halves::to_map(task, inputs, outputs, part.0)
        {
            let own = self.with((x, dy), (dx, dz), self.mask);
            return task.of_halves(half, |task| own.map_part(task, part));
        }
        let takes_x = self.dx.is_some() && (by_batch || self.takes_u());
        tiles::map(task, part, |mapped| {
            let Mapped { mut task, tiles: Tiles { tensors: [first, second], bits }, place, column, store } =
                mapped;
            let (level, Geometry { n, c, s, .. }) = (task.level, *task.geometry);
            // SAFETY: the tensors have the part, which is the task's.
            let (x, dy, mask) = unsafe {
                let x = match takes_x {
                    true => place.read(level, self.x, first),
                    false => Output::new(&mut first[..place.len()]),
                };
                let mask = self.mask.map(|mask| place.bits(mask, bits));
                (x, place.read(level, self.dy, second), mask)
            };
            let outputs = (self.dx.map(|_| x), self.dz.map(|_| dy));
            let own = self.with((x.as_input(), dy.as_input()), outputs, mask);
            let whole = Block { samples: 0..n, positions: 0..s };
            own.map_part(&mut task, (&(0..c), column, &whole));
            // SAFETY: as above.
            unsafe {
                if let Some(dx) = self.dx {
                    place.write(level, x, dx, store);
                }
                if let Some(dz) = self.dz {
                    place.write(level, dy, dz, store);
                }
            }
        });
    }
}

impl<T: Vectorized, M: Memory<T>> Operation<T> for Backward<'_, T, M>
where
    Self: Loops<T>,
{
    type State = T::Gradients;
    const READS: usize = 2;
    const TILED: bool = M::TILED;

    fn element(&self) -> usize {
        M::bytes(self.x)
    }

    fn beside(&self) -> usize {
        usize::from(self.dz.is_some())
    }

    fn reduces(&self) -> bool {
        match self.sums {
            Sums::Own => self.writes() || matches!(self.given, Given::Batch(..)),
            Sums::Joined(..) => false,
            Sums::Part(..) => true,
        }
    }

    fn samples(&self) -> Option<Samples<'_>> {
        match self.sums {
            Sums::Part(_, samples) => Some(samples),
            _ => None,
        }
    }

    fn concludes(&self) -> bool {
        matches!(self.sums, Sums::Joined(..)) && self.writes()
    }

    fn maps(&self) -> bool {
        self.dx.is_some() || self.dz.is_some()
    }

    fn waiting(waiting: &mut Waiting<T>) -> &mut [T::Gradients] {
        &mut waiting.gradients
    }

    fn begin(&self, task: &mut Task<'_, T>, channels: &Range<usize>) {
        let count = self.summed(task);
        let sums = &mut task.scratch.sums;
        sums.scaled = false;
        for (i, channel) in channels.clone().enumerate() {
            match self.given {
                Given::Batch(states, _) => {
                    T::batch_center(sums, i, states[channel].moments(), (count, self.affine.eps))
                }
                Given::Frozen { mean, var } => {
                    T::given_center(sums, i, mean[channel].to_f64(), var[channel].to_f64() + self.affine.eps);
                }
            }
        }
        // The same bits as without; a form less of the sums for what is fused.
        task.scratch.sums.scaled |= T::PAIRS && self.upstream().is_some();
        task.lay_out_centers(channels);
        if self.takes_u() {
            for group in pieces(channels.clone(), GROUP) {
                self.forward_coefficients(task, &group, group.start - channels.start);
            }
            let columns = task.columns_of_sums(channels);
            if columns != Columns::CHANNELS {
                task.lay_out_rows(channels, &FORWARD, columns);
            }
        }
    }

    fn sum(&self, task: &mut Task<'_, T>, channels: &Range<usize>, run: &Run, states: &mut [T::Gradients]) {
        let (inputs, part) = ([self.x, self.dy], (channels, run));
        match self.upstream() {
            None if self.sum_and_map(task, part) => {}
            None if self.is_scaled(task) => M::sums(task, T::ScaledGradient::default(), inputs, part),
            None => M::sums(task, T::Gradient::default(), inputs, part),
            Some(Upstream::Recomputed(recomputed)) => {
                M::sums_recomputed(task, T::ScaledGradient::default(), inputs, recomputed, part);
            }
            Some(Upstream::Masked(masked)) => {
                M::sums_masked(task, T::ScaledGradient::default(), inputs, masked, part);
            }
        }
        for (block, states) in states.chunks_exact_mut(channels.len()).enumerate() {
            let totals = block * channels.len();
            for (i, state) in states.iter_mut().enumerate() {
                *state = T::Gradients::of_block(&task.scratch.sums, totals + i, i);
            }
        }
    }

    fn merge(&self, _: Level, left: (&mut [T::Gradients], f64), right: (&[T::Gradients], f64)) {
        for (left, right) in left.0.iter_mut().zip(right.0) {
            *left = left.merge(*right);
        }
    }

    fn weigh(&self, states: &mut [T::Gradients], weight: f64) {
        states.iter_mut().for_each(|state| *state = state.weighed(weight));
    }

    fn follow(
        &self,
        task: &mut Task<'_, T>,
        channels: &Range<usize>,
        states: &[T::Gradients],
        wanted: Follow,
    ) {
        let rows = match self.takes_u() {
            true => (&THROUGH[..], ORDINARY_THROUGH),
            false => (&GRADIENT[..], ORDINARY_GRADIENT),
        };
        task.follow(channels, states, wanted.coefficients, rows, |task, group, states, at| {
            let states = match self.sums {
                Sums::Own => states,
                Sums::Joined(sums, _) => &sums[group.clone()],
                Sums::Part(to, _) => {
                    // SAFETY: in bounds; each channel belongs to one task.
                    return unsafe { to.part(group.clone()) }.copy_from_slice(states);
                }
            };
            if let Some(at) = at.filter(|_| self.takes_u()) {
                self.forward_coefficients(task, group, at);
            }
            let Affine { gamma, eps, .. } = self.affine;
            self.given.scales(task, group, (gamma, eps), (false, states));
            if wanted.outputs {
                self.write(&task.scratch.scales, group, states);
            }
            if let Some(at) = at {
                T::dispatch(task.level, Deviations { rows: SCALE, at, scratch: task.scratch });
                // Frozen statistics' dx has no part in them, and must not: it is the same with other gradients and without.
                let sums = if matches!(self.given, Given::Batch(..)) { states } else { &[] };
                let weight = if let Sums::Joined(_, weight) = self.sums { weight } else { None };
                let count = weight.unwrap_or(self.summed(task));
                // Samples of weight 0 are in no sum: there may be a NaN among them, which only other channels' formula looks for.
                let foreign = weight.is_some();
                let scratch = &mut *task.scratch;
                T::dispatch(task.level, GradientFactors { sums, count, foreign, at, scratch });
                task.scratch.ordinary &= !foreign;
            }
        });
    }

    fn map(&self, task: &mut Task<'_, T>, channels: &Range<usize>, column: usize, part: &Block) {
        self.map_part(task, (channels, column, part));
    }

    fn can_pipeline(&self, task: &Task<'_, T>) -> bool {
        task.scratch.ordinary
            && matches!(self.given, Given::Batch(..))
            && self.upstream().is_none()
            && !M::TILED
    }
}
