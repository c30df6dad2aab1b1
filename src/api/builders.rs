//! The operations on slices that the caller owns, each a builder: operands, then checks, then the engine.
//!
//! Options belong to these builders, so that an operation has one function however many options it takes. Nothing is
//! written before everything has been checked. An empty problem (no channels, or no elements per channel) is no error.

#![forbid(unsafe_code)]

use std::marker::PhantomData;

use crate::api::params::{Gradients, Params};
use crate::api::shape::Shape;
use crate::ground::error::{Error, check_eps, check_len, check_optional};
use crate::ground::slices::{Input, Output, Sink, Source};
use crate::ground::welford::Welford;
use crate::kernel::activations::Activation;
use crate::kernel::bits::Bits;
use crate::operations::forward::Forward;
use crate::operations::given::{Affine, After, Given};
use crate::operations::memory::Mixed;
use crate::operations::storage::Storage;
use crate::operations::{Element, Job, backward, inference};
use crate::simd::Level;

/// Runs a job, unless there is nothing to do.
fn run<T: Element>(shape: &Shape, job: Job<'_, T>) -> Result<(), Error> {
    shape.geometry().map_or(Ok(()), |geometry| T::run(Level::active(), &geometry, &job))
}

impl<'a, T: Element> Params<'a, T> {
    fn checked(&self, channels: usize) -> Result<Affine<'a, T>, Error> {
        check_eps(self.eps)?;
        check_optional("gamma", self.gamma, channels)?;
        check_optional("beta", self.beta, channels)?;
        self.activation.check()?;
        Ok(Affine { gamma: self.gamma, beta: self.beta, eps: self.eps })
    }
}

fn given<V>(argument: &'static str, value: Option<V>) -> Result<V, Error> {
    value.ok_or(Error::Missing { argument })
}

/// A tensor that is read, and that the result may be written over.
#[derive(Debug)]
pub(crate) enum Operand<'a, T: Element> {
    Read(Source<'a, T>),
    Overwritten(Sink<'a, T>),
}

impl<'a, T: Element> Operand<'a, T> {
    fn len(&self) -> usize {
        match self {
            Operand::Read(values) => values.len(),
            Operand::Overwritten(values) => values.len(),
        }
    }

    /// The tensor to read, and to write if it is overwritten.
    fn split(self) -> (Source<'a, T>, Option<Sink<'a, T>>) {
        match self {
            Operand::Read(source) => (source, None),
            Operand::Overwritten(sink) => (sink.as_source(), Some(sink)),
        }
    }
}

/// The tensors of a forward pass.
#[derive(Debug)]
struct Tensors<'a, T: Element> {
    x: Option<Operand<'a, T>>,
    z: Option<Operand<'a, T>>,
    y: Option<Sink<'a, T>>,
    mask: Option<&'a mut [u64]>,
}

/// x, y and what comes after the normalization.
type Checked<'a, T> = (Source<'a, T>, Sink<'a, T>, After<'a, T, Mixed>);

impl<'a, T: Element> Tensors<'a, T> {
    const NONE: Self = Self { x: None, z: None, y: None, mask: None };

    /// What they are, checked.
    fn checked(self, shape: &Shape, activation: Activation) -> Result<Checked<'a, T>, Error> {
        let x = given("x", self.x)?;
        shape.check_tensor("x", x.len())?;
        self.z.as_ref().map_or(Ok(()), |z| shape.check_tensor("residual", z.len()))?;
        self.y.map_or(Ok(()), |y| shape.check_tensor("y", y.len()))?;
        check_fits(activation, "residual", self.z.is_some())?;
        check_mask(shape, self.mask.as_deref(), activation)?;
        let ((x, over_x), z) = (x.split(), self.z.map(Operand::split));
        let (residual, over_z) = z.map_or((None, None), |(z, over_z)| (Some(z), over_z));
        let mut places = [self.y, over_x, over_z].into_iter().flatten();
        let y = given("y", places.next())?;
        if places.next().is_some() {
            return Err(Error::Twice { argument: "y" });
        }
        let mask = self.mask.map(|mask| (Output::new(mask), shape.len()));
        Ok((x, y, After { activation, residual, mask }))
    }
}

/// The methods of a forward pass's builder that take its tensors, of which x is this one.
macro_rules! forward_tensors {
    ($what:literal) => {
        #[doc = concat!("The ", $what, ", of the shape's length.")]
        pub fn x(mut self, x: &'a [S]) -> Self {
            self.tensors.x = Some(Operand::Read(S::source(x)));
            self
        }

        #[doc = concat!("The ", $what, ", of the shape's length, which y is written over.")]
        pub fn x_in_place(mut self, x: &'a mut [S]) -> Self {
            self.tensors.x = Some(Operand::Overwritten(S::sink(x)));
            self
        }

        #[doc = concat!("z, of the shape's length: what is added to the normalized ", $what, " before the activation.")]
        pub fn residual(self, z: &'a [S]) -> Self {
            self.residual_of(z)
        }

        /// The same, which y is written over.
        pub fn residual_in_place(self, z: &'a mut [S]) -> Self {
            self.residual_of_in_place(z)
        }

        /// Where to write which elements the activation lets through, of [`Shape::mask_len`] words: what [`Backward`] takes where
        /// there was a residual, and may take without. Bit i % 64 of word i / 64 is that of the element at offset i, and 1 where the
        /// derivative is 1 (or u is NaN); bits behind the last are 0.
        pub fn mask(mut self, mask: &'a mut [u64]) -> Self {
            self.tensors.mask = Some(mask);
            self
        }

        /// For callers who have tensors of a type that is not theirs to know.
        #[cfg(feature = "capi")]
        pub(crate) fn operands(
            mut self,
            x: Operand<'a, S::Arithmetic>,
            z: Option<Operand<'a, S::Arithmetic>>,
            y: Option<Sink<'a, S::Arithmetic>>,
        ) -> Self {
            (self.tensors.x, self.tensors.z, self.tensors.y) = (Some(x), z, y);
            self
        }

        /// Where the result goes, of the shape's length.
        pub fn y(self, y: &'a mut [S]) -> Self {
            self.y_of(y)
        }

        /// As [`y`](Self::y), of other numbers than x: f32 where x is of 16-bit numbers, or these where it is of f32. Takes the
        /// place of it.
        pub fn y_of<Y: Storage<Arithmetic = S::Arithmetic>>(mut self, y: &'a mut [Y]) -> Self {
            self.tensors.y = Some(Y::sink(y));
            self
        }

        /// As [`residual`](Self::residual), of other numbers than x. Takes the place of it.
        pub fn residual_of<Z: Storage<Arithmetic = S::Arithmetic>>(mut self, z: &'a [Z]) -> Self {
            self.tensors.z = Some(Operand::Read(Z::source(z)));
            self
        }

        /// As [`residual_in_place`](Self::residual_in_place), of other numbers than x, which are y's then.
        pub fn residual_of_in_place<Z: Storage<Arithmetic = S::Arithmetic>>(mut self, z: &'a mut [Z]) -> Self {
            self.tensors.z = Some(Operand::Overwritten(Z::sink(z)));
            self
        }
    };
}

/// That an activation goes with what there is.
fn check_fits(activation: Activation, with: &'static str, is_there: bool) -> Result<(), Error> {
    if is_there && !activation.is_piecewise_linear() {
        return Err(Error::Activation { activation: activation.to_string(), with });
    }
    Ok(())
}

/// A mask's length, and that the activation has one.
fn check_mask(shape: &Shape, mask: Option<&[u64]>, activation: Activation) -> Result<(), Error> {
    let Some(mask) = mask else { return Ok(()) };
    shape.check_mask(mask.len())?;
    check_fits(activation, "mask", true)
}

/// One state per channel, checked; those of no elements where there are none.
fn states_of<'a>(shape: &Shape, states: Option<&'a mut [Welford]>) -> Result<Output<'a, Welford>, Error> {
    let states = given("states", states)?;
    check_len("states", states.len(), shape.channels())?;
    if shape.per_channel() == 0 {
        states.fill(Welford::new());
    }
    Ok(Output::new(states))
}

/// The statistics of each channel over batch and spatial axes; [`statistics`](crate::statistics) is the short form.
///
/// A channel with a NaN or an infinity gets NaN for mean and variance, the others are not touched by it.
///
/// ```
/// use batchnorm::{Shape, Statistics, Welford};
/// let mut states = [Welford::new(); 2];
/// Statistics::new(&Shape::nhwc(&[2, 2])?).x(&[1.0f32, 10.0, 3.0, 10.0]).states(&mut states).run()?;
/// assert_eq!((states[0].mean(), states[0].variance()), (2.0, 1.0));
/// # Ok::<(), batchnorm::Error>(())
/// ```
#[derive(Debug)]
#[must_use = "nothing is computed before `run`"]
pub struct Statistics<'a, S: Storage> {
    shape: Shape,
    x: Option<Source<'a, S::Arithmetic>>,
    states: Option<&'a mut [Welford]>,
}

impl<'a, S: Storage> Statistics<'a, S> {
    /// Of a tensor of this shape.
    pub fn new(shape: &Shape) -> Self {
        Self { shape: *shape, x: None, states: None }
    }

    /// The tensor, of the shape's length.
    pub fn x(self, x: &'a [S]) -> Self {
        Self { x: Some(S::source(x)), ..self }
    }

    /// For callers who have a tensor of a type that is not theirs to know.
    #[cfg(feature = "capi")]
    pub(crate) fn source(self, x: Source<'a, S::Arithmetic>) -> Self {
        Self { x: Some(x), ..self }
    }

    /// Where the statistics go, one state per channel.
    pub fn states(self, states: &'a mut [Welford]) -> Self {
        Self { states: Some(states), ..self }
    }

    /// Computes.
    ///
    /// # Errors
    /// [`Error::Missing`] for x or states, [`Error::Length`], [`Error::OutOfMemory`]. Nothing has been written then.
    pub fn run(self) -> Result<(), Error> {
        let Self { shape, x, states } = self;
        let x = given("x", x)?;
        shape.check_tensor("x", x.len())?;
        let affine = Params::<S::Arithmetic>::default().checked(shape.channels())?;
        let states = states_of(&shape, states)?;
        run(&shape, Job::Forward(Forward { x, y: None, affine, after: After::NOTHING, states }))
    }
}

/// Normalization of a batch by its own statistics: y = gamma * (x - mean) / sqrt(var + eps) + beta with the biased
/// variance. [`forward_training`](crate::forward_training) is the short form of x and y apart.
///
/// A channel of equal elements gives exactly beta. A channel with a NaN or an infinity gives NaN.
///
/// S. Ioffe and C. Szegedy, "Batch Normalization" (2015), algorithm 1.
///
/// ```
/// use batchnorm::{Params, Shape, Training, Welford};
/// let (mut x, mut states) = ([1.0f32, 3.0, 1.0, 3.0], [Welford::new(); 1]);
/// let shape = Shape::nchw(&[2, 1, 2])?;
/// Training::new(&shape, Params::new(0.0)).x_in_place(&mut x).states(&mut states).run()?;
/// assert_eq!(x, [-1.0, 1.0, -1.0, 1.0]);
/// # Ok::<(), batchnorm::Error>(())
/// ```
///
/// x of bf16 (feature `half`) into a residual stream of f32, which is not rounded:
///
/// ```
/// # #[cfg(feature = "half")] {
/// use batchnorm::{Params, Shape, Training, Welford};
/// use half::bf16;
/// let (x, mut stream) = ([1.0, 3.0].map(bf16::from_f32), [0.001f32, 0.002]);
/// let training = Training::new(&Shape::nchw(&[2, 1])?, Params::new(0.0)).x(&x);
/// training.residual_of_in_place(&mut stream).states(&mut [Welford::new()]).run()?;
/// assert_eq!(stream, [-0.999, 1.002]);
/// # }
/// # Ok::<(), batchnorm::Error>(())
/// ```
#[derive(Debug)]
#[must_use = "nothing is computed before `run`"]
pub struct Training<'a, S: Storage> {
    shape: Shape,
    params: Params<'a, S::Arithmetic>,
    tensors: Tensors<'a, S::Arithmetic>,
    storage: PhantomData<S>,
    states: Option<&'a mut [Welford]>,
}

impl<'a, S: Storage> Training<'a, S> {
    /// Of tensors of this shape, with this scale, shift and eps.
    pub fn new(shape: &Shape, params: Params<'a, S::Arithmetic>) -> Self {
        Self { shape: *shape, params, tensors: Tensors::NONE, storage: PhantomData, states: None }
    }

    forward_tensors!("batch");

    /// Where the batch's statistics go, one state per channel: [`Backward`] takes them, and
    /// [`update_running`](crate::update_running) too.
    pub fn states(self, states: &'a mut [Welford]) -> Self {
        Self { states: Some(states), ..self }
    }

    /// Computes.
    ///
    /// # Errors
    /// [`Error::Missing`] for x, y or states, [`Error::Twice`] for y in two places, [`Error::Length`],
    /// [`Error::Epsilon`], [`Error::NotFinite`] and [`Error::Clip`] for the activation's numbers, [`Error::Activation`] for a
    /// residual or a mask that it does not go with, [`Error::OutOfMemory`]. Nothing has been written then.
    pub fn run(self) -> Result<(), Error> {
        let Self { shape, params, tensors, states, .. } = self;
        let (x, y, after) = tensors.checked(&shape, params.activation)?;
        let affine = params.checked(shape.channels())?;
        let states = states_of(&shape, states)?;
        run(&shape, Job::Forward(Forward { x, y: Some(y), affine, after, states }))
    }
}

/// Normalization by a given mean and variance: y = gamma * (x - mean) / sqrt(var + eps) + beta.
/// [`forward_inference`](crate::forward_inference) is the short form of x and y apart.
///
/// A NaN variance, and a negative one that eps does not make up for (var + eps < 0), gives NaN in its channel and no other.
/// Where var + eps is 0, x is divided by 0 as IEEE 754 has it: a y of infinity, or NaN where x is the mean.
///
/// ```
/// use batchnorm::{Inference, Params, Shape};
/// let (gamma, mut x) = ([2.0f32], [3.0f32, 5.0]);
/// let params = Params::new(0.0).gamma(&gamma);
/// Inference::new(&Shape::nchw(&[2, 1])?, params).x_in_place(&mut x).frozen(&[1.0], &[4.0]).run()?;
/// assert_eq!(x, [2.0, 4.0]);
/// # Ok::<(), batchnorm::Error>(())
/// ```
///
/// x of f16 (feature `half`), y of f32:
///
/// ```
/// # #[cfg(feature = "half")] {
/// use batchnorm::{Inference, Params, Shape};
/// use half::f16;
/// let (x, mut y) = ([3.0, 5.0].map(f16::from_f32), [0.0f32; 2]);
/// Inference::new(&Shape::nchw(&[2, 1])?, Params::new(0.0)).x(&x).y_of(&mut y).frozen(&[0.1], &[1.0]).run()?;
/// assert_eq!(y, [2.9, 4.9]); // as f16 2.9004, 4.8984
/// # }
/// # Ok::<(), batchnorm::Error>(())
/// ```
#[derive(Debug)]
#[must_use = "nothing is computed before `run`"]
pub struct Inference<'a, S: Storage> {
    shape: Shape,
    params: Params<'a, S::Arithmetic>,
    tensors: Tensors<'a, S::Arithmetic>,
    storage: PhantomData<S>,
    frozen: Option<MeanAndVar<'a, S::Arithmetic>>,
}

impl<'a, S: Storage> Inference<'a, S> {
    /// Of tensors of this shape, with this scale, shift and eps.
    pub fn new(shape: &Shape, params: Params<'a, S::Arithmetic>) -> Self {
        Self { shape: *shape, params, tensors: Tensors::NONE, storage: PhantomData, frozen: None }
    }

    forward_tensors!("tensor");

    /// The mean and the variance to normalize by, one of each per channel.
    pub fn frozen(self, mean: &'a [S::Arithmetic], var: &'a [S::Arithmetic]) -> Self {
        Self { frozen: Some((mean, var)), ..self }
    }

    /// Computes.
    ///
    /// # Errors
    /// [`Error::Missing`] for x, y or mean (with var), [`Error::Twice`] for y in two places, [`Error::Length`],
    /// [`Error::Epsilon`], [`Error::NotFinite`] and [`Error::Clip`] for the activation's numbers, [`Error::Activation`] for a
    /// residual or a mask that it does not go with, [`Error::OutOfMemory`]. Nothing has been written then.
    pub fn run(self) -> Result<(), Error> {
        let Self { shape, params, tensors, frozen, .. } = self;
        let (x, y, after) = tensors.checked(&shape, params.activation)?;
        let given = frozen_of(&shape, given("mean", frozen)?)?;
        let affine = params.checked(shape.channels())?;
        run(&shape, Job::Inference(inference::Inference { x, y, affine, after, given }))
    }
}

/// A given mean and variance.
type MeanAndVar<'a, T> = (&'a [T], &'a [T]);

/// The same, checked.
fn frozen_of<'a, T>(shape: &Shape, (mean, var): MeanAndVar<'a, T>) -> Result<Given<'a, T>, Error> {
    check_len("mean", mean.len(), shape.channels())?;
    check_len("var", var.len(), shape.channels())?;
    Ok(Given::Frozen { mean, var })
}

/// The batch's own statistics, checked.
fn batch_of<'a, T>(shape: &Shape, states: &'a [Welford]) -> Result<Given<'a, T>, Error> {
    check_len("states", states.len(), shape.channels())?;
    let expected = shape.per_channel() as u64;
    if let Some(channel) = states.iter().position(|state| state.count() != expected) {
        return Err(Error::Count { channel, got: states[channel].count(), expected });
    }
    Ok(Given::Batch(states))
}

/// Gradients of [`Training`], from its input, the gradient of its output and the states that it returned:
/// dbeta = sum(dy), dgamma = sum(dy * xhat), dx = gamma * invstd * (dy - dbeta / m - xhat * dgamma / m); or of
/// [`Inference`], whose statistics do not depend on x: dx = gamma * invstd * dy.
///
/// [`backward`](crate::backward) and [`backward_frozen`](crate::backward_frozen) are the short forms of dx apart.
/// `params` are the forward pass's; beta is looked at where there is an activation. Through one, dy stands for g = dy *
/// act'(u), which is also dz, the gradient of the residual. u is found from x anew, so that nothing but x need be kept;
/// where there was a residual it cannot be, and what [`Training::mask`] wrote says enough. dmean and dvar are dL/dmean
/// and dL/dvar of the 2015 paper, which dx of training already contains; with frozen statistics, those with respect to
/// the mean and the variance given.
///
/// ```
/// use batchnorm::{Backward, Gradients, Params, Shape, Welford};
/// let (x, mut dy) = ([1.0f32, 3.0, 1.0, 3.0], [1.0f32, 0.0, 0.0, 0.0]);
/// let states = [x.iter().map(|&x| f64::from(x)).collect::<Welford>()];
/// let mut dbeta = [0.0];
/// Backward::new(&Shape::nchw(&[4, 1])?, Params::new(0.0))
///     .x(&x)
///     .dy_to_dx(&mut dy) // dx is written over dy
///     .states(&states)
///     .gradients(Gradients::new().dbeta(&mut dbeta))
///     .run()?;
/// assert_eq!((dy, dbeta), ([0.5, 0.0, -0.5, 0.0], [1.0]));
/// # Ok::<(), batchnorm::Error>(())
/// ```
///
/// dx is of x's numbers; of y's are dy and dz, which [`dy_of`](Self::dy_of) and its like take (feature `half`):
///
/// ```
/// # #[cfg(feature = "half")] {
/// use batchnorm::{Backward, Gradients, Params, Shape, Welford};
/// use half::bf16;
/// let (x, mut dx) = ([1.0, 3.0, 1.0, 3.0].map(bf16::from_f32), [bf16::ZERO; 4]);
/// let mut dy = [1.0f32, 0.0, 0.0, 0.0];
/// let states = [[1.0, 3.0, 1.0, 3.0].into_iter().collect::<Welford>()];
/// Backward::new(&Shape::nchw(&[4, 1])?, Params::new(0.0))
///     .x(&x)
///     .dy_of_to_dz(&mut dy) // without an activation dz is dy
///     .states(&states)
///     .gradients(Gradients::new().dx(&mut dx))
///     .run()?;
/// assert_eq!((dx, dy), ([0.5, 0.0, -0.5, 0.0].map(bf16::from_f32), [1.0, 0.0, 0.0, 0.0]));
/// # }
/// # Ok::<(), batchnorm::Error>(())
/// ```
#[derive(Debug)]
#[must_use = "nothing is computed before `run`"]
pub struct Backward<'a, S: Storage> {
    shape: Shape,
    params: Params<'a, S::Arithmetic>,
    x: Option<Operand<'a, S::Arithmetic>>,
    dy: Option<Operand<'a, S::Arithmetic>>,
    /// Whether what dy is overwritten by is dz.
    dz_over_dy: bool,
    /// Beside those of the gradients: of a type of their own.
    dx: Option<Sink<'a, S::Arithmetic>>,
    dz: Option<Sink<'a, S::Arithmetic>>,
    mask: Option<&'a [u64]>,
    statistics: Option<Normalizer<'a, S::Arithmetic>>,
    gradients: Gradients<'a, S>,
}

/// What the forward pass normalized by.
#[derive(Debug)]
enum Normalizer<'a, T> {
    Batch(&'a [Welford]),
    Frozen(&'a [T], &'a [T]),
}

impl<'a, S: Storage> Backward<'a, S> {
    /// Of tensors of this shape, through a forward pass with this scale and eps.
    pub fn new(shape: &Shape, params: Params<'a, S::Arithmetic>) -> Self {
        let gradients = Gradients::new();
        let (dx, dz, mask, statistics) = (None, None, None, None);
        let (shape, x, dy, dz_over_dy) = (*shape, None, None, false);
        Self { shape, params, x, dy, dz_over_dy, dx, dz, mask, statistics, gradients }
    }

    /// The forward pass's input, of the shape's length.
    pub fn x(self, x: &'a [S]) -> Self {
        Self { x: Some(Operand::Read(S::source(x))), ..self }
    }

    /// The forward pass's input, of the shape's length, which dx is written over.
    pub fn x_to_dx(self, x: &'a mut [S]) -> Self {
        Self { x: Some(Operand::Overwritten(S::sink(x))), ..self }
    }

    /// The gradient of the forward pass's output, of the shape's length.
    pub fn dy(self, dy: &'a [S]) -> Self {
        self.dy_of(dy)
    }

    /// As [`dy`](Self::dy), of other numbers than x: those of y. Takes the place of it.
    pub fn dy_of<Y: Storage<Arithmetic = S::Arithmetic>>(self, dy: &'a [Y]) -> Self {
        Self { dy: Some(Operand::Read(Y::source(dy))), ..self }
    }

    /// The gradient of the forward pass's output, of the shape's length, which dx is written over.
    pub fn dy_to_dx(self, dy: &'a mut [S]) -> Self {
        Self { dy: Some(Operand::Overwritten(S::sink(dy))), dz_over_dy: false, ..self }
    }

    /// The gradient of the forward pass's output, of the shape's length, which dz is written over.
    pub fn dy_to_dz(self, dy: &'a mut [S]) -> Self {
        self.dy_of_to_dz(dy)
    }

    /// As [`dy_to_dz`](Self::dy_to_dz), of other numbers than x: those of y and the residual.
    pub fn dy_of_to_dz<Y: Storage<Arithmetic = S::Arithmetic>>(self, dy: &'a mut [Y]) -> Self {
        Self { dy: Some(Operand::Overwritten(Y::sink(dy))), dz_over_dy: true, ..self }
    }

    /// As [`Gradients::dz`], of other numbers than x: those of the residual. Beside that it is a second place, [`Error::Twice`].
    pub fn dz_of<Z: Storage<Arithmetic = S::Arithmetic>>(self, dz: &'a mut [Z]) -> Self {
        Self { dz: Some(Z::sink(dz)), ..self }
    }

    /// For callers who have tensors of a type that is not theirs to know: x and dy, dx and dz if they go over neither, and whether what
    /// goes over dy is dz.
    #[cfg(feature = "capi")]
    pub(crate) fn operands(
        self,
        [x, dy]: [Operand<'a, S::Arithmetic>; 2],
        [dx, dz]: [Option<Sink<'a, S::Arithmetic>>; 2],
        dz_over_dy: bool,
    ) -> Self {
        Self { x: Some(x), dy: Some(dy), dx, dz, dz_over_dy, ..self }
    }

    /// What the forward pass wrote by its `mask`: needed if there was a residual and an activation, else what
    /// the activation lets through is found from x anew.
    pub fn mask(self, mask: &'a [u64]) -> Self {
        Self { mask: Some(mask), ..self }
    }

    /// Through training: the states that it returned, one per channel. Takes the place of [`frozen`](Self::frozen).
    pub fn states(self, states: &'a [Welford]) -> Self {
        Self { statistics: Some(Normalizer::Batch(states)), ..self }
    }

    /// Through inference: the mean and the variance that it took, one of each per channel. Takes the place of
    /// [`states`](Self::states).
    pub fn frozen(self, mean: &'a [S::Arithmetic], var: &'a [S::Arithmetic]) -> Self {
        Self { statistics: Some(Normalizer::Frozen(mean, var)), ..self }
    }

    /// The gradients wanted; dx among them if it goes neither over x nor over dy.
    pub fn gradients(self, gradients: Gradients<'a, S>) -> Self {
        Self { gradients, ..self }
    }

    /// Computes.
    ///
    /// # Errors
    /// [`Error::Missing`] for x, dy or states (or mean and var), and for the mask if dz is asked for through an activation;
    /// [`Error::Twice`] for dx or dz in two places, [`Error::NotFinite`], [`Error::Clip`] and [`Error::Activation`] as of the
    /// forward pass, [`Error::Length`], [`Error::Epsilon`], [`Error::Count`] if a state is not of m elements, [`Error::OutOfMemory`].
    /// Nothing has been written then.
    pub fn run(self) -> Result<(), Error> {
        let Self { shape, params, x, dy, dz_over_dy, mask, statistics, gradients, .. } = self;
        let (dx_beside, dz_beside) = (self.dx, self.dz);
        let channels = shape.channels();
        let (x, dy) = (given("x", x)?, given("dy", dy)?);
        let given = match given("states", statistics)? {
            Normalizer::Batch(states) => batch_of(&shape, states)?,
            Normalizer::Frozen(mean, var) => frozen_of(&shape, (mean, var))?,
        };
        shape.check_tensor("x", x.len())?;
        shape.check_tensor("dy", dy.len())?;
        let Gradients { dx, dz, dgamma, dbeta, dmean, dvar } = gradients;
        let (dx, dz) = (dx.map(S::sink), dz.map(S::sink));
        for (name, output) in [("dx", dx), ("dz", dz), ("dx", dx_beside), ("dz", dz_beside)] {
            output.map_or(Ok(()), |output| shape.check_tensor(name, output.len()))?;
        }
        let activation = params.activation;
        check_mask(&shape, mask, activation)?;
        let ((x, over_x), (dy, over_dy)) = (x.split(), dy.split());
        let (dz_over_dy, dx_over_dy) = if dz_over_dy { (over_dy, None) } else { (None, over_dy) };
        let one_of = |argument, places: [Option<Sink<'a, S::Arithmetic>>; 4]| {
            let mut places = places.into_iter().flatten();
            let place = places.next();
            places.next().map_or(Ok(place), |_| Err(Error::Twice { argument }))
        };
        let dx = one_of("dx", [dx, dx_beside, over_x, dx_over_dy])?;
        let dz = one_of("dz", [dz, dz_beside, dz_over_dy, None])?;
        check_fits(activation, "residual", dz.is_some())?;
        if dz.is_some() && activation != Activation::Identity && mask.is_none() {
            return Err(Error::Missing { argument: "mask" });
        }
        let mask = mask.map(|mask| Bits(Input::new(mask)));
        let affine = params.checked(channels)?;
        let mut per_channel = [("dgamma", dgamma), ("dbeta", dbeta), ("dmean", dmean), ("dvar", dvar)];
        for (name, output) in &per_channel {
            check_optional(name, output.as_deref(), channels)?;
        }
        if shape.per_channel() == 0 {
            let outputs = per_channel.iter_mut().filter_map(|(_, output)| output.as_mut());
            outputs.for_each(|output| output.fill(S::Arithmetic::default()));
        }
        let [dgamma, dbeta, dmean, dvar] = per_channel.map(|(_, output)| output.map(Output::new));
        run(
            &shape,
            Job::Backward(backward::Backward {
                x,
                dy,
                given,
                affine,
                activation,
                mask,
                dx,
                dz,
                dgamma,
                dbeta,
                dmean,
                dvar,
            }),
        )
    }
}
