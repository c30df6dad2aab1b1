//! Running statistics and parameters: what has one value per channel.

use std::ffi::c_void;

use super::arguments::{Arguments, Failure, Versioned, call, check_states};
use super::element::by_element;
use super::problem::{Checked, Problem};
use super::state::State;
use super::status::Status;
use crate::api::running::{RunningUpdate, RunningVariance, UpdateRule, step, update_running};
use crate::ground::welford::Welford;
use crate::operations::Element;

/// running = factor * running + (1 - factor) * batch.
pub const BATCHNORM_DECAY: u32 = 0;
/// running = (1 - factor) * running + factor * batch.
pub const BATCHNORM_MOMENTUM: u32 = 1;
/// running = the mean over all batches so far; the factor is not looked at.
pub const BATCHNORM_CUMULATIVE: u32 = 2;

/// The arguments of `batchnorm_update_running`.
#[derive(Debug, Clone, Copy)]
#[repr(C)]
pub struct UpdateRunningArgs {
    /// sizeof(batchnorm_update_running_args).
    pub size: usize,
    /// BATCHNORM_DECAY, BATCHNORM_MOMENTUM or BATCHNORM_CUMULATIVE.
    pub rule: u32,
    /// 1 for the unbiased variance M2 / (m - 1), 0 for the biased one, M2 / m.
    pub unbiased: u32,
    /// The factor of the rule, between 0 and 1.
    pub factor: f64,
    /// How many batches came before; only the cumulative rule looks at it.
    pub batches: u64,
    /// The batch's statistics of each channel.
    pub states: *const State,
    /// Read and written: the running mean per channel.
    pub mean: *mut c_void,
    /// Read and written: the running variance per channel.
    pub var: *mut c_void,
}

/// The arguments of `batchnorm_step`.
#[derive(Debug, Clone, Copy)]
#[repr(C)]
pub struct StepArgs {
    /// sizeof(batchnorm_step_args).
    pub size: usize,
    /// The learning rate, finite.
    pub lr: f64,
    /// dgamma or dbeta.
    pub gradient: *const c_void,
    /// Read and written: gamma or beta.
    pub parameter: *mut c_void,
}

// SAFETY: numbers and pointers without padding on 64-bit targets, the size first.
unsafe impl Versioned for UpdateRunningArgs {
    const NAME: &'static str = "batchnorm_update_running_args";
    const FIRST: usize = size_of::<UpdateRunningArgs>();
}
// SAFETY: as above.
unsafe impl Versioned for StepArgs {
    const NAME: &'static str = "batchnorm_step_args";
    const FIRST: usize = size_of::<StepArgs>();
}
#[cfg(target_pointer_width = "64")]
const _: () =
    assert!(size_of::<UpdateRunningArgs>() == 7 * 8 && size_of::<StepArgs>() == 4 * 8, "no padding");

/// Takes the statistics of a batch into the running mean and variance of the problem's channels, whose other sizes change
/// nothing, but have to be a tensor's. Channels of no elements are left as they are.
///
/// # Safety
/// As of `batchnorm_statistics`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn batchnorm_update_running(
    problem: *const Problem,
    args: *const UpdateRunningArgs,
) -> Status {
    call(|| {
        let mut arguments = Arguments::default();
        // SAFETY: says the caller.
        unsafe {
            let problem = Checked::new(&mut arguments, problem)?;
            let args = arguments.sized("args", args)?;
            by_element!(problem, take_in(&problem, args, arguments))
        }
    })
}

unsafe fn take_in<T: Element>(
    problem: &Checked,
    args: UpdateRunningArgs,
    mut arguments: Arguments,
) -> Result<(), Failure> {
    let rule = match args.rule {
        BATCHNORM_DECAY => UpdateRule::Decay(args.factor),
        BATCHNORM_MOMENTUM => UpdateRule::Momentum(args.factor),
        BATCHNORM_CUMULATIVE => UpdateRule::Cumulative,
        rule => return Err(Failure::unknown("rule", rule, "0 (decay), 1 (momentum) or 2 (cumulative)")),
    };
    let variance = match args.unbiased {
        0 => RunningVariance::Biased,
        1 => RunningVariance::Unbiased,
        unbiased => return Err(Failure::unknown("unbiased", unbiased, "0 or 1")),
    };
    let c = problem.shape.channels();
    // SAFETY: says the caller.
    let (states, mean, var) = unsafe {
        (
            arguments.read("states", args.states.cast::<Welford>(), c)?,
            arguments.write("mean", args.mean.cast::<T>(), c)?,
            arguments.write("var", args.var.cast::<T>(), c)?,
        )
    };
    check_states("states", states)?;
    Ok(update_running(RunningUpdate { rule, variance }, args.batches, states, mean, var)?)
}

/// One step of gradient descent on the problem's channels, whose other sizes change nothing, but have to be a tensor's:
/// parameter -= lr * gradient, for gamma with dgamma, for beta with dbeta.
///
/// # Safety
/// As of `batchnorm_statistics`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn batchnorm_step(problem: *const Problem, args: *const StepArgs) -> Status {
    call(|| {
        let mut arguments = Arguments::default();
        // SAFETY: says the caller.
        unsafe {
            let problem = Checked::new(&mut arguments, problem)?;
            let args = arguments.sized("args", args)?;
            by_element!(problem, descend(&problem, args, arguments))
        }
    })
}

unsafe fn descend<T: Element>(
    problem: &Checked,
    args: StepArgs,
    mut arguments: Arguments,
) -> Result<(), Failure> {
    let c = problem.shape.channels();
    // SAFETY: says the caller.
    let (gradient, parameter) = unsafe {
        (
            arguments.read("gradient", args.gradient.cast::<T>(), c)?,
            arguments.write("parameter", args.parameter.cast::<T>(), c)?,
        )
    };
    Ok(step(args.lr, gradient, parameter)?)
}
