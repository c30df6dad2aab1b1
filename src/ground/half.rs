//! Numbers of 16 bits: bf16 and f16, which tensors may be stored in.

#![forbid(unsafe_code)]

use crate::ground::extended::Format;

/// A floating-point number of 16 bits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Half {
    /// The upper half of an f32.
    Bf16,
    /// IEEE 754's binary16.
    F16,
}

impl Half {
    /// The canonical NaN.
    pub const fn nan(self) -> u16 {
        match self {
            Half::Bf16 => 0x7fc0,
            Half::F16 => 0x7e00,
        }
    }

    /// What it is rounded to.
    pub const fn format(self) -> Format {
        match self {
            Half::Bf16 => Format { digits: 8, least: -126 },
            Half::F16 => Format { digits: 11, least: -14 },
        }
    }

    /// The number of these bits, exactly.
    #[inline(always)]
    pub fn to_f32(self, bits: u16) -> f32 {
        let bits = u32::from(bits);
        match self {
            Half::Bf16 => f32::from_bits(bits << 16),
            Half::F16 => {
                // An f32 of these exponent and significand is the number times 2^-112, a subnormal one too. Infinity and NaN
                // become 2^16 and more.
                let magnitude = f32::from_bits((bits & 0x7fff) << 13) * (1u128 << 112) as f32;
                let special = if magnitude >= 65536.0 { f32::INFINITY.to_bits() } else { 0 };
                f32::from_bits(magnitude.to_bits() | special | (bits & 0x8000) << 16)
            }
        }
    }

    /// The nearest number, a tie to even, beyond the largest infinity; any NaN the canonical one.
    #[inline(always)]
    pub fn of_f32(self, value: f32) -> u16 {
        let bits = value.to_bits();
        match self {
            Half::Bf16 => {
                // Half of the last bit that stays, or a little less where that is 0.
                let rounded = (bits.wrapping_add(0x7fff + (bits >> 16 & 1)) >> 16) as u16;
                if value.is_nan() { self.nan() } else { rounded }
            }
            Half::F16 => {
                let magnitude = f32::from_bits(bits & 0x7fff_ffff);
                // Subnormal: a sum with 0.5, whose last bit is the least subnormal number, rounds as wanted.
                let subnormal = (magnitude + 0.5).to_bits().wrapping_sub(0.5f32.to_bits());
                // Normal: less 112 exponents; half of the last bit that stays is added, or a little less where that is 0.
                let magnitude_bits = magnitude.to_bits();
                let normal =
                    magnitude_bits.wrapping_sub(112 << 23).wrapping_add(0xfff + (magnitude_bits >> 13 & 1))
                        >> 13;
                let finite = if magnitude < 1.0 / 16384.0 { subnormal } else { normal };
                // From 65520 on it is nearer to 2^16.
                let rounded = if magnitude >= 65520.0 { 0x7c00 } else { finite };
                if value.is_nan() { self.nan() } else { (rounded | bits >> 16 & 0x8000) as u16 }
            }
        }
    }
}

/// The 16-bit numbers that are widened to an element: those that arithmetic in it stands for.
pub trait Halves: Copy + PartialEq + Send + Sync + std::fmt::Debug + 'static {
    fn half(self) -> Half;
    /// That one, if it is one of them.
    fn of(half: Half) -> Option<Self>;
}

impl Halves for Half {
    fn of(half: Half) -> Option<Self> {
        Some(half)
    }

    fn half(self) -> Half {
        self
    }
}

/// None.
impl Halves for std::convert::Infallible {
    fn of(_: Half) -> Option<Self> {
        None
    }

    fn half(self) -> Half {
        match self {}
    }
}

#[cfg(test)]
mod tests {
    use super::Half;

    /// By the values that IEEE 754 defines them by.
    #[test]
    fn numbers_are_their_definition() {
        for bits in 0..=u16::MAX {
            let sign = if bits >> 15 == 1 { -1.0 } else { 1.0 };
            for (half, mantissa, bias) in [(Half::Bf16, 7, 127), (Half::F16, 10, 15)] {
                let exponent = i32::from(bits & 0x7fff) >> mantissa;
                let fraction = f64::from(bits & ((1 << mantissa) - 1)) / f64::from(1 << mantissa);
                let expected = match exponent {
                    0 => sign * fraction * 2f64.powi(1 - bias),
                    e if e == 2 * bias + 1 && fraction == 0.0 => sign * f64::INFINITY,
                    e if e == 2 * bias + 1 => f64::NAN,
                    e => sign * (1.0 + fraction) * 2f64.powi(e - bias),
                };
                let number = half.to_f32(bits);
                assert!(
                    f64::from(number).to_bits() == expected.to_bits()
                        || (number.is_nan() && expected.is_nan()),
                    "{half:?} {bits:#x} is {number:e}, not {expected:e}"
                );
                if !number.is_nan() {
                    assert_eq!(half.of_f32(number), bits);
                }
            }
        }
    }

    /// What lies between two numbers goes to the nearer one, what is in the middle to the even one.
    #[test]
    fn rounding_is_to_the_nearest() {
        for half in [Half::Bf16, Half::F16] {
            let infinity = half.of_f32(f32::INFINITY);
            for low in 0..infinity {
                // The next after the largest is where it would be if there were one more exponent.
                let [a, b] = [low, low + 1].map(|bits| match (half, bits == infinity) {
                    (Half::Bf16, true) => 2f64.powi(128),
                    (Half::F16, true) => 65536.0,
                    _ => f64::from(half.to_f32(bits)),
                });
                let middle = (a + b) / 2.0;
                let even = if low % 2 == 0 { low } else { low + 1 };
                let exact = middle as f32;
                if f64::from(exact) == middle {
                    assert_eq!(half.of_f32(exact), even, "{half:?} at {middle:e}");
                    assert_eq!(half.of_f32(exact.next_down()), low);
                    assert_eq!(half.of_f32(exact.next_up()), low + 1);
                    assert_eq!(half.of_f32(-exact), even | 0x8000);
                }
            }
            assert_eq!(half.of_f32(f32::MAX), infinity);
            assert_eq!(half.of_f32(-f32::NAN), half.nan());
        }
    }
}
