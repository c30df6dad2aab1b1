//! Inference folded into the weights and the bias of the layer before.

use std::ops::Range;

use crate::ground::extended::Extended;
use crate::ground::half::Halves;
use crate::ground::scalar::Scalar;
use crate::ground::sizes::GROUP;
use crate::ground::slices::Sink;
use crate::operations::given::Affine;
use crate::simd::environment;

/// How weights lie in memory: groups one after the other, each of rows, of channels, of elements.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Blocks {
    pub groups: usize,
    /// Rows of a group.
    pub outer: usize,
    /// Output channels of a group.
    pub channels: usize,
    /// Elements of a channel in a row.
    pub inner: usize,
}

/// A checked call.
#[derive(Clone, Copy)]
pub struct Fold<'a, T: Scalar> {
    pub blocks: Blocks,
    pub mean: &'a [T],
    pub var: &'a [T],
    pub affine: Affine<'a, T>,
    pub weight: Sink<'a, T>,
    pub bias: Sink<'a, T>,
}

impl<T: Scalar> Fold<'_, T> {
    /// Scales the weights and moves the bias, on the calling thread.
    pub fn run(&self) {
        environment::in_default(|| {
            let Blocks { groups, channels, .. } = self.blocks;
            // Without channels there may be any number of groups.
            for group in 0..if channels == 0 { 0 } else { groups } {
                for first in (0..channels).step_by(GROUP) {
                    self.fold(group, first..channels.min(first + GROUP));
                }
            }
        });
    }

    /// Some channels of a group.
    fn fold(&self, group: usize, some: Range<usize>) {
        let Blocks { outer, channels, inner, .. } = self.blocks;
        let mut scales = [Extended::default(); GROUP];
        for (scale, channel) in scales.iter_mut().zip(some.clone()) {
            let channel = group * channels + channel;
            let value = |values: &[T]| Extended::from(values[channel].to_f64());
            let [gamma, beta] = [(self.affine.gamma, 1.0), (self.affine.beta, 0.0)]
                .map(|(values, default)| values.map_or(default.into(), value));
            // NaN of a negative variance that eps does not make up for.
            *scale = gamma / (value(self.var) + self.affine.eps.into()).sqrt();
            let minus_mean = Extended::from(-self.mean[channel].to_f64());
            map(&self.bias, channel..channel + 1, |bias| (bias + minus_mean) * *scale + beta);
        }
        // Without elements there may be any number of rows.
        for row in 0..if inner == 0 { 0 } else { outer } {
            let start = ((group * outer + row) * channels + some.start) * inner;
            for (i, scale) in scales[..some.len()].iter().enumerate() {
                let start = start + i * inner;
                map(&self.weight, start..start + inner, |weight| weight * *scale);
            }
        }
    }
}

/// Puts a function of each number of a part in its place, rounded once.
fn map<T: Scalar>(tensor: &Sink<'_, T>, range: Range<usize>, f: impl Fn(Extended) -> Extended) {
    match tensor {
        Sink::Whole(output) => {
            // SAFETY: within the slice, whose length has been checked; on one thread, a part after the other.
            for value in unsafe { output.part(range) } {
                *value = T::from_f64(f(value.to_f64().into()).rounded(T::FORMAT));
            }
        }
        Sink::Half(output, half) => {
            let half = half.half();
            // SAFETY: likewise.
            for bits in unsafe { output.part(range) } {
                let value = f(f64::from(half.to_f32(*bits)).into());
                // f32 holds it, or it is beyond the largest number.
                *bits = half.of_f32(value.rounded(half.format()) as f32);
            }
        }
    }
}
