//! Throughput of all operations next to the limit of memory: `cargo bench`.
//!
//! A group is an operation on a shape, with one thread or all: `f32 training 32x64x56x56, 4 threads`. In it are `nchw`
//! and `nhwc`, and for each `limit`, the plain loops that memory allows for the same bytes (one, where both layouts have
//! the same; benches/limit says which). Throughput counts each tensor that must be read or written once: 1 for
//! statistics, 2 for training and inference, 3 for backward.
//!
//! `cargo bench -- nhwc` runs what has this in its name, `cargo bench -- --test` runs everything once.

mod limit;
mod shapes;

use std::time::Duration;

use batchnorm::{Gradients, Layout, Params, Shape, Tensor, Welford};
use criterion::{BenchmarkId, Criterion, SamplingMode, Throughput};
use limit::{Float, Limit, Operation};
use rayon::{ThreadPool, ThreadPoolBuilder};

/// The twelve shapes of every throughput table.
const TABLE: &str = include_str!("shapes/table.txt");

/// Shapes in f64 too: one in memory, one in L3, one in L2.
const F64_SHAPES: [&str; 3] = ["32x64x56x56", "32x256x14x14", "1x2048x7x7"];

/// Time to find the fastest way to the limit in.
const CALIBRATION: Duration = Duration::from_millis(60);

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

/// The group of an operation on a shape.
fn group<T: Float>(
    criterion: &mut Criterion,
    pool: &ThreadPool,
    operation: Operation,
    problem: &shapes::Problem,
    buffers: &mut Buffers<T>,
    calibration: Duration,
) {
    let threads = pool.current_num_threads();
    let element = format!("f{}", 8 * size_of::<T>());
    let plural = if threads == 1 { "" } else { "s" };
    let name = format!("{element} {} {problem}, {threads} thread{plural}", operation.name());
    let mut group = criterion.benchmark_group(name);
    group.sampling_mode(SamplingMode::Flat);

    let mut limits = Vec::new();
    for (layout, layout_name) in [(Layout::Nchw, "nchw"), (Layout::Nhwc, "nhwc")] {
        let shape = problem.shape(layout).expect("checked by the parser");
        let (x, dy, y) =
            (&buffers.x[..shape.len()], &buffers.dy[..shape.len()], &mut buffers.y[..shape.len()]);
        group.throughput(Throughput::Bytes((shape.len() * size_of::<T>() * operation.tensors()) as u64));
        // Criterion calls the function several times; what is for the first is kept here.
        let mut channels = None;
        group.bench_function(layout_name, |bencher| {
            pool.install(|| {
                let channels = channels.get_or_insert_with(|| Channels::new(&shape, x));
                bencher.iter(|| channels.run(operation, &shape, x, dy, y));
            });
        });
        let passes = pool.install(|| operation.passes(&shape, size_of::<T>()));
        if !limits.contains(&passes) {
            limits.push(passes);
            let mut limit = None;
            group.bench_function(BenchmarkId::new("limit", limit::names(passes)), |bencher| {
                pool.install(|| {
                    let (limit, _) =
                        limit.get_or_insert_with(|| Limit::measure(operation, &shape, x, dy, y, calibration));
                    bencher.iter(|| limit.run(x, dy, y));
                });
            });
        }
    }
    group.finish();
}

/// All groups of an element type.
fn element<T: Float>(criterion: &mut Criterion, problems: &[shapes::Problem], calibration: Duration) {
    let len = problems.iter().map(|problem| problem.dims.iter().product()).max().unwrap_or(0);
    let mut buffers = Buffers::<T>::new(len);
    let all = std::thread::available_parallelism().map_or(1, usize::from);
    let pool = |threads| ThreadPoolBuilder::new().num_threads(threads).build().expect("a thread pool");
    // On one core, one thread is all.
    let pools = [all, 1].map(pool);
    for pool in &pools[..all.min(2)] {
        for operation in Operation::ALL {
            for problem in problems {
                group(criterion, pool, operation, problem, &mut buffers, calibration);
            }
        }
    }
}

fn main() {
    // Without `--bench`, which cargo bench passes, criterion only tests as well.
    let arguments: Vec<String> = std::env::args().collect();
    let has = |name: &str| arguments.iter().any(|argument| argument == name);
    let calibration = if has("--test") || !has("--bench") { Duration::ZERO } else { CALIBRATION };
    let mut criterion = Criterion::default()
        .sample_size(10)
        .warm_up_time(Duration::from_millis(50))
        .measurement_time(Duration::from_millis(200))
        .nresamples(2000)
        .without_plots()
        .configure_from_args();
    let problems = shapes::parse(TABLE).expect("a file of this crate");
    element::<f32>(&mut criterion, &problems, calibration);
    let few: Vec<_> =
        problems.into_iter().filter(|problem| F64_SHAPES.contains(&problem.to_string().as_str())).collect();
    element::<f64>(&mut criterion, &few, calibration);
    criterion.final_summary();
}
