//! Inference folded into the layer before it.

use std::ffi::c_void;

use super::arguments::{Arguments, Failure, Versioned, call};
use super::element::by_element;
use super::problem::{Checked, Problem};
use super::status::Status;
use crate::api::fold::{WeightShape, check_groups, fold};
use crate::api::params::Params;
use crate::operations::Element;

/// The arguments of `batchnorm_fold`. The problem's channels are the output channels of the layer before, whose weights
/// have axes before and behind these, in the order in memory:
///
/// - out, in / groups, kh, kw (PyTorch, ONNX): `inner` is in / groups * kh * kw;
/// - out, in (PyTorch's Linear): `inner` is in;
/// - kh, kw, in / groups, out (Keras): `outer` is kh * kw * in / groups;
/// - in, out (Keras's Dense): `outer` is in;
/// - in, out / groups, kh, kw (transposed, PyTorch, ONNX): `outer` is in, `inner` kh * kw, and `groups` has to be set;
/// - kh, kw, out, in (transposed, Keras): `outer` is kh * kw, `inner` in.
#[derive(Debug, Clone, Copy)]
#[repr(C)]
pub struct FoldArgs {
    /// sizeof(batchnorm_fold_args).
    pub size: usize,
    /// The product of the axes before the output channels; 0 for none.
    pub outer: usize,
    /// The product of the axes behind them; 0 for none.
    pub inner: usize,
    /// The groups that both `outer` and the channels are divided into, where output channels come behind the input
    /// channels that they belong to: channel j of group g is g * (channels / groups) + j. 0 for one.
    pub groups: usize,
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
    /// Read and written: the weights, outer * channels / groups * inner of the problem's element.
    pub weight: *mut c_void,
    /// Read and written: the bias per channel, zeros where the layer has none; of y's element, so that it can be `float`
    /// next to weights of 16 bits (BATCHNORM_Y_F32).
    pub bias: *mut c_void,
}

// SAFETY: numbers and pointers without padding on 64-bit targets, the size first.
unsafe impl Versioned for FoldArgs {
    const NAME: &'static str = "batchnorm_fold_args";
    const FIRST: usize = size_of::<FoldArgs>();
}
#[cfg(target_pointer_width = "64")]
const _: () = assert!(size_of::<FoldArgs>() == 11 * 8, "no padding");

/// Folds inference by a mean and a variance per channel into the weights and the bias of the layer before it, which then
/// gives what both gave; an activation or a residual that follows is left to the caller. With
/// scale = gamma / sqrt(var + eps), weight = weight * scale of its output channel, bias = (bias - mean) * scale + beta.
///
/// Each result is the formula's value to some 100 bits, rounded once; one of 16 bits has not been a float before. NaN in
/// channels whose var + eps is negative; gamma / 0 is the scale where it is 0. Of the problem, element, y_element and
/// channels count; its other sizes change nothing, but have to be a tensor's.
///
/// # Safety
/// As of `batchnorm_statistics`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn batchnorm_fold(problem: *const Problem, args: *const FoldArgs) -> Status {
    call(|| {
        let mut arguments = Arguments::default();
        // SAFETY: says the caller.
        unsafe {
            let problem = Checked::new(&mut arguments, problem)?;
            let args = arguments.sized("args", args)?;
            by_element!(problem, fold_in(&problem, args, arguments))
        }
    })
}

unsafe fn fold_in<T: Element>(
    problem: &Checked,
    args: FoldArgs,
    mut arguments: Arguments,
) -> Result<(), Failure> {
    let c = problem.shape.channels();
    let [outer, inner, groups] = [args.outer, args.inner, args.groups].map(|size| size.max(1));
    check_groups(groups, "channels", c)?;
    let shape = WeightShape::grouped(&[outer, c / groups, inner], 1, groups)?;
    let mut params = Params::<T>::new(args.eps);
    // SAFETY: says the caller.
    let (mean, var, weight, bias) = unsafe {
        params.gamma = arguments.optional("gamma", args.gamma.cast(), c)?;
        params.beta = arguments.optional("beta", args.beta.cast(), c)?;
        (
            arguments.read("mean", args.mean.cast::<T>(), c)?,
            arguments.read("var", args.var.cast::<T>(), c)?,
            arguments.sink::<T>("weight", args.weight, (shape.len(), problem.element))?,
            arguments.sink::<T>("bias", args.bias, (c, problem.y_element))?,
        )
    };
    Ok(fold(&shape, (mean, var), &params, weight, bias)?)
}
