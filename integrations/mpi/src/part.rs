//! Where a process's samples are in the batch.

use mpi::topology::Communicator;

use crate::ranks::Ranks;

/// The samples of a batch that a process has: those behind the samples of the ranks before it.
///
/// ```no_run
/// use batchnorm_mpi::{Part, Ranks};
///
/// let universe = mpi::initialize().ok_or("MPI is initialized already")?;
/// let world = universe.world();
/// let mut ranks = Ranks::new(&world)?;
/// let part = Part::of(&mut ranks, 32);
/// assert_eq!((part.first(), part.batch()), (32 * u64::try_from(ranks.rank())?, 32));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Part {
    first: u64,
    batch: usize,
}

impl Part {
    /// That of a process with `batch` samples, which may be none: one exclusive scan over the ranks, once a step, of which it is the
    /// beginning. All layers of the step take it.
    pub fn of<C: Communicator>(ranks: &mut Ranks<'_, C>, batch: usize) -> Self {
        Self { first: ranks.begin(batch), batch }
    }

    /// Of samples that the program has dealt out itself, from `first` of the batch on: nobody is asked. The step goes on.
    pub fn at(first: u64, batch: usize) -> Self {
        Self { first, batch }
    }

    /// The number of its first sample in the batch.
    pub fn first(self) -> u64 {
        self.first
    }

    /// How many samples it has.
    pub fn batch(self) -> usize {
        self.batch
    }
}
