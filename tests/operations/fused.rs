//! Every operation fused with an activation, a residual and a mask: to the bit what the separate operations give one after the
//! other, in every configuration that tests/operations/matrix.rs tries the bare ones in; and near the scalar reference.

use batchnorm::{Activation, Gradients, Layout, Params, reference};

use crate::common::fused::{ACTIVATIONS, Form, Share, check_fused, forms, run_fused};
use crate::common::matrix::{
    Bits, Configuration, LAYOUTS, Placement, Problem, THREADS, configurations, few_configurations, levels,
};
use crate::exhaustive;

/// Of each element, with gamma and beta and without; the larger, the fewer ways each configuration is tried in.
fn check_in(dims: &[usize], configurations: &[Configuration]) {
    let share = match dims.iter().product::<usize>() {
        ..300 => (2, 2),
        300..3000 => (3, 5),
        3000..30_000 => (5, 7),
        _ => (8, 11),
    };
    let seed = dims.iter().sum::<usize>() as u64;
    check_fused(&Problem::<f32>::new(dims, seed), configurations, share);
    check_fused(&Problem::<f64>::new(dims, seed).plain(), configurations, share);
}

/// Every way to call every form.
#[test]
fn every_way() {
    for dims in [&[3, 5, 19][..], &[2, 66, 3], &[2, 18, 7, 7], &[9, 17], &[1, 1, 600]] {
        check_fused(&Problem::<f32>::new(dims, 1), &few_configurations(), (1, 1));
        check_fused(&Problem::<f64>::new(dims, 2), &few_configurations(), (1, 1));
    }
}

#[test]
fn lengths_around_the_lanes() {
    for s in 1..=67 {
        check_in(&[1, 1, s], &few_configurations());
        check_in(&[3, 5, s], &few_configurations());
        check_in(&[2, 18, s], &few_configurations());
    }
}

#[test]
fn lengths_around_blocks() {
    for s in [511, 512, 513, 4095, 4096, 4097, 8191, 8192, 8193] {
        check_in(&[1, 1, s], &few_configurations());
        check_in(&[2, 3, s], &few_configurations());
    }
    for dims in [
        &[82, 3, 49][..],
        &[83, 3, 49],
        &[84, 3, 49],
        &[9, 3, 1000],
        &[4, 2, 2048],
        &[3, 2, 2049],
        &[4097, 3],
        &[4096, 16],
        &[7, 600, 20],
        &[20, 130, 15],
    ] {
        check_in(dims, &few_configurations());
    }
}

#[test]
fn channels_around_groups_and_spans() {
    for c in [1, 2, 3, 7, 8, 9, 15, 16, 17, 31, 32, 33, 48, 63, 64, 65, 96, 127, 128, 129] {
        for (n, spatial) in [(1, &[3][..]), (5, &[]), (2, &[4, 5]), (3, &[67])] {
            check_in(&[&[n, c], spatial].concat(), &few_configurations());
        }
    }
    for c in [511, 512, 513, 1025] {
        check_in(&[3, c, 2], &few_configurations());
        check_in(&[70, c], &few_configurations());
    }
}

#[test]
fn small_planes() {
    for n in [1, 2, 17] {
        for s in [1, 4, 15, 16, 17, 49, 63, 64, 65] {
            for c in [1, 64_usize.div_ceil(s), 66] {
                check_in(&[n, c, s], &few_configurations());
            }
        }
    }
}

/// Tasks' elements share words of the mask.
#[test]
fn problems_that_are_spread_over_threads() {
    for dims in [
        &[8, 64, 14, 14][..],
        &[2, 3, 30_000],
        &[40, 70, 7, 7],
        &[1, 1, 150_001],
        &[5000, 33],
        &[40_000, 3],
        &[1, 100, 1999],
        &[2, 600, 11, 11],
    ] {
        let each = if exhaustive() { configurations() } else { few_configurations() };
        check_fused(&Problem::<f32>::new(dims, 3), &each, (8, 13));
        check_fused(&Problem::<f64>::new(dims, 4).plain(), &few_configurations(), (8, 13));
    }
}

/// Past the size from which outputs are written past the caches, each in one configuration.
#[test]
fn large_shapes() {
    let few = few_configurations();
    for (i, dims) in
        [&[7, 150_001][..], &[2, 2, 600_011], &[6, 16, 33_000], &[2100, 1043]].into_iter().enumerate()
    {
        let configuration = &few[i % few.len()..][..1];
        if i % 2 == 0 {
            check_fused(&Problem::<f32>::new(dims, 1), configuration, (8, 23));
        } else {
            check_fused(&Problem::<f64>::new(dims, 1), configuration, (8, 23));
        }
    }
}

#[test]
fn every_alignment() {
    fn alignments<T: Bits>(dims: &[usize]) {
        let problem = Problem::<T>::new(dims, 4);
        let forms = forms();
        for level in levels() {
            for (inputs, outputs) in (0..=16).flat_map(|i| (0..=16).map(move |o| (i, o))) {
                let configuration = Configuration { level, threads: THREADS[0] };
                let (at, turn) = (Placement { inputs, outputs }, 17 * inputs + outputs);
                let form = forms[turn % forms.len()];
                let share = Share { from: turn, of: 3 };
                configuration.run(|| run_fused(&problem, LAYOUTS[turn / 2 % 2], at, form, share));
            }
        }
    }
    for dims in [&[2, 5, 37][..], &[2, 18, 7, 7], &[3, 1, 67], &[1, 16, 32]] {
        alignments::<f32>(dims);
        alignments::<f64>(dims);
    }
}

/// Numbers that are none, or near the ends of the range, in every tensor, whatever meets in the sum of u and z.
#[test]
fn any_elements() {
    fn any<T: Bits>(dims: &[usize], rare: usize) {
        let mut problem = Problem::<T>::new(dims, 5);
        let largest = if size_of::<T>() == 4 { f32::MAX.into() } else { f64::MAX };
        let numbers = [0.0, -0.0, largest, -largest, 1e-320, -1e-40, f64::NEG_INFINITY, 3.0, -3.0, 6.0];
        let specials: Vec<T> =
            numbers.into_iter().map(T::from_f64).chain([T::NAN, T::OTHER_NAN, T::INFINITY]).collect();
        // Each with a step of its own, so that all pairs meet.
        for (tensor, step) in [(&mut problem.x, rare), (&mut problem.z, 3), (&mut problem.dy, 5)] {
            let places = tensor.iter_mut().skip(step / 2).step_by(step);
            places.zip(specials.iter().cycle()).for_each(|(element, special)| *element = *special);
        }
        check_fused(&problem, &few_configurations(), (1, 1));
        // A channel that is NaN as a whole hides what becomes of its elements: here none is.
        for (x, z) in problem.x.iter_mut().zip(&problem.z) {
            if !x.to_f64().is_finite() {
                *x = T::from_f64(if z.to_f64().is_nan() { 1.0 } else { -1.0 });
            }
        }
        check_fused(&problem, &few_configurations(), (1, 1));
    }
    for (dims, rare) in [(&[3, 5, 19][..], 2), (&[2, 33, 7], 11), (&[37, 9], 97), (&[2, 2, 260], 7)] {
        any::<f32>(dims, rare);
        any::<f64>(dims, rare);
    }
}

/// The reference's formulas are other code: y within a few roundings of it, and where no u is next to a bend, gradients too.
#[test]
fn near_the_reference() {
    fn check<T: Bits>(dims: &[usize], relative: f64) {
        let mut problem = Problem::<T>::new(dims, 6);
        // Means that do not drown what is looked at, and no constant channels, whose u is beta.
        problem.x = problem.x.iter().map(|x| T::from_f64(x.to_f64() % 8.0)).collect();
        for form in forms() {
            let results = run_fused(&problem, Layout::Nchw, Placement::default(), form, Share::EVERY);
            let shape = &problem.shape(Layout::Nchw);
            let params: Params<'_, T> = problem.params().activation(form.activation);
            let (x, z, dy) = (&problem.x, &problem.z, &problem.dy);
            let (mean, var) = (&problem.mean, &problem.var);
            let tensor = || vec![T::canary(); shape.len()];
            for frozen in [false, true] {
                let (mut y, mut dx, mut dz, mut u) = (tensor(), tensor(), tensor(), tensor());
                let mut vectors = [(); 4].map(|()| vec![T::canary(); shape.channels()]);
                let [dgamma, dbeta, dmean, dvar] = &mut vectors;
                let gradients = Gradients::new().dx(&mut dx).dz(&mut dz).dgamma(dgamma).dbeta(dbeta);
                let gradients = gradients.dmean(dmean).dvar(dvar);
                let bare = params.activation(Activation::Identity);
                match (frozen, form.residual) {
                    (false, false) => {
                        let statistics = reference::forward_training(shape, x, &params, &mut y);
                        reference::forward_training(shape, x, &bare, &mut u);
                        reference::backward(shape, x, dy, &statistics, &params, gradients);
                    }
                    (false, true) => {
                        let statistics =
                            reference::forward_training_with_residual(shape, x, z, &params, &mut y);
                        reference::forward_training_with_residual(shape, x, z, &bare, &mut u);
                        let tensors = (&x[..], &z[..]);
                        reference::backward_with_residual(
                            shape,
                            tensors,
                            dy,
                            &statistics,
                            &params,
                            gradients,
                        );
                    }
                    (true, false) => {
                        reference::forward_inference(shape, x, mean, var, &params, &mut y);
                        reference::forward_inference(shape, x, mean, var, &bare, &mut u);
                        reference::backward_frozen(shape, x, dy, mean, var, &params, gradients);
                    }
                    (true, true) => {
                        reference::forward_inference_with_residual(shape, x, z, mean, var, &params, &mut y);
                        reference::forward_inference_with_residual(shape, x, z, mean, var, &bare, &mut u);
                        let tensors = (&x[..], &z[..]);
                        reference::backward_frozen_with_residual(
                            shape, tensors, dy, mean, var, &params, gradients,
                        );
                    }
                }
                let what = |name: &str| format!("{} {dims:?} {form:?} frozen {frozen}: {name}", T::NAME);
                near(&what("y"), &results.y[usize::from(frozen)], &y, relative);
                let bends: &[f64] = match form.activation {
                    Activation::Identity | Activation::Silu => &[],
                    Activation::HardSwish => &[-3.0, 3.0],
                    Activation::Clip { lo, hi } => &[lo, hi],
                    _ => &[0.0],
                };
                let is_at_bend = |u: &T| bends.iter().any(|bend| (u.to_f64() - bend).abs() < 1e-5);
                let at_bend = u.iter().filter(|u| is_at_bend(u)).count();
                assert_eq!(at_bend, 0, "{}: other data, please", what("u"));
                let [dgamma, dbeta, dmean, dvar] = vectors;
                let expected = [dx, dgamma, dbeta, dmean, dvar, dz];
                for (i, name) in ["dx", "dgamma", "dbeta", "dmean", "dvar", "dz"].into_iter().enumerate() {
                    near(&what(name), &results.gradients[usize::from(frozen)][i], &expected[i], relative);
                }
            }
        }
    }
    for dims in [&[3, 5, 11][..], &[2, 7, 4, 3], &[40, 6]] {
        check::<f32>(dims, 2e-5);
        check::<f64>(dims, 1e-12);
    }
}

/// Asserts that values are near others, relative to the largest of these.
#[track_caller]
fn near<T: Bits>(what: &str, got: &[T], expected: &[T], relative: f64) {
    assert_eq!(got.len(), expected.len(), "{what}");
    let size = expected.iter().fold(0f64, |size, value| size.max(value.to_f64().abs()));
    for (i, (got, expected)) in got.iter().zip(expected).enumerate() {
        let error = (got.to_f64() - expected.to_f64()).abs();
        assert!(error <= relative * size, "{what}[{i}] is {got:?}, reference {expected:?}, off by {error:e}");
    }
}

/// What comes after is what it says: every activation changes y, and a residual too.
#[test]
fn forms_differ() {
    let problem = Problem::<f32>::new(&[2, 3, 40], 7);
    let y = |form: Form| {
        let results = run_fused(&problem, Layout::Nhwc, Placement::default(), form, Share::EVERY);
        results.y.map(|y| y.iter().map(|y| y.to_bits()).collect::<Vec<_>>())
    };
    let all: std::collections::HashSet<_> = forms().into_iter().map(y).collect();
    assert_eq!((all.len(), forms().len()), (ACTIVATIONS.len() + 7, ACTIVATIONS.len() + 7));
}
