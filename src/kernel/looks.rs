//! From a block's sums to its moments, and whether that takes another look at the block.
//!
//! Plain loops over f64, kernels only so that the compiler may use each level's vectors for them.

#![forbid(unsafe_code)]

use super::scales::{inverse_power, power_of_two};
use super::scratch::Sums;
use crate::ground::double::{Double, exponent_of, power};
use crate::ground::moments::{FineMoments, Moments, exponent_for};
use crate::ground::scalar::Scalar;
use crate::ground::sizes::BAND;
use crate::simd::{Kernel, Lanes};

/// The mean of so many. If they are a power of two (`POWER`), as in most blocks, by a product, which has the same bits.
#[inline(always)]
fn mean<const POWER: bool>(sum: f64, count: f64) -> f64 {
    if POWER { sum * inverse_power(count) } else { sum / count }
}

/// Whether it is one.
pub fn is_power(count: f64) -> bool {
    count == power_of_two(count)
}

/// From a block's plain sums: is any channel's variance too small against its mean for them? Those channels get the
/// mean as a pivot and the answer is in `again`.
pub struct Condition<'a, const POWER: bool> {
    pub sums: &'a mut Sums,
    pub channels: usize,
    pub count: f64,
    pub again: &'a mut bool,
}

impl<T: Scalar, const POWER: bool> Kernel<T> for Condition<'_, POWER> {
    #[inline(always)]
    fn run<S: Lanes<T>>(self, _: S) {
        let Sums { totals: [sums, squares, ..], pivots, centers, .. } = self.sums;
        let sums = sums.iter().zip(squares.iter());
        let mut again = 0u64;
        for (pivot, (sum, squares)) in pivots[..self.channels].iter_mut().zip(sums) {
            let mean = mean::<POWER>(*sum, self.count);
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

/// The same of pairs, where the squares may have left f64's range besides: then x gets a unit, and perhaps a pivot at the
/// next look.
pub struct PairCondition<'a> {
    pub sums: &'a mut Sums,
    pub channels: usize,
    pub count: f64,
    /// Whether this was the first look.
    pub first: bool,
    pub again: &'a mut bool,
}

impl<T: Scalar> Kernel<T> for PairCondition<'_> {
    #[inline(always)]
    fn run<S: Lanes<T>>(self, _: S) {
        let Sums { totals: [sums, _, squares, _], pivots, centers, channel_units, units, .. } = self.sums;
        if self.first {
            pivots[..self.channels].fill(0.0);
            channel_units[..self.channels].fill(1.0);
        }
        let mut again = false;
        for i in 0..self.channels {
            let (sum, squares) = (sums[i], squares[i]);
            let exponent = exponent_for(squares);
            if (exponent != 0) & (channel_units[i] == 1.0) & (pivots[i] == 0.0) {
                channel_units[i] = power(-exponent);
                again = true;
                continue;
            }
            let mean = sum / self.count;
            // A single element is its mean, and its deviation exactly 0.
            let good = (self.count == 1.0) | (squares <= (squares - sum * mean) * T::CONDITION_LIMIT);
            // Sums about a pivot are as good as they get, and those of NaN.
            if !good & (pivots[i] == 0.0) & !squares.is_nan() {
                pivots[i] = mean;
                again = true;
            }
        }
        *self.again = again;
        if again {
            centers[..self.channels].copy_from_slice(&pivots[..self.channels]);
            units[..self.channels].copy_from_slice(&channel_units[..self.channels]);
        }
    }
}

/// From a block's pairs to its moments.
pub struct PairMoments<'a> {
    pub sums: &'a Sums,
    pub count: f64,
    pub moments: &'a mut [FineMoments],
}

impl<T: Scalar> Kernel<T> for PairMoments<'_> {
    #[inline(always)]
    fn run<S: Lanes<T>>(self, _: S) {
        let Sums { totals: [sums, low_sums, squares, low_squares], pivots, channel_units, .. } = self.sums;
        for (i, moments) in self.moments.iter_mut().enumerate().take(BAND) {
            let sum = Double { high: sums[i], low: low_sums[i] };
            let squares = Double { high: squares[i], low: low_squares[i] };
            let exponent = -exponent_of(channel_units[i]);
            *moments = FineMoments::from_sums(pivots[i], [sum, squares], self.count, exponent);
        }
    }
}

/// From a block's sums to its moments.
pub struct BlockMoments<'a, const POWER: bool> {
    pub sums: &'a Sums,
    pub count: f64,
    pub moments: &'a mut [Moments],
}

impl<T: Scalar, const POWER: bool> Kernel<T> for BlockMoments<'_, POWER> {
    #[inline(always)]
    fn run<S: Lanes<T>>(self, _: S) {
        let Sums { totals: [sums, squares, ..], pivots, .. } = self.sums;
        for (i, moments) in self.moments.iter_mut().enumerate().take(BAND) {
            *moments = Moments::from_sums(pivots[i], sums[i], squares[i], mean::<POWER>(sums[i], self.count));
        }
    }
}
