//! Backward, through a batch's statistics and with frozen ones.

use std::ops::Range;

use crate::ground::double::product;
use crate::ground::geometry::Block;
use crate::ground::sizes::GROUP;
use crate::ground::slices::{Input, Output};
use crate::kernel::Vectorized;
use crate::kernel::activations::{Activation, ActivationOf};
use crate::kernel::bits::Bits;
use crate::kernel::channels::*;
use crate::kernel::columns::Columns;
use crate::kernel::fused::{Bare, Masked, Recomputed};
use crate::kernel::map::formulas::*;
use crate::kernel::precision::GradientSums;
use crate::kernel::scales::{FORWARD, GRADIENT, ORDINARY_GRADIENT, SCALE, Scales};
use crate::kernel::terms::Terms;
use crate::operations::given::{Affine, Given, Upstream};
use crate::schedule::engine::{Follow, Operation, Task};
use crate::schedule::ranges::pieces;
use crate::simd::Level;

/// Gradients, each optional.
pub struct Backward<'a, T> {
    pub x: Input<'a, T>,
    pub dy: Input<'a, T>,
    pub given: Given<'a, T>,
    pub affine: Affine<'a, T>,
    /// What came after the normalization, and which elements it let through, if that was kept.
    pub activation: Activation,
    pub mask: Option<Bits<'a>>,
    pub dz: Option<Output<'a, T>>,
    pub dx: Option<Output<'a, T>>,
    pub dgamma: Option<Output<'a, T>>,
    pub dbeta: Option<Output<'a, T>>,
    pub dmean: Option<Output<'a, T>>,
    pub dvar: Option<Output<'a, T>>,
}

impl<T: Vectorized> Backward<'_, T> {
    /// What the sums and the map take in place of dy, if anything.
    fn upstream(&self) -> Option<Upstream<'_, T>> {
        let Self { activation, mask, dz, .. } = *self;
        let of = ActivationOf::new(activation);
        match (activation, mask) {
            (Activation::Identity, _) if dz.is_none() => None,
            (Activation::Identity, _) => Some(Upstream::Masked(Masked { activation: of, mask: None, dz })),
            (_, None) => Some(Upstream::Recomputed(Recomputed(of))),
            (_, Some(_)) => Some(Upstream::Masked(Masked { activation: of, mask, dz })),
        }
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

    /// The sums of a block, while the pending group is mapped, if there is one.
    fn reduce_by(&self, terms: impl Terms<2>, task: &mut Task<'_, T>, part: (&Range<usize>, &Block)) {
        let inputs = [self.x, self.dy];
        match (task.pending.clone(), self.dx) {
            (Some(pending), Some(dx)) => {
                let formula = (InputGradient, Bare);
                task.sums_and_map::<_, _, _, 2, ORDINARY_GRADIENT>(
                    terms, formula, inputs, dx, part, &pending,
                );
            }
            _ => task.sums(terms, inputs, part),
        }
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

impl<T: Vectorized> Operation<T> for Backward<'_, T> {
    type State = T::Gradients;
    const READS: usize = 2;

    fn beside(&self) -> usize {
        usize::from(self.dz.is_some())
    }

    fn reduces(&self) -> bool {
        let per_channel = [&self.dgamma, &self.dbeta, &self.dmean, &self.dvar];
        per_channel.iter().any(|output| output.is_some()) || matches!(self.given, Given::Batch(_))
    }

    fn maps(&self) -> bool {
        self.dx.is_some() || self.dz.is_some()
    }

    fn begin(&self, task: &mut Task<'_, T>, channels: &Range<usize>) {
        let count = task.geometry.m() as f64;
        let sums = &mut task.scratch.sums;
        sums.scaled = false;
        for (i, channel) in channels.clone().enumerate() {
            match self.given {
                Given::Batch(states) => {
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
            let columns = Columns::of_sums(task.geometry, channels);
            if columns != Columns::CHANNELS {
                task.lay_out_rows(channels, &FORWARD, columns);
            }
        }
    }

    fn sum(
        &self,
        task: &mut Task<'_, T>,
        channels: &Range<usize>,
        block: &Block,
        states: &mut [T::Gradients],
    ) {
        let part = (channels, block);
        let scaled = T::PAIRS && task.scratch.sums.scaled;
        match self.upstream() {
            None if scaled => self.reduce_by(T::ScaledGradient::default(), task, part),
            None => self.reduce_by(T::Gradient::default(), task, part),
            Some(upstream) => {
                task.sums_through(T::ScaledGradient::default(), [self.x, self.dy], upstream, part);
            }
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
                let sums = if matches!(self.given, Given::Batch(_)) { states } else { &[] };
                let count = task.geometry.m() as f64;
                T::dispatch(task.level, GradientFactors { sums, count, at, scratch: task.scratch });
            }
        });
    }

    fn map(&self, task: &mut Task<'_, T>, channels: &Range<usize>, column: usize, part: &Block) {
        let (inputs, part) = ([self.x, self.dy], (channels, column, part));
        let Some(dx) = self.dx else {
            if let (Some(dz), Some(Upstream::Masked(masked))) = (self.dz, self.upstream()) {
                let masked = Masked { dz: None, ..masked };
                task.apply((GradientAlone, masked), [self.dy], dz, part);
            }
            return;
        };
        match (&self.given, self.upstream(), task.scratch.ordinary) {
            (Given::Batch(_), None, true) => {
                task.apply::<_, _, 2, ORDINARY_GRADIENT>((InputGradient, Bare), inputs, dx, part);
            }
            (Given::Batch(_), None, false) => {
                task.apply::<_, _, 2, 10>((InputGradient, Bare), inputs, dx, part);
            }
            (Given::Batch(_), Some(Upstream::Recomputed(recomputed)), true) => {
                let formula = (InputGradientThrough, recomputed);
                task.apply::<_, _, 2, ORDINARY_THROUGH>(formula, inputs, dx, part);
            }
            (Given::Batch(_), Some(Upstream::Recomputed(recomputed)), false) => {
                let formula = (InputGradientThrough, recomputed);
                task.apply::<_, _, 2, ANY_THROUGH>(formula, inputs, dx, part);
            }
            (Given::Batch(_), Some(Upstream::Masked(masked)), true) => {
                task.apply::<_, _, 2, ORDINARY_GRADIENT>((InputGradient, masked), inputs, dx, part);
            }
            (Given::Batch(_), Some(Upstream::Masked(masked)), false) => {
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

    fn can_pipeline(&self, task: &Task<'_, T>) -> bool {
        task.scratch.ordinary && matches!(self.given, Given::Batch(_)) && self.upstream().is_none()
    }
}
