//! Statistics and outputs against the exact oracle.

use std::fmt::Display;

use batchnorm::Welford;

use crate::common::exact::{Normalization, Statistics, times_power};
use crate::common::matrix::{Canary, Problem, assert_same};
use crate::shared::bounds::{Bound, Contract, assert_state, assert_value, constant};
use crate::shared::calls::Call;
use crate::shared::problem::{self, Run};

/// States within their bounds; NaN where an element is not finite, and nothing of that in any other channel.
pub fn statistics<T: Contract>(problem: &problem::Problem, run: Run) {
    let problem = problem.make::<T>();
    let call = Call { problem: &problem, run };
    let states = call.statistics();
    let bad = call.non_finite();
    check_states(&call, &bad, &states);
    if let Some(mended) = mended(&problem, &bad) {
        let others = call.of(&mended).statistics();
        assert_good_same(&call, "state", &bad, &states, &others);
    }
}

/// y within its bound, beta of a constant channel; NaN where an element is not finite.
pub fn training<T: Contract>(problem: &problem::Problem, run: Run) {
    let problem = problem.make::<T>();
    let call = Call { problem: &problem, run };
    let (y, states) = call.training();
    let bad = call.non_finite();
    check_states(&call, &bad, &states);
    // As of a sample of weight 0.
    let others = call.by_states(&problem.dy, &states);
    for c in call.checked() {
        let (x, y, what) = (call.channel(&problem.x, c), call.channel(&y, c), call.what("y", c));
        if bad[c] {
            assert!(y.iter().all(|y| y.same(&T::NAN)), "{what}: not NaN where x is not finite");
            continue;
        }
        let (gamma, beta) = affine(&problem, c);
        if x.is_empty() || !(gamma.is_finite() && beta.is_finite()) {
            continue;
        }
        let exact = Statistics::of(&x);
        let normalization = Normalization::training(&exact, problem.eps, gamma, beta);
        if constant(&x) && T::y_is_promised(&normalization) {
            assert!(y.iter().all(|y| y.to_f64() == beta), "{what}: {:?} is not beta {beta}", y[0]);
        }
        check_y(what, &x, &y, &normalization);
        let others = call.channel(&problem.dy, c).into_iter().zip(call.channel(&others, c));
        let near = others.filter(|(x, _)| !is_too_far(x.to_f64(), &exact, &normalization));
        let (data, y): (Vec<T>, Vec<T>) = near.unzip();
        check_y(call.what("y by another batch's states", c), &data, &y, &normalization);
    }
    if let Some(mended) = mended(&problem, &bad) {
        let (others, _) = call.of(&mended).training();
        for c in call.checked().filter(|c| !bad[*c]) {
            let [got, expected] = [&y, &others].map(|y| call.channel(y, c));
            assert_same(call.what("y, with other channels NaN", c), &got, &expected);
        }
    }
}

/// y by given statistics within its bound; NaN of what is NaN.
pub fn inference<T: Contract>(problem: &problem::Problem, run: Run) {
    let problem = problem.make::<T>();
    let call = Call { problem: &problem, run };
    let y = call.inference();
    for c in call.checked() {
        let (x, y, what) = (call.channel(&problem.x, c), call.channel(&y, c), call.what("y", c));
        let (mean, var) = (problem.mean[c].to_f64(), problem.var[c].to_f64());
        let (gamma, beta) = affine(&problem, c);
        if [mean, var, gamma, beta].iter().any(|value| value.is_nan()) || var + problem.eps < 0.0 {
            assert!(y.iter().all(|y| y.same(&T::NAN)), "{what}: not NaN where a parameter is");
            continue;
        }
        let nan = |(x, y): (&T, &T)| !x.to_f64().is_nan() || y.same(&T::NAN);
        assert!(x.iter().zip(&y).all(nan), "{what}: not NaN where x is");
        // Where the variance and eps are zero, or something is infinite, IEEE arithmetic has its way.
        if [mean, var, gamma, beta].iter().all(|value| value.is_finite()) && var + problem.eps > 0.0 {
            check_y(what, &x, &y, &Normalization::inference(mean, var, problem.eps, gamma, beta));
        }
    }
}

/// Whether an element is too far from statistics that are not of it: see docs/accuracy.md.
fn is_too_far(x: f64, of: &Statistics, normalization: &Normalization) -> bool {
    let std = times_power(of.scaled_var().sqrt(), of.exponent);
    let tiny = std > 0.0 && std < 2f64.powi(-100) && x.abs() >= 2f64.powi(227) * std;
    // What the oracle, which thinks in the data's scale, cannot count.
    let beyond = times_power(x.abs(), -of.exponent) > 1e290;
    tiny || beyond || ((x - of.mean()) * normalization.invstd).abs() > 1e290
}

/// Asserts the bound on the y of finite elements.
fn check_y<T: Contract>(what: impl Display, x: &[T], y: &[T], exact: &Normalization) {
    if !T::y_is_promised(exact) {
        return;
    }
    let bound = Bound { absolute: T::LEFT * exact.gamma.abs(), ..Bound::of_scale(T::OF_Y) };
    for (i, (x, y)) in x.iter().zip(y).enumerate() {
        let x = x.to_f64();
        if x.is_finite() {
            assert_value(format_args!("{what}[{i}], x {x:e}, {exact:?}"), *y, exact.y(x), bound);
        }
    }
}

fn check_states<T: Contract>(call: &Call<'_, T>, bad: &[bool], states: &[Welford]) {
    for c in call.checked() {
        let state = &states[c];
        let (x, what) = (call.channel(&call.problem.x, c), call.what("state", c));
        if bad[c] {
            let bits = [state.mean(), state.variance()].map(f64::to_bits);
            assert_eq!(bits, [f64::NAN.to_bits(); 2], "{what}: not NaN");
            assert_eq!(state.count(), x.len() as u64, "{what}: count");
        } else if x.is_empty() {
            assert_eq!(*state, Welford::new(), "{what}");
        } else {
            assert_state(what, state, &x, &Statistics::of(&x));
        }
    }
}

/// gamma and beta of a channel.
pub fn affine<T: Contract>(problem: &Problem<T>, c: usize) -> (f64, f64) {
    let of = |values: &Option<Vec<T>>, default| values.as_ref().map_or(default, |values| values[c].to_f64());
    (of(&problem.gamma, 1.0), of(&problem.beta, 0.0))
}

/// The problem with zeros for the channels that have a NaN or an infinity, if there are such.
pub fn mended<T: Contract>(problem: &Problem<T>, bad: &[bool]) -> Option<Problem<T>> {
    if !bad.contains(&true) {
        return None;
    }
    let mut mended = problem.clone();
    let s: usize = problem.dims[2..].iter().product();
    for (plane, bad) in mended.x.chunks_mut(s).zip(bad.iter().cycle()) {
        if *bad {
            plane.fill(T::default());
        }
    }
    Some(mended)
}

/// Asserts that the good channels have the same values in both.
pub fn assert_good_same<T: Contract, E: Canary>(
    call: &Call<'_, T>,
    name: &str,
    bad: &[bool],
    got: &[E],
    expected: &[E],
) {
    for (c, (got, expected)) in got.iter().zip(expected).enumerate() {
        if !bad[c] {
            let what = call.what(name, c);
            assert!(got.same(expected), "{what}: {got:?} is {expected:?} without other channels' NaN");
        }
    }
}
