//! The layer: parameters, running statistics, and what a training step needs to remember. Its passes are in `passes.rs`.

#![forbid(unsafe_code)]

pub mod parts;
mod passes;
mod record;

use crate::api::batch_norm::parts::{Domain, Parts};
use crate::api::batch_norm::record::Record;
use crate::api::renorm::Renorm;
use crate::api::running::{RunningUpdate, RunningVariance, UpdateRule, step};
use crate::ground::error::{Error, check_eps, check_finite, check_sample_weight};
use crate::ground::welford::Welford;
use crate::kernel::activations::Activation;
use crate::operations::Element;

/// By which statistics a forward pass of the layer normalizes, and what it leaves behind.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Mode {
    /// By the batch's statistics, which the running statistics take in. Backward goes through the statistics, too. With
    /// [`Renorm`] y is corrected by the running statistics, as they were before.
    Training,
    /// The same, but the running statistics and the count of batches are left alone: the second forward pass of activation
    /// checkpointing, a batch that is only looked at.
    TrainingKeepRunning,
    /// By the running statistics, which stay as they are, while gamma and beta are trained: fine-tuning, small batches.
    /// Backward takes the statistics for constants: dx = gamma * invstd * dy.
    Frozen,
    /// By the running statistics, and nothing is kept for backward: evaluation.
    Inference,
}

/// A batch normalization layer over `channels` channels.
///
/// [`new`](Self::new) follows PyTorch's defaults, [`keras`](Self::keras) and [`onnx`](Self::onnx) those conventions;
/// the `with_` methods change them. [`Mode`] says what kinds of forward pass there are.
///
/// ```
/// use batchnorm::{BatchNorm, Mode, Shape, Tensor};
/// let shape = Shape::nchw(&[8, 3, 16, 16])?;
/// let x = Tensor::from_fn(shape, |i| (i % 101) as f32);
/// let (mut y, mut dx) = (Tensor::zeros(shape), Tensor::zeros(shape));
/// let mut layer = BatchNorm::new(3);
/// layer.forward_training(&shape, &x, &mut y)?;
/// let dy = Tensor::from_fn(shape, |i| (i % 7) as f32 - 3.0);
/// layer.backward(&shape, &x, &dy, &mut dx)?;
/// layer.step(0.1)?;
/// layer.forward_inference(&shape, &x, &mut y)?;
///
/// // Fine-tuning: gamma and beta learn on, the statistics stay.
/// layer.forward(Mode::Frozen, &shape, &x, &mut y)?;
/// layer.backward(&shape, &x, &dy, &mut dx)?;
/// layer.step(0.01)?;
/// # Ok::<(), batchnorm::Error>(())
/// ```
///
/// Layers are equal if their [parts](Parts) are, which is what a checkpoint holds; gradients and what is kept of the last
/// forward pass have no part in it, nor has the domain that is set. With the feature `serde` a layer is written and read as its parts, and checked on
/// reading; to the bit if the format is (serde_json needs its feature `float_roundtrip` for that).
#[derive(Debug, Clone)]
pub struct BatchNorm<T> {
    parts: Parts<T>,
    /// The domain of the calls that come; one that there is.
    domain: usize,
    /// Boxed, so that a layer is small among an enum's others.
    kept: Box<Kept<T>>,
}

/// What a layer keeps of its last passes.
#[derive(Debug, Clone)]
struct Kept<T> {
    dgamma: Vec<T>,
    dbeta: Vec<T>,
    states: Vec<Welford>,
    /// Of the samples of the forward passes that come.
    weights: Option<Vec<f64>>,
    /// The forward pass that backward belongs to.
    forward: Option<Box<Record<T>>>,
}

impl<T: PartialEq> PartialEq for BatchNorm<T> {
    fn eq(&self, other: &Self) -> bool {
        self.parts == other.parts
    }
}

impl<T: Element> BatchNorm<T> {
    /// PyTorch's defaults: gamma 1, beta 0, running mean 0 and variance 1, eps 1e-5, momentum 0.1, unbiased running
    /// variance.
    pub fn new(channels: usize) -> Self {
        Self::of(Parts::new(channels))
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

    /// The layer that was taken apart, or that another framework's checkpoint holds.
    ///
    /// # Errors
    /// [`Error::Length`] if a vector has not the running mean's length, [`Error::Epsilon`], [`Error::Weight`] for the
    /// update rule's factor.
    ///
    /// ```
    /// use batchnorm::{BatchNorm, Parts};
    /// // What a state_dict of PyTorch's holds.
    /// let (weight, bias) = (vec![1.0f32, 2.0], vec![0.0, 0.5]);
    /// let (running_mean, running_var, num_batches_tracked) = (vec![3.0, 4.0], vec![1.5, 2.5], 100);
    /// let layer = BatchNorm::from_parts(Parts {
    ///     gamma: Some(weight),
    ///     beta: Some(bias),
    ///     running_mean,
    ///     running_var,
    ///     batches: num_batches_tracked,
    ///     ..Parts::new(0)
    /// })?;
    /// assert_eq!((layer.channels(), layer.eps()), (2, 1e-5));
    /// assert_eq!(BatchNorm::from_parts(layer.clone().into_parts())?, layer);
    /// # Ok::<(), batchnorm::Error>(())
    /// ```
    pub fn from_parts(parts: Parts<T>) -> Result<Self, Error> {
        parts.check()?;
        Ok(Self::of(parts))
    }

    /// Checked parts.
    fn of(parts: Parts<T>) -> Self {
        let channels = parts.channels();
        let zeros = vec![T::default(); channels];
        let states = vec![Welford::new(); channels];
        let kept = Kept { dgamma: zeros.clone(), dbeta: zeros, states, weights: None, forward: None };
        Self { parts, domain: 0, kept: Box::new(kept) }
    }

    /// What the layer consists of.
    pub fn parts(&self) -> &Parts<T> {
        &self.parts
    }

    /// What the layer consisted of; gradients and the last forward pass are dropped.
    pub fn into_parts(self) -> Parts<T> {
        self.parts
    }

    /// With another eps; calls that use it return an error if it is negative or not finite.
    pub fn with_eps(mut self, eps: f64) -> Self {
        self.parts.eps = eps;
        self
    }

    /// With another rule for the running statistics; training returns an error if its factor is not between 0 and 1.
    pub fn with_update(mut self, update: RunningUpdate) -> Self {
        self.parts.update = update;
        self
    }

    /// Without gamma (1 throughout, and not trained).
    pub fn without_gamma(mut self) -> Self {
        self.parts.gamma = None;
        self
    }

    /// Without beta (0 throughout, and not trained).
    pub fn without_beta(mut self) -> Self {
        self.parts.beta = None;
        self
    }

    /// With an activation in the end; calls return an error if its numbers are none that it can have.
    ///
    /// ```
    /// use batchnorm::{Activation, BatchNorm, Mode, Shape};
    /// let shape = Shape::nchw(&[2, 1, 2])?;
    /// let (x, z, mut y) = ([1.0f32, 3.0, 1.0, 3.0], [0.5; 4], [0.0; 4]);
    /// let mut layer = BatchNorm::new(1).with_eps(0.0).with_activation(Activation::Relu);
    /// layer.forward_training(&shape, &x, &mut y)?;
    /// assert_eq!(y, [0.0, 1.0, 0.0, 1.0]);
    ///
    /// // The end of a residual block: y = act(batch norm of x + z).
    /// layer.forward_with_residual(Mode::Training, &shape, &x, &z, &mut y)?;
    /// assert_eq!(y, [0.0, 1.5, 0.0, 1.5]);
    /// let (dy, mut dx, mut dz) = ([1.0, 1.0, 1.0, -1.0], [0.0; 4], [0.0; 4]);
    /// layer.backward_with_residual(&shape, &x, &dy, &mut dx, &mut dz)?;
    /// assert_eq!(dz, [0.0, 1.0, 0.0, -1.0]);
    /// # Ok::<(), batchnorm::Error>(())
    /// ```
    pub fn with_activation(mut self, activation: Activation) -> Self {
        self.parts.activation = activation;
        self
    }

    /// With batch renormalization within these limits, in [`Mode::Training`] and [`Mode::TrainingKeepRunning`], by the running
    /// statistics as they are before the batch; calls in these modes return an error if the limits are none. The other modes are what
    /// they are without. A schedule raises the limits by [`set_renorm`](Self::set_renorm).
    ///
    /// ```
    /// use batchnorm::{BatchNorm, Renorm, Shape};
    /// let shape = Shape::nchw(&[2, 1])?;
    /// let (x, mut y, mut expected) = ([6.0f32, 10.0], [0.0; 2], [0.0; 2]);
    /// // Batch norm to begin with, then with ever less of the batch's own statistics in y.
    /// let mut layer = BatchNorm::new(1).with_renorm(Renorm { r_max: 1.0, d_max: 0.0 });
    /// layer.forward_training(&shape, &x, &mut y)?;
    /// BatchNorm::new(1).forward_training(&shape, &x, &mut expected)?;
    /// assert_eq!(y, expected);
    /// layer.set_renorm(Some(Renorm { r_max: 3.0, d_max: 5.0 }))?;
    /// layer.forward_training(&shape, &x, &mut y)?;
    /// assert_ne!(y, expected);
    /// # Ok::<(), batchnorm::Error>(())
    /// ```
    pub fn with_renorm(mut self, limits: Renorm) -> Self {
        self.parts.renorm = Some(limits);
        self
    }

    /// With so many domains, each with running statistics and a count of batches of its own, all with the same gamma and beta: data
    /// of several kinds (sources, cameras, clean and adversarial examples) go through one network, a batch of one kind at a time.
    /// [`set_domain`](Self::set_domain) says of which the calls that follow are; domain 0 until then.
    ///
    /// Domains that are new begin with what domain 0 has now; those beyond `count` are dropped, but for domain 0. With gamma and beta
    /// for each domain too, as in the paper, it is a layer for each.
    ///
    /// W.-G. Chang et al., "Domain-Specific Batch Normalization for Unsupervised Domain Adaptation" (2019).
    ///
    /// ```
    /// use batchnorm::{BatchNorm, Shape};
    /// let shape = Shape::nchw(&[2, 1])?;
    /// let (photos, drawings, mut y) = ([1.0f32, 3.0], [10.0f32, 30.0], [0.0; 2]);
    /// let mut layer = BatchNorm::new(1).with_domains(2);
    /// layer.forward_training(&shape, &photos, &mut y)?;
    /// layer.set_domain(1)?;
    /// layer.forward_training(&shape, &drawings, &mut y)?;
    /// assert_eq!((layer.running_mean(), layer.batches()), (&[2.0][..], 1));
    /// layer.set_domain(0)?;
    /// assert_eq!((layer.running_mean(), layer.batches()), (&[0.2][..], 1));
    /// # Ok::<(), batchnorm::Error>(())
    /// ```
    pub fn with_domains(mut self, count: usize) -> Self {
        let Parts { running_mean, running_var, batches, domains, .. } = &mut self.parts;
        let (running_mean, running_var) = (running_mean.clone(), running_var.clone());
        domains.resize(count.saturating_sub(1), Domain { running_mean, running_var, batches: *batches });
        if self.domain >= self.domains() {
            self.domain = 0;
        }
        self
    }

    /// Each parameter with its gradient, as of the last backward pass: gamma with dgamma, then beta with dbeta; those that
    /// the layer is without are left out. For any optimizer; this is Adam's first step:
    ///
    /// ```
    /// use batchnorm::{BatchNorm, Shape};
    /// let shape = Shape::nchw(&[3, 2])?;
    /// let (x, dy) = ([1.0f64, 2.0, 3.0, 4.0, 8.0, 9.0], [1.0, -1.0, 0.0, 2.0, -2.0, 0.5]);
    /// let (mut layer, mut y) = (BatchNorm::new(2), [0.0; 6]);
    /// layer.forward_training(&shape, &x, &mut y)?;
    /// layer.backward(&shape, &x, &dy, &mut y)?;
    ///
    /// let (lr, t) = (1e-3, 1);
    /// let mut moments = [(); 2].map(|()| [(0.0, 0.0); 2]); // of gamma and of beta, for each channel
    /// for ((parameter, gradient), moments) in layer.parameters_mut().zip(&mut moments) {
    ///     for ((p, g), (m, v)) in parameter.iter_mut().zip(gradient).zip(moments) {
    ///         (*m, *v) = (0.9 * *m + 0.1 * g, 0.999 * *v + 0.001 * g * g);
    ///         *p -= lr * (*m / (1.0 - 0.9f64.powi(t))) / ((*v / (1.0 - 0.999f64.powi(t))).sqrt() + 1e-8);
    ///     }
    /// }
    /// // Its first step is lr against the gradient's sign, whatever the gradient's size.
    /// for (beta, dbeta) in layer.beta().unwrap().iter().zip(layer.dbeta()) {
    ///     assert!((beta + lr * dbeta.signum()).abs() < 1e-9);
    /// }
    /// # Ok::<(), batchnorm::Error>(())
    /// ```
    pub fn parameters_mut(&mut self) -> impl Iterator<Item = (&mut [T], &[T])> {
        let Self { parts: Parts { gamma, beta, .. }, kept, .. } = self;
        let Kept { dgamma, dbeta, .. } = &**kept;
        let pairs = [(gamma, dgamma), (beta, dbeta)];
        pairs.into_iter().filter_map(|(parameter, gradient)| Some((parameter.as_deref_mut()?, &gradient[..])))
    }

    /// One step of gradient descent on gamma and beta with the gradients of the last backward pass.
    ///
    /// # Errors
    /// [`Error::NotFinite`] for `lr`; nothing has been written then.
    pub fn step(&mut self, lr: f64) -> Result<(), Error> {
        check_finite("lr", lr)?;
        self.parameters_mut().try_for_each(|(parameter, gradient)| step(lr, gradient, parameter))
    }

    /// C.
    pub fn channels(&self) -> usize {
        self.kept.states.len()
    }

    /// gamma, unless the layer is without.
    pub fn gamma(&self) -> Option<&[T]> {
        self.parts.gamma.as_deref()
    }

    /// gamma, to be set.
    pub fn gamma_mut(&mut self) -> Option<&mut [T]> {
        self.parts.gamma.as_deref_mut()
    }

    /// beta, unless the layer is without.
    pub fn beta(&self) -> Option<&[T]> {
        self.parts.beta.as_deref()
    }

    /// beta, to be set.
    pub fn beta_mut(&mut self) -> Option<&mut [T]> {
        self.parts.beta.as_deref_mut()
    }

    /// dgamma of the last backward pass.
    pub fn dgamma(&self) -> &[T] {
        &self.kept.dgamma
    }

    /// dbeta of the last backward pass.
    pub fn dbeta(&self) -> &[T] {
        &self.kept.dbeta
    }

    /// The running mean of each channel, in the domain that is set.
    pub fn running_mean(&self) -> &[T] {
        self.parts.running(self.domain).0
    }

    /// The running mean, to be set (from a checkpoint).
    pub fn running_mean_mut(&mut self) -> &mut [T] {
        self.parts.running_mut(self.domain).0
    }

    /// The running variance of each channel, in the domain that is set.
    pub fn running_var(&self) -> &[T] {
        self.parts.running(self.domain).1
    }

    /// The running variance, to be set (from a checkpoint).
    pub fn running_var_mut(&mut self) -> &mut [T] {
        self.parts.running_mut(self.domain).1
    }

    /// The batches that the running statistics have taken in (PyTorch's `num_batches_tracked`), in the domain that is set.
    pub fn batches(&self) -> u64 {
        self.parts.running(self.domain).2
    }

    /// Sets the number of batches taken in, which [`UpdateRule::Cumulative`] weights by; 0 for a fresh start, where that
    /// rule forgets the running statistics there are.
    pub fn set_batches(&mut self, batches: u64) {
        *self.parts.running_mut(self.domain).2 = batches;
    }

    /// The number of domains: 1 unless [`with_domains`](Self::with_domains) or the parts say otherwise.
    pub fn domains(&self) -> usize {
        1 + self.parts.domains.len()
    }

    /// The domain whose running statistics calls use and change.
    pub fn domain(&self) -> usize {
        self.domain
    }

    /// Sets the domain of the calls that follow: whose running statistics normalize, take in batches, are read, set and folded. The
    /// backward pass is of the last forward pass, whatever domain that was of. A layer made of parts is in domain 0.
    ///
    /// # Errors
    /// [`Error::Domain`] if there is none of this number; then it is the one before.
    pub fn set_domain(&mut self, domain: usize) -> Result<(), Error> {
        let domains = self.domains();
        if domain >= domains {
            return Err(Error::Domain { domain, domains });
        }
        self.domain = domain;
        Ok(())
    }

    /// How the running statistics take in a batch.
    pub fn update(&self) -> RunningUpdate {
        self.parts.update
    }

    /// Sets how the running statistics take in the batches from here on.
    ///
    /// # Errors
    /// [`Error::Weight`] if its factor is not between 0 and 1; then the rule is the one before.
    pub fn set_update(&mut self, update: RunningUpdate) -> Result<(), Error> {
        update.check_rule()?;
        self.parts.update = update;
        Ok(())
    }

    /// Sets eps.
    ///
    /// # Errors
    /// [`Error::Epsilon`] if it is negative or not finite; then eps is the one before.
    pub fn set_eps(&mut self, eps: f64) -> Result<(), Error> {
        check_eps(eps)?;
        self.parts.eps = eps;
        Ok(())
    }

    /// What is applied in the end.
    pub fn activation(&self) -> Activation {
        self.parts.activation
    }

    /// Sets what is applied in the end, from the next forward pass on.
    ///
    /// # Errors
    /// [`Error::NotFinite`] or [`Error::Clip`] for its numbers; then it is the one before.
    pub fn set_activation(&mut self, activation: Activation) -> Result<(), Error> {
        activation.check()?;
        self.parts.activation = activation;
        Ok(())
    }

    /// The limits of batch renormalization, if training goes by some.
    pub fn renorm(&self) -> Option<Renorm> {
        self.parts.renorm
    }

    /// Sets the limits of batch renormalization from the next forward pass on, `None` for batch norm.
    ///
    /// # Errors
    /// [`Error::Limit`] if `r_max` is below 1, `d_max` below 0, or one is NaN; then they are the ones before.
    pub fn set_renorm(&mut self, limits: Option<Renorm>) -> Result<(), Error> {
        limits.map_or(Ok(()), |limits| limits.check())?;
        self.parts.renorm = limits;
        Ok(())
    }

    /// The weights of samples that are set.
    pub fn weights(&self) -> Option<&[f64]> {
        self.kept.weights.as_deref()
    }

    /// Sets how often each sample of the next batches counts in all modes but inference, a weight per sample, `None` for once:
    /// [`Training::weights`](crate::Training::weights). Batches of another N are an error there. The backward pass is by the weights of its
    /// forward pass, as [`Backward::weights`](crate::Backward::weights) says. They are no part of a checkpoint.
    ///
    /// ```
    /// use batchnorm::{BatchNorm, Shape};
    /// let (shape, mut y) = (Shape::nchw(&[3, 1])?, [0.0f32; 3]);
    /// let mut layer = BatchNorm::new(1);
    /// layer.set_weights(Some(vec![2.0, 1.0, 0.0]))?;
    /// layer.forward_training(&shape, &[1.0, 4.0, 7.0], &mut y)?;
    /// assert_eq!((layer.states()[0].count(), layer.states()[0].mean()), (3, 2.0)); // of 1, 1, 4
    /// # Ok::<(), batchnorm::Error>(())
    /// ```
    ///
    /// # Errors
    /// [`Error::SampleWeight`]; then they are the ones before.
    pub fn set_weights(&mut self, weights: Option<Vec<f64>>) -> Result<(), Error> {
        weights.iter().flatten().copied().enumerate().try_for_each(check_sample_weight)?;
        self.kept.weights = weights;
        Ok(())
    }

    /// eps.
    pub fn eps(&self) -> f64 {
        self.parts.eps
    }

    /// The statistics of the last training batch, one state per channel.
    pub fn states(&self) -> &[Welford] {
        &self.kept.states
    }
}

#[cfg(feature = "serde")]
impl<T: serde::Serialize> serde::Serialize for BatchNorm<T> {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.parts.serialize(serializer)
    }
}

#[cfg(feature = "serde")]
impl<'de, T: Element + serde::Deserialize<'de>> serde::Deserialize<'de> for BatchNorm<T> {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let parts = Parts::deserialize(deserializer)?;
        Self::from_parts(parts).map_err(serde::de::Error::custom)
    }
}
