//! How a problem is handed out: tasks, threads, ways to read and write. Nothing here changes a bit of the results.

#![forbid(unsafe_code)]

use std::ops::Range;

use crate::ground::geometry::{Block, Geometry, Pattern};
use crate::ground::sizes::{BAND, GROUP, LANES, SPAN, fuzzed};
use crate::kernel::map::{Asked, Reach};
use crate::kernel::scratch::SUMS;
use crate::schedule::blocks::Blocks;
use crate::schedule::machine::Machine;
use crate::schedule::ranges::rectangles;
use crate::threads::pool;

/// In NHWC, the least rows that a thread maps if it can have more rows of fewer channels instead, whose coefficients take
/// less time.
const ROWS: usize = fuzzed(128, 2);

/// Of a core's L2, or under fuzzing of a small one, so many sixteenths as one of the next four says.
fn l2_bytes(share: usize) -> usize {
    fuzzed(Machine::get().l2, 2 << 10) / 16 * share
}

/// What a task should have of each tensor that it reads: the statistics have just put it where normalization reads it
/// again, which writes as much. So two of them fill half of L2. Twice of it in training is as fast alone, and takes 1.1 to
/// 1.6 times as long while neighbours fill the last-level cache (14 x 14, 4 cores) ...
const CACHE_SHARE: usize = 4;

/// ... and of all together where a second look goes far, so that what is written has room too: measured 1.05 times as
/// fast in training and 1.1 in backward at 50 MB and more, 10 % slower at 20 MB, where longer runs matter more.
const CACHE_SHARE_FAR: usize = 5;

/// ... and of a single channel that is mapped while the next is summed (training; backward 0.99 times as fast).
const CACHE_SHARE_ONE: usize = 7;

/// What is left beside what is written past the caches.
const CACHE_SHARE_PAST: usize = 12;

/// Of the L2 caches of all threads: from there on what is written goes past the caches of a mesh ([`Machine::mesh`]).
/// Inference is then 1.25 to 1.4 times as fast, training and backward in NHWC 1.15 to 1.5, in NCHW 1.0 to 1.15, at 3.3 MB
/// with one thread and 6.4 with two; at 2.1 MB with one and 3.3 with two 0.6 to 0.95 times.
const STREAM_SHARE: usize = 20;

/// From this many bytes read and written on, what is written would be gone from the last-level cache before anyone
/// reads it, and writing past it saves reading the lines first: copying 100 MB 57 against 43 GB/s, backward at 38 MB 1.15 to
/// 1.4 times as fast (2 cores, 32 MB of L3); training at 25 MB 1.0 to 1.4 times with one thread, 0.7 to 1.2 with two ...
const STREAM_BYTES: usize = fuzzed(32 << 20, 16 << 10);

/// ... and of an operation that reads two tensors twice, which then stay where they are: backward at 25 to 30 MB 1.1 times
/// as fast in NCHW, 1.07 in NHWC (geometric means of five shapes, two threads).
const STREAM_BYTES_OF_TWO: usize = fuzzed(24 << 20, 16 << 10);

/// From this many on, what is read and written is asked for ahead of time: measured 1.2 to 2.3 times as fast in NHWC at
/// 26 MB and more, 10 % slower at 6 MB, which the caches and their own prefetching serve as well.
const FAR_BYTES: usize = fuzzed(24 << 20, 4 << 10);

/// States to merge below this are merged on one thread.
const PARALLEL_STATES: usize = fuzzed(4096, 64);

/// Tensors below this are done on the calling thread, which takes about as long as sharing them out ...
const PARALLEL_BYTES: usize = fuzzed(256 << 10, 1 << 10);

/// ... and if the other threads sleep, as long as they take to come (with them, training at 0.4 MB takes 1.2 to 1.4 times as
/// long, inference twice).
const PARALLEL_BYTES_ASLEEP: usize = fuzzed(1 << 20, 1 << 10);

/// Tasks per thread, so that an unlucky thread can be relieved of some ...
const TASKS_PER_THREAD: usize = 4;

/// ... more where memory is far and threads do not get the same of it: 1.0 to 1.2 times as fast in NHWC ...
const TASKS_PER_THREAD_FAR: usize = 16;

/// ... but of a tensor below this, two, for whoever comes late. (One is 0.9 to 1.0 times as fast where the others have to
/// wake up, four are where they have not.)
const SMALL_BYTES: usize = fuzzed(2 << 20, 2 << 10);

/// Blocks, and how channels and chunks are dealt out to tasks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Plan {
    pub blocks: Blocks,
    pub geometry: Geometry,
    /// Channels that are reduced at once.
    pub group: usize,
    /// Channels that are mapped at once.
    pub span: usize,
    /// Pieces that a plane is mapped in.
    pub segments: usize,
    /// Whether a task takes its channels whole, from statistics to output, or one chunk of them at a time.
    pub whole: bool,
    /// Which inputs a map asks for ahead of time.
    pub asked: Asked,
    /// About how many tasks to make.
    pub tasks: usize,
    /// How many threads to use.
    pub threads: usize,
    /// Whether there is enough to do for several, if they are awake.
    pub large: bool,
    /// Where the map finds its inputs and writes its output.
    pub reach: Reach,
    /// Whether a task maps each group while it reduces the next, rather than before.
    pub overlap: bool,
}

impl Plan {
    /// `bytes` is an element's, `reads` the number of tensors that the operation reads, then whether it has a
    /// reduction and a map; `threads` those there are, asked for large problems only: asking may start a pool.
    pub fn new(
        geometry: &Geometry,
        bytes: usize,
        reads: usize,
        (reduces, maps): (bool, bool),
        threads: impl Fn() -> usize,
    ) -> Self {
        let blocks = Blocks::of(geometry);
        let element_bytes = reads * bytes;
        let all = geometry.len().saturating_mul(element_bytes);
        let large = all >= PARALLEL_BYTES;
        let parallel = all >= PARALLEL_BYTES_ASLEEP || large && pool::in_a_row();
        let threads = if parallel { threads() } else { 1 };
        let mesh = Machine::get().mesh;
        let stream = if reads == 2 { STREAM_BYTES_OF_TWO } else { STREAM_BYTES };
        let stream = if mesh { stream.min(threads.saturating_mul(l2_bytes(STREAM_SHARE))) } else { stream };
        let moved = geometry.len().saturating_mul(element_bytes + bytes);
        let reach = match moved {
            _ if moved >= stream => Reach::Past,
            FAR_BYTES.. => Reach::Far,
            _ => Reach::Near,
        };
        let c = geometry.c;
        let small = all < SMALL_BYTES;
        let per_thread = match reach {
            _ if small => TASKS_PER_THREAD / 2,
            Reach::Near => TASKS_PER_THREAD,
            _ => TASKS_PER_THREAD_FAR,
        };
        let tasks = if threads > 1 { threads * per_thread } else { 1 };
        let channel = geometry.m().saturating_mul(element_bytes).max(1);
        let long_planes =
            geometry.pattern == Pattern::Along && geometry.s >= LANES && !geometry.small_planes();
        // A mesh takes its time for either, reading and writing, and a core that does both at once is 1.15 times as fast in
        // training, 1.05 to 1.1 in backward (elsewhere, in bare loops, 0.4 to 1.08 times; planes of 7 x 7 0.85 to 1.05). Two groups
        // are in L2 then.
        let overlap = (mesh || cfg!(fuzzing))
            && (long_planes && reduces && maps && geometry.c >= threads)
            && (reach == Reach::Past
                && channel <= l2_bytes(if reads == 1 { CACHE_SHARE_ONE } else { CACHE_SHARE }));
        let cache = match moved {
            _ if overlap => l2_bytes(CACHE_SHARE).max(channel),
            FAR_BYTES.. => l2_bytes(CACHE_SHARE_FAR),
            _ => reads * l2_bytes(CACHE_SHARE),
        };
        let fitting = cache / channel;
        let (group, span, whole) = match geometry.pattern {
            // As many channels as stay in cache until they are mapped, for long runs; one, however long it is, as long as
            // there is one for each thread.
            Pattern::Along => {
                let staying = if maps { fitting } else { GROUP };
                let group = staying.min(c / tasks).clamp(1, GROUP);
                // One tensor's sums wait for each other in a channel without a second in step: 1.2 to 1.5 times as long
                // in statistics, 1.05 to 1.13 in training. Not at the price of a map from memory (1.15).
                let pairs = reads == 1 && c >= 4 * threads && !overlap;
                let most = l2_bytes(CACHE_SHARE_PAST);
                let torn = maps && all >= STREAM_BYTES && channel <= most && channel > most / 2;
                let group = if pairs && !torn { group.next_multiple_of(2) } else { group };
                (group, if geometry.tiny_planes() { GROUP } else { SPAN }, reduces && c >= threads)
            }
            // Rows in full, or nearly: strips of them that stay in cache until they are read again are slower, since
            // rows a power of two apart compete for a few cache sets. The sums of small planes have as many lanes as
            // positions.
            Pattern::Across => {
                let lanes = if geometry.small_planes() { geometry.s } else { LANES };
                let group = (SUMS / lanes).clamp(GROUP, BAND) / GROUP * GROUP;
                // Few chunks leave threads to spare, which share out channels, by the cache line at least.
                let groups = threads.div_ceil(blocks.chunks());
                let group = group.min(c.div_ceil(groups).next_multiple_of(LANES));
                let few = threads > 1 && geometry.m() < threads * ROWS;
                let span = if few { c.div_ceil(tasks).next_multiple_of(GROUP).min(SPAN) } else { SPAN };
                // Few rows of a group stay near. Without a barrier, nor others' states, training and backward are 1.05 to
                // 1.5 times as fast, statistics 1.1 to 1.9; with one thread and 200 rows no longer, with 1000 0.7 times.
                let short = geometry.m() < 2 * ROWS && c >= threads * GROUP && fitting >= GROUP;
                let narrow = threads == 1 && c <= GROUP && fitting >= c;
                (if short { GROUP } else { group }, span, reduces && (short || narrow))
            }
        };
        // Planes are cut only if there are too few of them to share out.
        let planes = geometry.n * c;
        let segments = match geometry.pattern {
            Pattern::Along if planes < tasks => tasks.div_ceil(planes).min(geometry.s),
            _ => 1,
        };
        let tasks = if whole && !small { c.div_ceil(group) } else { tasks };
        let asked = match whole && fitting > 0 {
            false => Asked::Own,
            true if mesh => Asked::Nothing,
            true => Asked::Next,
        };
        Self {
            blocks,
            geometry: *geometry,
            group,
            span,
            segments,
            whole,
            asked,
            tasks,
            threads,
            large,
            reach,
            overlap,
        }
    }

    /// About how many tasks to make of a map, also for one thread where it goes `backwards` through memory that is far.
    pub fn map_tasks(&self, backwards: bool) -> usize {
        let far = backwards && self.reach != Reach::Near;
        if far { self.tasks.max(TASKS_PER_THREAD_FAR) } else { self.tasks }
    }

    /// A group's channels.
    pub fn group(&self, index: usize) -> Range<usize> {
        index * self.group..((index + 1) * self.group).min(self.geometry.c)
    }

    /// A span's channels.
    pub fn span(&self, index: usize) -> Range<usize> {
        index * self.span..((index + 1) * self.span).min(self.geometry.c)
    }

    /// The number of units that a span is mapped in.
    pub fn units(&self) -> usize {
        self.geometry.n * self.units_per_sample()
    }

    fn units_per_sample(&self) -> usize {
        let Geometry { c, s, pattern, .. } = self.geometry;
        match pattern {
            Pattern::Across => s,
            Pattern::Along if self.geometry.tiny_planes() => 1,
            Pattern::Along => self.span.min(c) * self.segments,
        }
    }

    /// The parts that make up some of a span's units, in the order of memory. Each is some of the span's channels.
    pub fn parts(
        &self,
        span: &Range<usize>,
        units: Range<usize>,
    ) -> impl Iterator<Item = (Range<usize>, Block)> {
        let Geometry { s, pattern, .. } = self.geometry;
        let (segments, channels) = (self.segments, span.len());
        let whole_rows = pattern == Pattern::Across || self.geometry.tiny_planes();
        let segment = s.div_ceil(segments).next_multiple_of(LANES);
        rectangles(units, self.units_per_sample()).flat_map(move |(samples, inner)| {
            let planes = if whole_rows { 0..1 } else { inner.clone() };
            rectangles(planes, segments).filter_map(move |(some, cut)| {
                let samples = samples.clone();
                if whole_rows {
                    let positions = if pattern == Pattern::Across { inner.clone() } else { 0..s };
                    return Some((0..channels, Block { samples, positions }));
                }
                let positions = cut.start * segment..(cut.end * segment).min(s);
                let some = some.start..some.end.min(channels);
                (!some.is_empty() && !positions.is_empty()).then_some((some, Block { samples, positions }))
            })
        })
    }

    /// Whether there are so many states to merge that it pays to share them out.
    pub fn merge_parallel(&self) -> bool {
        self.threads > 1 && self.blocks.chunks() * self.geometry.c >= PARALLEL_STATES
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::schedule::blocks::grid::*;
    use crate::schedule::ranges::pieces;

    #[test]
    fn the_order_of_arithmetic_ignores_layout_and_threads() {
        for geometry in geometries() {
            let [along, across] = PATTERNS.map(|pattern| Blocks::of(&Geometry { pattern, ..geometry }));
            assert_eq!(along, across);
            for workers in [1, 2, 3, 7] {
                assert_eq!(Plan::new(&geometry, 4, 2, (true, true), || workers).blocks, along);
            }
        }
    }

    #[test]
    fn groups_partition_the_channels() {
        for geometry in geometries() {
            for (workers, maps) in [(1, true), (4, true), (4, false)] {
                let plan = Plan::new(&geometry, 4, 1, (true, maps), || workers);
                let mut channel = 0;
                for group in (0..geometry.c.div_ceil(plan.group)).map(|index| plan.group(index)) {
                    assert!(group.start == channel && (1..=BAND).contains(&group.len()), "{geometry:?}");
                    channel = group.end;
                }
                assert_eq!(channel, geometry.c, "{geometry:?}");
            }
        }
    }

    /// Whoever is handed some units gets parts that no one else has, and all together are the tensor.
    #[test]
    fn parts_partition_the_tensor() {
        for pattern in PATTERNS {
            for (n, c, s) in
                [(1, 1, 1), (1, 3, 5000), (2, 2049, 3), (7, 5, 100), (3, 64, 49), (5, 2050, 1), (1, 70, 65)]
            {
                let geometry = Geometry { n, c, s, pattern };
                for workers in [1, 4] {
                    let plan = Plan::new(&geometry, 1 << 16, 1, (true, true), || workers);
                    let mut seen = vec![0u8; geometry.len()];
                    for span in (0..c.div_ceil(plan.span)).map(|index| plan.span(index)) {
                        for units in pieces(0..plan.units(), 13) {
                            for (channels, part) in plan.parts(&span, units) {
                                assert!(!channels.is_empty() && part.count() > 0, "{geometry:?} {workers}");
                                for sample in part.samples {
                                    for channel in channels.clone() {
                                        for position in part.positions.clone() {
                                            seen[geometry.offset(sample, span.start + channel, position)] +=
                                                1;
                                        }
                                    }
                                }
                            }
                        }
                    }
                    assert!(seen.iter().all(|times| *times == 1), "{geometry:?} {workers}");
                }
            }
        }
    }

    #[test]
    fn small_problems_do_not_ask_for_threads() {
        let geometry = Geometry { n: 1, c: 64, s: 64, pattern: Pattern::Along };
        assert!(Plan::new(&geometry, 4, 1, (true, true), || unreachable!("a small problem")).threads == 1);
    }
}
