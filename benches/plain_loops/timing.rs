//! Timing of several things side by side.

use std::time::{Duration, Instant};

/// What something took, in seconds, over all its samples.
#[derive(Debug, Clone, Copy)]
pub struct Times {
    /// A quarter of the samples are below this.
    pub lower_quartile: f64,
    /// Half of them are.
    pub median: f64,
    /// Three quarters are.
    pub upper_quartile: f64,
}

impl Times {
    /// Of samples in any order, one at least.
    pub fn of(mut samples: Vec<f64>) -> Self {
        samples.sort_by(f64::total_cmp);
        // Between two samples, in proportion.
        let quantile = |share: f64| {
            let place = share * (samples.len() - 1) as f64;
            let below = place as usize;
            let above = (below + 1).min(samples.len() - 1);
            samples[below] + (samples[above] - samples[below]) * place.fract()
        };
        Self { lower_quartile: quantile(0.25), median: quantile(0.5), upper_quartile: quantile(0.75) }
    }

    /// How far apart the quartiles are, as a share of the median.
    pub fn scatter(&self) -> f64 {
        (self.upper_quartile - self.lower_quartile) / self.median
    }

    /// The index of the least median.
    pub fn fastest(all: &[Self]) -> usize {
        let medians = |&a: &usize, &b: &usize| all[a].median.total_cmp(&all[b].median);
        (0..all.len()).min_by(medians).expect("one at least")
    }
}

/// What each of `candidates` things to run takes; `run` gets the index of one.
///
/// They take turns in blocks (each sees the caches as it leaves them itself, all see the same drift of the machine) for
/// `time` in all; the first run of a block is not counted. What takes less than some microseconds is timed several
/// runs at once.
pub fn times(time: Duration, candidates: usize, mut run: impl FnMut(usize)) -> Vec<Times> {
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
    samples.into_iter().map(Times::of).collect()
}
