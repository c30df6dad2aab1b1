//! Trains the repository's networks for handwritten digits on several processes, each with a part of every batch: with batch norm
//! over each rank's own samples, and over those of all.
//!
//! Synchronized, every loss, weight and accuracy has the same bits for any number of ranks: the table tells a hash of the weights.
//!
//! `cargo build --release --example digits_mpi`, then `mpirun -n 2 digits_mpi`; `--help` lists the options.

#[path = "../../../../examples/digits/arithmetic.rs"]
mod arithmetic;
#[path = "../../../../examples/digits/data.rs"]
mod data;
mod network;
#[path = "../../../../examples/digits/options.rs"]
mod options;
#[path = "../../../../examples/output/mod.rs"]
mod output;
#[path = "../../../../examples/digits/picture.rs"]
mod picture;

use std::error::Error;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use batchnorm_mpi::{Ranks, Traffic};
use indicatif::{ProgressBar, ProgressStyle};
use mpi::collective::SystemOperation;
use mpi::topology::SimpleCommunicator;
use mpi::traits::*;
use rand::SeedableRng;
use rand::rngs::Xoshiro256PlusPlus;
use rand::seq::SliceRandom;

use data::Digit;
use network::{Group, Network};
use options::positive;

const HELP: &str = "\
Trains networks on 1,797 real handwritten digits, each rank with a part of every batch.

Usage: mpirun -n N digits_mpi [OPTIONS]

Options:
  --epochs N      epochs of each run, 1 or more [default: 15]
  --seed N        of the split, the weights and the batches [default: 1]
  --picture FILE  where the picture goes [default: digits-mpi.svg]
  --help          prints this
";

/// Accuracy that counts as having learnt.
const GOAL: f64 = 0.95;
const BATCH: usize = 64;

/// A name, the layers' channels and a learning rate.
const REGIMES: [(&str, &[usize], f64); 2] =
    [("2 layers, learning rate 0.05", &[16, 32], 0.05), ("8 layers, learning rate 0.3", &[16; 8], 0.3)];

/// One training run.
struct Run {
    name: String,
    /// Test accuracy after each epoch.
    accuracy: Vec<f64>,
    /// Of all parameters in the end.
    hash: u64,
    /// Seconds in steps, in the layers' collectives and in that of the gradients: means over ranks.
    seconds: [f64; 3],
    /// Of each layer its channels, and what the last step sent forward and backward.
    sent: Vec<(usize, [Traffic; 2])>,
}

struct Options {
    epochs: usize,
    seed: u64,
    picture: PathBuf,
}

fn options() -> Result<Option<Options>, lexopt::Error> {
    use lexopt::prelude::*;
    let mut options = Options { epochs: 15, seed: 1, picture: "digits-mpi.svg".into() };
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

fn main() -> ExitCode {
    let Some(universe) = mpi::initialize() else {
        eprintln!("MPI is initialized already");
        return ExitCode::FAILURE;
    };
    let world = universe.world();
    let is_root = world.rank() == 0;
    let options = match options() {
        Ok(Some(options)) => options,
        Ok(None) => {
            if is_root {
                output::print(format_args!("{HELP}"));
            }
            return ExitCode::SUCCESS;
        }
        Err(error) => {
            if is_root {
                eprintln!("{error}\n\n{HELP}");
            }
            return ExitCode::from(2);
        }
    };
    // Of arguments and files that are the same on all ranks: who has an error has it with the others, or ends them.
    let outcome = run(&options, &world);
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("rank {}: {error}", world.rank());
            world.abort(1)
        }
    }
}

fn run(options: &Options, world: &SimpleCommunicator) -> Result<(), Box<dyn Error>> {
    let is_root = world.rank() == 0;
    if is_root {
        output::check_writable(&options.picture)?;
    }
    let (training, test) = data::load(options.seed)?;
    if is_root {
        let size = world.size();
        outln!("{} digits to train on, {} held out; batches of {BATCH}", training.len(), test.len());
        outln!("over {size} ranks in blocks of {}", network::BLOCK);
    }
    let mut panels = Vec::new();
    for (regime, widths, lr) in REGIMES {
        let mut runs = Vec::new();
        for (name, synchronized) in [("each rank's own", false), ("synchronized", true)] {
            if is_root {
                outln!("\n{regime}, {name}");
            }
            let network = Network::new(options.seed, widths, synchronized);
            // They learn how long a network's messages are.
            let mut ranks = Ranks::new(world)?;
            runs.push(train(name, network, lr, options, (&training, &test), &mut ranks)?);
        }
        panels.push((regime, runs));
    }
    if is_root {
        print_tables(&panels, world.size());
        let title = format!("Handwritten digits, batch norm over {} ranks", world.size());
        picture::draw(&options.picture, &title, &panels)?;
        outln!("\npicture: {}", options.picture.display());
    }
    Ok(())
}

fn train(
    name: &str,
    mut network: Network,
    lr: f64,
    options: &Options,
    (training, test): (&[Digit], &[Digit]),
    ranks: &mut Group<'_>,
) -> Result<Run, Box<dyn Error>> {
    let mut order: Vec<&Digit> = training.iter().collect();
    let test: Vec<&Digit> = test.iter().collect();
    let rng = &mut Xoshiro256PlusPlus::seed_from_u64(options.seed);
    let batches = order.len() / BATCH;
    let bar = match ranks.rank() {
        0 => ProgressBar::new((options.epochs * batches) as u64),
        _ => ProgressBar::hidden(),
    };
    bar.set_style(ProgressStyle::with_template("{wide_bar} {pos}/{len} batches, {eta} left")?);
    let mut accuracy = Vec::new();
    for epoch in 1..=options.epochs {
        order.shuffle(rng);
        let mut loss = 0.0;
        for batch in order.chunks_exact(BATCH) {
            loss += network.train(batch, lr, ranks)? / batches as f64;
            bar.inc(1);
        }
        let right = network.test(&test, ranks)?;
        if ranks.rank() == 0 {
            bar.suspend(|| {
                outln!("epoch {epoch:>2}: training loss {loss:.4}, test accuracy {:>5.1} %", right * 100.0)
            });
        }
        accuracy.push(right);
    }
    bar.finish_and_clear();
    let times = [network.in_steps, network.in_norms, network.in_gradients];
    let (mine, mut seconds) = (times.map(|time: Duration| time.as_secs_f64()), [0.0; 3]);
    ranks.communicator().all_reduce_into(&mine, &mut seconds, SystemOperation::sum());
    let seconds = seconds.map(|sum| sum / f64::from(ranks.size()));
    Ok(Run { name: name.to_owned(), accuracy, hash: network.hash(), seconds, sent: network.sent().collect() })
}

fn print_tables(panels: &[(&str, Vec<Run>)], size: i32) {
    let runs = || panels.iter().flat_map(|(regime, runs)| runs.iter().map(move |run| (regime, run)));
    outln!("\n{:<30}{:<18}{:>14}{:>16}{:>19}", "", "", "epochs to 95 %", "final accuracy", "hash of weights");
    for (regime, run) in runs() {
        let reached = run.accuracy.iter().position(|accuracy| *accuracy >= GOAL);
        let reached = reached.map_or("never".to_owned(), |epoch| (epoch + 1).to_string());
        let last = run.accuracy.last().map_or(0.0, |accuracy| accuracy * 100.0);
        outln!("{regime:<30}{:<18}{reached:>14}{last:>14.1} %   {:016x}", run.name, run.hash);
    }
    outln!("\nseconds in steps, and what of them the ranks were in collectives, {size} ranks");
    outln!("{:<48}{:>14}{:>16}{:>19}", "", "all", "batch norm's", "gradients'");
    for (regime, run) in runs() {
        let [all, norms, gradients] = run.seconds;
        let share = |time: f64| format!("{:.1} %", time / all * 100.0);
        outln!("{regime:<30}{:<18}{all:>14.3}{:>16}{:>19}", run.name, share(norms), share(gradients));
    }
    outln!("\nbytes that a rank sends in a step, synchronized (collectives)");
    outln!("{:<30}{:<18}{:>14}{:>16}", "", "", "forward", "backward");
    for (regime, run) in runs().filter(|(_, run)| run.name == "synchronized") {
        for (place, (channels, passes)) in run.sent.iter().enumerate() {
            let layer = format!("layer {}: {channels}", place + 1);
            let [forward, backward] = passes.map(|pass| format!("{} ({})", pass.bytes, pass.collectives));
            outln!("{regime:<30}{layer:<18}{forward:>14}{backward:>16}");
        }
    }
}
