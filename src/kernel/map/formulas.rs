//! What is written: one output element from the elements at the same place of one or two inputs and the coefficients of
//! its channel.

#![forbid(unsafe_code)]

use crate::kernel::scales::{GRADIENT, HALF, ORDINARY_GRADIENT, ORDINARY_SCALE, REST, SCALE};
use crate::simd::Lanes;

/// An elementwise formula of `IN` tensors and `K` coefficients per channel.
pub trait Formula<const IN: usize, const K: usize>: Copy {
    /// The rows of coefficients that it takes.
    const ROWS: [usize; K];
    /// Whether an element of the output can be NaN: then it must be the canonical one.
    const CAN_BE_NAN: bool = true;

    fn apply<T, S: Lanes<T>>(s: S, x: [S::Vector; IN], k: [S::Vector; K]) -> S::Vector;
}

/// y = d * factor + beta, where d is the deviation of x from the mean. The first difference is exact so near the mean, where
/// it matters.
#[derive(Clone, Copy)]
pub struct Normalize;

impl Formula<1, ORDINARY_SCALE> for Normalize {
    const ROWS: [usize; ORDINARY_SCALE] = *SCALE.first_chunk().unwrap();

    #[inline(always)]
    fn apply<T, S: Lanes<T>>(s: S, [x]: [S::Vector; 1], [h, l, factor, beta]: [S::Vector; 4]) -> S::Vector {
        s.add(s.mul(s.sub(s.sub(x, h), l), factor), beta)
    }
}

/// The same with the statistics of x itself, of ordinary channels, whose elements are finite: their deviations are no more than
/// sqrt(m * var), which is below 2^52, their products with the factor below 2^92; and beta's NaN is the canonical one.
#[derive(Clone, Copy)]
pub struct NormalizeBatch;

impl Formula<1, ORDINARY_SCALE> for NormalizeBatch {
    const ROWS: [usize; ORDINARY_SCALE] = <Normalize as Formula<1, ORDINARY_SCALE>>::ROWS;
    const CAN_BE_NAN: bool = false;

    #[inline(always)]
    fn apply<T, S: Lanes<T>>(s: S, x: [S::Vector; 1], k: [S::Vector; 4]) -> S::Vector {
        <Normalize as Formula<1, ORDINARY_SCALE>>::apply(s, x, k)
    }
}

/// For any channel: of x * prescale ([`super::scales::Scales`]), which is exact, and just x of an ordinary channel.
impl Formula<1, 5> for Normalize {
    const ROWS: [usize; 5] = SCALE;

    #[inline(always)]
    fn apply<T, S: Lanes<T>>(
        s: S,
        [x]: [S::Vector; 1],
        [h, l, factor, beta, prescale]: [S::Vector; 5],
    ) -> S::Vector {
        <Self as Formula<1, 4>>::apply(s, [s.mul(x, prescale)], [h, l, factor, beta])
    }
}

/// dx = gamma * invstd * (dy - mean(dy) - xhat * mean(dy * xhat)).
///
/// Of ordinary channels, whose sums are finite, and so are x and dy: then nothing but the product with the slope can overflow,
/// which is 0 where the last factor is.
#[derive(Clone, Copy)]
pub struct InputGradient;

impl Formula<2, ORDINARY_GRADIENT> for InputGradient {
    const ROWS: [usize; ORDINARY_GRADIENT] = *GRADIENT.first_chunk().unwrap();
    const CAN_BE_NAN: bool = false;

    #[inline(always)]
    fn apply<T, S: Lanes<T>>(
        s: S,
        [x, dy]: [S::Vector; 2],
        [h, l, mean_dy, slope, rest]: [S::Vector; 5],
    ) -> S::Vector {
        let along_x = s.mul(s.sub(s.sub(x, h), l), slope);
        s.mul(s.sub(s.sub(dy, mean_dy), along_x), rest)
    }
}

/// For any channel: with the half of gamma * invstd that is a power of two multiplied into each term, the rest into the sum
/// ([`crate::kernel::channels::GradientFactors`]). Where gamma * invstd is huge, terms that cancel leave roundings which it would make
/// infinite: there what the sum is off by, in f64, is taken off again.
impl Formula<2, 10> for InputGradient {
    const ROWS: [usize; 10] = GRADIENT;

    #[inline(always)]
    fn apply<T, S: Lanes<T>>(
        s: S,
        [x, dy]: [S::Vector; 2],
        [h, l, mean_dy, slope, rest, prescale, half, mean_dy_low, slope_low, fine]: [S::Vector; 10],
    ) -> S::Vector {
        let (x, dy) = (s.mul(x, prescale), s.mul(dy, half));
        let sum = s.sub(s.sub(dy, mean_dy), s.mul(s.sub(s.sub(x, h), l), slope));
        let d = s.sub_wide(s.sub_wide(s.widen(x), s.widen(h)), s.widen(l));
        let along_x = s.mul_wide(d, s.add_wide(s.widen(slope), s.widen(slope_low)));
        let without_mean = s.sub_wide(s.sub_wide(s.widen(dy), s.widen(mean_dy)), s.widen(mean_dy_low));
        let off = s.narrow(s.sub_wide(s.widen(sum), s.sub_wide(without_mean, along_x)));
        // Nothing where the sum is infinite, which it then is to stay; and no -0, which would turn a sum of -0 into 0.
        let off = s.add(s.mul(s.zero_unless_finite(off), fine), s.zero());
        s.mul(s.sub(sum, off), rest)
    }
}

/// dx = gamma * invstd * dy: the statistics did not depend on x.
#[derive(Clone, Copy)]
pub struct FrozenGradient;

impl Formula<1, 2> for FrozenGradient {
    const ROWS: [usize; 2] = [HALF, REST];

    #[inline(always)]
    fn apply<T, S: Lanes<T>>(s: S, [dy]: [S::Vector; 1], [half, rest]: [S::Vector; 2]) -> S::Vector {
        s.mul(s.mul(dy, half), rest)
    }
}
