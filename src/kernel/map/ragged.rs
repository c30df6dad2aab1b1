//! What fills no vector: a function of its own for each formula, since it would stand in every loop else.

use std::ops::Range;

use super::Map;
use super::formulas::Formula;
use crate::kernel::fused::{Fused, Place};
use crate::simd::{Kernel, Lanes};

/// Planes of a run, or parts of one, one by one.
pub struct RaggedPlanes<'m, 'a, T, O, E, const IN: usize, const K: usize> {
    pub map: &'m Map<'a, T, O, E, IN, K>,
    pub at: usize,
    pub len: usize,
    pub planes: usize,
    /// The place among the map's channels of the first.
    pub channel: usize,
}

impl<T: Copy, O: Formula<IN, K>, E: Fused<T, O, IN, K>, const IN: usize, const K: usize> Kernel<T>
    for RaggedPlanes<'_, '_, T, O, E, IN, K>
{
    #[inline(always)]
    fn run<S: Lanes<T>>(self, s: S) {
        let Self { map, at, len, planes, channel } = self;
        for plane in 0..planes {
            let column = map.column + (channel + plane) % map.channels.len();
            // SAFETY: inputs and output have the planes, said who made this.
            unsafe { map.masked(s, at + plane * len, len, map.splats(s, column)) };
        }
    }
}

/// Some columns of rows.
pub struct RaggedRows<'m, 'a, T, O, E, const IN: usize, const K: usize> {
    pub map: &'m Map<'a, T, O, E, IN, K>,
    pub at: usize,
    pub stride: usize,
    pub rows: usize,
    pub columns: Range<usize>,
}

impl<T: Copy, O: Formula<IN, K>, E: Fused<T, O, IN, K>, const IN: usize, const K: usize> Kernel<T>
    for RaggedRows<'_, '_, T, O, E, IN, K>
{
    #[inline(always)]
    fn run<S: Lanes<T>>(self, s: S) {
        let Self { map, at, stride, rows, columns } = self;
        for column in columns.clone().step_by(S::N) {
            let k = map.coefficients(s, column);
            let count = (columns.end - column).min(S::N);
            for row in 0..rows {
                // SAFETY: inputs and output have the rows, said who made this.
                unsafe { map.masked(s, at + row * stride + column, count, k) };
            }
        }
    }
}

impl<T: Copy, O: Formula<IN, K>, E: Fused<T, O, IN, K>, const IN: usize, const K: usize>
    Map<'_, T, O, E, IN, K>
{
    /// `count` elements at `at`, fewer than a line or a vector has.
    ///
    /// # Safety
    /// Inputs and output have these elements.
    #[inline(always)]
    unsafe fn masked<S: Lanes<T>>(&self, s: S, at: usize, count: usize, k: [S::Vector; K]) {
        let mut x = [s.zero(); IN];
        for done in (0..count).step_by(S::N) {
            let count = (count - done).min(S::N);
            // SAFETY: says the caller.
            unsafe {
                for (x, input) in x.iter_mut().zip(&self.inputs) {
                    *x = s.read_first(input.as_ptr().wrapping_add(at + done), count);
                }
                let y = self.apply::<S, false>(s, Place { at: at + done, count }, x, k);
                s.write_first(self.output.as_ptr().wrapping_add(at + done), y, count);
            }
        }
    }
}
