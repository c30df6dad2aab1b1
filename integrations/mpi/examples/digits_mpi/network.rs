//! The network of the repository's example `digits`, of whose batch each rank has some blocks of samples.
//!
//! Whatever is summed over samples, gradients of weights and the loss, is summed block by block by whoever has the block, and the
//! blocks in their order on every rank. So nothing depends on who has which, but for statistics where each rank takes its own.

use std::error::Error;
use std::time::{Duration, Instant};

use batchnorm::{Activation, BatchNorm, Mode, Shape, step};
use batchnorm_mpi::{Part, Ranks, SyncBatchNorm, Traffic};
use mpi::collective::SystemOperation;
use mpi::datatype::PartitionMut;
use mpi::topology::SimpleCommunicator;
use mpi::traits::*;
use rand::SeedableRng;
use rand::rngs::Xoshiro256PlusPlus;

use crate::arithmetic::{PATCH, SIDE, Score, he, images_of, patches_of, product, score};
use crate::data::{CLASSES, Digit, PIXELS};

/// Samples of a block: the granularity of 8 x 8 positions.
pub const BLOCK: usize = 16;

/// The ranks that train.
pub type Group<'c> = Ranks<'c, SimpleCommunicator>;

/// Convolution, normalization, relu.
struct Layer {
    inputs: usize,
    outputs: usize,
    weights: Vec<f32>,
    norm: SyncBatchNorm<f32>,
    /// Of the last forward pass: patches of the input, what the convolution made of them, the output.
    patches: Vec<f32>,
    convolved: Vec<f32>,
    output: Vec<f32>,
    /// What the last step's forward and backward pass sent.
    sent: [Traffic; 2],
}

/// Layers and a linear classifier.
pub struct Network {
    layers: Vec<Layer>,
    weights: Vec<f32>,
    bias: Vec<f32>,
    /// Whether statistics are those of all ranks.
    synchronized: bool,
    /// Time in training steps, and in them in the gather of gradients.
    pub in_steps: Duration,
    pub in_gradients: Duration,
    /// Time in the layers' collectives in training steps.
    pub in_norms: Duration,
}

impl Layer {
    fn forward(
        &mut self,
        x: &[f32],
        batch: usize,
        mode: Mode,
        among: Option<(Part, &mut Group<'_>)>,
    ) -> Result<(), batchnorm::Error> {
        patches_of(x, self.inputs, &mut self.patches);
        self.convolved.resize(batch * PIXELS * self.outputs, 0.0);
        let inner = PATCH * self.inputs;
        let blocks = self.patches.chunks(BLOCK * PIXELS * inner);
        for (patches, to) in blocks.zip(self.convolved.chunks_mut(BLOCK * PIXELS * self.outputs)) {
            let sizes = (to.len() / self.outputs, inner, self.outputs);
            product(sizes, patches, &self.weights, (false, false), to);
        }
        self.output.resize(self.convolved.len(), 0.0);
        let shape = Shape::nhwc(&[batch, SIDE, SIDE, self.outputs])?;
        let (x, y) = (&self.convolved, &mut self.output);
        match among {
            Some((part, ranks)) => {
                let before = ranks.traffic();
                self.norm.forward(mode, &shape, x, y, (part, ranks))?;
                self.sent[0] = ranks.traffic().since(before);
                Ok(())
            }
            None => self.norm.layer_mut().forward(mode, &shape, x, y),
        }
    }

    /// From the gradient of the output to that of the input; that of the weights by blocks, at `place` of each.
    fn backward(
        &mut self,
        dy: &[f32],
        batch: usize,
        (blocks, place): (&mut [Vec<f32>], usize),
        among: Option<(Part, &mut Group<'_>)>,
    ) -> Result<Vec<f32>, batchnorm::Error> {
        let shape = Shape::nhwc(&[batch, SIDE, SIDE, self.outputs])?;
        let (x, mut dx) = (&self.convolved, vec![0.0; dy.len()]);
        match among {
            Some((part, ranks)) => {
                let before = ranks.traffic();
                self.norm.backward(&shape, x, dy, &mut dx, (part, ranks))?;
                self.sent[1] = ranks.traffic().since(before);
            }
            None => self.norm.layer_mut().backward(&shape, x, dy, &mut dx)?,
        }
        let (inner, outputs) = (PATCH * self.inputs, self.outputs);
        let mut patches = vec![0.0; batch * PIXELS * inner];
        let rows = dx.chunks(BLOCK * PIXELS * outputs).zip(self.patches.chunks(BLOCK * PIXELS * inner));
        let to = patches.chunks_mut(BLOCK * PIXELS * inner).zip(blocks);
        for ((dx, x), (patches, block)) in rows.zip(to) {
            let rows = dx.len() / outputs;
            let gradient = &mut block[place..][..inner * outputs];
            product((inner, rows, outputs), x, dx, (true, false), gradient);
            product((rows, outputs, inner), dx, &self.weights, (false, true), patches);
        }
        Ok(images_of(&patches, self.inputs))
    }
}

impl Network {
    /// The weights follow from the seed: those of the example `digits`.
    pub fn new(seed: u64, widths: &[usize], synchronized: bool) -> Self {
        let rng = &mut Xoshiro256PlusPlus::seed_from_u64(seed);
        let mut inputs = 1;
        let mut layers = Vec::new();
        for &outputs in widths {
            layers.push(Layer {
                inputs,
                outputs,
                weights: he(rng, PATCH * inputs, outputs),
                norm: BatchNorm::new(outputs).with_activation(Activation::Relu).into(),
                patches: Vec::new(),
                convolved: Vec::new(),
                output: Vec::new(),
                sent: [Traffic::default(); 2],
            });
            inputs = outputs;
        }
        Self {
            layers,
            weights: he(rng, PIXELS * inputs, CLASSES),
            bias: vec![0.0; CLASSES],
            synchronized,
            in_steps: Duration::ZERO,
            in_gradients: Duration::ZERO,
            in_norms: Duration::ZERO,
        }
    }

    /// Scores of the classes for samples of this rank's.
    fn forward(
        &mut self,
        digits: &[&Digit],
        mode: Mode,
        mut among: Option<(Part, &mut Group<'_>)>,
    ) -> Result<Vec<f32>, batchnorm::Error> {
        let mut x: Vec<f32> = digits.iter().flat_map(|digit| digit.pixels).collect();
        for layer in &mut self.layers {
            let among = among.as_mut().map(|(part, ranks)| (*part, &mut **ranks));
            layer.forward(&x, digits.len(), mode, among)?;
            x.clone_from(&layer.output);
        }
        let mut scores = vec![0.0; digits.len() * CLASSES];
        let width = self.weights.len() / CLASSES;
        for (x, scores) in x.chunks(BLOCK * width).zip(scores.chunks_mut(BLOCK * CLASSES)) {
            product((x.len() / width, width, CLASSES), x, &self.weights, (false, false), scores);
        }
        for scores in scores.chunks_exact_mut(CLASSES) {
            scores.iter_mut().zip(&self.bias).for_each(|(score, bias)| *score += bias);
        }
        Ok(scores)
    }

    /// One step of gradient descent on a batch, of which every rank takes its blocks; the loss.
    pub fn train(&mut self, batch: &[&Digit], lr: f64, ranks: &mut Group<'_>) -> Result<f64, Box<dyn Error>> {
        let (start, before) = (Instant::now(), ranks.traffic());
        let (rank, size) = (ranks.rank() as usize, ranks.size() as usize);
        let mine: Vec<&Digit> =
            batch.chunks(BLOCK).skip(begin(batch, rank, size)).flatten().copied().collect();
        let count = begin(batch, rank + 1, size) - begin(batch, rank, size);
        let mine = &mine[..mine.len().min(count * BLOCK)];

        let part = Part::of(ranks, mine.len());
        let among = self.synchronized.then_some((part, &mut *ranks));
        let mut dy = self.forward(mine, Mode::Training, among)?;
        let width = self.weights.len() / CLASSES;
        // A block's gradients: of each layer its weights, gamma and beta, of the classifier, and its part of the loss.
        let places: Vec<usize> = self
            .layers
            .iter()
            .scan(0, |end, layer| {
                let place = *end;
                *end += layer.weights.len() + 2 * layer.outputs;
                Some(place)
            })
            .collect();
        let classifier =
            self.layers.iter().map(|layer| layer.weights.len() + 2 * layer.outputs).sum::<usize>();
        let len = classifier + self.weights.len() + CLASSES + 1;
        let mut blocks = vec![vec![0.0f32; len]; count];
        let features = self.layers.last().map_or(&[][..], |layer| &layer.output);
        let mut dx = vec![0.0; mine.len() * width];
        let tensors = dy.chunks_mut(BLOCK * CLASSES).zip(features.chunks(BLOCK * width));
        let tensors = tensors.zip(dx.chunks_mut(BLOCK * width)).zip(mine.chunks(BLOCK));
        for ((((dy, x), dx), digits), block) in tensors.zip(&mut blocks) {
            let Score { loss, .. } = score(dy, digits, batch.len());
            let (weights, rest) = block[classifier..].split_at_mut(width * CLASSES);
            product((width, digits.len(), CLASSES), x, dy, (true, false), weights);
            for row in dy.chunks_exact(CLASSES) {
                rest.iter_mut().zip(row).for_each(|(sum, dy)| *sum += dy);
            }
            rest[CLASSES] = loss as f32;
            product((digits.len(), CLASSES, width), dy, &self.weights, (false, true), dx);
        }
        for (layer, &place) in self.layers.iter_mut().zip(&places).rev() {
            let among = self.synchronized.then_some((part, &mut *ranks));
            dx = layer.backward(&dx, mine.len(), (&mut blocks, place), among)?;
            // One's own statistics give gradients of one's own samples.
            if let (false, Some(block)) = (self.synchronized, blocks.first_mut()) {
                let (norm, place) = (layer.norm.layer(), place + layer.weights.len());
                block[place..][..layer.outputs].copy_from_slice(norm.dgamma());
                block[place + layer.outputs..][..layer.outputs].copy_from_slice(norm.dbeta());
            }
        }
        self.in_norms += ranks.traffic().since(before).waiting;

        let gather = Instant::now();
        let sums = sum_of_blocks(&blocks.concat(), len, batch, ranks);
        self.in_gradients += gather.elapsed();
        for (layer, &place) in self.layers.iter_mut().zip(&places) {
            let (weights, affine) = sums[place..].split_at(layer.weights.len());
            step(lr, weights, &mut layer.weights)?;
            if self.synchronized {
                layer.norm.step(lr)?;
            } else {
                let (dgamma, dbeta) = affine[..2 * layer.outputs].split_at(layer.outputs);
                let parameters = layer.norm.layer_mut().parameters_mut().zip([dgamma, dbeta]);
                parameters.into_iter().try_for_each(|((p, _), gradient)| step(lr, gradient, p))?;
            }
        }
        let (weights, rest) = sums[classifier..].split_at(self.weights.len());
        step(lr, weights, &mut self.weights)?;
        step(lr, &rest[..CLASSES], &mut self.bias)?;
        self.in_steps += start.elapsed();
        Ok(f64::from(rest[CLASSES]))
    }

    /// The share of a set whose class is right, by running statistics; each rank looks at its blocks.
    pub fn test(&mut self, set: &[&Digit], ranks: &Group<'_>) -> Result<f64, Box<dyn Error>> {
        let (rank, size) = (ranks.rank() as usize, ranks.size() as usize);
        let mine = begin(set, rank, size)..begin(set, rank + 1, size);
        let mut right = 0u64;
        for digits in set.chunks(BLOCK).skip(mine.start).take(mine.len()) {
            let mut scores = self.forward(digits, Mode::Inference, None)?;
            right += score(&mut scores, digits, 1).accuracy as u64;
        }
        let mut all = 0;
        ranks.communicator().all_reduce_into(&right, &mut all, SystemOperation::sum());
        Ok(all as f64 / set.len() as f64)
    }

    /// A hash of all parameters (Fowler's, Noll's and Vo's).
    pub fn hash(&self) -> u64 {
        let layers = self.layers.iter().flat_map(|layer| {
            let norm = layer.norm.layer();
            let affine = [norm.gamma(), norm.beta()].map(Option::unwrap_or_default);
            [&layer.weights[..], affine[0], affine[1]]
        });
        let all = layers.chain([&self.weights[..], &self.bias]).flatten();
        all.flat_map(|number| number.to_le_bytes())
            .fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3))
    }

    /// Of each layer its channels, and what the last step sent forward and backward.
    pub fn sent(&self) -> impl Iterator<Item = (usize, [Traffic; 2])> {
        self.layers.iter().map(|layer| (layer.outputs, layer.sent))
    }
}

/// The first of a rank's blocks.
fn begin(batch: &[&Digit], rank: usize, size: usize) -> usize {
    batch.len().div_ceil(BLOCK) * rank / size
}

/// The sums of all blocks' gradients, of `len` numbers each, in the order of blocks.
fn sum_of_blocks(mine: &[f32], len: usize, batch: &[&Digit], ranks: &Group<'_>) -> Vec<f32> {
    let size = ranks.size() as usize;
    let begins: Vec<i32> = (0..=size).map(|rank| (begin(batch, rank, size) * len) as i32).collect();
    let counts: Vec<i32> = begins.windows(2).map(|pair| pair[1] - pair[0]).collect();
    let mut all = vec![0.0; begins[size] as usize];
    // The address of no numbers can be one that means something to MPI.
    let room = [mine, &[0.0]].concat();
    let mut parts = PartitionMut::new(&mut all[..], counts, &begins[..size]);
    ranks.communicator().all_gather_varcount_into(&room[..mine.len()], &mut parts);
    let mut sums = vec![0.0; len];
    for block in all.chunks_exact(len) {
        sums.iter_mut().zip(block).for_each(|(sum, part)| *sum += part);
    }
    sums
}
