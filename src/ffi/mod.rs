//! The C interface (feature `capi`): the operations on slices, as functions on plain pointers. `include/batchnorm.h` is
//! made of this file by cbindgen.
//!
//! Every function checks its arguments before it writes: pointers that are null (unless their length is 0), not aligned to
//! their element, or that overlap another that is written; then all that the Rust functions check. What is wrong comes
//! back as a [`Status`], in words by [`batchnorm_last_message`]. No panic crosses the boundary.

mod arguments;
mod generic;

use std::ffi::c_char;
use std::panic::catch_unwind;

use crate::threads::pool;
use crate::{
    Element, Error, Gradients, Layout, Level, Params, RunningUpdate, RunningVariance, Shape, UpdateRule,
    Welford,
};
use arguments::{Arguments, Checked, Failure, call, last_message, level, params};

/// What became of a call. Unless it is OK, nothing has been written (after BATCHNORM_STATUS_INTERNAL, perhaps a part).
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
    /// The number of elements, or of their bytes, overflows; or a count that a merge would make.
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
    /// The number of threads cannot be set: the pool is running already, or cannot be started.
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
    /// The spatial axes; 1 for each that is not there, since 0 makes the tensor one of no elements.
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

/// How running statistics take in a batch: what `batchnorm_update_running_f32` and `_f64` are to do.
#[derive(Debug, Clone, Copy)]
#[repr(C)]
pub struct Update {
    /// BATCHNORM_DECAY, BATCHNORM_MOMENTUM or BATCHNORM_CUMULATIVE.
    pub rule: u32,
    /// 1 for the unbiased variance M2 / (m - 1), 0 for the biased one, M2 / m.
    pub unbiased: u32,
    /// The factor of the rule, finite.
    pub factor: f64,
}

/// The statistics of a channel, a Welford state: count, mean and the sum of squared deviations from it. All zeros is the
/// state of no elements. States may be stored and sent: those of parts merge to those of the whole.
#[derive(Debug, Clone, Copy, PartialEq)]
#[repr(C)]
pub struct State {
    /// The number of elements seen.
    pub count: u64,
    /// The mean, which is `mean + mean_low`: next to a large mean one double is not fine enough. NaN if an element was
    /// NaN or infinite.
    pub mean: f64,
    /// What is to be added to `mean`; small against it.
    pub mean_low: f64,
    /// The sum of squared deviations from the mean. The biased variance is `m2 / count`, the unbiased one
    /// `m2 / (count - 1)`.
    pub m2: f64,
}

const _: () =
    assert!(size_of::<State>() == size_of::<Welford>() && align_of::<State>() == align_of::<Welford>());

/// The library's version, as "0.1.0": a static string.
#[unsafe(no_mangle)]
pub extern "C" fn batchnorm_version() -> *const c_char {
    concat!(env!("CARGO_PKG_VERSION"), "\0").as_ptr().cast()
}

/// What a status means: a static string, for numbers that are no status too.
#[unsafe(no_mangle)]
pub extern "C" fn batchnorm_status_message(status: i32) -> *const c_char {
    let message = match status {
        0 => c"done",
        1 => c"a pointer is null",
        2 => c"a pointer is not aligned to its element",
        3 => c"what is written overlaps another argument",
        4 => c"a number of elements overflows",
        5 => c"a number stands for no layout, level, rule or variance",
        6 => c"eps is negative, NaN or infinite",
        7 => c"a factor is NaN or infinite",
        8 => c"the unbiased variance of one element does not exist",
        9 => c"a state is not of as many elements as a channel has",
        10 => c"the CPU does not have the level",
        11 => c"the number of threads cannot be set",
        12 => c"a bug in the library",
        _ => c"no status of this library",
    };
    message.as_ptr()
}

/// Copies what was wrong with the calling thread's last call that failed, with the argument's name, to `buffer` of `size`
/// bytes: cut if need be, always with its terminating 0. Returns the bytes that all of it takes, that 0 included.
/// Calls that succeed leave it as it is; other threads' calls do not touch it.
///
/// # Safety
/// `size` bytes can be written at `buffer`, or it is null.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn batchnorm_last_message(buffer: *mut c_char, size: usize) -> usize {
    let message = last_message();
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

/// Forces a level for the whole program, 0 to end that. Returns BATCHNORM_STATUS_LEVEL if the CPU does not have it.
#[unsafe(no_mangle)]
pub extern "C" fn batchnorm_force_level(wanted: u32) -> Status {
    call(|| Ok(Level::force(level(wanted)?)?))
}

/// Starts the pool that large problems are spread over with this number of threads, 0 for one per core: once, before the
/// first of them, which else starts it with as many as the environment variable `RAYON_NUM_THREADS` says, or one per
/// core. To keep a single call on its thread there is `serial` in the problem. If the threads cannot be started, all
/// calls stay on theirs.
#[unsafe(no_mangle)]
pub extern "C" fn batchnorm_set_threads(threads: usize) -> Status {
    call(|| pool::set_threads(threads).map_err(|message| Failure(Status::Threads, message)))
}

/// Takes the elements that `from` has seen into `into`, for each of `channels` channels: the statistics of the parts of a
/// batch become those of the whole. Any order and grouping gives the same up to rounding.
///
/// # Safety
/// `channels` states can be read at `from`, read and written at `into`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn batchnorm_merge(channels: usize, into: *mut State, from: *const State) -> Status {
    // SAFETY: says the caller.
    unsafe { generic::merge(channels, into, from) }
}

/// Writes out the functions of one element.
macro_rules! functions {
    ($element:ty, $statistics:ident, $training:ident, $inference:ident, $backward:ident, $frozen:ident, $update:ident,
     $step:ident) => {
        /// The statistics of each channel of `x` over batch and spatial axes, to `states`. A channel with a NaN or an
        /// infinity gets NaN; the others are not touched by it.
        ///
        /// # Safety
        /// Pointers are null or point to as many elements as the problem says.
        #[unsafe(no_mangle)]
        pub unsafe extern "C" fn $statistics(
            problem: *const Problem,
            x: *const $element,
            states: *mut State,
        ) -> Status {
            // SAFETY: says the caller.
            unsafe { generic::statistics(problem, x, states) }
        }

        /// Normalizes `x` by its own statistics, which go to `states`: y = gamma * (x - mean) / sqrt(var + eps) + beta,
        /// with the biased variance. `y` may be `x`; `gamma` and `beta` may be null, for 1 and 0. `eps` is finite and not
        /// negative.
        ///
        /// # Safety
        /// Pointers are null or point to as many elements as the problem says.
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

        /// Normalizes `x` by a given mean and variance per channel: y = gamma * (x - mean) / sqrt(var + eps) + beta. `y`
        /// may be `x`; `gamma` and `beta` may be null, for 1 and 0. A negative variance gives NaN in its channel.
        ///
        /// # Safety
        /// Pointers are null or point to as many elements as the problem says.
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

        /// Gradients of forward training, from its input, the gradient of its output and the states that it returned:
        /// dbeta = sum(dy), dgamma = sum(dy * xhat), dx = gamma * invstd * (dy - dbeta / m - xhat * dgamma / m), with
        /// invstd = 1 / sqrt(var + eps) and xhat = (x - mean) * invstd; dmean and dvar, which dx already contains, are
        /// those with respect to the batch's mean and variance. `gamma` may be null, for 1, and so may each output that
        /// is not wanted, which then is not computed.
        ///
        /// # Safety
        /// Pointers are null or point to as many elements as the problem says.
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

        /// Gradients of inference, whose statistics do not depend on `x`: dx = gamma * invstd * dy, dgamma and dbeta as
        /// of training, dmean and dvar with respect to the mean and the variance given. `gamma` may be null, for 1, and
        /// so may each output that is not wanted, which then is not computed.
        ///
        /// # Safety
        /// Pointers are null or point to as many elements as the problem says.
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
        /// before it; only the cumulative rule looks at that. Channels of no elements are left as they are.
        ///
        /// # Safety
        /// `update` points to one, `channels` elements can be read at `states`, read and written at `mean` and `var`.
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

        /// One step of gradient descent, parameter -= lr * gradient: for gamma with dgamma, for beta with dbeta.
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
