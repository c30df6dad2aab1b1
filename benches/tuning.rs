//! What each number of the policies gains: `cargo bench --bench tuning --features tuning`, some five minutes.
//!
//! For every number of `src/schedule/tuning.rs`, smaller and larger alternatives beside today's, call by call in turns, f32, from
//! the main thread, on the twelve shapes of shapes/table.txt in both layouts. Only calls whose plan differs are timed. Prints how
//! many times as long the alternative takes (above 1, today's choice gains), per call and as a geometric mean.
//!
//! `-- --only run_bytes` takes the numbers whose name holds this, `-- --csv` prints lines for benches/record.

mod shapes;

use std::time::{Duration, Instant};

use batchnorm::tuning::{Tuning, plan, with};
use batchnorm::{Gradients, Layout, Params, Shape, Welford};

const TABLE: &str = include_str!("shapes/table.txt");

/// Time for one comparison.
const BUDGET: Duration = Duration::from_millis(80);

/// A number, and how to set it.
struct Knob {
    name: &'static str,
    get: fn(&Tuning) -> usize,
    set: fn(&mut Tuning, usize),
}

macro_rules! knobs {
    ($($name:ident),* $(,)?) => {
        [$(Knob {
            name: stringify!($name),
            get: |tuning| tuning.$name,
            set: |tuning, value| tuning.$name = value,
        }),*]
    };
}

const KNOBS: [Knob; 28] = knobs![
    parallel_bytes,
    parallel_bytes_asleep,
    tasks_per_thread,
    tasks_per_thread_far,
    small_bytes,
    non_temporal_bytes,
    non_temporal_bytes_two_inputs,
    non_temporal_mesh,
    prefetch_bytes,
    resident,
    resident_far,
    resident_pipelined,
    resident_non_temporal,
    run_bytes,
    run_bytes_shared,
    shared_bytes,
    run_bytes_near,
    run_bytes_once,
    many_threads,
    rows_per_thread,
    strip_rows,
    strip_rows_alone,
    strip_rows_once,
    elements_at_once,
    row_bytes,
    row_positions,
    row_samples,
    fullest_thread_percent,
];

#[derive(Debug, Clone, Copy)]
enum Operation {
    Statistics,
    Training,
    Inference,
    Backward,
}

const OPERATIONS: [Operation; 4] =
    [Operation::Statistics, Operation::Training, Operation::Inference, Operation::Backward];

impl Operation {
    /// Tensors read, whether there is a reduction, whether there is a map.
    fn traffic(self) -> (usize, bool, bool) {
        match self {
            Operation::Statistics => (1, true, false),
            Operation::Training => (1, true, true),
            Operation::Inference => (1, false, true),
            Operation::Backward => (2, true, true),
        }
    }
}

struct Tensors {
    x: Vec<f32>,
    dy: Vec<f32>,
    y: Vec<f32>,
}

struct Call<'a> {
    operation: Operation,
    shape: Shape,
    x: &'a [f32],
    dy: &'a [f32],
    y: &'a mut [f32],
    ones: Vec<f32>,
    zeros: Vec<f32>,
    gradients: [Vec<f32>; 2],
    states: Vec<Welford>,
}

impl Call<'_> {
    fn run(&mut self) {
        let params = Params::default().gamma(&self.ones).beta(&self.zeros);
        let (shape, states) = (&self.shape, &mut self.states);
        match self.operation {
            Operation::Statistics => batchnorm::statistics(shape, self.x, states),
            Operation::Training => batchnorm::forward_training(shape, self.x, &params, self.y, states),
            Operation::Inference => {
                batchnorm::forward_inference(shape, self.x, &self.zeros, &self.ones, &params, self.y)
            }
            Operation::Backward => {
                let [dgamma, dbeta] = &mut self.gradients;
                let gradients = Gradients::new().dx(self.y).dgamma(dgamma).dbeta(dbeta);
                batchnorm::backward(shape, self.x, self.dy, states, &params, gradients)
            }
        }
        .expect("tensors of the shape");
    }

    /// How many times as long it takes with `other`: the median of the ratios of calls in turns.
    fn compare(&mut self, today: Tuning, other: Tuning, budget: Duration) -> f64 {
        let mut time = |tuning| {
            let start = Instant::now();
            with(tuning, || self.run());
            start.elapsed().as_secs_f64()
        };
        let (begin, mut ratios) = (Instant::now(), Vec::new());
        while ratios.len() < 7 || begin.elapsed() < budget {
            let (first, second) = (time(today), time(other));
            ratios.push(second / first);
            let (second, first) = (time(other), time(today));
            ratios.push(second / first);
        }
        // The first calls warm up.
        let ratios = &mut ratios[2..];
        ratios.sort_by(f64::total_cmp);
        ratios[ratios.len() / 2]
    }
}

fn main() {
    let arguments: Vec<String> = std::env::args().collect();
    let has = |name: &str| arguments.iter().any(|argument| argument == name);
    let only =
        arguments.iter().position(|argument| argument == "--only").and_then(|at| arguments.get(at + 1));
    let (csv, test) = (has("--csv"), has("--test"));
    let budget = if test { Duration::ZERO } else { BUDGET };
    let problems = shapes::parse(TABLE).expect("the table of shapes");
    let problems = &problems[if test { problems.len() - 2 } else { 0 }..];
    let len = problems.iter().map(|problem| problem.dims.iter().product::<usize>()).max().unwrap_or(0);
    let noise = |i: usize| ((i.wrapping_mul(0x9e37_79b9) >> 7 & 0xffff) as f32) / 65536.0 - 0.3;
    let mut tensors = Tensors {
        x: (0..len).map(noise).collect(),
        dy: (0..len).map(|i| noise(i + 77)).collect(),
        y: vec![1.0; len],
    };
    let today = Tuning::DEFAULT;
    if csv {
        println!("number,value,alternative,shape,layout,operation,ratio");
    } else {
        println!("{} threads; ratios above 1: today's value gains", rayon::current_num_threads());
    }
    for knob in KNOBS.iter().filter(|knob| only.is_none_or(|only| knob.name.contains(only.as_str()))) {
        let value = (knob.get)(&today);
        for alternative in [value / 4, value / 2, value * 2, value * 4] {
            let mut other = today;
            (knob.set)(&mut other, alternative.max(1));
            let mut ratios: Vec<f64> = Vec::new();
            for problem in problems {
                for layout in [Layout::Nchw, Layout::Nhwc] {
                    let shape = problem.shape(layout).expect("a shape of the table");
                    for operation in OPERATIONS {
                        let traffic = operation.traffic();
                        if with(today, || plan::<f32>(&shape, traffic))
                            == with(other, || plan::<f32>(&shape, traffic))
                        {
                            continue;
                        }
                        let (len, channels) = (shape.len(), shape.channels());
                        let mut call = Call {
                            operation,
                            shape,
                            x: &tensors.x[..len],
                            dy: &tensors.dy[..len],
                            y: &mut tensors.y[..len],
                            ones: vec![1.0; channels],
                            zeros: vec![0.0; channels],
                            gradients: [vec![0.0; channels], vec![0.0; channels]],
                            states: vec![Welford::new(); channels],
                        };
                        batchnorm::statistics(&shape, call.x, &mut call.states)
                            .expect("a shape of the table");
                        let ratio = call.compare(today, other, budget);
                        ratios.push(ratio);
                        let name = knob.name;
                        if csv {
                            println!(
                                "{name},{value},{alternative},{problem},{layout:?},{operation:?},{ratio:.3}"
                            );
                        } else {
                            println!(
                                "  {ratio:5.2}  {name} {alternative}: {operation:?} of {problem:12} {layout:?}"
                            );
                        }
                    }
                }
            }
            if !ratios.is_empty() && !csv {
                let mean = (ratios.iter().map(|ratio| ratio.ln()).sum::<f64>() / ratios.len() as f64).exp();
                let (name, count) = (knob.name, ratios.len());
                println!("{mean:7.3}  {name} {value} against {alternative}: geometric mean of {count} calls");
            }
        }
    }
}
