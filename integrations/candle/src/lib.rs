//! Batch normalization for [candle](candle_core) on the CPU, by the kernels of [`batchnorm`].
//!
//! [`BatchNorm`] takes the place of [`candle_nn::BatchNorm`]: the same constructors, the same configuration, the same
//! names in checkpoints, the same running statistics. [`batch_norm`] makes one from a `VarBuilder`.
//!
//! ```
//! use batchnorm_candle::{BatchNormConfig, batch_norm};
//! use candle_core::{DType, Device, Tensor};
//! use candle_nn::{ModuleT, VarBuilder, VarMap};
//!
//! let variables = VarMap::new();
//! let vb = VarBuilder::from_varmap(&variables, DType::F32, &Device::Cpu);
//! let norm = batch_norm(16, BatchNormConfig::default(), vb.pp("norm"))?;
//! let x = Tensor::randn(0f32, 1., (8, 16, 12, 12), &Device::Cpu)?;
//! let y = norm.forward_t(&x, true)?; // false normalizes by the running statistics
//! let gradients = y.sqr()?.sum_all()?.backward()?;
//! # let weight = variables.data().lock().unwrap()["norm.weight"].clone();
//! # assert_eq!(gradients.get(&weight).unwrap().dims(), [16]);
//! # Ok::<(), candle_core::Error>(())
//! ```
//!
//! Under it are [`forward_training`] and [`forward_inference`], candle custom operations with a backward pass of their
//! own, which need no module: gradients reach x, gamma and beta.
//!
//! # Activation and residual
//!
//! [`BatchNorm::with_activation`] and [`BatchNorm::forward_t_with_residual`] do in the same pass what follows a batch norm in a
//! network. The bits are those of one operation after the other, of y and of every gradient; where there is a residual, a bit an
//! element is kept for the backward pass.
//!
//! ```
//! use batchnorm_candle::{Activation, batch_norm};
//! use candle_core::{DType, Device, Tensor, Var};
//! use candle_nn::{VarBuilder, VarMap};
//!
//! let variables = VarMap::new();
//! let vb = VarBuilder::from_varmap(&variables, DType::F32, &Device::Cpu);
//! let norm = batch_norm(16, 1e-5, vb)?.with_activation(Activation::Relu);
//! let x = Tensor::randn(0f32, 1., (8, 16, 12, 12), &Device::Cpu)?;
//! let z = Var::randn(0f32, 1., (8, 16, 12, 12), &Device::Cpu)?;
//! let y = norm.forward_t_with_residual(&x, &z, true)?; // relu(norm(x) + z)
//! let gradients = y.sum_all()?.backward()?;
//! assert_eq!(gradients.get(&z).unwrap().dims(), z.dims());
//! # Ok::<(), candle_core::Error>(())
//! ```
//!
//! # Batch renormalization and domains
//!
//! [`BatchNorm::with_renorm`] trains by batch renormalization within limits: on small batches, y is nearly what evaluation will give.
//! [`BatchNorm::with_domains`] and [`batch_norm_with_domains`] give a module several sets of running statistics, of which
//! [`BatchNorm::domain`] chooses one for a call.
//!
//! ```
//! use batchnorm_candle::{Renorm, batch_norm_with_domains};
//! use candle_core::{DType, Device, Tensor};
//! use candle_nn::{ModuleT, VarBuilder, VarMap};
//!
//! let variables = VarMap::new();
//! let vb = VarBuilder::from_varmap(&variables, DType::F32, &Device::Cpu);
//! let mut norm = batch_norm_with_domains(16, 1e-5, 2, vb)?.with_renorm(Renorm { r_max: 1., d_max: 0. }); // batch norm
//! let x = Tensor::randn(0f32, 1., (8, 16, 12, 12), &Device::Cpu)?;
//! norm.domain(1)?.forward_t(&x, true)?;
//! norm.set_renorm(Some(Renorm { r_max: 3., d_max: 5. }));
//! norm.domain(1)?.forward_t(&x, true)?;
//! # Ok::<(), candle_core::Error>(())
//! ```
//!
//! # Which input goes where
//!
//! f32, f64, bf16 and f16 on the CPU, of any rank from 2 on, channels in dimension 1:
//!
//! - a contiguous tensor goes to the NCHW kernels as it is;
//! - a channels-last view (`nhwc.permute((0, 3, 1, 2))` of a contiguous tensor) goes to the NHWC kernels as it is, and so
//!   does what comes out: a channels-last view;
//! - other strides are made contiguous first.
//!
//! What the kernels do not do, the module leaves to candle's own: other devices, and training with `remove_mean: false`. Then
//! candle's operations add the residual and apply the activation, and so they do for hard swish and SiLU behind a residual. Such
//! training with limits of renormalization is an error.
//!
//! # bf16 and f16
//!
//! On the CPU, tensors of 16-bit numbers are storage: y and the gradients of x and a residual have the input's type, parameters,
//! running statistics and the gradients of the former are f32. Results are those on the tensors widened to f32, each rounded once;
//! candle's own operations round after every step. A residual and an activation are within that one rounding.
//!
//! ```
//! use batchnorm_candle::batch_norm;
//! use candle_core::{DType, Device, Tensor};
//! use candle_nn::{ModuleT, VarBuilder, VarMap};
//!
//! let variables = VarMap::new();
//! let vb = VarBuilder::from_varmap(&variables, DType::BF16, &Device::Cpu); // the model's
//! let norm = batch_norm(16, 1e-5, vb.to_dtype(DType::F32).pp("norm"))?;
//! let x = Tensor::randn(0f32, 1., (8, 16, 12, 12), &Device::Cpu)?.to_dtype(DType::BF16)?;
//! let y = norm.forward_t(&x, true)?;
//! assert_eq!((y.dtype(), norm.running_mean().dtype()), (DType::BF16, DType::F32));
//! # Ok::<(), candle_core::Error>(())
//! ```
//!
//! Variables of another type than f32 beside such an input (f64 beside f64, f32 beside f32) are an error that names one.
//!
//! # What differs from candle
//!
//! Variables of bf16 or f16 are an error, with which candle's module evaluates (but does not train). Training on a single element
//! per channel is an error; candle lets a NaN into the running variance. A batch of no elements leaves the running statistics as
//! they are. NaN and infinity stay in their channel. Results are those of [`batchnorm`]: right to the last bits, and the same bits
//! for every number of threads.

mod memory;
mod module;
mod op;
mod view;

pub use batchnorm::{Activation, Renorm};
pub use candle_nn::BatchNormConfig;
pub use module::{BatchNorm, batch_norm, batch_norm_with_domains};
pub use op::{forward_inference, forward_training};

/// The README's lines, as a test.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
