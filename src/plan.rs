//! How a problem is cut: into blocks and chunks, which fix the order of arithmetic, and into tasks, which do not.
//!
//! A *block* is at most [`BLOCK`] elements of a channel: some whole planes, or a segment of one. Its sums are taken at
//! once, lane by lane; blocks merge in order into *chunks*, chunks in order into the channel. All this follows from n
//! and s alone, so the bits do not depend on layout, level, threads or caches. Those steer only the *tasks*: which
//! channels and chunks one task takes.

#![forbid(unsafe_code)]

use std::ops::Range;

use crate::caches::Caches;
use crate::exec;
use crate::kernel::SUMS;
use crate::problem::{Geometry, Pattern};
use crate::simd::LANES;

/// A size, or under fuzzing a small one: then small inputs reach every merge, every schedule and every way to write.
const fn fuzzed(size: usize, small: usize) -> usize {
    if cfg!(fuzzing) { small } else { size }
}

/// The most elements of a block: 16 KiB of f32 stay in L1 for a second look, and f64 sums over them lose nothing that
/// f32 results could show (`Element::CONDITION_LIMIT` counts on this size).
pub const BLOCK: usize = fuzzed(4096, 64);

/// With many channels blocks are shorter, down to this: in NHWC the rows of a block are a task's least, and must leave
/// enough of them to share out. Shorter ones would show in NCHW, where each costs a sum over lanes.
const SHORT_BLOCK: usize = BLOCK / 4;

/// Elements of all channels of a block, where the two bounds above allow it.
const BLOCK_ROWS: usize = fuzzed(1 << 19, 1 << 11);

/// The most chunks of a channel, which bounds the scratch memory for their states.
const MAX_CHUNKS: usize = fuzzed(256, 8);

/// The most channels whose coefficients are derived at once, and that are reduced at once in NCHW.
pub const GROUP: usize = 64;

/// The most channels that are reduced at once in NHWC: runs of 2 KiB of f32. Their sums per lane stay in L2.
pub const BAND: usize = 512;

/// The most channels that are mapped at once: runs of 8 KiB of f32 in NHWC.
pub const SPAN: usize = 2048;

/// In NHWC, a map goes tile by tile: the coefficients of a tile's columns stay in L1 from row to row (backward with 2048
/// channels: 1.2 times as fast as in full rows, which take them from L2).
pub const TILE_COLUMNS: usize = fuzzed(512, 32);

/// Rows of a tile. What is asked for ahead, some rows further down, is then the next tile's of these columns.
pub const TILE_ROWS: usize = fuzzed(16, 4);

/// In NHWC, the least rows that a thread maps if it can have more rows of fewer channels instead, whose coefficients take
/// less time.
const ROWS: usize = fuzzed(128, 2);

/// Of a core's L2, or under fuzzing of a small one, so many sixteenths as one of the next four says.
fn l2_bytes(share: usize) -> usize {
    fuzzed(Caches::get().l2, 2 << 10) / 16 * share
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

/// Of the L2 caches of all threads: from there on what is written goes past the caches of a mesh ([`Caches::mesh`]).
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

/// A part of every channel: some samples, some positions of each.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Block {
    pub samples: Range<usize>,
    pub positions: Range<usize>,
}

impl Block {
    /// Elements per channel.
    pub fn count(&self) -> usize {
        self.samples.len() * self.positions.len()
    }
}

/// The cut of n * s elements per channel into blocks and chunks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Blocks {
    n: usize,
    s: usize,
    /// Planes per block; 1 where a plane has several segments.
    planes: usize,
    /// Segments per plane.
    segments: usize,
    /// Positions per segment, a multiple of [`LANES`] where there are several.
    segment: usize,
    /// Blocks per chunk.
    chunk: usize,
}

impl Blocks {
    pub fn of(geometry: &Geometry) -> Self {
        let Geometry { n, c, s, .. } = *geometry;
        let most = (BLOCK_ROWS / c).clamp(SHORT_BLOCK, BLOCK);
        // Evenly: as many blocks as needed, none much shorter than the others.
        let (planes, segment) = if s <= most {
            (n.div_ceil(n.div_ceil(most / s)), s)
        } else {
            (1, s.div_ceil(s.div_ceil(most)).next_multiple_of(LANES))
        };
        let segments = s.div_ceil(segment);
        let blocks = Self { n, s, planes, segments, segment, chunk: 1 };
        Self { chunk: blocks.len().div_ceil(MAX_CHUNKS), ..blocks }
    }

    /// The number of blocks.
    pub fn len(&self) -> usize {
        self.n.div_ceil(self.planes) * self.segments
    }

    pub fn get(&self, index: usize) -> Block {
        let (sample, segment) = (index / self.segments * self.planes, index % self.segments);
        let position = segment * self.segment;
        Block {
            samples: sample..(sample + self.planes).min(self.n),
            positions: position..(position + self.segment).min(self.s),
        }
    }

    /// The number of chunks.
    pub fn chunks(&self) -> usize {
        self.len().div_ceil(self.chunk)
    }

    /// The blocks of a chunk.
    pub fn chunk(&self, index: usize) -> Range<usize> {
        index * self.chunk..((index + 1) * self.chunk).min(self.len())
    }

    /// All of a channel, as one part.
    pub fn whole(&self) -> Block {
        Block { samples: 0..self.n, positions: 0..self.s }
    }
}

/// A range in pieces of `size`.
pub fn pieces(range: Range<usize>, size: usize) -> impl Iterator<Item = Range<usize>> {
    let end = range.end;
    range.step_by(size).map(move |start| start..(start + size).min(end))
}

/// A range in pieces that end at multiples of `size`.
pub fn pieces_at(range: Range<usize>, size: usize) -> impl Iterator<Item = Range<usize>> {
    let Range { mut start, end } = range;
    std::iter::from_fn(move || {
        let piece = start..(start / size * size + size).min(end);
        start = piece.end;
        (!piece.is_empty()).then_some(piece)
    })
}

/// Rectangles that make up a range of the cells of a grid, row by row: a part of a row, whole rows, a part of a row.
fn rectangles(cells: Range<usize>, width: usize) -> impl Iterator<Item = (Range<usize>, Range<usize>)> {
    let Range { mut start, end } = cells;
    std::iter::from_fn(move || {
        let (row, column) = (start / width, start % width);
        let rest = end.saturating_sub(start);
        let (rows, columns) = match rest {
            0 => return None,
            _ if column > 0 || rest < width => (1, column..(column + rest).min(width)),
            _ => (rest / width, 0..width),
        };
        start += rows * columns.len();
        Some((row..row + rows, columns))
    })
}

/// How far from the core the tensors of a map are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reach {
    /// Near enough for the caches' own prefetching.
    Near,
    /// Far enough for prefetching to pay.
    Far,
    /// So far that outputs are written past the caches.
    Past,
}

/// Which inputs a map of planes asks for ahead of time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Asked {
    /// Its own.
    Own,
    /// The next task's: its own stayed in L2 from statistics to output.
    Next,
    /// None. On a mesh what is asked for takes buffers that stores past the caches need (backward 1.06 times as fast
    /// without, training 1.05).
    Nothing,
}

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
        let parallel = all >= PARALLEL_BYTES_ASLEEP || large && exec::in_a_row();
        let threads = if parallel { threads() } else { 1 };
        let mesh = Caches::get().mesh;
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

    const PATTERNS: [Pattern; 2] = [Pattern::Along, Pattern::Across];
    const SIZES: [usize; 16] = [1, 2, 7, 15, 16, 17, 49, 63, 64, 65, 513, 784, 4095, 4096, 4097, 50_176];

    fn geometries() -> impl Iterator<Item = Geometry> {
        PATTERNS.into_iter().flat_map(|pattern| {
            SIZES.into_iter().flat_map(move |n| {
                SIZES
                    .into_iter()
                    .flat_map(move |c| SIZES.into_iter().map(move |s| Geometry { n, c, s, pattern }))
            })
        })
    }

    #[test]
    fn blocks_are_a_partition_in_order() {
        for geometry in geometries() {
            let blocks = Blocks::of(&geometry);
            let (mut sample, mut position, mut elements) = (0, 0, 0);
            for index in 0..blocks.chunks() {
                assert!(!blocks.chunk(index).is_empty(), "{geometry:?}");
                for index in blocks.chunk(index) {
                    let block = blocks.get(index);
                    assert_eq!(
                        (block.samples.start, block.positions.start),
                        (sample, position),
                        "{geometry:?}"
                    );
                    assert!((1..=BLOCK).contains(&block.count()), "{geometry:?} {block:?}");
                    elements += block.count();
                    (sample, position) = if block.positions.end == geometry.s {
                        (block.samples.end, 0)
                    } else {
                        assert!(block.samples.len() == 1 && block.positions.end.is_multiple_of(LANES));
                        (sample, block.positions.end)
                    };
                }
            }
            assert_eq!((sample, position, elements), (geometry.n, 0, geometry.m()), "{geometry:?}");
        }
    }

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

    #[test]
    fn scratch_states_are_a_small_part_of_the_tensor() {
        for geometry in geometries().filter(|geometry| geometry.m() > BLOCK) {
            let chunks = Blocks::of(&geometry).chunks();
            assert!(chunks <= MAX_CHUNKS && chunks <= geometry.m().div_ceil(SHORT_BLOCK / 2), "{geometry:?}");
        }
    }
}
