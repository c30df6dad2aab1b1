//! bf16 and f16: every operation, form, layout, level and number of threads gives the bits of the operation on the tensors widened to
//! f32, each result rounded once.

use batchnorm::Activation;
use half::{bf16, f16};
use rand::Rng;

use crate::common::data;
use crate::common::fused::{Form, forms};
use crate::common::half::{Halves, Number, check, expected};
use crate::common::matrix::{Configuration, LAYOUTS, Problem, configurations, few_configurations};

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
    for dims in
        [&[4, 20, 33][..], &[40, 64, 49], &[300, 40], &[2, 70, 130], &[8, 128, 28, 28], &[64, 512, 7, 7]]
    {
        check_in(dims, &[BARE, ADD_RELU], &configurations());
    }
}

#[test]
fn lengths_around_the_lanes() {
    for s in 1..=67 {
        let form = forms()[s % forms().len()];
        check_in(&[1, 1, s], &[BARE, form], &few_configurations());
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
    for dims in [&[4, 64, 112, 112][..], &[8, 2050, 9, 9], &[32, 512, 7, 7], &[2100, 1040]] {
        check_in(dims, &[BARE, ADD_RELU], &few_configurations()[2..]);
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

/// One hash of all forms' bits, the same on every level, number of threads and layout by the tests above.
#[test]
fn one_hash() {
    let mut hash = 0xcbf2_9ce4_8422_2325;
    for (i, dims) in [&[2, 18, 7, 7][..], &[3, 5, 19], &[9, 17], &[2, 3, 4100]].into_iter().enumerate() {
        for form in forms() {
            let a = Halves::<bf16>::new(dims, i as u64);
            let b = Halves::<f16>::new(dims, i as u64);
            hash = expected(&a.wide, form, LAYOUTS[0]).0.rounded::<bf16>().hash(hash, |y| y.bits().into());
            hash = expected(&b.wide, form, LAYOUTS[0]).0.rounded::<f16>().hash(hash, |y| y.bits().into());
        }
    }
    println!("half: {hash:016x}");
}
