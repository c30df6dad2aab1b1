//! The small arguments of the operations: scale and shift, gradients wanted.

#![forbid(unsafe_code)]

use crate::kernel::activations::Activation;
use crate::operations::Element;
use crate::operations::storage::Storage;

/// gamma (scale), beta (shift), eps and activation of y = act(gamma * (x - mean) / sqrt(var + eps) + beta).
///
/// gamma and beta are each optional: 1 and 0 where not given. The activation is the identity unless one is given.
///
/// ```
/// use batchnorm::Params;
/// let gamma = [1.0f32, 0.5];
/// let params = Params::new(1e-5).gamma(&gamma);
/// assert!(params.beta.is_none());
/// ```
#[derive(Debug, Clone, Copy)]
#[non_exhaustive]
pub struct Params<'a, T> {
    /// Scale per channel, 1 if `None`.
    pub gamma: Option<&'a [T]>,
    /// Shift per channel, 0 if `None`.
    pub beta: Option<&'a [T]>,
    /// Added to the variance under the root; finite and not negative.
    pub eps: f64,
    /// What is applied to each element in the end.
    pub activation: Activation,
}

impl<'a, T: Element> Params<'a, T> {
    /// Neither scale nor shift.
    pub fn new(eps: f64) -> Self {
        Self { gamma: None, beta: None, eps, activation: Activation::Identity }
    }

    /// With a scale per channel.
    pub fn gamma(self, gamma: &'a [T]) -> Self {
        Self { gamma: Some(gamma), ..self }
    }

    /// With a shift per channel.
    pub fn beta(self, beta: &'a [T]) -> Self {
        Self { beta: Some(beta), ..self }
    }

    /// With an activation behind the normalization, and behind the residual if there is one.
    pub fn activation(self, activation: Activation) -> Self {
        Self { activation, ..self }
    }
}

impl<T: Element> Default for Params<'_, T> {
    /// eps = 1e-5, neither scale nor shift.
    fn default() -> Self {
        Self::new(1e-5)
    }
}

/// The gradients that a backward pass is to write, each optional; what is not asked for is not computed.
///
/// ```
/// use batchnorm::Gradients;
/// let (mut dx, mut dgamma) = ([0.0f32; 8], [0.0f32; 2]);
/// let gradients = Gradients::new().dx(&mut dx).dgamma(&mut dgamma);
/// assert!(gradients.dbeta.is_none());
/// ```
#[derive(Debug)]
#[non_exhaustive]
pub struct Gradients<'a, S: Storage> {
    /// Gradient with respect to x, of the tensor's length.
    pub dx: Option<&'a mut [S]>,
    /// Gradient with respect to the residual, of the tensor's length.
    pub dz: Option<&'a mut [S]>,
    /// Gradient with respect to gamma, one value per channel.
    pub dgamma: Option<&'a mut [S::Arithmetic]>,
    /// Gradient with respect to beta, one value per channel.
    pub dbeta: Option<&'a mut [S::Arithmetic]>,
    /// Gradient with respect to the mean, one value per channel.
    pub dmean: Option<&'a mut [S::Arithmetic]>,
    /// Gradient with respect to the variance, one value per channel.
    pub dvar: Option<&'a mut [S::Arithmetic]>,
}

impl<'a, S: Storage> Gradients<'a, S> {
    /// None yet.
    pub fn new() -> Self {
        Self { dx: None, dz: None, dgamma: None, dbeta: None, dmean: None, dvar: None }
    }

    /// Asks for the gradient with respect to x.
    pub fn dx(self, dx: &'a mut [S]) -> Self {
        Self { dx: Some(dx), ..self }
    }

    /// Asks for the gradient with respect to the residual.
    pub fn dz(self, dz: &'a mut [S]) -> Self {
        Self { dz: Some(dz), ..self }
    }

    /// Asks for the gradient with respect to gamma.
    pub fn dgamma(self, dgamma: &'a mut [S::Arithmetic]) -> Self {
        Self { dgamma: Some(dgamma), ..self }
    }

    /// Asks for the gradient with respect to beta.
    pub fn dbeta(self, dbeta: &'a mut [S::Arithmetic]) -> Self {
        Self { dbeta: Some(dbeta), ..self }
    }

    /// Asks for the gradient with respect to the mean.
    pub fn dmean(self, dmean: &'a mut [S::Arithmetic]) -> Self {
        Self { dmean: Some(dmean), ..self }
    }

    /// Asks for the gradient with respect to the variance.
    pub fn dvar(self, dvar: &'a mut [S::Arithmetic]) -> Self {
        Self { dvar: Some(dvar), ..self }
    }
}

impl<S: Storage> Default for Gradients<'_, S> {
    fn default() -> Self {
        Self::new()
    }
}
