//! Sets of running statistics per domain, in one layer: a call changes and uses those of its domain alone.

use batchnorm::{
    BatchNorm, Domain, Error, Mode, Parts, Renorm, RunningUpdate, RunningVariance, Shape, UpdateRule,
    WeightShape,
};

use crate::common::matrix::{Bits, Guarded, LAYOUTS, Problem, assert_same, fresh_layer_of};
use crate::common::others::{in_threads, pass_among};

const MODES: [Mode; 3] = [Mode::Training, Mode::TrainingKeepRunning, Mode::Frozen];

/// One domain after the other, each as a layer of its own that shares gamma and beta.
#[test]
fn each_domain_is_a_layer_with_shared_parameters() {
    fn check<T: Bits>(update: RunningUpdate, renorm: Option<Renorm>) {
        let start = Problem::<T>::new(&[4, 5, 3, 2], 0);
        let mut layer = fresh_layer_of(&start).with_update(update).with_domains(3);
        layer.set_renorm(renorm).unwrap();
        assert_eq!((layer.domains(), layer.domain()), (3, 0));
        let mut alone = fresh_layer_of(&start).with_update(update);
        alone.set_renorm(renorm).unwrap();
        let mut alone = [(); 3].map(|()| alone.clone());
        for step in 0..12 {
            let (domain, layout) = ([0, 2, 1, 2, 0][step % 5], LAYOUTS[step % 2]);
            let mode = MODES[step % 7 % 3];
            let mut problem = Problem::<T>::new(&[4, 5, 3, 2], step as u64);
            for x in &mut problem.x {
                *x = T::from_f64(x.to_f64() % 8.0 + domain as f64);
            }
            let shape = problem.shape(layout);
            let [x, dy] = [&problem.x, &problem.dy].map(|tensor| problem.lay_out(layout, tensor));
            layer.set_domain(domain).unwrap();
            let all = [&mut layer, &mut alone[domain]].map(|layer| {
                let [mut y, mut dx, mut inferred] = [(); 3].map(|()| vec![T::default(); x.len()]);
                layer.forward(mode, &shape, &x, &mut y).unwrap();
                layer.backward(&shape, &x, &dy, &mut dx).unwrap();
                layer.step(0.05).unwrap();
                layer.forward_inference(&shape, &x, &mut inferred).unwrap();
                [y, dx, inferred]
            });
            for (got, expected) in all[0].iter().zip(&all[1]) {
                assert_same("a tensor", got, expected);
            }
            for other in &mut alone {
                other.gamma_mut().unwrap().copy_from_slice(layer.gamma().unwrap());
                other.beta_mut().unwrap().copy_from_slice(layer.beta().unwrap());
            }
            // All domains, those that this step was not of, too.
            for (domain, alone) in alone.iter().enumerate() {
                layer.set_domain(domain).unwrap();
                assert_same("running mean", layer.running_mean(), alone.running_mean());
                assert_same("running variance", layer.running_var(), alone.running_var());
                assert_eq!(layer.batches(), alone.batches());
            }
        }
        let batches = alone.map(|layer| layer.batches());
        assert!(batches.iter().all(|batches| *batches > 0), "{batches:?}");
    }
    for rule in [UpdateRule::Momentum(0.1), UpdateRule::Cumulative] {
        let update = RunningUpdate { rule, variance: RunningVariance::Unbiased };
        for renorm in [None, Some(Renorm { r_max: 1.5, d_max: 0.5 })] {
            check::<f32>(update, renorm);
            check::<f64>(update, renorm);
        }
    }
}

/// The backward pass is of the forward pass's domain, whatever is set in between.
#[test]
fn backward_belongs_to_the_domain_of_the_forward_pass() {
    let problem = Problem::<f32>::new(&[4, 5, 6], 1);
    let shape = problem.shape(LAYOUTS[0]);
    for (mode, renorm) in MODES.into_iter().flat_map(|mode| [None, Some(2.0)].map(|limit| (mode, limit))) {
        let mut layer = fresh_layer_of(&problem).with_domains(2);
        layer.set_renorm(renorm.map(|limit| Renorm { r_max: limit, d_max: limit })).unwrap();
        layer.set_domain(1).unwrap();
        layer.running_mean_mut().copy_from_slice(&problem.mean);
        layer.running_var_mut().copy_from_slice(&problem.var);
        let (mut y, mut expected, mut dx) =
            (vec![0.0; shape.len()], vec![0.0; shape.len()], vec![0.0; shape.len()]);
        layer.forward(mode, &shape, &problem.x, &mut y).unwrap();
        layer.clone().backward(&shape, &problem.x, &problem.dy, &mut expected).unwrap();
        layer.set_domain(0).unwrap();
        layer.forward_inference(&shape, &problem.dy, &mut y).unwrap();
        layer.backward(&shape, &problem.x, &problem.dy, &mut dx).unwrap();
        assert_same("dx", &dx, &expected);
        let mut dropped = layer.with_domains(1);
        dropped.backward(&shape, &problem.x, &problem.dy, &mut dx).unwrap();
        assert_same("dx", &dx, &expected);
    }
}

/// What there is of each domain is set, read and folded by its number.
#[test]
fn domains_are_added_dropped_and_set() {
    let mut layer = BatchNorm::<f64>::new(2).with_eps(0.0);
    layer.running_mean_mut().copy_from_slice(&[1.0, 2.0]);
    layer.running_var_mut().copy_from_slice(&[4.0, 16.0]);
    layer.set_batches(7);
    assert_eq!((layer.domains(), layer.domain()), (1, 0));
    let one = layer.clone();
    // New ones are as the first is.
    layer = layer.with_domains(3);
    layer.set_domain(2).unwrap();
    assert_eq!(
        (layer.running_mean(), layer.running_var(), layer.batches()),
        (&[1.0, 2.0][..], &[4.0, 16.0][..], 7)
    );
    layer.running_mean_mut().fill(3.0);
    layer.running_var_mut().fill(64.0);
    layer.set_batches(9);
    let other = Domain { running_mean: vec![3.0; 2], running_var: vec![64.0; 2], batches: 9 };
    assert_eq!(layer.parts().domains[1], other);
    assert_eq!((layer.parts().running_mean.as_slice(), layer.parts().batches), (&[1.0, 2.0][..], 7));
    let (mut weight, mut bias) = ([8.0f64, 8.0], [3.0f64, 11.0]);
    layer.fold_into(&WeightShape::new(&[2, 1], 0).unwrap(), &mut weight, &mut bias).unwrap();
    assert_eq!((weight, bias), ([1.0, 1.0], [0.0, 1.0]));
    // Domains that stay keep what they have, and what is set is one that there is.
    let more = layer.clone().with_domains(4);
    assert_eq!((more.domains(), more.domain(), &more.parts().domains[1]), (4, 2, &other));
    for count in [0, 1] {
        let fewer = more.clone().with_domains(count);
        assert_eq!((fewer.domains(), fewer.domain(), fewer.batches()), (1, 0, 7));
        assert_eq!(fewer, one);
    }
    for domain in [3, 4, usize::MAX] {
        let before = format!("{layer:?}");
        let error = layer.set_domain(domain).unwrap_err();
        assert_eq!(error, Error::Domain { domain, domains: 3 });
        assert_eq!(format!("{layer:?}"), before);
        let text = format!("domain is {domain}, must be below 3, the number of the layer's domains");
        assert_eq!(error.to_string(), text);
    }
}

/// A call that is refused changes no domain.
#[test]
fn errors_change_no_domain() {
    let shape = Shape::nchw(&[2, 3]).unwrap();
    let mut layer = BatchNorm::<f32>::new(3).with_domains(2);
    layer.set_domain(1).unwrap();
    layer.forward_training(&shape, &[1.0f32, 2.0, 3.0, 5.0, 8.0, 13.0], &mut [0.0; 6]).unwrap();
    let before = format!("{layer:?}");
    for mode in MODES {
        let mut y = Guarded::<f32>::new(5, 0);
        layer.forward(mode, &shape, &[1.0; 6], y.get_mut()).unwrap_err();
        y.assert_untouched("y");
        assert_eq!(format!("{layer:?}"), before);
    }
    let one = Shape::nchw(&[1, 3]).unwrap();
    let result = layer.forward_training(&one, &[1.0f32; 3], &mut [0.0; 3]);
    assert_eq!((result, format!("{layer:?}")), (Err(Error::SingleElement), before));
}

/// Parts of every domain, taken apart and made again.
#[test]
fn a_layer_of_its_parts_has_its_domains() {
    let problem = Problem::<f32>::new(&[4, 5, 6], 2);
    let shape = problem.shape(LAYOUTS[0]);
    let mut layer = fresh_layer_of(&problem).with_domains(2);
    let plain = layer.clone();
    layer.set_domain(1).unwrap();
    // The domain that is set is no part of a layer; what is in it is.
    assert_eq!(layer, plain);
    layer.forward_training(&shape, &problem.x, &mut vec![0.0; shape.len()]).unwrap();
    assert_ne!(layer, plain);
    assert_ne!(plain, fresh_layer_of(&problem));
    let mut restored = BatchNorm::from_parts(layer.clone().into_parts()).unwrap();
    assert_eq!((restored.domain(), &restored), (0, &layer));
    restored.set_domain(1).unwrap();
    for layer in [&mut layer, &mut restored] {
        layer.forward_training(&shape, &problem.dy, &mut vec![0.0; shape.len()]).unwrap();
    }
    assert_eq!(restored, layer);
    for (mean, var, expected) in [
        (4, 5, "running mean has length 4, must have length 5"),
        (5, 6, "running variance has length 6, must have length 5"),
    ] {
        let wrong = Domain { running_mean: vec![0.0; mean], running_var: vec![1.0; var], batches: 0 };
        let parts = Parts { domains: vec![wrong], ..layer.parts().clone() };
        assert_eq!(BatchNorm::from_parts(parts).unwrap_err().to_string(), expected);
    }
}

/// Several parts of a domain's batch, each with its layer, are one process's batch to the bit.
#[test]
fn layers_among_others_are_one_layer() {
    const N: usize = 48;
    let problem = Problem::<f32>::new(&[N, 3, 7, 7], 3);
    let shape = |n| Shape::nchw(&[n, 3, 7, 7]).unwrap();
    let layer = || {
        let mut layer =
            fresh_layer_of(&problem).with_domains(3).with_renorm(Renorm { r_max: 1.5, d_max: 1.0 });
        layer.set_domain(2).unwrap();
        layer
    };
    let (mut whole, mut y, mut dx) = (layer(), vec![0.0; problem.x.len()], vec![0.0; problem.x.len()]);
    whole.forward_training(&shape(N), &problem.x, &mut y).unwrap();
    whole.backward(&shape(N), &problem.x, &problem.dy, &mut dx).unwrap();
    in_threads(&[0, 32, N], |first, end, mut others| {
        let (range, shape) = (first * 147..end * 147, shape(end - first));
        let (x, dy) = (&problem.x[range.clone()], &problem.dy[range.clone()]);
        let mut layer = layer();
        let [part_y, part_dx] = pass_among(&mut layer, &shape, (x, dy), (first, &mut others));
        assert_same("y", &part_y, &y[range.clone()]);
        assert_same("dx", &part_dx, &dx[range]);
        assert_eq!((&layer, layer.dgamma()), (&whole, whole.dgamma()));
    });
}

#[cfg(feature = "serde")]
#[test]
fn domains_are_written_and_read() {
    let mut layer = BatchNorm::<f32>::new(1).with_domains(2);
    layer.set_domain(1).unwrap();
    layer.running_mean_mut()[0] = 0.5;
    layer.set_batches(3);
    let text = serde_json::to_string(&layer).unwrap();
    let domains = r#""domains":[{"running_mean":[0.5],"running_var":[1.0],"batches":3}]"#;
    assert!(text.ends_with(&format!(r#""renorm":null,{domains}}}"#)), "{text}");
    assert_eq!(serde_json::from_str::<BatchNorm<f32>>(&text).unwrap(), layer);
    // A checkpoint that says nothing of domains is of a layer of one.
    let old = text.replace(&format!(",{domains}"), "");
    let old = serde_json::from_str::<BatchNorm<f32>>(&old).unwrap();
    assert_eq!((old.domains(), old), (1, layer.clone().with_domains(1)));
    for (from, to, expected) in [
        ("[0.5]", "[0.5,1.0]", "running mean has length 2, must have length 1"),
        (r#","batches":3"#, "", "missing field `batches`"),
        (r#""batches":3"#, r#""batches":3,"gamma":[1.0]"#, "unknown field `gamma`"),
    ] {
        let error = serde_json::from_str::<BatchNorm<f32>>(&text.replace(from, to)).unwrap_err().to_string();
        assert!(error.starts_with(expected), "{error}");
    }
}
