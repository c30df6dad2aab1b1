//! Numbers of twice f64's precision whose exponents have no end, and their one rounding to a format.
//!
//! For what is computed once per channel or weight, where neither cancellation nor a factor out of range may cost a bit.

#![forbid(unsafe_code)]

use std::ops::{Add, Div, Mul};

use crate::ground::double::{Double, exponent_of, power, times_power};

/// A binary format of IEEE 754's, whose numbers f64 holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Format {
    /// Bits of the significand.
    pub digits: i64,
    /// The exponent of the least normal number.
    pub least: i64,
}

/// number * 2^exponent. The number's high part is from 1 to 2, or the negative of that; or zero, infinite or NaN, with nothing
/// beside it.
#[derive(Debug, Clone, Copy, Default)]
pub struct Extended {
    number: Double,
    exponent: i64,
}

/// What no power of two changes.
fn is_special(x: f64) -> bool {
    x == 0.0 || !x.is_finite()
}

impl Extended {
    /// Of a normal high part, or a special one.
    fn new(number: Double, exponent: i64) -> Self {
        if is_special(number.high) {
            return Self { number: Double { high: number.high, low: 0.0 }, exponent: 0 };
        }
        let own = exponent_of(number.high);
        Self { number: scaled(number, -own), exponent: exponent + own }
    }

    /// The square root; of a negative number NaN.
    pub fn sqrt(self) -> Self {
        if is_special(self.number.high) || self.number.high < 0.0 {
            return Self::from(self.number.high.sqrt());
        }
        let odd = self.exponent.rem_euclid(2);
        let Double { high, low } = scaled(self.number, odd);
        // One step of Newton's method, from a root that is right to f64's last bits.
        let root = high.sqrt();
        let square = Double::product(root, root);
        let rest = ((high - square.high) - square.low) + low;
        Self::new(Double::fast_sum(root, rest / (2.0 * root)), (self.exponent - odd) / 2)
    }

    /// The nearest number of a format, a tie to even; infinite, or larger than the format's largest number, beyond that.
    pub fn rounded(self, format: Format) -> f64 {
        let Double { high, low } = self.number;
        if is_special(high) {
            return high;
        }
        // The exponent of the last bit that stays, in the number's own scale; from 2 on, nothing does.
        let last = (format.least - self.exponent).max(0) - (format.digits - 1);
        let quantum = power(last.min(2));
        let nearest = if last <= -52 {
            high
        } else {
            // The sum has the quantum as its last bit.
            let anchor = quantum * (1u64 << 52) as f64;
            let (magnitude, low) = (high.abs(), low * high.signum());
            let nearest = (magnitude + anchor) - anchor;
            let rest = magnitude - nearest;
            // What has been taken for a tie is none.
            let beyond = rest.abs() == quantum / 2.0 && low != 0.0 && (low > 0.0) == (rest > 0.0);
            (if beyond { nearest + 2.0 * rest } else { nearest }).copysign(high)
        };
        times_power(nearest, self.exponent)
    }
}

fn scaled(Double { high, low }: Double, exponent: i64) -> Double {
    Double { high: times_power(high, exponent), low: times_power(low, exponent) }
}

impl From<f64> for Extended {
    fn from(x: f64) -> Self {
        // Twice, since a subnormal number is normal after the first time only.
        let Self { number, exponent } = Self::new(Double { high: x, low: 0.0 }, 0);
        Self::new(number, exponent)
    }
}

impl Add for Extended {
    type Output = Self;
    fn add(self, other: Self) -> Self {
        let (a, b) = (self.number.high, other.number.high);
        if is_special(a) || is_special(b) {
            return match (a == 0.0, b == 0.0) {
                (true, false) => other,
                (false, true) => self,
                _ => Self::from(a + b),
            };
        }
        let exponent = self.exponent.max(other.exponent);
        let [a, b] = [self, other].map(|x| scaled(x.number, x.exponent - exponent));
        Self::new(a.add(b), exponent)
    }
}

impl Mul for Extended {
    type Output = Self;
    fn mul(self, other: Self) -> Self {
        let high = self.number.high * other.number.high;
        if is_special(high) {
            return Self::from(high);
        }
        Self::new(self.number.times(other.number), self.exponent + other.exponent)
    }
}

impl Div for Extended {
    type Output = Self;
    fn div(self, other: Self) -> Self {
        let high = self.number.high / other.number.high;
        if is_special(high) {
            return Self::from(high);
        }
        let back = other.number.times(Double { high, low: 0.0 });
        let rest = ((self.number.high - back.high) - back.low) + self.number.low;
        let number = Double::fast_sum(high, rest / other.number.high);
        Self::new(number, self.exponent - other.exponent)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const F32: Format = Format { digits: 24, least: -126 };
    const F64: Format = Format { digits: 53, least: -1022 };
    const F16: Format = Format { digits: 11, least: -14 };

    /// Numbers that look random.
    fn bits(i: u64) -> u64 {
        let mut x = i.wrapping_mul(0x9e37_79b9_7f4a_7c15);
        x = (x ^ x >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        (x ^ x >> 27).wrapping_mul(0x94d0_49bb_1331_11eb)
    }

    /// n * 2^exponent, which has at most 106 bits.
    fn integer(n: i128, exponent: i64) -> Extended {
        let high = n as f64;
        Extended::new(Double { high, low: (n - high as i128) as f64 }, exponent)
    }

    /// n * 2^exponent rounded to multiples of 2^last, by integers.
    fn rounded(n: i128, exponent: i64, last: i64) -> f64 {
        let shift = last - exponent;
        let whole = match shift {
            ..=0 => n << -shift,
            1..=126 => {
                let (whole, rest) = (n.abs() >> shift, n.abs() & ((1 << shift) - 1));
                let half = 1i128 << (shift - 1);
                (whole + i128::from(rest > half || (rest == half && whole % 2 == 1))) * n.signum()
            }
            _ => 0,
        };
        times_power(whole as f64, last).copysign(n as f64)
    }

    #[test]
    fn rounding_is_once() {
        for i in 0..200_000 {
            let word = i128::from(bits(2 * i)) << 40 | i128::from(bits(2 * i + 1) & 0xff_ffff_ffff);
            // Ties and next to ties, too: few bits, a bit far below the last.
            let n = match i % 4 {
                0 => word,
                1 => word >> 50 << 50,
                2 => (word >> 75 << 75) + 1,
                _ => (word >> 75 << 75) - 1,
            };
            let n = if i % 8 < 4 { n } else { -n };
            // Double holds what is within 106 bits of its high part, more exactly if there are zeros.
            let n = n >> (i % 3 * 20);
            for format in [F32, F64, F16] {
                for below in [0, 1, 2, 9, 10, 11, 22, 23, 24, 51, 52, 53, 54, 100] {
                    let own = 127 - i64::from(n.abs().leading_zeros());
                    let exponent = format.least - below - own + if i % 5 == 0 { 60 } else { 0 };
                    let last = (own + exponent).max(format.least) - (format.digits - 1);
                    let got = integer(n, exponent).rounded(format);
                    assert_eq!(
                        got.to_bits(),
                        rounded(n, exponent, last).to_bits(),
                        "{n} * 2^{exponent} {format:?}"
                    );
                }
            }
        }
    }

    /// Products, quotients, sums and roots of integers that come out even, far from 1 in any direction.
    #[test]
    fn operations_are_exact_where_they_can_be() {
        for i in 0..20_000 {
            let [a, b] = [bits(2 * i) >> 12, bits(2 * i + 1) >> 12 | 1].map(|x| x as i128);
            let far = (bits(i) % 6000) as i64 - 3000;
            let same = |x: Extended, n: i128, exponent: i64| {
                let (expected, off) = (integer(n, exponent), x.exponent);
                assert_eq!((x.number, off), (expected.number, expected.exponent), "{a} {b} {far}");
            };
            same(integer(a, far) * integer(b, 5), a * b, far + 5);
            same(integer(a * b, far) / integer(b, -far), a, 2 * far);
            same(integer(b * b, 2 * far).sqrt(), b, far);
            same(integer(b * b, 2 * far + 1) + integer(-a, 2 * far + 1), b * b - a, 2 * far + 1);
            same(integer(a, far) + integer(-a, far), 0, 0);
        }
    }

    #[test]
    fn what_is_special_is_as_ieee_754_has_it() {
        let numbers = [0.0, -0.0, 1.5, -3.0, 5e-324, -f64::MAX, f64::INFINITY, f64::NEG_INFINITY, f64::NAN];
        let same = |x: Extended, expected: f64| {
            let got = x.rounded(F64);
            assert!(
                got.to_bits() == expected.to_bits() || (got.is_nan() && expected.is_nan()),
                "{got} {expected}"
            );
        };
        for a in numbers {
            same(a.into(), a);
            same(Extended::from(a).sqrt(), a.sqrt());
            for b in numbers {
                let [x, y] = [a, b].map(Extended::from);
                same(x * y, a * b);
                same(x / y, a / b);
                same(x + y, a + b);
            }
        }
        // On the way nothing is out of range.
        same(Extended::from(f64::MAX) * 4.0.into() / f64::MAX.into(), 4.0);
        same(Extended::from(5e-324) * 5e-324.into() / 5e-324.into(), 5e-324);
    }
}
