//! The Welford state of a channel: how many elements, their mean, the sum of squared deviations from it.

#![forbid(unsafe_code)]

use super::double::{Double, times_power};
use super::error::Error;
use super::moments::{EXPONENT, FineMoments, Form, are_moments};
use super::sums::MergeWeights;

/// Count, mean and M2 (sum of squared deviations from the mean) of the elements seen so far, mean and M2 to twice f64's
/// precision.
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
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[cfg_attr(feature = "serde", serde(try_from = "WelfordParts", into = "WelfordParts"))]
pub struct Welford {
    count: u64,
    mean: f64,
    mean_low: f64,
    m2: f64,
    m2_low: f64,
    exponent: i64,
}

/// The numbers that a [`Welford`] state is made of, to be stored or sent: [`Welford::into_parts`], [`Welford::from_parts`].
///
/// ```
/// use batchnorm::{Welford, WelfordParts};
/// let state: Welford = [1.0, 3.0].into_iter().collect();
/// let parts = state.into_parts();
/// assert_eq!(parts, WelfordParts { count: 2, mean: 2.0, m2: 2.0, ..WelfordParts::default() });
/// assert_eq!(Welford::from_parts(parts)?, state);
/// # Ok::<(), batchnorm::Error>(())
/// ```
///
/// With the feature `serde` both are serialized as these fields, of which the low parts and the exponent may be left out.
/// (serde_json gives back every bit with its feature `float_roundtrip`, and has no NaN.)
#[derive(Debug, Clone, Copy, PartialEq, Default)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct WelfordParts {
    /// The number of elements seen.
    pub count: u64,
    /// The mean, rounded; NaN if an element was NaN or infinite.
    pub mean: f64,
    /// What is to be added to `mean`, divided by 2^`exponent`; small against it.
    #[cfg_attr(feature = "serde", serde(default))]
    pub mean_low: f64,
    /// The sum of squared deviations from the mean, rounded, divided by 4^`exponent`.
    pub m2: f64,
    /// What is to be added to `m2`; small against it, and 0 for f32 elements of one tensor.
    #[cfg_attr(feature = "serde", serde(default))]
    pub m2_low: f64,
    /// 0, unless squares of the elements leave f64's range: then 600 or -600.
    #[cfg_attr(feature = "serde", serde(default))]
    pub exponent: i64,
}

impl Welford {
    /// The state of no elements.
    pub const fn new() -> Self {
        Self { count: 0, mean: 0.0, mean_low: 0.0, m2: 0.0, m2_low: 0.0, exponent: 0 }
    }

    /// The state of these parts, as [`into_parts`](Self::into_parts) gave them.
    ///
    /// # Errors
    /// [`Error::State`] if they are no state's: a number but the count of a state of no elements, a negative `m2`, an `exponent`
    /// other than 0, 600 and -600, infinite numbers, a NaN in one of `mean` and `m2` and not in the other.
    pub fn from_parts(parts: WelfordParts) -> Result<Self, Error> {
        let WelfordParts { count, mean, mean_low, m2, m2_low, exponent } = parts;
        let state = Self { count, mean, mean_low, m2, m2_low, exponent };
        state.check()?;
        // The canonical NaN, wherever these come from.
        Ok(if mean.is_nan() { Self { count, mean: f64::NAN, m2: f64::NAN, ..Self::new() } } else { state })
    }

    /// Whether its numbers are those of a state, which in memory of C's they need not be.
    pub(crate) fn check(&self) -> Result<(), Error> {
        let Self { count, mean, mean_low, m2, m2_low, exponent } = *self;
        match () {
            _ if count == 0 && *self != Self::new() => {
                Err(Error::State { reason: "a count of 0 with other numbers than 0" })
            }
            _ if ![0, EXPONENT, -EXPONENT].contains(&exponent) => {
                Err(Error::State { reason: "an exponent other than 0, 600 and -600" })
            }
            _ if !are_moments(mean, m2, [mean_low, m2_low]) => {
                Err(Error::State { reason: "a mean, m2 or low part that elements cannot give" })
            }
            _ => Ok(()),
        }
    }

    /// All that the state is made of.
    pub fn into_parts(self) -> WelfordParts {
        let Self { count, mean, mean_low, m2, m2_low, exponent } = self;
        WelfordParts { count, mean, mean_low, m2, m2_low, exponent }
    }

    #[inline(always)]
    pub(crate) fn of(count: u64, moments: impl Form) -> Self {
        let FineMoments { mean, m2, exponent } = moments.fine();
        let (m2, m2_low) = (m2.high, m2.low);
        if exponent == 0 {
            return Self { count, mean: mean.high, mean_low: mean.low, m2, m2_low, exponent };
        }
        // Zeros need no exponent. The mean is as it is, and what that rounding leaves goes to the low part.
        let exponent = if (mean.high, m2) == (0.0, 0.0) { 0 } else { exponent };
        let rounded = times_power(mean.high, exponent);
        let mean_low = (mean.high - times_power(rounded, -exponent)) + mean.low;
        Self { count, mean: rounded, mean_low, m2, m2_low, exponent }
    }

    #[inline(always)]
    pub(crate) fn moments<M: Form>(&self) -> M {
        let Self { mean: high, mean_low: low, m2, m2_low, exponent, .. } = *self;
        let m2 = Double { high: m2, low: m2_low };
        if exponent == 0 {
            return M::of(FineMoments { mean: Double { high, low }, m2, exponent });
        }
        // States from C may have any.
        let exponent = exponent.signum() * EXPONENT;
        M::of(FineMoments { mean: Double::sum(times_power(high, -exponent), low), m2, exponent })
    }

    /// Takes in one element: Welford's own update. Exact enough for any data, but a division per element; the
    /// operations on tensors take in blocks.
    pub fn push(&mut self, x: f64) {
        self.merge(&Self::of(1, FineMoments::of_one(x)));
    }

    /// Takes in the elements that `other` has seen, as if `self` had seen them too. Any order and grouping gives the
    /// same statistics up to rounding. A count beyond `u64::MAX` stays there.
    pub fn merge(&mut self, other: &Self) {
        if self.count == 0 {
            *self = *other;
        } else if other.count != 0 {
            let (left, right): (FineMoments, FineMoments) = (self.moments(), other.moments());
            let merged = left.merge(right, MergeWeights::new(self.count as f64, other.count as f64));
            *self = Self::of(self.count.saturating_add(other.count), merged);
        }
    }

    /// The number of elements seen.
    pub fn count(&self) -> u64 {
        self.count
    }

    /// The mean; 0 of no elements, NaN if an element was NaN or infinite.
    pub fn mean(&self) -> f64 {
        // Where elements are tiny, the low part by itself can be below the numbers that are as exact as it has to be.
        if self.exponent < 0 {
            times_power(times_power(self.mean, -self.exponent) + self.mean_low, self.exponent)
        } else {
            self.mean + times_power(self.mean_low, self.exponent)
        }
    }

    /// The sum of squared deviations from the mean; NaN if an element was NaN or infinite. Infinite or 0 where it leaves f64's
    /// range ([`into_parts`](Self::into_parts) has all of it).
    pub fn m2(&self) -> f64 {
        self.over(1.0)
    }

    /// The biased variance M2 / m, which normalizes; 0 of no elements. Infinite or 0 where it leaves f64's range, which what is
    /// normalized by it does not.
    pub fn variance(&self) -> f64 {
        self.over(self.count.max(1) as f64)
    }

    /// The unbiased variance M2 / (m - 1); NaN of fewer than two elements.
    pub fn variance_unbiased(&self) -> f64 {
        if self.count < 2 { f64::NAN } else { self.over((self.count - 1) as f64) }
    }

    /// M2 over a count.
    fn over(&self, count: f64) -> f64 {
        let quotient = Double { high: self.m2, low: self.m2_low }.over(count).value();
        times_power(quotient, self.exponent.saturating_mul(2))
    }
}

impl FromIterator<f64> for Welford {
    fn from_iter<I: IntoIterator<Item = f64>>(values: I) -> Self {
        let mut state = Self::new();
        values.into_iter().for_each(|x| state.push(x));
        state
    }
}

impl TryFrom<WelfordParts> for Welford {
    type Error = Error;

    /// As [`Welford::from_parts`].
    fn try_from(parts: WelfordParts) -> Result<Self, Error> {
        Self::from_parts(parts)
    }
}

impl From<Welford> for WelfordParts {
    /// As [`Welford::into_parts`].
    fn from(state: Welford) -> Self {
        state.into_parts()
    }
}
