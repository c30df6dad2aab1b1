//! The C interface (feature `capi`): the operations on slices, as functions on plain pointers. `include/batchnorm.h` is
//! made of this file by cbindgen.
//!
//! Every function checks its arguments before it writes: pointers that are null (unless their length is 0), not aligned to
//! their element, or that overlap another that is written; then all that the Rust functions check. What is wrong comes
//! back as a [`Status`], in words by [`batchnorm_last_message`]. No panic crosses the boundary.

use std::cell::RefCell;
use std::ffi::c_char;
use std::panic::{AssertUnwindSafe, catch_unwind};

use crate::{
    Element, Error, Gradients, Layout, Level, Params, RunningUpdate, RunningVariance, Shape, UpdateRule,
    Welford, exec,
};

/// What became of a call. Unless it is OK, nothing has been written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(C)]
pub enum Status {
    /// Done.
    Ok = 0,
    /// A pointer is null, and its length is not 0.
    NullPointer = 1,
    /// A pointer is not aligned to its element. (It need not be aligned to more.)
    Misaligned = 2,
    /// What is written overlaps another argument. The same buffer as x and y is no error: it is the in-place form.
    Overlap = 3,
    /// The number of elements, or of their bytes, overflows.
    Overflow = 4,
    /// A number stands for no layout, level, rule or variance.
    UnknownValue = 5,
    /// eps is negative, NaN or infinite.
    Epsilon = 6,
    /// A factor (momentum, decay, learning rate) is NaN or infinite.
    NotFinite = 7,
    /// The unbiased variance of one element per channel does not exist.
    SingleElement = 8,
    /// A state's count is not the number of elements per channel.
    Count = 9,
    /// The CPU does not have the level.
    Level = 10,
    /// The number of threads cannot be set: it has been set before, or the pool is running already.
    Threads = 11,
    /// A bug in the library.
    Internal = 12,
}

/// A tensor: layout and sizes, and how to work on it.
#[derive(Debug, Clone, Copy)]
#[repr(C)]
pub struct Problem {
    /// BATCHNORM_NCHW (0) or BATCHNORM_NHWC (1).
    pub layout: u32,
    /// 0 to spread large problems over the thread pool, 1 to stay on the calling thread. The same bits either way.
    pub serial: u32,
    /// N.
    pub batch: usize,
    /// C.
    pub channels: usize,
    /// The spatial axes; 1 for each that is not there.
    pub spatial: [usize; 3],
}

/// The order NCHW: the elements of a channel of a sample are adjacent.
pub const BATCHNORM_NCHW: u32 = 0;
/// The order NHWC: the channels of a position are adjacent.
pub const BATCHNORM_NHWC: u32 = 1;

/// running = factor * running + (1 - factor) * batch.
pub const BATCHNORM_DECAY: u32 = 0;
/// running = (1 - factor) * running + factor * batch.
pub const BATCHNORM_MOMENTUM: u32 = 1;
/// running = the mean over all batches so far; the factor is not looked at.
pub const BATCHNORM_CUMULATIVE: u32 = 2;

/// The level of every CPU.
pub const BATCHNORM_PORTABLE: u32 = 1;
/// AVX2 and FMA.
pub const BATCHNORM_AVX2: u32 = 2;
/// AVX-512F.
pub const BATCHNORM_AVX512: u32 = 3;

/// How running statistics take in a batch.
#[derive(Debug, Clone, Copy)]
#[repr(C)]
pub struct Update {
    /// BATCHNORM_DECAY, BATCHNORM_MOMENTUM or BATCHNORM_CUMULATIVE.
    pub rule: u32,
    /// 1 for the unbiased variance M2 / (m - 1), 0 for the biased one, M2 / m.
    pub unbiased: u32,
    /// Of the rule.
    pub factor: f64,
}

/// The statistics of a channel: count, mean and the sum of squared deviations from it. All zeros is the state of no
/// elements.
#[derive(Debug, Clone, Copy, PartialEq)]
#[repr(C)]
pub struct State {
    /// The number of elements seen.
    pub count: u64,
    /// The mean is `mean + mean_low`; the latter is small.
    pub mean: f64,
    /// See `mean`.
    pub mean_low: f64,
    /// The biased variance is `m2 / count`.
    pub m2: f64,
}

const _: () =
    assert!(size_of::<State>() == size_of::<Welford>() && align_of::<State>() == align_of::<Welford>());

/// What is wrong with a call, and in words.
struct Failure(Status, String);

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        let status = match error {
            Error::Rank { .. } | Error::Overflow { .. } => Status::Overflow,
            Error::Epsilon { .. } => Status::Epsilon,
            Error::NotFinite { .. } => Status::NotFinite,
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

/// Runs a call's body and turns its failure, or its panic, into a status.
fn call(body: impl FnOnce() -> Result<(), Failure>) -> Status {
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
struct Arguments {
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
    unsafe fn read<'a, T>(
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
    unsafe fn optional<'a, T>(
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
    unsafe fn write<'a, T>(
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
    unsafe fn optional_write<'a, T>(
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
struct Checked {
    shape: Shape,
    serial: bool,
}

impl Checked {
    /// # Safety
    /// `problem` is null or points to one.
    unsafe fn new(problem: *const Problem) -> Result<Self, Failure> {
        // SAFETY: says the caller.
        let problem = unsafe { Arguments::default().read("problem", problem, 1)? }[0];
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

    fn run(self, body: impl FnOnce(&Shape) -> Result<(), Error>) -> Result<(), Failure> {
        let result = if self.serial { exec::serially(|| body(&self.shape)) } else { body(&self.shape) };
        Ok(result?)
    }
}

fn unknown(name: &str, value: u32, must: &str) -> Failure {
    Failure(Status::UnknownValue, format!("{name} is {value}, must be {must}"))
}

impl Update {
    fn checked(self) -> Result<RunningUpdate, Failure> {
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

fn params<'a, T: Element>(gamma: Option<&'a [T]>, beta: Option<&'a [T]>, eps: f64) -> Params<'a, T> {
    let mut params = Params::new(eps);
    (params.gamma, params.beta) = (gamma, beta);
    params
}

fn level(level: u32) -> Result<Option<Level>, Failure> {
    Ok(Some(match level {
        0 => return Ok(None),
        BATCHNORM_PORTABLE => Level::Portable,
        BATCHNORM_AVX2 => Level::Avx2,
        BATCHNORM_AVX512 => Level::Avx512,
        level => return Err(unknown("level", level, "0 (the best), 1 (portable), 2 (AVX2) or 3 (AVX-512)")),
    }))
}

/// The library's version, as "0.1.0".
#[unsafe(no_mangle)]
pub extern "C" fn batchnorm_version() -> *const c_char {
    concat!(env!("CARGO_PKG_VERSION"), "\0").as_ptr().cast()
}

/// What a status means, in words that never change or end.
#[unsafe(no_mangle)]
pub extern "C" fn batchnorm_status_message(status: i32) -> *const c_char {
    let message = match status {
        0 => c"done",
        1 => c"a pointer is null",
        2 => c"a pointer is not aligned to its element",
        3 => c"what is written overlaps another argument",
        4 => c"the number of elements overflows",
        5 => c"a number stands for no layout, level, rule or variance",
        6 => c"eps is negative, NaN or infinite",
        7 => c"a factor is NaN or infinite",
        8 => c"the unbiased variance of one element does not exist",
        9 => c"a state is not of as many elements as a channel has",
        10 => c"the CPU does not have the level",
        11 => c"the number of threads cannot be set any more",
        12 => c"a bug in the library",
        _ => c"no status of this library",
    };
    message.as_ptr()
}

/// Copies what was wrong with this thread's last call that failed, naming the argument, to `buffer` of `size` bytes, with
/// an end of string, cut if need be. Returns the bytes that all of it takes. `buffer` may be null if `size` is 0.
///
/// # Safety
/// `size` bytes can be written at `buffer`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn batchnorm_last_message(buffer: *mut c_char, size: usize) -> usize {
    let message = MESSAGE.try_with(|message| message.borrow().clone()).unwrap_or_default();
    if !buffer.is_null() && size > 0 {
        let len = message.len().min(size - 1);
        // SAFETY: `len` + 1 <= `size` bytes, says the caller.
        unsafe {
            std::ptr::copy_nonoverlapping(message.as_ptr().cast(), buffer, len);
            buffer.add(len).write(0);
        }
    }
    message.len() + 1
}

/// The level that operations run on: BATCHNORM_PORTABLE, BATCHNORM_AVX2 or BATCHNORM_AVX512.
#[unsafe(no_mangle)]
pub extern "C" fn batchnorm_active_level() -> u32 {
    catch_unwind(|| Level::active() as u32).unwrap_or(BATCHNORM_PORTABLE)
}

/// Forces a level for the whole program, 0 for the best there is.
#[unsafe(no_mangle)]
pub extern "C" fn batchnorm_force_level(wanted: u32) -> Status {
    call(|| Ok(Level::force(level(wanted)?)?))
}

/// Sets the number of threads of the pool that large problems are spread over: once, before the first of them. (Else the
/// pool has a thread for each core, or as many as the environment variable `RAYON_NUM_THREADS` says.)
#[unsafe(no_mangle)]
pub extern "C" fn batchnorm_set_threads(threads: usize) -> Status {
    call(|| exec::set_threads(threads).map_err(|message| Failure(Status::Threads, message)))
}

/// Takes the elements that `from` has seen into `into`, for each of `channels` channels: the statistics of the parts of a
/// batch become those of the whole.
///
/// # Safety
/// `channels` states can be read at `from`, read and written at `into`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn batchnorm_merge(channels: usize, into: *mut State, from: *const State) -> Status {
    call(|| {
        let mut arguments = Arguments::default();
        // SAFETY: says the caller; a `State` is a `Welford`.
        let (into, from) = unsafe {
            (
                arguments.write("into", into.cast::<Welford>(), channels)?,
                arguments.read("from", from.cast::<Welford>(), channels)?,
            )
        };
        into.iter_mut().zip(from).for_each(|(into, from)| into.merge(from));
        Ok(())
    })
}

/// The generic bodies, with the signatures of the functions for each element.
mod generic {
    use super::*;

    pub unsafe fn statistics<T: Element>(problem: *const Problem, x: *const T, states: *mut State) -> Status {
        call(|| {
            let mut arguments = Arguments::default();
            // SAFETY: says the caller.
            unsafe {
                let problem = Checked::new(problem)?;
                let (len, c) = (problem.shape.len(), problem.shape.channels());
                let x = arguments.read("x", x, len)?;
                let states = arguments.write("states", states.cast::<Welford>(), c)?;
                problem.run(|shape| crate::statistics(shape, x, states))
            }
        })
    }

    pub unsafe fn forward_training<T: Element>(
        problem: *const Problem,
        x: *const T,
        gamma: *const T,
        beta: *const T,
        eps: f64,
        y: *mut T,
        states: *mut State,
    ) -> Status {
        call(|| {
            let mut arguments = Arguments::default();
            // SAFETY: says the caller.
            unsafe {
                let problem = Checked::new(problem)?;
                let (len, c) = (problem.shape.len(), problem.shape.channels());
                let gamma = arguments.optional("gamma", gamma, c)?;
                let beta = arguments.optional("beta", beta, c)?;
                let states = arguments.write("states", states.cast::<Welford>(), c)?;
                let params = params(gamma, beta, eps);
                let in_place = std::ptr::eq(x, y);
                let y = arguments.write("y", y, len)?;
                if in_place {
                    return problem.run(|shape| crate::forward_training_in_place(shape, y, &params, states));
                }
                let x = arguments.read("x", x, len)?;
                problem.run(|shape| crate::forward_training(shape, x, &params, y, states))
            }
        })
    }

    #[expect(clippy::too_many_arguments, reason = "the arguments of the operation, flat as C has them")]
    pub unsafe fn forward_inference<T: Element>(
        problem: *const Problem,
        x: *const T,
        mean: *const T,
        var: *const T,
        gamma: *const T,
        beta: *const T,
        eps: f64,
        y: *mut T,
    ) -> Status {
        call(|| {
            let mut arguments = Arguments::default();
            // SAFETY: says the caller.
            unsafe {
                let problem = Checked::new(problem)?;
                let (len, c) = (problem.shape.len(), problem.shape.channels());
                let mean = arguments.read("mean", mean, c)?;
                let var = arguments.read("var", var, c)?;
                let gamma = arguments.optional("gamma", gamma, c)?;
                let beta = arguments.optional("beta", beta, c)?;
                let params = params(gamma, beta, eps);
                let in_place = std::ptr::eq(x, y);
                let y = arguments.write("y", y, len)?;
                if in_place {
                    return problem
                        .run(|shape| crate::forward_inference_in_place(shape, y, mean, var, &params));
                }
                let x = arguments.read("x", x, len)?;
                problem.run(|shape| crate::forward_inference(shape, x, mean, var, &params, y))
            }
        })
    }

    /// Where a backward pass writes; null for what is not wanted.
    pub struct Outputs<T> {
        pub dx: *mut T,
        pub dgamma: *mut T,
        pub dbeta: *mut T,
        pub dmean: *mut T,
        pub dvar: *mut T,
    }

    impl<T: Element> Outputs<T> {
        unsafe fn checked<'a>(
            self,
            arguments: &mut Arguments,
            shape: &Shape,
        ) -> Result<Gradients<'a, T>, Failure> {
            let c = shape.channels();
            let mut gradients = Gradients::new();
            // SAFETY: says the caller.
            unsafe {
                gradients.dx = arguments.optional_write("dx", self.dx, shape.len())?;
                gradients.dgamma = arguments.optional_write("dgamma", self.dgamma, c)?;
                gradients.dbeta = arguments.optional_write("dbeta", self.dbeta, c)?;
                gradients.dmean = arguments.optional_write("dmean", self.dmean, c)?;
                gradients.dvar = arguments.optional_write("dvar", self.dvar, c)?;
            }
            Ok(gradients)
        }
    }

    pub unsafe fn backward<T: Element>(
        problem: *const Problem,
        x: *const T,
        dy: *const T,
        states: *const State,
        gamma: *const T,
        eps: f64,
        outputs: Outputs<T>,
    ) -> Status {
        call(|| {
            let mut arguments = Arguments::default();
            // SAFETY: says the caller.
            unsafe {
                let problem = Checked::new(problem)?;
                let (len, c) = (problem.shape.len(), problem.shape.channels());
                let x = arguments.read("x", x, len)?;
                let dy = arguments.read("dy", dy, len)?;
                let states = arguments.read("states", states.cast::<Welford>(), c)?;
                let params = params(arguments.optional("gamma", gamma, c)?, None, eps);
                let gradients = outputs.checked(&mut arguments, &problem.shape)?;
                problem.run(|shape| crate::backward(shape, x, dy, states, &params, gradients))
            }
        })
    }

    #[expect(clippy::too_many_arguments, reason = "the arguments of the operation, flat as C has them")]
    pub unsafe fn backward_frozen<T: Element>(
        problem: *const Problem,
        x: *const T,
        dy: *const T,
        mean: *const T,
        var: *const T,
        gamma: *const T,
        eps: f64,
        outputs: Outputs<T>,
    ) -> Status {
        call(|| {
            let mut arguments = Arguments::default();
            // SAFETY: says the caller.
            unsafe {
                let problem = Checked::new(problem)?;
                let (len, c) = (problem.shape.len(), problem.shape.channels());
                let x = arguments.read("x", x, len)?;
                let dy = arguments.read("dy", dy, len)?;
                let mean = arguments.read("mean", mean, c)?;
                let var = arguments.read("var", var, c)?;
                let params = params(arguments.optional("gamma", gamma, c)?, None, eps);
                let gradients = outputs.checked(&mut arguments, &problem.shape)?;
                problem.run(|shape| crate::backward_frozen(shape, x, dy, mean, var, &params, gradients))
            }
        })
    }

    pub unsafe fn update_running<T: Element>(
        channels: usize,
        update: *const Update,
        batches: u64,
        states: *const State,
        mean: *mut T,
        var: *mut T,
    ) -> Status {
        call(|| {
            let mut arguments = Arguments::default();
            // SAFETY: says the caller.
            unsafe {
                let update = arguments.read("update", update, 1)?[0].checked()?;
                let states = arguments.read("states", states.cast::<Welford>(), channels)?;
                let mean = arguments.write("mean", mean, channels)?;
                let var = arguments.write("var", var, channels)?;
                Ok(crate::update_running(update, batches, states, mean, var)?)
            }
        })
    }

    pub unsafe fn step<T: Element>(len: usize, lr: f64, gradient: *const T, parameter: *mut T) -> Status {
        call(|| {
            let mut arguments = Arguments::default();
            // SAFETY: says the caller.
            unsafe {
                let gradient = arguments.read("gradient", gradient, len)?;
                let parameter = arguments.write("parameter", parameter, len)?;
                Ok(crate::step(lr, gradient, parameter)?)
            }
        })
    }
}

/// Writes out the functions of one element.
macro_rules! functions {
    ($element:ty, $statistics:ident, $training:ident, $inference:ident, $backward:ident, $frozen:ident, $update:ident,
     $step:ident) => {
        /// The statistics of each channel of `x`, to `states`, one per channel.
        ///
        /// # Safety
        /// Pointers point to as many elements as the problem says.
        #[unsafe(no_mangle)]
        pub unsafe extern "C" fn $statistics(
            problem: *const Problem,
            x: *const $element,
            states: *mut State,
        ) -> Status {
            // SAFETY: says the caller.
            unsafe { generic::statistics(problem, x, states) }
        }

        /// Normalizes `x` by its own statistics, which go to `states`: y = gamma * (x - mean) / sqrt(var + eps) + beta.
        /// `y` may be `x`; `gamma` and `beta` may be null, for 1 and 0.
        ///
        /// # Safety
        /// Pointers point to as many elements as the problem says.
        #[unsafe(no_mangle)]
        pub unsafe extern "C" fn $training(
            problem: *const Problem,
            x: *const $element,
            gamma: *const $element,
            beta: *const $element,
            eps: f64,
            y: *mut $element,
            states: *mut State,
        ) -> Status {
            // SAFETY: says the caller.
            unsafe { generic::forward_training(problem, x, gamma, beta, eps, y, states) }
        }

        /// Normalizes `x` by a given mean and variance per channel. `y` may be `x`; `gamma` and `beta` may be null.
        ///
        /// # Safety
        /// Pointers point to as many elements as the problem says.
        #[unsafe(no_mangle)]
        pub unsafe extern "C" fn $inference(
            problem: *const Problem,
            x: *const $element,
            mean: *const $element,
            var: *const $element,
            gamma: *const $element,
            beta: *const $element,
            eps: f64,
            y: *mut $element,
        ) -> Status {
            // SAFETY: says the caller.
            unsafe { generic::forward_inference(problem, x, mean, var, gamma, beta, eps, y) }
        }

        /// Gradients of forward training, from its input, the gradient of its output and the states that it returned.
        /// `gamma` may be null, and each output that is not wanted.
        ///
        /// # Safety
        /// Pointers point to as many elements as the problem says.
        #[unsafe(no_mangle)]
        pub unsafe extern "C" fn $backward(
            problem: *const Problem,
            x: *const $element,
            dy: *const $element,
            states: *const State,
            gamma: *const $element,
            eps: f64,
            dx: *mut $element,
            dgamma: *mut $element,
            dbeta: *mut $element,
            dmean: *mut $element,
            dvar: *mut $element,
        ) -> Status {
            let outputs = generic::Outputs { dx, dgamma, dbeta, dmean, dvar };
            // SAFETY: says the caller.
            unsafe { generic::backward(problem, x, dy, states, gamma, eps, outputs) }
        }

        /// Gradients of inference, whose statistics do not depend on `x`. `gamma` may be null, and each output that is
        /// not wanted.
        ///
        /// # Safety
        /// Pointers point to as many elements as the problem says.
        #[unsafe(no_mangle)]
        pub unsafe extern "C" fn $frozen(
            problem: *const Problem,
            x: *const $element,
            dy: *const $element,
            mean: *const $element,
            var: *const $element,
            gamma: *const $element,
            eps: f64,
            dx: *mut $element,
            dgamma: *mut $element,
            dbeta: *mut $element,
            dmean: *mut $element,
            dvar: *mut $element,
        ) -> Status {
            let outputs = generic::Outputs { dx, dgamma, dbeta, dmean, dvar };
            // SAFETY: says the caller.
            unsafe { generic::backward_frozen(problem, x, dy, mean, var, gamma, eps, outputs) }
        }

        /// Takes the statistics of a batch into the running mean and variance of `channels` channels. `batches` came
        /// before it; only the cumulative rule looks at that.
        ///
        /// # Safety
        /// `channels` elements can be read at `states`, read and written at `mean` and `var`.
        #[unsafe(no_mangle)]
        pub unsafe extern "C" fn $update(
            channels: usize,
            update: *const Update,
            batches: u64,
            states: *const State,
            mean: *mut $element,
            var: *mut $element,
        ) -> Status {
            // SAFETY: says the caller.
            unsafe { generic::update_running(channels, update, batches, states, mean, var) }
        }

        /// One step of gradient descent: parameter -= lr * gradient.
        ///
        /// # Safety
        /// `len` elements can be read at `gradient`, read and written at `parameter`.
        #[unsafe(no_mangle)]
        pub unsafe extern "C" fn $step(
            len: usize,
            lr: f64,
            gradient: *const $element,
            parameter: *mut $element,
        ) -> Status {
            // SAFETY: says the caller.
            unsafe { generic::step(len, lr, gradient, parameter) }
        }
    };
}

functions!(
    f32,
    batchnorm_statistics_f32,
    batchnorm_forward_training_f32,
    batchnorm_forward_inference_f32,
    batchnorm_backward_f32,
    batchnorm_backward_frozen_f32,
    batchnorm_update_running_f32,
    batchnorm_step_f32
);
functions!(
    f64,
    batchnorm_statistics_f64,
    batchnorm_forward_training_f64,
    batchnorm_forward_inference_f64,
    batchnorm_backward_f64,
    batchnorm_backward_frozen_f64,
    batchnorm_update_running_f64,
    batchnorm_step_f64
);
