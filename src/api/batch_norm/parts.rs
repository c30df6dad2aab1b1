//! What a layer is made of, and what a checkpoint holds of it.

#![forbid(unsafe_code)]

use crate::api::renorm::Renorm;
use crate::api::running::{RunningUpdate, RunningVariance, UpdateRule};
use crate::ground::error::{Error, check_eps, check_len, check_optional};
use crate::kernel::activations::Activation;
use crate::operations::Element;

/// The running statistics of a domain: of [`Parts::domains`].
#[derive(Debug, Clone, PartialEq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[cfg_attr(feature = "serde", serde(deny_unknown_fields))]
pub struct Domain<T> {
    /// The running mean of each channel.
    pub running_mean: Vec<T>,
    /// The running variance of each channel.
    pub running_var: Vec<T>,
    /// The batches that they have taken in.
    pub batches: u64,
}

/// What a [`BatchNorm`](crate::BatchNorm) consists of: parameters, running statistics and settings, all that a checkpoint
/// has to hold. [`BatchNorm::from_parts`](crate::BatchNorm::from_parts) makes a layer of them,
/// [`into_parts`](crate::BatchNorm::into_parts) takes one apart.
///
/// Parts are equal if their numbers are; as ever with floating point, 0 equals -0, and NaN nothing: a layer that has taken
/// in a NaN does not equal its own clone.
#[derive(Debug, Clone, PartialEq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[cfg_attr(feature = "serde", serde(rename = "BatchNorm", deny_unknown_fields))]
pub struct Parts<T> {
    /// Scale per channel; `None` for 1 throughout, and not trained. Written and read by serde either way: a checkpoint without
    /// is one that is cut short.
    #[cfg_attr(feature = "serde", serde(deserialize_with = "serde::Deserialize::deserialize"))]
    pub gamma: Option<Vec<T>>,
    /// Shift per channel; `None` for 0 throughout, and not trained. As `gamma`.
    #[cfg_attr(feature = "serde", serde(deserialize_with = "serde::Deserialize::deserialize"))]
    pub beta: Option<Vec<T>>,
    /// The running mean of each channel.
    pub running_mean: Vec<T>,
    /// The running variance of each channel.
    pub running_var: Vec<T>,
    /// The batches that the running statistics have taken in (PyTorch's `num_batches_tracked`).
    pub batches: u64,
    /// Added to the variance under the root; finite and not negative.
    pub eps: f64,
    /// How the running statistics take in a batch.
    pub update: RunningUpdate,
    /// What is applied in the end; the identity where a checkpoint says nothing of it.
    #[cfg_attr(feature = "serde", serde(default))]
    pub activation: Activation,
    /// The limits of batch renormalization, by which training goes; `None` for batch norm, also where a checkpoint says nothing of it.
    #[cfg_attr(feature = "serde", serde(default))]
    pub renorm: Option<Renorm>,
    /// The running statistics of domains 1, 2 and so on; those of domain 0 are the fields above. None of a layer with one set of them,
    /// also where a checkpoint says nothing of domains.
    #[cfg_attr(feature = "serde", serde(default))]
    pub domains: Vec<Domain<T>>,
}

impl<T: Element> Parts<T> {
    /// Those of a new layer, with PyTorch's defaults: gamma 1, beta 0, running mean 0 and variance 1, no batches, eps 1e-5,
    /// momentum 0.1, unbiased running variance, no activation, no renormalization, one domain.
    pub fn new(channels: usize) -> Self {
        let all = |value| vec![T::from_f64(value); channels];
        Self {
            gamma: Some(all(1.0)),
            beta: Some(all(0.0)),
            running_mean: all(0.0),
            running_var: all(1.0),
            batches: 0,
            eps: 1e-5,
            update: RunningUpdate { rule: UpdateRule::Momentum(0.1), variance: RunningVariance::Unbiased },
            activation: Activation::Identity,
            renorm: None,
            domains: Vec::new(),
        }
    }

    /// C.
    pub fn channels(&self) -> usize {
        self.running_mean.len()
    }

    /// Running mean, variance and batches of a domain; of the first, where there is none of this number.
    pub(super) fn running(&self, domain: usize) -> (&[T], &[T], u64) {
        match domain.checked_sub(1).and_then(|domain| self.domains.get(domain)) {
            Some(Domain { running_mean, running_var, batches }) => (running_mean, running_var, *batches),
            None => (&self.running_mean, &self.running_var, self.batches),
        }
    }

    /// The same, to be set.
    pub(super) fn running_mut(&mut self, domain: usize) -> (&mut [T], &mut [T], &mut u64) {
        match domain.checked_sub(1).and_then(|domain| self.domains.get_mut(domain)) {
            Some(Domain { running_mean, running_var, batches }) => (running_mean, running_var, batches),
            None => (&mut self.running_mean, &mut self.running_var, &mut self.batches),
        }
    }

    /// What can be wrong with parts. Values of the vectors are not: a NaN in a checkpoint is one channel's.
    pub(super) fn check(&self) -> Result<(), Error> {
        let channels = self.channels();
        check_len("running variance", self.running_var.len(), channels)?;
        for domain in &self.domains {
            check_len("running mean", domain.running_mean.len(), channels)?;
            check_len("running variance", domain.running_var.len(), channels)?;
        }
        check_optional("gamma", self.gamma.as_deref(), channels)?;
        check_optional("beta", self.beta.as_deref(), channels)?;
        check_eps(self.eps)?;
        self.activation.check()?;
        self.renorm.map_or(Ok(()), |limits| limits.check())?;
        self.update.check_rule()
    }
}
