//! Trains a small convolutional network on real handwritten digits, with and without batch normalization: first at a
//! learning rate and depth that suit both, then deeper and faster, where the plain network no longer trains.
//!
//! With batch normalization each network is trained twice, side by side: what follows the normalization (relu, and with `--residual`
//! an addition) in one pass with it, and apart. Every loss and accuracy of the two has the same bits; their times are in the end.
//!
//! `cargo run --release --example digits`; `--help` lists the options. The same seed gives the same output, but for times.

mod arithmetic;
mod data;
mod network;
mod options;
#[path = "../output/mod.rs"]
mod output;
mod picture;

use std::error::Error;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use indicatif::{ProgressBar, ProgressStyle};
use rand::SeedableRng;
use rand::rngs::Xoshiro256PlusPlus;
use rand::seq::SliceRandom;

use arithmetic::Score;
use data::Digit;
use network::{Blocks, Kind, Network};
use options::positive;

const HELP: &str = "\
Trains a small convolutional network on 1,797 real handwritten digits, with and without batch normalization.

Usage: cargo run --release --example digits -- [OPTIONS]

Options:
  --epochs N      epochs of each run, 1 or more [default: 15]
  --seed N        of the split, the weights and the batches [default: 1]
  --residual      networks of residual blocks
  --picture FILE  where the picture goes [default: digits.svg]
  --help          prints this
";

/// Accuracy that counts as having learnt.
const GOAL: f64 = 0.95;
const BATCH: usize = 32;

/// A network and a learning rate.
struct Regime {
    name: &'static str,
    blocks: Blocks,
    lr: f64,
}

const REGIMES: [Regime; 2] = [
    Regime { name: "2 layers, learning rate 0.05", blocks: Blocks::Chain(&[16, 32]), lr: 0.05 },
    Regime { name: "8 layers, learning rate 0.3", blocks: Blocks::Chain(&[16; 8]), lr: 0.3 },
];

const RESIDUAL_REGIMES: [Regime; 2] = [
    Regime {
        name: "1 residual block, rate 0.05",
        blocks: Blocks::Residual { channels: 16, pairs: 1 },
        lr: 0.05,
    },
    Regime {
        name: "4 residual blocks, rate 0.2",
        blocks: Blocks::Residual { channels: 16, pairs: 4 },
        lr: 0.2,
    },
];

/// One training run.
struct Run {
    name: String,
    /// Test accuracy after each epoch.
    accuracy: Vec<f64>,
    /// Of the first network.
    total: Duration,
    /// In batch normalization and what follows it: fused, apart.
    in_norm: Option<[Duration; 2]>,
}

struct Options {
    epochs: usize,
    seed: u64,
    residual: bool,
    picture: PathBuf,
}

fn options() -> Result<Option<Options>, lexopt::Error> {
    use lexopt::prelude::*;
    let mut options = Options { epochs: 15, seed: 1, residual: false, picture: "digits.svg".into() };
    let mut arguments = lexopt::Parser::from_env();
    while let Some(argument) = arguments.next()? {
        match argument {
            Long("epochs") => options.epochs = arguments.value()?.parse_with(positive)?,
            Long("seed") => options.seed = arguments.value()?.parse()?,
            Long("residual") => options.residual = true,
            Long("picture") => options.picture = arguments.value()?.into(),
            Long("help") => return Ok(None),
            _ => return Err(argument.unexpected()),
        }
    }
    Ok(Some(options))
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
    for regime in if options.residual { &RESIDUAL_REGIMES } else { &REGIMES } {
        let mut runs = Vec::new();
        for (name, kinds) in [("plain", &[Kind::Plain][..]), ("with batch norm", &[Kind::Fused, Kind::Apart])]
        {
            outln!("\n{}, {name}", regime.name);
            let networks =
                kinds.iter().map(|&kind| Network::new(options.seed, regime.blocks, kind)).collect();
            runs.push(train(name, networks, regime.lr, options, (&training, &test))?);
        }
        panels.push((regime.name, runs));
    }
    print_table(&panels);
    let title = "Handwritten digits, with and without batch normalization";
    picture::draw(&options.picture, title, &panels)?;
    outln!("\npicture: {}", options.picture.display());
    Ok(())
}

/// Trains networks side by side, which give the same numbers.
fn train(
    name: &str,
    mut networks: Vec<Network>,
    lr: f64,
    options: &Options,
    (training, test): (&[Digit], &[Digit]),
) -> Result<Run, Box<dyn Error>> {
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
            let score = all_alike(&mut networks, |network| network.train(batch, lr))?;
            loss += score.loss / batches as f64;
            bar.inc(1);
        }
        let Score { accuracy: right, .. } = all_alike(&mut networks, |network| network.test(&test))?;
        bar.suspend(|| {
            outln!("epoch {epoch:>2}: training loss {loss:.4}, test accuracy {:>5.1} %", right * 100.0)
        });
        accuracy.push(right);
    }
    bar.finish_and_clear();
    let in_norm = match &networks[..] {
        [fused, apart] => Some([fused.in_norm, apart.in_norm]),
        _ => None,
    };
    Ok(Run { name: name.to_owned(), accuracy, total: networks[0].total, in_norm })
}

/// The score that every network comes to, to the bit.
fn all_alike(
    networks: &mut [Network],
    work: impl FnMut(&mut Network) -> Result<Score, batchnorm::Error>,
) -> Result<Score, batchnorm::Error> {
    let scores: Vec<Score> = networks.iter_mut().map(work).collect::<Result<_, _>>()?;
    let bits = |score: &Score| [score.loss, score.accuracy].map(f64::to_bits);
    assert!(scores.iter().all(|score| bits(score) == bits(&scores[0])), "fused is not apart: {scores:?}");
    Ok(scores[0])
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
    outln!(
        "\nseconds in batch norm and what follows it, apart and fused (every loss and accuracy: the same bits)"
    );
    outln!("{:<48}{:>12}{:>12}{:>12}", "", "apart", "fused", "fused, all");
    for (regime, runs) in panels {
        for run in runs {
            let seconds = |time: Duration| format!("{:.3}", time.as_secs_f64());
            let [fused, apart] = run.in_norm.map_or_else(Default::default, |times| times.map(seconds));
            outln!("{regime:<30}{:<18}{apart:>12}{fused:>12}{:>12}", run.name, seconds(run.total));
        }
    }
}
