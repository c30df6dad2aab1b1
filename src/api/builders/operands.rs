//! What the builders are given, and what is checked of it.

#![forbid(unsafe_code)]

use crate::api::params::Params;
use crate::api::shape::Shape;
use crate::ground::error::{Error, check_eps, check_len, check_optional, check_sample_weight};
use crate::ground::slices::{Sink, Source};
use crate::ground::welford::Welford;
use crate::kernel::activations::Activation;
use crate::operations::given::{Affine, Given};
use crate::operations::{Element, Job};
use crate::simd::Level;

/// Runs a job, unless there is nothing to do.
pub fn run<T: Element>(shape: &Shape, job: Job<'_, T>) -> Result<(), Error> {
    shape.geometry().map_or(Ok(()), |geometry| T::run(Level::active(), &geometry, &job))
}

/// The same of a job that looks at no tensor.
pub fn run_without_elements<T: Element>(shape: &Shape, job: Job<'_, T>) -> Result<(), Error> {
    shape.without_elements().map_or(Ok(()), |geometry| T::run(Level::active(), &geometry, &job))
}

impl<'a, T: Element> Params<'a, T> {
    pub(in crate::api) fn checked(&self, channels: usize) -> Result<Affine<'a, T>, Error> {
        check_eps(self.eps)?;
        check_optional("gamma", self.gamma, channels)?;
        check_optional("beta", self.beta, channels)?;
        self.activation.check()?;
        Ok(Affine { gamma: self.gamma, beta: self.beta, eps: self.eps })
    }
}

pub fn given<V>(argument: &'static str, value: Option<V>) -> Result<V, Error> {
    value.ok_or(Error::Missing { argument })
}

/// A tensor that is read, and that the result may be written over.
#[derive(Debug)]
pub enum Operand<'a, T: Element> {
    Read(Source<'a, T>),
    Overwritten(Sink<'a, T>),
}

impl<'a, T: Element> Operand<'a, T> {
    pub fn len(&self) -> usize {
        match self {
            Operand::Read(values) => values.len(),
            Operand::Overwritten(values) => values.len(),
        }
    }

    /// The tensor to read, and to write if it is overwritten.
    pub fn split(self) -> (Source<'a, T>, Option<Sink<'a, T>>) {
        match self {
            Operand::Read(source) => (source, None),
            Operand::Overwritten(sink) => (sink.as_source(), Some(sink)),
        }
    }
}

/// What is normalized by.
#[derive(Debug, Clone, Copy)]
pub enum Normalizer<'a, T> {
    Batch(&'a [Welford]),
    Frozen(&'a [T], &'a [T]),
}

/// That an activation goes with what there is.
pub fn check_fits(activation: Activation, with: &'static str, is_there: bool) -> Result<(), Error> {
    if is_there && !activation.is_piecewise_linear() {
        return Err(Error::Activation { activation: activation.to_string(), with });
    }
    Ok(())
}

/// A mask's length, and that the activation has one.
pub fn check_mask(shape: &Shape, mask: Option<&[u64]>, activation: Activation) -> Result<(), Error> {
    let Some(mask) = mask else { return Ok(()) };
    shape.check_mask(mask.len())?;
    check_fits(activation, "mask", true)
}

/// Weights of samples, one each, checked.
pub fn check_sample_weights(shape: &Shape, weights: Option<&[f64]>) -> Result<(), Error> {
    let Some(weights) = weights else { return Ok(()) };
    check_len("weights", weights.len(), shape.batch())?;
    weights.iter().copied().enumerate().try_for_each(check_sample_weight)
}

/// A given mean and variance, checked.
pub fn frozen_of<'a, T>(shape: &Shape, (mean, var): (&'a [T], &'a [T])) -> Result<Given<'a, T>, Error> {
    check_len("mean", mean.len(), shape.channels())?;
    check_len("var", var.len(), shape.channels())?;
    Ok(Given::Frozen { mean, var })
}

/// The statistics of a batch of so many elements per channel, checked; of as many as they say, if that is not known.
pub fn batch_of<'a, T>(
    shape: &Shape,
    states: &'a [Welford],
    expected: Option<u64>,
) -> Result<Given<'a, T>, Error> {
    check_len("states", states.len(), shape.channels())?;
    let expected = expected.or(states.first().map(Welford::count)).unwrap_or(0);
    if let Some(channel) = states.iter().position(|state| state.count() != expected) {
        return Err(Error::Count { channel, got: states[channel].count(), expected });
    }
    Ok(Given::Batch(states, expected))
}

/// The statistics of a batch that a tensor is a part of, checked: of an element at least, where it has any.
pub fn joined_of<'a, T>(shape: &Shape, states: &'a [Welford]) -> Result<Given<'a, T>, Error> {
    match batch_of(shape, states, None)? {
        Given::Batch(_, 0) if shape.len() > 0 => {
            Err(Error::Count { channel: 0, got: 0, expected: shape.per_channel() as u64 })
        }
        given => Ok(given),
    }
}
