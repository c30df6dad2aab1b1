//! This library, in both layouts: a form in one call, and the bare operation beside it.

use batchnorm::{
    Activation, Backward, Gradients, Inference, Layout, Params, Shape, Statistics, Training, Welford,
};

use crate::Result;
use crate::contender::{Contender, Place, Role, Run};
use crate::number::Number;
use crate::plain_loops::{Form, Operation};
use crate::problem::{EPS, Layer, Tensors};
use crate::shapes::Epilogue;

/// A form in a layout, with room for what it returns per channel.
struct Ours<'a> {
    form: Form,
    /// Whether backward takes the mask where it could find u anew.
    by_mask: bool,
    shape: Shape,
    layer: &'a Layer,
    states: Vec<Welford>,
    dgamma: Vec<f32>,
    dbeta: Vec<f32>,
    mask: Vec<u64>,
}

impl<S: Number> Run<S> for Ours<'_> {
    fn run(&mut self, tensors: &mut Tensors<S>) -> Result<()> {
        let Self { form, by_mask, shape, layer, states, dgamma, dbeta, mask } = self;
        let Tensors { x, dy, z, out, dz, .. } = tensors;
        let activation =
            if form.epilogue == Epilogue::Nothing { Activation::Identity } else { Activation::Relu };
        let params = Params::new(EPS).gamma(&layer.gamma).beta(&layer.beta).activation(activation);
        match form.operation {
            Operation::Statistics => Statistics::new(shape).x(x).states(states).run()?,
            Operation::Training => {
                let mut call = Training::new(shape, params).x(x).y(out).states(states);
                if form.adds() {
                    call = call.residual(z);
                }
                if form.adds() || *by_mask {
                    call = call.mask(mask);
                }
                call.run()?;
            }
            Operation::Inference => {
                let mut call = Inference::new(shape, params).x(x).y(out).frozen(&layer.mean, &layer.var);
                if form.adds() {
                    call = call.residual(z);
                }
                call.run()?;
            }
            Operation::Backward => {
                let mut call = Backward::new(shape, params).x(x).dy(dy).states(&layer.states);
                let mut gradients = Gradients::new().dx(out).dgamma(dgamma).dbeta(dbeta);
                if form.adds() {
                    gradients = gradients.dz(dz);
                }
                if form.adds() || *by_mask {
                    call = call.mask(mask);
                }
                call.gradients(gradients).run()?;
            }
        }
        Ok(())
    }
}

/// Ours in NCHW and in NHWC. Backward of ReLU alone in two ways, u anew and by the mask; what follows the operation is left
/// out by one more.
pub fn contenders<'a, S: Number>(
    form: Form,
    layer: &'a Layer,
    tensors: &mut [Tensors<S>],
) -> Result<Vec<Contender<'a, S>>> {
    let mut ways = vec![(Role::Ours, "ours", form, false)];
    if form == (Form { operation: Operation::Backward, epilogue: Epilogue::Relu }) {
        ways.push((Role::Ours, "ours by mask", form, true));
    }
    if form.epilogue != Epilogue::Nothing {
        ways.push((Role::Bare, "ours bare", Form::from(form.operation), false));
    }
    let mut contenders = Vec::new();
    for (role, name, form, by_mask) in ways {
        for (layout, tensors) in [Layout::Nchw, Layout::Nhwc].into_iter().zip(&mut *tensors) {
            let (shape, channels) = (layer.shape(layout)?, layer.channels());
            let mut ours = Ours {
                form: Form { operation: Operation::Training, ..form },
                by_mask,
                shape,
                layer,
                states: vec![Welford::new(); channels],
                dgamma: vec![0.0; channels],
                dbeta: vec![0.0; channels],
                mask: vec![0; shape.mask_len()],
            };
            // Training writes the mask that backward takes.
            if form.operation == Operation::Backward {
                ours.run(tensors)?;
            }
            ours.form = form;
            let place = Place::Pool(Box::new(ours));
            contenders.push(Contender { role, name, order: tensors.order, place });
        }
    }
    Ok(contenders)
}
