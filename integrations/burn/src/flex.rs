//! The backend extension: burn's flex tensors to the kernels' slices and back, and the backward passes.

#![forbid(unsafe_code)]

use std::sync::Arc;

use batchnorm::{Gradients, Inference, Layout, Params, Shape, Training, Welford};
use burn::backend::autodiff::NodeId;
use burn::backend::autodiff::checkpoint::base::Checkpointer;
use burn::backend::autodiff::checkpoint::strategy::CheckpointStrategy;
use burn::backend::autodiff::grads;
use burn::backend::autodiff::ops::{Backward, Ops, OpsKind};
use burn::backend::flex::{FlexTensor, Layout as FlexLayout};
use burn::backend::tensor::FloatTensor;
use burn::backend::{Autodiff, Backend, ExtensionType, Flex, backend_extension};
use burn::tensor::{DType, TensorData};

use crate::memory::unwritten;

/// The statistics of a batch, one state per channel, as the kernels take them back.
#[derive(Debug, Clone)]
pub struct States(Arc<[Welford]>);

impl States {
    /// The states, one per channel.
    pub fn as_slice(&self) -> &[Welford] {
        &self.0
    }
}

/// What [`BatchNormBackend::batchnorm_training`] returns.
#[derive(Debug, ExtensionType)]
pub struct Trained<B: Backend> {
    /// The normalized input.
    pub output: FloatTensor<B>,
    /// The mean of each channel.
    pub mean: FloatTensor<B>,
    /// The biased variance of each channel.
    pub variance: FloatTensor<B>,
    /// Both before rounding, and the number of elements.
    pub states: States,
}

/// Batch normalization as operations of a backend: flex, and autodiff over flex.
///
/// The tensors are f32 or f64, all of them of one type; anything else panics. [`crate::batch_norm`] and
/// [`crate::batch_norm_train`] are for callers.
#[backend_extension(Flex, Autodiff)]
pub trait BatchNormBackend: Backend {
    /// Normalizes `x` (dimensions N, C, spatial...) by its own statistics.
    fn batchnorm_training(
        x: FloatTensor<Self>,
        gamma: FloatTensor<Self>,
        beta: FloatTensor<Self>,
        epsilon: f64,
    ) -> Trained<Self>;

    /// Normalizes `x` (dimensions N, C, spatial...) by a given mean and variance.
    fn batchnorm_inference(
        x: FloatTensor<Self>,
        gamma: FloatTensor<Self>,
        beta: FloatTensor<Self>,
        mean: FloatTensor<Self>,
        variance: FloatTensor<Self>,
        epsilon: f64,
    ) -> FloatTensor<Self>;
}

/// An element type that burn and the kernels share.
trait Float: batchnorm::Element + burn::tensor::Element + bytemuck::Pod {}
impl Float for f32 {}
impl Float for f64 {}

/// Calls a function with the element type of a tensor.
macro_rules! by_type {
    ($tensor:expr, $function:ident ( $($argument:expr),* )) => {
        match $tensor.dtype() {
            DType::F32 => $function::<f32>($($argument),*),
            DType::F64 => $function::<f64>($($argument),*),
            other => panic!("batchnorm-burn takes f32 and f64, not {other:?}"),
        }
    };
}

/// burn's operations do not return errors; the arguments have been checked by the time this is called.
fn done<T>(result: Result<T, batchnorm::Error>) -> T {
    result.unwrap_or_else(|error| panic!("batch norm: {error}"))
}

/// The axes of a tensor of this rank in the order in which they lie in memory.
fn to_memory(layout: Layout, rank: usize) -> Vec<usize> {
    match layout {
        Layout::Nchw => (0..rank).collect(),
        Layout::Nhwc => (0..1).chain(2..rank).chain(1..2).collect(),
    }
}

/// The inverse of [`to_memory`].
fn from_memory(layout: Layout, rank: usize) -> Vec<usize> {
    match layout {
        Layout::Nchw => (0..rank).collect(),
        Layout::Nhwc => (0..1).chain(rank - 1..rank).chain(1..rank - 1).collect(),
    }
}

/// A tensor with another view of the same memory.
fn view(tensor: FlexTensor, layout: FlexLayout) -> FlexTensor {
    tensor.with_layout(layout)
}

/// A tensor with its axes in the order of memory, copied if it is not contiguous so, and its shape.
struct Dense {
    tensor: FlexTensor,
    shape: Shape,
}

impl Dense {
    /// In whichever of the two layouts needs no copy.
    fn new(tensor: FlexTensor) -> Self {
        let layout = tensor.layout();
        let channels_last = || {
            layout.num_dims() > 2
                && layout.permute(&to_memory(Layout::Nhwc, layout.num_dims())).is_contiguous()
        };
        let order = if !layout.is_contiguous() && channels_last() { Layout::Nhwc } else { Layout::Nchw };
        Self::in_order(tensor, order)
    }

    fn in_order(tensor: FlexTensor, order: Layout) -> Self {
        let dims = tensor.layout().shape().to_vec();
        let memory = tensor.layout().permute(&to_memory(order, dims.len()));
        let tensor = view(tensor, memory);
        let tensor = if tensor.is_contiguous() { tensor } else { tensor.to_contiguous() };
        Self { tensor, shape: done(Shape::new(order, dims[0], dims[1], &dims[2..])) }
    }

    fn elements<T: Float>(&self) -> &[T] {
        elements(&self.tensor)
    }

    /// The elements, to be written over, if nobody else holds them.
    fn elements_mut<T: Float>(&mut self) -> Option<&mut [T]> {
        let (start, end) = self.tensor.layout().contiguous_offsets()?;
        Some(&mut self.tensor.try_storage_mut::<T>()?[start..end])
    }

    /// A new tensor of this shape and order.
    fn like<T: Float>(&self, values: Vec<T>) -> FlexTensor {
        let dims = self.tensor.layout().shape().to_vec();
        Self { tensor: FlexTensor::from_data(TensorData::new(values, dims)), shape: self.shape }.into_tensor()
    }

    /// With the axes back in burn's order.
    fn into_tensor(self) -> FlexTensor {
        let layout = self.tensor.layout();
        let layout = layout.permute(&from_memory(self.shape.layout(), layout.num_dims()));
        view(self.tensor, layout)
    }
}

/// The elements of a contiguous tensor.
fn elements<T: Float>(tensor: &FlexTensor) -> &[T] {
    tensor.as_slice().unwrap_or_else(|| panic!("batch norm: expected contiguous {:?}", T::dtype()))
}

/// A tensor of one value per channel.
fn vector<T: Float>(values: Vec<T>) -> FlexTensor {
    let len = values.len();
    FlexTensor::from_data(TensorData::new(values, [len]))
}

fn training<T: Float>(x: FlexTensor, gamma: &FlexTensor, beta: &FlexTensor, epsilon: f64) -> Trained<Flex> {
    let (mut x, gamma, beta) = (Dense::new(x), gamma.to_contiguous(), beta.to_contiguous());
    let shape = x.shape;
    let params = Params::new(epsilon).gamma(elements::<T>(&gamma)).beta(elements(&beta));
    let mut states = vec![Welford::new(); shape.channels()];
    let output = if let Some(x) = x.elements_mut::<T>() {
        done(Training::new(&shape, params).x_in_place(x).states(&mut states).run());
        None
    } else {
        let mut y = unwritten(shape.len());
        done(batchnorm::forward_training(&shape, x.elements::<T>(), &params, &mut y, &mut states));
        Some(x.like(y))
    };
    let of_states = |of: fn(&Welford) -> f64| {
        vector(states.iter().map(|state| <T as batchnorm::Scalar>::from_f64(of(state))).collect())
    };
    Trained {
        output: output.unwrap_or_else(|| x.into_tensor()),
        mean: of_states(Welford::mean),
        variance: of_states(Welford::variance),
        states: States(states.into()),
    }
}

fn inference<T: Float>(
    x: FlexTensor,
    [gamma, beta, mean, variance]: [&FlexTensor; 4],
    epsilon: f64,
) -> FlexTensor {
    let mut x = Dense::new(x);
    let shape = x.shape;
    let [gamma, beta, mean, variance] = [gamma, beta, mean, variance].map(FlexTensor::to_contiguous);
    let params = Params::new(epsilon).gamma(elements::<T>(&gamma)).beta(elements(&beta));
    let (mean, variance) = (elements(&mean), elements(&variance));
    let output = if let Some(x) = x.elements_mut::<T>() {
        done(Inference::new(&shape, params).x_in_place(x).frozen(mean, variance).run());
        None
    } else {
        let mut y = unwritten(shape.len());
        done(batchnorm::forward_inference(&shape, x.elements::<T>(), mean, variance, &params, &mut y));
        Some(x.like(y))
    };
    output.unwrap_or_else(|| x.into_tensor())
}

/// What a forward pass normalized by.
#[derive(Debug, Clone)]
enum Statistics {
    Batch(States),
    /// Mean and variance.
    Given(Box<[FlexTensor; 2]>),
}

/// The gradients that are wanted of x, gamma, beta and, if they were given, mean and variance.
fn gradients_of<T: Float>(
    x: FlexTensor,
    gamma: &FlexTensor,
    statistics: &Statistics,
    epsilon: f64,
    dy: FlexTensor,
    wanted: [bool; 5],
) -> [Option<FlexTensor>; 5] {
    let (x, gamma) = (Dense::new(x), gamma.to_contiguous());
    let shape = x.shape;
    let dy = Dense::in_order(dy, shape.layout());
    let (x_elements, dy) = (x.elements::<T>(), dy.elements());
    let params = Params::new(epsilon).gamma(elements(&gamma));

    let [wants_x, per_channel @ ..] = wanted;
    let mut dx = wants_x.then(|| unwritten(shape.len()));
    let mut per_channel = per_channel.map(|wants| wants.then(|| vec![T::default(); shape.channels()]));
    let [dgamma, dbeta, dmean, dvar] = per_channel.each_mut().map(Option::as_deref_mut);
    let mut outputs = Gradients::new();
    (outputs.dx, outputs.dgamma, outputs.dbeta) = (dx.as_deref_mut(), dgamma, dbeta);
    (outputs.dmean, outputs.dvar) = (dmean, dvar);
    match statistics {
        Statistics::Batch(states) => {
            done(batchnorm::backward(&shape, x_elements, dy, states.as_slice(), &params, outputs));
        }
        Statistics::Given(given) => {
            let [mean, variance] = given.each_ref().map(FlexTensor::to_contiguous);
            let (mean, variance) = (elements(&mean), elements(&variance));
            done(batchnorm::backward_frozen(&shape, x_elements, dy, mean, variance, &params, outputs));
        }
    }
    let [dgamma, dbeta, dmean, dvar] = per_channel.map(|values| values.map(vector));
    [dx.map(|dx| x.like(dx)), dgamma, dbeta, dmean, dvar]
}

impl BatchNormBackend for Flex {
    fn batchnorm_training(x: FlexTensor, gamma: FlexTensor, beta: FlexTensor, epsilon: f64) -> Trained<Self> {
        by_type!(x, training(x, &gamma, &beta, epsilon))
    }

    fn batchnorm_inference(
        x: FlexTensor,
        gamma: FlexTensor,
        beta: FlexTensor,
        mean: FlexTensor,
        variance: FlexTensor,
        epsilon: f64,
    ) -> FlexTensor {
        by_type!(x, inference(x, [&gamma, &beta, &mean, &variance], epsilon))
    }
}

/// A flex tensor that autodiff follows.
type Tracked = FloatTensor<Autodiff<Flex>>;

/// The backward pass of a normalization of `N` inputs: x, gamma and beta, and mean and variance if they were given.
#[derive(Debug)]
struct Normalization;

/// What it needs of the forward pass; x and gamma are kept by the checkpointer.
#[derive(Debug, Clone)]
struct Saved {
    x: NodeId,
    gamma: NodeId,
    statistics: Statistics,
    epsilon: f64,
}

impl<const N: usize> Backward<Flex, N> for Normalization {
    type State = Saved;

    fn backward(self, ops: Ops<Saved, N>, grads: &mut grads::Gradients, checkpointer: &mut Checkpointer) {
        let Saved { x, gamma, statistics, epsilon } = ops.state;
        let dy = grads.consume::<Flex>(&ops.node);
        let x = checkpointer.retrieve_node_output::<FlexTensor>(x);
        let gamma = checkpointer.retrieve_node_output::<FlexTensor>(gamma);
        // A batch's own mean and variance are no parents.
        let wanted = std::array::from_fn(|input| ops.parents.get(input).is_some_and(Option::is_some));
        let gradients = by_type!(x, gradients_of(x, &gamma, &statistics, epsilon, dy, wanted));
        for (parent, gradient) in ops.parents.into_iter().zip(gradients) {
            if let (Some(parent), Some(gradient)) = (parent, gradient) {
                grads.register::<Flex>(parent.id, gradient);
            }
        }
    }
}

impl<C: CheckpointStrategy> BatchNormBackend for Autodiff<Flex, C> {
    fn batchnorm_training(x: Tracked, gamma: Tracked, beta: Tracked, epsilon: f64) -> Trained<Self> {
        let forward = |x: Tracked, gamma: Tracked, beta: Tracked| {
            Flex::batchnorm_training(
                x.into_primitive(),
                gamma.into_primitive(),
                beta.into_primitive(),
                epsilon,
            )
        };
        let prepared = Normalization.prepare::<C>([x.node(), gamma.node(), beta.node()]).compute_bound();
        let (output, trained) = match prepared.stateful() {
            OpsKind::Tracked(mut prepared) => {
                let (x_id, gamma_id) = (prepared.checkpoint(&x), prepared.checkpoint(&gamma));
                let trained = forward(x, gamma, beta);
                let statistics = Statistics::Batch(trained.states.clone());
                let saved = Saved { x: x_id, gamma: gamma_id, statistics, epsilon };
                (prepared.finish(saved, trained.output.clone()), trained)
            }
            OpsKind::UnTracked(prepared) => {
                let trained = forward(x, gamma, beta);
                (prepared.finish(trained.output.clone()), trained)
            }
        };
        Trained {
            output,
            mean: Tracked::new(trained.mean),
            variance: Tracked::new(trained.variance),
            states: trained.states,
        }
    }

    fn batchnorm_inference(
        x: Tracked,
        gamma: Tracked,
        beta: Tracked,
        mean: Tracked,
        variance: Tracked,
        epsilon: f64,
    ) -> Tracked {
        let nodes = [&x, &gamma, &beta, &mean, &variance].map(Tracked::node);
        let prepared = Normalization.prepare::<C>(nodes).compute_bound();
        let forward = |inputs: [Tracked; 5]| {
            let [x, gamma, beta, mean, variance] = inputs.map(Tracked::into_primitive);
            Flex::batchnorm_inference(x, gamma, beta, mean, variance, epsilon)
        };
        match prepared.stateful() {
            OpsKind::Tracked(mut prepared) => {
                let (x_id, gamma_id) = (prepared.checkpoint(&x), prepared.checkpoint(&gamma));
                let given = [&mean, &variance].map(|given| given.primitive().clone());
                let statistics = Statistics::Given(Box::new(given));
                let output = forward([x, gamma, beta, mean, variance]);
                prepared.finish(Saved { x: x_id, gamma: gamma_id, statistics, epsilon }, output)
            }
            OpsKind::UnTracked(prepared) => prepared.finish(forward([x, gamma, beta, mean, variance])),
        }
    }
}
