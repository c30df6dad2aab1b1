//! How a problem is handed out: tasks, threads, ways to read and write. Nothing here changes a bit of the results.

#![forbid(unsafe_code)]

use std::ops::Range;

use crate::ground::geometry::{Block, Geometry, Pattern};
use crate::ground::sizes::LANES;
use crate::kernel::map::Access;
use crate::schedule::blocks::{Blocks, Samples};
use crate::schedule::machine::Machine;
use crate::schedule::policies::{Schedule, Setting, Traffic, is_large, threads_for};
use crate::schedule::ranges::rectangles;
use crate::schedule::tuning::Tuning;
use crate::threads::deal;

/// Blocks, and how channels and chunks are dealt out to tasks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Plan {
    pub blocks: Blocks,
    pub geometry: Geometry,
    pub schedule: Schedule,
    /// Channels that are reduced at once.
    pub channel_group: usize,
    /// Blocks whose sums are taken at once.
    pub blocks_at_once: usize,
    /// Channels that are mapped at once.
    pub map_channels: usize,
    /// Pieces that a plane is mapped in.
    pub plane_segments: usize,
    /// How a map goes over its part.
    pub access: Access,
    /// About how many tasks to make of a reduction.
    pub tasks: usize,
    /// About how many of a map: more than one for a single thread too, which goes backwards through them.
    pub map_tasks: usize,
    /// Whether there is enough to do for several threads, if they are awake.
    pub large: bool,
    /// How many threads to use.
    pub threads: usize,
    /// Whether a task maps each group while it reduces the next, rather than before.
    pub software_pipelining: bool,
}

impl Plan {
    /// On this machine, with the threads that there are. Reduced are these samples, mapped are all.
    pub fn of(geometry: &Geometry, samples: &Samples<'_>, traffic: Traffic) -> Self {
        let (geometry, tuning) = (*geometry, Tuning::current());
        let threads = threads_for(&geometry, traffic, &tuning, deal::awake, deal::workers);
        let setting = Setting { geometry, traffic, machine: Machine::get(), tuning, threads };
        Self::with(&setting, Blocks::of_samples(&geometry, samples))
    }

    /// Of all samples.
    #[cfg(test)]
    pub fn new(setting: &Setting) -> Self {
        Self::with(setting, Blocks::of(&setting.geometry))
    }

    /// Asks each policy.
    fn with(setting: &Setting, blocks: Blocks) -> Self {
        let Setting { geometry, traffic, tuning, threads, .. } = *setting;
        let blocks = blocks.in_chunks(setting.chunk_level(&blocks));
        let (schedule, channel_group) = setting.channel_group(&blocks);
        let blocked = schedule == Schedule::ChannelBlocked;
        let software_pipelining = blocked && setting.software_pipelining();
        let task_count = setting.task_count();
        let groups = geometry.c.div_ceil(channel_group);
        let units = if blocked { groups } else { groups * blocks.chunks() };
        let tasks = setting.reduction_tasks(schedule, units);
        let backwards = traffic.reduces && setting.is_far();
        Self {
            blocks,
            geometry,
            schedule,
            channel_group,
            blocks_at_once: if software_pipelining {
                1
            } else {
                setting.blocks_at_once(&blocks, channel_group)
            },
            map_channels: setting.map_channels(),
            plane_segments: setting.plane_segments(),
            access: Access {
                store: setting.store_policy(),
                prefetch: setting.prefetch_policy(schedule),
                l1_ways: setting.machine.l1_ways,
                planes_as_rows: setting.planes_as_rows(),
            },
            tasks,
            map_tasks: if backwards { task_count.max(tuning.tasks_per_thread_far) } else { task_count },
            large: is_large(&geometry, traffic, &tuning),
            threads,
            software_pipelining,
        }
    }

    /// A group's channels.
    pub fn group(&self, index: usize) -> Range<usize> {
        index * self.channel_group..((index + 1) * self.channel_group).min(self.geometry.c)
    }

    /// A span's channels.
    pub fn span(&self, index: usize) -> Range<usize> {
        index * self.map_channels..((index + 1) * self.map_channels).min(self.geometry.c)
    }

    /// The number of units that a span is mapped in.
    pub fn units(&self) -> usize {
        self.geometry.n * self.units_per_sample()
    }

    fn units_per_sample(&self) -> usize {
        let Geometry { c, s, pattern, .. } = self.geometry;
        match pattern {
            Pattern::Across => s,
            Pattern::Along if self.access.planes_as_rows => 1,
            Pattern::Along => self.map_channels.min(c) * self.plane_segments,
        }
    }

    /// The parts that make up some of a span's units, in the order of memory. Each is some of the span's channels.
    pub fn parts(
        &self,
        span: &Range<usize>,
        units: Range<usize>,
    ) -> impl Iterator<Item = (Range<usize>, Block)> {
        let Geometry { s, pattern, .. } = self.geometry;
        let (segments, channels) = (self.plane_segments, span.len());
        let whole_rows = pattern == Pattern::Across || self.access.planes_as_rows;
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
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ground::sizes::{BAND, GROUP, SMALL_PLANE};
    use crate::kernel::scratch::{COLUMNS, SUMS};
    use crate::schedule::blocks::grid::{PATTERNS, geometries};
    use crate::schedule::ranges::{pieces, pieces_at};

    const STATISTICS: Traffic =
        Traffic { element: 4, arithmetic: 4, reads: 1, beside: 0, reduces: true, maps: false };
    const TRAINING: Traffic = Traffic { maps: true, ..STATISTICS };
    const INFERENCE: Traffic = Traffic { reduces: false, ..TRAINING };
    const BACKWARD: Traffic = Traffic { reads: 2, ..TRAINING };
    const OF_HALVES: Traffic = Traffic { element: 2, ..BACKWARD };
    const OPERATIONS: [Traffic; 5] = [STATISTICS, TRAINING, INFERENCE, BACKWARD, OF_HALVES];

    /// One core with a small L2, many on a mesh, no information at all; with the threads that there are.
    const MACHINES: [(Machine, usize); 6] = [
        (Machine { l2: 256 << 10, ..Machine::UNKNOWN }, 1),
        (Machine::UNKNOWN, 2),
        (Machine { l2: 2 << 20, mesh: true, ..Machine::UNKNOWN }, 2),
        (Machine { l2: 1 << 20, ..Machine::UNKNOWN }, 16),
        (Machine { l2: 2 << 20, mesh: true, ..Machine::UNKNOWN }, 64),
        (Machine { l2: 2 << 20, mesh: true, ..Machine::UNKNOWN }, 128),
    ];

    fn plan(geometry: &Geometry, traffic: Traffic, (machine, available): (Machine, usize)) -> Plan {
        let tuning = Tuning::DEFAULT;
        let threads = threads_for(geometry, traffic, &tuning, || false, || available);
        Plan::new(&Setting { geometry: *geometry, traffic, machine, tuning, threads })
    }

    /// The shapes of `cargo bench --bench cliffs`, up to 2^24 elements.
    fn cliffs() -> impl Iterator<Item = Geometry> {
        let batch = [1, 2, 8, 32, 128, 512, 2048, 8192, 32_768, 131_072];
        let channels = [1, 2, 3, 8, 16, 48, 64, 100, 256, 512, 1024, 2560, 4096];
        let spatial = [1, 2, 3, 4, 9, 16, 25, 49, 64, 100, 196, 784, 12_544];
        batch.into_iter().flat_map(move |n| {
            channels.into_iter().flat_map(move |c| {
                spatial.into_iter().flat_map(move |s| {
                    PATTERNS.into_iter().filter_map(move |pattern| {
                        let geometry = Geometry::new(n, c, s, pattern);
                        (n * c * s <= 1 << 24).then_some(geometry)
                    })
                })
            })
        })
    }

    /// What each task of the map takes: channels and part.
    fn map_tasks(plan: &Plan) -> Vec<Vec<(Range<usize>, Block)>> {
        let units = plan.units();
        let all = plan.geometry.c.div_ceil(plan.map_channels) * units;
        let tasks = plan.map_tasks.min(all);
        let task = |i: usize| {
            let pieces = pieces_at(i * all / tasks..(i + 1) * all / tasks, units);
            let parts = pieces.flat_map(|piece| {
                let span = plan.span(piece.start / units);
                let start = span.start;
                let units = piece.start % units..(piece.end - 1) % units + 1;
                let parts: Vec<_> = plan.parts(&span, units).collect();
                parts.into_iter().map(move |(some, part)| (start + some.start..start + some.end, part))
            });
            parts.collect()
        };
        (0..tasks).map(task).collect()
    }

    #[test]
    fn the_order_of_arithmetic_ignores_layout_machine_and_threads() {
        for geometry in geometries() {
            let [along, across] = PATTERNS
                .map(|pattern| Blocks::of(&Geometry::new(geometry.n, geometry.c, geometry.s, pattern)));
            assert_eq!(along, across);
            for machine in MACHINES {
                // Its chunks may be others: what they hold merges first anyway.
                let blocks = plan(&geometry, BACKWARD, machine).blocks;
                assert_eq!(blocks.in_chunks(u32::MAX), along.in_chunks(u32::MAX));
            }
        }
    }

    #[test]
    fn groups_partition_the_channels() {
        for geometry in geometries().chain(cliffs()) {
            for (machine, traffic) in MACHINES.into_iter().flat_map(|m| OPERATIONS.map(|o| (m, o))) {
                let plan = plan(&geometry, traffic, machine);
                let most = if plan.schedule == Schedule::ChannelBlocked && geometry.pattern == Pattern::Along
                {
                    crate::ground::sizes::GROUP
                } else {
                    BAND
                };
                let mut channel = 0;
                for group in (0..geometry.c.div_ceil(plan.channel_group)).map(|index| plan.group(index)) {
                    assert!(group.start == channel && (1..=most).contains(&group.len()), "{plan:?}");
                    channel = group.end;
                }
                assert_eq!(channel, geometry.c, "{plan:?}");
            }
        }
    }

    /// The scratch has room for the sums and coefficients of a group, whatever the policies go by.
    #[test]
    fn no_number_makes_groups_wider_than_the_scratch() {
        let numbers: [fn(&mut Tuning, usize); 12] = [
            |tuning, n| tuning.run_bytes = n,
            |tuning, n| tuning.run_bytes_shared = n,
            |tuning, n| tuning.run_bytes_near = n,
            |tuning, n| tuning.run_bytes_once = n,
            |tuning, n| tuning.rows_per_thread = n,
            |tuning, n| tuning.strip_rows = n,
            |tuning, n| tuning.strip_rows_alone = n,
            |tuning, n| tuning.strip_rows_once = n,
            |tuning, n| tuning.elements_at_once = n,
            |tuning, n| tuning.row_bytes = n,
            |tuning, n| tuning.row_positions = n.min(SMALL_PLANE),
            |tuning, n| tuning.row_samples = n,
        ];
        let few = geometries().chain(cliffs()).step_by(7);
        for geometry in few.filter(|geometry| geometry.s <= 2 * SMALL_PLANE) {
            for (set, number) in numbers.iter().flat_map(|set| [1, 1 << 14, 1 << 28].map(|n| (set, n))) {
                let mut tuning = Tuning::DEFAULT;
                set(&mut tuning, number);
                for ((machine, threads), traffic) in MACHINES.into_iter().zip(OPERATIONS.into_iter().cycle())
                {
                    let plan = Plan::new(&Setting { geometry, traffic, machine, tuning, threads });
                    let sums = plan.channel_group
                        * geometry.lanes().max(if geometry.small_planes() { 1 } else { LANES });
                    let planes = geometry.pattern == Pattern::Along && !geometry.small_planes();
                    assert!(
                        if planes { plan.channel_group <= GROUP } else { sums <= SUMS },
                        "{number} {plan:?}"
                    );
                    assert!(plan.blocks_at_once == 1 || plan.blocks_at_once * plan.channel_group <= BAND);
                    let positions = if plan.access.planes_as_rows { geometry.s } else { 1 };
                    assert!(
                        plan.map_channels.max(plan.channel_group) * positions <= COLUMNS,
                        "{number} {plan:?}"
                    );
                }
            }
        }
    }

    /// As many elements as the tensor has, and whichever is looked for is in one part.
    #[test]
    fn maps_cover_each_element_once() {
        for geometry in cliffs() {
            for (machine, traffic) in MACHINES.into_iter().flat_map(|m| [INFERENCE, BACKWARD].map(|o| (m, o)))
            {
                let plan = plan(&geometry, traffic, machine);
                let parts: Vec<_> = map_tasks(&plan).into_iter().flatten().collect();
                let covered: usize = parts.iter().map(|(channels, part)| channels.len() * part.count()).sum();
                assert_eq!(covered, geometry.len(), "{plan:?}");
                let Geometry { n, c, s, .. } = geometry;
                for i in 0..24usize {
                    let of = |size: usize, seed: usize| match i {
                        0 => 0,
                        1 => size - 1,
                        _ => (i * seed).wrapping_mul(0x9e37_79b9) % size,
                    };
                    let (sample, channel, position) = (of(n, 3), of(c, 5), of(s, 7));
                    let times = parts.iter().filter(|(channels, part)| {
                        channels.contains(&channel)
                            && part.samples.contains(&sample)
                            && part.positions.contains(&position)
                    });
                    assert_eq!(times.count(), 1, "{sample} {channel} {position} of {plan:?}");
                }
            }
        }
    }

    /// To the element, for small tensors.
    #[test]
    fn parts_partition_the_tensor() {
        for pattern in PATTERNS {
            for (n, c, s) in
                [(1, 1, 1), (1, 3, 5000), (2, 2049, 3), (7, 5, 100), (3, 64, 49), (5, 2050, 1), (1, 70, 65)]
            {
                let geometry = Geometry::new(n, c, s, pattern);
                for machine in MACHINES {
                    let plan = plan(&geometry, Traffic { element: 1 << 16, ..TRAINING }, machine);
                    let mut seen = vec![0u8; geometry.len()];
                    for span in (0..c.div_ceil(plan.map_channels)).map(|index| plan.span(index)) {
                        for (channels, part) in
                            pieces(0..plan.units(), 13).flat_map(|units| plan.parts(&span, units))
                        {
                            assert!(!channels.is_empty() && part.count() > 0, "{plan:?}");
                            for sample in part.samples {
                                for channel in channels.clone() {
                                    for position in part.positions.clone() {
                                        seen[geometry.offset(sample, span.start + channel, position)] += 1;
                                    }
                                }
                            }
                        }
                    }
                    assert!(seen.iter().all(|times| *times == 1), "{plan:?}");
                }
            }
        }
    }

    #[test]
    fn small_problems_do_not_ask_for_threads() {
        let geometry = Geometry::new(1, 64, 64, Pattern::Along);
        let available = || unreachable!("a small problem");
        assert_eq!(threads_for(&geometry, TRAINING, &Tuning::DEFAULT, || true, available), 1);
    }

    /// The fullest thread's share of the mean, if each takes the next task when it has done one.
    fn fullest(tasks: impl Iterator<Item = usize>, threads: usize) -> f64 {
        let mut loads = vec![0usize; threads];
        for task in tasks {
            let least = (0..threads).min_by_key(|thread| loads[*thread]).unwrap_or(0);
            loads[least] += task;
        }
        let sum: usize = loads.iter().sum();
        loads.iter().copied().max().unwrap_or(0) as f64 * threads as f64 / sum.max(1) as f64
    }

    /// Elements of the tasks of the reduction (and of the map with it, where channels are taken whole).
    fn reduction_tasks(plan: &Plan) -> Vec<usize> {
        let Plan { blocks, geometry, channel_group, tasks, .. } = *plan;
        let groups = geometry.c.div_ceil(channel_group);
        let count = |chunk: usize| blocks.chunk(chunk).map(|block| blocks.get(block).count()).sum::<usize>();
        let counts: Vec<usize> = (0..blocks.chunks()).map(count).collect();
        let chunks = if plan.schedule == Schedule::ChannelBlocked { 1 } else { blocks.chunks() };
        let size = |unit: usize| {
            let channels = plan.group(unit / chunks).len();
            channels * if chunks == 1 { geometry.m() } else { counts[unit % chunks] }
        };
        let units = groups * chunks;
        let tasks = tasks.min(units);
        (0..tasks).map(|i| (i * units / tasks..(i + 1) * units / tasks).map(size).sum()).collect()
    }

    /// By elements, for tensors of 8 MB and more. Where chunks and lines of channels are too few for so many threads, it
    /// cannot be: those shapes are printed.
    #[test]
    fn many_threads_have_about_the_same_to_do() {
        let mut cannot = std::collections::BTreeSet::new();
        for geometry in cliffs().filter(|geometry| geometry.len() >= 2 << 20) {
            for (machine, traffic) in MACHINES[3..].iter().flat_map(|m| OPERATIONS.map(|o| (*m, o))) {
                let plan = plan(&geometry, traffic, machine);
                let bound = if machine.1 == 128 { 1.25 } else { 1.15 };
                let Geometry { n, c, s, pattern, .. } = geometry;
                if traffic.maps && (plan.schedule == Schedule::TwoPass || !traffic.reduces) {
                    let tasks = map_tasks(&plan).into_iter().map(|parts| {
                        parts.iter().map(|(channels, part)| channels.len() * part.count()).sum()
                    });
                    let map = fullest(tasks, machine.1);
                    assert!(map <= bound, "map {map} {plan:?}");
                }
                if traffic.reduces {
                    let reduction = fullest(reduction_tasks(&plan).into_iter(), machine.1);
                    if reduction > bound {
                        let lines = plan.blocks.chunks() * c.div_ceil(LANES);
                        assert!(lines < 8 * machine.1, "reduction {reduction}, {lines} {plan:?}");
                        cannot.insert(format!(
                            "{n}x{c}x{s} {pattern:?} on {} threads: {reduction:.2}",
                            machine.1
                        ));
                    }
                }
            }
        }
        println!("{} that have too few chunks for so many threads:", cannot.len());
        cannot.iter().for_each(|shape| println!("{shape}"));
    }
}
