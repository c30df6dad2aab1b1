//! Arithmetic on arrays of channels: from sums to states, from states to the coefficients of the loops over tensors.
//!
//! Plain loops over f64, kernels only so that the compiler may use each level's vectors for them. Rust never
//! contracts or reorders floating point, so their bits are the same everywhere.

#![forbid(unsafe_code)]

use super::{Columns, GROUP, Scratch};
use crate::element::Element;
use crate::problem::SMALL_PLANE;
use crate::simd::{Kernel, Lanes};
use crate::welford::{MergeWeights, Moments};

/// Rows of the scratch's coefficients: what each holds once a task is under way.
pub const SCALE: [usize; 5] = [PRESCALE, MEAN_HIGH, MEAN_LOW, FACTOR, BETA];
/// See [`Scale`].
pub const PRESCALE: usize = 0;
/// The mean times `PRESCALE`, as an element.
pub const MEAN_HIGH: usize = 1;
/// What that rounding left.
pub const MEAN_LOW: usize = 2;
/// gamma * invstd / `PRESCALE`.
pub const FACTOR: usize = 3;
/// beta; in backward, which has no use for it, mean(dy).
pub const BETA: usize = 4;
/// Before, while a block's second look needs it: its pivot.
pub const PIVOT: usize = 0;
/// In backward.
pub const MEAN_DY: usize = BETA;
/// In backward: mean(dy * xhat) per unit of the scaled deviation.
pub const SLOPE: usize = 5;

/// How a channel is normalized: y = (x * prescale - mean_high - mean_low) * factor + beta.
///
/// `prescale` is invstd rounded down to a power of two, so that the product with it is exact and neither data of 1e38
/// nor of 1e-40 leave f32's range on the way; mean_high + mean_low is the mean times `prescale`, to 48 bits, since one f32
/// is not fine enough next to a large mean.
#[derive(Clone, Copy, Default)]
pub struct Scale {
    /// 1 / sqrt(var + eps).
    pub invstd: f64,
    pub prescale: f64,
    mean_high: f64,
    mean_low: f64,
}

impl Scale {
    #[inline(always)]
    pub fn new<T: Element>(mean: f64, mean_low: f64, invstd: f64) -> Self {
        // Clearing the mantissa rounds down to a power of two. The bound for large means keeps mean * prescale finite.
        let largest = T::MAX_PRESCALE;
        let bound = power_of_two(largest / 1e8 / mean.abs().max(1.0 / largest));
        let p = power_of_two(invstd);
        let p = if p < bound { p } else { bound };
        let p = if p < 1.0 / largest { 1.0 / largest } else { p };
        let p = if p > largest { largest } else { p };
        let scaled = mean * p;
        let mean_high = T::from_f64(scaled).to_f64();
        Self { invstd, prescale: p, mean_high, mean_low: (scaled - mean_high) + mean_low * p }
    }

    /// xhat per unit of the scaled deviation, in [1, 2) unless a bound held `prescale` back.
    #[inline(always)]
    pub fn unit(&self) -> f64 {
        self.invstd / self.prescale
    }
}

/// The largest power of two that is not above a positive normal number.
#[inline(always)]
fn power_of_two(x: f64) -> f64 {
    f64::from_bits(x.to_bits() & f64::INFINITY.to_bits())
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
        let Scratch { sums: [sums, squares], pivots, coefficients, .. } = self.scratch;
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
            for (coefficient, pivot) in coefficients[PIVOT].iter_mut().zip(&pivots[..self.channels]) {
                *coefficient = T::from_f64(*pivot);
            }
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
        for (i, moments) in self.moments.iter_mut().enumerate().take(GROUP) {
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

/// Writes the coefficients of `SCALE` for a group of channels.
pub struct Coefficients<'a, T> {
    pub scales: &'a [Scale],
    /// gamma and beta of the group's channels.
    pub gamma: Option<&'a [T]>,
    pub beta: Option<&'a [T]>,
    /// The column of the first of them.
    pub at: usize,
    pub scratch: &'a mut Scratch<T>,
}

impl<T: Element> Kernel<T> for Coefficients<'_, T> {
    #[inline(always)]
    fn run<S: Lanes<T>>(self, _: S) {
        let k = &mut self.scratch.coefficients;
        for (i, scale) in self.scales.iter().enumerate().take(GROUP) {
            let column = self.at + i;
            k[PRESCALE][column] = T::from_f64(scale.prescale);
            k[MEAN_HIGH][column] = T::from_f64(scale.mean_high);
            k[MEAN_LOW][column] = T::from_f64(scale.mean_low);
            let gamma = self.gamma.map_or(1.0, |gamma| gamma[i].to_f64());
            k[FACTOR][column] = T::from_f64(gamma * scale.unit());
            k[BETA][column] = self.beta.map_or(T::from_f64(0.0), |beta| beta[i]);
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
            let row = &mut self.scratch.coefficients[k];
            match self.columns {
                Columns::Channels => (),
                Columns::Rows(rows) => {
                    for repetition in 1..rows {
                        row.copy_within(0..self.channels, repetition * self.channels);
                    }
                }
                Columns::Positions(positions) => {
                    let mut values = [T::default(); GROUP];
                    values[..self.channels].copy_from_slice(&row[..self.channels]);
                    for (channel, value) in values[..self.channels].iter().enumerate() {
                        // A fixed length is a few whole stores; what is too much is the next channel's, or no one's.
                        row[channel * positions..][..SMALL_PLANE].fill(*value);
                    }
                }
            }
        }
    }
}

/// The scales of normalization with a batch's own statistics.
pub struct BatchScales<'a> {
    pub moments: &'a [Moments],
    pub count: f64,
    pub eps: f64,
    pub scales: &'a mut [Scale],
}

impl<T: Element> Kernel<T> for BatchScales<'_> {
    #[inline(always)]
    fn run<S: Lanes<T>>(self, _: S) {
        for (scale, moments) in self.scales.iter_mut().zip(self.moments) {
            let var = moments.m2 / self.count + self.eps;
            // var = 0 and eps = 0: a constant channel normalizes to 0, not to NaN.
            let invstd = if var == 0.0 { 0.0 } else { 1.0 / var.sqrt() };
            *scale = Scale::new::<T>(moments.mean, moments.mean_low, invstd);
        }
    }
}

/// The scales of normalization with given statistics.
pub struct GivenScales<'a, T> {
    pub mean: &'a [T],
    pub var: &'a [T],
    pub eps: f64,
    pub scales: &'a mut [Scale],
}

impl<T: Element> Kernel<T> for GivenScales<'_, T> {
    #[inline(always)]
    fn run<S: Lanes<T>>(self, _: S) {
        for ((scale, mean), var) in self.scales.iter_mut().zip(self.mean).zip(self.var) {
            let var = var.to_f64();
            // A negative variance is not one, whatever eps adds to it.
            let root = if var < 0.0 { f64::NAN } else { (var + self.eps).sqrt() };
            *scale = Scale::new::<T>(mean.to_f64(), 0.0, 1.0 / root);
        }
    }
}
