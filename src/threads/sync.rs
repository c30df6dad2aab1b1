//! What threads share, by the names under which a model checker's stand-ins take their place (tests/model).

#[cfg(feature = "rayon")]
pub use std::sync::Arc;
pub use std::sync::atomic::{AtomicUsize, Ordering};
pub use std::{hint, thread};

/// How often to look whether others are done before the core is given away: less than a system's time slice.
pub const LOOKS: usize = 1000;
