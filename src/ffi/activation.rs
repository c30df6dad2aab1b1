//! What follows a normalization: activations, and the masks of what they let through.

use super::arguments::{Arguments, Failure, call};
use super::problem::{Checked, Problem};
use super::status::Status;
use crate::kernel::activations::Activation;

/// y = u: no activation.
pub const BATCHNORM_IDENTITY: u64 = 0;
/// y = max(u, 0). Its derivative at 0 is 0.
pub const BATCHNORM_RELU: u64 = 1;
/// y = u where that is above 0, else slope * u. Its derivative at 0 is the slope.
pub const BATCHNORM_LEAKY_RELU: u64 = 2;
/// y = u, but no less than lo and no more than hi; ReLU6 is that from 0 to 6. Its derivative at either is 0.
pub const BATCHNORM_CLIP: u64 = 3;
/// y = u * min(max(u + 3, 0), 6) / 6. It goes with neither a residual nor a mask.
pub const BATCHNORM_HARD_SWISH: u64 = 4;
/// y = u / (1 + exp(-u)). It goes with neither a residual nor a mask.
pub const BATCHNORM_SILU: u64 = 5;

/// The activation of a number, with those of `slope`, `lo` and `hi` that it takes.
pub(super) fn activation_of(number: u64, slope: f64, lo: f64, hi: f64) -> Result<Activation, Failure> {
    Ok(match number {
        BATCHNORM_IDENTITY => Activation::Identity,
        BATCHNORM_RELU => Activation::Relu,
        BATCHNORM_LEAKY_RELU => Activation::LeakyRelu { slope },
        BATCHNORM_CLIP => Activation::Clip { lo, hi },
        BATCHNORM_HARD_SWISH => Activation::HardSwish,
        BATCHNORM_SILU => Activation::Silu,
        _ => {
            let must = "0 (identity), 1 (ReLU), 2 (leaky ReLU), 3 (clip), 4 (hard swish) or 5 (SiLU)";
            return Err(Failure::unknown("activation", number, must));
        }
    })
}

/// Writes to `words` how many words a mask of the problem's tensors has: a bit for each element, 64 in a word. Bit
/// i % 64 of word i / 64 is that of the element at offset i: 1 where the gradient goes through the activation as it is
/// (or u is NaN), else 0, as are the bits behind the last element's. The element type makes no difference, nor do
/// threads and levels.
///
/// # Safety
/// `problem` is null or points to one of the size that it says; `words` is null or points to a number.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn batchnorm_mask_len(problem: *const Problem, words: *mut usize) -> Status {
    call(|| {
        let mut arguments = Arguments::default();
        // SAFETY: says the caller.
        unsafe {
            let problem = Checked::new(&mut arguments, problem)?;
            arguments.write("words", words, 1)?[0] = problem.shape.mask_len();
        }
        Ok(())
    })
}
