//! Whoever is timed: an operation that can be done again and again, and the thread that it is done on.

use crate::Result;
use crate::number::{Number, Type};
use crate::plain_loops::PlainLoops;
use crate::problem::{Order, Tensors};

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

    /// Whether it trains on tensors of this type beside parameters of f32.
    pub fn has(self, number: Type) -> bool {
        #[cfg(feature = "onednn")]
        if self == Self::OneDnn {
            return true;
        }
        number == Type::F32
    }

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
}

/// An operation with everything that it needs made ready.
pub trait Run<S> {
    /// Does it once, on tensors in the contender's order.
    fn run(&mut self, tensors: &mut Tensors<S>) -> Result<()>;

    /// What the last run gave, in the contender's order, if that is a tensor of its own and not `out`.
    fn own_output(&self) -> Result<Option<Vec<f32>>> {
        Ok(None)
    }
}

/// Where an operation is to be called from.
pub enum Place<'a, S> {
    /// From a thread of rayon's pool.
    Pool(Box<dyn Run<S> + Send + 'a>),
    /// From the thread that made it: the main thread, whose OpenMP threads are oneDNN's.
    Here(Box<dyn Run<S> + 'a>),
}

impl<'a, S> Place<'a, S> {
    /// The same, called from a thread of the pool if so asked and it can be.
    pub fn called_from(self, caller: Caller) -> Self {
        match self {
            Self::Pool(run) if caller == Caller::Main => Self::Here(run),
            place => place,
        }
    }

    /// The operation.
    pub fn run(&self) -> &(dyn Run<S> + 'a) {
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
    /// This library's operation without what follows it, where a form has that.
    Bare,
    /// Someone to compare with.
    Peer,
}

/// Who is timed.
pub struct Contender<'a, S> {
    /// What it is timed as.
    pub role: Role,
    /// Its name in tables, without the order.
    pub name: &'static str,
    /// Where it has its elements.
    pub order: Order,
    /// What it does.
    pub place: Place<'a, S>,
}

impl<S> Contender<'_, S> {
    /// Calls `work` on the operation, on its thread.
    pub fn call<T: Send>(&mut self, work: impl FnOnce(&mut dyn Run<S>) -> T + Send) -> T {
        match &mut self.place {
            Place::Pool(run) => in_pool(|| work(&mut **run)),
            Place::Here(run) => work(&mut **run),
        }
    }
}

/// From which thread ours, candle, burn and the plain loops are called.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Caller {
    /// The main thread, as in a program that knows nothing of rayon.
    Main,
    /// A thread of rayon's pool.
    Pool,
}

impl Caller {
    /// Calls a function from there.
    pub fn call<T: Send>(self, work: impl FnOnce() -> T + Send) -> T {
        if self == Self::Pool { in_pool(work) } else { work() }
    }
}

/// Calls a function on a thread of the pool.
fn in_pool<T: Send>(work: impl FnOnce() -> T + Send) -> T {
    rayon::scope(|_| work())
}

/// The plain loops over an operation's bytes.
impl<S: Number> Run<S> for PlainLoops {
    fn run(&mut self, tensors: &mut Tensors<S>) -> Result<()> {
        PlainLoops::run(self, [&tensors.x, &tensors.dy], [&mut tensors.out, &mut tensors.dz]);
        Ok(())
    }
}
