//! Every operation in both layouts, for both elements, on every level and number of threads, at every alignment: the
//! same bits, no write beside an output, and the reference's values within the contract's bounds.
//!
//! `cargo test --test operations -- --nocapture one_hash` prints the hash of all results of a fixed set of problems.

use batchnorm::{Gradients, Layout, Level, Params, Shape, backward, forward_training};

use crate::common::fused::{Share, forms, run_fused};
use crate::common::matrix::{
    Bits, Configuration, FNV_START, Guarded, LAYOUTS, Placement, Problem, Results, Subset, THREADS,
    assert_same, check, check_against_reference, configurations, few_configurations, levels, params, run,
};
use crate::exhaustive;

/// Checks a problem of each element, with gamma and beta and without, in all configurations.
#[track_caller]
fn check_all(dims: &[usize]) {
    check_in(dims, &configurations());
}

#[track_caller]
fn check_in(dims: &[usize], configurations: &[Configuration]) {
    let single = || Subset::single().collect();
    let seed = dims.iter().sum::<usize>() as u64;
    check(&Problem::<f32>::new(dims, seed), configurations, single);
    check(&Problem::<f64>::new(dims, seed).plain(), configurations, single);
}

/// Without most of what `check_all` looks at.
#[track_caller]
fn check_briefly<T: Bits>(dims: &[usize], configurations: &[Configuration]) {
    check(&Problem::<T>::new(dims, 1), configurations, Vec::new);
}

/// The problems of shapes/odd.txt.
fn odd() -> Vec<Vec<usize>> {
    let lines = include_str!("../shapes/odd.txt").lines().filter(|line| !line.starts_with('#'));
    lines.map(|line| line.split_whitespace().map(|number| number.parse().unwrap()).collect()).collect()
}

#[test]
fn the_file_of_shapes_is_read_as_a_whole() {
    let odd = odd();
    assert_eq!((odd.len(), &odd[3][..], &odd[23][..]), (24, &[2, 7, 3, 4, 4][..], &[1_000_003, 1][..]));
}

#[test]
fn odd_shapes() {
    for dims in odd() {
        match dims.iter().product::<usize>() {
            ..60_000 => check_all(&dims),
            60_000..800_000 => check_in(&dims, &few_configurations()),
            // In `large_shapes`.
            _ => (),
        }
    }
}

/// Those of millions of elements: past the size from which outputs are written past the caches, with thousands of
/// chunks' states to merge, with more chunks than blocks.
#[test]
fn large_shapes() {
    let few = few_configurations();
    let large = odd().into_iter().filter(|dims| dims.iter().product::<usize>() >= 800_000);
    for dims in &large.step_by(if exhaustive() { 1 } else { 4 }).collect::<Vec<_>>() {
        check_briefly::<f32>(dims, &few[few.len() - 1..]);
    }
    let less = usize::from(!exhaustive());
    let few = &few[1 + less..];
    check_briefly::<f32>(&[1_000_003, 1], few);
    check_briefly::<f64>(&[2, 16, 40, 40, 40], few);
    check_briefly::<f32>(&[7, 150_001], few);
    // More than 256 blocks.
    check_briefly::<f32>(&[2, 2, 600_011], few);
    check_briefly::<f64>(&[1, 1, 1_100_003], few);
    let few = &few[1..];
    check_briefly::<f32>(&[300, 1, 4097], few);
    // Rows that are mapped in tiles: at the output's lines, past the caches, and not at them.
    check_briefly::<f64>(&[2100, 1040], few);
    check_briefly::<f64>(&[2100, 1043], few);
}

#[test]
fn lengths_around_the_lanes() {
    for s in 1..=67 {
        check_all(&[1, 1, s]);
        check_all(&[3, 5, s]);
        check_in(&[2, 18, s], &few_configurations());
    }
}

#[test]
fn lengths_around_blocks() {
    for s in [511, 512, 513, 4095, 4096, 4097, 8191, 8192, 8193, 12_300] {
        check_in(&[1, 1, s], &configurations());
        check_in(&[2, 3, s], &few_configurations());
    }
    // Planes per block: 4096 / 49 = 83, 4096 / 1000 = 4, 4096 / 2048 = 2, 4096 / 2049 = 1; and of short blocks.
    for dims in [
        &[82, 3, 49][..],
        &[83, 3, 49],
        &[84, 3, 49],
        &[167, 2, 7, 7],
        &[9, 3, 1000],
        &[4, 2, 2048],
        &[3, 2, 2049],
        &[4097, 3],
        &[4096, 16],
        &[27, 600, 20],
        &[40, 130, 65],
    ] {
        check_in(dims, &few_configurations());
    }
}

#[test]
fn channels_around_groups_and_spans() {
    for c in [1, 2, 3, 7, 8, 9, 15, 16, 17, 31, 32, 33, 47, 48, 49, 63, 64, 65, 96, 127, 128, 129, 130] {
        for (n, spatial) in [(1, &[3][..]), (5, &[]), (2, &[4, 5]), (3, &[67]), (1, &[17])] {
            check_in(&[&[n, c], spatial].concat(), &few_configurations());
        }
        check_all(&[4, c, 3]);
    }
    for c in [511, 512, 513, 575, 576, 1025] {
        check_in(&[3, c, 2], &few_configurations());
        check_in(&[2, c, 17], &few_configurations());
        check_in(&[70, c], &few_configurations());
    }
}

/// Planes of at most 64 positions have an order of sums of their own if there is more than one sample.
#[test]
fn small_planes() {
    for n in [1, 2, 3, 17, 100] {
        for s in [1, 2, 4, 15, 16, 17, 48, 49, 50, 63, 64, 65] {
            // Channels times positions around 64, which is the least for that.
            for c in [1, 63 / s, 64_usize.div_ceil(s), 66] {
                if c > 0 {
                    check_in(&[n, c, s], &few_configurations());
                }
            }
        }
    }
}

/// Large enough for the pool, whose tasks depend on its threads.
#[test]
fn problems_that_are_spread_over_threads() {
    for dims in [
        &[8, 64, 14, 14][..],
        &[2, 3, 30_000],
        &[40, 70, 7, 7],
        &[1, 1, 150_000],
        &[5000, 33],
        &[40_000, 3],
        &[1, 100, 2000],
        &[3, 5, 9000],
        &[2, 600, 11, 11],
    ] {
        check_briefly::<f32>(dims, &configurations());
        check_briefly::<f64>(dims, &few_configurations());
    }
}

/// Axes beyond the channels are one axis to the arithmetic, whatever their number.
#[test]
fn ranks() {
    let expected = check(&Problem::<f32>::new(&[3, 5, 24], 1), &configurations(), Vec::new);
    for dims in [&[3, 5, 4, 6][..], &[3, 5, 2, 3, 4], &[3, 5, 24, 1, 1], &[3, 5, 1, 24], &[3, 5, 2, 2, 2, 3]]
    {
        let results = check(&Problem::<f32>::new(dims, 1), &configurations(), Vec::new);
        results.assert_same(&expected, &format!("{dims:?}"));
    }
    // Rank 2 is one position.
    let expected = check(&Problem::<f64>::new(&[30, 5, 1], 2), &configurations(), Vec::new);
    for dims in [&[30, 5][..], &[30, 5, 1, 1], &[30, 5, 1, 1, 1]] {
        check(&Problem::<f64>::new(dims, 2), &configurations(), Vec::new).assert_same(&expected, "rank 2");
    }
}

#[test]
fn every_subset_of_gradients() {
    let every = || Subset::every().collect();
    for dims in [&[3, 5, 19][..], &[2, 70, 7, 7], &[1, 1, 5000], &[9, 17]] {
        check(&Problem::<f32>::new(dims, 3), &few_configurations(), every);
        check(&Problem::<f64>::new(dims, 3).plain(), &few_configurations(), every);
    }
}

fn alignments<T: Bits>(dims: &[usize]) {
    let problem = Problem::<T>::new(dims, 4);
    let expected = run(&problem, Layout::Nchw, Placement::default(), std::iter::empty());
    check_against_reference(&problem, &expected);
    for level in levels() {
        for layout in LAYOUTS {
            for (inputs, outputs) in (0..=16).flat_map(|i| (0..=16).map(move |o| (i, o))) {
                let at = Placement { inputs, outputs };
                let configuration = Configuration { level, threads: THREADS[0] };
                let results = configuration.run(|| run(&problem, layout, at, std::iter::empty()));
                results.assert_same(&expected, &format!("{dims:?} {layout:?} {level} {at:?}"));
            }
        }
    }
}

#[test]
fn every_alignment() {
    for dims in [&[2, 5, 37][..], &[2, 18, 7, 7], &[3, 1, 67], &[1, 16, 32]] {
        alignments::<f32>(dims);
        alignments::<f64>(dims);
    }
}

/// Outputs of this size go past the caches, by stores that want aligned lines: the elements before the first line
/// are written one by one.
#[test]
fn alignments_of_outputs_past_the_caches() {
    // 24 bytes for each element of backward, 16 of forward.
    for dims in [[1, 3, 1_100_003], [6, 16, 33_000]] {
        let problem = Problem::<f64>::new(&dims, 5);
        let mut expected: Option<(Vec<f64>, Vec<f64>)> = None;
        for layout in LAYOUTS {
            let shape = problem.shape(layout);
            let [x, dy] = [&problem.x, &problem.dy].map(|tensor| problem.lay_out(layout, tensor));
            for (level, offset) in levels().into_iter().flat_map(|level| [0, 1, 7].map(|o| (level, o))) {
                let configuration = Configuration { level, threads: THREADS[THREADS.len() - 1] };
                let mut y = Guarded::new(shape.len(), offset);
                let mut dx = Guarded::new(shape.len(), offset);
                let mut states = Guarded::new(shape.channels(), 0);
                configuration.run(|| {
                    let params = problem.params();
                    forward_training(&shape, &x, &params, y.get_mut(), states.get_mut()).unwrap();
                    let gradients = Gradients::new().dx(dx.get_mut());
                    backward(&shape, &x, &dy, states.get(), &params, gradients).unwrap();
                });
                y.assert_margins("y");
                dx.assert_margins("dx");
                let [y, dx] = [y, dx].map(|tensor| problem.lay_back(layout, tensor.get()));
                match &expected {
                    None => expected = Some((y, dx)),
                    Some((expected_y, expected_dx)) => {
                        let what = format!("{dims:?} {layout:?} {level} {offset}");
                        assert_same(format_args!("{what}: y"), &y, expected_y);
                        assert_same(format_args!("{what}: dx"), &dx, expected_dx);
                    }
                }
            }
        }
    }
}

/// The same calls again, on threads whose scratch memory other problems have been through.
#[test]
fn every_run_gives_the_same_bits() {
    let problems: Vec<Problem<f32>> =
        [&[3, 70, 7, 7][..], &[2, 3, 999], &[64, 9], &[2, 17, 5]].map(|dims| Problem::new(dims, 6)).into();
    let at = Placement::default();
    let run = |problem, layout| run(problem, layout, at, std::iter::empty());
    for level in levels() {
        let configuration = Configuration { level, threads: THREADS[THREADS.len() - 1] };
        let first: Vec<Results<f32>> =
            configuration.run(|| problems.iter().map(|problem| run(problem, Layout::Nchw)).collect());
        for round in 0..10 {
            for (problem, first) in problems.iter().zip(&first).rev() {
                for layout in LAYOUTS {
                    let again = configuration.run(|| run(problem, layout));
                    again.assert_same(first, &format!("round {round}"));
                }
            }
        }
    }
}

/// A NaN or an infinity in a channel of x: there y is the canonical NaN, elsewhere nothing changes.
fn poisoned_x<T: Bits>(dims: &[usize]) {
    let clean = Problem::<T>::new(dims, 7);
    let (n, c) = (dims[0], dims[1]);
    let s: usize = dims[2..].iter().product();
    let negative = T::from_f64(f64::NEG_INFINITY);
    let poisons =
        [&[T::NAN][..], &[T::OTHER_NAN], &[T::INFINITY], &[negative], &[T::INFINITY, negative], &[T::NAN; 3]];
    for configuration in few_configurations() {
        let run = |problem: &Problem<T>, layout| {
            configuration.run(|| run(problem, layout, Placement::default(), Subset::single()))
        };
        let expected = run(&clean, Layout::Nchw);
        for (i, poison) in poisons.into_iter().enumerate() {
            let channel = [0, c - 1, c / 2][i % 3];
            let mut problem = clean.clone();
            for (j, poison) in poison.iter().enumerate() {
                // At the first element, at the last, and between.
                let at = if j == 0 { [0, n * s - 1, n * s / 2][i / 2] } else { (j * 7 + i) % (n * s) };
                problem.x[(at / s * c + channel) * s + at % s] = *poison;
            }
            for layout in LAYOUTS {
                let results = run(&problem, layout);
                for other in 0..c {
                    let what =
                        format!("{dims:?} {layout:?} {configuration:?} {poison:?} in {channel}: {other}");
                    let got = results.channel(&problem, other);
                    if other != channel {
                        got.assert_same(&expected.channel(&clean, other), &what);
                        continue;
                    }
                    assert_same(format_args!("{what}: y"), &got.y, &vec![T::NAN; n * s]);
                    let state = got.states[0];
                    assert_eq!(state.count(), (n * s) as u64, "{what}");
                    let statistics = [state.mean(), state.variance(), state.variance_unbiased()];
                    assert!(
                        statistics.iter().all(|v| v.to_bits() == f64::NAN.to_bits()),
                        "{what}: {statistics:?}"
                    );
                    assert_same(format_args!("{what}: dx"), &got.gradients[0], &vec![T::NAN; n * s]);
                    // dbeta is the sum of dy alone.
                    assert_same(&what, &got.gradients[1], &[T::NAN]);
                    assert_same(&what, &got.gradients[2], &expected.gradients[2][channel..=channel]);
                    assert_same(&what, &got.gradients[3], &[T::NAN]);
                    assert_same(&what, &got.gradients[4], &[T::NAN]);
                    // dx of frozen statistics has no part of x.
                    let clean = expected.channel(&clean, channel);
                    assert_same(&what, &got.frozen[0], &clean.frozen[0]);
                    // Inference is elementwise: NaN to NaN, infinity to infinity, all else as it was.
                    let elements = problem.x.chunks(s).skip(channel).step_by(c).flatten();
                    for ((x, y), clean) in elements.zip(&got.inferred).zip(&clean.inferred) {
                        let gamma = clean_gamma(&problem, channel);
                        let expected = match x.to_f64() {
                            x if x.is_nan() => T::NAN,
                            x if x.is_infinite() => T::from_f64(x * gamma),
                            _ => *clean,
                        };
                        assert_same(format_args!("{what}: inference of {x:?}"), &[*y], &[expected]);
                    }
                }
            }
        }
    }
}

fn clean_gamma<T: Bits>(problem: &Problem<T>, channel: usize) -> f64 {
    problem.gamma.as_ref().map_or(1.0, |gamma| gamma[channel].to_f64())
}

/// The same of dy: all that dy has a part in is NaN in its channel.
fn poisoned_dy<T: Bits>(dims: &[usize]) {
    let clean = Problem::<T>::new(dims, 8);
    let (n, c) = (dims[0], dims[1]);
    let s: usize = dims[2..].iter().product();
    for configuration in few_configurations() {
        for (layout, channel) in LAYOUTS.into_iter().flat_map(|layout| [0, c - 1].map(|c| (layout, c))) {
            let run = |problem: &Problem<T>| {
                configuration.run(|| run(problem, layout, Placement::default(), Subset::single()))
            };
            let expected = run(&clean);
            let mut problem = clean.clone();
            problem.dy[channel * s] = T::OTHER_NAN;
            let results = run(&problem);
            for other in 0..c {
                let what = format!("{dims:?} {layout:?} {configuration:?}, dy NaN in {channel}: {other}");
                let (got, clean) = (results.channel(&problem, other), expected.channel(&clean, other));
                if other != channel {
                    got.assert_same(&clean, &what);
                    continue;
                }
                assert_same(&what, &got.y, &clean.y);
                assert_same(&what, &got.gradients[0], &vec![T::NAN; n * s]);
                assert_same(&what, &got.frozen[0][..1], &[T::NAN]);
                assert_same(&what, &got.frozen[0][1..], &clean.frozen[0][1..]);
                for gradients in [&got.gradients, &got.frozen] {
                    gradients[1..].iter().for_each(|gradient| assert_same(&what, gradient, &[T::NAN]));
                }
            }
        }
    }
}

#[test]
fn a_poisoned_channel_poisons_no_other() {
    for dims in [&[3, 5, 19][..], &[2, 66, 3], &[4, 3, 7, 7], &[37, 9], &[2, 2, 4100], &[3, 1, 20]] {
        poisoned_x::<f32>(dims);
        poisoned_x::<f64>(dims);
        poisoned_dy::<f32>(dims);
        poisoned_dy::<f64>(dims);
    }
}

/// A channel whose data, gradients or gamma are near the ends of f32's range takes more coefficients, and so do all that are
/// mapped with it: theirs are 1, and change nothing.
#[test]
fn an_extraordinary_channel_changes_no_other() {
    fn extraordinary<T: Bits>(dims: &[usize]) {
        let clean = Problem::<T>::new(dims, 10);
        let (c, channel) = (dims[1], dims[1] / 2);
        let s: usize = dims[2..].iter().product();
        let scaled = |values: &mut [T], exponent: i32| {
            values.iter_mut().for_each(|x| *x = T::from_f64(x.to_f64() * 2f64.powi(exponent)));
        };
        for configuration in few_configurations() {
            for layout in LAYOUTS {
                let run = |problem: &Problem<T>| {
                    configuration.run(|| run(problem, layout, Placement::default(), Subset::single()))
                };
                let expected = run(&clean);
                for (i, exponent) in (0..4).flat_map(|i| [-103, -60, 30, 60].map(|exponent| (i, exponent))) {
                    let mut problem = clean.clone();
                    // The last with data of hundreds of thousands, per unit of which tiny gradients are tinier still.
                    if i == 3 {
                        problem.x.chunks_mut(s).skip(channel).step_by(c).for_each(|x| scaled(x, 19));
                    }
                    match i {
                        0 => {
                            problem.x.chunks_mut(s).skip(channel).step_by(c).for_each(|x| scaled(x, exponent))
                        }
                        1 | 3 => problem
                            .dy
                            .chunks_mut(s)
                            .skip(channel)
                            .step_by(c)
                            .for_each(|dy| scaled(dy, exponent)),
                        _ => scaled(&mut problem.gamma.as_mut().unwrap()[channel..=channel], exponent),
                    }
                    let results = run(&problem);
                    check_against_reference(&problem, &results);
                    for other in (0..c).filter(|other| *other != channel) {
                        let what = format!("{dims:?} {layout:?} {configuration:?} {i} 2^{exponent}: {other}");
                        results.channel(&problem, other).assert_same(&expected.channel(&clean, other), &what);
                    }
                }
            }
        }
    }
    for dims in [&[3, 5, 19][..], &[4, 3, 7, 7], &[2, 70, 3], &[37, 9], &[2, 3, 4100]] {
        extraordinary::<f32>(dims);
        extraordinary::<f64>(dims);
    }
}

/// Every channel of equal elements gives beta, and is no more than that to other channels.
#[test]
fn constant_channels_give_beta_to_the_bit() {
    fn constants<T: Bits>(dims: &[usize]) {
        let (n, c) = (dims[0], dims[1]);
        let s: usize = dims[2..].iter().product();
        let values = [0.1, 1e4 / 3.0, -0.0, 1e30, -7.0, 1e-39, 0.0];
        let mut problem = Problem::<T>::new(dims, 9);
        for (i, x) in problem.x.iter_mut().enumerate() {
            *x = T::from_f64(values[i / s % c % values.len()]);
        }
        for eps in [0.0, 1e-5] {
            problem.eps = eps;
            for configuration in few_configurations() {
                for layout in LAYOUTS {
                    let at = Placement::default();
                    let results = configuration.run(|| run(&problem, layout, at, std::iter::empty()));
                    for channel in 0..c {
                        let got = results.channel(&problem, channel);
                        let beta = problem.beta.as_ref().unwrap()[channel];
                        assert_same(format_args!("{dims:?} {layout:?}"), &got.y, &vec![beta; n * s]);
                        assert_eq!(got.states[0].variance().to_bits(), 0);
                        let finite = got.gradients.iter().flatten().all(|g| g.to_f64().is_finite());
                        assert!(finite, "{dims:?} {layout:?} {eps} {:?}", got.gradients);
                    }
                }
            }
        }
    }
    for dims in [&[3, 9, 19][..], &[1, 7, 1], &[2, 70, 7, 7], &[3, 3, 4100], &[33, 16]] {
        constants::<f32>(dims);
        constants::<f64>(dims);
    }
}

/// All results of a fixed set of problems, as one number for each level, number of threads and layout: the same on every
/// machine. A change of it is a change of result bits, and belongs into CHANGELOG.md.
#[test]
fn one_hash() {
    assert_one_hash(|threads| threads == 1);
}

#[test]
fn one_hash_on_several_threads() {
    assert_one_hash(|threads| threads > 1);
}

fn assert_one_hash(with: impl Fn(usize) -> bool) {
    // Of f32, and of f64: of the bare operations, then of the fused ones.
    const HASHES: [[u64; 2]; 2] =
        [[0x9c5e_ab7f_a864_4995, 0x5761_c27c_c9d0_73b4], [0x1c74_4c6d_4def_a3ff, 0xb2c0_bab1_b06c_6219]];
    const DIMS: [&[usize]; 10] = [
        &[1, 1, 1, 1],
        &[2, 7, 3, 4, 4],
        &[32, 27, 7],
        &[9, 128, 1],
        &[3, 65, 7, 7],
        &[2, 3, 9000],
        &[8, 64, 14, 14],
        &[4097, 17],
        &[1, 2, 100_003],
        &[12, 530, 10, 10],
    ];
    fn problems<T: Bits>() -> impl Iterator<Item = Problem<T>> {
        DIMS.into_iter().enumerate().map(|(seed, dims)| {
            let problem = Problem::<T>::new(dims, seed as u64);
            if seed % 3 == 2 { problem.plain() } else { problem }
        })
    }
    fn bare<T: Bits>(layout: Layout) -> u64 {
        let run = |problem| run(&problem, layout, Placement::default(), std::iter::empty());
        problems::<T>().fold(FNV_START, |hash, problem| run(problem).hash(hash))
    }
    /// Every form of the smaller problems, of each larger one another.
    fn fused<T: Bits>(layout: Layout) -> u64 {
        let (mut hash, all) = (FNV_START, forms());
        for (i, problem) in problems::<T>().enumerate() {
            let step = if problem.x.len() < 3000 { 1 } else { all.len() };
            for form in all.iter().skip(i % step).step_by(step) {
                let share = Share { from: 0, of: 13 };
                hash = run_fused(&problem, layout, Placement::default(), *form, share).hash(hash);
            }
        }
        hash
    }
    let mut hashes = Vec::new();
    for configuration in configurations().into_iter().filter(|configuration| with(configuration.threads)) {
        for layout in LAYOUTS {
            let all = configuration.run(|| {
                [[bare::<f32>(layout), bare::<f64>(layout)], [fused::<f32>(layout), fused::<f64>(layout)]]
            });
            let Configuration { level, threads } = configuration;
            for ([single, double], what) in all.iter().zip(["", ", fused"]) {
                println!(
                    "f32 {single:016x}  f64 {double:016x}  {level:<8} {threads} thread(s) {layout:?}{what}"
                );
            }
            hashes.push(all);
        }
    }
    assert!(hashes.iter().all(|hashes| *hashes == HASHES), "not the same bits");
}

/// The reference takes the layout it is given.
#[test]
fn the_reference_gives_the_same_in_both_layouts() {
    let problem = Problem::<f32>::new(&[3, 5, 7], 1);
    let [nchw, nhwc] = LAYOUTS.map(|layout| {
        let mut y = vec![0.0; problem.x.len()];
        let x = problem.lay_out(layout, &problem.x);
        let statistics =
            batchnorm::reference::forward_training(&problem.shape(layout), &x, &problem.params(), &mut y);
        (statistics, problem.lay_back(layout, &y))
    });
    assert_eq!(nchw, nhwc);
}

/// From outside of any pool, by several threads at once, on the level that the program is on anyway; then again while the
/// pool's threads are all busy, and no one helps.
#[test]
fn outside_of_pools() {
    let problems: Vec<Problem<f32>> =
        [&[8, 64, 30, 30][..], &[3, 5, 19], &[2, 3, 100_000]].map(|dims| Problem::new(dims, 10)).into();
    let alone = &few_configurations()[..1];
    let expected: Vec<Results<f32>> =
        problems.iter().map(|problem| check(problem, alone, Vec::new)).collect();
    let calls = |pool| {
        std::thread::scope(|scope| {
            for _ in 0..3 {
                scope.spawn(|| {
                    for (problem, expected) in problems.iter().zip(&expected) {
                        for layout in LAYOUTS {
                            let results = run(problem, layout, Placement::default(), std::iter::empty());
                            let shape = problem.shape(layout);
                            results
                                .assert_same(expected, &format!("{shape:?} on {}, {pool}", Level::active()));
                        }
                    }
                });
            }
        });
    };
    calls("with a pool, if there is one");
    #[cfg(feature = "rayon")]
    {
        let busy = std::sync::Arc::new(std::sync::Mutex::new(()));
        let guard = busy.lock();
        let waiting = std::sync::Arc::clone(&busy);
        rayon::spawn_broadcast(move |_| drop(waiting.lock()));
        calls("with a busy pool");
        drop(guard);
    }
}

/// NC is the same memory in both layouts, so it must be the same to the caller.
#[test]
fn rank_two_has_one_layout() {
    let [nchw, nhwc] = [Shape::nchw(&[40, 9]).unwrap(), Shape::nhwc(&[40, 9]).unwrap()];
    let problem = Problem::<f32>::new(&[40, 9], 11);
    let results = [nchw, nhwc].map(|shape| {
        let mut y = vec![0.0; shape.len()];
        let mut states = vec![batchnorm::Welford::new(); 9];
        let params: Params<'_, f32> = params(None, problem.beta.as_deref(), 1e-3);
        forward_training(&shape, &problem.x, &params, &mut y, &mut states).unwrap();
        y
    });
    assert_same("rank 2", &results[0], &results[1]);
}
