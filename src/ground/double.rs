//! Numbers of twice f64's precision: unevaluated sums of two f64.
//!
//! T. J. Dekker, "A floating-point technique for extending the available precision" (1971); D. E. Knuth, "The Art of
//! Computer Programming", volume 2, 4.2.2. Only IEEE operations, so the bits are the same everywhere.

#![forbid(unsafe_code)]

/// high + low, where `low` is small against `high`.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Double {
    pub high: f64,
    pub low: f64,
}

impl Double {
    /// a + b exactly, for any order of magnitude (Knuth's TwoSum).
    #[inline(always)]
    pub fn sum(a: f64, b: f64) -> Self {
        let high = a + b;
        let part = high - a;
        Self { high, low: (a - (high - part)) + (b - part) }
    }

    /// a + b exactly, where a is 0 or not the smaller one (Dekker's FastTwoSum).
    #[inline(always)]
    pub fn fast_sum(a: f64, b: f64) -> Self {
        let high = a + b;
        Self { high, low: b - (high - a) }
    }

    /// a * b exactly, for factors below 2^990 whose product is above 2^-900 (Dekker's product).
    #[inline(always)]
    pub fn product(a: f64, b: f64) -> Self {
        let high = a * b;
        let ([a_high, a_low], [b_high, b_low]) = (split(a), split(b));
        Self { high, low: (((a_high * b_high - high) + a_high * b_low) + a_low * b_high) + a_low * b_low }
    }

    #[inline(always)]
    pub fn add(self, other: Self) -> Self {
        let sum = Self::sum(self.high, other.high);
        Self::fast_sum(sum.high, sum.low + (self.low + other.low))
    }

    #[inline(always)]
    pub fn minus(self) -> Self {
        Self { high: -self.high, low: -self.low }
    }

    #[inline(always)]
    pub fn times(self, other: Self) -> Self {
        let product = Self::product(self.high, other.high);
        Self::fast_sum(product.high, product.low + (self.high * other.low + self.low * other.high))
    }

    /// The quotient by a number.
    #[inline(always)]
    pub fn over(self, divisor: f64) -> Self {
        let high = self.high / divisor;
        let back = Self::product(high, divisor);
        Self::fast_sum(high, (((self.high - back.high) - back.low) + self.low) / divisor)
    }

    /// Times a power of two.
    #[inline(always)]
    pub fn scaled(self, power: f64) -> Self {
        Self { high: self.high * power, low: self.low * power }
    }

    /// The nearest f64. Where the sum has left f64's range, or is none, that is what the high part says.
    #[inline(always)]
    pub fn value(self) -> f64 {
        let value = self.high + self.low;
        if value.is_nan() { self.high } else { value }
    }
}

/// The product from left to right, with no end to the exponents on the way.
pub fn product<const N: usize>(factors: [f64; N]) -> f64 {
    let mut exponent = 0;
    let mantissas = factors.map(|factor| {
        let power = exponent_of(factor);
        exponent += power;
        times_power(factor, -power)
    });
    times_power(mantissas.iter().product(), exponent)
}

/// a as two numbers of 26 bits (Veltkamp).
#[inline(always)]
fn split(a: f64) -> [f64; 2] {
    let scaled = a * ((1u32 << 27) + 1) as f64;
    let high = scaled - (scaled - a);
    [high, a - high]
}

/// The exponent of a normal number; -1023 of zeros and subnormal numbers.
#[inline(always)]
pub fn exponent_of(x: f64) -> i64 {
    (x.to_bits() >> 52 & 2047) as i64 - 1023
}

/// 2^exponent, within the range of normal numbers.
#[inline(always)]
pub fn power(exponent: i64) -> f64 {
    f64::from_bits(((exponent.clamp(-1022, 1023) + 1023) as u64) << 52)
}

/// x * 2^exponent with one rounding, where both halves of the exponent are a normal number's.
#[inline(always)]
pub fn times_power(x: f64, exponent: i64) -> f64 {
    x * power(exponent / 2) * power(exponent - exponent / 2)
}
