//! The library itself: errors in words, threads, instruction sets, version.

use std::ffi::c_char;
use std::panic::catch_unwind;

use super::arguments::{Failure, call, last_message};
use super::status::Status;
use crate::simd::Level;
#[cfg(feature = "rayon")]
use crate::threads::rayon_pool::set_threads;

/// The instruction set of every CPU of the build's kind.
pub const BATCHNORM_PORTABLE: u32 = 1;
/// AVX2, FMA and F16C.
pub const BATCHNORM_AVX2: u32 = 2;
/// AVX-512F and BW.
pub const BATCHNORM_AVX512: u32 = 3;

/// What a status means: a static string, for numbers that are no status too.
#[unsafe(no_mangle)]
pub extern "C" fn batchnorm_status_message(status: i32) -> *const c_char {
    let message = match status {
        0 => c"done",
        1 => c"a pointer is null",
        2 => c"a pointer is not aligned to its element",
        3 => c"what is written overlaps another argument",
        4 => c"a number of elements overflows",
        5 => c"a number stands for no element, layout, activation, level, rule or variance",
        6 => c"eps is negative, NaN or infinite",
        7 => c"a learning rate or a slope is NaN or infinite, or a momentum or decay not between 0 and 1",
        8 => c"the unbiased variance of one element does not exist",
        9 => c"a state is not of as many elements as a channel has",
        10 => c"the CPU does not have the level",
        11 => c"the number of threads cannot be set",
        12 => c"the size in a struct is not the struct's",
        13 => c"two arguments are given of which one has to be null",
        14 => c"a bug in the library",
        15 => c"memory is short",
        16 => c"a state's numbers are none that elements give",
        17 => c"an activation has a residual or a mask that it does not go with",
        18 => c"a clip's bounds are NaN or leave nothing between them",
        19 => c"partial sums do not go with others or with the call",
        20 => c"bytes are not those of partial sums",
        21 => c"not all parts of the batch could be had",
        22 => c"groups do not divide the channels or the rows of weights",
        23 => c"a limit of renormalization is NaN, r_max below 1, or d_max below 0",
        24 => c"a sample's weight is neither 0 nor from 2^-60 to 2^60, or all are 0",
        _ => c"no status of this library",
    };
    message.as_ptr()
}

/// Copies what was wrong with the calling thread's last call that failed, with the argument's name, to `buffer` of `size`
/// bytes: cut if need be, always with its terminating 0; to nowhere if `buffer` is null. Returns the bytes that all of it
/// takes, that 0 included. Calls that succeed leave it as it is; other threads' calls do not touch it.
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

/// Starts the pool that large problems are spread over with this number of threads, 0 for one per core. That works once,
/// before the first of them, which else starts it with as many as the environment variable RAYON_NUM_THREADS says, or one
/// per core; a pool that runs keeps its threads, and the cores that they may run on, until the program ends. For a call
/// on fewer threads there is `threads` in its problem. If threads cannot be started, all calls stay on theirs.
#[unsafe(no_mangle)]
pub extern "C" fn batchnorm_set_threads(threads: usize) -> Status {
    call(|| set_threads(threads).map_err(|message| Failure(Status::Threads, message)))
}

/// The instruction set that operations run on: BATCHNORM_PORTABLE, BATCHNORM_AVX2 or BATCHNORM_AVX512.
#[unsafe(no_mangle)]
pub extern "C" fn batchnorm_active_level() -> u32 {
    catch_unwind(|| Level::active() as u32).unwrap_or(BATCHNORM_PORTABLE)
}

/// Forces an instruction set for the whole program, 0 to end that. BATCHNORM_STATUS_LEVEL if the CPU does not have it.
#[unsafe(no_mangle)]
pub extern "C" fn batchnorm_force_level(level: u32) -> Status {
    call(|| {
        let level = match level {
            0 => None,
            BATCHNORM_PORTABLE => Some(Level::Portable),
            BATCHNORM_AVX2 => Some(Level::Avx2),
            BATCHNORM_AVX512 => Some(Level::Avx512),
            _ => {
                let must = "0 (the best), 1 (portable), 2 (AVX2) or 3 (AVX-512)";
                return Err(Failure::unknown("level", level, must));
            }
        };
        Ok(Level::force(level)?)
    })
}

/// The library's version, as "0.1.0": a static string.
#[unsafe(no_mangle)]
pub extern "C" fn batchnorm_version() -> *const c_char {
    concat!(env!("CARGO_PKG_VERSION"), "\0").as_ptr().cast()
}

#[cfg(not(feature = "rayon"))]
fn set_threads(threads: usize) -> Result<(), String> {
    if threads == 1 { Ok(()) } else { Err("built without threads".to_owned()) }
}
