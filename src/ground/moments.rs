//! Mean and sum of squared deviations of some elements of a channel, in the forms in which kernels carry whole arrays of them.
//!
//! They merge by the pairwise update of T. F. Chan, G. H. Golub and R. J. LeVeque, "Updating formulae and a pairwise
//! algorithm for computing sample variances" (1979), which generalises B. P. Welford's one-element update (1962). The
//! mean is an unevaluated sum of two f64: next to a large mean one f64 is not fine enough to give x - mean to the last bits.

#![forbid(unsafe_code)]

use super::double::{Double, times_power};
use super::sums::{MergeWeights, Sum, number};

/// A form of moments.
pub trait Form: Copy + Default + Send + Sync + 'static {
    /// The moments of both: of `left` elements, and of `right` others.
    fn merge(self, right: Self, weights: MergeWeights) -> Self;
    /// The mean and what its rounding left, of the elements times 2^-`exponent`.
    fn mean(self) -> (f64, f64);
    /// The sum of squared deviations of those.
    fn m2(self) -> f64;
    /// 0 unless squares leave f64's range.
    fn exponent(self) -> i64;
    /// With all that the finest form holds.
    fn fine(self) -> FineMoments;
    /// What this form holds of it.
    fn of(fine: FineMoments) -> Self;
}

/// Of f32 elements, whose squares are far from the ends of f64's range.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Moments {
    /// The mean, rounded.
    mean: f64,
    /// What is to be added to `mean`; small against it.
    mean_low: f64,
    /// The sum of squared deviations from the mean.
    m2: f64,
}

impl Moments {
    const NAN: Self = Self { mean: f64::NAN, mean_low: 0.0, m2: f64::NAN };

    /// The moments of a block from its sums of d = x - pivot and of d * d; `offset` is the mean of d.
    #[inline(always)]
    pub fn from_sums(pivot: f64, sum: f64, squares: f64, offset: f64) -> Self {
        let Double { high: mean, low: mean_low } = Double::sum(pivot, offset);
        let m2 = squares - sum * offset;
        // Rounding can leave a tiny negative M2 where all elements are (nearly) equal; NaN stays NaN.
        Self { mean, mean_low, m2: if m2 < 0.0 { 0.0 } else { m2 } }.canonical()
    }

    /// Every NaN becomes the canonical one: which NaN an operation returns differs between CPUs.
    #[inline(always)]
    fn canonical(self) -> Self {
        if self.mean.is_nan() || self.m2.is_nan() || self.mean.is_infinite() { Self::NAN } else { self }
    }
}

impl Form for Moments {
    #[inline(always)]
    fn merge(self, right: Self, weights: MergeWeights) -> Self {
        let (left, right) = if weights.swapped { (right, self) } else { (self, right) };
        let delta = (right.mean - left.mean) + (right.mean_low - left.mean_low);
        let Double { high: mean, low: error } = Double::sum(left.mean, delta * weights.share);
        Self {
            mean,
            mean_low: left.mean_low + error,
            m2: (left.m2 + right.m2) + delta * (delta * weights.weight),
        }
        .canonical()
    }

    #[inline(always)]
    fn mean(self) -> (f64, f64) {
        (self.mean, self.mean_low)
    }

    #[inline(always)]
    fn m2(self) -> f64 {
        self.m2
    }

    #[inline(always)]
    fn exponent(self) -> i64 {
        0
    }

    #[inline(always)]
    fn fine(self) -> FineMoments {
        let Self { mean: high, mean_low: low, m2 } = self;
        FineMoments { mean: Double { high, low }, m2: Double { high: m2, low: 0.0 }, exponent: 0 }
    }

    #[inline(always)]
    fn of(fine: FineMoments) -> Self {
        let FineMoments { mean, m2, exponent } = fine;
        if exponent == 0 {
            return Self { mean: mean.high, mean_low: mean.low, m2: m2.high + m2.low };
        }
        let [mean, mean_low] = [mean.high, mean.low].map(|part| times_power(part, exponent));
        Self { mean, mean_low, m2: times_power(m2.high + m2.low, 2 * exponent) }
    }
}

/// The exponent of moments of elements whose squares leave f64's range, one way or the other.
pub const EXPONENT: i64 = 600;

/// Sums of squares, with what they are off by, are far from the ends of f64's range between these: the products of merges
/// too, and squares of the differences of neighbouring numbers.
const SQUARES: [f64; 2] = [f64::from_bits((1023 - 860) << 52), f64::from_bits((1023 + 900) << 52)];

/// The exponent for elements of this sum of squares, or of this square.
#[inline(always)]
pub fn exponent_for(squares: f64) -> i64 {
    match squares {
        _ if squares < SQUARES[0] => -EXPONENT,
        _ if squares <= SQUARES[1] => 0,
        _ => EXPONENT,
    }
}

/// Of f64 elements times 2^-`exponent`, to twice f64's precision.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct FineMoments {
    pub mean: Double,
    pub m2: Double,
    /// 0, `EXPONENT` or -`EXPONENT`, the least being what zeros have: of two, the larger one keeps what matters.
    pub exponent: i64,
}

impl FineMoments {
    const NAN: Self = Self {
        mean: Double { high: f64::NAN, low: 0.0 },
        m2: Double { high: f64::NAN, low: 0.0 },
        exponent: 0,
    };

    /// The moments of a block of `count` elements from sums of d = x * 2^-`exponent` - pivot and of d * d.
    #[inline(always)]
    pub fn from_sums(pivot: f64, [sum, squares]: [Double; 2], count: f64, exponent: i64) -> Self {
        let sum = Double::sum(sum.high, sum.low);
        let offset = sum.over(count);
        let mean = Double::sum(pivot, offset.high);
        let mean = Double::fast_sum(mean.high, mean.low + offset.low);
        let m2 = squares.add(sum.times(offset).minus());
        let m2 = if m2.high < 0.0 { Double::default() } else { m2 };
        Self { mean, m2, exponent }.canonical()
    }

    /// Of one element.
    pub fn of_one(x: f64) -> Self {
        let exponent = exponent_for(x * x);
        let mean = Double { high: times_power(x, -exponent), low: 0.0 };
        Self { mean, m2: Double::default(), exponent }.canonical()
    }

    #[inline(always)]
    fn canonical(self) -> Self {
        if self.mean.high.is_finite() && self.m2.high.is_finite() { self } else { Self::NAN }
    }

    /// The same with another exponent.
    fn with_exponent(self, exponent: i64) -> Self {
        let by = self.exponent - exponent;
        let times = |Double { high, low }, exponent| Double {
            high: times_power(high, exponent),
            low: times_power(low, exponent),
        };
        Self { mean: times(self.mean, by), m2: times(self.m2, 2 * by), exponent }
    }
}

impl Form for FineMoments {
    #[inline(always)]
    fn merge(self, right: Self, weights: MergeWeights) -> Self {
        let (mut left, mut right) = if weights.swapped { (right, self) } else { (self, right) };
        if left.exponent != right.exponent {
            let exponent = left.exponent.max(right.exponent);
            (left, right) = (left.with_exponent(exponent), right.with_exponent(exponent));
        }
        let delta = right.mean.add(left.mean.minus());
        let mean = left.mean.add(delta.times(weights.fine_share));
        let between = delta.times(delta).times(weights.fine_weight);
        Self { mean, m2: left.m2.add(right.m2).add(between), exponent: left.exponent }.canonical()
    }

    #[inline(always)]
    fn mean(self) -> (f64, f64) {
        (self.mean.high, self.mean.low)
    }

    #[inline(always)]
    fn m2(self) -> f64 {
        self.m2.high + self.m2.low
    }

    #[inline(always)]
    fn exponent(self) -> i64 {
        self.exponent
    }

    fn fine(self) -> FineMoments {
        self
    }

    fn of(fine: FineMoments) -> Self {
        let zero = (fine.mean.high, fine.mean.low, fine.m2.high) == (0.0, 0.0, 0.0);
        if zero { Self { exponent: -EXPONENT, ..Self::default() } } else { fine }
    }
}

/// Whether elements can have these moments: a mean and an m2 that are finite, the latter not negative, or both NaN; and what
/// roundings left of them.
pub fn are_moments(mean: f64, m2: f64, low: [f64; 2]) -> bool {
    let small = low.iter().all(|low| low.is_finite());
    let poisoned = mean.is_nan() && m2.is_nan();
    let finite = mean.is_finite() && m2.is_finite() && m2 >= 0.0 && low[1].abs() <= m2;
    small && (poisoned || finite)
}

/// What m2 of f32 elements cannot be: 2^64 of them, of weights up to 2^60, whose deviations are below 2^129.
const LARGEST_M2: f64 = f64::from_bits((1023 + 382) << 52);

impl Sum for Moments {
    fn with(self, others: Self, weights: MergeWeights) -> Self {
        self.merge(others, weights)
    }

    fn weighed(self, weight: f64) -> Self {
        Self { m2: self.m2 * weight, ..self }
    }

    const COUNT: usize = 3;

    fn put(self, to: &mut [u64]) {
        let Self { mean, mean_low, m2 } = self;
        to.copy_from_slice(&[mean, mean_low, m2].map(f64::to_bits));
    }

    fn of_numbers(from: &[u64]) -> Self {
        let [mean, mean_low, m2] = std::array::from_fn(|i| from.get(i).map_or(0.0, |bits| number(*bits)));
        Self { mean, mean_low, m2 }
    }

    fn are_possible(&self) -> bool {
        let most = f64::from(f32::MAX);
        let beyond = self.mean.abs() > most || self.mean_low.abs() > most || self.m2 > LARGEST_M2;
        !beyond && are_moments(self.mean, self.m2, [self.mean_low, 0.0])
    }
}

impl Sum for FineMoments {
    fn with(self, others: Self, weights: MergeWeights) -> Self {
        self.merge(others, weights)
    }

    fn weighed(self, weight: f64) -> Self {
        Self { m2: self.m2.times(Double { high: weight, low: 0.0 }), ..self }.canonical()
    }

    const COUNT: usize = 5;

    fn put(self, to: &mut [u64]) {
        let Self { mean, m2, exponent } = self;
        let [mean, mean_low, m2, m2_low] = [mean.high, mean.low, m2.high, m2.low].map(f64::to_bits);
        to.copy_from_slice(&[mean, mean_low, m2, m2_low, exponent as u64]);
    }

    fn of_numbers(from: &[u64]) -> Self {
        let of = |i: usize| from.get(i).copied().unwrap_or(0);
        let pair = |i| Double { high: number(of(i)), low: number(of(i + 1)) };
        Self { mean: pair(0), m2: pair(2), exponent: of(4) as i64 }
    }

    fn are_possible(&self) -> bool {
        let Self { mean, m2, exponent } = *self;
        [0, EXPONENT, -EXPONENT].contains(&exponent) && are_moments(mean.high, m2.high, [mean.low, m2.low])
    }
}
