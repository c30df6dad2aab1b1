//! The operations on tensors, each with a struct of its arguments.

use std::ffi::c_void;
use std::mem::offset_of;
use std::ptr;

use super::activation::activation_of;
use super::arguments::{Arguments, Failure, Versioned, call, check_states};
use super::element::by_element;
use super::problem::{Checked, Problem};
use super::state::State;
use super::status::Status;
use crate::api::builders::{Backward, Inference, Operand, Statistics, Training};
use crate::api::params::{Gradients, Params};
use crate::ground::welford::Welford;
use crate::kernel::activations::Activation;
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
    /// Written: the normalized batch, a tensor. May be residual, or x where that is of the same element; not both at once.
    pub y: *mut c_void,
    /// Written: the batch's statistics of each channel.
    pub states: *mut State,
    /// What is applied to each element in the end: BATCHNORM_IDENTITY, BATCHNORM_RELU or another.
    pub activation: u64,
    /// The slope of BATCHNORM_LEAKY_RELU, finite; others do not look at it.
    pub slope: f64,
    /// The least value of BATCHNORM_CLIP, not above hi; -infinity for none. Others do not look at it.
    pub lo: f64,
    /// The largest value of BATCHNORM_CLIP; infinity for none. Others do not look at it.
    pub hi: f64,
    /// z, a tensor that is added before the activation; null for none.
    pub residual: *const c_void,
    /// Written: which elements the activation lets through, a mask of batchnorm_mask_len words, which backward takes where
    /// there is a residual, and may take without. Null for none.
    pub mask: *mut u64,
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
    /// Written: the normalized tensor. May be residual, or x where that is of the same element; not both at once.
    pub y: *mut c_void,
    /// What is applied to each element in the end: BATCHNORM_IDENTITY, BATCHNORM_RELU or another.
    pub activation: u64,
    /// The slope of BATCHNORM_LEAKY_RELU, finite; others do not look at it.
    pub slope: f64,
    /// The least value of BATCHNORM_CLIP, not above hi; -infinity for none. Others do not look at it.
    pub lo: f64,
    /// The largest value of BATCHNORM_CLIP; infinity for none. Others do not look at it.
    pub hi: f64,
    /// z, a tensor that is added before the activation; null for none.
    pub residual: *const c_void,
    /// Written: which elements the activation lets through, a mask of batchnorm_mask_len words, which backward takes where
    /// there is a residual, and may take without. Null for none.
    pub mask: *mut u64,
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
    /// Written: the gradient of x, a tensor. May be x, or dy where that is of the same element; not both at once.
    pub dx: *mut c_void,
    /// Written: the gradient of gamma, one per channel.
    pub dgamma: *mut c_void,
    /// Written: the gradient of beta, one per channel.
    pub dbeta: *mut c_void,
    /// Written: the gradient of the mean, one per channel; of a batch's own, which dx contains already, too.
    pub dmean: *mut c_void,
    /// Written: the gradient of the variance, one per channel, likewise.
    pub dvar: *mut c_void,
    /// The forward pass's activation.
    pub activation: u64,
    /// The forward pass's slope.
    pub slope: f64,
    /// The forward pass's lo.
    pub lo: f64,
    /// The forward pass's hi.
    pub hi: f64,
    /// The forward pass's shift per channel, null for 0: looked at where there is an activation and no mask.
    pub beta: *const c_void,
    /// The mask that the forward pass wrote. Through an activation, needed if there was a residual; null for none.
    pub mask: *const u64,
    /// Written: the gradient of the residual, a tensor. May be dy, unless dx is. Through an activation it needs the mask.
    pub dz: *mut c_void,
}

/// Says of structs that they are [`Versioned`]: with this name, this many pointers and numbers of 64 bits beside the size, and
/// this many bytes of fields that there always were.
macro_rules! versioned {
    ($($name:literal $args:ident: $pointers:literal pointers, $numbers:literal numbers, $first:expr;)*) => {$(
        // SAFETY: pointers, and numbers where they need no padding on 64-bit targets; the size first.
        unsafe impl Versioned for $args {
            const NAME: &'static str = $name;
            const FIRST: usize = $first;
        }
        #[cfg(target_pointer_width = "64")]
        const _: () = assert!(size_of::<$args>() == 8 + 8 * $pointers + 8 * $numbers, "no padding");
    )*};
}
versioned! {
    "batchnorm_statistics_args" StatisticsArgs: 2 pointers, 0 numbers, size_of::<StatisticsArgs>();
    "batchnorm_training_args" TrainingArgs: 7 pointers, 5 numbers, offset_of!(TrainingArgs, activation);
    "batchnorm_inference_args" InferenceArgs: 8 pointers, 5 numbers, offset_of!(InferenceArgs, activation);
    "batchnorm_backward_args" BackwardArgs: 14 pointers, 5 numbers, offset_of!(BackwardArgs, activation);
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
            arguments.source::<T>("x", args.x, (len, problem.element))?,
            arguments.write("states", args.states.cast::<Welford>(), c)?,
        )
    };
    problem.run(|| Statistics::<T>::new(&problem.shape).source(x).states(states).run())
}

/// Gives a forward pass's builder its tensors.
macro_rules! with_tensors {
    ($call:expr, $args:ident, $arguments:ident, $problem:ident) => {{
        let (mut call, shape) = ($call, &$problem.shape);
        let (of_x, of_y) = ((shape.len(), $problem.element), (shape.len(), $problem.y_element));
        if let Some(mask) = $arguments.optional_write("mask", $args.mask, shape.mask_len())? {
            call = call.mask(mask);
        }
        let mut y = Some($arguments.sink::<T>("y", $args.y, of_y)?);
        // Over one of both: the other, if it is the same memory, overlaps what is written; so does x of another element.
        let over_x = |_: &mut _| ptr::eq($args.x, $args.y) && $problem.element == $problem.y_element;
        let x = match y.take_if(over_x) {
            Some(y) => Operand::Overwritten(y),
            None => Operand::Read($arguments.source("x", $args.x, of_x)?),
        };
        let residual = match $args.residual.is_null() {
            true => None,
            false => Some(match y.take_if(|_| ptr::eq($args.residual, $args.y)) {
                Some(y) => Operand::Overwritten(y),
                None => Operand::Read($arguments.source("residual", $args.residual, of_y)?),
            }),
        };
        call.operands(x, residual, y)
    }};
}

/// Normalizes `x` by its own statistics, which go to `states`, with the biased variance:
/// y = act(gamma * (x - mean) / sqrt(var + eps) + beta + residual). It has the bits that normalization, addition and
/// activation give one after the other.
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
    let (shape, c) = (&problem.shape, problem.shape.channels());
    let mut params = Params::<T>::new(args.eps);
    params.activation = activation_of(args.activation, args.slope, args.lo, args.hi)?;
    // SAFETY: says the caller.
    let call = unsafe {
        params.gamma = arguments.optional("gamma", args.gamma.cast(), c)?;
        params.beta = arguments.optional("beta", args.beta.cast(), c)?;
        let states = arguments.write("states", args.states.cast::<Welford>(), c)?;
        with_tensors!(Training::<T>::new(shape, params).states(states), args, arguments, problem)
    };
    problem.run(|| call.run())
}

/// Normalizes `x` by a given mean and variance per channel:
/// y = act(gamma * (x - mean) / sqrt(var + eps) + beta + residual). It has the bits that normalization, addition and
/// activation give one after the other. NaN in channels whose var + eps is negative.
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
    let (shape, c) = (&problem.shape, problem.shape.channels());
    let mut params = Params::<T>::new(args.eps);
    params.activation = activation_of(args.activation, args.slope, args.lo, args.hi)?;
    // SAFETY: says the caller.
    let call = unsafe {
        let mean = arguments.read("mean", args.mean.cast::<T>(), c)?;
        let var = arguments.read("var", args.var.cast::<T>(), c)?;
        params.gamma = arguments.optional("gamma", args.gamma.cast(), c)?;
        params.beta = arguments.optional("beta", args.beta.cast(), c)?;
        with_tensors!(Inference::<T>::new(shape, params).frozen(mean, var), args, arguments, problem)
    };
    problem.run(|| call.run())
}

/// The gradients of a forward pass, from its input and the gradient of its output. With invstd = 1 / sqrt(var + eps) and
/// xhat = (x - mean) * invstd: dbeta = sum(dy), dgamma = sum(dy * xhat), and
///
/// - through training, dx = gamma * invstd * (dy - dbeta / m - xhat * dgamma / m), m being the elements per channel;
/// - through inference, whose statistics do not depend on x, dx = gamma * invstd * dy.
///
/// Through y = act(u), g = dy * act'(u) takes the place of dy; it is also dz, the gradient of the residual. u is found
/// from `x` anew, by the forward pass's gamma, beta and eps. Where there was a residual it cannot be: what the forward
/// pass wrote to `mask` says enough then, and without it gradients are those of no residual.
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
    let (of_x, of_y) = ((len, problem.element), (len, problem.y_element));
    let same = problem.element == problem.y_element;
    let mut params = Params::<T>::new(args.eps);
    params.activation = activation_of(args.activation, args.slope, args.lo, args.hi)?;
    let needs_mask = !args.dz.is_null()
        && params.activation != Activation::Identity
        && params.activation.is_piecewise_linear();
    let mut gradients = Gradients::<T>::new();
    let (over_x, dx_over_dy) = (ptr::eq(args.dx, args.x), ptr::eq(args.dx, args.dy) && same);
    let dz_over_dy = ptr::eq(args.dz, args.dy);
    // SAFETY: says the caller.
    let call = unsafe {
        params.gamma = arguments.optional("gamma", args.gamma.cast(), c)?;
        params.beta = arguments.optional("beta", args.beta.cast(), c)?;
        let mut dx = match args.dx.is_null() {
            true => None,
            false => Some(arguments.sink::<T>("dx", args.dx, of_x)?),
        };
        let mut dz = match args.dz.is_null() {
            true => None,
            false => Some(arguments.sink::<T>("dz", args.dz, of_y)?),
        };
        gradients.dgamma = arguments.optional_write("dgamma", args.dgamma.cast(), c)?;
        gradients.dbeta = arguments.optional_write("dbeta", args.dbeta.cast(), c)?;
        gradients.dmean = arguments.optional_write("dmean", args.dmean.cast(), c)?;
        gradients.dvar = arguments.optional_write("dvar", args.dvar.cast(), c)?;
        let mut call = Backward::<T>::new(shape, params);
        let words = shape.mask_len();
        if needs_mask && args.mask.is_null() && words > 0 {
            let activation = params.activation;
            let message = format!(
                "mask is null, must have the forward pass's {words} words, since dz is asked for through {activation}"
            );
            return Err(Failure(Status::NullPointer, message));
        }
        if needs_mask || !args.mask.is_null() {
            call = call.mask(arguments.read("mask", args.mask, words)?);
        }
        // Over one of both: the other, if it is the same memory, overlaps what is written.
        let x = match dx.take_if(|_| over_x) {
            Some(dx) => Operand::Overwritten(dx),
            None => Operand::Read(arguments.source("x", args.x, of_x)?),
        };
        let mut dz_is_over_dy = false;
        let dy = if let Some(dx) = dx.take_if(|_| dx_over_dy) {
            Operand::Overwritten(dx)
        } else if let Some(dz) = dz.take_if(|_| dz_over_dy) {
            dz_is_over_dy = true;
            Operand::Overwritten(dz)
        } else {
            Operand::Read(arguments.source("dy", args.dy, of_y)?)
        };
        call = call.operands([x, dy], [dx, dz], dz_is_over_dy);
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
