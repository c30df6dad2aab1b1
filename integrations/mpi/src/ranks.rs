//! The ranks of a communicator, and the one message that each sends in a pass.
//!
//! A message is the length of the bytes, 64 bits little-endian, and as many of the bytes as its slot has room for; the slot is the
//! same on all ranks. The rest of the longest, if there is one, goes in rounds. Everything that a length follows from is something
//! that all ranks have: what they were told when they met, and lengths that came with messages.

use std::time::{Duration, Instant};

use batchnorm::{Error, Gather};
use mpi::collective::SystemOperation;
use mpi::topology::Communicator;
use mpi::traits::CommunicatorCollectives;

/// The length of the bytes, in front of them.
const HEADER: usize = 8;
/// The slot at a place where nothing has been seen yet: the states of 40 channels, f32.
const FIRST_SLOT: usize = 1024;
/// The longest message of one collective unless the program says: the states of 2,048 channels, f32, have 49,208 bytes.
const LONGEST: usize = 64 << 10;
/// Places of a step that are told apart: passes of layers. Those behind share the last.
const PLACES: usize = 4096;

/// The ranks of a communicator: how they hear of each other's parts of a batch, in one all-gather a pass.
///
/// One is enough for all layers of a network: it learns how long the messages of a step are, the longest at each place, so that networks
/// which take turns have each their own. What it sends, and how long it waits, is counted: [`traffic`](Self::traffic).
///
/// ```no_run
/// use batchnorm::{Params, Shape, Training, Welford};
/// use batchnorm_mpi::{Part, Ranks};
///
/// let universe = mpi::initialize().ok_or("MPI is initialized already")?;
/// let world = universe.world();
/// let mut ranks = Ranks::new(&world)?;
///
/// // Every rank has two samples.
/// let shape = Shape::nchw(&[2, 1])?;
/// let (x, mut y, mut states) = ([1.0f32, 3.0], [0.0; 2], [Welford::new()]);
/// let part = Part::of(&mut ranks, 2);
/// let training = Training::new(&shape, Params::new(0.0)).x(&x).y(&mut y).states(&mut states);
/// training.run_among(part.first(), &mut ranks)?;
/// assert_eq!(states[0].count(), 2 * u64::try_from(ranks.size())?);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug)]
pub struct Ranks<'c, C: Communicator> {
    communicator: &'c C,
    /// Of the longest message: this rank's, and those of all.
    sent: Vec<u8>,
    received: Vec<u8>,
    /// The slot of each place of a step; 0 where there is none yet.
    slots: Vec<usize>,
    place: usize,
    traffic: Traffic,
}

/// What a rank has sent, and how long it was in collectives: those of [`Gather`] and [`Part::of`](crate::Part::of).
///
/// ```
/// use batchnorm_mpi::Traffic;
/// let before = Traffic::default();
/// let mut now = before;
/// (now.collectives, now.bytes) = (1, 1608);
/// assert_eq!(now.since(before), now);
/// ```
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Traffic {
    /// How many collectives.
    pub collectives: u64,
    /// Bytes of this rank's messages with their padding: what each other rank gets of it.
    pub bytes: u64,
    /// Time in collectives: mostly until the last rank has come.
    pub waiting: Duration,
}

impl Traffic {
    /// What has come to it since it was `before`.
    pub fn since(self, before: Self) -> Self {
        Self {
            collectives: self.collectives.saturating_sub(before.collectives),
            bytes: self.bytes.saturating_sub(before.bytes),
            waiting: self.waiting.saturating_sub(before.waiting),
        }
    }
}

impl<'c, C: Communicator> Ranks<'c, C> {
    /// Those of a communicator (no inter-communicator), all of which call this. Other collectives of the program's may go over it as
    /// well, in the same order on all ranks; `communicator.duplicate()` makes one that is free of them.
    ///
    /// # Errors
    /// [`Error::Gather`] on all ranks if one has no memory for messages of 64 KiB.
    pub fn new(communicator: &'c C) -> Result<Self, Error> {
        Self::with_longest(communicator, LONGEST)
    }

    /// The same with messages of up to `bytes` in one collective, 64 KiB by default: of more in several. Each rank has room for one of
    /// each. Where ranks say different numbers it is the largest.
    ///
    /// # Errors
    /// [`Error::Gather`] on all ranks if one has no memory for them.
    pub fn with_longest(communicator: &'c C, bytes: usize) -> Result<Self, Error> {
        let size = usize::try_from(communicator.size()).unwrap_or(1).max(1);
        // MPI counts in i32, everything that comes too.
        let most = (i32::MAX as usize / size).max(HEADER + 1);
        let wanted = bytes.clamp((HEADER + 1).max(FIRST_SLOT.min(most)), most) as u64;
        let mut longest = wanted;
        communicator.all_reduce_into(&wanted, &mut longest, SystemOperation::max());
        let longest = usize::try_from(longest).unwrap_or(most);
        let buffers = [longest, longest.saturating_mul(size)].map(zeros);
        let slots = zeros(PLACES);
        let lacks = u8::from(buffers.iter().any(Option::is_none) || slots.is_none());
        let mut someone_lacks = lacks;
        communicator.all_reduce_into(&lacks, &mut someone_lacks, SystemOperation::max());
        match (someone_lacks, buffers, slots) {
            (0, [Some(sent), Some(received)], Some(slots)) => {
                Ok(Self { communicator, sent, received, slots, place: 0, traffic: Traffic::default() })
            }
            _ => Err(Error::Gather { reason: "a process has no memory for messages".to_owned() }),
        }
    }

    /// The communicator.
    pub fn communicator(&self) -> &'c C {
        self.communicator
    }

    /// This process's rank, from 0 on.
    pub fn rank(&self) -> i32 {
        self.communicator.rank()
    }

    /// How many ranks there are.
    pub fn size(&self) -> i32 {
        self.communicator.size()
    }

    /// What has been sent so far.
    pub fn traffic(&self) -> Traffic {
        self.traffic
    }

    /// Tells the others that there is an error here, in place of the operation that they call: it fails on all.
    ///
    /// ```no_run
    /// use batchnorm::{BatchNorm, Mode, Shape};
    /// use batchnorm_mpi::{Part, Ranks, SyncBatchNorm};
    ///
    /// let universe = mpi::initialize().ok_or("MPI is initialized already")?;
    /// let world = universe.world();
    /// let mut ranks = Ranks::new(&world)?;
    /// let mut norm = SyncBatchNorm::from(BatchNorm::<f32>::new(1));
    /// let x: Vec<f32> = match std::fs::read("part") {
    ///     Ok(bytes) => bytes.into_iter().map(f32::from).collect(),
    ///     Err(error) => {
    ///         Part::of(&mut ranks, 0);
    ///         ranks.refuse();
    ///         return Err(error.into());
    ///     }
    /// };
    /// let (shape, mut y) = (Shape::nchw(&[x.len(), 1])?, x.clone());
    /// let part = Part::of(&mut ranks, x.len());
    /// norm.forward(Mode::Training, &shape, &x, &mut y, (part, &mut ranks))?;
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn refuse(&mut self) {
        // What they say to it changes nothing.
        let _ = self.gather(&[], &mut |_| ());
    }

    /// Begins a step with so many samples here; how many there are in the ranks before.
    pub(crate) fn begin(&mut self, batch: usize) -> u64 {
        self.place = 0;
        let (mine, mut first) = (batch as u64, 0u64);
        let start = Instant::now();
        self.communicator.exclusive_scan_into(&mine, &mut first, SystemOperation::sum());
        self.count(size_of::<u64>(), start);
        // Rank 0 gets nothing, or anything.
        if self.rank() == 0 { 0 } else { first }
    }

    fn count(&mut self, bytes: usize, start: Instant) {
        self.traffic.collectives += 1;
        self.traffic.bytes += bytes as u64;
        self.traffic.waiting += start.elapsed();
    }

    /// Sends the first bytes of `sent`; what comes is in `received`, one rank's behind the other's.
    fn all_gather(&mut self, bytes: usize) {
        let all = bytes * (self.received.len() / self.sent.len());
        let start = Instant::now();
        self.communicator.all_gather_into(&self.sent[..bytes], &mut self.received[..all]);
        self.count(bytes, start);
    }

    /// The slot of this place.
    fn slot(&self) -> usize {
        match self.slots[self.place] {
            0 => FIRST_SLOT.min(self.sent.len()),
            slot => slot,
        }
    }

    /// What has been seen at this place: one collective is enough for it from now on. On to the next.
    fn learn(&mut self, most: usize) {
        let slot = &mut self.slots[self.place];
        *slot = (*slot).max(most.saturating_add(HEADER).min(self.sent.len()));
        self.place = (self.place + 1).min(PLACES - 1);
    }

    /// Takes in what follows the fronts of the bytes, which are there, in as many rounds as the longest needs; `None` where there is no
    /// memory for it, and the rounds have been made all the same.
    fn rounds(&mut self, bytes: &[u8], (slot, most): (usize, usize)) -> Option<(Vec<usize>, Vec<u8>)> {
        let size = self.received.len() / self.sent.len();
        let mut all = zeros(size).zip(zeros(most.saturating_mul(size)));
        let mut keep = |received: &[u8], (from, each, skip): (usize, usize, usize)| {
            let Some((lens, all)) = &mut all else { return };
            let messages = received.chunks_exact(each).zip(all.chunks_exact_mut(most)).zip(lens);
            for ((message, bytes), len) in messages {
                if skip != 0 {
                    *len = told(message);
                }
                let end = (*len).min(from + each - skip);
                if let Some(bytes) = bytes.get_mut(from..end) {
                    bytes.copy_from_slice(&message[skip..][..end - from]);
                }
            }
        };
        keep(&self.received[..slot * size], (0, slot, HEADER));
        let mut from = slot - HEADER;
        while from < most {
            let each = (most - from).min(self.sent.len());
            put(&mut self.sent[..each], bytes.get(from..).unwrap_or(&[]));
            self.all_gather(each);
            keep(&self.received[..each * size], (from, each, 0));
            from += each;
        }
        all
    }
}

impl<C: Communicator> Gather for Ranks<'_, C> {
    fn gather(&mut self, bytes: &[u8], each: &mut dyn FnMut(&[u8])) -> Result<(), Error> {
        let slot = self.slot();
        let (header, front) = self.sent[..slot].split_at_mut(HEADER);
        header.copy_from_slice(&(bytes.len() as u64).to_le_bytes());
        put(front, bytes);
        self.all_gather(slot);
        let size = self.received.len() / self.sent.len();
        let messages = self.received[..slot * size].chunks_exact(slot);
        let most = messages.clone().map(told).max().unwrap_or(0);
        let outcome = if most <= slot - HEADER {
            messages.for_each(|message| each(&message[HEADER..][..told(message)]));
            Ok(())
        } else if let Some((lens, all)) = self.rounds(bytes, (slot, most)) {
            all.chunks_exact(most).zip(lens).for_each(|(bytes, len)| each(&bytes[..len]));
            Ok(())
        } else {
            Err(Error::OutOfMemory { bytes: most.saturating_mul(size) })
        };
        self.learn(most);
        outcome
    }
}

/// The length that a message begins with.
fn told(message: &[u8]) -> usize {
    let len = message.first_chunk().map_or(0, |len| u64::from_le_bytes(*len));
    usize::try_from(len).unwrap_or(usize::MAX)
}

/// As much of the bytes as there is room for, then zeros.
fn put(room: &mut [u8], bytes: &[u8]) {
    let (to, padding) = room.split_at_mut(bytes.len().min(room.len()));
    to.copy_from_slice(&bytes[..to.len()]);
    padding.fill(0);
}

/// Zeros, if there is memory for them.
fn zeros<T: Clone + Default>(len: usize) -> Option<Vec<T>> {
    let mut zeros = Vec::new();
    zeros.try_reserve_exact(len).ok()?;
    zeros.resize(len, T::default());
    Some(zeros)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_are_cut_and_padded() {
        let mut room = [7; 4];
        put(&mut room, &[1, 2]);
        assert_eq!(room, [1, 2, 0, 0]);
        put(&mut room, &[1, 2, 3, 4, 5]);
        assert_eq!(room, [1, 2, 3, 4]);
        assert_eq!(told(&[5, 1, 0, 0, 0, 0, 0, 0, 9]), 261);
        assert_eq!(told(&[1]), 0);
    }
}
