//! What a network computes beside its normalizations: matrix products, patches of images, the loss.

use matrixmultiply::sgemm;
use rand::RngExt;
use rand::rngs::Xoshiro256PlusPlus;

use crate::data::{CLASSES, Digit, PIXELS};

/// Width and height of an image, which convolutions keep.
pub const SIDE: usize = 8;
/// Elements of a 3 x 3 patch per channel.
pub const PATCH: usize = 9;

/// What a pass over samples came to.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Score {
    /// Cross-entropy, the mean over samples.
    pub loss: f64,
    /// The share of samples whose class was right.
    pub accuracy: f64,
}

/// c = a * b with row-major matrices; `a` is m x k, or k x m if `transposed.0`, `b` likewise.
pub fn product(
    (m, k, n): (usize, usize, usize),
    a: &[f32],
    b: &[f32],
    transposed: (bool, bool),
    c: &mut [f32],
) {
    assert!(a.len() == m * k && b.len() == k * n && c.len() == m * n);
    let (a_row, a_column) = if transposed.0 { (1, m as isize) } else { (k as isize, 1) };
    let (b_row, b_column) = if transposed.1 { (1, k as isize) } else { (n as isize, 1) };
    // SAFETY: the strides stay within the slices, whose lengths were checked.
    unsafe {
        let (a, b, c) = (a.as_ptr(), b.as_ptr(), c.as_mut_ptr());
        sgemm(m, k, n, 1.0, a, a_row, a_column, b, b_row, b_column, 0.0, c, n as isize, 1);
    }
}

/// Weights with the variance 2 / inputs that keeps relu's activations at their size (K. He et al., 2015), uniform.
pub fn he(rng: &mut Xoshiro256PlusPlus, inputs: usize, outputs: usize) -> Vec<f32> {
    let bound = (6.0 / inputs as f32).sqrt();
    (0..inputs * outputs).map(|_| rng.random_range(-bound..bound)).collect()
}

/// The (patch offset, pixel) pairs of an image: which input pixel lies under which element of which patch.
fn under_patches() -> impl Iterator<Item = (usize, usize)> {
    (0..PIXELS).flat_map(|position| {
        (0..PATCH).filter_map(move |element| {
            let row = (position / SIDE + element / 3).checked_sub(1)?;
            let column = (position % SIDE + element % 3).checked_sub(1)?;
            (row < SIDE && column < SIDE).then_some((position * PATCH + element, row * SIDE + column))
        })
    })
}

/// The patches of images of `width` channels, a row each.
pub fn patches_of(images: &[f32], width: usize, patches: &mut Vec<f32>) {
    patches.clear();
    patches.resize(images.len() * PATCH, 0.0);
    let images = images.chunks_exact(PIXELS * width).zip(patches.chunks_exact_mut(PIXELS * PATCH * width));
    for (image, patches) in images {
        for (to, from) in under_patches() {
            patches[to * width..][..width].copy_from_slice(&image[from * width..][..width]);
        }
    }
}

/// The gradient of images from that of their patches.
pub fn images_of(patches: &[f32], width: usize) -> Vec<f32> {
    let mut images = vec![0.0; patches.len() / PATCH];
    let each = images.chunks_exact_mut(PIXELS * width).zip(patches.chunks_exact(PIXELS * PATCH * width));
    for (image, patches) in each {
        for (from, to) in under_patches() {
            add(&mut image[to * width..][..width], &patches[from * width..][..width]);
        }
    }
    images
}

pub fn add(to: &mut [f32], from: &[f32]) {
    to.iter_mut().zip(from).for_each(|(to, from)| *to += from);
}

/// Loss and accuracy of scores, which become their gradient: these samples' share of a batch's.
pub fn score(scores: &mut [f32], digits: &[&Digit], batch: usize) -> Score {
    let mut score = Score::default();
    let share = 1.0 / batch as f64;
    for (scores, digit) in scores.chunks_exact_mut(CLASSES).zip(digits) {
        let right = scores[digit.class];
        // A NaN is right about nothing.
        let best = scores.iter().enumerate().all(|(class, p)| class == digit.class || *p < right);
        score.accuracy += f64::from(u8::from(best)) * share;
        // The loss is the logarithm of the softmax; with the largest score taken off, no exponential overflows.
        let most = scores.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        let sum: f32 = scores.iter().map(|score| (score - most).exp()).sum();
        score.loss += f64::from(sum.ln() + most - right) * share;
        scores.iter_mut().for_each(|score| *score = (*score - most).exp() / sum * share as f32);
        scores[digit.class] -= share as f32;
    }
    score
}
