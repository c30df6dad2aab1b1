//! The problem: what tensors a call is about, and how to work on them.

use std::mem::offset_of;

use super::arguments::{Arguments, Failure, Versioned};
use super::element::ElementType;
use super::status::Status;
use crate::api::shape::{Layout, Shape};
use crate::ground::error::Error;
use crate::ground::half::Half;
use crate::threads;
use crate::threads::host::{Host, HostPool};

/// Elements are `float`.
pub const BATCHNORM_F32: u32 = 0;
/// Elements are `double`.
pub const BATCHNORM_F64: u32 = 1;
/// Elements of tensors are bfloat16, 16 bits each; what has one value per channel is `float`.
pub const BATCHNORM_BF16: u32 = 2;
/// Elements of tensors are IEEE 754's binary16, 16 bits each; what has one value per channel is `float`.
pub const BATCHNORM_F16: u32 = 3;

// No element's number is one of these, 0 aside: BATCHNORM_F16 in their place is refused, and not taken for another.
/// y, dy, the residual and dz hold elements as x does.
pub const BATCHNORM_Y_SAME: u64 = 0;
/// They hold `float`.
pub const BATCHNORM_Y_F32: u64 = 16;
/// They hold bfloat16.
pub const BATCHNORM_Y_BF16: u64 = 18;
/// They hold binary16.
pub const BATCHNORM_Y_F16: u64 = 19;

/// The order NCHW: the elements of a channel of a sample are adjacent.
pub const BATCHNORM_NCHW: u32 = 0;
/// The order NHWC: the channels of a position are adjacent.
pub const BATCHNORM_NHWC: u32 = 1;

/// The tensors of a call: element, layout and sizes; and how many threads, and whose, may work on them. Every field but the
/// size may be left 0, which is its default.
#[derive(Debug, Clone, Copy)]
#[repr(C)]
pub struct Problem {
    /// sizeof(batchnorm_problem).
    pub size: usize,
    /// BATCHNORM_F32, BATCHNORM_F64, BATCHNORM_BF16 or BATCHNORM_F16.
    pub element: u32,
    /// BATCHNORM_NCHW or BATCHNORM_NHWC.
    pub layout: u32,
    /// N, the number of samples. With none, tensors have no elements, and nothing is computed of them.
    pub batch: usize,
    /// C, the number of channels.
    pub channels: usize,
    /// The spatial axes; 0 for one that is not there.
    pub spatial: [usize; 3],
    /// The most threads to work on a call: 0 for as many as the pool has, 1 for the calling thread alone. Results have the
    /// same bits with any number.
    pub threads: usize,
    /// The program's own threads; null for the library's pool. Results have the same bits on all.
    pub threadpool: *const HostPool,
    /// What y, its gradient dy, the residual and its gradient dz hold: BATCHNORM_Y_SAME, what x and dx do, or BATCHNORM_Y_F32,
    /// BATCHNORM_Y_BF16 or BATCHNORM_Y_F16, none of which goes with BATCHNORM_F64.
    pub y_element: u64,
}

#[cfg(target_pointer_width = "64")]
const _: () = assert!(
    size_of::<Problem>() == size_of::<[usize; 8]>() + size_of::<[u32; 2]>() + size_of::<u64>(),
    "no padding"
);
const _: () = assert!(size_of::<HostPool>() == 6 * size_of::<usize>(), "no padding");

// SAFETY: numbers and a pointer without padding, the size first.
unsafe impl Versioned for Problem {
    const NAME: &'static str = "batchnorm_problem";
    const FIRST: usize = offset_of!(Problem, threads);
}

// SAFETY: pointers without padding, the size first; functions may be null.
unsafe impl Versioned for HostPool {
    const NAME: &'static str = "batchnorm_threadpool";
    const FIRST: usize = size_of::<HostPool>();
}

/// A checked problem.
pub(super) struct Checked {
    pub shape: Shape,
    /// Of x and its gradient.
    pub element: ElementType,
    /// Of y, the residual and their gradients.
    pub y_element: ElementType,
    threads: usize,
    host: Option<Host>,
}

impl Checked {
    /// # Safety
    /// `problem` is null, or points to one of the size that it says; so does `threadpool` in it, whose functions do what
    /// they have to.
    pub unsafe fn new(arguments: &mut Arguments, problem: *const Problem) -> Result<Self, Failure> {
        // SAFETY: says the caller.
        let problem = unsafe { arguments.sized("problem", problem)? };
        let Problem { element, y_element, layout, batch, channels, spatial, threads, threadpool, .. } =
            problem;
        let element = match element {
            BATCHNORM_F32 => ElementType::F32,
            BATCHNORM_F64 => ElementType::F64,
            BATCHNORM_BF16 => ElementType::Half(Half::Bf16),
            BATCHNORM_F16 => ElementType::Half(Half::F16),
            _ => return Err(Failure::unknown("element", element, "0 (f32), 1 (f64), 2 (bf16) or 3 (f16)")),
        };
        let y_element = match (y_element, element) {
            (BATCHNORM_Y_SAME, _) => element,
            (BATCHNORM_Y_F32, ElementType::F32 | ElementType::Half(_)) => ElementType::F32,
            (BATCHNORM_Y_BF16, ElementType::F32 | ElementType::Half(_)) => ElementType::Half(Half::Bf16),
            (BATCHNORM_Y_F16, ElementType::F32 | ElementType::Half(_)) => ElementType::Half(Half::F16),
            (_, ElementType::F64) => {
                return Err(Failure::unknown(
                    "y_element",
                    y_element,
                    "0 (the same) where element is 1 (f64)",
                ));
            }
            _ => {
                let must = "0 (the same), 16 (f32), 18 (bf16) or 19 (f16)";
                return Err(Failure::unknown("y_element", y_element, must));
            }
        };
        let layout = match layout {
            BATCHNORM_NCHW => Layout::Nchw,
            BATCHNORM_NHWC => Layout::Nhwc,
            _ => return Err(Failure::unknown("layout", layout, "0 (NCHW) or 1 (NHWC)")),
        };
        let shape = Shape::new(layout, batch, channels, &spatial.map(|axis| axis.max(1)))?;
        // SAFETY: says the caller.
        let host = unsafe { Self::host(arguments, threadpool)? };
        Ok(Self { shape, element, y_element, threads, host })
    }

    /// # Safety
    /// As of `new`.
    unsafe fn host(arguments: &mut Arguments, pool: *const HostPool) -> Result<Option<Host>, Failure> {
        if pool.is_null() {
            return Ok(None);
        }
        // SAFETY: says the caller.
        let pool = unsafe { arguments.sized("threadpool", pool)? };
        // SAFETY: says the caller.
        match unsafe { Host::new(&pool) } {
            Some(host) => Ok(Some(host)),
            None => {
                let name = if pool.threads.is_none() { "threads" } else { "run" };
                let message = format!("threadpool->{name} is null, must be a function");
                Err(Failure(Status::NullPointer, message))
            }
        }
    }

    /// Runs `body` on the problem's threads, and as many of them as it says.
    pub fn run<R>(&self, body: impl FnOnce() -> Result<R, Error>) -> Result<R, Failure> {
        let limited = || threads::limit(self.threads, body);
        Ok(match &self.host {
            Some(host) => threads::with(host, limited),
            None => limited(),
        }?)
    }
}
