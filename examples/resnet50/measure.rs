//! One layer: its tensors, what its operations take, and how exact their results are.

use std::time::Duration;

use batchnorm::{Error, Gradients, Params, Shape, Tensor, Welford, reference};
use rayon::prelude::*;

use crate::plain_loops::{Operation, PlainLoops, Times, times};

/// What was measured of an operation on a shape.
#[derive(Debug, Clone, Copy)]
pub struct Measured {
    pub times: Times,
    /// What plain loops take over the bytes that it cannot do without.
    pub loops: Times,
    /// The largest error in units of what C1 measures it by: see `Layer::error`.
    pub error: f64,
}

/// The operations shown, with the largest error that the crate promises.
pub const OPERATIONS: [(Operation, f64); 3] = [
    (Operation::Training, 1.0 / (1 << 21) as f64),
    (Operation::Inference, 1.0 / (1 << 21) as f64),
    (Operation::Backward, 1.0 / (1 << 20) as f64),
];

const EPS: f64 = 1e-5;

/// A layer with its input and the gradient of its output.
pub struct Layer {
    shape: Shape,
    x: Tensor<f32>,
    dy: Tensor<f32>,
    /// y, or dx.
    output: Tensor<f32>,
    gamma: Vec<f32>,
    beta: Vec<f32>,
    mean: Vec<f32>,
    var: Vec<f32>,
    dgamma: Vec<f32>,
    dbeta: Vec<f32>,
    states: Vec<Welford>,
}

/// Numbers as a hash of their index has them, of mean 0 and standard deviation about 1.
fn noise(index: usize, seed: u64) -> f32 {
    let mut bits = (index as u64 ^ seed << 48).wrapping_add(0x9e37_79b9_7f4a_7c15);
    bits = (bits ^ bits >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    bits = (bits ^ bits >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
    // Four even ones make a bell.
    let evens = (0..4).map(|k| ((bits >> (16 * k)) & 0xffff) as f32 / 65536.0 - 0.5);
    evens.sum::<f32>() * 3f32.sqrt()
}

impl Layer {
    /// A layer whose channels have means from -3 to 3 and standard deviations from 1/2 to 2.
    pub fn new(shape: Shape) -> Result<Self, Error> {
        let channels = shape.channels();
        let per_channel = |seed, low: f32, high: f32| -> Vec<f32> {
            let even = |c| (noise(c, seed).clamp(-2.0, 2.0) + 2.0) / 4.0;
            (0..channels).map(|c| low + (high - low) * even(c)).collect()
        };
        let (shift, scale) = (per_channel(1, -3.0, 3.0), per_channel(2, 0.5, 2.0));
        // Which channel an offset is of: planes of `run` elements follow each other.
        let run = shape.offset(0, 1, 0);
        let x = Tensor::from_fn(shape, |i| {
            let c = i / run % channels;
            noise(i, 3) * scale[c] + shift[c]
        });
        let mut layer = Self {
            shape,
            x,
            dy: Tensor::from_fn(shape, |i| noise(i, 4)),
            output: Tensor::zeros(shape),
            gamma: per_channel(5, 0.5, 1.5),
            beta: per_channel(6, -1.0, 1.0),
            mean: Vec::new(),
            var: Vec::new(),
            dgamma: vec![0.0; channels],
            dbeta: vec![0.0; channels],
            states: vec![Welford::new(); channels],
        };
        batchnorm::statistics(&shape, &layer.x, &mut layer.states)?;
        layer.mean = layer.states.iter().map(|state| state.mean() as f32).collect();
        layer.var = layer.states.iter().map(|state| state.variance() as f32).collect();
        Ok(layer)
    }

    /// Times an operation next to plain loops for `time` in all, then checks its result.
    pub fn measure(&mut self, operation: Operation, time: Duration) -> Result<Measured, Error> {
        self.run(operation)?;
        let error = self.error(operation);
        let ways = PlainLoops::ways::<f32>(operation, &self.shape);
        let mut result = Ok(());
        let all = times(time, 1 + ways.len(), |candidate| match candidate {
            0 => result = self.run(operation),
            way => ways[way - 1].run(&self.x, &self.dy, &mut self.output),
        });
        result?;
        let loops = &all[1..];
        Ok(Measured { times: all[0], loops: loops[Times::fastest(loops)], error })
    }

    fn run(&mut self, operation: Operation) -> Result<(), Error> {
        let Self { shape, x, dy, output, gamma, beta, mean, var, dgamma, dbeta, states } = self;
        let params = Params::new(EPS).gamma(gamma).beta(beta);
        match operation {
            Operation::Statistics => batchnorm::statistics(shape, x, states),
            Operation::Training => batchnorm::forward_training(shape, x, &params, output, states),
            Operation::Inference => batchnorm::forward_inference(shape, x, mean, var, &params, output),
            Operation::Backward => {
                let gradients = Gradients::new().dx(output).dgamma(dgamma).dbeta(dbeta);
                batchnorm::backward(shape, x, dy, states, &params, gradients)
            }
        }
    }

    /// The largest error of the operation's output just computed, against the reference in f64 on the full tensor: of y
    /// in units of |gamma * xhat| + |beta|, of dx in units of
    /// |gamma| * invstd * (|dy| + |mean dy| + |xhat * mean(dy * xhat)|).
    fn error(&self, operation: Operation) -> f64 {
        let channels = (0..self.shape.channels()).into_par_iter();
        // A NaN is the largest error there is.
        let larger = |a: f64, b: f64| if a >= b { a } else { b };
        channels.map(|c| self.error_of_channel(operation, c)).reduce(|| 0.0, larger)
    }

    fn error_of_channel(&self, operation: Operation, channel: usize) -> f64 {
        let one = Shape::nchw(&[self.shape.batch(), 1, self.shape.spatial()]).expect("a part of a shape");
        let gather = |tensor: &[f32]| -> Vec<f64> {
            let samples = 0..self.shape.batch();
            let offsets = samples
                .flat_map(|n| (0..self.shape.spatial()).map(move |s| self.shape.offset(n, channel, s)));
            offsets.map(|offset| f64::from(tensor[offset])).collect()
        };
        let x = gather(&self.x);
        let (gamma, beta) = ([f64::from(self.gamma[channel])], [f64::from(self.beta[channel])]);
        let params = Params::new(EPS).gamma(&gamma).beta(&beta);
        let mut exact = vec![0.0; x.len()];
        // What an error at an element is measured by.
        let units: Vec<f64> = match operation {
            Operation::Statistics => return 0.0,
            Operation::Training | Operation::Inference => {
                if operation == Operation::Training {
                    reference::forward_training(&one, &x, &params, &mut exact);
                } else {
                    let given = [f64::from(self.mean[channel]), f64::from(self.var[channel])];
                    reference::forward_inference(&one, &x, &given[..1], &given[1..], &params, &mut exact);
                }
                exact.iter().map(|y| (y - beta[0]).abs() + beta[0].abs()).collect()
            }
            Operation::Backward => {
                let dy = gather(&self.dy);
                let statistics = reference::statistics(&one, &x);
                let (mut dgamma, mut dbeta) = ([0.0], [0.0]);
                let gradients = Gradients::new().dx(&mut exact).dgamma(&mut dgamma).dbeta(&mut dbeta);
                reference::backward(&one, &x, &dy, &statistics, &params, gradients);
                let reference::MeanVar { mean, var } = statistics[0];
                let invstd = 1.0 / (var + EPS).sqrt();
                let m = x.len() as f64;
                let unit = |(x, dy): (&f64, &f64)| {
                    let through = (dbeta[0] / m).abs() + ((x - mean) * invstd * dgamma[0] / m).abs();
                    gamma[0].abs() * invstd * (dy.abs() + through)
                };
                x.iter().zip(&dy).map(unit).collect()
            }
        };
        let output = gather(&self.output);
        let errors = output.iter().zip(&exact).map(|(output, exact)| (output - exact).abs());
        // Nothing where both are equal, even where the unit is 0.
        let in_units = errors.zip(units).map(|(error, unit)| if error == 0.0 { 0.0 } else { error / unit });
        in_units.fold(0.0, |a, b| if a >= b { a } else { b })
    }
}
