//! All 53 batch-norm layers of ResNet-50: time, speed next to plain loops over the same bytes, and error,
//! per shape and in all.
//!
//! `cargo run --release --example resnet50 -- --help` explains the options.

mod measure;
mod number;
mod options;
#[path = "../output/mod.rs"]
mod output;
mod picture;
#[expect(dead_code, reason = "shared with the benchmarks, which also measure statistics")]
#[path = "../../benches/plain_loops/mod.rs"]
mod plain_loops;
#[path = "../../benches/shapes/mod.rs"]
mod shapes;
mod table;
#[expect(dead_code, reason = "shared with benches/peers, which asks numbers for their type")]
#[path = "../../benches/number/mod.rs"]
mod types;

use std::process::ExitCode;
use std::time::Instant;

use indicatif::{ProgressBar, ProgressStyle};
use measure::{Layer, OPERATIONS};
use number::{Number, Type};
use options::Options;
use plain_loops::{Form, Operation};
use shapes::Epilogue;
use table::{Row, Total};

fn main() -> ExitCode {
    match options::parse(std::env::args().skip(1)) {
        Ok(Some(options)) => match run(&options) {
            Ok(true) => ExitCode::SUCCESS,
            Ok(false) => ExitCode::FAILURE,
            Err(error) => {
                eprintln!("error: {error}");
                ExitCode::FAILURE
            }
        },
        Ok(None) => {
            output::print(format_args!("{}", options::HELP));
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("error: {error}\n(--help explains the options)");
            ExitCode::from(2)
        }
    }
}

/// Measures and shows everything; whether all results are as exact as promised.
fn run(options: &Options) -> Result<bool, Box<dyn std::error::Error>> {
    for path in options.csv.iter().chain([&options.picture]) {
        output::check_writable(path)?;
    }
    let start = Instant::now();
    // 0 is rayon's default: all cores, or RAYON_NUM_THREADS.
    let pool = rayon::ThreadPoolBuilder::new().num_threads(options.threads).build()?;
    let threads = pool.current_num_threads();
    let layout = options::layout_name(options.layout);
    let plural = if threads == 1 { "" } else { "s" };
    let fused = if options.fused { ", with what follows each layer in one call" } else { "" };
    let number = options.number.name();
    let what = format!("{number}, {layout}, {threads} thread{plural}, {}{fused}", options.level);
    outln!("Batch normalization of {}: {what}", options.network);
    let count = options.problems.len() * OPERATIONS.len();
    let seconds = options.time.as_secs_f64();
    outln!(
        "{count} measurements of {seconds} s and checks: about {:.0} s\n",
        expected_seconds(options, threads)
    );
    let tables = pool.install(|| match options.number {
        Type::F32 => measure::<f32>(options),
        #[cfg(feature = "half")]
        Type::Bf16 => measure::<half::bf16>(options),
        #[cfg(feature = "half")]
        Type::F16 => measure::<half::f16>(options),
    })?;
    for ((operation, rows), (_, promised)) in tables.iter().zip(OPERATIONS) {
        outln!("{}", table::text(*operation, rows, promised, options.number, options.fused));
    }
    let step = |wanted: &[Operation]| {
        let all = tables.iter().filter(|(operation, _)| wanted.contains(operation));
        let total = all.map(|(_, rows)| table::total(rows)).fold(Total::default(), Total::plus);
        let Total { seconds, loops, apart } = total;
        let apart = if options.fused {
            format!(", in separate calls {:.1} ms, {:.2} times as long", apart * 1e3, apart / seconds)
        } else {
            String::new()
        };
        let share = loops / seconds;
        format!("{:.1} ms, plain loops {:.1} ms, share {share:.2}{apart}", seconds * 1e3, loops * 1e3)
    };
    outln!("all layers, training and backward: {}", step(&[Operation::Training, Operation::Backward]));
    outln!("all layers, inference: {}", step(&[Operation::Inference]));
    outln!(
        "lower, upper: quartiles of the samples, from the median, which is what all other columns are made of"
    );
    outln!(
        "share: plain loops / time, a reference and no limit; GB/s: each tensor that must be read or written counted once"
    );
    if options.fused {
        let f32s = options.number == Type::F32;
        let whose = if f32s { ", whose bits" } else { "; on f32 and rounded once, these have the bits that" };
        outln!(
            "apart: the bare operation, the addition and ReLU one after the other{whose} the one call must have"
        );
    }
    if let Some(warning) = table::warning(&tables) {
        outln!("\n{warning}");
    }

    if let Some(path) = &options.csv {
        let csv = table::csv(layout, threads, &options.level.to_string(), number, &tables, options.fused);
        std::fs::write(path, csv).map_err(|error| format!("{}: {error}", path.display()))?;
        outln!("table: {}", path.display());
    }
    let title = format!("Batch normalization of {}", options.network);
    picture::draw(&options.picture, &title, &what, &tables)
        .map_err(|error| format!("{}: {error}", options.picture.display()))?;
    outln!("picture: {}", options.picture.display());
    outln!("took {:.0} s", start.elapsed().as_secs_f64());
    let exact =
        tables.iter().zip(OPERATIONS).all(|((_, rows), (_, promised))| table::worst(rows) <= promised);
    Ok(exact && tables.iter().all(|(_, rows)| table::all_same(rows)))
}

/// About how long a run takes: the measurements, and for each element the making of its data and the checks in f64.
fn expected_seconds(options: &Options, threads: usize) -> f64 {
    const SERIAL_SECONDS: f64 = 20e-9;
    const PARALLEL_SECONDS: f64 = 60e-9;
    // With what follows each layer the data is made twice.
    let serial_seconds = if options.fused { 2.0 * SERIAL_SECONDS } else { SERIAL_SECONDS };
    let elements: usize = options.problems.iter().map(|problem| problem.dims.iter().product::<usize>()).sum();
    let measured = options.problems.len() as f64 * OPERATIONS.len() as f64 * options.time.as_secs_f64();
    measured + elements as f64 * (serial_seconds + PARALLEL_SECONDS / threads as f64)
}

/// Measures all shapes, on the pool that it is called in.
fn measure<S: Number>(options: &Options) -> Result<Vec<(Operation, Vec<Row>)>, batchnorm::Error> {
    let mut tables: Vec<_> = OPERATIONS.iter().map(|(operation, _)| (*operation, Vec::new())).collect();
    let bar = ProgressBar::new((options.problems.len() * tables.len()) as u64);
    let style =
        ProgressStyle::with_template("{bar:32} {pos}/{len} {eta} left, {msg}").expect("a valid template");
    bar.set_style(style);
    for problem in &options.problems {
        bar.set_message(problem.to_string());
        let shape = problem.shape(options.layout)?;
        let mut layer = Layer::new(shape, problem.epilogue, S::of)?;
        // What one call must have the bits of: separate ones on the same numbers in f32.
        let mut widened = match problem.epilogue {
            Epilogue::Nothing => None,
            epilogue => Some(Layer::new(shape, epilogue, |value| S::of(value).widened())?),
        };
        for (operation, rows) in &mut tables {
            bar.set_message(format!("{problem} {}", operation.name()));
            bar.tick();
            let measured = layer.measure(*operation, options.time, widened.as_mut())?;
            let form = Form { operation: *operation, epilogue: problem.epilogue };
            let bytes = size_of::<S>();
            let passes = form.passes(&shape, bytes);
            rows.push(Row { problem: problem.clone(), form, bytes, passes, measured });
            bar.inc(1);
        }
    }
    bar.finish_and_clear();
    Ok(tables)
}
