//! Statistics over more data than one batch.

#![forbid(unsafe_code)]

use crate::api::partial::nodes::Nodes;
use crate::api::partial::statistics::PartialStatistics;
use crate::api::shape::Shape;
use crate::ground::error::{Error, check_len};
use crate::ground::memory::filled;
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
/// Batches of one shape but for N, taken in one after the other, are to it one batch: the states have the bits of one call over all of
/// them, however they are cut, as long as each but the last is of a multiple of [`Shape::granularity`] samples; else they are within
/// the same bounds. What comes with other positions, of another arithmetic, or by [`merge`](Self::merge), is another part, and merges as
/// states do. Parts that several processes take in are for [`PartialStatistics`].
///
/// It is what its states are: two are equal if these are, and with the feature `serde` they are written and read. (What is read is a
/// part of its own to what is taken in next.)
#[derive(Debug, Clone)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[cfg_attr(feature = "serde", serde(from = "Vec<Welford>", into = "Vec<Welford>"))]
pub struct StreamingStatistics {
    states: Vec<Welford>,
    /// Those of the parts before the last.
    before: Vec<Welford>,
    /// Batches that are one to statistics.
    last: Option<Nodes>,
}

impl PartialEq for StreamingStatistics {
    fn eq(&self, other: &Self) -> bool {
        self.states == other.states
    }
}

/// Of what the states have seen, one per channel.
impl From<Vec<Welford>> for StreamingStatistics {
    fn from(states: Vec<Welford>) -> Self {
        Self { before: states.clone(), states, last: None }
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
    /// channels, [`Error::Partial`] for more elements than can be counted, [`Error::OutOfMemory`]; then nothing has been taken in.
    pub fn update<S: Storage>(&mut self, shape: &Shape, x: &[S]) -> Result<(), Error> {
        self.take_in(shape, x, None)
    }

    /// Takes in one batch whose samples have weights, one each: [`PartialStatistics::add_weighted`]. Batches of one arithmetic with weights
    /// that come one after the other are one batch, cut anywhere, of samples of any sizes. What comes beside, without weights or by
    /// [`merge`](Self::merge), merges by the states' counts, which are whole numbers: sums of weights should be large, or whole, then.
    /// A batch without elements, or what has seen none, changes nothing.
    ///
    /// ```
    /// use batchnorm::{Shape, StreamingStatistics};
    /// let (shape, mut data_set) = (Shape::nchw(&[2, 1])?, StreamingStatistics::new(1));
    /// data_set.update_weighted(&shape, &[1.0f32, 4.0], &[2.0, 0.5])?;
    /// data_set.update_weighted(&shape, &[4.0f32, 9.0], &[0.5, 0.0])?;
    /// assert_eq!((data_set.states()[0].mean(), data_set.states()[0].variance()), (2.0, 2.0)); // of 1, 1, 4
    /// # Ok::<(), batchnorm::Error>(())
    /// ```
    ///
    /// # Errors
    /// As of [`update`](Self::update); [`Error::Length`] for weights that are not N, [`Error::SampleWeight`].
    pub fn update_weighted<S: Storage>(
        &mut self,
        shape: &Shape,
        x: &[S],
        weights: &[f64],
    ) -> Result<(), Error> {
        self.take_in(shape, x, Some(weights))
    }

    fn take_in<S: Storage>(&mut self, shape: &Shape, x: &[S], weights: Option<&[f64]>) -> Result<(), Error> {
        shape.check_channels("statistics", self.states.len())?;
        let c = self.states.len();
        let mut last = PartialStatistics::<S::Arithmetic>::new(c);
        let goes_on = |so_far: &&Nodes| {
            // With weights, positions may differ: merging by the states' whole counts would lose some.
            let as_large =
                weights.is_some() || so_far.iter().all(|node| node.spatial == shape.spatial() as u64);
            so_far.kind == last.nodes.kind && so_far.weighted == weights.is_some() && as_large
        };
        let continued = self.last.as_ref().filter(goes_on);
        // Only what is complete is kept.
        continued.map_or(Ok(()), |so_far| last.nodes.join(so_far))?;
        let before = if continued.is_some() { &self.before } else { &self.states };
        last.add_source(shape, (last.samples(), weights), S::source(x))?;
        // What has no elements leaves what comes before and after it one batch.
        if shape.per_channel() == 0 {
            return Ok(());
        }
        let [mut total, mut kept] = [filled(c, Welford::new())?, filled(c, Welford::new())?];
        total.copy_from_slice(before);
        kept.copy_from_slice(before);
        merge_all(&mut total, &last.states()?);
        self.before = kept;
        (self.states, self.last) = (total, Some(last.nodes));
        Ok(())
    }

    /// Takes in what another has seen, of another part of the data set.
    ///
    /// # Errors
    /// [`Error::Length`] if it has another number of channels.
    pub fn merge(&mut self, other: &Self) -> Result<(), Error> {
        check_len("other", other.states.len(), self.states.len())?;
        if other.states.iter().all(|state| state.count() == 0) {
            return Ok(());
        }
        merge_all(&mut self.states, &other.states);
        self.before.clone_from(&self.states);
        self.last = None;
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
