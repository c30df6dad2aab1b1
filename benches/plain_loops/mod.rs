//! What operations are compared with: plain loops over the same bytes, with the same threads, in the same run.
//!
//! Batch normalization does little arithmetic per element, so what it takes is what moving its tensors takes.
//! [`passes`](Form::passes) says which passes over memory an operation cannot do without; [`PlainLoops::run`] does
//! just these. They are a reference, no limit: a kernel that moves the same bytes in another order, or whose tasks suit the
//! caches better, can be faster. Of 16-bit numbers they are the loops of f32 over the same bytes, without conversions.

mod loops;
mod timing;

use std::fs;
use std::hint::black_box;
use std::sync::OnceLock;
use std::time::Duration;

use batchnorm::{Layout, Shape, Storage};
use rayon::prelude::*;

use crate::shapes::Epilogue;

pub use loops::Float;
pub use timing::{Times, times};

/// Bytes of a cache line.
const LINE: usize = 64;

/// Tensors up to this are also done by the caller alone, which may be faster than waking a pool; larger ones also in
/// [`FINE`] parts per thread, so that no thread waits for a slower one: up to 1.6 times faster from L3 on a VM that
/// others use too.
const ALONE_BYTES: usize = 4 << 20;
const FINE: usize = 16;

/// One pass over tensors of the same length.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pass {
    /// Reads one tensor.
    Read,
    /// Reads two.
    ReadTwo,
    /// Reads one and writes one.
    Copy,
    /// Reads two and writes one.
    Triad,
    /// Reads two and writes two.
    Four,
}

/// What is measured next to plain loops.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Operation {
    /// Mean and variance of each channel.
    Statistics,
    /// Statistics and normalization.
    Training,
    /// Normalization by given statistics.
    Inference,
    /// Gradients through the batch's statistics.
    Backward,
}

/// Bytes of a core's L2 cache, 1 MiB where the system does not say.
pub fn l2_bytes() -> usize {
    static BYTES: OnceLock<usize> = OnceLock::new();
    *BYTES.get_or_init(|| {
        let size = fs::read_to_string("/sys/devices/system/cpu/cpu0/cache/index2/size").unwrap_or_default();
        let (digits, unit) = match size.trim() {
            size if size.ends_with('K') => (&size[..size.len() - 1], 1 << 10),
            size if size.ends_with('M') => (&size[..size.len() - 1], 1 << 20),
            size => (size, 1),
        };
        digits.parse().map_or(1 << 20, |count: usize| count * unit)
    })
}

impl Operation {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Statistics, Self::Training, Self::Inference, Self::Backward];

    /// Its name in tables.
    pub fn name(self) -> &'static str {
        match self {
            Self::Statistics => "statistics",
            Self::Training => "training",
            Self::Inference => "inference",
            Self::Backward => "backward",
        }
    }
}

/// An operation and what follows it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Form {
    /// What is done.
    pub operation: Operation,
    /// What follows in the same call.
    pub epilogue: Epilogue,
}

impl From<Operation> for Form {
    fn from(operation: Operation) -> Self {
        Self { operation, epilogue: Epilogue::Nothing }
    }
}

impl Form {
    /// The fused forms of training, inference and backward.
    pub const FUSED: [Self; 6] = {
        const fn of(operation: Operation, epilogue: Epilogue) -> Form {
            Form { operation, epilogue }
        }
        [
            of(Operation::Training, Epilogue::Relu),
            of(Operation::Training, Epilogue::AddRelu),
            of(Operation::Inference, Epilogue::Relu),
            of(Operation::Inference, Epilogue::AddRelu),
            of(Operation::Backward, Epilogue::Relu),
            of(Operation::Backward, Epilogue::AddRelu),
        ]
    };

    /// Its name in tables, such as `training + add + ReLU`.
    pub fn name(self) -> String {
        format!("{} {}", self.operation.name(), self.epilogue).trim_end().to_owned()
    }

    /// Whether there is a residual.
    pub fn adds(self) -> bool {
        self.epilogue == Epilogue::AddRelu
    }

    /// The tensors that must be read or written at least once each. ReLU needs none, and its mask is a thirty-second of one.
    pub fn tensors(self) -> usize {
        let bare = match self.operation {
            Operation::Statistics => 1,
            Operation::Training | Operation::Inference => 2,
            Operation::Backward => 3,
        };
        bare + usize::from(self.adds())
    }

    /// The passes that the current pool's threads cannot do without, on elements of `bytes` bytes.
    ///
    /// Training and backward look at their input twice. Of a tensor larger than the L2 caches together, the second look
    /// is not counted if what one task needs, a channel, stays in its core's L2 after the first. In a tensor that fits, both
    /// looks are at L2 and cost the same. In NHWC both count: a strip of channels is lines that are a row apart, and with
    /// the usual powers of two of channels those fall on so few sets of L2 that none stays.
    pub fn passes(self, shape: &Shape, bytes: usize) -> &'static [Pass] {
        let once = |inputs: usize| {
            shape.layout() == Layout::Nchw
                && shape.len() * bytes > l2_bytes() * rayon::current_num_threads()
                && shape.per_channel() * bytes * inputs <= l2_bytes()
        };
        match (self.operation, self.adds()) {
            (Operation::Statistics, _) => &[Pass::Read],
            (Operation::Training, false) if once(1) => &[Pass::Copy],
            (Operation::Training, false) => &[Pass::Read, Pass::Copy],
            (Operation::Training, true) if once(1) => &[Pass::Triad],
            (Operation::Training, true) => &[Pass::Read, Pass::Triad],
            (Operation::Inference, false) => &[Pass::Copy],
            (Operation::Inference, true) => &[Pass::Triad],
            (Operation::Backward, false) if once(2) => &[Pass::Triad],
            (Operation::Backward, false) => &[Pass::ReadTwo, Pass::Triad],
            (Operation::Backward, true) if once(2) => &[Pass::Four],
            (Operation::Backward, true) => &[Pass::ReadTwo, Pass::Four],
        }
    }
}

/// One way of doing an operation's passes. The fastest of [`PlainLoops::ways`] is what operations are compared with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PlainLoops {
    passes: &'static [Pass],
    /// Whether the loops are those for data in memory (non-temporal stores) or those for data in the caches.
    far: bool,
    /// Contiguous equal parts to share out among the threads; 1 for the caller alone.
    parts: usize,
}

impl PlainLoops {
    /// The ways of doing an operation's passes on the current pool: with loops for data in the caches or in memory, in
    /// one part per thread and in more or fewer.
    pub fn ways<S: Storage>(form: Form, shape: &Shape) -> Vec<Self> {
        let passes = form.passes(shape, size_of::<S>());
        let parts = match rayon::current_num_threads() {
            1 => vec![1],
            threads if shape.len() * size_of::<S>() <= ALONE_BYTES => vec![threads, 1],
            threads => vec![threads, FINE * threads],
        };
        let ways = parts.into_iter().flat_map(|parts| [false, true].map(|far| Self { passes, far, parts }));
        ways.collect()
    }

    /// The fastest way, found by measuring for `time`, and its median in seconds.
    pub fn measure<S: Storage<Arithmetic: Float>>(
        form: Form,
        shape: &Shape,
        inputs: [&[S]; 2],
        [y, w]: [&mut [S]; 2],
        time: Duration,
    ) -> (Self, f64) {
        let ways = Self::ways::<S>(form, shape);
        let all = times(time, ways.len(), |way| ways[way].run(inputs, [&mut *y, &mut *w]));
        let best = Times::fastest(&all);
        (ways[best], all[best].median)
    }

    /// Does the passes once, over tensors of the same length; the second output is written by four streams alone.
    pub fn run<S: Storage<Arithmetic: Float>>(&self, inputs: [&[S]; 2], outputs: [&mut [S]; 2]) {
        let (inputs, [y, w]) = (inputs.map(loaded), outputs.map(stored));
        let len = y.len();
        assert!(inputs.iter().all(|input| input.len() == len) && w.len() == len, "tensors of one length");
        for &pass in self.passes {
            self.pass(pass, inputs, [&mut *y, &mut *w]);
        }
    }

    fn pass<T: Float>(&self, pass: Pass, [x, z]: [&[T]; 2], [y, w]: [&mut [T]; 2]) {
        let loops = T::loops(self.far);
        let one = |[x, z]: [&[T]; 2], [y, w]: [&mut [T]; 2]| match pass {
            Pass::Read => _ = black_box((loops.read)(x)),
            Pass::ReadTwo => _ = black_box((loops.read_two)(x, z)),
            Pass::Copy => (loops.copy)(x, y),
            Pass::Triad => (loops.triad)(x, z, y),
            Pass::Four => (loops.four)([x, z], [y, w]),
        };
        if self.parts == 1 {
            return one([x, z], [y, w]);
        }
        let part = y.len().div_ceil(self.parts).next_multiple_of(LINE / size_of::<T>());
        let inputs = x.par_chunks(part).zip(z.par_chunks(part));
        let outputs = y.par_chunks_mut(part).zip(w.par_chunks_mut(part));
        inputs.zip(outputs).with_max_len(1).for_each(|((x, z), (y, w))| one([x, z], [y, w]));
    }
}

/// A tensor's bytes as what the loops load, but for an odd number at the end.
fn loaded<S: Storage>(tensor: &[S]) -> &[S::Arithmetic] {
    // SAFETY: the sealed trait is of plain numbers: no padding, and any bits are some number of either type.
    unsafe { tensor.align_to() }.1
}

/// The same as what they store.
fn stored<S: Storage>(tensor: &mut [S]) -> &mut [S::Arithmetic] {
    // SAFETY: as above.
    unsafe { tensor.align_to_mut() }.1
}

/// Passes in words, such as "read + copy".
pub fn names(passes: &[Pass]) -> String {
    let names = passes.iter().map(|pass| match pass {
        Pass::Read => "read",
        Pass::ReadTwo => "read of two",
        Pass::Copy => "copy",
        Pass::Triad => "triad",
        Pass::Four => "four streams",
    });
    names.collect::<Vec<_>>().join(" + ")
}
