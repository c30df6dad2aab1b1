//! Parts of a batch, joined in any order, beside the whole; and bytes that say that they are such parts.

use arbitrary::Arbitrary;
use batchnorm::{
    Backward, Element, Error, Gradients, Inference, PartialGradients, PartialStatistics, Shape, Training,
    Welford,
};

use crate::shared::bounds::Contract;
use crate::shared::problem::{Problem, Run};

/// Where to split the batch, and in which order parts come.
#[derive(Debug, Clone, Arbitrary)]
pub struct Split {
    /// In multiples of the granularity.
    cuts: Vec<u8>,
    order: Vec<u8>,
    /// Of samples, over and over; none for no weights.
    weights: Vec<u16>,
}

impl Split {
    /// A weight for each sample, from 2^-60 to 2^60, mostly near 1; 0 for some.
    fn weights(&self, n: usize) -> Option<Vec<f64>> {
        let weight = |bits: &u16| {
            let (mantissa, exponent) = (f64::from(bits & 255), i32::from(bits >> 8) - 128);
            let power = if exponent.abs() <= 51 { exponent } else { exponent % 3 };
            mantissa * 2f64.powi(power)
        };
        let weights = || self.weights.iter().map(weight).cycle().take(n);
        (!self.weights.is_empty()).then(|| weights().collect())
    }
}

/// The bits of the whole, for every part.
pub fn parts<T: Contract>(problem: &Problem, run: Run, split: &Split) {
    let made = problem.make::<T>();
    let (layout, shape) = (run.layout(), made.shape(run.layout()));
    let [x, dy] = [&made.x, &made.dy].map(|tensor| made.lay_out(layout, tensor));
    let (n, c) = (shape.batch(), shape.channels());
    let each = shape.len().checked_div(n).unwrap_or(0);
    let weights = split.weights(n);
    let weights = weights.as_deref();
    // Of samples with weights each is a block.
    let granularity = if weights.is_some() { 1 } else { shape.granularity() };
    let cut = |cut: &u8| (usize::from(*cut) % (n / granularity + 1) * granularity).min(n);
    let mut cuts: Vec<_> = split.cuts.iter().take(12).map(cut).chain([0, n]).collect();
    cuts.sort_unstable();
    let mut parts: Vec<_> = cuts.windows(2).map(|pair| pair[0]..pair[1]).collect();
    for (i, other) in split.order.iter().enumerate().take(parts.len()) {
        let other = usize::from(*other) % parts.len();
        parts.swap(i, other);
    }
    let bits = |values: &[T]| values.iter().map(|value| value.bits()).collect::<Vec<_>>();
    run.configuration().run(|| {
        let (params, zeros) = (made.params(), |len| vec![T::default(); len]);
        let (mut y, mut dx, mut states) = (zeros(shape.len()), zeros(shape.len()), vec![Welford::new(); c]);
        let mut sums = [(); 2].map(|()| zeros(c));
        let training = Training::new(&shape, params).x(&x).y(&mut y).states(&mut states);
        let trained = weights.into_iter().fold(training, Training::weights).run();
        if weights.is_some_and(|weights| weights.iter().all(|weight| *weight == 0.0))
            && shape.per_channel() > 0
        {
            assert_eq!(trained, Err(Error::NoSampleWeight));
            return;
        }
        trained.unwrap();
        let [dgamma, dbeta] = sums.each_mut();
        let gradients = Gradients::new().dx(&mut dx).dgamma(dgamma).dbeta(dbeta);
        let backward = Backward::new(&shape, params).x(&x).dy(&dy).states(&states).gradients(gradients);
        weights.into_iter().fold(backward, Backward::weights).run().unwrap();

        let of = |part: &std::ops::Range<usize>| {
            let dims = [&[part.len()], &made.dims[1..]].concat();
            let shape = Shape::new(layout, dims[0], dims[1], &dims[2..]).unwrap();
            (shape, part.start * each..part.end * each)
        };
        let mut statistics = PartialStatistics::<T>::new(c);
        for part in &parts {
            let ((shape, range), first) = (of(part), part.start as u64);
            let samples = part.clone();
            let mut part = PartialStatistics::new(c);
            match weights {
                Some(weights) => part.add_weighted(&shape, first, &x[range], &weights[samples]).unwrap(),
                None => part.add(&shape, first, &x[range]).unwrap(),
            }
            statistics.join(&again(&part.to_bytes().unwrap(), PartialStatistics::from_bytes)).unwrap();
        }
        let joined = statistics.states().unwrap();
        assert_eq!(format!("{joined:?}"), format!("{states:?}"));
        let mut all = PartialGradients::<T>::new(c);
        for part in parts.iter().filter(|_| n > 0) {
            let (shape, range) = of(part);
            let backward = Backward::new(&shape, params).x(&x[range.clone()]).dy(&dy[range]).states(&joined);
            let weights = weights.map(|weights| &weights[part.clone()]);
            let backward = weights.into_iter().fold(backward, Backward::weights);
            let part = backward.part(part.start as u64).unwrap();
            all.join(&again(&part.to_bytes().unwrap(), PartialGradients::from_bytes)).unwrap();
        }
        for part in &parts {
            let (shape, range) = of(part);
            let (x, dy) = (&x[range.clone()], &dy[range.clone()]);
            let (mut part_y, mut part_dx) = (zeros(x.len()), zeros(x.len()));
            let mut part_sums = [(); 2].map(|()| zeros(c));
            let [dgamma, dbeta] = part_sums.each_mut();
            Inference::new(&shape, params).x(x).y(&mut part_y).states(&joined).run().unwrap();
            let gradients = Gradients::new().dx(&mut part_dx).dgamma(dgamma).dbeta(dbeta);
            let backward = Backward::new(&shape, params).x(x).dy(dy).states(&joined).sums(&all);
            backward.gradients(gradients).run().unwrap();
            assert_eq!(bits(&part_y), bits(&y[range.clone()]), "y of {part:?}");
            assert_eq!(bits(&part_dx), bits(&dx[range]), "dx of {part:?}");
            assert_eq!(part_sums.each_ref().map(|sums| bits(sums)), sums.each_ref().map(|sums| bits(sums)));
        }
    });
}

fn again<P>(bytes: &[u8], read: impl Fn(&[u8]) -> Result<P, Error>) -> P {
    read(bytes).unwrap()
}

/// Bytes as they are; as those of a header's own, of these numbers; with the checksum that they would have.
#[derive(Debug, Clone, Arbitrary)]
pub struct Bytes {
    tagged: bool,
    kind: [bool; 2],
    weighted: bool,
    channels: u8,
    nodes: u8,
    rest: Vec<u8>,
    checked: bool,
}

impl Bytes {
    fn all(&self) -> Vec<u8> {
        let mut bytes = Vec::new();
        if self.tagged {
            bytes.extend(b"bnparts1");
            bytes.extend([1 + u8::from(self.kind[0]), 4 + 4 * u8::from(self.kind[1])]);
            bytes.extend([u8::from(self.weighted), 0, 0, 0, 0, 0]);
            let sizes = [u64::from(self.channels), u64::from(self.nodes)];
            sizes.iter().for_each(|size| bytes.extend(size.to_le_bytes()));
        }
        bytes.extend(&self.rest);
        if self.tagged && self.checked {
            // As many as they have to be, mostly of 0.
            let numbers = match self.kind {
                [false, false] => 3,
                [false, true] => 5,
                [true, false] => 2,
                [true, true] => 4,
            };
            let node = if self.weighted { 32 } else { 24 } + 8 * numbers * usize::from(self.channels);
            bytes.resize(32 + usize::from(self.nodes) * node, 0);
        }
        if self.checked {
            let hash = bytes.iter().fold(0xcbf2_9ce4_8422_2325u64, |hash, byte| {
                (hash ^ u64::from(*byte)).wrapping_mul(0x100_0000_01b3)
            });
            bytes.extend(hash.to_le_bytes());
        }
        bytes
    }
}

/// No bytes panic; those that are taken are given back.
pub fn bytes(bytes: &Bytes) {
    fn of<T: Element>(bytes: &[u8]) {
        if let Ok(statistics) = PartialStatistics::<T>::from_bytes(bytes) {
            let states = statistics.states().unwrap();
            assert!(states.iter().all(|state| state.count() > 0 || state.variance() == 0.0));
            let again = PartialStatistics::<T>::from_bytes(&statistics.to_bytes().unwrap()).unwrap();
            assert_eq!(again.samples(), statistics.samples());
            // Twice the same samples.
            assert!(statistics.samples() == 0 || statistics.clone().join(&again).is_err());
        }
        if let Ok(gradients) = PartialGradients::<T>::from_bytes(bytes) {
            let again = PartialGradients::<T>::from_bytes(&gradients.to_bytes().unwrap()).unwrap();
            assert_eq!(again.samples(), gradients.samples());
        }
    }
    let bytes = bytes.all();
    of::<f32>(&bytes);
    of::<f64>(&bytes);
}
