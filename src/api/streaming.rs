//! Statistics over more data than one batch.

#![forbid(unsafe_code)]

use crate::api::ops::statistics;
use crate::api::shape::Shape;
use crate::ground::error::{Error, check_len};
use crate::ground::welford::Welford;
use crate::operations::storage::Storage;
use crate::simd::environment;

/// Per-channel mean and variance of a data set, taken in one batch at a time.
///
/// ```
/// use batchnorm::{Shape, StreamingStatistics, Welford};
/// let mut data_set = StreamingStatistics::new(1);
/// data_set.update(&Shape::nchw(&[2, 1])?, &[1.0f32, 2.0])?;
/// data_set.update(&Shape::nchw(&[2, 1])?, &[3.0f32, 4.0])?;
/// assert_eq!((data_set.states()[0].mean(), data_set.states()[0].variance()), (2.5, 1.25));
///
/// // To be stored, and gone on with.
/// let states: Vec<Welford> = data_set.clone().into();
/// assert_eq!(StreamingStatistics::from(states), data_set);
/// # Ok::<(), batchnorm::Error>(())
/// ```
///
/// It is what its states are: two are equal if these are, and with the feature `serde` they are written and read.
#[derive(Debug, Clone)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[cfg_attr(feature = "serde", serde(from = "Vec<Welford>", into = "Vec<Welford>"))]
pub struct StreamingStatistics {
    states: Vec<Welford>,
    /// Room for those of a batch.
    batch: Vec<Welford>,
}

impl PartialEq for StreamingStatistics {
    fn eq(&self, other: &Self) -> bool {
        self.states == other.states
    }
}

/// Of what the states have seen, one per channel.
impl From<Vec<Welford>> for StreamingStatistics {
    fn from(states: Vec<Welford>) -> Self {
        Self { batch: vec![Welford::new(); states.len()], states }
    }
}

impl From<StreamingStatistics> for Vec<Welford> {
    fn from(statistics: StreamingStatistics) -> Self {
        statistics.states
    }
}

impl StreamingStatistics {
    /// Of no data yet.
    pub fn new(channels: usize) -> Self {
        vec![Welford::new(); channels].into()
    }

    /// Takes in one batch.
    ///
    /// # Errors
    /// [`Error::Length`] if `x` has not the shape's length, [`Error::Channels`] if the shape has another number of
    /// channels, [`Error::OutOfMemory`]; then nothing has been taken in.
    pub fn update<S: Storage>(&mut self, shape: &Shape, x: &[S]) -> Result<(), Error> {
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
