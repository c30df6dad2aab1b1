//! Every operation fused with an activation, a residual and a mask, beside the composition of the separate operations: the
//! same bits.

use std::cell::Cell;

use batchnorm::{
    Activation, Backward, Gradients, Inference, Layout, Params, Training, Welford, backward, backward_frozen,
    forward_inference, forward_training, statistics,
};

use super::data;
use super::matrix::{Bits, Configuration, Guarded, Inputs, LAYOUTS, Placement, Problem, assert_same, fnv};

/// Each activation; of those with numbers, some of each kind.
pub const ACTIVATIONS: [Activation; 9] = [
    Activation::Identity,
    Activation::Relu,
    Activation::LeakyRelu { slope: 0.1 },
    Activation::LeakyRelu { slope: -0.75 },
    Activation::Clip { lo: 0.0, hi: 6.0 },
    Activation::Clip { lo: f64::NEG_INFINITY, hi: 0.25 },
    Activation::Clip { lo: -0.5, hi: f64::INFINITY },
    Activation::HardSwish,
    Activation::Silu,
];

/// What comes after a normalization.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Form {
    pub activation: Activation,
    pub residual: bool,
}

/// Each activation, with a residual where it goes with one.
pub fn forms() -> Vec<Form> {
    let with = |residual| ACTIVATIONS.map(|activation| Form { activation, residual });
    let forms = [with(false), with(true)];
    forms.into_iter().flatten().filter(|form| !form.residual || goes_with_mask(form.activation)).collect()
}

/// Whether an activation goes with a residual and a mask.
fn goes_with_mask(activation: Activation) -> bool {
    !matches!(activation, Activation::HardSwish | Activation::Silu)
}

/// Which of the many ways to call an operation [`run_fused`] takes: every `of`th, from some on.
#[derive(Debug, Clone, Copy)]
pub struct Share {
    pub from: usize,
    pub of: usize,
}

impl Share {
    /// All.
    pub const EVERY: Self = Self { from: 0, of: 1 };
}

/// What a fused form gave, in the order of NCHW.
#[derive(Debug, Clone)]
pub struct FusedResults<T> {
    /// Of training, then of inference; and the bits of their masks, where the activation has one.
    pub y: [Vec<T>; 2],
    pub masks: [Vec<u64>; 2],
    /// dx, dgamma, dbeta, dmean, dvar of training and with given statistics; then dz.
    pub gradients: [[Vec<T>; 6]; 2],
}

impl<T: Bits> FusedResults<T> {
    /// Asserts that all is the same to the bit.
    #[track_caller]
    pub fn assert_same(&self, expected: &Self, what: &str) {
        let named = |results: &Self| {
            let values = results.y.iter().chain(results.gradients.iter().flatten());
            (values.cloned().collect::<Vec<_>>(), results.masks.clone())
        };
        let ((got, masks), (expected, expected_masks)) = (named(self), named(expected));
        const NAMES: [&str; 6] = ["dx", "dgamma", "dbeta", "dmean", "dvar", "dz"];
        let names = ["y", "y of inference"].into_iter().chain(NAMES).chain(NAMES);
        for ((name, got), expected) in names.zip(&got).zip(&expected) {
            assert_same(format_args!("{what}: {name}"), got, expected);
        }
        for (got, expected) in masks.iter().zip(&expected_masks) {
            assert_same(format_args!("{what}: mask"), got, expected);
        }
    }

    /// FNV-1a of all bits, on from `hash`.
    pub fn hash(&self, hash: u64) -> u64 {
        let values = self.y.iter().chain(self.gradients.iter().flatten()).flatten();
        let bits = values.map(|value| value.bits()).chain(self.masks.iter().flatten().copied());
        bits.fold(hash, fnv)
    }
}

/// a + b, rounded once.
fn sum<T: Bits>(a: T, b: T) -> T {
    T::from_f64(a.to_f64() + b.to_f64())
}

/// Whether an activation's derivative is 1, or u NaN; by bounds that are elements.
fn is_open<T: Bits>(activation: Activation, u: T) -> bool {
    let u = u.to_f64();
    let largest = if size_of::<T>() == 4 { f32::MAX.into() } else { f64::MAX };
    let element = |bound: f64| T::from_f64(bound).to_f64();
    match activation {
        Activation::Relu | Activation::LeakyRelu { .. } => u > 0.0 || u.is_nan(),
        Activation::Clip { lo, hi } => {
            let (lo, hi) = (element(lo.min(largest)), element(hi.max(-largest)));
            let closed = (lo.is_finite() && u <= lo) || (hi.is_finite() && u >= hi);
            !closed
        }
        _ => true,
    }
}

/// A bit for each element, as a mask has it.
fn mask_of(bits: impl Iterator<Item = bool>, words: usize) -> Vec<u64> {
    let mut mask = vec![0; words];
    bits.enumerate().for_each(|(i, bit)| mask[i / 64] |= u64::from(bit) << (i % 64));
    mask
}

fn bit(mask: &[u64], i: usize) -> bool {
    mask[i / 64] >> (i % 64) & 1 == 1
}

/// g by a mask: of an activation that has one, by the sign of some u.
fn masked_gradient<T: Bits>(activation: Activation, mask: &[u64], dy: &[T]) -> Vec<T> {
    let signs: Vec<T> = (0..dy.len()).map(|i| T::from_f64(if bit(mask, i) { 1.0 } else { -1.0 })).collect();
    let activation = match activation {
        Activation::Clip { .. } => Activation::Relu,
        other => other,
    };
    gradient(activation, &signs, dy)
}

fn gradient<T: Bits>(activation: Activation, u: &[T], dy: &[T]) -> Vec<T> {
    let mut g = dy.to_vec();
    activation.gradient(u, &mut g).unwrap();
    g
}

/// Where an output goes.
#[derive(Debug, Clone, Copy, PartialEq)]
enum To {
    Nowhere,
    Apart,
    OverX,
    OverDy,
    OverZ,
}

/// What a backward pass writes: dx, dz and the gradients per channel.
type Wanted = (To, To, bool);

const WITHOUT_DZ: [Wanted; 5] = [
    (To::Apart, To::Nowhere, true),
    (To::OverX, To::Nowhere, true),
    (To::OverDy, To::Nowhere, true),
    (To::Apart, To::Nowhere, false),
    (To::Nowhere, To::Nowhere, true),
];

const WITH_DZ: [Wanted; 10] = [
    (To::Apart, To::Apart, true),
    (To::Apart, To::OverDy, true),
    (To::OverX, To::Apart, true),
    (To::OverX, To::OverDy, true),
    (To::OverDy, To::Apart, true),
    (To::Nowhere, To::Apart, true),
    (To::Nowhere, To::OverDy, true),
    (To::Nowhere, To::Apart, false),
    (To::Nowhere, To::OverDy, false),
    (To::Apart, To::Apart, false),
];

/// A problem in a layout, and what comes after the normalization.
struct Case<'a, T> {
    inputs: Inputs<'a, T>,
    form: Form,
    states: Vec<Welford>,
    share: Share,
    calls: Cell<usize>,
}

impl<T: Bits> Case<'_, T> {
    /// Whether the next call is among those to make.
    fn takes(&self) -> bool {
        let call = self.calls.replace(self.calls.get() + 1);
        call % self.share.of == self.share.from % self.share.of
    }

    fn params(&self) -> Params<'_, T> {
        self.inputs.params().activation(self.form.activation)
    }

    /// u by the separate operations, as it lies in memory.
    fn before_activation(&self, frozen: bool) -> Vec<T> {
        let Inputs { shape, x, z, mean, var, .. } = &self.inputs;
        let mut u = vec![T::canary(); shape.len()];
        if frozen {
            let (mean, var) = (mean.get(), var.get());
            forward_inference(shape, x.get(), mean, var, &self.inputs.params(), &mut u).unwrap();
        } else {
            let mut states = vec![Welford::new(); shape.channels()];
            forward_training(shape, x.get(), &self.inputs.params(), &mut u, &mut states).unwrap();
        }
        if self.form.residual {
            u.iter_mut().zip(z.get()).for_each(|(u, z)| *u = sum(*u, *z));
        }
        u
    }

    /// y of u and, if the activation has one, the mask, after the fused passes that give the same.
    fn forward(&self, frozen: bool, u: &[T]) -> (Vec<T>, Option<Vec<u64>>) {
        let Form { activation, residual } = self.form;
        let shape = &self.inputs.shape;
        let mut y = u.to_vec();
        activation.apply(&mut y).unwrap();
        let bits = u.iter().map(|u| is_open(activation, *u));
        let mask = goes_with_mask(activation).then(|| mask_of(bits, shape.mask_len()));
        for to in [To::Apart, To::OverX, To::OverZ] {
            for with_mask in [false, true] {
                let goes = (to != To::OverZ || residual) && (!with_mask || mask.is_some());
                if !goes || !self.takes() {
                    continue;
                }
                let what = format!("{:?}, y {to:?}, mask {with_mask}, frozen {frozen}", self.form);
                let mut got_mask = Guarded::<u64>::new(shape.mask_len(), self.inputs.at.outputs);
                let got = self.call_forward(frozen, to, with_mask.then(|| got_mask.get_mut()));
                assert_same(format_args!("{what}: y"), &got.take(&what), &y);
                if with_mask {
                    let expected = mask.as_deref().unwrap_or_default();
                    assert_same(format_args!("{what}: mask"), &got_mask.take(&what), expected);
                } else {
                    got_mask.assert_untouched(&what);
                }
            }
        }
        (y, mask)
    }

    fn call_forward(&self, frozen: bool, to: To, mask: Option<&mut [u64]>) -> Guarded<T> {
        let Inputs { shape, x, z, mean, var, .. } = &self.inputs;
        let mut output = self.output(to);
        macro_rules! operands {
            ($call:expr) => {{
                let mut call = $call;
                call = match to {
                    To::OverX => call.x_in_place(output.get_mut()),
                    To::OverZ => call.x(x.get()).residual_in_place(output.get_mut()),
                    _ => call.x(x.get()).y(output.get_mut()),
                };
                if self.form.residual && to != To::OverZ {
                    call = call.residual(z.get());
                }
                match mask {
                    Some(mask) => call.mask(mask),
                    None => call,
                }
            }};
        }
        if frozen {
            operands!(Inference::new(shape, self.params())).frozen(mean.get(), var.get()).run().unwrap();
        } else {
            let mut states = self.inputs.states();
            operands!(Training::new(shape, self.params())).states(states.get_mut()).run().unwrap();
            assert_same("states of a fused pass", &states.take("states"), &self.states);
        }
        output
    }

    /// A tensor to write to, which holds what it is written over.
    fn output(&self, to: To) -> Guarded<T> {
        let Inputs { x, dy, z, at, .. } = &self.inputs;
        match to {
            To::Nowhere | To::Apart => self.inputs.tensor(),
            To::OverX => Guarded::holding(x.get(), at.outputs),
            To::OverDy => Guarded::holding(dy.get(), at.outputs),
            To::OverZ => Guarded::holding(z.get(), at.outputs),
        }
    }

    /// dx, dgamma, dbeta, dmean and dvar of g by the separate operations, as they lie in memory, and dz, which is g; after the
    /// fused passes that give the same.
    fn backward(&self, frozen: bool, g: Vec<T>, mask: Option<&[u64]>) -> [Vec<T>; 6] {
        let Inputs { shape, x, mean, var, .. } = &self.inputs;
        let mut dx = vec![T::canary(); shape.len()];
        let mut vectors = [(); 4].map(|()| vec![T::canary(); shape.channels()]);
        let [dgamma, dbeta, dmean, dvar] = &mut vectors;
        let gradients = Gradients::new().dx(&mut dx).dgamma(dgamma).dbeta(dbeta).dmean(dmean).dvar(dvar);
        let (params, x) = (self.inputs.params(), x.get());
        if frozen {
            backward_frozen(shape, x, &g, mean.get(), var.get(), &params, gradients).unwrap();
        } else {
            backward(shape, x, &g, &self.states, &params, gradients).unwrap();
        }
        let [dgamma, dbeta, dmean, dvar] = vectors;
        let expected = [dx, dgamma, dbeta, dmean, dvar, g];
        let has_dz = mask.is_some() || self.form.activation == Activation::Identity;
        for wanted in WITHOUT_DZ.iter().chain(WITH_DZ.iter().filter(|_| has_dz)) {
            if self.takes() {
                self.call_backward(frozen, mask, *wanted, &expected);
            }
        }
        expected
    }

    /// Asserts that a fused pass gives what is expected.
    fn call_backward(&self, frozen: bool, mask: Option<&[u64]>, wanted: Wanted, expected: &[Vec<T>; 6]) {
        let Inputs { shape, x, dy, mean, var, .. } = &self.inputs;
        let (dx_to, dz_to, per_channel) = wanted;
        let (mut dx, mut dz) = (self.output(dx_to), self.output(dz_to));
        let mut vectors = [(); 4].map(|()| self.inputs.vector());
        let [dgamma, dbeta, dmean, dvar] = vectors.each_mut().map(Guarded::get_mut);
        let mut gradients = Gradients::new();
        if per_channel {
            gradients = gradients.dgamma(dgamma).dbeta(dbeta).dmean(dmean).dvar(dvar);
        }
        let mut call = Backward::new(shape, self.params());
        call = if frozen { call.frozen(mean.get(), var.get()) } else { call.states(&self.states) };
        if let Some(mask) = mask {
            call = call.mask(mask);
        }
        let (mut x_given, mut dy_given) = (false, false);
        match dx_to {
            To::OverX => (call, x_given) = (call.x_to_dx(dx.get_mut()), true),
            To::OverDy => (call, dy_given) = (call.dy_to_dx(dx.get_mut()), true),
            To::Apart => gradients = gradients.dx(dx.get_mut()),
            _ => (),
        }
        match dz_to {
            To::OverDy => (call, dy_given) = (call.dy_to_dz(dz.get_mut()), true),
            To::Apart => gradients = gradients.dz(dz.get_mut()),
            _ => (),
        }
        if !x_given {
            call = call.x(x.get());
        }
        if !dy_given {
            call = call.dy(dy.get());
        }
        call.gradients(gradients).run().unwrap();
        let what = format!(
            "{:?}, dx {dx_to:?}, dz {dz_to:?}, mask {}, frozen {frozen}, per channel {per_channel}",
            self.form,
            mask.is_some()
        );
        for (name, to, output, expected) in [("dx", dx_to, dx, &expected[0]), ("dz", dz_to, dz, &expected[5])]
        {
            if to == To::Nowhere {
                output.assert_untouched(name);
            } else {
                assert_same(format_args!("{what}: {name}"), &output.take(&what), expected);
            }
        }
        for (i, vector) in vectors.into_iter().enumerate() {
            if per_channel {
                let name = ["dgamma", "dbeta", "dmean", "dvar"][i];
                assert_same(format_args!("{what}: {name}"), &vector.take(&what), &expected[i + 1]);
            } else {
                vector.assert_untouched(&what);
            }
        }
    }

    /// Forward and backward by the batch's statistics or given ones.
    fn run(&self, frozen: bool) -> (Vec<T>, Vec<u64>, [Vec<T>; 6]) {
        let Form { activation, residual } = self.form;
        let Inputs { shape, dy, .. } = &self.inputs;
        let u = self.before_activation(frozen);
        let (y, mask) = self.forward(frozen, &u);
        let mut gradients = None;
        // u cannot be found from x alone where there was a residual.
        if !residual || activation == Activation::Identity {
            gradients = Some(self.backward(frozen, gradient(activation, &u, dy.get()), None));
        }
        let mut bits = Vec::new();
        if let Some(mask) = mask {
            let g = masked_gradient(activation, &mask, dy.get());
            let of_u = gradient(activation, &u, dy.get());
            for ((u, g), of_u) in u.iter().zip(&g).zip(&of_u) {
                assert!(u.to_f64().is_nan() || g.same(of_u), "{:?}: {u:?}, {g:?}, {of_u:?}", self.form);
            }
            let masked = self.backward(frozen, g, Some(&mask));
            gradients.get_or_insert(masked);
            // Any bits, behind the last element too.
            let rng = &mut data::rng(self.calls.get() as u64);
            let any: Vec<u64> = mask.iter().map(|_| rand::Rng::next_u64(rng)).collect();
            let g = masked_gradient(activation, &any, dy.get());
            self.backward(frozen, g, Some(&any));
            // In the order of NCHW.
            let elements: Vec<T> =
                (0..shape.len()).map(|i| T::from_f64(f64::from(u8::from(bit(&mask, i))))).collect();
            let back = self.inputs.problem.lay_back(self.inputs.layout, &elements);
            bits = mask_of(back.iter().map(|bit| bit.to_f64() == 1.0), shape.mask_len());
        }
        let [dx, vectors @ .., dz] = gradients.unwrap();
        let [dgamma, dbeta, dmean, dvar] = vectors;
        let back = |tensor: Vec<T>| self.inputs.problem.lay_back(self.inputs.layout, &tensor);
        (back(y), bits, [back(dx), dgamma, dbeta, dmean, dvar, back(dz)])
    }
}

/// Runs every operation fused with what comes after, and asserts that each gives the bits of the composition: with and without
/// a mask, in place over each input, with all gradients and with some.
pub fn run_fused<T: Bits>(
    problem: &Problem<T>,
    layout: Layout,
    at: Placement,
    form: Form,
    share: Share,
) -> FusedResults<T> {
    let inputs = Inputs::new(problem, layout, at);
    let mut states = vec![Welford::new(); problem.channels()];
    statistics(&inputs.shape, inputs.x.get(), &mut states).unwrap();
    let case = Case { inputs, form, states, share, calls: Cell::new(0) };
    let ((y, mask, gradients), (inferred, inferred_mask, frozen)) = (case.run(false), case.run(true));
    case.inputs.assert_unchanged();
    FusedResults { y: [y, inferred], masks: [mask, inferred_mask], gradients: [gradients, frozen] }
}

/// Runs a problem in all of the given configurations and both layouts, by turns: each with every `stride`th form and every
/// `of`th way to call it.
pub fn check_fused<T: Bits>(
    problem: &Problem<T>,
    configurations: &[Configuration],
    (stride, of): (usize, usize),
) {
    for (i, configuration) in configurations.iter().enumerate() {
        for (j, layout) in LAYOUTS.into_iter().enumerate() {
            let turn = 2 * i + j;
            let at = Placement { inputs: 5 * turn % 16, outputs: 7 * turn % 16 };
            for (k, form) in forms().into_iter().enumerate() {
                if (k + turn) % stride == 0 {
                    let share = Share { from: turn + k / stride, of };
                    configuration.run(|| run_fused(problem, layout, at, form, share));
                }
            }
        }
    }
}
