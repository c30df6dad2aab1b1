//! The custom operations: what candle's graph calls forward and backward.

use std::sync::{Arc, OnceLock};

use batchnorm::{Element, Gradients, Params, Shape, Welford};
use candle_core::{
    CpuStorage, CustomOp1, CustomOp3, DType, Device, Error, Layout, Result, Storage, Tensor, WithDType,
};

use crate::memory::unwritten;
use crate::view::{dense, from_memory, to_memory};

const NAME: &str = "batchnorm";

/// An element type that candle and the kernels share.
pub(crate) trait Float: WithDType + Element {}
impl Float for f32 {}
impl Float for f64 {}

/// What an operation normalizes by.
enum Statistics<T> {
    /// The batch's own, known once the forward pass has run.
    Batch(OnceLock<Vec<Welford>>),
    /// Constants, as they were in the forward pass.
    Given { mean: Vec<T>, var: Vec<T> },
}

/// One batch normalization in candle's graph.
struct Op<T> {
    shape: Shape,
    /// The input's dimensions as they lie in memory, which are the output's.
    memory: Vec<usize>,
    eps: f64,
    statistics: Statistics<T>,
}

/// The graph's handle on an operation, of which the caller keeps another for the statistics.
struct Node<T>(Arc<Op<T>>);

/// The elements of a tensor that is dense in memory, in that order.
fn elements<'a, T: Float>(storage: &'a CpuStorage, layout: &Layout) -> Result<&'a [T]> {
    let (start, len) = (layout.start_offset(), layout.shape().elem_count());
    Ok(&T::cpu_storage_as_slice(storage)?[start..start + len])
}

/// Calls `f` with the elements of a dense tensor.
fn with_elements<T: Float, R>(tensor: &Tensor, f: impl FnOnce(&[T]) -> Result<R>) -> Result<R> {
    let (storage, layout) = tensor.storage_and_layout();
    match &*storage {
        Storage::Cpu(storage) => f(elements(storage, layout)?),
        _ => candle_core::bail!("batchnorm-candle runs on the CPU, the tensor is on {:?}", tensor.device()),
    }
}

/// Both gamma and beta.
type Affine<'a, T> = Option<(&'a [T], &'a [T])>;

impl<T: Float> Op<T> {
    fn params<'a>(&self, affine: Affine<'a, T>) -> Params<'a, T> {
        let params = Params::new(self.eps);
        affine.map_or(params, |(gamma, beta)| params.gamma(gamma).beta(beta))
    }

    fn forward(&self, x: &[T], affine: Affine<'_, T>) -> Result<(CpuStorage, candle_core::Shape)> {
        let params = self.params(affine);
        let mut y = unwritten(self.shape.len())?;
        match &self.statistics {
            Statistics::Batch(states) => {
                let mut batch = vec![Welford::new(); self.shape.channels()];
                batchnorm::forward_training(&self.shape, x, &params, &mut y, &mut batch)
                    .map_err(Error::wrap)?;
                states.get_or_init(|| batch);
            }
            Statistics::Given { mean, var } => {
                batchnorm::forward_inference(&self.shape, x, mean, var, &params, &mut y)
                    .map_err(Error::wrap)?;
            }
        }
        Ok((T::to_cpu_storage_owned(y), self.memory.as_slice().into()))
    }

    fn gradients(
        &self,
        x: &[T],
        dy: &[T],
        params: &Params<'_, T>,
        gradients: Gradients<'_, T>,
    ) -> Result<()> {
        match &self.statistics {
            Statistics::Batch(_) => batchnorm::backward(&self.shape, x, dy, self.states(), params, gradients),
            Statistics::Given { mean, var } => {
                batchnorm::backward_frozen(&self.shape, x, dy, mean, var, params, gradients)
            }
        }
        .map_err(Error::wrap)
    }

    /// The batch's statistics, once the forward pass has run.
    fn states(&self) -> &[Welford] {
        match &self.statistics {
            Statistics::Batch(states) => states.get().map_or(&[], Vec::as_slice),
            Statistics::Given { .. } => &[],
        }
    }

    fn backward(
        &self,
        x: &Tensor,
        affine: Option<(&Tensor, &Tensor)>,
        dy: &Tensor,
    ) -> Result<[Option<Tensor>; 3]> {
        let channels = self.shape.channels();
        // What no gradient is tracked of is not computed.
        let wanted = |tensor: &Tensor| tensor.track_op();
        let mut dx = wanted(x).then(|| unwritten::<T>(self.shape.len())).transpose()?;
        let per_channel =
            |tensor: Option<&Tensor>| tensor.is_some_and(wanted).then(|| vec![T::default(); channels]);
        let mut dgamma = per_channel(affine.map(|(gamma, _)| gamma));
        let mut dbeta = per_channel(affine.map(|(_, beta)| beta));

        let mut gradients = Gradients::new();
        gradients.dx = dx.as_deref_mut();
        gradients.dgamma = dgamma.as_deref_mut();
        gradients.dbeta = dbeta.as_deref_mut();
        let dy = dy.contiguous()?;
        with_elements(x, |x| {
            with_elements(&dy, |dy| match affine {
                None => self.gradients(x, dy, &self.params(None), gradients),
                Some((gamma, beta)) => with_elements(gamma, |gamma| {
                    with_elements(beta, |beta| {
                        self.gradients(x, dy, &self.params(Some((gamma, beta))), gradients)
                    })
                }),
            })
        })?;

        let dx = dx.map(|dx| {
            let dx = Tensor::from_vec(dx, self.memory.as_slice(), &Device::Cpu)?;
            dx.permute(from_memory(self.shape.layout(), self.memory.len()))
        });
        let vector = |values: Option<Vec<T>>| {
            values.map(|values| Tensor::from_vec(values, channels, &Device::Cpu)).transpose()
        };
        Ok([dx.transpose()?, vector(dgamma)?, vector(dbeta)?])
    }
}

impl<T: Float> CustomOp1 for Node<T> {
    fn name(&self) -> &'static str {
        NAME
    }

    fn cpu_fwd(&self, x: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, candle_core::Shape)> {
        self.0.forward(elements(x, layout)?, None)
    }

    fn bwd(&self, x: &Tensor, _y: &Tensor, dy: &Tensor) -> Result<Option<Tensor>> {
        let [dx, _, _] = self.0.backward(x, None, dy)?;
        Ok(dx)
    }
}

impl<T: Float> CustomOp3 for Node<T> {
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
        self.0.forward(elements(x, layout)?, Some(affine))
    }

    fn bwd(
        &self,
        x: &Tensor,
        gamma: &Tensor,
        beta: &Tensor,
        _y: &Tensor,
        dy: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let [dx, dgamma, dbeta] = self.0.backward(x, Some((gamma, beta)), dy)?;
        Ok((dx, dgamma, dbeta))
    }
}

/// Puts an operation on a tensor of type `T` into the graph.
fn apply<T: Float>(
    x: &Tensor,
    affine: Option<(&Tensor, &Tensor)>,
    eps: f64,
    statistics: Statistics<T>,
) -> Result<(Tensor, Arc<Op<T>>)> {
    let (x, shape) = dense(x)?;
    let memory = to_memory(shape.layout(), x.rank()).into_iter().map(|axis| x.dims()[axis]).collect();
    let op = Arc::new(Op { shape, memory, eps, statistics });
    let y = match affine {
        None => x.apply_op1(Node(op.clone()))?,
        Some((gamma, beta)) => x.apply_op3(&gamma.contiguous()?, &beta.contiguous()?, Node(op.clone()))?,
    };
    let y = match shape.layout() {
        batchnorm::Layout::Nchw => y,
        batchnorm::Layout::Nhwc => y.permute(from_memory(shape.layout(), x.rank()))?,
    };
    Ok((y, op))
}

fn training<T: Float>(
    x: &Tensor,
    affine: Option<(&Tensor, &Tensor)>,
    eps: f64,
) -> Result<(Tensor, Vec<Welford>)> {
    let (y, op) = apply::<T>(x, affine, eps, Statistics::Batch(OnceLock::new()))?;
    Ok((y, op.states().to_vec()))
}

fn inference<T: Float>(
    x: &Tensor,
    (mean, var): (&Tensor, &Tensor),
    affine: Option<(&Tensor, &Tensor)>,
    eps: f64,
) -> Result<Tensor> {
    let statistics = Statistics::Given { mean: mean.to_vec1::<T>()?, var: var.to_vec1::<T>()? };
    Ok(apply(x, affine, eps, statistics)?.0)
}

/// Normalizes `x` (dimensions N, C, spatial...) by its own statistics, with gamma and beta if given:
/// y = gamma * (x - mean) / sqrt(var + eps) + beta. Returns y and each channel's statistics.
///
/// Gradients reach x, gamma and beta; they are those of [`batchnorm::backward`].
///
/// # Errors
/// On another device than the CPU, for other types than f32 and f64 or several types at once, for ranks below 2, for
/// gamma and beta of another length than C.
///
/// ```
/// use batchnorm_candle::forward_training;
/// use candle_core::{Device, Tensor};
///
/// let x = Tensor::new(&[[1f32], [3.]], &Device::Cpu)?;
/// let (y, states) = forward_training(&x, None, 0.)?;
/// assert_eq!(y.to_vec2::<f32>()?, [[-1.], [1.]]);
/// assert_eq!((states[0].mean(), states[0].variance()), (2., 1.));
/// # Ok::<(), candle_core::Error>(())
/// ```
pub fn forward_training(
    x: &Tensor,
    affine: Option<(&Tensor, &Tensor)>,
    eps: f64,
) -> Result<(Tensor, Vec<Welford>)> {
    match x.dtype() {
        DType::F32 => training::<f32>(x, affine, eps),
        DType::F64 => training::<f64>(x, affine, eps),
        other => candle_core::bail!("batchnorm-candle takes f32 and f64, not {other:?}"),
    }
}

/// Normalizes `x` (dimensions N, C, spatial...) by a given mean and variance per channel.
///
/// Gradients reach x, gamma and beta; they are those of [`batchnorm::backward_frozen`]. None reaches the mean and the
/// variance, which are taken as the constants that they are at the time of the call.
///
/// # Errors
/// As [`forward_training`], and for a mean and a variance of another length than C.
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
    match x.dtype() {
        DType::F32 => inference::<f32>(x, (mean, var), affine, eps),
        DType::F64 => inference::<f64>(x, (mean, var), affine, eps),
        other => candle_core::bail!("batchnorm-candle takes f32 and f64, not {other:?}"),
    }
}
