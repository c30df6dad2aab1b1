//! The layer: conventions for running statistics, what it remembers between calls, several steps of training.

use batchnorm::{
    Activation, BatchNorm, Element, Error, Gradients, Layout, Mode, Params, RunningUpdate, RunningVariance,
    Shape, StreamingStatistics, UpdateRule, Welford, reference, statistics, update_running,
};

use crate::common::matrix::{Bits, Guarded, LAYOUTS, Problem, assert_same, layer_of, params};

/// Two batches of two channels, in NCHW: channel 0 is 1, 2, 3, 6 (mean 3, M2 14), then 5, 5, 9, 1 (mean 5, M2 32);
/// channel 1 is -2, 0, 0, 2 (mean 0, M2 8), then 10, 10, 10, 10 (mean 10, M2 0).
const BATCHES: [[f64; 8]; 2] =
    [[1.0, 2.0, -2.0, 0.0, 3.0, 6.0, 0.0, 2.0], [5.0, 5.0, 10.0, 10.0, 9.0, 1.0, 10.0, 10.0]];

/// The running mean and variance of a layer after the two batches, in a layout.
fn after_two_batches<T: Bits>(layer: &BatchNorm<T>, layout: Layout) -> [[Vec<f64>; 2]; 2] {
    let shape = Shape::new(layout, 2, 2, &[2]).unwrap();
    let mut layer = layer.clone();
    BATCHES.map(|batch| {
        let mut x = vec![T::default(); 8];
        for (i, value) in batch.into_iter().enumerate() {
            x[shape.offset(i / 4, i / 2 % 2, i % 2)] = T::from_f64(value);
        }
        layer.forward_training(&shape, &x, &mut [T::default(); 8]).unwrap();
        [layer.running_mean(), layer.running_var()].map(|v| v.iter().map(|v| v.to_f64()).collect())
    })
}

#[track_caller]
fn assert_close(what: &str, got: &[f64], expected: &[f64], relative: f64) {
    assert_eq!(got.len(), expected.len(), "{what}");
    for (got, expected) in got.iter().zip(expected) {
        assert!((got - expected).abs() <= relative * expected.abs(), "{what} is {got}, expected {expected}");
    }
}

/// Worked out by hand from the rules as PyTorch, Keras and ONNX document them.
#[test]
fn running_statistics_by_every_convention() {
    use RunningVariance::{Biased, Unbiased};
    use UpdateRule::{Cumulative, Decay, Momentum};
    /// The layer's kind, then mean and variance after one batch and after two.
    type Row = (Option<RunningUpdate>, &'static str, [[[f64; 2]; 2]; 2]);
    let custom = |rule, variance| Some(RunningUpdate { rule, variance });
    let rows: [Row; 9] = [
        // 0.9 * 0 + 0.1 * 3; 0.9 * 1 + 0.1 * 14 / 3. Then 0.9 * 0.3 + 0.1 * 5 and so on.
        (
            None,
            "pytorch",
            [
                [[0.3, 0.0], [0.9 + 14.0 / 30.0, 0.9 + 8.0 / 30.0]],
                [[0.77, 1.0], [0.81 + 0.42 + 32.0 / 30.0, 0.81 + 0.24]],
            ],
        ),
        // 0.99 * 0 + 0.01 * 3; 0.99 * 1 + 0.01 * 14 / 4.
        (None, "keras", [[[0.03, 0.0], [1.025, 1.01]], [[0.0797, 0.1], [1.09475, 0.9999]]]),
        // 0.9 * 0 + 0.1 * 3; 0.9 * 1 + 0.1 * 14 / 4.
        (None, "onnx", [[[0.3, 0.0], [1.25, 1.1]], [[0.77, 1.0], [1.925, 0.99]]]),
        // The means of the batches' statistics; the initial 0 and 1 have no part in them.
        (
            custom(Cumulative, Unbiased),
            "cumulative unbiased",
            [[[3.0, 0.0], [14.0 / 3.0, 8.0 / 3.0]], [[4.0, 5.0], [23.0 / 3.0, 4.0 / 3.0]]],
        ),
        (
            custom(Cumulative, Biased),
            "cumulative biased",
            [[[3.0, 0.0], [3.5, 2.0]], [[4.0, 5.0], [5.75, 1.0]]],
        ),
        // Momentum f is decay 1 - f.
        (
            custom(Momentum(0.25), Biased),
            "momentum",
            [[[0.75, 0.0], [1.625, 1.25]], [[1.8125, 2.5], [3.21875, 0.9375]]],
        ),
        (
            custom(Decay(0.75), Biased),
            "decay",
            [[[0.75, 0.0], [1.625, 1.25]], [[1.8125, 2.5], [3.21875, 0.9375]]],
        ),
        // All new, and nothing new.
        (custom(Momentum(1.0), Biased), "all new", [[[3.0, 0.0], [3.5, 2.0]], [[5.0, 10.0], [8.0, 0.0]]]),
        (custom(Decay(1.0), Unbiased), "nothing new", [[[0.0, 0.0], [1.0, 1.0]]; 2]),
    ];
    fn check<T: Bits>(rows: &[Row], layout: Layout, relative: f64) {
        for (update, name, expected) in rows {
            let layer = match (update, *name) {
                (Some(update), _) => BatchNorm::<T>::new(2).with_update(*update),
                (None, "pytorch") => BatchNorm::new(2),
                (None, "keras") => BatchNorm::keras(2),
                _ => BatchNorm::onnx(2),
            };
            for (got, expected) in after_two_batches(&layer, layout).iter().zip(expected) {
                assert_close(&format!("{name}: running mean"), &got[0], &expected[0], relative);
                assert_close(&format!("{name}: running variance"), &got[1], &expected[1], relative);
            }
        }
    }
    for layout in LAYOUTS {
        check::<f32>(&rows, layout, 2e-7);
        // 1 - 0.99 is not 0.01 to the last bit.
        check::<f64>(&rows, layout, 1e-14);
    }
}

#[test]
fn defaults() {
    let pytorch = BatchNorm::<f32>::new(3);
    assert_eq!((pytorch.gamma(), pytorch.beta()), (Some(&[1.0; 3][..]), Some(&[0.0; 3][..])));
    assert_eq!((pytorch.running_mean(), pytorch.running_var()), (&[0.0; 3][..], &[1.0; 3][..]));
    assert_eq!((pytorch.dgamma(), pytorch.dbeta()), (&[0.0; 3][..], &[0.0; 3][..]));
    assert_eq!((pytorch.channels(), pytorch.batches(), pytorch.eps()), (3, 0, 1e-5));
    assert_eq!((BatchNorm::<f32>::keras(3).eps(), BatchNorm::<f32>::onnx(3).eps()), (1e-3, 1e-5));
    let other = BatchNorm::<f32>::keras(3).with_eps(0.5).without_gamma().without_beta();
    assert_eq!((other.eps(), other.gamma(), other.beta()), (0.5, None, None));
}

/// The mean over the batches, whatever their number, and the same as the running mean's own formula gives.
#[test]
fn the_cumulative_running_mean_is_the_average_of_the_batches() {
    fn check<T: Bits>(relative: f64) {
        for variance in [RunningVariance::Biased, RunningVariance::Unbiased] {
            let update = RunningUpdate { rule: UpdateRule::Cumulative, variance };
            let mut layer = BatchNorm::<T>::new(6).with_update(update);
            let (mut means, mut vars) = ([0.0; 6], [0.0; 6]);
            for batch in 0..50 {
                let problem = Problem::<T>::new(&[3, 6, 11], batch);
                let shape = problem.shape(Layout::Nchw);
                layer.forward_training(&shape, &problem.x, &mut vec![T::default(); shape.len()]).unwrap();
                assert_eq!(layer.batches(), batch + 1);
                for (c, state) in layer.states().iter().enumerate() {
                    means[c] += state.mean();
                    vars[c] += match variance {
                        RunningVariance::Biased => state.variance(),
                        RunningVariance::Unbiased => state.variance_unbiased(),
                    };
                }
                let count = batch as f64 + 1.0;
                for (running, sums) in [(layer.running_mean(), means), (layer.running_var(), vars)] {
                    for (running, sum) in running.iter().zip(sums) {
                        // Each batch rounds once, of numbers that are nearly the same.
                        let bound = count * relative * (sum / count).abs().max(0.1);
                        let error = (running.to_f64() - sum / count).abs();
                        assert!(error <= bound, "{running:?}, average {}, off by {error:e}", sum / count);
                    }
                }
            }
        }
    }
    check::<f32>(f64::from(f32::EPSILON));
    check::<f64>(f64::EPSILON);
}

/// A layer in plain f64: the reference's kernels, the documented rules.
struct Plain {
    activation: Activation,
    gamma: Option<Vec<f64>>,
    beta: Option<Vec<f64>>,
    running_mean: Vec<f64>,
    running_var: Vec<f64>,
    eps: f64,
    batches: f64,
}

impl Plain {
    fn new(channels: usize, eps: f64) -> Self {
        Self {
            activation: Activation::Identity,
            gamma: Some(vec![1.0; channels]),
            beta: Some(vec![0.0; channels]),
            running_mean: vec![0.0; channels],
            running_var: vec![1.0; channels],
            eps,
            batches: 0.0,
        }
    }

    fn params(&self) -> Params<'_, f64> {
        params(self.gamma.as_deref(), self.beta.as_deref(), self.eps).activation(self.activation)
    }

    /// y and dx; a step of training.
    fn train(
        &mut self,
        shape: &Shape,
        x: &[f64],
        dy: &[f64],
        update: RunningUpdate,
        lr: f64,
    ) -> [Vec<f64>; 2] {
        let [mut y, mut dx] = [vec![0.0; x.len()], vec![0.0; x.len()]];
        let params = self.params();
        let batch = reference::forward_training(shape, x, &params, &mut y);
        let c = shape.channels();
        let (mut dgamma, mut dbeta) = (vec![0.0; c], vec![0.0; c]);
        let gradients = Gradients::new().dx(&mut dx).dgamma(&mut dgamma).dbeta(&mut dbeta);
        reference::backward(shape, x, dy, &batch, &params, gradients);
        let new = match update.rule {
            UpdateRule::Momentum(momentum) => momentum,
            UpdateRule::Decay(decay) => 1.0 - decay,
            UpdateRule::Cumulative => 1.0 / (1.0 + self.batches),
        };
        self.batches += 1.0;
        let m = shape.per_channel() as f64;
        for (channel, batch) in batch.iter().enumerate() {
            let var = match update.variance {
                RunningVariance::Biased => batch.var,
                RunningVariance::Unbiased => batch.var * m / (m - 1.0),
            };
            self.running_mean[channel] += new * (batch.mean - self.running_mean[channel]);
            self.running_var[channel] += new * (var - self.running_var[channel]);
        }
        for (parameter, gradient) in [(&mut self.gamma, dgamma), (&mut self.beta, dbeta)] {
            for (parameter, gradient) in parameter.iter_mut().flatten().zip(gradient) {
                *parameter -= lr * gradient;
            }
        }
        [y, dx]
    }

    fn infer(&self, shape: &Shape, x: &[f64]) -> Vec<f64> {
        let mut y = vec![0.0; x.len()];
        let (mean, var) = (&self.running_mean, &self.running_var);
        reference::forward_inference(shape, x, mean, var, &self.params(), &mut y);
        y
    }
}

/// Asserts that values are near others, relative to the largest of these.
#[track_caller]
fn assert_near<T: Element>(what: &str, got: &[T], expected: &[f64], relative: f64) {
    assert_eq!(got.len(), expected.len(), "{what}");
    let size = expected.iter().fold(0f64, |size, value| size.max(value.abs()));
    for (i, (got, expected)) in got.iter().zip(expected).enumerate() {
        let error = (got.to_f64() - expected).abs();
        assert!(error <= relative * size, "{what}[{i}] is {got:?}, expected {expected}, off by {error:e}");
    }
}

/// Twenty steps, of batches of changing size and layout, against the plain layer.
#[test]
fn steps_of_training_follow_the_plain_layer() {
    fn check<T: Bits>(
        update: RunningUpdate,
        (gamma, beta): (bool, bool),
        activation: Activation,
        relative: f64,
    ) {
        let eps = 1e-3;
        let mut layer = BatchNorm::<T>::new(7).with_eps(eps).with_update(update).with_activation(activation);
        let mut plain = Plain { activation, ..Plain::new(7, eps) };
        if !gamma {
            layer = layer.without_gamma();
            plain.gamma = None;
        }
        if !beta {
            layer = layer.without_beta();
            plain.beta = None;
        }
        for step in 0..20 {
            let n = [2, 5, 1][step % 3];
            let layout = LAYOUTS[step % 2];
            let mut problem = Problem::<T>::new(&[n, 7, 4, 3], step as u64);
            // Offsets that do not drown what is looked at.
            for x in &mut problem.x {
                *x = T::from_f64(x.to_f64() % 8.0);
            }
            let shape = problem.shape(layout);
            let [x, dy] = [&problem.x, &problem.dy].map(|tensor| problem.lay_out(layout, tensor));
            let [x64, dy64] =
                [&x, &dy].map(|tensor| tensor.iter().map(|value| value.to_f64()).collect::<Vec<_>>());
            let (mut y, mut dx) = (Guarded::new(shape.len(), 3), Guarded::new(shape.len(), 5));

            layer.forward_training(&shape, &x, y.get_mut()).unwrap();
            layer.backward(&shape, &x, &dy, dx.get_mut()).unwrap();
            let dgamma_before = layer.dgamma().to_vec();
            layer.step(0.05).unwrap();
            assert_same("dgamma after a step", layer.dgamma(), &dgamma_before);
            let [plain_y, plain_dx] = plain.train(&shape, &x64, &dy64, update, 0.05);
            assert_near("y", &y.take("y"), &plain_y, relative);
            assert_near("dx", &dx.take("dx"), &plain_dx, relative);
            assert_near("running mean", layer.running_mean(), &plain.running_mean, relative);
            assert_near("running variance", layer.running_var(), &plain.running_var, relative);
            for (got, expected) in [(layer.gamma(), &plain.gamma), (layer.beta(), &plain.beta)] {
                assert_eq!(got.is_some(), expected.is_some());
                if let (Some(got), Some(expected)) = (got, expected) {
                    assert_near("a parameter", got, expected, relative);
                    let changed = got.iter().any(|value| ![0.0, 1.0].contains(&value.to_f64()));
                    assert!(changed, "a step that does nothing");
                }
            }

            // What it has learnt is what it normalizes by.
            let mut y = Guarded::new(shape.len(), 1);
            layer.forward_inference(&shape, &x, y.get_mut()).unwrap();
            assert_near("y of inference", &y.take("y"), &plain.infer(&shape, &x64), relative);
        }
        assert_eq!(layer.batches(), 20);
    }
    for rule in [UpdateRule::Momentum(0.1), UpdateRule::Decay(0.7), UpdateRule::Cumulative] {
        for variance in [RunningVariance::Biased, RunningVariance::Unbiased] {
            for (gamma, beta) in [(true, true), (true, false), (false, true), (false, false)] {
                let update = RunningUpdate { rule, variance };
                check::<f32>(update, (gamma, beta), Activation::Identity, 1e-5);
                check::<f64>(update, (gamma, beta), Activation::Identity, 1e-11);
                // Whose derivative has no leaps, at which f32 and f64 may part.
                check::<f32>(update, (gamma, beta), Activation::Silu, 1e-5);
                check::<f64>(update, (gamma, beta), Activation::Silu, 1e-11);
            }
        }
    }
}

#[test]
fn a_layer_without_parameters_is_one_with_one_and_zero() {
    for layout in LAYOUTS {
        let problem = Problem::<f32>::new(&[3, 5, 7], 1);
        let shape = problem.shape(layout);
        let [x, dy] = [&problem.x, &problem.dy].map(|tensor| problem.lay_out(layout, tensor));
        let run = |mut layer: BatchNorm<f32>| {
            let [mut y, mut dx, mut inferred] = [(); 3].map(|()| vec![0.0; shape.len()]);
            layer.forward_training(&shape, &x, &mut y).unwrap();
            layer.backward(&shape, &x, &dy, &mut dx).unwrap();
            layer.forward_inference(&shape, &x, &mut inferred).unwrap();
            let gradients = [layer.dgamma().to_vec(), layer.dbeta().to_vec()];
            layer.step(0.1).unwrap();
            (layer, [y, dx, inferred], gradients)
        };
        let (with, tensors, gradients) = run(BatchNorm::new(5));
        for layer in [
            BatchNorm::new(5).without_gamma(),
            BatchNorm::new(5).without_beta(),
            BatchNorm::new(5).without_gamma().without_beta(),
        ] {
            let (without, other_tensors, other_gradients) = run(layer.clone());
            for (got, expected) in other_tensors.iter().zip(&tensors) {
                assert_same("a tensor", got, expected);
            }
            assert_eq!(other_gradients, gradients);
            assert_eq!(
                (without.gamma().is_some(), without.beta().is_some()),
                (layer.gamma().is_some(), layer.beta().is_some())
            );
            if without.gamma().is_some() {
                assert_eq!(without.gamma(), with.gamma());
            }
            if without.beta().is_some() {
                assert_eq!(without.beta(), with.beta());
            }
        }
    }
}

/// The layer adds nothing to the operations.
#[test]
fn the_layer_is_its_operations() {
    let problem = Problem::<f32>::new(&[3, 5, 7], 2);
    let shape = problem.shape(Layout::Nchw);
    let mut layer = layer_of(&problem);
    let mut y = vec![0.0; shape.len()];
    let inferred = {
        let mut y = y.clone();
        layer.forward_inference(&shape, &problem.x, &mut y).unwrap();
        y
    };
    layer.forward_training(&shape, &problem.x, &mut y).unwrap();
    let expected = crate::common::matrix::run(&problem, Layout::Nchw, Default::default(), std::iter::empty());
    assert_same("y", &y, &expected.y);
    assert_same("y of inference", &inferred, &expected.inferred);
    assert_same("states", layer.states(), &expected.states);
    layer.backward(&shape, &problem.x, &problem.dy, &mut y).unwrap();
    assert_same("dx", &y, &expected.gradients[0]);
    assert_same("dgamma", layer.dgamma(), &expected.gradients[1]);
    assert_same("dbeta", layer.dbeta(), &expected.gradients[2]);
    // What y of inference is made of, before this batch.
    let (mut mean, mut var) = (problem.mean.clone(), problem.var.clone());
    let update = RunningUpdate { rule: UpdateRule::Momentum(0.1), variance: RunningVariance::Unbiased };
    update_running(update, 0, &expected.states, &mut mean, &mut var).unwrap();
    assert_same("running mean", layer.running_mean(), &mean);
    assert_same("running variance", layer.running_var(), &var);
}

#[test]
fn inference_changes_nothing_and_uses_the_running_statistics() {
    let shape = Shape::nchw(&[2, 2, 2]).unwrap();
    let mut layer = BatchNorm::<f64>::new(2).with_eps(0.0);
    layer.running_mean_mut().copy_from_slice(&[1.0, -1.0]);
    layer.running_var_mut().copy_from_slice(&[4.0, 0.25]);
    layer.gamma_mut().unwrap().copy_from_slice(&[3.0, 1.0]);
    layer.beta_mut().unwrap().copy_from_slice(&[0.5, -2.0]);
    let before = layer.clone();
    let mut y = [0.0; 8];
    layer.forward_inference(&shape, &[1.0, 3.0, -1.0, 0.0, -3.0, 5.0, 1.0, -2.0], &mut y).unwrap();
    assert_eq!(y, [0.5, 3.5, -2.0, 0.0, -5.5, 6.5, 2.0, -4.0]);
    assert_eq!(format!("{layer:?}"), format!("{before:?}"));
    // A single element per channel is no trouble here, though the update is unbiased.
    let one = Shape::nchw(&[1, 2]).unwrap();
    layer.forward_inference(&one, &[3.0, 0.0], &mut y[..2]).unwrap();
    assert_eq!(y[..2], [3.5, 0.0]);
    // Nor does it give backward anything to go back through.
    assert_eq!(layer.clone().backward(&one, &[3.0, 0.0], &[1.0; 2], &mut [0.0; 2]), Err(Error::NoForward));
}

#[test]
fn the_state_after_an_error_is_the_state_before() {
    let shape = Shape::nchw(&[2, 3, 4]).unwrap();
    let x: Vec<f32> = (0..24).map(|i| (i * i % 17) as f32).collect();
    let mut layer = BatchNorm::<f32>::new(3);
    layer.forward_training(&shape, &x, &mut [0.0; 24]).unwrap();
    layer.backward(&shape, &x, &x, &mut [0.0; 24]).unwrap();
    layer.step(0.1).unwrap();
    // All that it holds, not only what a checkpoint does.
    let before = format!("{layer:?}");
    let one = Shape::nchw(&[1, 3, 1]).unwrap();
    type Wrong<'a> = Box<dyn Fn(&mut BatchNorm<f32>) -> Result<(), Error> + 'a>;
    let (long, short) = ([1.0; 25], [1.0; 23]);
    let other = [&[0.0, 2.0], &x[2..]].concat();
    let wrongs: Vec<(&str, Wrong<'_>)> = vec![
        ("x has length 23", Box::new(|layer| layer.forward_training(&shape, &short, &mut [0.0; 24]))),
        ("y has length 25", Box::new(|layer| layer.forward_training(&shape, &x, &mut long.clone()))),
        (
            "must be at least 2, but is 1",
            Box::new(|layer| layer.forward_training(&one, &[1.0f32; 3], &mut [0.0; 3])),
        ),
        ("x has length 25", Box::new(|layer| layer.forward_inference(&shape, &long, &mut [0.0; 24]))),
        ("y has length 0", Box::new(|layer| layer.forward_inference(&shape, &x, &mut []))),
        ("x has length 23", Box::new(|layer| layer.backward(&shape, &short, &x, &mut [0.0; 24]))),
        ("dy has length 25", Box::new(|layer| layer.backward(&shape, &x, &long, &mut [0.0; 24]))),
        ("dx has length 23", Box::new(|layer| layer.backward(&shape, &x, &x, &mut short.clone()))),
        ("x[1] is 2.0, must be 1.0:", Box::new(|layer| layer.backward(&shape, &other, &x, &mut [0.0; 24]))),
        ("backward is of NCL 1x3x1,", Box::new(|layer| layer.backward(&one, &x, &x, &mut [0.0; 3]))),
        (
            "residual has length 23",
            Box::new(|layer| layer.forward_with_residual(Mode::Training, &shape, &x, &short, &mut [0.0; 24])),
        ),
        (
            "residual has length 25",
            Box::new(|layer| layer.forward_inference_with_residual(&shape, &x, &long, &mut [0.0; 24])),
        ),
        (
            "backward has no residual",
            Box::new(|layer| layer.backward_with_residual(&shape, &x, &x, &mut [0.0; 24], &mut [0.0; 24])),
        ),
        ("slope is inf", {
            let slope = f64::INFINITY;
            Box::new(move |layer| layer.set_activation(Activation::LeakyRelu { slope }))
        }),
        ("lr is NaN", Box::new(|layer| layer.step(f64::NAN))),
        ("lr is inf", Box::new(|layer| layer.step(f64::INFINITY))),
    ];
    for (text, wrong) in wrongs {
        let error = wrong(&mut layer).unwrap_err().to_string();
        assert!(error.contains(text), "{error}, expected {text}");
        assert_eq!(format!("{layer:?}"), before, "{text}");
    }
}

/// Batches of all sizes, of either layout, and what two machines have seen, merged: the whole data set's.
#[test]
fn streaming_statistics_are_those_of_the_whole_data_set() {
    fn check<T: Bits>() {
        let (c, s) = (7, 13);
        let whole = Problem::<T>::new(&[100, c, s], 5);
        let shape = whole.shape(Layout::Nchw);
        let mut at_once = vec![Welford::new(); c];
        statistics(&shape, &whole.x, &mut at_once).unwrap();
        let mut halves = [StreamingStatistics::new(c), StreamingStatistics::new(c)];
        let (mut start, mut batch) = (0, 1);
        while start < 100 {
            let end = (start + batch).min(100);
            let layout = LAYOUTS[batch % 2];
            let part = Problem {
                dims: vec![end - start, c, s],
                x: whole.x[start * c * s..end * c * s].to_vec(),
                ..whole.clone()
            };
            let x = part.lay_out(layout, &part.x);
            halves[batch % 3 / 2].update(&part.shape(layout), &x).unwrap();
            // Nothing more of an empty batch.
            halves[0].update::<T>(&Shape::nchw(&[0, c, s]).unwrap(), &[]).unwrap();
            (start, batch) = (end, batch + 2);
        }
        let [mut streaming, other] = halves;
        assert!([&streaming, &other].iter().all(|half| (1..1300).contains(&half.states()[0].count())));
        streaming.merge(&other).unwrap();
        let expected = reference::statistics(&shape, &whole.x);
        for ((state, at_once), expected) in streaming.states().iter().zip(&at_once).zip(&expected) {
            assert_eq!((state.count(), at_once.count()), (1300, 1300));
            let std = expected.var.sqrt();
            for state in [state, at_once] {
                let bound = T::MEAN[0] * expected.mean.abs() + T::MEAN[1] * std + 1e-13 * expected.mean.abs();
                assert!((state.mean() - expected.mean).abs() <= bound, "{state:?} {expected:?}");
                // What the reference's plain sums may be off by, beside.
                let bound = (T::VAR + 1e-13) * expected.var + (1e-13 * expected.mean).powi(2);
                assert!((state.variance() - expected.var).abs() <= bound, "{state:?} {expected:?}");
            }
        }
    }
    check::<f32>();
    check::<f64>();
}

/// Without channels a batch is one all the same: the cumulative rule counts it.
#[test]
fn a_layer_without_channels_counts_its_batches() {
    let mut layer = BatchNorm::<f32>::new(0);
    for batch in 1..4 {
        layer.forward_training(&Shape::nchw(&[3, 0, 17]).unwrap(), &[0f32; 0], &mut [0f32; 0]).unwrap();
        assert_eq!(layer.batches(), batch);
    }
}
