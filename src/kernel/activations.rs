//! The activations: the one place that knows their formulas, their derivatives and their names.
//!
//! What follows a normalization is y = act(u), on the way back g = dy * act'(u). Formulas of a comparison or two stand wherever
//! a vector is made; those with a division are a function of their own, which a vector goes through in memory. exp is a power
//! of two times a Taylor series of what is left, without a table and without fused operations.

#![forbid(unsafe_code)]

use std::fmt;

use crate::ground::error::{Error, check_finite};
use crate::ground::exponential::INVERSE_FACTORIALS;
use crate::ground::scalar::Scalar;
use crate::ground::sizes::LANES;
use crate::simd::{Kernel, Lanes, load, store};

/// What a network applies to each element of a normalized tensor (and its residual): y = act(u).
///
/// A NaN stays NaN through every one. On the way back, what ReLU or a clip does not let through is exactly 0, whatever dy is.
///
/// ```
/// use batchnorm::Activation;
/// let mut u = [-2.0f32, 3.0, 9.0];
/// Activation::Clip { lo: 0.0, hi: 6.0 }.apply(&mut u)?;
/// assert_eq!(u, [0.0, 3.0, 6.0]);
/// # Ok::<(), batchnorm::Error>(())
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Default)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[non_exhaustive]
pub enum Activation {
    /// u itself.
    #[default]
    Identity,
    /// max(u, 0); a -0 stays -0. Its derivative at 0 is 0.
    Relu,
    /// u where that is above 0, else slope * u. Its derivative at 0 is the slope.
    LeakyRelu {
        /// Finite.
        slope: f64,
    },
    /// u, but no less than `lo` and no more than `hi`; ReLU6 is that from 0 to 6. Its derivative at either is 0.
    Clip {
        /// The least value, not above `hi`; -infinity for none.
        #[cfg_attr(feature = "serde", serde(with = "unbounded"))]
        lo: f64,
        /// The largest value; infinity for none.
        #[cfg_attr(feature = "serde", serde(with = "unbounded::above"))]
        hi: f64,
    },
    /// u * clip(u + 3, 0, 6) / 6. Its derivative at -3 is 0, at 3 it is 1.
    ///
    /// A. Howard et al., "Searching for MobileNetV3" (2019).
    HardSwish,
    /// u * sigmoid(u), within 2^-20 of its size for f32, half the least subnormal number aside.
    ///
    /// S. Elfwing, E. Uchibe and K. Doya, "Sigmoid-weighted linear units for neural network function approximation in
    /// reinforcement learning" (2018).
    Silu,
}

impl fmt::Display for Activation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Activation::Identity => f.pad("identity"),
            Activation::Relu => f.pad("ReLU"),
            Activation::LeakyRelu { slope } => f.pad(&format!("leaky ReLU({slope:?})")),
            Activation::Clip { lo, hi } => f.pad(&format!("clip({lo:?}, {hi:?})")),
            Activation::HardSwish => f.pad("hard swish"),
            Activation::Silu => f.pad("SiLU"),
        }
    }
}

impl Activation {
    /// Whether the sign of what is left of u says all that backward takes: then there may be a residual, and a mask.
    pub fn is_piecewise_linear(self) -> bool {
        !matches!(self, Activation::HardSwish | Activation::Silu)
    }

    /// That its numbers are such as it can have.
    pub(crate) fn check(self) -> Result<(), Error> {
        match self {
            Activation::LeakyRelu { slope } => check_finite("slope", slope),
            Activation::Clip { lo, hi } if are_bounds(lo, hi) => Ok(()),
            Activation::Clip { lo, hi } => Err(Error::Clip { lo, hi }),
            _ => Ok(()),
        }
    }
}

/// Whether there are numbers from `lo` to `hi`. By the order of bits, as which a NaN is beyond infinity: a comparison takes subnormal
/// numbers for 0 where the host's environment does, and raises its flags.
fn are_bounds(lo: f64, hi: f64) -> bool {
    let below = |a: f64, b: f64| a.total_cmp(&b).is_lt();
    let zeros = [lo, hi].map(f64::to_bits) == [0, 1 << 63];
    let (least, most) = (f64::NEG_INFINITY, f64::INFINITY);
    !below(lo, least) && below(lo, most) && below(least, hi) && !below(most, hi) && (zeros || !below(hi, lo))
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum Kind {
    Identity,
    /// By `lo` alone.
    Floor,
    /// By `lo` and `hi`.
    Clip,
    /// By `slope`.
    Leaky,
    HardSwish,
    Silu,
}

/// An activation of elements: its numbers are such.
#[derive(Debug, Clone, Copy)]
pub struct ActivationOf<T> {
    kind: Kind,
    slope: T,
    lo: T,
    hi: T,
    /// Up to here, and from there on, its derivative is another than 1; NaN for nowhere.
    closed: [T; 2],
}

impl<T: Scalar> ActivationOf<T> {
    pub fn new(activation: Activation) -> Self {
        let of = |kind, slope: f64, [lo, hi]: [f64; 2], closed: [f64; 2]| {
            // A finite one stays finite: infinite, it would make NaN of lanes that are no elements.
            let slope = slope.clamp(-T::LARGEST, T::LARGEST);
            let [slope, lo, hi] = [slope, lo, hi].map(T::from_f64);
            Self { kind, slope, lo, hi, closed: closed.map(T::from_f64) }
        };
        const ALL: [f64; 2] = [f64::NEG_INFINITY, f64::INFINITY];
        const NOWHERE: f64 = f64::NAN;
        match activation {
            Activation::Identity => of(Kind::Identity, 1.0, ALL, [NOWHERE; 2]),
            Activation::Relu => of(Kind::Floor, 0.0, [0.0, f64::INFINITY], [0.0, NOWHERE]),
            Activation::LeakyRelu { slope } => of(Kind::Leaky, slope, ALL, [0.0, NOWHERE]),
            Activation::Clip { lo, hi } => {
                // What an element cannot be is no bound on one side and the largest element on the other.
                let (lo, hi) = (lo.min(T::LARGEST), hi.max(-T::LARGEST));
                let closed = [lo, hi].map(|bound| if bound.abs() > T::LARGEST { NOWHERE } else { bound });
                of(Kind::Clip, 0.0, [lo, hi], closed)
            }
            Activation::HardSwish => of(Kind::HardSwish, 0.0, ALL, [NOWHERE; 2]),
            Activation::Silu => of(Kind::Silu, 0.0, ALL, [NOWHERE; 2]),
        }
    }

    /// y = act(u); of a NaN that NaN or the canonical one.
    #[inline(always)]
    pub fn forward<S: Lanes<T>>(&self, s: S, u: S::Vector) -> S::Vector {
        match self.kind {
            // Without the other comparison, since the vector ports are what bounds these loops in the caches.
            Kind::Floor => s.at_least(s.splat(self.lo), u),
            Kind::Clip => s.at_most(s.splat(self.hi), s.at_least(s.splat(self.lo), u)),
            _ => self.apart(s, Wanted::Forward, [u, u]),
        }
    }

    /// g = dy * act'(u), NaN for a NaN of u.
    #[inline(always)]
    pub fn gradient<S: Lanes<T>>(&self, s: S, u: S::Vector, dy: S::Vector) -> S::Vector {
        match self.kind {
            Kind::Floor => {
                let g = s.select(s.less_equal(u, s.splat(self.closed[0])), s.zero(), dy);
                s.select(s.is_nan(u), u, g)
            }
            Kind::Clip => self.clip_gradient(s, u, s.zero(), dy),
            _ => self.apart(s, Wanted::Gradient, [u, dy]),
        }
    }

    /// Which lanes of u do not let dy through as it is: what [`masked_gradient`](Self::masked_gradient) takes the others of. Those
    /// of a NaN do.
    #[inline(always)]
    pub fn closed<S: Lanes<T>>(&self, s: S, u: S::Vector) -> u32 {
        let [low, high] = self.closed.map(|bound| s.splat(bound));
        let closed = s.to_bits(s.less_equal(u, low));
        match self.kind {
            Kind::Floor => closed,
            _ => closed | s.to_bits(s.less_equal(high, u)),
        }
    }

    /// The same gradient, from the lanes that do.
    #[inline(always)]
    pub fn masked_gradient<S: Lanes<T>>(&self, s: S, open: u32, dy: S::Vector) -> S::Vector {
        match self.is_clip() {
            true => s.select(s.of_bits(open), dy, s.zero()),
            false => self.apart(s, Wanted::Masked(open), [dy, dy]),
        }
    }

    /// Whether lanes that do not let dy through make it 0.
    #[inline(always)]
    pub fn is_clip(&self) -> bool {
        matches!(self.kind, Kind::Floor | Kind::Clip)
    }

    /// `closed` where u is beyond a bound, NaN where it is one, else dy.
    #[inline(always)]
    fn clip_gradient<S: Lanes<T>>(&self, s: S, u: S::Vector, closed: S::Vector, dy: S::Vector) -> S::Vector {
        let [low, high] = self.closed.map(|bound| s.splat(bound));
        let g = s.select(s.less_equal(high, u), closed, dy);
        let g = s.select(s.less_equal(u, low), closed, g);
        s.select(s.is_nan(u), u, g)
    }

    /// y of u, or with u g of dy.
    #[inline(always)]
    fn of_vector<S: Lanes<T>>(&self, s: S, v: S::Vector, u: Option<S::Vector>) -> S::Vector {
        s.canonical_nan(match u {
            None => self.forward(s, v),
            Some(u) => self.gradient(s, u, v),
        })
    }

    /// What takes more code than is good wherever a vector is made.
    #[inline(always)]
    fn apart<S: Lanes<T>>(&self, s: S, wanted: Wanted, [u, dy]: [S::Vector; 2]) -> S::Vector {
        let [mut u_tile, mut dy_tile] = [Tile([T::default(); LANES]); 2];
        store(s, &mut u_tile.0, u);
        store(s, &mut dy_tile.0, dy);
        s.apart(Apart { activation: self, wanted, u: &mut u_tile, dy: &dy_tile });
        load(s, &u_tile.0)
    }
}

/// Bounds as they are stored: none for an infinite one, which not every format has.
#[cfg(feature = "serde")]
mod unbounded {
    use serde::{Deserialize, Deserializer, Serialize, Serializer};

    pub fn serialize<S: Serializer>(bound: &f64, serializer: S) -> Result<S::Ok, S::Error> {
        Some(*bound).filter(|bound| bound.is_finite()).serialize(serializer)
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<f64, D::Error> {
        Ok(Option::deserialize(deserializer)?.unwrap_or(f64::NEG_INFINITY))
    }

    pub mod above {
        pub use super::serialize;
        use super::{Deserialize, Deserializer};

        pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<f64, D::Error> {
            Ok(Option::deserialize(deserializer)?.unwrap_or(f64::INFINITY))
        }
    }
}

/// What of an activation.
#[derive(Clone, Copy)]
enum Wanted {
    Forward,
    Gradient,
    Masked(u32),
}

/// A vector in memory.
#[derive(Clone, Copy)]
#[repr(align(64))]
struct Tile<T>([T; LANES]);

/// A vector's y or g.
struct Apart<'a, T> {
    activation: &'a ActivationOf<T>,
    wanted: Wanted,
    /// u, and the result.
    u: &'a mut Tile<T>,
    dy: &'a Tile<T>,
}

impl<T: Scalar> Kernel<T> for Apart<'_, T> {
    #[inline(always)]
    fn run<S: Lanes<T>>(self, s: S) {
        let (u, dy) = (load(s, &self.u.0), load(s, &self.dy.0));
        let slope = s.splat(self.activation.slope);
        let result = match (self.activation.kind, self.wanted) {
            (Kind::Leaky, Wanted::Forward) => s.select(s.less_equal(u, s.zero()), s.mul(slope, u), u),
            (Kind::Leaky, Wanted::Gradient) => self.activation.clip_gradient(s, u, s.mul(slope, dy), dy),
            (Kind::Leaky, Wanted::Masked(open)) => s.select(s.of_bits(open), dy, s.mul(slope, dy)),
            (Kind::HardSwish, Wanted::Forward) => hard_swish(s, u),
            (Kind::HardSwish, _) => s.mul(dy, hard_swish_derivative(s, u)),
            (Kind::Silu, Wanted::Forward) => silu(s, u),
            (Kind::Silu, _) => s.mul(dy, silu_derivative(s, u)),
            // A clip stands where the vector is made.
            (Kind::Identity | Kind::Floor | Kind::Clip, _) => dy,
        };
        store(s, &mut self.u.0, s.canonical_nan(result));
    }
}

#[inline(always)]
fn number<T: Scalar, S: Lanes<T>>(s: S, value: f64) -> S::Vector {
    s.splat(T::from_f64(value))
}

/// From -3 down exactly 0, from 3 on exactly u.
#[inline(always)]
fn hard_swish<T: Scalar, S: Lanes<T>>(s: S, u: S::Vector) -> S::Vector {
    let [three, six] = [3.0, 6.0].map(|value| T::from_f64(value));
    let (three, six) = (s.splat(three), s.splat(six));
    let y = s.div(s.mul(u, s.add(u, three)), six);
    let y = s.select(s.less_equal(u, s.sub(s.zero(), three)), s.zero(), y);
    s.select(s.less_equal(three, u), u, y)
}

#[inline(always)]
fn hard_swish_derivative<T: Scalar, S: Lanes<T>>(s: S, u: S::Vector) -> S::Vector {
    let three = number(s, 3.0);
    let slope = s.add(s.div(u, three), number(s, 0.5));
    let slope = s.select(s.less_equal(u, s.sub(s.zero(), three)), s.zero(), slope);
    s.select(s.less_equal(three, u), number(s, 1.0), slope)
}

/// exp(-|u|) times 2^`Exponential::BIAS`.
#[inline(always)]
fn decay<T: Scalar, S: Lanes<T>>(s: S, u: S::Vector) -> S::Vector {
    let t = s.at_least(number(s, T::LEAST), s.at_most(u, s.sub(s.zero(), u)));
    let rounded = s.add(s.mul(t, number(s, std::f64::consts::LOG2_E)), number(s, T::ROUND));
    let n = s.sub(rounded, number(s, T::ROUND));
    let [high, low] = T::LN_2;
    let r = s.sub(s.sub(t, s.mul(n, number(s, high))), s.mul(n, number(s, low)));
    let mut series = number(s, INVERSE_FACTORIALS[T::DEGREE]);
    for inverse in INVERSE_FACTORIALS[..T::DEGREE].iter().rev() {
        series = s.add(s.mul(series, r), number(s, *inverse));
    }
    s.mul(series, s.exponents(rounded))
}

/// u / (1 + exp(-u)), for u < 0 as u * exp(u) / (1 + exp(u)).
#[inline(always)]
fn silu<T: Scalar, S: Lanes<T>>(s: S, u: S::Vector) -> S::Vector {
    let unbias = number(s, 2f64.powi(-T::BIAS));
    let biased = decay(s, u);
    let denominator = s.add(number(s, 1.0), s.mul(biased, unbias));
    // Where exp is below the least, so is the product; -infinity times it would not be.
    let bounded = s.at_least(number(s, T::LEAST), u);
    let negative = s.less_equal(u, s.zero());
    // One division for both.
    let y = s.div(s.select(negative, s.mul(bounded, biased), u), denominator);
    s.select(negative, s.mul(y, unbias), y)
}

/// p * (1 + u * (1 - p)) with p = sigmoid(u).
#[inline(always)]
fn silu_derivative<T: Scalar, S: Lanes<T>>(s: S, u: S::Vector) -> S::Vector {
    let one = number(s, 1.0);
    let e = s.mul(decay(s, u), number(s, 2f64.powi(-T::BIAS)));
    let larger = s.div(one, s.add(one, e));
    let smaller = s.mul(e, larger);
    let negative = s.less_equal(u, s.zero());
    let [p, rest] = [s.select(negative, smaller, larger), s.select(negative, larger, smaller)];
    // Beyond these p or 1 - p is 0.
    let bounded = s.at_most(number(s, -T::LEAST), s.at_least(number(s, T::LEAST), u));
    s.mul(p, s.add(one, s.mul(bounded, rest)))
}

/// y = act(u) in place, or with u apart, dy to dy * act'(u) in place.
pub struct Elementwise<'a, T> {
    pub activation: ActivationOf<T>,
    pub u: Option<&'a [T]>,
    pub values: &'a mut [T],
}

impl<T: Scalar> Kernel<T> for Elementwise<'_, T> {
    #[inline(always)]
    fn run<S: Lanes<T>>(self, s: S) {
        let Self { activation, u, values } = self;
        for (i, values) in values.chunks_mut(S::N).enumerate() {
            let u = u.map(|u| &u[i * S::N..][..values.len()]);
            if values.len() == S::N {
                let result = match u {
                    None => activation.of_vector(s, load(s, values), None),
                    Some(u) => activation.of_vector(s, load(s, values), Some(load(s, u))),
                };
                store(s, values, result);
                continue;
            }
            let mut tiles = [[T::default(); LANES]; 2];
            tiles[0][..values.len()].copy_from_slice(values);
            if let Some(u) = u {
                tiles[1][..values.len()].copy_from_slice(u);
            }
            let (v, of_u) = (load(s, &tiles[0]), load(s, &tiles[1]));
            let result = activation.of_vector(s, v, if u.is_some() { Some(of_u) } else { None });
            store(s, &mut tiles[0], result);
            values.copy_from_slice(&tiles[0][..values.len()]);
        }
    }
}
