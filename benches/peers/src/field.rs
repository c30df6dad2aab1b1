//! The field: plain loops, this library, and the peers that the program was built with.

use std::time::Duration;

use batchnorm::Layout;

use crate::contender::{Caller, Contender, PLAIN_LOOPS, Peer, Place, Role};
use crate::number::Number;
use crate::plain_loops::{Form, PlainLoops};
use crate::problem::{Layer, Tensors};
use crate::{Result, ours};

/// Time to find the fastest plain loops in.
const CALIBRATION: Duration = Duration::from_millis(60);

/// The plain loops, ours and the peers, in this order.
pub fn all<'a, S: Number>(
    form: Form,
    layer: &'a Layer,
    tensors: &mut [Tensors<S>],
    peers: &[Peer],
    caller: Caller,
) -> Result<Vec<Contender<'a, S>>> {
    let mut contenders = plain_loops(form, layer, tensors, caller)?;
    contenders.extend(ours::contenders(form, layer, tensors)?);
    for peer in peers {
        contenders.extend(of_peer(*peer, form, layer, tensors)?);
    }
    let called = |contender: Contender<'a, S>| {
        let Contender { role, name, order, place } = contender;
        Contender { role, name, order, place: place.called_from(caller) }
    };
    Ok(contenders.into_iter().map(called).collect())
}

/// The plain loops of NCHW, and of NHWC if other passes are needed there.
fn plain_loops<'a, S: Number>(
    form: Form,
    layer: &'a Layer,
    tensors: &mut [Tensors<S>],
    caller: Caller,
) -> Result<Vec<Contender<'a, S>>> {
    let mut contenders = Vec::new();
    let mut seen = Vec::new();
    for (layout, tensors) in [Layout::Nchw, Layout::Nhwc].into_iter().zip(tensors) {
        let shape = layer.shape(layout)?;
        let passes = caller.call(|| form.passes(&shape, size_of::<S>()));
        if !seen.contains(&passes) {
            seen.push(passes);
            let Tensors { order, x, dy, out, dz, .. } = tensors;
            let measure =
                || PlainLoops::measure(form, &shape, [&**x, &**dy], [&mut **out, &mut **dz], CALIBRATION);
            let (loops, _) = caller.call(measure);
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
fn of_peer<'a, S: Number>(
    peer: Peer,
    form: Form,
    layer: &'a Layer,
    tensors: &mut [Tensors<S>],
) -> Result<Vec<Contender<'a, S>>> {
    match peer {
        #[cfg(feature = "onednn")]
        Peer::OneDnn => crate::onednn::contenders(form, layer, tensors),
        #[cfg(feature = "candle")]
        Peer::Candle => crate::candle::contenders(form, layer, &tensors[0]),
        #[cfg(feature = "burn")]
        Peer::Burn => crate::burn::contenders(form, layer, &tensors[0]),
    }
}
