//! The module, which takes the place of candle's.

#![forbid(unsafe_code)]

use batchnorm::{Activation, RunningUpdate, RunningVariance, UpdateRule, Welford, update_running};
use candle_core::{DType, Device, Error, Result, Tensor, Var};
use candle_nn::{BatchNormConfig, Module, ModuleT, VarBuilder};

use crate::op::{Epilogue, Float, check_dtypes, fused_inference, fused_training, parameter_dtype};

/// Batch normalization with the interface of [`candle_nn::BatchNorm`] and the kernels of [`batchnorm`].
///
/// It holds candle's module, whose variables are the parameters and the running statistics, and which computes what the
/// kernels do not: on other devices than the CPU, in training with `remove_mean: false`.
///
/// Inputs may be f32, f64, bf16 or f16, and y is of the same type. Variables are f64 beside an input of f64, and f32 beside the
/// others: to read a model of bf16 or f16, make the module of `vb.to_dtype(DType::F32)`.
///
/// Beyond candle's it may have an [activation](Self::with_activation), and take a
/// [residual](Self::forward_t_with_residual): both are done in the pass that normalizes, and give the bits that they give one
/// after the other.
#[derive(Clone, Debug)]
pub struct BatchNorm {
    inner: candle_nn::BatchNorm,
    remove_mean: bool,
    activation: Activation,
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
    Ok(BatchNorm { inner, remove_mean: config.remove_mean, activation: Activation::Identity })
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
        Self { inner, remove_mean: true, activation: Activation::Identity }
    }

    /// With an activation in the end; calls return an error if its numbers are none that it can have. It is no part of a
    /// checkpoint.
    ///
    /// ```
    /// use batchnorm_candle::{Activation, BatchNorm};
    /// use candle_core::{Device, Tensor};
    /// use candle_nn::ModuleT;
    ///
    /// let vector = |value: f32| Tensor::new(&[value], &Device::Cpu);
    /// let norm = BatchNorm::new_no_bias(1, vector(0.)?, vector(1.)?, 0.)?.with_activation(Activation::Relu);
    /// let x = Tensor::new(&[[1f32], [3.]], &Device::Cpu)?;
    /// assert_eq!(norm.forward_t(&x, true)?.to_vec2::<f32>()?, [[0.], [1.]]);
    /// # Ok::<(), candle_core::Error>(())
    /// ```
    pub fn with_activation(self, activation: Activation) -> Self {
        Self { activation, ..self }
    }

    /// What is applied in the end.
    pub fn activation(&self) -> Activation {
        self.activation
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

    /// The parameters and the running statistics, by their names in checkpoints.
    fn variables(&self) -> impl Iterator<Item = (&'static str, &Tensor)> {
        let affine = self.weight_and_bias();
        [("running_mean", self.running_mean()), ("running_var", self.running_var())]
            .into_iter()
            .chain(affine.into_iter().flat_map(|(weight, bias)| [("weight", weight), ("bias", bias)]))
    }

    /// Whether the kernels take this tensor; what they do not is candle's to do or to refuse. Variables of another type than they
    /// have beside it are an error that names one.
    fn takes(&self, x: &Tensor) -> Result<bool> {
        let takes = x.device().is_cpu()
            && parameter_dtype(x.dtype()).is_some()
            && x.rank() >= 2
            && self.running_mean().dims() == &x.dims()[1..2]
            && self.variables().all(|(_, variable)| variable.device().is_cpu());
        if takes {
            check_dtypes(x.dtype(), self.variables())?;
        }
        Ok(takes)
    }

    /// Normalizes a batch by its own statistics, of which the running statistics take in the mean and the unbiased
    /// variance: running * (1 - momentum) + batch * momentum.
    ///
    /// # Errors
    /// Where candle's module has one, and for a single element per channel, of which there is no unbiased variance.
    /// The running statistics are as before then.
    pub fn forward_train(&self, x: &Tensor) -> Result<Tensor> {
        self.train(x, None)
    }

    /// The end of a residual block: [`forward_t`](ModuleT::forward_t) with `z`, of x's shape, added to the normalized x before
    /// the activation. Gradients reach x, z, weight and bias. In training a bit an element is kept for the backward pass, and
    /// nothing else of x's size.
    ///
    /// Hard swish and SiLU are applied apart, by candle's operations.
    ///
    /// # Errors
    /// Where `forward_t` has one, and for a `z` of another shape, type or device than x. The running statistics are as before
    /// then.
    ///
    /// ```
    /// use batchnorm_candle::{Activation, BatchNorm};
    /// use candle_core::{Device, Tensor};
    ///
    /// let vector = |value: f32| Tensor::new(&[value], &Device::Cpu);
    /// let norm = BatchNorm::new_no_bias(1, vector(0.)?, vector(1.)?, 0.)?.with_activation(Activation::Relu);
    /// let (x, z) = (Tensor::new(&[[1f32], [3.]], &Device::Cpu)?, Tensor::new(&[[0.5f32], [0.5]], &Device::Cpu)?);
    /// assert_eq!(norm.forward_t_with_residual(&x, &z, true)?.to_vec2::<f32>()?, [[0.], [1.5]]);
    /// # Ok::<(), candle_core::Error>(())
    /// ```
    pub fn forward_t_with_residual(&self, x: &Tensor, z: &Tensor, train: bool) -> Result<Tensor> {
        if z.dims() != x.dims() || z.dtype() != x.dtype() || !z.device().same_device(x.device()) {
            candle_core::bail!(
                "the residual is {:?} of {:?} on {:?}, must be as the input, {:?} of {:?} on {:?}",
                z.shape(),
                z.dtype(),
                z.device(),
                x.shape(),
                x.dtype(),
                x.device()
            )
        }
        if train { self.train(x, Some(z)) } else { self.eval(x, Some(z)) }
    }

    /// What the kernels do along with the normalization, if they do what is asked for.
    fn epilogue<'a>(&self, residual: Option<&'a Tensor>) -> Option<Epilogue<'a>> {
        let fuses = residual.is_none() || self.activation.is_piecewise_linear();
        fuses.then_some(Epilogue { activation: self.activation, residual })
    }

    /// The same apart, by candle's operations.
    fn follow(&self, y: Tensor, residual: Option<&Tensor>) -> Result<Tensor> {
        let u = match residual {
            Some(z) => (y + z)?,
            None => y,
        };
        match self.activation {
            Activation::Identity => Ok(u),
            Activation::Relu => u.relu(),
            Activation::LeakyRelu { slope } => candle_nn::ops::leaky_relu(&u, slope),
            Activation::Clip { lo, hi } => u.clamp(lo, hi),
            Activation::HardSwish => candle_nn::Activation::HardSwish.forward(&u),
            Activation::Silu => u.silu(),
            other => candle_core::bail!("candle has no {other}"),
        }
    }

    /// That the activation's numbers are such as it can have.
    fn check_activation(&self) -> Result<()> {
        self.activation.apply::<f32>(&mut []).map_err(Error::wrap)
    }

    fn train(&self, x: &Tensor, residual: Option<&Tensor>) -> Result<Tensor> {
        self.check_activation()?;
        if !(self.remove_mean && self.takes(x)?) {
            return self.follow(self.inner.forward_train(x)?, residual);
        }
        if x.elem_count() != 0 && x.elem_count() == x.dims()[1] {
            candle_core::bail!(
                "batch-norm training needs more than one element per channel, the input is {:?}",
                x.shape()
            )
        }
        let epilogue = self.epilogue(residual);
        let (y, states) =
            fused_training(x, self.weight_and_bias(), self.eps(), epilogue.unwrap_or_default())?;
        match x.dtype() {
            DType::F64 => self.update::<f64>(&states)?,
            _ => self.update::<f32>(&states)?,
        }
        if epilogue.is_some() { Ok(y) } else { self.follow(y, residual) }
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

    fn eval(&self, x: &Tensor, residual: Option<&Tensor>) -> Result<Tensor> {
        self.check_activation()?;
        if !self.takes(x)? {
            return self.follow(self.inner.forward_t(x, false)?, residual);
        }
        let (epilogue, running) = (self.epilogue(residual), (self.running_mean(), self.running_var()));
        let y =
            fused_inference(x, running, self.weight_and_bias(), self.eps(), epilogue.unwrap_or_default())?;
        if epilogue.is_some() { Ok(y) } else { self.follow(y, residual) }
    }
}

impl ModuleT for BatchNorm {
    fn forward_t(&self, x: &Tensor, train: bool) -> Result<Tensor> {
        if train { self.train(x, None) } else { self.eval(x, None) }
    }
}
