//! Tensors of bf16 and f16 as callers see them: the layer, streaming statistics, and what is wrong with arguments.

use batchnorm::{
    Activation, Backward, BatchNorm, Error, Gradients, Inference, Mode, Params, Parts, Shape, Statistics,
    StreamingStatistics, Tensor, Training, Welford, forward_training,
};
use half::{bf16, f16};

use crate::common::half::{Halves, Number};
use crate::common::matrix::{Guarded, LAYOUTS, assert_same, permute};

const MODES: [Mode; 4] = [Mode::Training, Mode::TrainingKeepRunning, Mode::Frozen, Mode::Inference];
const ACTIVATIONS: [Activation; 6] = [
    Activation::Identity,
    Activation::Relu,
    Activation::LeakyRelu { slope: 0.1 },
    Activation::Clip { lo: -0.5, hi: 1.0 },
    Activation::HardSwish,
    Activation::Silu,
];

fn rounded<H: Number>(wide: &[f32]) -> Vec<H> {
    wide.iter().map(|value| H::rounded(*value)).collect()
}

fn widened<H: Number>(numbers: &[H]) -> Vec<f32> {
    numbers.iter().map(|number| number.widened()).collect()
}

/// A layer of the problem's parameters and running statistics.
fn layer<H: Number>(problem: &Halves<H>, activation: Activation) -> BatchNorm<f32> {
    let wide = problem.wide.clone();
    let (gamma, beta) = (wide.gamma, wide.beta);
    let (running_mean, running_var, eps) = (wide.mean, wide.var, wide.eps);
    let parts = Parts::new(running_mean.len());
    let parts = Parts { gamma, beta, running_mean, running_var, eps, activation, ..parts };
    BatchNorm::from_parts(parts).unwrap()
}

/// A step of one layer on 16-bit numbers and of its twin on these widened; asserts that the twins stay so.
fn step_both<H: Number>(
    [halves, wide]: [&mut BatchNorm<f32>; 2],
    problem: &Halves<H>,
    shape: &Shape,
    mode: Mode,
    residual: bool,
) {
    let what = format!("{} {mode:?} {shape} {} residual {residual}", H::NAME, halves.activation());
    let lay = |tensor: &[H]| permute(shape, tensor, true);
    let [x, dy, z] = [&problem.x, &problem.dy, &problem.z].map(|tensor| lay(tensor));
    let [wide_x, wide_dy, wide_z] = [&x, &dy, &z].map(|tensor| widened(tensor));
    let output = || Guarded::<H>::new(shape.len(), 3);
    let wide_output = || vec![0.0f32; shape.len()];

    let (mut y, mut wide_y) = (output(), wide_output());
    if residual {
        halves.forward_with_residual(mode, shape, &x, &z, y.get_mut()).unwrap();
        wide.forward_with_residual(mode, shape, &wide_x, &wide_z, &mut wide_y).unwrap();
    } else {
        halves.forward(mode, shape, &x, y.get_mut()).unwrap();
        wide.forward(mode, shape, &wide_x, &mut wide_y).unwrap();
    }
    assert_same(format_args!("{what}: y"), &y.take(&what), &rounded::<H>(&wide_y));
    let assert_alike = |halves: &BatchNorm<f32>, wide: &BatchNorm<f32>| {
        assert_same(format_args!("{what}: running mean"), halves.running_mean(), wide.running_mean());
        assert_same(format_args!("{what}: running variance"), halves.running_var(), wide.running_var());
        assert_same(format_args!("{what}: states"), halves.states(), wide.states());
        assert_eq!(halves.batches(), wide.batches(), "{what}");
    };
    assert_alike(halves, wide);

    let mut inferred = output();
    if residual {
        halves.forward_inference_with_residual(shape, &x, &z, inferred.get_mut()).unwrap();
        wide.forward_inference_with_residual(shape, &wide_x, &wide_z, &mut wide_y).unwrap();
    } else {
        halves.forward_inference(shape, &x, inferred.get_mut()).unwrap();
        wide.forward_inference(shape, &wide_x, &mut wide_y).unwrap();
    }
    assert_same(format_args!("{what}: y by &self"), &inferred.take(&what), &rounded::<H>(&wide_y));

    let (mut dx, mut dz) = (output(), output());
    let (mut wide_dx, mut wide_dz) = (wide_output(), wide_output());
    if mode == Mode::Inference {
        assert_eq!(halves.backward(shape, &x, &dy, dx.get_mut()), Err(Error::NoForward));
        dx.assert_untouched("dx");
    } else if residual {
        halves.backward_with_residual(shape, &x, &dy, dx.get_mut(), dz.get_mut()).unwrap();
        wide.backward_with_residual(shape, &wide_x, &wide_dy, &mut wide_dx, &mut wide_dz).unwrap();
        assert_same(format_args!("{what}: dz"), &dz.take(&what), &rounded::<H>(&wide_dz));
        assert_same(format_args!("{what}: dx"), &dx.take(&what), &rounded::<H>(&wide_dx));
    } else {
        halves.backward(shape, &x, &dy, dx.get_mut()).unwrap();
        wide.backward(shape, &wide_x, &wide_dy, &mut wide_dx).unwrap();
        assert_same(format_args!("{what}: dx"), &dx.take(&what), &rounded::<H>(&wide_dx));
    }
    if mode != Mode::Inference {
        assert_same(format_args!("{what}: dgamma"), halves.dgamma(), wide.dgamma());
        assert_same(format_args!("{what}: dbeta"), halves.dbeta(), wide.dbeta());
    }
    halves.step(0.05).unwrap();
    wide.step(0.05).unwrap();
    assert_alike(halves, wide);
}

/// In every mode, with every activation, with and without a residual: the tensors are those of f32 rounded once, and the layer
/// itself is the same.
#[test]
fn a_layer_is_that_of_f32() {
    fn check<H: Number>() {
        for mode in MODES {
            for (activation, residual) in ACTIVATIONS.into_iter().flat_map(|a| [(a, false), (a, true)]) {
                if residual && !activation.is_piecewise_linear() {
                    continue;
                }
                let mut halves = layer(&Halves::<H>::new(&[2, 7, 3], 1), activation);
                let mut wide = halves.clone();
                for (seed, dims) in [&[3, 7, 19][..], &[2, 7], &[1, 7, 6, 11]].into_iter().enumerate() {
                    let problem = Halves::<H>::new(dims, seed as u64);
                    let shape = problem.wide.shape(LAYOUTS[seed % 2]);
                    step_both([&mut halves, &mut wide], &problem, &shape, mode, residual);
                }
                assert_eq!(halves, wide);
            }
        }
    }
    check::<bf16>();
    check::<f16>();
}

/// NaNs of any bits and infinities stay in their channel, and come out as the canonical NaN.
#[test]
fn a_nan_makes_its_channel_the_canonical_nan() {
    fn check<H: Number>(nan: u16, infinity: u16) {
        for mode in MODES {
            for layout in LAYOUTS {
                let Halves { mut x, dy, z, wide } = Halves::<H>::new(&[3, 4, 5], 5);
                (x[5], x[13]) = (H::of_bits(0xffd5), H::of_bits(infinity));
                let problem = Halves::of(wide, [x, dy, z]);
                let shape = problem.wide.shape(layout);
                for residual in [false, true] {
                    let mut halves = layer(&problem, Activation::Identity);
                    let mut wide = halves.clone();
                    step_both([&mut halves, &mut wide], &problem, &shape, mode, residual);
                }
            }
        }
        let shape = Shape::nhwc(&[2, 3]).unwrap();
        let x = [0x0000, 0xffff, infinity, 0x0001, 0x0000, 0x0000].map(H::of_bits);
        let mut y = x;
        forward_training(&shape, &x, &Params::default(), &mut y, &mut [Welford::new(); 3]).unwrap();
        let bits = y.map(H::bits);
        assert_eq!((bits[1], bits[4], bits[2], bits[5]), (nan, nan, nan, nan), "{}", H::NAME);
        assert!(!y[0].widened().is_nan() && !y[3].widened().is_nan());
    }
    check::<bf16>(0x7fc0, 0x7f80);
    check::<f16>(0x7e00, 0x7c00);
}

#[test]
fn no_elements_leave_the_layer_alone() {
    fn check<H: Number>() {
        for dims in [&[0, 3, 5][..], &[4, 3, 0], &[0, 3], &[0, 3, 0]] {
            for mode in MODES {
                let shape = Shape::nchw(dims).unwrap();
                let mut layer = BatchNorm::<f32>::new(3);
                let empty: [H; 0] = [];
                layer.forward_with_residual(mode, &shape, &empty, &empty, &mut []).unwrap();
                if mode != Mode::Inference {
                    let (mut dx, mut dz) = ([] as [H; 0], [] as [H; 0]);
                    layer.backward_with_residual(&shape, &empty, &empty, &mut dx, &mut dz).unwrap();
                }
                assert_eq!(layer, BatchNorm::new(3), "{mode:?} {shape}");
                assert_eq!((layer.dgamma(), layer.dbeta()), (&[0.0; 3][..], &[0.0; 3][..]));
            }
        }
    }
    check::<bf16>();
    check::<f16>();
}

/// x is known by its values, so that the widened tensor is as good as itself, and no other batch is.
#[test]
fn backward_is_of_the_forward_passes_x() {
    fn check<H: Number>() {
        let problem = Halves::<H>::new(&[2, 3, 5], 2);
        let shape = problem.wide.shape(LAYOUTS[0]);
        for mode in [Mode::Training, Mode::TrainingKeepRunning, Mode::Frozen] {
            let mut layer = layer(&problem, Activation::Relu);
            let mut y = vec![H::default(); 30];
            layer.forward(mode, &shape, &problem.x, &mut y).unwrap();
            for index in [0, 7, 29] {
                let mut other = problem.x.clone();
                other[index] = H::of_bits(other[index].bits() ^ 1);
                let mut dx = Guarded::<H>::new(30, 1);
                let [got, expected] = [&other, &problem.x].map(|x| f64::from(x[index].widened()));
                let result = layer.backward(&shape, &other, &problem.dy, dx.get_mut());
                assert_eq!(result, Err(Error::ForwardInput { index, got, expected }), "{mode:?}");
                dx.assert_untouched("dx");
            }
            let mut dx = vec![H::default(); 30];
            layer.backward(&shape, &problem.x, &problem.dy, &mut dx).unwrap();
            let mut wide_dx = [0.0f32; 30];
            layer.backward(&shape, &problem.wide.x, &problem.wide.dy, &mut wide_dx).unwrap();
            assert_same("dx of the widened x", &dx, &rounded::<H>(&wide_dx));

            let shape = Shape::nchw(&[2, 3, 4]).unwrap();
            let result = layer.backward(&shape, &problem.x[..24], &problem.dy[..24], &mut dx[..24]);
            assert!(matches!(result, Err(Error::ForwardShape { .. })), "{result:?}");
        }
    }
    check::<bf16>();
    check::<f16>();
}

/// A checkpoint of a layer that trains on 16-bit numbers is one of f32, and goes on from where it was.
#[test]
fn checkpoints_hold_no_trace_of_the_tensors_numbers() {
    fn check<H: Number>() {
        let problems = [1, 2].map(|seed| Halves::<H>::new(&[3, 4, 7], seed));
        let shape = problems[0].wide.shape(LAYOUTS[1]);
        let mut halves = layer(&problems[0], Activation::Relu);
        let mut wide = halves.clone();
        step_both([&mut halves, &mut wide], &problems[0], &shape, Mode::Training, false);
        #[cfg(feature = "serde")]
        assert_eq!(serde_json::to_string(&halves).unwrap(), serde_json::to_string(&wide).unwrap());
        let mut restored = BatchNorm::from_parts(halves.clone().into_parts()).unwrap();
        assert_eq!((&restored, restored.parts()), (&wide, wide.parts()));
        step_both([&mut restored, &mut wide], &problems[1], &shape, Mode::Training, true);
        assert_eq!(restored, wide);
    }
    check::<bf16>();
    check::<f16>();
}

#[test]
fn streaming_statistics_of_batches_of_any_numbers() {
    let bf16s = Halves::<bf16>::new(&[3, 4, 50], 1);
    let f16s = Halves::<f16>::new(&[2, 4, 9], 2);
    let (first, second) = (bf16s.wide.shape(LAYOUTS[0]), f16s.wide.shape(LAYOUTS[0]));
    let (mut halves, mut wide) = (StreamingStatistics::new(4), StreamingStatistics::new(4));
    for _ in 0..3 {
        halves.update(&first, &bf16s.x).unwrap();
        halves.update(&second, &f16s.x).unwrap();
        halves.update(&second, &f16s.wide.dy).unwrap();
        wide.update(&first, &bf16s.wide.x).unwrap();
        wide.update(&second, &f16s.wide.x).unwrap();
        wide.update(&second, &f16s.wide.dy).unwrap();
        assert_same("states", halves.states(), wide.states());
    }
    assert_eq!(halves.states()[0].count(), 3 * (150 + 18 + 18));
    let before = halves.clone();
    let error = halves.update(&first, &bf16s.x[1..]).unwrap_err();
    assert_eq!(error.to_string(), "x has length 599, must have length 600, that of NCL 3x4x50");
    let error = halves.update(&Shape::nchw(&[2, 3]).unwrap(), &[bf16::ONE; 6]).unwrap_err();
    assert_eq!(error.to_string(), "NC 2x3 has 3 channels, must have the 4 of the statistics");
    assert_eq!(halves, before);
}

/// The buffer holds any numbers, and goes where a slice does.
#[test]
fn a_tensor_of_bf16() {
    let shape = Shape::nhwc(&[4, 3]).unwrap();
    let x = Tensor::from_fn(shape, |i| bf16::from_f32((i * i) as f32));
    assert_eq!((x.len(), x.as_ptr() as usize % 64), (12, 0));
    assert_eq!(x, Tensor::from_slice(shape, &x).unwrap());
    let mut y = Tensor::<bf16>::zeros(shape);
    BatchNorm::<f32>::new(3).forward_training(&shape, &x, &mut y).unwrap();
    let mut wide = [0.0f32; 12];
    BatchNorm::new(3).forward_training(&shape, &widened(&x), &mut wide).unwrap();
    assert_same("y", &y, &rounded::<bf16>(&wide));
    let error = Tensor::from_slice(shape, &x[1..]).unwrap_err();
    assert_eq!(error.to_string(), "values has length 11, must have length 12, that of NC 4x3");
}

/// What a call may write to: a tensor of 16-bit numbers, one of f32, states, a mask.
type Call<'a, H> = &'a dyn Fn(&mut [H], &mut [f32], &mut [Welford], &mut [u64]) -> Result<(), Error>;

/// Asserts that a call is refused for this reason, with nothing written. The tensor of f32 has this length.
#[track_caller]
fn refused<H: Number>(call: Call<'_, H>, len: usize, expected: &Error) {
    let (mut half, mut single) = (Guarded::<H>::new(30, 1), Guarded::<f32>::new(len, 1));
    let (mut states, mut mask) = (Guarded::<Welford>::new(3, 0), Guarded::<u64>::new(1, 0));
    let result = call(half.get_mut(), single.get_mut(), states.get_mut(), mask.get_mut());
    assert_eq!(result, Err(expected.clone()), "{}", H::NAME);
    half.assert_untouched("the tensor of 16-bit numbers");
    single.assert_untouched("the tensor of f32");
    states.assert_untouched("states");
    mask.assert_untouched("mask");
}

#[test]
fn every_slice_of_a_wrong_length_is_named() {
    fn check<H: Number>() {
        let shape = Shape::nchw(&[2, 3, 5]).unwrap();
        let (x, vector) = ([H::rounded(1.5); 30], [1.0f32; 3]);
        let given: [Welford; 3] = [[1.0; 10].into_iter().collect(); 3];
        let params = Params::new(1e-5);
        let training = || Training::<H>::new(&shape, params).x(&x);
        let inference = || Inference::<H>::new(&shape, params).x(&x).frozen(&vector, &vector);
        let backward = || Backward::<H>::new(&shape, params).x(&x).states(&given);
        let frozen = || Backward::<H>::new(&shape, params).x(&x).frozen(&vector, &vector);
        for got in [0, 1, 29, 31, 60, 30_000] {
            let (short, other) = (vec![x[0]; got], vec![0.5f32; got]);
            let rows: [(&'static str, Call<'_, H>); 15] = [
                ("y", &|_, f, states, mask| training().y_of(f).states(states).mask(mask).run()),
                ("y", &|_, f, _, mask| inference().y_of(f).mask(mask).run()),
                ("residual", &|h, _, states, _| training().residual_of(&other).y(h).states(states).run()),
                ("residual", &|h, _, _, _| inference().residual_of(&other).y(h).run()),
                ("residual", &|h, _, _, _| inference().residual(&short).y(h).run()),
                ("residual", &|_, f, states, _| training().residual_of_in_place(f).states(states).run()),
                ("residual", &|_, f, _, mask| inference().residual_of_in_place(f).mask(mask).run()),
                ("dy", &|h, _, _, _| backward().dy_of(&other).gradients(Gradients::new().dx(h)).run()),
                ("dy", &|h, _, _, _| frozen().dy(&short).gradients(Gradients::new().dx(h)).run()),
                ("dy", &|h, f, _, _| backward().dy_of_to_dz(f).gradients(Gradients::new().dx(h)).run()),
                ("dz", &|h, f, _, _| backward().dy(&x).dz_of(f).gradients(Gradients::new().dx(h)).run()),
                ("dz", &|_, f, _, _| frozen().dy(&x).dz_of(f).run()),
                ("x", &|_, _, states, _| Statistics::new(&shape).x(&short).states(states).run()),
                ("x", &|h, _, states, _| training().x(&short).y(h).states(states).run()),
                ("x", &|h, _, _, _| backward().x(&short).dy(&x).gradients(Gradients::new().dx(h)).run()),
            ];
            for (argument, call) in rows {
                let shape = Some(shape.to_string());
                refused(call, got, &Error::Length { argument, got, expected: 30, shape });
            }
        }
    }
    check::<bf16>();
    check::<f16>();
}

/// Whichever of the methods gave the places.
#[test]
fn operands_that_are_missing_or_twice_there_are_named() {
    fn check<H: Number>() {
        let shape = Shape::nchw(&[2, 3, 5]).unwrap();
        let (x, wide, vector) = ([H::rounded(1.5); 30], [0.5f32; 30], [1.0f32; 3]);
        let given: [Welford; 3] = [[1.0; 10].into_iter().collect(); 3];
        let params = Params::new(1e-5);
        let relu = params.activation(Activation::Relu);
        let training = || Training::<H>::new(&shape, relu);
        let inference = || Inference::<H>::new(&shape, relu).frozen(&vector, &vector);
        let backward = || Backward::<H>::new(&shape, params).states(&given);
        let fused = || Backward::<H>::new(&shape, relu).states(&given);
        fn dx<H: Number>(dx: &mut [H]) -> Gradients<'_, H> {
            Gradients::new().dx(dx)
        }
        let missing = |argument| Error::Missing { argument };
        let twice = |argument| Error::Twice { argument };
        let rows: [(Call<'_, H>, Error); 21] = [
            (&|_, _, states, _| Statistics::<H>::new(&shape).states(states).run(), missing("x")),
            (&|_, f, states, _| training().y_of(f).states(states).run(), missing("x")),
            (&|_, f, _, _| inference().residual_of_in_place(f).run(), missing("x")),
            (&|_, f, _, _| training().x(&x).y_of(f).run(), missing("states")),
            (&|_, f, _, _| Inference::<H>::new(&shape, relu).x(&x).y_of(f).run(), missing("mean")),
            (&|_, _, states, _| training().x(&x).residual_of(&wide).states(states).run(), missing("y")),
            (&|_, _, _, _| inference().x(&x).residual_of(&wide).run(), missing("y")),
            (&|h, f, states, _| training().x_in_place(h).y_of(f).states(states).run(), twice("y")),
            (&|h, f, _, _| inference().x_in_place(h).y_of(f).run(), twice("y")),
            (
                &|h, f, states, _| training().x(&x).residual_of_in_place(f).y(h).states(states).run(),
                twice("y"),
            ),
            (&|h, f, _, _| inference().x(&x).residual_in_place(h).y_of(f).run(), twice("y")),
            (&|h, f, _, _| inference().x_in_place(h).residual_of_in_place(f).run(), twice("y")),
            (&|h, _, _, _| backward().dy_of(&wide).gradients(dx(h)).run(), missing("x")),
            (&|_, f, _, _| backward().x(&x).dz_of(f).run(), missing("dy")),
            (
                &|h, f, _, _| Backward::new(&shape, params).x(&x).dy_of_to_dz(f).gradients(dx(h)).run(),
                missing("states"),
            ),
            (&|_, f, _, _| fused().x(&x).dy_of_to_dz(f).run(), missing("mask")),
            (&|_, f, _, _| fused().x(&x).dy_of(&wide).dz_of(f).run(), missing("mask")),
            (&|h, f, _, _| backward().x(&x).dy_to_dz(h).dz_of(f).run(), twice("dz")),
            (
                &|h, f, _, _| backward().x(&x).dy_of_to_dz(f).gradients(Gradients::new().dz(h)).run(),
                twice("dz"),
            ),
            (
                &|h, f, _, _| {
                    fused().x(&x).dy(&x).mask(&[0]).dz_of(f).gradients(Gradients::new().dz(h)).run()
                },
                twice("dz"),
            ),
            (
                &|h, _, _, _| {
                    let mut other = [H::default(); 30];
                    backward().x_to_dx(h).dy_of(&wide).gradients(dx(&mut other)).run()
                },
                twice("dx"),
            ),
        ];
        for (call, expected) in rows {
            refused(call, 30, &expected);
        }

        // Hard swish and SiLU go with neither, of whatever numbers.
        for (activation, name) in [(Activation::HardSwish, "hard swish"), (Activation::Silu, "SiLU")] {
            let params = params.activation(activation);
            let training = || Training::<H>::new(&shape, params).x(&x);
            let inference = || Inference::<H>::new(&shape, params).x(&x).frozen(&vector, &vector);
            let backward = || Backward::<H>::new(&shape, params).x(&x).frozen(&vector, &vector);
            let error = |with| Error::Activation { activation: name.to_owned(), with };
            let rows: [(Call<'_, H>, Error); 6] = [
                (&|h, _, s, _| training().residual_of(&wide).y(h).states(s).run(), error("residual")),
                (&|_, f, s, _| training().residual_of_in_place(f).states(s).run(), error("residual")),
                (&|_, f, _, _| inference().residual_of(&wide).y_of(f).run(), error("residual")),
                (&|_, f, _, mask| inference().y_of(f).mask(mask).run(), error("mask")),
                (&|_, f, _, _| backward().dy_of_to_dz(f).run(), error("residual")),
                (&|_, f, _, _| backward().dy_of(&wide).dz_of(f).run(), error("residual")),
            ];
            for (call, expected) in rows {
                refused(call, 30, &expected);
            }
        }
    }
    check::<bf16>();
    check::<f16>();
}

/// The place given last is the one, as everywhere in the builders.
#[test]
fn a_place_of_other_numbers_takes_the_place_of_another() {
    let shape = Shape::nchw(&[2, 1]).unwrap();
    let x = [1.0f32, 3.0].map(bf16::from_f32);
    let (mut left, mut y, mut states) = ([bf16::ZERO; 2], [0.0f32; 2], [Welford::new()]);
    let training = Training::new(&shape, Params::new(0.0)).x(&x).y(&mut left).y_of(&mut y);
    training.residual(&x).residual_of(&[0.25f32, 0.125]).states(&mut states).run().unwrap();
    assert_eq!((left, y), ([bf16::ZERO; 2], [-0.75, 1.125]));
    let (mut dx, mut dz) = ([bf16::ZERO; 2], [0.0f32; 2]);
    let backward = Backward::new(&shape, Params::new(0.0)).x(&x).dy(&x).dy_of(&[0.5f32, 1.0]);
    backward.dz_of(&mut dz).states(&states).gradients(Gradients::new().dx(&mut dx)).run().unwrap();
    assert_eq!((dx, dz), ([bf16::ZERO; 2], [0.5, 1.0]));
}
