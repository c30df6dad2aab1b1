//! Numbers of 16 bits, which are storage only: a tensor's vectors are widened as they are read and narrowed as they are written, by
//! lanes of their own ([`Stored`]) that kernels know nothing of; or rows of them are converted, to or from memory of the elements.

#[cfg(target_arch = "x86_64")]
pub mod avx2;
#[cfg(target_arch = "x86_64")]
pub mod avx512;
#[cfg(any(feature = "half", feature = "capi"))]
#[cfg_attr(
    not(target_arch = "x86_64"),
    allow(dead_code, reason = "elsewhere there is the portable level alone")
)]
mod stored;

use super::{Dispatch, Kernel, Lanes, Level};
use crate::ground::half::Half;
use crate::ground::scalar::Scalar;
use crate::ground::sizes::LINE;
use crate::ground::slices::{Input, Output};

use std::convert::Infallible;

#[cfg(any(feature = "half", feature = "capi"))]
#[cfg_attr(not(target_arch = "x86_64"), allow(unused_imports, reason = "as above"))]
use stored::{AsStored, doubled, doubled_mut};

/// Numbers of a line.
const LINE_NUMBERS: usize = LINE / size_of::<u16>();

/// An element type, and lanes over tensors of the 16-bit numbers that stand for it.
pub trait HalfLanes: Dispatch + Scalar {
    /// Whether kernels are compiled for such lanes of a level. They are code: where no one is waiting for the last of speed, on the
    /// portable level and of f16 on AVX2, tiles serve.
    fn has_half_lanes(level: Level, half: Self::Half) -> bool;
    /// The tensor as one of elements, for kernels that such lanes run; none where its addresses allow none.
    fn elements(tensor: Input<'_, u16>) -> Option<Input<'_, Self>>;
    /// The same of a tensor that is written.
    fn elements_mut(tensor: Output<'_, u16>) -> Option<Output<'_, Self>>;
    /// Runs a kernel that is compiled for it, all of whose tensors are such ones, on a level that has such lanes.
    fn dispatch_half<K: Kernel<Self>>(level: Level, half: Self::Half, kernel: K);

    /// Runs a kernel: on lanes over 16-bit numbers if its tensors are [`elements`](Self::elements) of such, else on the level's own.
    fn dispatch_tensors<K: Kernel<Self>>(level: Level, half: Option<Self::Half>, kernel: K) {
        match half {
            None => Self::dispatch(level, kernel),
            Some(half) if K::OF_HALVES => Self::dispatch_half(level, half, kernel),
            Some(_) => debug_assert!(false, "a kernel that is not compiled for 16-bit numbers"),
        }
    }
}

#[cfg(any(feature = "half", feature = "capi"))]
impl HalfLanes for f32 {
    fn has_half_lanes(level: Level, half: Half) -> bool {
        matches!((level, half), (Level::Avx512, _) | (Level::Avx2, Half::Bf16))
    }

    fn elements(tensor: Input<'_, u16>) -> Option<Input<'_, f32>> {
        doubled(tensor)
    }

    fn elements_mut(tensor: Output<'_, u16>) -> Option<Output<'_, f32>> {
        doubled_mut(tensor)
    }

    #[cfg_attr(not(target_arch = "x86_64"), allow(unused_variables, reason = "as above"))]
    fn dispatch_half<K: Kernel<f32>>(level: Level, half: Half, kernel: K) {
        match (level, half) {
            // SAFETY: every `Level` in use was found on this CPU by `Level::available`.
            #[cfg(target_arch = "x86_64")]
            (Level::Avx512, Half::F16) => unsafe { super::avx512::run(AsStored::<K, true>(kernel)) },
            // SAFETY: as above.
            #[cfg(target_arch = "x86_64")]
            (Level::Avx512, Half::Bf16) => unsafe { super::avx512::run(AsStored::<K, false>(kernel)) },
            // SAFETY: as above.
            #[cfg(target_arch = "x86_64")]
            (Level::Avx2, Half::Bf16) => unsafe { super::avx2::run(AsStored::<K, false>(kernel)) },
            _ => debug_assert!(false, "{level} has no such lanes"),
        }
    }
}

/// Says of an element type that there are none.
macro_rules! no_half_lanes {
    ($element:ident) => {
        impl HalfLanes for $element {
            fn has_half_lanes(_: Level, half: Infallible) -> bool {
                match half {}
            }

            fn elements(_: Input<'_, u16>) -> Option<Input<'_, $element>> {
                None
            }

            fn elements_mut(_: Output<'_, u16>) -> Option<Output<'_, $element>> {
                None
            }

            fn dispatch_half<K: Kernel<$element>>(_: Level, half: Infallible, _: K) {
                match half {}
            }
        }
    };
}
no_half_lanes!(f64);
#[cfg(not(any(feature = "half", feature = "capi")))]
no_half_lanes!(f32);

/// Rows of equal length, to be converted: from `from`, to `to`, with so many elements from one row to the next.
#[derive(Clone, Copy)]
pub struct Rows<A, B> {
    pub from: A,
    pub to: B,
    pub rows: usize,
    pub width: usize,
    pub from_stride: usize,
    pub to_stride: usize,
    /// Numbers from each of 16 bits to what is prefetched: the rows that will be converted next, or 0 for nothing.
    pub ahead: usize,
}

impl Rows<*const u16, *mut f32> {
    /// Widens them.
    ///
    /// # Safety
    /// All of them can be read and written.
    pub unsafe fn widen(self, level: Level, half: Half) {
        match half {
            Half::F16 => f32::dispatch(level, Widen::<true>(self)),
            Half::Bf16 => f32::dispatch(level, Widen::<false>(self)),
        }
    }
}

impl Rows<*const f32, *mut u16> {
    /// Narrows them, of which a NaN is the canonical one; whole lines past the caches if `stream`.
    ///
    /// # Safety
    /// All of them can be read and written.
    pub unsafe fn narrow(self, level: Level, half: Half, stream: bool) {
        match (half, stream) {
            (Half::F16, false) => f32::dispatch(level, Narrow::<true, false>(self)),
            (Half::F16, true) => f32::dispatch(level, Narrow::<true, true>(self)),
            (Half::Bf16, false) => f32::dispatch(level, Narrow::<false, false>(self)),
            (Half::Bf16, true) => f32::dispatch(level, Narrow::<false, true>(self)),
        }
    }
}

/// Rows that can be read and written.
struct Widen<const F16: bool>(Rows<*const u16, *mut f32>);

impl<const F16: bool> Kernel<f32> for Widen<F16> {
    #[inline(always)]
    fn run<S: Lanes<f32>>(self, s: S) {
        let Rows { from, to, rows, width, from_stride, to_stride, ahead } = self.0;
        for row in 0..rows {
            let (from, to) = (from.wrapping_add(row * from_stride), to.wrapping_add(row * to_stride));
            // SAFETY: the row has these numbers.
            unsafe {
                let mut done = 0;
                while done + S::N <= width {
                    if ahead != 0 && done.is_multiple_of(LINE_NUMBERS) {
                        line::<false, S>(s, from.wrapping_add(done.wrapping_add(ahead)));
                    }
                    s.store(to.add(done), s.widen_half::<F16>(from.add(done)));
                    done += S::N;
                }
                if done < width {
                    let last = s.widen_half_first::<F16>(from.add(done), width - done);
                    s.store_first(to.add(done), last, width - done);
                }
            }
        }
    }
}

/// The same.
struct Narrow<const F16: bool, const STREAM: bool>(Rows<*const f32, *mut u16>);

impl<const F16: bool, const STREAM: bool> Kernel<f32> for Narrow<F16, STREAM> {
    #[inline(always)]
    fn run<S: Lanes<f32>>(self, s: S) {
        let Rows { from, to, rows, width, from_stride, to_stride, ahead } = self.0;
        for row in 0..rows {
            let (from, to) = (from.wrapping_add(row * from_stride), to.wrapping_add(row * to_stride));
            // SAFETY: the row has these numbers.
            unsafe {
                let mut done = 0;
                if STREAM {
                    let head = to.align_offset(LINE).min(width);
                    while done < head {
                        let count = (head - done).min(S::N);
                        s.narrow_half_first::<F16>(to.add(done), s.load_first(from.add(done), count), count);
                        done += count;
                    }
                    while done + LINE_NUMBERS <= width {
                        for _ in 0..LINE_NUMBERS / S::N {
                            s.stream_half::<F16>(to.add(done), s.load(from.add(done)));
                            done += S::N;
                        }
                    }
                }
                while done + S::N <= width {
                    if !STREAM && ahead != 0 && done.is_multiple_of(LINE_NUMBERS) {
                        line::<true, S>(s, to.wrapping_add(done.wrapping_add(ahead)));
                    }
                    s.narrow_half::<F16>(to.add(done), s.load(from.add(done)));
                    done += S::N;
                }
                if done < width {
                    let last = s.load_first(from.add(done), width - done);
                    s.narrow_half_first::<F16>(to.add(done), last, width - done);
                }
            }
        }
        if STREAM {
            s.fence();
        }
    }
}

/// Prefetches a line of numbers.
#[inline(always)]
fn line<const WRITE: bool, S: Lanes<f32>>(s: S, at: *const u16) {
    super::prefetch::<WRITE, f32, S>(s, at.cast());
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every number widened and narrowed again is itself, on every level as one by one; NaN is the canonical one.
    #[test]
    fn all_numbers_go_there_and_back() {
        let halves: Vec<u16> = (0..=u16::MAX).collect();
        for (level, half) in Level::available().iter().flat_map(|l| [(*l, Half::Bf16), (*l, Half::F16)]) {
            let mut wide = vec![0f32; halves.len()];
            let rows = one_row(halves.as_ptr(), wide.as_mut_ptr(), halves.len());
            // SAFETY: both have as many elements.
            unsafe { rows.widen(level, half) };
            for (bits, wide) in halves.iter().zip(&wide) {
                let expected = half.to_f32(*bits);
                assert!(
                    wide.to_bits() == expected.to_bits() || (wide.is_nan() && expected.is_nan()),
                    "{level} {half:?} {bits:#x}: {wide:e}, not {expected:e}"
                );
            }
            for stream in [false, true] {
                let mut back = vec![0u16; halves.len()];
                narrow(&wide, &mut back, level, half, stream);
                for (bits, back) in halves.iter().zip(&back) {
                    let expected = if half.to_f32(*bits).is_nan() { half.nan() } else { *bits };
                    assert_eq!(*back, expected, "{level} {half:?}");
                }
            }
        }
    }

    fn one_row<A, B>(from: A, to: B, width: usize) -> Rows<A, B> {
        Rows { from, to, rows: 1, width, from_stride: 0, to_stride: 0, ahead: 0 }
    }

    fn narrow(wide: &[f32], to: &mut [u16], level: Level, half: Half, stream: bool) {
        let wide: Vec<f32> = wide.iter().map(|&x| if x.is_nan() { f32::NAN } else { x }).collect();
        let rows = one_row(wide.as_ptr(), to.as_mut_ptr(), wide.len().min(to.len()));
        // SAFETY: both have as many elements.
        unsafe { rows.narrow(level, half, stream) };
    }

    /// Around every number and every middle between two, and on bits of all kinds: as one by one, which is exact.
    #[test]
    fn the_nearest_number_ties_to_even() {
        for half in [Half::Bf16, Half::F16] {
            let mut wide = Vec::new();
            for bits in 0..u16::MAX {
                let (this, next) = (half.to_f32(bits), half.to_f32(bits + 1));
                let middle = ((f64::from(this) + f64::from(next)) / 2.0) as f32;
                for number in [this, middle] {
                    let bits = number.to_bits();
                    wide.extend([bits.wrapping_sub(1), bits, bits.wrapping_add(1)].map(f32::from_bits));
                }
            }
            wide.extend((0..1u32 << 20).map(|i| f32::from_bits(i.wrapping_mul(0x9E37_79B9))));
            wide.push(1.0);
            for level in Level::available() {
                let mut narrowed = vec![0u16; wide.len()];
                narrow(&wide, &mut narrowed, *level, half, false);
                for (wide, narrowed) in wide.iter().zip(&narrowed) {
                    let expected = half.of_f32(*wide);
                    assert_eq!(*narrowed, expected, "{level} {half:?} of {wide:e} ({:#x})", wide.to_bits());
                }
            }
        }
    }
}
