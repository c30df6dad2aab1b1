//! Batch normalization for the CPU.

mod batch_norm;
mod element;
mod engine;
mod error;
mod exec;
mod kernel;
mod layout;
mod operations;
mod ops;
mod params;
mod plan;
mod problem;
pub mod reference;
mod running;
mod simd;
mod split;
mod streaming;
mod tensor;
mod welford;

pub use batch_norm::BatchNorm;
pub use element::Element;
pub use error::Error;
pub use layout::{Layout, Shape};
pub use ops::{
    backward, backward_frozen, forward_inference, forward_inference_in_place, forward_training,
    forward_training_in_place, statistics,
};
pub use params::{Gradients, Params};
pub use running::{RunningUpdate, RunningVariance, UpdateRule, step, update_running};
pub use simd::Level;
pub use streaming::StreamingStatistics;
pub use tensor::Tensor;
pub use welford::Welford;
