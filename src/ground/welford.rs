//! The Welford state of a channel: how many elements, their mean, the sum of squared deviations from it.
//!
//! States merge by the pairwise update of T. F. Chan, G. H. Golub and R. J. LeVeque, "Updating formulae and a pairwise
//! algorithm for computing sample variances" (1979), which generalises B. P. Welford's one-element update (1962). The
//! mean is carried as an unevaluated sum of two f64 (D. E. Knuth's TwoSum catches what an addition loses): next to a
//! large mean one f64 is not fine enough to give x - mean to f32's last bits.

#![forbid(unsafe_code)]

/// Count, mean and M2 (sum of squared deviations from the mean) of the elements seen so far, in f64.
///
/// ```
/// use batchnorm::Welford;
/// let mut left: Welford = [1.0, 2.0].into_iter().collect();
/// let right: Welford = [3.0, 4.0].into_iter().collect();
/// left.merge(&right);
/// assert_eq!((left.count(), left.mean(), left.variance()), (4, 2.5, 1.25));
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Default)]
#[repr(C)]
pub struct Welford {
    count: u64,
    moments: Moments,
}

/// What a state holds besides its count; the form in which kernels carry whole arrays of states.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
#[repr(C)]
pub struct Moments {
    /// The mean, rounded.
    pub(crate) mean: f64,
    /// What is to be added to `mean`; small against it.
    pub(crate) mean_low: f64,
    /// The sum of squared deviations from the mean.
    pub(crate) m2: f64,
}

/// The factors of a merge, which follow from the two counts alone and so are the same for all channels of a tile.
#[derive(Clone, Copy)]
pub struct MergeWeights {
    share: f64,
    weight: f64,
}

impl MergeWeights {
    /// To merge a state of `right` elements into one of `left`; not both 0.
    pub(crate) fn new(left: u64, right: u64) -> Self {
        let share = right as f64 / (left + right) as f64;
        Self { share, weight: left as f64 * share }
    }
}

impl Moments {
    const NAN: Self = Self { mean: f64::NAN, mean_low: 0.0, m2: f64::NAN };

    /// The moments of a block of `count` elements from its sums of d = x - pivot and of d * d.
    #[inline(always)]
    pub(crate) fn from_sums(pivot: f64, sum: f64, squares: f64, count: f64) -> Self {
        let offset = sum / count;
        let (mean, mean_low) = two_sum(pivot, offset);
        let m2 = squares - sum * offset;
        // Rounding can leave a tiny negative M2 where all elements are (nearly) equal; NaN stays NaN.
        Self { mean, mean_low, m2: if m2 < 0.0 { 0.0 } else { m2 } }.canonical()
    }

    /// Chan, Golub and LeVeque's pairwise update.
    #[inline(always)]
    pub(crate) fn merge(self, right: Self, weights: MergeWeights) -> Self {
        let delta = (right.mean - self.mean) + (right.mean_low - self.mean_low);
        let (mean, error) = two_sum(self.mean, delta * weights.share);
        Self {
            mean,
            mean_low: self.mean_low + error,
            m2: (self.m2 + right.m2) + delta * (delta * weights.weight),
        }
        .canonical()
    }

    /// Every NaN becomes the canonical one: which NaN an operation returns differs between CPUs.
    #[inline(always)]
    fn canonical(self) -> Self {
        if self.mean.is_nan() || self.m2.is_nan() || self.mean.is_infinite() { Self::NAN } else { self }
    }
}

/// a + b as rounded sum and rounding error (Knuth), exact for any order of magnitude.
#[inline(always)]
fn two_sum(a: f64, b: f64) -> (f64, f64) {
    let sum = a + b;
    let b_part = sum - a;
    (sum, (a - (sum - b_part)) + (b - b_part))
}

impl Welford {
    /// The state of no elements.
    pub const fn new() -> Self {
        Self { count: 0, moments: Moments { mean: 0.0, mean_low: 0.0, m2: 0.0 } }
    }

    pub(crate) fn from_moments(count: u64, moments: Moments) -> Self {
        Self { count, moments }
    }

    pub(crate) fn moments(&self) -> Moments {
        self.moments
    }

    /// Takes in one element: Welford's own update. Exact enough for any data, but a division per element; the
    /// operations on tensors take in blocks.
    pub fn push(&mut self, x: f64) {
        self.merge(&Self { count: 1, moments: Moments { mean: x, mean_low: 0.0, m2: 0.0 }.canonical() });
    }

    /// Takes in the elements that `other` has seen, as if `self` had seen them too. Any order and grouping gives the
    /// same statistics up to rounding.
    pub fn merge(&mut self, other: &Self) {
        if self.count == 0 {
            *self = *other;
        } else if other.count != 0 {
            self.moments = self.moments.merge(other.moments, MergeWeights::new(self.count, other.count));
            self.count += other.count;
        }
    }

    /// The number of elements seen.
    pub fn count(&self) -> u64 {
        self.count
    }

    /// The mean; 0 of no elements, NaN if an element was NaN or infinite.
    pub fn mean(&self) -> f64 {
        self.moments.mean + self.moments.mean_low
    }

    /// The sum of squared deviations from the mean; NaN if an element was NaN or infinite.
    pub fn m2(&self) -> f64 {
        self.moments.m2
    }

    /// The biased variance M2 / m, which normalizes; 0 of no elements.
    pub fn variance(&self) -> f64 {
        self.moments.m2 / self.count.max(1) as f64
    }

    /// The unbiased variance M2 / (m - 1); NaN of fewer than two elements.
    pub fn variance_unbiased(&self) -> f64 {
        if self.count < 2 { f64::NAN } else { self.moments.m2 / (self.count - 1) as f64 }
    }
}

impl FromIterator<f64> for Welford {
    fn from_iter<I: IntoIterator<Item = f64>>(values: I) -> Self {
        let mut state = Self::new();
        values.into_iter().for_each(|x| state.push(x));
        state
    }
}
