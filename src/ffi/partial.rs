//! Parts of a batch: their sums as bytes, and how a program tells them to its other processes.

use std::ffi::c_void;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::ptr;
use std::slice;

use super::arguments::{Arguments, Failure, Versioned, call};
use super::problem::{Checked, Problem};
use super::state::State;
use super::status::Status;
use crate::api::gather::Gather as GatherBytes;
use crate::api::partial::bytes;
use crate::api::partial::statistics::PartialStatistics;
use crate::ground::error::Error;
use crate::ground::memory::reserved;
use crate::ground::welford::Welford;

/// Takes the bytes of one process, with the argument that came with it.
pub type Collect = unsafe extern "C" fn(argument: *mut c_void, bytes: *const c_void, len: usize);

/// How the processes that have parts of a batch hear of each other: a function that gets `context`, and neither throws nor jumps out.
///
/// All processes call the same operations in the same order, with their parts of one batch each. One whose arguments are in error
/// tells the others so, by no bytes, and the operation fails in all; but for args and gather themselves, which it could not. Where
/// gather itself fails in one process alone, the others go on to their next call, and wait there. With MPI:
///
///   static int32_t gather(void *context, const void *bytes, size_t len, batchnorm_collect collect, void *argument) {
///     MPI_Comm *comm = context;
///     ... MPI_Allgather of len, MPI_Allgatherv of bytes, then of each process
///     collect(argument, its_bytes, its_len);
///     return 0;
///   }
#[derive(Debug, Clone, Copy)]
#[repr(C)]
pub struct Gather {
    /// sizeof(batchnorm_gather).
    pub size: usize,
    /// Whatever the function wants.
    pub context: *mut c_void,
    /// Tells the `len` bytes at `bytes`, which may be none, to every process, and calls `collect` with `argument` and the bytes of
    /// each, one's own among them, in any order, on this thread. Returns 0, or another number if that failed.
    pub gather: Option<
        unsafe extern "C" fn(
            context: *mut c_void,
            bytes: *const c_void,
            len: usize,
            collect: Collect,
            argument: *mut c_void,
        ) -> i32,
    >,
}

// SAFETY: pointers without padding, the size first; functions may be null.
unsafe impl Versioned for Gather {
    const NAME: &'static str = "batchnorm_gather";
    const FIRST: usize = size_of::<Gather>();
}

/// The program's function, checked.
pub(super) struct Gathering {
    context: *mut c_void,
    gather: unsafe extern "C" fn(*mut c_void, *const c_void, usize, Collect, *mut c_void) -> i32,
}

/// What the bytes are given to.
struct Each<'a, 'b> {
    each: &'a mut (dyn FnMut(&[u8]) + 'b),
    panicked: bool,
}

unsafe extern "C" fn collect(argument: *mut c_void, bytes: *const c_void, len: usize) {
    // SAFETY: it is the argument that came with this function, says the header.
    let argument = unsafe { &mut *argument.cast::<Each<'_, '_>>() };
    let bytes = match bytes.is_null() || len == 0 {
        true => &[][..],
        // SAFETY: says the header.
        false => unsafe { slice::from_raw_parts(bytes.cast::<u8>(), len) },
    };
    argument.panicked |= catch_unwind(AssertUnwindSafe(|| (argument.each)(bytes))).is_err();
}

impl GatherBytes for Gathering {
    fn gather(&mut self, bytes: &[u8], each: &mut dyn FnMut(&[u8])) -> Result<(), Error> {
        let mut argument = Each { each, panicked: false };
        // SAFETY: a function of the program's that does what the header says.
        let status = unsafe {
            let argument = ptr::from_mut(&mut argument).cast();
            // The address of an empty slice is 1, which is MPI_IN_PLACE to Open MPI.
            let at = if bytes.is_empty() { ptr::null() } else { bytes.as_ptr().cast() };
            (self.gather)(self.context, at, bytes.len(), collect, argument)
        };
        match status {
            _ if argument.panicked => {
                Err(Error::Gather { reason: "a bug in the library: it panicked".to_owned() })
            }
            0 => Ok(()),
            status => Err(Error::Gather { reason: format!("the program's gather returned {status}") }),
        }
    }
}

/// Runs a call that may tell others, and takes the way to them then; where it failed before, they are told that there is nothing.
pub(super) fn told(
    mut gather: Option<Gathering>,
    body: impl FnOnce(&mut Option<Gathering>) -> Result<(), Failure>,
) -> Result<(), Failure> {
    let result = body(&mut gather);
    if let (Err(_), Some(mut gather)) = (&result, gather) {
        // What they say to it changes nothing.
        let _ = gather.gather(&[], &mut |_| ());
    }
    result
}

impl Arguments {
    /// The program's way to tell bytes, or none for null.
    ///
    /// # Safety
    /// `at` is null, or points to one of the size that it says, whose function does what it has to.
    pub(super) unsafe fn gather(&mut self, at: *const Gather) -> Result<Option<Gathering>, Failure> {
        if at.is_null() {
            return Ok(None);
        }
        // SAFETY: says the caller.
        let Gather { context, gather, .. } = unsafe { self.sized("gather", at)? };
        match gather {
            Some(gather) => Ok(Some(Gathering { context, gather })),
            None => {
                let message = "gather->gather is null, must be a function".to_owned();
                Err(Failure(Status::NullPointer, message))
            }
        }
    }

    /// Memory for the bytes of sums: as much as `len` says, which becomes what they take. None for null.
    ///
    /// # Safety
    /// As of `write`.
    pub(super) unsafe fn part<'a>(
        &mut self,
        part: *mut c_void,
        len: *mut usize,
    ) -> Result<Option<PartBytes<'a>>, Failure> {
        if part.is_null() {
            return Ok(None);
        }
        // SAFETY: says the caller.
        unsafe {
            let len = &mut self.write("part_len", len, 1)?[0];
            let bytes = self.write("part", part.cast::<u8>(), *len)?;
            Ok(Some(PartBytes { bytes, len }))
        }
    }
}

/// Where bytes go.
pub(super) struct PartBytes<'a> {
    bytes: &'a mut [u8],
    len: &'a mut usize,
}

impl PartBytes<'_> {
    pub fn put(self, bytes: &[u8]) -> Result<(), Failure> {
        let room = self.bytes.len();
        let Some(to) = self.bytes.get_mut(..bytes.len()) else {
            let message = format!("part_len is {room}, must be {} at least", bytes.len());
            return Err(Failure(Status::Part, message));
        };
        to.copy_from_slice(bytes);
        *self.len = bytes.len();
        Ok(())
    }
}

/// The samples that a batch can be split between, so that the joined sums of its parts have the bits of the whole batch's: parts
/// begin at multiples of it. It follows from the positions of a sample alone. 0 if the problem is none.
///
/// # Safety
/// As of `batchnorm_statistics`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn batchnorm_granularity(problem: *const Problem) -> usize {
    let mut granularity = 0;
    call(|| {
        // SAFETY: says the caller.
        let problem = unsafe { Checked::new(&mut Arguments::default(), problem)? };
        granularity = problem.shape.granularity();
        Ok(())
    });
    granularity
}

/// The bytes that are enough for the sums of a part of this many samples, wherever in the batch it is; of no samples too. 0 if the
/// problem is none.
///
/// # Safety
/// As of `batchnorm_statistics`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn batchnorm_part_len(problem: *const Problem) -> usize {
    let mut len = 0;
    call(|| {
        // SAFETY: says the caller.
        let problem = unsafe { Checked::new(&mut Arguments::default(), problem)? };
        let overflow = || Failure(Status::Overflow, "the bytes of a part overflow".to_owned());
        len = bytes::most(&problem.shape).ok_or_else(overflow)?;
        Ok(())
    });
    len
}

/// Joins the sums of `count` parts, statistics or gradient sums, of any samples, in any order, each sample once: `parts` has their
/// bytes, `lens` how many. To `joined`, which has room for `*joined_len` bytes: as many as all parts together are enough. It becomes
/// the bytes that they are.
///
/// # Safety
/// `count` pointers and lengths can be read, and as many bytes at each; `joined` has that room.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn batchnorm_join(
    count: usize,
    parts: *const *const c_void,
    lens: *const usize,
    joined: *mut c_void,
    joined_len: *mut usize,
) -> Status {
    call(|| {
        let mut arguments = Arguments::default();
        // SAFETY: says the caller.
        unsafe {
            let parts = arguments.read("parts", parts, count)?;
            let lens = arguments.read("lens", lens, count)?;
            let mut all = Vec::new();
            reserved(&mut all, count)?;
            for (part, len) in parts.iter().zip(lens) {
                all.push(arguments.read("a part", part.cast::<u8>(), *len)?);
            }
            let joined_len = &mut arguments.write("joined_len", joined_len, 1)?[0];
            let joined = arguments.write("joined", joined.cast::<u8>(), *joined_len)?;
            let bytes = join(&all)?;
            PartBytes { bytes: joined, len: joined_len }.put(&bytes)
        }
    })
}

fn no_parts() -> Failure {
    Failure(Status::Part, "count is 0, must be 1 at least".to_owned())
}

/// All of some parts.
fn join(parts: &[&[u8]]) -> Result<Vec<u8>, Failure> {
    let mut parts = parts.iter().map(|part| bytes::read(part));
    let mut all = parts.next().ok_or_else(no_parts)??;
    parts.try_for_each(|part| all.join(&part?))?;
    Ok(bytes::write(&all)?)
}

/// The statistics of each of `channels` channels that the bytes of (joined) parts are of.
///
/// # Safety
/// `len` bytes can be read at `part`, `channels` states written.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn batchnorm_part_states(
    part: *const c_void,
    len: usize,
    channels: usize,
    states: *mut State,
) -> Status {
    call(|| {
        let mut arguments = Arguments::default();
        // SAFETY: says the caller.
        let (part, states) = unsafe {
            (
                arguments.read("part", part.cast::<u8>(), len)?,
                arguments.write("states", states.cast::<Welford>(), channels)?,
            )
        };
        let nodes = bytes::read(part)?;
        if nodes.channels != channels {
            let message = format!("part has {} channels, must have {channels}", nodes.channels);
            return Err(Failure(Status::Part, message));
        }
        let all = match nodes.kind.double {
            true => PartialStatistics::<f64>::of_nodes(nodes)?.states()?,
            false => PartialStatistics::<f32>::of_nodes(nodes)?.states()?,
        };
        states.copy_from_slice(&all);
        Ok(())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    unsafe extern "C" fn expects(
        _: *mut c_void,
        bytes: *const c_void,
        len: usize,
        _: Collect,
        _: *mut c_void,
    ) -> i32 {
        i32::from(bytes.is_null() != (len == 0))
    }

    #[test]
    fn no_bytes_are_null() {
        let mut gathering = Gathering { context: ptr::null_mut(), gather: expects };
        assert_eq!(gathering.gather(&[], &mut |_| ()), Ok(()));
        assert_eq!(gathering.gather(&[1], &mut |_| ()), Ok(()));
    }
}
