//! The network: convolutions, batch normalization or a bias, relu, and a linear classifier; forward and backward.
//!
//! Tensors are NHWC, where a convolution is one matrix product (of patches laid out as rows) and its output is in place.

use std::time::{Duration, Instant};

use batchnorm::{BatchNorm, Error, Shape, step};
use matrixmultiply::sgemm;
use rand::rngs::Xoshiro256PlusPlus;
use rand::{RngExt, SeedableRng};

use crate::data::{CLASSES, Digit, PIXELS};

/// Width and height of an image, which convolutions keep.
const SIDE: usize = 8;
/// Elements of a 3 x 3 patch per channel.
const PATCH: usize = 9;

/// What comes between a convolution and its relu.
enum Between {
    /// The library's layer.
    Norm(BatchNorm<f32>),
    /// A bias per channel and its gradient.
    Bias(Vec<f32>, Vec<f32>),
}

/// Convolution, normalization or bias, relu.
struct Block {
    inputs: usize,
    outputs: usize,
    weights: Vec<f32>,
    gradient: Vec<f32>,
    between: Between,
    /// Of the last forward pass: patches of the input, what the convolution made of them, the block's output.
    patches: Vec<f32>,
    convolved: Vec<f32>,
    output: Vec<f32>,
}

/// Blocks and a linear classifier on what the last of them sees.
pub struct Network {
    blocks: Vec<Block>,
    weights: Vec<f32>,
    gradient: Vec<f32>,
    bias: Vec<f32>,
    bias_gradient: Vec<f32>,
    /// Time spent in batch normalization so far.
    pub in_norm: Duration,
}

/// What a pass over samples came to.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Score {
    /// Cross-entropy, the mean over samples.
    pub loss: f64,
    /// The share of samples whose class was right.
    pub accuracy: f64,
}

/// c = a * b with row-major matrices; `a` is m x k, or k x m if `transposed.0`, `b` likewise.
fn product((m, k, n): (usize, usize, usize), a: &[f32], b: &[f32], transposed: (bool, bool), c: &mut [f32]) {
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
fn he(rng: &mut Xoshiro256PlusPlus, inputs: usize, outputs: usize) -> Vec<f32> {
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

impl Block {
    fn new(rng: &mut Xoshiro256PlusPlus, inputs: usize, outputs: usize, normalize: bool) -> Self {
        let between = if normalize {
            Between::Norm(BatchNorm::new(outputs))
        } else {
            Between::Bias(vec![0.0; outputs], vec![0.0; outputs])
        };
        Self {
            inputs,
            outputs,
            weights: he(rng, PATCH * inputs, outputs),
            gradient: vec![0.0; PATCH * inputs * outputs],
            between,
            patches: Vec::new(),
            convolved: Vec::new(),
            output: Vec::new(),
        }
    }

    fn shape(&self, batch: usize) -> Result<Shape, Error> {
        Shape::nhwc(&[batch, SIDE, SIDE, self.outputs])
    }

    fn forward(
        &mut self,
        x: &[f32],
        batch: usize,
        training: bool,
        in_norm: &mut Duration,
    ) -> Result<(), Error> {
        let (width, rows) = (self.inputs, batch * PIXELS);
        self.patches.clear();
        self.patches.resize(rows * PATCH * width, 0.0);
        let images =
            x.chunks_exact(PIXELS * width).zip(self.patches.chunks_exact_mut(PIXELS * PATCH * width));
        for (image, patches) in images {
            for (to, from) in under_patches() {
                patches[to * width..][..width].copy_from_slice(&image[from * width..][..width]);
            }
        }
        self.convolved.resize(rows * self.outputs, 0.0);
        let sizes = (rows, PATCH * width, self.outputs);
        product(sizes, &self.patches, &self.weights, (false, false), &mut self.convolved);

        self.output.resize(rows * self.outputs, 0.0);
        let shape = self.shape(batch)?;
        match &mut self.between {
            Between::Norm(norm) => {
                let start = Instant::now();
                if training {
                    norm.forward_training(&shape, &self.convolved, &mut self.output)?;
                } else {
                    norm.forward_inference(&shape, &self.convolved, &mut self.output)?;
                }
                *in_norm += start.elapsed();
            }
            Between::Bias(bias, _) => {
                let rows =
                    self.output.chunks_exact_mut(self.outputs).zip(self.convolved.chunks_exact(self.outputs));
                rows.for_each(|(to, from)| {
                    to.iter_mut().zip(from).zip(&*bias).for_each(|((to, from), bias)| *to = from + bias);
                });
            }
        }
        self.output.iter_mut().for_each(|y| *y = y.max(0.0));
        Ok(())
    }

    /// From the gradient of the output to that of the input.
    fn backward(
        &mut self,
        mut dy: Vec<f32>,
        batch: usize,
        in_norm: &mut Duration,
    ) -> Result<Vec<f32>, Error> {
        let (width, rows) = (self.inputs, batch * PIXELS);
        dy.iter_mut().zip(&self.output).for_each(|(dy, y)| *dy *= f32::from(u8::from(*y > 0.0)));
        let shape = self.shape(batch)?;
        let dy = match &mut self.between {
            Between::Norm(norm) => {
                let mut dx = vec![0.0; dy.len()];
                let start = Instant::now();
                norm.backward(&shape, &self.convolved, &dy, &mut dx)?;
                *in_norm += start.elapsed();
                dx
            }
            Between::Bias(_, gradient) => {
                gradient.fill(0.0);
                for row in dy.chunks_exact(self.outputs) {
                    gradient.iter_mut().zip(row).for_each(|(sum, dy)| *sum += dy);
                }
                dy
            }
        };
        let (inner, outputs) = (PATCH * width, self.outputs);
        product((inner, rows, outputs), &self.patches, &dy, (true, false), &mut self.gradient);
        let mut patches = vec![0.0; rows * inner];
        product((rows, outputs, inner), &dy, &self.weights, (false, true), &mut patches);
        let mut dx = vec![0.0; rows * width];
        for (image, patches) in dx.chunks_exact_mut(PIXELS * width).zip(patches.chunks_exact(PIXELS * inner))
        {
            for (from, to) in under_patches() {
                let image = image[to * width..][..width].iter_mut();
                image.zip(&patches[from * width..][..width]).for_each(|(to, from)| *to += from);
            }
        }
        Ok(dx)
    }

    fn step(&mut self, lr: f64) -> Result<(), Error> {
        step(lr, &self.gradient, &mut self.weights)?;
        match &mut self.between {
            Between::Norm(norm) => norm.step(lr),
            Between::Bias(bias, gradient) => step(lr, gradient, bias),
        }
    }
}

impl Network {
    /// A block for each of `widths` channels. The weights follow from the seed, whether it normalizes or not.
    pub fn new(seed: u64, widths: &[usize], normalize: bool) -> Self {
        let rng = &mut Xoshiro256PlusPlus::seed_from_u64(seed);
        let mut inputs = 1;
        let blocks = widths.iter().map(|&outputs| {
            let block = Block::new(rng, inputs, outputs, normalize);
            inputs = outputs;
            block
        });
        let blocks: Vec<Block> = blocks.collect();
        let features = PIXELS * inputs;
        Self {
            blocks,
            weights: he(rng, features, CLASSES),
            gradient: vec![0.0; features * CLASSES],
            bias: vec![0.0; CLASSES],
            bias_gradient: vec![0.0; CLASSES],
            in_norm: Duration::ZERO,
        }
    }

    /// Scores of the classes for a batch, sample by sample.
    fn forward(&mut self, digits: &[&Digit], training: bool) -> Result<Vec<f32>, Error> {
        let batch = digits.len();
        let mut x: Vec<f32> = digits.iter().flat_map(|digit| digit.pixels).collect();
        for block in &mut self.blocks {
            block.forward(&x, batch, training, &mut self.in_norm)?;
            x.clone_from(&block.output);
        }
        let mut scores = vec![0.0; batch * CLASSES];
        product((batch, x.len() / batch, CLASSES), &x, &self.weights, (false, false), &mut scores);
        for scores in scores.chunks_exact_mut(CLASSES) {
            scores.iter_mut().zip(&self.bias).for_each(|(score, bias)| *score += bias);
        }
        Ok(scores)
    }

    /// Loss and accuracy of scores, which become their gradient.
    fn score(scores: &mut [f32], digits: &[&Digit]) -> Score {
        let mut score = Score::default();
        let share = 1.0 / digits.len() as f64;
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

    /// One step of gradient descent on a batch.
    pub fn train(&mut self, digits: &[&Digit], lr: f64) -> Result<Score, Error> {
        let batch = digits.len();
        let mut dy = self.forward(digits, true)?;
        let score = Self::score(&mut dy, digits);
        let features = self.blocks.last().map_or(&[][..], |block| &block.output);
        let width = features.len() / batch;
        product((width, batch, CLASSES), features, &dy, (true, false), &mut self.gradient);
        self.bias_gradient.fill(0.0);
        for row in dy.chunks_exact(CLASSES) {
            self.bias_gradient.iter_mut().zip(row).for_each(|(sum, dy)| *sum += dy);
        }
        let mut dx = vec![0.0; batch * width];
        product((batch, CLASSES, width), &dy, &self.weights, (false, true), &mut dx);
        for block in self.blocks.iter_mut().rev() {
            dx = block.backward(dx, batch, &mut self.in_norm)?;
            block.step(lr)?;
        }
        step(lr, &self.gradient, &mut self.weights)?;
        step(lr, &self.bias_gradient, &mut self.bias)?;
        Ok(score)
    }

    /// Loss and accuracy on a set, by running statistics.
    pub fn test(&mut self, digits: &[&Digit]) -> Result<Score, Error> {
        let mut scores = self.forward(digits, false)?;
        Ok(Self::score(&mut scores, digits))
    }
}
