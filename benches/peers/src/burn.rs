//! burn's `BatchNorm` on its flex backend, in NCHW. It returns new tensors; in training it updates its running statistics
//! and records the pass for automatic differentiation, as it always does then.

use burn::module::{Param, RunningState};
use burn::nn::{BatchNorm, BatchNormConfig};
use burn::tensor::{Device, Tensor, TensorData};

use crate::Result;
use crate::contender::{Contender, Place, Role, Run};
use crate::plain_loops::Operation;
use crate::problem::{EPS, Layer, Order, Tensors};

/// A module, its input of rank `D` and its last output.
struct Burn<const D: usize> {
    module: BatchNorm,
    x: Tensor<D>,
    y: Option<Tensor<D>>,
}

impl<const D: usize> Run for Burn<D> {
    fn run(&mut self, _: &mut Tensors) -> Result<()> {
        // The last output goes first, as it does in a network: the allocator may hand out its memory again.
        self.y = None;
        self.y = Some(self.module.forward(self.x.clone()));
        Ok(())
    }

    fn own_output(&self) -> Result<Option<Vec<f32>>> {
        let values = self.y.as_ref().map(|y| y.to_data().try_to_vec());
        values.transpose().map_err(|error| format!("burn's output: {error:?}").into())
    }
}

/// burn in training and inference; a backward pass it has only as part of its automatic differentiation.
pub fn contenders<'a>(operation: Operation, layer: &Layer, nchw: &Tensors) -> Result<Vec<Contender<'a>>> {
    // The device decides whether the module trains.
    let device = match operation {
        Operation::Training => Device::default().autodiff(),
        Operation::Inference => Device::default(),
        Operation::Statistics | Operation::Backward => return Ok(Vec::new()),
    };
    let place = match layer.dims.len() {
        2 => ready::<2>(layer, nchw, &device),
        3 => ready::<3>(layer, nchw, &device),
        4 => ready::<4>(layer, nchw, &device),
        5 => ready::<5>(layer, nchw, &device),
        rank => return Err(format!("no tensor of rank {rank} has been made ready for burn").into()),
    };
    Ok(vec![Contender { role: Role::Peer, name: "burn", order: Order::Nchw, place }])
}

/// The module and its input.
fn ready<'a, const D: usize>(layer: &Layer, nchw: &Tensors, device: &Device) -> Place<'a> {
    let vector = |values: &[f32]| Tensor::<1>::from_data(TensorData::from(values), device);
    let mut module = BatchNormConfig::new(layer.channels()).with_epsilon(EPS).init(device);
    module.gamma = Param::from_tensor(vector(&layer.gamma));
    module.beta = Param::from_tensor(vector(&layer.beta));
    module.running_mean = RunningState::new(vector(&layer.mean));
    module.running_var = RunningState::new(vector(&layer.var));
    let x = Tensor::from_data(TensorData::new(nchw.x.to_vec(), layer.dims.clone()), device);
    Place::Pool(Box::new(Burn::<D> { module, x, y: None }))
}
