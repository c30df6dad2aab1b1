//! batchnorm timed side by side with oneDNN, candle and burn, and with plain loops over the same bytes: see README.md.

mod agreement;
#[cfg(feature = "burn")]
mod burn;
#[cfg(feature = "candle")]
mod candle;
mod contender;
mod csv;
mod field;
#[path = "../../number/mod.rs"]
mod number;
#[cfg(feature = "onednn")]
mod onednn;
mod options;
mod ours;
#[path = "../../plain_loops/mod.rs"]
#[allow(dead_code, reason = "shared with the library's benchmarks, which use the rest")]
mod plain_loops;
mod problem;
#[path = "../../shapes/mod.rs"]
#[allow(dead_code, reason = "shared with the library's benchmarks, which use the rest")]
mod shapes;
mod tables;
mod timing;

use std::error::Error;
use std::process::ExitCode;

use batchnorm::Level;
use indicatif::{ProgressBar, ProgressStyle};
use number::{Number, Type};
use options::{HELP, Options};
use plain_loops::Form;
use problem::Problem;
use tables::Row;

/// Whatever went wrong; it may have happened on another thread.
type Result<T> = std::result::Result<T, Box<dyn Error + Send + Sync>>;

fn main() -> ExitCode {
    match options::parse() {
        Ok(Some(options)) => match of_number(&options) {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => {
                eprintln!("{error}");
                ExitCode::FAILURE
            }
        },
        Ok(None) => {
            print!("{HELP}");
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("{error}; --help has the options");
            ExitCode::from(2)
        }
    }
}

/// Gives every thread pool in the process its number of threads. The first thing that the program does.
fn set_threads(threads: usize) -> Result<()> {
    // SAFETY: no other thread has been started yet.
    unsafe {
        // candle asks for it by name.
        std::env::set_var("RAYON_NUM_THREADS", threads.to_string());
    }
    rayon::ThreadPoolBuilder::new().num_threads(threads).build_global()?;
    #[cfg(feature = "onednn")]
    onednn::set_threads(threads)?;
    Ok(())
}

/// Measures on tensors of the type that was asked for.
fn of_number(options: &Options) -> Result<()> {
    match options.number {
        Type::F32 => run::<f32>(options),
        #[cfg(feature = "half")]
        Type::Bf16 => run::<half::bf16>(options),
        #[cfg(feature = "half")]
        Type::F16 => run::<half::f16>(options),
    }
}

/// Measures everything shape by shape, then prints a table for each operation.
fn run<S: Number>(options: &Options) -> Result<()> {
    set_threads(options.threads)?;
    let create = |path| csv::Writer::create(path, S::TYPE);
    let mut file = options.csv.as_deref().map(create).transpose()?;
    let mut rows = vec![Vec::new(); options.forms.len()];
    let bar = ProgressBar::new((options.shapes.len() * options.forms.len()) as u64);
    bar.set_style(ProgressStyle::with_template("{bar:32} {pos}/{len} {msg}")?);
    for shape in &options.shapes {
        bar.set_message(format!("{shape} tensors"));
        bar.tick();
        let mut problem = Problem::<S>::new(&shape.dims)?;
        for (&form, rows) in options.forms.iter().zip(&mut rows) {
            // A network's layers say themselves what follows.
            let form = if options.network { Form { epilogue: shape.epilogue, ..form } } else { form };
            let Problem { layer, tensors } = &mut problem;
            let mut contenders = field::all(form, layer, tensors, &options.peers, options.caller)?;
            bar.set_message(format!("{shape} {}: do all agree?", form.name()));
            agreement::check(form, layer, tensors, &mut contenders)
                .map_err(|error| format!("{} of {shape}: {error}", form.name()))?;
            bar.set_message(format!("{shape} {}", form.name()));
            let timings = timing::measure(&mut contenders, tensors, options.rounds, options.block)?;
            let row = Row { shape: shape.to_string(), form, layers: shape.layers, timings };
            if let Some(file) = &mut file {
                file.write(options.threads, &row)?;
            }
            rows.push(row);
            bar.inc(1);
        }
    }
    bar.finish_and_clear();
    println!("Threads: {}. Instruction set: {}.", options.threads, Level::active());
    for (form, rows) in options.forms.iter().zip(&rows) {
        print!("\n{}", tables::format(&form.name(), S::TYPE, rows, options.network));
    }
    if !options.network {
        print!("\n{}", tables::summary(&rows));
    }
    Ok(())
}
