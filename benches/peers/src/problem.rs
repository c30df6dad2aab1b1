//! The tensors of a shape in every order of memory, the same numbers in each, and the layer's parameters.

use batchnorm::{Activation, Layout, Params, Shape, Tensor, Training, Welford};
use rayon::prelude::*;

use crate::Result;
use crate::number::Number;

/// eps of every contender.
pub const EPS: f64 = 1e-5;

/// Channels that lie together in [`Order::Blocked`].
const BLOCK: usize = 16;

/// Where elements lie in memory. Samples follow each other in each of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Order {
    /// Plane after plane.
    Nchw,
    /// Position after position.
    Nhwc,
    /// oneDNN's nChw16c: planes of sixteen adjacent channels.
    Blocked,
}

impl Order {
    /// Its name in tables.
    pub fn name(self) -> &'static str {
        match self {
            Self::Nchw => "nchw",
            Self::Nhwc => "nhwc",
            Self::Blocked => "nChw16c",
        }
    }

    /// Where an element of a sample lies from the sample's first on; the sample has `channels` planes of `positions`.
    pub fn offset(self, [channels, positions]: [usize; 2], channel: usize, position: usize) -> usize {
        match self {
            Self::Nchw => channel * positions + position,
            Self::Nhwc => position * channels + channel,
            Self::Blocked => (channel / BLOCK * positions + position) * BLOCK + channel % BLOCK,
        }
    }
}

/// The tensors in one order, which all contenders of this order share.
pub struct Tensors<S> {
    /// Where they have their elements.
    pub order: Order,
    /// The layer's input.
    pub x: Tensor<S>,
    /// The gradient of its output.
    pub dy: Tensor<S>,
    /// The residual that is added to it.
    pub z: Tensor<S>,
    /// What training with the residual and ReLU gave: peers' backward takes it.
    pub y: Tensor<S>,
    /// Its output, or the gradient of its input.
    pub out: Tensor<S>,
    /// The gradient of the residual.
    pub dz: Tensor<S>,
}

/// The layer: its size, its parameters, its statistics.
pub struct Layer {
    /// N, C, spatial axes.
    pub dims: Vec<usize>,
    /// Scale of each channel.
    pub gamma: Vec<f32>,
    /// Shift of each channel.
    pub beta: Vec<f32>,
    /// What [`batchnorm::statistics`] says of x.
    pub states: Vec<Welford>,
    /// The mean of x in each channel.
    pub mean: Vec<f32>,
    /// The biased variance of x in each channel.
    pub var: Vec<f32>,
}

impl Layer {
    /// C.
    pub fn channels(&self) -> usize {
        self.dims[1]
    }

    /// The product of the spatial axes.
    pub fn positions(&self) -> usize {
        self.dims[2..].iter().product()
    }

    /// The shape in one of the library's layouts.
    pub fn shape(&self, layout: Layout) -> Result<Shape> {
        Ok(Shape::new(layout, self.dims[0], self.dims[1], &self.dims[2..])?)
    }
}

/// A layer and its tensors in every order, [`Order::Nchw`] first.
pub struct Problem<S> {
    /// What does not change.
    pub layer: Layer,
    /// What does.
    pub tensors: Vec<Tensors<S>>,
}

impl<S: Number> Problem<S> {
    /// Reproducible tensors, whose channels differ in mean; dimensions N, C, spatial axes.
    pub fn new(dims: &[usize]) -> Result<Self> {
        let shape = Shape::nchw(dims)?;
        let (channels, positions) = (shape.channels(), shape.spatial());
        let channel = |index: usize| index / positions % channels;
        let x = filled(shape, |index| noise(index, 0) + (channel(index) % 7) as f32 / 4.0);
        let dy = filled(shape, |index| noise(index, 1 << 31));
        let z = filled(shape, |index| noise(index, 1 << 30));
        let gamma: Vec<f32> = (0..channels).map(|channel| 1.0 + noise(channel, 2) / 2.0).collect();
        let beta: Vec<f32> = (0..channels).map(|channel| noise(channel, 3)).collect();
        let (mut y, mut states) = (Tensor::zeros(shape), vec![Welford::new(); channels]);
        let params = Params::new(EPS).gamma(&gamma).beta(&beta).activation(Activation::Relu);
        Training::new(&shape, params).x(&x).residual(&z).y(&mut y).states(&mut states).run()?;
        let zeros = || Tensor::zeros(shape);
        let mut tensors = vec![Tensors { order: Order::Nchw, x, dy, z, y, out: zeros(), dz: zeros() }];
        for order in [Order::Nhwc, Order::Blocked] {
            if order == Order::Nhwc || channels.is_multiple_of(BLOCK) {
                let Tensors { x, dy, z, y, .. } = &tensors[0];
                let [x, dy, z, y] = [x, dy, z, y].map(|tensor| reordered(tensor, order));
                tensors.push(Tensors { order, x, dy, z, y, out: zeros(), dz: zeros() });
            }
        }
        let layer = Layer {
            dims: dims.to_vec(),
            gamma,
            beta,
            mean: states.iter().map(|state| state.mean() as f32).collect(),
            var: states.iter().map(|state| state.variance() as f32).collect(),
            states,
        };
        Ok(Self { layer, tensors })
    }
}

/// A number in [-1, 1), in no order that a channel would notice.
fn noise(index: usize, seed: u32) -> f32 {
    let bits = (index as u32).wrapping_add(seed).wrapping_mul(0x9e37_79b9);
    (bits ^ bits >> 15).wrapping_mul(0x85eb_ca6b) as i32 as f32 / (1u32 << 31) as f32
}

/// A tensor with `f(i)`, rounded, at offset i.
fn filled<S: Number>(shape: Shape, f: impl Fn(usize) -> f32 + Sync) -> Tensor<S> {
    let mut tensor = Tensor::zeros(shape);
    tensor.par_iter_mut().enumerate().for_each(|(index, value)| *value = S::of(f(index)));
    tensor
}

/// A tensor in NCHW in another order.
fn reordered<S: Number>(nchw: &Tensor<S>, order: Order) -> Tensor<S> {
    let size = [nchw.shape().channels(), nchw.shape().spatial()];
    let [channels, positions] = size;
    let mut tensor = Tensor::zeros(*nchw.shape());
    let samples = tensor.par_chunks_mut(channels * positions).zip(nchw.par_chunks(channels * positions));
    samples.for_each(|(to, from)| {
        for channel in 0..channels {
            for position in 0..positions {
                to[order.offset(size, channel, position)] = from[channel * positions + position];
            }
        }
    });
    tensor
}
