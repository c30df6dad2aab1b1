//! burn's `BatchNorm` on its flex backend, in NCHW, and its own addition and ReLU behind it. They return new tensors; in training
//! the module updates its running statistics, and the pass is recorded for automatic differentiation, as it always is then.

use burn::module::{Param, RunningState};
use burn::nn::{BatchNorm, BatchNormConfig};
use burn::tensor::{Device, Tensor, TensorData, activation};

use crate::Result;
use crate::contender::{Contender, Place, Role, Run};
use crate::number::Number;
use crate::plain_loops::{Form, Operation};
use crate::problem::{EPS, Layer, Order, Tensors};
use crate::shapes::Epilogue;

/// A module, its input of rank `D` and its last output.
struct Burn<const D: usize> {
    module: BatchNorm,
    epilogue: Epilogue,
    x: Tensor<D>,
    z: Tensor<D>,
    y: Option<Tensor<D>>,
}

impl<S, const D: usize> Run<S> for Burn<D> {
    fn run(&mut self, _: &mut Tensors<S>) -> Result<()> {
        // The last output goes first, as it does in a network: the allocator may hand out its memory again.
        self.y = None;
        let u = self.module.forward(self.x.clone());
        self.y = Some(match self.epilogue {
            Epilogue::Nothing => u,
            Epilogue::Relu => activation::relu(u),
            Epilogue::AddRelu => activation::relu(u + self.z.clone()),
        });
        Ok(())
    }

    fn own_output(&self) -> Result<Option<Vec<f32>>> {
        let values = self.y.as_ref().map(|y| y.to_data().try_to_vec());
        values.transpose().map_err(|error| format!("burn's output: {error:?}").into())
    }
}

/// burn in training and inference; a backward pass it has only as part of its automatic differentiation.
pub fn contenders<'a, S: Number>(
    form: Form,
    layer: &Layer,
    nchw: &Tensors<S>,
) -> Result<Vec<Contender<'a, S>>> {
    // The device decides whether the module trains.
    let device = match form.operation {
        Operation::Training => Device::default().autodiff(),
        Operation::Inference => Device::default(),
        Operation::Statistics | Operation::Backward => return Ok(Vec::new()),
    };
    let place = match layer.dims.len() {
        2 => ready::<S, 2>(form.epilogue, layer, nchw, &device),
        3 => ready::<S, 3>(form.epilogue, layer, nchw, &device),
        4 => ready::<S, 4>(form.epilogue, layer, nchw, &device),
        5 => ready::<S, 5>(form.epilogue, layer, nchw, &device),
        rank => return Err(format!("no tensor of rank {rank} has been made ready for burn").into()),
    };
    Ok(vec![Contender { role: Role::Peer, name: "burn", order: Order::Nchw, place }])
}

/// The module and its inputs.
fn ready<'a, S: Number, const D: usize>(
    epilogue: Epilogue,
    layer: &Layer,
    nchw: &Tensors<S>,
    device: &Device,
) -> Place<'a, S> {
    let vector = |values: &[f32]| Tensor::<1>::from_data(TensorData::from(values), device);
    let mut module = BatchNormConfig::new(layer.channels()).with_epsilon(EPS).init(device);
    module.gamma = Param::from_tensor(vector(&layer.gamma));
    module.beta = Param::from_tensor(vector(&layer.beta));
    module.running_mean = RunningState::new(vector(&layer.mean));
    module.running_var = RunningState::new(vector(&layer.var));
    let tensor = |values: &[S]| {
        let values: Vec<f32> = values.iter().map(|value| value.widened()).collect();
        Tensor::from_data(TensorData::new(values, layer.dims.clone()), device)
    };
    let (x, z) = (tensor(&nchw.x), tensor(&nchw.z));
    Place::Pool(Box::new(Burn::<D> { module, epilogue, x, z, y: None }))
}
