//! What sums are taken in, for each element type: sums of f32 are f64, those of f64 are pairs of them.

#![forbid(unsafe_code)]

use super::looks::{BlockMoments, Condition, PairCondition, PairMoments, is_power};
use super::scales::{given_unit, in_unit, unit_exponent};
use super::scratch::Sums;
use super::terms::*;
use crate::ground::double::{Double, power, times_power};
use crate::ground::moments::{FineMoments, Form, Moments};
use crate::ground::scalar::{Scalar, Sealed};
use crate::ground::sums::{MergeWeights, Sum, number};
use crate::simd::{Dispatch, Level};

/// An element type, what is summed of it and in what form.
pub trait Precision: Scalar {
    /// Whether sums are pairs, and elements such that their squares can leave f64's range.
    const PAIRS: bool;
    /// How many looks at a block may follow the first.
    const LOOKS: usize;
    /// x and x * x.
    type Plain: Terms<1>;
    /// The same about a pivot, and of x times a unit if squares can leave the range.
    type Pivoted: Terms<1>;
    /// dy and dy * (x - center).
    type Gradient: Terms<2>;
    /// The same of x times a unit, where there are such.
    type ScaledGradient: Terms<2>;
    /// The moments of a block, a chunk, a channel.
    type Moments: Form + Sum;
    /// The sums of gradients of these.
    type Gradients: GradientSums;

    /// Before sums of gradients: center and unit of channel `i`, from the batch's own moments, their count, and eps.
    fn batch_center(sums: &mut Sums, i: usize, moments: Self::Moments, count_eps: (f64, f64));
    /// The same from a given mean, and variance + eps.
    fn given_center(sums: &mut Sums, i: usize, mean: f64, shifted: f64);
    /// After a look at a block: whether another one is needed, for which pivots, centers and units are written then.
    fn look_again(level: Level, sums: &mut Sums, sizes: (usize, f64), first: bool) -> bool;
    /// After the last one: the moments.
    fn moments(level: Level, sums: &Sums, count: f64, moments: &mut [Self::Moments]);
}

impl Precision for f32 {
    const PAIRS: bool = false;
    const LOOKS: usize = 1;
    type Plain = Plain;
    type Pivoted = Pivoted;
    type Gradient = GradientTerms;
    type ScaledGradient = GradientTerms;
    type Moments = Moments;
    type Gradients = PlainGradients;

    fn batch_center(sums: &mut Sums, i: usize, moments: Moments, _: (f64, f64)) {
        (sums.centers[i], sums.pivots[i]) = moments.mean();
    }

    fn given_center(sums: &mut Sums, i: usize, mean: f64, _: f64) {
        (sums.centers[i], sums.pivots[i]) = (mean, 0.0);
    }

    fn look_again(level: Level, sums: &mut Sums, (channels, count): (usize, f64), _: bool) -> bool {
        // A single element is its mean, and its deviation exactly 0.
        if count == 1.0 {
            sums.pivots[..channels].fill(0.0);
            return false;
        }
        let mut again = false;
        match is_power(count) {
            true => Self::dispatch(level, Condition::<true> { sums, channels, count, again: &mut again }),
            false => Self::dispatch(level, Condition::<false> { sums, channels, count, again: &mut again }),
        }
        again
    }

    fn moments(level: Level, sums: &Sums, count: f64, moments: &mut [Moments]) {
        match is_power(count) {
            true => Self::dispatch(level, BlockMoments::<true> { sums, count, moments }),
            false => Self::dispatch(level, BlockMoments::<false> { sums, count, moments }),
        }
    }
}

impl Precision for f64 {
    const PAIRS: bool = true;
    // For a unit, then for a pivot.
    const LOOKS: usize = 2;
    type Plain = PlainPairs;
    type Pivoted = PivotedPairs;
    type Gradient = GradientPairs;
    type ScaledGradient = CenteredGradientPairs;
    type Moments = FineMoments;
    type Gradients = FineGradients;

    fn batch_center(sums: &mut Sums, i: usize, moments: FineMoments, (count, eps): (f64, f64)) {
        let var = moments.m2() / count;
        let unit = unit_exponent(var, moments.exponent(), eps);
        let exponent = moments.exponent() + unit;
        center(sums, i, in_unit(moments.mean(), exponent), power(unit), times_power(var, 2 * exponent));
    }

    fn given_center(sums: &mut Sums, i: usize, mean: f64, shifted: f64) {
        let unit = given_unit(mean, 1.0 / shifted.sqrt());
        center(sums, i, (mean * unit, 0.0), unit, shifted * unit * unit);
    }

    fn look_again(level: Level, sums: &mut Sums, (channels, count): (usize, f64), first: bool) -> bool {
        let mut again = false;
        Self::dispatch(level, PairCondition { sums, channels, count, first, again: &mut again });
        again
    }

    fn moments(level: Level, sums: &Sums, count: f64, moments: &mut [FineMoments]) {
        Self::dispatch(level, PairMoments { sums, count, moments });
    }
}

/// The center of channel `i` of f64, in its unit: none where the mean is no larger than products of x leave room for, so that
/// most need no differences.
#[inline(always)]
fn center(sums: &mut Sums, i: usize, (mean, low): (f64, f64), unit: f64, var: f64) {
    let none = mean * mean <= var * f64::CONDITION_LIMIT;
    (sums.centers[i], sums.besides[i]) = if none { (0.0, mean) } else { (mean, 0.0) };
    (sums.pivots[i], sums.units[i]) = (low, unit);
    sums.scaled |= !none | (unit != 1.0);
}

/// Sums over a channel, or a part of it, of dy and of dy * (x - mean), x in its unit.
pub trait GradientSums: Sum {
    /// Of total `i`, which is one of channel `c`; the mean's low part has had no part in it yet.
    fn of_block(sums: &Sums, i: usize, c: usize) -> Self;
    /// Of both parts.
    fn merge(self, other: Self) -> Self;
    fn dy(self) -> f64;
    fn dy_d(self) -> f64;
}

/// Of f32.
#[derive(Clone, Copy, Default)]
pub struct PlainGradients {
    dy: f64,
    dy_d: f64,
}

impl GradientSums for PlainGradients {
    #[inline(always)]
    fn of_block(Sums { totals: [dy, dy_d, ..], pivots, .. }: &Sums, i: usize, c: usize) -> Self {
        Self { dy: dy[i], dy_d: dy_d[i] - pivots[c] * dy[i] }
    }

    #[inline(always)]
    fn merge(self, other: Self) -> Self {
        Self { dy: self.dy + other.dy, dy_d: self.dy_d + other.dy_d }
    }

    #[inline(always)]
    fn dy(self) -> f64 {
        self.dy
    }

    #[inline(always)]
    fn dy_d(self) -> f64 {
        self.dy_d
    }
}

/// Of f64.
#[derive(Clone, Copy, Default)]
pub struct FineGradients {
    dy: Double,
    dy_d: Double,
}

/// The sum of two pairs: where it is infinite, what remains of a rounding is no number, and the sum stays infinite.
#[inline(always)]
fn add(left: Double, right: Double) -> Double {
    or(left.add(right), left.high + right.high)
}

/// A pair, or a number where the pair is none.
#[inline(always)]
fn or(pair: Double, high: f64) -> Double {
    if pair.high.is_nan() { Double { high, low: 0.0 } } else { pair }
}

impl GradientSums for FineGradients {
    #[inline(always)]
    fn of_block(sums: &Sums, i: usize, c: usize) -> Self {
        let Sums { totals: [dy, dy_low, dy_d, dy_d_low], pivots, besides, .. } = sums;
        let [dy, dy_d] =
            [(dy, dy_low), (dy_d, dy_d_low)].map(|(high, low)| or(Double::sum(high[i], low[i]), high[i]));
        let beside = dy.times(Double::sum(-besides[c], -pivots[c]));
        Self { dy, dy_d: add(dy_d, beside) }
    }

    #[inline(always)]
    fn merge(self, other: Self) -> Self {
        Self { dy: add(self.dy, other.dy), dy_d: add(self.dy_d, other.dy_d) }
    }

    #[inline(always)]
    fn dy(self) -> f64 {
        self.dy.value()
    }

    #[inline(always)]
    fn dy_d(self) -> f64 {
        self.dy_d.value()
    }
}

impl Sum for PlainGradients {
    fn with(self, others: Self, _: MergeWeights) -> Self {
        self.merge(others)
    }

    fn weighed(self, weight: f64) -> Self {
        Self { dy: self.dy * weight, dy_d: self.dy_d * weight }
    }

    const COUNT: usize = 2;

    fn put(self, to: &mut [u64]) {
        to.copy_from_slice(&[self.dy, self.dy_d].map(f64::to_bits));
    }

    fn of_numbers(from: &[u64]) -> Self {
        let [dy, dy_d] = std::array::from_fn(|i| from.get(i).map_or(0.0, |bits| number(*bits)));
        Self { dy, dy_d }
    }
}

impl Sum for FineGradients {
    fn with(self, others: Self, _: MergeWeights) -> Self {
        self.merge(others)
    }

    fn weighed(self, weight: f64) -> Self {
        let by = |sum: Double| or(sum.times(Double { high: weight, low: 0.0 }), sum.high * weight);
        Self { dy: by(self.dy), dy_d: by(self.dy_d) }
    }

    const COUNT: usize = 4;

    fn put(self, to: &mut [u64]) {
        let Self { dy, dy_d } = self;
        to.copy_from_slice(&[dy.high, dy.low, dy_d.high, dy_d.low].map(f64::to_bits));
    }

    fn of_numbers(from: &[u64]) -> Self {
        let of = |i: usize| from.get(i).map_or(0.0, |bits| number(*bits));
        let pair = |i| Double { high: of(i), low: of(i + 1) };
        Self { dy: pair(0), dy_d: pair(2) }
    }
}
