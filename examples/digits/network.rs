//! The network: convolutions, batch normalization or a bias, a residual perhaps, relu, and a linear classifier; forward and
//! backward.
//!
//! What follows batch normalization, the residual's addition and relu, is done with it in one pass, or apart by the loops that
//! programs had before. Either way the numbers are the same.
//!
//! Tensors are NHWC, where a convolution is one matrix product (of patches laid out as rows) and its output is in place.

use std::time::{Duration, Instant};

use batchnorm::{Activation, BatchNorm, Error, Mode, Shape, step};
use rand::SeedableRng;
use rand::rngs::Xoshiro256PlusPlus;

use crate::arithmetic::{PATCH, SIDE, Score, add, he, images_of, patches_of, product, score};
use crate::data::{CLASSES, Digit, PIXELS};

/// How a network normalizes.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Kind {
    /// Not at all.
    Plain,
    /// By the library's layer, then the residual and relu by loops of their own.
    Apart,
    /// By the library's layer, which adds the residual and applies relu in the same pass.
    Fused,
}

/// What blocks a network has.
#[derive(Debug, Clone, Copy)]
pub enum Blocks {
    /// A block for each number of channels.
    Chain(&'static [usize]),
    /// A block, then as many pairs of blocks that a residual goes around.
    Residual { channels: usize, pairs: usize },
}

/// What comes between a convolution and its relu.
enum Between {
    /// The library's layer, and whether relu is its activation.
    Norm(BatchNorm<f32>, bool),
    /// A bias per channel and its gradient.
    Bias(Vec<f32>, Vec<f32>),
}

/// Convolution, normalization or bias, residual, relu.
struct Block {
    inputs: usize,
    outputs: usize,
    /// Whether the input of the block before is added before relu.
    residual: bool,
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
    /// Time spent in batch normalization and what follows it so far.
    pub in_norm: Duration,
    /// Time spent in all so far.
    pub total: Duration,
}

/// What follows a normalization or a bias, apart: y = relu(u + z).
fn add_and_relu(u: &mut [f32], z: Option<&[f32]>) {
    if let Some(z) = z {
        add(u, z);
    }
    u.iter_mut().for_each(|u| *u = u.max(0.0));
}

/// What comes before it on the way back.
fn relu_gradient(dy: &mut [f32], y: &[f32]) {
    dy.iter_mut().zip(y).for_each(|(dy, y)| *dy = if *y > 0.0 { *dy } else { 0.0 });
}

impl Block {
    fn new(
        rng: &mut Xoshiro256PlusPlus,
        (inputs, outputs): (usize, usize),
        residual: bool,
        kind: Kind,
    ) -> Self {
        let norm = BatchNorm::new(outputs);
        let between = match kind {
            Kind::Plain => Between::Bias(vec![0.0; outputs], vec![0.0; outputs]),
            Kind::Apart => Between::Norm(norm, false),
            Kind::Fused => Between::Norm(norm.with_activation(Activation::Relu), true),
        };
        Self {
            inputs,
            outputs,
            residual,
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
        (x, z): (&[f32], Option<&[f32]>),
        batch: usize,
        mode: Mode,
        in_norm: &mut Duration,
    ) -> Result<(), Error> {
        let (width, rows) = (self.inputs, batch * PIXELS);
        patches_of(x, width, &mut self.patches);
        self.convolved.resize(rows * self.outputs, 0.0);
        let sizes = (rows, PATCH * width, self.outputs);
        product(sizes, &self.patches, &self.weights, (false, false), &mut self.convolved);

        self.output.resize(rows * self.outputs, 0.0);
        let shape = self.shape(batch)?;
        let (convolved, y) = (&self.convolved, &mut self.output);
        match &mut self.between {
            Between::Norm(norm, fused) => {
                let start = Instant::now();
                match z {
                    Some(z) if *fused => norm.forward_with_residual(mode, &shape, convolved, z, y)?,
                    _ => norm.forward(mode, &shape, convolved, y)?,
                }
                if !*fused {
                    add_and_relu(y, z);
                }
                *in_norm += start.elapsed();
            }
            Between::Bias(bias, _) => {
                for (to, from) in y.chunks_exact_mut(self.outputs).zip(convolved.chunks_exact(self.outputs)) {
                    to.iter_mut().zip(from).zip(&*bias).for_each(|((to, from), bias)| *to = from + bias);
                }
                add_and_relu(y, z);
            }
        }
        Ok(())
    }

    /// From the gradient of the output to that of the input, and of the residual.
    fn backward(
        &mut self,
        mut dy: Vec<f32>,
        batch: usize,
        in_norm: &mut Duration,
    ) -> Result<(Vec<f32>, Option<Vec<f32>>), Error> {
        let (width, rows) = (self.inputs, batch * PIXELS);
        let shape = self.shape(batch)?;
        let (x, y) = (&self.convolved, &self.output);
        let (dy, dz) = match &mut self.between {
            Between::Norm(norm, fused) => {
                let mut dx = vec![0.0; dy.len()];
                let mut dz = self.residual.then(|| vec![0.0; dy.len()]);
                let start = Instant::now();
                if !*fused {
                    relu_gradient(&mut dy, y);
                }
                match &mut dz {
                    Some(dz) if *fused => norm.backward_with_residual(&shape, x, &dy, &mut dx, dz)?,
                    _ => norm.backward(&shape, x, &dy, &mut dx)?,
                }
                *in_norm += start.elapsed();
                // Apart, the residual's gradient is what went into the normalization.
                (dx, if *fused { dz } else { self.residual.then_some(dy) })
            }
            Between::Bias(_, gradient) => {
                relu_gradient(&mut dy, y);
                gradient.fill(0.0);
                for row in dy.chunks_exact(self.outputs) {
                    gradient.iter_mut().zip(row).for_each(|(sum, dy)| *sum += dy);
                }
                let dz = self.residual.then(|| dy.clone());
                (dy, dz)
            }
        };
        let (inner, outputs) = (PATCH * width, self.outputs);
        product((inner, rows, outputs), &self.patches, &dy, (true, false), &mut self.gradient);
        let mut patches = vec![0.0; rows * inner];
        product((rows, outputs, inner), &dy, &self.weights, (false, true), &mut patches);
        Ok((images_of(&patches, width), dz))
    }

    fn step(&mut self, lr: f64) -> Result<(), Error> {
        step(lr, &self.gradient, &mut self.weights)?;
        match &mut self.between {
            Between::Norm(norm, _) => norm.step(lr),
            Between::Bias(bias, gradient) => step(lr, gradient, bias),
        }
    }
}

impl Network {
    /// The weights follow from the seed, whichever kind it is.
    pub fn new(seed: u64, blocks: Blocks, kind: Kind) -> Self {
        let rng = &mut Xoshiro256PlusPlus::seed_from_u64(seed);
        let widths = match blocks {
            Blocks::Chain(widths) => widths.to_vec(),
            Blocks::Residual { channels, pairs } => vec![channels; 1 + 2 * pairs],
        };
        let in_pairs = matches!(blocks, Blocks::Residual { .. });
        let mut inputs = 1;
        let blocks = widths.into_iter().enumerate().map(|(place, outputs)| {
            let residual = in_pairs && place > 0 && place % 2 == 0;
            let block = Block::new(rng, (inputs, outputs), residual, kind);
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
            total: Duration::ZERO,
        }
    }

    /// Scores of the classes for a batch, sample by sample.
    fn forward(&mut self, digits: &[&Digit], training: bool) -> Result<Vec<f32>, Error> {
        let batch = digits.len();
        let mut x: Vec<f32> = digits.iter().flat_map(|digit| digit.pixels).collect();
        let mode = if training { Mode::Training } else { Mode::Inference };
        for place in 0..self.blocks.len() {
            let (before, rest) = self.blocks.split_at_mut(place);
            let block = &mut rest[0];
            // The input of the block before, which is the output of the one before that.
            let z = block.residual.then(|| &before[place - 2].output[..]);
            block.forward((&x, z), batch, mode, &mut self.in_norm)?;
            x.clone_from(&block.output);
        }
        let mut scores = vec![0.0; batch * CLASSES];
        product((batch, x.len() / batch, CLASSES), &x, &self.weights, (false, false), &mut scores);
        for scores in scores.chunks_exact_mut(CLASSES) {
            scores.iter_mut().zip(&self.bias).for_each(|(score, bias)| *score += bias);
        }
        Ok(scores)
    }

    /// One step of gradient descent on a batch.
    pub fn train(&mut self, digits: &[&Digit], lr: f64) -> Result<Score, Error> {
        let start = Instant::now();
        let batch = digits.len();
        let mut dy = self.forward(digits, true)?;
        let score = score(&mut dy, digits, batch);
        let features = self.blocks.last().map_or(&[][..], |block| &block.output);
        let width = features.len() / batch;
        product((width, batch, CLASSES), features, &dy, (true, false), &mut self.gradient);
        self.bias_gradient.fill(0.0);
        for row in dy.chunks_exact(CLASSES) {
            self.bias_gradient.iter_mut().zip(row).for_each(|(sum, dy)| *sum += dy);
        }
        let mut dx = vec![0.0; batch * width];
        product((batch, CLASSES, width), &dy, &self.weights, (false, true), &mut dx);
        let mut around: Option<Vec<f32>> = None;
        for block in self.blocks.iter_mut().rev() {
            let (through, dz) = block.backward(dx, batch, &mut self.in_norm)?;
            dx = through;
            // What went around this block as the residual of the one behind.
            if let Some(dz) = around {
                add(&mut dx, &dz);
            }
            around = dz;
            block.step(lr)?;
        }
        step(lr, &self.gradient, &mut self.weights)?;
        step(lr, &self.bias_gradient, &mut self.bias)?;
        self.total += start.elapsed();
        Ok(score)
    }

    /// Loss and accuracy on a set, by running statistics.
    pub fn test(&mut self, digits: &[&Digit]) -> Result<Score, Error> {
        let start = Instant::now();
        let mut scores = self.forward(digits, false)?;
        let score = score(&mut scores, digits, digits.len());
        self.total += start.elapsed();
        Ok(score)
    }
}
