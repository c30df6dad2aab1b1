//! The numbers that the policies go by. None changes a bit of the results; `cargo bench --bench tuning` shows what each
//! gains on the machine at hand, and benches/record what it gained elsewhere.

#![forbid(unsafe_code)]

#[cfg(feature = "tuning")]
use std::cell::Cell;

use crate::ground::sizes::fuzzed;

/// Sixteenths of a core's L2 cache.
pub type L2Share = usize;

/// What the policies go by.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Tuning {
    /// Bytes read from which on several threads are worth sharing the work out to, if they are awake.
    pub parallel_bytes: usize,
    /// Bytes read from which on they are worth waking.
    pub parallel_bytes_asleep: usize,
    /// Tasks per thread, so that an unlucky thread can be relieved of some.
    pub tasks_per_thread: usize,
    /// Tasks per thread beyond the caches, where threads do not get the same share of memory.
    pub tasks_per_thread_far: usize,
    /// Bytes read below which there are two tasks per thread: enough for a thread that comes late.
    pub small_bytes: usize,
    /// Bytes moved from which on outputs would be gone from the last-level cache before anyone reads them.
    pub non_temporal_bytes: usize,
    /// The same of an operation that reads two tensors twice, which then stay in the cache.
    pub non_temporal_bytes_two_inputs: usize,
    /// The same on a mesh, in all threads' L2: a line to be written takes as long to come from L3 as from memory.
    pub non_temporal_mesh: L2Share,
    /// Bytes moved from which on prefetching pays: less is served as well by the hardware's own.
    pub prefetch_bytes: usize,
    /// What a task may keep of each input between statistics and map, beside as much that is written.
    pub resident: L2Share,
    /// The same of all inputs together where outputs go far.
    pub resident_far: L2Share,
    /// The most of one channel that is summed while the one before it is mapped.
    pub resident_pipelined: L2Share,
    /// What is left of L2 beside non-temporal stores.
    pub resident_non_temporal: L2Share,
    /// Bytes of the shortest run in a sample of a channel group that stays in L2 for the second look: shorter ones waste lines.
    pub run_bytes: usize,
    /// The shortest run where the second look is at the last-level cache.
    pub run_bytes_shared: usize,
    /// Bytes of a channel up to which it is still there for the second look.
    pub shared_bytes: usize,
    /// The shortest run where taking channels whole saves no look at memory: statistics, and tensors that stay in the caches.
    pub run_bytes_near: usize,
    /// The shortest run of a pass of two, which comes to each line once.
    pub run_bytes_once: usize,
    /// Threads from which on memory sets the pace, and not the cores.
    pub many_threads: usize,
    /// Rows (NHWC) below which a thread takes fewer channels of more rows, whose coefficients take less time.
    pub rows_per_thread: usize,
    /// Rows below which NHWC's channels are taken strip by strip by several threads, which meet once then: of more, a strip's
    /// rows evict each other from L1.
    pub strip_rows: usize,
    /// The same of two inputs by one thread.
    pub strip_rows_alone: usize,
    /// The same where there is no second look: then what counts is that the sums of a strip stay in L1.
    pub strip_rows_once: usize,
    /// Elements up to which blocks are summed together: they stay in L2 for a second look.
    pub elements_at_once: usize,
    /// Bytes moved below which small planes are mapped as rows: from memory, rows are too many streams.
    pub row_bytes: usize,
    /// The most positions of a plane that is mapped as a row there: longer ones fill vectors of their own.
    pub row_positions: usize,
    /// The fewest samples for which coefficients for each position pay there.
    pub row_samples: usize,
    /// The most that the fullest thread may have of the mean, in percent, for channels to be taken whole.
    pub fullest_thread_percent: usize,
}

impl Tuning {
    /// What was found best over the machines in benches/record.
    pub const DEFAULT: Self = Self {
        parallel_bytes: fuzzed(256 << 10, 1 << 10),
        parallel_bytes_asleep: fuzzed(1 << 20, 1 << 10),
        tasks_per_thread: 4,
        tasks_per_thread_far: 16,
        small_bytes: fuzzed(2 << 20, 2 << 10),
        non_temporal_bytes: fuzzed(32 << 20, 16 << 10),
        non_temporal_bytes_two_inputs: fuzzed(24 << 20, 16 << 10),
        non_temporal_mesh: 20,
        prefetch_bytes: fuzzed(24 << 20, 4 << 10),
        resident: 4,
        resident_far: 5,
        resident_pipelined: 14,
        resident_non_temporal: 12,
        run_bytes: fuzzed(2048, 64),
        run_bytes_shared: fuzzed(3072, 96),
        shared_bytes: fuzzed(8 << 20, 8 << 10),
        run_bytes_near: fuzzed(6144, 128),
        run_bytes_once: fuzzed(512, 64),
        many_threads: 8,
        rows_per_thread: fuzzed(16, 2),
        strip_rows: fuzzed(64, 4),
        strip_rows_alone: fuzzed(32, 4),
        strip_rows_once: fuzzed(256, 4),
        elements_at_once: fuzzed(32 << 10, 256),
        row_bytes: fuzzed(8 << 20, 8 << 10),
        row_positions: 36,
        row_samples: fuzzed(16, 2),
        fullest_thread_percent: 115,
    };

    /// What calls of this thread go by: other numbers only for the benchmark of them.
    pub fn current() -> Self {
        #[cfg(feature = "tuning")]
        return CURRENT.get();
        #[cfg(not(feature = "tuning"))]
        Self::DEFAULT
    }
}

#[cfg(feature = "tuning")]
thread_local! {
    static CURRENT: Cell<Tuning> = const { Cell::new(Tuning::DEFAULT) };
}

/// Runs `f` with the calls that it makes on this thread planned by other numbers.
#[cfg(feature = "tuning")]
pub fn with<R>(tuning: Tuning, f: impl FnOnce() -> R) -> R {
    /// Puts the former numbers back, on unwinding too.
    struct Restore(Tuning);
    impl Drop for Restore {
        fn drop(&mut self) {
            CURRENT.set(self.0);
        }
    }
    let _restore = Restore(CURRENT.replace(tuning));
    f()
}
