//! Gradients.

#![forbid(unsafe_code)]

use crate::api::builders::operands::*;
use crate::api::gather::{Gather, all_gradients};
use crate::api::params::{Gradients, Params};
use crate::api::partial::gradients::PartialGradients;
use crate::api::partial::nodes::count_of_batch;
use crate::api::shape::Shape;
use crate::ground::error::{Error, check_optional};
use crate::ground::slices::{Input, Output, Sink};
use crate::ground::welford::Welford;
use crate::kernel::activations::Activation;
use crate::kernel::bits::Bits;
use crate::operations::memory::Mixed;
use crate::operations::storage::Storage;
use crate::operations::{Element, Job, backward};

/// Gradients of [`Training`](crate::Training), from its input, the gradient of its output and the states that it returned:
/// dbeta = sum(dy), dgamma = sum(dy * xhat), dx = gamma * invstd * (dy - dbeta / m - xhat * dgamma / m); or of
/// [`Inference`](crate::Inference), whose statistics do not depend on x: dx = gamma * invstd * dy.
///
/// [`backward`](crate::backward) and [`backward_frozen`](crate::backward_frozen) are the short forms of dx apart.
/// `params` are the forward pass's; beta is looked at where there is an activation. Through one, dy stands for g = dy *
/// act'(u), which is also dz, the gradient of the residual. u is found from x anew, so that nothing but x need be kept;
/// where there was a residual it cannot be, and what [`Training::mask`](crate::Training::mask) wrote says enough. dmean and dvar are dL/dmean
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
    sums: Option<&'a PartialGradients<S::Arithmetic>>,
    weights: Option<&'a [f64]>,
}

/// What runs.
type Checked<'a, T> = backward::Backward<'a, T, Mixed>;

/// Gradients per channel, by their names.
type PerChannel<'a, T> = [(&'static str, Option<&'a mut [T]>); 4];

/// Both, or why not.
type CheckedWith<'a, T> = Result<(Checked<'a, T>, PerChannel<'a, T>), Error>;

impl<'a, S: Storage> Backward<'a, S> {
    /// Of tensors of this shape, through a forward pass with this scale and eps.
    pub fn new(shape: &Shape, params: Params<'a, S::Arithmetic>) -> Self {
        let gradients = Gradients::new();
        let (dx, dz, mask, statistics, sums, weights) = (None, None, None, None, None, None);
        let (shape, x, dy, dz_over_dy) = (*shape, None, None, false);
        Self { shape, params, x, dy, dz_over_dy, dx, dz, mask, statistics, gradients, sums, weights }
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

    /// Through training: the states that it returned, one per channel; of all of the batch, where the tensors are a part of it
    /// ([`part`](Self::part), [`sums`](Self::sums)). Takes the place of [`frozen`](Self::frozen).
    pub fn states(self, states: &'a [Welford]) -> Self {
        Self { statistics: Some(Normalizer::Batch(states)), ..self }
    }

    /// Through inference: the mean and the variance that it took, one of each per channel. Takes the place of
    /// [`states`](Self::states).
    pub fn frozen(self, mean: &'a [S::Arithmetic], var: &'a [S::Arithmetic]) -> Self {
        Self { statistics: Some(Normalizer::Frozen(mean, var)), ..self }
    }

    /// For callers who do not know which of the two.
    #[cfg(feature = "capi")]
    pub(crate) fn by(self, statistics: Normalizer<'a, S::Arithmetic>) -> Self {
        Self { statistics: Some(statistics), ..self }
    }

    /// The gradients wanted; dx among them if it goes neither over x nor over dy.
    pub fn gradients(self, gradients: Gradients<'a, S>) -> Self {
        Self { gradients, ..self }
    }

    /// The sums over all of the batch that the tensors are a part of: by them gradients are those of the whole. The states are of
    /// as many elements as they; through frozen statistics, sums of fewer parts than there are go unnoticed.
    pub fn sums(self, sums: &'a PartialGradients<S::Arithmetic>) -> Self {
        Self { sums: Some(sums), ..self }
    }

    /// The forward pass's weights of samples, N of them ([`Training::weights`](crate::Training::weights)): gradients are those of the
    /// batch in which a sample is so many times. So dy is the gradient of one copy's y and dx that of its x, while dgamma, dbeta, dmean and dvar
    /// are sums over all copies, dbeta = sum(w * dy). Who has the gradient of a loss in which samples have their weights already, w * dy,
    /// divides by w before and multiplies dx by it after. Beside [`sums`](Self::sums), which have them, they change nothing.
    ///
    /// ```
    /// use batchnorm::{Backward, Gradients, Params, Shape, Welford};
    /// let (x, dy, states) = ([1.0f32, 4.0], [1.0f32, 4.0], [[1.0, 1.0, 4.0].into_iter().collect::<Welford>()]);
    /// let (mut dx, mut dbeta) = ([0.0; 2], [0.0]);
    /// Backward::new(&Shape::nchw(&[2, 1])?, Params::new(0.0))
    ///     .x(&x)
    ///     .dy(&dy)
    ///     .states(&states)
    ///     .weights(&[2.0, 1.0])
    ///     .gradients(Gradients::new().dx(&mut dx).dbeta(&mut dbeta))
    ///     .run()?;
    /// assert_eq!(dbeta, [6.0]); // 2 * 1 + 1 * 4
    /// # Ok::<(), batchnorm::Error>(())
    /// ```
    pub fn weights(self, weights: &'a [f64]) -> Self {
        Self { weights: Some(weights), ..self }
    }

    /// Computes.
    ///
    /// # Errors
    /// [`Error::Missing`] for x, dy or states (or mean and var), and for the mask if dz is asked for through an activation;
    /// [`Error::Twice`] for dx or dz in two places, [`Error::NotFinite`], [`Error::Clip`] and [`Error::Activation`] as of the
    /// forward pass, [`Error::Length`], [`Error::Epsilon`], [`Error::Count`] if a state is not of m elements, or of as many as the sums,
    /// [`Error::Channels`] and [`Error::Partial`] for sums of another shape, [`Error::SampleWeight`], and [`Error::NoSampleWeight`] through
    /// a batch's statistics, [`Error::OutOfMemory`]. Nothing has been written then.
    pub fn run(self) -> Result<(), Error> {
        let (shape, sums, weights) = (self.shape, self.sums, self.weights);
        check_sample_weights(&shape, weights)?;
        sums.map_or(Ok(()), |sums| shape.check_channels("partial sums", sums.nodes.channels))?;
        let count = sums.map_or(count_of_batch(&shape, weights), |sums| sums.nodes.count());
        let by_batch = matches!(self.statistics, Some(Normalizer::Batch(_)));
        if by_batch && sums.is_none() && count == 0 && shape.per_channel() > 0 {
            return Err(Error::NoSampleWeight);
        }
        let (job, mut per_channel) = self.checked(Some(count))?;
        if let Some(sums) = sums {
            return follow(&shape, sums, job, per_channel);
        }
        if weights.is_some() {
            return follow(&shape, &sum(&shape, (0, weights), &job)?, job, per_channel);
        }
        if count == 0 {
            no_sums(&mut per_channel);
        }
        let outputs = per_channel.map(|(_, output)| output.map(Output::new));
        run(&shape, Job::Backward(job.by(backward::Sums::Own, outputs)))
    }

    /// Computes, where the tensors are samples `first` to `first + N` of a batch whose other parts other processes have, who call as
    /// well, as of [`Training::run_among`](crate::Training::run_among): gradients are those of the whole. The states are of all of it.
    ///
    /// # Errors
    /// As of [`run`](Self::run), [`Error::Twice`] for [`sums`](Self::sums) that are given, and [`Error::Gather`], [`Error::Partial`] and
    /// [`Error::Bytes`] for what could not be had of the others, or does not go together. Nothing has been written then.
    pub fn run_among(self, first: u64, gather: &mut dyn Gather) -> Result<(), Error> {
        let (shape, weights) = (self.shape, self.weights);
        let twice = self.sums.map_or(Ok(()), |_| Err(Error::Twice { argument: "sums" }));
        let checked = twice.and_then(|()| self.checked(None));
        let part = checked.as_ref().map_err(Clone::clone);
        let part = part.and_then(|(job, _)| Ok((sum(&shape, (first, weights), job)?, job.count())));
        let all = all_gradients(&shape, part, gather)?;
        let (job, per_channel) = checked?;
        follow(&shape, &all, job, per_channel)
    }

    /// The sums of a part of a batch, samples `first` to `first + N` of it, by the states of the whole batch. Gradients are not
    /// looked at: the same with the joined [`sums`](Self::sums) gives them.
    ///
    /// # Errors
    /// As of [`run`](Self::run), but of states nothing is asked than that they are all of as many elements, of one at least where
    /// there are any here; and [`Error::Partial`] where the samples are too many to be counted.
    pub fn part(self, first: u64) -> Result<PartialGradients<S::Arithmetic>, Error> {
        let (shape, weights) = (self.shape, self.weights);
        let (job, _) = self.checked(None)?;
        sum(&shape, (first, weights), &job)
    }

    /// All but what is per channel, with states of `count` elements.
    fn checked(self, count: Option<u64>) -> CheckedWith<'a, S::Arithmetic> {
        let Self { shape, params, x, dy, dz_over_dy, mask, statistics, gradients, .. } = self;
        let (dx_beside, dz_beside) = (self.dx, self.dz);
        let channels = shape.channels();
        let (x, dy) = (given("x", x)?, given("dy", dy)?);
        let given = match given("states", statistics)? {
            Normalizer::Batch(states) => match count {
                Some(_) => batch_of(&shape, states, count)?,
                None => joined_of(&shape, states)?,
            },
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
        let per_channel = [("dgamma", dgamma), ("dbeta", dbeta), ("dmean", dmean), ("dvar", dvar)];
        for (name, output) in &per_channel {
            check_optional(name, output.as_deref(), channels)?;
        }
        let (dgamma, dbeta, dmean, dvar) = (None, None, None, None);
        let sums = backward::Sums::Own;
        let job = backward::Backward {
            x,
            dy,
            given,
            sums,
            affine,
            activation,
            mask,
            dx,
            dz,
            dgamma,
            dbeta,
            dmean,
            dvar,
        };
        Ok((job, per_channel))
    }
}

/// The sums of a part of a batch.
fn sum<T: Element>(
    shape: &Shape,
    part: (u64, Option<&[f64]>),
    job: &Checked<'_, T>,
) -> Result<PartialGradients<T>, Error> {
    let mut gradients = PartialGradients::new(shape.channels());
    gradients.nodes.add(shape, part, |sums, part| {
        let part = job.by(backward::Sums::Part(sums, part), [None; 4]);
        run(shape, Job::Backward(backward::Backward { dx: None, dz: None, ..part }))
    })?;
    Ok(gradients)
}

/// Gradients per channel of no elements.
fn no_sums<T: Element>(per_channel: &mut PerChannel<'_, T>) {
    let outputs = per_channel.iter_mut().filter_map(|(_, output)| output.as_mut());
    outputs.for_each(|output| output.fill(T::default()));
}

/// Gradients from the sums over all parts, which are of as many elements as the states.
fn follow<T: Element>(
    shape: &Shape,
    sums: &PartialGradients<T>,
    mut job: Checked<'_, T>,
    mut per_channel: PerChannel<'_, T>,
) -> Result<(), Error> {
    let (joined, weight) = sums.nodes.joined()?;
    if job.count().is_some() {
        sums.nodes.check_weights()?;
    }
    if sums.nodes.elements() == 0 {
        no_sums(&mut per_channel);
        // Of frozen statistics, dx and dz take no sums; of a batch's, there are no elements.
        let job = job.by(backward::Sums::Own, [None; 4]);
        return if shape.len() > 0 { run(shape, Job::Backward(job)) } else { Ok(()) };
    }
    let weight = sums.nodes.weighted.then_some(weight);
    let outputs = per_channel.map(|(_, output)| output.map(Output::new));
    if shape.len() == 0 {
        // What is per channel is that of the whole all the same.
        (job.dx, job.dz) = (None, None);
        let sums = backward::Sums::Joined(&joined, weight);
        return run_without_elements(shape, Job::Backward(job.by(sums, outputs)));
    }
    run(shape, Job::Backward(job.by(backward::Sums::Joined(&joined, weight), outputs)))
}
