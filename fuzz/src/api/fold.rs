//! Folding: shapes of weights, results against the exact oracle, a layer that gives what it gave with its batch norm behind.

use std::fmt;

use arbitrary::Arbitrary;
use batchnorm::{BatchNorm, Error, Inference, Params, Parts, Scalar, Shape, Storage, WeightShape, fold_into};
use half::{bf16, f16};

use crate::common::exact::{Normalization, Value};
use crate::common::matrix::{Canary, Guarded, assert_same, params};
use crate::shared::bounds::Contract;
use crate::shared::data::{Elements, Parameter};
use crate::shared::problem::Eps;

/// What weights and bias are of.
#[derive(Debug, Clone, Copy, Arbitrary)]
pub enum Number {
    /// f32.
    F32,
    /// f64.
    F64,
    /// bf16, with vectors of f32.
    Bf16,
    /// f16, likewise.
    F16,
}

/// An axis of the weights, mostly a short one.
#[derive(Clone, Copy, Arbitrary)]
enum Dim {
    Short(u8),
    Any(u64),
    /// A power of two.
    Power(u8),
}

impl Dim {
    fn get(self) -> usize {
        match self {
            Dim::Short(dim) => usize::from(dim % 12),
            Dim::Any(dim) => dim as usize,
            Dim::Power(exponent) => 1 << (exponent % 64),
        }
    }
}

/// The number that it stands for.
impl fmt::Debug for Dim {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.get().fmt(f)
    }
}

/// A call, right or wrong.
#[derive(Debug, Clone, Arbitrary)]
pub struct Call {
    /// What weights and bias are of.
    pub number: Number,
    dims: Vec<Dim>,
    axis: u8,
    groups: Option<Dim>,
    eps: Eps,
    gamma: Parameter,
    beta: Parameter,
    mean: Elements,
    var: Elements,
    weight: Elements,
    bias: Elements,
    x: Elements,
    /// Which of the lengths is wrong, and by how much: mostly none.
    wrong: Option<(u8, i8)>,
}

/// The most weights that are folded.
const MOST: usize = 4096;

/// Numbers that weights may hold.
pub trait Weight: Storage<Arithmetic: Contract> + Canary + PartialEq {
    /// The largest number.
    const MAX: f64;
    /// The least number above 0.
    const LEAST: f64;
    /// Half of the distance from 1 to the next number.
    const HALF_ULP: f64;
    /// The nearest number.
    fn rounded(value: Self::Arithmetic) -> Self;
    /// The numbers next to a finite one.
    fn next(self) -> [Self; 2];
}

macro_rules! weights {
    ($($number:ident)*) => {$(
        impl Weight for $number {
            const MAX: f64 = Self::MAX as f64;
            const LEAST: f64 = Self::from_bits(1) as f64;
            const HALF_ULP: f64 = Self::EPSILON as f64 / 2.0;
            fn rounded(value: Self) -> Self {
                value
            }
            fn next(self) -> [Self; 2] {
                [self.next_down(), self.next_up()]
            }
        }
    )*};
}
weights! { f32 f64 }

/// 2^exponent.
const fn power(exponent: i32) -> f64 {
    f64::from_bits(((1023 + exponent) as u64) << 52)
}

macro_rules! halves {
    ($($number:ident: $max:expr, $least:expr, $half_ulp:expr;)*) => {$(
        impl Weight for $number {
            const MAX: f64 = $max;
            const LEAST: f64 = $least;
            const HALF_ULP: f64 = $half_ulp;
            fn rounded(value: f32) -> Self {
                Self::from_f32(value)
            }
            fn next(self) -> [Self; 2] {
                let (sign, size) = (self.to_bits() & 0x8000, self.to_bits() & 0x7fff);
                let inwards = if size == 0 { (sign ^ 0x8000) | 1 } else { sign | (size - 1) };
                [inwards, sign | (size + 1)].map(Self::from_bits)
            }
        }
    )*};
}
halves! {
    bf16: f32::from_bits(0x7f7f_0000) as f64, power(-133), power(-8);
    f16: 65504.0, power(-24), power(-11);
}

fn wide<W: Weight>(number: W) -> f64 {
    number.widened().to_f64()
}

fn widened<T: Contract>(values: &[T]) -> Vec<f64> {
    values.iter().map(|value| value.to_f64()).collect()
}

impl Call {
    fn groups(&self) -> usize {
        self.groups.map_or(1, Dim::get)
    }

    /// Whether there are weights of these axes and groups.
    fn has_shape(&self, dims: &[usize], axis: usize) -> bool {
        const MOST: u128 = isize::MAX as u128 / 8;
        let fits = |dims: &[usize]| {
            let dims = dims.iter().map(|dim| u128::from((*dim).max(1) as u64));
            dims.fold(1, u128::saturating_mul) <= MOST
        };
        let groups = self.groups();
        axis < dims.len()
            && fits(dims)
            && fits(&[groups, dims[axis]])
            && groups != 0
            && dims[..axis].iter().product::<usize>().is_multiple_of(groups)
    }
}

/// The output channel of the weight at an offset, by its coordinates.
fn channel_of(mut offset: usize, dims: &[usize], axis: usize, groups: usize) -> usize {
    let (mut row, mut rows, mut channel) = (0, 1, 0);
    for (i, dim) in dims.iter().enumerate().rev() {
        let at = offset % dim;
        offset /= dim;
        if i == axis {
            channel = at;
        } else if i < axis {
            row += at * rows;
            rows *= dim;
        }
    }
    row / (rows / groups) * dims[axis] + channel
}

/// Folds, or is refused.
pub fn fold<W: Weight>(call: &Call) {
    let dims: Vec<usize> = call.dims.iter().take(5).map(|dim| dim.get()).collect();
    let (axis, groups) = (usize::from(call.axis % 6), call.groups());
    let shape = match WeightShape::grouped(&dims, axis, groups) {
        Ok(shape) => shape,
        Err(error) => {
            assert!(!call.has_shape(&dims, axis), "{dims:?}, axis {axis}, {groups} groups: {error}");
            assert!(matches!(error, Error::Axis { .. } | Error::Overflow { .. } | Error::Groups { .. }));
            return;
        }
    };
    assert!(call.has_shape(&dims, axis), "{dims:?}, axis {axis}, {groups} groups are not refused");
    assert_eq!(shape.len(), dims.iter().product::<usize>(), "{shape}");
    let channels = groups * dims[axis];
    assert_eq!(shape.channels(), channels, "{shape}");
    if shape.len() > MOST || channels > MOST {
        return;
    }

    let len = |i: u8, right: usize| match call.wrong {
        Some((which, by)) if which % 8 == i => right.saturating_add_signed(isize::from(by % 3)),
        _ => right,
    };
    let vector = |elements: &Elements, i| elements.vector::<W::Arithmetic>(len(i, channels));
    let weights =
        |elements: &Elements, len| -> Vec<W> { elements.vector(len).into_iter().map(W::rounded).collect() };
    let (mean, var) = (vector(&call.mean, 0), vector(&call.var, 1));
    let bias = weights(&call.bias, len(2, channels));
    let weight = weights(&call.weight, len(3, shape.len()));
    let (gamma, beta) = (call.gamma.vector(channels), call.beta.vector(channels));
    let params = params(gamma.as_deref(), beta.as_deref(), call.eps.value());

    let (mut folded, mut moved) = (Guarded::holding(&weight, 1), Guarded::holding(&bias, 3));
    let result = fold_into(&shape, &mean, &var, &params, folded.get_mut(), moved.get_mut());
    folded.assert_margins("weight");
    moved.assert_margins("bias");
    let right = [mean.len(), var.len(), bias.len()] == [channels; 3] && weight.len() == shape.len();
    assert_eq!(result.is_ok(), right, "{shape}: {result:?}");
    let (folded, moved) = (folded.take("weight"), moved.take("bias"));
    if !right {
        assert!(matches!(result, Err(Error::Length { .. })), "{result:?}");
        assert_same("weight of an error", &folded, &weight);
        assert_same("bias of an error", &moved, &bias);
        return;
    }
    let layer = BatchNorm::from_parts(Parts {
        gamma: gamma.clone(),
        beta: beta.clone(),
        running_mean: mean.clone(),
        running_var: var.clone(),
        eps: params.eps,
        ..Parts::new(0)
    })
    .unwrap();
    let (mut by_layer, mut bias_by_layer) = (weight.clone(), bias.clone());
    layer.fold_into(&shape, &mut by_layer, &mut bias_by_layer).unwrap();
    assert_same("weight by the layer", &by_layer, &folded);
    assert_same("bias by the layer", &bias_by_layer, &moved);

    let norms: Vec<Norm> = (0..channels).map(|c| Norm::of(&mean, &var, &params, c)).collect();
    for (i, (before, after)) in weight.iter().zip(&folded).enumerate() {
        let c = channel_of(i, &dims, axis, groups);
        let what = format!("weight {i} of channel {c} of {shape}");
        norms[c].check(*before, *after, norms[c].scale.y(wide(*before)), &what);
    }
    for (c, (before, after)) in bias.iter().zip(&moved).enumerate() {
        let what = format!("bias {c} of {shape}");
        norms[c].check(*before, *after, norms[c].whole.y(wide(*before)), &what);
    }

    let of = |i| channel_of(i, &dims, axis, groups);
    let x = widened(&call.x.vector::<W::Arithmetic>(shape.len()));
    let numbers = |weight: &[W]| weight.iter().map(|w| wide(*w)).collect::<Vec<_>>();
    let apart = Layer { weight: numbers(&weight), bias: numbers(&bias) }.run(&x, of);
    let together = Layer { weight: numbers(&folded), bias: numbers(&moved) }.run(&x, of);
    check_layers::<W>(&layer, &apart, &together, &x);
}

/// A channel's normalization.
struct Norm {
    /// (x - mean) * scale + beta.
    whole: Normalization,
    /// x * scale.
    scale: Normalization,
    var: f64,
    eps: f64,
}

impl Norm {
    fn of<T: Contract>(mean: &[T], var: &[T], params: &Params<'_, T>, c: usize) -> Self {
        let gamma = params.gamma.map_or(1.0, |gamma| gamma[c].to_f64());
        let beta = params.beta.map_or(0.0, |beta| beta[c].to_f64());
        let (mean, var, eps) = (mean[c].to_f64(), var[c].to_f64(), params.eps);
        let whole = Normalization::inference(mean, var, eps, gamma, beta);
        Self { whole, scale: Normalization::inference(0.0, var, eps, gamma, 0.0), var, eps }
    }

    /// That no number is nearer, where the oracle is sure; NaN of a variance that has no root.
    fn check<W: Weight>(&self, before: W, after: W, exact: Value, what: &str) {
        let Self { var, eps, .. } = *self;
        if var.is_nan() || var + eps < 0.0 {
            assert!(wide(after).is_nan(), "{what}: {before:?} becomes {after:?} by a variance of {var:e}");
            return;
        }
        let Value { value, scale, .. } = exact;
        if !(scale < W::MAX / 2.0 && value.is_finite() && var + eps > 0.0 && wide(before).is_finite()) {
            return;
        }
        // The oracle's last bits; below f64's normal numbers it has fewer.
        let unsure = scale * 2f64.powi(-90) + if scale < 1e-260 { f64::from_bits(2) } else { 0.0 };
        let off = exact.distance(wide(after));
        for next in after.next() {
            let other = exact.distance(wide(next));
            assert!(
                off <= other + unsure,
                "{what}: {before:?} becomes {after:?}, {next:?} is nearer to {value:e}, {:?}",
                self.whole
            );
        }
    }
}

/// A layer whose channels are sums over weights, each with an input of its own.
struct Layer {
    weight: Vec<f64>,
    bias: Vec<f64>,
}

impl Layer {
    /// y, and of each the sum of its terms' absolute values.
    fn run(&self, x: &[f64], channel: impl Fn(usize) -> usize) -> [Vec<f64>; 2] {
        let (mut y, mut size) = (self.bias.clone(), self.bias.iter().map(|b| b.abs()).collect::<Vec<_>>());
        for (i, (weight, x)) in self.weight.iter().zip(x).enumerate() {
            y[channel(i)] += weight * x;
            size[channel(i)] += (weight * x).abs();
        }
        [y, size]
    }
}

/// The folded layer gives what it gave with its batch norm behind, but for half an ulp of each of its numbers.
fn check_layers<W: Weight>(
    layer: &BatchNorm<W::Arithmetic>,
    [apart, apart_size]: &[Vec<f64>; 2],
    [together, size]: &[Vec<f64>; 2],
    x: &[f64],
) {
    let [mean, var] = [layer.running_mean(), layer.running_var()].map(widened);
    let [gamma, beta] = [layer.gamma(), layer.beta()].map(|values| values.map(widened));
    let params = params(gamma.as_deref(), beta.as_deref(), layer.eps());
    let mut expected = vec![0.0; apart.len()];
    let tensor = Shape::nchw(&[1, apart.len()]).unwrap();
    Inference::new(&tensor, params).x(apart).frozen(&mean, &var).y(&mut expected).run().unwrap();
    let of_x: f64 = x.iter().map(|x| x.abs()).sum();
    let roundings = (x.len() as f64 + 100.0) * power(-50);
    for c in 0..apart.len() {
        let gamma = gamma.as_ref().map_or(1.0, |gamma| gamma[c]);
        let factor = gamma / (var[c] + layer.eps()).sqrt();
        let scaled = factor.abs() * (apart_size[c] + mean[c].abs());
        let beta = beta.as_ref().map_or(0.0, |beta| beta[c]);
        // Nothing on the way out of range, where f64 has other ideas than the exact formula.
        let all = [gamma, factor, scaled, apart_size[c], size[c], of_x, beta];
        if !all.iter().all(|value| *value == 0.0 || (1e-200..1e200).contains(&value.abs())) {
            continue;
        }
        let rounding = W::HALF_ULP * size[c] + W::LEAST * (1.0 + of_x);
        let bound =
            rounding * (1.0 + W::HALF_ULP) + roundings * (scaled + size[c] + beta.abs() + gamma.abs());
        let (got, expected) = (together[c], expected[c]);
        assert!((got - expected).abs() <= bound, "channel {c}: {got:e}, {expected:e} apart, bound {bound:e}");
    }
}
