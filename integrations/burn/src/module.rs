//! The module, which takes the place of burn's.

#![forbid(unsafe_code)]

use batchnorm::{Activation, Renorm};
use burn::config::Config;
use burn::module::{Content, DisplaySettings, Flag, Module, ModuleDisplay, Param, RunningState};
use burn::tensor::{Device, Tensor};

use crate::flex::parameter_dtype;
use crate::ops::{After, inference, is_flex, training};

/// The configuration of a [`BatchNorm`], with the fields of [`burn::nn::BatchNormConfig`].
#[derive(Config, Debug)]
pub struct BatchNormConfig {
    /// The number of channels, at least 1.
    pub num_features: usize,
    /// Added to the variance under the root; positive.
    #[config(default = 1e-5)]
    pub epsilon: f64,
    /// The weight of a new batch in the running statistics, 0 to 1.
    #[config(default = 0.1)]
    pub momentum: f64,
    /// The limits of batch renormalization, by which training goes; `None` for batch norm, also where a file says nothing of it. (JSON
    /// has no infinity; `f64::MAX` does the same.)
    pub renorm: Option<Renorm>,
    /// The number of domains, each with running statistics of its own; 1 where it is `None` or a file says nothing of it.
    pub domains: Option<usize>,
}

impl BatchNormConfig {
    /// A module with gamma 1, beta 0, running mean 0 and running variance 1, all of the device's float type; on flex of f32 where
    /// that is bf16 or f16, so that they go with inputs of these.
    ///
    /// # Panics
    /// As [`burn::nn::BatchNormConfig::init`]: if a field is out of its range.
    pub fn init(&self, device: &Device) -> BatchNorm {
        let mut module: BatchNorm = burn::nn::BatchNormConfig::new(self.num_features)
            .with_epsilon(self.epsilon)
            .with_momentum(self.momentum)
            .init(device)
            .into();
        let dtype = module.running_mean.value().dtype();
        if let Some(parameters) = parameter_dtype(dtype).filter(|other| *other != dtype && is_flex(device)) {
            let (len, options) = ([self.num_features], (device, parameters));
            module.gamma = Param::from_tensor(Tensor::ones(len, options));
            module.beta = Param::from_tensor(Tensor::zeros(len, options));
            module.running_mean = RunningState::new(Tensor::zeros(len, options));
            module.running_var = RunningState::new(Tensor::ones(len, options));
        }
        module.renorm = self.renorm;
        module.with_domains(self.domains.unwrap_or(1))
    }
}

/// Batch normalization with the interface and the fields of [`burn::nn::BatchNorm`], so that records of the one load into
/// the other, and the kernels of [`batchnorm`]. Made by [`BatchNormConfig`] or from burn's module.
///
/// Beyond burn's it may have an [activation](Self::with_activation), and take a [residual](Self::forward_with_residual): both are
/// done in the pass that normalizes, and give the bits that they give one after the other. Training may be
/// [renormalized](Self::with_renorm), and there may be running statistics for each of several [domains](Self::with_domains).
#[derive(Module, Debug)]
#[module(custom_display)]
pub struct BatchNorm {
    /// The scale of each channel.
    pub gamma: Param<Tensor<1>>,
    /// The shift of each channel.
    pub beta: Param<Tensor<1>>,
    /// Whether the layer trains, on a device with autodiff.
    pub training: Param<Flag>,
    /// The running mean of each channel.
    pub running_mean: RunningState<Tensor<1>>,
    /// The running variance of each channel, of biased ones.
    pub running_var: RunningState<Tensor<1>>,
    /// The weight of a new batch in the running statistics.
    pub momentum: f64,
    /// Added to the variance under the root.
    pub epsilon: f64,
    /// What is applied in the end; no part of a record.
    #[module(skip)]
    pub activation: Activation,
    /// The limits of batch renormalization, by which training goes; no part of a record.
    #[module(skip)]
    pub renorm: Option<Renorm>,
    /// The running statistics of domains 1, 2 and so on; those of domain 0 are the fields above.
    pub domains: Vec<Domain>,
}

/// The running statistics of a domain: of [`BatchNorm::domains`].
#[derive(Module, Debug)]
pub struct Domain {
    /// The running mean of each channel.
    pub running_mean: RunningState<Tensor<1>>,
    /// The running variance of each channel, of biased ones.
    pub running_var: RunningState<Tensor<1>>,
}

impl From<burn::nn::BatchNorm> for BatchNorm {
    fn from(module: burn::nn::BatchNorm) -> Self {
        let burn::nn::BatchNorm { gamma, beta, training, running_mean, running_var, momentum, epsilon } =
            module;
        Self {
            gamma,
            beta,
            training,
            running_mean,
            running_var,
            momentum,
            epsilon,
            activation: Activation::Identity,
            renorm: None,
            domains: Vec::new(),
        }
    }
}

/// burn's module has no activation, no renormalization and no domains but the first: what was done by these is not any more.
impl From<BatchNorm> for burn::nn::BatchNorm {
    fn from(module: BatchNorm) -> Self {
        let BatchNorm { gamma, beta, training, running_mean, running_var, momentum, epsilon, .. } = module;
        Self { gamma, beta, training, running_mean, running_var, momentum, epsilon }
    }
}

impl BatchNorm {
    /// With an activation in the end; forward passes panic if its numbers are none that it can have.
    ///
    /// ```
    /// use batchnorm_burn::{Activation, BatchNormConfig};
    /// use burn::tensor::{Device, Tensor};
    ///
    /// let device = Device::default().autodiff();
    /// let norm = BatchNormConfig::new(1).with_epsilon(1e-12).init(&device).with_activation(Activation::Relu);
    /// let y = norm.forward(Tensor::<2>::from_floats([[1.], [3.]], &device));
    /// assert_eq!(y.into_data().to_vec::<f32>().unwrap(), [0., 1.]);
    /// ```
    pub fn with_activation(self, activation: Activation) -> Self {
        Self { activation, ..self }
    }

    /// With batch renormalization within these limits: training corrects the batch's statistics by the running ones, as they are before
    /// the batch, and gradients take r and d for constants ([`Renorm`]). Training panics if the limits are none. A schedule that raises
    /// them sets the field `renorm`.
    ///
    /// ```
    /// use batchnorm_burn::{BatchNormConfig, Renorm};
    /// use burn::tensor::{Device, Tensor};
    ///
    /// let device = Device::default().autodiff();
    /// let norm = BatchNormConfig::new(1).with_epsilon(1e-12).init(&device);
    /// let norm = norm.with_renorm(Renorm { r_max: 3., d_max: 5. });
    /// // The batch's mean is 8 and its deviation 2: r = 2, and d = 8, of which 5 is left.
    /// let y = norm.forward(Tensor::<2>::from_floats([[6.], [10.]], &device));
    /// assert_eq!(y.into_data().to_vec::<f32>().unwrap(), [3., 7.]);
    /// ```
    pub fn with_renorm(self, limits: Renorm) -> Self {
        Self { renorm: Some(limits), ..self }
    }

    /// With running statistics for so many domains, at least one, all with the same gamma and beta: data of several kinds go through one
    /// network, a batch of one kind at a time. New domains begin with copies of what domain 0 has now; those beyond `count` are dropped.
    /// A record that is loaded has to have as many.
    ///
    /// ```
    /// use batchnorm_burn::BatchNormConfig;
    /// use burn::tensor::{Device, Tensor};
    ///
    /// let device = Device::default().autodiff();
    /// let norm = BatchNormConfig::new(1).init(&device).with_domains(2);
    /// norm.domain(1).forward(Tensor::<2>::from_floats([[10.], [30.]], &device));
    /// let mean = |norm: &batchnorm_burn::BatchNorm| norm.running_mean.value_sync().into_data().to_vec::<f32>();
    /// assert_eq!((mean(&norm).unwrap(), mean(&norm.domain(1)).unwrap()), (vec![0.], vec![2.]));
    /// ```
    pub fn with_domains(mut self, count: usize) -> Self {
        self.domains.truncate(count.saturating_sub(1));
        while self.domains.len() + 1 < count {
            let [running_mean, running_var] =
                [&self.running_mean, &self.running_var].map(|state| RunningState::new(state.value_sync()));
            self.domains.push(Domain { running_mean, running_var });
        }
        self
    }

    /// The module of a domain, for a call: it shares this one's parameters, and of the running statistics those of the domain. This
    /// module itself is domain 0's.
    ///
    /// # Panics
    /// If there is none of this number.
    pub fn domain(&self, domain: usize) -> Self {
        let mut module = Self { domains: Vec::new(), ..self.clone() };
        if domain > 0 {
            let count = 1 + self.domains.len();
            assert!(domain < count, "batch norm: domain is {domain}, must be below {count}");
            let Domain { running_mean, running_var } = &self.domains[domain - 1];
            (module.running_mean, module.running_var) = (running_mean.clone(), running_var.clone());
        }
        module
    }

    /// Normalizes a tensor of dimensions N, C, spatial...: by its own statistics, which the running ones take in, on a
    /// device with autodiff and while `training` is enabled; by the running statistics otherwise.
    ///
    /// # Panics
    /// If the input is of rank 1, or its second dimension not the number of channels.
    pub fn forward<const D: usize>(&self, input: Tensor<D>) -> Tensor<D> {
        self.forward_by(input, None)
    }

    /// The end of a residual block: [`forward`](Self::forward) with a residual of the input's shape, added to the normalized input
    /// before the activation. Gradients reach it, too. In training a bit an element is kept for the backward pass, and nothing else
    /// of the input's size but the input.
    ///
    /// Hard swish and SiLU are applied apart, by burn's operations.
    ///
    /// # Panics
    /// As [`forward`](Self::forward), and if the residual is of another shape.
    ///
    /// ```
    /// use batchnorm_burn::{Activation, BatchNormConfig};
    /// use burn::tensor::{Device, Tensor};
    ///
    /// let device = Device::default().autodiff();
    /// let norm = BatchNormConfig::new(1).with_epsilon(1e-12).init(&device).with_activation(Activation::Relu);
    /// let x = Tensor::<2>::from_floats([[1.], [3.]], &device);
    /// let z = Tensor::<2>::from_floats([[0.5], [0.5]], &device).require_grad();
    /// let y = norm.forward_with_residual(x, z.clone());
    /// assert_eq!(y.to_data().to_vec::<f32>().unwrap(), [0., 1.5]);
    /// let gradients = y.sum().backward();
    /// assert_eq!(z.grad(&gradients).unwrap().into_data().to_vec::<f32>().unwrap(), [0., 1.]);
    /// ```
    pub fn forward_with_residual<const D: usize>(&self, input: Tensor<D>, residual: Tensor<D>) -> Tensor<D> {
        self.forward_by(input, Some(residual))
    }

    fn forward_by<const D: usize>(&self, input: Tensor<D>, residual: Option<Tensor<D>>) -> Tensor<D> {
        let device = input.device();
        let after = After { activation: self.activation, residual };
        if device.is_autodiff() && self.training.is_enabled() {
            self.forward_train(input, after, &device)
        } else {
            let mean = self.running_mean.value().to_device(&device);
            let variance = self.running_var.value().to_device(&device);
            inference(input, [self.gamma.val(), self.beta.val(), mean, variance], self.epsilon, after)
        }
    }

    fn forward_train<const D: usize>(&self, input: Tensor<D>, after: After<D>, device: &Device) -> Tensor<D> {
        let empty = input.shape().num_elements() == 0;
        let running = self.renorm.map(|limits| {
            let states = [&self.running_mean, &self.running_var];
            (limits, states.map(|state| state.value_sync().to_device(device)))
        });
        let trained = training(input, [self.gamma.val(), self.beta.val()], running, self.epsilon, after);
        if !empty {
            for (running, batch) in
                [(&self.running_mean, trained.mean), (&self.running_var, trained.variance)]
            {
                let old = running.value_sync().to_device(device).mul_scalar(1.0 - self.momentum);
                running.update(old.add(batch.detach().mul_scalar(self.momentum)).detach());
            }
        }
        trained.output
    }
}

impl ModuleDisplay for BatchNorm {
    fn custom_settings(&self) -> Option<DisplaySettings> {
        DisplaySettings::new().with_new_line_after_attribute(false).optional()
    }

    fn custom_content(&self, content: Content) -> Option<Content> {
        let [num_features] = self.beta.shape().dims();
        let content = content
            .add("num_features", &num_features)
            .add("momentum", &self.momentum)
            .add("epsilon", &self.epsilon);
        let content = match self.activation {
            Activation::Identity => content,
            activation => content.add("activation", &activation.to_string()),
        };
        let content = match self.renorm {
            None => content,
            Some(Renorm { r_max, d_max }) => content.add("r_max", &r_max).add("d_max", &d_max),
        };
        match self.domains.len() {
            0 => content.optional(),
            more => content.add("domains", &(1 + more)).optional(),
        }
    }
}
