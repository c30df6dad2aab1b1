//! Statistics belong to samples, and a channel's bits to it alone.

use batchnorm::{
    Activation, Backward, Error, Gradients, Inference, Layout, Params, PartialGradients, PartialStatistics,
    Scalar, Shape, Storage, Training, Welford,
};
use rand::RngExt;
use rand::seq::SliceRandom;

use crate::common::matrix::{Bits, few_configurations};

/// What a channel gets.
#[derive(Debug, PartialEq, Clone)]
struct Channel {
    state: Welford,
    numbers: Vec<u64>,
}

/// From -0.5 to 0.5.
fn noise(i: usize) -> f64 {
    (i.wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 41) as f64 / (1u64 << 23) as f64 - 0.5
}

/// All results, channel by channel, of some of a tensor's channels.
fn channels_of<T: Bits>(layout: Layout, [n, c, s]: [usize; 3], chosen: &[usize]) -> Vec<Channel> {
    let all = Shape::new(Layout::Nchw, n, c, &[s]).unwrap();
    let shape = Shape::new(layout, n, chosen.len(), &[s]).unwrap();
    let value = |seed: usize, sample: usize, channel: usize, position: usize| {
        let value = noise(all.offset(sample, channel, position) * 2 + seed);
        T::from_f64(if channel % 5 == 2 { value + 300.0 } else { value })
    };
    let each = || {
        (0..n)
            .flat_map(move |sample| (0..chosen.len()).flat_map(move |i| (0..s).map(move |p| (sample, i, p))))
    };
    let tensor = |seed| {
        let mut tensor = vec![T::from_f64(0.0); shape.len()];
        each().for_each(|(sample, i, p)| {
            tensor[shape.offset(sample, i, p)] = value(seed, sample, chosen[i], p)
        });
        tensor
    };
    let (x, dy) = (tensor(0), tensor(1));
    let gamma: Vec<T> = chosen.iter().map(|channel| T::from_f64(1.5 - *channel as f64 / 8.0)).collect();
    let params = Params::new(1e-5).gamma(&gamma);
    let zeros = || vec![T::from_f64(0.0); shape.len()];
    let (mut y, mut dx, mut states) = (zeros(), zeros(), vec![Welford::new(); chosen.len()]);
    let [mut dgamma, mut dbeta] = [gamma.clone(), gamma.clone()];
    Training::new(&shape, params).x(&x).y(&mut y).states(&mut states).run().unwrap();
    let gradients = Gradients::new().dx(&mut dx).dgamma(&mut dgamma).dbeta(&mut dbeta);
    Backward::new(&shape, params).x(&x).dy(&dy).states(&states).gradients(gradients).run().unwrap();
    let mut results: Vec<_> = (0..chosen.len())
        .map(|i| Channel { state: states[i], numbers: vec![dgamma[i].bits(), dbeta[i].bits()] })
        .collect();
    for (sample, i, p) in each() {
        let at = shape.offset(sample, i, p);
        results[i].numbers.extend([y[at].bits(), dx[at].bits()]);
    }
    results
}

/// Not those of how many there are beside it, nor of which of them.
#[test]
fn a_channel_has_its_own_bits() {
    fn alone<T: Bits>() {
        for [n, c, s] in [
            [1, 70, 1],
            [600, 67, 1],
            [3000, 5, 1],
            [300, 6, 2],
            [50, 70, 9],
            [40, 6, 18],
            [1, 6, 49],
            [33, 67, 49],
            [35, 5, 64],
            [9, 66, 65],
            [5, 7, 196],
            [5, 3, 5000],
        ] {
            let all: Vec<_> = (0..c).collect();
            let expected = channels_of::<T>(Layout::Nchw, [n, c, s], &all);
            for layout in [Layout::Nchw, Layout::Nhwc] {
                let few = [&[0][..], &[2], &[c - 1], &[1, 2], &[4, 0, 2], &all[1..]];
                for chosen in few.into_iter().filter(|few| few.iter().all(|channel| *channel < c)) {
                    let got = channels_of::<T>(layout, [n, c, s], chosen);
                    for (i, channel) in chosen.iter().enumerate() {
                        let same = got[i] == expected[*channel];
                        assert!(same, "{n}x{c}x{s} {layout:?}: {channel} of {} channels", chosen.len());
                    }
                }
            }
        }
    }
    alone::<f32>();
    alone::<f64>();
}

/// Tensors of a batch and what the whole of it gets.
struct Whole<S: Storage> {
    shape: Shape,
    x: Vec<S>,
    dy: Vec<S>,
    z: Vec<S>,
    gamma: Vec<S::Arithmetic>,
    activation: Activation,
    residual: bool,
    weights: Option<Vec<f64>>,
    y: Vec<S>,
    states: Vec<Welford>,
    dx: Vec<S>,
    dz: Vec<S>,
    per_channel: [Vec<S::Arithmetic>; 4],
}

impl<S: Storage + Stored> Whole<S>
where
    S::Arithmetic: Bits,
{
    fn new(
        layout: Layout,
        [n, c, s]: [usize; 3],
        (activation, residual): (Activation, bool),
        weights: Option<Vec<f64>>,
    ) -> Self {
        let shape = Shape::new(layout, n, c, &[s]).unwrap();
        let tensor = |seed: usize| -> Vec<S> {
            let mut tensor = vec![S::default(); shape.len()];
            for sample in 0..n {
                for channel in 0..c {
                    for position in 0..s {
                        let value = noise(((sample * 1_000_003 + channel) * 1_000_003 + position) * 4 + seed);
                        let value = if seed == 0 && channel % 5 == 2 { value + 300.0 } else { value };
                        // In some blocks, of many that are summed at once.
                        let far = seed == 0 && channel % 5 == 4 && sample / 256 % 4 == 1;
                        let value = if far { value + 300.0 } else { value };
                        let value = if channel % 7 == 3 { value * S::TINY } else { value };
                        tensor[shape.offset(sample, channel, position)] = S::of(value);
                    }
                }
            }
            tensor
        };
        let gamma: Vec<_> =
            (0..c).map(|channel| S::Arithmetic::from_f64(1.5 - channel as f64 / 8.0)).collect();
        let zeros = || vec![S::default(); shape.len()];
        let mut whole = Self {
            shape,
            x: tensor(0),
            dy: tensor(1),
            z: tensor(2),
            activation,
            residual,
            weights,
            y: zeros(),
            states: vec![Welford::new(); c],
            dx: zeros(),
            dz: zeros(),
            per_channel: [(); 4].map(|()| gamma.clone()),
            gamma,
        };
        let Self { x, dy, z, y, states, dx, dz, gamma, per_channel, weights, .. } = &mut whole;
        let params = Params::new(1e-5).gamma(gamma).activation(activation);
        let mut mask = vec![0; shape.mask_len()];
        let training = Training::new(&shape, params).x(x).y(y).states(states);
        let training = if residual { training.residual(z).mask(&mut mask) } else { training };
        let training = weights.iter().fold(training, |training, weights| training.weights(weights));
        training.run().unwrap();
        let [dgamma, dbeta, dmean, dvar] = per_channel.each_mut();
        let gradients = Gradients::new().dx(dx).dgamma(dgamma).dbeta(dbeta).dmean(dmean).dvar(dvar);
        let gradients = if residual { gradients.dz(dz) } else { gradients };
        let backward = Backward::new(&shape, params).x(x).dy(dy).states(states).gradients(gradients);
        let backward = if residual { backward.mask(&mask) } else { backward };
        let backward = weights.iter().fold(backward, |backward, weights| backward.weights(weights));
        backward.run().unwrap();
        whole
    }

    /// The same in parts that begin at these samples, joined in another order, as bytes.
    fn assert_same_in_parts(&self, cuts: &[usize], rng: &mut impl rand::Rng) {
        let what =
            format!("{} {} {} cut at {cuts:?}", self.shape, self.activation, std::any::type_name::<S>());
        let (n, each) = (self.shape.batch(), self.shape.len() / self.shape.batch().max(1));
        let bounds: Vec<_> = [&[0][..], cuts, &[n]].concat();
        let mut parts: Vec<_> = bounds.windows(2).map(|pair| (pair[0], pair[1])).collect();
        parts.shuffle(rng);
        let shape_of = |(first, end): (usize, usize)| {
            Shape::new(self.shape.layout(), end - first, self.shape.channels(), &[self.shape.spatial()])
                .unwrap()
        };
        let of = |tensor: &'_ [S], (first, end): (usize, usize)| tensor[first * each..end * each].to_vec();
        let params = Params::new(1e-5).gamma(&self.gamma).activation(self.activation);

        let mut statistics = PartialStatistics::<S::Arithmetic>::new(self.shape.channels());
        let weights_of =
            |(first, end): (usize, usize)| self.weights.as_ref().map(|weights| &weights[first..end]);
        for part in &parts {
            let (shape, first, x) = (shape_of(*part), part.0 as u64, of(&self.x, *part));
            let mut one = PartialStatistics::new(shape.channels());
            match weights_of(*part) {
                Some(weights) => one.add_weighted(&shape, first, &x, weights).unwrap(),
                None => one.add(&shape, first, &x).unwrap(),
            }
            let sent = one.to_bytes().unwrap();
            statistics.join(&PartialStatistics::from_bytes(&sent).unwrap()).unwrap();
        }
        assert_eq!(statistics.samples(), n as u64);
        let states = statistics.states().unwrap();
        assert!(states == self.states, "states of {what}: {states:?}, must be {:?}", self.states);

        let (mut masks, mut sums) =
            (Vec::new(), PartialGradients::<S::Arithmetic>::new(self.shape.channels()));
        for part in &parts {
            let shape = shape_of(*part);
            let [x, dy, z] = [&self.x, &self.dy, &self.z].map(|tensor| of(tensor, *part));
            let (mut y, mut mask) = (x.clone(), vec![0; shape.mask_len()]);
            let map = Inference::new(&shape, params).x(&x).y(&mut y).states(&states);
            let map = if self.residual { map.residual(&z).mask(&mut mask) } else { map };
            map.run().unwrap();
            assert!(y == of(&self.y, *part), "y of {what}");
            let backward = Backward::new(&shape, params).x(&x).dy(&dy).states(&states);
            let backward = if self.residual { backward.mask(&mask) } else { backward };
            let backward = weights_of(*part).into_iter().fold(backward, Backward::weights);
            let one = backward.part(part.0 as u64).unwrap();
            sums.join(&PartialGradients::from_bytes(&one.to_bytes().unwrap()).unwrap()).unwrap();
            masks.push(mask);
        }
        for (part, mask) in parts.iter().zip(&masks) {
            let shape = shape_of(*part);
            let [x, dy] = [&self.x, &self.dy].map(|tensor| of(tensor, *part));
            let (mut dx, mut dz) = (x.clone(), x.clone());
            let mut per_channel =
                self.per_channel.clone().map(|values| vec![S::Arithmetic::from_f64(7.0); values.len()]);
            let [dgamma, dbeta, dmean, dvar] = per_channel.each_mut();
            let gradients = Gradients::new().dx(&mut dx).dgamma(dgamma).dbeta(dbeta).dmean(dmean).dvar(dvar);
            let gradients = if self.residual { gradients.dz(&mut dz) } else { gradients };
            let backward = Backward::new(&shape, params).x(&x).dy(&dy).states(&states).gradients(gradients);
            let backward = if self.residual { backward.mask(mask) } else { backward };
            backward.sums(&sums).run().unwrap();
            assert!(dx == of(&self.dx, *part), "dx of {what}");
            assert!(!self.residual || dz == of(&self.dz, *part), "dz of {what}");
            assert!(per_channel == self.per_channel, "gradients per channel of {what}");
        }
    }
}

/// What tests make of numbers.
trait Stored {
    /// A scale of which squares are out of the ordinary.
    const TINY: f64;
    fn of(value: f64) -> Self;
}
impl Stored for f32 {
    const TINY: f64 = 1e-30;
    fn of(value: f64) -> Self {
        value as f32
    }
}
impl Stored for f64 {
    const TINY: f64 = 1e-200;
    fn of(value: f64) -> Self {
        value
    }
}
#[cfg(feature = "half")]
impl Stored for half::bf16 {
    const TINY: f64 = 1e-30;
    fn of(value: f64) -> Self {
        Self::from_f64(value)
    }
}

const SPLIT: [[usize; 3]; 12] = [
    [1, 3, 9],
    [4, 5, 784],
    [9, 70, 49],
    [100, 3, 49],
    [77, 5, 64],
    [37, 4, 196],
    [700, 6, 1],
    [2600, 1, 1],
    [4100, 5, 1],
    [300, 2, 16],
    [600, 3, 2],
    [5, 3, 5000],
];

/// Wherever a batch is split, at multiples of the granularity, and in whatever order parts come: each gets what it gets in one call over
/// the whole.
#[test]
fn parts_have_the_bits_of_the_whole() {
    fn splits<S: Storage + Stored>(weighted: bool)
    where
        S::Arithmetic: Bits,
    {
        let mut rng = crate::common::data::rng(24);
        for (i, [n, c, s]) in SPLIT.into_iter().enumerate() {
            for layout in [Layout::Nchw, Layout::Nhwc] {
                let forms = [
                    (Activation::Identity, false),
                    (Activation::Relu, true),
                    (Activation::Silu, false),
                    (Activation::Relu, false),
                ];
                let weights = |weighted: bool| {
                    weighted
                        .then(|| (0..n).map(|i| if i % 5 == 3 { 0.0 } else { noise(i + 7) + 0.6 }).collect())
                };
                let whole = Whole::<S>::new(layout, [n, c, s], forms[i % 4], weights(weighted));
                // Of samples with weights each is a block.
                let granularity = if weighted { 1 } else { whole.shape.granularity() };
                let most = n.div_ceil(granularity);
                for (times, configuration) in few_configurations().into_iter().enumerate() {
                    // Twice the same cut is an empty part.
                    let mut cuts: Vec<_> =
                        (0..times % 6).map(|_| (rng.random_range(0..=most) * granularity).min(n)).collect();
                    cuts.sort_unstable();
                    configuration.run(|| whole.assert_same_in_parts(&cuts, &mut rng));
                }
                let step = granularity * if weighted { 7 } else { 1 };
                let all: Vec<_> = (1..n.div_ceil(step)).map(|i| i * step).collect();
                whole.assert_same_in_parts(&all, &mut rng);
            }
        }
    }
    for weighted in [false, true] {
        splits::<f32>(weighted);
        splits::<f64>(weighted);
        #[cfg(feature = "half")]
        splits::<half::bf16>(weighted);
    }
}

/// Elsewhere it is right within the accuracy that is promised, and does not depend on the order in which parts come.
#[test]
fn any_split_is_right() {
    let mut rng = crate::common::data::rng(25);
    for [n, c, s] in SPLIT {
        let whole = Whole::<f32>::new(Layout::Nchw, [n, c, s], (Activation::Identity, false), None);
        let each = whole.shape.len() / n;
        let mut cuts: Vec<_> = (0..5).map(|_| rng.random_range(0..=n)).collect();
        cuts.extend([0, n]);
        cuts.sort_unstable();
        let mut parts: Vec<_> = cuts.windows(2).map(|pair| (pair[0], pair[1])).collect();
        let mut before = None;
        for _ in 0..4 {
            parts.shuffle(&mut rng);
            let mut statistics = PartialStatistics::<f32>::new(whole.shape.channels());
            for (first, end) in &parts {
                let shape = Shape::nchw(&[end - first, c, s]).unwrap();
                statistics.add(&shape, *first as u64, &whole.x[first * each..end * each]).unwrap();
            }
            let states = statistics.states().unwrap();
            for (state, expected) in states.iter().zip(&whole.states) {
                assert_eq!(state.count(), expected.count());
                let std = expected.variance().sqrt();
                assert!((state.mean() - expected.mean()).abs() <= std * f64::from(f32::EPSILON) / 4.0);
                let off = (state.variance() / expected.variance() - 1.0).abs();
                assert!(off <= 2.0 * f64::from(f32::EPSILON), "{n}x{c}x{s} {parts:?}: {off}");
            }
            assert!(before.is_none_or(|before| before == states), "{n}x{c}x{s} {parts:?}");
            before = Some(states);
        }
    }
}

/// Bytes that were cut, damaged or made up are refused, and panic nowhere.
#[test]
fn bytes_are_not_trusted() {
    let shape = Shape::nchw(&[40, 3, 49]).unwrap();
    let x: Vec<f32> = (0..shape.len()).map(|i| noise(i) as f32).collect();
    let mut weighted = PartialStatistics::new(3);
    weighted.add_weighted(&shape, 7, &x, &[0.3; 40]).unwrap();
    for statistics in [PartialStatistics::of(&shape, 7, &x).unwrap(), weighted] {
        damaged_bytes_are_refused(statistics);
    }
}

fn damaged_bytes_are_refused(statistics: PartialStatistics<f32>) {
    let bytes = statistics.to_bytes().unwrap();
    let read = |bytes: &[u8]| PartialStatistics::<f32>::from_bytes(bytes);
    assert_eq!(read(&bytes), Ok(statistics));
    for len in 0..bytes.len() {
        assert!(matches!(read(&bytes[..len]), Err(Error::Bytes { .. })), "{len}");
    }
    for bit in 0..bytes.len() * 8 {
        let mut damaged = bytes.clone();
        damaged[bit / 8] ^= 1 << (bit % 8);
        assert!(matches!(read(&damaged), Err(Error::Bytes { .. })), "{bit}");
    }
    assert!(matches!(PartialStatistics::<f64>::from_bytes(&bytes), Err(Error::Bytes { .. })));
    assert!(matches!(PartialGradients::<f32>::from_bytes(&bytes), Err(Error::Bytes { .. })));
}
