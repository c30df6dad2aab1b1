//! Times this crate's module next to candle's own: on the shapes of `benches/shapes/table.txt`, and in the training of
//! the digits network written in candle.
//!
//! `cargo run --release --example candle_speed`; `--seconds S` sets the time spent on each figure (0.5), `--largest N` leaves
//! out shapes of more than N elements.

#[path = "../../../examples/digits/data.rs"]
mod data;
#[path = "../../../benches/shapes/mod.rs"]
mod shapes;

use std::error::Error;
use std::thread;
use std::time::{Duration, Instant};

use batchnorm_candle::BatchNormConfig;
use candle_core::{DType, Device, Tensor};
use candle_nn::{
    Conv2d, Conv2dConfig, Linear, ModuleT, Optimizer, SGD, VarBuilder, VarMap, conv2d_no_bias, linear, loss,
};
use data::{CLASSES, Digit};

const BATCH: usize = 32;
const LEARNING_RATE: f64 = 0.05;

type Result<T, E = Box<dyn Error>> = std::result::Result<T, E>;
type Norm = Box<dyn ModuleT>;
type MakeNorm = fn(usize, VarBuilder) -> candle_core::Result<Norm>;

fn theirs(channels: usize, vb: VarBuilder) -> candle_core::Result<Norm> {
    Ok(Box::new(candle_nn::batch_norm(channels, BatchNormConfig::default(), vb)?))
}

fn ours(channels: usize, vb: VarBuilder) -> candle_core::Result<Norm> {
    Ok(Box::new(batchnorm_candle::batch_norm(channels, BatchNormConfig::default(), vb)?))
}

/// The median times of two workloads that take turns of some runs each, the first of which is not counted.
fn medians(
    budget: Duration,
    mut first: impl FnMut() -> candle_core::Result<()>,
    mut second: impl FnMut() -> candle_core::Result<()>,
) -> Result<[f64; 2]> {
    const ROUNDS: u32 = 3;
    // Threads of the other one's pool spin for a while after their work.
    const PAUSE: Duration = Duration::from_millis(30);
    let mut times = [Vec::new(), Vec::new()];
    for _ in 0..ROUNDS {
        let turns: [&mut dyn FnMut() -> candle_core::Result<()>; 2] = [&mut first, &mut second];
        for (times, run) in times.iter_mut().zip(turns) {
            thread::sleep(PAUSE);
            run()?;
            let (turn, counted) = (Instant::now(), times.len());
            while times.len() < counted + 2 || turn.elapsed() < budget / (2 * ROUNDS) {
                let start = Instant::now();
                run()?;
                times.push(start.elapsed().as_secs_f64());
            }
        }
    }
    Ok(times.map(|mut times| {
        times.sort_by(f64::total_cmp);
        times[times.len() / 2]
    }))
}

/// Prints times in microseconds and their ratio, which it returns.
fn print(name: &str, [theirs, ours]: [f64; 2]) -> f64 {
    println!("{name:<34}{:>12.1}{:>12.1}{:>10.1}", theirs * 1e6, ours * 1e6, theirs / ours);
    theirs / ours
}

fn table(budget: Duration, largest: usize) -> Result<()> {
    let problems = shapes::parse(include_str!("../../../benches/shapes/table.txt"))?;
    for (what, train, backward, last) in [
        ("forward training", true, false, false),
        ("forward training, channels last", true, false, true),
        ("inference", false, false, false),
        ("forward training and backward", true, true, false),
    ] {
        println!("\n{:<34}{:>12}{:>12}{:>10}", format!("{what}, us"), "candle", "ours", "ratio");
        let mut logarithms = Vec::new();
        for problem in problems.iter().filter(|problem| problem.dims.iter().product::<usize>() <= largest) {
            let x = Tensor::randn(1f32, 2., problem.dims.as_slice(), &Device::Cpu)?;
            let x = if last && x.rank() == 4 {
                x.permute((0, 2, 3, 1))?.contiguous()?.permute((0, 3, 1, 2))?
            } else {
                x
            };
            let variables = VarMap::new();
            let vb = VarBuilder::from_varmap(&variables, DType::F32, &Device::Cpu);
            let x = if backward { candle_core::Var::from_tensor(&x)?.as_tensor().clone() } else { x };
            let run = |norm: Norm| {
                let x = x.clone();
                move || {
                    let y = norm.forward_t(&x, train)?;
                    if backward {
                        y.backward()?;
                    }
                    Ok(())
                }
            };
            let channels = problem.dims[1];
            let times =
                medians(budget, run(theirs(channels, vb.pp("a"))?), run(ours(channels, vb.pp("b"))?))?;
            logarithms.push(print(&problem.to_string(), times).ln());
        }
        let mean = logarithms.iter().sum::<f64>() / logarithms.len() as f64;
        println!("{:<58}{:>10.1}", "geometric mean", mean.exp());
    }
    Ok(())
}

/// Convolution, batch norm and relu, twice, and a linear classifier.
struct Network {
    blocks: [(Conv2d, Norm); 2],
    classifier: Linear,
}

impl Network {
    fn new(norm: MakeNorm, vb: VarBuilder) -> candle_core::Result<Self> {
        let config = Conv2dConfig { padding: 1, ..Default::default() };
        let block = |inputs, outputs, vb: VarBuilder| {
            let convolution = conv2d_no_bias(inputs, outputs, 3, config, vb.pp("convolution"))?;
            candle_core::Result::Ok((convolution, norm(outputs, vb.pp("norm"))?))
        };
        let blocks = [block(1, 16, vb.pp("0"))?, block(16, 32, vb.pp("1"))?];
        Ok(Self { blocks, classifier: linear(32 * data::PIXELS, CLASSES, vb.pp("classifier"))? })
    }
}

impl ModuleT for Network {
    fn forward_t(&self, x: &Tensor, train: bool) -> candle_core::Result<Tensor> {
        let mut x = x.clone();
        for (convolution, norm) in &self.blocks {
            x = norm.forward_t(&x.apply(convolution)?, train)?.relu()?;
        }
        x.flatten_from(1)?.apply(&self.classifier)
    }
}

fn tensors(digits: &[Digit]) -> candle_core::Result<(Tensor, Tensor)> {
    let pixels: Vec<f32> = digits.iter().flat_map(|digit| digit.pixels).collect();
    let classes: Vec<u32> = digits.iter().map(|digit| digit.class as u32).collect();
    Ok((
        Tensor::from_vec(pixels, (digits.len(), 1, 8, 8), &Device::Cpu)?,
        Tensor::from_vec(classes, digits.len(), &Device::Cpu)?,
    ))
}

fn digits(budget: Duration) -> Result<()> {
    let (training, test) = data::load(1)?;
    let batches: Vec<(Tensor, Tensor)> =
        training.chunks_exact(BATCH).map(tensors).collect::<candle_core::Result<_>>()?;
    let test = tensors(&test)?;
    println!("\n{:<34}{:>12}{:>12}{:>10}", "the digits network", "candle's", "ours", "ratio");

    let first = VarMap::new();
    let mut runs = Vec::new();
    for norm in [theirs as MakeNorm, ours] {
        let mut variables = VarMap::new();
        let network = Network::new(norm, VarBuilder::from_varmap(&variables, DType::F32, &Device::Cpu))?;
        // Both start from the same values.
        if runs.is_empty() {
            let mut copy = first.data().lock().map_err(|_| "poisoned")?;
            for (name, value) in variables.data().lock().map_err(|_| "poisoned")?.iter() {
                copy.insert(name.clone(), candle_core::Var::from_tensor(&value.as_tensor().copy()?)?);
            }
        } else {
            let values = first.data().lock().map_err(|_| "poisoned")?;
            variables.set(values.iter().map(|(name, value)| (name, value.as_tensor())))?;
        }
        // The running statistics, which are variables too, have no gradient and stay out of the steps.
        let optimizer = SGD::new(variables.all_vars(), LEARNING_RATE)?;
        runs.push((network, optimizer));
    }
    let mut steps = runs.iter_mut().map(|(network, optimizer)| {
        let mut order = batches.iter().cycle();
        move || match order.next() {
            Some((x, classes)) => {
                optimizer.backward_step(&loss::cross_entropy(&network.forward_t(x, true)?, classes)?)
            }
            None => Ok(()),
        }
    });
    let (Some(mut theirs), Some(mut ours)) = (steps.next(), steps.next()) else { return Ok(()) };
    for _ in 0..3 * batches.len() {
        theirs()?;
        ours()?;
    }
    let times = medians(budget, theirs, ours)?;
    drop(steps);
    print("training step of 32 digits, us", times);
    let accuracy = |network: &Network| -> candle_core::Result<f64> {
        let best = network.forward_t(&test.0, false)?.argmax(1)?;
        let right = best.eq(&test.1)?.to_dtype(DType::F64)?.mean_all()?.to_scalar::<f64>()?;
        Ok(right * 100.)
    };
    println!(
        "{:<34}{:>10.1} %{:>10.1} %",
        "test accuracy by then",
        accuracy(&runs[0].0)?,
        accuracy(&runs[1].0)?
    );
    Ok(())
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
    table(budget, largest)?;
    digits(budget)
}
