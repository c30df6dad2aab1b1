//! The numbers of exp(t) for t <= 0, by a power of two and a polynomial.

#![forbid(unsafe_code)]

/// What the exponential takes of an element type.
pub trait Exponential {
    /// The last term of the series: on |r| <= ln(2) / 2 what is left out is below a quarter of an ulp.
    const DEGREE: usize;
    /// exp of less is taken for exp of this: times it, it is below half the least subnormal number.
    const LEAST: f64;
    /// The power of two is this power of two too large, so that products with it round as normal numbers, once.
    const BIAS: i32;
    /// Added to t / ln(2) it leaves the nearest integer, with both biases, in the significand's last bits.
    const ROUND: f64;
    /// ln(2) in two parts, of which the first times that integer is exact.
    const LN_2: [f64; 2];
}

impl Exponential for f32 {
    const DEGREE: usize = 7;
    const LEAST: f64 = -110.0;
    const BIAS: i32 = 40;
    const ROUND: f64 = 1.5 * (1u64 << 23) as f64 + (127 + Self::BIAS) as f64;
    const LN_2: [f64; 2] = [355.0 / 512.0, std::f64::consts::LN_2 - 355.0 / 512.0];
}

impl Exponential for f64 {
    const DEGREE: usize = 13;
    const LEAST: f64 = -753.0;
    const BIAS: i32 = 80;
    const ROUND: f64 = 1.5 * (1u64 << 52) as f64 + (1023 + Self::BIAS) as f64;
    // The first is ln(2) to 32 bits (W. J. Cody and W. Waite, "Software Manual for the Elementary Functions", 1980).
    const LN_2: [f64; 2] = [6.931_471_803_691_238e-1, 1.908_214_929_270_587_7e-10];
}

/// 1 / k! for every term of the longer series.
pub const INVERSE_FACTORIALS: [f64; 14] = {
    let (mut inverses, mut factorial, mut k) = ([1.0; 14], 1.0, 1);
    while k < 14 {
        factorial *= k as f64;
        inverses[k] = 1.0 / factorial;
        k += 1;
    }
    inverses
};
