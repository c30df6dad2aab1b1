//! Gradients against the exact oracle.

use batchnorm::Welford;

use crate::common::exact::{Gradients, Normalization, Statistics};
use crate::common::matrix::assert_same;
use crate::operations::forward::{affine, assert_good_same, mended};
use crate::shared::bounds::{Bound, Contract, assert_value, is_gain_in_range, is_in_range};
use crate::shared::calls::{Call, Wanted};
use crate::shared::problem::{self, Run};

/// The gradients of both passes within their bounds, the same bits whichever others are asked for; NaN where an element
/// of x is not finite, and nothing of that in any other channel.
pub fn backward<T: Contract>(problem: &problem::Problem, run: Run, wanted: Wanted) {
    let problem = problem.make::<T>();
    let call = Call { problem: &problem, run };
    let states = call.statistics();
    let bad = call.non_finite();
    for states in [Some(&states[..]), None] {
        let all = call.gradients(states, Wanted::ALL);
        for (some, all) in call.gradients(states, wanted).iter().zip(&all) {
            if let (Some(some), Some(all)) = (some, all) {
                assert_same("a gradient alone", some, all);
            }
        }
        let [dx, vectors @ ..] = all.map(Option::unwrap);
        check(&call, states, &bad, &dx, &vectors);
    }
    if let Some(mended) = mended(&problem, &bad) {
        let others = call.of(&mended);
        let mended_states = others.statistics();
        let got = call.gradients(Some(&states), Wanted::ALL).map(Option::unwrap);
        let expected = others.gradients(Some(&mended_states), Wanted::ALL).map(Option::unwrap);
        for ((got, expected), name) in got.iter().zip(&expected).zip(NAMES).skip(1) {
            assert_good_same(&call, name, &bad, got, expected);
        }
        for c in call.checked() {
            let [got, expected] = [&got[0], &expected[0]].map(|dx| call.channel(dx, c));
            if bad[c] {
                let what = call.what("dx", c);
                assert!(got.iter().all(|dx| dx.same(&T::NAN)), "{what}: not NaN where x is not finite");
            } else {
                assert_same(call.what("dx, with other channels NaN", c), &got, &expected);
            }
        }
    }
}

const NAMES: [&str; 5] = ["dx", "dgamma", "dbeta", "dmean", "dvar"];

/// Asserts the bounds on the gradients of finite channels.
fn check<T: Contract>(
    call: &Call<'_, T>,
    states: Option<&[Welford]>,
    bad: &[bool],
    dx: &[T],
    vectors: &[Vec<T>; 4],
) {
    let problem = call.problem;
    for c in call.checked().filter(|c| !bad[*c]) {
        let [x, dy, dx] = [&problem.x, &problem.dy, dx].map(|tensor| call.channel(tensor, c));
        if x.is_empty() {
            let zero = vectors.iter().all(|vector| vector[c] == T::default());
            assert!(zero, "{}", call.what("gradient", c));
            continue;
        }
        let (gamma, _) = affine(problem, c);
        let (mean, var) = (problem.mean[c].to_f64(), problem.var[c].to_f64());
        let normalization = match states {
            Some(_) => Normalization::training(&Statistics::of(&x), problem.eps, gamma, 0.0),
            None => Normalization::inference(mean, var, problem.eps, gamma, 0.0),
        };
        if states.is_none() && (var + problem.eps < 0.0 || var.is_nan()) {
            let nan = dx.iter().chain([&vectors[0][c]]).all(|value| value.same(&T::NAN));
            assert!(nan, "{}: not NaN with a variance of {var}", call.what("gradient", c));
            continue;
        }
        let Normalization { mean, invstd, .. } = normalization;
        let given = [mean.hi, invstd, gamma];
        let values = || given[1..].iter().copied().chain(dy.iter().map(|dy| dy.to_f64()));
        let finite = mean.hi.is_finite() && x.iter().all(|x| x.to_f64().is_finite());
        if !finite || !values().all(|value| value.is_finite() && is_in_range::<T>(value)) {
            continue;
        }
        let exact = Gradients::of(normalization, &x, &dy, states.is_some());
        let gain = (gamma * invstd).abs();
        let [dgamma, dbeta] = [exact.dgamma, exact.dbeta];
        // Where dy is large next to the mean, whose rounding it multiplies: see "Known limits".
        let of_mean = T::LEFT * dbeta.scale;
        // Each with the size of what it is made of: where that leaves f64's range, so may it, whatever its factors are.
        // An xhat that even pairs have no room for is none there, which `max` would leave out.
        let xhat = |x: &T| Some(normalization.xhat(x.to_f64()).abs()).filter(|xhat| !xhat.is_nan());
        let of_xhat = x.iter().map(|x| xhat(x).unwrap_or(f64::INFINITY)).fold(0.0, f64::max);
        let of_product = exact.product_scale().max(dgamma.scale).max(of_xhat);
        let all = [
            ("dgamma", dgamma, of_mean, of_product),
            ("dbeta", dbeta, 0.0, dbeta.scale),
            ("dmean", exact.dmean(), 0.0, dbeta.scale),
            ("dvar", exact.dvar(), 0.5 * gain * invstd * of_mean, of_product),
        ];
        for (vector, (name, exact, absolute, sum)) in vectors.iter().zip(all) {
            if !sum.is_finite() && !vector[c].to_f64().is_finite() {
                continue;
            }
            let what = call.what(name, c);
            let bound = Bound { relative: T::OF_SUMS, absolute };
            assert_value(format_args!("{what}, {normalization:?}"), vector[c], exact, bound);
        }
        // Nothing is promised of dx there.
        if !is_gain_in_range::<T>(gamma, invstd) {
            continue;
        }
        // The kernel's coefficients, rounded, by what they are multiplied with: see "Known limits".
        let rounding = T::ROUNDING * (2.0 * gain.sqrt()).max(2.0) * (2.0 + (x.len() as f64).sqrt());
        let rms = (dy.iter().map(|dy| dy.to_f64().powi(2)).sum::<f64>() / dy.len() as f64).sqrt();
        for (i, ((x, dy), dx)) in x.iter().zip(&dy).zip(&dx).enumerate() {
            let (x, dy) = (x.to_f64(), dy.to_f64());
            let left = match states {
                // The sums of dy and of dy * xhat, where their terms cancel: see "Known limits".
                Some(_) => T::LEFT * gain * (1.0 + normalization.xhat(x).abs()) * rms,
                None => 0.0,
            };
            let what = call.what("dx", c);
            let bound = Bound { relative: T::OF_DX, absolute: left + rounding };
            assert_value(
                format_args!("{what}[{i}], x {x:e}, dy {dy:e}, {exact:?}"),
                *dx,
                exact.dx(x, dy),
                bound,
            );
        }
    }
}
