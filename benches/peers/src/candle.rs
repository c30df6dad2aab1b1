//! candle's `BatchNorm`, in NCHW. It returns new tensors and updates its running statistics in training.

use candle_core::{Device, Tensor};
use candle_nn::{BatchNorm, ModuleT};

use crate::Result;
use crate::contender::{Contender, Place, Role, Run};
use crate::plain_loops::Operation;
use crate::problem::{EPS, Layer, Order, Tensors};

/// A module, its input and its last output.
struct Candle {
    module: BatchNorm,
    train: bool,
    x: Tensor,
    y: Option<Tensor>,
}

impl Run for Candle {
    fn run(&mut self, _: &mut Tensors) -> Result<()> {
        // The last output goes first, as it does in a network: the allocator may hand out its memory again.
        self.y = None;
        self.y = Some(self.module.forward_t(&self.x, self.train)?);
        Ok(())
    }

    fn own_output(&self) -> Result<Option<Vec<f32>>> {
        Ok(self.y.as_ref().map(|y| y.flatten_all()?.to_vec1()).transpose()?)
    }
}

/// candle in training and inference; a backward pass it has only as part of its automatic differentiation.
pub fn contenders<'a>(operation: Operation, layer: &Layer, nchw: &Tensors) -> Result<Vec<Contender<'a>>> {
    let train = match operation {
        Operation::Training => true,
        Operation::Inference => false,
        Operation::Statistics | Operation::Backward => return Ok(Vec::new()),
    };
    let vector = |values: &[f32]| Tensor::from_slice(values, values.len(), &Device::Cpu);
    let module = BatchNorm::new(
        layer.channels(),
        vector(&layer.mean)?,
        vector(&layer.var)?,
        vector(&layer.gamma)?,
        vector(&layer.beta)?,
        EPS,
    )?;
    let x = Tensor::from_slice(&nchw.x, layer.dims.as_slice(), &Device::Cpu)?;
    let place = Place::Pool(Box::new(Candle { module, train, x, y: None }));
    Ok(vec![Contender { role: Role::Peer, name: "candle", order: Order::Nchw, place }])
}
