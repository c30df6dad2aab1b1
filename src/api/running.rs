//! Running statistics: the rules by which a layer remembers what its batches looked like.

#![forbid(unsafe_code)]

use crate::ground::error::{Error, check_finite, check_len, check_weight};
use crate::ground::welford::Welford;
use crate::operations::Element;
use crate::simd::environment;

/// How running statistics take in a batch. The field has two opposite conventions, so the choice is explicit.
///
/// A factor outside of 0 to 1 is refused ([`Error::Weight`]), also where PyTorch takes it: running statistics would grow
/// without bound or change their sign. It is mostly the other convention's, or a percentage.
#[derive(Debug, Clone, Copy, PartialEq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub enum UpdateRule {
    /// running = b * running + (1 - b) * batch: Keras, ONNX, TensorFlow (0.99, 0.9).
    Decay(f64),
    /// running = (1 - f) * running + f * batch: PyTorch, cuDNN (0.1).
    Momentum(f64),
    /// running = the mean over all batches so far: PyTorch's `momentum=None`.
    Cumulative,
}

/// Which variance of a batch of m elements per channel goes into the running variance.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub enum RunningVariance {
    /// M2 / (m - 1): PyTorch, cuDNN, TensorFlow's fused operation. Needs at least two elements per channel.
    Unbiased,
    /// M2 / m: ONNX, Keras.
    Biased,
}

/// A rule with its choice of variance.
#[derive(Debug, Clone, Copy, PartialEq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct RunningUpdate {
    /// The weights of old and new.
    pub rule: UpdateRule,
    /// The variance that goes in.
    pub variance: RunningVariance,
}

impl RunningUpdate {
    /// The weight of the new batch, when `batches` came before it.
    fn new_weight(self, batches: u64) -> f64 {
        match self.rule {
            UpdateRule::Decay(decay) => 1.0 - decay,
            UpdateRule::Momentum(momentum) => momentum,
            UpdateRule::Cumulative => 1.0 / (batches as f64 + 1.0),
        }
    }

    /// The weight of what was there.
    fn old_weight(self, batches: u64) -> f64 {
        match self.rule {
            UpdateRule::Decay(decay) => decay,
            UpdateRule::Momentum(momentum) => 1.0 - momentum,
            UpdateRule::Cumulative => batches as f64 / (batches as f64 + 1.0),
        }
    }

    /// What can be wrong before a batch of `count` elements per channel is seen.
    pub(crate) fn check(self, count: u64) -> Result<(), Error> {
        self.check_rule()?;
        if self.variance == RunningVariance::Unbiased && count == 1 {
            return Err(Error::SingleElement);
        }
        Ok(())
    }

    /// What can be wrong with the rule itself.
    pub(crate) fn check_rule(self) -> Result<(), Error> {
        match self.rule {
            UpdateRule::Decay(decay) => check_weight("decay", decay)?,
            UpdateRule::Momentum(momentum) => check_weight("momentum", momentum)?,
            UpdateRule::Cumulative => (),
        }
        Ok(())
    }
}

/// Takes the statistics of one batch (`states`, one per channel) into the running mean and variance.
///
/// Both are elements: the variance of f32 elements beyond some 1e19 (of f64, 1e154) is infinite as a running one, and inference
/// by it gives beta, though training does not. PyTorch's does not saturate either.
///
/// `batches` is the number of batches taken in before this one; only [`UpdateRule::Cumulative`] looks at it. Channels
/// of no elements (an empty batch) are left as they are.
///
/// # Errors
/// [`Error::Length`], [`Error::Weight`] for the rule's factor, [`Error::SingleElement`] for the unbiased variance of
/// one element. Nothing has been written then.
///
/// ```
/// use batchnorm::{RunningUpdate, RunningVariance, UpdateRule, Welford};
/// let batch: Welford = [1.0, 3.0].into_iter().collect();
/// let update = RunningUpdate { rule: UpdateRule::Momentum(0.1), variance: RunningVariance::Unbiased };
/// let (mut mean, mut var) = ([0.0f64], [1.0f64]);
/// batchnorm::update_running(update, 0, &[batch], &mut mean, &mut var)?;
/// assert_eq!((mean, var), ([0.2], [0.9 + 0.1 * 2.0]));
/// # Ok::<(), batchnorm::Error>(())
/// ```
pub fn update_running<T: Element>(
    update: RunningUpdate,
    batches: u64,
    states: &[Welford],
    mean: &mut [T],
    var: &mut [T],
) -> Result<(), Error> {
    check_len("running mean", mean.len(), states.len())?;
    check_len("running variance", var.len(), states.len())?;
    update.check_rule()?;
    if states.iter().any(|state| state.count() == 1) {
        update.check(1)?;
    }
    environment::in_default(|| {
        let (old, new) = (update.old_weight(batches), update.new_weight(batches));
        for ((state, mean), var) in states.iter().zip(mean).zip(var) {
            if state.count() == 0 {
                continue;
            }
            let batch_var = match update.variance {
                RunningVariance::Unbiased => state.variance_unbiased(),
                RunningVariance::Biased => state.variance(),
            };
            *mean = blend(old, *mean, new, state.mean());
            *var = blend(old, *var, new, batch_var);
        }
    });
    Ok(())
}

/// old * running + new * batch in f64, rounded once.
fn blend<T: Element>(old: f64, running: T, new: f64, batch: f64) -> T {
    T::from_f64(old * running.to_f64() + new * batch)
}

/// One step of gradient descent: parameter -= lr * gradient, for gamma with dgamma and for beta with dbeta.
///
/// # Errors
/// [`Error::Length`] if the lengths differ, [`Error::NotFinite`] for `lr`.
///
/// ```
/// let mut gamma = [1.0f32, 1.0];
/// batchnorm::step(0.5, &[1.0, -2.0], &mut gamma)?;
/// assert_eq!(gamma, [0.5, 2.0]);
/// # Ok::<(), batchnorm::Error>(())
/// ```
pub fn step<T: Element>(lr: f64, gradient: &[T], parameter: &mut [T]) -> Result<(), Error> {
    check_finite("lr", lr)?;
    check_len("gradient", gradient.len(), parameter.len())?;
    environment::in_default(|| {
        for (parameter, gradient) in parameter.iter_mut().zip(gradient) {
            *parameter = T::from_f64(parameter.to_f64() - lr * gradient.to_f64());
        }
    });
    Ok(())
}
