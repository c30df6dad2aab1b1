//! The field: plain loops, this library, and the peers that the program was built with.

use std::time::Duration;

use batchnorm::Layout;

use crate::contender::{Contender, PLAIN_LOOPS, Peer, Place, Role, in_pool};
use crate::plain_loops::{Operation, PlainLoops};
use crate::problem::{Layer, Tensors};
use crate::{Result, ours};

/// Time to find the fastest plain loops in.
const CALIBRATION: Duration = Duration::from_millis(60);

/// The plain loops, ours and the peers, in this order.
pub fn all<'a>(
    operation: Operation,
    layer: &'a Layer,
    tensors: &mut [Tensors],
    peers: &[Peer],
) -> Result<Vec<Contender<'a>>> {
    let mut contenders = plain_loops(operation, layer, tensors)?;
    contenders.extend(ours::contenders(operation, layer)?);
    for peer in peers {
        contenders.extend(of_peer(*peer, operation, layer, tensors)?);
    }
    Ok(contenders)
}

/// The plain loops of NCHW, and of NHWC if other passes are needed there.
fn plain_loops<'a>(
    operation: Operation,
    layer: &'a Layer,
    tensors: &mut [Tensors],
) -> Result<Vec<Contender<'a>>> {
    let mut contenders = Vec::new();
    let mut seen = Vec::new();
    for (layout, tensors) in [Layout::Nchw, Layout::Nhwc].into_iter().zip(tensors) {
        let shape = layer.shape(layout)?;
        let passes = in_pool(|| operation.passes(&shape, size_of::<f32>()));
        if !seen.contains(&passes) {
            seen.push(passes);
            let Tensors { order, x, dy, out } = tensors;
            let (loops, _) = in_pool(|| PlainLoops::measure(operation, &shape, x, dy, out, CALIBRATION));
            let place = Place::Pool(Box::new(loops));
            contenders.push(Contender { role: Role::PlainLoops, name: PLAIN_LOOPS, order: *order, place });
        }
    }
    Ok(contenders)
}

/// A peer's contenders, one for each order of memory that it has the operation for.
#[cfg_attr(
    not(any(feature = "onednn", feature = "candle", feature = "burn")),
    expect(unused_variables, reason = "without peers there is nothing to do")
)]
fn of_peer<'a>(
    peer: Peer,
    operation: Operation,
    layer: &'a Layer,
    tensors: &[Tensors],
) -> Result<Vec<Contender<'a>>> {
    match peer {
        #[cfg(feature = "onednn")]
        Peer::OneDnn => crate::onednn::contenders(operation, layer, tensors),
        #[cfg(feature = "candle")]
        Peer::Candle => crate::candle::contenders(operation, layer, &tensors[0]),
        #[cfg(feature = "burn")]
        Peer::Burn => crate::burn::contenders(operation, layer, &tensors[0]),
    }
}
