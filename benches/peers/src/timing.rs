//! Times contenders in turns: a pause, some runs, the next one; several rounds.

use std::thread;
use std::time::{Duration, Instant};

use crate::Result;
use crate::contender::{Contender, Role, Run};
use crate::number::Number;
use crate::problem::{Order, Tensors};

/// Before each turn: the threads of the one before spin for some milliseconds after their work.
const PAUSE: Duration = Duration::from_millis(30);

/// What takes less than this is timed several runs at once.
const SAMPLE: Duration = Duration::from_micros(20);

/// Samples that each turn takes at least.
const SAMPLES: usize = 3;

/// What a contender took.
#[derive(Debug, Clone)]
pub struct Timing {
    /// What it was timed as.
    pub role: Role,
    /// Its name in tables, without the order.
    pub name: &'static str,
    /// Where it has its elements.
    pub order: Order,
    /// The median over all rounds, in seconds.
    pub median: f64,
    /// The fastest sample, in seconds.
    pub fastest: f64,
    /// The number of samples.
    pub samples: usize,
}

/// Gives each contender `rounds` turns of `block` each. Every other round goes backwards, so that nobody always comes
/// after the same one.
pub fn measure<S: Number>(
    contenders: &mut [Contender<'_, S>],
    tensors: &mut [Tensors<S>],
    rounds: usize,
    block: Duration,
) -> Result<Vec<Timing>> {
    let mut samples = vec![Vec::new(); contenders.len()];
    for round in 0..rounds {
        for turn in 0..contenders.len() {
            let index = if round % 2 == 0 { turn } else { contenders.len() - 1 - turn };
            let (contender, samples) = (&mut contenders[index], &mut samples[index]);
            let tensors = &mut tensors[contender.order as usize];
            thread::sleep(PAUSE);
            contender.call(|run| take_turn(run, tensors, block, samples))?;
        }
    }
    let timing = |(contender, mut samples): (&Contender<'_, S>, Vec<f64>)| {
        samples.sort_by(f64::total_cmp);
        let middle = samples.len() / 2;
        let median = if samples.len() % 2 == 1 {
            samples[middle]
        } else {
            (samples[middle - 1] + samples[middle]) / 2.0
        };
        Timing {
            role: contender.role,
            name: contender.name,
            order: contender.order,
            median,
            fastest: samples[0],
            samples: samples.len(),
        }
    };
    Ok(contenders.iter().zip(samples).map(timing).collect())
}

/// Runs an operation for `block`; the first two runs, which wake threads and fill caches, are not counted.
fn take_turn<S>(
    run: &mut dyn Run<S>,
    tensors: &mut Tensors<S>,
    block: Duration,
    samples: &mut Vec<f64>,
) -> Result<()> {
    let start = Instant::now();
    run.run(tensors)?;
    let second = Instant::now();
    run.run(tensors)?;
    let runs = SAMPLE.as_nanos() / second.elapsed().as_nanos().max(1) + 1;
    let enough = samples.len() + SAMPLES;
    while start.elapsed() < block || samples.len() < enough {
        let start = Instant::now();
        for _ in 0..runs {
            run.run(tensors)?;
        }
        samples.push(start.elapsed().as_secs_f64() / runs as f64);
    }
    Ok(())
}
