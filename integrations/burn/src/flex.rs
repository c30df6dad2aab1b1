//! The backend extension: burn's flex tensors to the kernels' slices and back, and the backward passes.

#![forbid(unsafe_code)]

use std::sync::Arc;

use batchnorm::{
    Activation, Gradients, Inference, Layout, Params, Renorm, Renormalized, Shape, Training, Welford,
};
use burn::backend::autodiff::NodeId;
use burn::backend::autodiff::checkpoint::base::Checkpointer;
use burn::backend::autodiff::checkpoint::strategy::CheckpointStrategy;
use burn::backend::autodiff::grads;
use burn::backend::autodiff::ops::{Backward, NodeGuard, Ops, OpsKind};
use burn::backend::flex::{FlexTensor, Layout as FlexLayout};
use burn::backend::tensor::FloatTensor;
use burn::backend::{Autodiff, Backend, ExtensionType, Flex, backend_extension};
use burn::tensor::{DType, TensorData};
use half::{bf16, f16};

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

/// What follows a normalization in the same pass.
#[derive(Debug, ExtensionType)]
pub enum Epilogue<B: Backend> {
    /// y = act(u), where u is the normalized input.
    Activation(Activation),
    /// y = act(u + z), where z has the input's dimensions; not with hard swish and SiLU.
    Residual(FloatTensor<B>, Activation),
}

impl<B: Backend> Epilogue<B> {
    pub(crate) fn new(activation: Activation, residual: Option<FloatTensor<B>>) -> Self {
        match residual {
            Some(z) => Self::Residual(z, activation),
            None => Self::Activation(activation),
        }
    }

    fn into_parts(self) -> (Activation, Option<FloatTensor<B>>) {
        match self {
            Self::Activation(activation) => (activation, None),
            Self::Residual(z, activation) => (activation, Some(z)),
        }
    }
}

/// What [`BatchNormBackend::batchnorm_training`] returns.
#[derive(Debug, ExtensionType)]
pub struct Trained<B: Backend> {
    /// The normalized input, after the epilogue.
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
/// x and a residual are f32, f64, bf16 or f16, both of one type, which the output has too. The others are f64 beside f64, else f32;
/// anything else panics. [`crate::batch_norm`] and
/// [`crate::batch_norm_train`] are for callers.
#[backend_extension(Flex, Autodiff)]
pub trait BatchNormBackend: Backend {
    /// Normalizes `x` (dimensions N, C, spatial...) by its own statistics.
    fn batchnorm_training(
        x: FloatTensor<Self>,
        gamma: FloatTensor<Self>,
        beta: FloatTensor<Self>,
        epsilon: f64,
        #[extension_type] epilogue: Epilogue<Self>,
    ) -> Trained<Self>;

    /// Normalizes `x` (dimensions N, C, spatial...) by its own statistics, corrected within limits by a running mean and variance, which
    /// are taken for constants: batch renormalization. `numbers` are the limits and epsilon.
    fn batchnorm_renormalized(
        x: FloatTensor<Self>,
        gamma: FloatTensor<Self>,
        beta: FloatTensor<Self>,
        mean: FloatTensor<Self>,
        variance: FloatTensor<Self>,
        numbers: (Renorm, f64),
        #[extension_type] epilogue: Epilogue<Self>,
    ) -> Trained<Self>;

    /// Normalizes `x` (dimensions N, C, spatial...) by a given mean and variance.
    fn batchnorm_inference(
        x: FloatTensor<Self>,
        gamma: FloatTensor<Self>,
        beta: FloatTensor<Self>,
        mean: FloatTensor<Self>,
        variance: FloatTensor<Self>,
        epsilon: f64,
        #[extension_type] epilogue: Epilogue<Self>,
    ) -> FloatTensor<Self>;
}

/// A type of parameters that burn and the kernels share, in which arithmetic is done.
trait Float: batchnorm::Element + burn::tensor::Element + bytemuck::Pod {}
impl Float for f32 {}
impl Float for f64 {}

/// A type of the elements of tensors that burn and the kernels share.
trait Number: batchnorm::Storage<Arithmetic: Float> + burn::tensor::Element + bytemuck::Pod {}
impl Number for f32 {}
impl Number for f64 {}
impl Number for bf16 {}
impl Number for f16 {}

/// The type that parameters have beside an input of this one, if the kernels take it.
pub(crate) fn parameter_dtype(input: DType) -> Option<DType> {
    match input {
        DType::F32 | DType::BF16 | DType::F16 => Some(DType::F32),
        DType::F64 => Some(DType::F64),
        _ => None,
    }
}

/// Calls a function with the element type of a tensor.
macro_rules! by_type {
    ($tensor:expr, $function:ident ( $($argument:expr),* )) => {
        match $tensor.dtype() {
            DType::F32 => $function::<f32>($($argument),*),
            DType::F64 => $function::<f64>($($argument),*),
            DType::BF16 => $function::<bf16>($($argument),*),
            DType::F16 => $function::<f16>($($argument),*),
            other => panic!("batchnorm-burn takes f32, f64, bf16 and f16, not {other:?}"),
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

    fn elements<S: Number>(&self) -> &[S] {
        elements(&self.tensor)
    }

    /// Whether nobody else holds the elements, so that they can be written over.
    fn is_owned<S: Number>(&mut self) -> bool {
        self.tensor.try_storage_mut::<S>().is_some()
    }

    /// The elements, to be written over, of which nobody else holds any.
    fn elements_mut<S: Number>(&mut self) -> &mut [S] {
        let offsets = self.tensor.layout().contiguous_offsets();
        let elements = self.tensor.try_storage_mut::<S>().zip(offsets);
        elements.map_or_else(
            || panic!("batch norm: a tensor that is shared"),
            |(all, (start, end))| &mut all[start..end],
        )
    }

    /// A new tensor of this shape and order.
    fn like<S: Number>(&self, values: Vec<S>) -> FlexTensor {
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
fn elements<E: burn::tensor::Element + bytemuck::Pod>(tensor: &FlexTensor) -> &[E] {
    tensor.as_slice().unwrap_or_else(|| panic!("batch norm: expected contiguous {:?}", E::dtype()))
}

/// A tensor of one value per channel.
fn vector<T: Float>(values: Vec<T>) -> FlexTensor {
    let len = values.len();
    FlexTensor::from_data(TensorData::new(values, [len]))
}

/// Where a forward pass writes its result.
enum Place<S> {
    OverX,
    OverResidual,
    New(Vec<S>),
}

/// Which elements an activation let through, as the kernels take it back.
type Mask = Arc<[u64]>;

/// The tensors of a forward pass, all in the input's order.
struct Tensors<S> {
    x: Dense,
    residual: Option<Dense>,
    y: Place<S>,
    mask: Option<Vec<u64>>,
}

impl<S: Number> Tensors<S> {
    /// `keeps_mask`: if a backward pass may come. y goes over a tensor that nobody else holds, if there is one.
    fn new(x: FlexTensor, residual: Option<FlexTensor>, activation: Activation, keeps_mask: bool) -> Self {
        let mut x = Dense::new(x);
        let mut residual = residual.map(|z| Dense::in_order(z, x.shape.layout()));
        let y = if x.is_owned::<S>() {
            Place::OverX
        } else if residual.as_mut().is_some_and(Dense::is_owned::<S>) {
            Place::OverResidual
        } else {
            Place::New(unwritten(x.shape.len()))
        };
        let needs_mask = keeps_mask && residual.is_some() && activation != Activation::Identity;
        let mask = needs_mask.then(|| vec![0; x.shape.mask_len()]);
        Self { x, residual, y, mask }
    }

    /// The result, once it has been written.
    fn finish(self) -> (FlexTensor, Option<Mask>) {
        let output = match (self.y, self.residual) {
            (Place::New(y), _) => self.x.like(y),
            (Place::OverResidual, Some(residual)) => residual.into_tensor(),
            _ => self.x.into_tensor(),
        };
        (output, self.mask.map(Mask::from))
    }
}

/// Runs a builder, `Training` or `Inference`, on the tensors of a forward pass.
macro_rules! run {
    ($builder:expr, $tensors:expr) => {{
        let Tensors { x, residual, y, mask } = $tensors;
        let mut builder = match y {
            Place::OverX => $builder.x_in_place(x.elements_mut()),
            _ => $builder.x(x.elements()),
        };
        builder = match (residual, &y) {
            (Some(z), Place::OverResidual) => builder.residual_in_place(z.elements_mut()),
            (Some(z), _) => builder.residual(z.elements()),
            (None, _) => builder,
        };
        if let Place::New(y) = y {
            builder = builder.y(y);
        }
        if let Some(mask) = mask {
            builder = builder.mask(mask);
        }
        done(builder.run());
    }};
}

fn training<S: Number>(
    x: FlexTensor,
    [gamma, beta]: [&FlexTensor; 2],
    correction: Option<&Correction>,
    epsilon: f64,
    epilogue: Epilogue<Flex>,
    keeps_mask: bool,
) -> (Trained<Flex>, Option<Mask>) {
    let (activation, residual) = epilogue.into_parts();
    let [gamma, beta] = [gamma, beta].map(FlexTensor::to_contiguous);
    let mut tensors = Tensors::<S>::new(x, residual, activation, keeps_mask);
    let shape = tensors.x.shape;
    let params = Params::new(epsilon).gamma(elements(&gamma)).beta(elements(&beta)).activation(activation);
    let mut states = vec![Welford::new(); shape.channels()];
    let mut renormalized = Renormalized::new();
    let training = Training::new(&shape, params).states(&mut states);
    match correction {
        None => run!(training, &mut tensors),
        Some(Correction { limits, running }) => {
            let [mean, variance] = running.each_ref().map(FlexTensor::to_contiguous);
            let (mean, variance) = (elements(&mean), elements(&variance));
            run!(training.renorm(*limits, mean, variance, &mut renormalized), &mut tensors);
        }
    }
    let of_states = |of: fn(&Welford) -> f64| {
        vector(states.iter().map(|state| <S::Arithmetic as batchnorm::Scalar>::from_f64(of(state))).collect())
    };
    let (mean, variance) = (of_states(Welford::mean), of_states(Welford::variance));
    let (output, mask) = tensors.finish();
    (Trained { output, mean, variance, states: States(states.into()) }, mask)
}

fn inference<S: Number>(
    x: FlexTensor,
    [gamma, beta, mean, variance]: [&FlexTensor; 4],
    epsilon: f64,
    epilogue: Epilogue<Flex>,
    keeps_mask: bool,
) -> (FlexTensor, Option<Mask>) {
    let (activation, residual) = epilogue.into_parts();
    let [gamma, beta, mean, variance] = [gamma, beta, mean, variance].map(FlexTensor::to_contiguous);
    let mut tensors = Tensors::<S>::new(x, residual, activation, keeps_mask);
    let shape = tensors.x.shape;
    let params = Params::new(epsilon).gamma(elements(&gamma)).beta(elements(&beta)).activation(activation);
    run!(Inference::new(&shape, params).frozen(elements(&mean), elements(&variance)), &mut tensors);
    tensors.finish()
}

/// By what batch renormalization corrects a batch's statistics: the running mean and variance before the batch.
#[derive(Debug, Clone)]
struct Correction {
    limits: Renorm,
    running: Box<[FlexTensor; 2]>,
}

impl Correction {
    /// What it made of a batch's statistics.
    fn of<T: Float>(&self, states: &States, params: &Params<'_, T>) -> Renormalized<T> {
        let [mean, variance] = self.running.each_ref().map(FlexTensor::to_contiguous);
        done(self.limits.renormalize(states.as_slice(), elements(&mean), elements(&variance), params))
    }
}

/// What a forward pass normalized by.
#[derive(Debug, Clone)]
enum Statistics {
    Batch(States, Option<Correction>),
    /// Mean and variance.
    Given(Box<[FlexTensor; 2]>),
}

/// The inputs of a normalization, in the order of their gradients: x, gamma, beta, mean, variance, residual.
const INPUTS: usize = 6;

/// The gradients that are wanted.
fn gradients_of<S: Number>(
    x: FlexTensor,
    [gamma, beta]: [&FlexTensor; 2],
    saved: &Saved,
    dy: FlexTensor,
    wanted: [bool; INPUTS],
) -> [Option<FlexTensor>; INPUTS] {
    let (x, [gamma, beta]) = (Dense::new(x), [gamma, beta].map(FlexTensor::to_contiguous));
    let shape = x.shape;
    let mut dy = Dense::in_order(dy, shape.layout());
    let activation = saved.activation;
    let params = Params::new(saved.epsilon)
        .gamma(elements::<S::Arithmetic>(&gamma))
        .beta(elements(&beta))
        .activation(activation);

    let renormalized = match &saved.statistics {
        Statistics::Batch(states, Some(correction)) => Some(correction.of(states, &params)),
        _ => None,
    };
    let params = renormalized.as_ref().map_or(params, |by| by.params(&params));

    let [wants_x, mut per_channel @ .., wants_residual] = wanted;
    let [wants_gamma, wants_beta, ..] = per_channel;
    // A part of dgamma is d * dbeta.
    per_channel[1] |= wants_gamma && renormalized.is_some();
    let mut dx = wants_x.then(|| unwritten::<S>(shape.len()));
    let mut per_channel =
        per_channel.map(|wants| wants.then(|| vec![S::Arithmetic::default(); shape.channels()]));
    // The residual's gradient is written over dy if nobody else holds it. Where nothing follows, it is dy.
    let writes_dz = wants_residual && activation != Activation::Identity;
    let over_dy = writes_dz && dy.is_owned::<S>();
    let mut dz = (writes_dz && !over_dy).then(|| unwritten::<S>(shape.len()));

    let [dgamma, dbeta, dmean, dvar] = per_channel.each_mut().map(Option::as_deref_mut);
    let mut outputs = Gradients::new();
    (outputs.dx, outputs.dz) = (dx.as_deref_mut(), dz.as_deref_mut());
    (outputs.dgamma, outputs.dbeta, outputs.dmean, outputs.dvar) = (dgamma, dbeta, dmean, dvar);
    let mut backward = batchnorm::Backward::new(&shape, params).x(x.elements()).gradients(outputs);
    backward = if over_dy { backward.dy_to_dz(dy.elements_mut()) } else { backward.dy(dy.elements()) };
    if let Some(mask) = &saved.mask {
        backward = backward.mask(mask);
    }
    match &saved.statistics {
        Statistics::Batch(states, _) => done(backward.states(states.as_slice()).run()),
        Statistics::Given(given) => {
            let [mean, variance] = given.each_ref().map(FlexTensor::to_contiguous);
            done(backward.frozen(elements(&mean), elements(&variance)).run());
        }
    }
    if let (Some(by), [Some(dgamma), dbeta, ..]) = (&renormalized, &mut per_channel) {
        done(by.gamma_gradient(dbeta.as_deref().unwrap_or_default(), dgamma));
    }
    per_channel[1].take_if(|_| !wants_beta);
    let dz = match dz {
        Some(dz) => Some(x.like(dz)),
        None => wants_residual.then(|| dy.into_tensor()),
    };
    let [dgamma, dbeta, dmean, dvar] = per_channel.map(|values| values.map(vector));
    [dx.map(|dx| x.like(dx)), dgamma, dbeta, dmean, dvar, dz]
}

impl BatchNormBackend for Flex {
    fn batchnorm_training(
        x: FlexTensor,
        gamma: FlexTensor,
        beta: FlexTensor,
        epsilon: f64,
        epilogue: Epilogue<Self>,
    ) -> Trained<Self> {
        by_type!(x, training(x, [&gamma, &beta], None, epsilon, epilogue, false)).0
    }

    fn batchnorm_renormalized(
        x: FlexTensor,
        gamma: FlexTensor,
        beta: FlexTensor,
        mean: FlexTensor,
        variance: FlexTensor,
        numbers: (Renorm, f64),
        epilogue: Epilogue<Self>,
    ) -> Trained<Self> {
        let (limits, epsilon) = numbers;
        let correction = Correction { limits, running: Box::new([mean, variance]) };
        by_type!(x, training(x, [&gamma, &beta], Some(&correction), epsilon, epilogue, false)).0
    }

    fn batchnorm_inference(
        x: FlexTensor,
        gamma: FlexTensor,
        beta: FlexTensor,
        mean: FlexTensor,
        variance: FlexTensor,
        epsilon: f64,
        epilogue: Epilogue<Self>,
    ) -> FlexTensor {
        by_type!(x, inference(x, [&gamma, &beta, &mean, &variance], epsilon, epilogue, false)).0
    }
}

/// A flex tensor that autodiff follows.
type Tracked = FloatTensor<Autodiff<Flex>>;

/// The backward pass of a normalization of `N` inputs.
#[derive(Debug)]
struct Normalization;

/// What it needs of the forward pass; x, gamma and beta are kept by the checkpointer.
#[derive(Debug, Clone)]
struct Saved {
    /// x, gamma, beta.
    nodes: [NodeId; 3],
    /// Which inputs the parents in autodiff's graph are.
    parents: &'static [usize],
    statistics: Statistics,
    epsilon: f64,
    activation: Activation,
    mask: Option<Mask>,
}

impl<const N: usize> Backward<Flex, N> for Normalization {
    type State = Saved;

    fn backward(self, ops: Ops<Saved, N>, grads: &mut grads::Gradients, checkpointer: &mut Checkpointer) {
        let saved = ops.state;
        let dy = grads.consume::<Flex>(&ops.node);
        let [x, gamma, beta] = saved.nodes.map(|node| checkpointer.retrieve_node_output::<FlexTensor>(node));
        let mut wanted = [false; INPUTS];
        for (&input, parent) in saved.parents.iter().zip(&ops.parents) {
            wanted[input] = parent.is_some();
        }
        let mut gradients = by_type!(x, gradients_of(x, [&gamma, &beta], &saved, dy, wanted));
        for (&input, parent) in saved.parents.iter().zip(ops.parents) {
            if let (Some(parent), Some(gradient)) = (parent, gradients[input].take()) {
                grads.register::<Flex>(parent.id, gradient);
            }
        }
    }
}

/// What a forward pass leaves: its output, what its backward pass needs, and the rest of what is returned.
type Passed<R> = (FlexTensor, Option<Mask>, Statistics, R);

/// A forward pass on x, gamma and beta, put into autodiff's graph. `forward` takes whether to keep a mask.
fn record<C: CheckpointStrategy, const N: usize, R>(
    guards: [NodeGuard; N],
    parents: &'static [usize],
    [x, gamma, beta]: [Tracked; 3],
    (epsilon, activation): (f64, Activation),
    forward: impl FnOnce([FlexTensor; 3], bool) -> Passed<R>,
) -> (Tracked, R) {
    match Normalization.prepare::<C>(guards).compute_bound().stateful() {
        OpsKind::Tracked(mut prepared) => {
            let nodes = [&x, &gamma, &beta].map(|input| prepared.checkpoint(input));
            let (output, mask, statistics, rest) =
                forward([x, gamma, beta].map(Tracked::into_primitive), true);
            let saved = Saved { nodes, parents, statistics, epsilon, activation, mask };
            (prepared.finish(saved, output), rest)
        }
        OpsKind::UnTracked(prepared) => {
            let (output, _, _, rest) = forward([x, gamma, beta].map(Tracked::into_primitive), false);
            (prepared.finish(output), rest)
        }
    }
}

/// Training on tensors that autodiff follows.
fn tracked_training<C: CheckpointStrategy>(
    [x, gamma, beta]: [Tracked; 3],
    correction: Option<Correction>,
    epsilon: f64,
    epilogue: Epilogue<Autodiff<Flex, C>>,
) -> Trained<Autodiff<Flex, C>> {
    let (activation, residual) = epilogue.into_parts();
    let of_residual = residual.as_ref().map(Tracked::node);
    let epilogue = Epilogue::new(activation, residual.map(Tracked::into_primitive));
    let forward = |[x, gamma, beta]: [FlexTensor; 3], keeps_mask| {
        let (trained, mask) =
            by_type!(x, training(x, [&gamma, &beta], correction.as_ref(), epsilon, epilogue, keeps_mask));
        let Trained { output, mean, variance, states } = trained;
        (output, mask, Statistics::Batch(states.clone(), correction), (mean, variance, states))
    };
    let [of_x, of_gamma, of_beta] = [&x, &gamma, &beta].map(Tracked::node);
    let (inputs, constants) = ([x, gamma, beta], (epsilon, activation));
    // A batch's own mean and variance are no parents, nor are running ones.
    let (output, (mean, variance, states)) = match of_residual {
        None => record::<C, 3, _>([of_x, of_gamma, of_beta], &[0, 1, 2], inputs, constants, forward),
        Some(of_z) => {
            record::<C, 4, _>([of_x, of_gamma, of_beta, of_z], &[0, 1, 2, 5], inputs, constants, forward)
        }
    };
    Trained { output, mean: Tracked::new(mean), variance: Tracked::new(variance), states }
}

impl<C: CheckpointStrategy> BatchNormBackend for Autodiff<Flex, C> {
    fn batchnorm_training(
        x: Tracked,
        gamma: Tracked,
        beta: Tracked,
        epsilon: f64,
        epilogue: Epilogue<Self>,
    ) -> Trained<Self> {
        tracked_training([x, gamma, beta], None, epsilon, epilogue)
    }

    fn batchnorm_renormalized(
        x: Tracked,
        gamma: Tracked,
        beta: Tracked,
        mean: Tracked,
        variance: Tracked,
        numbers: (Renorm, f64),
        epilogue: Epilogue<Self>,
    ) -> Trained<Self> {
        let (limits, epsilon) = numbers;
        let running = Box::new([mean, variance].map(Tracked::into_primitive));
        tracked_training([x, gamma, beta], Some(Correction { limits, running }), epsilon, epilogue)
    }

    fn batchnorm_inference(
        x: Tracked,
        gamma: Tracked,
        beta: Tracked,
        mean: Tracked,
        variance: Tracked,
        epsilon: f64,
        epilogue: Epilogue<Self>,
    ) -> Tracked {
        let (activation, residual) = epilogue.into_parts();
        let of_residual = residual.as_ref().map(Tracked::node);
        let [of_x, of_gamma, of_beta, of_mean, of_variance] =
            [&x, &gamma, &beta, &mean, &variance].map(Tracked::node);
        let epilogue = Epilogue::new(activation, residual.map(Tracked::into_primitive));
        let given = [mean, variance].map(Tracked::into_primitive);
        let forward = |[x, gamma, beta]: [FlexTensor; 3], keeps_mask| {
            let parameters = [&gamma, &beta, &given[0], &given[1]];
            let (output, mask) = by_type!(x, inference(x, parameters, epsilon, epilogue, keeps_mask));
            (output, mask, Statistics::Given(Box::new(given)), ())
        };
        let (inputs, constants) = ([x, gamma, beta], (epsilon, activation));
        match of_residual {
            None => {
                let guards = [of_x, of_gamma, of_beta, of_mean, of_variance];
                record::<C, 5, _>(guards, &[0, 1, 2, 3, 4], inputs, constants, forward).0
            }
            Some(of_z) => {
                let guards = [of_x, of_gamma, of_beta, of_mean, of_variance, of_z];
                record::<C, 6, _>(guards, &[0, 1, 2, 3, 4, 5], inputs, constants, forward).0
            }
        }
    }
}
