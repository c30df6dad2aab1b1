//! bf16 and f16: every operation, form, layout, level and number of threads gives the bits of the operation on the tensors widened to
//! f32, each result rounded once.

use batchnorm::{Activation, Backward, Gradients, Inference, Layout, Training, Welford};
use half::{bf16, f16};
use rand::Rng;

use crate::common::data;
use crate::common::fused::{Form, forms};
use crate::common::half::{Halves, Number, Places, check, outcome};
use crate::common::matrix::{
    Configuration, LAYOUTS, Placement, Problem, assert_same, configurations, few_configurations, fnv, permute,
};

/// Of both, in every form or in some of them.
fn check_in(dims: &[usize], forms: &[Form], configurations: &[Configuration]) {
    let seed = dims.iter().sum::<usize>() as u64;
    let (a, b) = (Halves::<bf16>::new(dims, seed), Halves::<f16>::new(dims, seed + 1));
    for form in forms {
        check(&a, *form, configurations, &LAYOUTS);
        check(&b, *form, configurations, &LAYOUTS);
    }
}

const BARE: Form = Form { activation: Activation::Identity, residual: false };
const ADD_RELU: Form = Form { activation: Activation::Relu, residual: true };
const RELU: Form = Form { activation: Activation::Relu, residual: false };

#[test]
fn every_form() {
    for dims in [&[3, 5, 19][..], &[2, 66, 3], &[2, 18, 7, 7], &[9, 17], &[5, 3, 100], &[1, 1, 600]] {
        check_in(dims, &forms(), &few_configurations());
    }
}

#[test]
fn every_level_on_every_number_of_threads() {
    let dims = [&[4, 20, 33][..], &[40, 64, 49], &[300, 40], &[2, 70, 130], &[4, 32, 28, 28]];
    for (dims, form) in dims.into_iter().zip([BARE, ADD_RELU].into_iter().cycle()) {
        check_in(dims, &[form], &configurations());
    }
}

#[test]
fn lengths_around_the_lanes() {
    for s in 1..=67 {
        let form = forms()[s % forms().len()];
        check_in(&[1, 1, s], &[BARE], &few_configurations());
        check_in(&[3, 5, s], &[form, ADD_RELU], &few_configurations());
        check_in(&[2, 18, s], &[form], &few_configurations());
    }
}

/// Around blocks, tiles, groups and spans of channels.
#[test]
fn sizes_around_tiles() {
    for s in [511, 4095, 4096, 4097, 8191, 8193] {
        check_in(&[1, 1, s], &[BARE, ADD_RELU], &few_configurations());
        check_in(&[2, 3, s], &[RELU], &few_configurations());
    }
    for dims in [
        &[83, 3, 49][..],
        &[9, 3, 1000],
        &[3, 2, 2049],
        &[4097, 3],
        &[4096, 16],
        &[7, 600, 20],
        &[20, 130, 15],
        &[2, 2049, 3],
        &[3, 513, 17],
        &[33, 512, 1],
        &[1, 4100, 2],
        &[130, 64, 64],
    ] {
        check_in(dims, &[BARE, RELU, ADD_RELU], &few_configurations());
    }
}

/// Problems that several tasks share, in both schedules.
#[test]
fn large_problems() {
    for dims in [&[2, 64, 112, 112][..], &[4, 2050, 9, 9], &[32, 512, 7, 7]] {
        check_in(dims, &[ADD_RELU], &few_configurations()[2..]);
    }
}

/// Tensors of numbers of any bits: NaN, infinities, subnormal numbers, and sums that overflow.
fn any_bits<H: Number>(dims: &[usize], seed: u64, mask: u16) {
    let mut rng = data::rng(seed);
    let wide = Problem::<f32>::new(dims, seed);
    let tensors = [(); 3].map(|()| {
        let numbers = (0..wide.x.len()).map(|_| H::of_bits(rng.next_u32() as u16 & mask));
        numbers.collect::<Vec<H>>()
    });
    let problem = Halves::of(wide, tensors);
    for form in forms() {
        check(&problem, form, &few_configurations(), &LAYOUTS);
    }
}

#[test]
fn tensors_of_any_bits() {
    for (seed, dims) in [&[2, 3, 5][..], &[4, 7, 33], &[30, 20], &[3, 4, 300]].into_iter().enumerate() {
        // All; no infinity and NaN; subnormal numbers of f16 alone.
        for mask in [0xffff, 0xbfff, 0x83ff] {
            any_bits::<bf16>(dims, seed as u64, mask);
            any_bits::<f16>(dims, seed as u64, mask);
        }
    }
}

/// y over x, and dx over dy.
#[test]
fn results_over_tensors_of_the_same_numbers() {
    fn of<H: Number>(dims: &[usize], form: Form) {
        let problem = Halves::<H>::new(dims, 5);
        for (configuration, layout) in few_configurations().into_iter().flat_map(|c| LAYOUTS.map(|l| (c, l)))
        {
            let shape = problem.wide.shape(layout);
            let params = problem.wide.params().activation(form.activation);
            let [x, dy] = [&problem.x, &problem.dy].map(|tensor| permute(&shape, tensor, true));
            let (mean, var) = (&problem.wide.mean, &problem.wide.var);
            configuration.run(|| {
                let (mut states, mut y) = (vec![Welford::new(); dims[1]], vec![H::canary(); x.len()]);
                Training::new(&shape, params).x(&x).y(&mut y).states(&mut states).run().unwrap();
                let mut over_x = x.clone();
                Training::new(&shape, params).x_in_place(&mut over_x).states(&mut states).run().unwrap();
                assert_same(format_args!("{configuration:?} {dims:?} training"), &over_x, &y);
                Inference::new(&shape, params).x(&x).y(&mut y).frozen(mean, var).run().unwrap();
                let mut over_x = x.clone();
                Inference::new(&shape, params).x_in_place(&mut over_x).frozen(mean, var).run().unwrap();
                assert_same(format_args!("{configuration:?} {dims:?} inference"), &over_x, &y);
                for frozen in [false, true] {
                    let call = || {
                        let call = Backward::new(&shape, params).x(&x);
                        if frozen { call.frozen(mean, var) } else { call.states(&states) }
                    };
                    let (mut dx, mut over_dy) = (vec![H::canary(); x.len()], dy.clone());
                    call().dy(&dy).gradients(Gradients::new().dx(&mut dx)).run().unwrap();
                    call().dy_to_dx(&mut over_dy).run().unwrap();
                    assert_same(format_args!("{configuration:?} {dims:?} backward"), &over_dy, &dx);
                }
            });
        }
    }
    for dims in [&[3, 5, 19][..], &[2, 70, 33], &[9, 17], &[2, 3, 4100]] {
        for form in [BARE, RELU] {
            of::<bf16>(dims, form);
            of::<f16>(dims, form);
        }
    }
}

/// Every number there is, in inference as it is, and rounded on its way out after a scale that makes ties and overflows.
#[test]
fn every_number() {
    fn of<H: Number>() {
        let numbers: Vec<H> = (0..=u16::MAX).map(H::of_bits).collect();
        for (gamma, beta) in
            [(1.0f32, 0.0), (1.0 + 1.0 / 256.0, 0.0), (3.0, 1e-7), (1.0 / 3.0, -0.0), (1e5, 1.0)]
        {
            let wide = Problem::<f32>::new(&[1, 1, numbers.len()], 1);
            let wide = Problem {
                gamma: Some(vec![gamma]),
                beta: Some(vec![beta]),
                mean: vec![0.0],
                var: vec![1.0],
                eps: 0.0,
                ..wide
            };
            let problem = Halves::of(wide, [numbers.clone(), numbers.clone(), numbers.clone()]);
            check(&problem, BARE, &few_configurations(), &LAYOUTS[..1]);
            check(&problem, ADD_RELU, &few_configurations(), &LAYOUTS[..1]);
        }
    }
    of::<bf16>();
    of::<f16>();
}

/// All results of a fixed set of problems, as one number: the same on every level, number of threads, layout, machine. A change of it
/// is a change of result bits, and belongs into CHANGELOG.md.
#[test]
fn one_hash() {
    const HASHES: [u64; 2] = [0xfdd8_fd19_4631_bd90, 0xfa53_9c69_aa0d_5843];
    const DIMS: [&[usize]; 6] =
        [&[1, 1, 1], &[2, 7, 3, 4], &[9, 128], &[3, 65, 7, 7], &[2, 3, 4100], &[40, 17]];
    fn hash<H: Number>(configuration: Configuration, layout: Layout) -> u64 {
        let way = (layout, Placement::default(), Places::Apart);
        DIMS.into_iter().enumerate().fold(0xcbf2_9ce4_8422_2325, |hash, (i, dims)| {
            let problem = Halves::<H>::new(dims, i as u64);
            let tensors = (&problem.x[..], &problem.dy[..], &problem.z[..]);
            forms().into_iter().fold(hash, |hash, form| {
                let (outcome, dx) =
                    configuration.run(|| outcome(&problem.wide, tensors, form, way, "the hash's"));
                let hash = outcome.hash(hash, |number| number.bits().into());
                dx.iter().flatten().fold(hash, |hash, number| fnv(hash, number.bits().into()))
            })
        })
    }
    let mut all = Vec::new();
    for configuration in few_configurations() {
        for layout in LAYOUTS {
            let hashes = [hash::<bf16>(configuration, layout), hash::<f16>(configuration, layout)];
            let ([a, b], Configuration { level, threads }) = (hashes, configuration);
            println!("bf16 {a:016x}  f16 {b:016x}  {level:<8} {threads} thread(s) {layout:?}");
            all.push(hashes);
        }
    }
    assert!(all.iter().all(|hashes| *hashes == HASHES), "not the same bits");
}
