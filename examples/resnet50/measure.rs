//! One layer: its tensors, what its operations take, and how exact their results are.

use std::time::Duration;

use aligned_vec::{AVec, ConstAlign};
use batchnorm::{
    Activation, Backward, Error, Gradients, Inference, Params, Shape, Training, Welford, reference,
};
use rayon::prelude::*;

use crate::number::{CHUNK, Number};
use crate::plain_loops::{Form, Operation, PlainLoops, Times, times};
use crate::shapes::Epilogue;

/// What was measured of an operation on a shape.
#[derive(Debug, Clone, Copy)]
pub struct Measured {
    pub times: Times,
    /// What plain loops take over the bytes that it cannot do without.
    pub loops: Times,
    /// The largest error in units of what C1 measures it by: see `Layer::error`.
    pub error: f64,
    /// The same in separate calls, if anything follows the operation.
    pub apart: Option<Apart>,
}

impl Measured {
    /// What separate calls take; of the operation alone there is but one.
    pub fn apart_seconds(&self) -> f64 {
        self.apart.map_or(self.times.median, |apart| apart.times.median)
    }
}

/// What separate calls take and give.
#[derive(Debug, Clone, Copy)]
pub struct Apart {
    pub times: Times,
    /// Whether the one call has their bits: those of f32, rounded once.
    pub same: bool,
}

/// One way of doing an operation and what follows it.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Way {
    /// In one call; backward finds u anew if there is no residual.
    Fused,
    /// In one call, backward by the mask.
    ByMask,
    /// In separate calls.
    Apart,
    /// The operation without what follows.
    Bare,
    /// Plain loops over the same bytes.
    Loops(PlainLoops),
}

/// The operations shown, with the largest error that the crate promises.
pub const OPERATIONS: [(Operation, f64); 3] = [
    (Operation::Training, 1.0 / (1 << 21) as f64),
    (Operation::Inference, 1.0 / (1 << 21) as f64),
    (Operation::Backward, 1.0 / (1 << 20) as f64),
];

const EPS: f64 = 1e-5;

/// As `batchnorm::Tensor`, which is of f32 and f64 alone.
type Tensor<S> = AVec<S, ConstAlign<64>>;

/// A layer with its input, the gradient of its output, and what follows it.
pub struct Layer<S: Number> {
    shape: Shape,
    epilogue: Epilogue,
    x: Tensor<S>,
    dy: Tensor<S>,
    /// The residual, where there is one.
    z: Tensor<S>,
    /// What training gave: backward in separate calls takes it.
    y: Tensor<S>,
    /// The same in bits.
    mask: Vec<u64>,
    /// y, or dx.
    output: Tensor<S>,
    /// What the activation's own backward gives.
    dz: Tensor<S>,
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

impl<S: Number> Layer<S> {
    /// A layer whose channels have means from -3 to 3 and standard deviations from 1/2 to 2, of numbers `of` those.
    pub fn new(shape: Shape, epilogue: Epilogue, of: impl Fn(f32) -> S) -> Result<Self, Error> {
        let channels = shape.channels();
        let per_channel = |seed, low: f32, high: f32| -> Vec<f32> {
            let even = |c| (noise(c, seed).clamp(-2.0, 2.0) + 2.0) / 4.0;
            (0..channels).map(|c| low + (high - low) * even(c)).collect()
        };
        let (shift, scale) = (per_channel(1, -3.0, 3.0), per_channel(2, 0.5, 2.0));
        // Which channel an offset is of: planes of `run` elements follow each other.
        let run = shape.offset(0, 1, 0);
        let tensor =
            |value: &dyn Fn(usize) -> f32| Tensor::from_iter(64, (0..shape.len()).map(|i| of(value(i))));
        let x = tensor(&|i| {
            let c = i / run % channels;
            noise(i, 3) * scale[c] + shift[c]
        });
        let zeros = || tensor(&|_| 0.0);
        let mut layer = Self {
            shape,
            epilogue,
            x,
            dy: tensor(&|i| noise(i, 4)),
            z: tensor(&|i| if epilogue == Epilogue::AddRelu { noise(i, 7) } else { 0.0 }),
            y: zeros(),
            mask: vec![0; shape.mask_len()],
            output: zeros(),
            dz: zeros(),
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
        layer.run(Operation::Training, Way::ByMask)?;
        layer.y.copy_from_slice(&layer.output);
        Ok(layer)
    }

    /// Checks the operation's result, and with what follows it against the same on f32 in separate calls; then times it next to
    /// plain loops for `time` in all.
    pub fn measure(
        &mut self,
        operation: Operation,
        time: Duration,
        widened: Option<&mut Layer<f32>>,
    ) -> Result<Measured, Error> {
        let form = Form { operation, epilogue: self.epilogue };
        self.run(operation, Way::Bare)?;
        let error = self.error(operation);
        let mut ways = vec![Way::Fused];
        if form == (Form { operation: Operation::Backward, epilogue: Epilogue::Relu }) {
            ways.push(Way::ByMask);
        }
        let fused = ways.len();
        let mut same = true;
        if let Some(widened) = widened {
            widened.run(operation, Way::Apart)?;
            for &way in &ways {
                self.run(operation, way)?;
                same &= rounded(&widened.output, &self.output);
                // One call writes the gradient of a residual alone.
                same &= operation != Operation::Backward || !form.adds() || rounded(&widened.dz, &self.dz);
            }
            ways.push(Way::Apart);
        }
        let loops = ways.len();
        ways.extend(PlainLoops::ways::<S>(form, &self.shape).into_iter().map(Way::Loops));
        let mut result = Ok(());
        let all = times(time, ways.len(), |candidate| {
            if let Err(error) = self.run(operation, ways[candidate]) {
                result = Err(error);
            }
        });
        result?;
        let fastest = |times: &[Times]| times[Times::fastest(times)];
        Ok(Measured {
            times: fastest(&all[..fused]),
            loops: fastest(&all[loops..]),
            error,
            apart: (loops > fused).then(|| Apart { times: all[fused], same }),
        })
    }

    fn run(&mut self, operation: Operation, way: Way) -> Result<(), Error> {
        let Self { shape, epilogue, x, dy, z, y, mask, output, dz, .. } = self;
        let Self { gamma, beta, mean, var, dgamma, dbeta, states, .. } = self;
        let one_call = matches!(way, Way::Fused | Way::ByMask);
        let adds = one_call && *epilogue == Epilogue::AddRelu;
        let activates = one_call && *epilogue != Epilogue::Nothing;
        let by_mask = adds || activates && way == Way::ByMask;
        let activation = if activates { Activation::Relu } else { Activation::Identity };
        let params = Params::new(EPS).gamma(gamma).beta(beta).activation(activation);
        if let Way::Loops(loops) = way {
            loops.run([x, dy], [output, dz]);
            return Ok(());
        }
        match operation {
            Operation::Statistics => batchnorm::statistics(shape, x, states)?,
            Operation::Training => {
                let mut call = Training::new(shape, params).x(x).y(output).states(states);
                if adds {
                    call = call.residual(z);
                }
                if by_mask {
                    call = call.mask(mask);
                }
                call.run()?;
            }
            Operation::Inference => {
                let mut call = Inference::new(shape, params).x(x).y(output).frozen(mean, var);
                if adds {
                    call = call.residual(z);
                }
                call.run()?;
            }
            Operation::Backward => {
                let mut dy: &[S] = dy;
                let mut gradients = Gradients::new().dx(output).dgamma(dgamma).dbeta(dbeta);
                if adds {
                    gradients = gradients.dz(dz);
                } else if way == Way::Apart {
                    relu_backward(y, dy, dz);
                    dy = dz;
                }
                let mut call = Backward::new(shape, params).x(x).dy(dy).states(states);
                if by_mask {
                    call = call.mask(mask);
                }
                call.gradients(gradients).run()?;
            }
        }
        if way == Way::Apart && operation != Operation::Backward {
            if *epilogue == Epilogue::AddRelu {
                S::add(shape, z, output)?;
            }
            relu(output);
        }
        Ok(())
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
        let gather = |tensor: &[S]| -> Vec<S> {
            let samples = 0..self.shape.batch();
            let offsets = samples
                .flat_map(|n| (0..self.shape.spatial()).map(move |s| self.shape.offset(n, channel, s)));
            offsets.map(|offset| tensor[offset]).collect()
        };
        let widen = |value: &S| f64::from(value.widened());
        let widened = |tensor: &[S]| -> Vec<f64> { gather(tensor).iter().map(widen).collect() };
        let x = widened(&self.x);
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
                let dy = widened(&self.dy);
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
        // What one rounding of the result in f32 to 16 bits may change is no error.
        let errors = output
            .iter()
            .zip(&exact)
            .map(|(output, exact)| (widen(output) - exact).abs() - output.rounding());
        // Nothing where both are equal, even where the unit is 0.
        let in_units = errors.zip(units).map(|(error, unit)| if error <= 0.0 { 0.0 } else { error / unit });
        in_units.fold(0.0, |a, b| if a >= b { a } else { b })
    }
}

/// Whether each number is the f32 rounded once, to the bit.
fn rounded<S: Number>(exact: &[f32], numbers: &[S]) -> bool {
    let same = |(&exact, number): (&f32, &S)| S::of(exact).widened().to_bits() == number.widened().to_bits();
    exact.par_iter().zip(numbers).all(same)
}

/// y = max(y, 0), on all threads.
fn relu<S: Number>(y: &mut [S]) {
    let zero = S::default();
    y.par_chunks_mut(CHUNK).for_each(|y| y.iter_mut().for_each(|y| *y = if *y < zero { zero } else { *y }));
}

/// g = dy where y > 0, on all threads.
fn relu_backward<S: Number>(y: &[S], dy: &[S], g: &mut [S]) {
    let zero = S::default();
    let chunks = g.par_chunks_mut(CHUNK).zip(y.par_chunks(CHUNK).zip(dy.par_chunks(CHUNK)));
    chunks.for_each(|(g, (y, dy))| {
        let inputs = y.iter().zip(dy);
        g.iter_mut().zip(inputs).for_each(|(g, (&y, &dy))| *g = if y <= zero { zero } else { dy });
    });
}
