//! Elements by class: what breaks a summation scheme, mixed by the fuzzer channel by channel.

use std::fmt;

use arbitrary::Arbitrary;
use rand::Rng;

use crate::common::data::{normal, rng};
use crate::shared::bounds::Contract;

/// The library's largest block under `cfg(fuzzing)`: trouble is put at its seams.
const BLOCK: usize = 64;

/// The elements of one tensor. Channels beyond the listed take turns, with other random numbers.
#[derive(Clone, Arbitrary)]
pub struct Elements {
    first: Channel,
    more: [Option<Channel>; 2],
    patches: [Option<Patch>; 3],
}

/// Values as text: the first ones, in full precision, and how many there are.
pub struct Shown<'a, T>(pub &'a [T]);

impl<T: Contract> fmt::Debug for Shown<'_, T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const MOST: usize = 32;
        let Self(values) = self;
        let text: Vec<String> = values.iter().take(MOST).map(|value| format!("{value:?}")).collect();
        let rest = values.len().saturating_sub(MOST);
        write!(f, "[{}{}]", text.join(", "), if rest == 0 { String::new() } else { format!(", {rest} more") })
    }
}

/// The elements of one channel.
#[derive(Clone, Copy, Arbitrary)]
pub struct Channel {
    class: Class,
    seed: u16,
    mask: Mask,
}

/// A kind of data. Exponents are brought into the element's range.
#[derive(Debug, Clone, Copy, Arbitrary)]
enum Class {
    /// N(0, 1) times a power of two.
    Normal { exponent: i8 },
    /// Any finite bits.
    Bits,
    /// Up to so many ulps from a value.
    NearEqual { value: u64, ulps: u8 },
    /// A power of two, and a spread that many octaves smaller.
    LargeMean { exponent: i8, octaves: u8 },
    /// Bits of any subnormal number.
    Subnormal,
    /// The upper octaves of the range, of both signs.
    Huge,
    /// N(0, 1), and at the start of one block (or of all) a power of two.
    Outlier { block: u8, every: bool, exponent: i8 },
    /// Zeros of both signs.
    SignedZeros,
    /// One value.
    Constant { value: u64 },
    /// Two values in turn.
    Two { values: [u64; 2] },
    /// Powers of two of both signs: blocks differ by up to 2^60, the elements of one by a spread of octaves.
    Octaves { spread: u8 },
    /// From zero up or down to a power of two, with some noise.
    Ramp { exponent: i8, noise: i8 },
}

/// NaN and infinities among the elements.
#[derive(Debug, Clone, Copy, Arbitrary)]
struct Mask {
    /// There are some in a quarter of all channels only.
    some: u8,
    kind: NonFinite,
    /// One element of about this many, or a single one.
    one_in: u8,
    at: u16,
}

#[derive(Debug, Clone, Copy, Arbitrary)]
enum NonFinite {
    Nan,
    OtherNan,
    Infinity,
    NegativeInfinity,
}

/// Any finite bits at some place, for the fuzzer to be exact.
#[derive(Debug, Clone, Copy, Arbitrary)]
struct Patch {
    at: u16,
    value: u64,
}

/// What there is, and nothing of what there is not.
impl fmt::Debug for Elements {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let channels = std::iter::once(self.first).chain(self.more.into_iter().flatten());
        f.debug_list().entries(channels).entries(self.patches.into_iter().flatten()).finish()
    }
}

/// Non-finite elements are named only where there are any.
impl fmt::Debug for Channel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { class, seed, mask } = self;
        write!(f, "{class:?} by seed {seed}")?;
        if mask.applies() { write!(f, " with {mask:?}") } else { Ok(()) }
    }
}

impl Elements {
    /// A tensor of these dimensions (N, C, spatial axes) in the order of NCHW.
    pub fn tensor<T: Contract>(&self, dims: &[usize]) -> Vec<T> {
        let (n, c, s) = (dims[0], dims[1], dims[2..].iter().product::<usize>());
        let kinds: Vec<Channel> =
            std::iter::once(self.first).chain(self.more.into_iter().flatten()).collect();
        let mut tensor = vec![T::default(); n * c * s];
        for channel in 0..c {
            let elements = kinds[channel % kinds.len()].elements::<T>(n * s, channel);
            for (i, element) in elements.into_iter().enumerate() {
                tensor[(i / s * c + channel) * s + i % s] = element;
            }
        }
        if !tensor.is_empty() {
            for Patch { at, value } in self.patches.into_iter().flatten() {
                let at = usize::from(at) % tensor.len();
                tensor[at] = T::finite_bits(value);
            }
        }
        tensor
    }

    /// `len` elements without a tensor's form.
    pub fn vector<T: Contract>(&self, len: usize) -> Vec<T> {
        self.tensor(&[len, 1])
    }
}

impl Channel {
    fn elements<T: Contract>(&self, len: usize, channel: usize) -> Vec<T> {
        let rng = &mut rng(u64::from(self.seed) | (channel as u64) << 16);
        let mut elements: Vec<T> = (0..len).map(|i| self.class.element(rng, i, len)).collect();
        self.mask.apply(&mut elements, rng);
        elements
    }
}

impl Class {
    fn element<T: Contract>(self, rng: &mut impl Rng, i: usize, len: usize) -> T {
        let value = match self {
            Class::Bits => return T::finite_bits(rng.next_u64()),
            Class::NearEqual { value, ulps } => {
                let ulps = rng.next_u64() % (u64::from(ulps) + 1);
                return T::finite_bits(T::finite_bits(value).bits().wrapping_add(ulps));
            }
            Class::Subnormal => return T::subnormal(rng.next_u64()),
            Class::Huge => {
                let octave = 2f64.powi(-((rng.next_u64() % 3) as i32));
                let sign = if rng.next_u64().is_multiple_of(2) { 1.0 } else { -1.0 };
                sign * octave * T::MAX
            }
            Class::SignedZeros if rng.next_u64().is_multiple_of(2) => -0.0,
            Class::SignedZeros => 0.0,
            Class::Constant { value } => return T::finite_bits(value),
            Class::Two { values } => return T::finite_bits(values[i % 2]),
            Class::Normal { exponent } => T::power(exponent) * normal(rng),
            Class::LargeMean { exponent, octaves } => {
                T::power(exponent) * (1.0 + normal(rng) * 2f64.powi(-i32::from(octaves % 60)))
            }
            Class::Outlier { block, every, exponent } => {
                let start = i.is_multiple_of(BLOCK) && (every || i / BLOCK == usize::from(block));
                if start { T::power(exponent) } else { normal(rng) }
            }
            Class::Octaves { spread } => {
                let block = (i / BLOCK * 37 % 61) as i32 - 30;
                let octave = (rng.next_u64() % (u64::from(spread) + 1)) as i32;
                2f64.powi(block - octave) * if rng.next_u64().is_multiple_of(2) { 1.0 } else { -1.0 }
            }
            Class::Ramp { exponent, noise } => {
                T::power(exponent) * i as f64 / len as f64 + T::power(noise) * normal(rng)
            }
        };
        T::from_f64(value.clamp(-T::MAX, T::MAX))
    }
}

impl Mask {
    fn applies(&self) -> bool {
        self.some >= 192
    }

    fn apply<T: Contract>(&self, elements: &mut [T], rng: &mut impl Rng) {
        if !self.applies() || elements.is_empty() {
            return;
        }
        let value = match self.kind {
            NonFinite::Nan => T::NAN,
            NonFinite::OtherNan => T::OTHER_NAN,
            NonFinite::Infinity => T::INFINITY,
            NonFinite::NegativeInfinity => T::from_f64(f64::NEG_INFINITY),
        };
        let at = usize::from(self.at) % elements.len();
        elements[at] = value;
        if self.one_in != 0 {
            for element in elements {
                if rng.next_u64().is_multiple_of(u64::from(self.one_in)) {
                    *element = value;
                }
            }
        }
    }
}

/// One value per channel, for gamma and beta.
#[derive(Debug, Clone, Copy, Arbitrary)]
pub enum Parameter {
    /// Not given.
    None,
    /// N(0.5, 1).
    Ordinary {
        /// Of the random numbers.
        seed: u16,
    },
    /// One value.
    Constant {
        /// Its bits.
        value: u64,
    },
    /// Powers of two.
    Powers {
        /// Around which they lie.
        exponent: i8,
    },
    /// Zeros of both signs, and NaN, infinities.
    Special {
        /// Which comes first.
        first: u8,
    },
}

impl Parameter {
    /// `len` of them, or `None`.
    pub fn vector<T: Contract>(self, len: usize) -> Option<Vec<T>> {
        let value = |i: usize| match self {
            Parameter::None | Parameter::Ordinary { .. } => T::default(),
            Parameter::Constant { value } => T::finite_bits(value),
            Parameter::Powers { exponent } => T::from_f64(T::power(exponent) * [1.0, -2.0, 0.25][i % 3]),
            Parameter::Special { first } => {
                let values = [0.0, 1.0, -0.0, f64::NAN, -1.0, f64::INFINITY, f64::NEG_INFINITY];
                T::from_f64(values[(usize::from(first) + i) % values.len()])
            }
        };
        match self {
            Parameter::None => None,
            Parameter::Ordinary { seed } => {
                let rng = &mut rng(seed.into());
                Some((0..len).map(|_| T::from_f64(0.5 + normal(rng))).collect())
            }
            _ => Some((0..len).map(value).collect()),
        }
    }
}
