//! What is fused with the loops over tensors: the residual and the activation behind a normalization ([`Epilogue`]), on the way
//! back the activation's derivative before the sums and the map ([`Recomputed`], [`Masked`]). Each gives the bits of the separate
//! operation.

use super::activations::ActivationOf;
use super::bits::{BitWriter, Bits};
use super::map::formulas::{Formula, Normalize, Through};
use super::scales::FORWARD;
use super::scratch::{COEFFICIENTS, Row, load_rows, splat_rows};
use crate::ground::scalar::Scalar;
use crate::ground::sizes::LINE;
use crate::ground::slices::{Input, Output};
use crate::simd::{Lanes, prefetch};

/// A vector's place: its first element's offset in the tensor, and how many of its lanes are elements.
#[derive(Clone, Copy)]
pub struct Place {
    pub at: usize,
    pub count: usize,
}

impl Place {
    /// The elements of another tensor of the same form, zeros in the other lanes.
    ///
    /// # Safety
    /// It has them.
    #[inline(always)]
    unsafe fn load<T, S: Lanes<T>>(self, s: S, from: Input<'_, T>) -> S::Vector {
        // SAFETY: says the caller.
        unsafe {
            let from = from.as_ptr().wrapping_add(self.at);
            if self.count == S::N { s.read(from) } else { s.read_first(from, self.count) }
        }
    }
}

/// What a map of formula `O` does beside it.
pub trait Fused<T, O, const IN: usize, const K: usize>: Copy {
    /// Whether it does anything.
    const ANY: bool;
    /// Whether it can make a NaN where the formula makes none, or another than the canonical one of it.
    const CAN_BE_NAN: bool;

    /// Whether vectors are to come in the order of memory, as far as rows reach.
    #[inline(always)]
    fn in_order(&self) -> bool {
        false
    }
    /// Prefetches its own tensors' lines.
    #[inline(always)]
    fn prefetch<S: Lanes<T>>(&self, _: S, _: usize) {}
    /// What the formula takes in place of the inputs. `LINES` says that the map's output is aligned to a line there.
    ///
    /// # Safety
    /// The place lies within the tensors, and no one else has a part in it.
    #[inline(always)]
    unsafe fn before<S: Lanes<T>, const LINES: bool>(
        &self,
        _: S,
        _: Place,
        x: [S::Vector; IN],
        _: &[S::Vector; K],
    ) -> [S::Vector; IN] {
        x
    }
    /// What is written in place of the formula's result.
    ///
    /// # Safety
    /// As of `before`.
    #[inline(always)]
    unsafe fn after<S: Lanes<T>>(&self, _: S, _: Place, y: S::Vector) -> S::Vector {
        y
    }
}

/// Nothing.
#[derive(Clone, Copy)]
pub struct Bare;

impl<T, O, const IN: usize, const K: usize> Fused<T, O, IN, K> for Bare {
    const ANY: bool = false;
    const CAN_BE_NAN: bool = false;
}

/// y = act(u) of the normalized u.
#[derive(Clone, Copy)]
pub struct Activated<T>(pub ActivationOf<T>);

impl<T: Scalar, O, const K: usize> Fused<T, O, 1, K> for Activated<T> {
    const ANY: bool = true;
    const CAN_BE_NAN: bool = false;

    #[inline(always)]
    unsafe fn after<S: Lanes<T>>(&self, s: S, _: Place, u: S::Vector) -> S::Vector {
        self.0.forward(s, u)
    }
}

/// y = act(u + z) of the normalized u.
#[derive(Clone, Copy)]
pub struct Epilogue<'a, T> {
    pub activation: ActivationOf<T>,
    /// z.
    pub residual: Option<Input<'a, T>>,
    /// Where to write which elements backward lets through.
    pub mask: Option<&'a BitWriter<'a>>,
}

impl<T: Scalar, O, const K: usize> Fused<T, O, 1, K> for Epilogue<'_, T> {
    const ANY: bool = true;
    const CAN_BE_NAN: bool = true;

    #[inline(always)]
    fn in_order(&self) -> bool {
        self.mask.is_some()
    }

    #[inline(always)]
    fn prefetch<S: Lanes<T>>(&self, s: S, at: usize) {
        if let Some(z) = self.residual {
            prefetch::<false, T, S>(s, z.as_ptr().wrapping_add(at));
        }
    }

    #[inline(always)]
    unsafe fn after<S: Lanes<T>>(&self, s: S, place: Place, y: S::Vector) -> S::Vector {
        let mut u = y;
        // SAFETY: says the caller.
        unsafe {
            if let Some(z) = self.residual {
                u = s.add(u, place.load(s, z));
            }
            if let Some(mask) = self.mask {
                mask.push_complement(place.at, self.activation.closed(s, u), place.count, S::N);
            }
        }
        self.activation.forward(s, u)
    }
}

/// g = dy * act'(u) in place of dy, from u anew.
#[derive(Clone, Copy)]
pub struct Recomputed<T>(pub ActivationOf<T>);

impl<T: Scalar, O: Through<K>, const K: usize> Fused<T, O, 2, K> for Recomputed<T> {
    const ANY: bool = true;
    const CAN_BE_NAN: bool = false;

    #[inline(always)]
    unsafe fn before<S: Lanes<T>, const LINES: bool>(
        &self,
        s: S,
        _: Place,
        [x, dy]: [S::Vector; 2],
        k: &[S::Vector; K],
    ) -> [S::Vector; 2] {
        [x, self.0.gradient(s, O::u(s, x, k), dy)]
    }
}

/// The same by what the forward pass kept.
#[derive(Clone, Copy)]
pub struct Masked<'a, T> {
    pub activation: ActivationOf<T>,
    /// None where all is let through.
    pub mask: Option<Bits<'a>>,
    /// Where g goes, if it is asked for: the gradient of the residual.
    pub dz: Option<Output<'a, T>>,
}

impl<T: Scalar> Masked<'_, T> {
    /// # Safety
    /// The tensor has an element at `at`.
    #[inline(always)]
    unsafe fn gradient<S: Lanes<T>>(&self, s: S, at: usize, dy: S::Vector) -> S::Vector {
        match self.mask {
            // SAFETY: says the caller.
            Some(mask) => self.activation.masked_gradient(s, unsafe { mask.from(at) }, dy),
            None => dy,
        }
    }
}

impl<T: Scalar, O, const IN: usize, const K: usize> Fused<T, O, IN, K> for Masked<'_, T> {
    const ANY: bool = true;
    const CAN_BE_NAN: bool = false;

    #[inline(always)]
    fn prefetch<S: Lanes<T>>(&self, s: S, at: usize) {
        if let Some(dz) = self.dz {
            prefetch::<true, T, S>(s, dz.as_ptr().wrapping_add(at));
        }
    }

    #[inline(always)]
    unsafe fn before<S: Lanes<T>, const LINES: bool>(
        &self,
        s: S,
        place: Place,
        mut x: [S::Vector; IN],
        _: &[S::Vector; K],
    ) -> [S::Vector; IN] {
        // SAFETY: says the caller.
        unsafe {
            let g = self.gradient(s, place.at, x[IN - 1]);
            x[IN - 1] = g;
            if let Some(dz) = self.dz {
                let to = dz.as_ptr().wrapping_add(place.at);
                let dz = s.canonical_nan(g);
                if LINES && to.addr().is_multiple_of(LINE) {
                    s.write_past(to, dz);
                } else if place.count == S::N {
                    s.write(to, dz);
                } else {
                    s.write_first(to, dz, place.count);
                }
            }
        }
        x
    }
}

/// What sums take in place of the inputs.
pub trait Read<T, const IN: usize>: Copy {
    /// What it takes per column.
    type Coefficients<V: Copy>: Copy;

    /// That of the vector of columns from `column` on.
    fn coefficients<S: Lanes<T>>(&self, s: S, column: usize) -> Self::Coefficients<S::Vector>;
    /// That of one column in all lanes.
    fn splats<S: Lanes<T>>(&self, s: S, column: usize) -> Self::Coefficients<S::Vector>;
    /// A vector of each input, widened.
    ///
    /// # Safety
    /// `N` elements can be read at each of `from`, the place of one element in each.
    unsafe fn read<S: Lanes<T>>(
        &self,
        s: S,
        from: [*const T; IN],
        k: Self::Coefficients<S::Vector>,
    ) -> [S::Wide; IN];
    /// The same of `count` < N elements: the other lanes are 0.
    ///
    /// # Safety
    /// As of `read`, for `count` elements.
    unsafe fn read_first<S: Lanes<T>>(
        &self,
        s: S,
        from: [*const T; IN],
        count: usize,
        k: Self::Coefficients<S::Vector>,
    ) -> [S::Wide; IN];
}

/// The inputs as they are.
#[derive(Clone, Copy)]
pub struct AsRead;

impl<T, const IN: usize> Read<T, IN> for AsRead {
    type Coefficients<V: Copy> = ();

    #[inline(always)]
    fn coefficients<S: Lanes<T>>(&self, _: S, _: usize) {}
    #[inline(always)]
    fn splats<S: Lanes<T>>(&self, _: S, _: usize) {}
    #[inline(always)]
    unsafe fn read<S: Lanes<T>>(&self, s: S, from: [*const T; IN], (): ()) -> [S::Wide; IN] {
        let mut x = [s.zero_wide(); IN];
        for (x, from) in x.iter_mut().zip(from) {
            // SAFETY: says the caller.
            *x = s.widen(unsafe { s.read(from) });
        }
        x
    }
    #[inline(always)]
    unsafe fn read_first<S: Lanes<T>>(
        &self,
        s: S,
        from: [*const T; IN],
        count: usize,
        (): (),
    ) -> [S::Wide; IN] {
        let mut x = [s.zero_wide(); IN];
        for (x, from) in x.iter_mut().zip(from) {
            // SAFETY: says the caller.
            *x = s.widen(unsafe { s.read_first(from, count) });
        }
        x
    }
}

/// x and g, from u anew.
#[derive(Clone, Copy)]
pub struct ReadRecomputed<'a, T> {
    pub recomputed: Recomputed<T>,
    /// Those of u, laid out for the sums.
    pub coefficients: &'a [Row<T>; COEFFICIENTS],
}

impl<T: Scalar> Read<T, 2> for ReadRecomputed<'_, T> {
    type Coefficients<V: Copy> = [V; FORWARD.len()];

    #[inline(always)]
    fn coefficients<S: Lanes<T>>(&self, s: S, column: usize) -> [S::Vector; FORWARD.len()] {
        load_rows(s, self.coefficients, FORWARD, column)
    }

    #[inline(always)]
    fn splats<S: Lanes<T>>(&self, s: S, column: usize) -> [S::Vector; FORWARD.len()] {
        splat_rows(s, self.coefficients, FORWARD, column)
    }

    #[inline(always)]
    unsafe fn read<S: Lanes<T>>(
        &self,
        s: S,
        [x, dy]: [*const T; 2],
        k: [S::Vector; FORWARD.len()],
    ) -> [S::Wide; 2] {
        // SAFETY: says the caller.
        let (x, dy) = unsafe { (s.read(x), s.read(dy)) };
        [s.widen(x), s.widen(self.recomputed.0.gradient(s, Normalize::apply(s, [x], k), dy))]
    }
    #[inline(always)]
    unsafe fn read_first<S: Lanes<T>>(
        &self,
        s: S,
        [x, dy]: [*const T; 2],
        count: usize,
        k: [S::Vector; FORWARD.len()],
    ) -> [S::Wide; 2] {
        // SAFETY: says the caller.
        let (x, dy) = unsafe { (s.read_first(x, count), s.read_first(dy, count)) };
        let g = self.recomputed.0.gradient(s, Normalize::apply(s, [x], k), dy);
        // Coefficients of no channel may make anything of it.
        [s.widen(x), s.widen(s.select_first(g, s.zero(), count))]
    }
}

/// x and g, by what the forward pass kept.
#[derive(Clone, Copy)]
pub struct ReadMasked<'a, T> {
    pub masked: Masked<'a, T>,
    pub x: Input<'a, T>,
}

impl<T: Scalar> Read<T, 2> for ReadMasked<'_, T> {
    type Coefficients<V: Copy> = ();

    #[inline(always)]
    fn coefficients<S: Lanes<T>>(&self, _: S, _: usize) {}
    #[inline(always)]
    fn splats<S: Lanes<T>>(&self, _: S, _: usize) {}
    #[inline(always)]
    unsafe fn read<S: Lanes<T>>(&self, s: S, [x, dy]: [*const T; 2], (): ()) -> [S::Wide; 2] {
        let Masked { activation, mask, .. } = self.masked;
        // SAFETY: says the caller.
        unsafe {
            let g = match mask {
                Some(mask) if activation.is_clip() => s.read_widened(dy, mask.from(self.offset(x))),
                _ => s.widen(self.masked.gradient(s, self.offset(x), s.read(dy))),
            };
            [s.widen(s.read(x)), g]
        }
    }
    #[inline(always)]
    unsafe fn read_first<S: Lanes<T>>(
        &self,
        s: S,
        [x, dy]: [*const T; 2],
        count: usize,
        (): (),
    ) -> [S::Wide; 2] {
        // SAFETY: says the caller.
        unsafe {
            let g = self.masked.gradient(s, self.offset(x), s.read_first(dy, count));
            [s.widen(s.read_first(x, count)), s.widen(g)]
        }
    }
}

impl<T> ReadMasked<'_, T> {
    /// That of an element's place in x.
    #[inline(always)]
    fn offset(&self, x: *const T) -> usize {
        (x.addr() - self.x.as_ptr().addr()) / size_of::<T>()
    }
}
