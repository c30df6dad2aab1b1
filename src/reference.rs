//! Scalar reference kernels: plain loops in f64 over one element at a time, to check the formulas by eye and the fast
//! kernels by test.
//!
//! They take the same shapes, parameters and slices as the operations of the same names, do not check them (a slice
//! that is too short panics) and are slow.

#![forbid(unsafe_code)]

use crate::api::fold::WeightShape;
use crate::api::params::{Gradients, Params};
use crate::api::renorm::Renorm;
use crate::api::shape::Shape;
use crate::kernel::activations::Activation;
use crate::operations::Element;

/// Mean and biased variance of a channel.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct MeanVar {
    /// sum(x) / m.
    pub mean: f64,
    /// sum((x - mean)^2) / m.
    pub var: f64,
}

/// What batch renormalization corrects a channel by: xhat becomes xhat * r + d.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Correction {
    /// The factor of xhat.
    pub r: f64,
    /// What is added to it.
    pub d: f64,
}

impl Correction {
    /// Batch norm.
    const NONE: Self = Self { r: 1.0, d: 0.0 };
}

/// The offsets of a channel's elements.
fn elements(shape: &Shape, channel: usize) -> impl Iterator<Item = usize> {
    let shape = *shape;
    (0..shape.batch()).flat_map(move |n| (0..shape.spatial()).map(move |s| shape.offset(n, channel, s)))
}

/// The mean of a channel's `f`.
fn mean(shape: &Shape, channel: usize, f: impl Fn(usize) -> f64) -> f64 {
    elements(shape, channel).map(f).sum::<f64>() / shape.per_channel() as f64
}

/// The value of an optional parameter.
fn parameter<T: Element>(values: Option<&[T]>, channel: usize, default: f64) -> f64 {
    values.map_or(default, |values| values[channel].to_f64())
}

/// Mean and variance of each channel, in two passes.
///
/// ```
/// use batchnorm::{Shape, reference};
/// let statistics = reference::statistics(&Shape::nchw(&[2, 1])?, &[1.0f32, 3.0]);
/// assert_eq!((statistics[0].mean, statistics[0].var), (2.0, 1.0));
/// # Ok::<(), batchnorm::Error>(())
/// ```
pub fn statistics<T: Element>(shape: &Shape, x: &[T]) -> Vec<MeanVar> {
    (0..shape.channels())
        .map(|c| {
            let mu = mean(shape, c, |i| x[i].to_f64());
            let var = mean(shape, c, |i| (x[i].to_f64() - mu).powi(2));
            MeanVar { mean: mu, var }
        })
        .collect()
}

/// Mean and variance of each channel of a batch whose samples have weights, in two passes: an element counts as often as its sample's
/// weight says, and not at all where that is 0.
///
/// ```
/// use batchnorm::{Shape, reference};
/// let statistics = reference::weighted_statistics(&Shape::nchw(&[2, 1])?, &[1.0f32, 4.0], &[2.0, 1.0]);
/// assert_eq!((statistics[0].mean, statistics[0].var), (2.0, 2.0)); // of 1, 1, 4
/// # Ok::<(), batchnorm::Error>(())
/// ```
pub fn weighted_statistics<T: Element>(shape: &Shape, x: &[T], weights: &[f64]) -> Vec<MeanVar> {
    let total = weights.iter().sum::<f64>() * shape.spatial() as f64;
    (0..shape.channels())
        .map(|c| {
            let mean = |f: &dyn Fn(f64) -> f64| {
                let of = |(weight, i): (f64, usize)| weight * f(x[i].to_f64());
                weighted_elements(shape, c, Some(weights)).map(of).sum::<f64>() / total
            };
            let mu = mean(&|x| x);
            MeanVar { mean: mu, var: mean(&|x| (x - mu).powi(2)) }
        })
        .collect()
}

/// The weights, 1 if there are none, and offsets of the elements of a channel that have one that is not 0.
fn weighted_elements<'a>(
    shape: &'a Shape,
    channel: usize,
    weights: Option<&'a [f64]>,
) -> impl Iterator<Item = (f64, usize)> {
    let spatial = shape.spatial();
    let weight = move |i: usize| weights.map_or(1.0, |weights| weights[i / spatial]);
    elements(shape, channel).enumerate().map(move |(i, offset)| (weight(i), offset)).filter(|of| of.0 != 0.0)
}

/// 1 / (1 + exp(-u)), by the exponential that does not overflow.
fn sigmoid(u: f64) -> f64 {
    let decay = (-u.abs()).exp();
    if u < 0.0 { decay / (1.0 + decay) } else { 1.0 / (1.0 + decay) }
}

/// y = act(u); NaN for a NaN.
///
/// ```
/// use batchnorm::{Activation, reference};
/// assert_eq!(reference::activate(Activation::Relu, -2.0), 0.0);
/// assert_eq!(reference::activate(Activation::LeakyRelu { slope: 0.25 }, -2.0), -0.5);
/// assert_eq!(reference::activate(Activation::HardSwish, 1.5), 1.5 * 4.5 / 6.0);
/// ```
pub fn activate(activation: Activation, u: f64) -> f64 {
    match activation {
        Activation::Identity => u,
        Activation::Relu if u < 0.0 => 0.0,
        Activation::Relu => u,
        Activation::LeakyRelu { slope } if u <= 0.0 => slope * u,
        Activation::LeakyRelu { .. } => u,
        Activation::Clip { lo, .. } if u < lo => lo,
        Activation::Clip { hi, .. } if u > hi => hi,
        Activation::Clip { .. } => u,
        Activation::HardSwish if u <= -3.0 => 0.0,
        Activation::HardSwish if u >= 3.0 => u,
        Activation::HardSwish => u * (u + 3.0) / 6.0,
        // Of -infinity, the limit.
        Activation::Silu if u < -1e3 => -0.0,
        Activation::Silu => u * sigmoid(u),
    }
}

/// g = dy * act'(u); NaN for a NaN of u, unless the activation is the identity.
///
/// ```
/// use batchnorm::{Activation, reference};
/// assert_eq!(reference::activation_gradient(Activation::Relu, 0.0, 5.0), 0.0);
/// assert_eq!(reference::activation_gradient(Activation::Silu, 0.0, 5.0), 2.5);
/// ```
pub fn activation_gradient(activation: Activation, u: f64, dy: f64) -> f64 {
    let derivative = match activation {
        Activation::Identity => return dy,
        _ if u.is_nan() => return u,
        // What is not let through is 0, even if dy is infinite.
        Activation::Relu if u <= 0.0 => return 0.0,
        // An infinite bound is none.
        Activation::Clip { lo, hi } if (lo.is_finite() && u <= lo) || (hi.is_finite() && u >= hi) => {
            return 0.0;
        }
        Activation::Relu | Activation::Clip { .. } => return dy,
        Activation::LeakyRelu { slope } if u <= 0.0 => slope,
        Activation::LeakyRelu { .. } => 1.0,
        Activation::HardSwish if u <= -3.0 => 0.0,
        Activation::HardSwish if u >= 3.0 => 1.0,
        Activation::HardSwish => u / 3.0 + 0.5,
        // Beyond these it is 0 and 1.
        Activation::Silu if u < -1e3 => 0.0,
        Activation::Silu if u > 1e3 => 1.0,
        Activation::Silu => sigmoid(u) * (1.0 + u * sigmoid(-u)),
    };
    dy * derivative
}

/// A channel's u = gamma * (xhat * r + d) + beta + z, which the activation takes; z is a residual, if there is one.
fn before_activation<'a, T: Element>(
    channel: usize,
    (x, z): (&'a [T], Option<&'a [T]>),
    (statistics, correction): (&MeanVar, Correction),
    params: &Params<'_, T>,
) -> impl Fn(usize) -> f64 + use<'a, T> {
    let (MeanVar { mean, var }, Correction { r, d }) = (*statistics, correction);
    let (gamma, beta) = (parameter(params.gamma, channel, 1.0), parameter(params.beta, channel, 0.0));
    let invstd = 1.0 / (var + params.eps).sqrt();
    move |i| {
        let u = gamma * ((x[i].to_f64() - mean) * invstd * r + d) + beta;
        z.map_or(u, |z| u + z[i].to_f64())
    }
}

/// A channel's correction, if there are any.
fn correction(corrections: Option<&[Correction]>, channel: usize) -> Correction {
    corrections.map_or(Correction::NONE, |corrections| corrections[channel])
}

/// y = act(u) with given statistics, and corrections if there are any.
fn normalize<T: Element>(
    shape: &Shape,
    tensors: (&[T], Option<&[T]>),
    (statistics, corrections): (&[MeanVar], Option<&[Correction]>),
    params: &Params<'_, T>,
    y: &mut [T],
) {
    for (c, statistics) in statistics.iter().enumerate() {
        let u = before_activation(c, tensors, (statistics, correction(corrections, c)), params);
        for i in elements(shape, c) {
            y[i] = T::from_f64(activate(params.activation, u(i)));
        }
    }
}

/// [`crate::forward_training`]; returns the statistics.
pub fn forward_training<T: Element>(
    shape: &Shape,
    x: &[T],
    params: &Params<'_, T>,
    y: &mut [T],
) -> Vec<MeanVar> {
    let statistics = statistics(shape, x);
    normalize(shape, (x, None), (&statistics, None), params, y);
    statistics
}

/// [`crate::Training`] with a residual z: y = act(u + z). Returns the statistics.
pub fn forward_training_with_residual<T: Element>(
    shape: &Shape,
    x: &[T],
    z: &[T],
    params: &Params<'_, T>,
    y: &mut [T],
) -> Vec<MeanVar> {
    let statistics = statistics(shape, x);
    normalize(shape, (x, Some(z)), (&statistics, None), params, y);
    statistics
}

/// r and d of each channel: [`Renorm::renormalize`], from statistics as [`statistics`] returns them and the running ones before they
/// take in the batch.
///
/// ```
/// use batchnorm::{Renorm, reference};
/// let (batch, limits) = ([reference::MeanVar { mean: 8.0, var: 4.0 }], Renorm { r_max: 3.0, d_max: 5.0 });
/// let corrections = reference::corrections(&batch, &[0.0f32], &[1.0], &limits, 0.0);
/// assert_eq!(corrections, [reference::Correction { r: 2.0, d: 5.0 }]);
/// ```
pub fn corrections<T: Element>(
    statistics: &[MeanVar],
    mean: &[T],
    var: &[T],
    limits: &Renorm,
    eps: f64,
) -> Vec<Correction> {
    let Renorm { r_max, d_max } = *limits;
    let of = |(batch, running): (&MeanVar, MeanVar)| {
        let sigma = (running.var + eps).sqrt();
        let over_sigma = |value: f64, of_nothing: f64| {
            if value == 0.0 && sigma == 0.0 { of_nothing } else { value / sigma }
        };
        // Where one value is left, it is that, NaN or not.
        let clip = |value: f64, lo: f64, hi: f64| if lo == hi { hi } else { value.clamp(lo, hi) };
        let r = clip(over_sigma((batch.var + eps).sqrt(), 1.0), 1.0 / r_max, r_max);
        Correction { r, d: clip(over_sigma(batch.mean - running.mean, 0.0), -d_max, d_max) }
    };
    statistics.iter().zip(given(mean, var)).map(of).collect()
}

/// [`crate::Training::renorm`], with the residual z if there is one, by running statistics: y = act(gamma * (xhat * r + d) + beta + z).
/// Returns the statistics and what they were corrected by.
pub fn forward_renormalized<T: Element>(
    shape: &Shape,
    (x, z): (&[T], Option<&[T]>),
    limits: &Renorm,
    (mean, var): (&[T], &[T]),
    params: &Params<'_, T>,
    y: &mut [T],
) -> (Vec<MeanVar>, Vec<Correction>) {
    let statistics = statistics(shape, x);
    let corrections = corrections(&statistics, mean, var, limits, params.eps);
    normalize(shape, (x, z), (&statistics, Some(&corrections)), params, y);
    (statistics, corrections)
}

/// [`crate::forward_inference`].
pub fn forward_inference<T: Element>(
    shape: &Shape,
    x: &[T],
    mean: &[T],
    var: &[T],
    params: &Params<'_, T>,
    y: &mut [T],
) {
    normalize(shape, (x, None), (&given(mean, var), None), params, y);
}

/// [`crate::Inference`] with a residual z: y = act(u + z).
pub fn forward_inference_with_residual<T: Element>(
    shape: &Shape,
    x: &[T],
    z: &[T],
    mean: &[T],
    var: &[T],
    params: &Params<'_, T>,
    y: &mut [T],
) {
    normalize(shape, (x, Some(z)), (&given(mean, var), None), params, y);
}

fn given<T: Element>(mean: &[T], var: &[T]) -> Vec<MeanVar> {
    mean.iter().zip(var).map(|(mean, var)| MeanVar { mean: mean.to_f64(), var: var.to_f64() }).collect()
}

/// [`crate::backward`], from statistics as [`statistics`] returns them.
pub fn backward<T: Element>(
    shape: &Shape,
    x: &[T],
    dy: &[T],
    statistics: &[MeanVar],
    params: &Params<'_, T>,
    gradients: Gradients<'_, T>,
) {
    gradients_of(shape, (x, None), dy, (statistics, None), params, gradients, Through::Statistics(None));
}

/// [`crate::Backward`] with weights of samples, from statistics as [`weighted_statistics`] returns them: dy and dx are of one copy of a
/// sample, sums over all.
pub fn weighted_backward<T: Element>(
    shape: &Shape,
    (x, weights): (&[T], &[f64]),
    dy: &[T],
    statistics: &[MeanVar],
    params: &Params<'_, T>,
    gradients: Gradients<'_, T>,
) {
    gradients_of(
        shape,
        (x, None),
        dy,
        (statistics, None),
        params,
        gradients,
        Through::Statistics(Some(weights)),
    );
}

/// [`crate::Backward`] through [`forward_training_with_residual`]: what the activation lets through is found from x and z anew, in
/// place of a mask.
pub fn backward_with_residual<T: Element>(
    shape: &Shape,
    (x, z): (&[T], &[T]),
    dy: &[T],
    statistics: &[MeanVar],
    params: &Params<'_, T>,
    gradients: Gradients<'_, T>,
) {
    gradients_of(shape, (x, Some(z)), dy, (statistics, None), params, gradients, Through::Statistics(None));
}

/// The backward pass of [`forward_renormalized`], which takes r and d for constants; dmean and dvar are of the batch's statistics.
///
/// ```
/// use batchnorm::{Gradients, Params, Renorm, Shape, reference};
/// let (shape, params) = (Shape::nchw(&[4, 1])?, Params::new(0.0));
/// let (x, mut y) = ([1.0f64, 3.0, 1.0, 3.0], [0.0; 4]);
/// let limits = Renorm { r_max: 1.5, d_max: 5.0 };
/// let (batch, by) =
///     reference::forward_renormalized(&shape, (&x, None), &limits, (&[1.5], &[0.25]), &params, &mut y);
/// assert_eq!(y, [-0.5, 2.5, -0.5, 2.5]);
/// let (mut dx, mut dgamma) = ([0.0; 4], [0.0]);
/// let gradients = Gradients::new().dx(&mut dx).dgamma(&mut dgamma);
/// let dy = [1.0, 0.0, 0.0, 0.0];
/// reference::backward_renormalized(&shape, (&x, None), &dy, (&batch, &by), &params, gradients);
/// assert_eq!((dx, dgamma), ([0.75, 0.0, -0.75, 0.0], [-1.5 + 1.0]));
/// # Ok::<(), batchnorm::Error>(())
/// ```
pub fn backward_renormalized<T: Element>(
    shape: &Shape,
    tensors: (&[T], Option<&[T]>),
    dy: &[T],
    (statistics, corrections): (&[MeanVar], &[Correction]),
    params: &Params<'_, T>,
    gradients: Gradients<'_, T>,
) {
    gradients_of(
        shape,
        tensors,
        dy,
        (statistics, Some(corrections)),
        params,
        gradients,
        Through::Statistics(None),
    );
}

/// [`crate::backward_frozen`].
pub fn backward_frozen<T: Element>(
    shape: &Shape,
    x: &[T],
    dy: &[T],
    mean: &[T],
    var: &[T],
    params: &Params<'_, T>,
    gradients: Gradients<'_, T>,
) {
    gradients_of(shape, (x, None), dy, (&given(mean, var), None), params, gradients, Through::Frozen);
}

/// [`crate::Backward`] through [`forward_inference_with_residual`], likewise.
pub fn backward_frozen_with_residual<T: Element>(
    shape: &Shape,
    (x, z): (&[T], &[T]),
    dy: &[T],
    mean: &[T],
    var: &[T],
    params: &Params<'_, T>,
    gradients: Gradients<'_, T>,
) {
    gradients_of(shape, (x, Some(z)), dy, (&given(mean, var), None), params, gradients, Through::Frozen);
}

/// What gradients go through, beside the normalization.
enum Through<'a> {
    /// Statistics that are not the batch's.
    Frozen,
    /// Those of the batch, whose samples may have weights.
    Statistics(Option<&'a [f64]>),
}

fn gradients_of<T: Element>(
    shape: &Shape,
    (x, z): (&[T], Option<&[T]>),
    dy: &[T],
    (statistics, corrections): (&[MeanVar], Option<&[Correction]>),
    params: &Params<'_, T>,
    mut gradients: Gradients<'_, T>,
    through: Through<'_>,
) {
    let (through_statistics, weights) = match through {
        Through::Frozen => (false, None),
        Through::Statistics(weights) => (true, weights),
    };
    let samples = weights.map_or(shape.batch() as f64, |weights| weights.iter().sum());
    let m = samples * shape.spatial() as f64;
    for (c, statistics) in statistics.iter().enumerate() {
        let Correction { r, d } = correction(corrections, c);
        let gamma = parameter(params.gamma, c, 1.0) * r;
        let invstd = 1.0 / (statistics.var + params.eps).sqrt();
        let xhat = |i: usize| (x[i].to_f64() - statistics.mean) * invstd;
        let u = before_activation(c, (x, z), (statistics, Correction { r, d }), params);
        let g = |i: usize| activation_gradient(params.activation, u(i), dy[i].to_f64());
        let weighted = || weighted_elements(shape, c, weights);
        let dbeta: f64 = weighted().map(|(weight, i)| weight * g(i)).sum();
        let product: f64 = weighted().map(|(weight, i)| weight * g(i) * xhat(i)).sum();
        // Without d, nothing is multiplied by it: a sum may be infinite.
        let dgamma = if d == 0.0 { r * product } else { r * product + d * dbeta };
        if let Some(dx) = &mut gradients.dx {
            for i in elements(shape, c) {
                let through = if through_statistics { dbeta / m + xhat(i) * product / m } else { 0.0 };
                dx[i] = T::from_f64(gamma * invstd * (g(i) - through));
            }
        }
        if let Some(dz) = &mut gradients.dz {
            elements(shape, c).for_each(|i| dz[i] = T::from_f64(g(i)));
        }
        let per_channel = [
            (&mut gradients.dbeta, dbeta),
            (&mut gradients.dgamma, dgamma),
            (&mut gradients.dmean, -gamma * invstd * dbeta),
            (&mut gradients.dvar, -0.5 * gamma * invstd * invstd * product),
        ];
        for (output, value) in per_channel {
            if let Some(output) = output {
                output[c] = T::from_f64(value);
            }
        }
    }
}

/// [`crate::fold_into`], by the formula in f64.
///
/// ```
/// use batchnorm::{Params, WeightShape, reference};
/// let (mut weight, mut bias) = ([1.0f32, 2.0, 3.0, 4.0], [0.0, 3.0]);
/// let shape = WeightShape::new(&[2, 2], 0)?;
/// reference::fold_into(&shape, &[1.0, 2.0], &[4.0, 16.0], &Params::new(0.0), &mut weight, &mut bias);
/// assert_eq!((weight, bias), ([0.5, 1.0, 0.75, 1.0], [-0.5, 0.25]));
/// # Ok::<(), batchnorm::Error>(())
/// ```
pub fn fold_into<T: Element>(
    shape: &WeightShape,
    mean: &[T],
    var: &[T],
    params: &Params<'_, T>,
    weight: &mut [T],
    bias: &mut [T],
) {
    let statistics = given(mean, var);
    let scale = |c: usize| parameter(params.gamma, c, 1.0) / (statistics[c].var + params.eps).sqrt();
    for (i, weight) in weight.iter_mut().enumerate() {
        *weight = T::from_f64(weight.to_f64() * scale(shape.channel(i)));
    }
    for (c, bias) in bias.iter_mut().enumerate() {
        let moved = (bias.to_f64() - statistics[c].mean) * scale(c);
        *bias = T::from_f64(moved + parameter(params.beta, c, 0.0));
    }
}
