//! Batch normalization of batches that processes have parts of, over MPI ([rsmpi](mpi)), by the kernels of [`batchnorm`].
//!
//! Each process normalizes its own samples by the statistics of all, and each gets the gradients of the whole batch. Where parts
//! begin at multiples of [`Shape::granularity`](batchnorm::Shape::granularity), results have the bits of one process with the whole
//! batch, whatever the number of processes; elsewhere they are within the same bounds. What is sent are states: 24 bytes (f64: 40)
//! per channel forward, 16 (f64: 32) backward, and no elements.
//!
//! ```no_run
//! use batchnorm::{Activation, BatchNorm, Mode, Shape};
//! use batchnorm_mpi::{Part, Ranks, SyncBatchNorm};
//!
//! let universe = mpi::initialize().ok_or("MPI is initialized already")?;
//! let world = universe.world();
//! let mut ranks = Ranks::new(&world)?;
//! let mut norm = SyncBatchNorm::from(BatchNorm::<f32>::new(64).with_activation(Activation::Relu));
//!
//! // This process's samples, as many as it likes.
//! let shape = Shape::nchw(&[16, 64, 14, 14])?;
//! let (x, dy) = (vec![1.0f32; shape.len()], vec![1.0f32; shape.len()]);
//! let (mut y, mut dx) = (x.clone(), x.clone());
//!
//! let part = Part::of(&mut ranks, shape.batch()); // once a step, for all layers
//! norm.forward(Mode::Training, &shape, &x, &mut y, (part, &mut ranks))?;
//! norm.backward(&shape, &x, &dy, &mut dx, (part, &mut ranks))?;
//! norm.step(0.1)?; // dgamma and dbeta are the same in all processes, and so gamma and beta stay the same
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! # The operations
//!
//! [`Ranks`] is a [`Gather`](batchnorm::Gather), which the builders take without a layer:
//!
//! ```no_run
//! use batchnorm::{Backward, Gradients, Params, Shape, Training, Welford};
//! use batchnorm_mpi::{Part, Ranks};
//!
//! let universe = mpi::initialize().ok_or("MPI is initialized already")?;
//! let world = universe.world();
//! let mut ranks = Ranks::new(&world)?;
//!
//! let shape = Shape::nhwc(&[16, 14, 14, 64])?;
//! let (x, dy) = (vec![1.0f32; shape.len()], vec![1.0f32; shape.len()]);
//! let (mut y, mut dx, mut states) = (x.clone(), x.clone(), [Welford::new(); 64]);
//!
//! let part = Part::of(&mut ranks, shape.batch());
//! let training = Training::new(&shape, Params::new(1e-5)).x(&x).y(&mut y).states(&mut states);
//! training.run_among(part.first(), &mut ranks)?;
//! let backward = Backward::new(&shape, Params::new(1e-5)).x(&x).dy(&dy).states(&states);
//! backward.gradients(Gradients::new().dx(&mut dx)).run_among(part.first(), &mut ranks)?;
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! # Messages
//!
//! A pass of a layer is one collective: an all-gather of messages that all ranks pad to the same length, so that no one has to be
//! asked for it: the longest that they have seen at this place of a step ([`Part::of`] begins one), and all have seen the same. What does not fit, in the first step for one, follows in further all-gathers, of which every rank knows from
//! the lengths at the front of the first.
//!
//! # Errors
//!
//! No rank waits for one that has found an error: it tells no bytes, its own call returns the error, that of the others
//! [`Error::Gather`](batchnorm::Error::Gather). Parts that do not go together, of other channels or types, or with samples in
//! common, are an error on every rank: lengths of messages never follow from a rank's own shape. Who has an error before it comes to a
//! call, a shape that cannot be made or a file that cannot be read, tells so by [`Ranks::refuse`] in place of it.
//!
//! All ranks have to come to the same calls in the same order, and their layers to have the same parameters: with MPI no one notices else.
//! What MPI does when a process dies, mostly to end the others, is its own.

#![forbid(unsafe_code)]

mod layer;
mod part;
mod ranks;

pub use layer::SyncBatchNorm;
pub use part::Part;
pub use ranks::{Ranks, Traffic};

/// The README's lines, as a test.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
