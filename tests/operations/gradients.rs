//! Gradients against finite differences and against numbers worked out by hand; statistics that are merged.

use batchnorm::{
    BatchNorm, Element, Gradients, Layout, Params, RunningUpdate, RunningVariance, Shape,
    StreamingStatistics, UpdateRule, Welford, backward, backward_frozen, forward_inference, forward_training,
    statistics,
};
use rand::RngExt;
use rand::seq::SliceRandom;

use crate::common::data::{self, DataSet, HARD, NAMED};
use crate::common::exact::{self, Normalization, Statistics};

const LAYOUTS: [Layout; 2] = [Layout::Nchw, Layout::Nhwc];

fn shape(layout: Layout, batch: usize, channels: usize, spatial: &[usize]) -> Shape {
    Shape::new(layout, batch, channels, spatial).unwrap()
}

/// Asserts that values agree to `relative` of their size or of `scale`, whichever is larger.
#[track_caller]
fn assert_close<T: Element>(name: &str, got: &[T], expected: &[f64], relative: f64, scale: f64) {
    assert_eq!(got.len(), expected.len(), "{name}");
    for (i, (got, expected)) in got.iter().zip(expected).enumerate() {
        let bound = relative * expected.abs().max(scale);
        assert!((got.to_f64() - expected).abs() <= bound, "{name}[{i}] is {got:?}, expected {expected:e}");
    }
}

/// A problem in f64 whose loss is sum(w * y). With w = 1 throughout, that of training would not depend on x.
struct Problem {
    shape: Shape,
    x: Vec<f64>,
    w: Vec<f64>,
    gamma: Option<Vec<f64>>,
    beta: Option<Vec<f64>>,
    mean: Vec<f64>,
    var: Vec<f64>,
    eps: f64,
}

/// What a loss is a function of.
#[derive(Debug, Clone, Copy)]
enum Variable {
    X,
    Gamma,
    Beta,
    Mean,
    Var,
}

/// All gradients of a pass.
struct All {
    dx: Vec<f64>,
    dgamma: Vec<f64>,
    dbeta: Vec<f64>,
    dmean: Vec<f64>,
    dvar: Vec<f64>,
}

impl Problem {
    fn new(shape: Shape, affine: bool, eps: f64, seed: u64) -> Self {
        let (rng, c) = (&mut data::rng(seed), shape.channels());
        let mut normals =
            |len, mean, std| (0..len).map(|_| mean + std * data::normal(rng)).collect::<Vec<f64>>();
        let x = normals(shape.len(), 0.7, 2.0);
        let w = normals(shape.len(), 0.3, 1.0);
        let [gamma, beta] = [1.5, -0.4].map(|mean| affine.then(|| normals(c, mean, 1.0)));
        let mean = normals(c, 0.5, 1.0);
        let var = normals(c, 0.0, 1.0).iter().map(|n| 0.5 + n * n).collect();
        Self { shape, x, w, gamma, beta, mean, var, eps }
    }

    fn params(&self) -> Params<'_, f64> {
        let mut params = Params::new(self.eps);
        params.gamma = self.gamma.as_deref();
        params.beta = self.beta.as_deref();
        params
    }

    fn states(&self) -> Vec<Welford> {
        let mut states = vec![Welford::new(); self.shape.channels()];
        statistics(&self.shape, &self.x, &mut states).unwrap();
        states
    }

    fn loss(&self, training: bool) -> f64 {
        let mut y = vec![0.0; self.x.len()];
        if training {
            let mut states = vec![Welford::new(); self.shape.channels()];
            forward_training(&self.shape, &self.x, &self.params(), &mut y, &mut states).unwrap();
        } else {
            forward_inference(&self.shape, &self.x, &self.mean, &self.var, &self.params(), &mut y).unwrap();
        }
        y.iter().zip(&self.w).map(|(y, w)| y * w).sum()
    }

    fn gradients(&self, training: bool) -> All {
        let c = || vec![0.0; self.shape.channels()];
        let mut all = All { dx: vec![0.0; self.x.len()], dgamma: c(), dbeta: c(), dmean: c(), dvar: c() };
        let gradients = Gradients::new()
            .dx(&mut all.dx)
            .dgamma(&mut all.dgamma)
            .dbeta(&mut all.dbeta)
            .dmean(&mut all.dmean)
            .dvar(&mut all.dvar);
        let (shape, x, w) = (&self.shape, &self.x, &self.w);
        if training {
            backward(shape, x, w, &self.states(), &self.params(), gradients).unwrap();
        } else {
            backward_frozen(shape, x, w, &self.mean, &self.var, &self.params(), gradients).unwrap();
        }
        all
    }

    /// The loss's derivatives by central differences.
    fn differences(&mut self, training: bool, variable: Variable) -> Vec<f64> {
        // Errors of some h^2 (the formula's) and 1e-16 / h (rounding) add up to least around here.
        const H: f64 = 1e-5;
        fn values(problem: &mut Problem, variable: Variable) -> Option<&mut Vec<f64>> {
            match variable {
                Variable::X => Some(&mut problem.x),
                Variable::Gamma => problem.gamma.as_mut(),
                Variable::Beta => problem.beta.as_mut(),
                Variable::Mean => Some(&mut problem.mean),
                Variable::Var => Some(&mut problem.var),
            }
        }
        let start = values(self, variable).cloned().unwrap_or_default();
        let mut differences = Vec::new();
        for (i, value) in start.into_iter().enumerate() {
            let [above, below, _] = [value + H, value - H, value].map(|value| {
                if let Some(values) = values(self, variable) {
                    values[i] = value;
                }
                self.loss(training)
            });
            differences.push((above - below) / (2.0 * H));
        }
        differences
    }
}

/// Of all kinds: one plane and many, rows shorter and longer than a vector, one channel and many.
fn problems() -> Vec<Problem> {
    let mut problems = Vec::new();
    for layout in LAYOUTS {
        for (batch, channels, spatial) in [
            (3, 2, &[5][..]),
            (1, 3, &[3, 7]),
            (9, 5, &[]),
            (2, 1, &[4, 5]),
            (2, 17, &[2, 2, 2]),
            (40, 1, &[]),
        ] {
            for affine in [true, false] {
                for eps in [0.0, 0.5] {
                    let seed = problems.len() as u64;
                    problems.push(Problem::new(shape(layout, batch, channels, spatial), affine, eps, seed));
                }
            }
        }
    }
    problems
}

#[test]
fn training_against_finite_differences() {
    for mut problem in problems() {
        let all = problem.gradients(true);
        assert_close("dx", &all.dx, &problem.differences(true, Variable::X), 1e-7, 1.0);
        if problem.gamma.is_some() {
            assert_close("dgamma", &all.dgamma, &problem.differences(true, Variable::Gamma), 1e-7, 1.0);
            assert_close("dbeta", &all.dbeta, &problem.differences(true, Variable::Beta), 1e-7, 1.0);
        }
        // Inference with the batch's statistics is the same map, with them as variables.
        let states = problem.states();
        problem.mean = states.iter().map(Welford::mean).collect();
        problem.var = states.iter().map(Welford::variance).collect();
        assert_close("dmean", &all.dmean, &problem.differences(false, Variable::Mean), 1e-7, 1.0);
        assert_close("dvar", &all.dvar, &problem.differences(false, Variable::Var), 1e-7, 1.0);
    }
}

#[test]
fn inference_against_finite_differences() {
    for mut problem in problems() {
        let all = problem.gradients(false);
        assert_close("dx", &all.dx, &problem.differences(false, Variable::X), 1e-7, 1.0);
        assert_close("dmean", &all.dmean, &problem.differences(false, Variable::Mean), 1e-7, 1.0);
        assert_close("dvar", &all.dvar, &problem.differences(false, Variable::Var), 1e-7, 1.0);
        if problem.gamma.is_some() {
            assert_close("dgamma", &all.dgamma, &problem.differences(false, Variable::Gamma), 1e-7, 1.0);
            assert_close("dbeta", &all.dbeta, &problem.differences(false, Variable::Beta), 1e-7, 1.0);
        }
    }
}

/// The chain rule as the 2015 paper writes it: what goes past the statistics, through the variance, through the mean.
#[test]
fn dx_of_training_is_put_together_from_the_parts() {
    for mut problem in problems() {
        let all = problem.gradients(true);
        let states = problem.states();
        problem.mean = states.iter().map(Welford::mean).collect();
        problem.var = states.iter().map(Welford::variance).collect();
        let mut dx = problem.gradients(false).dx;
        let (shape, m) = (problem.shape, problem.shape.per_channel() as f64);
        for n in 0..shape.batch() {
            for (c, state) in states.iter().enumerate() {
                for s in 0..shape.spatial() {
                    let i = shape.offset(n, c, s);
                    dx[i] += all.dvar[c] * 2.0 * (problem.x[i] - state.mean()) / m + all.dmean[c] / m;
                }
            }
        }
        assert_close("dx", &all.dx, &dx, 1e-13, 10.0);
    }
}

/// dmean and dvar in f32, which the accuracy contract does not name: as good as the sums that they are made of.
#[test]
fn dmean_and_dvar_in_f32() {
    for set in [&NAMED[0], &NAMED[2], &NAMED[4], &HARD[9]] {
        let shape = shape(Layout::Nchw, 4, 1, &[2500]);
        let x = set.generate(shape.len(), 1);
        let dy = data::normals(shape.len(), 2, 0.5, 1.0);
        let mut states = [Welford::new()];
        statistics(&shape, &x, &mut states).unwrap();
        let (mut dmean, mut dvar) = ([0f32], [0f32]);
        let gradients = Gradients::new().dmean(&mut dmean).dvar(&mut dvar);
        backward(&shape, &x, &dy, &states, &Params::default().gamma(&[1.5]), gradients).unwrap();
        let normalization = Normalization::training(&Statistics::of(&x), 1e-5, 1.5, 0.0);
        let exact = exact::Gradients::of(normalization, &x, &dy, true);
        let relative = 2f64.powi(-21);
        for (what, got, exact) in [("dmean", dmean, exact.dmean()), ("dvar", dvar, exact.dvar())] {
            assert_close(what, &got, &[exact.value], relative, exact.scale);
        }
    }
}

/// dL/dmean and dL/dvar in f64 whose factors multiply out of range on the way, where the outcome is in range.
#[test]
fn mean_and_variance_gradients_have_room_on_the_way() {
    let power = |exponent: i32| 2f64.powi(exponent);
    let shape = shape(Layout::Nchw, 1, 1, &[2]);
    // Deviations, dy's, eps, gamma, and dmean, dvar, dx by hand.
    let large = (power(512), power(500), 0.0, power(800), -power(790), -power(276), None);
    let small = (power(-1020), 1.0, 0.25, power(-760), -power(-757), 0.0, Some(power(-759)));
    for (deviation, unit, eps, gamma, dmean, dvar, dx) in [large, small] {
        let (x, dy) = ([-deviation, deviation], [unit, 3.0 * unit]);
        let mut states = [Welford::new()];
        statistics(&shape, &x, &mut states).unwrap();
        let (mut got_dmean, mut got_dvar, mut got_dx) = ([0f64], [0f64], [0f64; 2]);
        let gradients = Gradients::new().dmean(&mut got_dmean).dvar(&mut got_dvar).dx(&mut got_dx);
        backward(&shape, &x, &dy, &states, &Params::new(eps).gamma(&[gamma]), gradients).unwrap();
        assert_eq!((got_dmean[0], got_dvar[0].abs()), (dmean, dvar.abs()), "deviations of {deviation:e}");
        assert!(got_dvar[0] <= 0.0);
        if let Some(dx) = dx {
            assert_eq!(got_dx, [-dx, dx]);
        }
    }
}

/// Frozen statistics whose mean is so far from x that x - mean leaves f64's range, where xhat does not.
#[test]
fn frozen_gradients_have_room_for_deviations() {
    let (x, dy) = ([f64::MAX, 0.75 * f64::MAX, -1e307, 2.0], [3e-42, -1e-42, 7e-42, 5e-42]);
    for (mean, var) in [(-0.5 * f64::MAX, 16.0), (-1e293, 1.0), (-f64::MAX, 1e30), (1e307, 1e-3)] {
        let normalization = Normalization::inference(mean, var, 0.0, 1.0, 0.0);
        let exact = exact::Gradients::of(normalization, &x, &dy, false);
        for layout in LAYOUTS {
            let (mut dgamma, mut dx) = ([0.0], [0.0; 4]);
            let gradients = Gradients::new().dgamma(&mut dgamma).dx(&mut dx);
            let shape = shape(layout, 2, 1, &[2]);
            backward_frozen(&shape, &x, &dy, &[mean], &[var], &Params::new(0.0), gradients).unwrap();
            let expected = [exact.dgamma.value];
            if normalization.xhat(f64::MAX).is_finite() {
                assert_close(
                    &format!("dgamma about {mean:e}"),
                    &dgamma,
                    &expected,
                    2f64.powi(-48),
                    exact.dgamma.scale,
                );
            }
            let expected = dy.map(|dy| dy * normalization.invstd);
            assert_close(&format!("dx about {mean:e}"), &dx, &expected, 2f64.powi(-48), 0.0);
        }
    }
    // At the mean, however large that and invstd are.
    for (mean, var) in [(f64::MAX, 7e-6), (-1e307, 1e-10), (1e300, 1e-300), (-1e200, 1e-250)] {
        let (mut dgamma, shape) = ([1.0], shape(Layout::Nchw, 2, 1, &[2]));
        let gradients = Gradients::new().dgamma(&mut dgamma);
        backward_frozen(&shape, &[mean; 4], &dy, &[mean], &[var], &Params::new(0.0), gradients).unwrap();
        assert_eq!(dgamma, [0.0], "at {mean:e}");
    }
}

/// No gradient along 1 and xhat, along which y does not change (with eps = 0).
#[test]
fn dx_is_orthogonal_to_ones_and_to_xhat() {
    fn check<T: Element>(name: &str, x: &[T], dy: &[T], relative: f64) {
        let shape = shape(Layout::Nchw, 1, 1, &[x.len()]);
        let (mut states, mut dx) = ([Welford::new()], vec![T::default(); x.len()]);
        statistics(&shape, x, &mut states).unwrap();
        let params = Params::new(0.0);
        backward(&shape, x, dy, &states, &params, Gradients::new().dx(&mut dx)).unwrap();
        let normalization = Normalization::training(&Statistics::of(x), 0.0, 1.0, 0.0);
        let exact = exact::Gradients::of(normalization, x, dy, true);
        let (mut sum, mut along, mut bound, mut bound_along) = (0.0, 0.0, 0.0, 0.0);
        for ((x, dy), dx) in x.iter().zip(dy).zip(&dx) {
            let (xhat, scale) = (normalization.xhat(x.to_f64()), exact.dx(x.to_f64(), dy.to_f64()).scale);
            sum += dx.to_f64();
            along += dx.to_f64() * xhat;
            bound += relative * scale;
            bound_along += relative * scale * xhat.abs();
        }
        assert!(sum.abs() <= bound, "{name}: sum(dx) is {sum:e}, must be within {bound:e}");
        assert!(
            along.abs() <= bound_along,
            "{name}: sum(dx xhat) is {along:e}, must be within {bound_along:e}"
        );
    }
    for set in [&NAMED[0], &NAMED[2], &NAMED[4], &NAMED[13], &HARD[21]] {
        for len in [5, 1000, 30_000] {
            let (x, dy) = (set.generate(len, 1), data::normals(len, 2, 0.3, 1.0));
            check(set.name, &x, &dy, 2f64.powi(-20));
            let [x, dy] = [x, dy].map(|values| values.into_iter().map(f64::from).collect::<Vec<f64>>());
            check(set.name, &x, &dy, 1e-12);
        }
    }
}

/// Asserts the contract's bounds on a channel's statistics.
#[track_caller]
fn assert_statistics(name: &str, state: &Welford, exact: &Statistics) {
    let (mean, var) = (exact.mean.value(), exact.var());
    assert_eq!(state.count(), exact.count as u64, "{name}");
    // States are f64, and merging them should cost next to nothing: bounds far below the contract's for f32.
    let bound = f64::EPSILON * mean.abs() + 1e-11 * var.sqrt();
    assert!((state.mean() - mean).abs() <= bound, "{name}: mean {:e}, exactly {mean:e}", state.mean());
    let relative = (state.variance() - var).abs();
    assert!(relative <= 1e-9 * var, "{name}: variance {:e}, exactly {var:e}", state.variance());
}

fn merge_sets() -> impl Iterator<Item = &'static DataSet> {
    // Blocks of 10^+-30 and the like too: every part has another mean and spread.
    NAMED.iter().chain(&HARD)
}

/// The states of parts of random sizes, some of them empty.
fn parts(x: &[f32], seed: u64) -> Vec<Welford> {
    let (rng, mut states, mut rest) = (&mut data::rng(seed), Vec::new(), x);
    while !rest.is_empty() {
        let (part, next) = rest.split_at(rng.random_range(0..=rest.len().min(3000)));
        let mut state = [Welford::new()];
        statistics(&shape(Layout::Nchw, 1, 1, &[part.len()]), part, &mut state).unwrap();
        states.push(state[0]);
        rest = next;
    }
    states
}

fn merged(mut left: Welford, right: &Welford) -> Welford {
    left.merge(right);
    left
}

#[test]
fn states_merge_in_any_order_and_grouping() {
    fn tree(states: &[Welford]) -> Welford {
        match states {
            [] => Welford::new(),
            [state] => *state,
            _ => {
                let (left, right) = states.split_at(states.len() / 2);
                merged(tree(left), &tree(right))
            }
        }
    }
    for set in merge_sets() {
        for (seed, len) in [3, 100, 20_000].into_iter().enumerate() {
            let seed = seed as u64;
            let x = set.generate(len, seed);
            let exact = Statistics::of(&x);
            let mut states = parts(&x, seed);
            let forwards = states.iter().fold(Welford::new(), merged);
            let backwards = states.iter().rev().fold(Welford::new(), merged);
            for (order, state) in [("forwards", forwards), ("backwards", backwards), ("tree", tree(&states))]
            {
                assert_statistics(&format!("{} x {len}, {order}", set.name), &state, &exact);
            }
            for _ in 0..5 {
                states.shuffle(&mut data::rng(seed));
                assert_statistics(&format!("{} x {len}, shuffled", set.name), &tree(&states), &exact);
            }
            let pushed: Welford = x.iter().map(|x| f64::from(*x)).collect();
            assert_statistics(&format!("{} x {len}, one by one", set.name), &pushed, &exact);
        }
    }
}

#[test]
fn merging_nothing_changes_nothing() {
    let state: Welford = [1.0, 2.5, -3.0].into_iter().collect();
    assert_eq!(merged(state, &Welford::new()), state);
    assert_eq!(merged(Welford::new(), &state), state);
    assert_eq!(merged(Welford::new(), &Welford::new()), Welford::new());
}

#[test]
fn unbiased_variance() {
    let state: Welford = [1.0, 2.0, 6.0].into_iter().collect();
    assert_eq!((state.m2(), state.variance(), state.variance_unbiased()), (14.0, 14.0 / 3.0, 7.0));
    let one: Welford = [1.0].into_iter().collect();
    assert!(one.variance_unbiased().is_nan() && Welford::new().variance_unbiased().is_nan());
    assert_eq!(Welford::from_iter([1.0, 3.0]).variance_unbiased(), 2.0);
    assert_eq!((one.variance(), Welford::new().variance()), (0.0, 0.0));
}

/// The states of two half batches are the batch's, and backward takes them: what a batch spread over two machines needs.
#[test]
fn halves_of_a_batch() {
    for layout in LAYOUTS {
        let (whole, half) = (shape(layout, 8, 3, &[9, 10]), shape(layout, 4, 3, &[9, 10]));
        let x = data::normals(whole.len(), 1, 1e3, 1.0);
        let dy = data::normals(whole.len(), 2, 0.5, 1.0);
        let mut halves = [[Welford::new(); 3]; 2];
        for (x, states) in x.chunks(half.len()).zip(&mut halves) {
            statistics(&half, x, states).unwrap();
        }
        let [mut states, right] = halves;
        states.iter_mut().zip(&right).for_each(|(left, right)| left.merge(right));
        let mut dx = vec![0.0; whole.len()];
        let params = Params::default();
        backward(&whole, &x, &dy, &states, &params, Gradients::new().dx(&mut dx)).unwrap();
        for (c, state) in states.iter().enumerate() {
            let [x, dy, dx] = [&x, &dy, &dx].map(|tensor| exact::channel(&whole, tensor, c));
            let exact = Statistics::of(&x);
            assert_statistics("halves", state, &exact);
            let normalization = Normalization::training(&exact, params.eps, 1.0, 0.0);
            let gradients = exact::Gradients::of(normalization, &x, &dy, true);
            for ((x, dy), dx) in x.iter().zip(&dy).zip(&dx) {
                let exact = gradients.dx(f64::from(*x), f64::from(*dy));
                assert!((f64::from(*dx) - exact.value).abs() <= 2f64.powi(-20) * exact.scale);
            }
        }
    }
}

#[test]
fn streaming_over_batches() {
    for layout in LAYOUTS {
        let sets: Vec<&DataSet> = merge_sets().collect();
        let batches = [1, 7, 64, 3];
        let mut elements = vec![Vec::new(); sets.len()];
        let (mut all, mut first, mut second) = (
            StreamingStatistics::new(sets.len()),
            StreamingStatistics::new(sets.len()),
            StreamingStatistics::new(sets.len()),
        );
        for (i, batch) in batches.into_iter().enumerate() {
            let shape = shape(layout, batch, sets.len(), &[11, 3]);
            let mut x = vec![0f32; shape.len()];
            for (c, set) in sets.iter().enumerate() {
                let plane = set.generate(shape.per_channel(), (10 * c + i) as u64);
                for (j, element) in plane.iter().enumerate() {
                    x[shape.offset(j / shape.spatial(), c, j % shape.spatial())] = *element;
                }
                elements[c].extend(plane);
            }
            all.update(&shape, &x).unwrap();
            if i < 2 { &mut first } else { &mut second }.update(&shape, &x).unwrap();
        }
        second.merge(&first).unwrap();
        for (c, set) in sets.iter().enumerate() {
            let exact = Statistics::of(&elements[c]);
            assert_statistics(set.name, &all.states()[c], &exact);
            assert_statistics(set.name, &second.states()[c], &exact);
        }
    }
}

/// A step of training by hand, with the formulas of the 2015 paper: x = 1, 3, 5, 7 with eps = 4, so that
/// sqrt(var + eps) = sqrt(5 + 4) = 3; the second channel is the first's negative.
#[test]
fn a_worked_example() {
    fn check<T: Element>(layout: Layout, relative: f64) {
        let shape = shape(layout, 2, 2, &[2]);
        // From channels, sample after sample, to a tensor and back.
        let tensor = |first: [f64; 4], second: [f64; 4]| {
            let mut tensor = vec![T::default(); 8];
            for (c, values) in [first, second].into_iter().enumerate() {
                for (i, value) in values.into_iter().enumerate() {
                    tensor[shape.offset(i / 2, c, i % 2)] = T::from_f64(value);
                }
            }
            tensor
        };
        let assert = |name: &str, got: &[T], first: [f64; 4], second: [f64; 4]| {
            for (c, expected) in [first, second].iter().enumerate() {
                assert_close(name, &exact::channel(&shape, got, c), expected, relative, 1.0);
            }
        };
        let per_channel = |values: [f64; 2]| values.map(T::from_f64);

        let x = tensor([1.0, 3.0, 5.0, 7.0], [-1.0, -3.0, -5.0, -7.0]);
        let (gamma, beta) = (per_channel([3.0, 6.0]), per_channel([1.0, 0.0]));
        let params = Params::new(4.0).gamma(&gamma).beta(&beta);
        let (mut y, mut states) = (tensor([0.0; 4], [0.0; 4]), [Welford::new(); 2]);
        forward_training(&shape, &x, &params, &mut y, &mut states).unwrap();
        assert_eq!(states.map(|state| (state.mean(), state.variance())), [(4.0, 5.0), (-4.0, 5.0)]);
        // xhat = -1, -1/3, 1/3, 1.
        assert("y", &y, [-2.0, 0.0, 2.0, 4.0], [6.0, 2.0, -2.0, -6.0]);

        let dy = tensor([1.0, 2.0, 0.0, -1.0], [0.0, 0.0, 0.0, 1.0]);
        let mut dx = tensor([0.0; 4], [0.0; 4]);
        let [mut dgamma, mut dbeta, mut dmean, mut dvar] = [per_channel([0.0; 2]); 4];
        let gradients = Gradients::new()
            .dx(&mut dx)
            .dgamma(&mut dgamma)
            .dbeta(&mut dbeta)
            .dmean(&mut dmean)
            .dvar(&mut dvar);
        backward(&shape, &x, &dy, &states, &params, gradients).unwrap();
        // First channel: dL/dxhat = 3, 6, 0, -3;
        // dL/dvar = sum(dL/dxhat (x - mean)) * -1/2 * 9^(-3/2) = (-9 - 6 - 9) * -1/54 = 4/9;
        // dL/dmean = -sum(dL/dxhat) / 3 = -2;
        // dL/dx = dL/dxhat / 3 + dL/dvar * 2 (x - mean) / 4 + dL/dmean / 4
        //       = 1 - 2/3 - 1/2, 2 - 2/9 - 1/2, 2/9 - 1/2, -1 + 2/3 - 1/2.
        // Second: dL/dxhat = 0, 0, 0, 6; dL/dvar = 6 * -3 * -1/54 = 1/3; dL/dmean = -2;
        // dL/dx = 1/6 (3, 1, -1, -3) - 1/2 + (0, 0, 0, 2).
        assert_close("dbeta", &dbeta, &[2.0, 1.0], relative, 1.0);
        assert_close("dgamma", &dgamma, &[-8.0 / 3.0, -1.0], relative, 1.0);
        assert_close("dmean", &dmean, &[-2.0, -2.0], relative, 1.0);
        assert_close("dvar", &dvar, &[4.0 / 9.0, 1.0 / 3.0], relative, 1.0);
        let second = [0.0, -1.0 / 3.0, -2.0 / 3.0, 1.0];
        assert("dx", &dx, [-1.0 / 6.0, 23.0 / 18.0, -5.0 / 18.0, -5.0 / 6.0], second);

        // Given statistics: mean 1, variance 12, so that sqrt(var + eps) = 4.
        let (mean, var) = (per_channel([1.0, 1.0]), per_channel([12.0, 12.0]));
        forward_inference(&shape, &x, &mean, &var, &params, &mut y).unwrap();
        assert("y", &y, [1.0, 2.5, 4.0, 5.5], [-3.0, -6.0, -9.0, -12.0]);
        let gradients = Gradients::new()
            .dx(&mut dx)
            .dgamma(&mut dgamma)
            .dbeta(&mut dbeta)
            .dmean(&mut dmean)
            .dvar(&mut dvar);
        backward_frozen(&shape, &x, &dy, &mean, &var, &params, gradients).unwrap();
        assert("dx", &dx, [0.75, 1.5, 0.0, -0.75], [0.0, 0.0, 0.0, 1.5]);
        assert_close("dbeta", &dbeta, &[2.0, 1.0], relative, 1.0);
        // xhat = 0, 1/2, 1, 3/2 and -1/2, -1, -3/2, -2.
        assert_close("dgamma", &dgamma, &[-0.5, -2.0], relative, 1.0);
        assert_close("dmean", &dmean, &[-1.5, -1.5], relative, 1.0);
        // -1/2 gamma dgamma / (var + eps).
        assert_close("dvar", &dvar, &[0.75 / 16.0, 6.0 / 16.0], relative, 1.0);

        // The layer, by three conventions: the running statistics after this batch, from 0 and 1.
        let with = |rule, variance| BatchNorm::new(2).with_update(RunningUpdate { rule, variance });
        for (layer, mean, var) in [
            // 0.9 + 0.1 * 20/3: the unbiased variance of four elements of M2 20.
            (BatchNorm::<T>::new(2), 0.4, 0.9 + 2.0 / 3.0),
            (BatchNorm::keras(2), 0.04, 0.99 + 0.05),
            (BatchNorm::onnx(2), 0.4, 0.9 + 0.5),
            (with(UpdateRule::Cumulative, RunningVariance::Biased), 4.0, 5.0),
            (with(UpdateRule::Momentum(0.25), RunningVariance::Unbiased), 1.0, 0.75 + 5.0 / 3.0),
        ] {
            let mut layer = layer.with_eps(4.0);
            layer.gamma_mut().unwrap().copy_from_slice(&gamma);
            layer.beta_mut().unwrap().copy_from_slice(&beta);
            layer.forward_training(&shape, &x, &mut y).unwrap();
            assert("y", &y, [-2.0, 0.0, 2.0, 4.0], [6.0, 2.0, -2.0, -6.0]);
            assert_close("running mean", layer.running_mean(), &[mean, -mean], relative, 1.0);
            assert_close("running variance", layer.running_var(), &[var, var], relative, 1.0);
            layer.backward(&shape, &x, &dy, &mut dx).unwrap();
            assert("dx", &dx, [-1.0 / 6.0, 23.0 / 18.0, -5.0 / 18.0, -5.0 / 6.0], second);
            layer.step(0.3).unwrap();
            assert_close("gamma", layer.gamma().unwrap(), &[3.8, 6.3], relative, 1.0);
            assert_close("beta", layer.beta().unwrap(), &[0.4, -0.3], relative, 1.0);
            layer.forward_inference(&shape, &x, &mut y).unwrap();
            let std = (var + 4.0).sqrt();
            let y_of = |x: f64| 3.8 * (x - mean) / std + 0.4;
            let y_of_second = |x: f64| 6.3 * (x + mean) / std - 0.3;
            assert("y", &y, [1.0, 3.0, 5.0, 7.0].map(y_of), [-1.0, -3.0, -5.0, -7.0].map(y_of_second));
        }
    }
    for layout in LAYOUTS {
        check::<f32>(layout, 1e-6);
        check::<f64>(layout, 1e-14);
    }
}
