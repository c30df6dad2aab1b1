//! What users see: the layer, the operations on slices, shapes, parameters, running statistics.

mod activation;
pub mod batch_norm;
pub mod builders;
pub mod fold;
pub mod gather;
#[cfg(feature = "ndarray")]
pub mod ndarray;
pub mod ops;
pub mod params;
pub mod partial;
pub mod renorm;
pub mod running;
pub mod shape;
pub mod streaming;
pub mod tensor;
