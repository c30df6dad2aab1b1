//! Where time per element jumps: `cargo bench --bench cliffs`, some twenty minutes.
//!
//! A grid of shapes N x C x S that crosses every threshold of the plans, f32, called from the main thread, on one thread
//! and on all. No shape should take more than [`Rule::limit`] times as long as what it is compared with: its other layout,
//! one thread, or the operations that it is made of. Prints per rule and operation how many shapes break it, and the worst.
//!
//! `-- --every 8` takes every eighth shape of the grid, `-- --shape 2048x64x49` one, `-- --worst 20` prints more.
//! What breaks a rule is measured again, longer, before it counts.

use std::time::{Duration, Instant};

use batchnorm::{Gradients, Layout, Params, Shape, Welford};
use rayon::{ThreadPool, ThreadPoolBuilder};

const BATCH: [usize; 10] = [1, 2, 8, 32, 128, 512, 2048, 8192, 32_768, 131_072];
const CHANNELS: [usize; 12] = [1, 2, 3, 8, 16, 48, 64, 100, 256, 512, 1024, 4096];
const SPATIAL: [usize; 13] = [1, 2, 3, 4, 9, 16, 25, 49, 64, 100, 196, 784, 12_544];
/// Elements of a tensor: below the least, calls take microseconds, and the time is the call's own.
const ELEMENTS: std::ops::RangeInclusive<usize> = 1 << 14..=1 << 24;

/// Time for one measurement of one way.
const GLANCE: Duration = Duration::from_millis(2);
/// Rounds, over all ways in turns, that decide: what disturbs the machine for a while disturbs all of them.
const ROUNDS: usize = 12;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Operation {
    Statistics,
    Training,
    Inference,
    Backward,
    /// Statistics, then inference: what training is compared with.
    Apart,
}

const OPERATIONS: [Operation; 5] =
    [Operation::Statistics, Operation::Training, Operation::Inference, Operation::Backward, Operation::Apart];
const LAYOUTS: [Layout; 2] = [Layout::Nchw, Layout::Nhwc];

/// A layout on one thread or all: an index into the times of an operation.
fn way(layout: usize, all: bool) -> usize {
    2 * layout + usize::from(all)
}

/// What is compared with what.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Rule {
    /// NCHW with NHWC.
    Nchw,
    /// NHWC with NCHW.
    Nhwc,
    /// All threads with one.
    Threads,
    /// Training with statistics and inference.
    Training,
}

const RULES: [Rule; 4] = [Rule::Nchw, Rule::Nhwc, Rule::Threads, Rule::Training];

impl Rule {
    fn limit(self) -> f64 {
        match self {
            Rule::Nchw => 1.5,
            Rule::Nhwc => 2.0,
            Rule::Threads | Rule::Training => 1.1,
        }
    }

    fn says(self) -> &'static str {
        match self {
            Rule::Nchw => "NCHW over NHWC",
            Rule::Nhwc => "NHWC over NCHW",
            Rule::Threads => "all threads over one",
            Rule::Training => "training over statistics + inference",
        }
    }

    /// The ratios of one operation's times, each with the way that is slow.
    fn ratios(self, operation: usize, times: &Times) -> Vec<(f64, usize)> {
        let of = |operation: usize, way: usize| times[operation][way];
        match self {
            Rule::Nchw | Rule::Nhwc => [false, true]
                .map(|all| {
                    let [nchw, nhwc] = [way(0, all), way(1, all)];
                    let (slow, other) = if self == Rule::Nchw { (nchw, nhwc) } else { (nhwc, nchw) };
                    (of(operation, slow) / of(operation, other), slow)
                })
                .to_vec(),
            Rule::Threads => [0, 1]
                .map(|layout| {
                    let slow = way(layout, true);
                    (of(operation, slow) / of(operation, way(layout, false)), slow)
                })
                .to_vec(),
            Rule::Training if OPERATIONS[operation] == Operation::Training => {
                (0..4).map(|way| (of(operation, way) / of(OPERATIONS.len() - 1, way), way)).collect()
            }
            Rule::Training => Vec::new(),
        }
    }
}

/// Seconds per operation and way.
type Times = [[f64; 4]; OPERATIONS.len()];

struct Bench {
    one: ThreadPool,
    x: Vec<f32>,
    dy: Vec<f32>,
    y: Vec<f32>,
}

/// A shape in one layout, with what there is per channel.
struct Call {
    shape: Shape,
    ones: Vec<f32>,
    zeros: Vec<f32>,
    gradients: [Vec<f32>; 2],
    states: Vec<Welford>,
}

impl Bench {
    /// For tensors of up to `len` elements.
    fn new(len: usize) -> Self {
        let noise = |i: usize| ((i.wrapping_mul(0x9e37_79b9) >> 7 & 0xffff) as f32) / 65536.0 - 0.3;
        Self {
            one: ThreadPoolBuilder::new().num_threads(1).build().expect("a thread"),
            x: (0..len).map(noise).collect(),
            dy: (0..len).map(|i| noise(i + 77)).collect(),
            y: vec![0.0; len],
        }
    }

    fn call(&self, [n, c, s]: [usize; 3], layout: Layout) -> Call {
        let shape = Shape::new(layout, n, c, &[s]).expect("a shape of the grid");
        let mut states = vec![Welford::new(); c];
        batchnorm::statistics(&shape, &self.x[..shape.len()], &mut states).expect("a shape of the grid");
        let (ones, zeros) = (vec![1.0; c], vec![0.0; c]);
        Call { shape, gradients: [zeros.clone(), zeros.clone()], ones, zeros, states }
    }

    /// The least time of some calls, which other programs disturb least.
    fn time(&mut self, operation: Operation, call: &mut Call, all: bool) -> f64 {
        let len = call.shape.len();
        let Self { one, x, dy, y } = self;
        let (x, dy, y) = (&x[..len], &dy[..len], &mut y[..len]);
        let mut timed = || {
            let mut least = f64::INFINITY;
            let begin = Instant::now();
            for count in 0.. {
                let start = Instant::now();
                call.run(operation, x, dy, y);
                least = least.min(start.elapsed().as_secs_f64());
                if count >= 2 && begin.elapsed() > GLANCE {
                    break;
                }
            }
            least
        };
        if all { timed() } else { one.install(timed) }
    }

    /// The least times of so many rounds.
    fn times(&mut self, dims: [usize; 3], rounds: usize) -> Times {
        let mut calls = LAYOUTS.map(|layout| self.call(dims, layout));
        let mut times = [[f64::INFINITY; 4]; OPERATIONS.len()];
        for _ in 0..rounds {
            for (times, operation) in times.iter_mut().zip(OPERATIONS) {
                for (layout, call) in calls.iter_mut().enumerate() {
                    for all in [false, true] {
                        let time = &mut times[way(layout, all)];
                        *time = time.min(self.time(operation, call, all));
                    }
                }
            }
        }
        times
    }
}

impl Call {
    fn run(&mut self, operation: Operation, x: &[f32], dy: &[f32], y: &mut [f32]) {
        let Self { shape, ones, zeros, gradients: [dgamma, dbeta], states } = self;
        let params = Params::default().gamma(ones).beta(zeros);
        match operation {
            Operation::Statistics => batchnorm::statistics(shape, x, states),
            Operation::Training => batchnorm::forward_training(shape, x, &params, y, states),
            Operation::Inference => batchnorm::forward_inference(shape, x, zeros, ones, &params, y),
            Operation::Backward => {
                let gradients = Gradients::new().dx(y).dgamma(dgamma).dbeta(dbeta);
                batchnorm::backward(shape, x, dy, states, &params, gradients)
            }
            Operation::Apart => batchnorm::statistics(shape, x, states)
                .and_then(|()| batchnorm::forward_inference(shape, x, zeros, ones, &params, y)),
        }
        .expect("a shape of the grid");
    }
}

/// A ratio above a rule's limit.
struct Broken {
    rule: Rule,
    operation: usize,
    way: usize,
    ratio: f64,
    dims: [usize; 3],
    nanoseconds: f64,
}

fn breaks(dims: [usize; 3], times: &Times) -> Vec<Broken> {
    let elements = dims.iter().product::<usize>() as f64;
    let mut broken = Vec::new();
    for rule in RULES {
        // But what is apart.
        for operation in 0..OPERATIONS.len() - 1 {
            for (ratio, way) in rule.ratios(operation, times) {
                if ratio > rule.limit() {
                    let nanoseconds = times[operation][way] * 1e9 / elements;
                    broken.push(Broken { rule, operation, way, ratio, dims, nanoseconds });
                }
            }
        }
    }
    broken
}

fn value(arguments: &[String], name: &str) -> Option<String> {
    arguments.iter().position(|argument| argument == name).and_then(|at| arguments.get(at + 1)).cloned()
}

fn main() {
    let arguments: Vec<String> = std::env::args().collect();
    let test = arguments.iter().any(|argument| argument == "--test");
    let number = |name, default| value(&arguments, name).map_or(default, |n| n.parse().expect("a number"));
    let (every, worst) = (number("--every", if test { 400 } else { 1 }), number("--worst", 5));
    let grid = BATCH
        .iter()
        .flat_map(|&n| CHANNELS.iter().flat_map(move |&c| SPATIAL.iter().map(move |&s| [n, c, s])));
    let mut shapes: Vec<[usize; 3]> =
        grid.filter(|dims| ELEMENTS.contains(&dims.iter().product())).step_by(every.max(1)).collect();
    if let Some(shape) = value(&arguments, "--shape") {
        let dims: Vec<usize> = shape.split('x').map(|n| n.parse().expect("NxCxS")).collect();
        shapes = vec![dims.try_into().expect("NxCxS")];
    }
    let single = shapes.len() == 1;
    let mut bench = Bench::new(shapes.iter().map(|dims| dims.iter().product()).max().unwrap_or(0));
    let mut broken = Vec::new();
    for &dims in &shapes {
        let mut times = bench.times(dims, if single { ROUNDS } else { 1 });
        if !breaks(dims, &times).is_empty() && !single {
            times = bench.times(dims, ROUNDS);
        }
        if single {
            let elements = dims.iter().product::<usize>() as f64;
            println!("ns per element: NCHW on one thread, on all, NHWC on one, on all");
            for (operation, times) in OPERATIONS.iter().zip(&times) {
                println!("{:12} {:.3?}", format!("{operation:?}"), times.map(|time| time * 1e9 / elements));
            }
        }
        broken.extend(breaks(dims, &times));
    }
    println!("{} shapes of 2^14 to 2^24 elements, {} threads", shapes.len(), rayon::current_num_threads());
    for rule in RULES {
        for (index, operation) in OPERATIONS.iter().enumerate().filter(|(_, of)| **of != Operation::Apart) {
            let mut these: Vec<&Broken> =
                broken.iter().filter(|broken| broken.rule == rule && broken.operation == index).collect();
            if rule == Rule::Training && *operation != Operation::Training {
                continue;
            }
            these.sort_by(|left, right| right.ratio.total_cmp(&left.ratio));
            println!("{}, {operation:?}: {} above {}", rule.says(), these.len(), rule.limit());
            for Broken { way, ratio, dims: [n, c, s], nanoseconds, .. } in these.into_iter().take(worst) {
                let (layout, threads) =
                    (LAYOUTS[way / 2], if way.is_multiple_of(2) { "one thread" } else { "all" });
                println!("  {ratio:6.2}  {n}x{c}x{s} {layout:?}, {threads}: {nanoseconds:.3} ns per element");
            }
        }
    }
}
