//! The module, which takes the place of candle's.

#![forbid(unsafe_code)]

use batchnorm::{RunningUpdate, RunningVariance, UpdateRule, Welford, update_running};
use candle_core::{DType, Device, Error, Result, Tensor, Var};
use candle_nn::{BatchNormConfig, ModuleT, VarBuilder};

use crate::op::{Float, forward_inference, forward_training};

/// Batch normalization with the interface of [`candle_nn::BatchNorm`] and the kernels of [`batchnorm`].
///
/// It holds candle's module, whose variables are the parameters and the running statistics, and which computes what the
/// kernels do not: on other devices than the CPU, in f16 and bf16, in training with `remove_mean: false`.
#[derive(Clone, Debug)]
pub struct BatchNorm {
    inner: candle_nn::BatchNorm,
    remove_mean: bool,
}

/// A module over `num_features` channels with candle's names in `vb`: `running_mean`, `running_var` and, if the
/// configuration is affine, `weight` and `bias`.
///
/// # Errors
/// As [`candle_nn::batch_norm()`]: a negative eps, a variable that `vb` does not have or has in another shape.
pub fn batch_norm<C: Into<BatchNormConfig>>(
    num_features: usize,
    config: C,
    vb: VarBuilder,
) -> Result<BatchNorm> {
    let config = config.into();
    let inner = candle_nn::batch_norm(num_features, config, vb)?;
    Ok(BatchNorm { inner, remove_mean: config.remove_mean })
}

impl BatchNorm {
    /// A module with momentum 0.1.
    ///
    /// # Errors
    /// For a negative eps or a tensor that is not of `num_features` elements.
    pub fn new(
        num_features: usize,
        running_mean: Tensor,
        running_var: Tensor,
        weight: Tensor,
        bias: Tensor,
        eps: f64,
    ) -> Result<Self> {
        candle_nn::BatchNorm::new(num_features, running_mean, running_var, weight, bias, eps).map(Self::of)
    }

    /// A module without weight and bias, with momentum 0.1.
    ///
    /// # Errors
    /// As [`new`](Self::new).
    pub fn new_no_bias(
        num_features: usize,
        running_mean: Tensor,
        running_var: Tensor,
        eps: f64,
    ) -> Result<Self> {
        candle_nn::BatchNorm::new_no_bias(num_features, running_mean, running_var, eps).map(Self::of)
    }

    /// A module.
    ///
    /// # Errors
    /// As [`new`](Self::new), and for a momentum outside of 0 to 1.
    pub fn new_with_momentum(
        num_features: usize,
        running_mean: Tensor,
        running_var: Tensor,
        weight: Tensor,
        bias: Tensor,
        eps: f64,
        momentum: f64,
    ) -> Result<Self> {
        candle_nn::BatchNorm::new_with_momentum(
            num_features,
            running_mean,
            running_var,
            weight,
            bias,
            eps,
            momentum,
        )
        .map(Self::of)
    }

    /// A module without weight and bias.
    ///
    /// # Errors
    /// As [`new_with_momentum`](Self::new_with_momentum).
    pub fn new_no_bias_with_momentum(
        num_features: usize,
        running_mean: Tensor,
        running_var: Tensor,
        eps: f64,
        momentum: f64,
    ) -> Result<Self> {
        candle_nn::BatchNorm::new_no_bias_with_momentum(
            num_features,
            running_mean,
            running_var,
            eps,
            momentum,
        )
        .map(Self::of)
    }

    /// candle's other constructors all remove the mean.
    fn of(inner: candle_nn::BatchNorm) -> Self {
        Self { inner, remove_mean: true }
    }

    /// The running mean.
    pub fn running_mean(&self) -> &Tensor {
        self.inner.running_mean()
    }

    /// The running variance.
    pub fn running_var(&self) -> &Tensor {
        self.inner.running_var()
    }

    /// eps.
    pub fn eps(&self) -> f64 {
        self.inner.eps()
    }

    /// Weight and bias, gamma and beta; `None` if the module is not affine.
    pub fn weight_and_bias(&self) -> Option<(&Tensor, &Tensor)> {
        self.inner.weight_and_bias()
    }

    /// The weight of a new batch in the running statistics.
    pub fn momentum(&self) -> f64 {
        self.inner.momentum()
    }

    /// Whether the kernels take this tensor and these parameters; whatever they do not is candle's to do or to refuse.
    fn takes(&self, x: &Tensor) -> bool {
        let dtype = x.dtype();
        let alike = |tensor: &Tensor| tensor.dtype() == dtype && tensor.device().is_cpu();
        matches!(dtype, DType::F32 | DType::F64)
            && x.rank() >= 2
            && self.running_mean().dims() == &x.dims()[1..2]
            && [x, self.running_mean(), self.running_var()].into_iter().all(alike)
            && self.weight_and_bias().is_none_or(|(weight, bias)| alike(weight) && alike(bias))
    }

    /// Normalizes a batch by its own statistics, of which the running statistics take in the mean and the unbiased
    /// variance: running * (1 - momentum) + batch * momentum.
    ///
    /// # Errors
    /// Where candle's module has one, and for a single element per channel, of which there is no unbiased variance.
    /// The running statistics are as before then.
    pub fn forward_train(&self, x: &Tensor) -> Result<Tensor> {
        if !(self.remove_mean && self.takes(x)) {
            return self.inner.forward_train(x);
        }
        if x.elem_count() != 0 && x.elem_count() == x.dims()[1] {
            candle_core::bail!(
                "batch-norm training needs more than one element per channel, the input is {:?}",
                x.shape()
            )
        }
        let (y, states) = forward_training(x, self.weight_and_bias(), self.eps())?;
        match x.dtype() {
            DType::F64 => self.update::<f64>(&states)?,
            _ => self.update::<f32>(&states)?,
        }
        Ok(y)
    }

    fn update<T: Float>(&self, states: &[Welford]) -> Result<()> {
        let rule = UpdateRule::Momentum(self.momentum());
        let update = RunningUpdate { rule, variance: RunningVariance::Unbiased };
        let mut mean = self.running_mean().to_vec1::<T>()?;
        let mut var = self.running_var().to_vec1::<T>()?;
        update_running(update, 0, states, &mut mean, &mut var).map_err(Error::wrap)?;
        for (variable, values) in [(self.running_mean(), mean), (self.running_var(), var)] {
            // candle's module keeps both as variables, whose contents this sets.
            Var::from_tensor(variable)?.set(&Tensor::from_vec(values, states.len(), &Device::Cpu)?)?;
        }
        Ok(())
    }

    fn forward_eval(&self, x: &Tensor) -> Result<Tensor> {
        if !self.takes(x) {
            return self.inner.forward_t(x, false);
        }
        forward_inference(x, self.running_mean(), self.running_var(), self.weight_and_bias(), self.eps())
    }
}

impl ModuleT for BatchNorm {
    fn forward_t(&self, x: &Tensor, train: bool) -> Result<Tensor> {
        if train { self.forward_train(x) } else { self.forward_eval(x) }
    }
}
