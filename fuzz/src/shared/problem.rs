//! Problems from the fuzzer's bytes: dimensions, elements, parameters, and how they are to be run. `Debug` says what the
//! bytes stand for, since that is what libFuzzer prints of a failure.

use std::fmt;

use arbitrary::{Arbitrary, Unstructured};
use batchnorm::{Layout, Level};

use crate::common::exact::{Statistics, channel};
use crate::common::matrix::{self, Configuration, LAYOUTS, Placement, THREADS};
use crate::shared::bounds::Contract;
use crate::shared::data::{Elements, Parameter, Shown};

/// The most elements of a tensor: some dozens of the blocks that `cfg(fuzzing)` makes.
const MOST: usize = 4096;

/// The element type.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Arbitrary)]
pub enum ElementType {
    /// f32, named twice since most promises are about it.
    F32,
    /// f32.
    Single,
    /// f64.
    F64,
}

/// Calls `$check::<T>($arguments)` with the element type of an input.
#[macro_export]
macro_rules! with_element {
    ($element:expr, $($check:ident)::+, $($arguments:expr),*) => {
        match $element {
            $crate::shared::problem::ElementType::F64 => $($check)::+::<f64>($($arguments),*),
            _ => $($check)::+::<f32>($($arguments),*),
        }
    };
}

/// N, C and up to three spatial axes; their product is at most [`MOST`], and may be zero.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Dims(pub Vec<usize>);

impl<'a> Arbitrary<'a> for Dims {
    fn arbitrary(u: &mut Unstructured<'a>) -> arbitrary::Result<Self> {
        let rank = u.int_in_range(2..=5)?;
        let mut dims = Vec::with_capacity(rank);
        let mut left = MOST;
        for _ in 0..rank {
            // Most sizes are small; zero is rare.
            let size = match u.arbitrary::<u8>()? {
                0 => 0,
                size @ 1..192 => usize::from(size % 70).max(1),
                size => (usize::from(size) - 191) * 64 + usize::from(u.arbitrary::<u8>()? % 64),
            };
            let size = size.min(left);
            left /= size.max(1);
            dims.push(size);
        }
        // The first axes have the largest share of the elements, so which those are is up to the fuzzer too.
        let turn = u.int_in_range(0..=rank - 1)?;
        dims.rotate_left(turn);
        Ok(Self(dims))
    }
}

/// How a problem is run.
#[derive(Clone, Copy, Arbitrary)]
pub struct Run {
    nhwc: bool,
    level: u8,
    threads: u8,
    inputs: u8,
    outputs: u8,
}

impl Run {
    /// The layout.
    pub fn layout(&self) -> Layout {
        LAYOUTS[usize::from(self.nhwc)]
    }

    /// One of the levels of this CPU, on some threads.
    pub fn configuration(&self) -> Configuration {
        let levels = Level::available();
        Configuration {
            level: levels[usize::from(self.level) % levels.len()],
            threads: THREADS[usize::from(self.threads) % THREADS.len()],
        }
    }

    /// Where inputs and outputs start.
    pub fn placement(&self) -> Placement {
        Placement { inputs: usize::from(self.inputs % 16), outputs: usize::from(self.outputs % 16) }
    }
}

/// The level, the threads and the places that an input stands for on this machine.
impl fmt::Debug for Run {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (Configuration { level, threads }, Placement { inputs, outputs }) =
            (self.configuration(), self.placement());
        let (layout, plural) = (self.layout(), if threads == 1 { "" } else { "s" });
        write!(
            f,
            "{layout:?}, level {level}, {threads} thread{plural}, inputs {inputs} and outputs {outputs} "
        )?;
        f.write_str("elements past the start of a line")
    }
}

/// Given mean and variance.
#[derive(Debug, Clone, Arbitrary)]
enum Given {
    /// The batch's own, times a power of two each.
    Batch { mean: i8, var: i8 },
    /// Any.
    Free { vectors: Box<[Elements; 2]>, absolute: bool },
}

/// Added to the variance.
#[derive(Debug, Clone, Copy, Arbitrary)]
pub enum Eps {
    /// Nothing.
    Zero,
    /// 1e-5.
    Usual,
    /// A power of two.
    Power(i8),
}

impl Eps {
    /// The number.
    pub fn value(self) -> f64 {
        match self {
            Eps::Zero => 0.0,
            Eps::Usual => 1e-5,
            Eps::Power(exponent) => f32::power(exponent),
        }
    }
}

/// A problem of some element type.
#[derive(Clone, Arbitrary)]
pub struct Problem {
    /// The element type.
    pub element: ElementType,
    dims: Dims,
    eps: Eps,
    gamma: Parameter,
    beta: Parameter,
    x: Elements,
    dy: Elements,
    given: Given,
    z: Elements,
}

/// The numbers that an input stands for: what the library is called with.
impl fmt::Debug for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        with_element!(self.element, describe, self, f)
    }
}

fn describe<T: Contract>(problem: &Problem, f: &mut fmt::Formatter<'_>) -> fmt::Result {
    let made = problem.make::<T>();
    let vector = |name: &str, values: &Option<Vec<T>>| match values {
        None => format!("{name} not given"),
        Some(values) => format!("{name} {:?}", Shown(values)),
    };
    writeln!(f, "{} of N, C, spatial {:?}, eps {:e}", T::NAME, made.dims, made.eps)?;
    writeln!(f, "    {}", vector("gamma", &made.gamma))?;
    writeln!(f, "    {}", vector("beta", &made.beta))?;
    writeln!(f, "    x {:?}", Shown(&made.x))?;
    writeln!(f, "      made as {:?}", problem.x)?;
    writeln!(f, "    dy {:?}", Shown(&made.dy))?;
    writeln!(f, "      made as {:?}", problem.dy)?;
    writeln!(f, "    z {:?}", Shown(&made.z))?;
    writeln!(f, "      made as {:?}", problem.z)?;
    writeln!(f, "    mean {:?}", Shown(&made.mean))?;
    write!(f, "    var {:?}", Shown(&made.var))
}

impl Problem {
    /// Its elements.
    pub fn make<T: Contract>(&self) -> matrix::Problem<T> {
        let dims = self.dims.0.clone();
        let channels = dims[1];
        let mut problem = matrix::Problem {
            x: self.x.tensor(&dims),
            dy: self.dy.tensor(&dims),
            z: self.z.tensor(&dims),
            gamma: self.gamma.vector(channels),
            beta: self.beta.vector(channels),
            mean: Vec::new(),
            var: Vec::new(),
            eps: self.eps.value(),
            dims,
        };
        (problem.mean, problem.var) = match &self.given {
            Given::Batch { mean, var } => {
                let factors = [mean, var].map(|power| 2f64.powi((power / 16).into()));
                (0..channels).map(|c| near_batch(&problem, c, factors)).unzip()
            }
            Given::Free { vectors, absolute } => {
                let [mean, var] = &**vectors;
                let mut var: Vec<T> = var.vector(channels);
                if *absolute {
                    var.iter_mut().for_each(|var| *var = T::from_f64(var.to_f64().abs()));
                }
                (mean.vector(channels), var)
            }
        };
        problem
    }
}

fn near_batch<T: Contract>(problem: &matrix::Problem<T>, c: usize, factors: [f64; 2]) -> (T, T) {
    let x = channel(&problem.shape(Layout::Nchw), &problem.x, c);
    if x.is_empty() || !x.iter().all(|x| x.to_f64().is_finite()) {
        return (T::from_f64(0.5), T::from_f64(1.5));
    }
    let exact = Statistics::of(&x);
    let [mean, var] = [exact.mean() * factors[0], exact.var() * factors[1]];
    (T::from_f64(mean.clamp(-T::MAX, T::MAX)), T::from_f64(var.clamp(0.0, T::MAX)))
}
