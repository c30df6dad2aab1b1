//! A device whose floats are bf16, as a model of these is made on. A program of its own: the setting is the process's.

use batchnorm_burn::{Activation, BatchNormConfig};
use burn::module::Module;
use burn::tensor::{DType, Device, Distribution, FloatDType, Tensor};

#[test]
fn a_model_of_bf16_has_parameters_of_f32() {
    let mut device = Device::default();
    device.configure(FloatDType::BF16).unwrap();
    let device = device.autodiff();
    let norm = BatchNormConfig::new(3).init(&device).with_activation(Activation::Relu);
    assert_eq!(burn::nn::BatchNormConfig::new(3).init(&device).gamma.val().dtype(), DType::BF16);
    let x = Tensor::<3>::random([8, 3, 6], Distribution::Default, &device).require_grad();
    let y = norm.forward(x.clone());
    let gradients = (y.clone() * y.clone()).sum().backward();
    let of_x = x.grad(&gradients).unwrap().dtype();
    let of_gamma = norm.gamma.val().grad(&gradients).unwrap();
    assert_eq!((y.dtype(), of_x, of_gamma.dtype()), (DType::BF16, DType::BF16, DType::F32));
    assert!(of_gamma.try_into_vec_as::<f32>().unwrap().iter().all(|gradient| *gradient > 0.));
    let states = [&norm.running_mean, &norm.running_var].map(|state| state.value_sync().dtype());
    assert_eq!((norm.gamma.val().dtype(), states), (DType::F32, [DType::F32; 2]));

    let record = norm.clone().into_record();
    let loaded = BatchNormConfig::new(3).init(&device).with_activation(Activation::Relu).load_record(record);
    assert_eq!(loaded.gamma.val().dtype(), DType::F32);
    let [ours, theirs] = [&norm, &loaded].map(|norm| norm.valid().forward(x.clone().inner()).into_data());
    assert_eq!(ours, theirs);
}
