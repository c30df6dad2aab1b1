//! The operations on tensors, each with a struct of its arguments.

use std::ffi::c_void;
use std::mem::offset_of;
use std::ptr;

use super::activation::activation_of;
use super::arguments::{Arguments, Failure, Versioned, call};
use super::element::by_element;
use super::partial::{Gather, Gathering, told};
use super::problem::{Checked, Problem};
use super::state::State;
use super::status::Status;
use crate::api::builders::{Backward, Inference, Operand, Statistics, Training};
use crate::api::params::{Gradients, Params};
use crate::api::partial::gradients::PartialGradients;
use crate::api::partial::statistics::PartialStatistics;
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
    /// Written: the statistics of each channel. May be null if `part` is not.
    pub states: *mut State,
    /// Of a part of a batch: the number of its first sample in the batch.
    pub first: u64,
    /// Written, of a part of a batch: the bytes of its sums, to be stored, sent and joined. Null for none.
    pub part: *mut c_void,
    /// The bytes that `part` has room for, of which batchnorm_part_len is enough; it becomes how many they are.
    pub part_len: *mut usize,
    /// How often each sample counts, one weight per sample: 0, or from 2^-60 to 2^60. Null for once.
    pub weights: *const f64,
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
    /// Of a part of a batch: the number of its first sample in the batch.
    pub first: u64,
    /// Of a part of a batch: how to hear of the others, which other processes have. y and states are those of the whole then.
    /// Null for a batch that is whole.
    pub gather: *const Gather,
    /// How often each sample counts, one weight per sample: 0, or from 2^-60 to 2^60. Statistics are those of the batch in which it
    /// is so many times. Null for once.
    pub weights: *const f64,
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
    /// The statistics of a batch that x is a part of, in place of mean and var, which are null then: y has the bits that training
    /// of the whole batch gives. Null for mean and var.
    pub states: *const State,
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
    /// Of a part of a batch, whose states are those of the whole: the number of its first sample in the batch.
    pub first: u64,
    /// Of a part of a batch: how to hear of the others, which other processes have. Gradients are those of the whole then. Null for
    /// a batch that is whole, and for sums.
    pub gather: *const Gather,
    /// Written, of a part of a batch: the bytes of its sums, to be stored, sent and joined; gradients are not, then, and are
    /// null. Null for none.
    pub part: *mut c_void,
    /// The bytes that `part` has room for, of which batchnorm_part_len is enough; it becomes how many they are.
    pub part_len: *mut usize,
    /// The joined sums of all parts, as bytes: gradients are those of the whole. Null for a batch that is whole.
    pub sums: *const c_void,
    /// How many bytes.
    pub sums_len: usize,
    /// The forward pass's weights, one per sample: dy and dx are of one copy of a sample, gradients per channel of all. Null for
    /// none; beside sums, which have them, they change nothing.
    pub weights: *const f64,
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
    "batchnorm_statistics_args" StatisticsArgs: 5 pointers, 1 numbers, offset_of!(StatisticsArgs, first);
    "batchnorm_training_args" TrainingArgs: 9 pointers, 6 numbers, offset_of!(TrainingArgs, activation);
    "batchnorm_inference_args" InferenceArgs: 9 pointers, 5 numbers, offset_of!(InferenceArgs, activation);
    "batchnorm_backward_args" BackwardArgs: 19 pointers, 7 numbers, offset_of!(BackwardArgs, activation);
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
    let (x, weights, states, part) = unsafe {
        let x = arguments.source::<T>("x", args.x, (len, problem.element))?;
        let weights = arguments.optional("weights", args.weights, problem.shape.batch())?;
        let part = arguments.part(args.part, args.part_len)?;
        let states = match part {
            Some(_) => arguments.optional_write("states", args.states.cast::<Welford>(), c)?,
            None => Some(arguments.write("states", args.states.cast::<Welford>(), c)?),
        };
        (x, weights, states, part)
    };
    let Some(part) = part else {
        let statistics = Statistics::<T>::new(&problem.shape).source(x).states(states.unwrap_or_default());
        let weighted = weights.into_iter().fold(statistics, Statistics::weights);
        return problem.run(|| weighted.run());
    };
    let mut sums = PartialStatistics::<T>::new(c);
    problem.run(|| sums.add_source(&problem.shape, (args.first, weights), x))?;
    let of_part = sums.states()?;
    part.put(&sums.to_bytes()?)?;
    if let Some(states) = states {
        states.copy_from_slice(&of_part);
    }
    Ok(())
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
            let problem = Checked::new(&mut arguments, problem);
            let args = arguments.sized("args", args)?;
            told(arguments.gather(args.gather)?, |gather| {
                let problem = problem?;
                by_element!(problem, training(&problem, args, arguments, gather))
            })
        }
    })
}

unsafe fn training<T: Element>(
    problem: &Checked,
    args: TrainingArgs,
    mut arguments: Arguments,
    gather: &mut Option<Gathering>,
) -> Result<(), Failure> {
    let (shape, c) = (&problem.shape, problem.shape.channels());
    let mut params = Params::<T>::new(args.eps);
    params.activation = activation_of(args.activation, args.slope, args.lo, args.hi)?;
    // SAFETY: says the caller.
    let call = unsafe {
        params.gamma = arguments.optional("gamma", args.gamma.cast(), c)?;
        params.beta = arguments.optional("beta", args.beta.cast(), c)?;
        let states = arguments.write("states", args.states.cast::<Welford>(), c)?;
        let weights = arguments.optional("weights", args.weights, shape.batch())?;
        let training = Training::<T>::new(shape, params).states(states);
        let weighted = weights.into_iter().fold(training, Training::weights);
        with_tensors!(weighted, args, arguments, problem)
    };
    match gather.take() {
        Some(mut gather) => problem.run(|| call.run_among(args.first, &mut gather)),
        None => problem.run(|| call.run()),
    }
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
        let statistics = arguments.statistics(args.states, (args.mean, args.var), c)?;
        params.gamma = arguments.optional("gamma", args.gamma.cast(), c)?;
        params.beta = arguments.optional("beta", args.beta.cast(), c)?;
        let inference = Inference::<T>::new(shape, params).by(statistics);
        with_tensors!(inference, args, arguments, problem)
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
            let problem = Checked::new(&mut arguments, problem);
            let args = arguments.sized("args", args)?;
            told(arguments.gather(args.gather)?, |gather| {
                let problem = problem?;
                by_element!(problem, backward(&problem, args, arguments, gather))
            })
        }
    })
}

unsafe fn backward<T: Element>(
    problem: &Checked,
    args: BackwardArgs,
    mut arguments: Arguments,
    gather: &mut Option<Gathering>,
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
        if let Some(weights) = arguments.optional("weights", args.weights, shape.batch())? {
            call = call.weights(weights);
        }
        call.by(arguments.statistics(args.states, (args.mean, args.var), c)?)
    };
    // SAFETY: says the caller.
    let (part, sums) = unsafe {
        let part = arguments.part(args.part, args.part_len)?;
        (part, arguments.optional("sums", args.sums.cast::<u8>(), args.sums_len)?)
    };
    let ways = [("gather", !args.gather.is_null()), ("part", part.is_some()), ("sums", sums.is_some())];
    let mut ways = ways.iter().filter(|(_, given)| *given).map(|(name, _)| name);
    if let (Some(one), Some(other)) = (ways.next(), ways.next()) {
        let message = format!("{other} is given, must be null, since {one} is given");
        return Err(Failure(Status::Exclusive, message));
    }
    if sums.is_none() && args.sums_len > 0 {
        let message = format!("sums is null, must have {} bytes", args.sums_len);
        return Err(Failure(Status::NullPointer, message));
    }
    let outputs = [args.dx, args.dz, args.dgamma, args.dbeta, args.dmean, args.dvar];
    if part.is_some() && outputs.iter().any(|output| !output.is_null()) {
        let message = "a gradient is given, must be null, since part is given".to_owned();
        return Err(Failure(Status::Exclusive, message));
    }
    let sums = sums.map(PartialGradients::from_bytes).transpose()?;
    if let Some(part) = part {
        let sums = problem.run(|| call.part(args.first))?;
        return part.put(&sums.to_bytes()?);
    }
    let call = call.gradients(gradients);
    match (gather.take(), &sums) {
        (Some(mut gather), _) => problem.run(|| call.run_among(args.first, &mut gather)),
        (None, Some(sums)) => problem.run(|| call.sums(sums).run()),
        (None, None) => problem.run(|| call.run()),
    }
}
