//! Batch normalization for [burn] on its CPU backend flex, by the kernels of [`batchnorm`].
//!
//! [`BatchNorm`] takes the place of [`burn::nn::BatchNorm`]: the same configuration, the same fields and so the same
//! records, the same running statistics.
//!
//! ```
//! use batchnorm_burn::BatchNormConfig;
//! use burn::tensor::{Device, Distribution, Tensor};
//!
//! let device = Device::default().autodiff();
//! let norm = BatchNormConfig::new(16).init(&device);
//! let x = Tensor::<4>::random([8, 16, 12, 12], Distribution::Default, &device);
//! let y = norm.forward(x); // on a device without autodiff: by the running statistics
//! let gradients = y.powi_scalar(2).sum().backward();
//! assert_eq!(norm.gamma.val().grad(&gradients).unwrap().dims(), [16]);
//! ```
//!
//! Under it are [`batch_norm`] and [`batch_norm_train`], which take the place of the functions of the same names in
//! [`burn::tensor::module`], and under these [`BatchNormBackend`], a backend extension for flex and autodiff over flex.
//!
//! # Activation and residual
//!
//! [`BatchNorm::with_activation`] and [`BatchNorm::forward_with_residual`] do in the same pass what follows a batch norm in a
//! network. The bits are those of one operation after the other, of y and of every gradient; where there is a residual, a bit an
//! element is kept for the backward pass.
//!
//! ```
//! use batchnorm_burn::{Activation, BatchNormConfig};
//! use burn::tensor::{Device, Distribution, Tensor};
//!
//! let device = Device::default().autodiff();
//! let norm = BatchNormConfig::new(16).init(&device).with_activation(Activation::Relu);
//! let random = || Tensor::<4>::random([8, 16, 12, 12], Distribution::Default, &device);
//! let (x, z) = (random(), random().require_grad());
//! let y = norm.forward_with_residual(x, z.clone()); // relu(norm(x) + z)
//! let gradients = y.sum().backward();
//! assert_eq!(z.grad(&gradients).unwrap().dims(), z.dims());
//! ```
//!
//! # Batch renormalization and domains
//!
//! [`BatchNorm::with_renorm`] (or the configuration) trains by batch renormalization within limits: on small batches, y is nearly what
//! inference will give. [`BatchNorm::with_domains`] gives a module several sets of running statistics, of which [`BatchNorm::domain`]
//! chooses one for a call.
//!
//! ```
//! use batchnorm_burn::{BatchNormConfig, Renorm};
//! use burn::tensor::{Device, Distribution, Tensor};
//!
//! let device = Device::default().autodiff();
//! let limits = Renorm { r_max: 1., d_max: 0. }; // batch norm
//! let mut norm = BatchNormConfig::new(16).with_renorm(Some(limits)).with_domains(Some(2)).init(&device);
//! let x = Tensor::<4>::random([8, 16, 12, 12], Distribution::Default, &device);
//! norm.domain(1).forward(x.clone());
//! norm.renorm = Some(Renorm { r_max: 3., d_max: 5. });
//! norm.domain(1).forward(x);
//! ```
//!
//! # Which input goes where
//!
//! f32, f64, bf16 and f16 on flex, of any rank from 2 on, channels in dimension 1:
//!
//! - a contiguous tensor goes to the NCHW kernels as it is;
//! - a channels-last view (`nhwc.permute([0, 3, 1, 2])`) goes to the NHWC kernels as it is, and so does what comes out: a
//!   channels-last view;
//! - other strides are made contiguous first.
//!
//! A tensor that nobody else holds is normalized in place, unless a gradient needs its old values; else y goes over the residual,
//! if nobody else holds that.
//!
//! What the kernels do not do is left to burn: other backends, hard swish and SiLU behind a residual.
//!
//! # bf16 and f16
//!
//! On flex, tensors of 16-bit numbers are storage: y and the gradients of x and a residual have the input's type, parameters,
//! running statistics and the gradients of the former are f32. Results are those on the tensors widened to f32, each rounded once;
//! burn's own operations round after every step. A residual and an activation are within that one rounding.
//!
//! ```
//! use batchnorm_burn::BatchNormConfig;
//! use burn::tensor::{DType, Device, Distribution, Tensor};
//!
//! let device = Device::default().autodiff();
//! let norm = BatchNormConfig::new(16).init(&device); // of f32
//! let x = Tensor::<4>::random([8, 16, 12, 12], Distribution::Default, &device).cast(DType::BF16);
//! let y = norm.forward(x);
//! assert_eq!((y.dtype(), norm.gamma.val().dtype()), (DType::BF16, DType::F32));
//! ```
//!
//! On flex, parameters of another type than f32 beside such an input (f64 beside f64, f32 beside f32) panic with a text that names
//! one. On other backends whatever burn does remains.

mod flex;
mod memory;
mod module;
mod ops;

pub use batchnorm::{Activation, Renorm};
pub use flex::{BatchNormBackend, Epilogue, States, Trained};
pub use module::{BatchNorm, BatchNormConfig, Domain};
pub use ops::{batch_norm, batch_norm_train};

/// The README's lines, as a test.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
