//! Statistics of parts of a batch.

#![forbid(unsafe_code)]

use std::fmt;
use std::marker::PhantomData;

use super::bytes;
use super::kind::Kind;
use super::nodes::Nodes;
use crate::api::builders::operands::run;
use crate::api::params::Params;
use crate::api::shape::Shape;
use crate::ground::error::Error;
use crate::ground::memory::filled;
use crate::ground::slices::Source;
use crate::ground::sums::Sum;
use crate::ground::welford::Welford;
use crate::operations::forward::{Forward, Statistics};
use crate::operations::given::After;
use crate::operations::storage::Storage;
use crate::operations::{Element, Job};
use crate::simd::environment;

/// The statistics of a part of a batch, which join to those of the whole, to the bit: of a batch split over calls, processes or
/// machines.
///
/// A part is told by its samples, from which one of the batch on: parts of any sizes, empty ones too, join in any order, each
/// sample once. As long as parts begin at multiples of [`Shape::granularity`], the joined statistics have the bits of one call over
/// the whole batch; else they are within the same bounds, and so they are where samples have different numbers of positions,
/// images of other sizes say: each element counts once. Samples of all sizes have one numbering, and some may be missing. `T` is the arithmetic: f32, also of bf16 and f16, or f64.
///
/// With the states of all, [`Inference::states`](crate::Inference::states) normalizes each part as [`Training`](crate::Training) the
/// whole, and [`PartialGradients`](crate::PartialGradients) are the same for [`Backward`](crate::Backward).
///
/// ```
/// use batchnorm::{Inference, Params, PartialStatistics, Shape};
///
/// // Two processes with two samples each of a batch of four.
/// let shape = Shape::nchw(&[2, 1])?;
/// let (mine, theirs) = ([1.0f32, 1.0], [3.0f32, 3.0]);
/// let mut statistics = PartialStatistics::of(&shape, 0, &mine)?;
/// let sent: Vec<u8> = PartialStatistics::of(&shape, 2, &theirs)?.to_bytes()?;
///
/// statistics.join(&PartialStatistics::from_bytes(&sent)?)?;
/// let states = statistics.states()?;
/// assert_eq!((states[0].count(), states[0].mean(), states[0].variance()), (4, 2.0, 1.0));
///
/// let mut y = [0.0; 2];
/// Inference::new(&shape, Params::new(0.0)).x(&mine).y(&mut y).states(&states).run()?;
/// assert_eq!(y, [-1.0, -1.0]);
/// # Ok::<(), batchnorm::Error>(())
/// ```
#[derive(Clone, PartialEq)]
pub struct PartialStatistics<T: Element> {
    pub(crate) nodes: Nodes,
    arithmetic: PhantomData<T>,
}

impl<T: Element> PartialStatistics<T> {
    const KIND: Kind = Kind::statistics::<T>();

    /// Of no samples yet, of tensors of so many channels.
    pub fn new(channels: usize) -> Self {
        Self { nodes: Nodes::new(Self::KIND, channels), arithmetic: PhantomData }
    }

    /// Of a part, samples `first` to `first + N` of the batch.
    ///
    /// # Errors
    /// As of [`add`](Self::add).
    pub fn of<S: Storage<Arithmetic = T>>(shape: &Shape, first: u64, x: &[S]) -> Result<Self, Error> {
        let mut statistics = Self::new(shape.channels());
        statistics.add(shape, first, x)?;
        Ok(statistics)
    }

    /// Takes in a part, samples `first` to `first + N` of the batch.
    ///
    /// # Errors
    /// [`Error::Length`] if `x` has not the shape's length, [`Error::Channels`] if the shape has another number of channels,
    /// [`Error::Partial`] if its samples are there already, or their elements are too many to be counted,
    /// [`Error::OutOfMemory`]. Nothing has been taken in then.
    pub fn add<S: Storage<Arithmetic = T>>(
        &mut self,
        shape: &Shape,
        first: u64,
        x: &[S],
    ) -> Result<(), Error> {
        self.add_source(shape, (first, None), S::source(x))
    }

    /// Takes in a part whose samples have weights, one each: an element counts as often as its sample's weight says, as if it were
    /// there so many times. Samples of weight 0 are not looked at. All other parts have weights then, too, and their statistics have
    /// the same bits wherever the batch is split.
    ///
    /// The states' count is the sum of the weights times S as a whole number, one at least and 2^63 at most: weights that are
    /// importances of samples and no numbers of copies are best made 1 on average, so that the unbiased variance is that of as many
    /// elements as there are. (Of one there is none: running statistics by it are [`Error::SingleElement`].)
    ///
    /// Each sample is a block of its own. Where planes have few positions, of `[N, C]` most of all, that takes many times as long as
    /// without weights.
    ///
    /// ```
    /// use batchnorm::{PartialStatistics, Shape};
    /// let mut statistics = PartialStatistics::new(1);
    /// statistics.add_weighted(&Shape::nchw(&[3, 1])?, 0, &[1.0f32, 4.0, f32::NAN], &[2.0, 1.0, 0.0])?;
    /// let state = statistics.states()?[0];
    /// assert_eq!((state.count(), state.mean(), state.variance()), (3, 2.0, 2.0)); // those of 1, 1, 4
    /// # Ok::<(), batchnorm::Error>(())
    /// ```
    ///
    /// # Errors
    /// As of [`add`](Self::add); [`Error::Length`] for weights that are not N, [`Error::SampleWeight`]; [`Error::Partial`] too if other parts have no
    /// weights.
    pub fn add_weighted<S: Storage<Arithmetic = T>>(
        &mut self,
        shape: &Shape,
        first: u64,
        x: &[S],
        weights: &[f64],
    ) -> Result<(), Error> {
        self.add_source(shape, (first, Some(weights)), S::source(x))
    }

    pub(crate) fn add_source(
        &mut self,
        shape: &Shape,
        part: (u64, Option<&[f64]>),
        x: Source<'_, T>,
    ) -> Result<(), Error> {
        shape.check_tensor("x", x.len())?;
        let affine = Params::default().checked(shape.channels())?;
        self.nodes.add(shape, part, |sums, part| {
            let statistics = Statistics::Part(sums, part);
            run(shape, Job::Forward(Forward { x, y: None, affine, after: After::NOTHING, statistics }))
        })
    }

    /// Takes in what another part's are of.
    ///
    /// # Errors
    /// [`Error::Partial`] if it is of another number of channels, or has samples that are there already, [`Error::OutOfMemory`].
    /// Nothing has been taken in then.
    pub fn join(&mut self, other: &Self) -> Result<(), Error> {
        self.nodes.join(&other.nodes)
    }

    /// How many samples it is of.
    pub fn samples(&self) -> u64 {
        self.nodes.samples()
    }

    /// The state of each channel, of all samples that it is of. Where these are all of a batch from its first on, the states
    /// have the bits that one call over the batch gives.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`].
    pub fn states(&self) -> Result<Vec<Welford>, Error> {
        let (count, (sums, weight)) = (self.nodes.count(), self.nodes.joined::<T::Moments>()?);
        let mut states = filled(sums.len(), Welford::new())?;
        if count > 0 {
            environment::in_default(|| {
                // The variance is m2 over the count, not over the weight.
                let by = self.nodes.weighted.then(|| count as f64 / weight);
                let of =
                    |moments: T::Moments| Welford::of(count, by.map_or(moments, |by| moments.weighed(by)));
                states.iter_mut().zip(&sums).for_each(|(state, moments)| *state = of(*moments));
            });
        }
        Ok(states)
    }

    /// All of it as bytes, to be stored or sent: a header with a version, some 24 bytes (f64: 40) per channel of each of its nodes
    /// (of a part that begins at 0 or is as long as others mostly one), a checksum.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`].
    pub fn to_bytes(&self) -> Result<Vec<u8>, Error> {
        bytes::write(&self.nodes)
    }

    /// What the bytes of [`to_bytes`](Self::to_bytes) say, which are not trusted.
    ///
    /// # Errors
    /// [`Error::Bytes`] if they are no such bytes, [`Error::OutOfMemory`].
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, Error> {
        Self::of_nodes(bytes::read(bytes)?)
    }

    pub(crate) fn of_nodes(nodes: Nodes) -> Result<Self, Error> {
        Ok(Self { nodes: nodes.of_kind(Self::KIND)?, arithmetic: PhantomData })
    }
}

impl<T: Element> fmt::Debug for PartialStatistics<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.nodes.describe("PartialStatistics", f)
    }
}
