//! Batch renormalization: how far a batch's statistics may be from the running ones before y follows the batch.

#![forbid(unsafe_code)]

use crate::api::params::Params;
use crate::ground::double::times_power;
use crate::ground::error::{Error, check_least, check_len};
use crate::ground::memory::filled;
use crate::ground::scalar::Scalar;
use crate::ground::welford::Welford;
use crate::operations::Element;
use crate::simd::environment;

/// The limits of batch renormalization, by which training normalizes almost as inference will: small batches, or batches whose
/// samples are alike, train a network that works by running statistics.
///
/// Of each channel, with the batch's mean and sigma_B = sqrt(var + eps), and the running statistics before they take in the batch,
/// mu and sigma = sqrt(running var + eps):
///
/// - r = sigma_B / sigma, clipped to 1 / r_max to r_max; d = (mean - mu) / sigma, clipped to -d_max to d_max;
/// - y = act(gamma * (xhat * r + d) + beta), with a residual + z;
/// - backward takes r and d for constants: dx is that of batch norm with gamma * r for gamma, dgamma = r * sum(g * xhat) + d * sum(g),
///   dbeta = sum(g).
///
/// `r_max` 1 and `d_max` 0 are batch norm, to the bit, whatever the running statistics are; infinite limits normalize by the running
/// statistics alone. Training begins with the former and raises them once running statistics mean something: the paper has
/// `r_max` 3 and `d_max` 5 in the end. (Where a checkpoint's format has no infinity, as JSON, `f64::MAX` does the same.)
///
/// [`BatchNorm::with_renorm`](crate::BatchNorm::with_renorm) is a layer that does so, [`Training::renorm`](crate::Training::renorm) the
/// operation; [`renormalize`](Self::renormalize) gives what an operation needs, if something else has the statistics.
///
/// S. Ioffe, "Batch Renormalization: Towards Reducing Minibatch Dependence in Batch-Normalized Models" (2017).
///
/// ```
/// use batchnorm::{BatchNorm, Renorm, Shape};
/// let shape = Shape::nchw(&[2, 1])?;
/// let (x, mut y) = ([6.0f32, 10.0], [0.0; 2]);
/// // Running mean 0 and variance 1, the batch's are 8 and 4: r = 2, and d = 8, of which 5 is left.
/// let mut layer = BatchNorm::new(1).with_eps(0.0).with_renorm(Renorm { r_max: 3.0, d_max: 5.0 });
/// layer.forward_training(&shape, &x, &mut y)?;
/// assert_eq!(y, [-1.0 * 2.0 + 5.0, 1.0 * 2.0 + 5.0]);
/// # Ok::<(), batchnorm::Error>(())
/// ```
#[derive(Debug, Clone, Copy, PartialEq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[cfg_attr(feature = "serde", serde(deny_unknown_fields))]
pub struct Renorm {
    /// The most that r may be, and 1 / r_max the least: at least 1, infinite for no limit.
    pub r_max: f64,
    /// The most that |d| may be, in standard deviations: at least 0, infinite for no limit.
    pub d_max: f64,
}

impl Renorm {
    /// r and d of each channel, and the gamma and beta that they make of those of `params`: by `states` of a batch, one per channel,
    /// and the running mean and variance before they take it in.
    ///
    /// With these states and [`Renormalized::params`], [`Inference::states`](crate::Inference::states) gives y, and
    /// [`Backward`](crate::Backward) all gradients, of which dgamma then is completed by [`Renormalized::gamma_gradient`]. So it is for
    /// parts of a batch ([`PartialStatistics`](crate::PartialStatistics), `Backward::run_among`), of which everyone has the same
    /// states.
    ///
    /// r and d are of f64's precision; gamma * r and beta + gamma * d are rounded to the element once they are computed. A channel of no
    /// elements has r 1 and d 0. A NaN in a channel's statistics makes r and d NaN; those that a limit leaves no choice (1 of r, 0
    /// of d) stay. Where sigma is 0, 0 / 0 is 1 for r and 0 for d: nothing differs.
    ///
    /// # Errors
    /// [`Error::Limit`], [`Error::Length`], [`Error::Epsilon`], [`Error::NotFinite`] and [`Error::Clip`] for the activation's numbers,
    /// [`Error::OutOfMemory`].
    ///
    /// ```
    /// use batchnorm::{Backward, Gradients, Inference, Params, Renorm, Shape, Welford, statistics};
    /// let (shape, params) = (Shape::nchw(&[4, 1])?, Params::new(0.0));
    /// let (x, dy) = ([1.0f32, 3.0, 1.0, 3.0], [1.0f32, 0.0, 0.0, 0.0]);
    /// let (mut states, mut y) = ([Welford::new()], [0.0; 4]);
    /// statistics(&shape, &x, &mut states)?; // mean 2, variance 1
    ///
    /// // The running statistics: mean 1.5, variance 0.25.
    /// let renormalized = Renorm { r_max: 1.5, d_max: 5.0 }.renormalize(&states, &[1.5], &[0.25], &params)?;
    /// assert_eq!((renormalized.r(), renormalized.d()), (&[1.5][..], &[1.0][..]));
    /// let params = renormalized.params(&params);
    /// Inference::new(&shape, params).x(&x).y(&mut y).states(&states).run()?;
    /// assert_eq!(y, [-0.5, 2.5, -0.5, 2.5]);
    ///
    /// let (mut dx, mut dgamma, mut dbeta) = ([0.0; 4], [0.0], [0.0]);
    /// let gradients = Gradients::new().dx(&mut dx).dgamma(&mut dgamma).dbeta(&mut dbeta);
    /// Backward::new(&shape, params).x(&x).dy(&dy).states(&states).gradients(gradients).run()?;
    /// renormalized.gamma_gradient(&dbeta, &mut dgamma)?;
    /// assert_eq!((dx, dgamma, dbeta), ([0.75, 0.0, -0.75, 0.0], [-1.5 + 1.0], [1.0]));
    /// # Ok::<(), batchnorm::Error>(())
    /// ```
    pub fn renormalize<T: Element>(
        &self,
        states: &[Welford],
        mean: &[T],
        var: &[T],
        params: &Params<'_, T>,
    ) -> Result<Renormalized<T>, Error> {
        let channels = states.len();
        self.check_with(channels, (mean, var), params)?;
        let mut all = Renormalized {
            r: filled(channels, 1.0)?,
            d: filled(channels, 0.0)?,
            gamma: filled(channels, T::default())?,
            beta: filled(channels, T::default())?,
        };
        let Renormalized { r, d, gamma, beta } = &mut all;
        let places = Places { r: Some(r), d: Some(d), gamma: Some(gamma), beta: Some(beta) };
        self.write(states, (mean, var), params, places)?;
        Ok(all)
    }

    /// The limits.
    pub(crate) fn check(&self) -> Result<(), Error> {
        check_least("r_max", self.r_max, 1.0)?;
        check_least("d_max", self.d_max, 0.0)
    }

    /// All that is known before the batch's statistics are.
    pub(super) fn check_with<T: Element>(
        &self,
        channels: usize,
        (mean, var): (&[T], &[T]),
        params: &Params<'_, T>,
    ) -> Result<(), Error> {
        self.check()?;
        check_len("mean", mean.len(), channels)?;
        check_len("var", var.len(), channels)?;
        params.checked(channels).map(|_| ())
    }

    /// The same to a caller's memory, of one value per channel each.
    pub(crate) fn write<T: Element>(
        &self,
        states: &[Welford],
        (mean, var): (&[T], &[T]),
        params: &Params<'_, T>,
        mut places: Places<'_, T>,
    ) -> Result<(), Error> {
        self.check_with(states.len(), (mean, var), params)?;
        environment::in_default(|| {
            for (c, state) in states.iter().enumerate() {
                let (r, d) = self.correction(state, (mean[c].to_f64(), var[c].to_f64()), params.eps);
                let gamma = params.gamma.map_or(T::from_f64(1.0), |gamma| gamma[c]);
                let beta = params.beta.map_or(T::default(), |beta| beta[c]);
                let scale = gamma.to_f64();
                // What nothing is to be done to keeps its bits, and an infinite gamma is not multiplied by 0.
                let by_r = if r == 1.0 { gamma } else { T::from_f64(scale * r) };
                let by_d = if d == 0.0 { beta } else { T::from_f64(beta.to_f64() + scale * d) };
                put(&mut places.r, c, r);
                put(&mut places.d, c, d);
                put(&mut places.gamma, c, by_r);
                put(&mut places.beta, c, by_d);
            }
        });
        Ok(())
    }

    /// r and d of a channel.
    fn correction(&self, state: &Welford, (mean, var): (f64, f64), eps: f64) -> (f64, f64) {
        if state.count() == 0 {
            return (1.0, 0.0);
        }
        let Self { r_max, d_max } = *self;
        let sigma = (var + eps).sqrt();
        let over_sigma = |value: f64, of_nothing| {
            if (value, sigma) == (0.0, 0.0) { of_nothing } else { f64::from_f64(value / sigma) }
        };
        // One value is left, whatever the statistics are, NaN too.
        let r =
            if r_max == 1.0 { 1.0 } else { over_sigma(deviation(state, eps), 1.0).clamp(1.0 / r_max, r_max) };
        let d =
            if d_max == 0.0 { 0.0 } else { over_sigma(difference(state, mean), 0.0).clamp(-d_max, d_max) };
        (r, d)
    }
}

/// sqrt(var + eps) of a batch, where its variance leaves f64's range, too.
fn deviation(state: &Welford, eps: f64) -> f64 {
    let var = state.variance() + eps;
    let parts = state.into_parts();
    if var.is_normal() || parts.exponent == 0 || parts.m2 == 0.0 {
        return var.sqrt();
    }
    // Next to such a variance there is no eps.
    times_power((parts.m2 / parts.count as f64).sqrt(), parts.exponent)
}

/// The batch's mean less the running one, by all that the state knows: both may be large.
fn difference(state: &Welford, mean: f64) -> f64 {
    let parts = state.into_parts();
    (parts.mean - mean) + times_power(parts.mean_low, parts.exponent)
}

/// Where r and d, gamma * r and beta + gamma * d go; what is not asked for goes nowhere.
pub(crate) struct Places<'a, T> {
    pub r: Option<&'a mut [f64]>,
    pub d: Option<&'a mut [f64]>,
    pub gamma: Option<&'a mut [T]>,
    pub beta: Option<&'a mut [T]>,
}

fn put<V>(place: &mut Option<&mut [V]>, channel: usize, value: V) {
    if let Some(place) = place {
        place[channel] = value;
    }
}

/// What [`Renorm`] makes of a batch's statistics and the running ones: r and d of each channel, and by them gamma and beta. For a
/// forward pass and its backward pass, which takes them for constants.
#[derive(Debug, Clone, PartialEq)]
pub struct Renormalized<T> {
    r: Vec<f64>,
    d: Vec<f64>,
    gamma: Vec<T>,
    beta: Vec<T>,
}

impl<T: Element> Renormalized<T> {
    /// Of no channels: a place for [`Training::renorm`](crate::Training::renorm) to write to.
    pub fn new() -> Self {
        Self { r: Vec::new(), d: Vec::new(), gamma: Vec::new(), beta: Vec::new() }
    }

    /// r of each channel, the factor of xhat.
    pub fn r(&self) -> &[f64] {
        &self.r
    }

    /// d of each channel, which is added to it.
    pub fn d(&self) -> &[f64] {
        &self.d
    }

    /// gamma * r of each channel, rounded once.
    pub fn gamma(&self) -> &[T] {
        &self.gamma
    }

    /// beta + gamma * d of each channel.
    pub fn beta(&self) -> &[T] {
        &self.beta
    }

    /// `params` with [`gamma`](Self::gamma) and [`beta`](Self::beta) in the place of its own: those of the forward pass, and of its
    /// backward pass.
    pub fn params<'a>(&'a self, params: &Params<'_, T>) -> Params<'a, T> {
        let Params { eps, activation, .. } = *params;
        Params { gamma: Some(&self.gamma), beta: Some(&self.beta), eps, activation }
    }

    /// Completes dgamma: what [`Backward`](crate::Backward) by [`params`](Self::params) gave, sum(g * xhat), becomes
    /// r * sum(g * xhat) + d * dbeta. dbeta is right as it is.
    ///
    /// # Errors
    /// [`Error::Length`]; nothing has been written then.
    pub fn gamma_gradient(&self, dbeta: &[T], dgamma: &mut [T]) -> Result<(), Error> {
        check_len("dbeta", dbeta.len(), self.r.len())?;
        check_len("dgamma", dgamma.len(), self.r.len())?;
        environment::in_default(|| {
            for (((r, d), dbeta), dgamma) in self.r.iter().zip(&self.d).zip(dbeta).zip(dgamma) {
                if (*r, *d) != (1.0, 0.0) {
                    let by_d = if *d == 0.0 { 0.0 } else { d * dbeta.to_f64() };
                    *dgamma = T::from_f64(r * dgamma.to_f64() + by_d);
                }
            }
        });
        Ok(())
    }
}

impl<T: Element> Default for Renormalized<T> {
    fn default() -> Self {
        Self::new()
    }
}
