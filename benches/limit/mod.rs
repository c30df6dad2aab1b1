//! The limit that memory sets: plain loops over the same bytes, with the same threads, in the same run.
//!
//! Batch normalization does little arithmetic per element, so what it takes is what moving its tensors takes.
//! [`passes`](Operation::passes) says which passes over memory an operation cannot do without; [`Limit::run`] does
//! just these, as fast as the machine can, and [`medians`] times anything side by side.

mod loops;

use std::fs;
use std::hint::black_box;
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use batchnorm::{Layout, Shape};
use rayon::prelude::*;

pub use loops::Float;

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
}

/// What is measured against a limit.
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

    /// The tensors that must be read or written at least once each.
    pub fn tensors(self) -> usize {
        match self {
            Self::Statistics => 1,
            Self::Training | Self::Inference => 2,
            Self::Backward => 3,
        }
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
        match self {
            Self::Statistics => &[Pass::Read],
            Self::Training if once(1) => &[Pass::Copy],
            Self::Training => &[Pass::Read, Pass::Copy],
            Self::Inference => &[Pass::Copy],
            Self::Backward if once(2) => &[Pass::Triad],
            Self::Backward => &[Pass::ReadTwo, Pass::Triad],
        }
    }
}

/// One way of doing an operation's passes. The limit is the fastest of [`Limit::ways`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limit {
    passes: &'static [Pass],
    /// Whether the loops are those for data in memory (non-temporal stores) or those for data in the caches.
    far: bool,
    /// Contiguous equal parts to share out among the threads; 1 for the caller alone.
    parts: usize,
}

impl Limit {
    /// The ways of doing an operation's passes on the current pool: with loops for data in the caches or in memory, in
    /// one part per thread and in more or fewer.
    pub fn ways<T: Float>(operation: Operation, shape: &Shape) -> Vec<Self> {
        let passes = operation.passes(shape, size_of::<T>());
        let parts = match rayon::current_num_threads() {
            1 => vec![1],
            threads if shape.len() * size_of::<T>() <= ALONE_BYTES => vec![threads, 1],
            threads => vec![threads, FINE * threads],
        };
        let ways = parts.into_iter().flat_map(|parts| [false, true].map(|far| Self { passes, far, parts }));
        ways.collect()
    }

    /// The fastest way, found by measuring for `time`, and its median in seconds.
    pub fn measure<T: Float>(
        operation: Operation,
        shape: &Shape,
        x: &[T],
        dy: &[T],
        y: &mut [T],
        time: Duration,
    ) -> (Self, f64) {
        let ways = Self::ways::<T>(operation, shape);
        let seconds = medians(time, ways.len(), |way| ways[way].run(x, dy, y));
        let best =
            (0..ways.len()).min_by(|&a, &b| seconds[a].total_cmp(&seconds[b])).expect("a way at least");
        (ways[best], seconds[best])
    }

    /// Does the passes once, over tensors of the same length.
    pub fn run<T: Float>(&self, x: &[T], dy: &[T], y: &mut [T]) {
        assert!(x.len() == y.len() && dy.len() == y.len(), "tensors of one length");
        for &pass in self.passes {
            self.pass(pass, x, dy, y);
        }
    }

    fn pass<T: Float>(&self, pass: Pass, x: &[T], z: &[T], y: &mut [T]) {
        let loops = T::loops(self.far);
        let one = |(x, z, y): (&[T], &[T], &mut [T])| match pass {
            Pass::Read => _ = black_box((loops.read)(x)),
            Pass::ReadTwo => _ = black_box((loops.read_two)(x, z)),
            Pass::Copy => (loops.copy)(x, y),
            Pass::Triad => (loops.triad)(x, z, y),
        };
        if self.parts == 1 {
            return one((x, z, y));
        }
        let part = y.len().div_ceil(self.parts).next_multiple_of(LINE / size_of::<T>());
        let inputs = x.par_chunks(part).zip(z.par_chunks(part));
        inputs.zip(y.par_chunks_mut(part)).with_max_len(1).for_each(|((x, z), y)| one((x, z, y)));
    }
}

/// Passes in words, such as "read + copy".
pub fn names(passes: &[Pass]) -> String {
    let names = passes.iter().map(|pass| match pass {
        Pass::Read => "read",
        Pass::ReadTwo => "read of two",
        Pass::Copy => "copy",
        Pass::Triad => "triad",
    });
    names.collect::<Vec<_>>().join(" + ")
}

/// The median time in seconds of each of `candidates` things to run, which `run` gets the index of.
///
/// They take turns in blocks (each sees the caches as it leaves them itself, all see the same drift of the machine) for
/// `time` in all; the first run of a block is not counted. What takes less than some microseconds is timed several
/// runs at once.
pub fn medians(time: Duration, candidates: usize, mut run: impl FnMut(usize)) -> Vec<f64> {
    const ROUNDS: u32 = 6;
    const SAMPLE: Duration = Duration::from_micros(20);
    // No time at all: once each, to see that it runs.
    let (rounds, least) = if time.is_zero() { (1, 1) } else { (ROUNDS, 2) };
    let block = time / (rounds * candidates.max(1) as u32);
    let mut samples = vec![Vec::new(); candidates];
    for _ in 0..rounds {
        for (candidate, samples) in samples.iter_mut().enumerate() {
            let start = Instant::now();
            run(candidate);
            let once = Instant::now();
            run(candidate);
            let per_sample = SAMPLE.as_nanos() / once.elapsed().as_nanos().max(1) + 1;
            let before = samples.len();
            while start.elapsed() < block || samples.len() < before + least {
                let start = Instant::now();
                (0..per_sample).for_each(|_| run(candidate));
                samples.push(start.elapsed().as_secs_f64() / per_sample as f64);
            }
        }
    }
    let median = |mut samples: Vec<f64>| {
        samples.sort_by(f64::total_cmp);
        let middle = samples.len() / 2;
        if samples.len() % 2 == 1 { samples[middle] } else { (samples[middle - 1] + samples[middle]) / 2.0 }
    };
    samples.into_iter().map(median).collect()
}
