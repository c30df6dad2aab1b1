//! The C interface (feature `capi`): the operations on slices, as functions on plain pointers. `include/batchnorm.h` is
//! made of these files by cbindgen, a section of each.
//!
//! Every function checks its arguments before it writes: structs that are not of the size that they say, pointers that are
//! null (unless their length is 0), not aligned to their element, or that overlap another that is written; then all that
//! the Rust functions check. What is wrong comes back as a [`Status`], in words by [`batchnorm_last_message`]. No panic
//! crosses the boundary.

mod activation;
mod arguments;
mod element;
mod fold;
mod library;
mod operations;
mod partial;
mod problem;
mod renorm;
mod running;
mod state;
mod status;

pub use activation::*;
pub use fold::*;
pub use library::*;
pub use operations::*;
pub use partial::*;
pub use problem::*;
pub use renorm::*;
pub use running::*;
pub use state::*;
pub use status::Status;

pub use crate::threads::host::{HostPool, HostTask};
