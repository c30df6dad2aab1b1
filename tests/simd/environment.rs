//! Results do not depend on the floating-point environment that the host has set, on the calling thread or on those of
//! a pool; and the host has it back as it was. x86-64 and aarch64.
#![cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]

use batchnorm::{
    Activation, Backward, BatchNorm, Gradients, Params, PartialStatistics, RunningUpdate, RunningVariance,
    Shape, Statistics, StreamingStatistics, Training, UpdateRule, WeightShape, Welford, fold_into,
    forward_training, step, update_running,
};

use crate::common::matrix::{LAYOUTS, Placement, Problem, Results, Subset, assert_same, run};

/// The control register, with the sticky flags where they are part of it.
#[cfg(target_arch = "x86_64")]
mod control {
    use std::arch::asm;

    pub const DEFAULT: u64 = 0x1F80;
    /// Of those only, the flags are set before a call and looked at after it.
    pub const FLAGS: u64 = 0b01_0101;
    /// All of them.
    #[cfg(feature = "rayon")]
    pub const STICKY: u64 = 0b11_1111;
    /// Of exceptions that are not to end the program.
    pub const MASKS: u64 = 0x1F80;
    /// FTZ, DAZ, both, down, up, towards zero, no exception masked, all together, and one that is not masked (of inexact results).
    pub const HOSTS: [u64; 9] = [
        0x1F80 | 1 << 15,
        0x1F80 | 1 << 6,
        0x1F80 | 1 << 15 | 1 << 6,
        0x1F80 | 1 << 13,
        0x1F80 | 2 << 13,
        0x1F80 | 3 << 13,
        0,
        0x1F80 | 3 << 13 | 1 << 15 | 1 << 6,
        0x1F80 & !(1 << 12),
    ];

    pub fn get() -> u64 {
        let mut value = 0u32;
        // SAFETY: the instruction writes four bytes.
        unsafe { asm!("stmxcsr [{}]", in(reg) &raw mut value) };
        value.into()
    }

    pub fn set(value: u64) {
        let value = value as u32;
        // SAFETY: what the tests do between two of these they do in the library, or with integers.
        unsafe { asm!("ldmxcsr [{}]", in(reg) &raw const value) };
    }
}

#[cfg(target_arch = "aarch64")]
mod control {
    use std::arch::asm;

    pub const DEFAULT: u64 = 0;
    pub const FLAGS: u64 = 0;
    /// They are in another register.
    #[cfg(feature = "rayon")]
    pub const STICKY: u64 = 0;
    pub const MASKS: u64 = 0;
    /// FZ, up, down, towards zero, the latter with FZ, and default NaNs.
    pub const HOSTS: [u64; 6] = [1 << 24, 1 << 22, 2 << 22, 3 << 22, 3 << 22 | 1 << 24, 1 << 25];

    pub fn get() -> u64 {
        let value: u64;
        // SAFETY: the instruction reads a register.
        unsafe { asm!("mrs {}, fpcr", out(reg) value) };
        value
    }

    pub fn set(value: u64) {
        // SAFETY: what the tests do between two of these they do in the library, or with integers.
        unsafe { asm!("msr fpcr, {}", in(reg) value) };
    }
}

/// Calls `f` in a host's environment and asserts that it comes back from it, flags and all.
fn in_environment<R>(host: u64, f: impl FnOnce() -> R) -> R {
    let (result, after) = in_environment_then(host, f);
    assert_eq!(after, host, "the environment {host:#x} is {after:#x} after a call");
    result
}

/// The same, and what the environment is in the end.
fn in_environment_then<R>(host: u64, f: impl FnOnce() -> R) -> (R, u64) {
    /// Back, whatever happens: the tests' own messages take no other environment.
    struct Restore;
    impl Drop for Restore {
        fn drop(&mut self) {
            control::set(control::DEFAULT);
        }
    }
    let restore = Restore;
    control::set(host);
    let result = std::hint::black_box(f)();
    let after = control::get();
    drop(restore);
    (result, after)
}

/// OpenBLAS 1237, PyTorch's `set_flush_denormal`: what the environment is, or was when a pool's threads were started.
fn subnormals() {
    let shape = Shape::nchw(&[1024, 2, 512]).unwrap();
    let x: Vec<f32> = (0..shape.len()).map(|i| if i % 2 == 0 { 1e-39 } else { 3e-39 }).collect();
    let expected: Vec<f32> = (0..shape.len()).map(|i| if i % 2 == 0 { -1.0 } else { 1.0 }).collect();
    let (small, large) = (f64::from(1e-39f32), f64::from(3e-39f32));
    let (mut y, mut states) = (vec![0.0; shape.len()], [Welford::new(); 2]);
    let mut check = |host| {
        y.fill(0.0);
        let params = Params::new(0.0);
        in_environment(host, || forward_training(&shape, &x, &params, &mut y, &mut states)).unwrap();
        assert_same(format_args!("y in {host:#x}"), &y, &expected);
        for state in states {
            assert!((state.mean() / (0.5 * (small + large)) - 1.0).abs() < 1e-15, "{host:#x}: {state:?}");
            assert!((state.variance().sqrt() / (0.5 * (large - small)) - 1.0).abs() < 1e-15, "{state:?}");
        }
    };
    for host in control::HOSTS {
        check(host | control::FLAGS);
        (0..5).for_each(|_| check(control::DEFAULT));
    }
}

/// Its global pool is started by a host with all of it set: nothing else in this program does before.
#[cfg(feature = "rayon")]
fn start_the_pool() {
    control::set(control::HOSTS[control::HOSTS.len() - 2]);
    let started = rayon::ThreadPoolBuilder::new().num_threads(3).build_global();
    control::set(control::DEFAULT);
    started.unwrap();
}

/// One test, since it matters which call is the first.
#[test]
fn subnormals_are_kept_on_every_thread() {
    #[cfg(feature = "rayon")]
    start_the_pool();
    subnormals();
    // And on threads that something else has been done to since.
    #[cfg(feature = "rayon")]
    for host in control::HOSTS {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(2).build().unwrap();
        pool.broadcast(|_| control::set(host));
        pool.install(|| {
            control::set(control::DEFAULT);
            subnormals();
        });
        pool.broadcast(|_| {
            // Any of them may have run the stretch above, in the default environment and with arithmetic of its own.
            let left = control::get() & !control::STICKY;
            assert!(left == control::DEFAULT || left == host & !control::STICKY, "{left:#x}");
            control::set(control::DEFAULT);
        });
    }
}

/// Every operation on problems for one thread and for several, at the sizes where subnormals and roundings matter.
#[test]
fn everything_is_the_same_in_every_environment() {
    fn check<T: crate::common::matrix::Bits>(dims: &[usize], scale: f64) {
        let mut problem = Problem::<T>::new(dims, 11);
        for tensor in [&mut problem.x, &mut problem.dy] {
            tensor.iter_mut().for_each(|value| *value = T::from_f64(value.to_f64() * scale));
        }
        for layout in LAYOUTS {
            let run = || run(&problem, layout, Placement::default(), Subset::single());
            let expected: Results<T> = run();
            for host in control::HOSTS.into_iter().filter(|host| host & control::MASKS == control::MASKS) {
                // What the tests compute there themselves raises flags, and compares bits.
                let (results, _) = in_environment_then(host, run);
                results.assert_same(&expected, &format!("{} {dims:?} {layout:?} in {host:#x}", T::NAME));
            }
        }
    }
    for dims in [&[3, 5, 19][..], &[40, 3], &[2, 70, 7, 7], &[4, 16, 70, 70]] {
        for scale in [1.0, 1e-39] {
            check::<f32>(dims, scale);
            check::<f64>(dims, scale);
        }
    }
}

/// What computes beside the operations on tensors.
#[test]
fn vectors_are_the_same_in_every_environment() {
    let third: Welford = [1.0, 2.0, 1.0 / 3.0].into_iter().collect();
    let results = || {
        let update = RunningUpdate { rule: UpdateRule::Momentum(0.1), variance: RunningVariance::Unbiased };
        let (mut mean, mut var) = ([1e-39f32, 0.7], [3e-39f32, 0.3]);
        update_running(update, 0, &[Welford::new(), third], &mut mean, &mut var).unwrap();
        let mut parameter = [1.1f32, 1e-39, 5e-324f64 as f32];
        step(1e-3, &[0.3f32, 1e-39, 0.0], &mut parameter).unwrap();
        let mut subnormal = [5e-324f64];
        step(0.5, &[1e-323], &mut subnormal).unwrap();
        let mut streaming = StreamingStatistics::new(1);
        for x in [&[1.0f32, 2.0, 0.3][..], &[1e-39, 3e-39], &[0.1]] {
            streaming.update(&Shape::nchw(&[x.len(), 1]).unwrap(), x).unwrap();
        }
        let other = streaming.clone();
        streaming.merge(&other).unwrap();
        let (batch, weights) = (Shape::nchw(&[5, 1]).unwrap(), [0.1, 0.7, 0.0, 1.3, 0.2]);
        streaming.update_weighted(&batch, &[0.3f32, 1e-39, 5.0, 0.1, 3e-39], &weights).unwrap();
        let mut part = PartialStatistics::new(1);
        part.add_weighted(&batch, 3, &[0.3f64, 1e-310, 5.0, 0.1, 3e-310], &weights).unwrap();
        let part = PartialStatistics::<f64>::from_bytes(&part.to_bytes().unwrap()).unwrap();
        let (x, mut y, mut states) = ([0.3f32, 0.1, 7.0, 0.9, 1e-39], [0.0; 5], [Welford::new()]);
        let training = Training::new(&batch, Params::new(1e-5)).x(&x).y(&mut y).states(&mut states);
        training.weights(&weights).run().unwrap();
        // Counts that are sums of weights, of several chunks.
        let (chunks, mut several) = (Shape::nchw(&[10, 5, 2]).unwrap(), [Welford::new(); 5]);
        let many: Vec<f32> = (0..chunks.len()).map(|i| ((i * 7919) % 101) as f32).collect();
        let tenths: Vec<f64> = (0..10).map(|i| [0.1, 0.4, 0.7][i % 3]).collect();
        Statistics::new(&chunks).x(&many).states(&mut several).weights(&tenths).run().unwrap();
        let (mut dx, mut dgamma) = ([0.0; 5], [0.0]);
        let backward =
            Backward::new(&batch, Params::new(1e-5)).x(&x).dy(&y).states(&states).weights(&weights);
        backward.gradients(Gradients::new().dx(&mut dx).dgamma(&mut dgamma)).run().unwrap();
        let weighted = (part.states().unwrap(), y, states, several, dx, dgamma);
        let (shape, params) = (WeightShape::new(&[2, 2], 0).unwrap(), Params::new(5e-324));
        let (mut weight, mut bias) = ([0.1f32, 1e-39, 0.7, 3e-39], [1e-39f32, 0.3]);
        fold_into(&shape, &mean, &var, &params, &mut weight, &mut bias).unwrap();
        (mean, var, parameter, subnormal, streaming, weighted, weight, bias)
    };
    let expected = format!("{:?}", results());
    for host in control::HOSTS {
        let got = in_environment(host, results);
        assert_eq!(format!("{got:?}"), expected, "{host:#x}");
    }
}

/// A negative eps is one, however small, where a comparison takes it for 0.
#[test]
fn a_negative_subnormal_eps_is_an_error() {
    let shape = Shape::nchw(&[2, 1]).unwrap();
    for host in control::HOSTS {
        for (eps, ok) in [(-5e-324, false), (-1e-310, false), (5e-324, true), (-0.0, true)] {
            let params = Params::new(eps);
            let (mut y, mut states) = ([0.0f32; 2], [Welford::new()]);
            let result =
                in_environment(host, || forward_training(&shape, &[1.0, 2.0], &params, &mut y, &mut states));
            assert_eq!(result.is_ok(), ok, "{eps:e} in {host:#x}");
        }
    }
}

/// What is checked before anything is done: numbers, weights of samples, the x of a backward pass, bytes of a part.
#[test]
fn checks_are_the_same_in_every_environment() {
    let (batch, x) = (Shape::nchw(&[4, 1]).unwrap(), [1e-40f32, 2e-40, 5e-40, 3e-40]);
    // Mean and m2 are signalling NaNs, which no one has from this library; the checksum is that of these bytes.
    let signalling = {
        let mut part = PartialStatistics::<f32>::new(1);
        part.add(&batch, 0, &x).unwrap();
        let mut bytes = part.to_bytes().unwrap();
        let behind = bytes.len() - 8;
        for at in [behind - 24, behind - 8] {
            bytes[at..at + 8].copy_from_slice(&0x7ff0_0000_0000_0001u64.to_le_bytes());
        }
        let fnv = |hash: u64, byte: &u8| (hash ^ u64::from(*byte)).wrapping_mul(0x100_0000_01b3);
        let checksum = bytes[..behind].iter().fold(0xcbf2_9ce4_8422_2325, fnv);
        bytes[behind..].copy_from_slice(&checksum.to_le_bytes());
        bytes
    };
    let signalling_nan = f64::from_bits(0x7ff0_0000_0000_0001);
    let results = || {
        let weigh = |weight| {
            let mut part = PartialStatistics::<f32>::new(1);
            part.add_weighted(&batch, 0, &x, &[1.0, weight, 1.0, 1.0]).is_ok()
        };
        let weights = [5e-324, -5e-324, -0.0, signalling_nan, 1.0 / (1u64 << 60) as f64, 1e-300].map(weigh);
        let (mut layer, mut y, mut dx) = (BatchNorm::<f32>::new(1), [0.0; 4], [0.0; 4]);
        layer.forward_training(&batch, &x, &mut y).unwrap();
        let other = layer.backward(&batch, &[3e-40; 4], &y, &mut dx).is_err();
        let same = layer.backward(&batch, &x, &y, &mut dx).is_ok();
        let mut rules = [0.0, -5e-324, 5e-324, 1.5, signalling_nan].map(|momentum| {
            let update =
                RunningUpdate { rule: UpdateRule::Momentum(momentum), variance: RunningVariance::Biased };
            update_running::<f32>(update, 0, &[Welford::new()], &mut [0.0], &mut [1.0]).is_ok()
        });
        rules.reverse();
        let slopes = [5e-324, signalling_nan]
            .map(|slope| Activation::LeakyRelu { slope }.apply(&mut [1.0f32]).is_ok());
        let bytes = PartialStatistics::<f32>::from_bytes(&signalling).is_ok();
        (weights, other, same, rules, slopes, bytes)
    };
    let expected = (
        [false, false, true, false, true, false],
        true,
        true,
        [false, false, true, false, true],
        [true, false],
        true,
    );
    for host in control::HOSTS.into_iter().chain([control::DEFAULT]) {
        assert_eq!(in_environment(host, results), expected, "{host:#x}");
    }
}

#[test]
fn a_clip_from_a_subnormal_number_to_0_is_an_error() {
    let bounds = |lo, hi| Activation::Clip { lo, hi }.apply(&mut [1.0f64]).is_ok();
    for host in control::HOSTS {
        let [empty, zeros] = in_environment(host, || [bounds(5e-324, 0.0), bounds(0.0, -0.0)]);
        assert!(!empty && zeros, "{host:x}");
    }
}
