//! What a number is: f32 and f64.

#![forbid(unsafe_code)]

use std::convert::Infallible;

use crate::ground::exponential::Exponential;
use crate::ground::extended::Format;
use crate::ground::half::Halves;

/// Calls a macro with every element type that there are kernels for: the one list of them.
macro_rules! for_elements {
    ($macro:ident) => {
        $macro!(f32, f64);
    };
}
pub(crate) use for_elements;

/// A floating-point number that arithmetic is done in: `f32` or `f64`. Sealed.
pub trait Scalar: Sealed + Copy + Default + PartialEq + Send + Sync + std::fmt::Debug + 'static {
    /// The value as f64, exactly.
    fn to_f64(self) -> f64;

    /// The nearest value of this type; every NaN becomes the canonical one.
    fn from_f64(value: f64) -> Self;
}

/// What the kernels need to know of a number; private by being unnameable.
pub trait Sealed: Exponential {
    /// A block's variance is taken from plain sums of x and x * x only where the sum of squares is at most this many
    /// times M2; else from sums about a pivot. For f32, summed in f64 of exact products, 15 bits may go; for f64, in pairs,
    /// 24. It also says that all elements of a block of 4096 lie within 0.36 of the mean, so that x - pivot is exact.
    const CONDITION_LIMIT: f64;
    /// The largest power of two that has a normal reciprocal, bounds the factor that brings a channel's spread near 1.
    const MAX_PRESCALE: f64;
    /// The largest finite value.
    const LARGEST: f64;
    /// What it is rounded to.
    const FORMAT: Format;
    /// The 16-bit numbers that tensors may be stored in instead.
    type Half: Halves;
}

macro_rules! scalars {
    ($($scalar:ty: $condition_limit:expr, $max_prescale:expr, $half:ty;)*) => {$(
        impl Scalar for $scalar {
            #[inline(always)]
            fn to_f64(self) -> f64 {
                self as f64
            }
            #[inline(always)]
            fn from_f64(value: f64) -> Self {
                if value.is_nan() { Self::NAN } else { value as Self }
            }
        }
        impl Sealed for $scalar {
            const CONDITION_LIMIT: f64 = $condition_limit;
            const MAX_PRESCALE: f64 = $max_prescale;
            const LARGEST: f64 = <$scalar>::MAX as f64;
            const FORMAT: Format =
                Format { digits: <$scalar>::MANTISSA_DIGITS as i64, least: <$scalar>::MIN_EXP as i64 - 1 };
            type Half = $half;
        }
    )*};
}

/// Those that arithmetic in f32 stands for; none where nobody can ask for them.
#[cfg(any(feature = "half", feature = "capi"))]
type HalfOfSingle = crate::ground::half::Half;
#[cfg(not(any(feature = "half", feature = "capi")))]
type HalfOfSingle = Infallible;

scalars! {
    f32: 32768.0, (1u128 << 126) as f64, HalfOfSingle;
    f64: 16_777_216.0, f64::from_bits(2045 << 52), Infallible;
}
