//! The operations on tensors, each with a struct of its arguments.

use std::ffi::c_void;
use std::ptr;

use super::arguments::{Arguments, Failure, Versioned, call, check_states};
use super::problem::{Checked, Problem, by_element};
use super::state::State;
use super::status::Status;
use crate::api::builders::{Backward, Inference, Statistics, Training};
use crate::api::params::{Gradients, Params};
use crate::ground::welford::Welford;
use crate::operations::Element;

/// The arguments of `batchnorm_statistics`.
#[derive(Debug, Clone, Copy)]
#[repr(C)]
pub struct StatisticsArgs {
    /// sizeof(batchnorm_statistics_args).
    pub size: usize,
    /// The tensor.
    pub x: *const c_void,
    /// Written: the statistics of each channel.
    pub states: *mut State,
}

/// The arguments of `batchnorm_training`.
#[derive(Debug, Clone, Copy)]
#[repr(C)]
pub struct TrainingArgs {
    /// sizeof(batchnorm_training_args).
    pub size: usize,
    /// The batch, a tensor.
    pub x: *const c_void,
    /// Scale per channel; null for 1.
    pub gamma: *const c_void,
    /// Shift per channel; null for 0.
    pub beta: *const c_void,
    /// Added to the variance under the root; finite and not negative.
    pub eps: f64,
    /// Written: the normalized batch, a tensor. May be x.
    pub y: *mut c_void,
    /// Written: the batch's statistics of each channel.
    pub states: *mut State,
}

/// The arguments of `batchnorm_inference`.
#[derive(Debug, Clone, Copy)]
#[repr(C)]
pub struct InferenceArgs {
    /// sizeof(batchnorm_inference_args).
    pub size: usize,
    /// The tensor.
    pub x: *const c_void,
    /// Mean per channel.
    pub mean: *const c_void,
    /// Variance per channel.
    pub var: *const c_void,
    /// Scale per channel; null for 1.
    pub gamma: *const c_void,
    /// Shift per channel; null for 0.
    pub beta: *const c_void,
    /// Added to the variance under the root; finite and not negative.
    pub eps: f64,
    /// Written: the normalized tensor. May be x.
    pub y: *mut c_void,
}

/// The arguments of `batchnorm_backward`: `states` of training, or `mean` and `var` of inference. A gradient that is null
/// is not wanted, and not computed.
#[derive(Debug, Clone, Copy)]
#[repr(C)]
pub struct BackwardArgs {
    /// sizeof(batchnorm_backward_args).
    pub size: usize,
    /// The forward pass's input, a tensor.
    pub x: *const c_void,
    /// The gradient of the forward pass's output, a tensor.
    pub dy: *const c_void,
    /// The states that training returned; null through inference.
    pub states: *const State,
    /// The mean per channel that inference took; null through training.
    pub mean: *const c_void,
    /// The variance per channel that inference took; null through training.
    pub var: *const c_void,
    /// The forward pass's scale per channel; null for 1.
    pub gamma: *const c_void,
    /// The forward pass's eps.
    pub eps: f64,
    /// Written: the gradient of x, a tensor. May be x or dy, not both at once.
    pub dx: *mut c_void,
    /// Written: the gradient of gamma, one per channel.
    pub dgamma: *mut c_void,
    /// Written: the gradient of beta, one per channel.
    pub dbeta: *mut c_void,
    /// Written: the gradient of the mean, one per channel; of a batch's own, which dx contains already, too.
    pub dmean: *mut c_void,
    /// Written: the gradient of the variance, one per channel, likewise.
    pub dvar: *mut c_void,
}

/// Says of structs that they are [`Versioned`]: with this name, and this many pointers beside size and eps.
macro_rules! versioned {
    ($($name:literal $args:ident: $pointers:literal pointers, $doubles:literal doubles;)*) => {$(
        // SAFETY: pointers, and doubles where they need no padding on 64-bit targets; the size first.
        unsafe impl Versioned for $args {
            const NAME: &'static str = $name;
            const FIRST: usize = size_of::<$args>();
        }
        #[cfg(target_pointer_width = "64")]
        const _: () = assert!(size_of::<$args>() == 8 + 8 * $pointers + 8 * $doubles, "no padding");
    )*};
}
versioned! {
    "batchnorm_statistics_args" StatisticsArgs: 2 pointers, 0 doubles;
    "batchnorm_training_args" TrainingArgs: 5 pointers, 1 doubles;
    "batchnorm_inference_args" InferenceArgs: 6 pointers, 1 doubles;
    "batchnorm_backward_args" BackwardArgs: 11 pointers, 1 doubles;
}

/// The statistics of each channel of `x` over batch and spatial axes, to `states`. A channel with a NaN or an infinity
/// gets NaN; the others are not touched by it.
///
/// # Safety
/// Both pointers are null or point to structs of the sizes that they say; what these point to has the lengths given above.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn batchnorm_statistics(
    problem: *const Problem,
    args: *const StatisticsArgs,
) -> Status {
    call(|| {
        let mut arguments = Arguments::default();
        // SAFETY: says the caller.
        unsafe {
            let problem = Checked::new(&mut arguments, problem)?;
            let args = arguments.sized("args", args)?;
            by_element!(problem, statistics(&problem, args, arguments))
        }
    })
}

unsafe fn statistics<T: Element>(
    problem: &Checked,
    args: StatisticsArgs,
    mut arguments: Arguments,
) -> Result<(), Failure> {
    let (len, c) = (problem.shape.len(), problem.shape.channels());
    // SAFETY: says the caller.
    let (x, states) = unsafe {
        (
            arguments.read("x", args.x.cast::<T>(), len)?,
            arguments.write("states", args.states.cast::<Welford>(), c)?,
        )
    };
    problem.run(|| Statistics::new(&problem.shape).x(x).states(states).run())
}

/// Normalizes `x` by its own statistics, which go to `states`: y = gamma * (x - mean) / sqrt(var + eps) + beta, with the
/// biased variance.
///
/// # Safety
/// As of `batchnorm_statistics`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn batchnorm_training(problem: *const Problem, args: *const TrainingArgs) -> Status {
    call(|| {
        let mut arguments = Arguments::default();
        // SAFETY: says the caller.
        unsafe {
            let problem = Checked::new(&mut arguments, problem)?;
            let args = arguments.sized("args", args)?;
            by_element!(problem, training(&problem, args, arguments))
        }
    })
}

unsafe fn training<T: Element>(
    problem: &Checked,
    args: TrainingArgs,
    mut arguments: Arguments,
) -> Result<(), Failure> {
    let (shape, len, c) = (&problem.shape, problem.shape.len(), problem.shape.channels());
    let mut params = Params::<T>::new(args.eps);
    // SAFETY: says the caller.
    let call = unsafe {
        params.gamma = arguments.optional("gamma", args.gamma.cast(), c)?;
        params.beta = arguments.optional("beta", args.beta.cast(), c)?;
        let states = arguments.write("states", args.states.cast::<Welford>(), c)?;
        let call = Training::new(shape, params).states(states);
        let y = arguments.write("y", args.y.cast(), len)?;
        if ptr::eq(args.x, args.y) {
            call.x_in_place(y)
        } else {
            call.x(arguments.read("x", args.x.cast(), len)?).y(y)
        }
    };
    problem.run(|| call.run())
}

/// Normalizes `x` by a given mean and variance per channel: y = gamma * (x - mean) / sqrt(var + eps) + beta. NaN in channels
/// whose var + eps is negative.
///
/// # Safety
/// As of `batchnorm_statistics`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn batchnorm_inference(problem: *const Problem, args: *const InferenceArgs) -> Status {
    call(|| {
        let mut arguments = Arguments::default();
        // SAFETY: says the caller.
        unsafe {
            let problem = Checked::new(&mut arguments, problem)?;
            let args = arguments.sized("args", args)?;
            by_element!(problem, inference(&problem, args, arguments))
        }
    })
}

unsafe fn inference<T: Element>(
    problem: &Checked,
    args: InferenceArgs,
    mut arguments: Arguments,
) -> Result<(), Failure> {
    let (shape, len, c) = (&problem.shape, problem.shape.len(), problem.shape.channels());
    let mut params = Params::<T>::new(args.eps);
    // SAFETY: says the caller.
    let call = unsafe {
        let mean = arguments.read("mean", args.mean.cast(), c)?;
        let var = arguments.read("var", args.var.cast(), c)?;
        params.gamma = arguments.optional("gamma", args.gamma.cast(), c)?;
        params.beta = arguments.optional("beta", args.beta.cast(), c)?;
        let call = Inference::new(shape, params).frozen(mean, var);
        let y = arguments.write("y", args.y.cast(), len)?;
        if ptr::eq(args.x, args.y) {
            call.x_in_place(y)
        } else {
            call.x(arguments.read("x", args.x.cast(), len)?).y(y)
        }
    };
    problem.run(|| call.run())
}

/// The gradients of a forward pass, from its input and the gradient of its output. With invstd = 1 / sqrt(var + eps) and
/// xhat = (x - mean) * invstd: dbeta = sum(dy), dgamma = sum(dy * xhat), and
///
/// - through training, dx = gamma * invstd * (dy - dbeta / m - xhat * dgamma / m), m being the elements per channel;
/// - through inference, whose statistics do not depend on x, dx = gamma * invstd * dy.
///
/// # Safety
/// As of `batchnorm_statistics`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn batchnorm_backward(problem: *const Problem, args: *const BackwardArgs) -> Status {
    call(|| {
        let mut arguments = Arguments::default();
        // SAFETY: says the caller.
        unsafe {
            let problem = Checked::new(&mut arguments, problem)?;
            let args = arguments.sized("args", args)?;
            by_element!(problem, backward(&problem, args, arguments))
        }
    })
}

unsafe fn backward<T: Element>(
    problem: &Checked,
    args: BackwardArgs,
    mut arguments: Arguments,
) -> Result<(), Failure> {
    let (shape, len, c) = (&problem.shape, problem.shape.len(), problem.shape.channels());
    let mut params = Params::<T>::new(args.eps);
    let mut gradients = Gradients::<T>::new();
    let (over_x, over_dy) = (ptr::eq(args.dx, args.x), ptr::eq(args.dx, args.dy));
    // SAFETY: says the caller.
    let call = unsafe {
        params.gamma = arguments.optional("gamma", args.gamma.cast(), c)?;
        gradients.dx = arguments.optional_write("dx", args.dx.cast(), len)?;
        gradients.dgamma = arguments.optional_write("dgamma", args.dgamma.cast(), c)?;
        gradients.dbeta = arguments.optional_write("dbeta", args.dbeta.cast(), c)?;
        gradients.dmean = arguments.optional_write("dmean", args.dmean.cast(), c)?;
        gradients.dvar = arguments.optional_write("dvar", args.dvar.cast(), c)?;
        let call = Backward::new(shape, params);
        // Over one of both: the other, if it is the same memory, overlaps what is written.
        let call = match gradients.dx.take_if(|_| over_x) {
            Some(dx) => call.x_to_dx(dx),
            None => call.x(arguments.read("x", args.x.cast(), len)?),
        };
        let call = match gradients.dx.take_if(|_| over_dy) {
            Some(dx) => call.dy_to_dx(dx),
            None => call.dy(arguments.read("dy", args.dy.cast(), len)?),
        };
        if !args.states.is_null() {
            for (name, other) in [("mean", args.mean), ("var", args.var)] {
                if !other.is_null() {
                    let message = format!("{name} is given, must be null, since states are given");
                    return Err(Failure(Status::Exclusive, message));
                }
            }
            let states = arguments.read("states", args.states.cast::<Welford>(), c)?;
            check_states("states", states)?;
            call.states(states)
        } else if args.mean.is_null() && args.var.is_null() && c > 0 {
            let message = format!("states is null, must have {c} elements, or mean and var must");
            return Err(Failure(Status::NullPointer, message));
        } else {
            let mean = arguments.read("mean", args.mean.cast(), c)?;
            call.frozen(mean, arguments.read("var", args.var.cast(), c)?)
        }
    };
    problem.run(|| call.gradients(gradients).run())
}
