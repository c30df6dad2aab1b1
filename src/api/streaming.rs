//! Statistics over more data than one batch.

#![forbid(unsafe_code)]

use crate::api::ops::statistics;
use crate::api::shape::Shape;
use crate::ground::error::{Error, check_len};
use crate::ground::welford::Welford;
use crate::operations::Element;
use crate::simd::environment;

/// Per-channel mean and variance of a data set, taken in one batch at a time.
///
/// ```
/// use batchnorm::{Shape, StreamingStatistics};
/// let mut data_set = StreamingStatistics::new(1);
/// data_set.update(&Shape::nchw(&[2, 1])?, &[1.0f32, 2.0])?;
/// data_set.update(&Shape::nchw(&[2, 1])?, &[3.0f32, 4.0])?;
/// assert_eq!((data_set.states()[0].mean(), data_set.states()[0].variance()), (2.5, 1.25));
/// # Ok::<(), batchnorm::Error>(())
/// ```
#[derive(Debug, Clone, PartialEq)]
pub struct StreamingStatistics {
    states: Vec<Welford>,
    batch: Vec<Welford>,
}

impl StreamingStatistics {
    /// Of no data yet.
    pub fn new(channels: usize) -> Self {
        Self { states: vec![Welford::new(); channels], batch: vec![Welford::new(); channels] }
    }

    /// Takes in one batch.
    ///
    /// # Errors
    /// [`Error::Length`] if `x` has not the shape's length, [`Error::Channels`] if the shape has another number of
    /// channels, [`Error::OutOfMemory`]; then nothing has been taken in.
    pub fn update<T: Element>(&mut self, shape: &Shape, x: &[T]) -> Result<(), Error> {
        shape.check_channels("statistics", self.states.len())?;
        statistics(shape, x, &mut self.batch)?;
        merge_all(&mut self.states, &self.batch);
        Ok(())
    }

    /// Takes in what another has seen, of another part of the data set.
    ///
    /// # Errors
    /// [`Error::Length`] if it has another number of channels.
    pub fn merge(&mut self, other: &Self) -> Result<(), Error> {
        check_len("other", other.states.len(), self.states.len())?;
        merge_all(&mut self.states, &other.states);
        Ok(())
    }

    /// The state of each channel.
    pub fn states(&self) -> &[Welford] {
        &self.states
    }
}

fn merge_all(states: &mut [Welford], others: &[Welford]) {
    environment::in_default(|| {
        states.iter_mut().zip(others).for_each(|(state, other)| state.merge(other));
    });
}
