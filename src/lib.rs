//! Batch normalization for the CPU: as fast as the memory allows, right to the last bits on any data, the same bits
//! everywhere.
//!
//! Statistics, forward training, inference and backward for f32, f64, bf16 and f16 in NCHW and NHWC, on slices that the caller
//! owns, in parallel on the current rayon pool or the host's own threads, with AVX-512, AVX2 or whatever the build has,
//! chosen at run time.
//!
//! ```
//! use batchnorm::{BatchNorm, Shape};
//!
//! let shape = Shape::nchw(&[32, 3, 8, 8])?;
//! let x: Vec<f32> = (0..shape.len()).map(|i| (i % 101) as f32).collect();
//! let mut y = vec![0.0; shape.len()];
//! BatchNorm::new(3).forward_training(&shape, &x, &mut y)?;
//! # Ok::<(), batchnorm::Error>(())
//! ```
//!
//! [`BatchNorm`] is the layer: parameters, running statistics, forward in some [`Mode`], backward, step, and the [`Parts`]
//! that a checkpoint holds (which the feature `serde` reads and writes). Under it are the operations on
//! slices ([`forward_training`], [`backward`], ...), for authors of frameworks; they hold no state. With options, results
//! written over inputs for one, they are the builders [`Statistics`], [`Training`], [`Inference`] and [`Backward`].
//! Tensors are of f32 or f64 or, with the feature `half`, of bf16 or f16, for which arithmetic and parameters are f32 ([`Storage`]).
//! [`Welford`] states are what training returns and backward takes; they merge, so statistics of parts give statistics of
//! the whole. [`fold_into`] puts a trained batch norm into the weights of the layer before. [`Renorm`] is batch renormalization.
//!
//! A batch that is split over calls, processes or machines has the bits of one that is not: [`PartialStatistics`] and [`PartialGradients`]
//! are what each part knows, as values that join and travel as bytes; with a way to tell others ([`Gather`]), [`Training::run_among`],
//! [`Backward::run_among`] and [`BatchNorm::forward_among`] do all of it. `batchnorm-mpi` has it over MPI.
//!
//! # The operation
//!
//! Of each channel's m = N * S elements (batch times spatial positions):
//!
//! - training: mean = sum(x) / m, var = sum((x - mean)^2) / m, xhat = (x - mean) / sqrt(var + eps), u = gamma * xhat + beta,
//!   with a residual + z, y = act(u);
//! - inference: the same with a given mean and variance;
//! - backward: g = dy * act'(u), dz = g, dbeta = sum(g), dgamma = sum(g * xhat), dx = gamma * invstd * (g - dbeta / m - xhat *
//!   dgamma / m); with frozen statistics dx = gamma * invstd * g.
//!
//! Batch renormalization ([`Renorm`]) has xhat * r + d for xhat in training, with r and d by the running statistics. With weights of
//! samples ([`Training::weights`]) sums and m are those of the batch in which each sample is so many times.
//!
//! act is the identity, ReLU, leaky ReLU, a clip (ReLU6), hard swish or SiLU ([`Activation`]); a residual goes with the first four.
//! Both are fused with the normalization: they take no pass over memory of their own, and give the bits that the separate
//! operations give one after the other (`x + z` in the elements' type, [`Activation::apply`], [`Activation::gradient`]).
//! Backward finds u from x anew, so that nothing but x need be kept; a residual is not in x, so there training writes a
//! bit an element ([`Training::mask`]).
//!
//! S. Ioffe and C. Szegedy, "Batch Normalization: Accelerating Deep Network Training by Reducing Internal Covariate
//! Shift" (2015).
//!
//! # What is promised
//!
//! **Accuracy**, for f32, on any finite channel of up to 2^30 elements, whatever its mean, spread or order: the variance
//! is within 2 ulp of the exact value; the mean within half an ulp plus 2^-22 standard deviations; y within 2^-21 of
//! |gamma * xhat| + |beta|; dx within 2^-20 of |gamma| * invstd * (|dy| + |mean dy| + |xhat * mean(dy * xhat)|); dbeta and
//! dgamma within 2^-21 of the sum of absolute values. A channel of equal elements has variance 0 and gives exactly beta.
//! Where these bounds vanish something is left, too small to be seen elsewhere: the rounding of a result, or, times
//! max(1, |gamma| * invstd) * (1 + |xhat|), of a term of dx, that is itself subnormal; 2^-40 * |gamma| of y and 2^-40 * sum|dy| of dgamma, next to the mean; 2^-40 * |gamma| *
//! invstd * (1 + |xhat|) * rms(dy) of dx, where dy sums to nothing or is orthogonal to xhat. They do not hold where |gamma| *
//! invstd is beyond 2^250 or below 2^-250 (not 0), nor where gamma * xhat alone is out of range.
//!
//! For f64, on any finite channel of up to 2^30 elements too: the variance is within 4 ulp; the mean within half an ulp plus
//! 2^-49 standard deviations; y within 2^-49 of |gamma * xhat| + |beta|; dx, dbeta and dgamma within 2^-48 of the same
//! magnitudes as above. What is left where these vanish is 2^-56 in place of 2^-40, and they do not hold where |dy|, |gamma| or
//! |gamma| * invstd is beyond 2^900 or below 2^-900 (not 0), nor where xhat is out of
//! range. Squares may leave f64's range: then the variance that a state tells is infinite or 0, and what is normalized by it is
//! right.
//!
//! For tensors of bf16 and f16 ([`Storage`]), results are to the bit those of f32 on the widened tensors, each rounded once.
//!
//! With weights of samples these bounds are those of the batch of copies, for weights whose sums are f64s (whole numbers, or
//! multiples of one power of two) and up to 2^30 copies; others add 2^-46 of a variance, a standard deviation and the sums.
//!
//! What is folded into weights ([`fold_into`]) is the nearest number to the formula's value.
//!
//! SiLU's exponential is the crate's own: y within 2^-20 of |u * sigmoid(u)|, half the least subnormal number aside; for f64 2^-48.
//!
//! **The same bits** for every instruction set, number of threads, alignment and layout, in every run, whatever other channels there
//! are, and however a batch is split, if at multiples of [`Shape::granularity`] or if samples have weights. A NaN result is the canonical NaN.
//!
//! **Errors**: whatever is wrong with an argument, or memory that cannot be had, is an [`Error`] before anything is written;
//! nothing panics but what allocates for a number of channels and returns no `Result`, as `Vec` does. A NaN or an infinity makes its
//! own channel NaN and no other.
//!
//! **Any floating-point environment**: results do not depend on the host's. Flush-to-zero, another rounding, exceptions that
//! trap: on x86 and aarch64 every thread works in the default environment, and its own comes back afterwards, with the
//! sticky flags as they were. (A single [`Welford`] state's methods, and [`mod@reference`], are arithmetic of the caller's.)
//!
//! More in the guide: `guide::accuracy`, how these promises are tested, and `guide::linking`, from C, C++, candle, burn and
//! ndarray.
//!
//! # Threads
//!
//! With the default feature `rayon`, problems that are worth it run on the pool that the call is made in: a caller's
//! `ThreadPool::install` is honoured. The calling thread does its part of the work, and all of it while the pool's threads
//! are busy with something else: a call waits for nobody who has not begun to help. From 1 MB of input on they are always
//! asked to; from a quarter of that only if the calling thread's last call ended within the last 20 microseconds, since to
//! wake them takes longer than they save. Without the feature, the same bits on the calling thread.
//!
//! [`threads::with`] takes a host's own threads in place of rayon's, [`threads::limit`] fewer of them (1: the calling
//! thread alone), for the calls of a stretch of code. They are asked how many they are at every call that is large enough.
//!
//! rayon's global pool is started by the first such call, if not by someone else before: with as many threads as the process
//! may have cores at that moment (or `RAYON_NUM_THREADS`), which inherit the affinity of the thread that starts them. Started
//! while that is pinned to one core it stays there, of one thread, for good. So start it before pinning, by
//! `rayon::ThreadPoolBuilder::build_global`, or make a pool afterwards and call in its `install`, or give threads of your
//! own. Where it cannot be started, for want of memory say, calls stay on their thread. (rayon itself ends the process if it
//! finds no memory for a job; a call looks before whether there is some, and does without helpers if not.)

mod api;
#[cfg(feature = "capi")]
pub mod ffi;
mod ground;
// Documentation only; its snippets are tested.
#[cfg(any(doc, doctest))]
pub mod guide;
mod kernel;
mod operations;
pub mod reference;
mod schedule;
mod simd;
pub mod threads;
/// What `cargo bench --bench tuning` takes; no part of the interface.
#[cfg(feature = "tuning")]
#[doc(hidden)]
pub mod tuning {
    pub use crate::api::shape::plan;
    pub use crate::schedule::tuning::{Tuning, with};
}

pub use api::batch_norm::parts::{Domain, Parts};
pub use api::batch_norm::{BatchNorm, Mode};
pub use api::builders::{Backward, Inference, Statistics, Training};
pub use api::fold::{WeightShape, fold_into};
pub use api::gather::Gather;
#[cfg(feature = "ndarray")]
pub use api::ndarray;
pub use api::ops::{backward, backward_frozen, forward_inference, forward_training, statistics};
pub use api::params::{Gradients, Params};
pub use api::partial::gradients::PartialGradients;
pub use api::partial::statistics::PartialStatistics;
pub use api::renorm::{Renorm, Renormalized};
pub use api::running::{RunningUpdate, RunningVariance, UpdateRule, step, update_running};
pub use api::shape::{Layout, Shape};
pub use api::streaming::StreamingStatistics;
pub use api::tensor::Tensor;
pub use ground::error::Error;
pub use ground::scalar::Scalar;
pub use ground::welford::{Welford, WelfordParts};
pub use kernel::activations::Activation;
pub use operations::Element;
pub use operations::storage::Storage;
pub use simd::Level;
