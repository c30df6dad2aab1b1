//! The operations on burn's tensors.

#![forbid(unsafe_code)]

use burn::backend::{Dispatch, DispatchDevice};
use burn::tensor::module::BatchNormTrainOutput;
use burn::tensor::{DType, Device, Tensor, module};

use crate::BatchNormBackend;

/// Whether a device is flex, or autodiff over flex.
fn is_flex(device: &Device) -> bool {
    match device.as_dispatch() {
        DispatchDevice::Autodiff(inner) => matches!(**inner, DispatchDevice::Flex(_)),
        device => matches!(device, DispatchDevice::Flex(_)),
    }
}

/// Whether the kernels take this input and these parameters; whatever they do not is burn's to do or to refuse.
fn takes<const D: usize>(input: &Tensor<D>, parameters: &[&Tensor<1>]) -> bool {
    let dtype = input.dtype();
    D >= 2
        && matches!(dtype, DType::F32 | DType::F64)
        && is_flex(&input.device())
        && parameters.iter().all(|parameter| {
            parameter.dtype() == dtype
                && parameter.dims() == input.dims()[1..2]
                && is_flex(&parameter.device())
        })
}

/// Normalizes `input` (dimensions N, C, spatial...) by a given mean and variance per channel, as
/// [`burn::tensor::module::batch_norm`] does. Gradients reach every argument.
///
/// # Panics
/// Where burn's function does: for an input of rank 1, a parameter of another length than C; and for a negative epsilon.
///
/// ```
/// use burn::tensor::{Device, Tensor};
/// let device = Device::default();
/// let vector = |value| Tensor::<1>::from_floats([value], &device);
/// let x = Tensor::<2>::from_floats([[3.], [5.]], &device);
/// let y = batchnorm_burn::batch_norm(x, vector(2.), vector(0.), vector(1.), vector(4.), 0.);
/// assert_eq!(y.into_data().to_vec::<f32>().unwrap(), [2., 4.]);
/// ```
pub fn batch_norm<const D: usize>(
    input: Tensor<D>,
    gamma: Tensor<1>,
    beta: Tensor<1>,
    mean: Tensor<1>,
    variance: Tensor<1>,
    epsilon: f64,
) -> Tensor<D> {
    if !takes(&input, &[&gamma, &beta, &mean, &variance]) {
        return module::batch_norm(input, gamma, beta, mean, variance, epsilon);
    }
    let [gamma, beta, mean, variance] = [gamma, beta, mean, variance].map(Tensor::into_dispatch);
    let output = Dispatch::batchnorm_inference(input.into_dispatch(), gamma, beta, mean, variance, epsilon);
    Tensor::from_dispatch(output)
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
    if !takes(&input, &[&gamma, &beta]) {
        return module::batch_norm_train(input, gamma, beta, epsilon);
    }
    let [gamma, beta] = [gamma, beta].map(Tensor::into_dispatch);
    let trained = Dispatch::batchnorm_training(input.into_dispatch(), gamma, beta, epsilon);
    BatchNormTrainOutput {
        output: Tensor::from_dispatch(trained.output),
        mean: Tensor::from_dispatch(trained.mean),
        variance: Tensor::from_dispatch(trained.variance),
    }
}
