//! Batch renormalization: the operations and the layer, and what r and d are.

use arbitrary::Arbitrary;
use batchnorm::reference::{self, MeanVar};
use batchnorm::{
    Activation, Backward, BatchNorm, Error, Gradients, Layout, Level, Mode, Params, Parts, Renorm,
    Renormalized, Training, Welford,
};

use crate::common::exact::{Statistics, channel};
use crate::common::fused::Form;
use crate::common::matrix::{self, Configuration, Guarded, Inputs, Placement, assert_same, params};
use crate::operations::fused::After;
use crate::shared::bounds::Contract;
use crate::shared::problem::{Problem, Run};

/// A limit: none, some, or any number.
#[derive(Debug, Clone, Copy, Arbitrary)]
enum Limit {
    /// In 16ths beyond the least.
    Sixteenths(u8),
    Infinite,
    Any(f64),
}

impl Limit {
    fn value(self, least: f64) -> f64 {
        match self {
            Limit::Sixteenths(beyond) => least + f64::from(beyond) / 16.0,
            Limit::Infinite => f64::INFINITY,
            Limit::Any(value) => value,
        }
    }
}

/// The limits of r and d, mostly such as they can be.
#[derive(Debug, Clone, Copy, Arbitrary)]
pub struct Limits {
    r_max: Limit,
    d_max: Limit,
}

impl Limits {
    /// The limits that it stands for.
    pub fn get(self) -> Renorm {
        Renorm { r_max: self.r_max.value(1.0), d_max: self.d_max.value(0.0) }
    }

    /// Whether they are such as they can be.
    pub fn are_good(self) -> bool {
        let Renorm { r_max, d_max } = self.get();
        r_max >= 1.0 && d_max >= 0.0
    }
}

/// What the passes gave, in the order of NCHW.
struct Passes<T> {
    states: Vec<Welford>,
    by: Renormalized<T>,
    /// y, dx, dz.
    tensors: [Vec<T>; 3],
    /// dgamma, dbeta.
    sums: [Vec<T>; 2],
}

impl<T: Contract> Passes<T> {
    fn assert_same(&self, expected: &Self, what: &str) {
        assert_same(format_args!("{what}: states"), &self.states, &expected.states);
        assert_same_corrections(what, &self.by, &expected.by);
        for ((name, got), expected) in ["y", "dx", "dz"].iter().zip(&self.tensors).zip(&expected.tensors) {
            assert_same(format_args!("{what}: {name}"), got, expected);
        }
        for ((name, got), expected) in ["dgamma", "dbeta"].iter().zip(&self.sums).zip(&expected.sums) {
            assert_same(format_args!("{what}: {name}"), got, expected);
        }
    }
}

fn assert_same_corrections<T: Contract>(what: &str, got: &Renormalized<T>, expected: &Renormalized<T>) {
    assert_same(format_args!("{what}: r"), got.r(), expected.r());
    assert_same(format_args!("{what}: d"), got.d(), expected.d());
    assert_same(format_args!("{what}: gamma * r"), got.gamma(), expected.gamma());
    assert_same(format_args!("{what}: beta + gamma * d"), got.beta(), expected.beta());
}

/// The same bits on every level, in both layouts, of the operations and of the layer; near the reference, too.
pub fn check<T: Contract>(problem: &Problem, run: Run, limits: Limits, after: After) {
    let Some((form, _)) = after.form() else { return };
    let problem = problem.make::<T>();
    if !limits.are_good() {
        refused(&problem, run, limits.get());
        return;
    }
    let limits = limits.get();
    let portable = Configuration { level: Level::Portable, threads: 1 };
    let expected = portable.run(|| passes(&problem, Layout::Nchw, Placement::default(), limits, form));
    let got = run.configuration().run(|| passes(&problem, run.layout(), run.placement(), limits, form));
    let what = format!("{} {:?}, {limits:?}, {run:?}", T::NAME, problem.dims);
    got.assert_same(&expected, &what);
    check_corrections(&problem, limits, &expected);
    check_near(&problem, limits, form, &expected);
}

/// Limits that are none are an error of every call that takes them, before anything is written.
fn refused<T: Contract>(problem: &matrix::Problem<T>, run: Run, limits: Renorm) {
    let inputs = Inputs::new(problem, run.layout(), run.placement());
    let (mut y, mut states, mut to) = (inputs.tensor(), inputs.states(), Renormalized::new());
    let (mean, var) = (inputs.mean.get(), inputs.var.get());
    let training = Training::new(&inputs.shape, inputs.params()).x(inputs.x.get()).y(y.get_mut());
    let result = training.states(states.get_mut()).renorm(limits, mean, var, &mut to).run();
    assert!(matches!(result, Err(Error::Limit { .. })), "{limits:?}: {result:?}");
    y.assert_untouched("y");
    states.assert_untouched("states");
    let result = limits.renormalize(&vec![Welford::new(); mean.len()], mean, var, &inputs.params());
    assert!(matches!(result, Err(Error::Limit { .. })), "{limits:?}: {result:?}");
    let mut layer = BatchNorm::<T>::new(problem.channels());
    let result = layer.set_renorm(Some(limits));
    assert!(matches!(result, Err(Error::Limit { .. })) && layer.renorm().is_none(), "{limits:?}: {result:?}");
}

/// Forward and backward by the operations, after the layer and the calls by states that give the same.
fn passes<T: Contract>(
    problem: &matrix::Problem<T>,
    layout: Layout,
    at: Placement,
    limits: Renorm,
    Form { activation, residual }: Form,
) -> Passes<T> {
    let inputs = Inputs::new(problem, layout, at);
    let Inputs { shape, x, dy, z, mean, var, .. } = &inputs;
    let (mean, var) = (mean.get(), var.get());
    let params = inputs.params().activation(activation);
    let mut mask = residual.then(|| Guarded::<u64>::new(shape.mask_len(), at.outputs));
    let (mut y, mut states, mut by) = (inputs.tensor(), inputs.states(), Renormalized::new());
    let mut training = Training::new(shape, params).x(x.get()).y(y.get_mut()).states(states.get_mut());
    if let Some(mask) = &mut mask {
        training = training.residual(z.get()).mask(mask.get_mut());
    }
    training.renorm(limits, mean, var, &mut by).run().unwrap();
    let (y, states) = (y.take("y"), states.take("states"));
    let mask = mask.map(|mask| mask.take("mask"));

    let again = limits.renormalize(&states, mean, var, &params).unwrap();
    assert_same_corrections("by states", &again, &by);
    // Batch norm by the gamma and beta that came of it.
    let (mut plain, mut plain_states) = (inputs.tensor(), inputs.states());
    let mut training = Training::new(shape, by.params(&params)).x(x.get()).y(plain.get_mut());
    if residual {
        training = training.residual(z.get());
    }
    training.states(plain_states.get_mut()).run().unwrap();
    assert_same("y by gamma * r and beta + gamma * d", &plain.take("y"), &y);

    let [mut dx, mut dz] = [(); 2].map(|()| inputs.tensor());
    let [mut dgamma, mut dbeta] = [(); 2].map(|()| inputs.vector());
    let mut gradients = Gradients::new().dx(dx.get_mut()).dgamma(dgamma.get_mut()).dbeta(dbeta.get_mut());
    let mut backward = Backward::new(shape, by.params(&params)).x(x.get()).dy(dy.get()).states(&states);
    if let Some(mask) = &mask {
        gradients = gradients.dz(dz.get_mut());
        backward = backward.mask(mask);
    }
    backward.gradients(gradients).run().unwrap();
    by.gamma_gradient(dbeta.get(), dgamma.get_mut()).unwrap();
    let (tensors, sums) = (
        [y, dx.take("dx"), if residual { dz.take("dz") } else { Vec::new() }],
        [dgamma.take("dgamma"), dbeta.take("dbeta")],
    );
    check_layer(&inputs, limits, Form { activation, residual }, &tensors, &sums);
    inputs.assert_unchanged();
    let back = |tensor: Vec<T>| if tensor.is_empty() { tensor } else { problem.lay_back(layout, &tensor) };
    Passes { states, by, tensors: tensors.map(back), sums }
}

/// The layer gives the bits of the operations.
fn check_layer<T: Contract>(
    inputs: &Inputs<'_, T>,
    limits: Renorm,
    Form { activation, residual }: Form,
    [y, dx, dz]: &[Vec<T>; 3],
    [dgamma, dbeta]: &[Vec<T>; 2],
) {
    let Inputs { shape, problem, x, dy, z, .. } = inputs;
    let mut layer = BatchNorm::from_parts(Parts {
        gamma: problem.gamma.clone(),
        beta: problem.beta.clone(),
        running_mean: problem.mean.clone(),
        running_var: problem.var.clone(),
        eps: problem.eps,
        activation,
        renorm: Some(limits),
        ..Parts::new(0)
    })
    .unwrap();
    let (mode, [mut y_of, mut dx_of, mut dz_of]) =
        (Mode::TrainingKeepRunning, [(); 3].map(|()| inputs.tensor()));
    if residual {
        layer.forward_with_residual(mode, shape, x.get(), z.get(), y_of.get_mut()).unwrap();
        let outputs = (dx_of.get_mut(), dz_of.get_mut());
        layer.backward_with_residual(shape, x.get(), dy.get(), outputs.0, outputs.1).unwrap();
        assert_same("dz of the layer", dz_of.get(), dz);
    } else {
        layer.forward(mode, shape, x.get(), y_of.get_mut()).unwrap();
        layer.backward(shape, x.get(), dy.get(), dx_of.get_mut()).unwrap();
    }
    assert_same("y of the layer", y_of.get(), y);
    assert_same("dx of the layer", dx_of.get(), dx);
    assert_same("dgamma of the layer", layer.dgamma(), dgamma);
    assert_same("dbeta of the layer", layer.dbeta(), dbeta);
}

/// r and d of the exact statistics, as far as a state may be off; gamma * r and beta + gamma * d, each rounded once.
fn check_corrections<T: Contract>(problem: &matrix::Problem<T>, limits: Renorm, got: &Passes<T>) {
    let shape = problem.shape(Layout::Nchw);
    let by = &got.by;
    for c in 0..problem.channels() {
        let (r, d) = (by.r()[c], by.d()[c]);
        let gamma = problem.gamma.as_ref().map_or(T::from_f64(1.0), |gamma| gamma[c]);
        let beta = problem.beta.as_ref().map_or(T::default(), |beta| beta[c]);
        let of_r = if r == 1.0 { gamma } else { T::from_f64(gamma.to_f64() * r) };
        let of_d = if d == 0.0 { beta } else { T::from_f64(beta.to_f64() + gamma.to_f64() * d) };
        assert_same(format_args!("gamma * r of channel {c}"), &by.gamma()[c..=c], &[of_r]);
        assert_same(format_args!("beta + gamma * d of channel {c}"), &by.beta()[c..=c], &[of_d]);
        let (least, most) = (1.0 / limits.r_max, limits.r_max);
        assert!(r.is_nan() || (least..=most).contains(&r), "r of channel {c}: {r}, {limits:?}");
        assert!(d.is_nan() || d.abs() <= limits.d_max, "d of channel {c}: {d}, {limits:?}");

        let x = channel(&shape, &problem.x, c);
        if x.is_empty() {
            assert_eq!((r, d), (1.0, 0.0), "channel {c} of no elements");
            continue;
        }
        let (mean, var) = (problem.mean[c].to_f64(), problem.var[c].to_f64());
        let sigma = (var + problem.eps).sqrt();
        let finite = x.iter().all(|x| x.to_f64().is_finite()) && mean.is_finite();
        if !finite || !sigma.is_normal() {
            continue;
        }
        let exact = Statistics::of(&x);
        let batch = MeanVar { mean: exact.mean(), var: exact.var() };
        // Beyond that, squares leave f64's range.
        if !(exact.scaled_var() == 0.0 || (1e-290..1e290).contains(&batch.var)) {
            continue;
        }
        let expected = reference::corrections(&[batch], &[mean], &[var], &limits, problem.eps)[0];
        let of_var = T::var_bound(batch.var) / (batch.var + problem.eps).max(f64::MIN_POSITIVE);
        let bound_of_r = expected.r * (of_var + 2f64.powi(-50)) + f64::MIN_POSITIVE;
        let off = T::mean_bound(batch.mean, batch.var.sqrt()) + T::ROUNDING;
        let rounding = 2f64.powi(-51) * (batch.mean.abs() + mean.abs());
        let bound_of_d = (off + rounding) / sigma + 2f64.powi(-50) * expected.d.abs();
        for (name, got, expected, bound) in
            [("r", r, expected.r, bound_of_r), ("d", d, expected.d, bound_of_d)]
        {
            let near = got == expected || (got - expected).abs() <= bound;
            assert!(near, "{name} of channel {c}: {got:e}, {expected:e} by the reference, bound {bound:e}");
        }
    }
}

/// Numbers from which nothing that the reference computes leaves f32's range.
fn is_tame(value: f64) -> bool {
    value == 0.0 || (1e-6..1e6).contains(&value.abs())
}

/// y and gradients of tame channels near the reference, which is of plain sums.
fn check_near<T: Contract>(problem: &matrix::Problem<T>, limits: Renorm, form: Form, got: &Passes<T>) {
    let Form { activation, residual } = form;
    // How steep the activation is, and what its own numbers are rounded to.
    let (slope, of_bounds) = match activation {
        Activation::LeakyRelu { slope } => (slope.abs().max(1.0), 0.0),
        Activation::Clip { lo, hi } => {
            (1.0, [lo, hi].iter().filter(|bound| bound.is_finite()).map(|bound| bound.abs()).sum())
        }
        _ => (1.2, 0.0),
    };
    if !is_tame(slope) || !is_tame(of_bounds) {
        return;
    }
    let shape = problem.shape(Layout::Nchw);
    let wide = |values: &[T]| values.iter().map(|value| value.to_f64()).collect::<Vec<_>>();
    let [x, z, dy] = [&problem.x, &problem.z, &problem.dy].map(|tensor| wide(tensor));
    let z = residual.then_some(&z[..]);
    let [gamma, beta] = [&problem.gamma, &problem.beta].map(|values| values.as_deref().map(wide));
    let (mean, var) = (wide(&problem.mean), wide(&problem.var));
    let params: Params<'_, f64> =
        params(gamma.as_deref(), beta.as_deref(), problem.eps).activation(activation);
    let [mut y, mut dx] = [(); 2].map(|()| vec![0.0; x.len()]);
    let [mut dgamma, mut dbeta] = [(); 2].map(|()| vec![0.0; shape.channels()]);
    let (batch, by) =
        reference::forward_renormalized(&shape, (&x, z), &limits, (&mean, &var), &params, &mut y);
    let gradients = Gradients::new().dx(&mut dx).dgamma(&mut dgamma).dbeta(&mut dbeta);
    reference::backward_renormalized(&shape, (&x, z), &dy, (&batch, &by), &params, gradients);

    let m = shape.per_channel() as f64;
    for (c, (batch, by)) in batch.iter().zip(&by).enumerate() {
        let of = |tensor: &[f64]| channel(&shape, tensor, c);
        let (x, dy, z) = (of(&x), of(&dy), z.map_or(vec![0.0; m as usize], of));
        let gamma = gamma.as_ref().map_or(1.0, |gamma| gamma[c]).abs();
        let beta = beta.as_ref().map_or(0.0, |beta| beta[c]).abs();
        let (sigma, of_batch) = ((var[c] + problem.eps).sqrt(), (batch.var + problem.eps).sqrt());
        let factors = [gamma, beta, mean[c], by.r, by.d];
        let elements = || x.iter().chain(&dy).chain(&z);
        let tame = sigma >= 1e-6 && of_batch >= 1e-6 && is_tame(sigma) && is_tame(of_batch);
        if x.is_empty() || !tame || !factors.iter().chain(elements()).all(|value| is_tame(*value)) {
            continue;
        }
        let largest = x.iter().fold(0.0, |largest: f64, x| largest.max(x.abs()));
        // What plain sums are off by, in sigmas: their means, and by these the variance.
        let plain = (m + 8.0) * 2f64.powi(-52) * (1.0 + largest / of_batch.min(sigma)).powi(2);
        // The state's variance is to a few ulps of the element.
        let slack = 8.0 * (T::OF_DX + plain);
        if slack > 1e-3 {
            continue;
        }
        // And where the limits leave d, that is off by what the state's mean is.
        let of_d = 2.0 * T::mean_bound(batch.mean, batch.var.sqrt()) / sigma;
        let what = |name: &str, i: usize| format!("{name} {i} of channel {c}, {limits:?}, {activation:?}");
        let near = |name: &str, i: usize, got: T, expected: f64, bound: f64| {
            let got = got.to_f64();
            let near = (got - expected).abs() <= bound + T::NORMAL;
            assert!(near, "{}: {got:e}, {expected:e} by the reference, bound {bound:e}", what(name, i));
        };
        let xhat: Vec<f64> = x.iter().map(|x| (x - batch.mean).abs() / of_batch).collect();
        let got_y = channel(&shape, &got.tensors[0], c);
        for (i, (got, expected)) in got_y.iter().zip(of(&y)).enumerate() {
            let size = gamma * (1.0 + xhat[i] * by.r + by.d.abs()) + beta + z[i].abs();
            let bound = slope * (slack * (1.0 + size + of_bounds) + gamma * of_d);
            near("y", i, *got, expected, bound);
        }
        // Next to a bend either side may be right.
        if activation != Activation::Identity {
            continue;
        }
        let sum: f64 = dy.iter().map(|dy| dy.abs()).sum();
        let product: f64 = dy.iter().zip(&xhat).map(|(dy, xhat)| dy.abs() * (1.0 + xhat)).sum();
        near("dbeta", c, got.sums[1][c], dbeta[c], slack * sum);
        let bound = slack * (by.r * product + (1.0 + by.d.abs()) * sum) + of_d * sum;
        near("dgamma", c, got.sums[0][c], dgamma[c], bound);
        let got_dx = channel(&shape, &got.tensors[1], c);
        for (i, (got, expected)) in got_dx.iter().zip(of(&dx)).enumerate() {
            let terms = dy[i].abs() + sum / m + (1.0 + xhat[i]) * product / m;
            near("dx", i, *got, expected, slack * gamma * by.r / of_batch * terms);
        }
    }
}
