//! How a group of channels is normalized: the scales in f64 from which coefficients are made, and the coefficients' rows.

#![forbid(unsafe_code)]

use crate::ground::double::{exponent_of, times_power};
use crate::ground::scalar::Scalar;
use crate::ground::sizes::GROUP;

/// Rows of the scratch's coefficients: what [`Normalize`](super::map::formulas::Normalize) takes.
pub const SCALE: [usize; 5] = [MEAN_HIGH, MEAN_LOW, FACTOR, BETA, PRESCALE];
/// What [`InputGradient`](super::map::formulas::InputGradient) takes.
pub const GRADIENT: [usize; 10] =
    [MEAN_HIGH, MEAN_LOW, MEAN_DY, SLOPE, REST, PRESCALE, HALF, MEAN_DY_LOW, SLOPE_LOW, FINE];
/// How many of them loops over ordinary channels ([`ordinary`]) take; the others multiply by 1, or add 0.
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
/// In a backward pass through an activation, those of `SCALE` that the forward pass had.
pub const FORWARD: [usize; 5] = [10, 11, FORWARD_FACTOR, FORWARD_BETA, 14];
/// Of these the ones that ordinary channels do not have in common with the others.
pub const FORWARD_FACTOR: usize = 12;
/// The same.
pub const FORWARD_BETA: usize = 13;
/// See [`Scales`].
pub const PRESCALE: usize = 5;
/// In backward: gamma * invstd as a power of two of half its exponent; 1 for ordinary channels.
pub const HALF: usize = 6;
/// In backward: what the rounding of `MEAN_DY` to an element left.
pub const MEAN_DY_LOW: usize = 7;
/// The same of `SLOPE`.
pub const SLOPE_LOW: usize = 8;
/// In backward: 1 where gamma * invstd is so large that roundings times it are to be seen, else 0.
pub const FINE: usize = 9;

/// Whether a number is so far from the ends of f32's range that products of two with each other, and with deviations
/// between them, stay far from them too; or zero. Channels with nothing but such numbers take fewer coefficients.
#[inline(always)]
pub fn ordinary(x: f64) -> bool {
    (x == 0.0) | ((x.abs() >= 1.0 / (1u128 << 96) as f64) & (x.abs() <= (1u64 << 40) as f64))
}

/// How the channels of a group are normalized: y = (x * prescale - mean_high - mean_low) * (gain / prescale) + beta.
///
/// `prescale` is a power of two, so that the product with it is exact, and such that neither data of 1e38 nor of 1e-40
/// leave f32's range on the way; 1 for ordinary channels. mean_high + mean_low is the mean times `prescale`, to 48 bits,
/// since one f32 is not fine enough next to a large mean. An array for each, and no branches: then a vector takes several
/// channels, which counts where planes are few and small.
#[derive(Clone)]
pub struct Scales {
    /// Channels in use.
    pub len: usize,
    /// Whether they are all [`ordinary`].
    pub ordinary: bool,
    /// A power of two that elements are thought of as multiplied by, where squares of theirs would leave f64's range: all that
    /// follows is of such elements. 1 for f32.
    pub unit: [f64; GROUP],
    /// 1 / sqrt(var + eps).
    pub invstd: [f64; GROUP],
    /// gamma * invstd.
    pub gain: [f64; GROUP],
    pub prescale: [f64; GROUP],
    pub mean_high: [f64; GROUP],
    pub mean_low: [f64; GROUP],
}

impl Scales {
    /// Starts `len` <= `GROUP` channels with gamma in place of the gain.
    #[inline(always)]
    pub fn start<T: Scalar>(&mut self, len: usize, gamma: Option<&[T]>) {
        self.len = len;
        let gain = &mut self.gain[..len];
        match gamma {
            None => gain.fill(1.0),
            Some(gamma) => gain.iter_mut().zip(gamma).for_each(|(gain, gamma)| *gain = gamma.to_f64()),
        }
    }

    /// Channel `i`, for `conclude`, with a `prescale` of about `wanted`.
    #[inline(always)]
    pub fn set(&mut self, i: usize, (mean, mean_low): (f64, f64), (invstd, gain): (f64, f64), wanted: f64) {
        (self.invstd[i], self.gain[i], self.prescale[i]) = (invstd, gain, wanted);
        (self.mean_high[i], self.mean_low[i]) = (mean, mean_low);
    }

    /// From what is wanted to what can be, and to parts of the mean.
    #[inline(always)]
    pub fn conclude<T: Scalar>(&mut self) {
        let Self { len, ordinary: all_ordinary, unit, gain, prescale, mean_high, mean_low, .. } = self;
        let mut others = 0u64;
        for i in 0..GROUP {
            let usual = (prescale[i] == 1.0) & ordinary(gain[i]) & ordinary(mean_high[i]) & (unit[i] == 1.0);
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
pub fn power_of_two(x: f64) -> f64 {
    f64::from_bits(x.to_bits() & f64::INFINITY.to_bits())
}

#[inline(always)]
pub fn at_most(x: f64, bound: f64) -> f64 {
    if x < bound { x } else { bound }
}

/// 1 / `power_of_two(x)`, which must be normal too.
#[inline(always)]
pub fn inverse_power(x: f64) -> f64 {
    f64::from_bits((2046 << 52) - power_of_two(x).to_bits())
}

/// A power of two of half the exponent of a normal number.
#[inline(always)]
pub fn half_power(x: f64) -> f64 {
    f64::from_bits((((exponent_of(x) >> 1) + 1023) as u64) << 52)
}

/// Of a channel of f64 whose elements, times 2^-`exponent`, have this variance: by which power of two, 2^`k`, its deviations
/// become about 1, but by no more than 1 / sqrt(eps), or 1: else 1 / sqrt(var + eps) of such would be far from 1. 0 where squares
/// of them are far from the ends of f64's range anyway.
#[inline(always)]
pub fn unit_exponent(var: f64, exponent: i64, eps: f64) -> i64 {
    if (exponent == 0 && ordinary(var)) || var == 0.0 || !var.is_finite() {
        return 0;
    }
    let most = if eps == 0.0 { 1022 } else { (-(exponent_of(eps) >> 1)).max(0) };
    (-((exponent_of(var) >> 1) + exponent)).clamp(-1022, most)
}

/// Of such a channel, 1 / sqrt(var + eps) of its elements times 2^`unit`; 0 where that is 1 / 0.
pub fn inverse_std(var: f64, exponent: i64, eps: f64, unit: i64) -> f64 {
    // In the elements' own scale where eps is so large in the other that their variance is nothing beside it.
    let nothing = var == 0.0 || (exponent < 0 && eps > f64::from_bits((1023 - 400) << 52));
    let (var, exponent) = if nothing { (0.0, 0) } else { (var, exponent) };
    let shifted = var + times_power(eps, -2 * exponent);
    if shifted == 0.0 { 0.0 } else { times_power(1.0 / shifted.sqrt(), -exponent - unit) }
}

/// The mean in two parts, times 2^`exponent`.
#[inline(always)]
pub fn in_unit((mean, mean_low): (f64, f64), exponent: i64) -> (f64, f64) {
    (times_power(mean, exponent), times_power(mean_low, exponent))
}

/// The unit of sums of gradients with a given mean and 1 / sqrt(var + eps): without it, deviations, or products with them,
/// could leave f64's range where xhat does not. The mean itself must not.
#[inline(always)]
pub fn given_unit(mean: f64, invstd: f64) -> f64 {
    let none =
        (ordinary(mean) & ordinary(invstd)) | (invstd == 0.0) | !invstd.is_finite() | !mean.is_finite();
    let most = power_of_two(f64::MAX / 8.0 / mean.abs().max(1.0));
    if none { 1.0 } else { at_most(power_of_two(invstd), most) }
}
