//! The problem: what tensors a call is about, and how to work on them.

use std::mem::offset_of;

use super::arguments::{Arguments, Failure, Versioned};
use crate::api::shape::{Layout, Shape};
use crate::ground::error::Error;
use crate::threads;

/// Elements are `float`.
pub const BATCHNORM_F32: u32 = 0;
/// Elements are `double`.
pub const BATCHNORM_F64: u32 = 1;

/// The order NCHW: the elements of a channel of a sample are adjacent.
pub const BATCHNORM_NCHW: u32 = 0;
/// The order NHWC: the channels of a position are adjacent.
pub const BATCHNORM_NHWC: u32 = 1;

/// The tensors of a call: element, layout and sizes; and how many threads may work on them. Every field but the size may
/// be left 0, which is its default.
#[derive(Debug, Clone, Copy)]
#[repr(C)]
pub struct Problem {
    /// sizeof(batchnorm_problem).
    pub size: usize,
    /// BATCHNORM_F32 or BATCHNORM_F64.
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
}

const _: () = assert!(size_of::<Problem>() == 7 * size_of::<usize>() + 8, "no padding");

// SAFETY: numbers without padding, the size first.
unsafe impl Versioned for Problem {
    const NAME: &'static str = "batchnorm_problem";
    const FIRST: usize = offset_of!(Problem, threads);
}

/// What a problem's elements are.
#[derive(Clone, Copy)]
pub enum ElementType {
    F32,
    F64,
}

/// Calls a function of the problem's element.
macro_rules! by_element {
    ($problem:expr, $function:ident($($argument:expr),*)) => {
        match $problem.element {
            $crate::ffi::problem::ElementType::F32 => $function::<f32>($($argument),*),
            $crate::ffi::problem::ElementType::F64 => $function::<f64>($($argument),*),
        }
    };
}
pub(super) use by_element;

/// A checked problem.
pub struct Checked {
    pub shape: Shape,
    pub element: ElementType,
    threads: usize,
}

impl Checked {
    /// # Safety
    /// `problem` is null, or points to one of the size that it says.
    pub unsafe fn new(arguments: &mut Arguments, problem: *const Problem) -> Result<Self, Failure> {
        // SAFETY: says the caller.
        let problem = unsafe { arguments.sized("problem", problem)? };
        let Problem { element, layout, batch, channels, spatial, threads, .. } = problem;
        let element = match element {
            BATCHNORM_F32 => ElementType::F32,
            BATCHNORM_F64 => ElementType::F64,
            _ => return Err(Failure::unknown("element", element, "0 (f32) or 1 (f64)")),
        };
        let layout = match layout {
            BATCHNORM_NCHW => Layout::Nchw,
            BATCHNORM_NHWC => Layout::Nhwc,
            _ => return Err(Failure::unknown("layout", layout, "0 (NCHW) or 1 (NHWC)")),
        };
        let shape = Shape::new(layout, batch, channels, &spatial.map(|axis| axis.max(1)))?;
        Ok(Self { shape, element, threads })
    }

    /// Runs `body` on as many threads as the problem says.
    pub fn run(&self, body: impl FnOnce() -> Result<(), Error>) -> Result<(), Failure> {
        Ok(threads::limit(self.threads, body)?)
    }
}
