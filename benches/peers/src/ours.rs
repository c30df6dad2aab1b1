//! This library, in both layouts.

use batchnorm::{Gradients, Layout, Params, Shape, Welford};

use crate::Result;
use crate::contender::{Contender, Place, Role, Run};
use crate::plain_loops::Operation;
use crate::problem::{EPS, Layer, Order, Tensors};

/// An operation in a layout, with room for what it returns per channel.
struct Ours<'a> {
    operation: Operation,
    shape: Shape,
    layer: &'a Layer,
    states: Vec<Welford>,
    dgamma: Vec<f32>,
    dbeta: Vec<f32>,
}

impl Run for Ours<'_> {
    fn run(&mut self, tensors: &mut Tensors) -> Result<()> {
        let Self { operation, shape, layer, states, dgamma, dbeta } = self;
        let Tensors { x, dy, out, .. } = tensors;
        let params = Params::new(EPS).gamma(&layer.gamma).beta(&layer.beta);
        match operation {
            Operation::Statistics => batchnorm::statistics(shape, x, states)?,
            Operation::Training => batchnorm::forward_training(shape, x, &params, out, states)?,
            Operation::Inference => {
                batchnorm::forward_inference(shape, x, &layer.mean, &layer.var, &params, out)?;
            }
            Operation::Backward => {
                let gradients = Gradients::new().dx(out).dgamma(dgamma).dbeta(dbeta);
                batchnorm::backward(shape, x, dy, &layer.states, &params, gradients)?;
            }
        }
        Ok(())
    }
}

/// Ours in NCHW and in NHWC.
pub fn contenders(operation: Operation, layer: &Layer) -> Result<Vec<Contender<'_>>> {
    let layouts = [(Layout::Nchw, Order::Nchw), (Layout::Nhwc, Order::Nhwc)];
    let contender = |(layout, order)| {
        let channels = layer.channels();
        let ours = Ours {
            operation,
            shape: layer.shape(layout)?,
            layer,
            states: vec![Welford::new(); channels],
            dgamma: vec![0.0; channels],
            dbeta: vec![0.0; channels],
        };
        Ok(Contender { role: Role::Ours, name: "ours", order, place: Place::Pool(Box::new(ours)) })
    };
    layouts.into_iter().map(contender).collect()
}
