//! What holds of any tensor: to the bit, and within the contract's bounds.

use std::fmt::Debug;

use batchnorm::{
    Activation, Element, Gradients, Layout, Level, Params, Shape, Welford, backward, forward_inference,
    forward_training, statistics,
};
use quickcheck::{Arbitrary, Gen, QuickCheck, Testable};
use rand::seq::SliceRandom;

use crate::common::fused::{Form, Share, forms, run_fused};
use crate::common::matrix::{
    Bits, Configuration, LAYOUTS, Placement, Problem, Results, Subset, THREADS, assert_same,
    check_against_reference, levels, run, variate,
};

/// Runs a property on many random arguments.
fn many<P: Testable>(tests: u64, property: P) {
    QuickCheck::new().rng(Gen::new(100)).tests(tests).quickcheck(property);
}

/// A number from a range.
fn within(g: &mut Gen, range: std::ops::Range<usize>) -> usize {
    range.start + usize::arbitrary(g) % range.len()
}

/// Batch, channels and spatial axes: small, the edges of vectors, groups and small planes more often than chance has it.
#[derive(Debug, Clone)]
struct Dims(Vec<usize>);

impl Arbitrary for Dims {
    fn arbitrary(g: &mut Gen) -> Self {
        let n = [1, 2, 3, within(g, 1..40)];
        let c = [1, 2, 16, 17, 64, 65, within(g, 1..20), within(g, 1..140)];
        let s = [1, 15, 16, 17, 49, 64, 65, within(g, 1..30), within(g, 1..300)];
        let (n, c, s) = (*g.choose(&n).unwrap(), *g.choose(&c).unwrap(), *g.choose(&s).unwrap());
        // At most some tens of thousands of elements.
        let s = s.min((20_000 / (n * c)).max(1));
        match within(g, 0..4) {
            0 if s == 1 => Self(vec![n, c]),
            1 => Self(vec![n, c, 1, s]),
            2 if s % 2 == 0 => Self(vec![n, c, 2, 1, s / 2]),
            _ => Self(vec![n, c, s]),
        }
    }

    fn shrink(&self) -> Box<dyn Iterator<Item = Self>> {
        let dims = self.0.clone();
        Box::new((0..dims.len()).flat_map(move |axis| {
            let smaller = [dims[axis] / 2, dims[axis] - 1].into_iter().filter(|dim| *dim > 0);
            let dims = dims.clone();
            let shrunk = move |dim| {
                let mut dims = dims.clone();
                dims[axis] = dim;
                Self(dims)
            };
            smaller.map(shrunk).collect::<Vec<_>>()
        }))
    }
}

/// What the elements of a channel are like.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Kind {
    /// Around 0.
    Plain,
    /// Far from 0.
    Offset,
    Constant,
    /// Whole numbers below 1000.
    Whole,
    /// Any finite numbers.
    AnyFinite,
    /// Zeros, subnormals, the largest numbers, infinities, NaNs with all kinds of bits.
    Special,
}

const TAME: [Kind; 4] = [Kind::Plain, Kind::Offset, Kind::Constant, Kind::Whole];
const WILD: [Kind; 6] =
    [Kind::Plain, Kind::Offset, Kind::Constant, Kind::Whole, Kind::AnyFinite, Kind::Special];

/// A random finite number of any magnitude that the type has.
fn any_finite<T: Bits>(g: &mut Gen) -> T {
    let (smallest, largest) = if size_of::<T>() == 4 { (-149, 127) } else { (-1074, 1023) };
    let exponent = smallest + within(g, 0..(largest - smallest) as usize) as i32;
    let mantissa =
        (1.0 + f64::from(u32::arbitrary(g)) / 4294967296.0) * if bool::arbitrary(g) { 1.0 } else { -1.0 };
    // In two steps, since 2^-1074 is no normal number.
    T::from_f64(mantissa * 2f64.powi(exponent / 2) * 2f64.powi(exponent - exponent / 2))
}

/// One number that is trouble.
fn special<T: Bits>(g: &mut Gen) -> T {
    let values = [
        T::NAN,
        T::OTHER_NAN,
        T::INFINITY,
        T::from_f64(f64::NEG_INFINITY),
        T::from_f64(0.0),
        T::from_f64(-0.0),
        T::from_f64(if size_of::<T>() == 4 { f64::from(f32::MAX) } else { f64::MAX }),
        T::from_f64(if size_of::<T>() == 4 { f64::from(f32::from_bits(1)) } else { f64::from_bits(1) }),
        T::from_f64(-1.0),
    ];
    *g.choose(&values).unwrap()
}

/// `len` elements of a kind.
fn elements<T: Bits>(g: &mut Gen, kind: Kind, len: usize) -> Vec<T> {
    let rng = &mut crate::common::data::rng(u64::arbitrary(g));
    let mean = if kind == Kind::Offset { *g.choose(&[3.0, -1e3, 1e4, 1e5]).unwrap() } else { 0.0 };
    let std = *g.choose(&[1.0, 0.25, 3.0]).unwrap();
    let constant = mean + variate(rng);
    (0..len)
        .map(|_| match kind {
            Kind::Plain | Kind::Offset => T::from_f64(mean + std * variate(rng)),
            Kind::Constant => T::from_f64(constant),
            Kind::Whole => T::from_f64((200.0 * variate(rng)).round()),
            Kind::AnyFinite => any_finite(g),
            Kind::Special if within(g, 0..3) == 0 => special(g),
            Kind::Special => T::from_f64(variate(rng)),
        })
        .collect()
}

/// A problem with channels of the given kinds.
fn arbitrary_problem<T: Bits>(g: &mut Gen, dims: &[usize], kinds: &[Kind]) -> Problem<T> {
    let mut problem = Problem::new(dims, u64::arbitrary(g));
    let (c, s) = (dims[1], dims[2..].iter().product::<usize>());
    let m = dims[0] * s;
    for channel in 0..c {
        for tensor in [&mut problem.x, &mut problem.dy] {
            let kind = *g.choose(kinds).unwrap();
            for (i, element) in elements(g, kind, m).into_iter().enumerate() {
                tensor[(i / s * c + channel) * s + i % s] = element;
            }
        }
    }
    if bool::arbitrary(g) { problem } else { problem.plain() }
}

/// A problem of finite numbers of moderate size.
#[derive(Debug, Clone)]
struct Tame<T>(Problem<T>);

/// A problem of numbers of all kinds, in parameters and given statistics too.
#[derive(Debug, Clone)]
struct Wild<T>(Problem<T>);

impl<T: Bits> Arbitrary for Tame<T> {
    fn arbitrary(g: &mut Gen) -> Self {
        let Dims(dims) = Dims::arbitrary(g);
        Self(arbitrary_problem(g, &dims, &TAME))
    }

    fn shrink(&self) -> Box<dyn Iterator<Item = Self>> {
        Box::new(smaller(&self.0).map(Self))
    }
}

impl<T: Bits> Arbitrary for Wild<T> {
    fn arbitrary(g: &mut Gen) -> Self {
        let Dims(dims) = Dims::arbitrary(g);
        let mut problem = arbitrary_problem(g, &dims, &WILD);
        let kind = *g.choose(&WILD).unwrap();
        problem.z = elements(g, kind, problem.x.len());
        problem.eps = *g.choose(&[0.0, 1e-5, 1e-300, 1e10]).unwrap();
        for vector in [&mut problem.mean, &mut problem.var]
            .into_iter()
            .chain(&mut problem.gamma)
            .chain(&mut problem.beta)
        {
            let kind = *g.choose(&WILD).unwrap();
            *vector = elements(g, kind, dims[1]);
        }
        Self(problem)
    }

    fn shrink(&self) -> Box<dyn Iterator<Item = Self>> {
        Box::new(smaller(&self.0).map(Self))
    }
}

/// Parts of a problem.
fn smaller<T: Bits>(problem: &Problem<T>) -> impl Iterator<Item = Problem<T>> + use<T> {
    let problem = problem.clone();
    Dims(problem.dims.clone()).shrink().map(move |Dims(dims)| {
        let shape = problem.shape(Layout::Nchw);
        let part = Shape::nchw(&dims).unwrap();
        let tensor = |values: &[T]| {
            let mut smaller = Vec::new();
            for n in 0..part.batch() {
                for c in 0..part.channels() {
                    smaller.extend((0..part.spatial()).map(|s| values[shape.offset(n, c, s)]));
                }
            }
            smaller
        };
        let vector = |values: &Vec<T>| values[..part.channels()].to_vec();
        Problem {
            x: tensor(&problem.x),
            dy: tensor(&problem.dy),
            z: tensor(&problem.z),
            gamma: problem.gamma.as_ref().map(vector),
            beta: problem.beta.as_ref().map(vector),
            mean: vector(&problem.mean),
            var: vector(&problem.var),
            eps: problem.eps,
            dims,
        }
    })
}

/// All results; in place they are the same, or this panics.
fn results<T: Bits>(problem: &Problem<T>) -> Results<T> {
    run(problem, Layout::Nchw, Placement::default(), std::iter::empty())
}

/// `f` of each element.
fn map<T: Bits>(values: &[T], f: impl Fn(f64) -> f64) -> Vec<T> {
    values.iter().map(|value| T::from_f64(f(value.to_f64()))).collect()
}

/// Equal numbers, zeros of either sign among them, or both NaN.
fn equal<T: Element>(left: &[T], right: &[T]) -> bool {
    left.len() == right.len()
        && left.iter().zip(right).all(|(left, right)| {
            let [left, right] = [left.to_f64(), right.to_f64()];
            left == right || (left.is_nan() && right.is_nan())
        })
}

#[test]
fn levels_layouts_and_alignments_give_the_same_bits() {
    fn property<T: Bits>(Wild(problem): Wild<T>, inputs: usize, outputs: usize, threads: usize) -> bool {
        let expected = results(&problem);
        for (level, layout) in levels().into_iter().flat_map(|level| LAYOUTS.map(|layout| (level, layout))) {
            let configuration = Configuration { level, threads: THREADS[threads % THREADS.len()] };
            let at = Placement { inputs: inputs % 17, outputs: outputs % 17 };
            let got = configuration.run(|| run(&problem, layout, at, std::iter::empty()));
            got.assert_same(&expected, &format!("{layout:?} {configuration:?} {at:?}"));
        }
        true
    }
    many(400, property::<f32> as fn(_, _, _, _) -> bool);
    many(200, property::<f64> as fn(_, _, _, _) -> bool);
}

/// Any numbers in any tensor, any activation: the separate operations' bits.
#[test]
fn fused_is_unfused() {
    fn property<T: Bits>(Wild(problem): Wild<T>, turn: usize, slope: f64, bounds: (f64, f64)) -> bool {
        let (levels, turn) = (levels(), turn / 2);
        let level = levels[turn % levels.len()];
        let configuration = Configuration { level, threads: THREADS[turn / 3 % THREADS.len()] };
        let at = Placement { inputs: turn / 12 % 17, outputs: turn / 7 % 17 };
        let slope = if slope.is_finite() { slope } else { 0.5 };
        let (lo, hi) = (bounds.0.min(bounds.1), bounds.0.max(bounds.1));
        let any = [Activation::LeakyRelu { slope }, Activation::Clip { lo, hi }];
        let any = any.into_iter().filter(|any| any.apply::<T>(&mut []).is_ok());
        let any = any.map(|activation| Form { activation, residual: turn % 2 == 0 });
        let known = forms();
        for form in any.chain([known[turn % known.len()]]) {
            let share = Share { from: turn, of: 3 };
            configuration.run(|| run_fused(&problem, LAYOUTS[turn / 5 % 2], at, form, share));
        }
        true
    }
    many(300, property::<f32> as fn(_, _, _, _) -> bool);
    many(300, property::<f64> as fn(_, _, _, _) -> bool);
}

/// In results and states, every NaN is the canonical one.
#[test]
fn every_nan_is_the_canonical_one() {
    fn property<T: Bits>(Wild(problem): Wild<T>) -> bool {
        let Results { states, y, inferred, gradients, frozen, vectors } = results(&problem);
        let canonical = |value: f64| !value.is_nan() || value.to_bits() == f64::NAN.to_bits();
        states
            .iter()
            .all(|state| canonical(state.mean()) && canonical(state.variance()) && canonical(state.m2()))
            && [y, inferred].iter().chain(&gradients).chain(&frozen).chain(&vectors).flatten().all(|value| {
                value.to_f64().is_finite() || value.to_f64().is_infinite() || value.same(&T::NAN)
            })
    }
    many(300, property::<f32> as fn(_) -> bool);
    many(300, property::<f64> as fn(_) -> bool);
}

/// A slope that leads out of range, which only the states of other data than x have, makes no NaN with a gamma of 0.
#[test]
fn nothing_out_of_range_is_multiplied_by_a_gamma_of_0() {
    let shape = Shape::nchw(&[1, 2, 4, 8]).unwrap();
    let (mut other, mut x, mut dy) = (vec![0.0f32; 64], vec![0.0; 64], vec![0.0; 64]);
    other.iter_mut().step_by(2).for_each(|x| *x = 2e-6);
    // dy * x sums up to 32 per channel, so that the slope is 1 / (var + eps); what is out of range has no gradient.
    for channel in [0, 32] {
        x[channel..channel + 2].copy_from_slice(&[3e38, -3e38]);
        (x[channel + 2], dy[channel + 2], dy[channel + 3]) = (32.0, 1.0, -1.0);
    }
    let mut states = [Welford::new(); 2];
    statistics(&shape, &other, &mut states).unwrap();
    let gamma = [0.0, -1.0];
    for level in levels() {
        let mut dx = vec![0.0f32; 64];
        let gradients = Gradients::new().dx(&mut dx);
        Configuration { level, threads: 1 }.run(|| {
            backward(&shape, &x, &dy, &states, &Params::new(1e-12).gamma(&gamma), gradients).unwrap();
        });
        let bits =
            |channel: usize| dx[channel..channel + 2].iter().map(|dx| dx.to_bits()).collect::<Vec<_>>();
        assert_eq!(bits(0), [0; 2], "{level}");
        assert_eq!(bits(32), [f32::INFINITY.to_bits(), f32::NEG_INFINITY.to_bits()], "{level}");
    }
}

/// y(-x) = -y(x) without beta. Not of the bits of zeros: adding the beta that is not there, +0, makes every zero +0.
/// Coefficients that an earlier call left in a thread's memory have no part in the next one's zeros: neither channels beside
/// others that are far from 1, nor those.
#[test]
fn what_an_earlier_call_left_changes_no_bit() {
    fn check<T: Bits>() {
        let dims = [3, 200, 2];
        let mut earlier = Problem::<T>::new(&dims, 20);
        earlier.x.iter_mut().for_each(|x| *x = T::from_f64(x.to_f64() * 1e-39));
        let mut problem = Problem::<T>::new(&dims, 21);
        for (i, (x, dy)) in problem.x.iter_mut().zip(&mut problem.dy).enumerate() {
            let channel = i / 2 % 200;
            if channel == 0 {
                *x = T::from_f64(1e-39 * x.to_f64());
            }
            if channel % 3 != 0 {
                *dy = T::from_f64(-0.0);
            }
        }
        for level in levels() {
            for layout in LAYOUTS {
                let of = |problem: &Problem<T>| run(problem, layout, Placement::default(), Subset::single());
                let [first, then] = Configuration { level, threads: 1 }.run(|| {
                    // In memory that nothing has been left in yet, and after the other.
                    let first = std::thread::scope(|scope| {
                        scope.spawn(|| Level::with(level, || of(&problem)).unwrap()).join().unwrap()
                    });
                    of(&earlier);
                    [first, of(&problem)]
                });
                then.assert_same(&first, &format!("{level} {layout:?} {}", T::NAME));
            }
        }
    }
    check::<f32>();
    check::<f64>();
}

/// y(-x) = -y(x) without beta. Not of the bits of zeros: adding the beta that is not there, +0, makes every zero +0.
#[test]
fn negating_x_negates_y() {
    fn property<T: Bits>(Wild(mut problem): Wild<T>) -> bool {
        problem.beta = None;
        let before = results(&problem);
        problem.x = map(&problem.x, |x| -x);
        problem.mean = map(&problem.mean, |mean| -mean);
        let after = results(&problem);
        let negative = |values: &[T]| map(values, |value| -value);
        let mut same =
            equal(&after.y, &negative(&before.y)) && equal(&after.inferred, &negative(&before.inferred));
        for (after, before) in [(&after.gradients, &before.gradients), (&after.frozen, &before.frozen)] {
            let [dx, dgamma, dbeta, dmean, dvar] = after;
            same &= equal(dx, &before[0]) && equal(dgamma, &negative(&before[1])) && equal(dbeta, &before[2]);
            same &= equal(dmean, &before[3]) && equal(dvar, &negative(&before[4]));
        }
        let zero = T::from_f64(0.0);
        same && after.y.iter().all(|y| y.to_f64() != 0.0 || y.same(&zero))
            && after
                .states
                .iter()
                .zip(&before.states)
                .all(|(after, before)| equal(&[after.mean(), after.m2()], &[-before.mean(), before.m2()]))
    }
    many(300, property::<f32> as fn(_) -> bool);
    many(300, property::<f64> as fn(_) -> bool);
}

/// Statistics scale exactly; with eps = 0, y does not change and dx is divided, to the bit, while all that is on the
/// way stays in the normal range.
#[test]
fn scaling_x_by_a_power_of_two() {
    fn property<T: Bits>(Tame(mut problem): Tame<T>, exponent: i8) -> bool {
        let power = 2f64.powi(i32::from(exponent) % 30);
        problem.eps = 0.0;
        let before = results(&problem);
        let unscaled = problem.x.clone();
        problem.x = map(&problem.x, |x| x * power);
        // No bits lost: else this says nothing.
        assert!(equal(&map(&problem.x, |x| x / power), &unscaled));
        let after = results(&problem);
        for (after, before) in after.states.iter().zip(&before.states) {
            assert_eq!(after.mean().to_bits(), (before.mean() * power).to_bits());
            assert_eq!(after.m2().to_bits(), (before.m2() * power * power).to_bits());
        }
        assert_same("y", &after.y, &before.y);
        assert_same("dx", &map(&after.gradients[0], |dx| dx * power), &before.gradients[0]);
        assert_same("dgamma", &after.gradients[1], &before.gradients[1]);
        assert_same("dbeta", &after.gradients[2], &before.gradients[2]);
        assert_same("dmean", &map(&after.gradients[3], |dmean| dmean * power), &before.gradients[3]);
        true
    }
    many(200, property::<f32> as fn(_, _) -> bool);
    many(200, property::<f64> as fn(_, _) -> bool);
}

#[test]
fn permuting_channels_permutes_results() {
    fn property<T: Bits>(Wild(problem): Wild<T>, seed: u64) -> bool {
        let (c, s) = (problem.channels(), problem.dims[2..].iter().product::<usize>());
        let mut order: Vec<usize> = (0..c).collect();
        order.shuffle(&mut crate::common::data::rng(seed));
        let tensor = |values: &Vec<T>| -> Vec<T> {
            let samples = values.chunks(c * s);
            samples.flat_map(|sample| order.iter().flat_map(|c| sample[c * s..][..s].to_vec())).collect()
        };
        let vector = |values: &Vec<T>| -> Vec<T> { order.iter().map(|c| values[*c]).collect() };
        let permuted = Problem {
            dims: problem.dims.clone(),
            x: tensor(&problem.x),
            dy: tensor(&problem.dy),
            z: tensor(&problem.z),
            gamma: problem.gamma.as_ref().map(vector),
            beta: problem.beta.as_ref().map(vector),
            mean: vector(&problem.mean),
            var: vector(&problem.var),
            eps: problem.eps,
        };
        let results = LAYOUTS.map(|layout| {
            [&problem, &permuted]
                .map(|problem| run(problem, layout, Placement::default(), std::iter::empty()))
        });
        for [before, after] in results {
            for (i, channel) in order.iter().enumerate() {
                after.channel(&permuted, i).assert_same(&before.channel(&problem, *channel), "a channel");
            }
        }
        true
    }
    many(150, property::<f32> as fn(_, _) -> bool);
    many(100, property::<f64> as fn(_, _) -> bool);
}

#[test]
fn inference_of_a_concatenation_is_the_concatenation() {
    fn property<T: Bits>(Wild(problem): Wild<T>, at: usize) -> bool {
        let shape = problem.shape(Layout::Nchw);
        let (row, at) = (shape.len() / shape.batch(), at % (shape.batch() + 1));
        let infer = |batch: usize, x: &[T]| {
            let shape = Shape::nchw(&[&[batch], &problem.dims[1..]].concat()).unwrap();
            let mut y = vec![T::canary(); shape.len()];
            forward_inference(&shape, x, &problem.mean, &problem.var, &problem.params(), &mut y).unwrap();
            y
        };
        let (first, second) = problem.x.split_at(at * row);
        let parts = [infer(at, first), infer(shape.batch() - at, second)].concat();
        assert_same("concatenation", &infer(shape.batch(), &problem.x), &parts);
        true
    }
    many(300, property::<f32> as fn(_, _) -> bool);
    many(300, property::<f64> as fn(_, _) -> bool);
}

#[test]
fn a_constant_channel_gives_beta() {
    /// A channel's one value, its beta and gamma.
    #[derive(Debug, Clone)]
    struct Constant<T>(T, T, T);
    impl<T: Bits> Arbitrary for Constant<T> {
        fn arbitrary(g: &mut Gen) -> Self {
            let gamma = T::from_f64(f64::from(i16::arbitrary(g)) / 37.0);
            // Sums of squares of f64 have no wider type to be taken in: beyond some 1e154, they are infinite.
            let value = any_finite::<T>(g).to_f64().clamp(-1e150, 1e150);
            let beta = if bool::arbitrary(g) { any_finite(g) } else { special(g) };
            Self(T::from_f64(value), beta, gamma)
        }
    }
    fn property<T: Bits>(Dims(dims): Dims, channels: Vec<Constant<T>>, eps: bool) -> bool {
        if channels.is_empty() {
            return true;
        }
        let s: usize = dims[2..].iter().product();
        let of = |channel: usize| channels[channel % channels.len()].clone();
        let mut problem = Problem::<T>::new(&dims, 1);
        problem.eps = if eps { 1e-5 } else { 0.0 };
        problem.x = (0..problem.x.len()).map(|i| of(i / s % dims[1]).0).collect();
        problem.beta = Some((0..dims[1]).map(|c| of(c).1).collect());
        problem.gamma = Some((0..dims[1]).map(|c| of(c).2).collect());
        let results = results(&problem);
        for (i, y) in results.y.iter().enumerate() {
            let Constant(x, beta, gamma) = of(i / s % dims[1]);
            // 0 * gamma + -0 is +0 unless gamma is negative, so that a beta of -0 may give +0.
            let beta = if beta.to_f64().is_nan() { T::NAN } else { beta };
            let zeros = y.to_f64() == 0.0 && beta.to_f64() == 0.0;
            assert!(y.same(&beta) || zeros, "{x:?} with gamma {gamma:?} gives {y:?}, not beta {beta:?}");
        }
        let constant =
            |(c, state): (usize, &Welford)| state.variance() == 0.0 && state.mean() == of(c).0.to_f64();
        results.states.iter().enumerate().all(constant)
    }
    many(300, property::<f32> as fn(_, _, _) -> bool);
    many(300, property::<f64> as fn(_, _, _) -> bool);
}

#[test]
fn the_library_agrees_with_the_reference() {
    fn property<T: Bits>(Tame(problem): Tame<T>) -> bool {
        check_against_reference(&problem, &results(&problem));
        true
    }
    many(300, property::<f32> as fn(_) -> bool);
    many(200, property::<f64> as fn(_) -> bool);
}

/// What is off when the same numbers are summed in another order: twice what each may be off.
fn assert_near<T: Bits>(what: &str, got: &Results<T>, expected: &Results<T>, problem: &Problem<T>) {
    let (c, s) = (problem.channels(), problem.dims[2..].iter().product::<usize>());
    for (channel, (got, expected)) in got.states.iter().zip(&expected.states).enumerate() {
        let std = expected.variance().sqrt();
        let mean_bound = 2.0 * (T::MEAN[0] * expected.mean().abs() + T::MEAN[1] * std);
        let error = (got.mean() - expected.mean()).abs();
        assert!(error <= mean_bound, "{what}: mean of channel {channel} off by {error:e}");
        let error = (got.variance() - expected.variance()).abs();
        assert!(
            error <= 2.0 * T::VAR * expected.variance(),
            "{what}: variance of {channel} off by {error:e}"
        );
    }
    for (i, (got, expected)) in got.y.iter().zip(&expected.y).enumerate() {
        let channel = i / s % c;
        let beta = problem.beta.as_ref().map_or(0.0, |beta| beta[channel].to_f64().abs());
        // |gamma * xhat| is at most |y| + |beta|; next to the mean, where the contract's bound is next to nothing, f64
        // has the rounding of the mean left.
        let gamma = problem.gamma.as_ref().map_or(1.0, |gamma| gamma[channel].to_f64().abs());
        let bound = 2.0 * T::Y * (expected.to_f64().abs() + 2.0 * beta) + 1e-11 * gamma;
        let error = (got.to_f64() - expected.to_f64()).abs();
        assert!(error <= bound, "{what}: y[{i}] is {got:?}, expected {expected:?}, off by {error:e}");
    }
}

#[test]
fn permuting_samples_and_positions_changes_little() {
    fn property<T: Bits>(Tame(problem): Tame<T>, seed: u64) -> bool {
        let (n, c, s) = (problem.dims[0], problem.channels(), problem.dims[2..].iter().product::<usize>());
        let mut order: Vec<usize> = (0..n * s).collect();
        order.shuffle(&mut crate::common::data::rng(seed));
        let permute = |values: &[T]| {
            let mut permuted = values.to_vec();
            for (to, &from) in order.iter().enumerate() {
                for channel in 0..c {
                    let at = |i: usize| (i / s * c + channel) * s + i % s;
                    permuted[at(to)] = values[at(from)];
                }
            }
            permuted
        };
        let before = results(&problem);
        let after = results(&Problem { x: permute(&problem.x), dy: permute(&problem.dy), ..problem.clone() });
        let expected = Results { y: permute(&before.y), ..before.clone() };
        assert_near("permuted", &after, &expected, &problem);
        // Where no statistics are taken, nothing changes at all.
        assert_same("inference", &after.inferred, &permute(&before.inferred));
        assert_same("frozen dx", &after.frozen[0], &permute(&before.frozen[0]));
        true
    }
    many(200, property::<f32> as fn(_, _) -> bool);
    many(200, property::<f64> as fn(_, _) -> bool);
}

#[test]
fn adding_a_constant_changes_little() {
    fn property<T: Bits>(Dims(dims): Dims, seed: u64, power: u8, negative: bool) -> bool {
        // Whole numbers, so that the sum is exact.
        let constant = 2f64.powi(i32::from(power % 20)) * if negative { -1.0 } else { 1.0 };
        let rng = &mut crate::common::data::rng(seed);
        let mut problem = Problem::<T>::new(&dims, seed);
        problem.x = (0..problem.x.len()).map(|_| T::from_f64((300.0 * variate(rng)).round())).collect();
        let before = results(&problem);
        let moved = Problem { x: map(&problem.x, |x| x + constant), ..problem.clone() };
        let after = results(&moved);
        for (after, before) in after.states.iter().zip(&before.states) {
            let expected = before.mean() + constant;
            let bound = 2.0
                * (T::MEAN[0] * (expected.abs() + before.mean().abs())
                    + T::MEAN[1] * before.variance().sqrt());
            assert!((after.mean() - expected).abs() <= bound, "mean {} of {expected}", after.mean());
        }
        // The means are not to be the same, all else is.
        let variances =
            |results: &Results<T>| results.states.iter().map(Welford::variance).collect::<Vec<_>>();
        for (after, before) in variances(&after).into_iter().zip(variances(&before)) {
            let error = (after - before).abs();
            assert!(error <= 2.0 * T::VAR * before, "variance off by {error:e}");
        }
        let expected = Results { states: after.states.clone(), ..before };
        assert_near("moved", &after, &expected, &problem);
        true
    }
    many(200, property::<f32> as fn(_, _, _, _) -> bool);
    many(200, property::<f64> as fn(_, _, _, _) -> bool);
}

/// y does not change when all of x moves, so dx sums to zero.
#[test]
fn dx_sums_to_nothing() {
    fn property<T: Bits>(Tame(problem): Tame<T>) -> bool {
        let Results { states, gradients: [dx, dgamma, dbeta, ..], .. } = results(&problem);
        let (c, s) = (problem.channels(), problem.dims[2..].iter().product::<usize>());
        for (channel, state) in states.iter().enumerate() {
            let m = state.count() as f64;
            let invstd = 1.0 / (state.variance() + problem.eps).sqrt();
            let gain = problem.gamma.as_ref().map_or(1.0, |gamma| gamma[channel].to_f64()) * invstd;
            let (mean_dy, slope) = (dbeta[channel].to_f64() / m, dgamma[channel].to_f64() / m);
            let (mut sum, mut scale, mut products) = (0.0, 0.0, 0.0);
            for i in (0..dx.len()).filter(|i| i / s % c == channel) {
                let xhat = (problem.x[i].to_f64() - state.mean()) * invstd;
                let dy = problem.dy[i].to_f64();
                sum += dx[i].to_f64();
                scale += gain.abs() * (dy.abs() + mean_dy.abs() + (xhat * slope).abs());
                products += gain.abs() * (dy * xhat).abs();
            }
            let bound = T::DX * scale + T::DX_CANCELLED * products + 1e-12 * scale;
            assert!(sum.abs() <= bound, "channel {channel}: {sum:e}, must be within {bound:e}");
        }
        true
    }
    many(300, property::<f32> as fn(_) -> bool);
    many(300, property::<f64> as fn(_) -> bool);
}

#[test]
fn frozen_dx_is_gamma_times_invstd_times_dy() {
    fn property<T: Bits>(Tame(problem): Tame<T>) -> bool {
        let results = results(&problem);
        let (c, s) = (problem.channels(), problem.dims[2..].iter().product::<usize>());
        results.frozen[0].iter().zip(&problem.dy).enumerate().all(|(i, (dx, dy))| {
            let channel = i / s % c;
            let gamma = problem.gamma.as_ref().map_or(1.0, |gamma| gamma[channel].to_f64());
            let expected = gamma / (problem.var[channel].to_f64() + problem.eps).sqrt() * dy.to_f64();
            (dx.to_f64() - expected).abs() <= T::DX * expected.abs()
        })
    }
    many(300, property::<f32> as fn(_) -> bool);
    many(300, property::<f64> as fn(_) -> bool);
}

/// With eps = 0, normalizing what is normalized changes little: mean 0 and variance 1 are there already.
#[test]
fn normalizing_twice_is_normalizing_once() {
    fn property(Tame(problem): Tame<f32>) -> bool {
        let shape = problem.shape(Layout::Nchw);
        let mut states = vec![Welford::new(); shape.channels()];
        let (mut once, mut twice) = (vec![0.0; shape.len()], vec![0.0; shape.len()]);
        let params = Params::new(0.0);
        forward_training(&shape, &problem.x, &params, &mut once, &mut states).unwrap();
        forward_training(&shape, &once, &params, &mut twice, &mut states).unwrap();
        for state in states.iter().filter(|state| state.variance() != 0.0) {
            assert!(state.mean().abs() < 1e-6 && (state.variance() - 1.0).abs() < 1e-6, "{state:?}");
        }
        once.iter().zip(&twice).all(|(once, twice)| (once - twice).abs() <= 1e-6 * (1.0 + once.abs()))
    }
    many(200, property as fn(_) -> bool);
}
