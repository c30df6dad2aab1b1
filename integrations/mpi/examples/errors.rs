//! One rank does something wrong, and every rank gets an error; what comes after it is right again.
//!
//! `mpirun -n 3 errors`; `check` runs it, with a time limit.

use std::error::Error;
use std::process::ExitCode;

use batchnorm::{BatchNorm, Error as Wrong, Mode, Shape};
use batchnorm_mpi::{Part, Ranks, SyncBatchNorm};
use mpi::collective::SystemOperation;
use mpi::traits::*;

/// What the last rank does.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Fault {
    None,
    /// x of another length than the shape's.
    Length,
    Channels,
    /// A shape with other positions: samples of another size, which are right but where backward is of another shape than forward.
    Positions,
    /// A shape with other samples than the part has.
    Samples,
    /// Samples that another rank has.
    Twice,
    /// f64 where the others have f32.
    Element,
    /// It says that it has an error.
    Refusal,
    /// Only backward: another x than the forward pass's, another length of dy, dz without a residual, no forward pass.
    X,
    Dy,
    Residual,
    NoForward,
}

const FORWARD: [Fault; 8] = [
    Fault::Length,
    Fault::Channels,
    Fault::Positions,
    Fault::Samples,
    Fault::Twice,
    Fault::Element,
    Fault::Refusal,
    Fault::None,
];

const BACKWARD: [Fault; 10] = [
    Fault::Length,
    Fault::Channels,
    Fault::Positions,
    Fault::Samples,
    Fault::Twice,
    Fault::Refusal,
    Fault::X,
    Fault::Dy,
    Fault::Residual,
    Fault::NoForward,
];

/// More than a first message's.
const CHANNELS: usize = 60;

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> Result<(), Box<dyn Error>> {
    let universe = mpi::initialize().ok_or("MPI is initialized already")?;
    let world = universe.world();
    let mut checked = 0;
    for longest in [64 << 10, 0] {
        let mut ranks = Ranks::with_longest(&world, longest)?;
        for fault in FORWARD {
            let outcome = forward(&mut ranks, fault);
            // Alone, another fault stands for it.
            let right = fault == Fault::None || (fault == Fault::Positions && ranks.size() > 1);
            expect(&world, "forward", fault, right, &outcome)?;
            expect(&world, "forward after", fault, true, &forward(&mut ranks, Fault::None))?;
            checked += 2;
        }
        for fault in BACKWARD {
            let mut norm = SyncBatchNorm::new(CHANNELS);
            expect(&world, "backward", fault, false, &backward(&mut norm, &mut ranks, fault))?;
            let mut norm = SyncBatchNorm::new(CHANNELS);
            expect(&world, "backward after", fault, true, &backward(&mut norm, &mut ranks, Fault::None))?;
            checked += 2;
        }
    }
    if world.rank() == 0 {
        println!("{} ranks: {checked} outcomes, the same on every rank", world.size());
    }
    Ok(())
}

/// That every rank has come to this.
fn expect(
    world: &impl Communicator,
    what: &str,
    fault: Fault,
    right: bool,
    outcome: &Result<(), Wrong>,
) -> Result<(), String> {
    let (mine, mut all) = (u32::from(outcome.is_ok() == right), 0u32);
    world.all_reduce_into(&mine, &mut all, SystemOperation::sum());
    match all as i32 == world.size() {
        true => Ok(()),
        false => Err(format!("rank {}, {what} {fault:?}: {outcome:?}", world.rank())),
    }
}

/// Tensors of `shape` but for the fault, and the part.
fn problem<C: Communicator>(
    ranks: &mut Ranks<'_, C>,
    fault: Fault,
) -> Result<(Shape, Vec<f32>, Part), Wrong> {
    let is = |other| fault == other;
    let dims = [
        16 + usize::from(is(Fault::Samples)),
        CHANNELS + usize::from(is(Fault::Channels)),
        49 + usize::from(is(Fault::Positions)),
    ];
    let shape = Shape::nchw(&dims)?;
    let part = Part::of(ranks, 16);
    let part = if is(Fault::Twice) { Part::at(part.first().saturating_sub(16), 16) } else { part };
    let x = (0..shape.len() - usize::from(is(Fault::Length))).map(|i| (i % 97) as f32).collect();
    Ok((shape, x, part))
}

/// The fault, on the last rank.
fn here<C: Communicator>(ranks: &Ranks<'_, C>, fault: Fault) -> Fault {
    // What differs from others or is in common with them.
    let of_two = [Fault::Channels, Fault::Positions, Fault::Twice, Fault::Element].contains(&fault);
    match ranks.rank() + 1 == ranks.size() {
        true if ranks.size() == 1 && of_two => Fault::Length,
        true => fault,
        false => Fault::None,
    }
}

fn forward<C: Communicator>(ranks: &mut Ranks<'_, C>, fault: Fault) -> Result<(), Wrong> {
    let fault = here(ranks, fault);
    let (shape, x, part) = problem(ranks, fault)?;
    match fault {
        Fault::Refusal => {
            ranks.refuse();
            Err(Wrong::NoForward)
        }
        Fault::Element => {
            let x: Vec<f64> = x.into_iter().map(f64::from).collect();
            let mut y = x.clone();
            SyncBatchNorm::new(CHANNELS).forward(Mode::Training, &shape, &x, &mut y, (part, ranks))
        }
        _ => {
            let mut y = vec![7.0; shape.len()];
            let mut norm = SyncBatchNorm::new(shape.channels());
            let outcome = norm.forward(Mode::Training, &shape, &x, &mut y, (part, ranks));
            assert!(outcome.is_ok() || y.iter().all(|y| *y == 7.0), "an error, and something is written");
            assert!(outcome.is_ok() || norm == SyncBatchNorm::from(BatchNorm::new(shape.channels())));
            outcome
        }
    }
}

/// Backward with the fault, after a right forward pass.
fn backward<C: Communicator>(
    norm: &mut SyncBatchNorm<f32>,
    ranks: &mut Ranks<'_, C>,
    fault: Fault,
) -> Result<(), Wrong> {
    let fault = here(ranks, fault);
    let (shape, mut x, part) = problem(ranks, Fault::None)?;
    let mut y = x.clone();
    norm.forward(Mode::Training, &shape, &x, &mut y, (part, ranks))?;
    if fault == Fault::NoForward {
        *norm = SyncBatchNorm::new(CHANNELS);
    }
    let (wrong, mut dy, part) = problem(ranks, fault)?;
    match fault {
        Fault::X => x.iter_mut().for_each(|x| *x += 1.0),
        Fault::Length => x.truncate(dy.len()),
        Fault::Dy => dy.truncate(5),
        _ => {}
    }
    let (mut dx, mut dz) = (vec![7.0; wrong.len()], vec![7.0; wrong.len()]);
    let outcome = match fault {
        Fault::Refusal => {
            ranks.refuse();
            Err(Wrong::NoForward)
        }
        Fault::Residual => norm.backward_with_residual(&wrong, (&x, &dy), (&mut dx, &mut dz), (part, ranks)),
        _ => norm.backward(&wrong, &x, &dy, &mut dx, (part, ranks)),
    };
    assert!(outcome.is_ok() || dx.iter().all(|dx| *dx == 7.0), "an error, and something is written");
    outcome
}
