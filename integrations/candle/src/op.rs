//! The custom operations: what candle's graph calls forward and backward.

use std::sync::{Arc, OnceLock};

use batchnorm::{
    Activation, Backward, Element, Gradients, Inference, Params, Renorm, Renormalized, Shape, Training,
    Welford,
};
use candle_core::{
    CpuStorage, CustomOp1, CustomOp2, CustomOp3, DType, Device, Error, Layout, Result, Storage, Tensor,
    WithDType,
};
use half::{bf16, f16};

use crate::memory::unwritten;
use crate::view::{dense, from_memory, to_memory};

const NAME: &str = "batchnorm";

/// A type of parameters that candle and the kernels share, in which arithmetic is done.
pub(crate) trait Float: WithDType + Element {}
impl Float for f32 {}
impl Float for f64 {}

/// A type of the elements of tensors that candle and the kernels share.
trait Number: WithDType + batchnorm::Storage<Arithmetic: Float> {}
impl Number for f32 {}
impl Number for f64 {}
impl Number for bf16 {}
impl Number for f16 {}

/// Calls a function with the element type of a tensor.
macro_rules! by_dtype {
    ($tensor:expr, $function:ident ( $($argument:expr),* )) => {
        match $tensor.dtype() {
            DType::F32 => $function::<f32>($($argument),*),
            DType::F64 => $function::<f64>($($argument),*),
            DType::BF16 => $function::<bf16>($($argument),*),
            DType::F16 => $function::<f16>($($argument),*),
            other => candle_core::bail!("batchnorm-candle takes f32, f64, bf16 and f16, not {other:?}"),
        }
    };
}

/// The type that parameters have beside an input of this one, if the kernels take it.
pub(crate) fn parameter_dtype(input: DType) -> Option<DType> {
    match input {
        DType::F32 | DType::BF16 | DType::F16 => Some(DType::F32),
        DType::F64 => Some(DType::F64),
        _ => None,
    }
}

/// That parameters have the type that they have beside this input, which is one that the kernels take.
pub(crate) fn check_dtypes<'a>(
    input: DType,
    parameters: impl IntoIterator<Item = (&'static str, &'a Tensor)>,
) -> Result<()> {
    let Some(expected) = parameter_dtype(input) else { return Ok(()) };
    for (name, parameter) in parameters {
        if parameter.dtype() != expected {
            candle_core::bail!(
                "{name} is of {:?}, must be of {expected:?} for an input of {input:?}",
                parameter.dtype()
            )
        }
    }
    Ok(())
}

/// gamma and beta by name.
fn named<'a>(affine: Option<(&'a Tensor, &'a Tensor)>) -> impl Iterator<Item = (&'static str, &'a Tensor)> {
    affine.into_iter().flat_map(|(gamma, beta)| [("gamma", gamma), ("beta", beta)])
}

/// What follows a normalization in the same pass: y = act(u), where u is the normalized input plus the residual if there is one.
#[derive(Clone, Copy, Default)]
pub(crate) struct Epilogue<'a> {
    pub(crate) activation: Activation,
    /// Of the input's dimensions.
    pub(crate) residual: Option<&'a Tensor>,
}

/// Batch renormalization: the limits, and the running mean and variance as they are before the batch.
pub(crate) type Running<'a> = (Renorm, &'a Tensor, &'a Tensor);

/// The same of an operation.
struct Correction<T: Float> {
    limits: Renorm,
    mean: Vec<T>,
    var: Vec<T>,
    /// What came of it, known once the forward pass has run.
    by: OnceLock<Renormalized<T>>,
}

impl<T: Float> Correction<T> {
    fn new((limits, mean, var): Running<'_>) -> Result<Self> {
        Ok(Self { limits, mean: mean.to_vec1()?, var: var.to_vec1()?, by: OnceLock::new() })
    }
}

/// What an operation normalizes by.
enum Statistics<T: Float> {
    /// The batch's own, known once the forward pass has run, and how they are corrected if they are.
    Batch(OnceLock<Vec<Welford>>, Option<Correction<T>>),
    /// Constants, as they were in the forward pass.
    Given { mean: Vec<T>, var: Vec<T> },
}

/// One batch normalization in candle's graph.
struct Op<S: Number> {
    shape: Shape,
    /// The input's dimensions as they lie in memory, which are the output's.
    memory: Vec<usize>,
    eps: f64,
    activation: Activation,
    statistics: Statistics<S::Arithmetic>,
    /// Whether a backward pass may come that cannot find u from x, for there is a residual.
    keeps_mask: bool,
    /// Then, which elements the activation let through, known once the forward pass has run.
    mask: OnceLock<Vec<u64>>,
}

/// The graph's handle on an operation, of which the caller keeps another for the statistics. Its arguments are x, or x, gamma
/// and beta.
struct Node<S: Number>(Arc<Op<S>>);

/// The same with a residual. Its arguments are x and z, or x, z and a matrix with the rows gamma and beta: candle's operations
/// have three arguments at most.
struct ResidualNode<S: Number>(Arc<Op<S>>);

/// The elements of a tensor that is dense in memory, in that order.
fn elements<'a, T: WithDType>(storage: &'a CpuStorage, layout: &Layout) -> Result<&'a [T]> {
    let (start, len) = (layout.start_offset(), layout.shape().elem_count());
    Ok(&T::cpu_storage_as_slice(storage)?[start..start + len])
}

/// Calls `f` with the elements of a dense tensor.
fn with_elements<T: WithDType, R>(tensor: &Tensor, f: impl FnOnce(&[T]) -> Result<R>) -> Result<R> {
    let (storage, layout) = tensor.storage_and_layout();
    match &*storage {
        Storage::Cpu(storage) => f(elements(storage, layout)?),
        _ => candle_core::bail!("batchnorm-candle runs on the CPU, the tensor is on {:?}", tensor.device()),
    }
}

/// Both gamma and beta.
type Affine<'a, T> = Option<(&'a [T], &'a [T])>;

impl<S: Number> Op<S> {
    fn params<'a>(&self, affine: Affine<'a, S::Arithmetic>) -> Params<'a, S::Arithmetic> {
        let params = Params::new(self.eps).activation(self.activation);
        affine.map_or(params, |(gamma, beta)| params.gamma(gamma).beta(beta))
    }

    fn forward(
        &self,
        x: &[S],
        z: Option<&[S]>,
        affine: Affine<'_, S::Arithmetic>,
    ) -> Result<(CpuStorage, candle_core::Shape)> {
        let params = self.params(affine);
        let mut y = unwritten::<S>(self.shape.len())?;
        let mut mask = self.keeps_mask.then(|| vec![0; self.shape.mask_len()]);
        match &self.statistics {
            Statistics::Batch(states, correction) => {
                let mut batch = vec![Welford::new(); self.shape.channels()];
                let mut by = Renormalized::new();
                let mut training = Training::new(&self.shape, params).x(x).y(&mut y).states(&mut batch);
                if let Some(z) = z {
                    training = training.residual(z);
                }
                if let Some(mask) = &mut mask {
                    training = training.mask(mask);
                }
                if let Some(Correction { limits, mean, var, .. }) = correction {
                    training = training.renorm(*limits, mean, var, &mut by);
                }
                training.run().map_err(Error::wrap)?;
                states.get_or_init(|| batch);
                if let Some(correction) = correction {
                    correction.by.get_or_init(|| by);
                }
            }
            Statistics::Given { mean, var } => {
                let mut inference = Inference::new(&self.shape, params).x(x).y(&mut y).frozen(mean, var);
                if let Some(z) = z {
                    inference = inference.residual(z);
                }
                if let Some(mask) = &mut mask {
                    inference = inference.mask(mask);
                }
                inference.run().map_err(Error::wrap)?;
            }
        }
        if let Some(mask) = mask {
            self.mask.get_or_init(|| mask);
        }
        Ok((S::to_cpu_storage_owned(y), self.memory.as_slice().into()))
    }

    fn gradients(
        &self,
        x: &[S],
        dy: &[S],
        affine: Affine<'_, S::Arithmetic>,
        gradients: Gradients<'_, S>,
    ) -> Result<()> {
        let params = self.params(affine);
        let params = self.renormalized().map_or(params, |by| by.params(&params));
        let mut backward = Backward::new(&self.shape, params).x(x).dy(dy).gradients(gradients);
        if let Some(mask) = self.mask.get() {
            backward = backward.mask(mask);
        }
        match &self.statistics {
            Statistics::Batch(..) => backward.states(self.states()),
            Statistics::Given { mean, var } => backward.frozen(mean, var),
        }
        .run()
        .map_err(Error::wrap)
    }

    /// The batch's statistics, once the forward pass has run.
    fn states(&self) -> &[Welford] {
        match &self.statistics {
            Statistics::Batch(states, _) => states.get().map_or(&[], Vec::as_slice),
            Statistics::Given { .. } => &[],
        }
    }

    /// What the batch's statistics were corrected by, if they were.
    fn renormalized(&self) -> Option<&Renormalized<S::Arithmetic>> {
        match &self.statistics {
            Statistics::Batch(_, Some(correction)) => correction.by.get(),
            _ => None,
        }
    }

    /// The gradients of x, the residual, gamma and beta.
    fn backward(
        &self,
        x: &Tensor,
        z: Option<&Tensor>,
        affine: Option<(&Tensor, &Tensor)>,
        dy: &Tensor,
    ) -> Result<[Option<Tensor>; 4]> {
        let channels = self.shape.channels();
        // What no gradient is tracked of is not computed.
        let wanted = |tensor: &Tensor| tensor.track_op();
        let wants_z = z.is_some_and(wanted);
        let tensor = |wants: bool| wants.then(|| unwritten::<S>(self.shape.len())).transpose();
        let mut dx = tensor(wanted(x))?;
        let mut dz = tensor(wants_z && self.activation != Activation::Identity)?;
        let per_channel = |tensor: Option<&Tensor>| {
            tensor.is_some_and(wanted).then(|| vec![S::Arithmetic::default(); channels])
        };
        let mut dgamma = per_channel(affine.map(|(gamma, _)| gamma));
        let mut dbeta = per_channel(affine.map(|(_, beta)| beta));
        // A part of dgamma is d * dbeta.
        let mut part = match (self.renormalized(), &dgamma, &dbeta) {
            (Some(_), Some(_), None) => Some(vec![S::Arithmetic::default(); channels]),
            _ => None,
        };

        let mut gradients = Gradients::new();
        gradients.dx = dx.as_deref_mut();
        gradients.dz = dz.as_deref_mut();
        gradients.dgamma = dgamma.as_deref_mut();
        gradients.dbeta = dbeta.as_deref_mut().or(part.as_deref_mut());
        let dy = dy.contiguous()?;
        with_elements(x, |x| {
            with_elements(&dy, |dy| match affine {
                None => self.gradients(x, dy, None, gradients),
                Some((gamma, beta)) => with_elements(gamma, |gamma| {
                    with_elements(beta, |beta| self.gradients(x, dy, Some((gamma, beta)), gradients))
                }),
            })
        })?;

        if let (Some(by), Some(dgamma), Some(dbeta)) =
            (self.renormalized(), &mut dgamma, dbeta.as_ref().or(part.as_ref()))
        {
            by.gamma_gradient(dbeta, dgamma).map_err(Error::wrap)?;
        }

        let tensor = |values: Vec<S>| Tensor::from_vec(values, self.memory.as_slice(), &Device::Cpu);
        let dx = dx.map(|dx| tensor(dx)?.permute(from_memory(self.shape.layout(), self.memory.len())));
        // The residual comes in the order of memory. Where nothing follows it, its gradient is that of y.
        let dz = match dz {
            Some(dz) => Some(tensor(dz)?),
            None => wants_z.then_some(dy),
        };
        let vector = |values: Option<Vec<S::Arithmetic>>| {
            values.map(|values| Tensor::from_vec(values, channels, &Device::Cpu)).transpose()
        };
        Ok([dx.transpose()?, dz, vector(dgamma)?, vector(dbeta)?])
    }
}

impl<S: Number> CustomOp1 for Node<S> {
    fn name(&self) -> &'static str {
        NAME
    }

    fn cpu_fwd(&self, x: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, candle_core::Shape)> {
        self.0.forward(elements(x, layout)?, None, None)
    }

    fn bwd(&self, x: &Tensor, _y: &Tensor, dy: &Tensor) -> Result<Option<Tensor>> {
        let [dx, ..] = self.0.backward(x, None, None, dy)?;
        Ok(dx)
    }
}

impl<S: Number> CustomOp3 for Node<S> {
    fn name(&self) -> &'static str {
        NAME
    }

    fn cpu_fwd(
        &self,
        x: &CpuStorage,
        layout: &Layout,
        gamma: &CpuStorage,
        gamma_layout: &Layout,
        beta: &CpuStorage,
        beta_layout: &Layout,
    ) -> Result<(CpuStorage, candle_core::Shape)> {
        let affine = (elements(gamma, gamma_layout)?, elements(beta, beta_layout)?);
        self.0.forward(elements(x, layout)?, None, Some(affine))
    }

    fn bwd(
        &self,
        x: &Tensor,
        gamma: &Tensor,
        beta: &Tensor,
        _y: &Tensor,
        dy: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let [dx, _, dgamma, dbeta] = self.0.backward(x, None, Some((gamma, beta)), dy)?;
        Ok((dx, dgamma, dbeta))
    }
}

impl<S: Number> CustomOp2 for ResidualNode<S> {
    fn name(&self) -> &'static str {
        NAME
    }

    fn cpu_fwd(
        &self,
        x: &CpuStorage,
        layout: &Layout,
        z: &CpuStorage,
        z_layout: &Layout,
    ) -> Result<(CpuStorage, candle_core::Shape)> {
        self.0.forward(elements(x, layout)?, Some(elements(z, z_layout)?), None)
    }

    fn bwd(
        &self,
        x: &Tensor,
        z: &Tensor,
        _y: &Tensor,
        dy: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let [dx, dz, ..] = self.0.backward(x, Some(z), None, dy)?;
        Ok((dx, dz))
    }
}

impl<S: Number> CustomOp3 for ResidualNode<S> {
    fn name(&self) -> &'static str {
        NAME
    }

    fn cpu_fwd(
        &self,
        x: &CpuStorage,
        layout: &Layout,
        z: &CpuStorage,
        z_layout: &Layout,
        affine: &CpuStorage,
        affine_layout: &Layout,
    ) -> Result<(CpuStorage, candle_core::Shape)> {
        let affine = elements(affine, affine_layout)?;
        let affine = affine.split_at(affine.len() / 2);
        self.0.forward(elements(x, layout)?, Some(elements(z, z_layout)?), Some(affine))
    }

    fn bwd(
        &self,
        x: &Tensor,
        z: &Tensor,
        affine: &Tensor,
        _y: &Tensor,
        dy: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let (gamma, beta) = (affine.get(0)?, affine.get(1)?);
        let [dx, dz, dgamma, dbeta] = self.0.backward(x, Some(z), Some((&gamma, &beta)), dy)?;
        let daffine = dgamma.zip(dbeta).map(|(dgamma, dbeta)| Tensor::stack(&[dgamma, dbeta], 0));
        Ok((dx, dz, daffine.transpose()?))
    }
}

/// Puts an operation on a tensor of type `S` into the graph.
fn apply<S: Number>(
    x: &Tensor,
    affine: Option<(&Tensor, &Tensor)>,
    eps: f64,
    epilogue: Epilogue<'_>,
    statistics: Statistics<S::Arithmetic>,
) -> Result<(Tensor, Arc<Op<S>>)> {
    let Epilogue { activation, residual } = epilogue;
    let (x, shape) = dense(x)?;
    let order = to_memory(shape.layout(), x.rank());
    let memory = order.iter().map(|&axis| x.dims()[axis]).collect();
    let z = residual.map(|z| same_shape(z, &x)?.permute(order)?.contiguous()).transpose()?;
    let is_tracked = [Some(&x), z.as_ref(), affine.map(|(gamma, _)| gamma), affine.map(|(_, beta)| beta)]
        .into_iter()
        .flatten()
        .any(Tensor::track_op);
    let keeps_mask = z.is_some() && activation != Activation::Identity && is_tracked;
    let mask = OnceLock::new();
    let op = Arc::new(Op { shape, memory, eps, activation, statistics, keeps_mask, mask });
    let y = match (&z, affine) {
        (None, None) => x.apply_op1(Node(op.clone()))?,
        (None, Some((gamma, beta))) => {
            x.apply_op3(&gamma.contiguous()?, &beta.contiguous()?, Node(op.clone()))?
        }
        (Some(z), None) => x.apply_op2(z, ResidualNode(op.clone()))?,
        (Some(z), Some((gamma, beta))) => {
            x.apply_op3(z, &Tensor::stack(&[gamma, beta], 0)?, ResidualNode(op.clone()))?
        }
    };
    let y = match shape.layout() {
        batchnorm::Layout::Nchw => y,
        batchnorm::Layout::Nhwc => y.permute(from_memory(shape.layout(), x.rank()))?,
    };
    Ok((y, op))
}

/// The residual, if it has the input's dimensions.
fn same_shape<'a>(z: &'a Tensor, x: &Tensor) -> Result<&'a Tensor> {
    if z.dims() != x.dims() {
        candle_core::bail!("the residual's shape is {:?}, must be the input's, {:?}", z.shape(), x.shape())
    }
    Ok(z)
}

fn training<S: Number>(
    x: &Tensor,
    affine: Option<(&Tensor, &Tensor)>,
    eps: f64,
    running: Option<Running<'_>>,
    epilogue: Epilogue<'_>,
) -> Result<(Tensor, Vec<Welford>)> {
    let correction = running.map(Correction::new).transpose()?;
    let (y, op) = apply::<S>(x, affine, eps, epilogue, Statistics::Batch(OnceLock::new(), correction))?;
    Ok((y, op.states().to_vec()))
}

fn inference<S: Number>(
    x: &Tensor,
    (mean, var): (&Tensor, &Tensor),
    affine: Option<(&Tensor, &Tensor)>,
    eps: f64,
    epilogue: Epilogue<'_>,
) -> Result<Tensor> {
    let statistics = Statistics::Given { mean: mean.to_vec1()?, var: var.to_vec1()? };
    Ok(apply::<S>(x, affine, eps, epilogue, statistics)?.0)
}

/// Normalizes `x` (dimensions N, C, spatial...) by its own statistics, with gamma and beta if given:
/// y = gamma * (x - mean) / sqrt(var + eps) + beta. Returns y and each channel's statistics.
///
/// y is of x's type, gamma and beta are too, but for an x of bf16 or f16: beside that they are f32, and so is arithmetic. Gradients
/// reach x, gamma and beta, each of its own type; they are those of [`batchnorm::backward`].
///
/// # Errors
/// On another device than the CPU, for other types than f32, f64, bf16 and f16, for gamma and beta of another type than they have
/// beside x, for ranks below 2, for gamma and beta of another length than C.
///
/// ```
/// use batchnorm_candle::forward_training;
/// use candle_core::{DType, Device, Tensor};
///
/// let x = Tensor::new(&[[1f32], [3.]], &Device::Cpu)?;
/// let (y, states) = forward_training(&x, None, 0.)?;
/// assert_eq!(y.to_vec2::<f32>()?, [[-1.], [1.]]);
/// assert_eq!((states[0].mean(), states[0].variance()), (2., 1.));
///
/// let (y, _) = forward_training(&x.to_dtype(DType::BF16)?, None, 0.)?;
/// assert_eq!(y.dtype(), DType::BF16);
/// # Ok::<(), candle_core::Error>(())
/// ```
pub fn forward_training(
    x: &Tensor,
    affine: Option<(&Tensor, &Tensor)>,
    eps: f64,
) -> Result<(Tensor, Vec<Welford>)> {
    fused_training(x, affine, eps, None, Epilogue::default())
}

/// [`forward_training`] with what follows, and renormalized if running statistics are given.
pub(crate) fn fused_training(
    x: &Tensor,
    affine: Option<(&Tensor, &Tensor)>,
    eps: f64,
    running: Option<Running<'_>>,
    epilogue: Epilogue<'_>,
) -> Result<(Tensor, Vec<Welford>)> {
    check_dtypes(x.dtype(), named(affine))?;
    by_dtype!(x, training(x, affine, eps, running, epilogue))
}

/// Normalizes `x` (dimensions N, C, spatial...) by a given mean and variance per channel, which have the type of gamma and beta.
///
/// Gradients reach x, gamma and beta; they are those of [`batchnorm::backward_frozen`]. None reaches the mean and the
/// variance, which are taken as the constants that they are at the time of the call.
///
/// # Errors
/// As [`forward_training`], and for a mean and a variance of another length than C or another type than gamma's.
///
/// ```
/// use batchnorm_candle::forward_inference;
/// use candle_core::{Device, Tensor};
///
/// let x = Tensor::new(&[[3f32], [5.]], &Device::Cpu)?;
/// let (mean, var) = (Tensor::new(&[1f32], &Device::Cpu)?, Tensor::new(&[4f32], &Device::Cpu)?);
/// let y = forward_inference(&x, &mean, &var, None, 0.)?;
/// assert_eq!(y.to_vec2::<f32>()?, [[1.], [2.]]);
/// # Ok::<(), candle_core::Error>(())
/// ```
pub fn forward_inference(
    x: &Tensor,
    mean: &Tensor,
    var: &Tensor,
    affine: Option<(&Tensor, &Tensor)>,
    eps: f64,
) -> Result<Tensor> {
    fused_inference(x, (mean, var), affine, eps, Epilogue::default())
}

/// [`forward_inference`] with what follows.
pub(crate) fn fused_inference(
    x: &Tensor,
    statistics: (&Tensor, &Tensor),
    affine: Option<(&Tensor, &Tensor)>,
    eps: f64,
    epilogue: Epilogue<'_>,
) -> Result<Tensor> {
    let (mean, var) = statistics;
    check_dtypes(x.dtype(), [("mean", mean), ("var", var)].into_iter().chain(named(affine)))?;
    by_dtype!(x, inference(x, statistics, affine, eps, epilogue))
}
