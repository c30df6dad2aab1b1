//! What is written: one output element from the elements at the same place of one or two inputs and the coefficients of
//! its channel.

#![forbid(unsafe_code)]

use crate::kernel::scales::{
    FORWARD, FORWARD_BETA, FORWARD_FACTOR, GRADIENT, HALF, ORDINARY_GRADIENT, ORDINARY_SCALE, REST, SCALE,
};
use crate::simd::Lanes;

/// An elementwise formula of `IN` tensors and `K` coefficients per channel.
pub trait Formula<const IN: usize, const K: usize>: Copy {
    /// The rows of coefficients that it takes.
    const ROWS: [usize; K];
    /// Whether an element of the output can be NaN: then it must be the canonical one.
    const CAN_BE_NAN: bool = true;
    /// Whether it is for channels out of the ordinary, or seldom asked for: then it has one loop, which writes through the caches and finds out vector by
    /// vector whether to prefetch.
    const RARE: bool = false;
    /// Whether there are kernels of it for 16-bit numbers as they are, which take code; others are mapped in tiles.
    const OF_HALVES: bool = !Self::RARE;

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
    const RARE: bool = true;

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
    const RARE: bool = true;

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
    const OF_HALVES: bool = false;
    const ROWS: [usize; 2] = [HALF, REST];

    #[inline(always)]
    fn apply<T, S: Lanes<T>>(s: S, [dy]: [S::Vector; 1], [half, rest]: [S::Vector; 2]) -> S::Vector {
        s.mul(s.mul(dy, half), rest)
    }
}

/// A formula of x and g, with the coefficients of u among its own.
pub trait Through<const K: usize>: Formula<2, K> {
    fn u<T, S: Lanes<T>>(s: S, x: S::Vector, k: &[S::Vector; K]) -> S::Vector;
}

/// The coefficients of ordinary channels' dx, and those of u that are not among them.
pub const ORDINARY_THROUGH: usize = ORDINARY_GRADIENT + 2;
/// Any channel's, and all of u's.
pub const ANY_THROUGH: usize = GRADIENT.len() + FORWARD.len();
/// Of frozen statistics.
pub const FROZEN_THROUGH: usize = FORWARD.len() + 2;

/// The rows that a map through an activation takes: the first are those of ordinary channels.
pub const THROUGH: [usize; ANY_THROUGH] = {
    let mut rows = <InputGradientThrough as Formula<2, ANY_THROUGH>>::ROWS;
    let ordinary = <InputGradientThrough as Formula<2, ORDINARY_THROUGH>>::ROWS;
    // Behind them what only other channels take.
    let others =
        [GRADIENT[5], GRADIENT[6], GRADIENT[7], GRADIENT[8], GRADIENT[9], FORWARD[0], FORWARD[1], FORWARD[4]];
    let (first, last) = rows.split_at_mut(ORDINARY_THROUGH);
    first.copy_from_slice(&ordinary);
    last.copy_from_slice(&others);
    rows
};

/// `InputGradient` of g in place of dy.
#[derive(Clone, Copy)]
pub struct InputGradientThrough;

impl Formula<2, ORDINARY_THROUGH> for InputGradientThrough {
    // A NaN of g is one of the sums, whose channel is not ordinary.
    const CAN_BE_NAN: bool = false;
    const ROWS: [usize; ORDINARY_THROUGH] =
        [GRADIENT[0], GRADIENT[1], GRADIENT[2], GRADIENT[3], GRADIENT[4], FORWARD_FACTOR, FORWARD_BETA];

    #[inline(always)]
    fn apply<T, S: Lanes<T>>(s: S, x: [S::Vector; 2], k: [S::Vector; ORDINARY_THROUGH]) -> S::Vector {
        let [h, l, mean_dy, slope, rest, ..] = k;
        <InputGradient as Formula<2, ORDINARY_GRADIENT>>::apply(s, x, [h, l, mean_dy, slope, rest])
    }
}

impl Through<ORDINARY_THROUGH> for InputGradientThrough {
    #[inline(always)]
    fn u<T, S: Lanes<T>>(
        s: S,
        x: S::Vector,
        [h, l, _, _, _, factor, beta]: &[S::Vector; ORDINARY_THROUGH],
    ) -> S::Vector {
        <Normalize as Formula<1, ORDINARY_SCALE>>::apply(s, [x], [*h, *l, *factor, *beta])
    }
}

impl Formula<2, ANY_THROUGH> for InputGradientThrough {
    const RARE: bool = true;
    const ROWS: [usize; ANY_THROUGH] = {
        let mut rows = [0; ANY_THROUGH];
        let (gradient, forward) = rows.split_at_mut(GRADIENT.len());
        gradient.copy_from_slice(&GRADIENT);
        forward.copy_from_slice(&FORWARD);
        rows
    };

    #[inline(always)]
    fn apply<T, S: Lanes<T>>(s: S, x: [S::Vector; 2], k: [S::Vector; ANY_THROUGH]) -> S::Vector {
        let mut own = [s.zero(); GRADIENT.len()];
        own.copy_from_slice(&k[..GRADIENT.len()]);
        <InputGradient as Formula<2, 10>>::apply(s, x, own)
    }
}

impl Through<ANY_THROUGH> for InputGradientThrough {
    #[inline(always)]
    fn u<T, S: Lanes<T>>(s: S, x: S::Vector, k: &[S::Vector; ANY_THROUGH]) -> S::Vector {
        let mut forward = [s.zero(); FORWARD.len()];
        forward.copy_from_slice(&k[GRADIENT.len()..]);
        <Normalize as Formula<1, 5>>::apply(s, [x], forward)
    }
}

/// `FrozenGradient` of g in place of dy.
#[derive(Clone, Copy)]
pub struct FrozenGradientThrough;

impl Formula<2, FROZEN_THROUGH> for FrozenGradientThrough {
    const RARE: bool = true;
    const ROWS: [usize; FROZEN_THROUGH] =
        [FORWARD[0], FORWARD[1], FORWARD[2], FORWARD[3], FORWARD[4], HALF, REST];

    #[inline(always)]
    fn apply<T, S: Lanes<T>>(
        s: S,
        [_, g]: [S::Vector; 2],
        [.., half, rest]: [S::Vector; FROZEN_THROUGH],
    ) -> S::Vector {
        FrozenGradient::apply(s, [g], [half, rest])
    }
}

impl Through<FROZEN_THROUGH> for FrozenGradientThrough {
    #[inline(always)]
    fn u<T, S: Lanes<T>>(s: S, x: S::Vector, [a, b, c, d, e, ..]: &[S::Vector; FROZEN_THROUGH]) -> S::Vector {
        <Normalize as Formula<1, 5>>::apply(s, [x], [*a, *b, *c, *d, *e])
    }
}

/// g by itself.
#[derive(Clone, Copy)]
pub struct GradientAlone;

impl Formula<1, 0> for GradientAlone {
    const RARE: bool = true;
    const ROWS: [usize; 0] = [];

    #[inline(always)]
    fn apply<T, S: Lanes<T>>(_: S, [g]: [S::Vector; 1], []: [S::Vector; 0]) -> S::Vector {
        g
    }
}
