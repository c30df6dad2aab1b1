//! What callers from Rust see: layers, arguments and their errors, the pages for users.

mod checkpoint;
#[path = "../common/mod.rs"]
mod common;
mod domains;
mod errors;
mod fold;
mod guide;
#[cfg(feature = "half")]
mod half;
mod layer;
mod modes;
#[cfg(feature = "ndarray")]
mod ndarray;
mod partial;
mod renorm;
mod weights;
