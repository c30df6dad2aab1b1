//! What went wrong in other libraries must not go wrong here. Each test names the threads that it is after.

use batchnorm::{
    BatchNorm, Error, Gather, Gradients, Level, Mode, Params, PartialStatistics, RunningUpdate,
    RunningVariance, Shape, UpdateRule, Welford, backward, backward_frozen, forward_inference,
    forward_training, reference, statistics, update_running,
};

use crate::common::exact::{self, Normalization, Statistics};
use crate::common::matrix::{LAYOUTS, Problem, variate};
use crate::common::others::in_threads;

/// Elements about a mean, as f32 has them.
fn about(mean: f64, std: f64, len: usize) -> Vec<f32> {
    let mut rng = crate::common::data::rng(7);
    (0..len).map(|_| (mean + std * variate(&mut rng)) as f32).collect()
}

fn train(shape: &Shape, x: &[f32], params: &Params<'_, f32>) -> (Vec<f32>, Vec<Welford>) {
    let (mut y, mut states) = (vec![0.0; x.len()], vec![Welford::new(); shape.channels()]);
    forward_training(shape, x, params, &mut y, &mut states).unwrap();
    (y, states)
}

/// Against the reference's f64, by what C1 allows y.
#[track_caller]
fn assert_near_reference(shape: &Shape, x: &[f32]) {
    let params = Params::new(1e-5);
    let mut expected = vec![0.0f32; x.len()];
    reference::forward_training(shape, x, &params, &mut expected);
    let (y, _) = train(shape, x, &params);
    for (i, (y, expected)) in y.iter().zip(&expected).enumerate() {
        assert!(
            (y - expected).abs() <= 1e-6 * expected.abs().max(1e-3),
            "{shape:?}: y[{i}] = {y}, not {expected}"
        );
    }
}

/// caffe 3963, pytorch 5410, tensorflow 25115: E[x^2] - mean^2 cancels.
#[test]
fn a_large_mean_leaves_the_variance_right() {
    for (mean, std) in [(1e4, 1.0), (1e5, 0.1), (1e6, 1.0), (-3e6, 2.0)] {
        let x = about(mean, std, 2 * 56 * 56);
        let shape = Shape::nchw(&[2, 1, 56, 56]).unwrap();
        let exact_mean = x.iter().map(|x| f64::from(*x)).sum::<f64>() / x.len() as f64;
        let exact = x.iter().map(|x| (f64::from(*x) - exact_mean).powi(2)).sum::<f64>() / x.len() as f64;
        let (_, states) = train(&shape, &x, &Params::new(0.0));
        assert!((states[0].variance() / exact - 1.0).abs() < 1e-7, "N({mean}, {std})");
        assert_near_reference(&shape, &x);
    }
}

/// The same threads: a constant channel has no variance, and y is beta, however large the constant.
#[test]
fn a_constant_channel_is_beta() {
    for constant in [0.1f32, 1e4 / 3.0, 1e10, -3e38] {
        let shape = Shape::nhwc(&[4, 9, 9, 2]).unwrap();
        let (y, states) = train(&shape, &vec![constant; shape.len()], &Params::new(1e-5).beta(&[0.25, -7.0]));
        assert!(states.iter().all(|state| state.variance() == 0.0), "{constant}");
        assert!(y.chunks_exact(2).all(|y| y == [0.25, -7.0]), "{constant}");
    }
}

/// The same threads, with factors that overflow f32: found by this library's own fuzzing.
#[test]
fn a_constant_channel_is_beta_whatever_the_factor() {
    let shape = Shape::nchw(&[3, 1, 7]).unwrap();
    for (constant, gamma, eps) in
        [(1.0f32, 1.0, 1e-140), (3e38, 7.7e25, 1e-30), (f32::MAX, 3e35, 1e-5), (2.5, -3e38, 1e-300)]
    {
        let params = Params::new(eps);
        let (gamma, beta) = ([gamma], [0.25f32]);
        let params = params.gamma(&gamma).beta(&beta);
        let x = vec![constant; 21];
        let (y, _) = train(&shape, &x, &params);
        assert!(y.iter().all(|y| *y == 0.25), "training of {constant}: {}", y[0]);
        let mut y = vec![0.0; 21];
        forward_inference(&shape, &x, &[constant], &[0.0], &params, &mut y).unwrap();
        assert!(y.iter().all(|y| *y == 0.25), "inference of {constant}: {}", y[0]);
    }
}

/// And with a gamma near the largest f32, of which a y in range is left.
#[test]
fn a_huge_gamma_leaves_what_is_in_range() {
    let x = about(0.0, 1.0, 4000);
    let gamma = [2.9e38f32];
    let (y, states) = train(&Shape::nchw(&[4, 1, 1000]).unwrap(), &x, &Params::new(1e-5).gamma(&gamma));
    let invstd = 1.0 / (states[0].variance() + 1e-5).sqrt();
    for (x, y) in x.iter().zip(&y) {
        let expected = (f64::from(*x) - states[0].mean()) * invstd * f64::from(gamma[0]);
        if expected.abs() < 3.3e38 {
            assert!(
                (f64::from(*y) - expected).abs() <= 1e-6 * expected.abs().max(1e30),
                "{y:e}, not {expected:e}"
            );
        }
    }
}

/// pytorch 178123: squares of 1e30 overflow f32.
#[test]
fn huge_elements_are_normalized() {
    for scale in [1e30, 1e38] {
        let x = about(0.0, scale, 6 * 500);
        let (y, states) = train(&Shape::nchw(&[6, 1, 500]).unwrap(), &x, &Params::new(1e-5));
        assert!((states[0].variance() / (scale * scale) - 1.0).abs() < 0.1);
        assert!(y.iter().all(|y| y.abs() < 4.0) && y.iter().any(|y| y.abs() > 1.0), "{scale}");
    }
}

/// Likewise gradients near the largest f32: found by the fuzz target `backward`, as an infinity.
#[test]
fn huge_gradients_leave_what_is_in_range() {
    let (x, dy) = ([0.188f32, -0.7, 0.9], [-8.5e37f32, -3.4e38, 3.4e38]);
    let shape = Shape::nchw(&[3, 1]).unwrap();
    let states = [x.iter().map(|&x| f64::from(x)).collect::<Welford>()];
    let mut dx = [0.0f32; 3];
    backward(&shape, &x, &dy, &states, &Params::new(0.0), Gradients::new().dx(&mut dx)).unwrap();
    let invstd = 1.0 / states[0].variance().sqrt();
    let xhat = x.map(|x| (f64::from(x) - states[0].mean()) * invstd);
    let dy = dy.map(f64::from);
    let mean_dy = dy.iter().sum::<f64>() / 3.0;
    let slope = dy.iter().zip(&xhat).map(|(dy, xhat)| dy * xhat).sum::<f64>() / 3.0;
    for ((dx, dy), xhat) in dx.iter().zip(&dy).zip(&xhat) {
        let terms = [*dy, mean_dy, xhat * slope];
        let (expected, scale) =
            (terms[0] - terms[1] - terms[2], terms.iter().map(|term| term.abs()).sum::<f64>());
        let error = (f64::from(*dx) - invstd * expected).abs();
        assert!(error <= invstd * scale / (1 << 20) as f64, "{dx:e}, not {:e}", invstd * expected);
    }
}

/// The same dx of frozen statistics, whether dgamma is asked for or not, where the latter leaves the range.
#[test]
fn frozen_gradients_do_not_depend_on_each_other() {
    let (x, dy) = ([1e30f32, 3.0], [3.4e38f32, 1e-38]);
    let shape = Shape::nchw(&[2, 1]).unwrap();
    let [mut alone, mut together, mut dgamma] = [[0.0f32; 2]; 3];
    let params = Params::new(0.0);
    let (mean, var) = ([0.0], [1.0]);
    backward_frozen(&shape, &x, &dy, &mean, &var, &params, Gradients::new().dx(&mut alone)).unwrap();
    let both = Gradients::new().dx(&mut together).dgamma(&mut dgamma[..1]);
    backward_frozen(&shape, &x, &dy, &mean, &var, &params, both).unwrap();
    assert_eq!(alone.map(f32::to_bits), together.map(f32::to_bits));
}

/// pytorch 1381, tensorflow 34062: one element per channel has the variance 0, and no unbiased one.
#[test]
fn a_batch_of_one() {
    let shape = Shape::nchw(&[1, 3]).unwrap();
    let (y, states) = train(&shape, &[5.0, -1e20, 0.0], &Params::new(1e-5).beta(&[1.0, 2.0, 3.0]));
    assert_eq!(y, [1.0, 2.0, 3.0]);
    let (mut mean, mut var) = ([9.0f32; 3], [8.0f32; 3]);
    let unbiased = RunningUpdate { rule: UpdateRule::Momentum(0.1), variance: RunningVariance::Unbiased };
    assert_eq!(update_running(unbiased, 0, &states, &mut mean, &mut var), Err(Error::SingleElement));
    assert_eq!((mean, var), ([9.0; 3], [8.0; 3]));
}

/// pytorch 121651, 63224: channels last gave other numbers.
#[test]
fn layouts_give_the_same_bits() {
    let problem = Problem::<f32>::new(&[5, 67, 13, 3], 3);
    let [nchw, nhwc] = LAYOUTS.map(|layout| {
        let x = problem.lay_out(layout, &problem.x);
        problem.lay_back(layout, &train(&problem.shape(layout), &x, &problem.params()).0)
    });
    assert!(nchw.iter().zip(&nhwc).all(|(a, b)| a.to_bits() == b.to_bits()));
}

/// pytorch 2201, oneDNN 354: results that depend on the number of threads.
#[cfg(feature = "rayon")]
#[test]
fn thread_counts_give_the_same_bits() {
    use crate::common::matrix::THREADS;
    use batchnorm::Layout;

    let problem = Problem::<f32>::new(&[3, 5, 150, 149], 4);
    let results = THREADS.iter().map(|&threads| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        pool.install(|| train(&problem.shape(Layout::Nchw), &problem.x, &problem.params()))
    });
    let results: Vec<_> = results.collect();
    assert!(results.iter().all(|result| *result == results[0]));
    assert_eq!(results.len(), 4);
}

/// onnxruntime 29790: running statistics were written before y was computed from them.
#[test]
fn running_statistics_are_written_after_use() {
    let shape = Shape::nchw(&[4, 1, 5]).unwrap();
    let x = about(3.0, 2.0, 20);
    let mut layer = BatchNorm::<f32>::new(1);
    let (mut y, mut again) = (vec![0.0; 20], vec![0.0; 20]);
    layer.forward_training(&shape, &x, &mut y).unwrap();
    let after = (layer.running_mean().to_vec(), layer.running_var().to_vec());
    layer.forward_training(&shape, &x, &mut again).unwrap();
    assert_eq!(y, again);
    assert_ne!(after.0, layer.running_mean());
    // And a call that fails has not moved them.
    let before = (layer.running_mean().to_vec(), layer.running_var().to_vec());
    assert!(layer.forward_training(&shape, &x, &mut again[..19]).is_err());
    assert_eq!(before, (layer.running_mean().to_vec(), layer.running_var().to_vec()));
}

/// pytorch 166405: a negative eps gave NaN, or another result per backend.
#[test]
fn a_negative_eps_is_an_error() {
    let (shape, mut y) = (Shape::nchw(&[2, 1]).unwrap(), [7.0f32; 2]);
    let result = forward_training(&shape, &[1.0, 2.0], &Params::new(-1e-5), &mut y, &mut [Welford::new()]);
    assert_eq!((result, y), (Err(Error::Epsilon { eps: -1e-5 }), [7.0; 2]));
}

/// pytorch 153137: inference with a mean and no variance crashed.
#[test]
fn a_missing_variance_is_an_error() {
    let (shape, mut y) = (Shape::nchw(&[2, 1]).unwrap(), [7.0f32; 2]);
    for (mean, var) in [(&[0.0][..], &[][..]), (&[], &[1.0])] {
        let result = forward_inference(&shape, &[1.0, 2.0], mean, var, &Params::default(), &mut y);
        assert!(matches!(result, Err(Error::Length { .. })) && y == [7.0; 2]);
    }
}

/// pytorch 85217, 194014: vectors of other lengths than the channels were read past their end.
#[test]
fn parameter_vectors_of_a_wrong_size_are_errors() {
    let (shape, mut y, mut states) = (Shape::nchw(&[2, 3]).unwrap(), [7.0f32; 6], [Welford::new(); 3]);
    for wrong in [&[][..], &[1.0], &[1.0; 2], &[1.0; 4]] {
        for params in [Params::default().gamma(wrong), Params::default().beta(wrong)] {
            let result = forward_training(&shape, &[0.0; 6], &params, &mut y, &mut states);
            assert!(matches!(result, Err(Error::Length { expected: 3, .. })) && y == [7.0; 6]);
        }
    }
}

/// pytorch 120803: an empty batch.
#[test]
fn an_empty_batch_is_no_error() {
    let shape = Shape::nchw(&[0, 3, 5, 5]).unwrap();
    let mut layer = BatchNorm::<f32>::new(3);
    let before = layer.running_var().to_vec();
    layer.forward_training(&shape, &[0.0f32; 0], &mut []).unwrap();
    assert_eq!(layer.running_var(), before);
    let mut dgamma = [7.0f32; 3];
    let gradients = Gradients::<f32>::new().dgamma(&mut dgamma);
    backward_frozen(&shape, &[], &[], &[0.0; 3], &[1.0; 3], &Params::default(), gradients).unwrap();
    assert_eq!(dgamma, [0.0; 3]);
}

/// oneDNN 5370: a NaN was lost on the way. (There in a relu, which this library does not have.)
#[test]
fn a_nan_stays_one_in_its_channel() {
    for layout in LAYOUTS {
        let shape = Shape::new(layout, 3, 4, &[7]).unwrap();
        for poison in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            let mut x = about(0.0, 1.0, shape.len());
            x[shape.offset(1, 2, 5)] = poison;
            let (y, states) = train(&shape, &x, &Params::new(1e-5));
            for (n, c, s) in (0..3).flat_map(|n| (0..4).flat_map(move |c| (0..7).map(move |s| (n, c, s)))) {
                assert_eq!(y[shape.offset(n, c, s)].is_nan(), c == 2);
            }
            assert!(states[2].variance().is_nan() && states[1].variance() > 0.0);
        }
    }
}

/// oneDNN 14: planes of one element.
#[test]
fn planes_of_one_element() {
    for dims in [&[64, 3, 1, 1][..], &[33, 100, 1, 1], &[5, 17]] {
        let shape = Shape::nchw(dims).unwrap();
        assert_near_reference(&shape, &about(1.0, 2.0, shape.len()));
    }
}

/// ComputeLibrary 473: rows whose width is no multiple of 4.
#[test]
fn widths_that_are_no_multiple_of_a_vector() {
    for width in 1..40 {
        for layout in LAYOUTS {
            let shape = Shape::new(layout, 2, 3, &[3, width]).unwrap();
            assert_near_reference(&shape, &about(-1.0, 0.5, shape.len()));
        }
    }
}

/// pytorch 586: backward of evaluation took the batch's statistics.
#[test]
fn backward_of_inference_is_frozen() {
    let shape = Shape::nchw(&[4, 2, 3]).unwrap();
    let (x, dy) = (about(50.0, 10.0, 24), about(0.3, 1.0, 24));
    let (mean, var, gamma) = ([1.0, 2.0], [4.0, 0.25], [2.0, 3.0]);
    let mut dx = [0.0f32; 24];
    let params = Params::new(0.0).gamma(&gamma);
    backward_frozen(&shape, &x, &dy, &mean, &var, &params, Gradients::new().dx(&mut dx)).unwrap();
    for (i, (dx, dy)) in dx.iter().zip(&dy).enumerate() {
        assert_eq!(*dx, dy * [1.0, 6.0][i / 3 % 2]);
    }
}

/// pytorch 5766: a cumulative average needs the number of batches before it, which checkpoints did not hold.
#[test]
fn a_restored_cumulative_average_goes_on() {
    let shape = Shape::nchw(&[2, 1]).unwrap();
    let update = RunningUpdate { rule: UpdateRule::Cumulative, variance: RunningVariance::Biased };
    let batch = |layer: &mut BatchNorm<f64>, mean: f64| {
        layer.forward_training(&shape, &[mean - 1.0, mean + 1.0], &mut [0.0; 2]).unwrap();
    };
    let mut layer = BatchNorm::new(1).with_update(update);
    [1.0, 2.0, 3.0].iter().for_each(|mean| batch(&mut layer, *mean));
    let mut by_parts = BatchNorm::from_parts(layer.clone().into_parts()).unwrap();
    let mut by_hand = BatchNorm::new(1).with_update(update);
    by_hand.running_mean_mut().copy_from_slice(layer.running_mean());
    by_hand.running_var_mut().copy_from_slice(layer.running_var());
    by_hand.set_batches(layer.batches());
    for layer in [&mut layer, &mut by_parts, &mut by_hand] {
        batch(layer, 6.0);
        assert_eq!((layer.running_mean(), layer.running_var(), layer.batches()), (&[3.0][..], &[1.0][..], 4));
    }
    // And a reset begins anew, whatever the running statistics hold.
    layer.set_batches(0);
    batch(&mut layer, 10.0);
    assert_eq!((layer.running_mean(), layer.batches()), (&[10.0][..], 1));
}

/// keras 6570: a frozen layer's running statistics moved on. pytorch 586, too: its backward took a batch's statistics.
#[test]
fn a_frozen_layer_stays_as_it_is() {
    let shape = Shape::nchw(&[4, 2, 3]).unwrap();
    let (first, second, dy) = (about(0.0, 1.0, 24), about(50.0, 10.0, 24), about(0.3, 1.0, 24));
    let mut layer = BatchNorm::<f32>::new(2).with_eps(0.0);
    let mut y = vec![0.0; 24];
    layer.forward_training(&shape, &first, &mut y).unwrap();
    layer.running_mean_mut().copy_from_slice(&[1.0, 2.0]);
    layer.running_var_mut().copy_from_slice(&[4.0, 0.25]);
    layer.gamma_mut().unwrap().copy_from_slice(&[2.0, 3.0]);
    let before = layer.clone();
    layer.forward(Mode::Frozen, &shape, &second, &mut y).unwrap();
    let mut dx = [0.0f32; 24];
    layer.backward(&shape, &second, &dy, &mut dx).unwrap();
    for (i, (dx, dy)) in dx.iter().zip(&dy).enumerate() {
        assert_eq!(*dx, dy * [1.0, 6.0][i / 3 % 2]);
    }
    assert_eq!(layer, before);
}

/// pytorch 586 once more: evaluation of another batch before backward.
#[test]
fn backward_does_not_mix_two_batches() {
    let shape = Shape::nchw(&[4, 2, 3]).unwrap();
    let (first, second) =
        (about(0.0, 1.0, 24), about(50.0, 10.0, 24).iter().map(|x| x + 1.0).collect::<Vec<_>>());
    let mut layer = BatchNorm::<f32>::new(2);
    let (mut y, mut dx) = ([0.0; 24], [7.0; 24]);
    layer.forward_training(&shape, &first, &mut y).unwrap();
    layer.forward_inference(&shape, &second, &mut y).unwrap();
    let result = layer.backward(&shape, &second, &first, &mut dx);
    assert!(matches!(result, Err(Error::ForwardInput { index: 0, .. })), "{result:?}");
    assert_eq!(dx, [7.0; 24]);
}

/// pytorch 62471, 96136: checkpointing runs forward twice, and the running statistics took the batch in twice.
#[test]
fn a_recomputed_forward_counts_once() {
    let shape = Shape::nchw(&[4, 2, 3]).unwrap();
    let (x, dy) = (about(3.0, 2.0, 24), about(0.0, 1.0, 24));
    let mut plain = BatchNorm::<f32>::new(2);
    let mut checkpointed = plain.clone();
    let [mut y, mut again, mut expected_dx, mut dx] = [[0.0; 24]; 4];
    for _ in 0..3 {
        plain.forward_training(&shape, &x, &mut y).unwrap();
        plain.backward(&shape, &x, &dy, &mut expected_dx).unwrap();
        plain.step(0.1).unwrap();
        checkpointed.forward_training(&shape, &x, &mut again).unwrap();
        checkpointed.forward(Mode::TrainingKeepRunning, &shape, &x, &mut again).unwrap();
        checkpointed.backward(&shape, &x, &dy, &mut dx).unwrap();
        checkpointed.step(0.1).unwrap();
        assert_eq!((again, dx), (y, expected_dx));
        assert_eq!(checkpointed, plain);
    }
    assert_eq!(plain.batches(), 3);
}

/// A level that was asked for and is not there must not silently be another one (oneDNN's ONEDNN_MAX_CPU_ISA is a hint).
#[test]
fn statistics_are_the_same_on_every_level() {
    let (shape, x) = (Shape::nchw(&[3, 2, 1000]).unwrap(), about(1e4, 1.0, 6000));
    let all = Level::available().iter().map(|&level| {
        Level::with(level, || {
            let mut states = [Welford::new(); 2];
            statistics(&shape, &x, &mut states).unwrap();
            states
        })
        .unwrap()
    });
    let all: Vec<_> = all.collect();
    assert!(all.iter().all(|states| *states == all[0]));
}

/// OpenBLAS 1237, pytorch's `set_flush_denormal`: a mode that flushes subnormals stays in threads that were started in it. (In
/// every mode, and on rayon's threads: tests/simd/environment.rs.)
#[cfg(target_arch = "x86_64")]
#[test]
fn flush_to_zero_does_not_reach_results() {
    use batchnorm::threads::{Pool, with};
    use std::arch::asm;

    /// What a host does to each of its threads, and undoes on the calling one.
    fn flushing(f: impl FnOnce()) {
        let (flushing, default) = (0x9FC0u32, 0x1F80u32);
        // SAFETY: what runs in between is the library, and the integers that call it.
        unsafe { asm!("ldmxcsr [{}]", in(reg) &raw const flushing) };
        f();
        // SAFETY: the default.
        unsafe { asm!("ldmxcsr [{}]", in(reg) &raw const default) };
    }

    struct Flushing;
    impl Pool for Flushing {
        fn threads(&self) -> usize {
            3
        }
        fn run(&self, tasks: usize, task: &(dyn Fn(usize) + Sync)) {
            std::thread::scope(|scope| {
                (0..tasks).for_each(|i| _ = scope.spawn(move || flushing(|| task(i))));
            });
        }
    }

    let shape = Shape::nchw(&[1024, 2, 512]).unwrap();
    let x: Vec<f32> = (0..shape.len()).map(|i| if i % 2 == 0 { 1e-39 } else { 3e-39 }).collect();
    let (mut y, mut states) = (vec![0.0f32; x.len()], [Welford::new(); 2]);
    let params = Params::new(0.0);
    flushing(|| with(&Flushing, || forward_training(&shape, &x, &params, &mut y, &mut states)).unwrap());
    assert!(y.chunks(2).all(|y| y == [-1.0, 1.0]));
    assert!((states[0].mean() / 2e-39 - 1.0).abs() < 1e-6);
}

/// A checkpoint's variance that rounding left a little below 0: 1 / sqrt(var + eps), as PyTorch and ONNX have it, while that is
/// something; where var + eps is 0, what a variance of 0 gives without eps.
#[test]
fn a_variance_above_minus_eps_is_made_up_for() {
    let (shape, x, dy) = (Shape::nchw(&[3, 1]).unwrap(), [1.0f64, 2.0, -3.0], [0.5, -1.0, 2.0]);
    let run = |var: f64, eps: f64| {
        let (mut y, mut dx, mut dgamma) = ([7.0; 3], [7.0; 3], [7.0]);
        let params = Params::new(eps);
        forward_inference(&shape, &x, &[1.0], &[var], &params, &mut y).unwrap();
        let gradients = Gradients::new().dx(&mut dx).dgamma(&mut dgamma);
        backward_frozen(&shape, &x, &dy, &[1.0], &[var], &params, gradients).unwrap();
        (y, dx, dgamma)
    };
    let invstd = 1.0 / (-9.9999e-6f64 + 1e-5).sqrt();
    let (y, dx, dgamma) = run(-9.9999e-6, 1e-5);
    for (got, expected) in y.iter().chain(&dx).chain(&dgamma).zip([0.0, 1.0, -4.0, 0.5, -1.0, 2.0, -9.0]) {
        let expected = expected * invstd;
        assert!((got - expected).abs() <= 1e-14 * expected.abs(), "{got}, not {expected}");
    }
    let (y, dx, dgamma) = run(-1.0001e-5, 1e-5);
    assert!(y.iter().chain(&dx).chain(&dgamma).all(|value| value.is_nan()));
    let bits = |(y, dx, dgamma): ([f64; 3], [f64; 3], [f64; 1])| {
        (y.map(f64::to_bits), dx.map(f64::to_bits), dgamma[0].to_bits())
    };
    assert_eq!(bits(run(-1e-5, 1e-5)), bits(run(0.0, 0.0)));
    assert_eq!(run(0.0, 0.0).0[1..], [f64::INFINITY, f64::NEG_INFINITY]);
    assert!(run(0.0, 0.0).0[0].is_nan());
}

/// Subnormal elements and no eps: 1 / std is up to 2^149, and what roundings leave of terms that cancel must not become
/// infinite by it.
#[test]
fn gradients_of_subnormal_elements_are_finite() {
    let mut rng = crate::common::data::rng(1);
    for len in (2..=100).chain([1000]) {
        for (exponent, gamma) in [(0, 1.0f32), (3, -0.7), (-30, 1e-20), (-60, 1e20), (20, 1e-10)] {
            let size = 2f64.powi(exponent);
            let x: Vec<f32> = (0..len)
                .map(|i| f32::from_bits((3.0 + variate(&mut rng)) as u32 + if i == 0 { 9 } else { 1 }))
                .collect();
            let dy: Vec<f32> = (0..len).map(|_| (size * variate(&mut rng)) as f32).collect();
            for layout in LAYOUTS {
                let shape = Shape::new(layout, len, 1, &[]).unwrap();
                let gamma = [gamma];
                let params = Params::new(0.0).gamma(&gamma);
                let (mut states, mut dx) = ([Welford::new()], vec![0.0f32; len]);
                statistics(&shape, &x, &mut states).unwrap();
                backward(&shape, &x, &dy, &states, &params, Gradients::new().dx(&mut dx)).unwrap();
                let exact = Normalization::training(&Statistics::of(&x), 0.0, gamma[0].into(), 0.0);
                let gradients = exact::Gradients::of(exact, &x, &dy, true);
                for ((x, dy), dx) in x.iter().zip(&dy).zip(&dx) {
                    let expected = gradients.dx(f64::from(*x), f64::from(*dy));
                    let bound = expected.scale * 2f64.powi(-20);
                    if expected.value.abs() < f64::from(f32::MAX) * 0.99 {
                        assert!(
                            dx.is_finite(),
                            "{len} {gamma:?} {exponent}: {dx:e}, exactly {:e}",
                            expected.value
                        );
                        assert!(
                            expected.distance(f64::from(*dx)) <= bound,
                            "{dx:e}, exactly {:e}",
                            expected.value
                        );
                    } else if expected.value.abs() > f64::from(f32::MAX) * 1.01 {
                        assert_eq!(*dx, expected.value.signum() as f32 * f32::INFINITY);
                    }
                }
            }
        }
    }
}

/// Two elements, of which dx is 0 exactly: what is left of it is nothing beside its terms.
#[test]
fn gradients_of_two_subnormal_elements_vanish() {
    for (x, dy) in [
        ([1, 3], [10.0f32, -8.0]),
        ([1, 2], [0.3, 0.1]),
        ([0, 8_000_000], [1e10, 1.0]),
        ([7, 9], [-3e5, 3.0]),
    ] {
        let (x, shape) = (x.map(f32::from_bits), Shape::nchw(&[2, 1]).unwrap());
        let (mut states, mut dx) = ([Welford::new()], [7.0f32; 2]);
        statistics(&shape, &x, &mut states).unwrap();
        backward(&shape, &x, &dy, &states, &Params::new(0.0), Gradients::new().dx(&mut dx)).unwrap();
        let terms = f64::from(dy[0].abs().max(dy[1].abs())) / states[0].variance().sqrt();
        assert!(dx.iter().all(|dx| f64::from(dx.abs()) <= terms * 2f64.powi(-40)), "{x:?}, {dy:?}: {dx:?}");
    }
    // And of f64, where 1 / std times dy stays within 2^900.
    let (x, dy, shape) = ([1e-250f64, 3e-250], [10.0, -8.0], Shape::nchw(&[2, 1]).unwrap());
    let (mut states, mut dx) = ([Welford::new()], [7.0f64; 2]);
    statistics(&shape, &x, &mut states).unwrap();
    backward(&shape, &x, &dy, &states, &Params::new(0.0), Gradients::new().dx(&mut dx)).unwrap();
    assert!(dx.iter().all(|dx| dx.abs() <= 30.0 * 1e250 * 2f64.powi(-48)), "{dx:?}");
}

/// A batch's variance may be beyond f32, where the running one, an f32, is infinite: inference then gives beta. PyTorch's
/// does not saturate either.
#[test]
fn a_running_variance_beyond_f32_is_infinite() {
    let (shape, x) = (Shape::nchw(&[2, 1]).unwrap(), [1e20f32, -1e20]);
    let mut layer = BatchNorm::<f32>::new(1);
    let mut y = [0.0; 2];
    layer.forward_training(&shape, &x, &mut y).unwrap();
    assert_eq!(y, [1.0, -1.0]);
    assert_eq!((layer.running_mean(), layer.running_var()), (&[0.0][..], &[f32::INFINITY][..]));
    layer.forward_inference(&shape, &x, &mut y).unwrap();
    assert_eq!(y, [0.0; 2]);
}

/// More channels than are mapped at once, of planes that are shared out singly: the last tasks of the last channels have nothing to do.
/// (Found by a user's sweep; it panicked.)
#[cfg(feature = "rayon")]
#[test]
fn channels_just_above_a_span() {
    for (dims, threads) in [
        (&[1, 2049, 500][..], 2),
        (&[1, 2049, 300], 7),
        (&[2, 2053, 256], 3),
        (&[1, 4097, 256], 3),
        (&[1, 6145, 127], 2),
    ] {
        let problem = Problem::<f32>::new(dims, 7);
        let results = |threads: usize| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            pool.install(|| {
                let (shape, params) = (problem.shape(batchnorm::Layout::Nchw), problem.params());
                let (mut y, mut dx) = (vec![0.0; problem.x.len()], vec![0.0; problem.x.len()]);
                let Problem { x, dy, mean, var, .. } = &problem;
                forward_inference(&shape, x, mean, var, &params, &mut y).unwrap();
                backward_frozen(&shape, x, dy, mean, var, &params, Gradients::new().dx(&mut dx)).unwrap();
                [y, dx].map(|values| values.into_iter().map(f32::to_bits).collect::<Vec<_>>())
            })
        };
        assert!(results(threads) == results(1), "{dims:?} on {threads} threads");
    }
}

/// Ranks with other numbers of elements, other sizes of images too: some synchronized batch norms took the mean of the ranks' means, or one
/// rank's count for all of them, and so had running variances that differed between ranks (pytorch 22192, Paddle 32464, inplace_abn 68);
/// one element in a rank, and none at all, are ordinary (apex 262, pytorch 36530).
#[test]
fn ranks_with_other_counts() {
    let parts: [(usize, &[f32]); 4] = [(9, &[1.0; 9]), (1, &[11.0]), (4, &[21.0; 4]), (1, &[])];
    let (mut statistics, mut first) = (PartialStatistics::<f32>::new(1), 0);
    for (s, x) in parts {
        let shape = Shape::nchw(&[x.len() / s, 1, s]).unwrap();
        statistics.add(&shape, first, x).unwrap();
        first += shape.batch() as u64;
    }
    let state = statistics.states().unwrap()[0];
    // By hand: (9 * 1 + 11 + 4 * 21) / 14; not 11, the mean of the means.
    assert!(state.count() == 14 && (state.mean() - 104.0 / 14.0).abs() < 1e-14);
    let squares = 9.0 + 121.0 + 4.0 * 441.0;
    assert!((state.variance() / (squares / 14.0 - (104.0f64 / 14.0).powi(2)) - 1.0).abs() < 1e-14);
}

/// tensorflow 7439, 18222, tensorflow/models 100: devices that share a batch each moved the averages by their own part, or those of one
/// device were kept. They are the whole batch's, however unevenly it is split, and one device may have nothing of it.
#[test]
fn moving_averages_are_of_the_whole_batch() {
    const N: usize = 50;
    let shape = |n| Shape::nchw(&[n, 3, 7, 7]).unwrap();
    let mut whole = BatchNorm::<f32>::new(3);
    // Parts that are not alike: the mean over parts of means and variances is not that of the batch.
    let cuts = [0, 16, 16, 48, N];
    let batch = |step: usize| {
        let part = |i: usize| cuts.iter().filter(|cut| **cut <= i / 147).count();
        let x = about(3.0, 1.0 + step as f64, N * 147);
        x.iter().enumerate().map(|(i, x)| x + 5.0 * part(i) as f32).collect::<Vec<_>>()
    };
    let mut y = vec![0.0; N * 147];
    (0..3).for_each(|step| whole.forward_training(&shape(N), &batch(step), &mut y).unwrap());
    let layers = in_threads(&cuts, |first, end, mut others| {
        let mut layer = BatchNorm::<f32>::new(3);
        let mut y = vec![0.0; (end - first) * 147];
        for step in 0..3 {
            let (x, at) = (batch(step), (first as u64, &mut others as &mut dyn Gather));
            let part = (&x[first * 147..end * 147], None);
            layer.forward_among(Mode::Training, &shape(end - first), part, &mut y, at).unwrap();
        }
        layer
    });
    assert_eq!(layers.len(), 4);
    for layer in &layers {
        assert_eq!((layer.running_mean(), layer.running_var()), (whole.running_mean(), whole.running_var()));
        assert_eq!((layer, layer.batches()), (&whole, 3));
    }
    let mut alone = BatchNorm::<f32>::new(3);
    let part = 16 * 147..48 * 147;
    for step in 0..3 {
        alone.forward_training(&shape(32), &batch(step)[part.clone()], &mut y[part.clone()]).unwrap();
    }
    assert!(alone.running_var()[0] < 0.9 * whole.running_var()[0], "a part is not the batch");
}
