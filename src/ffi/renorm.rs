//! Batch renormalization: gamma and beta of a forward and a backward pass.

use std::ffi::c_void;

use super::arguments::{Arguments, Failure, Versioned, call, check_states};
use super::element::by_element;
use super::problem::{Checked, Problem};
use super::state::State;
use super::status::Status;
use crate::api::params::Params;
use crate::api::renorm::{Places, Renorm};
use crate::ground::welford::Welford;
use crate::operations::Element;

/// The arguments of `batchnorm_renorm`. What goes to null is not wanted.
#[derive(Debug, Clone, Copy)]
#[repr(C)]
pub struct RenormArgs {
    /// sizeof(batchnorm_renorm_args).
    pub size: usize,
    /// The batch's statistics of each channel.
    pub states: *const State,
    /// Running mean per channel, which the batch is not in yet.
    pub mean: *const c_void,
    /// Running variance per channel, likewise.
    pub var: *const c_void,
    /// Scale per channel; null for 1.
    pub gamma: *const c_void,
    /// Shift per channel; null for 0.
    pub beta: *const c_void,
    /// Added to both variances under the root; finite and not negative.
    pub eps: f64,
    /// r is clipped to 1 / r_max to r_max: at least 1, infinite for no limit; 0 stands for 1.
    pub r_max: f64,
    /// d is clipped to -d_max to d_max: at least 0, infinite for no limit.
    pub d_max: f64,
    /// Written: r of each channel, sqrt(batch's var + eps) / sqrt(var + eps), clipped; or null.
    pub r: *mut f64,
    /// Written: d of each channel, (batch's mean - mean) / sqrt(var + eps), clipped; or null.
    pub d: *mut f64,
    /// Written: gamma * r of each channel, of the elements that gamma is of; or null.
    pub renorm_gamma: *mut c_void,
    /// Written: beta + gamma * d of each channel, likewise; or null.
    pub renorm_beta: *mut c_void,
}

// SAFETY: numbers and pointers without padding on 64-bit targets, the size first.
unsafe impl Versioned for RenormArgs {
    const NAME: &'static str = "batchnorm_renorm_args";
    const FIRST: usize = size_of::<RenormArgs>();
}
#[cfg(target_pointer_width = "64")]
const _: () = assert!(size_of::<RenormArgs>() == 13 * 8, "no padding");

/// Batch renormalization (S. Ioffe, 2017), by which training normalizes almost as inference will:
/// y = act(gamma * (xhat * r + d) + beta). It is inference and backward by the batch's own states, with `renorm_gamma`
/// and `renorm_beta` for gamma and beta; so the steps of a training step are
///
/// - batchnorm_statistics (of parts of a batch: joined, by batchnorm_part_states) gives the states;
/// - batchnorm_renorm;
/// - batchnorm_inference with the states gives y;
/// - batchnorm_update_running, after batchnorm_renorm;
/// - batchnorm_backward with the states gives dx, dbeta and sum(g * xhat), of which the program makes
///   r * sum(g * xhat) + d * dbeta, which is dgamma, channel by channel.
///
/// r_max 1 and d_max 0 are batch norm, whatever the running statistics are. Of the problem, element and channels count; its
/// other sizes change nothing, but have to be a tensor's.
///
/// # Safety
/// As of `batchnorm_statistics`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn batchnorm_renorm(problem: *const Problem, args: *const RenormArgs) -> Status {
    call(|| {
        let mut arguments = Arguments::default();
        // SAFETY: says the caller.
        unsafe {
            let problem = Checked::new(&mut arguments, problem)?;
            let args = arguments.sized("args", args)?;
            by_element!(problem, renormalize(&problem, args, arguments))
        }
    })
}

unsafe fn renormalize<T: Element>(
    problem: &Checked,
    args: RenormArgs,
    mut arguments: Arguments,
) -> Result<(), Failure> {
    let c = problem.shape.channels();
    let mut params = Params::<T>::new(args.eps);
    // SAFETY: says the caller.
    let (states, mean, var, places) = unsafe {
        params.gamma = arguments.optional("gamma", args.gamma.cast(), c)?;
        params.beta = arguments.optional("beta", args.beta.cast(), c)?;
        (
            arguments.read("states", args.states.cast::<Welford>(), c)?,
            arguments.read("mean", args.mean.cast::<T>(), c)?,
            arguments.read("var", args.var.cast::<T>(), c)?,
            Places {
                r: arguments.optional_write("r", args.r, c)?,
                d: arguments.optional_write("d", args.d, c)?,
                gamma: arguments.optional_write("renorm_gamma", args.renorm_gamma.cast::<T>(), c)?,
                beta: arguments.optional_write("renorm_beta", args.renorm_beta.cast::<T>(), c)?,
            },
        )
    };
    check_states("states", states)?;
    let r_max = if args.r_max == 0.0 { 1.0 } else { args.r_max };
    Ok(Renorm { r_max, d_max: args.d_max }.write(states, (mean, var), &params, places)?)
}
