//! From what C says to what Rust takes: every argument is checked before a slice is made of it.

use std::cell::RefCell;
use std::panic::{AssertUnwindSafe, catch_unwind};

use super::*;

/// What is wrong with a call, and in words.
pub struct Failure(pub Status, pub String);

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        let status = match error {
            Error::Rank { .. } | Error::Overflow { .. } => Status::Overflow,
            Error::Epsilon { .. } => Status::Epsilon,
            Error::NotFinite { .. } | Error::Weight { .. } => Status::NotFinite,
            Error::SingleElement => Status::SingleElement,
            Error::Count { .. } => Status::Count,
            Error::Level { .. } | Error::UnknownLevel { .. } => Status::Level,
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
        self.spans.push((name, start, end, written));
        Ok(())
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

/// A checked problem.
pub struct Checked {
    pub shape: Shape,
    serial: bool,
}

impl Checked {
    /// # Safety
    /// Unless it is refused, `problem` points to one.
    pub unsafe fn new(arguments: &mut Arguments, problem: *const Problem) -> Result<Self, Failure> {
        // SAFETY: says the caller.
        let problem = unsafe { arguments.read("problem", problem, 1)? }[0];
        let layout = match problem.layout {
            BATCHNORM_NCHW => Layout::Nchw,
            BATCHNORM_NHWC => Layout::Nhwc,
            layout => return Err(unknown("layout", layout, "0 (NCHW) or 1 (NHWC)")),
        };
        let serial = match problem.serial {
            0 => false,
            1 => true,
            serial => return Err(unknown("serial", serial, "0 or 1")),
        };
        let shape = Shape::new(layout, problem.batch, problem.channels, &problem.spatial)?;
        Ok(Self { shape, serial })
    }

    pub fn run(self, body: impl FnOnce(&Shape) -> Result<(), Error>) -> Result<(), Failure> {
        let result = if self.serial { pool::serially(|| body(&self.shape)) } else { body(&self.shape) };
        Ok(result?)
    }
}

fn unknown(name: &str, value: u32, must: &str) -> Failure {
    Failure(Status::UnknownValue, format!("{name} is {value}, must be {must}"))
}

impl Update {
    pub(super) fn checked(self) -> Result<RunningUpdate, Failure> {
        let rule = match self.rule {
            BATCHNORM_DECAY => UpdateRule::Decay(self.factor),
            BATCHNORM_MOMENTUM => UpdateRule::Momentum(self.factor),
            BATCHNORM_CUMULATIVE => UpdateRule::Cumulative,
            rule => return Err(unknown("rule", rule, "0 (decay), 1 (momentum) or 2 (cumulative)")),
        };
        let variance = match self.unbiased {
            0 => RunningVariance::Biased,
            1 => RunningVariance::Unbiased,
            unbiased => return Err(unknown("unbiased", unbiased, "0 or 1")),
        };
        Ok(RunningUpdate { rule, variance })
    }
}

pub fn params<'a, T: Element>(gamma: Option<&'a [T]>, beta: Option<&'a [T]>, eps: f64) -> Params<'a, T> {
    let mut params = Params::new(eps);
    (params.gamma, params.beta) = (gamma, beta);
    params
}

pub fn level(level: u32) -> Result<Option<Level>, Failure> {
    Ok(Some(match level {
        0 => return Ok(None),
        BATCHNORM_PORTABLE => Level::Portable,
        BATCHNORM_AVX2 => Level::Avx2,
        BATCHNORM_AVX512 => Level::Avx512,
        level => return Err(unknown("level", level, "0 (the best), 1 (portable), 2 (AVX2) or 3 (AVX-512)")),
    }))
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
}
