//! candle's `BatchNorm`, in NCHW, and its own addition and ReLU behind it. They return new tensors; in training the module updates
//! its running statistics.

use candle_core::{Device, Tensor};
use candle_nn::{BatchNorm, ModuleT};

use crate::Result;
use crate::contender::{Contender, Place, Role, Run};
use crate::number::Number;
use crate::plain_loops::{Form, Operation};
use crate::problem::{EPS, Layer, Order, Tensors};
use crate::shapes::Epilogue;

/// A module, its input and its last output.
struct Candle {
    module: BatchNorm,
    train: bool,
    epilogue: Epilogue,
    x: Tensor,
    z: Tensor,
    y: Option<Tensor>,
}

impl<S> Run<S> for Candle {
    fn run(&mut self, _: &mut Tensors<S>) -> Result<()> {
        // The last output goes first, as it does in a network: the allocator may hand out its memory again.
        self.y = None;
        let u = self.module.forward_t(&self.x, self.train)?;
        self.y = Some(match self.epilogue {
            Epilogue::Nothing => u,
            Epilogue::Relu => u.relu()?,
            Epilogue::AddRelu => (u + &self.z)?.relu()?,
        });
        Ok(())
    }

    fn own_output(&self) -> Result<Option<Vec<f32>>> {
        Ok(self.y.as_ref().map(|y| y.flatten_all()?.to_vec1()).transpose()?)
    }
}

/// candle in training and inference; a backward pass it has only as part of its automatic differentiation.
pub fn contenders<'a, S: Number>(
    form: Form,
    layer: &Layer,
    nchw: &Tensors<S>,
) -> Result<Vec<Contender<'a, S>>> {
    let train = match form.operation {
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
    let [x, z] = [&nchw.x, &nchw.z].map(|tensor| {
        Tensor::from_iter(tensor.iter().map(|value| value.widened()), &Device::Cpu)?
            .reshape(layer.dims.as_slice())
    });
    let (x, z) = (x?, z?);
    let place = Place::Pool(Box::new(Candle { module, train, epilogue: form.epilogue, x, z, y: None }));
    Ok(vec![Contender { role: Role::Peer, name: "candle", order: Order::Nchw, place }])
}
