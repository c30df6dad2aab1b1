//! Times this crate's module next to burn's own on the shapes of `benches/shapes/table.txt`.
//!
//! `cargo run --release --example burn_speed`; `--seconds S` sets the time spent on each figure (0.5), `--largest N` leaves
//! out shapes of more than N elements.

#[path = "../../../benches/shapes/mod.rs"]
mod shapes;

use std::error::Error;
use std::time::{Duration, Instant};

use batchnorm_burn::BatchNormConfig;
use burn::tensor::{Device, Distribution, Tensor};

type Result<T, E = Box<dyn Error>> = std::result::Result<T, E>;

/// What is timed.
#[derive(Clone, Copy, PartialEq)]
enum Work {
    Inference,
    /// On an input that nobody else holds, as within a model.
    InferenceInPlace,
    Training,
    TrainingAndBackward,
}

/// The median times of two workloads that take turns of some runs each, without the time that an input takes to make. The
/// first run of a turn is not counted.
fn medians<T>(budget: Duration, input: impl Fn() -> T, first: impl Fn(T), second: impl Fn(T)) -> [f64; 2] {
    const ROUNDS: u32 = 3;
    let mut times = [Vec::new(), Vec::new()];
    for _ in 0..ROUNDS {
        for (times, run) in times.iter_mut().zip([&first as &dyn Fn(T), &second]) {
            run(input());
            let (turn, counted) = (Instant::now(), times.len());
            while times.len() < counted + 2 || turn.elapsed() < budget / (2 * ROUNDS) {
                let input = input();
                let start = Instant::now();
                run(input);
                times.push(start.elapsed().as_secs_f64());
            }
        }
    }
    times.map(|mut times| {
        times.sort_by(f64::total_cmp);
        times[times.len() / 2]
    })
}

fn time<const D: usize>(budget: Duration, work: Work, last: bool, dims: &[usize]) -> [f64; 2] {
    let infers = matches!(work, Work::Inference | Work::InferenceInPlace);
    let device = if infers { Device::default() } else { Device::default().autodiff() };
    let mut memory = dims.to_vec();
    if last {
        memory[1..].rotate_left(1);
    }
    let x = Tensor::<D>::random(memory, Distribution::Normal(1., 2.), &device);
    let x = if last {
        x.permute(std::array::from_fn::<_, D, _>(|axis| match axis {
            0 => 0,
            1 => D - 1,
            axis => axis - 1,
        }))
    } else {
        x
    };
    let theirs = burn::nn::BatchNormConfig::new(dims[1]).init(&device);
    let ours = BatchNormConfig::new(dims[1]).init(&device);
    let input = || match work {
        Work::Inference | Work::Training => x.clone(),
        Work::InferenceInPlace => x.clone().add_scalar(1.),
        Work::TrainingAndBackward => x.clone().detach().require_grad(),
    };
    let run = |x: Tensor<D>, forward: &dyn Fn(Tensor<D>) -> Tensor<D>| {
        let y = forward(x);
        if work == Work::TrainingAndBackward {
            drop(y.backward());
        }
    };
    medians(budget, input, |x| run(x, &|x| theirs.forward(x)), |x| run(x, &|x| ours.forward(x)))
}

fn main() -> Result<()> {
    let (mut seconds, mut largest) = (0.5, usize::MAX);
    let mut arguments = std::env::args().skip(1);
    while let Some(argument) = arguments.next() {
        let value = arguments.next().ok_or("an option is without its value")?;
        match argument.as_str() {
            "--seconds" => seconds = value.parse()?,
            "--largest" => largest = value.parse()?,
            _ => return Err(format!("{argument}: options are --seconds S and --largest N").into()),
        }
    }
    let budget = Duration::try_from_secs_f64(seconds)?;
    let problems = shapes::parse(include_str!("../../../benches/shapes/table.txt"))?;
    for (what, work, last) in [
        ("inference", Work::Inference, false),
        ("inference of what nobody else holds", Work::InferenceInPlace, false),
        ("inference, channels last", Work::Inference, true),
        ("forward training", Work::Training, false),
        ("forward training and backward", Work::TrainingAndBackward, false),
    ] {
        println!("\n{:<42}{:>12}{:>12}{:>10}", format!("{what}, us"), "burn", "ours", "ratio");
        let mut logarithms = Vec::new();
        for problem in problems.iter().filter(|problem| problem.dims.iter().product::<usize>() <= largest) {
            let [theirs, ours] = match problem.dims.len() {
                2 => time::<2>(budget, work, last, &problem.dims),
                4 => time::<4>(budget, work, last, &problem.dims),
                rank => return Err(format!("shapes of rank {rank} are not timed").into()),
            };
            let name = problem.to_string();
            println!("{name:<42}{:>12.1}{:>12.1}{:>10.1}", theirs * 1e6, ours * 1e6, theirs / ours);
            logarithms.push((theirs / ours).ln());
        }
        let mean = logarithms.iter().sum::<f64>() / logarithms.len() as f64;
        println!("{:<66}{:>10.1}", "geometric mean", mean.exp());
    }
    Ok(())
}
