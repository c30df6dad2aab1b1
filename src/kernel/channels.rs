//! Arithmetic on arrays of channels: from sums to states, from states to the coefficients of the loops over tensors.
//!
//! Plain loops over f64, kernels only so that the compiler may use each level's vectors for them. Rust never
//! contracts or reorders floating point, so their bits are the same everywhere.

#![forbid(unsafe_code)]

use super::{BAND, Columns, GROUP, Scratch};
use crate::element::Element;
use crate::problem::SMALL_PLANE;
use crate::simd::{Kernel, Lanes};
use crate::welford::{MergeWeights, Moments};

/// Rows of the scratch's coefficients: what [`Normalize`](super::map::Normalize) takes.
pub const SCALE: [usize; 5] = [PRESCALE, MEAN_HIGH, MEAN_LOW, FACTOR, BETA];
/// What [`InputGradient`](super::map::InputGradient) takes.
pub const GRADIENT: [usize; 7] = [PRESCALE, MEAN_HIGH, MEAN_LOW, HALF, MEAN_DY, SLOPE, REST];
/// See [`Scale`].
pub const PRESCALE: usize = 0;
/// The mean times `PRESCALE`, as an element.
pub const MEAN_HIGH: usize = 1;
/// What that rounding left.
pub const MEAN_LOW: usize = 2;
/// gamma * invstd / `PRESCALE`.
pub const FACTOR: usize = 3;
/// beta.
pub const BETA: usize = 4;
/// In backward, in place of the last two: gamma * invstd as a power of two of half its exponent, and the rest.
pub const HALF: usize = 3;
/// See `HALF`.
pub const REST: usize = 4;
/// In backward: mean(dy) * `HALF`.
pub const MEAN_DY: usize = 5;
/// In backward: xhat per unit of the scaled deviation, times mean(dy * xhat) * `HALF`.
pub const SLOPE: usize = 6;

/// How a channel is normalized: y = (x * prescale - mean_high - mean_low) * (gain / prescale) + beta.
///
/// `prescale` is a power of two, so that the product with it is exact, and such that neither data of 1e38 nor of 1e-40
/// leave f32's range on the way. mean_high + mean_low is the mean times `prescale`, to 48 bits, since one f32 is not fine
/// enough next to a large mean.
#[derive(Clone, Copy, Default)]
pub struct Scale {
    /// 1 / sqrt(var + eps).
    pub invstd: f64,
    /// gamma * invstd.
    pub gain: f64,
    pub prescale: f64,
    mean_high: f64,
    mean_low: f64,
}

impl Scale {
    /// With a `prescale` of about `wanted`.
    #[inline(always)]
    fn new<T: Element>(mean: f64, mean_low: f64, invstd: f64, gain: f64, wanted: f64) -> Self {
        let largest = T::MAX_PRESCALE;
        // gain / prescale must stay finite, which a factor of 4 leaves room for.
        let least = gain.abs() / largest;
        let p = at_most(power_of_two(if wanted < least { 2.0 * least } else { wanted }), largest);
        // mean * prescale must stay finite.
        let p = at_most(p, power_of_two(largest / 1e8 / mean.abs().max(1.0 / largest)));
        let p = if p < 1.0 / largest { 1.0 / largest } else { p };
        let scaled = mean * p;
        let mean_high = T::from_f64(scaled).to_f64();
        Self { invstd, gain, prescale: p, mean_high, mean_low: (scaled - mean_high) + mean_low * p }
    }

    /// xhat per unit of the scaled deviation.
    #[inline(always)]
    pub fn unit(&self) -> f64 {
        self.invstd / self.prescale
    }

    /// `gain` as a power of two and the rest, each of about half its exponent: multiplying by one after the other leaves
    /// the range of f32 on the way only if the outcome does.
    #[inline(always)]
    pub fn halves(&self) -> (f64, f64) {
        let half = half_power(self.gain);
        (half, self.gain / half)
    }
}

/// The largest power of two that is not above a positive normal number.
#[inline(always)]
fn power_of_two(x: f64) -> f64 {
    f64::from_bits(x.to_bits() & f64::INFINITY.to_bits())
}

#[inline(always)]
fn at_most(x: f64, bound: f64) -> f64 {
    if x < bound { x } else { bound }
}

/// A power of two of half the exponent of a normal number.
#[inline(always)]
fn half_power(x: f64) -> f64 {
    let exponent = (x.to_bits() >> 52 & 2047) as i64 - 1023;
    f64::from_bits((((exponent >> 1) + 1023) as u64) << 52)
}

/// From a block's plain sums: is any channel's variance too small against its mean for them? Those channels get the
/// mean as a pivot and the answer is in `again`.
pub struct Condition<'a, T> {
    pub scratch: &'a mut Scratch<T>,
    pub channels: usize,
    pub count: f64,
    pub again: &'a mut bool,
}

impl<T: Element> Kernel<T> for Condition<'_, T> {
    #[inline(always)]
    fn run<S: Lanes<T>>(self, _: S) {
        let Scratch { sums: [sums, squares], pivots, centers, .. } = self.scratch;
        let sums = sums.iter().zip(squares.iter());
        let mut again = 0u64;
        for (pivot, (sum, squares)) in pivots[..self.channels].iter_mut().zip(sums) {
            let mean = sum / self.count;
            let m2 = squares - sum * mean;
            // All zeros are well conditioned too: both sides are zero. NaN is not, and stays NaN about any pivot.
            let good = *squares <= m2 * T::CONDITION_LIMIT;
            *pivot = if good { 0.0 } else { T::from_f64(mean).to_f64() };
            again |= u64::from(!good);
        }
        *self.again = again != 0;
        if *self.again {
            centers[..self.channels].copy_from_slice(&pivots[..self.channels]);
        }
    }
}

/// From a block's sums to its moments.
pub struct BlockMoments<'a, T> {
    pub scratch: &'a Scratch<T>,
    pub count: f64,
    pub moments: &'a mut [Moments],
}

impl<T: Element> Kernel<T> for BlockMoments<'_, T> {
    #[inline(always)]
    fn run<S: Lanes<T>>(self, _: S) {
        let Scratch { sums: [sums, squares], pivots, .. } = self.scratch;
        for (i, moments) in self.moments.iter_mut().enumerate().take(BAND) {
            *moments = Moments::from_sums(pivots[i], sums[i], squares[i], self.count);
        }
    }
}

/// left := left and right together.
pub struct Merge<'a> {
    pub left: &'a mut [Moments],
    pub right: &'a [Moments],
    pub weights: MergeWeights,
}

impl<T> Kernel<T> for Merge<'_> {
    #[inline(always)]
    fn run<S: Lanes<T>>(self, _: S) {
        for (left, right) in self.left.iter_mut().zip(self.right) {
            *left = left.merge(*right, self.weights);
        }
    }
}

/// Writes the coefficients that a deviation takes, for a group of channels.
pub struct Deviations<'a, T> {
    pub scales: &'a [Scale],
    /// The column of the first of them.
    pub at: usize,
    pub scratch: &'a mut Scratch<T>,
}

impl<T: Element> Kernel<T> for Deviations<'_, T> {
    #[inline(always)]
    fn run<S: Lanes<T>>(self, _: S) {
        let k = &mut self.scratch.coefficients;
        for (i, scale) in self.scales.iter().enumerate().take(GROUP) {
            let column = self.at + i;
            k[PRESCALE][column] = T::from_f64(scale.prescale);
            k[MEAN_HIGH][column] = T::from_f64(scale.mean_high);
            k[MEAN_LOW][column] = T::from_f64(scale.mean_low);
        }
    }
}

/// Writes those that normalization takes beside.
pub struct Factors<'a, T> {
    pub scales: &'a [Scale],
    /// beta of the group's channels.
    pub beta: Option<&'a [T]>,
    /// The column of the first of them.
    pub at: usize,
    pub scratch: &'a mut Scratch<T>,
}

impl<T: Element> Kernel<T> for Factors<'_, T> {
    #[inline(always)]
    fn run<S: Lanes<T>>(self, _: S) {
        let k = &mut self.scratch.coefficients;
        for (i, scale) in self.scales.iter().enumerate().take(GROUP) {
            // Beyond what an element holds only next to a huge mean, where a deviation is nothing or leads out of range.
            let factor = scale.gain / scale.prescale;
            let factor = if scale.gain.is_finite() { factor.clamp(-T::LARGEST, T::LARGEST) } else { factor };
            k[FACTOR][self.at + i] = T::from_f64(factor);
            k[BETA][self.at + i] = self.beta.map_or(T::default(), |beta| beta[i]);
        }
    }
}

/// Lays out coefficients per channel, which are in the first `channels` columns, for the columns there are.
pub struct LayOut<'a, T, const K: usize> {
    pub scratch: &'a mut Scratch<T>,
    pub rows: [usize; K],
    pub channels: usize,
    pub columns: Columns,
}

impl<T: Element, const K: usize> Kernel<T> for LayOut<'_, T, K> {
    #[inline(always)]
    fn run<S: Lanes<T>>(self, _: S) {
        for k in self.rows {
            lay_out(&mut self.scratch.coefficients[k], self.channels, self.columns);
        }
    }
}

/// Lays out the centers, like [`LayOut`].
pub struct LayOutCenters<'a, T> {
    pub scratch: &'a mut Scratch<T>,
    pub channels: usize,
    pub columns: Columns,
}

impl<T: Element> Kernel<T> for LayOutCenters<'_, T> {
    #[inline(always)]
    fn run<S: Lanes<T>>(self, _: S) {
        lay_out(&mut self.scratch.centers, self.channels, self.columns);
    }
}

#[inline(always)]
fn lay_out<T: Element>(row: &mut [T], channels: usize, columns: Columns) {
    match columns {
        Columns::Channels => (),
        Columns::Rows(rows) => {
            for repetition in 1..rows {
                row.copy_within(0..channels, repetition * channels);
            }
        }
        Columns::Positions(positions) => {
            let mut values = [T::default(); GROUP];
            values[..channels].copy_from_slice(&row[..channels]);
            for (channel, value) in values[..channels].iter().enumerate() {
                // A fixed length is a few whole stores; what is too much is the next channel's, or no one's.
                row[channel * positions..][..SMALL_PLANE].fill(*value);
            }
        }
    }
}

/// The scales of normalization with a batch's own statistics.
pub struct BatchScales<'a, T> {
    pub moments: &'a [Moments],
    pub count: f64,
    pub gamma: Option<&'a [T]>,
    pub eps: f64,
    /// Whether deviations are to become outputs, or sums, which gamma has no part in.
    pub normalize: bool,
    pub scales: &'a mut [Scale],
}

impl<T: Element> Kernel<T> for BatchScales<'_, T> {
    #[inline(always)]
    fn run<S: Lanes<T>>(self, _: S) {
        for (i, (scale, moments)) in self.scales.iter_mut().zip(self.moments).enumerate() {
            let var = moments.m2 / self.count;
            // var = 0 and eps = 0: a constant channel normalizes to 0, not to NaN.
            let shifted = var + self.eps;
            let invstd = if shifted == 0.0 { 0.0 } else { 1.0 / shifted.sqrt() };
            // Equal elements deviate by nothing, whatever eps makes of it.
            let flat = self.normalize && var == 0.0;
            let gain = gamma_of(self.gamma, i) * if flat { 0.0 } else { invstd };
            // Deviations of about 1, whatever eps is (of a constant channel, exactly 0); less where what they are
            // multiplied by would leave the range of normal f32.
            let wanted = 1.0 / var.sqrt();
            let limited = self.normalize && gain != 0.0;
            let wanted = if limited { at_most(wanted, gain.abs() * (1u128 << 100) as f64) } else { wanted };
            *scale = Scale::new::<T>(moments.mean, moments.mean_low, invstd, gain, wanted);
        }
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
    pub scales: &'a mut [Scale],
}

impl<T: Element> Kernel<T> for GivenScales<'_, T> {
    #[inline(always)]
    fn run<S: Lanes<T>>(self, _: S) {
        for (i, ((scale, mean), var)) in self.scales.iter_mut().zip(self.mean).zip(self.var).enumerate() {
            let var = var.to_f64();
            // A negative variance is not one, whatever eps adds to it.
            let root = if var < 0.0 { f64::NAN } else { (var + self.eps).sqrt() };
            let (invstd, gamma) = (1.0 / root, gamma_of(self.gamma, i));
            let gain = gamma * invstd;
            // Nothing is known of x: half way to y, so that only a y that is out of range can be so before its time.
            let wanted = if self.normalize && gain.is_finite() { half_power(gain) } else { 1.0 };
            *scale = Scale::new::<T>(mean.to_f64(), 0.0, invstd, gain, wanted);
        }
    }
}

#[inline(always)]
fn gamma_of<T: Element>(gamma: Option<&[T]>, channel: usize) -> f64 {
    gamma.map_or(1.0, |gamma| gamma[channel].to_f64())
}
