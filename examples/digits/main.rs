//! Trains a small convolutional network on real handwritten digits, with and without batch normalization: first at a
//! learning rate and depth that suit both, then deeper and faster, where the plain network no longer trains.
//!
//! `cargo run --release --example digits`; `--help` lists the options. The same seed gives the same output, but for times.

mod data;
mod network;
#[path = "../output/mod.rs"]
mod output;
mod picture;

use std::error::Error;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};
use rand::SeedableRng;
use rand::rngs::Xoshiro256PlusPlus;
use rand::seq::SliceRandom;

use data::Digit;
use network::{Network, Score};

const HELP: &str = "\
Trains a small convolutional network on 1,797 real handwritten digits, with and without batch normalization.

Usage: cargo run --release --example digits -- [OPTIONS]

Options:
  --epochs N      epochs of each run, 1 or more [default: 15]
  --seed N        of the split, the weights and the batches [default: 1]
  --picture FILE  where the picture goes [default: digits.svg]
  --help          prints this
";

/// Accuracy that counts as having learnt.
const GOAL: f64 = 0.95;
const BATCH: usize = 32;

/// A network and a learning rate.
struct Regime {
    name: &'static str,
    widths: &'static [usize],
    lr: f64,
}

const REGIMES: [Regime; 2] = [
    Regime { name: "2 layers, learning rate 0.05", widths: &[16, 32], lr: 0.05 },
    Regime { name: "8 layers, learning rate 0.3", widths: &[16; 8], lr: 0.3 },
];

/// One training run.
struct Run {
    name: String,
    /// Test accuracy after each epoch.
    accuracy: Vec<f64>,
    in_norm: Duration,
    total: Duration,
}

struct Options {
    epochs: usize,
    seed: u64,
    picture: PathBuf,
}

fn options() -> Result<Option<Options>, lexopt::Error> {
    use lexopt::prelude::*;
    let mut options = Options { epochs: 15, seed: 1, picture: "digits.svg".into() };
    let mut arguments = lexopt::Parser::from_env();
    while let Some(argument) = arguments.next()? {
        match argument {
            Long("epochs") => options.epochs = arguments.value()?.parse_with(positive)?,
            Long("seed") => options.seed = arguments.value()?.parse()?,
            Long("picture") => options.picture = arguments.value()?.into(),
            Long("help") => return Ok(None),
            _ => return Err(argument.unexpected()),
        }
    }
    Ok(Some(options))
}

/// A number from 1 on.
fn positive(text: &str) -> Result<usize, String> {
    text.parse().ok().filter(|&number| number > 0).ok_or_else(|| "no number from 1 on".to_owned())
}

fn main() -> ExitCode {
    let options = match options() {
        Ok(Some(options)) => options,
        Ok(None) => {
            output::print(format_args!("{HELP}"));
            return ExitCode::SUCCESS;
        }
        Err(error) => {
            eprintln!("{error}\n\n{HELP}");
            return ExitCode::from(2);
        }
    };
    match run(&options) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}

fn run(options: &Options) -> Result<(), Box<dyn Error>> {
    output::check_writable(&options.picture)?;
    let (training, test) = data::load(options.seed)?;
    outln!("{} digits to train on, {} held out; batches of {BATCH}", training.len(), test.len());
    let mut panels = Vec::new();
    for regime in &REGIMES {
        let mut runs = Vec::new();
        for normalize in [false, true] {
            let name = if normalize { "with batch norm" } else { "plain" };
            outln!("\n{}, {name}", regime.name);
            let network = Network::new(options.seed, regime.widths, normalize);
            runs.push(train(name, network, regime.lr, options, (&training, &test))?);
        }
        panels.push((regime.name, runs));
    }
    print_table(&panels);
    picture::draw(&options.picture, &panels)?;
    outln!("\npicture: {}", options.picture.display());
    Ok(())
}

fn train(
    name: &str,
    mut network: Network,
    lr: f64,
    options: &Options,
    (training, test): (&[Digit], &[Digit]),
) -> Result<Run, Box<dyn Error>> {
    let start = Instant::now();
    let mut order: Vec<&Digit> = training.iter().collect();
    let test: Vec<&Digit> = test.iter().collect();
    let rng = &mut Xoshiro256PlusPlus::seed_from_u64(options.seed);
    // A last batch of a sample or two would have statistics of its own.
    let batches = order.len() / BATCH;
    let bar = ProgressBar::new((options.epochs * batches) as u64);
    bar.set_style(ProgressStyle::with_template("{wide_bar} {pos}/{len} batches, {eta} left")?);
    let mut accuracy = Vec::new();
    for epoch in 1..=options.epochs {
        order.shuffle(rng);
        let mut loss = 0.0;
        for batch in order.chunks_exact(BATCH) {
            loss += network.train(batch, lr)?.loss / batches as f64;
            bar.inc(1);
        }
        let Score { accuracy: right, .. } = network.test(&test)?;
        bar.suspend(|| {
            outln!("epoch {epoch:>2}: training loss {loss:.4}, test accuracy {:>5.1} %", right * 100.0)
        });
        accuracy.push(right);
    }
    bar.finish_and_clear();
    Ok(Run { name: name.to_owned(), accuracy, in_norm: network.in_norm, total: start.elapsed() })
}

fn print_table(panels: &[(&str, Vec<Run>)]) {
    outln!("\n{:<30}{:<18}{:>16}{:>16}", "", "", "epochs to 95 %", "final accuracy");
    for (regime, runs) in panels {
        for run in runs {
            let reached = run.accuracy.iter().position(|accuracy| *accuracy >= GOAL);
            let reached = reached.map_or("never".to_owned(), |epoch| (epoch + 1).to_string());
            let last = run.accuracy.last().map_or(0.0, |accuracy| accuracy * 100.0);
            outln!("{regime:<30}{:<18}{reached:>16}{last:>14.1} %", run.name);
        }
    }
    // Times are the only lines that differ from run to run.
    outln!("\n{:<48}{:>16}{:>16}", "", "in batch norm", "in all");
    for (regime, runs) in panels {
        for run in runs {
            let (norm, all) = (run.in_norm.as_secs_f64(), run.total.as_secs_f64());
            outln!("{regime:<30}{:<18}{norm:>14.2} s{all:>14.2} s", run.name);
        }
    }
}
