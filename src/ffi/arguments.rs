//! From what C says to what Rust takes: every argument is checked before a slice is made of it.

use std::cell::RefCell;
use std::mem::MaybeUninit;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::ptr;

use super::status::Status;
use crate::ground::error::Error;
use crate::ground::welford::Welford;

/// What is wrong with a call, and in words.
pub struct Failure(pub Status, pub String);

impl Failure {
    /// Of a number that stands for nothing.
    pub fn unknown(name: &str, value: impl Into<u64>, must: &str) -> Self {
        let value = value.into();
        Failure(Status::UnknownValue, format!("{name} is {value}, must be {must}"))
    }
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        let status = match error {
            Error::Rank { .. } | Error::Overflow { .. } => Status::Overflow,
            Error::Epsilon { .. } => Status::Epsilon,
            Error::NotFinite { .. } | Error::Weight { .. } => Status::NotFinite,
            Error::Clip { .. } => Status::Clip,
            Error::Groups { .. } => Status::Groups,
            Error::Limit { .. } => Status::Limit,
            Error::SampleWeight { .. } | Error::NoSampleWeight => Status::Weights,
            Error::Activation { .. } => Status::Activation,
            Error::SingleElement => Status::SingleElement,
            Error::Count { .. } => Status::Count,
            Error::Partial { .. } => Status::Part,
            Error::Bytes { .. } => Status::Bytes,
            Error::Gather { .. } => Status::Gather,
            Error::Level { .. } | Error::UnknownLevel { .. } => Status::Level,
            // Its message would take memory.
            Error::OutOfMemory { .. } => return Failure(Status::OutOfMemory, String::new()),
            // Lengths are made here, from the problem's sizes.
            _ => Status::Internal,
        };
        Failure(status, error.to_string())
    }
}

thread_local! {
    /// Of the last call of this thread that failed.
    static MESSAGE: RefCell<String> = const { RefCell::new(String::new()) };
}

/// What was wrong with the last call of this thread that failed.
pub fn last_message() -> String {
    MESSAGE.try_with(|message| message.borrow().clone()).unwrap_or_default()
}

/// Runs a call's body and turns its failure, or its panic, into a status.
pub fn call(body: impl FnOnce() -> Result<(), Failure>) -> Status {
    let failure = match catch_unwind(AssertUnwindSafe(body)) {
        Ok(Ok(())) => return Status::Ok,
        Ok(Err(failure)) => failure,
        Err(_) => Failure(Status::Internal, "a bug in the library: it panicked".to_owned()),
    };
    let _ = MESSAGE.try_with(|message| *message.borrow_mut() = failure.1);
    failure.0
}

/// A struct of C's that begins with its own size, a `size_t`, so that fields can be added behind the last.
///
/// # Safety
/// Its first field is that size; it has no padding that could become a field; bytes that are all 0 are a value of it.
pub unsafe trait Versioned: Copy {
    /// What C calls it.
    const NAME: &'static str;
    /// Bytes of the fields that every version has had.
    const FIRST: usize;
}

/// More than any version of a struct will have: what is larger is no size.
const LARGEST: usize = 4096;

/// The arguments of a call: checked one by one, and that no written one overlaps another.
#[derive(Default)]
pub struct Arguments {
    /// Name, first and last address + 1, whether it is written.
    spans: Vec<(&'static str, usize, usize, bool)>,
}

impl Arguments {
    fn check<T>(
        &mut self,
        name: &'static str,
        at: *const T,
        len: usize,
        written: bool,
    ) -> Result<(), Failure> {
        if len == 0 {
            return Ok(());
        }
        if at.is_null() {
            return Err(Failure(Status::NullPointer, format!("{name} is null, must have {len} elements")));
        }
        if !at.is_aligned() {
            let align = align_of::<T>();
            let message = format!("{name} is {at:p}, must be aligned to its element, {align} bytes");
            return Err(Failure(Status::Misaligned, message));
        }
        let start = at as usize;
        let bytes = len.checked_mul(size_of::<T>()).filter(|bytes| *bytes <= isize::MAX as usize);
        let Some(end) = bytes.and_then(|bytes| start.checked_add(bytes)) else {
            let message = format!("{name} has {len} elements, more than the address space has");
            return Err(Failure(Status::Overflow, message));
        };
        let overlapping = self.spans.iter().find(|(_, other_start, other_end, other_written)| {
            (written || *other_written) && start < *other_end && *other_start < end
        });
        if let Some((other, ..)) = overlapping {
            let message = format!("{name} overlaps {other}, must not, since one of them is written");
            return Err(Failure(Status::Overlap, message));
        }
        if self.spans.try_reserve(1).is_err() {
            return Err(Failure(Status::OutOfMemory, String::new()));
        }
        self.spans.push((name, start, end, written));
        Ok(())
    }

    /// A struct, whose caller may know fewer fields (the others are 0) or more (which have to be 0).
    ///
    /// # Safety
    /// `at` is null, or as many bytes as its first field says can be read there.
    pub unsafe fn sized<S: Versioned>(&mut self, name: &'static str, at: *const S) -> Result<S, Failure> {
        let known = size_of::<S>();
        if at.is_null() {
            return Err(Failure(Status::NullPointer, format!("{name} is null, must be a {}", S::NAME)));
        }
        if !at.is_aligned() {
            let message = format!("{name} is {at:p}, must be aligned to {} bytes", align_of::<S>());
            return Err(Failure(Status::Misaligned, message));
        }
        // SAFETY: not null, aligned, and the size comes first.
        let size = unsafe { at.cast::<usize>().read() };
        if size < S::FIRST || size > LARGEST || !size.is_multiple_of(align_of::<S>()) {
            let must = format!("must be set to sizeof({}), which is {known} in this version", S::NAME);
            return Err(Failure(Status::Size, format!("{name}->size is {size}, {must}")));
        }
        let bytes = at.cast::<u8>();
        // SAFETY: `size` bytes can be read, says the caller.
        if let Some(byte) = (known..size).find(|byte| unsafe { bytes.add(*byte).read() } != 0) {
            let message = format!(
                "{name}->size is {size}, and byte {byte} is set: this version's {} has {known} bytes",
                S::NAME
            );
            return Err(Failure(Status::Size, message));
        }
        self.check(name, bytes, size, false)?;
        let mut value = MaybeUninit::<S>::zeroed();
        // SAFETY: both have that many bytes; zeros behind them make a value.
        Ok(unsafe {
            ptr::copy_nonoverlapping(bytes, value.as_mut_ptr().cast(), size.min(known));
            value.assume_init()
        })
    }

    /// # Safety
    /// Unless it is refused, `len` elements can be read at `at` for `'a`.
    pub unsafe fn read<'a, T>(
        &mut self,
        name: &'static str,
        at: *const T,
        len: usize,
    ) -> Result<&'a [T], Failure> {
        self.check(name, at, len, false)?;
        if len == 0 {
            return Ok(&[]);
        }
        // SAFETY: says the caller; not null, aligned, not too long.
        Ok(unsafe { std::slice::from_raw_parts(at, len) })
    }

    /// The same, but null stands for nothing.
    ///
    /// # Safety
    /// As of `read`.
    pub unsafe fn optional<'a, T>(
        &mut self,
        name: &'static str,
        at: *const T,
        len: usize,
    ) -> Result<Option<&'a [T]>, Failure> {
        // SAFETY: says the caller.
        if at.is_null() { Ok(None) } else { unsafe { self.read(name, at, len) }.map(Some) }
    }

    /// # Safety
    /// Unless it is refused, `len` elements can be read and written at `at` for `'a`.
    pub unsafe fn write<'a, T>(
        &mut self,
        name: &'static str,
        at: *mut T,
        len: usize,
    ) -> Result<&'a mut [T], Failure> {
        self.check(name, at.cast_const(), len, true)?;
        if len == 0 {
            return Ok(&mut []);
        }
        // SAFETY: says the caller; not null, aligned, not too long, and no other argument overlaps it.
        Ok(unsafe { std::slice::from_raw_parts_mut(at, len) })
    }

    /// The same, but null stands for nothing.
    ///
    /// # Safety
    /// As of `write`.
    pub unsafe fn optional_write<'a, T>(
        &mut self,
        name: &'static str,
        at: *mut T,
        len: usize,
    ) -> Result<Option<&'a mut [T]>, Failure> {
        // SAFETY: says the caller.
        if at.is_null() { Ok(None) } else { unsafe { self.write(name, at, len) }.map(Some) }
    }
}

/// Whether what lies where states are to be are states: C may have anything there. Once all pointers have been checked.
pub fn check_states(name: &str, states: &[Welford]) -> Result<(), Failure> {
    states.iter().enumerate().try_for_each(|(channel, state)| {
        state.check().map_err(|error| Failure(Status::State, format!("{name}[{channel}]: {error}")))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_panic_becomes_a_status() {
        let thrown = || -> Result<(), Failure> { std::panic::resume_unwind(Box::new(())) };
        assert_eq!(call(thrown), Status::Internal);
        assert!(last_message().contains("bug in the library"));
    }

    /// A struct whose third field came later.
    #[derive(Debug, Clone, Copy, PartialEq)]
    #[repr(C)]
    struct Grown {
        size: usize,
        first: u64,
        later: u64,
    }
    // SAFETY: numbers without padding, the size first.
    unsafe impl Versioned for Grown {
        const NAME: &'static str = "grown";
        const FIRST: usize = 16;
    }

    #[test]
    fn structs_of_older_and_newer_callers_are_read() {
        let read = |words: &[u64]| {
            // SAFETY: as many bytes as the first word says, or refused.
            unsafe { Arguments::default().sized::<Grown>("grown", words.as_ptr().cast()) }
                .map(|Grown { first, later, .. }| (first, later))
                .map_err(|Failure(status, message)| (status, message))
        };
        assert_eq!(read(&[24, 1, 2]), Ok((1, 2)));
        assert_eq!(read(&[16, 1, 2]), Ok((1, 0)));
        assert_eq!(read(&[32, 1, 2, 0]), Ok((1, 2)));
        for (words, message) in [
            (
                &[32, 1, 2, 1 << 40][..],
                "grown->size is 32, and byte 29 is set: this version's grown has 24 bytes",
            ),
            (&[0, 1, 2], "grown->size is 0, must be set to sizeof(grown), which is 24 in this version"),
            (&[8, 1, 2], "grown->size is 8, must be set to sizeof(grown), which is 24 in this version"),
            (&[15, 1, 2], "grown->size is 15, must be set to sizeof(grown), which is 24 in this version"),
            // Half a field, which could be half a pointer.
            (&[20, 1, 2], "grown->size is 20, must be set to sizeof(grown), which is 24 in this version"),
            (&[5000, 1, 2], "grown->size is 5000, must be set to sizeof(grown), which is 24 in this version"),
        ] {
            assert_eq!(read(words), Err((Status::Size, message.to_owned())));
        }
    }
}
