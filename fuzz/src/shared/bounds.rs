//! What is promised of a result, given the exact one: the bounds of the library's documentation.

use std::fmt::Display;

use batchnorm::Welford;

use crate::common::exact::{Normalization, Statistics, Value, times_power};
use crate::common::matrix::Bits;

/// An element type, its numbers, and the bounds.
pub trait Contract: Bits {
    /// The largest number.
    const MAX: f64;
    /// The smallest normal number.
    const NORMAL: f64;
    /// Half the smallest subnormal number: what the rounding of a subnormal result costs.
    const ROUNDING: f64;
    /// Of |gamma * xhat| + |beta|, the error that y may have.
    const OF_Y: f64;
    /// Of the sum of its terms' absolute values, the error that dx may have.
    const OF_DX: f64;
    /// Of the sum of absolute values, the error that dbeta and dgamma may have.
    const OF_SUMS: f64;
    /// Of |gamma|, what y may be off by next to the mean; of |gamma| * invstd * (1 + |xhat|) * rms(dy), dx where
    /// dy sums to nothing or is orthogonal to xhat.
    const LEFT: f64;
    /// Magnitudes (but zero) of gradients and factors between which the bounds are asked for.
    const RANGE: [f64; 2];

    /// A finite number of these bits; the exponent that is not a number's is another.
    fn finite_bits(bits: u64) -> Self;
    /// A subnormal number, or zero.
    fn subnormal(bits: u64) -> Self;
    /// A power of two within the range, which is spread over an i8.
    fn power(exponent: i8) -> f64;
    /// How far the mean may be off.
    fn mean_bound(mean: f64, std: f64) -> f64;
    /// How far the variance may be off.
    fn var_bound(var: f64) -> f64;

    /// Whether y is compared: see "Known limits".
    fn y_is_promised(normalization: &Normalization) -> bool;
}

/// Whether the bounds are asked for where this value goes in.
pub fn is_in_range<T: Contract>(value: f64) -> bool {
    value == 0.0 || (T::RANGE[0]..=T::RANGE[1]).contains(&value.abs())
}

/// The same of gamma * invstd: a product of 0 of a gamma other than 0 is out of range, too.
pub fn is_gain_in_range<T: Contract>(gamma: f64, invstd: f64) -> bool {
    let gain = gamma * invstd;
    is_in_range::<T>(gain) && (gain != 0.0 || gamma == 0.0)
}

/// The documentation's figures, for any finite element.
impl Contract for f32 {
    const MAX: f64 = f32::MAX as f64;
    const NORMAL: f64 = f32::MIN_POSITIVE as f64;
    const ROUNDING: f64 = f32::from_bits(1) as f64 / 2.0;
    const OF_Y: f64 = 1.0 / (1u64 << 21) as f64;
    const OF_DX: f64 = 1.0 / (1u64 << 20) as f64;
    const OF_SUMS: f64 = 1.0 / (1u64 << 21) as f64;
    const LEFT: f64 = 1.0 / (1u64 << 40) as f64;
    const RANGE: [f64; 2] = [0.0, f64::INFINITY];

    fn finite_bits(bits: u64) -> Self {
        let number = f32::from_bits(bits as u32);
        if number.is_finite() { number } else { f32::from_bits(bits as u32 ^ 0x4000_0000) }
    }
    fn subnormal(bits: u64) -> Self {
        f32::from_bits(bits as u32 & 0x807f_ffff)
    }
    fn power(exponent: i8) -> f64 {
        2f64.powi(exponent.into())
    }
    fn mean_bound(mean: f64, std: f64) -> f64 {
        0.5 * ulp(mean, 23) + std * 2f64.powi(-22)
    }
    fn var_bound(var: f64) -> f64 {
        2.0 * ulp(var, 23)
    }
    fn y_is_promised(normalization: &Normalization) -> bool {
        let Normalization { mean, invstd, gamma, .. } = normalization;
        let gain = (gamma * invstd).abs();
        let gains = 2f64.powi(-252)..2f64.powi(254);
        let large = gamma.abs() >= 2f64.powi(127) || gain * mean.hi.abs() >= 2f64.powi(226);
        gain == 0.0 || gains.contains(&gain) && !large
    }
}

impl Contract for f64 {
    const MAX: f64 = f64::MAX;
    const NORMAL: f64 = f64::MIN_POSITIVE;
    // Half the smallest subnormal is none: a whole one.
    const ROUNDING: f64 = f64::from_bits(1);
    const OF_Y: f64 = 1.0 / (1u64 << 49) as f64;
    const OF_DX: f64 = 1.0 / (1u64 << 48) as f64;
    const OF_SUMS: f64 = 1.0 / (1u64 << 48) as f64;
    const LEFT: f64 = 1.0 / (1u64 << 56) as f64;
    const RANGE: [f64; 2] = [f64::from_bits((1023 - 900) << 52), f64::from_bits((1023 + 900) << 52)];

    fn finite_bits(bits: u64) -> Self {
        let number = f64::from_bits(bits);
        if number.is_finite() { number } else { f64::from_bits(bits ^ 1 << 62) }
    }
    fn subnormal(bits: u64) -> Self {
        f64::from_bits(bits & 0x800f_ffff_ffff_ffff)
    }
    fn power(exponent: i8) -> f64 {
        // Mostly of the range that the bounds are asked for in.
        2f64.powi(i32::from(exponent) * if exponent.unsigned_abs() > 100 { 8 } else { 1 })
    }
    fn mean_bound(mean: f64, std: f64) -> f64 {
        0.5 * ulp(mean, 52) + std * 2f64.powi(-49)
    }
    fn var_bound(var: f64) -> f64 {
        4.0 * ulp(var, 52)
    }
    fn y_is_promised(normalization: &Normalization) -> bool {
        let Normalization { invstd, gamma, .. } = *normalization;
        is_in_range::<Self>(gamma) && is_gain_in_range::<Self>(gamma, invstd)
    }
}

/// The distance of neighbouring numbers of `bits` mantissa bits around `x`, with no end to the exponents.
fn ulp(x: f64, bits: i32) -> f64 {
    if x == 0.0 { 0.0 } else { f64::from_bits(x.to_bits() & f64::INFINITY.to_bits()) * 2f64.powi(-bits) }
}

/// Asserts the bounds on a finite channel's state.
pub fn assert_state<T: Contract>(what: impl Display, state: &Welford, x: &[T], exact: &Statistics) {
    assert_eq!(state.count(), x.len() as u64, "{what}: count");
    if constant(x) {
        assert_eq!(state.variance(), 0.0, "{what}: variance of the constant {:?}", x[0]);
    }
    // In the measure of the scaled elements, where a subnormal mean has another ulp.
    let (mean, var) = (exact.mean.value(), exact.scaled_var());
    let rounding = if exact.mean().abs() < f64::MIN_POSITIVE { T::ROUNDING } else { 0.0 };
    let rounding = times_power(rounding, -exact.exponent);
    let (error, bound) = (exact.mean_distance(state.mean()), T::mean_bound(mean, var.sqrt()) + rounding);
    assert!(error <= bound, "{what}: mean {:e}, exactly {mean:e}; {error:e} > {bound:e}", state.mean());
    let (error, bound) = (exact.var_distance(state), T::var_bound(var));
    assert!(
        error <= bound,
        "{what}: variance {:e}, exactly {var:e}; {error:e} > {bound:e}",
        state.variance()
    );
}

/// Whether all elements are equal, by which the zeros are.
pub fn constant<T: Contract>(x: &[T]) -> bool {
    x.iter().all(|element| *element == x[0])
}

/// What a result may be off by.
#[derive(Debug, Clone, Copy)]
pub struct Bound {
    /// Of the exact value's scale.
    pub relative: f64,
    /// Beside that.
    pub absolute: f64,
}

impl Bound {
    /// A share of the scale.
    pub const fn of_scale(relative: f64) -> Self {
        Self { relative, absolute: 0.0 }
    }
}

/// Asserts that a result is within its bound and, if it is subnormal, its rounding; unless a term alone leaves the range, and all that it says is lost.
pub fn assert_value<T: Contract>(what: impl Display, got: T, exact: Value, bound: Bound) {
    let Value { value, scale, .. } = exact;
    // The oracle's terms are f64 too: one that leaves that range is an excuse only for what has left it as well.
    let lost = scale > T::MAX || (scale.is_nan() && !got.to_f64().is_finite());
    if got == T::from_f64(value) || lost {
        return;
    }
    let subnormal = got.to_f64().abs() < T::NORMAL;
    let rounding = if subnormal { T::ROUNDING } else { 0.0 };
    let bound = bound.relative * scale + bound.absolute + rounding;
    // What may be beyond the largest number may be infinite.
    let got = match got.to_f64() {
        infinite if infinite.is_infinite() && value.abs() + bound >= T::MAX => infinite.signum() * T::MAX,
        got => got,
    };
    let error = exact.distance(got);
    assert!(error <= bound, "{what}: {got:e}, exactly {value:e} of scale {scale:e}; {error:e} > {bound:e}");
}
