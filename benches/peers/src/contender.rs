//! Whoever is timed: an operation that can be done again and again, and the thread that it is done on.

use std::time::Duration;

use batchnorm::Layout;

use crate::Result;
use crate::plain_loops::{PlainLoops, Operation};
use crate::ours;
use crate::problem::{Layer, Order, Tensors};

/// Time to find the fastest plain loops in.
const CALIBRATION: Duration = Duration::from_millis(60);

/// Someone to compare with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Peer {
    /// oneDNN's primitives.
    #[cfg(feature = "onednn")]
    OneDnn,
    /// candle's module.
    #[cfg(feature = "candle")]
    Candle,
    /// burn's module, on its flex backend.
    #[cfg(feature = "burn")]
    Burn,
}

impl Peer {
    /// All that this program was built with.
    pub const BUILT_IN: &[Self] = &[
        #[cfg(feature = "onednn")]
        Self::OneDnn,
        #[cfg(feature = "candle")]
        Self::Candle,
        #[cfg(feature = "burn")]
        Self::Burn,
    ];

    /// Its name on the command line.
    pub fn name(self) -> &'static str {
        match self {
            #[cfg(feature = "onednn")]
            Self::OneDnn => "onednn",
            #[cfg(feature = "candle")]
            Self::Candle => "candle",
            #[cfg(feature = "burn")]
            Self::Burn => "burn",
        }
    }

    /// Its contenders, one for each order of memory that it has the operation for.
    #[cfg_attr(
        not(any(feature = "onednn", feature = "candle", feature = "burn")),
        expect(unused_variables, reason = "without peers there is nothing to do")
    )]
    fn contenders<'a>(
        self,
        operation: Operation,
        layer: &'a Layer,
        tensors: &[Tensors],
    ) -> Result<Vec<Contender<'a>>> {
        match self {
            #[cfg(feature = "onednn")]
            Self::OneDnn => crate::onednn::contenders(operation, layer, tensors),
            #[cfg(feature = "candle")]
            Self::Candle => crate::candle::contenders(operation, layer, &tensors[0]),
            #[cfg(feature = "burn")]
            Self::Burn => crate::burn::contenders(operation, layer, &tensors[0]),
        }
    }
}

/// An operation with everything that it needs made ready.
pub trait Run {
    /// Does it once, on tensors in the contender's order.
    fn run(&mut self, tensors: &mut Tensors) -> Result<()>;

    /// What the last run gave, in the contender's order, if that is a tensor of its own and not `out`.
    fn own_output(&self) -> Result<Option<Vec<f32>>> {
        Ok(None)
    }
}

/// Where an operation is to be called from.
pub enum Place<'a> {
    /// From a thread of rayon's pool.
    Pool(Box<dyn Run + Send + 'a>),
    /// From the thread that made it, whose OpenMP threads do it.
    #[cfg_attr(not(feature = "onednn"), expect(dead_code, reason = "oneDNN's place"))]
    Here(Box<dyn Run + 'a>),
}

impl<'a> Place<'a> {
    /// The operation.
    pub fn run(&self) -> &(dyn Run + 'a) {
        match self {
            Self::Pool(run) => &**run,
            Self::Here(run) => &**run,
        }
    }
}

/// The name of plain loops in tables.
pub const PLAIN_LOOPS: &str = "plain loops";

/// What part someone has in the tables.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// Plain loops over the same bytes.
    PlainLoops,
    /// This library.
    Ours,
    /// Someone to compare with.
    Peer,
}

/// Who is timed.
pub struct Contender<'a> {
    /// What it is timed as.
    pub role: Role,
    /// Its name in tables, without the order.
    pub name: &'static str,
    /// Where it has its elements.
    pub order: Order,
    /// What it does.
    pub place: Place<'a>,
}

impl Contender<'_> {
    /// Calls `work` on the operation, on its thread.
    pub fn call<T: Send>(&mut self, work: impl FnOnce(&mut dyn Run) -> T + Send) -> T {
        match &mut self.place {
            Place::Pool(run) => in_pool(|| work(&mut **run)),
            Place::Here(run) => work(&mut **run),
        }
    }
}

/// Calls a function on a thread of the pool.
fn in_pool<T: Send>(work: impl FnOnce() -> T + Send) -> T {
    rayon::scope(|_| work())
}

/// The plain loops over an operation's bytes.
impl Run for PlainLoops {
    fn run(&mut self, tensors: &mut Tensors) -> Result<()> {
        PlainLoops::run(self, &tensors.x, &tensors.dy, &mut tensors.out);
        Ok(())
    }
}

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
        contenders.extend(peer.contenders(operation, layer, tensors)?);
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
