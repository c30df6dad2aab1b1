//! The only user of rayon: hands tasks to the current thread pool, or to nobody.

#![forbid(unsafe_code)]

/// The number of threads that tasks may spread over: those of the pool that the call runs in.
pub fn workers() -> usize {
    #[cfg(feature = "rayon")]
    return rayon::current_num_threads();
    #[cfg(not(feature = "rayon"))]
    1
}

/// Calls `task` once for each index, in any order, on the pool if `parallel`.
pub fn for_each(tasks: usize, parallel: bool, task: impl Fn(usize) + Sync) {
    #[cfg(feature = "rayon")]
    if parallel && tasks > 1 {
        use rayon::iter::{IndexedParallelIterator, IntoParallelIterator, ParallelIterator};
        return (0..tasks).into_par_iter().with_max_len(1).for_each(&task);
    }
    let _ = parallel;
    (0..tasks).for_each(task);
}
