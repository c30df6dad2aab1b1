//! The module, which takes the place of candle's.

#![forbid(unsafe_code)]

use batchnorm::{Activation, Renorm, RunningUpdate, RunningVariance, UpdateRule, Welford, update_running};
use candle_core::{DType, Device, Error, Result, Tensor, Var};
use candle_nn::{BatchNormConfig, Init, ModuleT, VarBuilder};

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
/// after the other. Training may be [renormalized](Self::with_renorm), and there may be running statistics for each of several
/// [domains](Self::with_domains).
#[derive(Clone, Debug)]
pub struct BatchNorm {
    inner: candle_nn::BatchNorm,
    remove_mean: bool,
    activation: Activation,
    renorm: Option<Renorm>,
    /// Of domains 1, 2 and so on, with the same weight and bias.
    domains: Vec<candle_nn::BatchNorm>,
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
    Ok(BatchNorm { remove_mean: config.remove_mean, ..BatchNorm::of(inner) })
}

/// [`batch_norm()`] with running statistics for so many domains ([`BatchNorm::domain`]), at least one. Those of domain 0 have candle's
/// names, the others `domains.1.running_mean`, `domains.1.running_var` and so on.
///
/// # Errors
/// As [`batch_norm()`]; for more than one domain with `remove_mean: false`.
///
/// ```
/// use batchnorm_candle::{BatchNormConfig, batch_norm_with_domains};
/// use candle_core::{DType, Device, Tensor};
/// use candle_nn::{ModuleT, VarBuilder, VarMap};
///
/// let variables = VarMap::new();
/// let vb = VarBuilder::from_varmap(&variables, DType::F32, &Device::Cpu);
/// let norm = batch_norm_with_domains(1, BatchNormConfig::default(), 2, vb)?;
/// let x = Tensor::new(&[[10f32], [30.]], &Device::Cpu)?;
/// norm.domain(1)?.forward_t(&x, true)?;
/// let names = variables.data().lock().unwrap();
/// assert_eq!(names["running_mean"].to_vec1::<f32>()?, [0.]);
/// assert_eq!(names["domains.1.running_mean"].to_vec1::<f32>()?, [2.]);
/// # Ok::<(), candle_core::Error>(())
/// ```
pub fn batch_norm_with_domains<C: Into<BatchNormConfig>>(
    num_features: usize,
    config: C,
    domains: usize,
    vb: VarBuilder,
) -> Result<BatchNorm> {
    let mut norm = batch_norm(num_features, config, vb.clone())?;
    for domain in 1..domains {
        let vb = vb.pp("domains").pp(domain);
        let mean = vb.get_with_hints(num_features, "running_mean", Init::Const(0.))?;
        let var = vb.get_with_hints(num_features, "running_var", Init::Const(1.))?;
        let other = norm.with_running(mean, var)?;
        norm.domains.push(other);
    }
    Ok(norm)
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
        let (activation, renorm, domains) = (Activation::Identity, None, Vec::new());
        Self { inner, remove_mean: true, activation, renorm, domains }
    }

    /// candle's module with the same weight and bias and other running statistics.
    fn with_running(&self, mean: Tensor, var: Tensor) -> Result<candle_nn::BatchNorm> {
        if !self.remove_mean {
            candle_core::bail!("domains need remove_mean: true, which candle's constructors have")
        }
        let (len, eps, momentum) = (mean.elem_count(), self.eps(), self.momentum());
        match self.weight_and_bias() {
            Some((weight, bias)) => {
                let (weight, bias) = (weight.clone(), bias.clone());
                candle_nn::BatchNorm::new_with_momentum(len, mean, var, weight, bias, eps, momentum)
            }
            None => candle_nn::BatchNorm::new_no_bias_with_momentum(len, mean, var, eps, momentum),
        }
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

    /// With batch renormalization within these limits: training corrects the batch's statistics by the running ones, as they are
    /// before the batch, and gradients take r and d for constants ([`Renorm`]). Training returns an error if the limits are none. They
    /// are no part of a checkpoint.
    ///
    /// ```
    /// use batchnorm_candle::{BatchNorm, Renorm};
    /// use candle_core::{Device, Tensor};
    /// use candle_nn::ModuleT;
    ///
    /// let vector = |value: f32| Tensor::new(&[value], &Device::Cpu);
    /// let norm = BatchNorm::new_no_bias(1, vector(0.)?, vector(1.)?, 0.)?;
    /// let norm = norm.with_renorm(Renorm { r_max: 3., d_max: 5. });
    /// let x = Tensor::new(&[[6f32], [10.]], &Device::Cpu)?;
    /// // The batch's mean is 8 and its deviation 2: r = 2, and d = 8, of which 5 is left.
    /// assert_eq!(norm.forward_t(&x, true)?.to_vec2::<f32>()?, [[3.], [7.]]);
    /// # Ok::<(), candle_core::Error>(())
    /// ```
    pub fn with_renorm(self, limits: Renorm) -> Self {
        Self { renorm: Some(limits), ..self }
    }

    /// Sets the limits of batch renormalization from here on, `None` for batch norm: for a schedule that raises them.
    pub fn set_renorm(&mut self, limits: Option<Renorm>) {
        self.renorm = limits;
    }

    /// The limits of batch renormalization, if training goes by some.
    pub fn renorm(&self) -> Option<Renorm> {
        self.renorm
    }

    /// With running statistics for so many domains, at least one, all with the same weight and bias: data of several kinds go through
    /// one network, a batch of one kind at a time. New domains begin with copies of what domain 0 has now; those beyond `count` are
    /// dropped. [`batch_norm_with_domains`] makes them of a checkpoint.
    ///
    /// # Errors
    /// For more than one domain of a module with `remove_mean: false`.
    ///
    /// ```
    /// use batchnorm_candle::BatchNorm;
    /// use candle_core::{Device, Tensor};
    /// use candle_nn::ModuleT;
    ///
    /// let vector = |value: f32| Tensor::new(&[value], &Device::Cpu);
    /// let norm = BatchNorm::new_no_bias(1, vector(0.)?, vector(1.)?, 1e-5)?.with_domains(2)?;
    /// norm.domain(1)?.forward_t(&Tensor::new(&[[10f32], [30.]], &Device::Cpu)?, true)?;
    /// assert_eq!(norm.domain(1)?.running_mean().to_vec1::<f32>()?, [2.]);
    /// assert_eq!(norm.running_mean().to_vec1::<f32>()?, [0.]);
    /// # Ok::<(), candle_core::Error>(())
    /// ```
    pub fn with_domains(mut self, count: usize) -> Result<Self> {
        self.domains.truncate(count.saturating_sub(1));
        while self.domains() < count {
            let copy = self.with_running(self.running_mean().copy()?, self.running_var().copy()?)?;
            self.domains.push(copy);
        }
        Ok(self)
    }

    /// The number of domains.
    pub fn domains(&self) -> usize {
        1 + self.domains.len()
    }

    /// The module of a domain, for a call: it has this one's variables, and of the running statistics those of the domain. This module
    /// itself is domain 0's.
    ///
    /// # Errors
    /// If there is none of this number.
    pub fn domain(&self, domain: usize) -> Result<Self> {
        let inner = match domain {
            0 => Some(&self.inner),
            _ => self.domains.get(domain - 1),
        };
        let Some(inner) = inner else {
            candle_core::bail!("domain is {domain}, must be below {}", self.domains())
        };
        Ok(Self { inner: inner.clone(), domains: Vec::new(), ..*self })
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

    /// The same apart, by candle's operations, with the kernels' derivatives where a formula ends: candle's own activations have
    /// others there.
    fn follow(&self, y: Tensor, residual: Option<&Tensor>) -> Result<Tensor> {
        let u = match residual {
            Some(z) => (y + z)?,
            None => y,
        };
        let all = |value: f64| u.zeros_like()? + value;
        match self.activation {
            Activation::Identity => Ok(u),
            Activation::Relu => u.le(0.)?.where_cond(&u.zeros_like()?, &u),
            Activation::LeakyRelu { slope } => u.le(0.)?.where_cond(&(&u * slope)?, &u),
            Activation::Clip { lo, hi } => {
                // An infinite bound is none: the derivative at that infinity is 1.
                let y = if hi.is_finite() { u.ge(hi)?.where_cond(&all(hi)?, &u)? } else { u.clone() };
                if lo.is_finite() { u.le(lo)?.where_cond(&all(lo)?, &y) } else { Ok(y) }
            }
            Activation::HardSwish => {
                let (low, high, zeros) = (u.le(-3.)?, u.ge(3.)?, u.zeros_like()?);
                // Elsewhere 0, of which no infinity comes that would make 0 times itself of the gradient.
                let inner = low.where_cond(&zeros, &high.where_cond(&zeros, &u)?)?;
                let between = (&inner * ((&inner + 3.)? / 6.)?)?;
                low.where_cond(&zeros, &high.where_cond(&u, &between)?)
            }
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
            if self.renorm.is_some() {
                candle_core::bail!(
                    "batch renormalization is for inputs that the kernels take, with remove_mean: true"
                )
            }
            return self.follow(self.inner.forward_train(x)?, residual);
        }
        if x.elem_count() != 0 && x.elem_count() == x.dims()[1] {
            candle_core::bail!(
                "batch-norm training needs more than one element per channel, the input is {:?}",
                x.shape()
            )
        }
        let epilogue = self.epilogue(residual);
        let running = self.renorm.map(|limits| (limits, self.running_mean(), self.running_var()));
        let (affine, fused) = (self.weight_and_bias(), epilogue.unwrap_or_default());
        let (y, states) = fused_training(x, affine, self.eps(), running, fused)?;
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
