//! Sums of gradients of parts of a batch.

#![forbid(unsafe_code)]

use std::fmt;
use std::marker::PhantomData;

use super::bytes;
use super::kind::Kind;
use super::nodes::Nodes;
use crate::ground::error::Error;
use crate::operations::Element;

/// What gradients need to know of all of a batch, of a part of it: sum(g) and sum(g * (x - mean)) of each channel. Parts join to the
/// whole as those of [`PartialStatistics`](crate::PartialStatistics) do.
///
/// [`Backward::part`](crate::Backward::part) makes them, by the states of the whole batch, and [`Backward::sums`](crate::Backward::sums) takes
/// them when they are joined. They go with these states: sums by others do not join to anything.
///
/// ```
/// use batchnorm::{Backward, Gradients, Params, PartialGradients, Shape, Welford};
///
/// // Samples 0 and 1 of a batch of four, whose states are known, and those of another process.
/// let (shape, params) = (Shape::nchw(&[2, 1])?, Params::new(0.0));
/// let states = [[1.0, 3.0, 1.0, 3.0].into_iter().collect::<Welford>()];
/// let (x, dy, mut dx, mut dbeta) = ([1.0f32, 3.0], [1.0f32, 0.0], [0.0; 2], [0.0]);
/// let backward = || Backward::new(&shape, params).x(&x).states(&states);
///
/// let mut sums = backward().dy(&dy).part(0)?;
/// let sent = backward().dy(&[0.0, 0.0]).part(2)?.to_bytes()?;
/// sums.join(&PartialGradients::from_bytes(&sent)?)?;
///
/// let gradients = Gradients::new().dx(&mut dx).dbeta(&mut dbeta);
/// backward().dy(&dy).sums(&sums).gradients(gradients).run()?;
/// assert_eq!((dx, dbeta), ([0.5, 0.0], [1.0]));
/// # Ok::<(), batchnorm::Error>(())
/// ```
#[derive(Clone, PartialEq)]
pub struct PartialGradients<T: Element> {
    pub(crate) nodes: Nodes,
    arithmetic: PhantomData<T>,
}

impl<T: Element> PartialGradients<T> {
    const KIND: Kind = Kind::gradients::<T>();

    /// Of no samples yet, of tensors of so many channels.
    pub fn new(channels: usize) -> Self {
        Self { nodes: Nodes::new(Self::KIND, channels), arithmetic: PhantomData }
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

    /// All of it as bytes, as of [`PartialStatistics::to_bytes`](crate::PartialStatistics::to_bytes): 16 bytes (f64: 32) per channel of each
    /// node.
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
        let nodes = bytes::read(bytes)?.of_kind(Self::KIND)?;
        Ok(Self { nodes, arithmetic: PhantomData })
    }
}

impl<T: Element> fmt::Debug for PartialGradients<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.nodes.describe("PartialGradients", f)
    }
}
