//! Statistics, training and inference.

#![forbid(unsafe_code)]

use std::marker::PhantomData;

use crate::api::builders::operands::*;
use crate::api::gather::{Among, Gather, all_statistics};
use crate::api::params::Params;
use crate::api::partial::statistics::PartialStatistics;
use crate::api::renorm::{Renorm, Renormalized};
use crate::api::shape::Shape;
use crate::ground::error::{Error, check_len};
use crate::ground::memory::filled;
use crate::ground::slices::{Output, Sink, Source};
use crate::ground::welford::Welford;
use crate::kernel::activations::Activation;
use crate::operations::forward::{self, Forward};
use crate::operations::given::{Affine, After};
use crate::operations::memory::Mixed;
use crate::operations::storage::Storage;
use crate::operations::{Element, Job, inference};

/// The tensors of a forward pass.
#[derive(Debug)]
struct Tensors<'a, T: Element> {
    x: Option<Operand<'a, T>>,
    z: Option<Operand<'a, T>>,
    y: Option<Sink<'a, T>>,
    mask: Option<&'a mut [u64]>,
}

/// x, y and what comes after the normalization.
type CheckedTensors<'a, T> = (Source<'a, T>, Sink<'a, T>, After<'a, T, Mixed>);

impl<'a, T: Element> Tensors<'a, T> {
    const NONE: Self = Self { x: None, z: None, y: None, mask: None };

    /// What they are, checked.
    fn checked(self, shape: &Shape, activation: Activation) -> Result<CheckedTensors<'a, T>, Error> {
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

        /// Where to write which elements the activation lets through, of [`Shape::mask_len`] words: what [`Backward`](crate::Backward) takes where
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

/// One state per channel, checked; those of no elements where there are none.
fn states_of<'a, T: Element>(
    shape: &Shape,
    states: Option<&'a mut [Welford]>,
) -> Result<forward::Statistics<'a, T>, Error> {
    let states = given("states", states)?;
    check_len("states", states.len(), shape.channels())?;
    if shape.per_channel() == 0 {
        states.fill(Welford::new());
    }
    Ok(forward::Statistics::States(Output::new(states)))
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
    weights: Option<&'a [f64]>,
}

impl<'a, S: Storage> Statistics<'a, S> {
    /// Of a tensor of this shape.
    pub fn new(shape: &Shape) -> Self {
        Self { shape: *shape, x: None, states: None, weights: None }
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

    /// How often each sample counts, N weights: see [`PartialStatistics::add_weighted`].
    pub fn weights(self, weights: &'a [f64]) -> Self {
        Self { weights: Some(weights), ..self }
    }

    /// Computes.
    ///
    /// # Errors
    /// [`Error::Missing`] for x or states, [`Error::Length`], [`Error::SampleWeight`] and [`Error::NoSampleWeight`] for weights,
    /// [`Error::OutOfMemory`]. Nothing has been written then.
    pub fn run(self) -> Result<(), Error> {
        let Self { shape, x, states, weights } = self;
        let x = given("x", x)?;
        shape.check_tensor("x", x.len())?;
        if let Some(weights) = weights {
            let states = given("states", states)?;
            check_len("states", states.len(), shape.channels())?;
            states.copy_from_slice(&of_weighted(&shape, x, weights)?);
            return Ok(());
        }
        let affine = Params::<S::Arithmetic>::default().checked(shape.channels())?;
        let statistics = states_of(&shape, states)?;
        run(&shape, Job::Forward(Forward { x, y: None, affine, after: After::NOTHING, statistics }))
    }
}

/// The statistics of a batch whose samples have weights.
fn of_weighted<T: Element>(shape: &Shape, x: Source<'_, T>, weights: &[f64]) -> Result<Vec<Welford>, Error> {
    let mut batch = PartialStatistics::new(shape.channels());
    batch.add_source(shape, (0, Some(weights)), x)?;
    batch.nodes.check_weights()?;
    batch.states()
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
    weights: Option<&'a [f64]>,
    renorm: Option<Renormalize<'a, S::Arithmetic>>,
}

/// Limits, the running statistics, and where what they make of the batch goes.
#[derive(Debug)]
struct Renormalize<'a, T> {
    limits: Renorm,
    running: (&'a [T], &'a [T]),
    to: &'a mut Renormalized<T>,
}

impl<'a, S: Storage> Training<'a, S> {
    /// Of tensors of this shape, with this scale, shift and eps.
    pub fn new(shape: &Shape, params: Params<'a, S::Arithmetic>) -> Self {
        let (tensors, storage) = (Tensors::NONE, PhantomData);
        Self { shape: *shape, params, tensors, storage, states: None, weights: None, renorm: None }
    }

    forward_tensors!("batch");

    /// Where the batch's statistics go, one state per channel: [`Backward`](crate::Backward) takes them, and
    /// [`update_running`](crate::update_running) too.
    pub fn states(self, states: &'a mut [Welford]) -> Self {
        Self { states: Some(states), ..self }
    }

    /// How often each sample counts, N weights: its importance, or how many copies of it there are. Statistics are those of the batch in
    /// which it is so many times, and y is of each sample once, also of those of weight 0, which are not looked at for statistics.
    /// [`Backward::weights`](crate::Backward::weights) says what gradients are; [`PartialStatistics::add_weighted`] what a state's count is.
    ///
    /// ```
    /// use batchnorm::{Params, Shape, Training, Welford};
    /// let (x, mut y, mut states) = ([1.0f32, 4.0, 7.0], [0.0; 3], [Welford::new()]);
    /// let training = Training::new(&Shape::nchw(&[3, 1])?, Params::new(2.0)).x(&x).y(&mut y).states(&mut states);
    /// training.weights(&[2.0, 1.0, 0.0]).run()?; // 1, 1, 4: mean 2, variance 2
    /// assert_eq!(y, [-0.5, 1.0, 2.5]);
    /// # Ok::<(), batchnorm::Error>(())
    /// ```
    pub fn weights(self, weights: &'a [f64]) -> Self {
        Self { weights: Some(weights), ..self }
    }

    /// Batch renormalization within these limits, by the running mean and variance, one of each per channel, which the batch is not in
    /// yet: y = act(gamma * (xhat * r + d) + beta). r and d, which [`Backward`](crate::Backward) needs by way of
    /// [`Renormalized::params`] and [`Renormalized::gamma_gradient`], go to `to`. Among other processes
    /// ([`run_among`](Self::run_among)) everyone gives the same limits and running statistics, and gets the same r and d.
    ///
    /// ```
    /// use batchnorm::{Params, Renorm, Renormalized, Shape, Training, Welford};
    /// let (x, mut y, mut states) = ([1.0f32, 3.0], [0.0; 2], [Welford::new()]);
    /// let (limits, mut renormalized) = (Renorm { r_max: 3.0, d_max: 5.0 }, Renormalized::new());
    /// let training = Training::new(&Shape::nchw(&[2, 1])?, Params::new(0.0)).x(&x).y(&mut y).states(&mut states);
    /// training.renorm(limits, &[1.0], &[0.25], &mut renormalized).run()?;
    /// assert_eq!((renormalized.r(), renormalized.d()), (&[2.0][..], &[2.0][..]));
    /// assert_eq!(y, [-1.0 * 2.0 + 2.0, 1.0 * 2.0 + 2.0]);
    /// # Ok::<(), batchnorm::Error>(())
    /// ```
    pub fn renorm(
        self,
        limits: Renorm,
        mean: &'a [S::Arithmetic],
        var: &'a [S::Arithmetic],
        to: &'a mut Renormalized<S::Arithmetic>,
    ) -> Self {
        Self { renorm: Some(Renormalize { limits, running: (mean, var), to }), ..self }
    }

    /// Computes.
    ///
    /// # Errors
    /// [`Error::Missing`] for x, y or states, [`Error::Twice`] for y in two places, [`Error::Length`],
    /// [`Error::Epsilon`], [`Error::NotFinite`] and [`Error::Clip`] for the activation's numbers, [`Error::Activation`] for a
    /// residual or a mask that it does not go with, [`Error::Limit`], [`Error::SampleWeight`] and [`Error::NoSampleWeight`],
    /// [`Error::OutOfMemory`]. Nothing has been written then.
    pub fn run(self) -> Result<(), Error> {
        let (shape, checked) = (self.shape, self.checked()?);
        if let Some(weights) = checked.weights {
            let all = of_weighted(&shape, checked.x, weights)?;
            return checked.normalize_by(&shape, &all);
        }
        if checked.renorm.is_some() {
            let (x, affine) = (checked.x, checked.affine);
            let mut all = filled(shape.channels(), Welford::new())?;
            let statistics = forward::Statistics::States(Output::new(&mut all));
            run(&shape, Job::Forward(Forward { x, y: None, affine, after: After::NOTHING, statistics }))?;
            return checked.normalize_by(&shape, &all);
        }
        let Checked { x, y, after, affine, states, .. } = checked;
        let statistics = states_of(&shape, Some(states))?;
        run(&shape, Job::Forward(Forward { x, y: Some(y), affine, after, statistics }))
    }

    /// Computes, where the tensors are samples `first` to `first + N` of a batch whose other parts other processes have, who call as
    /// well: y and states are those of the whole ([`PartialStatistics`]). A part may be empty.
    ///
    /// ```
    /// use std::sync::mpsc;
    ///
    /// use batchnorm::{Error, Params, Shape, Training, Welford};
    ///
    /// // Two processes, here threads, with channels to each other.
    /// let ([mine, theirs], [inbox, their_inbox]) = {
    ///     let ((a, from_a), (b, from_b)) = (mpsc::channel::<Vec<u8>>(), mpsc::channel::<Vec<u8>>());
    ///     ([a, b], [from_b, from_a])
    /// };
    /// let part = |first: u64, x: [f32; 2], to: mpsc::Sender<Vec<u8>>, from: mpsc::Receiver<Vec<u8>>| {
    ///     let (mut y, mut states) = ([0.0; 2], [Welford::new()]);
    ///     let mut gather = |bytes: &[u8], each: &mut dyn FnMut(&[u8])| {
    ///         let gone = |_| Error::Gather { reason: "the other is gone".to_owned() };
    ///         to.send(bytes.to_vec()).map_err(|_| gone(()))?;
    ///         each(bytes);
    ///         each(&from.recv().map_err(|_| gone(()))?);
    ///         Ok(())
    ///     };
    ///     let shape = Shape::nchw(&[2, 1])?;
    ///     let training = Training::new(&shape, Params::new(0.0)).x(&x).y(&mut y).states(&mut states);
    ///     training.run_among(first, &mut gather)?;
    ///     assert_eq!((states[0].count(), states[0].mean()), (4, 2.0));
    ///     Ok::<_, Error>(y)
    /// };
    /// let other = std::thread::spawn(move || part(2, [3.0, 3.0], theirs, their_inbox));
    /// assert_eq!(part(0, [1.0, 1.0], mine, inbox)?, [-1.0, -1.0]);
    /// assert_eq!(other.join().unwrap()?, [1.0, 1.0]);
    /// # Ok::<(), Error>(())
    /// ```
    ///
    /// # Errors
    /// As of [`run`](Self::run), and [`Error::Gather`], [`Error::Partial`] and [`Error::Bytes`] for what could not be had of the others,
    /// or does not go together. Nothing has been written then.
    pub fn run_among(self, first: u64, gather: &mut dyn Gather) -> Result<(), Error> {
        self.run_among_if(Among { first, gather }, |_| Ok(()))
    }

    /// The same if nothing speaks against the number of elements per channel of the batch, once it is known.
    pub(in crate::api) fn run_among_if(
        self,
        Among { first, gather }: Among<'_>,
        check: impl FnOnce(u64) -> Result<(), Error>,
    ) -> Result<(), Error> {
        let (shape, checked) = (self.shape, self.checked());
        let part = checked.as_ref().map_err(Clone::clone).and_then(|Checked { x, weights, .. }| {
            let mut part = PartialStatistics::new(shape.channels());
            part.add_source(&shape, (first, *weights), *x).map(|()| part)
        });
        let all = all_statistics::<S::Arithmetic>(&shape, part, gather)?;
        let checked = checked?;
        all.nodes.check_weights()?;
        let all = all.states()?;
        check(all.first().map_or(0, Welford::count))?;
        checked.normalize_by(&shape, &all)
    }

    fn checked(self) -> Result<Checked<'a, S::Arithmetic>, Error> {
        let Self { shape, params, tensors, states, weights, renorm, .. } = self;
        let (x, y, after) = tensors.checked(&shape, params.activation)?;
        let affine = params.checked(shape.channels())?;
        let states = given("states", states)?;
        check_len("states", states.len(), shape.channels())?;
        if let Some(Renormalize { limits, running, .. }) = &renorm {
            limits.check_with(shape.channels(), *running, &params)?;
        }
        Ok(Checked { x, y, after, affine, states, weights, params, renorm })
    }
}

/// Training's arguments, checked.
struct Checked<'a, T: Element> {
    x: Source<'a, T>,
    y: Sink<'a, T>,
    after: After<'a, T, Mixed>,
    affine: Affine<'a, T>,
    states: &'a mut [Welford],
    weights: Option<&'a [f64]>,
    params: Params<'a, T>,
    renorm: Option<Renormalize<'a, T>>,
}

impl<T: Element> Checked<'_, T> {
    /// Normalizes by the states of all of the batch, which are returned once nothing can go wrong any more.
    fn normalize_by(self, shape: &Shape, all: &[Welford]) -> Result<(), Error> {
        let Checked { x, y, after, affine, states, params, renorm, .. } = self;
        // Made anew, for it is of one lifetime only, and what it is run with lives here.
        let After { activation, residual, mask } = after;
        let after = After { activation, residual, mask };
        let given = joined_of(shape, all)?;
        match renorm {
            None => run(shape, Job::Inference(inference::Inference { x, y, affine, after, given }))?,
            Some(Renormalize { limits, running: (mean, var), to }) => {
                let renormalized = limits.renormalize(all, mean, var, &params)?;
                let affine = renormalized.params(&params).checked(shape.channels())?;
                run(shape, Job::Inference(inference::Inference { x, y, affine, after, given }))?;
                *to = renormalized;
            }
        }
        states.copy_from_slice(all);
        Ok(())
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
    statistics: Option<Normalizer<'a, S::Arithmetic>>,
}

impl<'a, S: Storage> Inference<'a, S> {
    /// Of tensors of this shape, with this scale, shift and eps.
    pub fn new(shape: &Shape, params: Params<'a, S::Arithmetic>) -> Self {
        Self { shape: *shape, params, tensors: Tensors::NONE, storage: PhantomData, statistics: None }
    }

    forward_tensors!("tensor");

    /// The mean and the variance to normalize by, one of each per channel. Takes the place of [`states`](Self::states).
    pub fn frozen(self, mean: &'a [S::Arithmetic], var: &'a [S::Arithmetic]) -> Self {
        Self { statistics: Some(Normalizer::Frozen(mean, var)), ..self }
    }

    /// The statistics of a batch that this is a part of, one state per channel, all of the same number of elements: what
    /// [`Training`] does with the batch once it has its states, to the bit, with all of their precision
    /// ([`PartialStatistics`](crate::PartialStatistics)). Takes the place of [`frozen`](Self::frozen).
    pub fn states(self, states: &'a [Welford]) -> Self {
        Self { statistics: Some(Normalizer::Batch(states)), ..self }
    }

    /// For callers who do not know which of the two.
    #[cfg(feature = "capi")]
    pub(crate) fn by(self, statistics: Normalizer<'a, S::Arithmetic>) -> Self {
        Self { statistics: Some(statistics), ..self }
    }

    /// Computes.
    ///
    /// # Errors
    /// [`Error::Missing`] for x, y or mean (with var), [`Error::Twice`] for y in two places, [`Error::Length`],
    /// [`Error::Count`] for states of different numbers of elements, or of none,
    /// [`Error::Epsilon`], [`Error::NotFinite`] and [`Error::Clip`] for the activation's numbers, [`Error::Activation`] for a
    /// residual or a mask that it does not go with, [`Error::OutOfMemory`]. Nothing has been written then.
    pub fn run(self) -> Result<(), Error> {
        let Self { shape, params, tensors, statistics, .. } = self;
        let (x, y, after) = tensors.checked(&shape, params.activation)?;
        let given = match given("mean", statistics)? {
            Normalizer::Batch(states) => joined_of(&shape, states)?,
            Normalizer::Frozen(mean, var) => frozen_of(&shape, (mean, var))?,
        };
        let affine = params.checked(shape.channels())?;
        run(&shape, Job::Inference(inference::Inference { x, y, affine, after, given }))
    }
}
