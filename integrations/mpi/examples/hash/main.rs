//! One hash over all results of a fixed set of problems, by as many processes as there are, or by plain calls.
//!
//! `mpirun -n 3 hash` splits each batch in several ways, between multiples of the granularity, parts of no samples among them, and
//! prints the hash of what all ranks got, in the order of samples, which every way must give. `hash --plain` prints that of
//! one process which does not know of MPI.

mod problem;

use std::error::Error;
use std::process::ExitCode;

use batchnorm::{Activation, Layout, Storage};
use batchnorm_mpi::Ranks;
use half::bf16;
use mpi::datatype::PartitionMut;
use mpi::topology::SimpleCommunicator;
use mpi::traits::*;

use problem::{Number, Problem, Results};

/// N, C, S: of one position, of few, 7 x 7, 56 x 56; of more channels than fit into a first message.
const SHAPES: [[usize; 3]; 6] =
    [[1500, 9, 1], [300, 5, 6], [75, 6, 49], [7, 5, 3136], [33, 150, 49], [600, 131, 1]];

/// What follows the normalization, and whether a residual does.
const FORMS: [(Activation, bool); 5] = [
    (Activation::Identity, false),
    (Activation::Relu, true),
    (Activation::Silu, false),
    (Activation::Relu, false),
    (Activation::Identity, true),
];

/// How a batch is split: evenly, all of it on the last rank, anywhere.
const WAYS: usize = 4;

fn main() -> ExitCode {
    match run() {
        Ok(Some(hash)) => println!("{hash:016x}"),
        Ok(None) => {}
        Err(error) => {
            eprintln!("{error}");
            return ExitCode::FAILURE;
        }
    }
    ExitCode::SUCCESS
}

/// The hash, on rank 0.
fn run() -> Result<Option<u64>, Box<dyn Error>> {
    if std::env::args().any(|argument| argument == "--plain") {
        let mut hash = Hash::NEW;
        all_problems(&mut Plain { hash: &mut hash })?;
        return Ok(Some(hash.0));
    }
    let universe = mpi::initialize().ok_or("MPI is initialized already")?;
    let world = universe.world();
    let mut hashes = [Hash::NEW; WAYS];
    for (way, hash) in hashes.iter_mut().enumerate() {
        // Messages that need several rounds, too.
        let ranks = if way % 2 == 0 { Ranks::new(&world)? } else { Ranks::with_longest(&world, 0)? };
        all_problems(&mut Parts { ranks, way, hash })?;
    }
    match hashes.iter().all(|hash| hash.0 == hashes[0].0) {
        _ if world.rank() != 0 => Ok(None),
        true => Ok(Some(hashes[0].0)),
        false => Err(format!("{} ranks: not one hash, however split: {hashes:x?}", world.size()).into()),
    }
}

/// Who computes.
trait Computes {
    fn take<S: Storage + Number>(&mut self, problem: &Problem<S>) -> Result<(), batchnorm::Error>
    where
        S::Arithmetic: Number;
}

fn all_problems(who: &mut impl Computes) -> Result<(), batchnorm::Error> {
    problems_of::<f32>(who)?;
    problems_of::<f64>(who)?;
    problems_of::<bf16>(who)
}

fn problems_of<S: Storage + Number>(who: &mut impl Computes) -> Result<(), batchnorm::Error>
where
    S::Arithmetic: Number,
{
    for (i, dims) in SHAPES.into_iter().enumerate() {
        for (j, layout) in [Layout::Nchw, Layout::Nhwc].into_iter().enumerate() {
            let form = FORMS[(i + 2 * j) % FORMS.len()];
            who.take(&Problem::<S>::new(layout, dims, form, (i + j) % 3 == 1)?)?;
        }
    }
    Ok(())
}

/// One process, without MPI.
struct Plain<'a> {
    hash: &'a mut Hash,
}

impl Computes for Plain<'_> {
    fn take<S: Storage + Number>(&mut self, problem: &Problem<S>) -> Result<(), batchnorm::Error>
    where
        S::Arithmetic: Number,
    {
        let Results { tensors, per_channel } = problem.plain()?;
        tensors.iter().chain([&per_channel]).for_each(|bytes| self.hash.take(bytes));
        Ok(())
    }
}

/// A part on each rank.
struct Parts<'a, 'c> {
    ranks: Ranks<'c, SimpleCommunicator>,
    way: usize,
    hash: &'a mut Hash,
}

impl Computes for Parts<'_, '_> {
    fn take<S: Storage + Number>(&mut self, problem: &Problem<S>) -> Result<(), batchnorm::Error>
    where
        S::Arithmetic: Number,
    {
        let (rank, size) = (self.ranks.rank() as usize, self.ranks.size() as usize);
        let cuts = cuts(problem.shape.batch(), problem.shape.granularity(), size, self.way);
        // By the layer, or by the builders.
        let results = match self.way {
            0 | 3 => problem.layer(cuts[rank]..cuts[rank + 1], &mut self.ranks)?,
            _ => problem.builders(cuts[rank]..cuts[rank + 1], &mut self.ranks)?,
        };
        let sample = problem.shape.len() / problem.shape.batch() * size_of::<S>();
        for tensor in &results.tensors {
            self.hash.take(&on_root(self.ranks.communicator(), tensor, sample, &cuts));
        }
        self.hash.take(&results.per_channel);
        Ok(())
    }
}

/// Where the parts begin and the last one ends: multiples of the granularity.
fn cuts(batch: usize, granularity: usize, parts: usize, way: usize) -> Vec<usize> {
    let leaves = batch.div_ceil(granularity);
    let mut seed = way as u64;
    let mut random = || {
        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (seed >> 33) as usize % (leaves + 1)
    };
    let mut cuts: Vec<usize> = match way {
        0 => (0..=parts).map(|part| leaves * part / parts).collect(),
        1 => (0..=parts).map(|part| if part < parts { 0 } else { leaves }).collect(),
        _ => [0, leaves].into_iter().chain((1..parts).map(|_| random())).collect(),
    };
    cuts.sort_unstable();
    cuts.iter().map(|cut| (cut * granularity).min(batch)).collect()
}

/// The bytes of all ranks in the order of samples, of so many bytes each, on rank 0; none elsewhere.
fn on_root(world: &SimpleCommunicator, bytes: &[u8], sample: usize, cuts: &[usize]) -> Vec<u8> {
    let root = world.process_at_rank(0);
    // The address of no bytes can be 1, which is Open MPI's MPI_IN_PLACE.
    let room = [bytes, &[0]].concat();
    let bytes = &room[..bytes.len()];
    if world.rank() != 0 {
        root.gather_varcount_into(bytes);
        return Vec::new();
    }
    let counts: Vec<i32> = cuts.windows(2).map(|cut| ((cut[1] - cut[0]) * sample) as i32).collect();
    let starts: Vec<i32> = cuts[..cuts.len() - 1].iter().map(|cut| (cut * sample) as i32).collect();
    let mut all = vec![0; cuts[cuts.len() - 1] * sample];
    root.gather_varcount_into_root(bytes, &mut PartitionMut::new(&mut all[..], counts, starts));
    all
}

/// Fowler's, Noll's and Vo's, 1a.
#[derive(Debug, Clone, Copy)]
struct Hash(u64);

impl Hash {
    const NEW: Self = Self(0xcbf2_9ce4_8422_2325);

    fn take(&mut self, bytes: &[u8]) {
        bytes.iter().for_each(|byte| self.0 = (self.0 ^ u64::from(*byte)).wrapping_mul(0x100_0000_01b3));
    }
}
