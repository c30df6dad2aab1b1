//! Tensors of bf16 and f16: every operation, to the bit what it gives on the tensors widened to f32, rounded once.

use std::fmt::Debug;

use batchnorm::{Activation, Backward, Gradients, Inference, Layout, Statistics, Storage, Training, Welford};
use half::{bf16, f16};

use super::fused::Form;
use super::matrix::{Canary, Configuration, Guarded, Placement, Problem, assert_same, fnv, permute};

/// A number of 16 bits, and how it is rounded to.
pub trait Number: Storage<Arithmetic = f32> + Canary {
    /// "bf16" or "f16".
    const NAME: &'static str;
    /// The number of these bits.
    fn of_bits(bits: u16) -> Self;
    fn bits(self) -> u16;
    /// The nearest number, ties to even; any NaN the canonical one. By the crate `half`.
    fn rounded(value: f32) -> Self;
}

macro_rules! numbers {
    ($($number:ident: $name:literal, $nan:literal;)*) => {$(
        impl Canary for $number {
            fn canary() -> Self {
                // A NaN that is not the canonical one.
                Self::from_bits(0xffd5)
            }
            fn same(&self, other: &Self) -> bool {
                self.to_bits() == other.to_bits()
            }
        }

        impl Number for $number {
            const NAME: &'static str = $name;
            fn of_bits(bits: u16) -> Self {
                Self::from_bits(bits)
            }
            fn bits(self) -> u16 {
                self.to_bits()
            }
            fn rounded(value: f32) -> Self {
                if value.is_nan() { Self::from_bits($nan) } else { Self::from_f32(value) }
            }
        }
    )*};
}
numbers! {
    bf16: "bf16", 0x7fc0;
    f16: "f16", 0x7e00;
}

/// A problem whose tensors are of numbers.
#[derive(Debug, Clone)]
pub struct Halves<H> {
    pub x: Vec<H>,
    pub dy: Vec<H>,
    pub z: Vec<H>,
    /// The same, widened, and what is per channel.
    pub wide: Problem<f32>,
}

impl<H: Number> Halves<H> {
    /// Of these tensors, in the order of NCHW.
    pub fn of(wide: Problem<f32>, [x, dy, z]: [Vec<H>; 3]) -> Self {
        let widened = |tensor: &[H]| tensor.iter().map(|number| number.widened()).collect();
        let wide = Problem { x: widened(&x), dy: widened(&dy), z: widened(&z), ..wide };
        Self { x, dy, z, wide }
    }

    /// As of f32, rounded.
    pub fn new(dims: &[usize], seed: u64) -> Self {
        let wide = Problem::<f32>::new(dims, seed);
        let rounded = |tensor: &[f32]| tensor.iter().map(|x| H::rounded(*x)).collect::<Vec<_>>();
        let tensors = [rounded(&wide.x), rounded(&wide.dy), rounded(&wide.z)];
        Self::of(wide, tensors)
    }
}

/// What all operations gave, in the order of NCHW.
#[derive(Debug, Clone, PartialEq)]
pub struct Outcome<Y> {
    /// y of training and of inference, and their masks.
    pub y: [Vec<Y>; 2],
    pub masks: [Vec<u64>; 2],
    /// dx and dz of training's gradients, then of inference's.
    pub tensors: [[Vec<Y>; 2]; 2],
    /// dgamma, dbeta, dmean, dvar of each.
    pub vectors: [[Vec<f32>; 4]; 2],
    pub states: Vec<Welford>,
}

impl Outcome<f32> {
    /// Each tensor rounded once.
    pub fn rounded<H: Number>(self) -> Outcome<H> {
        let round = |tensor: Vec<f32>| tensor.into_iter().map(H::rounded).collect::<Vec<H>>();
        Outcome {
            y: self.y.map(round),
            masks: self.masks,
            tensors: self.tensors.map(|pass| pass.map(round)),
            vectors: self.vectors,
            states: self.states,
        }
    }
}

impl<Y: Canary> Outcome<Y> {
    /// Asserts that all is the same to the bit.
    #[track_caller]
    pub fn assert_same(&self, expected: &Self, what: &str) {
        for (i, (got, expected)) in self.y.iter().zip(&expected.y).enumerate() {
            assert_same(format_args!("{what}: y {i}"), got, expected);
        }
        for (i, (got, expected)) in self.masks.iter().zip(&expected.masks).enumerate() {
            assert_same(format_args!("{what}: mask {i}"), got, expected);
        }
        for pass in 0..2 {
            for (name, i) in [("dx", 0), ("dz", 1)] {
                let (got, expected) = (&self.tensors[pass][i], &expected.tensors[pass][i]);
                assert_same(format_args!("{what}: {name} {pass}"), got, expected);
            }
            for (got, expected) in self.vectors[pass].iter().zip(&expected.vectors[pass]) {
                assert_same(format_args!("{what}: vector {pass}"), got, expected);
            }
        }
        assert_same(format_args!("{what}: states"), &self.states, &expected.states);
    }

    /// FNV-1a of all bits, on from `hash`; `bits` are those of a number.
    pub fn hash(&self, hash: u64, bits: impl Fn(&Y) -> u64) -> u64 {
        let tensors = self.y.iter().chain(self.tensors.iter().flatten()).flatten().map(bits);
        let vectors = self.vectors.iter().flatten().flatten().map(|value| u64::from(value.to_bits()));
        tensors.chain(vectors).chain(self.masks.iter().flatten().copied()).fold(hash, fnv)
    }
}

/// Which of the ways to place tensors is taken: outputs apart, over x or dy, over the residual or as dz over dy.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Places {
    Apart,
    OverFirst,
    OverSecond,
}

/// All operations on tensors of S, with y, dy, the residual and dz of Y; the former are laid out by `layout`.
pub fn outcome<S: Storage<Arithmetic = f32> + Canary, Y: Storage<Arithmetic = f32> + Canary>(
    wide: &Problem<f32>,
    (x, dy, z): (&[S], &[Y], &[Y]),
    form: Form,
    (layout, at, places): (Layout, Placement, Places),
    what: &str,
) -> (Outcome<Y>, [Vec<S>; 2]) {
    let shape = wide.shape(layout);
    let lay = |tensor: &[S]| Guarded::holding(&permute(&shape, tensor, true), at.inputs);
    let lay_y = |tensor: &[Y]| Guarded::holding(&permute(&shape, tensor, true), at.inputs);
    let (x, dy, z) = (lay(x), lay_y(dy), lay_y(z));
    let params = wide.params().activation(form.activation);
    let (len, c) = (shape.len(), shape.channels());
    let linear = !matches!(form.activation, Activation::HardSwish | Activation::Silu);
    let new = || Guarded::<Y>::new(len, at.outputs);
    let back = |tensor: Guarded<Y>| permute(&shape, &tensor.take(what), false);
    let vector = || Guarded::<f32>::new(c, at.outputs);

    let mut states = Guarded::new(c, 0);
    Statistics::new(&shape).x(x.get()).states(states.get_mut()).run().unwrap();
    let statistics = states.take(what);
    let mut states = Guarded::new(c, 0);
    let mut masks = [(); 2].map(|()| Guarded::<u64>::new(if linear { shape.mask_len() } else { 0 }, 0));
    let [training_mask, inference_mask] = &mut masks;
    let forward = |over_z: bool| if over_z { lay_y(&permute(&shape, z.get(), false)) } else { new() };
    let over_z = form.residual && places == Places::OverSecond;
    let mut y = [forward(over_z), forward(over_z)];
    let [training_y, inference_y] = &mut y;
    macro_rules! forward {
        ($call:expr, $y:ident, $mask:ident) => {{
            let mut call = $call.x(x.get());
            if linear {
                call = call.mask($mask.get_mut());
            }
            call = match (form.residual, over_z) {
                (true, true) => call.residual_of_in_place($y.get_mut()),
                (true, false) => call.residual_of(z.get()).y_of($y.get_mut()),
                (false, _) => call.y_of($y.get_mut()),
            };
            call.run().unwrap();
        }};
    }
    forward!(Training::<S>::new(&shape, params).states(states.get_mut()), training_y, training_mask);
    forward!(Inference::<S>::new(&shape, params).frozen(&wide.mean, &wide.var), inference_y, inference_mask);
    let states = states.take(what);
    assert_same(format_args!("{what}: states of training"), &states, &statistics);
    let masks = masks.map(|mask| mask.take(what));

    let needs_mask = form.residual && form.activation != Activation::Identity;
    let mut dx_places: Vec<Vec<S>> = Vec::new();
    let mut tensors: Vec<[Vec<Y>; 2]> = Vec::new();
    let mut vectors: Vec<[Vec<f32>; 4]> = Vec::new();
    for (pass, mask) in masks.iter().enumerate() {
        let (mut dx, mut dz) = (Guarded::<S>::new(len, at.outputs), new());
        let mut outputs = [(); 4].map(|()| vector());
        let [dgamma, dbeta, dmean, dvar] = &mut outputs;
        let gradients = Gradients::<S>::new().dgamma(dgamma.get_mut()).dbeta(dbeta.get_mut());
        let mut gradients = gradients.dmean(dmean.get_mut()).dvar(dvar.get_mut());
        let mut call = Backward::<S>::new(&shape, params);
        let (mut x, mut dy) = (x.clone(), dy.clone());
        let over_x = places == Places::OverFirst;
        call = match over_x {
            true => call.x_to_dx(x.get_mut()),
            false => {
                gradients = gradients.dx(dx.get_mut());
                call.x(x.get())
            }
        };
        let over_dy = form.residual && places == Places::OverSecond;
        call = match (form.residual, over_dy) {
            (true, true) => call.dy_of_to_dz(dy.get_mut()),
            (true, false) => call.dy_of(dy.get()).dz_of(dz.get_mut()),
            (false, _) => call.dy_of(dy.get()),
        };
        if needs_mask {
            call = call.mask(mask);
        }
        call = match pass {
            0 => call.states(&states),
            _ => call.frozen(&wide.mean, &wide.var),
        };
        call.gradients(gradients).run().unwrap();
        let dx = if over_x { x } else { dx };
        let dz = match (form.residual, over_dy) {
            (true, true) => back(dy),
            (true, false) => back(dz),
            (false, _) => Vec::new(),
        };
        dx_places.push(permute(&shape, &dx.take(what), false));
        tensors.push([Vec::new(), dz]);
        vectors.push(outputs.map(|output| output.take(what)));
    }
    let [a, b]: [[Vec<Y>; 2]; 2] = tensors.try_into().unwrap_or_default();
    let [c, d]: [[Vec<f32>; 4]; 2] = vectors.try_into().unwrap_or_default();
    let outcome = Outcome { y: y.map(back), masks, tensors: [a, b], vectors: [c, d], states };
    (outcome, dx_places.try_into().unwrap_or_default())
}

/// What is right: the operation on the widened tensors, outputs apart.
pub fn expected(wide: &Problem<f32>, form: Form, layout: Layout) -> (Outcome<f32>, [Vec<f32>; 2]) {
    let way = (layout, Placement::default(), Places::Apart);
    outcome(wide, (&wide.x[..], &wide.dy[..], &wide.z[..]), form, way, "f32")
}

fn round<H: Number>(tensors: &[Vec<f32>; 2]) -> [Vec<H>; 2] {
    tensors.each_ref().map(|tensor| tensor.iter().map(|value| H::rounded(*value)).collect())
}

/// Asserts that a form gives what is right, of 16-bit numbers throughout and mixed with f32, in these configurations.
pub fn check<H: Number>(
    problem: &Halves<H>,
    form: Form,
    configurations: &[Configuration],
    layouts: &[Layout],
) {
    for &layout in layouts {
        let (wide, wide_dx) = expected(&problem.wide, form, layout);
        let (rounded, rounded_dx) = (wide.clone().rounded::<H>(), round::<H>(&wide_dx));
        for (i, configuration) in configurations.iter().enumerate() {
            let places = [Places::Apart, Places::OverFirst, Places::OverSecond][i % 3];
            let at = Placement { inputs: i * 5 % 33, outputs: (i * 7 + 3) % 37 };
            let dims = &problem.wide.dims;
            let what =
                format!("{} {form:?} {dims:?} {layout}, {configuration:?}, {places:?}, {at:?}", H::NAME);
            let tensors = (&problem.x[..], &problem.dy[..], &problem.z[..]);
            let (got, dx) =
                configuration.run(|| outcome(&problem.wide, tensors, form, (layout, at, places), &what));
            got.assert_same(&rounded, &what);
            dx.iter().zip(&rounded_dx).for_each(|(got, expected)| assert_same(&what, got, expected));
            // x and dx of 16 bits, all else of f32; and the other way round.
            let tensors = (&problem.x[..], &problem.wide.dy[..], &problem.wide.z[..]);
            let (got, dx) =
                configuration.run(|| outcome(&problem.wide, tensors, form, (layout, at, places), &what));
            got.assert_same(&wide, &format!("{what}, y of f32"));
            dx.iter().zip(&rounded_dx).for_each(|(got, expected)| assert_same(&what, got, expected));
            let tensors = (&problem.wide.x[..], &problem.dy[..], &problem.z[..]);
            let (got, dx) =
                configuration.run(|| outcome(&problem.wide, tensors, form, (layout, at, places), &what));
            got.assert_same(&rounded, &format!("{what}, x of f32"));
            dx.iter().zip(&wide_dx).for_each(|(got, expected)| assert_same(&what, got, expected));
        }
    }
}
