//! Parts of a batch: what they refuse, and the layer among others.

use batchnorm::{
    Activation, Backward, BatchNorm, Error, Gather, Gradients, Inference, Mode, Params, PartialGradients,
    PartialStatistics, RunningUpdate, RunningVariance, Shape, StreamingStatistics, Training, UpdateRule,
    Welford,
};

use crate::common::matrix::Guarded;
use crate::common::others::in_threads;

fn shape(n: usize) -> Shape {
    Shape::nchw(&[n, 3, 7, 7]).unwrap()
}

fn tensor(n: usize, seed: usize) -> Vec<f32> {
    (0..n * 147)
        .map(|i| ((i + 7919 * seed).wrapping_mul(2_654_435_761) >> 8 & 0xffff) as f32 / 65536.0)
        .collect()
}

fn partial(reason: &'static str) -> Error {
    Error::Partial { reason }
}

#[test]
fn parts_that_do_not_go_together_are_refused_and_change_nothing() {
    let x = tensor(32, 0);
    let mut statistics = PartialStatistics::of(&shape(32), 32, &x).unwrap();
    let before = statistics.clone();
    let overlap = partial("have samples in common");
    assert_eq!(statistics.add(&shape(1), 63, &x[..147]), Err(overlap.clone()));
    assert_eq!(statistics.add(&shape(32), 1, &x), Err(overlap.clone()));
    assert_eq!(statistics.join(&before), Err(overlap));
    let length = statistics.add(&shape(31), 0, &x).unwrap_err();
    assert!(length.to_string().starts_with("x has length 4704, must have length 4557"), "{length}");
    let other = Shape::nchw(&[32, 4, 7, 7]).unwrap();
    assert_eq!(
        statistics.add(&other, 0, &[0f32; 32 * 196]).unwrap_err().to_string(),
        "NCHW 32x4x7x7 has 4 channels, must have the 3 of the partial sums"
    );
    let reason = "are of another number of channels";
    assert_eq!(statistics.join(&PartialStatistics::new(4)), Err(partial(reason)));
    assert_eq!(partial(reason).to_string(), format!("partial sums {reason}"));
    let reason = "are of samples whose elements are too many to be counted";
    for first in [u64::MAX, u64::MAX - 31, u64::MAX / 2] {
        assert_eq!(statistics.add(&shape(32), first, &x), Err(partial(reason)), "{first}");
    }
    assert_eq!(statistics, before);
    // Of no samples there is nothing in common.
    statistics.add(&shape(0), 40, &[0f32; 0]).unwrap();
    statistics.join(&PartialStatistics::new(3)).unwrap();
    assert_eq!((statistics.clone(), statistics.samples()), (before, 32));
    assert_eq!(PartialStatistics::<f32>::new(3).states().unwrap(), [Welford::new(); 3]);
}

#[test]
fn sums_and_states_that_are_not_of_one_batch_are_refused() {
    let (x, dy, params) = (tensor(32, 0), tensor(32, 1), Params::<f32>::new(1e-5));
    let states = PartialStatistics::of(&shape(32), 0, &x).unwrap().states().unwrap();
    let backward = || Backward::new(&shape(32), params).x(&x).dy(&dy).states(&states);
    let sums = backward().part(0).unwrap();
    assert_eq!(
        backward().part(u64::MAX).unwrap_err(),
        partial("are of samples whose elements are too many to be counted")
    );
    let mut dx = Guarded::<f32>::new(x.len(), 0);

    let mut more = sums.clone();
    more.join(&backward().part(32).unwrap()).unwrap();
    let result = backward().sums(&more).gradients(Gradients::new().dx(dx.get_mut())).run();
    assert_eq!(result, Err(Error::Count { channel: 0, got: 1568, expected: 3136 }));
    let (other, empty) = (PartialGradients::<f32>::new(2), [Welford::new(); 3]);
    let result = backward().states(&empty).sums(&other).gradients(Gradients::new().dx(dx.get_mut())).run();
    assert!(matches!(result, Err(Error::Channels { got: 3, expected: 2, .. })));
    let mut alone = |bytes: &[u8], each: &mut dyn FnMut(&[u8])| {
        each(bytes);
        Ok(())
    };
    let result = backward().sums(&sums).gradients(Gradients::new().dx(dx.get_mut())).run_among(0, &mut alone);
    assert_eq!(result, Err(Error::Twice { argument: "sums" }));
    dx.assert_untouched("dx");

    let mut y = Guarded::<f32>::new(x.len(), 0);
    let mut mixed = states.clone();
    mixed[1] = Welford::new();
    let mut inference = |states: &[Welford]| {
        let inference = Inference::new(&shape(32), params).x(&x).y(y.get_mut()).states(states);
        let result = inference.run();
        y.assert_untouched("y");
        result
    };
    assert_eq!(inference(&mixed), Err(Error::Count { channel: 1, got: 0, expected: 1568 }));
    assert_eq!(inference(&empty), Err(Error::Count { channel: 0, got: 0, expected: 1568 }));
    assert!(matches!(inference(&states[1..]), Err(Error::Length { argument: "states", .. })));
}

#[test]
fn bytes_of_others_are_refused() {
    let statistics = PartialStatistics::<f32>::of(&shape(3), 0, &tensor(3, 0)).unwrap();
    let bytes = statistics.to_bytes().unwrap();
    assert_eq!(bytes.len(), 40 + 24 + 3 * 24);
    let reason = |bytes: &[u8]| match PartialStatistics::<f32>::from_bytes(bytes) {
        Err(Error::Bytes { reason }) => reason,
        other => panic!("{other:?}"),
    };
    assert_eq!(reason(&[]), "are too few");
    assert_eq!(reason(&[0; 100]), "do not begin with the tag of version 1");
    assert_eq!(reason(&bytes[..bytes.len() - 1]), "are too few or too many");
    let error = PartialStatistics::<f64>::from_bytes(&bytes).unwrap_err();
    assert_eq!(error.to_string(), "the bytes of partial sums are of other sums, or of another element");
    let mut damaged = bytes.clone();
    damaged[70] ^= 1;
    assert_eq!(reason(&damaged), "have another checksum than what they say");
    // With the checksum that they would have: an m2 below 0, samples that end before they begin, or are no node.
    for (at, number, expected) in [
        (72, (-1f64).to_bits(), "have numbers that no elements give"),
        (40, 3, "are of samples that are no parts of a batch"),
        (48, 17, "are of samples that are no parts of a batch"),
        (32, u64::MAX, "are of samples that are no parts of a batch"),
        (8, 7, "do not say what they are of"),
        (16, 4, "are too few or too many"),
    ] {
        let mut damaged = bytes.clone();
        damaged[at..at + 8].copy_from_slice(&number.to_le_bytes());
        let end = damaged.len() - 8;
        let hash = damaged[..end].iter().fold(0xcbf2_9ce4_8422_2325u64, |hash, byte| {
            (hash ^ u64::from(*byte)).wrapping_mul(0x100_0000_01b3)
        });
        damaged[end..].copy_from_slice(&hash.to_le_bytes());
        assert_eq!(reason(&damaged), expected, "{at}");
    }
}

/// The layer of each process has y, dx, dz, dgamma, dbeta and running statistics of the whole batch's.
#[test]
fn layers_among_others_are_one_layer() {
    const N: usize = 50;
    let (x, z, dy) = (tensor(N, 0), tensor(N, 1), tensor(N, 2));
    let layer = || BatchNorm::<f32>::new(3).with_activation(Activation::Relu);
    for mode in [Mode::Training, Mode::TrainingKeepRunning, Mode::Frozen] {
        let (mut whole, mut y) = (layer(), vec![0.0; x.len()]);
        let (mut dx, mut dz) = (y.clone(), y.clone());
        whole.forward_with_residual(mode, &shape(N), &x, &z, &mut y).unwrap();
        whole.backward_with_residual(&shape(N), &x, &dy, &mut dx, &mut dz).unwrap();
        let (mut before, mut next_y) = (layer(), vec![0.0; x.len()]);
        before.clone_from(&whole);
        before.step(0.1).unwrap();
        before.forward_inference(&shape(N), &x, &mut next_y).unwrap();
        in_threads(&[0, 16, 16, 48, N], |first, end, mut others| {
            let (range, shape) = (first * 147..end * 147, shape(end - first));
            let (x, z, dy) = (&x[range.clone()], &z[range.clone()], &dy[range.clone()]);
            let [mut part_y, mut part_dx, mut part_dz] = [(); 3].map(|()| vec![7.0; x.len()]);
            let (mut layer, at) = (layer(), first as u64);
            layer.forward_among(mode, &shape, (x, Some(z)), &mut part_y, (at, &mut others)).unwrap();
            let outputs = (&mut part_dx[..], Some(&mut part_dz[..]));
            layer.backward_among(&shape, (x, dy), outputs, (at, &mut others)).unwrap();
            assert_eq!(
                (&part_y, &part_dx),
                (&y[range.clone()].to_vec(), &dx[range.clone()].to_vec()),
                "{mode:?}"
            );
            assert_eq!(part_dz, dz[range.clone()], "{mode:?}");
            layer.step(0.1).unwrap();
            assert_eq!(layer.into_parts(), before.clone().into_parts(), "{mode:?}");
        });
    }
}

/// An error in one process is an error in all, and nothing is written or waited for.
#[test]
fn an_error_of_one_process_is_one_of_all() {
    let (x, params) = (tensor(48, 0), Params::<f32>::new(1e-5));
    let errors = in_threads(&[0, 16, 32, 48], |first, end, mut others| {
        let (x, n) = (&x[first * 147..end * 147], end - first);
        let number = others.number;
        let mut y = Guarded::<f32>::new(x.len(), 0);
        let mut states = Guarded::<Welford>::new(3, 0);
        let mut errors = Vec::new();
        // A wrong length; another number of channels; another element type; the same samples twice.
        for case in 0..4 {
            let short = if (case, number) == (0, 1) { &x[1..] } else { x };
            let shape = match (case, number) {
                (1, 2) => Shape::nchw(&[n, 49, 3]).unwrap(),
                _ => shape(n),
            };
            let first = if (case, number) == (3, 0) { 16 } else { first as u64 };
            let mut other_states = vec![Welford::new(); shape.channels()];
            let to = if shape.channels() == 3 { states.get_mut() } else { &mut other_states[..] };
            if (case, number) == (2, 0) {
                let (x, mut y) = (vec![1f64; x.len()], vec![1f64; x.len()]);
                let training = Training::new(&shape, Params::new(1e-5)).x(&x).y(&mut y).states(to);
                errors.push(training.run_among(first, &mut others).unwrap_err());
                continue;
            }
            let training = Training::new(&shape, params).x(short).y(y.get_mut()).states(to);
            errors.push(training.run_among(first, &mut others).unwrap_err());
        }
        let mut layer = BatchNorm::<f32>::new(if number == 0 { 4 } else { 3 });
        let at = (first as u64, &mut others as &mut dyn Gather);
        errors.push(layer.forward_among(Mode::Training, &shape(n), (x, None), y.get_mut(), at).unwrap_err());
        let mut dx = vec![0.0; x.len()];
        let at = (first as u64, &mut others as &mut dyn Gather);
        errors.push(layer.backward_among(&shape(n), (x, x), (&mut dx, None), at).unwrap_err());
        y.assert_untouched("y");
        states.assert_untouched("states");
        errors
    });
    let another = Error::Gather { reason: "another process has an error".to_owned() };
    for (number, errors) in errors.iter().enumerate() {
        let [short, channels, elements, twice, layer, backward] = &errors[..] else { unreachable!() };
        match number {
            1 => assert!(matches!(short, Error::Length { .. })),
            _ => assert_eq!(short, &another),
        }
        assert_eq!(channels, &partial("are of another number of channels"));
        let reason = "are of other sums, or of another element";
        assert_eq!(elements, &Error::Bytes { reason });
        assert_eq!(twice, &partial("have samples in common"));
        match number {
            0 => assert!(matches!(layer, Error::Channels { .. })),
            _ => assert_eq!(layer, &another),
        }
        assert_eq!(backward, &Error::NoForward);
    }
    assert_eq!(another.to_string(), "not all parts of the batch could be had: another process has an error");
}

/// The unbiased variance of one element in all of the batch: told before anything is written.
#[test]
fn one_element_in_all_processes_has_no_unbiased_variance() {
    let shape = |n| Shape::nchw(&[n, 1]).unwrap();
    in_threads(&[0, 1, 1], |first, end, mut others| {
        let mut layer = BatchNorm::<f32>::new(1);
        let update = layer.update();
        assert_eq!((update.rule, update.variance), (UpdateRule::Momentum(0.1), RunningVariance::Unbiased));
        let (x, before) = (vec![1.0; end - first], layer.clone().into_parts());
        let mut y = Guarded::<f32>::new(x.len(), 0);
        let at = (first as u64, &mut others as &mut dyn Gather);
        let result = layer.forward_among(Mode::Training, &shape(x.len()), (&x, None), y.get_mut(), at);
        assert_eq!(result, Err(Error::SingleElement));
        y.assert_untouched("y");
        assert_eq!(layer.into_parts(), before);
    });
}

/// A data set's statistics do not depend on its batches, as long as these are of multiples of the granularity.
#[test]
fn streaming_statistics_are_those_of_one_call() {
    let x = tensor(100, 3);
    let whole = PartialStatistics::of(&shape(100), 0, &x).unwrap().states().unwrap();
    for batch in [16, 32, 48, 100] {
        let mut streaming = StreamingStatistics::new(3);
        for x in x.chunks(batch * 147) {
            streaming.update(&shape(x.len() / 147), x).unwrap();
        }
        assert_eq!(streaming.states(), whole, "batches of {batch}");
        // What comes with other positions is another part.
        let before = streaming.clone();
        streaming.update(&Shape::nchw(&[147, 3]).unwrap(), &x[..441]).unwrap();
        assert_eq!(streaming.states()[0].count(), 4900 + 147);
        let mut merged = before;
        let other = PartialStatistics::of(&Shape::nchw(&[147, 3]).unwrap(), 0, &x[..441]).unwrap();
        merged.merge(&other.states().unwrap().into()).unwrap();
        assert_eq!(merged.states(), streaming.states());
    }
}

/// Images of other sizes in other processes: each element counts once.
#[test]
fn samples_of_other_sizes_count_by_their_elements() {
    let (small, large) = (tensor(8, 0), tensor(32, 1));
    let large_shape = Shape::nchw(&[8, 3, 14, 14]).unwrap();
    let mut statistics = PartialStatistics::of(&large_shape, 16, &large).unwrap();
    statistics.add(&shape(8), 8, &small).unwrap();
    let mut other_order = PartialStatistics::of(&shape(8), 8, &small).unwrap();
    let sent = PartialStatistics::of(&large_shape, 16, &large).unwrap().to_bytes().unwrap();
    other_order.join(&PartialStatistics::from_bytes(&sent).unwrap()).unwrap();
    assert_eq!(statistics, other_order);
    assert_eq!(statistics.add(&large_shape, 15, &large), Err(partial("have samples in common")));
    for (channel, state) in statistics.states().unwrap().iter().enumerate() {
        let of = |tensor: &[f32], s: usize| -> Welford {
            tensor.chunks(s).skip(channel).step_by(3).flatten().map(|x| f64::from(*x)).collect()
        };
        let mut expected = of(&small, 49);
        expected.merge(&of(&large, 196));
        assert_eq!((state.count(), expected.count()), (8 * 49 + 8 * 196, 8 * 49 + 8 * 196));
        assert!(
            (state.mean() - expected.mean()).abs() < 1e-15
                && (state.variance() / expected.variance() - 1.0).abs() < 1e-14
        );
    }
}

/// Every second sample, and images of two sizes in turn: a tree with gaps.
#[test]
fn samples_may_be_missing() {
    let x = vec![1.5f32; 1024];
    let mut statistics = PartialStatistics::<f32>::new(1);
    for i in 0..400u64 {
        let shape = Shape::nchw(&[1, 1, if i % 2 == 0 { 1024 } else { 576 }]).unwrap();
        statistics.add(&shape, 2 * i + 1, &x[..shape.len()]).unwrap();
    }
    let state = statistics.states().unwrap()[0];
    assert_eq!((state.count(), state.mean(), state.variance()), (200 * 1600, 1.5, 0.0));
}

/// A rule that is none, states of another batch, a process that trained alone: what one finds out, all do.
#[test]
fn what_only_one_process_could_know_is_told() {
    let (x, dy) = (tensor(32, 0), tensor(32, 1));
    in_threads(&[0, 16, 32], |first, end, mut others| {
        let (range, n, number) = (first * 147..end * 147, end - first, others.number);
        let (x, dy) = (&x[range.clone()], &dy[range]);
        let rule = UpdateRule::Momentum(if number == 1 { 2.0 } else { 0.1 });
        let plain = BatchNorm::<f32>::new(3);
        let update = RunningUpdate { rule, ..plain.update() };
        let mut layer = plain.with_update(update);
        let before = layer.clone().into_parts();
        let mut y = Guarded::<f32>::new(x.len(), 0);
        let at = (first as u64, &mut others as &mut dyn Gather);
        let result = layer.forward_among(Mode::Training, &shape(n), (x, None), y.get_mut(), at);
        match number {
            1 => assert!(matches!(result, Err(Error::Weight { .. }))),
            _ => assert!(matches!(result, Err(Error::Gather { .. }))),
        }
        y.assert_untouched("y");
        assert_eq!(layer.into_parts(), before);

        let mut layer = BatchNorm::<f32>::new(3);
        let mut y = vec![0.0; x.len()];
        let at = (first as u64, &mut others as &mut dyn Gather);
        layer.forward_among(Mode::Training, &shape(n), (x, None), &mut y, at).unwrap();
        if number == 1 {
            layer.forward_training(&shape(n), x, &mut y).unwrap();
        }
        let mut dx = Guarded::<f32>::new(x.len(), 0);
        let at = (first as u64, &mut others as &mut dyn Gather);
        let result = layer.backward_among(&shape(n), (x, dy), (dx.get_mut(), None), at);
        assert_eq!(result, Err(partial("are by states of other numbers of elements")));
        dx.assert_untouched("dx");
    });
}

/// Of frozen statistics dx takes no sums, and is written with sums of no samples, too.
#[test]
fn frozen_gradients_take_sums_of_nothing() {
    let shape = Shape::nchw(&[2, 1]).unwrap();
    let (sums, mut dx, mut dbeta) = (PartialGradients::new(1), [99.0f32; 2], [99.0f32]);
    let call = Backward::new(&shape, Params::new(0.0)).x(&[1.0, 3.0]).dy(&[1.0, 3.0]).frozen(&[0.0], &[1.0]);
    call.sums(&sums).gradients(Gradients::new().dx(&mut dx).dbeta(&mut dbeta)).run().unwrap();
    assert_eq!((dx, dbeta), ([1.0, 3.0], [0.0]));
}

/// Batches without elements, and statistics that have seen none, leave the batches before and after one.
#[test]
fn nothing_changes_no_streaming_statistics() {
    let shape = |n| Shape::nchw(&[n, 1]).unwrap();
    let batches: [(&[f32], &[f64]); 2] = [(&[3.0, 9.0], &[0.25, 0.125]), (&[20.0, 5.0], &[4.0, 1.0])];
    let [mut plain, mut disturbed] = [StreamingStatistics::new(1), StreamingStatistics::new(1)];
    for (x, weights) in batches {
        plain.update_weighted(&shape(2), x, weights).unwrap();
        disturbed.update_weighted(&shape(2), x, weights).unwrap();
        disturbed.update(&shape(0), &[0.0f32; 0]).unwrap();
        disturbed.update_weighted(&shape(0), &[0.0f64; 0], &[]).unwrap();
        disturbed.merge(&StreamingStatistics::new(1)).unwrap();
    }
    assert_eq!(plain, disturbed);
    assert!(disturbed.update(&shape(0), &[1.0f32]).is_err());
}

/// Numbers that no sums over f32 come to, with the right checksum.
#[test]
fn sums_beyond_those_of_f32_are_refused() {
    let part = PartialStatistics::of(&Shape::nchw(&[2, 1]).unwrap(), 0, &[1.0f32, 3.0]).unwrap();
    let bytes = part.to_bytes().unwrap();
    let number = |value: f64| value.to_le_bytes();
    let at = |value: f64| bytes.windows(8).position(|eight| eight == number(value)).unwrap();
    // The mean, and what its rounding left.
    for (place, value) in [(at(2.0), 1e39), (at(2.0), -1e300), (at(2.0) + 8, 1e39)] {
        let mut forged = bytes.clone();
        forged[place..place + 8].copy_from_slice(&number(value));
        let (all, sum) = forged.split_at_mut(bytes.len() - 8);
        let hash = all.iter().fold(0xcbf2_9ce4_8422_2325u64, |hash, byte| {
            (hash ^ u64::from(*byte)).wrapping_mul(0x100_0000_01b3)
        });
        sum.copy_from_slice(&hash.to_le_bytes());
        let refused = PartialStatistics::<f32>::from_bytes(&forged);
        assert_eq!(refused, Err(Error::Bytes { reason: "have numbers that no elements give" }), "{value}");
    }
}

/// Whether parts come one by one or many at once, in between each other and of other sizes.
#[test]
fn many_scattered_parts_join_as_one_by_one() {
    let part = |samples: &mut dyn Iterator<Item = usize>| {
        let mut part = PartialStatistics::<f32>::new(1);
        for sample in samples {
            let s = 1 + sample % 3;
            let x: Vec<f32> = (0..s).map(|i| (sample * 7 + i) as f32).collect();
            part.add(&Shape::nchw(&[1, 1, s]).unwrap(), sample as u64, &x).unwrap();
        }
        part
    };
    // Some with neighbours, some without; the last half of them in reverse.
    let all: Vec<usize> = (0..300).filter(|sample| sample % 5 != 3).collect();
    let one_by_one = part(&mut all.iter().copied().take(100).chain(all.iter().copied().skip(100).rev()));
    let halves = [0, 1].map(|half| part(&mut all.iter().copied().skip(half).step_by(2)));
    let mut joined = halves[0].clone();
    joined.join(&halves[1]).unwrap();
    assert_eq!(joined, one_by_one);
    let overlap = partial("have samples in common");
    assert_eq!(joined.join(&halves[1]), Err(overlap));
    assert_eq!(joined, one_by_one);
    let bytes = joined.to_bytes().unwrap();
    assert_eq!(PartialStatistics::from_bytes(&bytes), Ok(one_by_one));
}
