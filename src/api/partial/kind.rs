//! What the bytes of partial sums are of, and how many they are.

#![forbid(unsafe_code)]

#[cfg(feature = "capi")]
use super::bytes;
#[cfg(feature = "capi")]
use crate::api::shape::Shape;
#[cfg(feature = "capi")]
use crate::ground::moments::FineMoments;

/// What sums are of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Kind {
    /// Those of gradients, or statistics.
    pub gradients: bool,
    /// By arithmetic in f64, or in f32.
    pub double: bool,
}

impl Kind {
    pub const fn statistics<T>() -> Self {
        Self { gradients: false, double: size_of::<T>() == size_of::<f64>() }
    }

    pub const fn gradients<T>() -> Self {
        Self { gradients: true, ..Self::statistics::<T>() }
    }

    /// Its two bytes.
    pub const fn tag(self) -> [u8; 2] {
        [if self.gradients { 2 } else { 1 }, if self.double { 8 } else { 4 }]
    }

    /// What bytes say that they are of, if they may be those of partial sums.
    #[cfg(feature = "capi")]
    pub fn told(bytes: &[u8]) -> Option<Self> {
        let tag = bytes.strip_prefix(&bytes::TAG)?.first_chunk()?;
        let kinds = [false, true]
            .into_iter()
            .flat_map(|gradients| [false, true].into_iter().map(move |double| Self { gradients, double }));
        kinds.into_iter().find(|kind| kind.tag() == *tag)
    }
}

/// Bytes that are enough for the sums of a part of this shape.
#[cfg(feature = "capi")]
pub fn most_bytes(shape: &Shape) -> Option<usize> {
    let leaves = shape.batch() / shape.granularity();
    // Subtrees that become larger and smaller again, and a fragment of a leaf at either end.
    let nodes = 2 * (usize::BITS - leaves.leading_zeros()) as usize + 2;
    bytes::len::<FineMoments>(shape.channels(), nodes)
}
