//! Throughput of all operations next to plain loops over the same bytes: `cargo bench`.
//!
//! A group is an operation on a shape, with one thread or all: `f32 training 32x64x56x56, 4 threads`. In it are `nchw`
//! and `nhwc`, and for each `plain loops` over the same bytes (one, where both layouts have the same; benches/plain_loops
//! says which). With all threads also what networks run in one call: `training + ReLU`, `training + add + ReLU` (which writes
//! the mask), inference and backward likewise; `backward + ReLU` twice, u found anew and by the mask, the faster in the table.
//! Throughput counts each tensor that must be read or written once: 1 for statistics, 2 for training and inference, 3 for
//! backward, and 1 more for a residual. At the end a table says, for each form and layout, how fast it is next to plain loops.
//!
//! `cargo bench -- nhwc` runs what has this in its name, `cargo bench -- --test` runs everything once.

#[expect(dead_code, reason = "shared with the examples, which also show how samples scatter")]
mod plain_loops;
mod shapes;
mod summary;

use std::time::{Duration, Instant};

use batchnorm::{
    Activation, Backward, Gradients, Inference, Layout, Params, Shape, Tensor, Training, Welford,
};
use criterion::measurement::WallTime;
use criterion::{BenchmarkGroup, BenchmarkId, Criterion, SamplingMode, Throughput};
use plain_loops::{Float, Form, Operation, PlainLoops, Times};
use rayon::{ThreadPool, ThreadPoolBuilder};
use shapes::Epilogue;
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
    z: Tensor<T>,
    /// y, or dx.
    out: Tensor<T>,
    dz: Tensor<T>,
}

/// The tensors of a shape.
struct Tensors<'a, T> {
    x: &'a [T],
    dy: &'a [T],
    z: &'a [T],
    out: &'a mut [T],
    dz: &'a mut [T],
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
        let [x, dy, z] = [0, 1 << 31, 1 << 30].map(|seed| Tensor::from_fn(shape, |i| noise(i, seed)));
        Self { x, dy, z, out: Tensor::zeros(shape), dz: Tensor::zeros(shape) }
    }

    fn first(&mut self, len: usize) -> Tensors<'_, T> {
        let Self { x, dy, z, out, dz } = self;
        Tensors { x: &x[..len], dy: &dy[..len], z: &z[..len], out: &mut out[..len], dz: &mut dz[..len] }
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
    /// What training with a residual wrote.
    mask: Vec<u64>,
}

impl<T: Float> Channels<T> {
    fn new(shape: &Shape, tensors: &mut Tensors<'_, T>) -> Self {
        let per_channel = |value: f64| vec![T::from_f64(value); shape.channels()];
        let mut states = vec![Welford::new(); shape.channels()];
        batchnorm::statistics(shape, tensors.x, &mut states).expect("tensors of the shape");
        let mut channels = Self {
            gamma: per_channel(1.5),
            beta: per_channel(0.5),
            mean: states.iter().map(|state| T::from_f64(state.mean())).collect(),
            var: states.iter().map(|state| T::from_f64(state.variance())).collect(),
            dgamma: per_channel(0.0),
            dbeta: per_channel(0.0),
            states,
            mask: vec![0; shape.mask_len()],
        };
        channels.run(
            Form { operation: Operation::Training, epilogue: Epilogue::AddRelu },
            false,
            shape,
            tensors,
        );
        channels
    }

    /// Does it once; with `by_mask`, backward takes the mask where it could do without.
    fn run(&mut self, form: Form, by_mask: bool, shape: &Shape, tensors: &mut Tensors<'_, T>) {
        let Self { gamma, beta, mean, var, dgamma, dbeta, states, mask } = self;
        let Tensors { x, dy, z, out, dz } = tensors;
        let activation = match form.epilogue {
            Epilogue::Nothing => Activation::Identity,
            Epilogue::Relu | Epilogue::AddRelu => Activation::Relu,
        };
        let params = Params::default().gamma(gamma).beta(beta).activation(activation);
        match form.operation {
            Operation::Statistics => batchnorm::statistics(shape, x, states),
            Operation::Training => {
                let mut call = Training::new(shape, params).x(x).y(out).states(states);
                if form.adds() {
                    call = call.residual(z).mask(mask);
                }
                call.run()
            }
            Operation::Inference => {
                let mut call = Inference::new(shape, params).x(x).y(out).frozen(mean, var);
                if form.adds() {
                    call = call.residual(z);
                }
                call.run()
            }
            Operation::Backward => {
                let mut gradients = Gradients::new().dx(out).dgamma(dgamma).dbeta(dbeta);
                let mut call = Backward::new(shape, params).x(x).dy(dy).states(states);
                if form.adds() {
                    gradients = gradients.dz(dz);
                }
                if form.adds() || by_mask {
                    call = call.mask(mask);
                }
                call.gradients(gradients).run()
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
    tensors: &mut Tensors<'_, T>,
    make: impl Fn(&mut Tensors<'_, T>) -> S + Sync,
    run: impl Fn(&mut S, &mut Tensors<'_, T>) + Sync,
) -> Option<f64> {
    let mut made = None;
    let mut calls: Vec<(u64, Duration)> = Vec::new();
    group.bench_function(id, |bencher| {
        pool.install(|| {
            let made = made.get_or_insert_with(|| make(tensors));
            bencher.iter_custom(|runs| {
                let start = Instant::now();
                (0..runs).for_each(|_| run(made, tensors));
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

/// The group of a form on a shape.
fn group<T: Float>(
    criterion: &mut Criterion,
    pool: &ThreadPool,
    form: Form,
    problem: &shapes::Problem,
    buffers: &mut Buffers<T>,
    calibration: Duration,
) -> Medians {
    let threads = pool.current_num_threads();
    let element = format!("f{}", 8 * size_of::<T>());
    let plural = if threads == 1 { "" } else { "s" };
    let name = format!("{element} {} {problem}, {threads} thread{plural}", form.name());
    let mut group = criterion.benchmark_group(name);
    group.sampling_mode(SamplingMode::Flat);

    let mut medians = Medians::default();
    let mut loops_of = Vec::new();
    for (index, (layout, layout_name)) in LAYOUTS.into_iter().enumerate() {
        let shape = problem.shape(layout).expect("checked by the parser");
        let mut tensors = buffers.first(shape.len());
        group.throughput(Throughput::Bytes((shape.len() * size_of::<T>() * form.tensors()) as u64));
        let channels = |tensors: &mut Tensors<'_, T>| Channels::new(&shape, tensors);
        for (by_mask, id) in ids(form, layout_name) {
            let run = |channels: &mut Channels<T>, tensors: &mut Tensors<'_, T>| {
                channels.run(form, by_mask, &shape, tensors);
            };
            let seconds = median(&mut group, id, pool, &mut tensors, channels, run);
            medians.ours[index] = [medians.ours[index], seconds].into_iter().flatten().reduce(f64::min);
        }
        let passes = pool.install(|| form.passes(&shape, size_of::<T>()));
        let known = loops_of.iter().find(|(known, _)| *known == passes).map(|&(_, seconds)| seconds);
        medians.loops[index] = known.unwrap_or_else(|| {
            let fastest = |Tensors { x, dy, out, dz, .. }: &mut Tensors<'_, T>| {
                PlainLoops::measure(form, &shape, [x, dy], [out, dz], calibration).0
            };
            let run = |loops: &mut PlainLoops, Tensors { x, dy, out, dz, .. }: &mut Tensors<'_, T>| {
                loops.run([x, dy], [out, dz]);
            };
            let id = BenchmarkId::new("plain loops", plain_loops::names(passes));
            let seconds = median(&mut group, id, pool, &mut tensors, fastest, run);
            loops_of.push((passes, seconds));
            seconds
        });
    }
    group.finish();
    medians
}

/// The ways of a form, with whether it is by the mask.
fn ids(form: Form, layout: &str) -> Vec<(bool, BenchmarkId)> {
    let mut ids = vec![(false, BenchmarkId::from_parameter(layout))];
    if form == (Form { operation: Operation::Backward, epilogue: Epilogue::Relu }) {
        ids.push((true, BenchmarkId::from_parameter(format!("{layout}, mask"))));
    }
    ids
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
        let threads = pool.current_num_threads();
        let fused = Form::FUSED.into_iter().filter(|_| threads == all);
        for form in Operation::ALL.map(Form::from).into_iter().chain(fused) {
            let name = format!("f{} {}", 8 * size_of::<T>(), form.name());
            for problem in problems {
                let medians = group(criterion, pool, form, problem, &mut buffers, calibration);
                summary.add(&name, threads, &problem.to_string(), medians);
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
