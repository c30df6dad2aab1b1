//! A batch that several processes have parts of: each sums its own, all hear of all.

#![forbid(unsafe_code)]

use crate::api::partial::gradients::PartialGradients;
use crate::api::partial::statistics::PartialStatistics;
use crate::api::shape::Shape;
use crate::ground::error::Error;
use crate::ground::memory::reserved;
use crate::operations::Element;

/// How processes tell each other what they know of their parts of a batch: over MPI, a socket, channels between threads.
///
/// Every process of the group calls it as often as the others, in the same order of calls; a call of an operation is one call of
/// this. A process whose own part is in error tells no bytes, so that the operation is an error in all and no one waits; an
/// operation that returns an error of its arguments has told so. Whether a process that is gone is noticed, and when, is the
/// transport's; a gather that fails in one process should fail in all, or the others go on to their next one, and wait.
///
/// ```
/// use batchnorm::{Error, Gather};
///
/// /// The only process there is.
/// struct Alone;
/// impl Gather for Alone {
///     fn gather(&mut self, bytes: &[u8], each: &mut dyn FnMut(&[u8])) -> Result<(), Error> {
///         each(bytes);
///         Ok(())
///     }
/// }
/// ```
pub trait Gather {
    /// Calls `each` with the bytes of every process, one's own among them, in any order. They may be of different lengths, and none.
    ///
    /// # Errors
    /// [`Error::Gather`] where not everyone's bytes could be had.
    fn gather(&mut self, bytes: &[u8], each: &mut dyn FnMut(&[u8])) -> Result<(), Error>;
}

impl<G: FnMut(&[u8], &mut dyn FnMut(&[u8])) -> Result<(), Error>> Gather for G {
    fn gather(&mut self, bytes: &[u8], each: &mut dyn FnMut(&[u8])) -> Result<(), Error> {
        self(bytes, each)
    }
}

/// Where a part is in the batch, and how to hear of the others.
pub struct Among<'a> {
    pub first: u64,
    pub gather: &'a mut dyn Gather,
}

impl Among<'_> {
    /// Tells the others of an error that comes before the operation.
    pub fn refuse(self, error: Error) -> Error {
        // What they say to it changes nothing.
        let _ = self.gather.gather(&[], &mut |_| ());
        error
    }
}

/// Tells one's bytes, or that there are none, and takes in everyone's.
fn exchange(
    mine: Result<Vec<u8>, Error>,
    gather: &mut dyn Gather,
    mut join: impl FnMut(&[u8]) -> Result<(), Error>,
) -> Result<(), Error> {
    let (mut heard, mut outcome) = (false, Ok(()));
    let told = gather.gather(mine.as_deref().unwrap_or(&[]), &mut |bytes| {
        heard |= mine.as_deref() == Ok(bytes);
        if outcome.is_ok() {
            outcome = match bytes {
                [] => Err(Error::Gather { reason: "another process has an error".to_owned() }),
                bytes => join(bytes),
            };
        }
    });
    mine?;
    told?;
    outcome?;
    if !heard {
        return Err(Error::Gather { reason: "this process's own bytes did not come back".to_owned() });
    }
    Ok(())
}

/// The statistics of all parts.
pub fn all_statistics<T: Element>(
    shape: &Shape,
    mine: Result<PartialStatistics<T>, Error>,
    gather: &mut dyn Gather,
) -> Result<PartialStatistics<T>, Error> {
    let mut all = PartialStatistics::new(shape.channels());
    let bytes = mine.and_then(|mine| mine.to_bytes());
    exchange(bytes, gather, |bytes| all.join(&PartialStatistics::from_bytes(bytes)?))?;
    Ok(all)
}

/// The sums of all parts, by states of so many elements: others are an error in all processes.
pub fn all_gradients<T: Element>(
    shape: &Shape,
    mine: Result<(PartialGradients<T>, Option<u64>), Error>,
    gather: &mut dyn Gather,
) -> Result<PartialGradients<T>, Error> {
    let mut all = PartialGradients::new(shape.channels());
    let bytes = mine.and_then(|(mine, count)| {
        let (mut bytes, count) = (mine.to_bytes()?, count.unwrap_or(FROZEN).to_le_bytes());
        reserved(&mut bytes, count.len())?;
        bytes.extend(count);
        Ok(bytes)
    });
    let mut counts = None;
    exchange(bytes, gather, |bytes| {
        let (bytes, count) = bytes.split_last_chunk().ok_or(Error::Bytes { reason: "are too few" })?;
        let count = u64::from_le_bytes(*count);
        if *counts.get_or_insert(count) != count {
            return Err(Error::Partial { reason: "are by states of other numbers of elements" });
        }
        all.join(&PartialGradients::from_bytes(bytes)?)
    })?;
    let by_batch = counts.is_some_and(|count| count != FROZEN);
    if by_batch {
        all.nodes.check_weights()?;
    }
    if by_batch && counts != Some(all.nodes.count()) {
        return Err(Error::Partial { reason: "are of another number of elements than the states" });
    }
    Ok(all)
}

/// Stands for the count of statistics that are not the batch's.
const FROZEN: u64 = u64::MAX;
