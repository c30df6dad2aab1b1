//! Folding into the layer before: bits of an exact oracle, and a layer that gives what it gave with its batch norm behind.

use std::fmt::Debug;

use batchnorm::{
    Activation, BatchNorm, Inference, Params, Parts, Scalar, Shape, Storage, WeightShape, fold_into,
    reference,
};

use crate::common::data::rng;
use crate::common::exact::Normalization;
use crate::common::matrix::{Bits, Canary, Guarded, assert_same, params, variate};

/// Numbers that weights may hold, in their order.
trait Weight: Storage<Arithmetic: Bits> + Canary + PartialOrd {
    /// Half of the distance from 1 to the next number.
    const HALF_ULP: f64;
    fn of(value: f64) -> Self;
    fn value(self) -> f64 {
        self.widened().to_f64()
    }
    /// The numbers next to it.
    fn next(self) -> [Self; 2];
}

macro_rules! weights {
    ($($number:ident: $half_ulp:expr, $of:expr, $next:expr;)*) => {$(
        impl Weight for $number {
            const HALF_ULP: f64 = $half_ulp;
            fn of(value: f64) -> Self {
                $of(value)
            }
            fn next(self) -> [Self; 2] {
                $next(self)
            }
        }
    )*};
}
weights! {
    f32: f32::EPSILON as f64 / 2.0, |value| value as f32, |x: f32| [x.next_down(), x.next_up()];
    f64: f64::EPSILON / 2.0, |value| value, |x: f64| [x.next_down(), x.next_up()];
}
#[cfg(feature = "half")]
use half::{bf16, f16};
#[cfg(feature = "half")]
weights! {
    bf16: 1.0 / 256.0, bf16::from_f64, |x: bf16| [x.to_bits() - 1, x.to_bits() + 1].map(bf16::from_bits);
    f16: 1.0 / 2048.0, f16::from_f64, |x: f16| [x.to_bits() - 1, x.to_bits() + 1].map(f16::from_bits);
}

/// Calls functions with every type of weights.
macro_rules! for_all {
    ($function:ident($($argument:expr),*)) => {
        $function::<f32>($($argument),*);
        $function::<f64>($($argument),*);
        #[cfg(feature = "half")]
        $function::<bf16>($($argument),*);
        #[cfg(feature = "half")]
        $function::<f16>($($argument),*);
    };
}

/// A batch norm by running statistics.
struct Norm<T> {
    mean: Vec<T>,
    var: Vec<T>,
    gamma: Option<Vec<T>>,
    beta: Option<Vec<T>>,
    eps: f64,
}

impl<T: Bits> Norm<T> {
    fn new(channels: usize, seed: u64) -> Self {
        let rng = &mut rng(seed);
        let mut some =
            |mean, spread| (0..channels).map(|_| T::from_f64(mean + spread * variate(rng))).collect();
        let (mean, gamma, beta) = (some(0.5, 2.0), some(1.0, 0.5), some(-0.2, 1.0));
        let var: Vec<T> = some(0.0, 1.0);
        let var = var.iter().map(|v| T::from_f64(v.to_f64() * v.to_f64() + 0.01)).collect();
        Self { mean, var, gamma: Some(gamma), beta: Some(beta), eps: 1e-5 }
    }

    fn params(&self) -> Params<'_, T> {
        params(self.gamma.as_deref(), self.beta.as_deref(), self.eps)
    }

    fn channel(&self, channel: usize) -> [f64; 4] {
        let value =
            |values: Option<&Vec<T>>, default| values.map_or(default, |values| values[channel].to_f64());
        let [mean, var] = [&self.mean, &self.var].map(|values| values[channel].to_f64());
        [mean, var, value(self.gamma.as_ref(), 1.0), value(self.beta.as_ref(), 0.0)]
    }

    /// y of x, to some 100 bits.
    fn exact(&self, channel: usize) -> Normalization {
        let [mean, var, gamma, beta] = self.channel(channel);
        Normalization::inference(mean, var, self.eps, gamma, beta)
    }

    /// x times the scale, likewise.
    fn exact_scale(&self, channel: usize) -> Normalization {
        let [_, var, gamma, _] = self.channel(channel);
        Normalization::inference(0.0, var, self.eps, gamma, 0.0)
    }

    fn fold<S: Storage<Arithmetic = T>>(&self, shape: &WeightShape, weight: &mut [S], bias: &mut [S]) {
        fold_into(shape, &self.mean, &self.var, &self.params(), weight, bias).unwrap();
    }
}

/// Asserts that no number is nearer to y(x) than this one.
#[track_caller]
fn assert_nearest<W: Weight>(exact: &Normalization, before: W, after: W, what: impl Debug) {
    let y = exact.y(before.value());
    let off = y.distance(after.value());
    for next in after.next() {
        assert!(
            off <= y.distance(next.value()),
            "{what:?}: {before:?} becomes {after:?}, {next:?} is nearer"
        );
    }
}

/// Weights of a layout, and which output channel each belongs to.
struct Layout {
    dims: Vec<usize>,
    axis: usize,
    groups: usize,
}

impl Layout {
    fn shape(&self) -> WeightShape {
        WeightShape::grouped(&self.dims, self.axis, self.groups).unwrap()
    }

    /// By the coordinates of the weight at an offset.
    fn channel(&self, mut offset: usize) -> usize {
        let mut at = vec![0; self.dims.len()];
        for (at, dim) in at.iter_mut().zip(&self.dims).rev() {
            (*at, offset) = (offset % dim, offset / dim);
        }
        let group = at[0] / (self.dims[0] / self.groups);
        group * self.dims[self.axis] * usize::from(self.groups > 1) + at[self.axis]
    }
}

/// Output channels first, last, in the middle, in groups; more of them than are folded at once.
fn layouts() -> Vec<Layout> {
    let layout = |dims: &[usize], axis, groups| Layout { dims: dims.to_vec(), axis, groups };
    vec![
        layout(&[5], 0, 1),
        layout(&[70, 3], 0, 1),
        layout(&[5, 4, 3, 3], 0, 1),
        layout(&[1, 4, 3, 3], 0, 1),
        layout(&[3, 3, 4, 5], 3, 1),
        layout(&[2, 130], 1, 1),
        layout(&[3, 2, 6, 4], 2, 1),
        layout(&[6, 5, 3, 2], 1, 1),
        layout(&[6, 5, 3, 2], 1, 2),
        layout(&[6, 1, 3, 2], 1, 6),
        layout(&[4, 66, 3], 1, 2),
        layout(&[4, 3, 7], 2, 4),
    ]
}

#[test]
fn each_result_is_the_exact_one_rounded_once() {
    fn check<W: Weight>(layout: &Layout, seed: u64) {
        let shape = layout.shape();
        assert_eq!(shape.len(), layout.dims.iter().product::<usize>());
        let mut norm = Norm::<W::Arithmetic>::new(shape.channels(), seed);
        let rng = &mut rng(seed + 1);
        let mut some = |len| (0..len).map(|_| W::of(variate(rng))).collect::<Vec<_>>();
        let (weight, bias) = (some(shape.len()), some(shape.channels()));
        for affine in [true, false] {
            if !affine {
                (norm.gamma, norm.beta) = (None, None);
            }
            let (mut folded, mut moved) = (Guarded::holding(&weight, 1), Guarded::holding(&bias, 1));
            norm.fold(&shape, folded.get_mut(), moved.get_mut());
            folded.assert_margins("weight");
            moved.assert_margins("bias");
            for (i, (before, after)) in weight.iter().zip(folded.get()).enumerate() {
                assert_nearest(&norm.exact_scale(layout.channel(i)), *before, *after, (&layout.dims, i));
            }
            for (c, (before, after)) in bias.iter().zip(moved.get()).enumerate() {
                assert_nearest(&norm.exact(c), *before, *after, (&layout.dims, c));
            }
        }
    }
    for (seed, layout) in layouts().iter().enumerate() {
        for_all!(check(layout, seed as u64));
    }
}

/// The scalar form is other code, and plain f64: each result within what that rounds, and one rounding of the element.
#[test]
fn the_reference_is_near() {
    fn check<T: Weight + Storage<Arithmetic = T> + Bits>(layout: &Layout, seed: u64) {
        let shape = layout.shape();
        let mut norm = Norm::<T>::new(shape.channels(), seed);
        let rng = &mut rng(seed + 1);
        let mut some = |len| (0..len).map(|_| T::from_f64(variate(rng))).collect::<Vec<_>>();
        let (before, bias) = (some(shape.len()), some(shape.channels()));
        for affine in [true, false] {
            if !affine {
                (norm.gamma, norm.beta) = (None, None);
            }
            let [mut got, mut expected] = [(); 2].map(|()| (before.clone(), bias.clone()));
            norm.fold(&shape, &mut got.0, &mut got.1);
            let (weight, moved) = (&mut expected.0, &mut expected.1);
            reference::fold_into(&shape, &norm.mean, &norm.var, &norm.params(), weight, moved);
            let near = |what: (&str, usize), got: T, expected: T, size: f64| {
                let bound = (2.0 * T::HALF_ULP + 2f64.powi(-50)) * size;
                let off = (got.to_f64() - expected.to_f64()).abs();
                assert!(off <= bound, "{what:?} of {:?}: {got:?}, {expected:?}", layout.dims);
            };
            for (i, (got, expected)) in got.0.iter().zip(&expected.0).enumerate() {
                near(("weight", i), *got, *expected, expected.to_f64().abs());
            }
            for (c, (got, expected)) in got.1.iter().zip(&expected.1).enumerate() {
                let [mean, var, gamma, beta] = norm.channel(c);
                let scale = gamma.abs() / (var + norm.eps).sqrt();
                let size = (bias[c].to_f64().abs() + mean.abs()) * scale + beta.abs();
                near(("bias", c), *got, *expected, size);
            }
        }
    }
    for (seed, layout) in layouts().iter().enumerate() {
        check::<f32>(layout, seed as u64);
        check::<f64>(layout, seed as u64);
    }
}

/// What plain f64, or f32 on the way to 16 bits, makes of it is another number now and then.
#[test]
fn plain_formulas_round_more_than_once() {
    let norm = Norm::<f64>::new(1000, 3);
    let shape = WeightShape::new(&[1000, 1], 0).unwrap();
    let (mut weight, mut bias) = (norm.mean.clone(), norm.mean.clone());
    bias.iter_mut().for_each(|bias| *bias *= 1.0 + 1e-12);
    let before = bias.clone();
    norm.fold(&shape, &mut weight, &mut bias);
    let plain = (0..1000).filter(|&c| {
        let [mean, var, gamma, beta] = norm.channel(c);
        let scale = gamma / (var + norm.eps).sqrt();
        assert_nearest(&norm.exact_scale(c), norm.mean[c], weight[c], c);
        assert_nearest(&norm.exact(c), before[c], bias[c], c);
        mean * scale != weight[c] || (before[c] - mean) * scale + beta != bias[c]
    });
    assert!(plain.count() > 100);

    // (1 + 2^-12) * (1 + 3 * 2^-12), the middle between two f32, but for an eps that f64 does not see.
    let (a, b) = (1.0 + 2f32.powi(-12), 1.0 + 3.0 * 2f32.powi(-12));
    let (shape, even) = (WeightShape::new(&[1], 0).unwrap(), 1.0 + 2f32.powi(-10) + 2f32.powi(-22));
    for (eps, expected) in [(0.0, even), (2f64.powi(-60), even.next_down())] {
        let (mut weight, gamma) = ([a], [b]);
        fold_into(&shape, &[0.0], &[1.0], &Params::new(eps).gamma(&gamma), &mut weight, &mut [0f32]).unwrap();
        assert_eq!(weight, [expected], "{eps}");
        // The bias of 1 is moved into the middle between two, and by the mean's last bit beyond it.
        for (mean, expected) in [(0.0, 1.0), (-2f32.powi(-90), 1.0f32.next_up())] {
            let (mut bias, beta) = ([2f32.powi(-24)], [1.0f32]);
            let params = Params::new(0.0).beta(&beta);
            fold_into(&shape, &[mean], &[1.0], &params, &mut weight, &mut bias).unwrap();
            assert_eq!(bias, [expected], "{mean}");
        }
    }
}

/// In f32, this product is the middle between two bf16; it is above.
#[cfg(feature = "half")]
#[test]
fn numbers_of_16_bits_have_not_been_f32_before() {
    let shape = WeightShape::new(&[1], 0).unwrap();
    let gamma = [1.0 + 2f32.powi(-8)];
    let params = Params::new(0.0).gamma(&gamma);
    let fold = |var: f32| {
        let (mut weight, mut bias, mut wide) = ([bf16::ONE], [bf16::ONE], [1f32]);
        fold_into(&shape, &[0.0], &[var], &params, &mut weight, &mut wide).unwrap();
        fold_into(&shape, &[0.0], &[var], &params, &mut weight.clone(), &mut bias).unwrap();
        (weight[0].to_bits(), bias[0].to_bits(), wide[0])
    };
    assert_eq!(fold(1.0), (0x3f80, 0x3f80, gamma[0]));
    assert_eq!(fold(1f32.next_down()), (0x3f81, 0x3f81, gamma[0]));

    // A bias of f32 is as exact as beside weights of f32.
    let norm = Norm::<f32>::new(9, 5);
    let shape = WeightShape::new(&[9, 0], 0).unwrap();
    let (mut beside, mut alone) = ([0.1f32; 9], [0.1f32; 9]);
    fold_into::<f16, _>(&shape, &norm.mean, &norm.var, &norm.params(), &mut [], &mut beside).unwrap();
    norm.fold(&shape, &mut [], &mut alone);
    assert_same("bias", &beside, &alone);
}

/// f64 at the ends of its range: neither a scale nor a difference out of it, nor subnormal numbers, cost a bit.
#[test]
fn nothing_on_the_way_is_out_of_range() {
    let shape = WeightShape::new(&[1], 0).unwrap();
    let fold = |weight: f64, bias: f64, [mean, var, gamma, beta]: [f64; 4], eps: f64| {
        let (mut weight, mut bias, gamma, beta) = ([weight], [bias], [gamma], [beta]);
        let params = Params::new(eps).gamma(&gamma).beta(&beta);
        fold_into(&shape, &[mean], &[var], &params, &mut weight, &mut bias).unwrap();
        (weight[0], bias[0])
    };
    let (large, small) = (2f64.powi(1000), 2f64.powi(-1000));
    assert_eq!(fold(large, large, [0.0, large, small, 3.0], 0.0), (2f64.powi(-500), 3.0));
    assert_eq!(fold(small, small, [-small, small, large, 0.0], 0.0), (2f64.powi(500), 2f64.powi(501)));
    assert_eq!(fold(f64::MAX, f64::MAX, [-f64::MAX, 4.0, 1.0, 0.0], 0.0), (f64::MAX / 2.0, f64::MAX));
    assert_eq!(fold(1.0, f64::MAX, [-f64::MAX, 1.0, 1.0, -f64::MAX], 0.0), (1.0, f64::MAX));
    assert_eq!(fold(large, large, [0.0, small, 1.0, 1.0], 0.0), (f64::INFINITY, f64::INFINITY));
    assert_eq!(fold(1.0, 0.0, [0.0, 5e-324, 5e-324, 5e-324], 0.0), (2f64.powi(-537), 5e-324));
    assert_eq!(fold(3.0, 0.0, [0.0, 0.0, 1.0, 0.0], 5e-324), (3.0 * 2f64.powi(537), 0.0));
    // 3 / 2 and 5 / 2 of the least number, and next to the middle.
    let least = |n: f64| n * 5e-324;
    assert_eq!(fold(least(3.0), least(5.0), [0.0, 4.0, 1.0, 0.0], 0.0), (least(2.0), least(2.0)));
    assert_eq!(fold(1.0 - 2f64.powi(-53), 1.0, [0.0, 4.0, least(3.0), 0.0], 0.0), (least(1.0), least(2.0)));
    // Where one bit is lost: 1 + 2^-25 + 2^-52 is the middle between two numbers, and in f64 what lies above it is, too.
    let (root, power) = (1.0 + 2f64.powi(-26), 2f64.powi(-1023));
    for (var, expected) in [(1.0, 0.0), (1.0 - 2f64.powi(-53), 2f64.powi(-51))] {
        let expected = (1.0 + 2f64.powi(-25) + expected) * power;
        assert_eq!(fold(root, 0.0, [0.0, var, root * power, 0.0], 0.0), (expected, 0.0), "{var}");
    }
}

/// gamma / sqrt(var + eps) of what inference gives NaN or infinity for, in its channel and no other.
#[test]
fn nan_and_infinity_are_as_inference_has_them() {
    fn check<W: Weight>() {
        let shape = WeightShape::new(&[3, 4], 0).unwrap();
        let numbers = |values: &[f64]| values.iter().map(|value| W::of(*value)).collect::<Vec<_>>();
        let (inf, nan) = (f64::INFINITY, f64::NAN);
        let weight = numbers(&[1.0, -2.0, 0.0, -0.0].repeat(3));
        for ([mean, var, gamma, beta], eps, expected, bias) in [
            ([0.5, -1.0, 1.0, 2.0], 0.5, [nan; 4], nan),
            ([0.5, nan, 1.0, 2.0], 0.5, [nan; 4], nan),
            ([0.5, -inf, 1.0, 2.0], 0.5, [nan; 4], nan),
            ([0.5, -0.5, 1.0, 2.0], 0.5, [inf, -inf, nan, nan], -inf),
            ([0.25, 0.0, -1.0, 2.0], 0.0, [-inf, inf, nan, nan], nan),
            ([0.5, 0.0, 0.0, 2.0], 0.0, [nan; 4], nan),
            ([0.5, inf, 3.0, 2.0], 0.5, [0.0, -0.0, 0.0, -0.0], 2.0),
            ([0.5, inf, inf, 2.0], 0.5, [nan; 4], nan),
            ([inf, 1.0, 1.0, 2.0], 0.0, [1.0, -2.0, 0.0, -0.0], -inf),
            ([inf, 1.0, 1.0, inf], 0.0, [1.0, -2.0, 0.0, -0.0], nan),
            ([nan, 1.0, -1.0, 2.0], 0.0, [-1.0, 2.0, -0.0, 0.0], nan),
            ([0.5, 1.0, 0.0, -1.0], 0.0, [0.0, -0.0, 0.0, -0.0], -1.0),
            ([0.5, 1.0, inf, -1.0], 0.0, [inf, -inf, nan, nan], -inf),
            ([0.5, 1.0, nan, -1.0], 0.0, [nan; 4], nan),
            ([0.5, 1.0, 1.0, -nan], 0.0, [1.0, -2.0, 0.0, -0.0], nan),
        ] {
            let vector = |middle: f64, other: f64| [other, middle, other].map(W::Arithmetic::from_f64);
            let (gamma, beta) = (vector(gamma, 1.0), vector(beta, 0.0));
            // var + eps is 1 beside.
            let (mean, var) = (vector(mean, 0.0), vector(var, 1.0 - eps));
            let params = Params::new(eps).gamma(&gamma).beta(&beta);
            let (mut folded, mut moved) = (weight.clone(), numbers(&[0.25; 3]));
            fold_into(&shape, &mean, &var, &params, &mut folded, &mut moved).unwrap();
            let canonical = |values: &[f64]| -> Vec<W> {
                values.iter().map(|x| if x.is_nan() { W::of(f64::NAN) } else { W::of(*x) }).collect()
            };
            assert_same("before", &folded[..4], &weight[..4]);
            assert_same(format_args!("var {:?}, {eps}", var[1]), &folded[4..8], &canonical(&expected));
            assert_same("behind", &folded[8..], &weight[8..]);
            assert_same(format_args!("var {:?}, {eps}", var[1]), &moved, &canonical(&[0.25, bias, 0.25]));
        }
        // A layer's own infinity and NaN stay its own.
        let norm = Norm::<W::Arithmetic>::new(3, 1);
        let (mut folded, mut moved) = (numbers(&[inf, -inf, nan, 1.0].repeat(3)), numbers(&[nan, inf, 0.0]));
        norm.fold(&shape, &mut folded, &mut moved);
        assert!(folded.iter().enumerate().all(|(i, w)| match i % 4 {
            0 | 1 => w.value().is_infinite(),
            2 => w.same(&W::of(f64::NAN)),
            _ => w.value().is_finite(),
        }));
        assert!(moved[0].value().is_nan() && moved[1].value().is_infinite() && moved[2].value().is_finite());
    }
    for_all!(check());
}

/// A convolution in one dimension, without padding: its numbers of channels, groups and positions, and its weights.
#[derive(Debug, Clone, Copy)]
struct Convolution {
    inputs: usize,
    outputs: usize,
    groups: usize,
    kernel: usize,
    /// Whether it spreads inputs over outputs, two positions apart.
    transposed: bool,
    order: Order,
}

/// The order of a convolution's weights.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Order {
    /// PyTorch's: out, in / groups, k.
    OutFirst,
    /// Keras's: k, in / groups, out.
    OutLast,
    /// PyTorch's transposed: in, out / groups, k.
    InFirst,
    /// Keras's transposed: k, out, in.
    Between,
}

const POSITIONS: usize = 11;

impl Convolution {
    fn shape(&self) -> WeightShape {
        let Self { inputs, outputs, groups, kernel, order, .. } = *self;
        match order {
            Order::OutFirst => WeightShape::new(&[outputs, inputs / groups, kernel], 0),
            Order::OutLast => WeightShape::new(&[kernel, inputs / groups, outputs], 2),
            Order::InFirst => WeightShape::grouped(&[inputs, outputs / groups, kernel], 1, groups),
            Order::Between => WeightShape::new(&[kernel, outputs, inputs], 1),
        }
        .unwrap()
    }

    /// The offset of the weight from an input channel of the output channel's group to it.
    fn offset(&self, output: usize, input: usize, k: usize) -> usize {
        let Self { inputs, outputs, groups, kernel, order, .. } = *self;
        let group = output / (outputs / groups);
        match order {
            Order::OutFirst => (output * (inputs / groups) + input) * kernel + k,
            Order::OutLast => (k * (inputs / groups) + input) * outputs + output,
            Order::InFirst => {
                let row = group * (inputs / groups) + input;
                (row * (outputs / groups) + output % (outputs / groups)) * kernel + k
            }
            Order::Between => (k * outputs + output) * inputs + input,
        }
    }

    fn len(&self) -> usize {
        if self.transposed { 2 * (POSITIONS - 1) + self.kernel } else { POSITIONS + 1 - self.kernel }
    }

    /// y, channel after channel, and of each element the sum of its terms' absolute values.
    fn run<W: Weight>(&self, x: &[f64], weight: &[W], bias: &[W]) -> (Vec<f64>, Vec<f64>) {
        let Self { inputs, outputs, groups, kernel, transposed, .. } = *self;
        let len = self.len();
        let (mut y, mut scale) = (vec![0.0; outputs * len], vec![0.0; outputs * len]);
        for output in 0..outputs {
            y[output * len..][..len].fill(bias[output].value());
            scale[output * len..][..len].fill(bias[output].value().abs());
            let first = output / (outputs / groups) * (inputs / groups);
            for (input, k) in (0..inputs / groups).flat_map(|input| (0..kernel).map(move |k| (input, k))) {
                let weight = weight[self.offset(output, input, k)].value();
                let x = &x[(first + input) * POSITIONS..][..POSITIONS];
                for (from, to) in
                    (0..POSITIONS).map(|at| if transposed { (at, 2 * at + k) } else { (at + k, at) })
                {
                    if let (Some(x), true) = (x.get(from), to < len) {
                        y[output * len + to] += weight * x;
                        scale[output * len + to] += (weight * x).abs();
                    }
                }
            }
        }
        (y, scale)
    }
}

#[test]
fn a_folded_convolution_gives_what_it_gave_with_its_batch_norm() {
    fn check<W: Weight>(convolution: Convolution, with_bias: bool) {
        let Convolution { inputs, outputs, .. } = convolution;
        let rng = &mut rng(7);
        let x: Vec<f64> = (0..inputs * POSITIONS).map(|_| variate(rng)).collect();
        let shape = convolution.shape();
        let mut weight: Vec<W> = (0..shape.len()).map(|_| W::of(variate(rng))).collect();
        let mut bias: Vec<W> =
            (0..outputs).map(|_| W::of(if with_bias { variate(rng) } else { 0.0 })).collect();
        let norm = Norm::<W::Arithmetic>::new(outputs, 11);

        let (apart, apart_scale) = convolution.run(&x, &weight, &bias);
        let wide = |values: &[W::Arithmetic]| values.iter().map(|x| x.to_f64()).collect::<Vec<_>>();
        let (gamma, beta) = (wide(norm.gamma.as_ref().unwrap()), wide(norm.beta.as_ref().unwrap()));
        let (mean, var) = (wide(&norm.mean), wide(&norm.var));
        let params = Params::new(norm.eps).gamma(&gamma).beta(&beta);
        let mut expected = vec![0.0; apart.len()];
        let tensor = Shape::nchw(&[1, outputs, convolution.len()]).unwrap();
        Inference::new(&tensor, params).x(&apart).frozen(&mean, &var).y(&mut expected).run().unwrap();

        let layer = BatchNorm::from_parts(Parts {
            gamma: norm.gamma.clone(),
            beta: norm.beta.clone(),
            running_mean: norm.mean.clone(),
            running_var: norm.var.clone(),
            ..Parts::new(0)
        })
        .unwrap();
        layer.fold_into(&shape, &mut weight, &mut bias).unwrap();
        let (folded, scale) = convolution.run(&x, &weight, &bias);
        for (i, (got, expected)) in folded.iter().zip(&expected).enumerate() {
            let c = i / convolution.len();
            // Half an ulp of each weight and of the bias; what f64 rounds in both sums.
            let scaled = gamma[c].abs() / (var[c] + norm.eps).sqrt() * (apart_scale[i] + mean[c].abs());
            let bound = W::HALF_ULP * scale[i] + 2f64.powi(-46) * (scaled + beta[c].abs());
            assert!((got - expected).abs() <= bound, "{convolution:?} {i}: {got} {expected}, bound {bound}");
        }
    }
    let convolution = |inputs, outputs, groups, order| Convolution {
        inputs,
        outputs,
        groups,
        kernel: 3,
        transposed: matches!(order, Order::InFirst | Order::Between),
        order,
    };
    for convolution in [
        convolution(4, 6, 1, Order::OutFirst),
        convolution(4, 6, 2, Order::OutFirst),
        convolution(6, 6, 6, Order::OutFirst),
        Convolution { kernel: 1, ..convolution(5, 70, 1, Order::OutFirst) },
        convolution(4, 6, 1, Order::OutLast),
        convolution(4, 6, 2, Order::OutLast),
        Convolution { kernel: 1, ..convolution(5, 70, 1, Order::OutLast) },
        // Depthwise, with a multiplier.
        convolution(3, 6, 3, Order::OutLast),
        convolution(4, 6, 1, Order::InFirst),
        convolution(4, 6, 2, Order::InFirst),
        convolution(6, 6, 6, Order::InFirst),
        convolution(4, 6, 1, Order::Between),
    ] {
        for with_bias in [true, false] {
            for_all!(check(convolution, with_bias));
        }
    }
}

/// What the layer does beside has no part in it, and stays as it is.
#[test]
fn the_layers_activation_is_left_to_the_caller() {
    let layer = BatchNorm::<f32>::new(3).with_activation(Activation::Relu);
    let shape = WeightShape::new(&[3, 2], 0).unwrap();
    let (mut weight, mut bias) = ([-1.0f32, 2.0, 3.0, -4.0, 5.0, 6.0], [-1.0f32; 3]);
    let (mut plain, mut plain_bias) = (weight, bias);
    layer.fold_into(&shape, &mut weight, &mut bias).unwrap();
    BatchNorm::new(3).fold_into(&shape, &mut plain, &mut plain_bias).unwrap();
    assert_eq!((weight, bias), (plain, plain_bias));
    assert_eq!((layer.activation(), bias[0] < 0.0), (Activation::Relu, true));
}

#[test]
fn no_weights_leave_a_bias_and_no_channels_nothing() {
    let norm = Norm::<f32>::new(6, 2);
    let mut expected = [0.5f32; 6];
    norm.fold(&WeightShape::new(&[6], 0).unwrap(), &mut [0.0; 6], &mut expected);
    // Axes that no loop gets through.
    for (dims, axis, groups) in [
        (&[6, 0][..], 0, 1),
        (&[0, 6], 1, 1),
        (&[0, 3], 1, 2),
        (&[1 << 50, 6, 0], 1, 1),
        (&[0, 1 << 50, 6], 2, 1),
        (&[6, 0, 1 << 50], 0, 1),
        (&[1 << 51, 3, 0], 1, 2),
    ] {
        let shape = WeightShape::grouped(dims, axis, groups).unwrap();
        let mut bias = [0.5; 6];
        norm.fold(&shape, &mut [], &mut bias);
        assert_same(format_args!("{dims:?}"), &bias, &expected);
    }
    for (dims, axis, groups) in [(&[0][..], 0, 1), (&[0, 1 << 50], 0, 1), (&[1 << 50, 0, 3], 1, 1 << 50)] {
        let shape = WeightShape::grouped(dims, axis, groups).unwrap();
        assert_eq!((shape.channels(), shape.len()), (0, 0));
        fold_into::<f32, f32>(&shape, &[], &[], &Params::default(), &mut [], &mut []).unwrap();
    }
}
