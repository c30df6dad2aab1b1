//! What partial sums are of, and so how they merge.

#![forbid(unsafe_code)]

use crate::ground::sums::{MergeWeights, Sum};
use crate::kernel::precision::Precision;

/// What sums are of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Kind {
    /// Those of gradients, or statistics.
    pub gradients: bool,
    /// By arithmetic in f64, or in f32.
    pub double: bool,
}

/// What there is to do with sums: once for all that carries them about.
pub struct Arithmetic {
    /// Numbers of a channel.
    pub numbers: usize,
    /// The left ones become those of both.
    pub merge: fn(&mut [u64], &[u64], MergeWeights),
    /// Whether they are those of any elements.
    pub are_possible: fn(&[u64]) -> bool,
}

impl Arithmetic {
    const fn of<V: Sum>() -> Self {
        Self { numbers: V::COUNT, merge: merge::<V>, are_possible: are_possible::<V> }
    }
}

fn merge<V: Sum>(left: &mut [u64], right: &[u64], weights: MergeWeights) {
    for (left, right) in left.chunks_exact_mut(V::COUNT).zip(right.chunks_exact(V::COUNT)) {
        V::of_numbers(left).with(V::of_numbers(right), weights).put(left);
    }
}

fn are_possible<V: Sum>(numbers: &[u64]) -> bool {
    numbers.chunks_exact(V::COUNT).all(|numbers| V::of_numbers(numbers).are_possible())
}

impl Kind {
    pub const fn statistics<T>() -> Self {
        Self { gradients: false, double: size_of::<T>() == size_of::<f64>() }
    }

    pub const fn gradients<T>() -> Self {
        Self { gradients: true, ..Self::statistics::<T>() }
    }

    pub const fn arithmetic(self) -> Arithmetic {
        match (self.gradients, self.double) {
            (false, false) => Arithmetic::of::<<f32 as Precision>::Moments>(),
            (false, true) => Arithmetic::of::<<f64 as Precision>::Moments>(),
            (true, false) => Arithmetic::of::<<f32 as Precision>::Gradients>(),
            (true, true) => Arithmetic::of::<<f64 as Precision>::Gradients>(),
        }
    }

    /// Its two bytes.
    pub const fn tag(self) -> [u8; 2] {
        [if self.gradients { 2 } else { 1 }, if self.double { 8 } else { 4 }]
    }

    /// What these bytes stand for.
    pub fn of_tag(tag: [u8; 2]) -> Option<Self> {
        let kinds = [(false, false), (false, true), (true, false), (true, true)];
        let mut kinds = kinds.into_iter().map(|(gradients, double)| Self { gradients, double });
        kinds.find(|kind| kind.tag() == tag)
    }
}
