//! Calls of the library: in some layout, at some alignment, on some level and threads, outputs between canaries.
//! Tensors come in and go out in the order of NCHW.

use std::fmt::{self, Display};

use arbitrary::Arbitrary;
use batchnorm::{
    Backward, Gradients, Inference, Params, Shape, StreamingStatistics, Training, Welford, backward,
    backward_frozen, forward_inference, forward_training, statistics,
};

use crate::common::exact::channel;
use crate::common::matrix::{Guarded, Problem, assert_same};
use crate::shared::bounds::Contract;
use crate::shared::problem::Run;

/// A problem and how to run it.
pub struct Call<'a, T> {
    /// The problem.
    pub problem: &'a Problem<T>,
    /// How.
    pub run: Run,
}

impl<'a, T: Contract> Call<'a, T> {
    /// The same problem, run the same way, with other elements and vectors.
    pub fn of<'b>(&self, problem: &'b Problem<T>) -> Call<'b, T> {
        Call { problem, run: self.run }
    }

    /// The shape that the library sees.
    pub fn shape(&self) -> Shape {
        self.problem.shape(self.run.layout())
    }

    /// A channel of a tensor of the problem.
    pub fn channel(&self, tensor: &[T], c: usize) -> Vec<T> {
        channel(&self.problem.shape(batchnorm::Layout::Nchw), tensor, c)
    }

    /// The channels to compare with the oracle: of many, some and the last, or its own memory is what takes the time.
    pub fn checked(&self) -> impl Iterator<Item = usize> + use<T> {
        let channels = self.problem.channels();
        let step = channels / 64 + 1;
        (0..channels).filter(move |c| c.is_multiple_of(step) || c + 8 >= channels)
    }

    /// For each channel whether it has a NaN or an infinity in x.
    pub fn non_finite(&self) -> Vec<bool> {
        let Problem { dims, x, .. } = self.problem;
        let (channels, s) = (dims[1], dims[2..].iter().product::<usize>());
        let mut bad = vec![false; channels];
        for (plane, x) in x.chunks(s.max(1)).enumerate() {
            bad[plane % channels] |= x.iter().any(|x| !x.to_f64().is_finite());
        }
        bad
    }

    /// What to say of a channel.
    pub fn what<'b>(&'b self, name: &'b str, c: usize) -> impl Display + Copy + 'b {
        What { name, c, element: T::NAME, dims: &self.problem.dims, run: &self.run }
    }

    fn go<R: Send>(&self, f: impl FnOnce() -> R + Send) -> R {
        self.run.configuration().run(f)
    }

    fn input(&self, tensor: &[T]) -> Guarded<T> {
        let layout = self.run.layout();
        Guarded::holding(&self.problem.lay_out(layout, tensor), self.run.placement().inputs)
    }

    fn vector(&self, values: &[T]) -> Guarded<T> {
        Guarded::holding(values, self.run.placement().inputs)
    }

    fn output(&self, len: usize) -> Guarded<T> {
        Guarded::new(len, self.run.placement().outputs)
    }

    fn states(&self) -> Guarded<Welford> {
        Guarded::new(self.problem.channels(), 0)
    }

    fn back(&self, tensor: Guarded<T>, what: &str) -> Vec<T> {
        self.problem.lay_back(self.run.layout(), &tensor.take(what))
    }

    /// [`statistics`], which [`StreamingStatistics`] of one batch are too.
    pub fn statistics(&self) -> Vec<Welford> {
        let (shape, x, mut states) = (self.shape(), self.input(&self.problem.x), self.states());
        let mut streaming = StreamingStatistics::new(shape.channels());
        self.go(|| {
            statistics(&shape, x.get(), states.get_mut()).unwrap();
            streaming.update(&shape, x.get()).unwrap();
        });
        let states = states.take("states");
        assert_same("streaming statistics", streaming.states(), &states);
        states
    }

    /// [`forward_training`], which is the same in place.
    pub fn training(&self) -> (Vec<T>, Vec<Welford>) {
        let (shape, x) = (self.shape(), self.input(&self.problem.x));
        let (gamma, beta) = self.affine();
        let params = self.params(&gamma, &beta);
        let (mut y, mut states, mut states_in_place) =
            (self.output(shape.len()), self.states(), self.states());
        let mut in_place = Guarded::holding(x.get(), self.run.placement().outputs);
        self.go(|| {
            forward_training(&shape, x.get(), &params, y.get_mut(), states.get_mut()).unwrap();
            let states = states_in_place.get_mut();
            Training::new(&shape, params).x_in_place(in_place.get_mut()).states(states).run().unwrap();
        });
        let (y, states) = (self.back(y, "y"), states.take("states"));
        assert_same("states in place", &states_in_place.take("states in place"), &states);
        assert_same("y in place", &self.back(in_place, "y in place"), &y);
        assert_same("x", &self.back(x, "x"), &self.problem.x);
        (y, states)
    }

    /// Other data by a batch's states.
    pub fn by_states(&self, data: &[T], states: &[Welford]) -> Vec<T> {
        let (shape, x) = (self.shape(), self.input(data));
        let (gamma, beta) = self.affine();
        let params = self.params(&gamma, &beta);
        let mut y = self.output(shape.len());
        self.go(|| Inference::new(&shape, params).x(x.get()).y(y.get_mut()).states(states).run().unwrap());
        self.back(y, "y by states")
    }

    /// [`forward_inference`], which is the same in place.
    pub fn inference(&self) -> Vec<T> {
        let (shape, x) = (self.shape(), self.input(&self.problem.x));
        let (gamma, beta) = self.affine();
        let params = self.params(&gamma, &beta);
        let (mean, var) = (self.vector(&self.problem.mean), self.vector(&self.problem.var));
        let mut y = self.output(shape.len());
        let mut in_place = Guarded::holding(x.get(), self.run.placement().outputs);
        self.go(|| {
            let (mean, var) = (mean.get(), var.get());
            forward_inference(&shape, x.get(), mean, var, &params, y.get_mut()).unwrap();
            Inference::new(&shape, params).x_in_place(in_place.get_mut()).frozen(mean, var).run().unwrap();
        });
        let y = self.back(y, "y");
        assert_same("y in place", &self.back(in_place, "y in place"), &y);
        assert_same("x", &self.back(x, "x"), &self.problem.x);
        y
    }

    /// dx, dgamma, dbeta, dmean, dvar by [`backward`], or without states by [`backward_frozen`]; those asked for.
    pub fn gradients(&self, states: Option<&[Welford]>, wanted: Wanted) -> [Option<Vec<T>>; 5] {
        let (shape, problem) = (self.shape(), self.problem);
        let (x, dy) = (self.input(&problem.x), self.input(&problem.dy));
        let (gamma, beta) = self.affine();
        let params = self.params(&gamma, &beta);
        let (mean, var) = (self.vector(&problem.mean), self.vector(&problem.var));
        let mut outputs = [0, 1, 2, 3, 4].map(|i| {
            let len = if i == 0 { shape.len() } else { shape.channels() };
            wanted.has(i).then(|| self.output(len))
        });
        let [dx, dgamma, dbeta, dmean, dvar] =
            outputs.each_mut().map(|output| output.as_mut().map(Guarded::get_mut));
        let mut gradients = Gradients::new();
        (gradients.dx, gradients.dgamma, gradients.dbeta) = (dx, dgamma, dbeta);
        (gradients.dmean, gradients.dvar) = (dmean, dvar);
        self.go(|| match states {
            Some(states) => backward(&shape, x.get(), dy.get(), states, &params, gradients),
            None => backward_frozen(&shape, x.get(), dy.get(), mean.get(), var.get(), &params, gradients),
        })
        .unwrap();
        if let Some(dx) = &outputs[0] {
            for over_x in [true, false] {
                assert_same("dx in place", &self.dx_over(states, over_x, &params), dx.get());
            }
        }
        let [dx, vectors @ ..] = outputs;
        let [dgamma, dbeta, dmean, dvar] =
            vectors.map(|vector| vector.map(|vector| vector.take("a gradient")));
        [dx.map(|dx| self.back(dx, "dx")), dgamma, dbeta, dmean, dvar]
    }

    /// dx as it lies in memory, written over x or over dy.
    fn dx_over(&self, states: Option<&[Welford]>, over_x: bool, params: &Params<'_, T>) -> Vec<T> {
        let (shape, problem, layout) = (self.shape(), self.problem, self.run.layout());
        let (x, dy) = (self.input(&problem.x), self.input(&problem.dy));
        let (mean, var) = (self.vector(&problem.mean), self.vector(&problem.var));
        let over = problem.lay_out(layout, if over_x { &problem.x } else { &problem.dy });
        let mut dx = Guarded::holding(&over, self.run.placement().outputs);
        let call = Backward::new(&shape, *params);
        let call = match states {
            Some(states) => call.states(states),
            None => call.frozen(mean.get(), var.get()),
        };
        let call = if over_x {
            call.x_to_dx(dx.get_mut()).dy(dy.get())
        } else {
            call.x(x.get()).dy_to_dx(dx.get_mut())
        };
        self.go(|| call.run()).unwrap();
        dx.take("dx in place")
    }

    fn affine(&self) -> (Option<Guarded<T>>, Option<Guarded<T>>) {
        let vector = |values: &Option<Vec<T>>| values.as_ref().map(|values| self.vector(values));
        (vector(&self.problem.gamma), vector(&self.problem.beta))
    }

    fn params<'b>(&self, gamma: &'b Option<Guarded<T>>, beta: &'b Option<Guarded<T>>) -> Params<'b, T> {
        let mut params = Params::new(self.problem.eps);
        params.gamma = gamma.as_ref().map(Guarded::get);
        params.beta = beta.as_ref().map(Guarded::get);
        params
    }
}

/// A channel of some tensor or vector, as text only if it is asked for.
#[derive(Clone, Copy)]
struct What<'a> {
    name: &'a str,
    c: usize,
    element: &'a str,
    dims: &'a [usize],
    run: &'a Run,
}

impl Display for What<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { name, c, element, dims, run } = self;
        write!(f, "{name} of channel {c} of {element} {dims:?}, {run:?}")
    }
}

/// The gradients to ask for, a bit each: dx, dgamma, dbeta, dmean, dvar.
#[derive(Clone, Copy, PartialEq, Eq, Arbitrary)]
pub struct Wanted(pub u8);

impl fmt::Debug for Wanted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names = ["dx", "dgamma", "dbeta", "dmean", "dvar"];
        f.debug_list()
            .entries(names.iter().enumerate().filter(|(i, _)| self.has(*i)).map(|(_, name)| name))
            .finish()
    }
}

impl Wanted {
    /// All.
    pub const ALL: Self = Self(31);

    /// Whether it asks for the one of this index.
    pub fn has(self, index: usize) -> bool {
        self.0 >> index & 1 == 1
    }
}
