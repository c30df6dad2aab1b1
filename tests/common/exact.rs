//! An exact oracle for one channel: sums in double-double arithmetic (about 106 bits), the rest in f64.
//!
//! What it returns is off by some 2^-50 of the same magnitudes that the accuracy contract's bounds are made of, and so
//! by less than a millionth of each bound.

use std::ops::{Add, Mul, Neg};

use batchnorm::{Element, Shape};

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

    /// Rounded to f64.
    pub fn value(self) -> f64 {
        self.hi + self.lo
    }

    /// |other - self|, for an `other` that is close.
    pub fn distance(self, other: f64) -> f64 {
        ((other - self.hi) - self.lo).abs()
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

/// The elements of one channel of a tensor, sample after sample.
pub fn channel<T: Element>(shape: &Shape, tensor: &[T], channel: usize) -> Vec<T> {
    let offsets = (0..shape.batch()).flat_map(|n| (0..shape.spatial()).map(move |s| (n, s)));
    offsets.map(|(n, s)| tensor[shape.offset(n, channel, s)]).collect()
}

/// Mean and sum of squared deviations of a channel.
#[derive(Debug, Clone, Copy)]
pub struct Statistics {
    /// sum(x) / m.
    pub mean: Dd,
    /// sum((x - mean)^2).
    pub m2: Dd,
    /// m.
    pub count: f64,
}

impl Statistics {
    /// Of finite elements.
    pub fn of<T: Element>(x: &[T]) -> Self {
        let count = x.len() as f64;
        let mean = x.iter().fold(Dd::default(), |sum, x| sum + x.to_f64()).over(count);
        let square = |d: Dd| {
            let square = Dd::product(d.hi, d.hi);
            Dd { hi: square.hi, lo: square.lo + 2.0 * d.hi * d.lo }
        };
        let m2 = x.iter().fold(Dd::default(), |m2, x| m2 + square(deviation(x.to_f64(), mean)));
        Self { mean, m2, count }
    }

    /// The biased variance.
    pub fn var(&self) -> f64 {
        self.m2.over(self.count).value()
    }
}

/// x - mean.
fn deviation(x: f64, mean: Dd) -> Dd {
    -mean + x
}

/// An exact value, and the magnitude that its error bound is a share of.
#[derive(Debug, Clone, Copy)]
pub struct Value {
    /// The value.
    pub value: f64,
    /// The sum of the absolute values of its terms.
    pub scale: f64,
}

/// Normalization by some statistics.
#[derive(Debug, Clone, Copy)]
pub struct Normalization {
    /// The mean.
    pub mean: Dd,
    /// 1 / sqrt(var + eps), or 0 where that is 1 / 0 in training.
    pub invstd: f64,
    /// The scale.
    pub gamma: f64,
    /// The shift.
    pub beta: f64,
}

impl Normalization {
    /// By a batch's own statistics.
    pub fn training(statistics: &Statistics, eps: f64, gamma: f64, beta: f64) -> Self {
        let var = statistics.var() + eps;
        let invstd = if var == 0.0 { 0.0 } else { 1.0 / var.sqrt() };
        Self { mean: statistics.mean, invstd, gamma, beta }
    }

    /// By given statistics.
    pub fn inference(mean: f64, var: f64, eps: f64, gamma: f64, beta: f64) -> Self {
        Self { mean: Dd { hi: mean, lo: 0.0 }, invstd: 1.0 / (var + eps).sqrt(), gamma, beta }
    }

    /// (x - mean) * invstd.
    pub fn xhat(&self, x: f64) -> f64 {
        deviation(x, self.mean).value() * self.invstd
    }

    /// gamma * xhat + beta, beside |gamma * xhat| + |beta|.
    pub fn y(&self, x: f64) -> Value {
        let scaled = self.gamma * self.xhat(x);
        Value { value: scaled + self.beta, scale: scaled.abs() + self.beta.abs() }
    }
}

/// The gradients of a normalization.
#[derive(Debug, Clone, Copy)]
pub struct Gradients {
    normalization: Normalization,
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
        for (x, dy) in x.iter().zip(dy) {
            let (d, dy) = (deviation(x.to_f64(), normalization.mean), dy.to_f64());
            sum = sum + dy;
            product = product + Dd::product(dy, d.hi) + dy * d.lo;
            sum_scale += dy.abs();
            product_scale += (dy * d.hi).abs();
        }
        Self {
            normalization,
            dbeta: Value { value: sum.value(), scale: sum_scale },
            dgamma: Value {
                value: product.value() * normalization.invstd,
                scale: product_scale * normalization.invstd,
            },
            count: x.len() as f64,
            through_statistics,
        }
    }

    /// gamma * invstd * (dy - mean(dy) - xhat * mean(dy * xhat)), beside the sum of the terms' absolute values.
    pub fn dx(&self, x: f64, dy: f64) -> Value {
        let Normalization { gamma, invstd, .. } = self.normalization;
        let (mut value, mut scale) = (dy, dy.abs());
        if self.through_statistics {
            let mean_dy = self.dbeta.value / self.count;
            let along_x = self.normalization.xhat(x) * (self.dgamma.value / self.count);
            value = (value - mean_dy) - along_x;
            scale += mean_dy.abs() + along_x.abs();
        }
        Value { value: gamma * invstd * value, scale: gamma.abs() * invstd * scale }
    }

    /// dL/dmean as the 2015 paper writes it.
    pub fn dmean(&self) -> f64 {
        -self.normalization.gamma * self.normalization.invstd * self.dbeta.value
    }

    /// dL/dvar as the 2015 paper writes it.
    pub fn dvar(&self) -> f64 {
        -0.5 * self.normalization.gamma * self.normalization.invstd.powi(2) * self.dgamma.value
    }
}
