//! What a layer keeps of its last forward pass, so that the backward pass is of that one and no other.

#![forbid(unsafe_code)]

use crate::api::batch_norm::parts::Parts;
use crate::api::renorm::Renormalized;
use crate::api::shape::Shape;
use crate::ground::error::Error;
use crate::kernel::activations::Activation;
use crate::operations::Element;
use crate::operations::storage::Storage;
use crate::simd::environment;

/// The elements of x that are kept to know it by.
const SAMPLES: usize = 64;

/// The statistics that a forward pass normalized by.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Statistics {
    /// The batch's own.
    Batch,
    /// The running ones.
    Running,
}

/// By what a forward pass normalized.
pub struct Normalized<'a, T> {
    pub statistics: Statistics,
    pub renormalized: Option<Renormalized<T>>,
    pub weights: Option<&'a [f64]>,
}

/// A forward pass: its x in samples, and copies of the vectors that may be written before its backward pass.
#[derive(Debug, Clone)]
pub struct Record<T> {
    pub statistics: Statistics,
    pub gamma: Option<Vec<T>>,
    pub beta: Option<Vec<T>>,
    pub activation: Activation,
    /// Whether a residual was added; then, which elements the activation let through.
    pub residual: bool,
    pub mask: Vec<u64>,
    pub mean: Vec<T>,
    pub var: Vec<T>,
    pub eps: f64,
    /// What renormalization made of the statistics, if there was one.
    pub renormalized: Option<Renormalized<T>>,
    /// Of samples.
    pub weights: Option<Vec<f64>>,
    shape: Shape,
    samples: Vec<T>,
}

impl<T: Element> Record<T> {
    /// The pass over `x` of a layer that has `parts`, in a domain, with the mask that a residual took. What was in `place` is reused.
    pub fn write<S: Storage<Arithmetic = T>>(
        place: &mut Option<Box<Self>>,
        Normalized { statistics, renormalized, weights }: Normalized<'_, T>,
        shape: &Shape,
        (x, mask): (&[S], Option<Vec<u64>>),
        (parts, domain): (&Parts<T>, usize),
    ) {
        let record = place.get_or_insert_with(|| {
            Box::new(Self {
                statistics,
                gamma: None,
                beta: None,
                activation: parts.activation,
                residual: false,
                mask: Vec::new(),
                mean: Vec::new(),
                var: Vec::new(),
                eps: 0.0,
                renormalized: None,
                weights: None,
                shape: *shape,
                samples: Vec::new(),
            })
        });
        (record.statistics, record.shape, record.eps) = (statistics, *shape, parts.eps);
        (record.activation, record.residual) = (parts.activation, mask.is_some());
        (record.mask, record.renormalized) = (mask.unwrap_or_default(), renormalized);
        record.weights = weights.map(<[f64]>::to_vec);
        record.gamma.clone_from(&parts.gamma);
        record.beta.clone_from(&parts.beta);
        if statistics == Statistics::Running {
            let (mean, var, _) = parts.running(domain);
            mean.clone_into(&mut record.mean);
            var.clone_into(&mut record.var);
        }
        record.samples.clear();
        environment::in_default(|| {
            record.samples.extend(sampled(x.len()).map(|index| x[index].widened()));
        });
    }

    /// Whether its mask is of this shape's length.
    pub fn has_mask_of(&self, shape: &Shape) -> bool {
        self.mask.len() == shape.mask_len()
    }

    /// That a backward pass is of this forward pass.
    pub fn check<S: Storage<Arithmetic = T>>(&self, shape: &Shape, x: &[S]) -> Result<(), Error> {
        if !self.shape.lies_like(shape) {
            return Err(Error::ForwardShape { got: shape.to_string(), expected: self.shape.to_string() });
        }
        shape.check_tensor("x", x.len())?;
        let same = |a: f64, b: f64| a == b || (a.is_nan() && b.is_nan());
        let mut others = None;
        environment::in_default(|| {
            others = sampled(x.len())
                .zip(&self.samples)
                .map(|(index, expected)| (index, x[index].widened().to_f64(), expected.to_f64()))
                .find(|(_, got, expected)| !same(*got, *expected));
        });
        others.map_or(Ok(()), |(index, got, expected)| Err(Error::ForwardInput { index, got, expected }))
    }
}

/// All of up to 64 elements; of more, one of each of 64 equal parts. Its place in the part goes by multiples of the golden
/// ratio, so that periods of the data (rows, planes, channels, padding) do not put all samples where tensors are alike.
fn sampled(len: usize) -> impl Iterator<Item = usize> {
    const GOLDEN_RATIO: u64 = 0x9e37_79b9_7f4a_7c15;
    let samples = len.min(SAMPLES);
    let part = len.checked_div(samples).unwrap_or(0);
    (0..samples).map(move |i| {
        let fraction = (i as u64).wrapping_mul(GOLDEN_RATIO);
        i * part + ((u128::from(fraction) * part as u128) >> 64) as usize
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn samples_are_of_all_parts_and_within() {
        for len in (0..1000).chain([4095, 4096, 123_457, isize::MAX as usize / 8]) {
            let indices: Vec<usize> = sampled(len).collect();
            assert_eq!(indices.len(), len.min(SAMPLES));
            let part = len / SAMPLES;
            for (i, &index) in indices.iter().enumerate() {
                assert!(index < len, "{index} of {len}");
                assert_eq!(index.checked_div(part).unwrap_or(index), i, "of {len}");
            }
        }
    }

    /// Tensors that differ in one channel, or one row of each plane, or beyond a border of zeros, are told apart.
    #[test]
    fn periods_do_not_hide() {
        for (period, places) in [(3, 1), (8, 1), (16, 1), (56, 8), (64, 8), (1024, 128), (3136, 600)] {
            let hit = |start: usize| {
                sampled(64 * period).any(|index| (index % period + period - start) % period < places)
            };
            assert!((0..period).all(hit), "{places} of every {period}");
        }
    }
}
