//! Whether all contenders do the same thing: their results next to ours in NCHW.

use rayon::prelude::*;

use crate::Result;
use crate::contender::{Contender, Role};
use crate::number::{Number, Type};
use crate::plain_loops::{Form, Operation};
use crate::problem::{Layer, Order, Tensors};
use crate::shapes::Epilogue;

/// How far a result may be off, relative to its own size or the tensor's root mean square, whichever is larger: what the peers'
/// sums in f32 lose, or two roundings to 16 bits, of which one is of y before a residual is added, and may be some times its sum.
fn tolerance(number: Type) -> f32 {
    match number {
        Type::F32 => 1e-3,
        #[cfg(feature = "half")]
        Type::Bf16 => 1.0 / 64.0,
        #[cfg(feature = "half")]
        Type::F16 => 1.0 / 512.0,
    }
}

/// One element in so many may be off in backward through ReLU: where u is 0 but for rounding, dy passes or not.
const ON_THE_EDGE: usize = 10_000;

/// Runs everyone once; an error if someone's result is not ours.
pub fn check<S: Number>(
    form: Form,
    layer: &Layer,
    tensors: &mut [Tensors<S>],
    contenders: &mut [Contender<'_, S>],
) -> Result<()> {
    let mut expected: Option<Vec<f32>> = None;
    let same = |contender: &&mut Contender<'_, S>| !matches!(contender.role, Role::PlainLoops | Role::Bare);
    for contender in contenders.iter_mut().filter(same) {
        let order = contender.order;
        let tensors = &mut tensors[order as usize];
        // Nothing that was there before passes for a result.
        tensors.out.fill(S::of(f32::NAN));
        contender.call(|run| run.run(tensors))?;
        let own = contender.place.run().own_output()?;
        let got = own.unwrap_or_else(|| tensors.out.iter().map(|value| value.widened()).collect());
        // Ours in NCHW is the first.
        let Some(expected) = &expected else {
            expected = Some(got);
            continue;
        };
        if got.len() != expected.len() {
            return Err(format!("{} gives {} elements", contender.name, got.len()).into());
        }
        let edge = form.operation == Operation::Backward && form.epilogue != Epilogue::Nothing;
        let allowed = if edge { expected.len() / ON_THE_EDGE + 1 } else { 0 };
        let differences = differences(layer, order, (expected, &got), tolerance(S::TYPE));
        if let (Some(&(index, got)), true) = (differences.first(), differences.len() > allowed) {
            return Err(format!(
                "{} {} gives {got} at index {index} in NCHW, and we {}",
                contender.name,
                order.name(),
                expected[index]
            )
            .into());
        }
    }
    Ok(())
}

/// The elements of `expected`, in NCHW, that the same elements of `got`, in `order`, are far from: where and what.
fn differences(
    layer: &Layer,
    order: Order,
    (expected, got): (&[f32], &[f32]),
    tolerance: f32,
) -> Vec<(usize, f32)> {
    let size @ [channels, positions] = [layer.channels(), layer.positions()];
    let squares: f64 = expected.par_iter().map(|&value| f64::from(value) * f64::from(value)).sum();
    let rms = (squares / expected.len() as f64).sqrt() as f32;
    let sample = channels * positions;
    let samples = expected.par_chunks(sample).zip(got.par_chunks(sample)).enumerate();
    let far = |(number, (expected, got)): (usize, (&[f32], &[f32]))| {
        let got = |index| got[order.offset(size, index / positions, index % positions)];
        let far = (0..sample).filter(|&index| {
            let close = (got(index) - expected[index]).abs() <= tolerance * expected[index].abs().max(rms);
            // A NaN is close to nothing.
            !close
        });
        far.map(|index| (number * sample + index, got(index))).collect::<Vec<_>>()
    };
    samples.flat_map_iter(far).collect()
}
