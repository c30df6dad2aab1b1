//! Short forms of the builders, for the common case: every tensor apart.

#![forbid(unsafe_code)]

use crate::api::builders::{Backward, Inference, Statistics, Training};
use crate::api::params::{Gradients, Params};
use crate::api::shape::Shape;
use crate::ground::error::Error;
use crate::ground::welford::Welford;
use crate::operations::storage::Storage;

/// The statistics of each channel of `x` over batch and spatial axes, to `states` (one per channel).
///
/// A channel with a NaN or an infinity gets NaN for mean and variance, the others are not touched by it.
///
/// # Errors
/// [`Error::Length`], [`Error::OutOfMemory`]. Nothing has been written then.
///
/// ```
/// use batchnorm::{Shape, Welford};
/// let mut states = [Welford::new(); 2];
/// batchnorm::statistics(&Shape::nhwc(&[3, 2])?, &[1.0f32, 10.0, 2.0, 10.0, 3.0, 10.0], &mut states)?;
/// assert_eq!((states[0].mean(), states[0].variance()), (2.0, 2.0 / 3.0));
/// assert_eq!((states[1].mean(), states[1].variance()), (10.0, 0.0));
/// # Ok::<(), batchnorm::Error>(())
/// ```
pub fn statistics<S: Storage>(shape: &Shape, x: &[S], states: &mut [Welford]) -> Result<(), Error> {
    Statistics::new(shape).x(x).states(states).run()
}

/// Normalizes `x` by its own statistics: y = gamma * (x - mean) / sqrt(var + eps) + beta with the biased variance, and
/// returns the statistics in `states` (one per channel), which [`backward`] takes and [`update_running`] too.
///
/// A channel of equal elements gives exactly beta. A channel with a NaN or an infinity gives NaN.
///
/// [`Training`] is the operation with its options, y over x among them.
///
/// # Errors
/// [`Error::Length`], [`Error::Epsilon`], [`Error::OutOfMemory`]. Nothing has been written then.
///
/// S. Ioffe and C. Szegedy, "Batch Normalization" (2015), algorithm 1.
///
/// [`update_running`]: crate::update_running
///
/// ```
/// use batchnorm::{Params, Shape, Welford};
/// let shape = Shape::nchw(&[2, 1, 2])?;
/// let (mut y, mut states) = ([0.0f32; 4], [Welford::new(); 1]);
/// batchnorm::forward_training(&shape, &[1.0, 3.0, 1.0, 3.0], &Params::new(0.0), &mut y, &mut states)?;
/// assert_eq!(y, [-1.0, 1.0, -1.0, 1.0]);
/// # Ok::<(), batchnorm::Error>(())
/// ```
pub fn forward_training<S: Storage>(
    shape: &Shape,
    x: &[S],
    params: &Params<'_, S::Arithmetic>,
    y: &mut [S],
    states: &mut [Welford],
) -> Result<(), Error> {
    Training::new(shape, *params).x(x).y(y).states(states).run()
}

/// Normalizes `x` by a given mean and variance per channel: y = gamma * (x - mean) / sqrt(var + eps) + beta.
///
/// A NaN variance, and a negative one that eps does not make up for (var + eps < 0), gives NaN in its channel and no other.
/// Where var + eps is 0, x is divided by 0 as IEEE 754 has it: a y of infinity, or NaN where x is the mean. [`Inference`] is the
/// operation with its options, y over x among them.
///
/// # Errors
/// [`Error::Length`], [`Error::Epsilon`], [`Error::OutOfMemory`]. Nothing has been written then.
///
/// ```
/// use batchnorm::{Params, Shape};
/// let (gamma, mut y) = ([2.0f32], [0.0f32; 2]);
/// let params = Params::new(0.0).gamma(&gamma);
/// batchnorm::forward_inference(&Shape::nchw(&[2, 1])?, &[3.0, 5.0], &[1.0], &[4.0], &params, &mut y)?;
/// assert_eq!(y, [2.0, 4.0]);
/// # Ok::<(), batchnorm::Error>(())
/// ```
pub fn forward_inference<S: Storage>(
    shape: &Shape,
    x: &[S],
    mean: &[S::Arithmetic],
    var: &[S::Arithmetic],
    params: &Params<'_, S::Arithmetic>,
    y: &mut [S],
) -> Result<(), Error> {
    Inference::new(shape, *params).x(x).frozen(mean, var).y(y).run()
}

/// Gradients of [`forward_training`], from its input, the gradient of its output and the states it returned:
/// dbeta = sum(dy), dgamma = sum(dy * xhat), dx = gamma * invstd * (dy - dbeta / m - xhat * dgamma / m).
///
/// `params` are the forward pass's; beta is not looked at. dmean and dvar are dL/dmean and dL/dvar of the 2015 paper,
/// which dx already contains. [`Backward`] is the operation with its options, dx over dy or over x among them.
///
/// # Errors
/// [`Error::Length`], [`Error::Epsilon`], [`Error::Count`] if a state is not of m elements, [`Error::OutOfMemory`].
/// Nothing has been written then.
///
/// ```
/// use batchnorm::{Gradients, Params, Shape, Welford};
/// let shape = Shape::nchw(&[4, 1])?;
/// let (x, dy) = ([1.0f32, 3.0, 1.0, 3.0], [1.0f32, 0.0, 0.0, 0.0]);
/// let states = [x.iter().map(|&x| f64::from(x)).collect::<Welford>()];
/// let (mut dx, mut dgamma, mut dbeta) = ([0.0; 4], [0.0], [0.0]);
/// let gradients = Gradients::new().dx(&mut dx).dgamma(&mut dgamma).dbeta(&mut dbeta);
/// batchnorm::backward(&shape, &x, &dy, &states, &Params::new(0.0), gradients)?;
/// assert_eq!((dx, dgamma, dbeta), ([0.5, 0.0, -0.5, 0.0], [-1.0], [1.0]));
/// # Ok::<(), batchnorm::Error>(())
/// ```
pub fn backward<S: Storage>(
    shape: &Shape,
    x: &[S],
    dy: &[S],
    states: &[Welford],
    params: &Params<'_, S::Arithmetic>,
    gradients: Gradients<'_, S>,
) -> Result<(), Error> {
    Backward::new(shape, *params).x(x).dy(dy).states(states).gradients(gradients).run()
}

/// Gradients of [`forward_inference`], whose statistics do not depend on x: dx = gamma * invstd * dy, dbeta and dgamma
/// as in [`backward`], and dmean and dvar with respect to the mean and the variance given.
///
/// # Errors
/// [`Error::Length`], [`Error::Epsilon`], [`Error::OutOfMemory`]. Nothing has been written then.
///
/// ```
/// use batchnorm::{Gradients, Params, Shape};
/// let (mut dx, mut dmean) = ([0.0f32; 2], [0.0f32]);
/// let gradients = Gradients::new().dx(&mut dx).dmean(&mut dmean);
/// let shape = Shape::nchw(&[2, 1])?;
/// batchnorm::backward_frozen(&shape, &[3.0, 5.0], &[1.0, 2.0], &[1.0], &[4.0], &Params::new(0.0), gradients)?;
/// assert_eq!((dx, dmean), ([0.5, 1.0], [-1.5]));
/// # Ok::<(), batchnorm::Error>(())
/// ```
pub fn backward_frozen<S: Storage>(
    shape: &Shape,
    x: &[S],
    dy: &[S],
    mean: &[S::Arithmetic],
    var: &[S::Arithmetic],
    params: &Params<'_, S::Arithmetic>,
    gradients: Gradients<'_, S>,
) -> Result<(), Error> {
    Backward::new(shape, *params).x(x).dy(dy).frozen(mean, var).gradients(gradients).run()
}
