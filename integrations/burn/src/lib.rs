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
//! # Which input goes where
//!
//! f32 and f64 on flex, of any rank from 2 on, channels in dimension 1:
//!
//! - a contiguous tensor goes to the NCHW kernels as it is;
//! - a channels-last view (`nhwc.permute([0, 3, 1, 2])`) goes to the NHWC kernels as it is, and so does what comes out: a
//!   channels-last view;
//! - other strides are made contiguous first.
//!
//! A tensor that nobody else holds is normalized in place, unless a gradient needs its old values.
//!
//! What the kernels do not do is left to burn: other backends, f16 and bf16, parameters of another type than the input.

mod flex;
mod memory;
mod module;
mod ops;

pub use flex::{BatchNormBackend, States, Trained};
pub use module::{BatchNorm, BatchNormConfig};
pub use ops::{batch_norm, batch_norm_train};

/// The README's lines, as a test.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
