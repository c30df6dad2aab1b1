//! The elementwise loop: a [`Formula`](formulas::Formula) over planes (NCHW) or rows (NHWC) of a part of the tensor.

pub mod formulas;
pub mod pipelined;
mod planes;
mod ragged;
mod rows;

use std::marker::PhantomData;
use std::ops::Range;

use super::columns::Columns;
use super::fused::{Fused, Place};
use super::scratch::{COEFFICIENTS, Row};
use crate::ground::geometry::{Block, Geometry, Pattern};
use crate::ground::sizes::{LANES, LINE};
use crate::ground::slices::{Input, Output};
use crate::simd::{Kernel, Lanes, prefetch};
use formulas::Formula;

/// How a map writes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Store {
    /// Through the caches.
    Temporal,
    /// Past them.
    NonTemporal,
}

/// What a map prefetches.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Prefetch {
    /// Nothing: the hardware's own prefetching is as good.
    None,
    /// Its inputs, and the output where it is written through the caches.
    Own,
    /// The next task's inputs: its own stayed in L2 from statistics to output.
    NextTask,
}

/// How a map goes over its part: what only its speed depends on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Access {
    pub store: Store,
    pub prefetch: Prefetch,
    /// Lines of a set of the first cache, which rows a page apart share.
    pub l1_ways: usize,
    /// Whether planes are taken as rows of positions.
    pub planes_as_rows: bool,
}

/// Applies a formula to a part of a group of channels.
pub struct Map<'a, T, O, E, const IN: usize, const K: usize> {
    pub geometry: &'a Geometry,
    pub inputs: [Input<'a, T>; IN],
    pub output: Output<'a, T>,
    pub channels: Range<usize>,
    /// The column of the first of them; 0 where vectors take several channels.
    pub column: usize,
    pub part: Block,
    pub access: Access,
    pub coefficients: &'a [Row<T>; COEFFICIENTS],
    pub formula: PhantomData<O>,
    pub fused: E,
}

/// How far ahead to prefetch, in bytes, as in reductions; stores wait for their line too, and at a jump for its page.
const AHEAD_BYTES: usize = 8192;

impl<T: Copy, O: Formula<IN, K>, E: Fused<T, O, IN, K>, const IN: usize, const K: usize> Kernel<T>
    for Map<'_, T, O, E, IN, K>
{
    const OF_HALVES: bool = O::OF_HALVES;

    #[inline(always)]
    fn run<S: Lanes<T>>(self, s: S) {
        debug_assert!(self.inputs.iter().all(|input| input.len() == self.geometry.len()));
        debug_assert!(self.output.len() == self.geometry.len());
        let columns = Columns::of_map(self.geometry, &self.channels, self.access.planes_as_rows);
        let stride = self.stride(columns);
        // SAFETY: inputs and output have the geometry's length, and channels and part lie within it.
        unsafe {
            // Whole lines go past the caches or none: rows must lie to them alike.
            let lines = stride.is_none_or(|stride| stride.is_multiple_of(LANES) && S::FILLS_LINES);
            let prefetches = Self::asks::<S>() || self.access.prefetch != Prefetch::None;
            match (self.access.store, prefetches) {
                (Store::NonTemporal, false) if lines && S::NON_TEMPORAL && !O::RARE => {
                    self.part::<S, true, false>(s, columns, stride)
                }
                (Store::NonTemporal, true) if lines && S::NON_TEMPORAL && !O::RARE => {
                    self.part::<S, true, true>(s, columns, stride)
                }
                (_, false) => return self.part::<S, false, false>(s, columns, stride),
                (_, true) => return self.part::<S, false, true>(s, columns, stride),
            }
            s.fence();
        }
    }
}

impl<T: Copy, O: Formula<IN, K>, E: Fused<T, O, IN, K>, const IN: usize, const K: usize>
    Map<'_, T, O, E, IN, K>
{
    /// How many of the elements from `at` on lie before the output's next line.
    #[inline(always)]
    fn head(&self, at: usize) -> usize {
        self.output.as_ptr().wrapping_add(at).align_offset(LINE)
    }

    /// Whether the inputs and the output are prefetched: as of [`Formula::RARE`] where something is fused, too.
    #[inline(always)]
    fn prefetches<S: Lanes<T>, const PREFETCH: bool>(&self) -> bool {
        PREFETCH && (!Self::asks::<S>() || self.access.prefetch != Prefetch::None)
    }

    /// Whether loops ask whether to prefetch, which saves half of their code.
    #[inline(always)]
    fn asks<S: Lanes<T>>() -> bool {
        E::ANY || O::RARE || !S::FILLS_LINES || !S::NON_TEMPORAL
    }

    /// Prefetches what will soon be read and written.
    #[inline(always)]
    fn prefetch_at<S: Lanes<T>, const NON_TEMPORAL: bool, const PREFETCH: bool>(
        &self,
        s: S,
        read: usize,
        written: usize,
    ) {
        let prefetches = self.prefetches::<S, PREFETCH>();
        // Which no one has looked at before, wherever the inputs are.
        self.fused.prefetch(s, written);
        if prefetches {
            for input in &self.inputs {
                prefetch::<false, T, S>(s, input.as_ptr().wrapping_add(read));
            }
        }
        if prefetches && !NON_TEMPORAL {
            prefetch::<true, T, S>(s, self.output.as_ptr().wrapping_add(written));
        }
    }

    /// What is written at a place; `LINES` says that the output is aligned to a line there.
    ///
    /// # Safety
    /// The tensors have its elements.
    #[inline(always)]
    unsafe fn apply<S: Lanes<T>, const LINES: bool>(
        &self,
        s: S,
        place: Place,
        x: [S::Vector; IN],
        k: [S::Vector; K],
    ) -> S::Vector {
        // SAFETY: says the caller.
        let y = unsafe {
            let x = self.fused.before::<S, LINES>(s, place, x, &k);
            self.fused.after(s, place, O::apply(s, x, k))
        };
        if O::CAN_BE_NAN || E::CAN_BE_NAN { s.canonical_nan(y) } else { y }
    }

    /// One vector at `at`.
    ///
    /// # Safety
    /// Inputs and output have its elements; if `NON_TEMPORAL`, the output is aligned to a line there.
    #[inline(always)]
    unsafe fn vector<S: Lanes<T>, const NON_TEMPORAL: bool>(&self, s: S, at: usize, k: [S::Vector; K]) {
        let mut x = [s.zero(); IN];
        // SAFETY: says the caller.
        unsafe {
            for (x, input) in x.iter_mut().zip(&self.inputs) {
                *x = s.read(input.as_ptr().wrapping_add(at));
            }
            let y = self.apply::<S, NON_TEMPORAL>(s, Place { at, count: S::N }, x, k);
            let at = self.output.as_ptr().wrapping_add(at);
            if NON_TEMPORAL { s.write_past(at, y) } else { s.write(at, y) }
        }
    }

    /// Elements from one row to the next, unless planes are mapped.
    #[inline(always)]
    fn stride(&self, columns: Columns) -> Option<usize> {
        let Geometry { c, pattern, .. } = *self.geometry;
        (pattern == Pattern::Across || columns.positions > 1).then_some(columns.width(c))
    }

    /// The stride is that of the columns, handed down since it is not free to derive.
    ///
    /// # Safety
    /// Channels and part lie within the geometry, whose length inputs and output have; columns and stride are theirs.
    #[inline(always)]
    unsafe fn part<S: Lanes<T>, const NON_TEMPORAL: bool, const PREFETCH: bool>(
        &self,
        s: S,
        columns: Columns,
        stride: Option<usize>,
    ) {
        // SAFETY: says the caller.
        unsafe {
            match stride {
                None => self.planes_of_part::<S, NON_TEMPORAL, PREFETCH>(s),
                // Not past the caches if that would be in half lines: no code for it.
                Some(stride) if S::FILLS_LINES || !NON_TEMPORAL => {
                    self.rows_of_part::<S, NON_TEMPORAL, PREFETCH>(s, columns, stride)
                }
                Some(stride) => self.rows_of_part::<S, false, PREFETCH>(s, columns, stride),
            }
        }
    }
}
