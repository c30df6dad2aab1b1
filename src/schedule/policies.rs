//! What only speed depends on: each policy is a function of the problem, the machine and what the operation moves.
//!
//! A reduction followed by a map reads its inputs twice. The second look is at L2 where a task takes a group of channels
//! whole, from statistics to output ([`Schedule::ChannelBlocked`]); that pays while the group's runs in a sample are long.
//! Otherwise all of the tensor is summed in the order of memory, then mapped ([`Schedule::TwoPass`]).

#![forbid(unsafe_code)]

use crate::ground::geometry::{Geometry, Pattern};
use crate::ground::sizes::{BAND, GROUP, LANES, SMALL_PLANE, SPAN, TILE_COLUMNS, fuzzed};
use crate::kernel::map::{Prefetch, Store};
use crate::kernel::scratch::{COLUMNS, SUMS};
use crate::schedule::blocks::Blocks;
use crate::schedule::machine::Machine;
use crate::schedule::tuning::{L2Share, Tuning};

/// What an operation moves per element, and how often it looks at it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Traffic {
    /// Bytes of an element, in memory and as arithmetic has it.
    pub element: usize,
    pub arithmetic: usize,
    /// Tensors that are read.
    pub reads: usize,
    /// Tensors that the map alone reads or writes, beside those and its output.
    pub beside: usize,
    /// Whether there is a reduction.
    pub reduces: bool,
    /// Whether there is a map.
    pub maps: bool,
}

impl Traffic {
    /// Bytes that are read.
    fn bytes_read(self, geometry: &Geometry) -> usize {
        geometry.len().saturating_mul(self.reads * self.element)
    }

    /// How much there is to do, in bytes of what arithmetic has.
    fn work(self, geometry: &Geometry) -> usize {
        geometry.len().saturating_mul(self.reads * self.arithmetic)
    }
}

/// How a task goes through its channels.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Schedule {
    /// A group of channels whole, from statistics to output, while it is in its core's cache.
    ChannelBlocked,
    /// Chunks of every channel are summed; when all states are merged, all is mapped.
    TwoPass,
}

/// A problem on a machine.
#[derive(Debug, Clone, Copy)]
pub struct Setting {
    pub geometry: Geometry,
    pub traffic: Traffic,
    pub machine: Machine,
    pub tuning: Tuning,
    /// Threads that take part.
    pub threads: usize,
}

/// How many threads take part, of those `available`, who are asked for large problems only: asking may start a pool.
pub fn threads_for(
    geometry: &Geometry,
    traffic: Traffic,
    tuning: &Tuning,
    awake: impl Fn() -> bool,
    available: impl Fn() -> usize,
) -> usize {
    let bytes = traffic.work(geometry);
    let parallel = bytes >= tuning.parallel_bytes_asleep || (bytes >= tuning.parallel_bytes && awake());
    if parallel { available().max(1) } else { 1 }
}

/// Whether there is enough to do for several threads, if they are awake.
pub fn is_large(geometry: &Geometry, traffic: Traffic, tuning: &Tuning) -> bool {
    traffic.work(geometry) >= tuning.parallel_bytes
}

impl Setting {
    /// Bytes that are read.
    fn bytes_read(&self) -> usize {
        self.traffic.bytes_read(&self.geometry)
    }

    /// Bytes that are read and written.
    fn bytes_moved(&self) -> usize {
        let Traffic { element, reads, beside, maps, .. } = self.traffic;
        self.geometry.len().saturating_mul((reads + beside + usize::from(maps)) * element)
    }

    /// Bytes that are read of one channel.
    fn channel_bytes(&self) -> usize {
        self.geometry.m().saturating_mul(self.traffic.reads * self.traffic.element).max(1)
    }

    /// Bytes of this share of a core's L2; under fuzzing of a small one.
    fn l2(&self, share: L2Share) -> usize {
        fuzzed(self.machine.l2, 2 << 10) / 16 * share
    }

    /// Past the caches once the last-level cache cannot keep what is written.
    pub fn store_policy(&self) -> Store {
        let Tuning { non_temporal_bytes, non_temporal_bytes_two_inputs, non_temporal_mesh, .. } = self.tuning;
        let bytes = if self.traffic.reads == 2 { non_temporal_bytes_two_inputs } else { non_temporal_bytes };
        let mesh = self.threads.saturating_mul(self.l2(non_temporal_mesh));
        let bytes = if self.machine.mesh { bytes.min(mesh) } else { bytes };
        if self.bytes_moved() >= bytes { Store::NonTemporal } else { Store::Temporal }
    }

    /// Whether memory is further than the caches' own prefetching reaches.
    pub fn is_far(&self) -> bool {
        self.store_policy() == Store::NonTemporal || self.bytes_moved() >= self.tuning.prefetch_bytes
    }

    /// Inputs that stayed in L2 need no prefetching, those of the next task do. On a mesh prefetches take the buffers that
    /// non-temporal stores need.
    pub fn prefetch_policy(&self, schedule: Schedule) -> Prefetch {
        let resident = schedule == Schedule::ChannelBlocked && self.resident_channels() > 0;
        let planes = self.geometry.pattern == Pattern::Along && !self.planes_as_rows();
        match resident && planes {
            _ if !self.is_far() => Prefetch::None,
            false => Prefetch::Own,
            true if self.machine.mesh => Prefetch::None,
            true => Prefetch::NextTask,
        }
    }

    /// A mesh takes its time for reading and for writing: a core that sums a group while it maps the one before does both
    /// at once. Two groups are in L2 then.
    pub fn software_pipelining(&self) -> bool {
        let Traffic { reads, reduces, maps, .. } = self.traffic;
        let Tuning { resident, resident_pipelined, .. } = self.tuning;
        let small = self.geometry.small_planes() || self.planes_as_rows();
        let long_planes = self.geometry.pattern == Pattern::Along && !small;
        let most = self.l2(if reads == 1 { resident_pipelined } else { resident });
        (self.machine.mesh || cfg!(fuzzing))
            && (long_planes && reduces && maps && self.geometry.c >= self.threads)
            && (self.store_policy() == Store::NonTemporal && self.channel_bytes() <= most)
    }

    /// Channels whose inputs stay in a core's L2 from statistics to map.
    fn resident_channels(&self) -> usize {
        let Tuning { resident, resident_far, prefetch_bytes, .. } = self.tuning;
        let cache = if self.software_pipelining() {
            self.l2(resident).max(self.channel_bytes())
        } else if self.bytes_moved() >= prefetch_bytes {
            self.l2(resident_far)
        } else {
            self.traffic.reads * self.l2(resident)
        };
        cache / self.channel_bytes()
    }

    /// Whether the time is mostly the call's own and the threads' coming.
    pub fn is_small(&self) -> bool {
        self.traffic.work(&self.geometry) < self.tuning.small_bytes
    }

    /// About how many tasks to make of a pass over the tensor.
    pub fn task_count(&self) -> usize {
        let Tuning { tasks_per_thread, tasks_per_thread_far, .. } = self.tuning;
        let per_thread = if self.is_small() {
            tasks_per_thread / 2
        } else if self.is_far() {
            tasks_per_thread_far
        } else {
            tasks_per_thread
        };
        if self.threads > 1 { self.threads * per_thread } else { 1 }
    }

    /// About how many tasks to make of a reduction of so many units: one each, unless they are very many or small.
    pub fn reduction_tasks(&self, schedule: Schedule, units: usize) -> usize {
        let tasks = self.task_count();
        let each = match schedule {
            Schedule::ChannelBlocked => !self.is_small(),
            Schedule::TwoPass => self.threads > 1 && units <= 4 * tasks,
        };
        if each { units } else { tasks }
    }

    /// The level of the smallest chunks: of so many blocks as are summed at once, if there are enough for all tasks.
    pub fn chunk_level(&self, blocks: &Blocks) -> u32 {
        let at_once = self.blocks_at_once(blocks, self.geometry.c.min(BAND));
        at_once.min(blocks.len() / self.task_count()).max(1).ilog2()
    }

    /// The blocks of a group's channels that a kernel sums at once, and that become states at once: of few elements several, since
    /// calls take as long as their arithmetic.
    pub fn blocks_at_once(&self, blocks: &Blocks, group: usize) -> usize {
        let elements = blocks.get(0).count() * group;
        (self.tuning.elements_at_once / elements).min(BAND / group).max(1)
    }

    /// The schedule, and the channels that are reduced at once.
    pub fn channel_group(&self, blocks: &Blocks) -> (Schedule, usize) {
        match self.geometry.pattern {
            Pattern::Along => self.group_of_planes(blocks),
            Pattern::Across => self.group_of_rows(blocks),
        }
    }

    /// NCHW: how many channels make a run in a sample that is long enough to take them whole. The second look is at L2 where
    /// so many of them stay there, else at the last-level cache.
    fn shortest_run(&self, resident: usize) -> usize {
        let Tuning { run_bytes, run_bytes_shared, run_bytes_near, shared_bytes, .. } = self.tuning;
        let saves_memory = self.traffic.maps && (self.is_far() || self.machine.mesh);
        match self.geometry.n {
            1 => 1,
            _ if saves_memory && resident > 0 => self.run(run_bytes),
            _ if saves_memory && self.channel_bytes() <= shared_bytes => self.run(run_bytes_shared),
            _ => self.run(run_bytes_near),
        }
    }

    /// NCHW: the channels of a run of so many bytes in a sample.
    fn run(&self, bytes: usize) -> usize {
        let Geometry { c, s, .. } = self.geometry;
        bytes.div_ceil(s * self.traffic.arithmetic).min(c).min(GROUP)
    }

    /// NCHW: as many channels as stay in L2 until they are mapped, while their runs are long enough and every thread has
    /// about as many of them.
    fn group_of_planes(&self, blocks: &Blocks) -> (Schedule, usize) {
        let Geometry { n, c, s, .. } = self.geometry;
        let Traffic { reduces, maps, .. } = self.traffic;
        let threads = self.threads;
        let resident = if maps { self.resident_channels() } else { GROUP };
        let long = self.shortest_run(resident);
        let group = resident.min(c / self.task_count()).clamp(1, GROUP);
        let group = if group < long && resident >= long { long } else { group };
        // A pair is no reason to take channels whole, so the run is that of the group without; of tiny planes, all that a group
        // may have is too short a run.
        let run = group * s * self.traffic.arithmetic;
        let is_long = group >= long && (n == 1 || group == c || run >= self.tuning.run_bytes);
        let group = self.in_pairs(group);
        if reduces && is_long && self.is_even(1, self.geometry.m(), group) {
            return (Schedule::ChannelBlocked, group);
        }
        // With nothing to come back for, and nothing to split otherwise, narrow runs are better than idle threads.
        if reduces && blocks.chunks() == 1 && (!maps || n == 1) {
            return (Schedule::ChannelBlocked, self.even_group(blocks, 1, group.min(c.div_ceil(threads)), 1));
        }
        // As wide as sums and their centers have room for; narrower only where chunks alone are too few to share out.
        let widest = if self.geometry.small_planes() { (COLUMNS / s).min(BAND) } else { GROUP };
        let least = self.run(self.tuning.run_bytes_once).min(c.div_ceil(threads.div_ceil(blocks.chunks())));
        (Schedule::TwoPass, self.even_group(blocks, least, self.in_pairs(c.min(widest)).min(widest), 1))
    }

    /// Whether no thread has much more than the mean to do, of so many chunks, of at most so many elements, of every group.
    fn is_even(&self, chunks: usize, elements: usize, group: usize) -> bool {
        let Geometry { c, .. } = self.geometry;
        let units = (chunks * c.div_ceil(group)).div_ceil(self.threads);
        // A product beyond u128 there is none, of usize on 32 bits there is.
        let fullest = units as u128 * (group * self.threads * 100) as u128 * elements as u128;
        fullest <= (c * self.geometry.m()) as u128 * self.tuning.fullest_thread_percent as u128
    }

    /// The widest group from `least` to `most` channels, in steps, such that chunks and groups can be shared out evenly; the
    /// narrowest, if there is none.
    fn even_group(&self, blocks: &Blocks, least: usize, most: usize, step: usize) -> usize {
        let chunks = blocks.chunks();
        let elements = blocks.chunk(0).len() * blocks.get(0).count();
        let is_even = |group: &usize| self.is_even(chunks, elements, *group);
        let mut widths =
            (0..).map(|steps| most.saturating_sub(steps * step)).take_while(|group| *group > least);
        widths.find(is_even).unwrap_or(least)
    }

    /// One tensor's sums wait for each other in a channel without a second one in step. Not where a pair leaves L2 that one
    /// would stay in.
    fn in_pairs(&self, group: usize) -> usize {
        let Traffic { reads, maps, .. } = self.traffic;
        let pairs = reads == 1 && self.geometry.c >= 4 * self.threads && !self.software_pipelining();
        let (channel, most) = (self.channel_bytes(), self.l2(self.tuning.resident_non_temporal));
        let far = self.bytes_read() >= self.tuning.non_temporal_bytes;
        let torn = maps && far && channel <= most && channel > most / 2;
        if pairs && !torn { group.next_multiple_of(2) } else { group }
    }

    /// NHWC: rows in full, or nearly: strips of them that stay in cache are slower, since rows a power of two apart compete
    /// for a few of its sets. Few rows of a group stay near, without a barrier and others' states.
    fn group_of_rows(&self, blocks: &Blocks) -> (Schedule, usize) {
        let Geometry { c, .. } = self.geometry;
        let lanes = if self.geometry.small_planes() { self.geometry.s } else { LANES };
        let group = (SUMS / lanes).clamp(GROUP, BAND) / GROUP * GROUP;
        // Few chunks leave threads to spare, which share out channels: by the cache line at least, for few threads in long
        // runs, since it is the cores then, and not memory, that set the pace.
        let Tuning { many_threads, run_bytes_once, .. } = self.tuning;
        let long = run_bytes_once / self.traffic.arithmetic;
        let share = c.div_ceil(self.threads.div_ceil(blocks.chunks()));
        let least =
            if self.threads < many_threads { long.min(share).max(1).next_multiple_of(LANES) } else { LANES };
        let group = self.even_group(blocks, least.min(group), group.min(c.next_multiple_of(LANES)), LANES);
        let resident = self.resident_channels();
        let Tuning { strip_rows, strip_rows_alone, strip_rows_once, .. } = self.tuning;
        let Traffic { reads, maps, .. } = self.traffic;
        let most_rows = match self.threads {
            _ if !maps => strip_rows_once,
            // In training, rows in full are faster than strips, but threads would have to wait for each other.
            1 if reads == 1 => 0,
            1 => strip_rows_alone,
            _ => strip_rows,
        };
        let few_rows = self.geometry.m() < most_rows;
        let short = few_rows && c >= self.threads * GROUP && resident >= GROUP && !self.rows_compete();
        let narrow = self.threads == 1 && c <= GROUP && resident >= c;
        if self.traffic.reduces && (short || narrow) {
            (Schedule::ChannelBlocked, if short { GROUP } else { group })
        } else {
            (Schedule::TwoPass, group)
        }
    }

    /// Whether a strip's rows fall on so few sets of L2 that they evict each other, which rows a power of two apart do.
    fn rows_compete(&self) -> bool {
        let Traffic { element, reads, maps, .. } = self.traffic;
        let Machine { l2_ways, .. } = self.machine;
        let (stride, way) = (self.geometry.c * element, self.l2(16) / l2_ways);
        let sets = way >> stride.trailing_zeros().min(way.max(1).ilog2());
        self.geometry.m().div_ceil(sets.max(1)) * (reads + usize::from(maps)) > l2_ways
    }

    /// NCHW: whether a map takes small planes as rows of positions, with coefficients for each, which pay from the second sample
    /// on, or instead of mostly empty vectors: those that do not fill a vector; those of few channels, whose coefficients stay in
    /// L1; in the caches others too, of which most vectors have two, if rows end where lines may, so that vectors cross none.
    pub fn planes_as_rows(&self) -> bool {
        let Geometry { n, c, s, pattern, .. } = self.geometry;
        let Tuning { row_bytes, row_positions, row_samples, .. } = self.tuning;
        let few = s <= SMALL_PLANE && c * s <= TILE_COLUMNS;
        let near = s <= row_positions
            && n >= row_samples
            && self.bytes_moved() < row_bytes
            && (c * s).is_multiple_of(LANES);
        pattern == Pattern::Along && (n > 1 || s <= LANES / 2) && (s < LANES || few || near)
    }

    /// The channels that are mapped at once, with one set of coefficients.
    pub fn map_channels(&self) -> usize {
        let Geometry { c, s, pattern, .. } = self.geometry;
        let evenly = |most: usize| c.div_ceil(c.div_ceil(most)).next_multiple_of(GROUP.min(most)).min(most);
        match pattern {
            Pattern::Along if self.planes_as_rows() => evenly((COLUMNS / s).min(SPAN)),
            Pattern::Along => evenly(SPAN),
            Pattern::Across => {
                let few_rows = self.geometry.m() < self.threads * self.tuning.rows_per_thread;
                let share = c.div_ceil(self.task_count()).next_multiple_of(GROUP);
                if self.threads > 1 && few_rows { share.min(SPAN) } else { evenly(SPAN) }
            }
        }
    }

    /// The pieces that a plane is mapped in: several only where there are too few planes to share them out evenly.
    pub fn plane_segments(&self) -> usize {
        let planes = self.geometry.n * self.geometry.c;
        let pieces = if self.threads > 1 { 8 * self.task_count() } else { 1 };
        match self.geometry.pattern {
            Pattern::Along => pieces.div_ceil(planes).min(self.geometry.s.div_ceil(LANES)),
            Pattern::Across => 1,
        }
    }
}
