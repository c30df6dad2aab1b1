//! Sums over the lanes of a channel.

use std::hint::black_box;

use super::Reduce;
use super::interleave::Interleave;
use crate::ground::double::Double;
use crate::ground::geometry::Pattern;
use crate::ground::sizes::{LANES, SAMPLE_LANES};
use crate::kernel::fused::Read;
use crate::kernel::scratch::Sums;
use crate::kernel::terms::Terms;
use crate::simd::Lanes;

/// Lanes in neighbouring columns: `columns[channel * lanes + lane]`. By vectors, unless they are very few: the compiler makes
/// none of loops over them.
#[inline(always)]
pub fn sum_lanes_of_planes<T, S: Lanes<T>>(s: S, columns: &[f64], lanes: usize, sums: &mut [f64]) {
    match lanes {
        1 => return sum_few_lanes::<1>(columns, sums),
        2 => return sum_few_lanes::<2>(columns, sums),
        3 => return sum_few_lanes::<3>(columns, sums),
        4 => return sum_few_lanes::<4>(columns, sums),
        _ => (),
    }
    for (channel, sum) in sums.iter_mut().enumerate() {
        let mut first = [s.zero_wide(); 2];
        for at in (0..lanes).step_by(LANES) {
            let sixteen = &columns[channel * lanes + at..][..LANES];
            for (part, first) in first.iter_mut().enumerate().take(LANES / S::N) {
                // SAFETY: the part has N values.
                let more = unsafe { s.load_wide(sixteen[part * S::N..][..S::N].as_ptr()) };
                // The others are the next channel's. A sum that began with 0 is not -0, so that 0 more changes nothing.
                let count = (lanes - at).saturating_sub(part * S::N).min(S::N);
                let more = if count < S::N { s.keep_first(more, count) } else { more };
                *first = s.add_wide(*first, more);
            }
        }
        *sum = s.sum_lanes(first);
    }
}

/// The same of `L` <= 4 lanes: a fixed number, since the compiler gathers where it is none.
#[inline(always)]
fn sum_few_lanes<const L: usize>(columns: &[f64], sums: &mut [f64]) {
    for (sum, lanes) in sums.iter_mut().zip(columns.as_chunks::<L>().0) {
        let of = |lane: usize| if lane < L { lanes[lane] } else { 0.0 };
        *sum = (of(0) + of(2)) + (of(1) + of(3));
    }
}

/// Lanes in rows: `columns[lane * channels + channel]`.
#[inline(always)]
pub fn sum_lanes_of_rows(columns: &mut [f64], lanes: usize, sums: &mut [f64]) {
    let channels = sums.len();
    if lanes == SAMPLE_LANES {
        return sum_lanes_of_samples(columns, sums);
    }
    let (first, more) = columns[..lanes * channels].split_at_mut(lanes.min(LANES) * channels);
    for more in more.chunks(first.len()) {
        first.iter_mut().zip(more).for_each(|(first, more)| *first += more);
    }
    for half in [8, 4, 2, 1] {
        let (low, high) = first.split_at_mut((half * channels).min(first.len()));
        low.iter_mut().zip(high).for_each(|(low, high)| *low += *high);
    }
    sums.copy_from_slice(&first[..channels]);
}

/// The same of samples, whose blocks may be many and small. Once for all kernels, which are many.
#[inline(never)]
fn sum_lanes_of_samples(columns: &[f64], sums: &mut [f64]) {
    let channels = sums.len();
    let (low, high) = columns[..SAMPLE_LANES * channels].split_at(2 * channels);
    for (i, sum) in sums.iter_mut().enumerate() {
        *sum = (low[i] + high[i]) + (low[channels + i] + high[channels + i]);
    }
}

/// The same of pairs.
#[inline(always)]
pub fn sum_lanes_of_plane_pairs([columns, low_columns]: [&[f64]; 2], lanes: usize, totals: [&mut [f64]; 2]) {
    let [totals, low_totals] = totals;
    for (channel, (total, low_total)) in totals.iter_mut().zip(low_totals).enumerate() {
        let (mut first, mut low_first) = ([0.0; LANES], [0.0; LANES]);
        // Channel by channel: several at once would be gathered.
        let channel = black_box(channel);
        for at in (0..lanes).step_by(LANES) {
            let from = channel * lanes + at;
            let (sixteen, low_sixteen) = (&columns[from..][..LANES], &low_columns[from..][..LANES]);
            // The others are the next channel's.
            let count = (lanes - at).min(LANES);
            for lane in 0..LANES {
                let keep = |value| if lane < count { value } else { 0.0 };
                let sum = Double::sum(first[lane], keep(sixteen[lane]));
                (first[lane], low_first[lane]) =
                    (sum.high, (low_first[lane] + keep(low_sixteen[lane])) + sum.low);
            }
        }
        for half in [8, 4, 2, 1] {
            for lane in 0..half {
                let sum = Double::sum(first[lane], first[lane + half]);
                (first[lane], low_first[lane]) =
                    (sum.high, (low_first[lane] + low_first[lane + half]) + sum.low);
            }
        }
        (*total, *low_total) = (first[0], low_first[0]);
    }
}

/// The same of pairs.
#[inline(always)]
pub fn sum_lanes_of_row_pairs(columns: [&mut [f64]; 2], lanes: usize, totals: [&mut [f64]; 2]) {
    let channels = totals[0].len();
    let [columns, low_columns] = columns.map(|columns| &mut columns[..lanes * channels]);
    let (first, more) = columns.split_at_mut(lanes.min(LANES) * channels);
    let (low_first, low_more) = low_columns.split_at_mut(lanes.min(LANES) * channels);
    for (more, low_more) in more.chunks(first.len()).zip(low_more.chunks(first.len())) {
        add_pairs((first, low_first), (more, low_more));
    }
    for half in [8, 4, 2, 1] {
        let half = (half * channels).min(first.len());
        let (low, high) = first.split_at_mut(half);
        let (low_low, low_high) = low_first.split_at_mut(half);
        add_pairs((low, low_low), (high, low_high));
    }
    totals[0].copy_from_slice(&first[..channels]);
    totals[1].copy_from_slice(&low_first[..channels]);
}

/// Adds pairs to others.
#[inline(always)]
pub fn add_pairs(to: (&mut [f64], &mut [f64]), from: (&[f64], &[f64])) {
    for ((to, low_to), (from, low_from)) in to.0.iter_mut().zip(to.1).zip(from.0.iter().zip(from.1)) {
        let sum = Double::sum(*to, *from);
        (*to, *low_to) = (sum.high, (*low_to + *low_from) + sum.low);
    }
}

impl<T: Copy, O: Terms<IN>, R: Read<T, IN>, M: Interleave<T>, const IN: usize> Reduce<'_, T, O, R, M, IN> {
    /// The sums of pairs over lanes, to the totals.
    #[inline(always)]
    pub fn sum_lanes_of_pairs(&mut self, lanes: usize) {
        let (first, channels) = (self.piece.column, self.channels.len());
        let Sums { lanes: [a, a_low, b, b_low], totals: [sum, sum_low, other, other_low], .. } = self.sums;
        for (columns, totals) in [([a, a_low], [sum, sum_low]), ([b, b_low], [other, other_low])] {
            let totals = totals.map(|totals| &mut totals[self.piece.totals + first..][..channels]);
            match self.geometry.pattern {
                Pattern::Along => {
                    sum_lanes_of_plane_pairs(columns.map(|columns| &columns[first * lanes..]), lanes, totals)
                }
                Pattern::Across => {
                    sum_lanes_of_row_pairs(columns.map(|columns| &mut columns[..]), lanes, totals)
                }
            }
        }
    }
}
