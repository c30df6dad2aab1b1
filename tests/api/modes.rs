//! The layer's modes, and that backward belongs to the last forward pass of one.

use batchnorm::{
    Activation, Backward, BatchNorm, Error, Gradients, Inference, Layout, Mode, Params, RunningUpdate,
    RunningVariance, Shape, Training, UpdateRule, Welford, backward_frozen,
};

use crate::common::fused::{Form, forms};
use crate::common::matrix::{Bits, Guarded, LAYOUTS, Problem, assert_same, layer_of};

/// dx, dgamma and dbeta.
fn gradients<T: Bits>(layer: &mut BatchNorm<T>, shape: &Shape, x: &[T], dy: &[T]) -> [Vec<T>; 3] {
    let mut dx = Guarded::new(shape.len(), 1);
    layer.backward(shape, x, dy, dx.get_mut()).unwrap();
    [dx.take("dx"), layer.dgamma().to_vec(), layer.dbeta().to_vec()]
}

fn running<T: Bits>(layer: &BatchNorm<T>) -> (Vec<T>, Vec<T>, u64) {
    (layer.running_mean().to_vec(), layer.running_var().to_vec(), layer.batches())
}

/// dx = gamma * invstd * dy, dbeta = sum(dy), dgamma = sum(dy * xhat), by hand.
#[test]
fn frozen_statistics_are_constants_and_parameters_are_trained() {
    let shape = Shape::nchw(&[2, 2, 2]).unwrap();
    let mut layer = BatchNorm::<f64>::new(2).with_eps(0.0);
    layer.running_mean_mut().copy_from_slice(&[1.0, -1.0]);
    layer.running_var_mut().copy_from_slice(&[4.0, 0.25]);
    layer.gamma_mut().unwrap().copy_from_slice(&[3.0, 1.0]);
    layer.beta_mut().unwrap().copy_from_slice(&[0.5, -2.0]);
    let before = running(&layer);
    let x = [1.0, 3.0, -1.0, 0.0, -3.0, 5.0, 1.0, -2.0];
    let dy = [1.0, 2.0, 3.0, -1.0, 0.0, -4.0, 0.5, 1.0];
    let mut y = [0.0; 8];
    layer.forward(Mode::Frozen, &shape, &x, &mut y).unwrap();
    assert_eq!(y, [0.5, 3.5, -2.0, 0.0, -5.5, 6.5, 2.0, -4.0]);
    let [dx, dgamma, dbeta] = gradients(&mut layer, &shape, &x, &dy);
    assert_eq!(dx, [1.5, 3.0, 6.0, -2.0, 0.0, -6.0, 1.0, 2.0]);
    // xhat: 0, 1, -2, 2 and 0, 2, 4, -2.
    assert_eq!((dgamma, dbeta), (vec![2.0 - 8.0, -2.0 + 2.0 - 2.0], vec![-1.0, 3.5]));
    layer.step(0.5).unwrap();
    assert_eq!((layer.gamma().unwrap(), layer.beta().unwrap()), (&[6.0, 2.0][..], &[1.0, -3.75][..]));
    assert_eq!(running(&layer), before);
}

#[test]
fn frozen_mode_is_the_operation_with_frozen_statistics() {
    fn check<T: Bits>(layout: Layout) {
        let problem = Problem::<T>::new(&[3, 7, 5, 3], 3);
        let shape = problem.shape(layout);
        let [x, dy] = [&problem.x, &problem.dy].map(|tensor| problem.lay_out(layout, tensor));
        let mut layer = layer_of(&problem);
        let (mut y, mut inferred) = (vec![T::default(); shape.len()], vec![T::default(); shape.len()]);
        layer.forward(Mode::Frozen, &shape, &x, &mut y).unwrap();
        layer.forward_inference(&shape, &x, &mut inferred).unwrap();
        assert_same("y", &y, &inferred);
        let [dx, dgamma, dbeta] = gradients(&mut layer, &shape, &x, &dy);
        let mut expected = [vec![T::default(); shape.len()], vec![T::default(); 7], vec![T::default(); 7]];
        let [expected_dx, expected_dgamma, expected_dbeta] = &mut expected;
        let wanted = Gradients::new().dx(expected_dx).dgamma(expected_dgamma).dbeta(expected_dbeta);
        let (mean, var) = (&problem.mean, &problem.var);
        backward_frozen(&shape, &x, &dy, mean, var, &problem.params(), wanted).unwrap();
        for ((what, got), expected) in
            [("dx", dx), ("dgamma", dgamma), ("dbeta", dbeta)].iter().zip(&expected)
        {
            assert_same(what, got, expected);
        }
    }
    for layout in LAYOUTS {
        check::<f32>(layout);
        check::<f64>(layout);
    }
}

/// The same y, states and gradients as training, to the bit; the running statistics as they were.
#[test]
fn training_may_leave_the_running_statistics_alone() {
    let problem = Problem::<f32>::new(&[4, 5, 9], 4);
    let shape = problem.shape(Layout::Nchw);
    let (mut kept, mut trained) = (layer_of(&problem), layer_of(&problem));
    let before = kept.clone();
    let [mut y, mut expected] = [vec![0.0; shape.len()], vec![0.0; shape.len()]];
    kept.forward(Mode::TrainingKeepRunning, &shape, &problem.x, &mut y).unwrap();
    trained.forward_training(&shape, &problem.x, &mut expected).unwrap();
    assert_same("y", &y, &expected);
    assert_same("states", kept.states(), trained.states());
    assert_eq!((&kept, kept.batches()), (&before, 0));
    assert_ne!(trained, before);
    let [got, expected] =
        [&mut kept, &mut trained].map(|layer| gradients(layer, &shape, &problem.x, &problem.dy));
    assert_eq!(got, expected);
}

/// forward_training and forward_inference are short for a mode.
#[test]
fn short_forms_are_modes() {
    let problem = Problem::<f64>::new(&[4, 5, 9], 5);
    let shape = problem.shape(Layout::Nchw);
    let [mut short, mut long] = [(); 2].map(|()| layer_of(&problem));
    let [mut y, mut expected] = [vec![0.0; shape.len()], vec![0.0; shape.len()]];
    short.forward_training(&shape, &problem.x, &mut y).unwrap();
    long.forward(Mode::Training, &shape, &problem.x, &mut expected).unwrap();
    assert_eq!((&y, format!("{short:?}")), (&expected, format!("{long:?}")));
    short.forward_inference(&shape, &problem.dy, &mut y).unwrap();
    long.forward(Mode::Inference, &shape, &problem.dy, &mut expected).unwrap();
    assert_eq!((&y, format!("{short:?}")), (&expected, format!("{long:?}")));
}

#[track_caller]
fn refused(layer: &mut BatchNorm<f32>, shape: &Shape, x: &[f32], expected: &str) {
    let before = format!("{layer:?}");
    let mut dx = Guarded::new(shape.len(), 0);
    let error = layer.backward(shape, x, &vec![1.0; shape.len()], dx.get_mut()).unwrap_err();
    assert_eq!(error.to_string(), expected);
    dx.assert_untouched("dx");
    assert_eq!(format!("{layer:?}"), before);
}

const NO_FORWARD: &str =
    "backward has no forward pass to go back through, must follow one in training or frozen mode";

#[test]
fn backward_needs_a_forward_pass() {
    let shape = Shape::nchw(&[2, 3, 4]).unwrap();
    let x: Vec<f32> = (0..24).map(|i| (i * i % 17) as f32).collect();
    let mut layer = BatchNorm::<f32>::new(3);
    refused(&mut layer, &shape, &x, NO_FORWARD);
    // One that failed is none, nor is inference.
    for mode in [Mode::Training, Mode::TrainingKeepRunning, Mode::Frozen, Mode::Inference] {
        assert!(layer.forward(mode, &shape, &x, &mut [0.0; 23]).is_err());
    }
    layer.forward(Mode::Inference, &shape, &x, &mut [0.0; 24]).unwrap();
    layer.forward_inference(&shape, &x, &mut [0.0; 24]).unwrap();
    refused(&mut layer, &shape, &x, NO_FORWARD);
    assert_eq!(layer.backward(&shape, &x, &x, &mut [0.0; 24]), Err(Error::NoForward));
    // What has been taken apart has had none.
    layer.forward_training(&shape, &x, &mut [0.0; 24]).unwrap();
    let mut again = BatchNorm::from_parts(layer.clone().into_parts()).unwrap();
    refused(&mut again, &shape, &x, NO_FORWARD);
    // A clone has.
    layer.clone().backward(&shape, &x, &x, &mut [0.0; 24]).unwrap();
}

#[test]
fn backward_is_of_the_last_forward_pass() {
    let shape = Shape::nchw(&[2, 3, 4, 4]).unwrap();
    let [x, other]: [Vec<f32>; 2] = [17, 19].map(|by| (0..96).map(|i| (i * i % by + 1) as f32).collect());
    let dy: Vec<f32> = (0..96).map(|i| (i % 7) as f32 - 2.5).collect();
    let mut y = [0.0; 96];
    for mode in [Mode::Training, Mode::TrainingKeepRunning, Mode::Frozen] {
        let mut layer = BatchNorm::<f32>::new(3);
        layer.forward_training(&shape, &other, &mut y).unwrap();
        layer.forward(mode, &shape, &x, &mut y).unwrap();
        let expected = gradients(&mut layer, &shape, &x, &dy);
        // Another shape, another x of the same.
        for wrong in [Shape::nhwc(&[2, 4, 4, 3]), Shape::nchw(&[4, 3, 2, 4]), Shape::nchw(&[2, 3, 3, 4])] {
            let wrong = wrong.unwrap();
            let expected = format!(
                "backward is of {wrong}, must be of NCHW 2x3x4x4, like the layer's last forward pass"
            );
            refused(&mut layer, &wrong, &vec![1.0; wrong.len()], &expected);
        }
        let differs = "x[5] is 7.0, must be 9.0: backward takes the x of the layer's last forward pass";
        refused(&mut layer, &shape, &other, differs);
        // Inference on another batch comes and goes, as does a forward pass that fails.
        layer.forward_inference(&shape, &other, &mut y).unwrap();
        layer.forward(Mode::Inference, &shape, &other, &mut y).unwrap();
        assert!(layer.forward(Mode::Training, &shape, &other, &mut y[1..]).is_err());
        refused(&mut layer, &shape, &other, differs);
        // The same data elsewhere, the same tensor with its spatial axes folded: what they were, more than once.
        for shape in [shape, Shape::nchw(&[2, 3, 16]).unwrap(), Shape::nchw(&[2, 3, 1, 2, 8]).unwrap()] {
            assert_eq!(gradients(&mut layer, &shape, &x.clone(), &dy), expected, "{mode:?}");
        }
        // The next one takes its place.
        layer.forward(mode, &shape, &other, &mut y).unwrap();
        assert_ne!(gradients(&mut layer, &shape, &other, &dy), expected);
        assert!(layer.backward(&shape, &x, &dy, &mut y).is_err());
    }
}

/// A NaN is the NaN that it was, and 0 is -0.
#[test]
fn the_same_x_is_never_refused() {
    let shape = Shape::nchw(&[2, 2]).unwrap();
    let mut layer = BatchNorm::<f32>::new(2);
    for mode in [Mode::Training, Mode::Frozen] {
        layer.forward(mode, &shape, &[f32::NAN, 0.0, -f32::NAN, f32::INFINITY], &mut [0.0; 4]).unwrap();
        let again = [-f32::NAN, -0.0, f32::NAN, f32::INFINITY];
        layer.backward(&shape, &again, &[1.0; 4], &mut [0.0; 4]).unwrap();
        refused(
            &mut layer,
            &shape,
            &[0.0, 0.0, f32::NAN, f32::INFINITY],
            "x[0] is 0.0, must be NaN: backward takes the x of the layer's last forward pass",
        );
    }
}

/// Another batch of the same size is found out, whatever the layout and however large; a row of zeros around it hides
/// nothing.
#[test]
fn another_batch_of_a_large_tensor_is_told_apart() {
    for dims in [&[8, 3, 30, 30][..], &[64, 16, 8, 8], &[300, 64]] {
        for layout in LAYOUTS {
            let [mut first, mut second] = [1, 2].map(|seed| Problem::<f32>::new(dims, seed));
            // Half of what relu lets through is 0 in both.
            for problem in [&mut first, &mut second] {
                problem.x.iter_mut().for_each(|x| *x = x.max(0.0));
            }
            let shape = first.shape(layout);
            let [first, second] = [&first, &second].map(|problem| problem.lay_out(layout, &problem.x));
            let (mut layer, mut y) = (BatchNorm::new(dims[1]), vec![0.0; shape.len()]);
            layer.forward_training(&shape, &first, &mut y).unwrap();
            let result = layer.backward(&shape, &second, &first, &mut y);
            assert!(matches!(result, Err(Error::ForwardInput { .. })), "{shape}: {result:?}");
            layer.backward(&shape, &first, &first, &mut y).unwrap();
        }
    }
}

/// Gradients are of what the forward pass computed: gamma, eps and running statistics may be written before backward.
#[test]
fn what_is_written_between_forward_and_backward_does_not_count() {
    let problem = Problem::<f64>::new(&[4, 5, 9], 6);
    let shape = problem.shape(Layout::Nchw);
    let mut y = vec![0.0; shape.len()];
    for mode in [Mode::Training, Mode::TrainingKeepRunning, Mode::Frozen] {
        let mut layer = layer_of(&problem);
        layer.forward(mode, &shape, &problem.x, &mut y).unwrap();
        let expected = gradients(&mut layer, &shape, &problem.x, &problem.dy);
        layer.running_mean_mut().fill(100.0);
        layer.running_var_mut().fill(-1.0);
        layer.gamma_mut().unwrap().fill(7.0);
        layer.set_eps(3.0).unwrap();
        assert_eq!(gradients(&mut layer, &shape, &problem.x, &problem.dy), expected, "{mode:?}");
        layer = layer.without_gamma().with_eps(f64::NAN);
        assert_eq!(gradients(&mut layer, &shape, &problem.x, &problem.dy), expected, "{mode:?}");
        layer = layer.with_eps(1e-5);
        // The next forward pass is by what there is then, as that of a layer that knows nothing else.
        layer.running_var_mut().fill(2.0);
        let mut fresh = BatchNorm::from_parts(layer.parts().clone()).unwrap();
        let [got, of_fresh] = [&mut layer, &mut fresh].map(|layer| {
            layer.forward(mode, &shape, &problem.x, &mut y).unwrap();
            gradients(layer, &shape, &problem.x, &problem.dy)
        });
        assert_eq!(got, of_fresh, "{mode:?}");
        assert_ne!(got, expected);
    }
}

/// Frozen training of an empty batch: gradients are sums of nothing.
#[test]
fn a_frozen_empty_batch() {
    let batch = Shape::nchw(&[2, 3, 2]).unwrap();
    let x: Vec<f32> = (0..12).map(|i| (i * i) as f32).collect();
    let mut layer = BatchNorm::<f32>::new(3);
    layer.forward(Mode::Frozen, &batch, &x, &mut [0.0; 12]).unwrap();
    layer.backward(&batch, &x, &x, &mut [0.0; 12]).unwrap();
    assert!(layer.dgamma().iter().chain(layer.dbeta()).all(|gradient| *gradient != 0.0));
    let empty = Shape::nchw(&[0, 3, 2]).unwrap();
    layer.forward(Mode::Frozen, &empty, &[0.0f32; 0], &mut []).unwrap();
    layer.backward(&empty, &[0.0f32; 0], &[], &mut []).unwrap();
    assert_eq!((layer.dgamma(), layer.dbeta()), (&[0.0; 3][..], &[0.0; 3][..]));
}

/// Gamma with dgamma, then beta with dbeta, whichever there are; and step is one user of them.
#[test]
fn parameters_come_with_their_gradients() {
    let problem = Problem::<f32>::new(&[4, 5, 9], 7);
    let shape = problem.shape(Layout::Nchw);
    let mut layer = layer_of(&problem);
    let mut y = vec![0.0; shape.len()];
    layer.forward_training(&shape, &problem.x, &mut y).unwrap();
    layer.backward(&shape, &problem.x, &problem.dy, &mut y).unwrap();
    let expected = [
        (problem.gamma.clone().unwrap(), layer.dgamma().to_vec()),
        (problem.beta.clone().unwrap(), layer.dbeta().to_vec()),
    ];
    for (gamma, beta) in [(true, true), (true, false), (false, true), (false, false)] {
        let mut layer = layer.clone();
        if !gamma {
            layer = layer.without_gamma();
        }
        if !beta {
            layer = layer.without_beta();
        }
        let wanted: Vec<_> = expected
            .iter()
            .zip([gamma, beta])
            .filter_map(|(pair, there)| there.then_some(pair.clone()))
            .collect();
        let got: Vec<_> = layer.parameters_mut().map(|(p, g)| (p.to_vec(), g.to_vec())).collect();
        assert_eq!(got, wanted);
        let mut stepped = layer.clone();
        stepped.step(0.25).unwrap();
        for (parameter, gradient) in layer.parameters_mut() {
            batchnorm::step(0.25, gradient, parameter).unwrap();
        }
        assert_eq!(layer, stepped);
    }
}

/// The rule that a layer goes by may change while it trains.
#[test]
fn the_update_rule_is_read_and_set() {
    let mut layer = BatchNorm::<f64>::new(1);
    assert_eq!(layer.update(), BatchNorm::<f64>::new(3).parts().update);
    let shape = Shape::nchw(&[2, 1]).unwrap();
    let cumulative = RunningUpdate { rule: UpdateRule::Cumulative, variance: RunningVariance::Biased };
    layer.set_update(cumulative).unwrap();
    assert_eq!(layer.update(), cumulative);
    layer.forward_training(&shape, &[1.0, 3.0], &mut [0.0; 2]).unwrap();
    let momentum = RunningUpdate { rule: UpdateRule::Momentum(0.5), ..cumulative };
    layer.set_update(momentum).unwrap();
    layer.forward_training(&shape, &[6.0, 6.0], &mut [0.0; 2]).unwrap();
    assert_eq!((layer.running_mean(), layer.running_var(), layer.batches()), (&[4.0][..], &[0.5][..], 2));
    layer.set_eps(0.25).unwrap();
    assert_eq!(layer.eps(), 0.25);
    let params = Params::new(0.25).gamma(&[1.0]).beta(&[0.0]);
    let [mut y, mut expected] = [[0.0; 2]; 2];
    layer.forward_inference(&shape, &[6.0, -2.0], &mut y).unwrap();
    batchnorm::forward_inference(&shape, &[6.0, -2.0], &[4.0], &[0.5], &params, &mut expected).unwrap();
    assert_eq!(y, expected);
}

/// A layer with an activation, and a residual where it goes with one, adds nothing to the operations in any mode.
#[test]
fn every_mode_with_what_comes_after_is_its_operations() {
    fn check<T: Bits>(layout: Layout, mode: Mode, Form { activation, residual }: Form) {
        let problem = Problem::<T>::new(&[3, 7, 5, 3], 8);
        let shape = problem.shape(layout);
        let [x, z, dy] = [&problem.x, &problem.z, &problem.dy].map(|tensor| problem.lay_out(layout, tensor));
        let params = problem.params().activation(activation);
        let tensor = || vec![T::default(); shape.len()];
        let (mut layer, mut y) = (layer_of(&problem).with_activation(activation), tensor());
        assert_eq!(layer.activation(), activation);
        if residual {
            layer.forward_with_residual(mode, &shape, &x, &z, &mut y).unwrap();
        } else {
            layer.forward(mode, &shape, &x, &mut y).unwrap();
        }
        let (mut expected, mut mask) = (tensor(), vec![0; shape.mask_len()]);
        let mut states = vec![Welford::new(); 7];
        let (mean, var) = (&problem.mean[..], &problem.var[..]);
        let by_batch = matches!(mode, Mode::Training | Mode::TrainingKeepRunning);
        match (by_batch, residual) {
            (true, true) => {
                let training = Training::new(&shape, params).x(&x).residual(&z).mask(&mut mask);
                training.y(&mut expected).states(&mut states).run().unwrap();
            }
            (true, false) => {
                Training::new(&shape, params).x(&x).y(&mut expected).states(&mut states).run().unwrap();
            }
            (false, true) => {
                let inference = Inference::new(&shape, params).x(&x).residual(&z).mask(&mut mask);
                inference.y(&mut expected).frozen(mean, var).run().unwrap();
            }
            (false, false) => {
                Inference::new(&shape, params).x(&x).y(&mut expected).frozen(mean, var).run().unwrap();
            }
        }
        assert_same("y", &y, &expected);
        let [mut dx, mut dz] = [tensor(), tensor()];
        if mode == Mode::Inference {
            let shared = layer.clone();
            let mut y = tensor();
            if residual {
                shared.forward_inference_with_residual(&shape, &x, &z, &mut y).unwrap();
            } else {
                shared.forward_inference(&shape, &x, &mut y).unwrap();
            }
            assert_same("y", &y, &expected);
            let result = layer.backward_with_residual(&shape, &x, &dy, &mut dx, &mut dz);
            assert_eq!(result, Err(Error::NoForward));
            return;
        }
        if by_batch {
            assert_same("states", layer.states(), &states);
        }
        let mut wanted = [tensor(), tensor(), vec![T::default(); 7], vec![T::default(); 7]];
        let [expected_dx, expected_dz, dgamma, dbeta] = &mut wanted;
        let gradients = Gradients::new().dx(expected_dx).dgamma(dgamma).dbeta(dbeta);
        let backward = Backward::new(&shape, params).x(&x).dy(&dy);
        let backward = if residual {
            backward.mask(&mask).gradients(gradients.dz(expected_dz))
        } else {
            backward.gradients(gradients)
        };
        let backward = if by_batch { backward.states(&states) } else { backward.frozen(mean, var) };
        backward.run().unwrap();
        if residual {
            layer.backward_with_residual(&shape, &x, &dy, &mut dx, &mut dz).unwrap();
            // dx alone is the same.
            assert_same("dx alone", &self::gradients(&mut layer, &shape, &x, &dy)[0], &wanted[0]);
        } else {
            layer.backward(&shape, &x, &dy, &mut dx).unwrap();
            let result = layer.backward_with_residual(&shape, &x, &dy, &mut dx.clone(), &mut dz.clone());
            assert_eq!(result, Err(Error::NoResidual));
        }
        let got = [dx, dz, layer.dgamma().to_vec(), layer.dbeta().to_vec()];
        for ((name, got), expected) in ["dx", "dz", "dgamma", "dbeta"].iter().zip(&got).zip(&wanted) {
            assert_same(format_args!("{name} of {activation}, {mode:?}"), got, expected);
        }
    }
    for mode in [Mode::Training, Mode::TrainingKeepRunning, Mode::Frozen, Mode::Inference] {
        for (layout, form) in
            LAYOUTS.into_iter().flat_map(|layout| forms().into_iter().map(move |f| (layout, f)))
        {
            check::<f32>(layout, mode, form);
            check::<f64>(layout, mode, form);
        }
    }
}

/// dx and dz of a layer whose last forward pass had a residual.
fn with_residual(layer: &mut BatchNorm<f32>, shape: &Shape, x: &[f32], dy: &[f32]) -> [Vec<f32>; 2] {
    let [mut dx, mut dz] = [(); 2].map(|()| Guarded::new(shape.len(), 1));
    layer.backward_with_residual(shape, x, dy, dx.get_mut(), dz.get_mut()).unwrap();
    [dx.take("dx"), dz.take("dz")]
}

/// Forward passes that fail, of the same shape and of others, and what is set in between: the last one's gradients all the same.
#[test]
fn the_mask_is_the_last_forward_pass_s() {
    let problem = Problem::<f32>::new(&[2, 5, 9], 9);
    let (shape, Problem { x, z, dy, .. }) = (problem.shape(Layout::Nchw), &problem);
    let other = Shape::nchw(&[4, 5, 9]).unwrap();
    let empty = Shape::nchw(&[0, 5, 9]).unwrap();
    let long = vec![1.0; other.len()];
    for mode in [Mode::Training, Mode::TrainingKeepRunning, Mode::Frozen] {
        let mut layer = layer_of(&problem).with_activation(Activation::Relu);
        let mut y = vec![0.0; shape.len()];
        // Failing before there was any.
        assert!(layer.forward_with_residual(mode, &shape, x, z, &mut y[1..]).is_err());
        let result = layer.backward_with_residual(&shape, x, dy, &mut y.clone(), &mut y.clone());
        assert_eq!(result, Err(Error::NoForward));
        // After one without a residual, nothing is left behind either.
        layer.forward(mode, &shape, x, &mut y).unwrap();
        let before = format!("{layer:?}");
        assert!(layer.forward_with_residual(mode, &shape, x, z, &mut y[1..]).is_err());
        let [mut dx, mut dz] = [(); 2].map(|()| Guarded::new(shape.len(), 0));
        let result = layer.backward_with_residual(&shape, x, dy, dx.get_mut(), dz.get_mut());
        assert_eq!(result, Err(Error::NoResidual));
        assert_eq!(
            result.unwrap_err().to_string(),
            "backward has no residual to give the gradient of, must follow a forward pass that had one"
        );
        dx.assert_untouched("dx");
        dz.assert_untouched("dz");
        assert_eq!(format!("{layer:?}"), before);

        layer.forward_with_residual(mode, &shape, x, z, &mut y).unwrap();
        let (expected, before) = (with_residual(&mut layer, &shape, x, dy), format!("{layer:?}"));
        for wrong in [Mode::Training, Mode::TrainingKeepRunning, Mode::Frozen, Mode::Inference] {
            let mut y = Guarded::new(shape.len() - 1, 0);
            assert!(layer.forward_with_residual(wrong, &shape, x, z, y.get_mut()).is_err());
            assert!(layer.forward_with_residual(wrong, &other, &long, &long, y.get_mut()).is_err());
            assert!(layer.forward_with_residual(wrong, &empty, &[], &[], y.get_mut()).is_err());
            assert!(layer.forward_with_residual(wrong, &shape, x, &z[1..], &mut vec![0.0; x.len()]).is_err());
            assert!(layer.forward(wrong, &shape, x, y.get_mut()).is_err());
            y.assert_untouched("y");
            assert_eq!(format!("{layer:?}"), before, "{mode:?}, then {wrong:?}");
        }
        assert_eq!(with_residual(&mut layer, &shape, x, dy), expected, "{mode:?}");
        // Inference comes and goes, with a residual too.
        layer.forward_with_residual(Mode::Inference, &other, &long, &long, &mut long.clone()).unwrap();
        // What is written in between does not count.
        layer.set_activation(Activation::LeakyRelu { slope: 0.5 }).unwrap();
        layer.beta_mut().unwrap().fill(100.0);
        layer.gamma_mut().unwrap().fill(-1.0);
        assert_eq!(with_residual(&mut layer, &shape, x, dy), expected, "{mode:?}");
        // Lengths of dz.
        let before = format!("{layer:?}");
        for len in [0, 89, 91] {
            let (mut dx, mut dz) = (Guarded::new(90, 0), Guarded::new(len, 0));
            let result = layer.backward_with_residual(&shape, x, dy, dx.get_mut(), dz.get_mut());
            let expected = format!("dz has length {len}, must have length 90, that of {shape}");
            assert_eq!(result.unwrap_err().to_string(), expected);
            dx.assert_untouched("dx");
            dz.assert_untouched("dz");
        }
        assert_eq!(format!("{layer:?}"), before);
        // The next one takes its place, and may be of another size.
        layer.forward_with_residual(mode, &other, &long, &long, &mut long.clone()).unwrap();
        let [_, dz] = with_residual(&mut layer, &other, &long, &long);
        assert_eq!(dz.len(), other.len());
        layer.forward(mode, &shape, x, &mut y).unwrap();
        let result = layer.backward_with_residual(&shape, x, dy, &mut y.clone(), &mut y);
        assert_eq!(result, Err(Error::NoResidual));
    }
}

/// u is found anew with the beta and the activation that the forward pass had.
#[test]
fn a_beta_set_between_forward_and_backward_does_not_count() {
    let problem = Problem::<f64>::new(&[4, 5, 9], 10);
    let shape = problem.shape(Layout::Nchw);
    for mode in [Mode::Training, Mode::TrainingKeepRunning, Mode::Frozen] {
        for activation in [Activation::Relu, Activation::Silu] {
            let mut layer = layer_of(&problem).with_activation(activation);
            layer.forward(mode, &shape, &problem.x, &mut vec![0.0; shape.len()]).unwrap();
            let expected = gradients(&mut layer, &shape, &problem.x, &problem.dy);
            layer.beta_mut().unwrap().fill(-7.0);
            layer.set_activation(Activation::Identity).unwrap();
            assert_eq!(gradients(&mut layer, &shape, &problem.x, &problem.dy), expected, "{mode:?}");
            let mut layer = layer.without_beta();
            assert_eq!(gradients(&mut layer, &shape, &problem.x, &problem.dy), expected, "{mode:?}");
        }
    }
}
