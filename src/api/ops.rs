//! The operations on slices that the caller owns: checks, then the engine.
//!
//! Each takes a [`Shape`] and slices of its length; nothing of the size of a tensor is allocated, and nothing is
//! written before everything has been checked. An empty problem (no channels, or no elements per channel) is no error.

#![forbid(unsafe_code)]

use crate::api::params::{Gradients, Params};
use crate::api::shape::Shape;
use crate::ground::error::{Error, check_eps, check_len, check_optional};
use crate::ground::slices::{Input, Output};
use crate::ground::welford::Welford;
use crate::operations::{Affine, Backward, Element, Forward, Given, Inference, Job};
use crate::simd::Level;

/// Runs a job, unless there is nothing to do.
fn run<T: Element>(shape: &Shape, job: Job<'_, T>) {
    if let Some(geometry) = shape.geometry() {
        T::run(Level::active(), &geometry, &job);
    }
}

impl<'a, T: Element> Params<'a, T> {
    fn checked(&self, channels: usize) -> Result<Affine<'a, T>, Error> {
        check_eps(self.eps)?;
        check_optional("gamma", self.gamma, channels)?;
        check_optional("beta", self.beta, channels)?;
        Ok(Affine { gamma: self.gamma, beta: self.beta, eps: self.eps })
    }
}

fn check_given<T>(shape: &Shape, mean: &[T], var: &[T]) -> Result<(), Error> {
    check_len("mean", mean.len(), shape.channels())?;
    check_len("var", var.len(), shape.channels())
}

/// Statistics and, with `y`, normalization of checked tensors.
fn forward<'a, T: Element>(
    shape: &Shape,
    x: Input<'a, T>,
    y: Option<Output<'a, T>>,
    affine: Affine<'a, T>,
    states: &'a mut [Welford],
) -> Result<(), Error> {
    check_len("states", states.len(), shape.channels())?;
    if shape.per_channel() == 0 {
        states.fill(Welford::new());
    }
    let states = Output::new(states);
    run(shape, Job::Forward(Forward { x, y, affine, states }));
    Ok(())
}

/// The statistics of each channel of `x` over batch and spatial axes, to `states` (one per channel).
///
/// A channel with a NaN or an infinity gets NaN for mean and variance, the others are not touched by it.
///
/// # Errors
/// [`Error::Length`].
///
/// ```
/// use batchnorm::{Shape, Welford};
/// let mut states = [Welford::new(); 2];
/// batchnorm::statistics(&Shape::nhwc(&[3, 2])?, &[1.0f32, 10.0, 2.0, 10.0, 3.0, 10.0], &mut states)?;
/// assert_eq!((states[0].mean(), states[0].variance()), (2.0, 2.0 / 3.0));
/// assert_eq!((states[1].mean(), states[1].variance()), (10.0, 0.0));
/// # Ok::<(), batchnorm::Error>(())
/// ```
pub fn statistics<T: Element>(shape: &Shape, x: &[T], states: &mut [Welford]) -> Result<(), Error> {
    shape.check_tensor("x", x.len())?;
    forward(shape, Input::new(x), None, Params::default().checked(shape.channels())?, states)
}

/// Normalizes `x` by its own statistics: y = gamma * (x - mean) / sqrt(var + eps) + beta with the biased variance, and
/// returns the statistics in `states` (one per channel), which [`backward`] takes and [`update_running`] too.
///
/// A channel of equal elements gives exactly beta. A channel with a NaN or an infinity gives NaN.
///
/// # Errors
/// [`Error::Length`], [`Error::Epsilon`]. Nothing has been written then.
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
pub fn forward_training<T: Element>(
    shape: &Shape,
    x: &[T],
    params: &Params<'_, T>,
    y: &mut [T],
    states: &mut [Welford],
) -> Result<(), Error> {
    shape.check_tensor("x", x.len())?;
    shape.check_tensor("y", y.len())?;
    let affine = params.checked(shape.channels())?;
    forward(shape, Input::new(x), Some(Output::new(y)), affine, states)
}

/// [`forward_training`] with y written over x.
///
/// # Errors
/// As [`forward_training`].
pub fn forward_training_in_place<T: Element>(
    shape: &Shape,
    x: &mut [T],
    params: &Params<'_, T>,
    states: &mut [Welford],
) -> Result<(), Error> {
    shape.check_tensor("x", x.len())?;
    let affine = params.checked(shape.channels())?;
    let y = Output::new(x);
    forward(shape, y.as_input(), Some(y), affine, states)
}

/// Normalizes `x` by a given mean and variance per channel: y = gamma * (x - mean) / sqrt(var + eps) + beta.
///
/// A negative or NaN variance gives NaN in its channel and no other.
///
/// # Errors
/// [`Error::Length`], [`Error::Epsilon`]. Nothing has been written then.
///
/// ```
/// use batchnorm::{Params, Shape};
/// let (gamma, mut y) = ([2.0f32], [0.0f32; 2]);
/// let params = Params::new(0.0).gamma(&gamma);
/// batchnorm::forward_inference(&Shape::nchw(&[2, 1])?, &[3.0, 5.0], &[1.0], &[4.0], &params, &mut y)?;
/// assert_eq!(y, [2.0, 4.0]);
/// # Ok::<(), batchnorm::Error>(())
/// ```
pub fn forward_inference<T: Element>(
    shape: &Shape,
    x: &[T],
    mean: &[T],
    var: &[T],
    params: &Params<'_, T>,
    y: &mut [T],
) -> Result<(), Error> {
    shape.check_tensor("x", x.len())?;
    shape.check_tensor("y", y.len())?;
    check_given(shape, mean, var)?;
    let affine = params.checked(shape.channels())?;
    let given = Given::Frozen { mean, var };
    run(shape, Job::Inference(Inference { x: Input::new(x), y: Output::new(y), affine, given }));
    Ok(())
}

/// [`forward_inference`] with y written over x.
///
/// # Errors
/// As [`forward_inference`].
pub fn forward_inference_in_place<T: Element>(
    shape: &Shape,
    x: &mut [T],
    mean: &[T],
    var: &[T],
    params: &Params<'_, T>,
) -> Result<(), Error> {
    shape.check_tensor("x", x.len())?;
    check_given(shape, mean, var)?;
    let affine = params.checked(shape.channels())?;
    let y = Output::new(x);
    run(shape, Job::Inference(Inference { x: y.as_input(), y, affine, given: Given::Frozen { mean, var } }));
    Ok(())
}

/// Gradients of [`forward_training`], from its input, the gradient of its output and the states it returned:
/// dbeta = sum(dy), dgamma = sum(dy * xhat), dx = gamma * invstd * (dy - dbeta / m - xhat * dgamma / m).
///
/// `params` are the forward pass's; beta is not looked at. dmean and dvar are dL/dmean and dL/dvar of the 2015 paper,
/// which dx already contains.
///
/// # Errors
/// [`Error::Length`], [`Error::Epsilon`], [`Error::Count`] if a state is not of m elements. Nothing has been written
/// then.
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
pub fn backward<T: Element>(
    shape: &Shape,
    x: &[T],
    dy: &[T],
    states: &[Welford],
    params: &Params<'_, T>,
    gradients: Gradients<'_, T>,
) -> Result<(), Error> {
    check_len("states", states.len(), shape.channels())?;
    let expected = shape.per_channel() as u64;
    if let Some(channel) = states.iter().position(|state| state.count() != expected) {
        return Err(Error::Count { channel, got: states[channel].count(), expected });
    }
    gradients_of(shape, x, dy, Given::Batch(states), params, gradients)
}

/// Gradients of [`forward_inference`], whose statistics do not depend on x: dx = gamma * invstd * dy, dbeta and dgamma
/// as in [`backward`], and dmean and dvar with respect to the mean and the variance given.
///
/// # Errors
/// [`Error::Length`], [`Error::Epsilon`]. Nothing has been written then.
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
pub fn backward_frozen<T: Element>(
    shape: &Shape,
    x: &[T],
    dy: &[T],
    mean: &[T],
    var: &[T],
    params: &Params<'_, T>,
    gradients: Gradients<'_, T>,
) -> Result<(), Error> {
    check_given(shape, mean, var)?;
    gradients_of(shape, x, dy, Given::Frozen { mean, var }, params, gradients)
}

/// Both backward passes, of checked statistics.
fn gradients_of<T: Element>(
    shape: &Shape,
    x: &[T],
    dy: &[T],
    given: Given<'_, T>,
    params: &Params<'_, T>,
    gradients: Gradients<'_, T>,
) -> Result<(), Error> {
    shape.check_tensor("x", x.len())?;
    shape.check_tensor("dy", dy.len())?;
    let Gradients { dx, dgamma, dbeta, dmean, dvar } = gradients;
    dx.as_deref().map_or(Ok(()), |dx| shape.check_tensor("dx", dx.len()))?;
    let affine = params.checked(shape.channels())?;
    let mut per_channel = [("dgamma", dgamma), ("dbeta", dbeta), ("dmean", dmean), ("dvar", dvar)];
    for (name, output) in &per_channel {
        check_optional(name, output.as_deref(), shape.channels())?;
    }
    if shape.per_channel() == 0 {
        per_channel
            .iter_mut()
            .filter_map(|(_, output)| output.as_mut())
            .for_each(|out| out.fill(T::default()));
    }
    let [dgamma, dbeta, dmean, dvar] = per_channel.map(|(_, output)| output.map(Output::new));
    run(
        shape,
        Job::Backward(Backward {
            x: Input::new(x),
            dy: Input::new(dy),
            given,
            gamma: affine.gamma,
            eps: affine.eps,
            dx: dx.map(Output::new),
            dgamma,
            dbeta,
            dmean,
            dvar,
        }),
    );
    Ok(())
}
