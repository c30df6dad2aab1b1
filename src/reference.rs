//! Scalar reference kernels: plain loops in f64 over one element at a time, to check the formulas by eye and the fast
//! kernels by test.
//!
//! They take the same shapes, parameters and slices as the operations of the same names, do not check them (a slice
//! that is too short panics) and are slow.

#![forbid(unsafe_code)]

use crate::api::params::{Gradients, Params};
use crate::api::shape::Shape;
use crate::ground::scalar::Scalar;

/// Mean and biased variance of a channel.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct MeanVar {
    /// sum(x) / m.
    pub mean: f64,
    /// sum((x - mean)^2) / m.
    pub var: f64,
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
fn parameter<T: Scalar>(values: Option<&[T]>, channel: usize, default: f64) -> f64 {
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
pub fn statistics<T: Scalar>(shape: &Shape, x: &[T]) -> Vec<MeanVar> {
    (0..shape.channels())
        .map(|c| {
            let mu = mean(shape, c, |i| x[i].to_f64());
            let var = mean(shape, c, |i| (x[i].to_f64() - mu).powi(2));
            MeanVar { mean: mu, var }
        })
        .collect()
}

/// y = gamma * (x - mean) * invstd + beta with given statistics.
fn normalize<T: Scalar>(shape: &Shape, x: &[T], statistics: &[MeanVar], params: &Params<'_, T>, y: &mut [T]) {
    for (c, MeanVar { mean, var }) in statistics.iter().enumerate() {
        let (gamma, beta) = (parameter(params.gamma, c, 1.0), parameter(params.beta, c, 0.0));
        let invstd = 1.0 / (var + params.eps).sqrt();
        for i in elements(shape, c) {
            y[i] = T::from_f64(gamma * (x[i].to_f64() - mean) * invstd + beta);
        }
    }
}

/// [`crate::forward_training`]; returns the statistics.
pub fn forward_training<T: Scalar>(
    shape: &Shape,
    x: &[T],
    params: &Params<'_, T>,
    y: &mut [T],
) -> Vec<MeanVar> {
    let statistics = statistics(shape, x);
    normalize(shape, x, &statistics, params, y);
    statistics
}

/// [`crate::forward_inference`].
pub fn forward_inference<T: Scalar>(
    shape: &Shape,
    x: &[T],
    mean: &[T],
    var: &[T],
    params: &Params<'_, T>,
    y: &mut [T],
) {
    normalize(shape, x, &given(mean, var), params, y);
}

fn given<T: Scalar>(mean: &[T], var: &[T]) -> Vec<MeanVar> {
    mean.iter().zip(var).map(|(mean, var)| MeanVar { mean: mean.to_f64(), var: var.to_f64() }).collect()
}

/// [`crate::backward`], from statistics as [`statistics`] returns them.
pub fn backward<T: Scalar>(
    shape: &Shape,
    x: &[T],
    dy: &[T],
    statistics: &[MeanVar],
    params: &Params<'_, T>,
    gradients: Gradients<'_, T>,
) {
    gradients_of(shape, x, dy, statistics, params, gradients, true);
}

/// [`crate::backward_frozen`].
pub fn backward_frozen<T: Scalar>(
    shape: &Shape,
    x: &[T],
    dy: &[T],
    mean: &[T],
    var: &[T],
    params: &Params<'_, T>,
    gradients: Gradients<'_, T>,
) {
    gradients_of(shape, x, dy, &given(mean, var), params, gradients, false);
}

fn gradients_of<T: Scalar>(
    shape: &Shape,
    x: &[T],
    dy: &[T],
    statistics: &[MeanVar],
    params: &Params<'_, T>,
    mut gradients: Gradients<'_, T>,
    through_statistics: bool,
) {
    let m = shape.per_channel() as f64;
    for (c, statistics) in statistics.iter().enumerate() {
        let gamma = parameter(params.gamma, c, 1.0);
        let invstd = 1.0 / (statistics.var + params.eps).sqrt();
        let xhat = |i: usize| (x[i].to_f64() - statistics.mean) * invstd;
        let dbeta: f64 = elements(shape, c).map(|i| dy[i].to_f64()).sum();
        let dgamma: f64 = elements(shape, c).map(|i| dy[i].to_f64() * xhat(i)).sum();
        if let Some(dx) = &mut gradients.dx {
            for i in elements(shape, c) {
                let through = if through_statistics { dbeta / m + xhat(i) * dgamma / m } else { 0.0 };
                dx[i] = T::from_f64(gamma * invstd * (dy[i].to_f64() - through));
            }
        }
        let per_channel = [
            (&mut gradients.dbeta, dbeta),
            (&mut gradients.dgamma, dgamma),
            (&mut gradients.dmean, -gamma * invstd * dbeta),
            (&mut gradients.dvar, -0.5 * gamma * invstd * invstd * dgamma),
        ];
        for (output, value) in per_channel {
            if let Some(output) = output {
                output[c] = T::from_f64(value);
            }
        }
    }
}
