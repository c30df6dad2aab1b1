//! The operations as the engine runs them: which sums, which coefficients, which map.

pub mod backward;
pub mod fold;
pub mod forward;
pub mod given;
mod halves;
pub mod inference;
pub mod memory;
mod place;
pub mod storage;
mod task;
mod tiles;

use crate::ground::error::Error;
use crate::ground::geometry::Geometry;
use crate::kernel::Vectorized;
use crate::schedule::engine;
use crate::simd::Level;
use backward::Backward;
use fold::Fold;
use forward::Forward;
use inference::Inference;
use memory::Mixed;
use storage::Storage;

/// A checked call.
pub enum Job<'a, T: Vectorized> {
    Forward(Forward<'a, T, Mixed>),
    Inference(Inference<'a, T, Mixed>),
    Backward(Backward<'a, T, Mixed>),
}

/// A number that there are kernels for: `f32` or `f64`. Sealed.
pub trait Element: Vectorized + Storage<Arithmetic = Self> {
    /// Runs an operation. The one place where the kernels are instantiated, in this crate and not in its users'.
    #[doc(hidden)]
    fn run(level: Level, geometry: &Geometry, job: &Job<'_, Self>) -> Result<(), Error>;

    /// The same of folding, which no engine runs.
    #[doc(hidden)]
    fn fold(fold: &Fold<'_, Self>);
}

/// Runs an operation on the tensors themselves if they are all elements, else, if there are others to an element, in tiles.
macro_rules! run {
    ($level:ident, $geometry:ident, $operation:ident, $half:pat => $otherwise:expr) => {
        match $operation.own() {
            Ok(own) => engine::run($level, $geometry, &own),
            Err($half) => $otherwise,
        }
    };
}

/// Runs an operation on tensors of 16-bit numbers, if there are any.
#[cfg(any(feature = "half", feature = "capi"))]
fn in_tiles<O: engine::Operation<f32>>(
    _: crate::ground::half::Half,
    level: Level,
    geometry: &Geometry,
    operation: &O,
) -> Result<(), Error> {
    engine::run(level, geometry, operation)
}
#[cfg(not(any(feature = "half", feature = "capi")))]
fn in_tiles<O>(half: std::convert::Infallible, _: Level, _: &Geometry, _: &O) -> Result<(), Error> {
    match half {}
}

impl Element for f32 {
    fn fold(fold: &Fold<'_, Self>) {
        fold.run();
    }

    fn run(level: Level, geometry: &Geometry, job: &Job<'_, Self>) -> Result<(), Error> {
        match job {
            Job::Forward(operation) => {
                run!(level, geometry, operation, half => in_tiles(half, level, geometry, operation))
            }
            Job::Inference(operation) => {
                run!(level, geometry, operation, half => in_tiles(half, level, geometry, operation))
            }
            Job::Backward(operation) => {
                run!(level, geometry, operation, half => in_tiles(half, level, geometry, operation))
            }
        }
    }
}

impl Element for f64 {
    fn fold(fold: &Fold<'_, Self>) {
        fold.run();
    }

    fn run(level: Level, geometry: &Geometry, job: &Job<'_, Self>) -> Result<(), Error> {
        match job {
            Job::Forward(operation) => run!(level, geometry, operation, half => match half {}),
            Job::Inference(operation) => run!(level, geometry, operation, half => match half {}),
            Job::Backward(operation) => run!(level, geometry, operation, half => match half {}),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::backward::Sums;
    use super::forward::Statistics;
    use super::given::{Affine, After, Given};
    use super::*;
    use crate::ground::geometry::Pattern;
    use crate::ground::slices::{Input, Output};
    use crate::ground::welford::Welford;
    use crate::kernel::activations::Activation;
    use crate::kernel::bits::words;
    use crate::kernel::map::{Access, Store};
    use crate::schedule::machine::Machine;
    use crate::schedule::plan::Plan;
    use crate::schedule::policies::{Schedule, Setting, Traffic};
    use crate::schedule::tuning::Tuning;

    /// A group that is mapped while the next is summed gets the bits that it gets by itself, and no one else's do change:
    /// on the machines, and with the tensors, for which plans choose that, and elsewhere. With what comes after, too.
    #[test]
    fn overlap_changes_no_bit() {
        for level in Level::available() {
            for (activation, residual) in
                [(Activation::Identity, false), (Activation::Silu, false), (Activation::Relu, true)]
            {
                overlap_changes_no_bit_of::<f32>(*level, (activation, residual));
                overlap_changes_no_bit_of::<f64>(*level, (activation, residual));
            }
        }
    }

    fn overlap_changes_no_bit_of<T: Vectorized>(level: Level, (activation, residual): (Activation, bool)) {
        const CANARY: f64 = 12345.0;
        for (n, c, s) in
            [(3, 5, 100), (2, 7, 196), (1, 9, 66), (1, 4, 65), (4, 6, 784), (33, 4, 81), (2, 3, 9000)]
        {
            let geometry = Geometry::new(n, c, s, Pattern::Along);
            let len = geometry.len();
            // Channel 1 is not ordinary, channel 2 takes a second look.
            let value = |i: usize, seed: usize| {
                let noise = ((i * 2 + seed).wrapping_mul(0x9E37_79B9) >> 7 & 0xFFFF) as f64 / 65536.0 - 0.5;
                T::from_f64(match i / s % c {
                    1 => noise * 1e-37,
                    2 => noise + 3e5,
                    _ => noise,
                })
            };
            let tensor = |seed| (0..len).map(|i| value(i, seed)).collect::<Vec<T>>();
            let (x, dy) = (tensor(1), tensor(2));
            let gamma: Vec<T> = (0..c).map(|channel| T::from_f64(1.5 - channel as f64)).collect();
            let affine = Affine { gamma: Some(&gamma), beta: None, eps: 1e-5 };
            for (group, offset) in [(1, 0), (2, 1), (3, 15), (2, 16)] {
                let [apart, overlapped] = [false, true].map(|overlap| {
                    let traffic = Traffic {
                        element: size_of::<T>(),
                        arithmetic: size_of::<T>(),
                        reads: 2,
                        beside: 0,
                        reduces: true,
                        maps: true,
                    };
                    let (machine, tuning) = (Machine::get(), Tuning::DEFAULT);
                    let plan = Plan::new(&Setting { geometry, traffic, machine, tuning, threads: 1 });
                    let plan = Plan {
                        schedule: Schedule::ChannelBlocked,
                        access: Access { store: Store::NonTemporal, ..plan.access },
                        channel_group: group,
                        software_pipelining: overlap,
                        ..plan
                    };
                    let mut states = vec![Welford::new(); c];
                    let mut outputs =
                        [vec![T::from_f64(CANARY); len + 40], vec![T::from_f64(CANARY); len + 40]];
                    let [y, dx] =
                        outputs.each_mut().map(|output| Output::new(&mut output[offset + 4..][..len]));
                    let x = Input::new(&x);
                    let mut mask = vec![0; words(len)];
                    let after = After::<T> {
                        activation,
                        residual: residual.then(|| Input::new(&dy)),
                        mask: residual.then(|| (Output::new(&mut mask), len)),
                    };
                    let forward = Forward::<T> {
                        x,
                        y: Some(y),
                        affine,
                        after,
                        statistics: Statistics::States(Output::new(&mut states)),
                    };
                    engine::run_by(plan, level, &geometry, &forward).unwrap();
                    let mut sums = [vec![T::from_f64(0.0); c], vec![T::from_f64(0.0); c]];
                    let [dgamma, dbeta] = sums.each_mut().map(|sums| Some(Output::new(sums)));
                    let backward = Backward::<T> {
                        x,
                        dy: Input::new(&dy),
                        given: Given::Batch(&states, geometry.m() as u64),
                        sums: Sums::Own,
                        affine,
                        activation: Activation::Identity,
                        mask: None,
                        dx: Some(dx),
                        dz: None,
                        dgamma,
                        dbeta,
                        dmean: None,
                        dvar: None,
                    };
                    engine::run_by(plan, level, &geometry, &backward).unwrap();
                    let numbers = |values: &Vec<T>| {
                        values.iter().map(|value| value.to_f64().to_bits()).collect::<Vec<_>>()
                    };
                    ([&outputs[0], &outputs[1], &sums[0], &sums[1]].map(numbers), mask)
                });
                let canary = CANARY.to_bits();
                assert!(
                    overlapped.0[..2]
                        .iter()
                        .all(|output| output[..offset + 4].iter().all(|bits| *bits == canary))
                );
                assert_eq!(apart, overlapped, "{level} {geometry:?} groups of {group}, offset {offset}");
            }
        }
    }
}
