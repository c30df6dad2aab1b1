//! The accuracy contract: every result against an exact oracle, on data that is easy and data that is not.
//!
//! `BATCHNORM_EXHAUSTIVE=1 cargo test --release --test operations -- --nocapture table` prints each error as a share of its bound.

use std::fmt;

use batchnorm::{
    Element, Gradients, Params, Shape, Welford, backward, backward_frozen, forward_inference,
    forward_training, statistics,
};
use rayon::prelude::*;

use crate::common::data::{self, DataSet, HARD, NAMED};
use crate::common::exact::{self, Normalization, Statistics, Value};
use crate::exhaustive;

/// What is promised of an element type.
trait Contract: Element {
    /// Bits of the mantissa.
    const BITS: i32;
    /// How many ulp the variance may be off.
    const VAR: f64;
    /// Of the standard deviation, how far the mean may be off beside half an ulp.
    const MEAN: f64;
    /// Of |gamma * xhat| + |beta|, the error that y may have.
    const Y: f64;
    /// Of the sum of the absolute values of its terms, the error that dx may have.
    const DX: f64;
    /// Of the sum of absolute values, the error that dbeta and dgamma may have.
    const SUMS: f64;
    /// Of |gamma|, the error that y may have, and of |gamma| * invstd * rms(dy) that dx may have, beside the above.
    const ABSOLUTE: f64;
    /// The smallest normal number.
    const NORMAL: f64;
    /// Half the smallest subnormal number, which the rounding of a subnormal result costs. The one slack.
    const ROUNDING: f64;
}

/// The contract's figures.
impl Contract for f32 {
    const BITS: i32 = 23;
    const VAR: f64 = 2.0;
    const MEAN: f64 = 1.0 / (1u64 << 22) as f64;
    const Y: f64 = 1.0 / (1u64 << 21) as f64;
    const DX: f64 = 1.0 / (1u64 << 20) as f64;
    const SUMS: f64 = 1.0 / (1u64 << 21) as f64;
    const ABSOLUTE: f64 = 0.0;
    const NORMAL: f64 = f32::MIN_POSITIVE as f64;
    const ROUNDING: f64 = f32::from_bits(1) as f64 / 2.0;
}

impl Contract for f64 {
    const BITS: i32 = 52;
    const VAR: f64 = 4.0;
    const MEAN: f64 = 1.0 / (1u64 << 49) as f64;
    const Y: f64 = 1.0 / (1u64 << 49) as f64;
    const DX: f64 = 1.0 / (1u64 << 48) as f64;
    const SUMS: f64 = 1.0 / (1u64 << 48) as f64;
    const ABSOLUTE: f64 = 0.0;
    const NORMAL: f64 = f64::MIN_POSITIVE;
    // Half the smallest subnormal is none: a whole one.
    const ROUNDING: f64 = f64::from_bits(1);
}

/// The distance of neighbouring numbers of `bits` mantissa bits around `x`, with no end to the exponents: smaller than
/// f32's where f32 would be subnormal, and there where f32 has overflowed.
fn ulp(x: f64, bits: i32) -> f64 {
    if x == 0.0 { 0.0 } else { f64::from_bits(x.to_bits() & f64::INFINITY.to_bits()) * 2f64.powi(-bits) }
}

/// The worst result of a kind.
#[derive(Debug, Clone, Copy, Default)]
struct Worst {
    /// Its error as a share of its bound: 1 is the most.
    share: f64,
    got: f64,
    exact: f64,
}

impl Worst {
    /// A result within `bound` of the exact value, or not.
    fn new(got: f64, exact: f64, error: f64, bound: f64) -> Self {
        Self { share: if error == 0.0 { 0.0 } else { error / bound }, got, exact }
    }

    /// The result `got`, which may be off by `relative` times the exact value's scale, plus `absolute`.
    fn of<T: Contract>(got: T, exact: Value, relative: f64, absolute: f64) -> Self {
        // Beyond the type's largest number infinity is right.
        let error = if got == T::from_f64(exact.value) { 0.0 } else { exact.distance(got.to_f64()) };
        let got = got.to_f64();
        let subnormal = got.abs() < T::NORMAL;
        let bound = relative * exact.scale + absolute + if subnormal { T::ROUNDING } else { 0.0 };
        Self::new(got, exact.value, error, bound)
    }

    /// Takes the other one if it is worse; a NaN is the worst.
    fn meet(&mut self, other: Self) {
        if !self.share.is_nan() && (other.share.is_nan() || other.share > self.share) {
            *self = other;
        }
    }
}

/// The worst of every kind.
#[derive(Debug, Clone, Copy, Default)]
struct Shares {
    mean: Worst,
    var: Worst,
    y: Worst,
    inference: Worst,
    dx: Worst,
    frozen: Worst,
    dgamma: Worst,
    dbeta: Worst,
}

impl Shares {
    const NAMES: [&str; 8] = ["mean", "var", "y", "y inference", "dx", "dx frozen", "dgamma", "dbeta"];

    fn all(&self) -> [Worst; 8] {
        let Self { mean, var, y, inference, dx, frozen, dgamma, dbeta } = *self;
        [mean, var, y, inference, dx, frozen, dgamma, dbeta]
    }

    fn or_worse(&self, other: &Self) -> Self {
        let (mut all, other) = (self.all(), other.all());
        all.iter_mut().zip(other).for_each(|(worst, other)| worst.meet(other));
        let [mean, var, y, inference, dx, frozen, dgamma, dbeta] = all;
        Self { mean, var, y, inference, dx, frozen, dgamma, dbeta }
    }
}

impl fmt::Display for Shares {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.all().iter().try_for_each(|Worst { share, .. }| {
            if *share == 0.0 || (1e-3..1e4).contains(share) {
                write!(f, "{share:>12.3}")
            } else {
                write!(f, "{share:>12.1e}")
            }
        })
    }
}

/// Which parameters to pass.
#[derive(Debug, Clone, Copy)]
struct Setting {
    gamma: bool,
    beta: bool,
    eps: f64,
    /// As [`Contract::ABSOLUTE`]: for data that make the contract's bounds vanish, and for no other.
    absolute: f64,
}

const PLAIN: Setting = Setting { gamma: false, beta: false, eps: 0.0, absolute: 0.0 };
const FULL: Setting = Setting { gamma: true, beta: true, eps: 1e-5, absolute: 0.0 };

/// All combinations.
fn settings() -> Vec<Setting> {
    let both = [false, true];
    let combinations = both.into_iter().flat_map(|gamma| both.into_iter().map(move |beta| (gamma, beta)));
    combinations
        .flat_map(|(gamma, beta)| {
            [0.0, 1e-5].into_iter().map(move |eps| Setting { gamma, beta, eps, ..PLAIN })
        })
        .collect()
}

/// Scales and shifts, the same for channel 0 and different from one channel to the next.
fn gamma(channel: usize) -> f64 {
    [1.7, -0.6, 0.01, 30.0][channel % 4]
}

fn beta(channel: usize) -> f64 {
    [-0.3, 5.0, 0.0, 1e-3, 1e-9][channel % 5]
}

/// The errors of every operation on a tensor, per channel.
fn measure<T: Contract>(shape: &Shape, x: &[T], dy: &[T], settings: &[Setting]) -> Vec<Shares> {
    let (gamma, beta): (Vec<T>, Vec<T>) =
        (0..shape.channels()).map(|c| (T::from_f64(gamma(c)), T::from_f64(beta(c)))).unzip();
    measure_with(shape, x, dy, (&gamma, &beta), settings)
}

fn measure_with<T: Contract>(
    shape: &Shape,
    x: &[T],
    dy: &[T],
    (gamma, beta): (&[T], &[T]),
    settings: &[Setting],
) -> Vec<Shares> {
    let channels = shape.channels();
    let zeros = || vec![T::default(); x.len()];
    let per_channel = || vec![T::default(); channels];
    let mut states = vec![Welford::new(); channels];
    statistics(shape, x, &mut states).unwrap();
    let elements: Vec<[Vec<T>; 2]> =
        (0..channels).map(|c| [x, dy].map(|tensor| exact::channel(shape, tensor, c))).collect();
    let exact: Vec<Statistics> = elements.iter().map(|[x, _]| Statistics::of(x)).collect();

    let mut shares: Vec<Shares> = states
        .iter()
        .zip(&exact)
        .map(|(state, exact)| {
            let (mean, var) = (exact.mean.value(), exact.scaled_var());
            assert_eq!(state.count(), exact.count as u64);
            // An ulp of a subnormal mean is not that of the scaled one.
            let rounding = exact::times_power(T::ROUNDING, -exact.exponent);
            let rounding = if exact.mean().abs() < f64::MIN_POSITIVE { rounding } else { 0.0 };
            let mean_bound = 0.5 * ulp(mean, T::BITS) + T::MEAN * var.sqrt() + rounding;
            Shares {
                mean: Worst::new(state.mean(), exact.mean(), exact.mean_distance(state.mean()), mean_bound),
                var: Worst::new(
                    state.variance(),
                    exact.var(),
                    exact.var_distance(state),
                    T::VAR * ulp(var, T::BITS),
                ),
                ..Shares::default()
            }
        })
        .collect();

    // As running statistics are: rounded, near the batch's, and within the element's range.
    let smallest = T::from_f64(T::NORMAL).to_f64();
    let largest = T::from_f64(if T::BITS == 23 { f64::from(f32::MAX) } else { f64::MAX }).to_f64();
    let given_mean: Vec<T> = exact.iter().map(|exact| T::from_f64(exact.mean() * 0.99)).collect();
    // Of f64 not so small that x / sqrt(var) would be beyond the range.
    let least = |exact: &Statistics| if T::BITS == 52 { (exact.mean() / 2f64.powi(52)).powi(2) } else { 0.0 };
    let given_var = |exact: &Statistics| (exact.var() * 1.1).max(least(exact)).clamp(smallest, largest);
    let given_var: Vec<T> = exact.iter().map(|exact| T::from_f64(given_var(exact))).collect();

    for setting in settings {
        let mut params = Params::new(setting.eps);
        params.gamma = setting.gamma.then_some(gamma);
        params.beta = setting.beta.then_some(beta);

        let (mut y, mut inferred) = (zeros(), zeros());
        let mut forward_states = vec![Welford::new(); channels];
        forward_training(shape, x, &params, &mut y, &mut forward_states).unwrap();
        assert_eq!(forward_states, states, "statistics alone are the forward pass's");
        forward_inference(shape, x, &given_mean, &given_var, &params, &mut inferred).unwrap();

        let (mut dx, mut dgamma, mut dbeta) = (zeros(), per_channel(), per_channel());
        let gradients = Gradients::new().dx(&mut dx).dgamma(&mut dgamma).dbeta(&mut dbeta);
        backward(shape, x, dy, &states, &params, gradients).unwrap();
        let mut frozen = [zeros(), per_channel(), per_channel()];
        let [frozen_dx, frozen_dgamma, frozen_dbeta] = &mut frozen;
        let gradients = Gradients::new().dx(frozen_dx).dgamma(frozen_dgamma).dbeta(frozen_dbeta);
        backward_frozen(shape, x, dy, &given_mean, &given_var, &params, gradients).unwrap();

        for (c, shares) in shares.iter_mut().enumerate() {
            let [x, dy] = &elements[c];
            let gamma = if setting.gamma { gamma[c].to_f64() } else { 1.0 };
            let beta = if setting.beta { beta[c].to_f64() } else { 0.0 };
            let of_channel = |tensor| exact::channel(shape, tensor, c);
            let training = Normalization::training(&exact[c], setting.eps, gamma, beta);
            let (mean, var) = (given_mean[c].to_f64(), given_var[c].to_f64());
            let inference = Normalization::inference(mean, var, setting.eps, gamma, beta);
            let constant = x.iter().all(|element| element == &x[0]);
            if constant {
                assert_eq!(states[c].variance(), 0.0, "variance of the constant {:?}", x[0]);
                let y = of_channel(&y);
                assert!(y.iter().all(|y| y.to_f64() == beta), "y of the constant {:?}: {:?}", x[0], y[0]);
            }

            for (normalization, y, worst) in
                [(training, &y, &mut shares.y), (inference, &inferred, &mut shares.inference)]
            {
                let absolute = T::ABSOLUTE.max(setting.absolute) * gamma.abs();
                for (x, y) in x.iter().zip(of_channel(y)) {
                    worst.meet(Worst::of(y, normalization.y(x.to_f64()), T::Y, absolute));
                }
            }

            let rms = (dy.iter().map(|dy| dy.to_f64().powi(2)).sum::<f64>() / exact[c].count).sqrt();
            let passes = [
                (training, true, &dx, &dgamma, &dbeta, &mut shares.dx),
                (inference, false, &frozen[0], &frozen[1], &frozen[2], &mut shares.frozen),
            ];
            for (normalization, through_statistics, dx, dgamma, dbeta, worst) in passes {
                let exact = exact::Gradients::of(normalization, x, dy, through_statistics);
                shares.dgamma.meet(Worst::of(dgamma[c], exact.dgamma, T::SUMS, 0.0));
                shares.dbeta.meet(Worst::of(dbeta[c], exact.dbeta, T::SUMS, 0.0));
                let absolute = T::ABSOLUTE.max(setting.absolute);
                let gain = (gamma * normalization.invstd).abs();
                let absolute = if absolute == 0.0 { 0.0 } else { absolute * gain * rms };
                for ((x, dy), dx) in x.iter().zip(dy).zip(of_channel(dx)) {
                    worst.meet(Worst::of(dx, exact.dx(x.to_f64(), dy.to_f64()), T::DX, absolute));
                }
            }
        }
    }
    shares
}

/// One channel, as sixteen samples where that is possible.
fn one_channel(len: usize) -> Shape {
    let batch = if len.is_multiple_of(16) { 16 } else { 1 };
    Shape::nchw(&[batch, 1, len / batch]).unwrap()
}

/// Gradients for data of some spread: dx is to be within f32's range, wherever dy * invstd is not.
fn gradients_for(x: &[f32], seed: u64) -> Vec<f32> {
    let size = x.iter().fold(0f64, |size, x| size.max(f64::from(x.abs())));
    data::normals(x.len(), seed, 0.0, (size * 1e30).clamp(1e-30, 1.0))
}

/// The violations found, reported together.
#[derive(Default)]
struct Verdict {
    violations: Vec<String>,
}

impl Verdict {
    fn add(&mut self, what: impl fmt::Display, shares: &Shares) {
        for (Worst { share, got, exact }, name) in shares.all().into_iter().zip(Shares::NAMES) {
            // A NaN is a violation too.
            if !(0.0..=1.0).contains(&share) {
                self.violations.push(format!(
                    "{what}: error of {name} is {share:.3e} times its bound ({got:e}, exactly {exact:e})"
                ));
            }
        }
    }

    fn assert(self) {
        assert!(self.violations.is_empty(), "beyond the contract:\n{}", self.violations.join("\n"));
    }
}

fn measure_set(set: &DataSet, len: usize, seed: u64, settings: &[Setting]) -> Shares {
    let x = set.generate(len, seed);
    let dy = gradients_for(&x, seed + 1);
    measure(&one_channel(len), &x, &dy, settings)[0]
}

/// The elements of a channel of a layer of ResNet-50 at batch 32.
const LAYER: usize = 32 * 56 * 56;

#[test]
fn table() {
    println!(
        "\nThe largest error as a share of the contract's bound (1 is the most), over 100352 elements, and"
    );
    println!("10 million of the sets that the contract names (above the line) or 1 million of the others;");
    println!("of an eighth of these unless BATCHNORM_EXHAUSTIVE is set.");
    println!("mean: 0.5 f32 ulp + 2^-22 std; var: 2 f32 ulp; y: 2^-21 (|gamma xhat| + |beta|);");
    println!(
        "dx: 2^-20 |gamma| invstd (|dy| + |mean dy| + |xhat mean(dy xhat)|); dgamma: 2^-21 sum|dy xhat|;"
    );
    println!("dbeta: 2^-21 sum|dy|\n");
    let header: String = Shares::NAMES.iter().map(|name| format!("{name:>12}")).collect();
    println!("{:<26}{header}", "");
    let mut verdict = Verdict::default();
    let share = if exhaustive() { 1 } else { 8 };
    for (sets, large) in [(&NAMED[..], 10_000_000), (&HARD[..], 1_000_000)] {
        let measure = |set: &DataSet| {
            let small = measure_set(set, LAYER, 1, &[PLAIN, FULL]);
            small.or_worse(&measure_set(set, large / share, 2, &[FULL]))
        };
        let measured: Vec<Shares> = sets.par_iter().map(measure).collect();
        for (set, worst) in sets.iter().zip(&measured) {
            println!("{:<26}{worst}", set.name);
            verdict.add(set.name, worst);
        }
        println!("{:-<122}", "");
    }
    verdict.assert();
}

#[test]
fn every_set_at_small_sizes_with_every_setting() {
    let mut verdict = Verdict::default();
    for set in NAMED.iter().chain(&HARD) {
        for (seed, len) in [1, 2, 3, 17, 64, 1000, 4096, 4097, 12 * 4096 + 5].into_iter().enumerate() {
            let shares = measure_set(set, len, 10 + seed as u64, &settings());
            verdict.add(format_args!("{} x {len}", set.name), &shares);
        }
    }
    verdict.assert();
}

/// Every data set three times a channel of one tensor, each with its own gamma and beta.
#[test]
fn every_set_as_a_channel() {
    let sets: Vec<&DataSet> = NAMED.iter().chain(&HARD).collect();
    let sets: Vec<&DataSet> = sets.iter().cycle().take(3 * sets.len() + 1).copied().collect();
    let (n, c, h, w) = (5, sets.len(), 28, 31);
    let planes: Vec<[Vec<f32>; 2]> = sets
        .iter()
        .enumerate()
        .map(|(c, set)| {
            let x = set.generate(n * h * w, c as u64);
            let dy = gradients_for(&x, 100 + c as u64);
            [x, dy]
        })
        .collect();
    let mut verdict = Verdict::default();
    for shape in [Shape::nchw(&[n, c, h, w]).unwrap(), Shape::nhwc(&[n, h, w, c]).unwrap()] {
        let mut tensors = [vec![0.0; shape.len()], vec![0.0; shape.len()]];
        for (channel, planes) in planes.iter().enumerate() {
            for (tensor, plane) in tensors.iter_mut().zip(planes) {
                for (i, element) in plane.iter().enumerate() {
                    tensor[shape.offset(i / (h * w), channel, i % (h * w))] = *element;
                }
            }
        }
        for (set, shares) in sets.iter().zip(measure(&shape, &tensors[0], &tensors[1], &settings())) {
            verdict.add(format_args!("{} in {:?}", set.name, shape.layout()), &shares);
        }
    }
    verdict.assert();
}

/// Any floats at all, many times over.
#[test]
fn many_seeds() {
    let mut verdict = Verdict::default();
    let random =
        ["bits of any f32", "bits of any subnormal", "+-2^k", "exp(10 N(0,1))", "mean/std around 256"];
    for set in HARD.iter().filter(|set| random.contains(&set.name)) {
        for seed in 0..300 {
            let len = [2, 3, 5, 16, 50, 333, 5000][seed as usize % 7];
            let setting = [PLAIN, FULL][seed as usize / 7 % 2];
            let shares = measure_set(set, len, 1000 + seed, &[setting]);
            verdict.add(format_args!("{} x {len}, seed {seed}", set.name), &shares);
        }
    }
    verdict.assert();
}

/// Gradients other than N(0, 1): far from zero, sparse as behind a relu, constant, huge, tiny, one alone.
#[test]
fn other_gradients() {
    type Gradient = fn(usize, f32) -> f32;
    let gradients: [(&str, Gradient); 8] = [
        ("N(1e4,1)", |_, n| 1e4 + n),
        ("relu", |_, n| n.max(0.0)),
        ("constant", |_, _| 0.1),
        ("1e30", |_, n| 1e30 * n),
        ("1e-25", |_, n| 1e-25 * n),
        ("one", |i, _| if i == 777 { 1.0 } else { 0.0 }),
        ("alternating", |i, _| if i % 2 == 0 { 1.0 } else { -1.0 }),
        ("outlier", |i, n| if i == 5 { 1e10 } else { n }),
    ];
    let len = 10_000;
    let mut verdict = Verdict::default();
    for set in [NAMED[0], NAMED[2], NAMED[4], NAMED[13], HARD[21], HARD[23]] {
        let x = set.generate(len, 5);
        for (name, gradient) in gradients {
            let dy: Vec<f32> =
                data::normals(len, 6, 0.0, 1.0).iter().enumerate().map(|(i, n)| gradient(i, *n)).collect();
            let shares = measure(&one_channel(len), &x, &dy, &settings())[0];
            verdict.add(format_args!("{} with dy {name}", set.name), &shares);
        }
    }
    verdict.assert();
}

/// dy at the end of f32's range, which dx is back within after division by the standard deviation.
#[test]
fn largest_gradients() {
    let len = 1000;
    let mut dy = vec![f32::MAX; len];
    dy[5] = f32::MIN;
    let mut verdict = Verdict::default();
    for std in [1.1, 10.0, 3e5] {
        let x = data::normals(len, 5, 0.0, std);
        let shares = measure(&one_channel(len), &x, &dy, &[PLAIN])[0];
        verdict.add(format_args!("N(0,{std}^2) with dy f32::MAX, one f32::MIN"), &shares);
    }
    verdict.assert();
}

/// Scales far from 1, results within range.
#[test]
fn large_and_small_gamma() {
    let len = 1000;
    let mut verdict = Verdict::default();
    for name in ["N(0,1)", "N(1e6,1)", "1e38*N(0,1)", "1e-40*N(0,1)"] {
        let set = NAMED.iter().find(|set| set.name == name).unwrap();
        let x = set.generate(len, 7);
        for gamma in [1e-30f32, 1e-10, 1e10, 1e30] {
            let var = Statistics::of(&x).var();
            for setting in [PLAIN, FULL] {
                let setting = Setting { gamma: true, ..setting };
                // dx between 1e-10 and 1e10.
                let gain = f64::from(gamma) / (var + setting.eps).sqrt();
                let dy = data::normals(len, 8, 0.0, (1.0 / gain).clamp(1e-30, 1e30));
                let shares = measure_with(&one_channel(len), &x, &dy, (&[gamma], &[0.5]), &[setting])[0];
                verdict.add(format_args!("{name}, gamma {gamma:e}, {setting:?}"), &shares);
            }
        }
    }
    verdict.assert();
}

/// Running statistics that have little to do with the data; where xhat leaves f32's range, gamma brings y back.
#[test]
fn inference_far_from_the_statistics() {
    let mut verdict = Verdict::default();
    for (size, mean, var, gamma) in [
        (1.0, 1e30, 1.0, 1.0),
        (1e30, 1.0, 1.0, 1.0),
        (1e-30, 1e-30, 1.0, 1e30),
        (1.0, 1e30, 1e-38, 1e-20),
        (1e30, 1.0, 1e-20, 1e-10),
        (1.0, 1.0, 1e30, 1e15),
    ] {
        let x: Vec<f32> = data::normals(1000, 1, 0.0, size);
        let mut y = vec![0.0; x.len()];
        let (mean, var, gamma) = ([mean], [var], [gamma]);
        let params = Params::new(0.0).gamma(&gamma);
        forward_inference(&one_channel(x.len()), &x, &mean, &var, &params, &mut y).unwrap();
        let [mean, var, gamma] = [mean, var, gamma].map(|[value]| f64::from(value));
        let exact = Normalization::inference(mean, var, 0.0, gamma, 0.0);
        let mut worst = Worst::default();
        for (x, y) in x.iter().zip(&y) {
            worst.meet(Worst::of(*y, exact.y(f64::from(*x)), f32::Y, 0.0));
        }
        let what = format!("N(0,{size:e}^2), mean {mean:e}, var {var:e}, gamma {gamma:e}");
        verdict.add(what, &Shares { inference: worst, ..Shares::default() });
    }
    verdict.assert();
}

/// center + offsets, then center - offsets, of which one is 0, and there one element moved by `step`: the center, which
/// is an element, is `step` / `len` from the mean.
fn next_to_the_mean(len: usize, center: f32, spread: f32, step: f32) -> Vec<f32> {
    // Whole ulps of the center, so that both sums are exact; a center of 0 has none, and the sums are not.
    let unit = if center == 0.0 { None } else { Some(center.next_up() - center) };
    let mut offsets: Vec<f32> = data::normals(len / 2, 9, 0.0, f64::from(spread))
        .into_iter()
        .map(|offset| unit.map_or(offset, |unit| (offset / unit).round() * unit))
        .collect();
    offsets[10] = 0.0;
    let negative = offsets.iter().rev().map(|offset| center - offset);
    let mut x: Vec<f32> = offsets.iter().map(|offset| center + offset).chain(negative).collect();
    x[10] += step;
    x
}

/// Here xhat, down to 1e-15, is far below 1, and so would the bounds be: below what a sum of a million f64 can know of the
/// mean. That is allowed for: 2^-50 standard deviations.
#[test]
fn y_next_to_the_mean() {
    let setting = Setting { absolute: 2f64.powi(-50), ..PLAIN };
    let mut verdict = Verdict::default();
    for (center, spread, step) in [
        (0.0, 1.0, 1e-9),
        (0.0, 1.0, 1e-3),
        (1.0, 1.0, 1e-7),
        (250.0, 1.0, 2e-5),
        (1e4, 1.0, 1e-3),
        (1e6, 1.0, 0.0625),
    ] {
        for len in [1000, LAYER, 1_000_000] {
            let x = next_to_the_mean(len, center, spread, step);
            let shares = measure(&one_channel(len), &x, &gradients_for(&x, 3), &[setting])[0];
            verdict.add(format_args!("{center} +- {spread}, one {step:e} off, x {len}"), &shares);
        }
    }
    verdict.assert();
}

/// dy at right angles to 1 and to xhat: where dy is 0, so is dx, and so would the bound be. Something is left of sums in f64,
/// which is allowed for: 2^-45 of the root mean square of dy.
#[test]
fn dx_of_orthogonal_gradients() {
    let setting = Setting { absolute: 2f64.powi(-45), ..PLAIN };
    let mut verdict = Verdict::default();
    for center in [0.0, 250.1, 1e5] {
        let len = 1000;
        let mut x = data::normals(len, 4, center, 1.0);
        let mut dy = vec![0.0; len];
        (x[0], x[1], x[2], x[3]) = (x[0] + 2.0, x[0] + 1.0, x[0] - 1.0, x[0] - 2.0);
        dy[..4].copy_from_slice(&[1.0, -1.0, -1.0, 1.0]);
        let shares = measure(&one_channel(len), &x, &dy, &[setting])[0];
        verdict.add(format_args!("center {center}"), &shares);
    }
    verdict.assert();
}

/// Gradients for f64 data of some spread: dx is to be within f64's range, and dy far from the ends of it.
fn f64_gradients_for(x: &[f64], seed: u64) -> Vec<f64> {
    let size = x.iter().fold(0f64, |size, x| size.max(x.abs()));
    let rng = &mut data::rng(seed);
    let size = (size * 1e250).clamp(1e-200, 1.0);
    (0..x.len()).map(|_| size * data::normal(rng)).collect()
}

fn measure_f64_set(set: &DataSet<f64>, len: usize, seed: u64, settings: &[Setting]) -> Shares {
    let x = set.generate(len, seed);
    let dy = f64_gradients_for(&x, seed + 1);
    measure(&one_channel(len), &x, &dy, settings)[0]
}

#[test]
fn f64_table() {
    println!(
        "\nThe largest error as a share of the contract's bound for f64, over 100352 and 1 or 4 million elements;"
    );
    println!("of an eighth of these unless BATCHNORM_EXHAUSTIVE is set");
    println!(
        "mean: 0.5 ulp + 2^-49 std; var: 4 ulp; y: 2^-49; dx, dgamma, dbeta: 2^-48, of the same magnitudes as f32's\n"
    );
    let header: String = Shares::NAMES.iter().map(|name| format!("{name:>12}")).collect();
    println!("{:<26}{header}", "");
    let mut verdict = Verdict::default();
    let share = if exhaustive() { 1 } else { 8 };
    for (i, set) in data::F64.iter().enumerate() {
        let small = measure_f64_set(set, LAYER, 1, &[PLAIN, FULL]);
        let large = if i < 4 { 4_000_000 } else { 1_000_000 };
        let worst = small.or_worse(&measure_f64_set(set, large / share, 2, &[PLAIN]));
        println!("{:<26}{worst}", set.name);
        verdict.add(set.name, &worst);
    }
    verdict.assert();
}

#[test]
fn f64_at_small_sizes_with_every_setting() {
    let mut verdict = Verdict::default();
    for set in &data::F64 {
        for (seed, len) in [1, 2, 3, 17, 64, 1000, 4096, 4097, 12 * 4096 + 5].into_iter().enumerate() {
            let shares = measure_f64_set(set, len, 10 + seed as u64, &settings());
            verdict.add(format_args!("f64 {} x {len}", set.name), &shares);
        }
    }
    verdict.assert();
}

/// Any at all, many times over.
#[test]
fn f64_many_seeds() {
    let mut verdict = Verdict::default();
    for set in &data::F64 {
        for seed in 0..200 {
            let len = [2, 3, 5, 16, 50, 333, 5000][seed as usize % 7];
            let setting = [PLAIN, FULL][seed as usize / 7 % 2];
            let shares = measure_f64_set(set, len, 1000 + seed, &[setting]);
            verdict.add(format_args!("f64 {} x {len}, seed {seed}", set.name), &shares);
        }
    }
    verdict.assert();
}

/// Every data set as a channel of one tensor.
#[test]
fn f64_every_set_as_a_channel() {
    let sets: Vec<&DataSet<f64>> = data::F64.iter().chain(&data::F64[..3]).collect();
    let (n, c) = (5, sets.len());
    let mut verdict = Verdict::default();
    for s in [28 * 31, 49, 1] {
        for shape in [Shape::nchw(&[n, c, s]).unwrap(), Shape::nhwc(&[n, s, c]).unwrap()] {
            let mut tensors = [vec![0.0; shape.len()], vec![0.0; shape.len()]];
            for (channel, set) in sets.iter().enumerate() {
                let x = set.generate(n * s, channel as u64);
                let dy = f64_gradients_for(&x, 100 + channel as u64);
                for (tensor, plane) in tensors.iter_mut().zip([x, dy]) {
                    for (i, element) in plane.iter().enumerate() {
                        tensor[shape.offset(i / s, channel, i % s)] = *element;
                    }
                }
            }
            for (set, shares) in sets.iter().zip(measure(&shape, &tensors[0], &tensors[1], &settings())) {
                verdict.add(format_args!("f64 {} in {shape:?}", set.name), &shares);
            }
        }
    }
    verdict.assert();
}

fn f64_statistics(x: &[f64]) -> Welford {
    let mut states = [Welford::new()];
    statistics(&one_channel(x.len()), x, &mut states).unwrap();
    states[0]
}

/// Two elements, whose variance plain f64 sums of squares had 19 ulp off; and y of two, which is -1 and 1.
#[test]
fn f64_pairs() {
    assert_eq!(f64_statistics(&[-0.5, -0.93]).variance(), 0.04622500000000001);
    let x = [-0.263788160540625, -0.46332413970987085];
    let (state, exact) = (f64_statistics(&x), Statistics::of(&x));
    assert!(exact.var_distance(&state) <= 0.5 * ulp(exact.var(), 52));
    let (x, mut y, mut states) = ([-0.749, -1.317], [0.0f64; 2], [Welford::new()]);
    let shape = Shape::nchw(&[2, 1]).unwrap();
    forward_training(&shape, &x, &Params::new(0.0), &mut y, &mut states).unwrap();
    assert!((y[0] - 1.0).abs() <= 2f64.powi(-49) && (y[1] + 1.0).abs() <= 2f64.powi(-49), "{y:?}");
}

/// NC, every seventh row an ulp above the others.
#[test]
fn f64_rows_an_ulp_apart() {
    let (n, c) = (2000, 64);
    let x: Vec<f64> = (0..n * c).map(|i| if i / c % 7 == 0 { 3.7f64.next_up() } else { 3.7 }).collect();
    let dy: Vec<f64> = data::normals(n * c, 1, 0.0, 1.0).into_iter().map(f64::from).collect();
    let mut verdict = Verdict::default();
    for shares in measure(&Shape::nchw(&[n, c]).unwrap(), &x, &dy, &settings()) {
        verdict.add("every seventh an ulp above 3.7", &shares);
    }
    verdict.assert();
}

/// Where squares leave f64's range the variance may, and what is normalized by it does not.
#[test]
fn f64_beyond_the_range_of_squares() {
    for (center, spread) in
        [(1e200, 1e199), (-1e-200, 1e-201), (0.0, 1.7e308), (0.0, 5e-324), (3e-310, 2e-310)]
    {
        let x = [center - spread, center + spread, center + spread, center - spread];
        let shape = Shape::nchw(&[4, 1]).unwrap();
        let (mut y, mut states) = ([0.0f64; 4], [Welford::new()]);
        forward_training(&shape, &x, &Params::new(0.0), &mut y, &mut states).unwrap();
        for (y, expected) in y.iter().zip([-1.0, 1.0, 1.0, -1.0]) {
            assert!((y - expected).abs() <= 2f64.powi(-49), "{center:e} +- {spread:e}: {y}");
        }
        let beyond = if spread > 1.0 { f64::INFINITY } else { 0.0 };
        assert_eq!(states[0].variance(), beyond, "{center:e} +- {spread:e}");
    }
}

/// The documentation promises beta of every channel of equal elements.
#[test]
fn f64_constants() {
    for value in [0.1, 1e4 / 3.0, 1e100, -7.7, 0.0, f64::MAX, 1e-200, 5e-324, -0.0] {
        for len in [1, 2, 3, 17, 1000, 4097, LAYER] {
            let shape = one_channel(len);
            let x = vec![value; len];
            for eps in [0.0, 1e-5] {
                let (mut y, mut states) = (vec![0.0; len], [Welford::new()]);
                let params = Params::new(eps).beta(&[0.25]);
                forward_training(&shape, &x, &params, &mut y, &mut states).unwrap();
                assert_eq!(states[0].variance(), 0.0, "variance of {len} times the f64 {value}");
                assert!(
                    y.iter().all(|y| *y == 0.25),
                    "y of {len} times the f64 {value}, eps {eps}: {}",
                    y[0]
                );
            }
        }
    }
}
