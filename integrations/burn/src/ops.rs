//! The operations on burn's tensors.

#![forbid(unsafe_code)]

use batchnorm::{Activation, Renorm};
use burn::backend::{Dispatch, DispatchDevice};
use burn::tensor::module::BatchNormTrainOutput;
use burn::tensor::{Device, Tensor, activation, module};

use crate::flex::parameter_dtype;
use crate::{BatchNormBackend, Epilogue};

/// Whether a device is flex, or autodiff over flex.
pub(crate) fn is_flex(device: &Device) -> bool {
    match device.as_dispatch() {
        DispatchDevice::Autodiff(inner) => matches!(**inner, DispatchDevice::Flex(_)),
        device => matches!(device, DispatchDevice::Flex(_)),
    }
}

/// Whether the kernels take this input; what they do not is burn's to do or to refuse. Parameters of another type than they have
/// beside it are refused here: flex looks at types in debug builds only.
///
/// # Panics
/// For such a parameter.
fn takes<const D: usize>(input: &Tensor<D>, parameters: &[(&str, &Tensor<1>)]) -> bool {
    let dtype = input.dtype();
    let Some(expected) = parameter_dtype(dtype) else { return false };
    let takes = D >= 2
        && is_flex(&input.device())
        && parameters
            .iter()
            .all(|(_, parameter)| parameter.dims() == input.dims()[1..2] && is_flex(&parameter.device()));
    for (name, parameter) in parameters.iter().filter(|_| takes) {
        let got = parameter.dtype();
        assert!(
            got == expected,
            "batch norm: {name} is of {got:?}, must be of {expected:?} for an input of {dtype:?}"
        );
    }
    takes
}

/// What follows a normalization: y = act(u), where u is the normalized input plus the residual if there is one.
#[derive(Debug)]
pub(crate) struct After<const D: usize> {
    pub(crate) activation: Activation,
    pub(crate) residual: Option<Tensor<D>>,
}

impl<const D: usize> After<D> {
    const NOTHING: Self = Self { activation: Activation::Identity, residual: None };

    /// What the kernels, if they take the input, do along with its normalization, and what is left for burn's operations.
    ///
    /// # Panics
    /// For a residual of another shape than the input's or, if the kernels take that, of another type; for numbers that the
    /// activation cannot have.
    fn split(self, input: &Tensor<D>, takes: bool) -> (Epilogue<Dispatch>, Self) {
        let result = self.activation.apply::<f32>(&mut []);
        result.unwrap_or_else(|error| panic!("batch norm: {error}"));
        let fuses = self.residual.as_ref().is_none_or(|z| {
            assert_eq!(z.dims(), input.dims(), "batch norm: the residual's shape must be the input's");
            let (got, expected) = (z.dtype(), input.dtype());
            assert!(
                !takes || got == expected,
                "batch norm: the residual is of {got:?}, must be of {expected:?} as the input is"
            );
            self.activation.is_piecewise_linear() && is_flex(&z.device())
        });
        if takes && fuses {
            (Epilogue::new(self.activation, self.residual.map(Tensor::into_dispatch)), Self::NOTHING)
        } else {
            (Epilogue::Activation(Activation::Identity), self)
        }
    }

    /// The same apart, by burn's operations, with the kernels' derivatives where a formula ends: burn's own activations have
    /// others there.
    fn apply(self, y: Tensor<D>) -> Tensor<D> {
        let u = match self.residual {
            Some(z) => y.add(z),
            None => y,
        };
        match self.activation {
            Activation::Identity => u,
            Activation::Relu => activation::relu(u),
            Activation::LeakyRelu { slope } => {
                u.clone().mask_where(u.clone().lower_equal_elem(0.), u.mul_scalar(slope))
            }
            Activation::Clip { lo, hi } => {
                // An infinite bound is none: the derivative at that infinity is 1.
                let (low, high) = (u.clone().lower_equal_elem(lo), u.clone().greater_equal_elem(hi));
                let y = if hi.is_finite() { u.mask_fill(high, hi) } else { u };
                if lo.is_finite() { y.mask_fill(low, lo) } else { y }
            }
            Activation::HardSwish => {
                let (low, high) = (u.clone().lower_equal_elem(-3.), u.clone().greater_equal_elem(3.));
                // Elsewhere 0, of which no infinity comes that would make 0 times itself of the gradient.
                let inner = u.clone().mask_fill(low.clone(), 0.).mask_fill(high.clone(), 0.);
                let between = inner.clone().add_scalar(3.).div_scalar(6.).mul(inner);
                between.mask_fill(low, 0.).mask_where(high, u)
            }
            Activation::Silu => activation::silu(u),
            other => panic!("batch norm: burn has no {other}"),
        }
    }
}

/// Normalizes `input` (dimensions N, C, spatial...) by a given mean and variance per channel, as
/// [`burn::tensor::module::batch_norm`] does. Gradients reach every argument.
///
/// The output is of the input's type. Beside an input of bf16 or f16 on flex, the parameters are f32, and so is arithmetic.
///
/// # Panics
/// Where burn's function does: for an input of rank 1, a parameter of another length than C; and for a negative epsilon, and on flex
/// for a parameter of another type than it has beside the input.
///
/// ```
/// use burn::tensor::{DType, Device, Tensor};
/// let device = Device::default();
/// let vector = |value| Tensor::<1>::from_floats([value], &device);
/// let x = Tensor::<2>::from_floats([[3.], [5.]], &device);
/// let y = batchnorm_burn::batch_norm(x, vector(2.), vector(0.), vector(1.), vector(4.), 0.);
/// assert_eq!(y.into_data().to_vec::<f32>().unwrap(), [2., 4.]);
///
/// let x = Tensor::<2>::from_floats([[3.], [5.]], &device).cast(DType::BF16);
/// let y = batchnorm_burn::batch_norm(x, vector(2.), vector(0.), vector(1.), vector(4.), 0.);
/// assert_eq!(y.dtype(), DType::BF16);
/// ```
pub fn batch_norm<const D: usize>(
    input: Tensor<D>,
    gamma: Tensor<1>,
    beta: Tensor<1>,
    mean: Tensor<1>,
    variance: Tensor<1>,
    epsilon: f64,
) -> Tensor<D> {
    inference(input, [gamma, beta, mean, variance], epsilon, After::NOTHING)
}

/// [`batch_norm`] with what follows.
pub(crate) fn inference<const D: usize>(
    input: Tensor<D>,
    [gamma, beta, mean, variance]: [Tensor<1>; 4],
    epsilon: f64,
    after: After<D>,
) -> Tensor<D> {
    let takes =
        takes(&input, &[("gamma", &gamma), ("beta", &beta), ("mean", &mean), ("variance", &variance)]);
    let (epilogue, rest) = after.split(&input, takes);
    if !takes {
        return rest.apply(module::batch_norm(input, gamma, beta, mean, variance, epsilon));
    }
    let [gamma, beta, mean, variance] = [gamma, beta, mean, variance].map(Tensor::into_dispatch);
    let input = input.into_dispatch();
    let output = Dispatch::batchnorm_inference(input, gamma, beta, mean, variance, epsilon, epilogue);
    rest.apply(Tensor::from_dispatch(output))
}

/// Normalizes `input` (dimensions N, C, spatial...) by its own statistics and returns them, as
/// [`burn::tensor::module::batch_norm_train`] does: the variance is the biased one, and no gradient flows through mean and
/// variance. Gradients reach input, gamma and beta.
///
/// # Panics
/// As [`batch_norm`].
///
/// ```
/// use burn::tensor::{Device, Tensor};
/// let device = Device::default();
/// let vector = |value| Tensor::<1>::from_floats([value], &device);
/// let x = Tensor::<2>::from_floats([[1.], [3.]], &device);
/// let trained = batchnorm_burn::batch_norm_train(x, vector(1.), vector(0.), 0.);
/// assert_eq!(trained.output.into_data().to_vec::<f32>().unwrap(), [-1., 1.]);
/// assert_eq!(trained.mean.into_data().to_vec::<f32>().unwrap(), [2.]);
/// ```
pub fn batch_norm_train<const D: usize>(
    input: Tensor<D>,
    gamma: Tensor<1>,
    beta: Tensor<1>,
    epsilon: f64,
) -> BatchNormTrainOutput<D> {
    training(input, [gamma, beta], None, epsilon, After::NOTHING)
}

/// Batch renormalization: the limits, and the running mean and variance before the batch.
pub(crate) type Running = (Renorm, [Tensor<1>; 2]);

/// [`batch_norm_train`] with what follows, and renormalized if running statistics are given.
pub(crate) fn training<const D: usize>(
    input: Tensor<D>,
    [gamma, beta]: [Tensor<1>; 2],
    running: Option<Running>,
    epsilon: f64,
    after: After<D>,
) -> BatchNormTrainOutput<D> {
    let mut parameters = vec![("gamma", &gamma), ("beta", &beta)];
    if let Some((_, [mean, variance])) = &running {
        parameters.extend([("running mean", mean), ("running variance", variance)]);
    }
    let takes = takes(&input, &parameters);
    let (epilogue, rest) = after.split(&input, takes);
    if !takes {
        let affine = match running {
            Some(running) => corrected(input.clone(), [gamma, beta], running, epsilon),
            None => [gamma, beta],
        };
        let [gamma, beta] = affine;
        let trained = module::batch_norm_train(input, gamma, beta, epsilon);
        return BatchNormTrainOutput { output: rest.apply(trained.output), ..trained };
    }
    let [gamma, beta] = [gamma, beta].map(Tensor::into_dispatch);
    let input = input.into_dispatch();
    let trained = match running {
        None => Dispatch::batchnorm_training(input, gamma, beta, epsilon, epilogue),
        Some((limits, running)) => {
            let [mean, variance] = running.map(Tensor::into_dispatch);
            Dispatch::batchnorm_renormalized(input, gamma, beta, mean, variance, (limits, epsilon), epilogue)
        }
    };
    BatchNormTrainOutput {
        output: rest.apply(Tensor::from_dispatch(trained.output)),
        mean: Tensor::from_dispatch(trained.mean),
        variance: Tensor::from_dispatch(trained.variance),
    }
}

/// gamma * r and beta + gamma * d by burn's operations, for inputs that the kernels do not take.
fn corrected<const D: usize>(
    input: Tensor<D>,
    [gamma, beta]: [Tensor<1>; 2],
    (limits, [mean, variance]): Running,
    epsilon: f64,
) -> [Tensor<1>; 2] {
    let Renorm { r_max, d_max } = limits;
    let batch =
        module::batch_norm_train(input.detach(), gamma.clone().detach(), beta.clone().detach(), epsilon);
    let deviation = |variance: Tensor<1>| variance.detach().add_scalar(epsilon).sqrt();
    let sigma = deviation(variance);
    let r = deviation(batch.variance).div(sigma.clone()).clamp(1.0 / r_max, r_max);
    let d = batch.mean.detach().sub(mean.detach()).div(sigma).clamp(-d_max, d_max);
    [gamma.clone().mul(r), beta.add(gamma.mul(d))]
}

#[cfg(test)]
mod tests {
    use batchnorm::reference;
    use burn::tensor::TensorData;

    use super::*;

    /// What other backends do, on flex: near what the kernels do there, with gradients that take r and d for constants.
    #[test]
    fn corrections_by_burns_operations_are_near_the_kernels() {
        let device = Device::default().autodiff();
        let x = Tensor::<2>::from_floats([[1., 5.], [3., -4.], [8., 0.5]], &device);
        let run = |by_kernels: bool| {
            let vector = |values: [f32; 2]| Tensor::<1>::from_floats(values, &device);
            let [gamma, beta] = [[1.5, -0.5], [0.25, 1.]].map(|values| vector(values).require_grad());
            let running = (Renorm { r_max: 1.5, d_max: 0.5 }, [[2., 0.], [4., 1.]].map(vector));
            let (x, affine) = (x.clone().require_grad(), [gamma.clone(), beta.clone()]);
            let output = if by_kernels {
                training(x.clone(), affine, Some(running), 1e-5, After::NOTHING).output
            } else {
                let [gamma, beta] = corrected(x.clone(), affine, running, 1e-5);
                module::batch_norm_train(x.clone(), gamma, beta, 1e-5).output
            };
            let gradients = output.clone().powi_scalar(2).sum().backward();
            let vectors = [gamma, beta].map(|parameter| parameter.grad(&gradients).unwrap());
            let vectors = vectors.map(Tensor::into_data);
            let tensors = [output, x.grad(&gradients).unwrap()].map(Tensor::into_data);
            let all = tensors.iter().chain(&vectors);
            all.flat_map(|data| data.iter::<f32>().collect::<Vec<_>>()).collect::<Vec<_>>()
        };
        let (got, expected) = (run(false), run(true));
        assert_eq!(got.len(), 16);
        for (got, expected) in got.iter().zip(&expected) {
            assert!(
                (got - expected).abs() < 1e-4 * (1. + expected.abs()),
                "{got}, {expected} by the kernels"
            );
        }
    }

    /// y and the gradient of u where the activations' formulas end, as the reference has them, by burn's operations and by the
    /// kernels.
    #[test]
    fn derivatives_where_formulas_end() {
        let ends = [-3.0f32, -0.5, 0., 0.25, 3., 6.];
        let others = [f32::NEG_INFINITY, -1.5, -0., f32::INFINITY, f32::NAN];
        let u = ends
            .into_iter()
            .flat_map(|u| [u.next_down(), u, u.next_up()])
            .chain(others)
            .collect::<Vec<f32>>();
        let device = Device::default().autodiff();
        let zeros = || Tensor::<2>::zeros([u.len(), 1], &device);
        let vector = |value: f32| Tensor::<1>::from_floats([value], &device);
        for activation in [
            Activation::Identity,
            Activation::Relu,
            Activation::LeakyRelu { slope: -0.3 },
            Activation::Clip { lo: -0.5, hi: 0.25 },
            Activation::Clip { lo: f64::NEG_INFINITY, hi: 6. },
            Activation::Clip { lo: 0., hi: f64::INFINITY },
            Activation::HardSwish,
        ] {
            for fused in [false, true] {
                let z =
                    Tensor::<2>::from_data(TensorData::new(u.clone(), [u.len(), 1]), &device).require_grad();
                let after = After { activation, residual: Some(z.clone()) };
                let parameters = || [vector(1.), vector(0.), vector(0.), vector(1.)];
                let y =
                    if fused { inference(zeros(), parameters(), 0., after) } else { after.apply(zeros()) };
                let gradients = y.clone().sum().backward();
                let [y, dz] = [y, z.grad(&gradients).unwrap()]
                    .map(|of| of.into_data().iter::<f32>().collect::<Vec<_>>());
                for (i, u) in u.iter().map(|u| f64::from(*u)).enumerate() {
                    let dy_1 = reference::activation_gradient(activation, u, 1.);
                    for (name, got, expected) in
                        [("y", y[i], reference::activate(activation, u)), ("dz", dz[i], dy_1)]
                    {
                        let (got, scale) = (f64::from(got), 1. + expected.abs());
                        let near = got == expected || (got - expected).abs() <= 1e-6 * scale;
                        // Of a NaN, the gradient is any number.
                        let of_nan = u.is_nan() && (name == "dz" || got.is_nan());
                        assert!(
                            near || of_nan,
                            "{name} of {u:e}: {got:e}, not {expected:e}, {activation}, fused: {fused}"
                        );
                    }
                }
            }
        }
    }
}
