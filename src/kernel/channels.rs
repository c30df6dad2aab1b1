//! Arithmetic on arrays of channels: from sums to states, from states to the coefficients of the loops over tensors.
//!
//! Plain loops over f64, kernels only so that the compiler may use each level's vectors for them. Rust never
//! contracts or reorders floating point, so their bits are the same everywhere.

#![forbid(unsafe_code)]

use super::{BAND, Columns, GROUP, Scratch, Sums};
use crate::element::Element;
use crate::problem::SMALL_PLANE;
use crate::simd::{Kernel, LANES, Lanes};
use crate::welford::{MergeWeights, Moments};

/// Rows of the scratch's coefficients: what [`Normalize`](super::map::Normalize) takes.
pub const SCALE: [usize; 5] = [MEAN_HIGH, MEAN_LOW, FACTOR, BETA, PRESCALE];
/// What [`InputGradient`](super::map::InputGradient) takes.
pub const GRADIENT: [usize; 7] = [MEAN_HIGH, MEAN_LOW, MEAN_DY, SLOPE, REST, PRESCALE, HALF];
/// How many of them loops over ordinary channels ([`ordinary`]) take; the others are 1.
pub const ORDINARY_SCALE: usize = 4;
/// The same of `GRADIENT`.
pub const ORDINARY_GRADIENT: usize = 5;
/// The mean times `PRESCALE`, as an element.
pub const MEAN_HIGH: usize = 0;
/// What that rounding left.
pub const MEAN_LOW: usize = 1;
/// gamma * invstd / `PRESCALE`.
pub const FACTOR: usize = 2;
/// beta.
pub const BETA: usize = 3;
/// In backward, in place of the last two: mean(dy) * `HALF`.
pub const MEAN_DY: usize = 2;
/// In backward: xhat per unit of the scaled deviation, times mean(dy * xhat) * `HALF`.
pub const SLOPE: usize = 3;
/// In backward: gamma * invstd / `HALF`.
pub const REST: usize = 4;
/// See [`Scales`].
pub const PRESCALE: usize = 5;
/// In backward: gamma * invstd as a power of two of half its exponent; 1 for ordinary channels.
pub const HALF: usize = 6;

/// Whether a number is so far from the ends of f32's range that products of two with each other, and with deviations
/// between them, stay far from them too; or zero. Channels with nothing but such numbers take fewer coefficients (of memory's
/// share, backward in NHWC took a fifth longer with all of them).
#[inline(always)]
fn ordinary(x: f64) -> bool {
    (x == 0.0) | ((x.abs() >= 1.0 / (1u128 << 96) as f64) & (x.abs() <= (1u64 << 40) as f64))
}

/// How the channels of a group are normalized: y = (x * prescale - mean_high - mean_low) * (gain / prescale) + beta.
///
/// `prescale` is a power of two, so that the product with it is exact, and such that neither data of 1e38 nor of 1e-40
/// leave f32's range on the way; 1 for ordinary channels. mean_high + mean_low is the mean times `prescale`, to 48 bits,
/// since one f32 is not fine enough next to a large mean. An array for each, and no branches: then a vector takes several channels (in planes of
/// 7 x 7 of one sample, channel by channel took as long as the tensor did).
#[derive(Clone)]
pub struct Scales {
    /// Channels in use.
    len: usize,
    /// Whether they are all [`ordinary`].
    ordinary: bool,
    /// 1 / sqrt(var + eps).
    pub invstd: [f64; GROUP],
    /// gamma * invstd.
    pub gain: [f64; GROUP],
    prescale: [f64; GROUP],
    mean_high: [f64; GROUP],
    mean_low: [f64; GROUP],
}

impl Scales {
    /// Of no channels.
    pub fn new() -> Self {
        let zero = [0.0; GROUP];
        Self {
            len: 0,
            ordinary: false,
            invstd: zero,
            gain: zero,
            prescale: zero,
            mean_high: zero,
            mean_low: zero,
        }
    }

    /// Starts `len` <= `GROUP` channels with gamma in place of the gain.
    #[inline(always)]
    fn start<T: Element>(&mut self, len: usize, gamma: Option<&[T]>) {
        self.len = len;
        let gain = &mut self.gain[..len];
        match gamma {
            None => gain.fill(1.0),
            Some(gamma) => gain.iter_mut().zip(gamma).for_each(|(gain, gamma)| *gain = gamma.to_f64()),
        }
    }

    /// Channel `i`, for `conclude`, with a `prescale` of about `wanted`.
    #[inline(always)]
    fn set(&mut self, i: usize, (mean, mean_low): (f64, f64), (invstd, gain): (f64, f64), wanted: f64) {
        (self.invstd[i], self.gain[i], self.prescale[i]) = (invstd, gain, wanted);
        (self.mean_high[i], self.mean_low[i]) = (mean, mean_low);
    }

    /// From what is wanted to what can be, and to parts of the mean.
    #[inline(always)]
    fn conclude<T: Element>(&mut self) {
        let Self { len, ordinary: all_ordinary, gain, prescale, mean_high, mean_low, .. } = self;
        let mut others = 0u64;
        for i in 0..GROUP {
            let usual = (prescale[i] == 1.0) & ordinary(gain[i]) & ordinary(mean_high[i]);
            others |= u64::from(!usual & (i < *len));
        }
        *all_ordinary = others == 0;
        // Nothing stands in the way of what ordinary channels want.
        if *all_ordinary {
            for (high, low) in mean_high.iter_mut().zip(mean_low) {
                let mean = *high;
                *high = T::from_f64(mean).to_f64();
                *low += mean - *high;
            }
            return;
        }
        let (largest, least) = (T::MAX_PRESCALE, 1.0 / T::MAX_PRESCALE);
        for i in 0..GROUP {
            let (mean, wanted) = (mean_high[i], prescale[i]);
            // gain / prescale must stay finite, which a factor of 4 leaves room for.
            let needed = gain[i].abs() * least;
            let p = at_most(power_of_two(if wanted < needed { 2.0 * needed } else { wanted }), largest);
            // mean * prescale must stay finite.
            let size = at_most(mean.abs().max(least), largest);
            let p = at_most(p, power_of_two(largest / 1e8) * inverse_power(size));
            let p = if p < least { least } else { p };
            let scaled = mean * p;
            prescale[i] = p;
            mean_high[i] = T::from_f64(scaled).to_f64();
            mean_low[i] = (scaled - mean_high[i]) + mean_low[i] * p;
        }
    }
}

// Divisions and roots are what arithmetic on channels takes most of its time for: powers of two come without.

/// The largest power of two that is not above a positive normal number.
#[inline(always)]
fn power_of_two(x: f64) -> f64 {
    f64::from_bits(x.to_bits() & f64::INFINITY.to_bits())
}

#[inline(always)]
fn at_most(x: f64, bound: f64) -> f64 {
    if x < bound { x } else { bound }
}

/// 1 / `power_of_two(x)`, which must be normal too.
#[inline(always)]
fn inverse_power(x: f64) -> f64 {
    f64::from_bits((2046 << 52) - power_of_two(x).to_bits())
}

/// A power of two of half the exponent of a normal number.
#[inline(always)]
fn half_power(x: f64) -> f64 {
    let exponent = (x.to_bits() >> 52 & 2047) as i64 - 1023;
    f64::from_bits((((exponent >> 1) + 1023) as u64) << 52)
}

/// From a block's plain sums: is any channel's variance too small against its mean for them? Those channels get the
/// mean as a pivot and the answer is in `again`.
pub struct Condition<'a> {
    pub sums: &'a mut Sums,
    pub channels: usize,
    pub count: f64,
    pub again: &'a mut bool,
}

impl<T: Element> Kernel<T> for Condition<'_> {
    #[inline(always)]
    fn run<S: Lanes<T>>(self, _: S) {
        let Sums { totals: [sums, squares], pivots, centers, .. } = self.sums;
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
pub struct BlockMoments<'a> {
    pub sums: &'a Sums,
    pub count: f64,
    pub moments: &'a mut [Moments],
}

impl<T: Element> Kernel<T> for BlockMoments<'_> {
    #[inline(always)]
    fn run<S: Lanes<T>>(self, _: S) {
        let Sums { totals: [sums, squares], pivots, .. } = self.sums;
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
    /// The column of the first of them.
    pub at: usize,
    pub scratch: &'a mut Scratch<T>,
}

impl<T: Element> Kernel<T> for Deviations<'_, T> {
    #[inline(always)]
    fn run<S: Lanes<T>>(self, _: S) {
        let Scratch { scales, coefficients, ordinary, .. } = self.scratch;
        let Scales { len, ordinary: all_ordinary, prescale, mean_high, mean_low, .. } = &*scales;
        *ordinary &= all_ordinary;
        for (row, values) in [(PRESCALE, prescale), (MEAN_HIGH, mean_high), (MEAN_LOW, mean_low)] {
            let row = &mut coefficients[row][self.at..][..*len];
            row.iter_mut().zip(values).for_each(|(k, value)| *k = T::from_f64(*value));
        }
    }
}

/// Writes those that normalization takes beside.
pub struct Factors<'a, T> {
    /// beta of the group's channels.
    pub beta: Option<&'a [T]>,
    /// The column of the first of them.
    pub at: usize,
    pub scratch: &'a mut Scratch<T>,
}

impl<T: Element> Kernel<T> for Factors<'_, T> {
    #[inline(always)]
    fn run<S: Lanes<T>>(self, _: S) {
        let Scratch { scales, coefficients, .. } = self.scratch;
        let Scales { len, gain, prescale, .. } = &*scales;
        let row = &mut coefficients[FACTOR][self.at..][..*len];
        for ((k, gain), prescale) in row.iter_mut().zip(gain).zip(prescale) {
            // Beyond what an element holds only next to a huge mean, where a deviation is nothing or leads out of range.
            let factor = gain * inverse_power(*prescale);
            let factor = if gain.is_finite() { factor.clamp(-T::LARGEST, T::LARGEST) } else { factor };
            *k = T::from_f64(factor);
        }
        let row = &mut coefficients[BETA][self.at..][..*len];
        match self.beta {
            None => row.fill(T::default()),
            // With the canonical NaN.
            Some(beta) => row.iter_mut().zip(beta).for_each(|(k, beta)| *k = T::from_f64(beta.to_f64())),
        }
    }
}

/// Sums over a channel of dy and of dy * (x - mean).
#[derive(Clone, Copy, Default)]
pub struct GradientSums {
    pub dy: f64,
    pub dy_d: f64,
}

/// Writes those that the gradient of the input takes beside.
pub struct GradientFactors<'a, T> {
    /// Of a batch's own statistics, those over `count` elements per channel.
    pub sums: &'a [GradientSums],
    pub count: f64,
    /// The column of the first of them.
    pub at: usize,
    pub scratch: &'a mut Scratch<T>,
}

impl<T: Element> Kernel<T> for GradientFactors<'_, T> {
    #[inline(always)]
    fn run<S: Lanes<T>>(self, _: S) {
        let Scratch { scales, coefficients, ordinary: all_ordinary, .. } = self.scratch;
        let Scales { len, invstd, gain, prescale, .. } = &*scales;
        let [mut mean_dy, mut slope] = [[0.0; GROUP]; 2];
        for (i, GradientSums { dy, dy_d }) in self.sums.iter().enumerate().take(*len) {
            mean_dy[i] = dy / self.count;
            let along = dy_d * invstd[i] / self.count * (invstd[i] * inverse_power(prescale[i]));
            // What is multiplied by 0 must not be out of range: a NaN, which the formula for ordinary channels does not look for.
            slope[i] = if (gain[i] == 0.0) & along.is_finite() { 0.0 } else { along };
        }
        // Multiplying by one half after the other leaves the range of f32 on the way only if the outcome does.
        let mut halves = [0.0; GROUP];
        let mut others = u64::from(self.sums.is_empty());
        for i in 0..GROUP {
            let (mean, along) = (mean_dy[i], slope[i]);
            let usual = (prescale[i] == 1.0) & ordinary(gain[i]) & ordinary(mean) & ordinary(along);
            others |= u64::from(!usual & (i < *len));
            let half = if usual { 1.0 } else { half_power(gain[i]) };
            // Gradients near the largest number have coefficients beyond it, though what they give may not be.
            let large = (mean * half).abs().max((along * half).abs()) > T::LARGEST / 4.0;
            halves[i] = half * if large { 1.0 / 256.0 } else { 1.0 };
            (mean_dy[i], slope[i]) = (mean * halves[i], along * halves[i]);
        }
        *all_ordinary &= others == 0;
        let mut rest = halves;
        rest[..*len].iter_mut().zip(gain).for_each(|(rest, gain)| *rest = gain * inverse_power(*rest));
        for (row, values) in [(HALF, halves), (REST, rest), (MEAN_DY, mean_dy), (SLOPE, slope)] {
            let row = &mut coefficients[row][self.at..][..*len];
            row.iter_mut().zip(values).for_each(|(k, value)| *k = T::from_f64(value));
        }
    }
}

/// Lays out coefficients per channel, which are in the first `channels` columns, for the columns there are. Of rows, a
/// vector of columns repeats behind them.
pub struct LayOut<'a, T> {
    pub scratch: &'a mut Scratch<T>,
    pub rows: &'a [usize],
    pub channels: usize,
    pub columns: Columns,
}

impl<T: Element> Kernel<T> for LayOut<'_, T> {
    #[inline(always)]
    fn run<S: Lanes<T>>(self, _: S) {
        for k in self.rows {
            lay_out(&mut self.scratch.coefficients[*k], self.channels, self.columns);
        }
    }
}

/// Lays out the centers, like [`LayOut`].
pub struct LayOutCenters<'a> {
    pub sums: &'a mut Sums,
    pub channels: usize,
    pub columns: Columns,
}

impl<T: Element> Kernel<T> for LayOutCenters<'_> {
    #[inline(always)]
    fn run<S: Lanes<T>>(self, _: S) {
        lay_out(&mut self.sums.centers, self.channels, self.columns);
    }
}

#[inline(always)]
fn lay_out<T: Element>(row: &mut [T], channels: usize, columns: Columns) {
    let width = match columns {
        Columns::Channels => channels,
        Columns::Rows(rows) => {
            for repetition in 1..rows {
                row.copy_within(0..channels, repetition * channels);
            }
            rows * channels
        }
        Columns::Positions(positions) => {
            let mut values = [T::default(); GROUP];
            values[..channels].copy_from_slice(&row[..channels]);
            for (channel, value) in values[..channels].iter().enumerate() {
                // A fixed length is a few whole stores; what is too much is the next channel's, or no one's.
                row[channel * positions..][..SMALL_PLANE].fill(*value);
            }
            channels * positions
        }
    };
    // Lets a vector begin in one row and end in the next, as the output's lines do.
    if width.is_multiple_of(LANES) {
        row.copy_within(0..LANES, width);
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
    /// Those sums, if they are.
    pub sums: &'a [GradientSums],
    pub scratch: &'a mut Scratch<T>,
}

impl<T: Element> Kernel<T> for BatchScales<'_, T> {
    #[inline(always)]
    fn run<S: Lanes<T>>(self, _: S) {
        let scales = &mut self.scratch.scales;
        scales.start(self.moments.len(), self.gamma);
        let Self { normalize, eps, count, .. } = self;
        for (i, moments) in self.moments.iter().enumerate().take(GROUP) {
            let var = moments.m2 / count;
            // var = 0 and eps = 0: a constant channel normalizes to 0, not to NaN.
            let shifted = var + eps;
            let invstd = 1.0 / shifted.sqrt();
            let invstd = if shifted == 0.0 { 0.0 } else { invstd };
            // Equal elements deviate by nothing, whatever eps makes of it.
            let flat = normalize & (var == 0.0);
            let gain = scales.gain[i] * if flat { 0.0 } else { invstd };
            // Deviations of about 1, whatever eps is (of a constant channel, exactly 0); less where what they are
            // multiplied by would leave the range of normal f32.
            let wanted = if ordinary(var) { 1.0 } else { 0.5 * inverse_power(half_power(var)) };
            let limited = normalize & (gain != 0.0);
            let most = gain.abs() * (1u128 << 100) as f64;
            let wanted = at_most(wanted, if limited { most } else { f64::INFINITY });
            scales.set(i, (moments.mean, moments.mean_low), (invstd, gain), wanted);
        }
        // Per unit of deviations far above 1, the slope of tiny gradients would be too small for an element.
        let share = 1.0 / count;
        for (i, GradientSums { dy, dy_d }) in self.sums.iter().enumerate().take(GROUP) {
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

impl<T: Element> Kernel<T> for GivenScales<'_, T> {
    #[inline(always)]
    fn run<S: Lanes<T>>(self, _: S) {
        let scales = &mut self.scratch.scales;
        scales.start(self.mean.len(), self.gamma);
        let normalize = self.normalize;
        for (i, (mean, var)) in self.mean.iter().zip(self.var).enumerate().take(GROUP) {
            let var = var.to_f64();
            // A negative variance is not one, whatever eps adds to it.
            let root = (var + self.eps).sqrt();
            let root = if var < 0.0 { f64::NAN } else { root };
            let invstd = 1.0 / root;
            let gain = scales.gain[i] * invstd;
            // Nothing is known of x: half way to y, so that only a y that is out of range can be so before its time. But next
            // to an ordinary mean no deviation is out of range.
            let mean = mean.to_f64();
            let usual = !normalize | !gain.is_finite() | (ordinary(gain) & ordinary(mean));
            let wanted = if usual { 1.0 } else { half_power(gain) };
            scales.set(i, (mean, 0.0), (invstd, gain), wanted);
        }
        scales.conclude::<T>();
    }
}
