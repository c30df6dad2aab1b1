//! Bad and odd arguments: every row of the contract's table that concerns callers from Rust.

use std::process::Command;

use batchnorm::{
    Activation, BatchNorm, Domain, Error, Gradients, Layout, Level, Mode, Params, Parts, Renorm,
    Renormalized, RunningUpdate, RunningVariance, Shape, StreamingStatistics, Tensor, UpdateRule,
    WeightShape, Welford, WelfordParts, backward, backward_frozen, fold_into, forward_inference,
    forward_training, reference, statistics, step, update_running,
};
use quickcheck::{Gen, QuickCheck};

use crate::common::matrix::{Bits, Guarded, LAYOUTS, Problem, assert_same, levels, params, variate};

const NOT_EPS: [f64; 6] = [-1e-5, -5e-324, f64::NAN, f64::INFINITY, f64::NEG_INFINITY, -1.0];
const NOT_FINITE: [f64; 3] = [f64::NAN, f64::INFINITY, f64::NEG_INFINITY];
const NOT_WEIGHTS: [f64; 8] =
    [f64::NAN, f64::INFINITY, f64::NEG_INFINITY, 5.0, -1.0, -5e-324, 1.0 + f64::EPSILON, f64::MAX];
const MODES: [Mode; 4] = [Mode::Training, Mode::TrainingKeepRunning, Mode::Frozen, Mode::Inference];

/// The operations on tensors.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Operation {
    Statistics,
    Training,
    TrainingInPlace,
    Inference,
    InferenceInPlace,
    Backward,
    BackwardOverX,
    BackwardFrozen,
    FrozenOverDy,
    /// With a residual, an activation and a mask.
    TrainingFused,
    TrainingOverZ,
    InferenceFused,
    InferenceOverZ,
    BackwardFused,
    FrozenFusedOverDy,
}

use Operation::*;

const OPERATIONS: [Operation; 15] = [
    Statistics,
    Training,
    TrainingInPlace,
    Inference,
    InferenceInPlace,
    Backward,
    BackwardOverX,
    BackwardFrozen,
    FrozenOverDy,
    TrainingFused,
    TrainingOverZ,
    InferenceFused,
    InferenceOverZ,
    BackwardFused,
    FrozenFusedOverDy,
];

const TENSORS: [&str; 6] = ["x", "dy", "residual", "y", "dx", "dz"];

/// The length that an argument must have.
fn right_len(name: &str, shape: &Shape) -> usize {
    match name {
        "mask" => shape.mask_len(),
        name if TENSORS.contains(&name) => shape.len(),
        _ => shape.channels(),
    }
}

impl Operation {
    /// The names of the slices that it takes.
    fn slices(self) -> &'static [&'static str] {
        match self {
            Statistics => &["x", "states"],
            Training => &["x", "gamma", "beta", "y", "states"],
            TrainingInPlace => &["x", "gamma", "beta", "states"],
            Inference => &["x", "mean", "var", "gamma", "beta", "y"],
            InferenceInPlace => &["x", "mean", "var", "gamma", "beta"],
            Backward => &["x", "dy", "states", "gamma", "beta", "dx", "dgamma", "dbeta", "dmean", "dvar"],
            BackwardOverX => &["x", "dy", "states", "gamma", "beta", "dgamma", "dbeta", "dmean", "dvar"],
            FrozenOverDy => &["x", "dy", "mean", "var", "gamma", "beta", "dgamma", "dbeta", "dmean", "dvar"],
            BackwardFrozen => {
                &["x", "dy", "mean", "var", "gamma", "beta", "dx", "dgamma", "dbeta", "dmean", "dvar"]
            }
            TrainingFused => &["x", "residual", "gamma", "beta", "y", "mask", "states"],
            TrainingOverZ => &["x", "residual", "gamma", "beta", "mask", "states"],
            InferenceFused => &["x", "residual", "mean", "var", "gamma", "beta", "y", "mask"],
            InferenceOverZ => &["x", "residual", "mean", "var", "gamma", "beta", "mask"],
            BackwardFused => &[
                "x", "dy", "mask", "states", "gamma", "beta", "dx", "dz", "dgamma", "dbeta", "dmean", "dvar",
            ],
            FrozenFusedOverDy => {
                &["x", "dy", "mask", "mean", "var", "gamma", "beta", "dx", "dgamma", "dbeta", "dmean", "dvar"]
            }
        }
    }

    fn takes_eps(self) -> bool {
        self != Statistics
    }

    /// Whether it takes states and looks at their count.
    fn takes_states(self) -> bool {
        matches!(self, Backward | BackwardOverX | BackwardFused)
    }

    /// Calls it with slices of the lengths that `len` makes of the right ones. When it returns an error, asserts that
    /// nothing has been written; when not, nothing beside the outputs.
    fn call<T: Bits>(
        self,
        shape: &Shape,
        eps: f64,
        count: u64,
        len: impl Fn(&'static str, usize) -> usize,
    ) -> Result<(), Error> {
        let len = |name| len(name, right_len(name, shape));
        let values = |name: &'static str| -> Vec<T> {
            (0..len(name)).map(|i| T::from_f64(1.0 + (i * 7 % 5) as f64)).collect()
        };
        let [x, dy, z, mean, var, gamma, beta] =
            ["x", "dy", "residual", "mean", "var", "gamma", "beta"].map(values);
        let [mut in_place, mut over_dy, mut over_z] = [&x, &dy, &z].map(|x| Guarded::holding(x, 1));
        let (given_mask, mut mask) = (vec![0x0f0f_u64; len("mask")], Guarded::<u64>::new(len("mask"), 1));
        let output = |name| Guarded::<T>::new(len(name), 1);
        let [mut y, mut dx, mut dz, mut dgamma, mut dbeta, mut dmean, mut dvar] =
            ["y", "dx", "dz", "dgamma", "dbeta", "dmean", "dvar"].map(output);
        let mut states = Guarded::<Welford>::new(len("states"), 1);
        let of_count: Welford = (0..count).map(|i| i as f64).collect();
        let given_states = vec![of_count; len("states")];

        let affine = params(Some(&gamma[..]), Some(&beta[..]), eps);
        let fused = affine.activation(Activation::Relu);
        let mut gradients = Gradients::new();
        gradients.dx = self.slices().contains(&"dx").then(|| dx.get_mut());
        gradients.dz = self.slices().contains(&"dz").then(|| dz.get_mut());
        let gradients = gradients
            .dgamma(dgamma.get_mut())
            .dbeta(dbeta.get_mut())
            .dmean(dmean.get_mut())
            .dvar(dvar.get_mut());
        let result = match self {
            Statistics => statistics(shape, &x, states.get_mut()),
            Training => forward_training(shape, &x, &affine, y.get_mut(), states.get_mut()),
            TrainingInPlace => {
                let training = batchnorm::Training::new(shape, affine).x_in_place(in_place.get_mut());
                training.states(states.get_mut()).run()
            }
            Inference => forward_inference(shape, &x, &mean, &var, &affine, y.get_mut()),
            InferenceInPlace => batchnorm::Inference::new(shape, affine)
                .x_in_place(in_place.get_mut())
                .frozen(&mean, &var)
                .run(),
            Backward => backward(shape, &x, &dy, &given_states, &affine, gradients),
            BackwardOverX => {
                let call = batchnorm::Backward::new(shape, affine).x_to_dx(in_place.get_mut()).dy(&dy);
                call.states(&given_states).gradients(gradients).run()
            }
            BackwardFrozen => backward_frozen(shape, &x, &dy, &mean, &var, &affine, gradients),
            FrozenOverDy => {
                let call = batchnorm::Backward::new(shape, affine).x(&x).dy_to_dx(over_dy.get_mut());
                call.frozen(&mean, &var).gradients(gradients).run()
            }
            TrainingFused => {
                let call = batchnorm::Training::new(shape, fused).x(&x).residual(&z).y(y.get_mut());
                call.mask(mask.get_mut()).states(states.get_mut()).run()
            }
            TrainingOverZ => {
                let call = batchnorm::Training::new(shape, fused).x(&x).residual_in_place(over_z.get_mut());
                call.mask(mask.get_mut()).states(states.get_mut()).run()
            }
            InferenceFused => {
                let call = batchnorm::Inference::new(shape, fused).x(&x).residual(&z).y(y.get_mut());
                call.mask(mask.get_mut()).frozen(&mean, &var).run()
            }
            InferenceOverZ => {
                let call = batchnorm::Inference::new(shape, fused).x(&x).residual_in_place(over_z.get_mut());
                call.mask(mask.get_mut()).frozen(&mean, &var).run()
            }
            BackwardFused => {
                let call = batchnorm::Backward::new(shape, fused).x(&x).dy(&dy).mask(&given_mask);
                call.states(&given_states).gradients(gradients).run()
            }
            FrozenFusedOverDy => {
                let call = batchnorm::Backward::new(shape, fused).x(&x).dy_to_dz(over_dy.get_mut());
                call.mask(&given_mask).frozen(&mean, &var).gradients(gradients).run()
            }
        };
        for (what, tensor, held) in
            [("x in place", &in_place, &x), ("dy in place", &over_dy, &dy), ("z in place", &over_z, &z)]
        {
            tensor.assert_margins(what);
            if result.is_err() {
                assert_same(what, tensor.get(), held);
            }
        }
        if result.is_err() {
            states.assert_untouched("states");
            mask.assert_untouched("mask");
        } else {
            states.assert_margins("states");
            mask.assert_margins("mask");
        }
        for output in [&y, &dx, &dz, &dgamma, &dbeta, &dmean, &dvar] {
            if result.is_err() {
                output.assert_untouched("an output");
            } else {
                output.assert_margins("an output");
            }
        }
        result
    }
}

fn right(_: &'static str, len: usize) -> usize {
    len
}

/// What a call was refused with.
#[track_caller]
fn message(result: Result<(), Error>) -> String {
    result.expect_err("an error").to_string()
}

#[test]
fn every_slice_of_a_wrong_length_is_named() {
    fn check<T: Bits>(operation: Operation, shape: &Shape) {
        let count = shape.per_channel() as u64;
        operation.call::<T>(shape, 1e-5, count, right).unwrap();
        for &name in operation.slices() {
            let expected = right_len(name, shape);
            for got in [0, 1, expected - 1, expected + 1, 2 * expected, 1000 * expected] {
                // A mask of one word.
                if got == expected {
                    continue;
                }
                let len = |other, len| if other == name { got } else { len };
                let error = operation.call::<T>(shape, 1e-5, count, len).unwrap_err();
                let of = match name {
                    "mask" => Some(format!("64 bits a word of {shape}")),
                    name => TENSORS.contains(&name).then(|| shape.to_string()),
                };
                let must = of.as_ref().map_or(String::new(), |shape| format!(", that of {shape}"));
                assert_eq!(
                    error.to_string(),
                    format!("{name} has length {got}, must have length {expected}{must}")
                );
                let length = Error::Length { argument: name, got, expected, shape: of };
                assert_eq!(error, length, "{operation:?}");
            }
        }
    }
    for layout in LAYOUTS {
        for n in [2, 9] {
            let shape = Shape::new(layout, n, 3, &[5]).unwrap();
            OPERATIONS.iter().for_each(|operation| check::<f32>(*operation, &shape));
            OPERATIONS.iter().for_each(|operation| check::<f64>(*operation, &shape));
        }
    }
}

/// A builder without an operand names it; with two places for a result, the result.
#[test]
fn operands_that_are_missing_or_twice_there_are_named() {
    let shape = Shape::nchw(&[2, 3, 2]).unwrap();
    let (x, dy, vector) = ([1.5f32; 12], [0.5f32; 12], [1.0f32; 3]);
    let given: Vec<Welford> = vec![[1.0, 1.0, 2.0, 2.0].into_iter().collect(); 3];
    type Builder<'a> = &'a dyn Fn(&mut [f32], &mut [f32], &mut [Welford]) -> Result<(), Error>;
    let check = |builder: Builder<'_>, expected| {
        let (mut a, mut b) = (Guarded::<f32>::new(12, 0), Guarded::<f32>::new(12, 0));
        let mut states = Guarded::<Welford>::new(3, 0);
        let error = builder(a.get_mut(), b.get_mut(), states.get_mut()).unwrap_err();
        a.assert_untouched("one tensor");
        b.assert_untouched("another tensor");
        states.assert_untouched("states");
        assert_eq!(error, expected);
        let (Error::Missing { argument } | Error::Twice { argument }) = error else { unreachable!() };
        assert!(error.to_string().starts_with(argument), "{error}");
    };
    let missing = |argument| Error::Missing { argument };
    let twice = |argument| Error::Twice { argument };
    let params = || Params::<f32>::new(1e-5);

    check(&|_, _, states| batchnorm::Statistics::<f32>::new(&shape).states(states).run(), missing("x"));
    check(&|_, _, _| batchnorm::Statistics::new(&shape).x(&x).run(), missing("states"));
    check(&|y, _, states| batchnorm::Training::new(&shape, params()).y(y).states(states).run(), missing("x"));
    check(
        &|_, _, states| batchnorm::Training::new(&shape, params()).x(&x).states(states).run(),
        missing("y"),
    );
    check(&|y, _, _| batchnorm::Training::new(&shape, params()).x(&x).y(y).run(), missing("states"));
    check(&|x, _, _| batchnorm::Training::new(&shape, params()).x_in_place(x).run(), missing("states"));
    check(
        &|x, y, states| batchnorm::Training::new(&shape, params()).x_in_place(x).y(y).states(states).run(),
        twice("y"),
    );
    check(
        &|y, _, _| batchnorm::Inference::new(&shape, params()).frozen(&vector, &vector).y(y).run(),
        missing("x"),
    );
    check(
        &|_, _, _| batchnorm::Inference::new(&shape, params()).frozen(&vector, &vector).x(&x).run(),
        missing("y"),
    );
    check(&|y, _, _| batchnorm::Inference::new(&shape, params()).x(&x).y(y).run(), missing("mean"));
    check(
        &|x, y, _| {
            batchnorm::Inference::new(&shape, params()).frozen(&vector, &vector).x_in_place(x).y(y).run()
        },
        twice("y"),
    );

    let backward = || batchnorm::Backward::new(&shape, params());
    fn dx(dx: &mut [f32]) -> Gradients<'_, f32> {
        Gradients::new().dx(dx)
    }
    check(&|a, _, _| backward().dy(&dy).states(&given).gradients(dx(a)).run(), missing("x"));
    check(&|a, _, _| backward().x(&x).states(&given).gradients(dx(a)).run(), missing("dy"));
    check(&|a, _, _| backward().x(&x).dy(&dy).gradients(dx(a)).run(), missing("states"));
    check(&|a, b, _| backward().x_to_dx(a).dy_to_dx(b).states(&given).run(), twice("dx"));
    check(&|a, b, _| backward().x_to_dx(a).dy(&dy).states(&given).gradients(dx(b)).run(), twice("dx"));
    check(
        &|a, b, _| backward().x(&x).dy_to_dx(a).frozen(&vector, &vector).gradients(dx(b)).run(),
        twice("dx"),
    );

    let training = || batchnorm::Training::new(&shape, params().activation(Activation::Relu));
    let inference = || batchnorm::Inference::new(&shape, params()).frozen(&vector, &vector);
    check(&|z, _, states| training().residual_in_place(z).states(states).run(), missing("x"));
    check(&|_, _, states| training().x(&x).residual(&dy).states(states).run(), missing("y"));
    check(&|z, _, _| training().x(&x).residual_in_place(z).run(), missing("states"));
    check(&|_, _, _| inference().x(&x).residual(&dy).run(), missing("y"));
    check(&|y, z, states| training().x(&x).residual_in_place(z).y(y).states(states).run(), twice("y"));
    check(&|x, z, states| training().x_in_place(x).residual_in_place(z).states(states).run(), twice("y"));
    check(&|x, y, states| training().x_in_place(x).residual(&dy).y(y).states(states).run(), twice("y"));
    check(&|y, z, _| inference().x(&x).residual_in_place(z).y(y).run(), twice("y"));
    check(&|x, z, _| inference().x_in_place(x).residual_in_place(z).run(), twice("y"));

    let fused = || batchnorm::Backward::new(&shape, params().activation(Activation::Relu)).states(&given);
    fn dz(dz: &mut [f32]) -> Gradients<'_, f32> {
        Gradients::new().dz(dz)
    }
    let mask = [0];
    check(&|a, _, _| fused().dy(&dy).mask(&mask).gradients(dz(a)).run(), missing("x"));
    check(&|a, _, _| fused().x(&x).dy_to_dz(a).run(), missing("mask"));
    check(&|a, b, _| fused().x(&x).dy(&dy).gradients(dx(a).dz(b)).run(), missing("mask"));
    check(&|a, b, _| fused().x_to_dx(a).dy_to_dz(b).run(), missing("mask"));
    check(&|a, b, _| fused().x(&x).dy_to_dz(a).mask(&mask).gradients(dz(b)).run(), twice("dz"));
    check(&|a, b, _| backward().x(&x).dy_to_dz(a).states(&given).gradients(dz(b)).run(), twice("dz"));
    let error = fused().x(&x).dy(&dy).gradients(dz(&mut [0.0; 12])).run().unwrap_err();
    assert_eq!(
        error.to_string(),
        "mask is missing, must be given: backward through a residual and an activation takes what the forward pass was asked \
         to write by its mask"
    );
}

/// Numbers that an activation cannot have, wherever it is given.
#[test]
fn activations_with_wrong_numbers() {
    const INFINITY: f64 = f64::INFINITY;
    let shape = Shape::nchw(&[2, 3, 2]).unwrap();
    let clip = |lo, hi| Activation::Clip { lo, hi };
    let mut rows: Vec<(Activation, String)> = NOT_FINITE
        .into_iter()
        .map(|slope| (Activation::LeakyRelu { slope }, format!("slope is {slope:?}, must be finite")))
        .collect();
    for (lo, hi) in [
        (f64::NAN, 1.0),
        (0.0, f64::NAN),
        (f64::NAN, f64::NAN),
        (1.0, 0.0),
        (0.0, -5e-324),
        (INFINITY, INFINITY),
        (-INFINITY, -INFINITY),
        (INFINITY, -INFINITY),
    ] {
        let text =
            format!("clip is from {lo:?} to {hi:?}, must be from a number to one that is not below it");
        rows.push((clip(lo, hi), text));
    }
    for (activation, expected) in rows {
        let (x, vector, mut tensor) = ([1.0f32; 12], [1.0; 3], Guarded::<f32>::new(12, 0));
        let (mut states, mut mask) = (Guarded::<Welford>::new(3, 0), Guarded::<u64>::new(1, 0));
        let given: [Welford; 3] = [[1.0; 4].into_iter().collect(); 3];
        let params = Params::new(1e-5).activation(activation);
        let training = batchnorm::Training::new(&shape, params).x(&x).y(tensor.get_mut());
        let result = training.mask(mask.get_mut()).states(states.get_mut()).run();
        assert_eq!(message(result), expected);
        let inference = batchnorm::Inference::new(&shape, params).x(&x).y(tensor.get_mut());
        let result = inference.residual(&x).mask(mask.get_mut()).frozen(&vector, &vector).run();
        assert_eq!(message(result), expected);
        let result = forward_training(&shape, &x, &params, tensor.get_mut(), states.get_mut());
        assert_eq!(message(result), expected);
        let backwards = [
            batchnorm::Backward::new(&shape, params).states(&given),
            batchnorm::Backward::new(&shape, params).frozen(&vector, &vector).mask(&[0]),
        ];
        for backward in backwards {
            let result = backward.x(&x).dy(&x).gradients(Gradients::new().dx(tensor.get_mut())).run();
            assert_eq!(message(result), expected);
        }
        assert_eq!(message(activation.apply(tensor.get_mut())), expected);
        assert_eq!(message(activation.gradient(&x, tensor.get_mut())), expected);

        let before = BatchNorm::<f32>::new(3).with_activation(activation);
        let mut layer = before.clone();
        for mode in MODES {
            assert_eq!(message(layer.forward(mode, &shape, &x, tensor.get_mut())), expected, "{mode:?}");
            let result = layer.forward_with_residual(mode, &shape, &x, &x, tensor.get_mut());
            assert_eq!(message(result), expected, "{mode:?}");
        }
        assert_unchanged(&layer, &before);
        assert_eq!(BatchNorm::from_parts(before.into_parts()).unwrap_err().to_string(), expected);
        let mut layer = BatchNorm::<f32>::new(3);
        assert_eq!(message(layer.set_activation(activation)), expected);
        assert_unchanged(&layer, &BatchNorm::new(3));
        tensor.assert_untouched("a tensor");
        states.assert_untouched("states");
        mask.assert_untouched("mask");
    }
    for good in [clip(-INFINITY, INFINITY), clip(-INFINITY, -3.0), clip(2.0, 2.0), clip(-0.0, 0.0)] {
        assert_eq!(BatchNorm::<f32>::new(3).set_activation(good), Ok(()));
    }
    let error = Activation::Relu.gradient(&[1.0f32; 3], &mut [1.0; 2]).unwrap_err();
    assert_eq!(error.to_string(), "dy has length 2, must have length 3");
}

/// Hard swish and SiLU, whose derivatives no bit tells.
#[test]
fn activations_that_go_with_neither_residual_nor_mask() {
    let shape = Shape::nchw(&[2, 3, 2]).unwrap();
    let (x, vector) = ([1.0f32; 12], [1.0; 3]);
    let given: [Welford; 3] = [[1.0; 4].into_iter().collect(); 3];
    for (activation, name) in [(Activation::HardSwish, "hard swish"), (Activation::Silu, "SiLU")] {
        assert!(!activation.is_piecewise_linear());
        let [mut a, mut b] = [(); 2].map(|()| Guarded::<f32>::new(12, 0));
        let (mut states, mut mask) = (Guarded::<Welford>::new(3, 0), Guarded::<u64>::new(1, 0));
        let params = Params::new(1e-5).activation(activation);
        let training = || batchnorm::Training::new(&shape, params).x(&x);
        let inference = || batchnorm::Inference::new(&shape, params).x(&x).frozen(&vector, &vector);
        let backward = || batchnorm::Backward::new(&shape, params).x(&x).states(&given);
        let text = |with| {
            format!("{name} goes with no {with}, must be identity, ReLU, leaky ReLU or clip to have one")
        };
        let refused = |result: Result<(), Error>, with| {
            assert_eq!(result, Err(Error::Activation { activation: name.to_owned(), with }));
            assert_eq!(message(result), text(with));
        };
        refused(training().residual(&x).y(a.get_mut()).states(states.get_mut()).run(), "residual");
        refused(training().residual_in_place(a.get_mut()).states(states.get_mut()).run(), "residual");
        refused(training().y(a.get_mut()).mask(mask.get_mut()).states(states.get_mut()).run(), "mask");
        refused(inference().residual(&x).y(a.get_mut()).run(), "residual");
        refused(inference().y(a.get_mut()).mask(mask.get_mut()).run(), "mask");
        let gradients = || Gradients::new();
        refused(backward().dy(&x).gradients(gradients().dz(a.get_mut())).run(), "residual");
        refused(backward().dy_to_dz(a.get_mut()).gradients(gradients().dx(b.get_mut())).run(), "residual");
        refused(backward().dy(&x).mask(&[0]).gradients(gradients().dx(a.get_mut())).run(), "mask");
        let before = BatchNorm::<f32>::new(3).with_activation(activation);
        let mut layer = before.clone();
        for mode in MODES {
            let result = layer.forward_with_residual(mode, &shape, &x, &x, a.get_mut());
            // A layer's forward pass would keep a mask.
            assert!(matches!(result, Err(Error::Activation { .. })), "{mode:?} {result:?}");
        }
        refused(layer.forward_inference_with_residual(&shape, &x, &x, a.get_mut()), "residual");
        assert_unchanged(&layer, &before);
        a.assert_untouched("one tensor");
        b.assert_untouched("another tensor");
        states.assert_untouched("states");
        mask.assert_untouched("mask");
    }
}

#[test]
fn lengths_of_running_statistics_and_of_a_step() {
    let update = RunningUpdate { rule: UpdateRule::Momentum(0.1), variance: RunningVariance::Biased };
    let states = [Welford::new(); 3];
    for (mean_len, var_len, expected) in [
        (2, 3, "running mean has length 2, must have length 3"),
        (4, 3, "running mean has length 4, must have length 3"),
        (3, 0, "running variance has length 0, must have length 3"),
        (3, 4, "running variance has length 4, must have length 3"),
    ] {
        let (mut mean, mut var) = (Guarded::<f32>::new(mean_len, 0), Guarded::<f32>::new(var_len, 0));
        let result = update_running(update, 0, &states, mean.get_mut(), var.get_mut());
        assert_eq!(message(result), expected);
        mean.assert_untouched("running mean");
        var.assert_untouched("running variance");
    }
    for gradient in [0, 2, 4] {
        let mut parameter = Guarded::<f64>::new(3, 0);
        let result = step(0.1, &vec![1.0; gradient], parameter.get_mut());
        assert_eq!(message(result), format!("gradient has length {gradient}, must have length 3"));
        parameter.assert_untouched("the parameter");
    }
}

/// Folds into weights of 3 output channels of 4 weights, of slices of these lengths; asserts that nothing is written with an error.
fn folded<T: Bits>(eps: f64, activation: Activation, len: impl Fn(&str) -> usize) -> Result<(), Error> {
    let shape = WeightShape::new(&[2, 3, 2], 1).unwrap();
    let values = |name| (0..len(name)).map(|i| T::from_f64(1.5 + i as f64)).collect::<Vec<_>>();
    let [mean, var, gamma, beta, weight, bias] =
        ["mean", "var", "gamma", "beta", "weight", "bias"].map(values);
    let [mut folded, mut moved] = [&weight, &bias].map(|values| Guarded::holding(values, 1));
    let params = params(Some(&gamma[..]), Some(&beta[..]), eps).activation(activation);
    let result = fold_into(&shape, &mean, &var, &params, folded.get_mut(), moved.get_mut());
    for (what, got, before) in [("weight", &folded, &weight), ("bias", &moved, &bias)] {
        got.assert_margins(what);
        if result.is_err() {
            assert_same(what, got.get(), before);
        }
    }
    result
}

/// The length that an argument of `folded` must have.
fn folded_len(name: &str) -> usize {
    if name == "weight" { 12 } else { 3 }
}

#[test]
fn arguments_of_folding() {
    fn check<T: Bits>() {
        folded::<T>(1e-5, Activation::Identity, folded_len).unwrap();
        for argument in ["weight", "bias", "mean", "var", "gamma", "beta"] {
            let expected = folded_len(argument);
            for got in [0, 1, expected - 1, expected + 1, 2 * expected, 1000 * expected] {
                let len = |name: &str| if name == argument { got } else { folded_len(name) };
                let error = folded::<T>(1e-5, Activation::Identity, len).unwrap_err();
                let shape = (argument == "weight").then(|| "2x3x2".to_owned());
                let must = if argument == "weight" { ", that of 2x3x2" } else { "" };
                assert_eq!(
                    error.to_string(),
                    format!("{argument} has length {got}, must have length {expected}{must}")
                );
                assert_eq!(error, Error::Length { argument, got, expected, shape });
            }
        }
        for eps in NOT_EPS {
            let result = folded::<T>(eps, Activation::Identity, folded_len);
            assert_eq!(message(result), format!("eps is {eps:?}, must be finite and not negative"));
        }
        for eps in [0.0, -0.0, 5e-324, 1.0, f64::MAX] {
            folded::<T>(eps, Activation::Identity, folded_len).unwrap();
        }
        // It is the caller's to apply, and has to be one that the caller can.
        for slope in NOT_FINITE {
            let activation = Activation::LeakyRelu { slope };
            let result = folded::<T>(1e-5, activation, folded_len);
            assert_eq!(message(result), format!("slope is {slope:?}, must be finite"));
        }
        let empty = Activation::Clip { lo: 1.0, hi: 0.0 };
        let result = folded::<T>(1e-5, empty, folded_len);
        assert_eq!(result, Err(Error::Clip { lo: 1.0, hi: 0.0 }));
        folded::<T>(1e-5, Activation::Silu, folded_len).unwrap();
    }
    check::<f32>();
    check::<f64>();
}

#[cfg(feature = "half")]
#[test]
fn lengths_of_weights_and_biases_of_16_bits() {
    use half::{bf16, f16};
    let shape = WeightShape::new(&[2, 3], 1).unwrap();
    let (mut weight, mut bias) = ([bf16::ONE; 7], [f16::ONE; 4]);
    for (weight_len, bias_len, expected) in [
        (5, 3, "weight has length 5, must have length 6, that of 2x3x1"),
        (7, 3, "weight has length 7, must have length 6, that of 2x3x1"),
        (6, 0, "bias has length 0, must have length 3"),
        (6, 4, "bias has length 4, must have length 3"),
    ] {
        let (weight, bias) = (&mut weight[..weight_len], &mut bias[..bias_len]);
        let result = fold_into(&shape, &[1.0; 3], &[9.0; 3], &Params::default(), weight, bias);
        assert_eq!(message(result), expected);
    }
    assert_eq!((weight, bias), ([bf16::ONE; 7], [f16::ONE; 4]));
}

#[test]
fn weights_whose_axes_or_groups_are_none() {
    for (dims, axis) in [(&[][..], 0), (&[3], 1), (&[3, 4], 2), (&[3, 4, 5, 6], usize::MAX)] {
        let rank = dims.len();
        let error = WeightShape::new(dims, axis).unwrap_err();
        assert_eq!(error, Error::Axis { axis, rank });
        assert_eq!(
            error.to_string(),
            format!("channel axis is {axis}, must be below {rank}, the number of axes")
        );
    }
    for (dims, axis, groups, size) in [
        (&[6, 3, 5][..], 1, 0, 6),
        (&[6, 3, 5], 1, 4, 6),
        (&[6, 3, 5], 1, 12, 6),
        (&[6, 3, 5], 1, usize::MAX, 6),
        // PyTorch's convolutions have their groups in no other order.
        (&[6, 3, 5], 0, 2, 1),
        (&[6, 3, 5], 2, 4, 18),
        (&[0, 3], 1, 0, 0),
        (&[0], 0, 0, 1),
    ] {
        let error = WeightShape::grouped(dims, axis, groups).unwrap_err();
        let of = "rows before the output channels";
        assert_eq!(error, Error::Groups { groups, of, size });
        assert_eq!(error.to_string(), format!("groups is {groups}, must divide the number of {of}, {size}"));
    }
    const MOST: usize = isize::MAX as usize / 8;
    for (dims, axis, groups) in [
        (&[MOST + 1, 1][..], 0, 1),
        (&[1, MOST + 1], 0, 1),
        (&[MOST + 1], 0, 1),
        (&[1 << 40, 1 << 40, 3], 1, 1 << 40),
        (&[0, 1 << 32, 1 << 32], 1, 1),
        (&[1 << 32, 0, 1 << 32], 1, 1),
        (&[0, 1 << 32], 1, 1 << 32),
        (&[0, 2], 1, usize::MAX),
    ] {
        let error = WeightShape::grouped(dims, axis, groups).unwrap_err();
        assert!(matches!(error, Error::Overflow { most: MOST, .. }), "{dims:?} {error:?}");
    }
    assert_eq!(WeightShape::new(&[MOST], 0).unwrap().len(), MOST);
    assert_eq!(WeightShape::grouped(&[0, 1], 1, MOST).unwrap().channels(), MOST);
}

#[test]
fn a_layer_folds_into_weights_of_its_channels_only() {
    let (mut weight, mut bias) = (Guarded::<f32>::new(12, 0), Guarded::<f32>::new(4, 0));
    let shape = WeightShape::grouped(&[6, 2, 1], 1, 2).unwrap();
    let result = BatchNorm::new(3).fold_into(&shape, weight.get_mut(), bias.get_mut());
    let name = shape.to_string();
    assert_eq!(result, Err(Error::Channels { shape: name, got: 4, with: "layer", expected: 3 }));
    assert_eq!(message(result), "2 groups of 3x2x1 has 4 channels, must have the 3 of the layer");
    let layer = BatchNorm::new(4);
    let result = layer.fold_into(&shape, &mut weight.get_mut()[1..], bias.get_mut());
    assert_eq!(message(result), "weight has length 11, must have length 12, that of 2 groups of 3x2x1");
    let result = layer.fold_into(&shape, weight.get_mut(), &mut bias.get_mut()[1..]);
    assert_eq!(message(result), "bias has length 3, must have length 4");
    for eps in NOT_EPS {
        let result = layer.clone().with_eps(eps).fold_into(&shape, weight.get_mut(), bias.get_mut());
        assert_eq!(message(result), format!("eps is {eps:?}, must be finite and not negative"));
    }
    let layer = layer.with_activation(Activation::Clip { lo: f64::NAN, hi: 0.0 });
    let result = layer.fold_into(&shape, weight.get_mut(), bias.get_mut());
    assert_eq!(message(result), "clip is from NaN to 0.0, must be from a number to one that is not below it");
    weight.assert_untouched("weight");
    bias.assert_untouched("bias");
}

#[test]
fn lengths_of_a_tensor_and_of_streaming_statistics() {
    let shape = Shape::nchw(&[2, 3]).unwrap();
    let error = Tensor::from_slice(shape, &[1.0f32; 5]).unwrap_err();
    assert_eq!(error.to_string(), "values has length 5, must have length 6, that of NC 2x3");
    let mut streaming = StreamingStatistics::new(3);
    streaming.update(&shape, &[1.0f32, 2.0, 3.0, 4.0, 5.0, 6.0]).unwrap();
    let before = streaming.clone();
    assert_eq!(
        message(streaming.update(&shape, &[1.0f32; 7])),
        "x has length 7, must have length 6, that of NC 2x3"
    );
    assert_eq!(
        message(streaming.update(&Shape::nchw(&[2, 4]).unwrap(), &[1.0f32; 8])),
        "NC 2x4 has 4 channels, must have the 3 of the statistics"
    );
    assert_eq!(
        message(streaming.merge(&StreamingStatistics::new(2))),
        "other has length 2, must have length 3"
    );
    assert_eq!(streaming.states(), before.states());
}

#[test]
fn parts_of_a_state_must_be_those_of_one() {
    let parts =
        |count, mean, m2, exponent| WelfordParts { count, mean, m2, exponent, ..WelfordParts::default() };
    for (parts, reason) in [
        (parts(0, 1.0, 0.0, 0), "a count of 0 with other numbers than 0"),
        (parts(2, 1.0, 1.0, 1), "an exponent other than 0, 600 and -600"),
        (parts(2, f64::INFINITY, 1.0, 0), "a mean, m2 or low part that elements cannot give"),
        (parts(2, 1.0, -1.0, 0), "a mean, m2 or low part that elements cannot give"),
    ] {
        let error = Welford::from_parts(parts).unwrap_err();
        assert_eq!(error, Error::State { reason });
        assert_eq!(error.to_string(), format!("the parts of a Welford state have {reason}"));
    }
}

#[test]
fn a_layer_takes_tensors_of_its_channels_only() {
    let mut layer = BatchNorm::<f32>::new(3);
    let shape = Shape::nchw(&[2, 4, 5]).unwrap();
    let x = vec![1.0f32; shape.len()];
    let mut y = Guarded::new(shape.len(), 0);
    let expected = Error::Channels { shape: shape.to_string(), got: 4, with: "layer", expected: 3 };
    assert_eq!(expected.to_string(), "NCL 2x4x5 has 4 channels, must have the 3 of the layer");
    for mode in MODES {
        assert_eq!(layer.forward(mode, &shape, &x, y.get_mut()), Err(expected.clone()), "{mode:?}");
    }
    assert_eq!(layer.forward_training(&shape, &x, y.get_mut()), Err(expected.clone()));
    assert_eq!(layer.forward_inference(&shape, &x, y.get_mut()), Err(expected));
    y.assert_untouched("y");
    assert_unchanged(&layer, &BatchNorm::new(3));
}

/// That a layer is another in all that it holds: equality is of what a checkpoint holds only.
#[track_caller]
fn assert_unchanged<T: Bits>(layer: &BatchNorm<T>, before: &BatchNorm<T>) {
    assert_eq!(format!("{layer:?}"), format!("{before:?}"));
}

/// Parts that do not go together make no layer, and settings that are none are not taken.
#[test]
fn wrong_parts_and_settings_of_a_layer() {
    type Wrong = fn(&mut Parts<f32>);
    let rows: [(Wrong, &str); 15] = [
        (|parts| parts.gamma = Some(vec![1.0; 2]), "gamma has length 2, must have length 3"),
        (|parts| parts.gamma = Some(vec![]), "gamma has length 0, must have length 3"),
        (|parts| parts.beta = Some(vec![0.0; 4]), "beta has length 4, must have length 3"),
        (|parts| parts.running_var = vec![], "running variance has length 0, must have length 3"),
        (|parts| parts.running_var = vec![1.0; 4], "running variance has length 4, must have length 3"),
        (|parts| parts.running_mean = vec![0.0; 2], "running variance has length 3, must have length 2"),
        (|parts| parts.eps = -1e-5, "eps is -1e-5, must be finite and not negative"),
        (|parts| parts.eps = f64::NAN, "eps is NaN, must be finite and not negative"),
        (|parts| parts.update.rule = UpdateRule::Momentum(5.0), "momentum is 5.0, must be between 0 and 1"),
        (|parts| parts.update.rule = UpdateRule::Decay(-1.0), "decay is -1.0, must be between 0 and 1"),
        (|parts| parts.update.rule = UpdateRule::Decay(f64::NAN), "decay is NaN, must be between 0 and 1"),
        (
            |parts| parts.renorm = Some(Renorm { r_max: 0.5, d_max: 0.0 }),
            "r_max is 0.5, must be at least 1.0",
        ),
        (
            |parts| parts.renorm = Some(Renorm { r_max: 1.0, d_max: f64::NAN }),
            "d_max is NaN, must be at least 0.0",
        ),
        (
            |parts| {
                parts.domains = vec![Domain { running_mean: vec![], running_var: vec![1.0; 3], batches: 0 }]
            },
            "running mean has length 0, must have length 3",
        ),
        (
            |parts| {
                let right = Domain { running_mean: vec![0.0; 3], running_var: vec![1.0; 3], batches: 0 };
                parts.domains = vec![right.clone(), Domain { running_var: vec![1.0; 2], ..right }];
            },
            "running variance has length 2, must have length 3",
        ),
    ];
    for (wrong, expected) in rows {
        let mut parts = Parts::<f32>::new(3);
        wrong(&mut parts);
        assert_eq!(BatchNorm::from_parts(parts).unwrap_err().to_string(), expected);
    }
    // A diverged model's values are not settings.
    let nan = Parts { running_mean: vec![f32::NAN; 3], running_var: vec![-1.0; 3], ..Parts::new(3) };
    assert!(BatchNorm::from_parts(nan).is_ok());

    let mut layer = BatchNorm::<f32>::new(3);
    assert_eq!(
        message(layer.set_domain(1)),
        "domain is 1, must be below 1, the number of the layer's domains"
    );
    for eps in NOT_EPS {
        assert_eq!(message(layer.set_eps(eps)), format!("eps is {eps:?}, must be finite and not negative"));
    }
    for weight in NOT_WEIGHTS {
        let update = |rule| RunningUpdate { rule, variance: RunningVariance::Biased };
        for (rule, name) in [(UpdateRule::Momentum(weight), "momentum"), (UpdateRule::Decay(weight), "decay")]
        {
            let expected = format!("{name} is {weight:?}, must be between 0 and 1");
            assert_eq!(message(layer.set_update(update(rule))), expected);
        }
    }
    assert_unchanged(&layer, &BatchNorm::new(3));
}

/// Limits, lengths and eps of renormalization: an error before anything is written, in training alone.
#[test]
fn arguments_of_renormalization() {
    let limits = |r_max, d_max| Renorm { r_max, d_max };
    let wrong = [
        (limits(0.0, 1.0), "r_max is 0.0, must be at least 1.0"),
        (limits(1.0 - f64::EPSILON / 2.0, 1.0), "r_max is 0.9999999999999999, must be at least 1.0"),
        (limits(f64::NAN, 1.0), "r_max is NaN, must be at least 1.0"),
        (limits(f64::NEG_INFINITY, 1.0), "r_max is -inf, must be at least 1.0"),
        (limits(1.0, -5e-324), "d_max is -5e-324, must be at least 0.0"),
        (limits(1.0, f64::NEG_INFINITY), "d_max is -inf, must be at least 0.0"),
        (limits(1.0, f64::NAN), "d_max is NaN, must be at least 0.0"),
    ];
    let (shape, x) = (Shape::nchw(&[2, 3]).unwrap(), [1.0f32, 2.0, 3.0, 5.0, 8.0, 13.0]);
    let (mut y, mut states) = (Guarded::<f32>::new(6, 0), Guarded::<Welford>::new(3, 0));
    let held = Renorm { r_max: 2.0, d_max: 1.0 };
    let held = held.renormalize(&[Welford::new()], &[0f32], &[1.0], &Params::new(0.0)).unwrap();
    let mut to = held.clone();
    let right = limits(3.0, 5.0);
    for (wrong, expected) in wrong {
        let mut layer = BatchNorm::<f32>::new(3).with_renorm(right);
        assert_eq!(message(layer.set_renorm(Some(wrong))), expected);
        assert_eq!(layer.renorm(), Some(right));
        layer = layer.with_renorm(wrong);
        let before = layer.clone();
        for mode in [Mode::Training, Mode::TrainingKeepRunning] {
            assert_eq!(message(layer.forward(mode, &shape, &x, y.get_mut())), expected);
            y.assert_untouched("y");
            assert_unchanged(&layer, &before);
        }
        layer.forward(Mode::Frozen, &shape, &x, &mut [0.0; 6]).unwrap();
        layer.forward_inference(&shape, &x, &mut [0.0; 6]).unwrap();
        let given = wrong.renormalize(&[Welford::new(); 3], &[0f32; 3], &[1.0; 3], &Params::new(0.0));
        assert_eq!(message(given.map(|_| ())), expected);
        let training =
            batchnorm::Training::new(&shape, Params::new(0.0)).x(&x).y(y.get_mut()).states(states.get_mut());
        assert_eq!(message(training.renorm(wrong, &[0.0; 3], &[1.0; 3], &mut to).run()), expected);
    }
    // Most there can be, and -0.
    limits(f64::INFINITY, -0.0)
        .renormalize(&[Welford::new(); 3], &[0f32; 3], &[1.0; 3], &Params::new(0.0))
        .unwrap();

    let (mean, eps) = ([0f32; 4], 1e-5);
    for (m, v, eps, gamma, expected) in [
        (2, 3, eps, 3, "mean has length 2, must have length 3"),
        (3, 4, eps, 3, "var has length 4, must have length 3"),
        (3, 3, eps, 2, "gamma has length 2, must have length 3"),
        (3, 3, -1.0, 3, "eps is -1.0, must be finite and not negative"),
    ] {
        let params = Params::new(eps).gamma(&mean[..gamma]);
        let given = right.renormalize(&[Welford::new(); 3], &mean[..m], &mean[..v], &params);
        assert_eq!(message(given.map(|_| ())), expected);
        let training = batchnorm::Training::new(&shape, params).x(&x).y(y.get_mut()).states(states.get_mut());
        assert_eq!(message(training.renorm(right, &mean[..m], &mean[..v], &mut to).run()), expected);
    }
    let training = batchnorm::Training::new(&shape, Params::new(eps)).x(&x).y(y.get_mut());
    let training = training.renorm(right, &mean[..3], &mean[..3], &mut to);
    assert_eq!(
        message(training.run()),
        "states is missing, must be given (or, of frozen statistics, mean and var)"
    );
    y.assert_untouched("y");
    states.assert_untouched("states");
    assert_eq!(to, held);

    let one = Renormalized::<f32>::new();
    let mut dgamma = Guarded::<f32>::new(1, 0);
    assert_eq!(message(one.gamma_gradient(&[], dgamma.get_mut())), "dgamma has length 1, must have length 0");
    assert_eq!(message(held.gamma_gradient(&[], dgamma.get_mut())), "dbeta has length 0, must have length 1");
    dgamma.assert_untouched("dgamma");
}

#[test]
fn rank_below_two_is_an_error() {
    for (dims, rank) in [(&[][..], 0), (&[7][..], 1)] {
        for result in [Shape::nchw(dims), Shape::nhwc(dims)] {
            assert_eq!(result, Err(Error::Rank { rank }));
            assert_eq!(
                result.unwrap_err().to_string(),
                format!("shape has {rank} dimension(s), must have at least 2 (batch and channels)")
            );
        }
    }
    assert!(Shape::nchw(&[7, 7]).is_ok());
    // Batch and channels are arguments of their own.
    assert!(Shape::new(Layout::Nhwc, 7, 7, &[]).is_ok());
}

#[test]
fn a_shape_whose_product_overflows_is_an_error() {
    const HALF: usize = usize::MAX / 2;
    for dims in [
        &[usize::MAX, 2][..],
        &[usize::MAX, usize::MAX, usize::MAX],
        &[1 << 32, 1 << 32],
        &[3, HALF, 1],
        &[1 << 16, 1 << 16, 1 << 16, 1 << 16],
        // More bytes than a slice can have.
        &[1, usize::MAX / 16 + 1],
        // Zero times that is no excuse.
        &[0, usize::MAX, 2],
        &[usize::MAX, 2, 0],
        &[2, 0, usize::MAX],
    ] {
        for result in [Shape::nchw(dims), Shape::nhwc(dims)] {
            let error = result.unwrap_err();
            assert_eq!(error, Error::Overflow { dims: dims.to_vec(), most: usize::MAX / 16 });
            assert_eq!(
                error.to_string(),
                format!(
                    "shape {dims:?} has too many elements for a slice, must have at most {}",
                    usize::MAX / 16
                )
            );
        }
    }
    let error = Shape::new(Layout::Nchw, 1 << 40, 1 << 40, &[3]).unwrap_err();
    assert!(matches!(error, Error::Overflow { dims, .. } if dims == [1 << 40, 1 << 40, 3]));
    // The largest there is.
    assert_eq!(Shape::nchw(&[1, usize::MAX / 16]).unwrap().len(), usize::MAX / 16);
    assert_eq!(Shape::nchw(&[0, usize::MAX / 16, 1]).unwrap().len(), 0);
}

/// Slices of other lengths are found out before anything of that size is touched or allocated.
#[test]
fn a_huge_shape_with_small_slices_is_an_error() {
    let shape = Shape::nchw(&[1 << 30, 1 << 20, 2]).unwrap();
    for operation in OPERATIONS {
        let len = |name, len: usize| if name == "states" { 3 } else { len.min(10) };
        let error = operation.call::<f32>(&shape, 1e-5, 1, len).unwrap_err();
        assert!(matches!(error, Error::Length { .. }), "{operation:?} {error:?}");
    }
}

#[test]
fn eps_must_be_finite_and_not_negative() {
    for shape in
        [Shape::nchw(&[2, 3, 5]).unwrap(), Shape::nhwc(&[2, 5, 3]).unwrap(), Shape::nchw(&[0, 3]).unwrap()]
    {
        let count = shape.per_channel() as u64;
        for operation in OPERATIONS.into_iter().filter(|operation| operation.takes_eps()) {
            for eps in NOT_EPS {
                for result in [
                    operation.call::<f32>(&shape, eps, count, right),
                    operation.call::<f64>(&shape, eps, count, right),
                ] {
                    assert_eq!(
                        message(result),
                        format!("eps is {eps:?}, must be finite and not negative"),
                        "{operation:?}"
                    );
                }
            }
            for eps in [0.0, -0.0, 5e-324, 1e-5, 1.0, 1e30, f64::MAX] {
                operation.call::<f32>(&shape, eps, count, right).unwrap();
                operation.call::<f64>(&shape, eps, count, right).unwrap();
            }
        }
    }
    let shape = Shape::nchw(&[2, 3, 5]).unwrap();
    for eps in NOT_EPS {
        let (before, mut y) = (BatchNorm::<f32>::new(3).with_eps(eps), Guarded::new(30, 0));
        let mut layer = before.clone();
        for mode in MODES {
            let result = layer.forward(mode, &shape, &[1.0f32; 30], y.get_mut());
            assert!(matches!(result, Err(Error::Epsilon { .. })), "{mode:?}");
        }
        y.assert_untouched("y");
        assert_unchanged(&layer, &before);
    }
}

#[test]
fn momentum_and_decay_must_be_between_0_and_1() {
    let states = [[1.0, 3.0].into_iter().collect::<Welford>(); 2];
    let shape = Shape::nchw(&[2, 2, 3]).unwrap();
    let x: Vec<f32> = (0..12).map(|i| i as f32).collect();
    for value in NOT_WEIGHTS {
        for (rule, name) in [(UpdateRule::Momentum(value), "momentum"), (UpdateRule::Decay(value), "decay")] {
            for variance in [RunningVariance::Biased, RunningVariance::Unbiased] {
                let update = RunningUpdate { rule, variance };
                let expected = format!("{name} is {value:?}, must be between 0 and 1");
                let (mut mean, mut var) = (Guarded::<f32>::new(2, 0), Guarded::<f32>::new(2, 0));
                let result = update_running(update, 5, &states, mean.get_mut(), var.get_mut());
                assert_eq!(message(result), expected);
                // Of no channels, too.
                assert_eq!(message(update_running::<f32>(update, 5, &[], &mut [], &mut [])), expected);
                mean.assert_untouched("running mean");
                var.assert_untouched("running variance");

                let before = BatchNorm::<f32>::new(2).with_update(update);
                let (mut layer, mut y) = (before.clone(), Guarded::new(shape.len(), 0));
                assert_eq!(message(layer.forward_training(&shape, &x, y.get_mut())), expected);
                y.assert_untouched("y");
                assert_unchanged(&layer, &before);
                // Who leaves the running statistics alone has no use for a rule.
                for mode in [Mode::TrainingKeepRunning, Mode::Frozen, Mode::Inference] {
                    layer.forward(mode, &shape, &x, y.get_mut()).unwrap();
                }
            }
        }
    }
    for value in [0.0, -0.0, 5e-324, 0.5, 1.0] {
        for rule in [UpdateRule::Momentum(value), UpdateRule::Decay(value)] {
            let update = RunningUpdate { rule, variance: RunningVariance::Biased };
            update_running(update, 5, &states, &mut [0.0f32; 2], &mut [1.0; 2]).unwrap();
        }
    }
}

#[test]
fn the_learning_rate_must_be_finite() {
    for value in NOT_FINITE {
        let mut parameter = Guarded::<f64>::new(2, 0);
        let result = step(value, &[1.0; 2], parameter.get_mut());
        assert_eq!(message(result), format!("lr is {value:?}, must be finite"));
        parameter.assert_untouched("the parameter");
        // With nothing to step, too.
        for before in [BatchNorm::<f32>::new(2), BatchNorm::new(2).without_gamma().without_beta()] {
            let mut layer = before.clone();
            assert_eq!(message(layer.step(value)), format!("lr is {value:?}, must be finite"));
            assert_unchanged(&layer, &before);
        }
    }
}

#[test]
fn states_of_another_number_of_elements_are_refused() {
    let shape = Shape::nchw(&[2, 3, 5]).unwrap();
    let right_states: Welford = (0..10).map(f64::from).collect();
    for count in [0, 1, 9, 11] {
        for channel in 0..3 {
            let mut states = [right_states; 3];
            states[channel] = (0..count).map(f64::from).collect();
            let mut dx = Guarded::<f32>::new(30, 0);
            let gradients = Gradients::new().dx(dx.get_mut());
            let result = backward(&shape, &[1.0; 30], &[1.0; 30], &states, &Params::default(), gradients);
            assert_eq!(result, Err(Error::Count { channel, got: count as u64, expected: 10 }));
            assert_eq!(
                message(result),
                format!(
                    "states[{channel}] counts {count} elements, must count the 10 elements per channel of the shape, or of the \
                     sums that are given"
                )
            );
            dx.assert_untouched("dx");
        }
    }
}

#[test]
fn no_channels_is_no_error() {
    for dims in [&[3, 0][..], &[3, 0, 5], &[0, 0, 5], &[0, 0]] {
        for layout in LAYOUTS {
            let shape = Shape::new(layout, dims[0], dims[1], &dims[2..]).unwrap();
            for operation in OPERATIONS {
                operation.call::<f32>(&shape, 1e-5, 0, right).unwrap();
                operation.call::<f64>(&shape, 0.0, 0, right).unwrap();
            }
            let mut layer = BatchNorm::<f32>::new(0);
            layer.forward_training(&shape, &[0.0f32; 0], &mut []).unwrap();
            layer.forward_inference(&shape, &[0.0f32; 0], &mut []).unwrap();
            layer.backward(&shape, &[0.0f32; 0], &[], &mut []).unwrap();
            layer.step(0.1).unwrap();
        }
    }
}

#[test]
fn no_elements_is_no_error_and_leaves_all_but_the_sums_alone() {
    for dims in [&[0, 3, 5][..], &[4, 3, 0], &[4, 3, 5, 0, 2], &[0, 3], &[0, 3, 0]] {
        for layout in LAYOUTS {
            let shape = Shape::new(layout, dims[0], dims[1], &dims[2..]).unwrap();
            for operation in OPERATIONS {
                operation.call::<f32>(&shape, 1e-5, 0, right).unwrap();
            }
            // dgamma and dbeta are sums of nothing: zero. So are the others.
            let empty = [Welford::new(); 3];
            for frozen in [false, true] {
                let mut outputs = [(); 4].map(|()| Guarded::<f32>::new(3, 0));
                let [dgamma, dbeta, dmean, dvar] = &mut outputs;
                let gradients = Gradients::<f32>::new()
                    .dx(&mut [])
                    .dgamma(dgamma.get_mut())
                    .dbeta(dbeta.get_mut())
                    .dmean(dmean.get_mut())
                    .dvar(dvar.get_mut());
                let params = Params::default();
                if frozen {
                    backward_frozen(&shape, &[], &[], &[1.0; 3], &[1.0; 3], &params, gradients).unwrap();
                } else {
                    backward(&shape, &[], &[], &empty, &params, gradients).unwrap();
                }
                for output in outputs {
                    assert_same("a sum of nothing", &output.take("a gradient"), &[0.0; 3]);
                }
            }
            // The states are those of no elements, even where there were others.
            let mut states = [[1.0, 2.0].into_iter().collect::<Welford>(); 3];
            forward_training::<f32>(&shape, &[], &Params::default(), &mut [], &mut states).unwrap();
            assert_eq!(states, empty);
            let (mut mean, mut var) = (Guarded::<f32>::new(3, 0), Guarded::<f32>::new(3, 0));
            let rule = UpdateRule::Momentum(0.1);
            for variance in [RunningVariance::Biased, RunningVariance::Unbiased] {
                let update = RunningUpdate { rule, variance };
                update_running(update, 1, &states, mean.get_mut(), var.get_mut()).unwrap();
            }
            mean.assert_untouched("running mean");
            var.assert_untouched("running variance");

            // A layer that has seen a batch keeps what it has learnt from it, but not its gradients.
            let batch = Shape::new(layout, 2, 3, &[2]).unwrap();
            let x: Vec<f32> = (0..12).map(|i| (i * i) as f32).collect();
            let mut layer = BatchNorm::<f32>::new(3);
            layer.forward_training(&batch, &x, &mut [0.0; 12]).unwrap();
            layer.backward(&batch, &x, &x, &mut [0.0; 12]).unwrap();
            assert!(layer.dgamma().iter().chain(layer.dbeta()).all(|gradient| *gradient != 0.0));
            let before = layer.clone();
            layer.forward_training(&shape, &[0.0f32; 0], &mut []).unwrap();
            assert_eq!(
                (layer.running_mean(), layer.running_var()),
                (before.running_mean(), before.running_var())
            );
            assert_eq!(layer.batches(), 1);
            layer.backward(&shape, &[0.0f32; 0], &[], &mut []).unwrap();
            assert_eq!((layer.dgamma(), layer.dbeta()), (&[0.0; 3][..], &[0.0; 3][..]));
        }
    }
}

#[test]
fn one_element_per_channel_gives_beta() {
    for layout in LAYOUTS {
        for dims in [&[1, 5][..], &[1, 5, 1, 1], &[1, 70, 1]] {
            let mut problem = Problem::<f32>::new(dims, 1);
            for eps in [0.0, 1e-5] {
                problem.eps = eps;
                let shape = problem.shape(layout);
                let mut y = vec![0.0; shape.len()];
                let mut states = vec![Welford::new(); shape.channels()];
                forward_training(&shape, &problem.x, &problem.params(), &mut y, &mut states).unwrap();
                assert_same("y", &y, problem.beta.as_ref().unwrap());
                for (state, x) in states.iter().zip(&problem.x) {
                    assert_eq!((state.count(), state.mean(), state.variance()), (1, f64::from(*x), 0.0));
                }
                let mut dx = vec![f32::NAN; shape.len()];
                let gradients = Gradients::new().dx(&mut dx);
                let (x, dy) = (&problem.x, &problem.dy);
                backward(&shape, x, dy, &states, &problem.params(), gradients).unwrap();
                assert!(dx.iter().all(|dx| *dx == 0.0), "y does not depend on x: {dx:?}");
            }
        }
    }
}

#[test]
fn the_unbiased_variance_of_one_element_is_an_error_before_any_write() {
    let shape = Shape::nchw(&[1, 2, 1]).unwrap();
    const TEXT: &str = "running variance is unbiased (m / (m - 1)), so m, N * S or the weights' sum times S, must be at least 2, but is 1";
    for rule in [UpdateRule::Momentum(0.1), UpdateRule::Decay(0.9), UpdateRule::Cumulative] {
        let unbiased = RunningUpdate { rule, variance: RunningVariance::Unbiased };
        let mut layer = BatchNorm::<f32>::new(2).with_update(unbiased);
        let before = layer.clone();
        let mut y = Guarded::new(2, 0);
        let result = layer.forward_training(&shape, &[3.0f32, 4.0], y.get_mut());
        assert_eq!(result, Err(Error::SingleElement));
        assert_eq!(message(result), TEXT);
        y.assert_untouched("y");
        assert_unchanged(&layer, &before);
        // It is the update that needs two.
        layer.forward(Mode::TrainingKeepRunning, &shape, &[3.0f32, 4.0], y.get_mut()).unwrap();
        assert_eq!((y.get(), layer == before), (&[0.0, 0.0][..], true));

        // One channel of many is enough, the last too.
        let [one, two]: [Welford; 2] = [[5.0].into_iter().collect(), [5.0, 7.0].into_iter().collect()];
        let (mut mean, mut var) = (Guarded::<f32>::new(2, 0), Guarded::<f32>::new(2, 0));
        let result = update_running(unbiased, 0, &[two, one], mean.get_mut(), var.get_mut());
        assert_eq!(message(result), TEXT);
        mean.assert_untouched("running mean");
        var.assert_untouched("running variance");

        let biased = RunningUpdate { rule, variance: RunningVariance::Biased };
        let mut layer = BatchNorm::<f32>::new(2).with_update(biased);
        layer.forward_training(&shape, &[3.0f32, 4.0], y.get_mut()).unwrap();
        assert_eq!((layer.batches(), y.get()), (1, &[0.0, 0.0][..]));
    }
}

#[test]
fn a_nan_or_an_infinity_spoils_the_running_statistics_of_its_channel_only() {
    for layout in LAYOUTS {
        let problem = Problem::<f32>::new(&[3, 4, 5], 2);
        let shape = problem.shape(layout);
        let mut clean = BatchNorm::<f32>::new(4);
        let mut y = vec![0.0; shape.len()];
        clean.forward_training(&shape, &problem.lay_out(layout, &problem.x), &mut y).unwrap();
        for poison in [f32::NAN, -f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            let mut x = problem.lay_out(layout, &problem.x);
            x[shape.offset(1, 2, 3)] = poison;
            let mut layer = BatchNorm::<f32>::new(4);
            layer.forward_training(&shape, &x, &mut y).unwrap();
            for channel in 0..4 {
                let [mean, var] = [layer.running_mean()[channel], layer.running_var()[channel]];
                if channel == 2 {
                    assert_same("running statistics", &[mean, var], &[f32::NAN; 2]);
                } else {
                    let clean = [clean.running_mean()[channel], clean.running_var()[channel]];
                    assert_same("running statistics", &[mean, var], &clean);
                }
            }
        }
    }
}

#[test]
fn no_variance_and_no_eps_in_training_gives_beta_and_finite_gradients() {
    fn check<T: Bits>(layout: Layout) {
        let shape = Shape::new(layout, 4, 3, &[6]).unwrap();
        let values = [0.1, -1e4 / 3.0, 0.0];
        let mut x = vec![T::default(); shape.len()];
        for (n, c, s) in (0..4).flat_map(|n| (0..18).map(move |i| (n, i % 3, i / 3))) {
            x[shape.offset(n, c, s)] = T::from_f64(values[c]);
        }
        let (gamma, beta) = ([2.0, -3.0, 0.5].map(T::from_f64), [0.25, 0.0, -1.5].map(T::from_f64));
        let params = Params::new(0.0).gamma(&gamma).beta(&beta);
        let (mut y, mut states) = (vec![T::NAN; shape.len()], [Welford::new(); 3]);
        forward_training(&shape, &x, &params, &mut y, &mut states).unwrap();
        for (i, y) in y.iter().enumerate() {
            let channel = if layout == Layout::Nchw { i / 6 % 3 } else { i % 3 };
            assert!(y.same(&beta[channel]), "y[{i}] is {y:?}, beta {:?}", beta[channel]);
        }
        assert!(states.iter().all(|state| state.variance() == 0.0));
        let rng = &mut crate::common::data::rng(1);
        let dy: Vec<T> = (0..shape.len()).map(|_| T::from_f64(variate(rng))).collect();
        let mut dx = vec![T::NAN; shape.len()];
        let mut vectors = [[T::NAN; 3]; 4];
        let [dgamma, dbeta, dmean, dvar] = &mut vectors;
        let gradients = Gradients::new().dx(&mut dx).dgamma(dgamma).dbeta(dbeta).dmean(dmean).dvar(dvar);
        backward(&shape, &x, &dy, &states, &params, gradients).unwrap();
        // invstd := 0, so that nothing but beta has a gradient.
        assert!(dx.iter().all(|dx| dx.to_f64() == 0.0), "{dx:?}");
        let [dgamma, dbeta, dmean, dvar] = vectors;
        assert!([dgamma, dmean, dvar].iter().flatten().all(|gradient| gradient.to_f64() == 0.0));
        assert!(dbeta.iter().all(|dbeta| dbeta.to_f64() != 0.0 && dbeta.to_f64().is_finite()));
    }
    for layout in LAYOUTS {
        check::<f32>(layout);
        check::<f64>(layout);
    }
}

#[test]
fn a_negative_running_variance_gives_nan_in_its_channel_only() {
    fn check<T: Bits>(layout: Layout) {
        let problem = Problem::<T>::new(&[3, 5, 7], 3);
        let shape = problem.shape(layout);
        let [x, dy] = [&problem.x, &problem.dy].map(|tensor| problem.lay_out(layout, tensor));
        let run = |var: &[T], eps: f64| {
            let params = params(problem.gamma.as_deref(), problem.beta.as_deref(), eps);
            let (mut y, mut dx) = (vec![T::default(); shape.len()], vec![T::default(); shape.len()]);
            forward_inference(&shape, &x, &problem.mean, var, &params, &mut y).unwrap();
            let gradients = Gradients::new().dx(&mut dx);
            backward_frozen(&shape, &x, &dy, &problem.mean, var, &params, gradients).unwrap();
            [y, dx].map(|tensor| problem.lay_back(layout, &tensor))
        };
        // Unless eps makes up for it.
        for eps in [0.0, 1e-5, 10.0] {
            let clean = run(&problem.var, eps);
            for negative in [-1.0 - eps, -1e-5 * (1.0 + eps), -1e-30, f64::NEG_INFINITY, f64::NAN] {
                if negative + eps >= 0.0 {
                    continue;
                }
                let mut var = problem.var.clone();
                var[3] = T::from_f64(negative);
                for (tensor, clean) in run(&var, eps).iter().zip(&clean) {
                    for (i, (value, clean)) in tensor.iter().zip(clean).enumerate() {
                        let expected = if i / 7 % 5 == 3 { T::NAN } else { *clean };
                        assert_same(
                            format_args!("variance {negative}, eps {eps}, {i}"),
                            &[*value],
                            &[expected],
                        );
                    }
                }
            }
        }
    }
    for layout in LAYOUTS {
        check::<f32>(layout);
        check::<f64>(layout);
    }
}

/// Multiplication as IEEE 754 has it, without a way around it: 0 times infinity is NaN.
#[test]
fn gamma_is_multiplied_by_without_shortcuts() {
    let shape = Shape::nchw(&[2, 1, 2]).unwrap();
    let inference = |x: [f32; 4], var: f32, gamma: f32, beta: f32| {
        let mut y = [0.0; 4];
        let (gamma, beta) = ([gamma], [beta]);
        let params = Params::new(0.0).gamma(&gamma).beta(&beta);
        forward_inference(&shape, &x, &[0.0], &[var], &params, &mut y).unwrap();
        y
    };
    let (nan, inf) = (f32::NAN, f32::INFINITY);
    let x = [1.0, -2.0, inf, nan];
    for (gamma, expected) in [
        (0.0, [0.5, 0.5, nan, nan]),
        (-0.0, [0.5, 0.5, nan, nan]),
        (-1.0, [-0.5, 2.5, -inf, nan]),
        (4.0, [4.5, -7.5, inf, nan]),
        (nan, [nan; 4]),
        (-nan, [nan; 4]),
        (inf, [inf, -inf, inf, nan]),
        (-inf, [-inf, inf, -inf, nan]),
    ] {
        assert_same(format_args!("gamma {gamma}"), &inference(x, 1.0, gamma, 0.5), &expected);
    }
    assert_same("gamma 0 at 0", &inference([0.0, 1.0, -1.0, 5.0], 1.0, 0.0, 0.0), &[0.0; 4]);
    assert_same("gamma infinite at 0", &inference([0.0; 4], 1.0, inf, 0.5), &[nan; 4]);
    assert_same("beta NaN", &inference([0.0; 4], 1.0, 1.0, -nan), &[nan; 4]);
    assert_same("beta infinite", &inference([0.0; 4], 1.0, 1.0, -inf), &[-inf; 4]);
    // A given variance of 0 without eps divides by 0, an infinite one by infinity.
    assert_same("var 0", &inference([0.0, 1.0, -1.0, inf], 0.0, 2.0, 0.5), &[nan, inf, -inf, inf]);
    assert_same("var infinite", &inference([0.0, 1.0, -1.0, inf], inf, 2.0, 0.5), &[0.5, 0.5, 0.5, nan]);

    let training = |gamma: f32| {
        let (x, dy) = ([-1.0f32, 1.0, -1.0, 1.0], [1.0f32, 0.0, 0.0, 0.0]);
        let gamma = [gamma];
        let params = Params::new(0.0).gamma(&gamma).beta(&[0.5]);
        let (mut y, mut states, mut dx, mut dgamma) = ([0.0; 4], [Welford::new()], [0.0; 4], [0.0]);
        forward_training(&shape, &x, &params, &mut y, &mut states).unwrap();
        let gradients = Gradients::new().dx(&mut dx).dgamma(&mut dgamma);
        backward(&shape, &x, &dy, &states, &params, gradients).unwrap();
        (y, dx, dgamma)
    };
    assert_eq!(training(0.0), ([0.5; 4], [0.0; 4], [-1.0]));
    assert_eq!(training(-2.0), ([2.5, -1.5, 2.5, -1.5], [-1.0, 0.0, 1.0, 0.0], [-1.0]));
    let (y, dx, dgamma) = training(nan);
    assert_same("y", &y, &[nan; 4]);
    assert_same("dx", &dx, &[nan; 4]);
    assert_eq!(dgamma, [-1.0], "gamma has no part in its own gradient");
}

#[test]
fn infinite_gamma_and_variance_agree_with_the_reference() {
    let shape = Shape::nchw(&[1, 1, 9]).unwrap();
    let specials = [0.0, -0.0, 1.0, -2.5, 1e30, -1e-30, f64::INFINITY, f64::NEG_INFINITY, f64::NAN];
    for mean in [0.0, 1.0] {
        for var in [0.0, 1.0, f64::INFINITY, f64::NAN] {
            for gamma in [0.0, -1.0, f64::INFINITY, f64::NAN] {
                for beta in [0.0, 2.0, f64::NEG_INFINITY] {
                    let (mut y, mut expected) = ([0.0; 9], [0.0; 9]);
                    let (gammas, betas) = ([gamma], [beta]);
                    let params = Params::new(0.0).gamma(&gammas).beta(&betas);
                    forward_inference(&shape, &specials, &[mean], &[var], &params, &mut y).unwrap();
                    reference::forward_inference(&shape, &specials, &[mean], &[var], &params, &mut expected);
                    for ((x, y), expected) in specials.iter().zip(y).zip(expected) {
                        let agree = y.to_bits() == expected.to_bits()
                            || (y - expected).abs() <= 1e-15 * expected.abs();
                        assert!(
                            agree,
                            "x {x}, mean {mean}, var {var}, gamma {gamma}, beta {beta}: {y}, reference {expected}"
                        );
                    }
                }
            }
        }
    }
}

/// An error in the last argument that is looked at leaves the running statistics alone; they are written after y.
#[test]
fn running_statistics_are_written_last() {
    let shape = Shape::nchw(&[2, 3, 5]).unwrap();
    let mut layer = BatchNorm::<f32>::new(3);
    let x: Vec<f32> = (0..30).map(|i| i as f32).collect();
    let mut y = Guarded::new(30, 0);
    layer.forward_training(&shape, &x, y.get_mut()).unwrap();
    let before = layer.clone();
    for (x_len, y_len) in [(29, 30), (30, 29), (31, 30), (30, 31), (0, 0)] {
        let mut y = Guarded::new(y_len, 0);
        let result = layer.forward_training(&shape, &vec![1.0f32; x_len], y.get_mut());
        assert!(matches!(result, Err(Error::Length { .. })));
        y.assert_untouched("y");
        assert_unchanged(&layer, &before);
    }
    // y is of the batch's statistics, not of running ones that were blended first.
    let mut expected = vec![0.0; 30];
    let gamma = [1.0; 3];
    let params = Params::default().gamma(&gamma).beta(&[0.0; 3]);
    forward_training(&shape, &x, &params, &mut expected, &mut [Welford::new(); 3]).unwrap();
    assert_same("y", y.get(), &expected);
}

#[test]
fn levels_have_names_and_say_what_is_wrong_with_others() {
    for (level, name) in [(Level::Portable, "portable"), (Level::Avx2, "avx2"), (Level::Avx512, "avx512")] {
        assert_eq!((level.to_string().as_str(), name.parse()), (name, Ok(level)));
        assert_eq!(format!("{level:>9}|{level:<9}|"), format!("{name:>9}|{name:<9}|"));
    }
    for name in ["", "avx", "AVX2", " avx2", "avx2 ", "avx-512", "sse2", "portable\0"] {
        let error = name.parse::<Level>().unwrap_err();
        assert_eq!(error, Error::UnknownLevel { name: name.to_owned() });
        assert_eq!(
            error.to_string(),
            format!("level is {name:?}, must be \"portable\", \"avx2\" or \"avx512\"")
        );
    }
    let available = levels().iter().map(Level::to_string).collect::<Vec<_>>().join(", ");
    for level in [Level::Portable, Level::Avx2, Level::Avx512] {
        let names = levels().iter().map(Level::to_string).collect();
        let error = Error::Level { level: level.to_string(), available: names };
        let expected = format!("level is {level}, must be one of those this CPU and build have: {available}");
        assert_eq!(error.to_string(), expected);
        if !levels().contains(&level) {
            assert_eq!(Level::with(level, || panic!("on a level that there is not")), Err(error.clone()));
            assert_eq!(Level::force(Some(level)), Err(error));
        }
    }
}

/// The only test here that looks at the level of the whole program.
#[test]
fn levels_nest_and_end() {
    let best = Level::active();
    for level in levels() {
        Level::force(Some(level)).unwrap();
        assert_eq!(Level::active(), level);
        for inner in levels() {
            let nested = Level::with(inner, || {
                let innermost = Level::with(Level::Portable, Level::active).unwrap();
                (Level::active(), innermost)
            });
            assert_eq!(nested, Ok((inner, Level::Portable)));
            assert_eq!(Level::active(), level);
            // This thread's alone.
            let elsewhere = Level::with(inner, || std::thread::scope(|s| s.spawn(Level::active).join()));
            assert_eq!(elsewhere.unwrap().unwrap(), level);
            let unwound =
                std::panic::catch_unwind(|| Level::with(inner, || std::panic::resume_unwind(Box::new(1))));
            assert!(unwound.is_err());
            assert_eq!(Level::active(), level);
        }
    }
    Level::force(None).unwrap();
    assert_eq!(Level::active(), best);
}

/// Run in processes of its own by the next test; prints what they are to find.
#[test]
fn print_the_active_level() {
    println!("active level: {}", Level::active());
}

#[test]
fn the_environment_chooses_the_level_and_misspellings_are_told() {
    let run = |value: &str| {
        let mut command = Command::new(std::env::current_exe().unwrap());
        command
            .args(["--exact", "--nocapture", "errors::print_the_active_level"])
            .env("BATCHNORM_LEVEL", value);
        let output = command.output().unwrap();
        assert!(output.status.success());
        let [out, err] = [output.stdout, output.stderr].map(|bytes| String::from_utf8(bytes).unwrap());
        let level = out.split("active level: ").nth(1).and_then(|rest| rest.split_whitespace().next());
        (level.unwrap().to_owned(), err)
    };
    for level in levels() {
        let (active, err) = run(&level.to_string());
        assert_eq!((active, err.contains("batchnorm:")), (level.to_string(), false), "{err}");
    }
    let best = levels().into_iter().max().unwrap();
    let (active, err) = run("avx3");
    assert_eq!(active, best.to_string());
    assert!(err.contains("batchnorm: BATCHNORM_LEVEL is \"avx3\", must be one of [\"portable\""), "{err}");
    assert!(err.contains(&format!("using {best}")), "{err}");
}

/// Any lengths, any eps, any counts: `Ok` if all is right, else an error that is no panic, and nothing written.
#[test]
fn no_arguments_panic() {
    fn property(seed: (u64, u8, u8), sizes: (u8, u8, u8), wrong: Vec<(u8, u16)>, eps: f64) -> bool {
        let (flags, operation, off_count) = seed;
        let (layout, f64s) = (LAYOUTS[(flags & 1) as usize], flags & 2 != 0);
        let operation = OPERATIONS[operation as usize % OPERATIONS.len()];
        let (n, c, s) = ((sizes.0 % 5) as usize, (sizes.1 % 40) as usize, (sizes.2 % 20) as usize);
        let shape = Shape::new(layout, n, c, &[s]).unwrap();
        let slices = operation.slices();
        // Most often one wrong length or none.
        let wrong: Vec<_> = wrong.iter().take((flags >> 2) as usize % 3).collect();
        let len = |name: &'static str, right| {
            let given = wrong.iter().find(|(index, _)| slices[*index as usize % slices.len()] == name);
            given.map_or(right, |(_, len)| usize::from(*len) % 1000)
        };
        let eps = if flags & 16 == 0 { 1e-5 } else { eps };
        let count = shape.per_channel() as u64 + u64::from(off_count == 0);
        let lengths_right = slices.iter().all(|&name| {
            let right = right_len(name, &shape);
            len(name, right) == right
        });
        let eps_right = (eps.is_finite() && eps >= 0.0) || !operation.takes_eps();
        let count_right = off_count != 0 || !operation.takes_states() || c == 0;
        let result = if f64s {
            operation.call::<f64>(&shape, eps, count, len)
        } else {
            operation.call::<f32>(&shape, eps, count, len)
        };
        result.is_ok() == (lengths_right && eps_right && count_right)
    }
    type Arguments = fn((u64, u8, u8), (u8, u8, u8), Vec<(u8, u16)>, f64) -> bool;
    QuickCheck::new().rng(Gen::new(300)).tests(20_000).quickcheck(property as Arguments);
}

/// Any dimensions make a shape or an error, the same in any order and layout.
#[test]
fn no_dimensions_panic() {
    fn property(dims: Vec<usize>, shifts: Vec<u8>) -> bool {
        let dims: Vec<usize> = dims
            .iter()
            .zip(&shifts)
            .map(|(dim, shift)| dim.checked_shr(u32::from(*shift % 64)).unwrap())
            .collect();
        let exact = dims.iter().try_fold(1u128, |product, dim| product.checked_mul((*dim).max(1) as u128));
        let fits = exact.is_some_and(|product| product <= (isize::MAX / 8) as u128);
        let reversed: Vec<usize> = dims.iter().rev().copied().collect();
        [Shape::nchw(&dims), Shape::nhwc(&dims), Shape::nchw(&reversed)].into_iter().all(
            |shape| match shape {
                Ok(shape) => {
                    fits && dims.len() >= 2
                        && shape.len() == dims.iter().product::<usize>()
                        && shape.per_channel() * shape.channels() == shape.len()
                }
                Err(Error::Rank { rank }) => rank == dims.len() && rank < 2,
                Err(Error::Overflow { .. }) => !fits,
                Err(_) => false,
            },
        )
    }
    QuickCheck::new().rng(Gen::new(8)).tests(5000).quickcheck(property as fn(Vec<usize>, Vec<u8>) -> bool);
}

/// Running statistics and steps of any lengths and factors.
#[test]
fn no_update_panics() {
    fn property(lens: (u8, u8, u8), counts: Vec<u8>, any: f64, kind: u8, batches: u64) -> bool {
        let factor = if kind & 32 == 0 { any } else { any.abs().fract() };
        let update = RunningUpdate {
            rule: match kind % 3 {
                0 => UpdateRule::Momentum(factor),
                1 => UpdateRule::Decay(factor),
                _ => UpdateRule::Cumulative,
            },
            variance: if kind & 64 == 0 { RunningVariance::Biased } else { RunningVariance::Unbiased },
        };
        let states: Vec<Welford> =
            counts.iter().map(|count| (0..*count % 4).map(f64::from).collect()).collect();
        let len = |len: u8| if len < 128 { states.len() } else { usize::from(len % 16) };
        let (mut mean, mut var) = (Guarded::<f32>::new(len(lens.0), 0), Guarded::<f32>::new(len(lens.1), 0));
        let result = update_running(update, batches, &states, mean.get_mut(), var.get_mut());
        let single = kind & 64 != 0 && states.iter().any(|state| state.count() == 1);
        let right = len(lens.0) == states.len()
            && len(lens.1) == states.len()
            && (kind % 3 == 2 || (0.0..=1.0).contains(&factor))
            && !single;
        if result.is_err() {
            mean.assert_untouched("running mean");
            var.assert_untouched("running variance");
        }
        let mut parameter = Guarded::<f32>::new(len(lens.0), 0);
        let gradient = vec![1.0; len(lens.2)];
        let stepped = step(factor, &gradient, parameter.get_mut());
        if stepped.is_err() {
            parameter.assert_untouched("the parameter");
        }
        result.is_ok() == right && stepped.is_ok() == (factor.is_finite() && len(lens.0) == len(lens.2))
    }
    type Arguments = fn((u8, u8, u8), Vec<u8>, f64, u8, u64) -> bool;
    QuickCheck::new().rng(Gen::new(12)).tests(5000).quickcheck(property as Arguments);
}

/// Weights of any sizes, numbers of any bits.
#[test]
fn no_folding_panics() {
    fn property(dims: Vec<u8>, axis: u8, groups: u8, numbers: Vec<u64>, wrong: u8) -> bool {
        let dims: Vec<usize> = dims.iter().take(4).map(|dim| usize::from(*dim % 7)).collect();
        let (axis, groups) = (usize::from(axis % 5), usize::from(groups % 5));
        let shape = match WeightShape::grouped(&dims, axis, groups) {
            Ok(shape) => shape,
            Err(Error::Axis { .. }) => return axis >= dims.len(),
            Err(Error::Groups { size, .. }) => return groups == 0 || size % groups != 0,
            Err(_) => return false,
        };
        let number = |i: usize| f64::from_bits(numbers.get(i % numbers.len().max(1)).copied().unwrap_or(0));
        let values = |len: usize, from: usize| (from..from + len).map(number).collect::<Vec<_>>();
        let (len, c) = (shape.len() + usize::from(wrong == 0), shape.channels());
        let (mut weight, mut bias, mean, var) = (values(len, 0), values(c, 1), values(c, 2), values(c, 3));
        let (gamma, beta) = (values(c, 4), values(c, 5));
        let before = (weight.clone(), bias.clone());
        let params = params(Some(&gamma[..]), Some(&beta[..]), 1e-5);
        let result = fold_into(&shape, &mean, &var, &params, &mut weight, &mut bias);
        if result.is_err() {
            assert_same("weight", &weight, &before.0);
            assert_same("bias", &bias, &before.1);
        }
        result.is_ok() == (wrong != 0)
    }
    type Arguments = fn(Vec<u8>, u8, u8, Vec<u64>, u8) -> bool;
    QuickCheck::new().rng(Gen::new(8)).tests(20_000).quickcheck(property as Arguments);
}

/// That of memory, which tests/out_of_memory.rs brings about.
#[test]
fn memory_that_cannot_be_had() {
    let error = Error::OutOfMemory { bytes: 294_272 };
    assert_eq!(error.to_string(), "memory is short: 294272 bytes of scratch space cannot be had");
}
