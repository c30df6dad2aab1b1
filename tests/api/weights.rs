//! Weights of samples: what is refused, the layer, data that come batch by batch.

use batchnorm::{
    Backward, BatchNorm, Error, Gradients, Mode, Params, PartialGradients, PartialStatistics, Shape,
    Statistics, StreamingStatistics, Training, Welford,
};

use crate::common::matrix::{Bits, Guarded, LAYOUTS, Problem, assert_same, fresh_layer_of};
use crate::common::others::{in_threads, pass_among};

const MODES: [Mode; 3] = [Mode::Training, Mode::TrainingKeepRunning, Mode::Frozen];

fn weights(n: usize) -> Vec<f64> {
    (0..n).map(|i| if i % 4 == 1 { 0.0 } else { 0.3 + (i * 7 % 5) as f64 }).collect()
}

/// Numbers that are no weights, in each call that takes some; nothing is written.
#[test]
fn what_is_no_weight_is_refused() {
    let (shape, params) = (Shape::nchw(&[3, 2, 2]).unwrap(), Params::<f32>::new(1e-5));
    let x: Vec<f32> = (0..12).map(|i| (i * i % 7) as f32).collect();
    let given = [Welford::from_iter([1.0, 2.0, 3.0, 4.0, 5.0, 6.0]); 2];
    let refused = |weights: &[f64], expected: Error| {
        let (mut y, mut dx) = (Guarded::<f32>::new(12, 1), Guarded::<f32>::new(12, 1));
        let mut states = Guarded::<Welford>::new(2, 1);
        let statistics = Statistics::new(&shape).x(&x).states(states.get_mut()).weights(weights).run();
        assert_eq!(statistics, Err(expected.clone()), "{weights:?}");
        let training = Training::new(&shape, params).x(&x).y(y.get_mut()).states(states.get_mut());
        assert_eq!(training.weights(weights).run(), Err(expected.clone()));
        let backward = Backward::new(&shape, params).x(&x).dy(&x).states(&given);
        let backward = backward.gradients(Gradients::new().dx(dx.get_mut())).weights(weights).run();
        assert_eq!(backward, Err(expected.clone()));
        if !matches!(expected, Error::NoSampleWeight) {
            let mut part = PartialStatistics::new(2);
            assert_eq!(part.add_weighted(&shape, 0, &x, weights), Err(expected.clone()));
            assert_eq!(part.samples(), 0);
            let mut data = StreamingStatistics::new(2);
            assert_eq!(data.update_weighted(&shape, &x, weights), Err(expected.clone()));
            let part = Backward::new(&shape, params).x(&x).dy(&x).states(&given).weights(weights).part(0);
            assert_eq!(part, Err(expected.clone()));
        }
        let mut layer = BatchNorm::<f32>::new(2);
        match layer.set_weights(Some(weights.to_vec())) {
            Ok(()) => {
                let before = format!("{layer:?}");
                let result = layer.forward_training(&shape, &x, y.get_mut());
                assert_eq!(result, Err(expected));
                assert_eq!(format!("{layer:?}"), before);
            }
            Err(error) => assert!(error == expected && layer.weights().is_none()),
        }
        y.assert_untouched("y");
        dx.assert_untouched("dx");
        states.assert_untouched("states");
    };
    for value in [-1.0, -5e-324, f64::NAN, f64::INFINITY, -f64::INFINITY, 5e-324, 2f64.powi(-61), 2e18] {
        let error = Error::SampleWeight { sample: 1, value };
        let text = error.to_string();
        assert_eq!(text, format!("weights[1] is {value:?}, must be 0 or between 2^-60 and 2^60"));
        if value.is_nan() {
            let result = Statistics::new(&shape)
                .x(&x)
                .states(&mut [Welford::new(); 2])
                .weights(&[1.0, value, 1.0])
                .run();
            assert_eq!(result.unwrap_err().to_string(), text);
        } else {
            refused(&[1.0, value, 1.0], error);
        }
    }
    refused(&[0.0, -0.0, 0.0], Error::NoSampleWeight);
    for got in [0, 2, 4] {
        refused(&vec![1.0; got], Error::Length { argument: "weights", got, expected: 3, shape: None });
    }
}

/// Parts of both kinds do not join; none of no samples is of either.
#[test]
fn weights_are_of_all_parts_or_of_none() {
    let (shape, x) = (Shape::nchw(&[2, 1]).unwrap(), [1.0f32, 4.0]);
    let mut with = PartialStatistics::new(1);
    with.add_weighted(&shape, 0, &x, &[2.0, 1.0]).unwrap();
    let without = PartialStatistics::of(&shape, 256, &x).unwrap();
    let mixed = Error::Partial { reason: "have weights, and others have none" };
    for (one, other) in [(&with, &without), (&without, &with)] {
        assert_eq!(one.clone().join(other), Err(mixed.clone()));
        let mut joined = PartialStatistics::new(1);
        joined.join(one).unwrap();
        joined.join(&PartialStatistics::new(1)).unwrap();
        assert_eq!(&joined, one);
        assert_eq!(&PartialStatistics::from_bytes(&one.to_bytes().unwrap()).unwrap(), one);
    }
    assert_eq!(with.add(&shape, 2, &x), Err(mixed));
    let state = with.states().unwrap()[0];
    assert_eq!((state.count(), state.mean(), state.variance()), (3, 2.0, 2.0));
    // No weight at all: states of no elements.
    let mut none = PartialStatistics::new(1);
    none.add_weighted(&shape, 0, &x, &[0.0; 2]).unwrap();
    assert_eq!((none.samples(), none.states().unwrap()), (2, vec![Welford::new()]));
    let sums = Backward::new(&shape, Params::new(0.0)).x(&x).dy(&x).frozen(&[0.0], &[1.0]).weights(&[0.0; 2]);
    assert_eq!(
        PartialGradients::<f32>::from_bytes(&sums.part(0).unwrap().to_bytes().unwrap()).unwrap().samples(),
        2
    );
}

/// A NaN spoils its own channel and no message; no channels are no error.
#[test]
fn weights_beside_a_nan_and_without_channels() {
    fn check<T: Bits>() {
        let (shape, x) = (Shape::nchw(&[1, 2]).unwrap(), [T::NAN, T::from_f64(3.0)]);
        let mut part = PartialStatistics::<T>::new(2);
        part.add_weighted(&shape, 0, &x, &[0.7]).unwrap();
        let again = PartialStatistics::<T>::from_bytes(&part.to_bytes().unwrap()).unwrap();
        assert_eq!(again.samples(), 1);
        let (mut y, mut states) = ([T::from_f64(7.0); 2], [Welford::new(); 2]);
        let mut alone = |bytes: &[u8], each: &mut dyn FnMut(&[u8])| {
            each(bytes);
            Ok(())
        };
        let training = Training::new(&shape, Params::new(1e-5)).x(&x).y(&mut y).states(&mut states);
        training.weights(&[0.7]).run_among(0, &mut alone).unwrap();
        assert!(y[0].to_f64().is_nan() && y[1].to_f64() == 0.0);
        assert!(states.iter().all(|state| Welford::from_parts(state.into_parts()).is_ok()), "{states:?}");

        let (none, empty): (_, [T; 0]) = (Shape::nchw(&[2, 0, 3]).unwrap(), []);
        let mut nothing = empty;
        let training = Training::new(&none, Params::new(1e-5)).x(&empty).y(&mut nothing).states(&mut []);
        training.weights(&[1.0, 0.0]).run().unwrap();
        Statistics::new(&none).x(&empty).states(&mut []).weights(&[1.0; 2]).run().unwrap();
        let backward = Backward::new(&none, Params::new(1e-5)).x(&empty).dy(&empty).states(&[]);
        backward.weights(&[1.0; 2]).run().unwrap();
    }
    check::<f32>();
    check::<f64>();
}

/// Batches with weights are one batch, wherever they are cut, and go on from one to the next.
#[test]
fn weighted_batches_are_one_batch() {
    let problem = Problem::<f32>::new(&[61, 5, 7, 7], 3);
    let (weights, each) = (weights(61), problem.x.len() / 61);
    let shape = |n| Shape::nchw(&[n, 5, 7, 7]).unwrap();
    let mut whole = StreamingStatistics::new(5);
    whole.update_weighted(&shape(61), &problem.x, &weights).unwrap();
    for size in [1, 3, 16, 60] {
        let mut batches = StreamingStatistics::new(5);
        for (x, weights) in problem.x.chunks(size * each).zip(weights.chunks(size)) {
            batches.update_weighted(&shape(weights.len()), x, weights).unwrap();
        }
        assert_eq!(batches, whole, "{size}");
    }
    // Of samples of another size, too: 0 and 5, 4, 5, 4.
    let mut sizes = StreamingStatistics::new(1);
    sizes.update_weighted(&Shape::nchw(&[1, 1, 1]).unwrap(), &[0.0f32], &[0.1]).unwrap();
    sizes.update_weighted(&Shape::nchw(&[1, 1, 4]).unwrap(), &[5.0f32, 4.0, 5.0, 4.0], &[0.1]).unwrap();
    assert!((sizes.states()[0].mean() - 3.6).abs() <= 1e-14, "{:?}", sizes.states());
    // Beside others without: as states merge.
    let mut mixed = StreamingStatistics::new(5);
    mixed.update(&shape(61), &problem.x).unwrap();
    mixed.update_weighted(&shape(61), &problem.x, &weights).unwrap();
    let count = whole.states()[0].count();
    assert_eq!(mixed.states()[0].count(), count + 61 * 49);
}

/// The layer does what the operations do, in each mode; and what belongs to the batch before stays with it.
#[test]
fn a_layer_takes_weights() {
    for layout in LAYOUTS {
        for mode in MODES {
            let problem = Problem::<f32>::new(&[9, 5, 3, 2], 1);
            let (shape, weights) = (problem.shape(layout), weights(9));
            let [x, dy] = [&problem.x, &problem.dy].map(|tensor| problem.lay_out(layout, tensor));
            let mut layer = fresh_layer_of(&problem);
            layer.set_weights(Some(weights.clone())).unwrap();
            assert_eq!(layer.weights(), Some(&weights[..]));
            let [mut y, mut dx, mut expected_y, mut expected_dx] = [(); 4].map(|()| vec![0.0; x.len()]);
            layer.forward(mode, &shape, &x, &mut y).unwrap();
            // Those of the next batch.
            layer.set_weights(None).unwrap();
            layer.backward(&shape, &x, &dy, &mut dx).unwrap();

            let (mut states, [mut dgamma, mut dbeta]) = ([Welford::new(); 5], [[0.0; 5]; 2]);
            let (running, params) = (([0.0; 5], [1.0; 5]), problem.params());
            let backward = Backward::new(&shape, params).x(&x).dy(&dy).weights(&weights);
            let backward = match mode {
                Mode::Frozen => {
                    let inference = batchnorm::Inference::new(&shape, params).x(&x).y(&mut expected_y);
                    inference.frozen(&running.0, &running.1).run().unwrap();
                    backward.frozen(&running.0, &running.1)
                }
                _ => {
                    let training = Training::new(&shape, params).x(&x).y(&mut expected_y).states(&mut states);
                    training.weights(&weights).run().unwrap();
                    assert_eq!(layer.states(), states);
                    backward.states(&states)
                }
            };
            let gradients = Gradients::new().dx(&mut expected_dx).dgamma(&mut dgamma).dbeta(&mut dbeta);
            backward.gradients(gradients).run().unwrap();
            assert_same("y", &y, &expected_y);
            assert_same("dx", &dx, &expected_dx);
            assert_same("dgamma", layer.dgamma(), &dgamma);
            assert_same("dbeta", layer.dbeta(), &dbeta);
            assert_eq!(layer.batches(), u64::from(mode == Mode::Training));
            let bare = layer.clone().forward(mode, &shape, &x, &mut y);
            assert!(bare.is_ok() && layer.forward_inference(&shape, &x, &mut y).is_ok());
        }
    }
}

/// Several processes, each with weights of its own samples: the bits of one that has all.
#[test]
fn processes_share_weights() {
    let problem = Problem::<f32>::new(&[10, 5, 3, 2], 2);
    let (weights, shape, each) = (weights(10), problem.shape(batchnorm::Layout::Nchw), 30);
    let mut whole = fresh_layer_of(&problem);
    whole.set_weights(Some(weights.clone())).unwrap();
    let [mut y, mut dx] = [(); 2].map(|()| vec![0.0; 300]);
    whole.forward_training(&shape, &problem.x, &mut y).unwrap();
    whole.backward(&shape, &problem.x, &problem.dy, &mut dx).unwrap();
    in_threads(&[0, 3, 3, 10], |first, end, mut others| {
        let mut layer = fresh_layer_of(&problem);
        layer.set_weights(Some(weights[first..end].to_vec())).unwrap();
        let (shape, range) = (Shape::nchw(&[end - first, 5, 3, 2]).unwrap(), first * each..end * each);
        let [x, dy] = [&problem.x, &problem.dy].map(|tensor| &tensor[range.clone()]);
        let [part_y, part_dx] = pass_among(&mut layer, &shape, (x, dy), (first, &mut others));
        assert_same("y", &part_y, &y[range.clone()]);
        assert_same("dx", &part_dx, &dx[range]);
        assert_eq!((layer.dgamma(), layer.dbeta()), (whole.dgamma(), whole.dbeta()));
        assert_eq!(layer, whole);
    });
    // Weights that are none, of one process, are an error of all.
    in_threads(&[0, 5, 10], |first, end, mut others| {
        let (shape, range) = (Shape::nchw(&[end - first, 5, 3, 2]).unwrap(), first * each..end * each);
        let (mut y, mut states) = (vec![7.0; range.len()], [Welford::new(); 5]);
        let training =
            Training::new(&shape, problem.params()).x(&problem.x[range]).y(&mut y).states(&mut states);
        let wrong = [1.0, 1.0, if first == 5 { -1.0 } else { 1.0 }, 1.0, 1.0];
        let error = training.weights(&wrong).run_among(first as u64, &mut others).unwrap_err();
        match first {
            5 => assert_eq!(error, Error::SampleWeight { sample: 2, value: -1.0 }),
            _ => assert!(matches!(error, Error::Gather { .. }), "{error}"),
        }
        assert!(y.iter().all(|y| *y == 7.0));
    });
}
