//! Batch renormalization: the formulas in plain f64, the limits that are batch norm and inference, the layer and its operations.

use batchnorm::{
    Activation, Backward, BatchNorm, Error, Gather, Gradients, Inference, Mode, Params, Renorm, Renormalized,
    Shape, Training, Welford, WelfordParts, reference, reference::Correction, statistics,
};

use crate::common::fused::forms;
use crate::common::matrix::{Bits, Guarded, LAYOUTS, Problem, assert_same, layer_of, params};
use crate::common::others::in_threads;

const INFINITE: Renorm = Renorm { r_max: f64::INFINITY, d_max: f64::INFINITY };
const PAPER: Renorm = Renorm { r_max: 3.0, d_max: 5.0 };
const LIMITS: [Renorm; 7] = [
    Renorm { r_max: 1.0, d_max: 0.0 },
    Renorm { r_max: 1.25, d_max: 0.0 },
    Renorm { r_max: 1.0, d_max: 0.5 },
    Renorm { r_max: 1.5, d_max: 0.25 },
    PAPER,
    Renorm { r_max: 3.0, d_max: f64::INFINITY },
    INFINITE,
];
/// Few channels of planes and many of single elements; both end within a vector.
const DIMS: [&[usize]; 3] = [&[3, 9, 5, 2], &[37, 21], &[2, 3, 131]];
const TRAINING: [Mode; 2] = [Mode::Training, Mode::TrainingKeepRunning];

fn wide<T: Bits>(values: &[T]) -> Vec<f64> {
    values.iter().map(|value| value.to_f64()).collect()
}

/// The channel of each element.
fn channels(shape: &Shape) -> Vec<usize> {
    let mut channels = vec![0; shape.len()];
    for n in 0..shape.batch() {
        for c in 0..shape.channels() {
            (0..shape.spatial()).for_each(|s| channels[shape.offset(n, c, s)] = c);
        }
    }
    channels
}

/// y and all gradients, beside the reference in f64.
#[test]
fn the_layer_is_near_the_reference() {
    fn check<T: Bits>(limits: Renorm, activation: Activation, residual: bool) {
        for (layout, dims) in LAYOUTS.into_iter().flat_map(|layout| DIMS.map(|dims| (layout, dims))) {
            let problem = Problem::<T>::new(dims, 1);
            let shape = problem.shape(layout);
            let tensors = [&problem.x, &problem.z, &problem.dy].map(|tensor| problem.lay_out(layout, tensor));
            let layer = layer_of(&problem).with_renorm(limits).with_activation(activation);
            let by_layer = tensors.each_ref().map(|tensor| &tensor[..]);
            let (got, layer) = passes(layer, Mode::Training, &shape, by_layer, residual);

            let [x, z, dy] = tensors.each_ref().map(|tensor| wide(tensor));
            let z = residual.then_some(&z[..]);
            let [gamma, beta] =
                [&problem.gamma, &problem.beta].map(|values| wide(values.as_deref().unwrap()));
            let (mean, var) = (wide(&problem.mean), wide(&problem.var));
            let params = params(Some(&gamma), Some(&beta), problem.eps).activation(activation);
            let [mut y, mut dx, mut dz] = [(); 3].map(|()| vec![0.0; x.len()]);
            let [mut dgamma, mut dbeta] = [(); 2].map(|()| vec![0.0; gamma.len()]);
            let running = (&mean[..], &var[..]);
            let (batch, by) =
                reference::forward_renormalized(&shape, (&x, z), &limits, running, &params, &mut y);
            let gradients = Gradients::new().dx(&mut dx).dz(&mut dz).dgamma(&mut dgamma).dbeta(&mut dbeta);
            reference::backward_renormalized(&shape, (&x, z), &dy, (&batch, &by), &params, gradients);

            let near = |what: &str, got: f64, expected: f64, bound: f64| {
                assert!(
                    (got - expected).abs() <= bound + 1e-12,
                    "{what} {limits:?} {layout:?} {dims:?}: {got}, expected {expected}, bound {bound}"
                );
            };
            let states = layer.states();
            let by_kernel = limits.renormalize(states, &problem.mean, &problem.var, &problem.params());
            let by_kernel = by_kernel.unwrap();
            let channel_of = channels(&shape);
            for (c, (batch, by)) in batch.iter().zip(&by).enumerate() {
                let (gamma, beta) = (gamma[c].abs(), beta[c].abs());
                let invstd = 1.0 / (batch.var + problem.eps).sqrt();
                // What d is off by where means are large, in u and so in g.
                let off = 1e-12 * (1.0 + batch.mean.abs() * invstd);
                let slack = 4.0 * (T::Y + off);
                near("r", by_kernel.r()[c], by.r, slack * by.r);
                near("d", by_kernel.d()[c], by.d, slack * (1.0 + by.d.abs()));
                let of_channel: Vec<usize> = (0..x.len()).filter(|i| channel_of[*i] == c).collect();
                let xhat = |i: usize| ((x[i] - batch.mean) * invstd).abs();
                let sum = |of: &dyn Fn(usize) -> f64| of_channel.iter().map(|i| of(*i)).sum::<f64>();
                // SiLU is no steeper than 1.1, and neither is its derivative.
                let u =
                    |i: usize| gamma * (xhat(i) * by.r + by.d.abs()) + beta + z.map_or(0.0, |z| z[i].abs());
                let reach = |i: usize| 1.1 * dy[i].abs() * (1.0 + u(i));
                let (sum_of_g, sum_of_product) = (sum(&reach), sum(&|i| reach(i) * xhat(i)));
                near("dbeta", got[4].1[c].to_f64(), dbeta[c], slack * sum_of_g);
                let bound = slack * (by.r * sum_of_product + by.d.abs() * sum_of_g);
                near("dgamma", got[3].1[c].to_f64(), dgamma[c], bound);
                let m = shape.per_channel() as f64;
                for &i in &of_channel {
                    near("y", got[0].1[i].to_f64(), y[i], 1.2 * slack * u(i));
                    let terms = reach(i) + sum_of_g / m + xhat(i) * sum_of_product / m;
                    let bound = 2.0 * slack * gamma * by.r * invstd * terms;
                    near("dx", got[1].1[i].to_f64(), dx[i], bound);
                    if residual {
                        near("dz", got[2].1[i].to_f64(), dz[i], slack * reach(i));
                    }
                }
            }
        }
    }
    for limits in LIMITS {
        for (activation, residual) in
            [(Activation::Identity, false), (Activation::Identity, true), (Activation::Silu, false)]
        {
            check::<f32>(limits, activation, residual);
            check::<f64>(limits, activation, residual);
        }
    }
}

/// Backward is the derivative of y with r and d held, by finite differences.
#[test]
fn gradients_are_those_of_constant_corrections() {
    let shape = Shape::nchw(&[3, 2, 2]).unwrap();
    let x: Vec<f64> = (0..12).map(|i| f64::from(i * i % 7) + 0.25 * f64::from(i)).collect();
    let dy: Vec<f64> = (0..12).map(|i| f64::from(i * 5 % 11) - 4.5).collect();
    let (gamma, beta, eps) = (vec![1.5, -0.5], vec![0.25, 1.0], 0.01);
    for limits in LIMITS {
        let mut layer = BatchNorm::<f64>::new(2).with_eps(eps).with_renorm(limits);
        layer.gamma_mut().unwrap().copy_from_slice(&gamma);
        layer.beta_mut().unwrap().copy_from_slice(&beta);
        layer.running_mean_mut().copy_from_slice(&[2.0, 3.5]);
        layer.running_var_mut().copy_from_slice(&[9.0, 1.0]);
        layer = layer.with_activation(Activation::Silu);
        let batch = reference::statistics(&shape, &x);
        let by = reference::corrections(&batch, layer.running_mean(), layer.running_var(), &limits, eps);
        let (mut y, mut dx) = ([0.0; 12], [0.0; 12]);
        layer.forward(Mode::TrainingKeepRunning, &shape, &x, &mut y).unwrap();
        layer.backward(&shape, &x, &dy, &mut dx).unwrap();

        let channel_of = channels(&shape);
        let loss = |x: &[f64], gamma: &[f64], beta: &[f64]| -> f64 {
            let batch = reference::statistics(&shape, x);
            let term = |i: usize| {
                let (c, Correction { r, d }) = (channel_of[i], by[channel_of[i]]);
                let xhat = (x[i] - batch[c].mean) / (batch[c].var + eps).sqrt();
                dy[i] * reference::activate(Activation::Silu, gamma[c] * (xhat * r + d) + beta[c])
            };
            (0..x.len()).map(term).sum()
        };
        let h = 1e-5;
        let slope = |of: &dyn Fn(f64) -> f64| (of(h) - of(-h)) / (2.0 * h);
        let moved = |values: &[f64], i: usize, by: f64| {
            let mut values = values.to_vec();
            values[i] += by;
            values
        };
        let near = |what: &str, got: f64, expected: f64| {
            assert!((got - expected).abs() <= 1e-7, "{what}, {limits:?}: {got}, by differences {expected}");
        };
        for (i, dx) in dx.into_iter().enumerate() {
            near("dx", dx, slope(&|by| loss(&moved(&x, i, by), &gamma, &beta)));
        }
        for c in 0..2 {
            near("dgamma", layer.dgamma()[c], slope(&|by| loss(&x, &moved(&gamma, c, by), &beta)));
            near("dbeta", layer.dbeta()[c], slope(&|by| loss(&x, &gamma, &moved(&beta, c, by))));
        }
    }
}

/// Everything that a layer's forward and backward pass gives.
fn passes<T: Bits>(
    mut layer: BatchNorm<T>,
    mode: Mode,
    shape: &Shape,
    [x, z, dy]: [&[T]; 3],
    residual: bool,
) -> (Vec<(&'static str, Vec<T>)>, BatchNorm<T>) {
    let [mut y, mut dx, mut dz] = [(); 3].map(|()| vec![T::default(); x.len()]);
    if residual {
        layer.forward_with_residual(mode, shape, x, z, &mut y).unwrap();
        layer.backward_with_residual(shape, x, dy, &mut dx, &mut dz).unwrap();
    } else {
        layer.forward(mode, shape, x, &mut y).unwrap();
        layer.backward(shape, x, dy, &mut dx).unwrap();
    }
    let (dgamma, dbeta) = (layer.dgamma().to_vec(), layer.dbeta().to_vec());
    let running = [layer.running_mean(), layer.running_var()].concat();
    let all = [("y", y), ("dx", dx), ("dz", dz), ("dgamma", dgamma), ("dbeta", dbeta), ("running", running)];
    (all.into(), layer)
}

#[test]
fn r_of_1_and_d_of_0_are_batch_norm() {
    fn check<T: Bits>() {
        let problem = Problem::<T>::new(&[4, 13, 7], 2);
        let none = Renorm { r_max: 1.0, d_max: 0.0 };
        let mut spoilt = layer_of(&problem);
        spoilt.running_mean_mut()[1] = T::NAN;
        spoilt.running_var_mut()[2] = T::from_f64(-1.0);
        spoilt.gamma_mut().unwrap()[3] = T::INFINITY;
        spoilt.beta_mut().unwrap()[4] = T::from_f64(-0.0);
        let layers = [
            layer_of(&problem),
            layer_of(&problem).without_gamma(),
            layer_of(&problem).without_beta(),
            layer_of(&problem).without_gamma().without_beta(),
            spoilt,
        ];
        for (form, layout) in forms().into_iter().flat_map(|form| LAYOUTS.map(|layout| (form, layout))) {
            let shape = problem.shape(layout);
            let tensors = [&problem.x, &problem.z, &problem.dy].map(|tensor| problem.lay_out(layout, tensor));
            let tensors = tensors.each_ref().map(|tensor| &tensor[..]);
            for (layer, mode) in layers.iter().flat_map(|layer| TRAINING.map(|mode| (layer, mode))) {
                let layer = layer.clone().with_activation(form.activation);
                let (expected, plain) = passes(layer.clone(), mode, &shape, tensors, form.residual);
                let (got, renormalized) =
                    passes(layer.with_renorm(none), mode, &shape, tensors, form.residual);
                for ((what, got), (_, expected)) in got.iter().zip(&expected) {
                    assert_same(format_args!("{what} {form:?} {mode:?}"), got, expected);
                }
                assert_same("states", renormalized.states(), plain.states());
                assert_eq!(renormalized.batches(), plain.batches());
            }
        }
    }
    check::<f32>();
    check::<f64>();
}

#[test]
fn without_limits_y_is_that_of_inference() {
    fn check<T: Bits>() {
        let problem = Problem::<T>::new(&[5, 10, 4, 3], 3);
        for layout in LAYOUTS {
            let (shape, x) = (problem.shape(layout), problem.lay_out(layout, &problem.x));
            let mut layer = layer_of(&problem).with_renorm(INFINITE);
            let (mut inferred, mut y) = (vec![T::default(); x.len()], vec![T::default(); x.len()]);
            layer.forward_inference(&shape, &x, &mut inferred).unwrap();
            layer.forward_training(&shape, &x, &mut y).unwrap();
            let (mean, var) = (&problem.mean, &problem.var);
            let by = INFINITE.renormalize(layer.states(), mean, var, &problem.params()).unwrap();
            for (i, c) in channels(&shape).into_iter().enumerate() {
                let state = &layer.states()[c];
                let xhat = (x[i].to_f64() - state.mean()) / (state.variance() + problem.eps).sqrt();
                let size = (by.gamma()[c].to_f64() * xhat).abs() + by.beta()[c].to_f64().abs();
                let error = (y[i].to_f64() - inferred[i].to_f64()).abs();
                assert!(error <= 2.0 * T::Y * size, "{:?} and {:?}, of {size}", y[i], inferred[i]);
            }
        }
    }
    check::<f32>();
    check::<f64>();
}

/// The builder's option, `renormalize` with the operations by states, and the layer: the same bits.
#[test]
fn the_layer_is_its_operations() {
    fn check<T: Bits>() {
        let problem = Problem::<T>::new(&[4, 6, 9], 4);
        let (mean, var) = (&problem.mean, &problem.var);
        for (layout, limits) in LAYOUTS.into_iter().flat_map(|layout| LIMITS.map(|limits| (layout, limits))) {
            let shape = problem.shape(layout);
            let [x, z, dy] =
                [&problem.x, &problem.z, &problem.dy].map(|tensor| problem.lay_out(layout, tensor));
            let layer = layer_of(&problem).with_renorm(limits).with_activation(Activation::Relu);
            let (expected, layer) = passes(layer, Mode::Training, &shape, [&x, &z, &dy], true);
            let params = problem.params().activation(Activation::Relu);

            let (mut y, mut mask, mut states) =
                (z.clone(), vec![0; shape.mask_len()], vec![Welford::new(); 6]);
            let mut to = Renormalized::new();
            let training = Training::new(&shape, params).x(&x).residual_in_place(&mut y).mask(&mut mask);
            training.states(&mut states).renorm(limits, mean, var, &mut to).run().unwrap();
            assert_same("y of the builder", &y, &expected[0].1);
            assert_same("states", &states, layer.states());

            let mut by_hand = vec![Welford::new(); 6];
            statistics(&shape, &x, &mut by_hand).unwrap();
            let renormalized = limits.renormalize(&by_hand, mean, var, &params).unwrap();
            assert_eq!(renormalized, to);
            let by = renormalized.params(&params);
            let inference = Inference::new(&shape, by).x(&x).residual(&z).y(&mut y);
            inference.states(&by_hand).run().unwrap();
            assert_same("y by states", &y, &expected[0].1);

            let [mut dx, mut dz] = [(); 2].map(|()| vec![T::default(); x.len()]);
            let [mut dgamma, mut dbeta] = [(); 2].map(|()| vec![T::default(); 6]);
            let gradients = Gradients::new().dx(&mut dx).dz(&mut dz).dgamma(&mut dgamma).dbeta(&mut dbeta);
            let backward = Backward::new(&shape, by).x(&x).dy(&dy).mask(&mask).states(&states);
            backward.gradients(gradients).run().unwrap();
            renormalized.gamma_gradient(&dbeta, &mut dgamma).unwrap();
            for (got, (what, expected)) in [dx, dz, dgamma, dbeta].iter().zip(&expected[1..]) {
                assert_same(what, got, expected);
            }
        }
    }
    check::<f32>();
    check::<f64>();
}

/// r and d are of the running statistics before the batch, and backward of what the forward pass had, whatever is set since.
#[test]
fn limits_may_change_between_calls() {
    let problem = Problem::<f32>::new(&[4, 5, 6], 5);
    let shape = problem.shape(LAYOUTS[0]);
    let mut layer = layer_of(&problem);
    let mut outputs = Vec::new();
    for limits in [None, Some(PAPER), Some(INFINITE), Some(LIMITS[3]), None] {
        layer.set_renorm(limits).unwrap();
        assert_eq!((layer.renorm(), layer.parts().renorm), (limits, limits));
        let fresh = BatchNorm::from_parts(layer.parts().clone()).unwrap();
        let tensors = [&problem.x[..], &problem.z, &problem.dy];
        let (expected, _) = passes(fresh, Mode::Training, &shape, tensors, false);
        let (mut y, mut dx) = (vec![0.0; shape.len()], vec![0.0; shape.len()]);
        layer.forward_training(&shape, &problem.x, &mut y).unwrap();
        let after = layer.clone();
        layer.set_renorm(Some(Renorm { r_max: 100.0, d_max: 100.0 })).unwrap();
        layer.running_mean_mut().fill(f32::NAN);
        layer.gamma_mut().unwrap().fill(3.0);
        layer.forward_inference(&shape, &problem.dy, &mut dx).unwrap();
        layer.backward(&shape, &problem.x, &problem.dy, &mut dx).unwrap();
        assert_same("y", &y, &expected[0].1);
        assert_same("dx", &dx, &expected[1].1);
        assert_same("dgamma", layer.dgamma(), &expected[3].1);
        outputs.push(y);
        layer = after;
    }
    outputs.dedup();
    assert_eq!(outputs.len(), 5);
    // By running statistics there is nothing to correct.
    for mode in [Mode::Frozen, Mode::Inference] {
        let [mut y, mut expected] = [(); 2].map(|()| vec![0.0; shape.len()]);
        let mut renormalized = layer.clone().with_renorm(PAPER);
        renormalized.forward(mode, &shape, &problem.x, &mut y).unwrap();
        layer.forward(mode, &shape, &problem.x, &mut expected).unwrap();
        assert_same("y", &y, &expected);
    }
    let [got, expected] = [layer.clone().with_renorm(PAPER), layer]
        .map(|layer| passes(layer, Mode::Frozen, &shape, [&problem.x, &problem.z, &problem.dy], true).0);
    assert_eq!(got, expected);
}

/// Several parts, each with its layer, are one process's batch to the bit.
#[test]
fn layers_among_others_are_one_layer() {
    const N: usize = 50;
    let problem = Problem::<f32>::new(&[N, 3, 7, 7], 6);
    let shape = |n| Shape::nchw(&[n, 3, 7, 7]).unwrap();
    let layer = || {
        layer_of(&problem).with_renorm(Renorm { r_max: 2.0, d_max: 7.0 }).with_activation(Activation::Relu)
    };
    let tensors = [&problem.x[..], &problem.z, &problem.dy];
    for mode in TRAINING {
        let (expected, whole) = passes(layer(), mode, &shape(N), tensors, true);
        in_threads(&[0, 16, 16, 48, N], |first, end, mut others| {
            let range = first * 147..end * 147;
            let ([x, z, dy], shape) = (tensors.map(|tensor| &tensor[range.clone()]), shape(end - first));
            let [mut y, mut dx, mut dz] = [(); 3].map(|()| vec![7.0; x.len()]);
            let (mut layer, at) = (layer(), first as u64);
            layer.forward_among(mode, &shape, (x, Some(z)), &mut y, (at, &mut others)).unwrap();
            layer.backward_among(&shape, (x, dy), (&mut dx, Some(&mut dz)), (at, &mut others)).unwrap();
            for (got, (what, expected)) in [y, dx, dz].iter().zip(&expected) {
                assert_same(what, got, &expected[range.clone()]);
            }
            assert_same("dgamma", layer.dgamma(), &expected[3].1);
            assert_same("dbeta", layer.dbeta(), &expected[4].1);
            assert_eq!(layer, whole);
        });
    }
}

/// A process whose limits are none tells the others.
#[test]
fn wrong_limits_of_one_process_are_an_error_of_all() {
    let (x, shape) = (vec![1.0f32; 8], Shape::nchw(&[4, 2]).unwrap());
    in_threads(&[0, 4, 8], |first, _, mut others| {
        let mut layer = BatchNorm::new(2).with_renorm(PAPER);
        if first == 4 {
            layer = layer.with_renorm(Renorm { r_max: 0.5, d_max: 0.0 });
        }
        let (before, mut y) = (format!("{layer:?}"), Guarded::new(8, 0));
        let at = (first as u64, &mut others as &mut dyn Gather);
        let error = layer.forward_among(Mode::Training, &shape, (&x, None), y.get_mut(), at).unwrap_err();
        match first {
            4 => assert_eq!(error, Error::Limit { argument: "r_max", value: 0.5, least: 1.0 }),
            _ => assert!(matches!(error, Error::Gather { .. }), "{error}"),
        }
        y.assert_untouched("y");
        assert_eq!(format!("{layer:?}"), before);
    });
}

/// Statistics out of the ordinary, by hand.
#[test]
fn corrections_of_odd_statistics() {
    let state = |values: &[f64]| -> Welford { values.iter().copied().collect() };
    let of = |limits: Renorm, state: Welford, mean: f64, var: f64| {
        let gamma = [2.0];
        let by = limits.renormalize(&[state], &[mean], &[var], &Params::new(0.0).gamma(&gamma)).unwrap();
        (by.r()[0], by.d()[0], by.gamma()[0], by.beta()[0])
    };
    let ordinary = state(&[1.0, 3.0]);
    assert_eq!(of(PAPER, ordinary, 2.0, 1.0), (1.0, 0.0, 2.0, 0.0));
    assert_eq!(of(PAPER, ordinary, 0.0, 0.25), (2.0, 4.0, 4.0, 8.0));
    // The limits, of either sign.
    assert_eq!(of(PAPER, ordinary, 0.0, 0.01), (3.0, 5.0, 6.0, 10.0));
    assert_eq!(of(PAPER, ordinary, 50.0, 16.0), (1.0 / 3.0, -5.0, 2.0 / 3.0, -10.0));
    // No elements; none that differ; no variance in either.
    assert_eq!(of(PAPER, Welford::new(), 5.0, 9.0), (1.0, 0.0, 2.0, 0.0));
    assert_eq!(of(INFINITE, state(&[3.0, 3.0]), 1.0, 4.0), (0.0, 1.0, 0.0, 2.0));
    assert_eq!(of(PAPER, state(&[3.0, 3.0]), 3.0, 0.0), (1.0, 0.0, 2.0, 0.0));
    assert_eq!(of(PAPER, state(&[3.0, 3.0]), 1.0, 0.0), (1.0, 5.0, 2.0, 10.0));
    assert_eq!(of(PAPER, ordinary, 2.0, 0.0), (3.0, 0.0, 6.0, 0.0));
    // Running statistics that saturated are no limit's business, and NaN is, unless no choice is left.
    assert_eq!(of(INFINITE, ordinary, 0.0, f64::INFINITY), (0.0, 0.0, 0.0, 0.0));
    for (mean, var) in [(0.0, f64::NAN), (0.0, -1.0), (f64::NAN, 1.0)] {
        let (r, d, ..) = of(PAPER, ordinary, mean, var);
        assert_eq!((r.is_nan(), d.is_nan()), (!mean.is_nan(), true), "{mean} {var}");
        assert_eq!(of(LIMITS[0], ordinary, mean, var), (1.0, 0.0, 2.0, 0.0));
    }
    let nan = state(&[f64::NAN, 1.0]);
    assert!(of(PAPER, nan, 0.0, 1.0).0.is_nan() && of(PAPER, nan, 0.0, 1.0).1.is_nan());
    // Squares beyond f64's range: the deviation is not.
    for scale in [1e200, 1e-200] {
        let far = state(&[scale, 3.0 * scale]);
        let (r, d, ..) = of(INFINITE, far, 0.0, 1.0);
        assert!((r / scale - 1.0).abs() < 1e-15 && (d / scale - 2.0).abs() < 1e-15, "{r} {d}");
    }
    // A mean to more than f64's precision.
    let fine =
        WelfordParts { count: 2, mean: 1e10, mean_low: 2f64.powi(-30), m2: 2.0, ..WelfordParts::default() };
    let (_, d, ..) = of(INFINITE, Welford::from_parts(fine).unwrap(), 1e10, 1.0);
    assert_eq!(d, 2f64.powi(-30));
}

#[test]
fn an_empty_batch_corrects_nothing() {
    let shape = Shape::nchw(&[0, 3, 2]).unwrap();
    let mut layer = BatchNorm::<f32>::new(3).with_renorm(PAPER);
    let before = layer.clone();
    layer.forward_training(&shape, &[0f32; 0], &mut []).unwrap();
    layer.backward(&shape, &[0f32; 0], &[], &mut []).unwrap();
    assert_eq!((layer.dgamma(), layer.dbeta()), (&[0.0; 3][..], &[0.0; 3][..]));
    assert_eq!(layer, before);
    assert_eq!(layer.states(), [Welford::new(); 3]);
    let none =
        Renorm { r_max: 2.0, d_max: 1.0 }.renormalize::<f32>(&[], &[], &[], &Params::new(1e-5)).unwrap();
    assert_eq!(none, Renormalized::default());
}
