//! A problem, and its results by one process or by the part of one rank.

use std::cell::RefCell;
use std::ops::Range;

use batchnorm::{
    Activation, Backward, BatchNorm, Error, Gradients, Mode, Params, RunningUpdate, RunningVariance, Shape,
    Storage, Training, UpdateRule, Welford, update_running,
};
use batchnorm_mpi::{Part, Ranks, SyncBatchNorm};
use mpi::traits::Communicator;

/// What problems are made of, and results become.
pub trait Number: Copy + Default {
    fn of(value: f64) -> Self;
    fn put(self, bytes: &mut Vec<u8>);
}

macro_rules! numbers {
    ($($number:ty, $of:expr;)*) => {$(
        impl Number for $number {
            fn of(value: f64) -> Self {
                $of(value)
            }
            fn put(self, bytes: &mut Vec<u8>) {
                bytes.extend(self.to_le_bytes());
            }
        }
    )*};
}
numbers! {
    f32, |value| value as f32;
    f64, |value| value;
    half::bf16, half::bf16::from_f64;
}

fn bytes_of<N: Number>(slices: &[&[N]]) -> Vec<u8> {
    let mut bytes = Vec::new();
    slices.iter().copied().flatten().for_each(|number| number.put(&mut bytes));
    bytes
}

/// As bytes: y, dx and dz of some samples; dgamma, dbeta and running statistics.
pub struct Results {
    pub tensors: [Vec<u8>; 3],
    pub per_channel: Vec<u8>,
}

pub struct Problem<S: Storage> {
    pub shape: Shape,
    x: Vec<S>,
    z: Vec<S>,
    dy: Vec<S>,
    gamma: Vec<S::Arithmetic>,
    beta: Vec<S::Arithmetic>,
    activation: Activation,
    residual: bool,
    /// Of samples.
    weights: Option<Vec<f64>>,
}

/// From -0.5 to 0.5.
fn noise(i: usize) -> f64 {
    (i.wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 41) as f64 / (1u64 << 23) as f64 - 0.5
}

impl<S: Storage + Number> Problem<S>
where
    S::Arithmetic: Number,
{
    pub fn new(
        layout: batchnorm::Layout,
        [n, c, s]: [usize; 3],
        (activation, residual): (Activation, bool),
        weighted: bool,
    ) -> Result<Self, Error> {
        let shape = Shape::new(layout, n, c, &[s])?;
        let tensor = |seed: usize| {
            let mut tensor = vec![S::default(); shape.len()];
            for (sample, channel) in (0..n).flat_map(|sample| (0..c).map(move |channel| (sample, channel))) {
                for position in 0..s {
                    let value = noise(((sample * 1_000_003 + channel) * 1_000_003 + position) * 4 + seed);
                    // Channels far from 0 beside those around it.
                    let value = if seed == 0 && channel % 5 == 2 { value + 300.0 } else { value };
                    tensor[shape.offset(sample, channel, position)] = S::of(value);
                }
            }
            tensor
        };
        let per_channel = |seed| (0..c).map(|channel| Number::of(noise(channel * 7 + seed) + 0.75)).collect();
        let (x, z, dy, gamma, beta) = (tensor(0), tensor(1), tensor(2), per_channel(3), per_channel(4));
        // Some of 0, and sums that are rounded.
        let weight = |sample| if sample % 5 == 3 { 0.0 } else { noise(sample * 11 + 5) + 0.6 };
        let weights = weighted.then(|| (0..n).map(weight).collect());
        Ok(Self { shape, x, z, dy, gamma, beta, activation, residual, weights })
    }

    fn params(&self) -> Params<'_, S::Arithmetic> {
        Params::new(1e-5).gamma(&self.gamma).beta(&self.beta).activation(self.activation)
    }

    /// By one process.
    pub fn plain(&self) -> Result<Results, Error> {
        self.operations(0..self.shape.batch(), |training| training.run(), |backward| backward.run())
    }

    /// Samples of it, of which the other ranks have the others, by the builders.
    pub fn builders<C: Communicator>(
        &self,
        samples: Range<usize>,
        ranks: &mut Ranks<'_, C>,
    ) -> Result<Results, Error> {
        let first = samples.start as u64;
        let ranks = RefCell::new(ranks);
        self.operations(
            samples,
            |training| training.run_among(first, &mut **ranks.borrow_mut()),
            |backward| backward.run_among(first, &mut **ranks.borrow_mut()),
        )
    }

    fn operations(
        &self,
        samples: Range<usize>,
        run: impl FnOnce(Training<'_, S>) -> Result<(), Error>,
        back: impl FnOnce(Backward<'_, S>) -> Result<(), Error>,
    ) -> Result<Results, Error> {
        let weights = self.weights_of(&samples);
        let (shape, [x, z, dy]) = self.part(samples)?;
        let channels = shape.channels();
        let [mut y, mut dx, mut dz] = [(); 3].map(|()| vec![S::default(); shape.len()]);
        let (mut states, mut mask) = (vec![Welford::new(); channels], vec![0; shape.mask_len()]);
        let training = Training::new(&shape, self.params()).x(x).y(&mut y).states(&mut states);
        let training = weights.into_iter().fold(training, Training::weights);
        run(if self.residual { training.residual(z).mask(&mut mask) } else { training })?;

        let [mut dgamma, mut dbeta, mut mean] = [(); 3].map(|()| vec![S::Arithmetic::of(0.0); channels]);
        let mut var = vec![S::Arithmetic::of(1.0); channels];
        let gradients = Gradients::new().dx(&mut dx).dgamma(&mut dgamma).dbeta(&mut dbeta);
        let gradients = if self.residual { gradients.dz(&mut dz) } else { gradients };
        let backward = Backward::new(&shape, self.params()).x(x).dy(dy).states(&states).gradients(gradients);
        let backward = weights.into_iter().fold(backward, Backward::weights);
        back(if self.residual { backward.mask(&mask) } else { backward })?;

        // A new layer's.
        let rule = UpdateRule::Momentum(0.1);
        let update = RunningUpdate { rule, variance: RunningVariance::Unbiased };
        update_running(update, 0, &states, &mut mean, &mut var)?;
        Ok(Results {
            tensors: [y, dx, dz].map(|tensor| bytes_of(&[&tensor])),
            per_channel: bytes_of(&[&dgamma, &dbeta, &mean, &var]),
        })
    }

    /// The same by the layer, with the part from a scan.
    pub fn layer<C: Communicator>(
        &self,
        samples: Range<usize>,
        ranks: &mut Ranks<'_, C>,
    ) -> Result<Results, Error> {
        let (first, weights) = (samples.start as u64, self.weights_of(&samples));
        let (shape, [x, z, dy]) = self.part(samples)?;
        let mut layer = BatchNorm::new(shape.channels()).with_activation(self.activation);
        layer.gamma_mut().into_iter().for_each(|gamma| gamma.copy_from_slice(&self.gamma));
        layer.beta_mut().into_iter().for_each(|beta| beta.copy_from_slice(&self.beta));
        layer.set_weights(weights.map(<[f64]>::to_vec))?;
        let mut layer = SyncBatchNorm::from(layer);
        let [mut y, mut dx, mut dz] = [(); 3].map(|()| vec![S::default(); shape.len()]);
        let part = Part::of(ranks, shape.batch());
        assert_eq!(part.first(), first, "the scan");
        let mode = Mode::Training;
        if self.residual {
            layer.forward_with_residual(mode, &shape, x, z, &mut y, (part, ranks))?;
            layer.backward_with_residual(&shape, (x, dy), (&mut dx, &mut dz), (part, ranks))?;
        } else {
            layer.forward(mode, &shape, x, &mut y, (part, ranks))?;
            layer.backward(&shape, x, dy, &mut dx, (part, ranks))?;
        }
        let layer = layer.layer();
        Ok(Results {
            tensors: [y, dx, dz].map(|tensor| bytes_of(&[&tensor])),
            per_channel: bytes_of(&[
                layer.dgamma(),
                layer.dbeta(),
                layer.running_mean(),
                layer.running_var(),
            ]),
        })
    }

    fn weights_of(&self, samples: &Range<usize>) -> Option<&[f64]> {
        self.weights.as_ref().map(|weights| &weights[samples.clone()])
    }

    /// Some samples: their shape, x, z and dy.
    fn part(&self, samples: Range<usize>) -> Result<(Shape, [&[S]; 3]), Error> {
        let (whole, each) = (self.shape, self.shape.len() / self.shape.batch());
        let shape = Shape::new(whole.layout(), samples.len(), whole.channels(), &[whole.spatial()])?;
        let within = samples.start * each..samples.end * each;
        Ok((shape, [&self.x, &self.z, &self.dy].map(|tensor| &tensor[within.clone()])))
    }
}
