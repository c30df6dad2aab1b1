//! Arithmetic on arrays of channels: from states to the coefficients of the loops over tensors.
//!
//! Plain loops over f64, kernels only so that the compiler may use each level's vectors for them. Rust never
//! contracts or reorders floating point, so their bits are the same everywhere.

#![forbid(unsafe_code)]

use super::columns::Columns;
use super::precision::{GradientSums, Precision};
use super::scales::*;
use super::scratch::{Scratch, Sums};
use crate::ground::double::power;
use crate::ground::moments::Form;
use crate::ground::scalar::Scalar;
use crate::ground::sizes::{GROUP, LANES, SMALL_PLANE};
use crate::ground::sums::MergeWeights;
use crate::simd::{Kernel, Lanes};

/// left := left and right together.
pub struct Merge<'a, M> {
    pub left: &'a mut [M],
    pub right: &'a [M],
    pub weights: MergeWeights,
}

impl<T, M: Form> Kernel<T> for Merge<'_, M> {
    #[inline(always)]
    fn run<S: Lanes<T>>(self, _: S) {
        for (left, right) in self.left.iter_mut().zip(self.right) {
            *left = left.merge(*right, self.weights);
        }
    }
}

/// Writes the coefficients that a deviation takes, for a group of channels.
pub struct Deviations<'a, T> {
    /// The rows for them: those of [`SCALE`] (or [`GRADIENT`]), or of [`FORWARD`].
    pub rows: [usize; 5],
    /// The column of the first of them.
    pub at: usize,
    pub scratch: &'a mut Scratch<T>,
}

impl<T: Precision> Kernel<T> for Deviations<'_, T> {
    #[inline(always)]
    fn run<S: Lanes<T>>(self, _: S) {
        let Scratch { scales, coefficients, ordinary, .. } = self.scratch;
        let Scales { len, ordinary: all_ordinary, unit, prescale, mean_high, mean_low, .. } = &*scales;
        *ordinary &= all_ordinary;
        let mut scale = *prescale;
        if T::PAIRS {
            scale.iter_mut().zip(unit).for_each(|(scale, unit)| *scale *= unit);
        }
        let [high, low, _, _, prescale] = self.rows;
        for (row, values) in [(prescale, &scale), (high, mean_high), (low, mean_low)] {
            let row = &mut coefficients[row][self.at..][..*len];
            row.iter_mut().zip(values).for_each(|(k, value)| *k = T::from_f64(*value));
        }
    }
}

/// Writes those that normalization takes beside.
pub struct Factors<'a, T> {
    /// beta of the group's channels.
    pub beta: Option<&'a [T]>,
    /// As of [`Deviations`].
    pub rows: [usize; 5],
    /// The column of the first of them.
    pub at: usize,
    pub scratch: &'a mut Scratch<T>,
}

impl<T: Scalar> Kernel<T> for Factors<'_, T> {
    #[inline(always)]
    fn run<S: Lanes<T>>(self, _: S) {
        let Scratch { scales, coefficients, .. } = self.scratch;
        let Scales { len, gain, prescale, .. } = &*scales;
        let [_, _, factor, beta, _] = self.rows;
        let row = &mut coefficients[factor][self.at..][..*len];
        for ((k, gain), prescale) in row.iter_mut().zip(gain).zip(prescale) {
            // Beyond what an element holds only next to a huge mean, where a deviation is nothing or leads out of range.
            let factor = gain * inverse_power(*prescale);
            let factor = if gain.is_finite() { factor.clamp(-T::LARGEST, T::LARGEST) } else { factor };
            *k = T::from_f64(factor);
        }
        let row = &mut coefficients[beta][self.at..][..*len];
        match self.beta {
            None => row.fill(T::default()),
            // With the canonical NaN.
            Some(beta) => row.iter_mut().zip(beta).for_each(|(k, beta)| *k = T::from_f64(beta.to_f64())),
        }
    }
}

/// Writes those that the gradient of the input takes beside.
pub struct GradientFactors<'a, T: Precision> {
    /// Of a batch's own statistics, those over `count` elements per channel.
    pub sums: &'a [T::Gradients],
    pub count: f64,
    /// Whether there may be elements that have no part in these: so far away that only gain brings them back into the range.
    pub foreign: bool,
    /// The column of the first of them.
    pub at: usize,
    pub scratch: &'a mut Scratch<T>,
}

impl<T: Precision> Kernel<T> for GradientFactors<'_, T> {
    #[inline(always)]
    fn run<S: Lanes<T>>(self, _: S) {
        let Scratch { scales, coefficients, ordinary: all_ordinary, .. } = self.scratch;
        let Scales { len, unit, invstd, gain, prescale, .. } = &*scales;
        let [mut mean_dy, mut slope] = [[0.0; GROUP]; 2];
        for (i, sums) in self.sums.iter().enumerate().take(*len) {
            mean_dy[i] = sums.dy() / self.count;
            let along = sums.dy_d() * invstd[i] / self.count * (invstd[i] * inverse_power(prescale[i]));
            // What is multiplied by 0 must not be out of range: a NaN, which the formula for ordinary channels does not look for.
            slope[i] = if (gain[i] == 0.0) & along.is_finite() { 0.0 } else { along };
        }
        // Multiplying by one half after the other leaves the range of f32 on the way only if the outcome does.
        let mut halves = [0.0; GROUP];
        let mut others = u64::from(self.sums.is_empty());
        for i in 0..GROUP {
            let (mean, along) = (mean_dy[i], slope[i]);
            let usual = (prescale[i] == 1.0) & ordinary(gain[i]) & ordinary(mean) & ordinary(along);
            let usual = usual & (!T::PAIRS | (unit[i] == 1.0)) & !self.foreign;
            others |= u64::from(!usual & (i < *len));
            let unit_half = if T::PAIRS { half_power(unit[i]) } else { 1.0 };
            let half = if usual { 1.0 } else { half_power(gain[i]) * unit_half };
            // Gradients near the largest number have coefficients beyond it, though what they give may not be.
            let large = (mean * half).abs().max((along * half).abs()) > T::LARGEST / 4.0;
            halves[i] = half * if large { 1.0 / 256.0 } else { 1.0 };
            (mean_dy[i], slope[i]) = (mean * halves[i], along * halves[i]);
        }
        *all_ordinary &= others == 0;
        let mut rest = halves;
        for (rest, (gain, unit)) in rest[..*len].iter_mut().zip(gain.iter().zip(unit)) {
            *rest = gain * inverse_power(*rest) * if T::PAIRS { *unit } else { 1.0 };
        }
        for (row, values) in [(HALF, halves), (REST, rest), (MEAN_DY, mean_dy), (SLOPE, slope)] {
            let row = &mut coefficients[row][self.at..][..*len];
            row.iter_mut().zip(values).for_each(|(k, value)| *k = T::from_f64(value));
        }
        // Where it stays 0, the low parts have no part in the outcome, whatever was there.
        coefficients[FINE][self.at..][..*len].fill(T::default());
        for (i, gain) in gain.iter().enumerate().take(if others == 0 { 0 } else { *len }) {
            let at = self.at + i;
            for (row, low, value) in [(MEAN_DY, MEAN_DY_LOW, mean_dy[i]), (SLOPE, SLOPE_LOW, slope[i])] {
                let rest = value - coefficients[row][at].to_f64();
                coefficients[low][at] = T::from_f64(if rest.is_finite() { rest } else { 0.0 });
            }
            coefficients[FINE][at] =
                T::from_f64(if !T::PAIRS & (gain.abs() > FINE_GAIN) { 1.0 } else { 0.0 });
        }
    }
}

/// From which gamma * invstd on a term of dx may be beyond the largest f32 where dx is not: where dy is no more than 2^88.
const FINE_GAIN: f64 = (1u64 << 40) as f64;

/// Lays out coefficients per channel, which are in the first `channels` columns, for the columns there are. Of rows, a
/// vector of columns repeats behind them.
pub struct LayOut<'a, T> {
    pub scratch: &'a mut Scratch<T>,
    pub rows: &'a [usize],
    pub channels: usize,
    pub columns: Columns,
}

impl<T: Scalar> Kernel<T> for LayOut<'_, T> {
    #[inline(always)]
    fn run<S: Lanes<T>>(self, _: S) {
        for k in self.rows {
            lay_out(&mut self.scratch.coefficients[*k], self.channels, self.columns);
        }
    }
}

/// Lays out the centers, and units that are not all 1, like [`LayOut`].
pub struct LayOutCenters<'a> {
    pub sums: &'a mut Sums,
    pub scaled: bool,
    pub channels: usize,
    pub columns: Columns,
}

impl<T: Scalar> Kernel<T> for LayOutCenters<'_> {
    #[inline(always)]
    fn run<S: Lanes<T>>(self, _: S) {
        lay_out(&mut self.sums.centers, self.channels, self.columns);
        if self.scaled {
            lay_out(&mut self.sums.units, self.channels, self.columns);
        }
    }
}

/// Each value over its `positions` columns, at most `N`.
#[inline(always)]
fn spread<T: Scalar, const N: usize>(row: &mut [T], values: &[T], positions: usize) {
    // A fixed length is a few whole stores; what is too much is the next channel's. Two loops, or it is not fixed.
    let whole = (row.len() + positions).saturating_sub(N) / positions;
    let (most, last) = values.split_at(whole.min(values.len()));
    for (channel, value) in most.iter().enumerate() {
        row[channel * positions..][..N].copy_from_slice(&[*value; N]);
    }
    for (channel, value) in last.iter().enumerate() {
        row[(most.len() + channel) * positions..][..positions].fill(*value);
    }
}

#[inline(always)]
fn lay_out<T: Scalar>(row: &mut [T], channels: usize, columns: Columns) {
    let Columns { rows, positions } = columns;
    if positions > 1 {
        // From the end, since they spread over those behind them.
        for first in (0..channels).step_by(GROUP).rev() {
            let count = (channels - first).min(GROUP);
            let mut values = [T::default(); GROUP];
            values[..count].copy_from_slice(&row[first..][..count]);
            let row = &mut row[first * positions..(first + count) * positions];
            if positions <= 4 {
                spread::<T, 4>(row, &values[..count], positions);
            } else if positions <= LANES {
                spread::<T, LANES>(row, &values[..count], positions);
            } else {
                spread::<T, SMALL_PLANE>(row, &values[..count], positions);
            }
        }
    }
    let width = channels * positions;
    for repetition in 1..rows {
        row.copy_within(0..width, repetition * width);
    }
    let width = rows * width;
    // Lets a vector begin in one row and end in the next, as the output's lines do.
    if width.is_multiple_of(LANES) {
        row.copy_within(0..LANES, width);
    }
}

/// What a standard deviation must be at least for the roundings of the mean's low part, a subnormal number, to be 2^-50 of it.
const LOW_PART: f64 = 1.0 / (1u128 << 100) as f64;

/// The scales of normalization with a batch's own statistics.
pub struct BatchScales<'a, T: Precision> {
    pub moments: &'a [T::Moments],
    pub count: f64,
    pub gamma: Option<&'a [T]>,
    pub eps: f64,
    /// Whether deviations are to become outputs, or sums, which gamma has no part in.
    pub normalize: bool,
    /// Those sums, if they are.
    pub sums: &'a [T::Gradients],
    pub scratch: &'a mut Scratch<T>,
}

impl<T: Precision> Kernel<T> for BatchScales<'_, T> {
    #[inline(always)]
    fn run<S: Lanes<T>>(self, s: S) {
        if T::PAIRS {
            return self.in_units(s);
        }
        let scales = &mut self.scratch.scales;
        scales.start(self.moments.len(), self.gamma);
        let Self { normalize, eps, count, .. } = self;
        for (i, moments) in self.moments.iter().enumerate().take(GROUP) {
            let var = moments.m2() / count;
            // var = 0 and eps = 0: a constant channel normalizes to 0, not to NaN.
            let shifted = var + eps;
            let invstd = 1.0 / shifted.sqrt();
            let invstd = if shifted == 0.0 { 0.0 } else { invstd };
            let gain = scales.gain[i] * invstd;
            // Deviations of about 1; no more than eps and gamma leave of them while the mean's low part stays exact, since x may be far
            // from these statistics; less where what they are multiplied by would leave the range of normal f32.
            let of_one = 0.5 * inverse_power(half_power(var));
            let left = power_of_two(if normalize { gain.abs() } else { invstd }).max(of_one * LOW_PART);
            let wanted = if ordinary(var) { 1.0 } else { at_most(of_one, left) };
            let limited = normalize & (gain != 0.0);
            let most = gain.abs() * (1u128 << 100) as f64;
            let wanted = at_most(wanted, if limited { most } else { f64::INFINITY });
            scales.set(i, moments.mean(), (invstd, gain), wanted);
        }
        // Per unit of deviations far above 1, the slope of tiny gradients would be too small for an element.
        let share = 1.0 / count;
        for (i, sums) in self.sums.iter().enumerate().take(GROUP) {
            let (dy, dy_d) = (sums.dy(), sums.dy_d());
            let invstd = scales.invstd[i];
            let usual = ordinary(dy * share) & ordinary(dy_d * share * invstd * invstd);
            let wanted = if (scales.prescale[i] == 1.0) & !usual & (invstd > 0.0) {
                power_of_two(invstd)
            } else {
                scales.prescale[i]
            };
            scales.prescale[i] = wanted;
        }
        scales.conclude::<T>();
    }
}

impl<T: Precision> BatchScales<'_, T> {
    /// Of f64, whose range leaves room for coefficients of any size, but not for squares of any.
    #[inline(always)]
    fn in_units<S: Lanes<T>>(self, _: S) {
        let scales = &mut self.scratch.scales;
        scales.start(self.moments.len(), self.gamma);
        let Self { eps, count, .. } = self;
        let mut others = false;
        scales.unit = [1.0; GROUP];
        for (i, moments) in self.moments.iter().enumerate().take(GROUP) {
            let var = moments.m2() / count;
            let shifted = var + eps;
            let invstd = 1.0 / shifted.sqrt();
            let invstd = if shifted == 0.0 { 0.0 } else { invstd };
            let gain = scales.gain[i] * invstd;
            others |= (moments.exponent() != 0) | !ordinary(var);
            scales.set(i, moments.mean(), (invstd, gain), 1.0);
        }
        if others {
            scales.start(self.moments.len(), self.gamma);
            for (i, moments) in self.moments.iter().enumerate().take(GROUP) {
                let (var, exponent) = (moments.m2() / count, moments.exponent());
                let unit = unit_exponent(var, exponent, eps);
                let invstd = inverse_std(var, exponent, eps, unit);
                let gain = scales.gain[i] * invstd;
                scales.set(i, in_unit(moments.mean(), exponent + unit), (invstd, gain), 1.0);
                scales.unit[i] = power(unit);
            }
        }
        scales.conclude::<T>();
    }
}

/// The scales of normalization with given statistics.
pub struct GivenScales<'a, T> {
    pub mean: &'a [T],
    pub var: &'a [T],
    pub gamma: Option<&'a [T]>,
    pub eps: f64,
    /// See [`BatchScales`].
    pub normalize: bool,
    pub scratch: &'a mut Scratch<T>,
}

impl<T: Precision> Kernel<T> for GivenScales<'_, T> {
    #[inline(always)]
    fn run<S: Lanes<T>>(self, _: S) {
        let scales = &mut self.scratch.scales;
        scales.start(self.mean.len(), self.gamma);
        let normalize = self.normalize;
        for (i, (mean, var)) in self.mean.iter().zip(self.var).enumerate().take(GROUP) {
            // NaN of a negative variance that eps does not make up for.
            let (mean, invstd) = (mean.to_f64(), 1.0 / (var.to_f64() + self.eps).sqrt());
            let unit = if T::PAIRS && !normalize { given_unit(mean, invstd) } else { 1.0 };
            let invstd = invstd / unit;
            let gain = scales.gain[i] * invstd;
            scales.unit[i] = unit;
            // Nothing is known of x: half way to y, so that only a y that is out of range can be so before its time. But next
            // to an ordinary mean no deviation is out of range.
            let mean = mean * unit;
            let usual = !normalize | !gain.is_finite() | (ordinary(gain) & ordinary(mean));
            let wanted = if usual { 1.0 } else { half_power(gain) };
            scales.set(i, (mean, 0.0), (invstd, gain), wanted);
        }
        scales.conclude::<T>();
    }
}
