//! The layer: parameters, running statistics, and what a training step needs to remember.

#![forbid(unsafe_code)]

use crate::api::ops::{backward, forward_inference, forward_training};
use crate::api::params::{Gradients, Params};
use crate::api::running::{RunningUpdate, RunningVariance, UpdateRule, step, update_running};
use crate::api::shape::Shape;
use crate::ground::error::{Error, check_eps, check_len};
use crate::ground::welford::Welford;
use crate::operations::Element;

/// A batch normalization layer over `channels` channels.
///
/// [`new`](Self::new) follows PyTorch's defaults, [`keras`](Self::keras) and [`onnx`](Self::onnx) those conventions;
/// the `with_` methods change them.
///
/// ```
/// use batchnorm::{BatchNorm, Shape, Tensor};
/// let shape = Shape::nchw(&[8, 3, 16, 16])?;
/// let x = Tensor::from_fn(shape, |i| (i % 101) as f32);
/// let (mut y, mut dx) = (Tensor::zeros(shape), Tensor::zeros(shape));
/// let mut layer = BatchNorm::new(3);
/// layer.forward_training(&shape, &x, &mut y)?;
/// let dy = Tensor::from_fn(shape, |i| (i % 7) as f32 - 3.0);
/// layer.backward(&shape, &x, &dy, &mut dx)?;
/// layer.step(0.1)?;
/// layer.forward_inference(&shape, &x, &mut y)?;
/// # Ok::<(), batchnorm::Error>(())
/// ```
#[derive(Debug, Clone, PartialEq)]
pub struct BatchNorm<T> {
    gamma: Option<Vec<T>>,
    beta: Option<Vec<T>>,
    dgamma: Vec<T>,
    dbeta: Vec<T>,
    running_mean: Vec<T>,
    running_var: Vec<T>,
    eps: f64,
    update: RunningUpdate,
    batches: u64,
    states: Vec<Welford>,
    /// The shape of the forward training pass that `states` are of.
    forward: Option<Shape>,
}

impl<T: Element> BatchNorm<T> {
    /// PyTorch's defaults: gamma 1, beta 0, running mean 0 and variance 1, eps 1e-5, momentum 0.1, unbiased running
    /// variance.
    pub fn new(channels: usize) -> Self {
        let (zero, one) = (T::from_f64(0.0), T::from_f64(1.0));
        Self {
            gamma: Some(vec![one; channels]),
            beta: Some(vec![zero; channels]),
            dgamma: vec![zero; channels],
            dbeta: vec![zero; channels],
            running_mean: vec![zero; channels],
            running_var: vec![one; channels],
            eps: 1e-5,
            update: RunningUpdate { rule: UpdateRule::Momentum(0.1), variance: RunningVariance::Unbiased },
            batches: 0,
            states: vec![Welford::new(); channels],
            forward: None,
        }
    }

    /// Keras's defaults: eps 1e-3, decay 0.99, biased running variance.
    pub fn keras(channels: usize) -> Self {
        let update = RunningUpdate { rule: UpdateRule::Decay(0.99), variance: RunningVariance::Biased };
        Self::new(channels).with_eps(1e-3).with_update(update)
    }

    /// ONNX's defaults: eps 1e-5, decay 0.9, biased running variance.
    pub fn onnx(channels: usize) -> Self {
        let update = RunningUpdate { rule: UpdateRule::Decay(0.9), variance: RunningVariance::Biased };
        Self::new(channels).with_update(update)
    }

    /// With another eps; calls that use it return an error if it is negative or not finite.
    pub fn with_eps(self, eps: f64) -> Self {
        Self { eps, ..self }
    }

    /// With another rule for the running statistics.
    pub fn with_update(self, update: RunningUpdate) -> Self {
        Self { update, ..self }
    }

    /// Without gamma (1 throughout, and not trained).
    pub fn without_gamma(self) -> Self {
        Self { gamma: None, ..self }
    }

    /// Without beta (0 throughout, and not trained).
    pub fn without_beta(self) -> Self {
        Self { beta: None, ..self }
    }

    /// Normalizes a batch by its own statistics, which the running statistics take in.
    ///
    /// # Errors
    /// [`Error::Length`] (also if the shape has another number of channels than the layer), [`Error::Epsilon`],
    /// [`Error::NotFinite`] for the update rule's factor, [`Error::SingleElement`] for the unbiased variance of one
    /// element per channel. Nothing has been written then.
    pub fn forward_training(&mut self, shape: &Shape, x: &[T], y: &mut [T]) -> Result<(), Error> {
        self.check_channels(shape)?;
        self.update.check(shape.per_channel() as u64)?;
        let params = params(&self.gamma, &self.beta, self.eps);
        forward_training(shape, x, &params, y, &mut self.states)?;
        self.forward = Some(*shape);
        if shape.per_channel() != 0 {
            let (mean, var) = (&mut self.running_mean, &mut self.running_var);
            update_running(self.update, self.batches, &self.states, mean, var)?;
            self.batches += 1;
        }
        Ok(())
    }

    /// Normalizes by the running statistics.
    ///
    /// # Errors
    /// [`Error::Length`] (also if the shape has another number of channels than the layer), [`Error::Epsilon`].
    pub fn forward_inference(&self, shape: &Shape, x: &[T], y: &mut [T]) -> Result<(), Error> {
        self.check_channels(shape)?;
        let params = params(&self.gamma, &self.beta, self.eps);
        forward_inference(shape, x, &self.running_mean, &self.running_var, &params, y)
    }

    /// The gradients of the last [`forward_training`](Self::forward_training), whose `x` this is: dx to the slice,
    /// dgamma and dbeta kept for [`step`](Self::step).
    ///
    /// # Errors
    /// [`Error::NoForward`] without a forward pass of this shape, [`Error::Length`]. Nothing has been written then.
    pub fn backward(&mut self, shape: &Shape, x: &[T], dy: &[T], dx: &mut [T]) -> Result<(), Error> {
        if self.forward != Some(*shape) {
            return Err(Error::NoForward);
        }
        let params = params(&self.gamma, &self.beta, self.eps);
        let gradients = Gradients::new().dx(dx).dgamma(&mut self.dgamma).dbeta(&mut self.dbeta);
        backward(shape, x, dy, &self.states, &params, gradients)
    }

    /// One step of gradient descent on gamma and beta with the gradients of the last backward pass.
    ///
    /// # Errors
    /// [`Error::NotFinite`] for `lr`; nothing has been written then.
    pub fn step(&mut self, lr: f64) -> Result<(), Error> {
        if let Some(gamma) = &mut self.gamma {
            step(lr, &self.dgamma, gamma)?;
        }
        if let Some(beta) = &mut self.beta {
            step(lr, &self.dbeta, beta)?;
        }
        Ok(())
    }

    fn check_channels(&self, shape: &Shape) -> Result<(), Error> {
        check_len("layer", self.states.len(), shape.channels())?;
        check_eps(self.eps)
    }

    /// C.
    pub fn channels(&self) -> usize {
        self.states.len()
    }

    /// gamma, unless the layer is without.
    pub fn gamma(&self) -> Option<&[T]> {
        self.gamma.as_deref()
    }

    /// gamma, to be set.
    pub fn gamma_mut(&mut self) -> Option<&mut [T]> {
        self.gamma.as_deref_mut()
    }

    /// beta, unless the layer is without.
    pub fn beta(&self) -> Option<&[T]> {
        self.beta.as_deref()
    }

    /// beta, to be set.
    pub fn beta_mut(&mut self) -> Option<&mut [T]> {
        self.beta.as_deref_mut()
    }

    /// dgamma of the last backward pass.
    pub fn dgamma(&self) -> &[T] {
        &self.dgamma
    }

    /// dbeta of the last backward pass.
    pub fn dbeta(&self) -> &[T] {
        &self.dbeta
    }

    /// The running mean of each channel.
    pub fn running_mean(&self) -> &[T] {
        &self.running_mean
    }

    /// The running mean, to be set (from a checkpoint).
    pub fn running_mean_mut(&mut self) -> &mut [T] {
        &mut self.running_mean
    }

    /// The running variance of each channel.
    pub fn running_var(&self) -> &[T] {
        &self.running_var
    }

    /// The running variance, to be set (from a checkpoint).
    pub fn running_var_mut(&mut self) -> &mut [T] {
        &mut self.running_var
    }

    /// The batches that the running statistics have taken in (PyTorch's `num_batches_tracked`).
    pub fn batches(&self) -> u64 {
        self.batches
    }

    /// eps.
    pub fn eps(&self) -> f64 {
        self.eps
    }

    /// The statistics of the last training batch, one state per channel.
    pub fn states(&self) -> &[Welford] {
        &self.states
    }
}

fn params<'a, T: Element>(gamma: &'a Option<Vec<T>>, beta: &'a Option<Vec<T>>, eps: f64) -> Params<'a, T> {
    Params { gamma: gamma.as_deref(), beta: beta.as_deref(), eps }
}
