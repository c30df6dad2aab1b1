//! Problems, the ways to run them (level, threads, layout, alignment), and results that are compared to the bit with
//! each other and within bounds with the scalar reference.

use batchnorm::{
    Backward, BatchNorm, Element, Gradients, Inference, Layout, Level, Params, RunningUpdate,
    RunningVariance, Shape, Training, UpdateRule, Welford, backward, backward_frozen, forward_inference,
    forward_training, reference, reference::MeanVar, statistics, step, update_running,
};
use rand::Rng;

use super::data;

/// Both.
pub const LAYOUTS: [Layout; 2] = [Layout::Nchw, Layout::Nhwc];

/// The thread counts to try.
pub const THREADS: &[usize] = if cfg!(feature = "rayon") { &[1, 2, 3, 7] } else { &[1] };

/// Something that outputs are made of, with a value that no computation leaves.
pub trait Canary: Copy + std::fmt::Debug {
    /// That value.
    fn canary() -> Self;
    /// Whether the bits are the same.
    fn same(&self, other: &Self) -> bool;
}

/// An element, its bits, and what may lie between it and the reference.
pub trait Bits: Element + Canary {
    /// "f32" or "f64".
    const NAME: &'static str;
    /// The one NaN that results may be.
    const NAN: Self;
    /// A NaN that is not that one.
    const OTHER_NAN: Self;
    /// Infinity.
    const INFINITY: Self;
    /// Of |gamma * xhat| + |beta|, the error that y may have.
    const Y: f64;
    /// Of the sum of the absolute values of its terms, the error that dx may have.
    const DX: f64;
    /// Of mean|dy * xhat| * |xhat|, what that is off by where the sum cancels: deviations are rounded before it is taken.
    /// The contract knows no such term; one element in millions needs it.
    const DX_CANCELLED: f64;
    /// Of the sum of absolute values, the error that a sum may have.
    const SUMS: f64;
    /// Of the variance, the error that it may have.
    const VAR: f64;
    /// Of the mean and of the standard deviation, the error that the mean may have.
    const MEAN: [f64; 2];
    /// The bits.
    fn bits(self) -> u64;
}

const fn power(exponent: i32) -> f64 {
    f64::from_bits(((1023 + exponent) as u64) << 52)
}

impl Canary for f32 {
    fn canary() -> Self {
        f32::from_bits(0xffd5_5a5a)
    }
    fn same(&self, other: &Self) -> bool {
        self.to_bits() == other.to_bits()
    }
}

/// The contract's bounds, and half an ulp for the reference's own result.
impl Bits for f32 {
    const NAME: &'static str = "f32";
    const NAN: Self = f32::NAN;
    const OTHER_NAN: Self = f32::from_bits(0xffc1_2345);
    const INFINITY: Self = f32::INFINITY;
    const Y: f64 = power(-21) + power(-24);
    const DX: f64 = power(-20) + power(-24);
    const DX_CANCELLED: f64 = power(-23);
    const SUMS: f64 = power(-21) + power(-24);
    const VAR: f64 = power(-22);
    const MEAN: [f64; 2] = [power(-24), power(-22)];
    fn bits(self) -> u64 {
        self.to_bits().into()
    }
}

impl Canary for f64 {
    fn canary() -> Self {
        f64::from_bits(0xfffa_5a5a_5a5a_5a5a)
    }
    fn same(&self, other: &Self) -> bool {
        self.to_bits() == other.to_bits()
    }
}

/// The contract's bounds; the reference's own sums, which are plain, are allowed for beside them.
impl Bits for f64 {
    const NAME: &'static str = "f64";
    const NAN: Self = f64::NAN;
    const OTHER_NAN: Self = f64::from_bits(0xfff8_1234_5678_9abc);
    const INFINITY: Self = f64::INFINITY;
    const Y: f64 = power(-49);
    const DX: f64 = power(-48);
    const DX_CANCELLED: f64 = power(-52);
    const SUMS: f64 = power(-48);
    const VAR: f64 = power(-50);
    const MEAN: [f64; 2] = [power(-53), power(-49)];
    fn bits(self) -> u64 {
        self.to_bits()
    }
}

impl Canary for u64 {
    fn canary() -> Self {
        0x5a5a_a5a5_c3c3_3c3c
    }
    fn same(&self, other: &Self) -> bool {
        self == other
    }
}

impl Canary for Welford {
    fn canary() -> Self {
        [1.5, -7.25].into_iter().collect()
    }
    /// Equality sees the parts that have no accessor, the bits tell zeros and NaNs apart.
    fn same(&self, other: &Self) -> bool {
        let bits = |state: &Self| (state.count(), state.mean().to_bits(), state.m2().to_bits());
        bits(self) == bits(other) && (self == other || self.m2().is_nan())
    }
}

/// Whether two slices are the same bits.
pub fn same<E: Canary>(left: &[E], right: &[E]) -> bool {
    left.len() == right.len() && left.iter().zip(right).all(|(left, right)| left.same(right))
}

/// Asserts that two slices are the same bits.
#[track_caller]
pub fn assert_same<E: Canary>(what: impl std::fmt::Display, got: &[E], expected: &[E]) {
    assert_eq!(got.len(), expected.len(), "{what}");
    if let Some(i) = got.iter().zip(expected).position(|(got, expected)| !got.same(expected)) {
        panic!("{what}: [{i}] of {} is {:?}, must be {:?} to the bit", got.len(), got[i], expected[i]);
    }
}

/// A slice at some offset from a cache line's start, canaries around it.
#[derive(Debug, Clone)]
pub struct Guarded<E> {
    buffer: Vec<E>,
    start: usize,
    len: usize,
}

impl<E: Canary> Guarded<E> {
    /// Elements before and after; whole lines.
    const MARGIN: usize = 64;

    /// `len` canaries, `offset` elements after a line's start.
    pub fn new(len: usize, offset: usize) -> Self {
        let buffer = vec![E::canary(); len + offset + 3 * Self::MARGIN];
        // A state's size is not an element's: where there is no such place, anywhere.
        let aligned = match buffer.as_ptr().align_offset(64) {
            usize::MAX => 0,
            aligned => aligned,
        };
        Self { buffer, start: aligned + Self::MARGIN + offset, len }
    }

    /// A copy of `values`.
    pub fn holding(values: &[E], offset: usize) -> Self {
        let mut guarded = Self::new(values.len(), offset);
        guarded.get_mut().copy_from_slice(values);
        guarded
    }

    /// The slice.
    pub fn get(&self) -> &[E] {
        &self.buffer[self.start..self.start + self.len]
    }

    /// The slice.
    pub fn get_mut(&mut self) -> &mut [E] {
        &mut self.buffer[self.start..self.start + self.len]
    }

    /// Asserts that the canaries around it live.
    #[track_caller]
    pub fn assert_margins(&self, what: &str) {
        let (before, after) = (&self.buffer[..self.start], &self.buffer[self.start + self.len..]);
        for (side, margin) in [("before", before), ("after", after)] {
            let written = margin.iter().position(|element| !element.same(&E::canary()));
            assert_eq!(written, None, "{what}: written {side} the output of {} elements", self.len);
        }
    }

    /// Asserts that nothing at all has been written.
    #[track_caller]
    pub fn assert_untouched(&self, what: &str) {
        let written = self.buffer.iter().position(|element| !element.same(&E::canary()));
        assert_eq!(written, None, "{what}: written though nothing was to be");
    }

    /// The slice, after a look at the canaries.
    #[track_caller]
    pub fn take(self, what: &str) -> Vec<E> {
        self.assert_margins(what);
        self.get().to_vec()
    }
}

/// What there is to compute on. Tensors lie in the order of NCHW here.
#[derive(Debug, Clone)]
pub struct Problem<T> {
    pub dims: Vec<usize>,
    pub x: Vec<T>,
    pub dy: Vec<T>,
    /// What is added to the normalized x where there is a residual.
    pub z: Vec<T>,
    pub gamma: Option<Vec<T>>,
    pub beta: Option<Vec<T>>,
    /// Given statistics.
    pub mean: Vec<T>,
    pub var: Vec<T>,
    pub eps: f64,
}

/// A variate of mean 0, variance 1 and no tails, by arithmetic that is the same on every machine.
pub fn variate(rng: &mut impl Rng) -> f64 {
    let bits = rng.next_u64();
    let sum: u64 = (0..4).map(|i| (bits >> (16 * i)) & 0xffff).sum();
    (sum as f64 / 65536.0 - 2.0) * 3f64.sqrt()
}

impl<T: Bits> Problem<T> {
    /// `dims` are N, C, spatial axes. Channels differ in mean and spread, and every eleventh is constant.
    pub fn new(dims: &[usize], seed: u64) -> Self {
        let rng = &mut data::rng(seed);
        let (n, c) = (dims[0], dims[1]);
        let s: usize = dims[2..].iter().product();
        let mut x = Vec::with_capacity(n * c * s);
        for _ in 0..n {
            for channel in 0..c {
                let mean = [0.0, 3.0, -1000.0, 1e4, 0.01][channel % 5];
                let std = if channel % 11 == 7 { 0.0 } else { [1.0, 0.5, 2.0][channel % 3] };
                x.extend((0..s).map(|_| T::from_f64(mean + std * variate(rng))));
            }
        }
        let mut variates = |len, mean| (0..len).map(|_| T::from_f64(mean + variate(rng))).collect::<Vec<T>>();
        let dy = variates(n * c * s, 0.1);
        let (gamma, beta, mean) = (variates(c, 0.5), variates(c, 0.0), variates(c, 0.2));
        let var = variates(c, 0.0).into_iter().map(|v| T::from_f64(0.3 + v.to_f64() * v.to_f64())).collect();
        let rng = &mut data::rng(seed ^ 1 << 63);
        let z = x.iter().map(|_| T::from_f64(variate(rng))).collect();
        Self { dims: dims.to_vec(), x, dy, z, gamma: Some(gamma), beta: Some(beta), mean, var, eps: 1e-5 }
    }

    /// Without gamma and beta.
    pub fn plain(self) -> Self {
        Self { gamma: None, beta: None, ..self }
    }

    /// The shape in some layout.
    pub fn shape(&self, layout: Layout) -> Shape {
        Shape::new(layout, self.dims[0], self.dims[1], &self.dims[2..]).unwrap()
    }

    /// Channels.
    pub fn channels(&self) -> usize {
        self.dims[1]
    }

    /// A tensor in a layout.
    pub fn lay_out(&self, layout: Layout, tensor: &[T]) -> Vec<T> {
        permute(&self.shape(layout), tensor, true)
    }

    /// The tensor of a layout back in NCHW.
    pub fn lay_back(&self, layout: Layout, tensor: &[T]) -> Vec<T> {
        permute(&self.shape(layout), tensor, false)
    }

    /// Scale, shift and eps.
    pub fn params(&self) -> Params<'_, T> {
        params(self.gamma.as_deref(), self.beta.as_deref(), self.eps)
    }
}

/// Scale, shift and eps.
pub fn params<'a, T: Element>(gamma: Option<&'a [T]>, beta: Option<&'a [T]>, eps: f64) -> Params<'a, T> {
    let mut params = Params::new(eps);
    (params.gamma, params.beta) = (gamma, beta);
    params
}

/// A layer with a problem's parameters, whose running statistics are those of the beginning.
pub fn fresh_layer_of<T: Bits>(problem: &Problem<T>) -> BatchNorm<T> {
    let mut layer = BatchNorm::new(problem.channels());
    layer.gamma_mut().unwrap().copy_from_slice(problem.gamma.as_ref().unwrap());
    layer.beta_mut().unwrap().copy_from_slice(problem.beta.as_ref().unwrap());
    layer
}

/// A layer with a problem's parameters and running statistics.
pub fn layer_of<T: Bits>(problem: &Problem<T>) -> BatchNorm<T> {
    let mut layer = fresh_layer_of(problem);
    layer.running_mean_mut().copy_from_slice(&problem.mean);
    layer.running_var_mut().copy_from_slice(&problem.var);
    layer
}

/// From NCHW to the shape's layout, or back.
pub fn permute<T: Canary>(shape: &Shape, tensor: &[T], there: bool) -> Vec<T> {
    if shape.layout() == Layout::Nchw {
        return tensor.to_vec();
    }
    let mut permuted = vec![T::canary(); tensor.len()];
    let mut i = 0;
    for n in 0..shape.batch() {
        for c in 0..shape.channels() {
            for s in 0..shape.spatial() {
                let at = shape.offset(n, c, s);
                if there {
                    permuted[at] = tensor[i]
                } else {
                    permuted[i] = tensor[at]
                }
                i += 1;
            }
        }
    }
    permuted
}

/// A level on a number of threads.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Configuration {
    pub level: Level,
    pub threads: usize,
}

impl Configuration {
    /// Calls `f` on this level, in a pool of this many threads.
    pub fn run<R: Send>(self, f: impl FnOnce() -> R + Send) -> R {
        // A level's scope is its thread's, so it is entered inside the pool.
        let f = || {
            Level::with(self.level, || {
                assert_eq!(Level::active(), self.level);
                f()
            })
            .unwrap()
        };
        self.in_pool(f)
    }

    #[cfg(feature = "rayon")]
    fn in_pool<R: Send>(self, f: impl FnOnce() -> R + Send) -> R {
        static POOLS: std::sync::OnceLock<Vec<rayon::ThreadPool>> = std::sync::OnceLock::new();
        let pool = |&threads| rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        let pools = POOLS.get_or_init(|| THREADS.iter().map(pool).collect());
        pools[THREADS.iter().position(|threads| *threads == self.threads).unwrap()].install(f)
    }

    #[cfg(not(feature = "rayon"))]
    fn in_pool<R: Send>(self, f: impl FnOnce() -> R + Send) -> R {
        f()
    }
}

/// The levels of this CPU; says which there are not.
pub fn levels() -> Vec<Level> {
    let all = [Level::Portable, Level::Avx2, Level::Avx512];
    let (levels, missing): (Vec<_>, Vec<_>) =
        all.into_iter().partition(|level| Level::available().contains(level));
    missing.iter().for_each(|level| println!("skipped, since this CPU does not have it: {level}"));
    assert!(levels.contains(&Level::Portable));
    levels
}

/// Every level on every number of threads.
pub fn configurations() -> Vec<Configuration> {
    let threads = |level| THREADS.iter().map(move |&threads| Configuration { level, threads });
    levels().into_iter().flat_map(threads).collect()
}

/// Every level and every number of threads, but not with each other.
pub fn few_configurations() -> Vec<Configuration> {
    let levels = levels();
    let count = levels.len().max(THREADS.len());
    (0..count)
        .map(|i| Configuration { level: levels[i % levels.len()], threads: THREADS[i % THREADS.len()] })
        .collect()
}

/// Where tensors and vectors start: elements after a line's start.
#[derive(Debug, Clone, Copy, Default)]
pub struct Placement {
    pub inputs: usize,
    pub outputs: usize,
}

/// The gradients of a backward pass, of which some are asked for.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Subset(u8);

impl Subset {
    /// All five.
    pub const ALL: Self = Self(31);
    /// The names, in the order of the bits.
    pub const NAMES: [&'static str; 5] = ["dx", "dgamma", "dbeta", "dmean", "dvar"];

    /// Each alone.
    pub fn single() -> impl Iterator<Item = Self> {
        (0..5).map(|bit| Self(1 << bit))
    }

    /// All subsets, that of nothing too.
    pub fn every() -> impl Iterator<Item = Self> {
        (0..32).map(Self)
    }

    fn has(self, index: usize) -> bool {
        self.0 >> index & 1 == 1
    }
}

/// What everything gave, in the order of NCHW.
#[derive(Debug, Clone, Default)]
pub struct Results<T> {
    pub states: Vec<Welford>,
    pub y: Vec<T>,
    pub inferred: Vec<T>,
    /// dx, dgamma, dbeta, dmean, dvar.
    pub gradients: [Vec<T>; 5],
    /// The same with given statistics.
    pub frozen: [Vec<T>; 5],
    /// Running mean and variance by each rule, then gamma and beta after a step.
    pub vectors: Vec<Vec<T>>,
}

impl<T: Bits> Results<T> {
    /// Asserts that all is the same to the bit.
    #[track_caller]
    pub fn assert_same(&self, expected: &Self, what: &str) {
        assert_same(format_args!("{what}: states"), &self.states, &expected.states);
        for ((name, got), (_, expected)) in self.named().into_iter().zip(expected.named()) {
            assert_same(format_args!("{what}: {name}"), got, expected);
        }
    }

    fn named(&self) -> Vec<(String, &[T])> {
        let mut named: Vec<(String, &[T])> =
            vec![("y".into(), &self.y), ("y of inference".into(), &self.inferred)];
        for (i, name) in Subset::NAMES.into_iter().enumerate() {
            named.push((name.into(), &self.gradients[i]));
            named.push((format!("frozen {name}"), &self.frozen[i]));
        }
        named.extend(self.vectors.iter().enumerate().map(|(i, v)| (format!("vector {i}"), &v[..])));
        named
    }

    /// FNV-1a, 64 bits, of all bits, on from `hash`.
    pub fn hash(&self, hash: u64) -> u64 {
        let states = self
            .states
            .iter()
            .flat_map(|state| [state.count(), state.mean().to_bits(), state.m2().to_bits()]);
        let hash = states.fold(hash, fnv);
        self.named()
            .iter()
            .flat_map(|(_, values)| values.iter())
            .fold(hash, |hash, value| fnv(hash, value.bits()))
    }

    /// Every tensor's and vector's elements of a channel.
    pub fn channel(&self, problem: &Problem<T>, channel: usize) -> Self {
        let of = |values: &Vec<T>| {
            if values.len() == problem.channels() && values.len() != problem.x.len() {
                vec![values[channel]]
            } else if values.is_empty() {
                Vec::new()
            } else {
                let s: usize = problem.dims[2..].iter().product();
                values.chunks(s).skip(channel).step_by(problem.channels()).flatten().copied().collect()
            }
        };
        Self {
            states: vec![self.states[channel]],
            y: of(&self.y),
            inferred: of(&self.inferred),
            gradients: self.gradients.each_ref().map(of),
            frozen: self.frozen.each_ref().map(of),
            vectors: self.vectors.iter().map(of).collect(),
        }
    }
}

/// What [`Results::hash`] starts from.
pub const FNV_START: u64 = 0xcbf2_9ce4_8422_2325;

/// Some more of a hash.
pub fn fnv(hash: u64, word: u64) -> u64 {
    word.to_le_bytes()
        .into_iter()
        .fold(hash, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3))
}

/// The rules that [`run`] updates running statistics by.
pub const RULES: [UpdateRule; 3] =
    [UpdateRule::Decay(0.9), UpdateRule::Momentum(0.3), UpdateRule::Cumulative];

/// Inputs of a problem in a layout, in guarded memory.
pub struct Inputs<'a, T> {
    pub problem: &'a Problem<T>,
    pub layout: Layout,
    pub shape: Shape,
    pub at: Placement,
    pub x: Guarded<T>,
    pub dy: Guarded<T>,
    pub z: Guarded<T>,
    pub gamma: Option<Guarded<T>>,
    pub beta: Option<Guarded<T>>,
    pub mean: Guarded<T>,
    pub var: Guarded<T>,
}

impl<'a, T: Bits> Inputs<'a, T> {
    pub fn new(problem: &'a Problem<T>, layout: Layout, at: Placement) -> Self {
        let tensor = |values: &[T]| Guarded::holding(&problem.lay_out(layout, values), at.inputs);
        let vector = |values: &Vec<T>| Guarded::holding(values, at.inputs);
        Self {
            problem,
            layout,
            shape: problem.shape(layout),
            at,
            x: tensor(&problem.x),
            dy: tensor(&problem.dy),
            z: tensor(&problem.z),
            gamma: problem.gamma.as_ref().map(vector),
            beta: problem.beta.as_ref().map(vector),
            mean: vector(&problem.mean),
            var: vector(&problem.var),
        }
    }

    /// Scale, shift and eps.
    pub fn params(&self) -> Params<'_, T> {
        params(self.gamma.as_ref().map(Guarded::get), self.beta.as_ref().map(Guarded::get), self.problem.eps)
    }

    /// An output of the shape.
    pub fn tensor(&self) -> Guarded<T> {
        Guarded::new(self.shape.len(), self.at.outputs)
    }

    /// An output of a value per channel.
    pub fn vector(&self) -> Guarded<T> {
        Guarded::new(self.shape.channels(), self.at.outputs)
    }

    /// States to be written.
    pub fn states(&self) -> Guarded<Welford> {
        Guarded::new(self.shape.channels(), self.at.outputs)
    }

    /// An output in the order of NCHW, after a look at the canaries.
    pub fn back(&self, tensor: Guarded<T>, what: &str) -> Vec<T> {
        tensor.assert_margins(what);
        self.problem.lay_back(self.layout, tensor.get())
    }

    /// The gradients asked for, the others empty; by the batch's statistics or the given ones.
    fn gradients(&self, states: Option<&[Welford]>, subset: Subset) -> [Vec<T>; 5] {
        let mut outputs = [self.tensor(), self.vector(), self.vector(), self.vector(), self.vector()];
        {
            let [dx, dgamma, dbeta, dmean, dvar] = &mut outputs;
            let mut gradients = Gradients::new();
            gradients.dx = subset.has(0).then(|| dx.get_mut());
            gradients.dgamma = subset.has(1).then(|| dgamma.get_mut());
            gradients.dbeta = subset.has(2).then(|| dbeta.get_mut());
            gradients.dmean = subset.has(3).then(|| dmean.get_mut());
            gradients.dvar = subset.has(4).then(|| dvar.get_mut());
            let (shape, x, dy) = (&self.shape, self.x.get(), self.dy.get());
            match states {
                Some(states) => backward(shape, x, dy, states, &self.params(), gradients),
                None => {
                    let (mean, var) = (self.mean.get(), self.var.get());
                    backward_frozen(shape, x, dy, mean, var, &self.params(), gradients)
                }
            }
            .unwrap();
        }
        let mut i = 0;
        outputs.map(|output| {
            let index = i;
            i += 1;
            if !subset.has(index) {
                output.assert_untouched(Subset::NAMES[index]);
                Vec::new()
            } else if index == 0 {
                self.back(output, "dx")
            } else {
                output.take(Subset::NAMES[index])
            }
        })
    }

    /// All gradients, with dx written over x or over dy.
    fn gradients_over(&self, states: Option<&[Welford]>, over_x: bool) -> [Vec<T>; 5] {
        let (x, dy) = (self.x.get(), self.dy.get());
        let mut dx = Guarded::holding(if over_x { x } else { dy }, self.at.outputs);
        let mut outputs = [self.vector(), self.vector(), self.vector(), self.vector()];
        let [dgamma, dbeta, dmean, dvar] = outputs.each_mut().map(Guarded::get_mut);
        let gradients = Gradients::new().dgamma(dgamma).dbeta(dbeta).dmean(dmean).dvar(dvar);
        let call = Backward::new(&self.shape, self.params()).gradients(gradients);
        let call = match states {
            Some(states) => call.states(states),
            None => call.frozen(self.mean.get(), self.var.get()),
        };
        let call = if over_x { call.x_to_dx(dx.get_mut()).dy(dy) } else { call.x(x).dy_to_dx(dx.get_mut()) };
        call.run().unwrap();
        let [dgamma, dbeta, dmean, dvar] = outputs.map(|output| output.take("a gradient beside dx in place"));
        [self.back(dx, "dx in place"), dgamma, dbeta, dmean, dvar]
    }

    /// Asserts that the inputs are what they were.
    pub fn assert_unchanged(&self) {
        let Problem { x, dy, z, gamma, beta, mean, var, .. } = self.problem;
        assert_same("input x", &self.problem.lay_back(self.layout, self.x.get()), x);
        assert_same("input dy", &self.problem.lay_back(self.layout, self.dy.get()), dy);
        assert_same("input z", &self.problem.lay_back(self.layout, self.z.get()), z);
        let vectors = [(Some(&self.mean), Some(mean)), (Some(&self.var), Some(var))];
        for (held, original) in [(self.gamma.as_ref(), gamma.as_ref()), (self.beta.as_ref(), beta.as_ref())]
            .into_iter()
            .chain(vectors)
        {
            if let (Some(held), Some(original)) = (held, original) {
                held.assert_margins("an input");
                assert_same("an input vector", held.get(), original);
            }
        }
        self.x.assert_margins("x");
        self.dy.assert_margins("dy");
        self.z.assert_margins("z");
    }
}

/// Runs every operation, in place too, and each backward pass with all gradients and with each of `subsets`.
pub fn run<T: Bits>(
    problem: &Problem<T>,
    layout: Layout,
    at: Placement,
    subsets: impl Iterator<Item = Subset>,
) -> Results<T> {
    let inputs = Inputs::new(problem, layout, at);
    let (shape, x, affine) = (&inputs.shape, inputs.x.get(), inputs.params());

    let mut states = inputs.states();
    statistics(shape, x, states.get_mut()).unwrap();
    let states = states.take("states of statistics");

    let (mut y, mut forward_states) = (inputs.tensor(), inputs.states());
    forward_training(shape, x, &affine, y.get_mut(), forward_states.get_mut()).unwrap();
    assert_same("states of forward_training", &forward_states.take("states"), &states);
    let y = inputs.back(y, "y");

    let mut in_place = Guarded::holding(x, at.outputs);
    let mut forward_states = inputs.states();
    let training = Training::new(shape, affine).x_in_place(in_place.get_mut());
    training.states(forward_states.get_mut()).run().unwrap();
    assert_same("states of training in place", &forward_states.take("states"), &states);
    assert_same("y of training in place", &inputs.back(in_place, "y in place"), &y);

    let (mean, var) = (inputs.mean.get(), inputs.var.get());
    let mut inferred = inputs.tensor();
    forward_inference(shape, x, mean, var, &affine, inferred.get_mut()).unwrap();
    let inferred = inputs.back(inferred, "y of inference");
    let mut in_place = Guarded::holding(x, at.outputs);
    Inference::new(shape, affine).x_in_place(in_place.get_mut()).frozen(mean, var).run().unwrap();
    assert_same("y of inference in place", &inputs.back(in_place, "y in place"), &inferred);

    let gradients = inputs.gradients(Some(&states), Subset::ALL);
    let frozen = inputs.gradients(None, Subset::ALL);
    for (states, all) in [(Some(&states[..]), &gradients), (None, &frozen)] {
        for over_x in [true, false] {
            for ((over, all), name) in
                inputs.gradients_over(states, over_x).iter().zip(all).zip(Subset::NAMES)
            {
                let over_what = if over_x { "x" } else { "dy" };
                let what = format_args!("{name}, with dx over {over_what}, frozen {}", states.is_none());
                assert_same(what, over, all);
            }
        }
    }
    for subset in subsets {
        for (states, all) in [(Some(&states[..]), &gradients), (None, &frozen)] {
            let some = inputs.gradients(states, subset);
            for (i, (some, all)) in some.iter().zip(all).enumerate().filter(|(i, _)| subset.has(*i)) {
                let name = Subset::NAMES[i];
                assert_same(format_args!("{name} of {subset:?}, frozen {}", states.is_none()), some, all);
            }
        }
    }

    let variance = if shape.per_channel() == 1 { RunningVariance::Biased } else { RunningVariance::Unbiased };
    let mut vectors = Vec::new();
    for rule in RULES {
        let mut running = [mean, var].map(|vector| Guarded::holding(vector, at.outputs));
        let [mean, var] = &mut running;
        let update = RunningUpdate { rule, variance };
        update_running(update, 3, &states, mean.get_mut(), var.get_mut()).unwrap();
        vectors.extend(running.map(|vector| vector.take("running statistics")));
    }
    for (parameter, gradient) in [(affine.gamma, &gradients[1]), (affine.beta, &gradients[2])] {
        if let Some(parameter) = parameter {
            let mut parameter = Guarded::holding(parameter, at.outputs);
            step(0.01, gradient, parameter.get_mut()).unwrap();
            vectors.push(parameter.take("a parameter"));
        }
    }
    inputs.assert_unchanged();
    Results { states, y, inferred, gradients, frozen, vectors }
}

/// Runs a problem in all of the given configurations and both layouts, asserts that all give the same bits, compares
/// with the reference, and returns the results.
#[track_caller]
pub fn check<T: Bits>(
    problem: &Problem<T>,
    configurations: &[Configuration],
    subsets: impl Fn() -> Vec<Subset> + Sync,
) -> Results<T> {
    let mut first: Option<Results<T>> = None;
    for (i, configuration) in configurations.iter().enumerate() {
        for layout in LAYOUTS {
            // Some other alignment each time.
            let at = Placement { inputs: 5 * i % 16, outputs: 7 * i % 16 };
            let results = configuration.run(|| run(problem, layout, at, subsets().into_iter()));
            match &first {
                None => {
                    check_against_reference(problem, &results);
                    first = Some(results);
                }
                Some(first) => {
                    let what = format!("{} {:?} {layout:?} {configuration:?}", T::NAME, problem.dims);
                    results.assert_same(first, &what);
                }
            }
        }
    }
    first.unwrap()
}

/// A channel's statistics and the magnitudes that bounds are shares of.
struct Bounds {
    statistics: MeanVar,
    invstd: f64,
    gamma: f64,
    beta: f64,
    /// What m additions in f64, one after the other, may be off by, relative to the sum of absolute values.
    rounding: f64,
    /// What the reference's mean may be off by.
    mean_off: f64,
    m: f64,
}

/// Asserts that a value is near another.
#[track_caller]
fn near<T: Bits>(what: impl Fn() -> String, got: T, expected: T, bound: f64) {
    let error = (got.to_f64() - expected.to_f64()).abs();
    assert!(
        error <= bound,
        "{}: {got:?}, reference {expected:?}, off by {error:e}, may be by {bound:e}",
        what()
    );
}

/// Asserts that results are within the contract's bounds of the reference, and what its plain sums may be off by.
#[track_caller]
pub fn check_against_reference<T: Bits>(problem: &Problem<T>, results: &Results<T>) {
    let shape = &problem.shape(Layout::Nchw);
    let (n, c, spatial) = (shape.batch(), shape.channels(), shape.spatial());
    let params = problem.params();
    let tensor = || vec![T::canary(); shape.len()];
    let vector = || vec![T::canary(); c];
    let what = |name: &str, c: usize| format!("{} {:?} {name}, channel {c}", T::NAME, problem.dims);

    let (mut y, mut inferred) = (tensor(), tensor());
    let training = reference::forward_training(shape, &problem.x, &params, &mut y);
    assert_eq!(reference::statistics(shape, &problem.x), training);
    reference::forward_inference(shape, &problem.x, &problem.mean, &problem.var, &params, &mut inferred);
    let given = problem.mean.iter().zip(&problem.var);
    let given: Vec<MeanVar> =
        given.map(|(mean, var)| MeanVar { mean: mean.to_f64(), var: var.to_f64() }).collect();

    for through_statistics in [true, false] {
        let (mut dx, mut vectors) = (tensor(), [vector(), vector(), vector(), vector()]);
        let [dgamma, dbeta, dmean, dvar] = &mut vectors;
        let gradients = Gradients::new().dx(&mut dx).dgamma(dgamma).dbeta(dbeta).dmean(dmean).dvar(dvar);
        let (x, dy) = (&problem.x, &problem.dy);
        let (statistics, expected_y, got_y, got) = if through_statistics {
            reference::backward(shape, x, dy, &training, &params, gradients);
            (&training, &y, &results.y, &results.gradients)
        } else {
            reference::backward_frozen(shape, x, dy, &problem.mean, &problem.var, &params, gradients);
            (&given, &inferred, &results.inferred, &results.frozen)
        };
        for (channel, statistics) in statistics.iter().enumerate() {
            let elements = || (0..n).flat_map(|n| (0..spatial).map(move |s| (n * c + channel) * spatial + s));
            let m = shape.per_channel() as f64;
            let rounding = (m + 8.0) * power(-53);
            let mean_abs = elements().map(|i| x[i].to_f64().abs()).sum::<f64>() / m;
            let bounds = Bounds {
                statistics: *statistics,
                invstd: 1.0 / (statistics.var + problem.eps).sqrt(),
                gamma: params.gamma.map_or(1.0, |gamma| gamma[channel].to_f64()),
                beta: params.beta.map_or(0.0, |beta| beta[channel].to_f64()),
                rounding,
                mean_off: if through_statistics { rounding * mean_abs } else { 0.0 },
                m,
            };
            if through_statistics {
                bounds.check_state::<T>(&|name| what(name, channel), &results.states[channel]);
            }
            let Bounds { invstd, gamma, beta, mean_off, .. } = bounds;
            let xhat = |i: usize| (x[i].to_f64() - statistics.mean) * invstd;
            let off = mean_off * invstd;
            let gain = (gamma * invstd).abs();
            let (mut sum, mut abs, mut product, mut product_abs) = (0.0, 0.0, 0.0, 0.0);
            for i in elements() {
                let (dy, xhat) = (dy[i].to_f64(), xhat(i));
                sum += dy;
                abs += dy.abs();
                product += dy * xhat;
                product_abs += (dy * xhat).abs();
            }
            let product_off = 4.0 * rounding * product_abs + off * abs;
            for i in elements() {
                let (xhat, dy) = (xhat(i), dy[i].to_f64());
                let scaled = (gamma * xhat).abs();
                let bound = T::Y * (scaled + beta.abs()) + 4.0 * rounding * scaled + gamma.abs() * off;
                near(|| what("y", channel), got_y[i], expected_y[i], bound);
                let mut scale = dy.abs();
                let (mut reference_off, mut cancelled) = (rounding * dy.abs(), 0.0);
                if through_statistics {
                    scale += (sum / m).abs() + (xhat * product / m).abs();
                    reference_off +=
                        rounding * abs / m + xhat.abs() * product_off / m + off * product.abs() / m;
                    reference_off += 4.0 * rounding * scale;
                    cancelled = T::DX_CANCELLED * xhat.abs() * product_abs / m;
                }
                let bound = gain * (T::DX * scale + cancelled + 4.0 * reference_off);
                near(|| what("dx", channel), got[0][i], dx[i], bound);
            }
            let sum_bound = (T::SUMS + rounding) * abs;
            let product_bound = T::SUMS * product_abs + product_off;
            let factors = [1.0, 1.0, gain, 0.5 * gain * invstd];
            let limits = [product_bound, sum_bound, sum_bound, product_bound];
            for (i, name) in Subset::NAMES.into_iter().enumerate().skip(1) {
                // dmean and dvar have another factor of invstd or two, each with the variance's rounding.
                let bound = factors[i - 1] * limits[i - 1];
                near(|| what(name, channel), got[i][channel], vectors[i - 1][channel], bound);
            }
        }
    }
}

impl Bounds {
    #[track_caller]
    fn check_state<T: Bits>(&self, what: &dyn Fn(&str) -> String, state: &Welford) {
        let MeanVar { mean, var } = self.statistics;
        assert_eq!(state.count(), self.m as u64, "{}", what("count"));
        let bound = T::MEAN[0] * mean.abs() + T::MEAN[1] * var.sqrt() + self.mean_off;
        near(|| what("mean"), state.mean(), mean, bound);
        // The reference's squares are about its own mean.
        let bound = T::VAR * var + 4.0 * self.rounding * var + self.mean_off * self.mean_off;
        near(|| what("variance"), state.variance(), var, bound);
    }
}
