//! Whether all contenders do the same thing: their results next to ours in NCHW.

use rayon::prelude::*;

use crate::Result;
use crate::contender::{Contender, Role};
use crate::problem::{Layer, Order, Tensors};

/// How far a result may be off, relative to its own size or the tensor's root mean square, whichever is larger. The
/// peers' sums in f32 lose more than this library's.
const TOLERANCE: f32 = 1e-3;

/// Runs everyone once; an error if someone's result is not ours.
pub fn check(layer: &Layer, tensors: &mut [Tensors], contenders: &mut [Contender<'_>]) -> Result<()> {
    let mut expected: Option<Vec<f32>> = None;
    for contender in contenders.iter_mut().filter(|contender| contender.role != Role::PlainLoops) {
        let order = contender.order;
        let tensors = &mut tensors[order as usize];
        // Nothing that was there before passes for a result.
        tensors.out.fill(f32::NAN);
        contender.call(|run| run.run(tensors))?;
        let own = contender.place.run().own_output()?;
        let got = own.as_deref().unwrap_or(&tensors.out);
        // Ours in NCHW is the first.
        let Some(expected) = &expected else {
            expected = Some(got.to_vec());
            continue;
        };
        if got.len() != expected.len() {
            return Err(format!("{} gives {} elements", contender.name, got.len()).into());
        }
        if let Some((index, got)) = first_difference(layer, order, expected, got) {
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

/// The first element of `expected`, in NCHW, that the same element of `got`, in `order`, is far from.
fn first_difference(layer: &Layer, order: Order, expected: &[f32], got: &[f32]) -> Option<(usize, f32)> {
    let size @ [channels, positions] = [layer.channels(), layer.positions()];
    let squares: f64 = expected.par_iter().map(|&value| f64::from(value) * f64::from(value)).sum();
    let rms = (squares / expected.len() as f64).sqrt() as f32;
    let sample = channels * positions;
    let samples = expected.par_chunks(sample).zip(got.par_chunks(sample)).enumerate();
    samples.find_map_first(|(number, (expected, got))| {
        let got = |index| got[order.offset(size, index / positions, index % positions)];
        let index = (0..sample).find(|&index| {
            let close = (got(index) - expected[index]).abs() <= TOLERANCE * expected[index].abs().max(rms);
            // A NaN is close to nothing.
            !close
        })?;
        Some((number * sample + index, got(index)))
    })
}
