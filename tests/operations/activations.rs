//! Activations by themselves: within their bounds, on every element of f32 where that can be, and the same bits on every level.

use std::thread;

use batchnorm::{Activation, reference};
use rand::Rng;

use crate::common::data;
use crate::common::exact::Dd;
use crate::common::fused::ACTIVATIONS;
use crate::common::matrix::{Bits, Configuration, assert_same, levels};
use crate::exhaustive;

/// Elements that are looked at together.
const CHUNK: usize = 1 << 14;

/// Half the least subnormal f32.
const HALF_THE_LEAST: f64 = f32::from_bits(1) as f64 / 2.0;

/// Calls `check` with every f32 there is, in order of their bits, a chunk at a time; or with one of `every` chunks.
fn for_f32(every: usize, check: impl Fn(&[f32]) + Sync) {
    let threads = thread::available_parallelism().map_or(1, usize::from);
    let chunks = (1usize << 32) / CHUNK;
    thread::scope(|scope| {
        for worker in 0..threads {
            let check = &check;
            scope.spawn(move || {
                let mut u = vec![0.0; CHUNK];
                for chunk in (worker..chunks / every).map(|i| i * every).step_by(threads) {
                    for (i, u) in u.iter_mut().enumerate() {
                        *u = f32::from_bits((chunk * CHUNK + i) as u32);
                    }
                    check(&u);
                }
            });
        }
    });
}

/// Asserts that each y is NaN where u is, else within `relative` of what is exact, half the least subnormal aside, and of its sign.
fn assert_near(what: &str, relative: f64, u: &[f32], y: &[f32], exact: impl Fn(f64) -> f64) {
    let right = |u: f32, y: f32| {
        let exact = exact(u.into());
        let error = (f64::from(y) - exact).abs();
        let near = (error <= relative * exact.abs() + HALF_THE_LEAST) | (f64::from(y) == exact);
        let of_its_sign = y.is_sign_negative() == exact.is_sign_negative();
        (near & of_its_sign) | (u.is_nan() & (y.to_bits() == f32::NAN.to_bits()))
    };
    let all = u.iter().zip(y).fold(true, |all, (u, y)| all & right(*u, *y));
    if !all {
        let (u, y) = u.iter().zip(y).find(|(u, y)| !right(**u, **y)).unwrap();
        panic!("{what} of {u:e} is {y:e}, exactly {:e}", exact((*u).into()));
    }
}

/// Over all 2^32 if `BATCHNORM_EXHAUSTIVE` is set, as in `.ci/run`, else over one chunk in eight: NaN for NaN, else within 2^-20, half
/// the least subnormal aside.
#[test]
fn silu_of_every_f32() {
    let every = if exhaustive() {
        1
    } else {
        println!("one chunk in eight of all f32: set BATCHNORM_EXHAUSTIVE for all");
        8
    };
    for_f32(every, |u| {
        let mut y = u.to_vec();
        Activation::Silu.apply(&mut y).unwrap();
        // A chunk is of one sign, and of one exponent.
        let (first, relative) = (u[0], 2f64.powi(-20));
        if first.abs() < 2f32.powi(-20) {
            // The series, whose next term is u^4 / 48.
            assert_near("SiLU", relative, u, &y, |u| u * (0.5 + 0.25 * u));
        } else if first >= 128.0 {
            assert_near("SiLU", relative, u, &y, |u| u);
        } else if first <= -128.0 {
            // exp is below 2^-184.
            assert_near("SiLU", relative, u, &y, |_| -0.0);
        } else {
            assert_near("SiLU", relative, u, &y, |u| reference::activate(Activation::Silu, u));
        }
    });
}

/// Three roundings of a product and a quotient.
#[test]
fn hard_swish_of_f32() {
    for_f32(8, |u| {
        let mut y = u.to_vec();
        Activation::HardSwish.apply(&mut y).unwrap();
        assert_near("hard swish", 2f64.powi(-22), u, &y, |u| {
            let inner = u * (u + 3.0) / 6.0;
            if u <= -3.0 {
                0.0
            } else if u >= 3.0 {
                u
            } else {
                inner
            }
        });
    });
}

/// exp(t) of t <= 0 by a series of t / 1024, in double-double.
fn exp(t: f64) -> Dd {
    let (mut series, part) = (Dd::from(1.0), Dd::from(t / 1024.0));
    for k in (1..30).rev() {
        series = (series * part).over(f64::from(k)) + 1.0;
    }
    (0..10).fold(series, |power, _| power * power)
}

fn quotient(dividend: Dd, divisor: Dd) -> Dd {
    let first = dividend.hi / divisor.hi;
    let rest = dividend + -(divisor * Dd::from(first));
    Dd::from(first) + rest.value() / divisor.hi
}

/// sigmoid(u) and 1 - sigmoid(u), where exp(-|u|) is a normal number.
fn sigmoids(u: f64) -> [Dd; 2] {
    let decay = exp(-u.abs());
    let [small, large] = [decay, Dd::from(1.0)].map(|part| quotient(part, decay + 1.0));
    if u < 0.0 { [small, large] } else { [large, small] }
}

/// Numbers of all magnitudes between which SiLU bends, of both signs.
fn points(count: usize) -> Vec<f64> {
    let rng = &mut data::rng(1);
    let mut uniform = || rng.next_u64() as f64 / 2f64.powi(64) * 2.0 - 1.0;
    let mut points: Vec<f64> = (0..count)
        .map(|i| uniform() * [1.0, 4.0, 40.0, 600.0, 2f64.powi(-(i as i32 % 100))][i % 5])
        .collect();
    points.extend((-600..600).map(f64::from));
    points
}

/// Within 2^-49 of its size.
#[test]
fn silu_of_f64() {
    let u = points(200_000);
    let mut y = u.clone();
    Activation::Silu.apply(&mut y).unwrap();
    let mut worst = 0f64;
    for (u, y) in u.iter().zip(&y) {
        let exact = sigmoids(*u)[0] * Dd::from(*u);
        let error = exact.distance(*y);
        worst = worst.max(error / exact.value().abs());
        assert!(error <= 2f64.powi(-49) * exact.value().abs(), "SiLU of {u:e} is {y:e}, off by {error:e}");
    }
    println!("SiLU of f64 is off by {:.2} of 2^-52 at most", worst / f64::EPSILON);
    // Beyond: subnormal numbers, then -0; and u itself.
    let mut y = [-720.0, -745.0, -760.0, -1e300, f64::NEG_INFINITY, 800.0, f64::MAX, f64::INFINITY];
    let u = y;
    Activation::Silu.apply(&mut y).unwrap();
    let near = |u: f64, y: f64| (y - u * (u + 700.0).exp() * (-700f64).exp()).abs() <= 1e-12 * -y + 5e-324;
    assert!(near(u[0], y[0]) && near(u[1], y[1]) && y[0] < y[1] && y[1] < 0.0, "{y:?}");
    assert_same("beyond", &y[2..5], &[-0.0; 3]);
    assert_same("beyond", &y[5..], &u[5..]);
}

/// dy * act'(u) of SiLU and of hard swish, within `relative` of the sum of their derivatives' terms.
fn gradients<T: Bits>(relative: f64) {
    let u: Vec<T> = points(100_000).into_iter().map(T::from_f64).collect();
    let dy: Vec<T> = (0..u.len()).map(|i| T::from_f64([1.0, -3.0, 0.1][i % 3])).collect();
    let subnormal = if size_of::<T>() == 4 { 2.0 * HALF_THE_LEAST } else { f64::from_bits(1) };
    for activation in [Activation::Silu, Activation::HardSwish] {
        let mut g = dy.clone();
        activation.gradient(&u, &mut g).unwrap();
        for ((u, dy), g) in u.iter().zip(&dy).zip(&g) {
            let (u, dy) = (u.to_f64(), dy.to_f64());
            let (derivative, size) = match activation {
                Activation::Silu => {
                    let [p, rest] = sigmoids(u);
                    let product = rest * Dd::from(u);
                    ((p * (product + 1.0)).value(), p.value() * (1.0 + product.value().abs()))
                }
                _ if u <= -3.0 => (0.0, 0.0),
                _ if u >= 3.0 => (1.0, 1.0),
                _ => (u / 3.0 + 0.5, u.abs() / 3.0 + 0.5),
            };
            let error = (g.to_f64() - dy * derivative).abs();
            // Where sigmoid(u) is subnormal, its rounding is multiplied by u.
            let rounding = subnormal * (1.0 + dy.abs() * (1.0 + u.abs()));
            let bound = (relative + f64::EPSILON) * (dy * size).abs() + rounding;
            assert!(
                error <= bound,
                "{activation} of {u:e} has the derivative {g:?} / {dy}, off by {error:e}"
            );
        }
    }
}

#[test]
fn gradients_are_within_their_bounds() {
    gradients::<f32>(2f64.powi(-20));
    gradients::<f64>(2f64.powi(-49));
}

fn applied<T: Bits>(activation: Activation, u: f64) -> f64 {
    let mut y = [T::from_f64(u)];
    activation.apply(&mut y).unwrap();
    y[0].to_f64()
}

fn derivative<T: Bits>(activation: Activation, u: f64, dy: f64) -> f64 {
    let mut g = [T::from_f64(dy)];
    activation.gradient(&[T::from_f64(u)], &mut g).unwrap();
    g[0].to_f64()
}

/// y, and g of a dy of 1, at the bends, beside them, and at the ends of the range.
#[test]
fn corners_are_exact() {
    const INFINITY: f64 = f64::INFINITY;
    let below = -f64::from(3f32.next_down());
    let above = f64::from(3f32.next_up());
    let clip = Activation::Clip { lo: -0.5, hi: 6.0 };
    let (from, to) =
        (Activation::Clip { lo: 1.0, hi: INFINITY }, Activation::Clip { lo: -INFINITY, hi: 1.0 });
    let point = Activation::Clip { lo: 2.0, hi: 2.0 };
    let leaky = Activation::LeakyRelu { slope: -0.5 };
    let rows: &[(Activation, f64, f64, f64)] = &[
        (Activation::Identity, -0.0, -0.0, 1.0),
        (Activation::Identity, -INFINITY, -INFINITY, 1.0),
        (Activation::Relu, 0.0, 0.0, 0.0),
        (Activation::Relu, -0.0, -0.0, 0.0),
        (Activation::Relu, 1e-45, 1e-45, 1.0),
        (Activation::Relu, -1e-45, 0.0, 0.0),
        (Activation::Relu, INFINITY, INFINITY, 1.0),
        (Activation::Relu, -INFINITY, 0.0, 0.0),
        (leaky, 0.0, -0.0, -0.5),
        (leaky, -0.0, 0.0, -0.5),
        (leaky, -4.0, 2.0, -0.5),
        (leaky, 4.0, 4.0, 1.0),
        (leaky, -INFINITY, INFINITY, -0.5),
        (clip, -0.5, -0.5, 0.0),
        (clip, -0.25, -0.25, 1.0),
        (clip, -0.0, -0.0, 1.0),
        (clip, 6.0, 6.0, 0.0),
        (clip, 5.5, 5.5, 1.0),
        (clip, INFINITY, 6.0, 0.0),
        (clip, -INFINITY, -0.5, 0.0),
        (from, 1.0, 1.0, 0.0),
        (from, INFINITY, INFINITY, 1.0),
        (from, -INFINITY, 1.0, 0.0),
        (to, 1.0, 1.0, 0.0),
        (to, -INFINITY, -INFINITY, 1.0),
        (to, INFINITY, 1.0, 0.0),
        (point, 2.0, 2.0, 0.0),
        (point, 3.0, 2.0, 0.0),
        (Activation::HardSwish, -3.0, 0.0, 0.0),
        (Activation::HardSwish, -INFINITY, 0.0, 0.0),
        (Activation::HardSwish, 0.0, 0.0, 0.5),
        (Activation::HardSwish, -0.0, -0.0, 0.5),
        (Activation::HardSwish, 3.0, 3.0, 1.0),
        (Activation::HardSwish, above, above, 1.0),
        (Activation::HardSwish, INFINITY, INFINITY, 1.0),
        (Activation::Silu, 0.0, 0.0, 0.5),
        (Activation::Silu, -0.0, -0.0, 0.5),
        (Activation::Silu, INFINITY, INFINITY, 1.0),
        (Activation::Silu, -INFINITY, -0.0, 0.0),
    ];
    for (activation, u, y, g) in rows {
        for got in [applied::<f32>(*activation, *u), applied::<f64>(*activation, *u)] {
            let y = if y.abs() == 1e-45 && got == 2f64.powi(-149) { got } else { *y };
            assert_eq!(got.to_bits(), y.to_bits(), "{activation} of {u} is {got}, must be {y}");
        }
        for got in [derivative::<f32>(*activation, *u, 1.0), derivative::<f64>(*activation, *u, 1.0)] {
            assert!(got == *g, "{activation} has at {u} the derivative {got}, must have {g}");
        }
    }
    // The reference has them too.
    for (activation, u, y, g) in rows {
        assert_eq!(reference::activate(*activation, *u), *y, "{activation} of {u}");
        assert_eq!(reference::activation_gradient(*activation, *u, 1.0), *g, "{activation} at {u}");
    }
    assert!(applied::<f32>(Activation::HardSwish, below) < 0.0);
    // Bounds that are no elements of f32: none above, and the largest below.
    let far = Activation::Clip { lo: -1e300, hi: 1e300 };
    for u in [-INFINITY, f64::from(f32::MIN), 0.5, f64::from(f32::MAX), INFINITY] {
        assert_eq!((applied::<f32>(far, u), derivative::<f32>(far, u, 2.0)), (u, 2.0));
    }
    assert_eq!(applied::<f64>(far, INFINITY), 1e300);
    let farther = Activation::Clip { lo: 1e300, hi: 1e301 };
    assert_eq!(applied::<f32>(farther, 0.5), f32::MAX.into());
}

/// A NaN stays one, the canonical one, forward and backward; and a closed ReLU or clip lets through nothing of any dy.
#[test]
fn nan_stays_and_nothing_passes_what_is_closed() {
    fn check<T: Bits>() {
        for activation in ACTIVATIONS {
            for nan in [T::NAN, T::OTHER_NAN] {
                let mut y = [nan; 3];
                activation.apply(&mut y).unwrap();
                assert_same(activation, &y, &[T::NAN; 3]);
                // Of u; of the identity's, whose gradient does not look at u, of dy.
                let [one, zero] = [1.0, 0.0].map(T::from_f64);
                let mut g = [one, zero, T::OTHER_NAN];
                activation.gradient(&[nan; 3], &mut g).unwrap();
                let of_u = if activation == Activation::Identity { [one, zero, T::NAN] } else { [T::NAN; 3] };
                assert_same(activation, &g, &of_u);
                // u is open in each.
                let mut g = [nan];
                activation.gradient(&[T::from_f64(0.125)], &mut g).unwrap();
                assert_same(activation, &g, &[T::NAN]);
            }
        }
        for activation in [Activation::Relu, Activation::Clip { lo: 0.0, hi: 1.0 }] {
            let mut g = [T::NAN, T::INFINITY, T::from_f64(f64::NEG_INFINITY), T::from_f64(-1.0)];
            activation.gradient(&[-1.0, 0.0, -0.0, f64::NEG_INFINITY].map(T::from_f64), &mut g).unwrap();
            assert_same(activation, &g, &[0.0; 4].map(T::from_f64));
        }
    }
    check::<f32>();
    check::<f64>();
}

/// Whatever vector an element is in, and wherever.
#[test]
fn every_level_and_length_gives_the_same_bits() {
    fn check<T: Bits>(any: impl Fn(u64) -> T) {
        let rng = &mut data::rng(2);
        let mut u: Vec<T> = points(20_000).into_iter().map(T::from_f64).collect();
        u.extend([0.0, -0.0, 3.0, -3.0, 6.0, f64::INFINITY, f64::NEG_INFINITY].map(T::from_f64));
        u.extend((0..200_000).map(|_| any(rng.next_u64())));
        let dy: Vec<T> = u.iter().map(|_| any(rng.next_u64())).collect();
        for activation in ACTIVATIONS {
            let run = |level, range: std::ops::Range<usize>| {
                Configuration { level, threads: 1 }.run(|| {
                    let (mut y, mut g) = (u[range.clone()].to_vec(), dy[range.clone()].to_vec());
                    activation.apply(&mut y).unwrap();
                    activation.gradient(&u[range.clone()], &mut g).unwrap();
                    [y, g]
                })
            };
            let whole = run(levels()[0], 0..u.len());
            for level in levels() {
                for (got, expected) in run(level, 0..u.len()).iter().zip(&whole) {
                    assert_same(format_args!("{activation} on {level}"), got, expected);
                }
                for (start, len) in (0..=67).map(|len| (len * 31, len)) {
                    for (got, expected) in run(level, start..start + len).iter().zip(&whole) {
                        let what = format_args!("{activation} of {len} on {level}");
                        assert_same(what, got, &expected[start..start + len]);
                    }
                }
            }
        }
    }
    check(|bits| f32::from_bits(bits as u32));
    check(f64::from_bits);
}
