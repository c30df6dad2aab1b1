//! An exact oracle for one channel, in double-double arithmetic (about 106 bits).
//!
//! What it returns is off by some 2^-90 of the same magnitudes that the accuracy contract's bounds are made of. Elements so
//! large or so small that their squares leave f64's range are scaled by a power of two.

use std::ops::{Add, Mul, Neg};

use batchnorm::{Element, Shape, Welford, WelfordParts};

/// An unevaluated sum hi + lo with |lo| at most half an ulp of hi.
#[derive(Debug, Clone, Copy, Default)]
pub struct Dd {
    /// The value, rounded.
    pub hi: f64,
    /// What the rounding left.
    pub lo: f64,
}

impl Dd {
    /// a + b exactly (Knuth's TwoSum).
    pub fn sum(a: f64, b: f64) -> Self {
        let hi = a + b;
        let b_part = hi - a;
        Self { hi, lo: (a - (hi - b_part)) + (b - b_part) }
    }

    /// a * b exactly (TwoProd).
    pub fn product(a: f64, b: f64) -> Self {
        let hi = a * b;
        Self { hi, lo: a.mul_add(b, -hi) }
    }

    /// hi + lo for |hi| >= |lo| (Dekker's FastTwoSum).
    fn renormalized(hi: f64, lo: f64) -> Self {
        let sum = hi + lo;
        Self { hi: sum, lo: lo - (sum - hi) }
    }

    /// The quotient by a number.
    pub fn over(self, divisor: f64) -> Self {
        let hi = self.hi / divisor;
        let back = Self::product(hi, divisor);
        Self::renormalized(hi, ((self.hi - back.hi) - back.lo + self.lo) / divisor)
    }

    /// 1 / sqrt(self) of a positive number: a number within f64's range and the exponent of its other factor, a power of two.
    fn inverse_root(self) -> (Self, i32) {
        // One step of Newton's method, from a root that is right to f64's last bits.
        let half = exponent(self.hi) / 2;
        let near = self.times_power(-2 * half);
        let root = Self { hi: 1.0 / near.hi.sqrt(), lo: 0.0 };
        let off = -(near * (root * root)) + 1.0;
        (root + root * Self { hi: off.hi / 2.0, lo: off.lo / 2.0 }, -half)
    }

    /// Times 2^exponent.
    fn times_power(self, exponent: i32) -> Self {
        Self { hi: times_power(self.hi, exponent), lo: times_power(self.lo, exponent) }
    }

    /// A number whose products with two such are within f64's range, and the exponent of its other factor, a power of two.
    fn split(self) -> (Self, i32) {
        let exponent = exponent(self.hi);
        (self.times_power(-exponent), exponent)
    }

    /// The product of these three times 2^power, which leaves f64's range only if the outcome does.
    fn product_of(factors: [Self; 3], power: i32) -> Self {
        let [(a, of_a), (b, of_b), (c, of_c)] = factors.map(Self::split);
        (a * b * c).times_power(of_a + of_b + of_c + power)
    }

    /// Rounded to f64.
    pub fn value(self) -> f64 {
        self.hi + self.lo
    }

    /// |other - self|, for an `other` that is close.
    pub fn distance(self, other: f64) -> f64 {
        ((other - self.hi) - self.lo).abs()
    }
}

impl From<f64> for Dd {
    fn from(hi: f64) -> Self {
        Self { hi, lo: 0.0 }
    }
}

impl Add<f64> for Dd {
    type Output = Self;
    fn add(self, other: f64) -> Self {
        let sum = Self::sum(self.hi, other);
        Self::renormalized(sum.hi, sum.lo + self.lo)
    }
}

impl Add for Dd {
    type Output = Self;
    fn add(self, other: Self) -> Self {
        let (high, low) = (Self::sum(self.hi, other.hi), Self::sum(self.lo, other.lo));
        let high = Self::renormalized(high.hi, high.lo + low.hi);
        Self::renormalized(high.hi, high.lo + low.lo)
    }
}

impl Mul for Dd {
    type Output = Self;
    fn mul(self, other: Self) -> Self {
        let product = Self::product(self.hi, other.hi);
        Self::renormalized(product.hi, product.lo + (self.hi * other.lo + self.lo * other.hi))
    }
}

impl Neg for Dd {
    type Output = Self;
    fn neg(self) -> Self {
        Self { hi: -self.hi, lo: -self.lo }
    }
}

/// The exponent of a number so far from 1 that a product of three such could leave f64's range, or 0.
fn exponent(x: f64) -> i32 {
    const NEAR: std::ops::Range<f64> = f64::from_bits((1023 - 200) << 52)..f64::from_bits((1023 + 200) << 52);
    if NEAR.contains(&x.abs()) || !x.is_finite() || x == 0.0 { 0 } else { x.abs().log2() as i32 }
}

/// x * 2^exponent, in steps that leave f64's range only if the outcome does.
pub fn times_power(x: f64, exponent: i32) -> f64 {
    if exponent == 0 {
        return x;
    }
    let power = |exponent: i32| f64::from_bits(((exponent.clamp(-1022, 1022) + 1023) as u64) << 52);
    let (half, quarter) = (exponent / 2, exponent / 4);
    x * power(quarter) * power(half - quarter) * power(quarter) * power(exponent - half - quarter)
}

/// The elements of one channel of a tensor, sample after sample.
pub fn channel<T: Element>(shape: &Shape, tensor: &[T], channel: usize) -> Vec<T> {
    let offsets = (0..shape.batch()).flat_map(|n| (0..shape.spatial()).map(move |s| (n, s)));
    offsets.map(|(n, s)| tensor[shape.offset(n, channel, s)]).collect()
}

/// Mean and sum of squared deviations of a channel, of elements times 2^-`exponent`.
#[derive(Debug, Clone, Copy)]
pub struct Statistics {
    /// sum(x) / m.
    pub mean: Dd,
    /// sum((x - mean)^2).
    pub m2: Dd,
    /// m.
    pub count: f64,
    /// 0 unless elements are so large or so small that squares would leave f64's range.
    pub exponent: i32,
}

impl Statistics {
    /// Of finite elements.
    pub fn of<T: Element>(x: &[T]) -> Self {
        let count = x.len() as f64;
        let largest = x.iter().fold(0f64, |largest, x| largest.max(x.to_f64().abs()));
        let exponent =
            if largest == 0.0 || (1e-90..1e90).contains(&largest) { 0 } else { largest.log2() as i32 };
        let scaled = || x.iter().map(|x| times_power(x.to_f64(), -exponent));
        let mean = scaled().fold(Dd::default(), |sum, x| sum + x).over(count);
        let square = |d: Dd| {
            let square = Dd::product(d.hi, d.hi);
            Dd { hi: square.hi, lo: square.lo + 2.0 * d.hi * d.lo }
        };
        let m2 = scaled().fold(Dd::default(), |m2, x| m2 + square(deviation(x, mean)));
        Self { mean, m2, count, exponent }
    }

    /// The mean of the elements as they are.
    pub fn mean(&self) -> f64 {
        times_power(self.mean.value(), self.exponent)
    }

    /// How far from that a number is, in the scaled elements' measure.
    pub fn mean_distance(&self, other: f64) -> f64 {
        self.mean.distance(times_power(other, -self.exponent))
    }

    /// The biased variance of the elements as they are; infinite or 0 where that leaves f64's range.
    pub fn var(&self) -> f64 {
        times_power(self.scaled_var(), 2 * self.exponent)
    }

    /// Of the scaled ones.
    pub fn scaled_var(&self) -> f64 {
        self.m2.over(self.count).value()
    }

    /// How far from that a state's is.
    pub fn var_distance(&self, state: &Welford) -> f64 {
        let WelfordParts { m2, m2_low, exponent, .. } = state.into_parts();
        let var = (Dd { hi: m2, lo: m2_low }).over(self.count);
        let var = var.times_power(2 * (exponent as i32 - self.exponent));
        let exact = self.m2.over(self.count);
        ((var.hi - exact.hi) + (var.lo - exact.lo)).abs()
    }
}

/// x - mean.
fn deviation(x: f64, mean: Dd) -> Dd {
    -mean + x
}

/// An exact value, and the magnitude that its error bound is a share of.
#[derive(Debug, Clone, Copy)]
pub struct Value {
    /// The value, rounded.
    pub value: f64,
    /// What is to be added to that.
    pub low: f64,
    /// The sum of the absolute values of its terms.
    pub scale: f64,
}

impl Value {
    fn new(value: Dd, scale: f64) -> Self {
        Self { value: value.hi, low: if value.lo.is_nan() { 0.0 } else { value.lo }, scale }
    }

    /// Times both factors and 2^power, which leaves f64's range only if the outcome does.
    fn scaled(self, [a, b]: [Dd; 2], power: i32) -> Self {
        let value = Dd::product_of([Dd { hi: self.value, lo: self.low }, a, b], power);
        let scale = [self.scale, a.hi.abs(), b.hi.abs()];
        let of_scale: i32 = scale.map(exponent).iter().sum();
        let scale: f64 = scale.map(|factor| times_power(factor, -exponent(factor))).iter().product();
        Self::new(value, times_power(scale, of_scale + power))
    }

    /// How far a number is from it.
    pub fn distance(&self, other: f64) -> f64 {
        ((other - self.value) - self.low).abs()
    }
}

/// Normalization by some statistics.
#[derive(Debug, Clone, Copy)]
pub struct Normalization {
    /// The mean, of elements times 2^-`mean_exponent`.
    pub mean: Dd,
    mean_exponent: i32,
    /// 1 / sqrt(var + eps) of the elements as they are, or 0 where that is 1 / 0 in training, as a number and an exponent.
    root: (Dd, i32),
    /// The same, infinite where that leaves f64's range.
    pub invstd: f64,
    /// The scale.
    pub gamma: f64,
    /// The shift.
    pub beta: f64,
}

impl Normalization {
    /// By a batch's own statistics.
    pub fn training(statistics: &Statistics, eps: f64, gamma: f64, beta: f64) -> Self {
        let Statistics { mean, exponent, .. } = *statistics;
        let var = statistics.m2.over(statistics.count);
        let scaled_eps = times_power(eps, -2 * exponent);
        let (root, root_exponent) = if var.hi == 0.0 && eps == 0.0 {
            (Dd::default(), 0)
        } else if var.hi == 0.0 || scaled_eps > 1e200 {
            // The variance is nothing beside it.
            Dd::from(eps).inverse_root()
        } else {
            let (root, root_exponent) = (var + scaled_eps).inverse_root();
            (root, root_exponent - exponent)
        };
        Self::new((mean, exponent), (root, root_exponent), gamma, beta)
    }

    /// By given statistics.
    pub fn inference(mean: f64, var: f64, eps: f64, gamma: f64, beta: f64) -> Self {
        Self::new((mean.into(), 0), Dd::sum(var, eps).inverse_root(), gamma, beta)
    }

    fn new((mean, mean_exponent): (Dd, i32), root: (Dd, i32), gamma: f64, beta: f64) -> Self {
        let invstd = times_power(root.0.value(), root.1);
        Self { mean, mean_exponent, root, invstd, gamma, beta }
    }

    /// The deviation of an element, as a number and an exponent.
    fn deviation(&self, x: f64) -> (Dd, i32) {
        let x = times_power(x, -self.mean_exponent);
        // A difference may be twice the largest number.
        let up = if x.abs().max(self.mean.hi.abs()) > 1e300 { 10 } else { 0 };
        (deviation(times_power(x, -up), self.mean.times_power(-up)), up + self.mean_exponent)
    }

    /// (x - mean) * invstd * factor.
    fn exact_xhat(&self, x: f64, factor: f64) -> Dd {
        let (deviation, exponent) = self.deviation(x);
        Dd::product_of([deviation, self.root.0, factor.into()], exponent + self.root.1)
    }

    /// (x - mean) * invstd, rounded.
    pub fn xhat(&self, x: f64) -> f64 {
        self.exact_xhat(x, 1.0).value()
    }

    /// gamma * xhat + beta, beside |gamma * xhat| + |beta|.
    pub fn y(&self, x: f64) -> Value {
        let scaled = self.exact_xhat(x, self.gamma);
        Value::new(scaled + self.beta, scaled.hi.abs() + self.beta.abs())
    }
}

/// The gradients of a normalization.
#[derive(Debug, Clone, Copy)]
pub struct Gradients {
    normalization: Normalization,
    /// sum(dy * (x - mean)) as a number and an exponent.
    product: (Value, i32),
    /// sum(dy), beside sum|dy|.
    pub dbeta: Value,
    /// sum(dy * xhat), beside sum|dy * xhat|.
    pub dgamma: Value,
    count: f64,
    through_statistics: bool,
}

impl Gradients {
    /// Of training if `through_statistics`, else of inference.
    pub fn of<T: Element>(normalization: Normalization, x: &[T], dy: &[T], through_statistics: bool) -> Self {
        let (mut sum, mut product) = (Dd::default(), Dd::default());
        let (mut sum_scale, mut product_scale) = (0.0, 0.0);
        let factors = || {
            let deviations = x.iter().map(|x| normalization.deviation(x.to_f64()));
            deviations.zip(dy).map(|((d, power), dy)| (d, Dd::from(dy.to_f64()), power))
        };
        // That of the largest product: what is lost of smaller ones is nothing beside it.
        let exponent = factors()
            .filter(|(d, dy, _)| d.hi != 0.0 && dy.hi != 0.0)
            .map(|(d, dy, power)| exponent(d.hi) + exponent(dy.hi) + power)
            .max()
            .unwrap_or(0);
        for (d, dy, power) in factors() {
            let term = Dd::product_of([d, dy, 1.0.into()], power - exponent);
            sum = sum + dy.hi;
            product = product + term;
            sum_scale += dy.hi.abs();
            product_scale += term.hi.abs();
        }
        let product = Value::new(product, product_scale);
        let (root, of_root) = normalization.root;
        Self {
            normalization,
            product: (product, exponent),
            dbeta: Value::new(sum, sum_scale),
            dgamma: product.scaled([root, 1.0.into()], of_root + exponent),
            count: x.len() as f64,
            through_statistics,
        }
    }

    /// The sum of |dy * (x - mean)|, infinite where that leaves f64's range: then sums in f64 do too, whatever follows.
    pub fn product_scale(&self) -> f64 {
        times_power(self.product.0.scale, self.product.1)
    }

    /// gamma * invstd * (dy - mean(dy) - xhat * mean(dy * xhat)), beside the sum of the terms' absolute values.
    pub fn dx(&self, x: f64, dy: f64) -> Value {
        let Normalization { gamma, root, .. } = self.normalization;
        let (mut value, mut scale) = (Dd::from(dy), dy.abs());
        if self.through_statistics {
            let mean = |Value { value, low, .. }: Value| (Dd { hi: value, lo: low }).over(self.count);
            let mean_dy = mean(self.dbeta);
            let along_x = self.normalization.exact_xhat(x, 1.0) * mean(self.dgamma);
            value = value + -mean_dy + -along_x;
            scale += mean_dy.hi.abs() + along_x.hi.abs();
        }
        Value::new(value, scale).scaled([root.0, gamma.into()], root.1)
    }

    /// dL/dmean as the 2015 paper writes it.
    pub fn dmean(&self) -> Value {
        let Normalization { gamma, root, .. } = self.normalization;
        self.dbeta.scaled([root.0, (-gamma).into()], root.1)
    }

    /// dL/dvar as the 2015 paper writes it.
    pub fn dvar(&self) -> Value {
        let (Normalization { gamma, root, .. }, (product, exponent)) = (self.normalization, self.product);
        let cube = root.0 * root.0 * root.0;
        product.scaled([cube, (-0.5 * gamma).into()], 3 * root.1 + exponent)
    }
}
