//! From a checked problem to finished tensors: cuts it by its plan, hands out the tasks, calls the operation in them.
//!
//! Every operation is a reduction per channel, an elementwise map, or a map after a reduction ([`Operation`]); the
//! scheduling is written once for all of them.

use std::ops::Range;
use std::sync::{Mutex, PoisonError};

use crate::ground::error::Error;
use crate::ground::geometry::{Block, Geometry, Run};
use crate::ground::memory::filled;
use crate::ground::scalar::Scalar;
use crate::ground::sizes::{BAND, GROUP};
use crate::ground::slices::Output;
use crate::kernel::Vectorized;
use crate::kernel::map::Access;
use crate::kernel::room::{Room, Waiting};
use crate::kernel::scratch::{Scratch, Tiles};
use crate::schedule::blocks::Samples;
use crate::schedule::plan::Plan;
use crate::schedule::policies::{Schedule, Traffic};
use crate::schedule::ranges::pieces_at;
use crate::schedule::tree::{Merges, Node, Tree};
use crate::simd::{Level, environment};
use crate::threads::deal;

/// What an operation works in: the level, the problem, scratch memory of its own.
pub struct Task<'a, T: Scalar> {
    pub level: Level,
    pub geometry: &'a Geometry,
    pub access: Access,
    pub scratch: &'a mut Scratch<T>,
    /// For tensors that take tiles; lent to who works on them.
    pub tiles: Option<&'a mut Tiles<T>>,
    /// Whether it works on tiles, and not on tensors as they lie: coefficients are laid out for the former then.
    pub tiled: bool,
    /// Whether tensors are 16-bit numbers for lanes over such ([`HalfLanes::elements`](crate::simd::half::HalfLanes::elements)).
    pub half: Option<T::Half>,
    /// A group, of as many channels as the next, whose map is pending until that is reduced. The scratch has its
    /// coefficients.
    pub pending: Option<Range<usize>>,
}

/// What is wanted of channels whose states are known.
#[derive(Debug, Clone, Copy)]
pub struct Follow {
    /// What the operation returns per channel.
    pub outputs: bool,
    /// The coefficients that the map takes, from this column of the scratch's on.
    pub coefficients: Option<usize>,
}

/// An operation on tensors, in the order of the calls: what is summed and how sums merge, what follows from a channel's state,
/// what is mapped. The slices of states hold one state for each of `channels`.
pub trait Operation<T: Vectorized>: Sync {
    /// What the reduction leaves per channel.
    type State: Copy + Default + Send + Sync;
    /// How many tensors it reads.
    const READS: usize;
    /// Whether it works on tiles of its tensors.
    const TILED: bool;

    /// Bytes of an element of what it reads.
    fn element(&self) -> usize;
    /// Tensors that the map reads or writes beside those and its output.
    fn beside(&self) -> usize {
        0
    }
    /// Whether there is a reduction.
    fn reduces(&self) -> bool;
    /// The samples that are reduced, if not all, or not all alike.
    fn samples(&self) -> Option<Samples<'_>> {
        None
    }
    /// Whether outputs per channel follow from what is given, without a reduction.
    fn concludes(&self) -> bool {
        false
    }
    /// Whether there is a map.
    fn maps(&self) -> bool;
    /// Memory for states that wait.
    fn waiting(waiting: &mut Waiting<T>) -> &mut [Self::State];

    /// Begins with these channels: what their sums take is put into the scratch.
    fn begin(&self, task: &mut Task<'_, T>, channels: &Range<usize>);
    /// The states of each block of a run, at its place. Of a single one maps as much of the group that is pending.
    fn sum(&self, task: &mut Task<'_, T>, channels: &Range<usize>, run: &Run, states: &mut [Self::State]);
    /// left := left and right together; the counts are the elements per channel that each has seen.
    fn merge(&self, level: Level, left: (&mut [Self::State], f64), right: (&[Self::State], f64));
    /// The states become those of elements that count as often as this weight says.
    fn weigh(&self, states: &mut [Self::State], weight: f64);
    /// What follows from states: outputs per channel, and coefficients.
    fn follow(&self, task: &mut Task<'_, T>, channels: &Range<usize>, states: &[Self::State], wanted: Follow);
    /// Maps a part of the tensor; `column` is that of the first of these channels.
    fn map(&self, task: &mut Task<'_, T>, channels: &Range<usize>, column: usize, part: &Block);
    /// Whether a group that the scratch has the coefficients of can be left pending.
    fn can_pipeline(&self, _: &Task<'_, T>) -> bool {
        false
    }
}

/// Runs an operation. [`Error::OutOfMemory`] comes before anything is written.
pub fn run<T: Vectorized, O: Operation<T>>(
    level: Level,
    geometry: &Geometry,
    operation: &O,
) -> Result<(), Error> {
    let (reduces, maps) = (operation.reduces(), operation.maps());
    let beside = operation.beside();
    let traffic = Traffic {
        element: operation.element(),
        arithmetic: size_of::<T>(),
        reads: O::READS,
        beside,
        reduces,
        maps,
    };
    let plan = Plan::of(geometry, &samples_of(geometry, operation), traffic);
    run_by(plan, level, geometry, operation)?;
    if plan.large {
        deal::ended();
    }
    Ok(())
}

/// The samples that an operation reduces.
fn samples_of<'a, T: Vectorized, O: Operation<T>>(geometry: &Geometry, operation: &'a O) -> Samples<'a> {
    operation.samples().unwrap_or(Samples::all(geometry))
}

/// The same by a plan of the caller's.
pub fn run_by<T: Vectorized, O: Operation<T>>(
    plan: Plan,
    level: Level,
    geometry: &Geometry,
    operation: &O,
) -> Result<(), Error> {
    let software_pipelining = plan.software_pipelining && level.interleaves();
    let plan = Plan { software_pipelining, ..plan };
    // The calling thread keeps its scratch memory from here on, and so always has it.
    let scratch = T::take_scratch().ok_or(Error::OutOfMemory { bytes: size_of::<Room<T>>() })?;
    let spare = Mutex::new(T::keep_scratch(scratch));
    let samples = samples_of(geometry, operation);
    let engine = Engine { level, geometry, plan, samples, operation, spare };
    match plan.schedule {
        Schedule::ChannelBlocked => {
            engine.channel_blocked();
            Ok(())
        }
        Schedule::TwoPass => engine.two_pass(),
    }
}

/// What is wanted where a map is yet to come, or none.
const OUTPUTS: Follow = Follow { outputs: true, coefficients: None };

struct Engine<'a, T: Vectorized, O> {
    level: Level,
    geometry: &'a Geometry,
    plan: Plan,
    samples: Samples<'a>,
    operation: &'a O,
    /// Scratch memory of a calling thread that is past keeping it.
    spare: Mutex<Option<Box<Room<T>>>>,
}

impl<T: Vectorized, O: Operation<T>> Engine<'_, T, O> {
    /// Calls `body`, on each thread that takes part, with its scratch memory and the ranges of units that it takes. A thread
    /// without memory takes none.
    fn tasks(
        &self,
        units: usize,
        (tasks, backwards): (usize, bool),
        body: impl Fn(&mut dyn Iterator<Item = Range<usize>>, &mut Task<'_, T>, &mut [O::State]) + Sync,
    ) {
        let Self { level, geometry, plan: Plan { access, threads, .. }, .. } = *self;
        deal::deal(units, tasks, threads, backwards, &|ranges| {
            environment::in_default(|| {
                let spare = || self.spare.lock().unwrap_or_else(PoisonError::into_inner);
                let Some(mut room) = T::take_scratch().or_else(|| spare().take()) else { return };
                let Room { scratch, tiles, waiting } = &mut *room;
                let (tiles, tiled) = (Some(tiles), O::TILED);
                let (half, pending) = (None, None);
                let mut task = Task { level, geometry, access, scratch, tiles, tiled, half, pending };
                body(ranges, &mut task, O::waiting(waiting));
                if let Some(room) = T::keep_scratch(room) {
                    *spare() = Some(room);
                }
            });
        });
    }

    /// A task takes some channels from statistics to output, while their elements are still in its core's cache.
    fn channel_blocked(&self) {
        let Plan { blocks, channel_group: group, tasks, software_pipelining, .. } = self.plan;
        let groups = self.geometry.c.div_ceil(group);
        self.tasks(groups, (tasks, false), |groups, task: &mut Task<'_, T>, waiting| {
            let mut states = [O::State::default(); GROUP];
            for channels in groups.flatten().map(|group| self.plan.group(group)) {
                let states = &mut states[..channels.len()];
                self.operation.begin(task, &channels);
                if task.pending.as_ref().is_some_and(|pending| pending.len() != channels.len()) {
                    self.map_pending(task);
                }
                self.subtree(task, &channels, 0..blocks.len(), states, waiting);
                task.pending = None;
                let maps = self.operation.maps();
                let wanted = Follow { outputs: true, coefficients: maps.then_some(0) };
                self.operation.follow(task, &channels, states, wanted);
                if maps && software_pipelining && self.operation.can_pipeline(task) {
                    task.pending = Some(channels);
                } else if maps {
                    self.operation.map(task, &channels, 0, &blocks.whole());
                }
            }
            self.map_pending(task);
        });
    }

    /// Maps the group that is pending, if there is one.
    fn map_pending(&self, task: &mut Task<'_, T>) {
        if let Some(channels) = task.pending.take() {
            self.operation.map(task, &channels, 0, &self.plan.blocks.whole());
        }
    }

    /// A task takes chunks of some channels: reductions, then a barrier, then the map.
    fn two_pass(&self) -> Result<(), Error> {
        let Plan { blocks, channel_group: group, map_channels: span, tasks, map_tasks, .. } = self.plan;
        let c = self.geometry.c;
        let (chunks, groups) = (blocks.chunks(), c.div_ceil(group));
        let mut partial = Vec::new();
        if self.operation.reduces() {
            partial = filled(chunks.saturating_mul(c), O::State::default())?;
            let merges = Merges::of(&self.chunk_nodes()?)?;
            let notes = merges.notes(groups)?;
            let states = Output::new(&mut partial);
            // A task's range of units is a range of chunks, of one group mostly.
            self.tasks(chunks * groups, (tasks, false), |units, task: &mut Task<'_, T>, waiting| {
                for (chunk, group) in units.flatten().map(|unit| (unit % chunks, unit / chunks)) {
                    let channels = self.plan.group(group);
                    self.operation.begin(task, &channels);
                    // SAFETY: in bounds; no other task has this chunk and these channels, nor what merges with it before this
                    // task is told that it is there.
                    let of = |chunk: usize| unsafe {
                        states.part(chunk * c + channels.start..chunk * c + channels.end)
                    };
                    self.subtree(task, &channels, blocks.chunk(chunk), of(chunk), waiting);
                    let all = merges.arrive(chunk, (group, &notes), &mut |left, right| {
                        self.merge((of(left.place), left.count), (of(right.place), right.count));
                    });
                    // The first chunk's are the channels' then.
                    if all {
                        self.operation.follow(task, &channels, of(0), OUTPUTS);
                    }
                }
            });
        }
        if self.operation.concludes() {
            self.tasks(c.div_ceil(GROUP), (1, false), |groups, task: &mut Task<'_, T>, _| {
                for channels in groups.flatten().map(|group| self.derived(group)) {
                    self.operation.follow(task, &channels, &[], OUTPUTS);
                }
            });
        }
        if self.operation.maps() {
            let units = self.plan.units();
            // What the reduction read last is still near.
            let backwards = self.operation.reduces();
            self.tasks(
                c.div_ceil(span) * units,
                (map_tasks, backwards),
                |ranges, task: &mut Task<'_, T>, _| {
                    // The channels whose coefficients the scratch has: with few rows, making them for every task anew shows.
                    let mut derived = None;
                    for piece in ranges.flat_map(|range| pieces_at(range, units)) {
                        let span = self.plan.span(piece.start / units);
                        let piece = piece.start % units..(piece.end - 1) % units + 1;
                        let parts = || self.plan.parts(&span, piece.clone());
                        // Of all channels that the parts have, one part or another.
                        let (first, end) = parts().fold((usize::MAX, 0), |(first, end), (some, _)| {
                            (first.min(some.start), end.max(some.end))
                        });
                        // The last span has fewer channels than units.
                        if first >= end {
                            continue;
                        }
                        let columns = span.start + first..span.start + end;
                        if derived.as_ref() != Some(&columns) {
                            let states = partial.get(columns.clone()).unwrap_or(&[]);
                            let wanted = Follow { outputs: false, coefficients: Some(first) };
                            self.operation.follow(task, &columns, states, wanted);
                            derived = Some(columns);
                        }
                        for (some, part) in parts() {
                            let channels = span.start + some.start..span.start + some.end;
                            self.operation.map(task, &channels, some.start, &part);
                        }
                    }
                },
            );
        }
        Ok(())
    }

    /// The channels of a group that outputs are derived of at once.
    fn derived(&self, group: usize) -> Range<usize> {
        group * GROUP..((group + 1) * GROUP).min(self.geometry.c)
    }

    /// The chunks as nodes of the tree, which are the same for all channels; none where nothing merges.
    fn chunk_nodes(&self) -> Result<Vec<Node>, Error> {
        let blocks = &self.plan.blocks;
        let mut nodes = filled(if blocks.chunks() > 1 { blocks.chunks() } else { 0 }, Node::default())?;
        environment::in_default(|| {
            for (place, node) in nodes.iter_mut().enumerate() {
                let chunk = blocks.chunk(place);
                let first = blocks.leaf(chunk.start);
                let count = match self.samples.weights {
                    Some(_) => blocks.count(chunk, |block| self.count_of(block)),
                    None => blocks.elements(chunk) as f64,
                };
                *node = Node { leaf: first, count, place };
            }
        });
        Ok(nodes)
    }

    fn count_of(&self, block: &Block) -> f64 {
        self.samples.count(self.geometry, block)
    }

    /// left := left and right together, where elements without a weight have no part.
    fn merge(&self, left: (&mut [O::State], f64), right: (&[O::State], f64)) {
        if left.1 == 0.0 {
            left.0.copy_from_slice(right.0);
        } else if right.1 != 0.0 {
            self.operation.merge(self.level, left, right);
        }
    }

    /// The states of a run's blocks, each element as often as its weight says, merged to the first ones. Those without a weight have
    /// no part in them.
    fn sum(
        &self,
        task: &mut Task<'_, T>,
        channels: &Range<usize>,
        run: &Run,
        states: &mut [O::State],
    ) -> f64 {
        let width = channels.len();
        let mut count = self.count_of(&run.first);
        if run.count == 1 && count == 0.0 {
            states.fill(O::State::default());
            return count;
        }
        self.operation.sum(task, channels, run, states);
        if self.samples.weights.is_some() {
            return self.weigh(run, states, width);
        }
        let mut half = run.count / 2;
        while half > 0 {
            let (left, right) = states.split_at_mut(half * width);
            let right = &right[..left.len()];
            self.merge((left, count), (right, count));
            (half, count) = (half / 2, 2.0 * count);
        }
        count
    }

    /// The same where each block has a weight.
    fn weigh(&self, run: &Run, states: &mut [O::State], width: usize) -> f64 {
        let mut counts = [0.0; BAND];
        for index in 0..run.count {
            let (block, place) = run.block_and_place(index);
            let states = &mut states[place * width..][..width];
            counts[place] = self.count_of(&block);
            match self.samples.weight(self.geometry, &block) {
                0.0 => states.fill(O::State::default()),
                weight => self.operation.weigh(states, weight),
            }
        }
        let mut half = run.count / 2;
        while half > 0 {
            let (left, right) = states.split_at_mut(half * width);
            let pairs = left.chunks_exact_mut(width).zip(right.chunks_exact(width));
            for (place, (left, right)) in pairs.enumerate() {
                self.merge((left, counts[place]), (right, counts[half + place]));
                counts[place] += counts[half + place];
            }
            half /= 2;
        }
        counts[0]
    }

    /// The states of a subtree's blocks, merged; those that wait are in `waiting`. Once for both schedules.
    #[inline(never)]
    fn subtree(
        &self,
        task: &mut Task<'_, T>,
        channels: &Range<usize>,
        blocks: Range<usize>,
        states: &mut [O::State],
        waiting: &mut [O::State],
    ) {
        if blocks.len() == 1 {
            // No tree, which takes as long to make as a small block to sum.
            self.sum(task, channels, &Run::of(self.plan.blocks.get(blocks.start)), states);
            return;
        }
        let width = channels.len();
        // The first node's are where all go in the end.
        let merge = |states: &mut [O::State], waiting: &mut [O::State], left: Node, right: Node| {
            let (before, from) = waiting.split_at_mut((right.place - 1) * width);
            let left_states = match left.place {
                0 => states,
                place => &mut before[(place - 1) * width..][..width],
            };
            self.merge((left_states, left.count), (&from[..width], right.count));
        };
        let mut tree = Tree::EMPTY;
        let mut next = blocks.start;
        while next < blocks.end {
            let leaf = self.plan.blocks.leaf(next);
            tree.complete(leaf, &mut |left, right| merge(states, waiting, left, right));
            let place = tree.len();
            let (before, rest) = waiting.split_at_mut(place * width);
            let to = match place {
                0 => &mut *states,
                place => &mut before[(place - 1) * width..],
            };
            let run =
                self.plan.blocks.run(next..blocks.end, self.plan.blocks_at_once.min(rest.len() / width));
            next += run.count;
            let count = if run.count == 1 {
                self.sum(task, channels, &run, to)
            } else {
                let rest = &mut rest[..run.count * width];
                let count = self.sum(task, channels, &run, rest);
                to.copy_from_slice(&rest[..width]);
                count
            };
            tree.push(Node { leaf, count, place });
        }
        tree.finish(&mut |left, right| merge(states, waiting, left, right));
    }
}
