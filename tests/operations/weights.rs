//! Weights of samples: how often each counts.

use batchnorm::reference::{self, MeanVar};
use batchnorm::{Activation, Gradients, Layout, Params, Shape, Training, Welford};
use rand::Rng;

use crate::common::data::rng;
use crate::common::exact::{self, Normalization, Statistics};
use crate::common::matrix::{Bits, FNV_START, LAYOUTS, Problem, configurations, fnv, variate};

const DIMS: [&[usize]; 8] = [
    &[1, 3, 5],
    &[9, 5, 7, 7],
    &[300, 17],
    &[40, 3, 2],
    &[33, 66, 3, 3],
    &[20, 6, 14, 14],
    &[3, 2, 9000],
    &[260, 1],
];

/// A weight for each sample: 0 for some, else a number of copies, or any number.
fn weights(n: usize, whole: bool, rng: &mut impl Rng) -> Vec<f64> {
    let weight = |i: usize| match i % 5 {
        3 => 0.0,
        _ if whole => ((variate(rng).abs() * 3.0) as u32 + 1).into(),
        _ => variate(rng).abs() + 0.01,
    };
    (0..n).map(weight).collect()
}

/// All that a weighted call gives: y, states, dx and sums.
struct Weighted<T> {
    y: Vec<T>,
    states: Vec<Welford>,
    dx: Vec<T>,
    sums: [Vec<T>; 4],
}

impl<T: Bits> Weighted<T> {
    fn of(problem: &Problem<T>, layout: Layout, weights: &[f64]) -> Self {
        let shape = problem.shape(layout);
        let [x, dy] = [&problem.x, &problem.dy].map(|tensor| problem.lay_out(layout, tensor));
        let zeros = |len| vec![T::from_f64(0.0); len];
        let (c, len, params) = (shape.channels(), shape.len(), problem.params());
        let (mut y, mut dx, mut states) = (zeros(len), zeros(len), vec![Welford::new(); c]);
        let mut sums = [(); 4].map(|()| zeros(c));
        Training::new(&shape, params).x(&x).y(&mut y).states(&mut states).weights(weights).run().unwrap();
        let [dgamma, dbeta, dmean, dvar] = sums.each_mut();
        let gradients = Gradients::new().dx(&mut dx).dgamma(dgamma).dbeta(dbeta).dmean(dmean).dvar(dvar);
        let backward = batchnorm::Backward::new(&shape, params).x(&x).dy(&dy).states(&states);
        backward.weights(weights).gradients(gradients).run().unwrap();
        let mut alone = vec![Welford::new(); c];
        batchnorm::Statistics::new(&shape).x(&x).states(&mut alone).weights(weights).run().unwrap();
        assert_eq!(format!("{alone:?}"), format!("{states:?}"));
        let [y, dx] = [y, dx].map(|tensor| problem.lay_back(layout, &tensor));
        Self { y, states, dx, sums }
    }

    fn bits(&self) -> Vec<u64> {
        let tensors = [&self.y, &self.dx].into_iter().chain(&self.sums).flatten().map(|value| value.bits());
        let states = self.states.iter().flat_map(|state| {
            let parts = state.into_parts();
            [
                parts.count,
                parts.mean.to_bits(),
                parts.mean_low.to_bits(),
                parts.m2.to_bits(),
                parts.m2_low.to_bits(),
            ]
        });
        tensors.chain(states).collect()
    }
}

/// On every level, in both layouts, on 1, 2, 3 and 7 threads. `-- --nocapture weighted` prints the hash.
#[test]
fn weighted_calls_have_the_same_bits_everywhere() {
    /// Of f32, and of f64.
    const HASHES: [u64; 2] = [0xfb43_f855_ff9d_5bd4, 0x9b78_e3ee_0fdd_5e8f];
    fn hash_of<T: Bits>(layout: Layout) -> u64 {
        DIMS.into_iter().enumerate().fold(FNV_START, |hash, (seed, dims)| {
            let problem = Problem::<T>::new(dims, seed as u64);
            let weights = weights(dims[0], seed % 2 == 1, &mut rng(seed as u64));
            Weighted::of(&problem, layout, &weights).bits().into_iter().fold(hash, fnv)
        })
    }
    let mut all = Vec::new();
    for configuration in configurations() {
        for layout in LAYOUTS {
            let hashes = configuration.run(|| [hash_of::<f32>(layout), hash_of::<f64>(layout)]);
            println!("{hashes:016x?} {configuration:?} {layout:?}");
            all.push(hashes);
        }
    }
    assert!(all.iter().all(|hashes| *hashes == HASHES), "not the same bits");
}

/// Samples as many times as their weights say.
fn repeated<T: Bits>(problem: &Problem<T>, weights: &[f64]) -> Problem<T> {
    let each = problem.x.len() / problem.dims[0];
    let copies = |tensor: &[T]| -> Vec<T> {
        let samples = tensor.chunks(each).zip(weights);
        samples.flat_map(|(sample, weight)| sample.repeat(*weight as usize)).collect()
    };
    let dims = [&[weights.iter().sum::<f64>() as usize], &problem.dims[1..]].concat();
    let (x, dy, z) = (copies(&problem.x), copies(&problem.dy), copies(&problem.z));
    Problem { dims, x, dy, z, ..problem.clone() }
}

/// Weights that are whole numbers are repetition, to the bounds of the accuracy contract: by an exact oracle over the copies.
#[test]
fn whole_weights_are_repetition() {
    fn check<T: Bits>() {
        for (seed, dims) in DIMS.into_iter().enumerate() {
            let problem = Problem::<T>::new(dims, seed as u64);
            let weights = weights(dims[0], true, &mut rng(seed as u64));
            let results = Weighted::of(&problem, Layout::Nchw, &weights);
            let (shape, all) = (problem.shape(Layout::Nchw), repeated(&problem, &weights));
            let whole = all.shape(Layout::Nchw);
            for c in 0..shape.channels() {
                let what = format!("{} {dims:?}, channel {c}", T::NAME);
                let [x, dy] = [&all.x, &all.dy].map(|tensor| exact::channel(&whole, tensor, c));
                let (state, statistics) = (results.states[c], Statistics::of(&x));
                let (std, var) = (statistics.var().sqrt(), statistics.var());
                assert_eq!(state.count(), x.len() as u64, "{what}");
                let off = statistics.mean_distance(state.mean());
                assert!(off <= T::MEAN[0] * state.mean().abs() + T::MEAN[1] * std, "mean of {what}: {off:e}");
                assert!(statistics.var_distance(&state) <= T::VAR * var, "variance of {what}");
                let [gamma, beta] =
                    [&problem.gamma, &problem.beta].map(|of| of.as_ref().unwrap()[c].to_f64());
                let normalization = Normalization::training(&statistics, problem.eps, gamma, beta);
                let gradients = exact::Gradients::of(normalization, &x, &dy, true);
                let within = |value: T, exact: exact::Value, share: f64, name: &str| {
                    let off = exact.distance(value.to_f64());
                    let must = share * exact.scale + f64::from(f32::MIN_POSITIVE);
                    assert!(
                        off <= must,
                        "{name} of {what}: {value:?} is off by {off:e}, must be by {must:e}"
                    );
                };
                let [dgamma, dbeta, dmean, dvar] = results.sums.each_ref().map(|sums| sums[c]);
                within(dgamma, gradients.dgamma, T::SUMS, "dgamma");
                within(dbeta, gradients.dbeta, T::SUMS, "dbeta");
                within(dmean, gradients.dmean(), T::SUMS * 4.0, "dmean");
                within(dvar, gradients.dvar(), T::SUMS * 4.0, "dvar");
                // Samples of weight 0, too.
                for i in (0..shape.len()).filter(|i| i / shape.spatial() % shape.channels() == c) {
                    let (x, dy) = (problem.x[i].to_f64(), problem.dy[i].to_f64());
                    within(results.y[i], normalization.y(x), T::Y, "y");
                    let dx = gradients.dx(x, dy);
                    let cancelled = T::DX_CANCELLED * gradients.dgamma.scale / state.count() as f64;
                    let along =
                        cancelled * (normalization.xhat(x) * gamma / (var + problem.eps).sqrt()).abs();
                    let off = dx.distance(results.dx[i].to_f64());
                    assert!(off <= T::DX * dx.scale + along, "dx of {what}: off by {off:e}");
                }
            }
        }
    }
    check::<f32>();
    check::<f64>();
}

/// Any weights, beside the scalar reference.
#[test]
fn any_weights_are_the_references() {
    fn check<T: Bits>(share: f64) {
        for (seed, dims) in DIMS.into_iter().enumerate() {
            let problem = Problem::<T>::new(dims, seed as u64);
            let weights = weights(dims[0], false, &mut rng(seed as u64));
            for layout in LAYOUTS {
                let (shape, results) = (problem.shape(layout), Weighted::of(&problem, layout, &weights));
                let [x, dy] = [&problem.x, &problem.dy].map(|tensor| problem.lay_out(layout, tensor));
                let (c, params) = (shape.channels(), problem.params());
                let statistics = reference::weighted_statistics(&shape, &x, &weights);
                let mut dx = vec![T::from_f64(0.0); shape.len()];
                let mut sums = [(); 4].map(|()| vec![T::from_f64(0.0); c]);
                let [dgamma, dbeta, dmean, dvar] = sums.each_mut();
                let gradients =
                    Gradients::new().dx(&mut dx).dgamma(dgamma).dbeta(dbeta).dmean(dmean).dvar(dvar);
                reference::weighted_backward(&shape, (&x, &weights), &dy, &statistics, &params, gradients);
                let total = weights.iter().sum::<f64>() * shape.spatial() as f64;
                for channel in 0..c {
                    let (state, MeanVar { mean, var }) = (results.states[channel], statistics[channel]);
                    let what = format!("{} {dims:?} {layout:?}, channel {channel}", T::NAME);
                    assert_eq!(state.count(), total.round().max(1.0) as u64, "{what}");
                    let size = mean.abs() + var.sqrt();
                    assert!((state.mean() - mean).abs() <= 1e-12 * size, "mean of {what}");
                    let off = (state.variance() - var).abs();
                    assert!(off <= 1e-12 * (var + size * size * 1e-6), "variance of {what}: off by {off:e}");
                    let scale = (total + 1.0) * (1.0 + size / (var + 1e-5).sqrt());
                    for (got, expected) in results.sums.iter().zip(&sums) {
                        let off = (got[channel].to_f64() - expected[channel].to_f64()).abs();
                        let most = expected[channel].to_f64().abs() + scale;
                        assert!(off <= share * most * 1e5, "a sum of {what}: off by {off:e} of {most:e}");
                    }
                }
                let got = problem.lay_out(layout, &results.dx);
                for (got, expected) in got.iter().zip(&dx) {
                    let off = (got.to_f64() - expected.to_f64()).abs();
                    assert!(off <= share * 1e6 * (1.0 + expected.to_f64().abs()), "dx {dims:?} {off:e}");
                }
            }
        }
    }
    check::<f32>(f64::from(f32::EPSILON));
    check::<f64>(f64::EPSILON);
}

/// A light sample beside heavy ones: it moves the mean by little, which has to be right all the same. (Found by a user.)
#[test]
fn light_samples_are_not_lost_in_the_sum_of_weights() {
    fn of<T: Bits>(x: &[f64], weights: &[f64], dy: f64) -> Weighted<T> {
        let tensor = |value: &dyn Fn(usize) -> f64| (0..x.len()).map(|i| T::from_f64(value(i))).collect();
        let problem = Problem::<T>::new(&[x.len(), 1], 0).plain();
        let problem = Problem { x: tensor(&|i| x[i]), dy: tensor(&|_| dy), eps: 0.0, ..problem };
        let [straight, turned] = [false, true].map(|turned| {
            let (mut problem, mut weights) = (problem.clone(), weights.to_vec());
            if turned {
                problem.x.reverse();
                weights.reverse();
            }
            Weighted::of(&problem, Layout::Nchw, &weights)
        });
        let near = |a: f64, b: f64| (a - b).abs() <= 1e-12 * b.abs();
        let [one, other] = [straight.states[0], turned.states[0]];
        assert!(
            near(one.mean(), other.mean()) && near(one.variance(), other.variance()),
            "{one:?} {other:?}"
        );
        straight
    }
    let near = |got: f64, expected: f64, share: f64| {
        assert!((got - expected).abs() <= share * expected.abs(), "{got:e}, must be {expected:e}");
    };
    // By hand: of two samples, xhat of the heavy one is -sqrt(light / heavy).
    let results = of::<f64>(&[1.0, 0.0], &[1e-9, 0.3], 1.0);
    near(results.states[0].mean(), 1e-9 / 0.300000001, 1e-15);
    near(results.y[1], -(1e-9f64 / 0.3).sqrt(), 1e-13);
    assert!(results.dx[0].abs() <= 1e-10, "{:e}", results.dx[0]);

    let (tiny, huge) = (2f64.powi(-60), 2f64.powi(60));
    let results = of::<f32>(&[1e30, 6e13], &[tiny, huge], 1.0);
    near(results.states[0].mean(), 6e13, 1e-6);
    assert!(results.y[1].abs() <= 1e-12, "{}", results.y[1]);
    let results = of::<f32>(&[1e9, 1e-10, 1e-10, 3e-10], &[tiny, huge, huge, huge], 1.0);
    near(results.states[0].variance(), 2.597e-19, 1e-3);
    near(results.states[0].mean(), 5e-10 / 3.0, 1e-6);
    for light in [1.0, 2f64.powi(-47) / 16.0 * 2f64.powi(50)] {
        let weights = [light, 2f64.powi(50)];
        let results = of::<f32>(&[1_654_841.375, -6_517_877.0], &weights, 1.0);
        let xhat = -(weights[0] / weights[1]).sqrt();
        assert!((f64::from(results.y[1]) - xhat).abs() <= 1e-12, "{:e}, must be {xhat:e}", results.y[1]);
        assert!(results.sums[0][0].abs() <= 1100.0, "dgamma is {:e}, must be 0", results.sums[0][0]);
    }
}

/// A sample without a weight is in no statistics and no sum, whatever it holds; its own y and dx are its own.
#[test]
fn samples_of_weight_0_are_not_looked_at() {
    for dims in DIMS {
        let n = dims[0];
        let each: usize = dims[1..].iter().product();
        let weights: Vec<_> = (0..n).map(|i| if i % 3 == 1 { 0.0 } else { 1.0 + i as f64 / 7.0 }).collect();
        let problem = Problem::<f32>::new(dims, 3);
        let mut poisoned = problem.clone();
        for tensor in [&mut poisoned.x, &mut poisoned.dy] {
            let without = tensor.iter_mut().enumerate().filter(|(i, _)| weights[i / each] == 0.0);
            without.for_each(|(i, value)| *value = [f32::NAN, f32::INFINITY][i % 2]);
        }
        for layout in LAYOUTS {
            let [expected, got] =
                [&problem, &poisoned].map(|problem| Weighted::of(problem, layout, &weights));
            assert_eq!(got.states, expected.states, "{dims:?}");
            assert_eq!(got.sums, expected.sums);
            for (i, weight) in weights.iter().enumerate() {
                let [y, dx] = [[&got.y, &expected.y], [&got.dx, &expected.dx]]
                    .map(|pair| pair.map(|tensor| &tensor[i * each..(i + 1) * each]));
                assert!(*weight == 0.0 || (y[0] == y[1] && dx[0] == dx[1]), "{dims:?}, sample {i}");
                assert!(*weight != 0.0 || y[0].iter().all(|y| !y.is_finite()));
                let canonical = |value: &f32| !value.is_nan() || value.to_bits() == f32::NAN.to_bits();
                assert!(y[0].iter().chain(dx[0]).all(canonical), "{dims:?}, sample {i}");
            }
        }
    }
}

/// The largest and the least weights leave f64's range nowhere, and only their ratios matter to statistics.
#[test]
fn far_weights_are_taken() {
    let (largest, near) = ((1u64 << 60) as f64, |a: f64, b: f64| (a - b).abs() <= 1e-14 * b.abs());
    for size in [1e-140, 1e-30, 1.0, 1e30, 1e140] {
        let problem = Problem::<f64>::new(&[40, 3, 5], 1);
        let problem = Problem { x: problem.x.iter().map(|x| x * size).collect(), ..problem };
        let ones = Weighted::of(&problem, Layout::Nchw, &[1.0; 40]);
        for weight in [largest, 1.0 / largest] {
            let far = Weighted::of(&problem, Layout::Nchw, &[weight; 40]);
            for (far, one) in far.states.iter().zip(&ones.states) {
                assert!(far.mean() == one.mean() && near(far.variance(), one.variance()));
            }
            assert!(far.y.iter().zip(&ones.y).all(|(far, one)| (far - one).abs() <= 1e-13), "{size:e}");
            for (far, one) in far.sums.iter().flatten().zip(ones.sums.iter().flatten()) {
                assert!(near(*far, one * weight), "{far:e}, must be {:e}", one * weight);
            }
        }
    }
}

/// y and dx of a sample of weight 0, of whose channel the others are alike, or whose deviation from them is out of any proportion: by
/// the formulas.
#[test]
fn samples_of_weight_0_far_from_the_others() {
    fn of<T: Bits>(cases: &[[f64; 3]], eps: f64, scale: f64) {
        for (x, layout, activation) in
            cases.iter().flat_map(|x| LAYOUTS.map(|layout| (x, layout))).flat_map(|(x, layout)| {
                [Activation::Identity, Activation::Relu].map(|activation| (x, layout, activation))
            })
        {
            let (shape, weights) = (Shape::new(layout, 3, 1, &[]).unwrap(), [0.0, 1.0, 1.0]);
            let gamma = [T::from_f64(scale)];
            let params = Params::new(eps).activation(activation).gamma(&gamma);
            let scale = gamma[0].to_f64();
            let x = x.map(T::from_f64);
            let dy = [1.0, -2.0, 0.5].map(T::from_f64);
            let mut states = [Welford::new()];
            let [mut y, mut dx] = [[T::from_f64(7.0); 3]; 2];
            Training::new(&shape, params)
                .x(&x)
                .y(&mut y)
                .states(&mut states)
                .weights(&weights)
                .run()
                .unwrap();
            let backward = batchnorm::Backward::new(&shape, params).x(&x).dy(&dy).states(&states);
            backward.weights(&weights).gradients(Gradients::new().dx(&mut dx)).run().unwrap();

            let [a, b, c] = x.map(|value| value.to_f64());
            let (mean, half) = ((b + c) / 2.0, (b - c) / 2.0);
            let invstd = 1.0 / (half * half + eps).sqrt();
            let xhat = [a, b, c].map(|x| (x - mean) * invstd);
            let passes = |u: f64| activation == Activation::Identity || u > 0.0;
            let g = [0, 1, 2].map(|i| if passes(xhat[i]) { dy[i].to_f64() } else { 0.0 });
            let (mean_g, along) = ((g[1] + g[2]) / 2.0, (g[1] * xhat[1] + g[2] * xhat[2]) / 2.0);
            for i in 0..3 {
                let y_by_formula = if passes(xhat[i]) { scale * xhat[i] } else { 0.0 };
                let dx_by_formula = (g[i] - mean_g - xhat[i] * along) * invstd * scale;
                let near = |got: T, expected: f64, size: f64| {
                    let difference = (got.to_f64() - expected).abs();
                    assert!(
                        difference <= size * 1e-6 + 1e-44,
                        "{x:?} {layout:?} {activation:?} {i}: {got:?}, {expected:?}"
                    );
                };
                near(y[i], y_by_formula, scale * xhat[i].abs());
                let size = (g[i].abs() + mean_g.abs() + (xhat[i] * along).abs()) * invstd * scale;
                near(dx[i], dx_by_formula, size);
            }
        }
    }
    let alike = [[1.0, 0.0, 0.0], [6.0, 5.0, 5.0], [-3e4, 0.1, 0.1], [1.0, -1e-20, -1e-20]];
    let far = [[1e20, 1e-20, -1e-20], [100.0, 1e-37, -1e-37], [1e10, 3e-30, -1e-30], [1.0, 1e-40, 2e-40]];
    for eps in [1e-5, 1.0] {
        for scale in [1.0, 1e-3] {
            of::<f32>(&alike, eps, scale);
            of::<f64>(&alike, eps, scale);
            of::<f32>(&far, eps, scale);
            of::<f64>(&far, eps, scale);
        }
    }
    // xhat times the slope leaves the range on the way to a gradient within it.
    let farthest = [[3e38, -1.0, 1.0], [-3e38, 10.0, -10.0], [3e38, -1e3, 1e3], [1e35, -1e6, 1e6]];
    of::<f32>(&farthest, 0.0, 1e-3);
}
