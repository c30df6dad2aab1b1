//! Throughput of all operations next to plain loops over the same bytes: `cargo bench`.
//!
//! A group is an operation on a shape, with one thread or all: `f32 training 32x64x56x56, 4 threads`. In it are `nchw`
//! and `nhwc`, and for each `plain loops` over the same bytes (one, where both layouts have the same; benches/plain_loops
//! says which). Throughput counts each tensor that must be read or written once: 1 for statistics, 2 for training and
//! inference, 3 for backward. At the end a table says, for each operation and layout, how fast it is next to plain loops.
//!
//! `cargo bench -- nhwc` runs what has this in its name, `cargo bench -- --test` runs everything once.

#[expect(dead_code, reason = "shared with the examples, which also show how samples scatter")]
mod plain_loops;
mod shapes;
mod summary;

use std::time::{Duration, Instant};

use batchnorm::{Gradients, Layout, Params, Shape, Tensor, Welford};
use criterion::measurement::WallTime;
use criterion::{BenchmarkGroup, BenchmarkId, Criterion, SamplingMode, Throughput};
use plain_loops::{Float, Operation, PlainLoops, Times};
use rayon::{ThreadPool, ThreadPoolBuilder};
use summary::{Medians, Summary};

/// The twelve shapes of every throughput table.
const TABLE: &str = include_str!("shapes/table.txt");

/// Shapes in f64 too: one in memory, one in L3, one in L2.
const F64_SHAPES: [&str; 3] = ["32x64x56x56", "32x256x14x14", "1x2048x7x7"];

/// Time to find the fastest plain loops in.
const CALIBRATION: Duration = Duration::from_millis(60);

/// In the order of the summary's columns.
const LAYOUTS: [(Layout, &str); 2] = [(Layout::Nchw, "nchw"), (Layout::Nhwc, "nhwc")];

/// The tensors that all shapes are the first elements of.
struct Buffers<T> {
    x: Tensor<T>,
    dy: Tensor<T>,
    y: Tensor<T>,
}

impl<T: Float> Buffers<T> {
    fn new(len: usize) -> Self {
        let shape = Shape::nchw(&[len, 1]).expect("a shape that fits");
        // Spread evenly over (-1, 1), in no order that a channel would notice.
        let noise = |i: usize, seed: u32| {
            let bits = (i as u32).wrapping_add(seed).wrapping_mul(0x9e37_79b9);
            T::from_f64(
                f64::from((bits ^ bits >> 15).wrapping_mul(0x85eb_ca6b) as i32) / f64::from(1u32 << 31),
            )
        };
        let x = Tensor::from_fn(shape, |i| noise(i, 0));
        let dy = Tensor::from_fn(shape, |i| noise(i, 1 << 31));
        Self { x, dy, y: Tensor::zeros(shape) }
    }
}

/// What an operation needs besides the tensors.
struct Channels<T> {
    gamma: Vec<T>,
    beta: Vec<T>,
    mean: Vec<T>,
    var: Vec<T>,
    dgamma: Vec<T>,
    dbeta: Vec<T>,
    states: Vec<Welford>,
}

impl<T: Float> Channels<T> {
    fn new(shape: &Shape, x: &[T]) -> Self {
        let per_channel = |value: f64| vec![T::from_f64(value); shape.channels()];
        let mut states = vec![Welford::new(); shape.channels()];
        batchnorm::statistics(shape, x, &mut states).expect("tensors of the shape");
        Self {
            gamma: per_channel(1.5),
            beta: per_channel(0.5),
            mean: states.iter().map(|state| T::from_f64(state.mean())).collect(),
            var: states.iter().map(|state| T::from_f64(state.variance())).collect(),
            dgamma: per_channel(0.0),
            dbeta: per_channel(0.0),
            states,
        }
    }

    fn run(&mut self, operation: Operation, shape: &Shape, x: &[T], dy: &[T], y: &mut [T]) {
        let params = Params::default().gamma(&self.gamma).beta(&self.beta);
        match operation {
            Operation::Statistics => batchnorm::statistics(shape, x, &mut self.states),
            Operation::Training => batchnorm::forward_training(shape, x, &params, y, &mut self.states),
            Operation::Inference => batchnorm::forward_inference(shape, x, &self.mean, &self.var, &params, y),
            Operation::Backward => {
                let gradients = Gradients::new().dx(y).dgamma(&mut self.dgamma).dbeta(&mut self.dbeta);
                batchnorm::backward(shape, x, dy, &self.states, &params, gradients)
            }
        }
        .expect("arguments of the shape");
    }
}

/// Runs something under criterion; its median in seconds, if criterion has measured it.
///
/// Criterion keeps its samples to itself, so they are taken on their way there. It calls a function several times; what
/// `make` makes is made once, and not at all where a filter leaves the function out.
fn median<T: Float, S: Send>(
    group: &mut BenchmarkGroup<'_, WallTime>,
    id: BenchmarkId,
    pool: &ThreadPool,
    y: &mut [T],
    make: impl Fn(&mut [T]) -> S + Sync,
    run: impl Fn(&mut S, &mut [T]) + Sync,
) -> Option<f64> {
    let mut made = None;
    let mut calls: Vec<(u64, Duration)> = Vec::new();
    group.bench_function(id, |bencher| {
        pool.install(|| {
            let made = made.get_or_insert_with(|| make(y));
            bencher.iter_custom(|runs| {
                let start = Instant::now();
                (0..runs).for_each(|_| run(made, y));
                let time = start.elapsed();
                calls.push((runs, time));
                time
            });
        });
    });
    // Flat samples are all of as many runs as the last; what came before them was to warm up.
    let &(runs, _) = calls.last()?;
    let samples = calls.iter().filter(|call| call.0 == runs);
    Some(Times::of(samples.map(|(_, time)| time.as_secs_f64() / runs as f64).collect()).median)
}

/// The group of an operation on a shape.
fn group<T: Float>(
    criterion: &mut Criterion,
    pool: &ThreadPool,
    operation: Operation,
    problem: &shapes::Problem,
    buffers: &mut Buffers<T>,
    calibration: Duration,
) -> Medians {
    let threads = pool.current_num_threads();
    let element = format!("f{}", 8 * size_of::<T>());
    let plural = if threads == 1 { "" } else { "s" };
    let name = format!("{element} {} {problem}, {threads} thread{plural}", operation.name());
    let mut group = criterion.benchmark_group(name);
    group.sampling_mode(SamplingMode::Flat);

    let mut medians = Medians::default();
    let mut loops_of = Vec::new();
    for (index, (layout, layout_name)) in LAYOUTS.into_iter().enumerate() {
        let shape = problem.shape(layout).expect("checked by the parser");
        let (x, dy, y) =
            (&buffers.x[..shape.len()], &buffers.dy[..shape.len()], &mut buffers.y[..shape.len()]);
        group.throughput(Throughput::Bytes((shape.len() * size_of::<T>() * operation.tensors()) as u64));
        let channels = |_: &mut [T]| Channels::new(&shape, x);
        let run = |channels: &mut Channels<T>, y: &mut [T]| channels.run(operation, &shape, x, dy, y);
        let id = BenchmarkId::from_parameter(layout_name);
        medians.ours[index] = median(&mut group, id, pool, y, channels, run);
        let passes = pool.install(|| operation.passes(&shape, size_of::<T>()));
        let known = loops_of.iter().find(|(known, _)| *known == passes).map(|&(_, seconds)| seconds);
        medians.loops[index] = known.unwrap_or_else(|| {
            let fastest = |y: &mut [T]| PlainLoops::measure(operation, &shape, x, dy, y, calibration).0;
            let run = |loops: &mut PlainLoops, y: &mut [T]| loops.run(x, dy, y);
            let id = BenchmarkId::new("plain loops", plain_loops::names(passes));
            let seconds = median(&mut group, id, pool, y, fastest, run);
            loops_of.push((passes, seconds));
            seconds
        });
    }
    group.finish();
    medians
}

/// All groups of an element type.
fn element<T: Float>(
    criterion: &mut Criterion,
    problems: &[shapes::Problem],
    calibration: Duration,
    summary: &mut Summary,
) {
    let len = problems.iter().map(|problem| problem.dims.iter().product()).max().unwrap_or(0);
    let mut buffers = Buffers::<T>::new(len);
    let all = std::thread::available_parallelism().map_or(1, usize::from);
    let pool = |threads| ThreadPoolBuilder::new().num_threads(threads).build().expect("a thread pool");
    // On one core, one thread is all.
    let pools = [all, 1].map(pool);
    for pool in &pools[..all.min(2)] {
        for operation in Operation::ALL {
            let name = format!("f{} {}", 8 * size_of::<T>(), operation.name());
            for problem in problems {
                let medians = group(criterion, pool, operation, problem, &mut buffers, calibration);
                summary.add(&name, pool.current_num_threads(), &problem.to_string(), medians);
            }
        }
    }
}

fn main() {
    // Without `--bench`, which cargo bench passes, criterion only tests as well.
    let arguments: Vec<String> = std::env::args().collect();
    let has = |name: &str| arguments.iter().any(|argument| argument == name);
    let measures = has("--bench") && !has("--test");
    let calibration = if measures { CALIBRATION } else { Duration::ZERO };
    let mut criterion = Criterion::default()
        .sample_size(10)
        .warm_up_time(Duration::from_millis(50))
        .measurement_time(Duration::from_millis(200))
        .nresamples(2000)
        .without_plots()
        .configure_from_args();
    let problems = shapes::parse(TABLE).expect("a file of this crate");
    let mut summary = Summary::default();
    element::<f32>(&mut criterion, &problems, calibration, &mut summary);
    let few: Vec<_> =
        problems.into_iter().filter(|problem| F64_SHAPES.contains(&problem.to_string().as_str())).collect();
    element::<f64>(&mut criterion, &few, calibration, &mut summary);
    criterion.final_summary();
    if measures {
        print!("{summary}");
    }
}
