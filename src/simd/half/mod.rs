//! Conversions of 16-bit floating-point numbers, which are storage only, to f32 and back: to the nearest, ties to even, subnormal
//! numbers kept, a NaN the canonical one. They work on runs of memory, so that kernels know nothing of them.

#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
mod portable;

use super::Level;
use crate::ground::half::Half;
use crate::ground::sizes::{LANES, LINE};

/// Conversions of one instruction set, of [`LANES`] numbers at a time. A value is proof that the CPU has it.
trait Conversions: Copy {
    /// That many f32.
    type Vector: Copy;

    /// # Safety
    /// [`LANES`] numbers can be read at `at`.
    unsafe fn widen<const F16: bool>(self, at: *const u16) -> Self::Vector;
    /// Writes the nearest numbers; past the caches if `STREAM`.
    ///
    /// # Safety
    /// [`LANES`] numbers can be written at `at`, which is aligned to them if `STREAM`.
    unsafe fn narrow<const F16: bool, const STREAM: bool>(self, at: *mut u16, v: Self::Vector);
    /// # Safety
    /// [`LANES`] numbers can be read at `at`.
    unsafe fn load(self, at: *const f32) -> Self::Vector;
    /// # Safety
    /// [`LANES`] numbers can be written at `at`.
    unsafe fn store(self, at: *mut f32, v: Self::Vector);
    /// Orders what was written past the caches before all that comes later.
    fn fence(self);
    /// Asks for the line at `at`, which may lie anywhere, to be brought near, to be written if `WRITE`.
    fn prefetch<const WRITE: bool>(self, at: *const u16);
}

/// Numbers of a line.
const LINE_NUMBERS: usize = LINE / size_of::<u16>();

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
        // SAFETY: says the caller; every `Level` in use was found on this CPU.
        unsafe {
            match level {
                #[cfg(target_arch = "x86_64")]
                Level::Avx512 => avx512::widen(self, half),
                #[cfg(target_arch = "x86_64")]
                Level::Avx2 => avx2::widen(self, half),
                _ => self.widen_by(portable::Portable, half),
            }
        }
    }

    /// # Safety
    /// As of `widen`.
    #[inline(always)]
    unsafe fn widen_by<C: Conversions>(self, c: C, half: Half) {
        // SAFETY: says the caller.
        unsafe {
            match half {
                Half::F16 => self.widen_each::<C, true>(c),
                Half::Bf16 => self.widen_each::<C, false>(c),
            }
        }
    }

    /// # Safety
    /// As of `widen`.
    #[inline(always)]
    unsafe fn widen_each<C: Conversions, const F16: bool>(self, c: C) {
        let Self { from, to, rows, width, from_stride, to_stride, ahead } = self;
        for row in 0..rows {
            let (from, to) = (from.wrapping_add(row * from_stride), to.wrapping_add(row * to_stride));
            let mut done = 0;
            // SAFETY: the row has these numbers; what is behind its last whole vector goes by way of two of the stack's.
            unsafe {
                while done + LINE_NUMBERS <= width {
                    if ahead != 0 {
                        c.prefetch::<false>(from.wrapping_add(done.wrapping_add(ahead)));
                    }
                    c.store(to.add(done), c.widen::<F16>(from.add(done)));
                    c.store(to.add(done + LANES), c.widen::<F16>(from.add(done + LANES)));
                    done += LINE_NUMBERS;
                }
                if done < width && ahead != 0 {
                    c.prefetch::<false>(from.wrapping_add(done.wrapping_add(ahead)));
                }
                while done + LANES <= width {
                    c.store(to.add(done), c.widen::<F16>(from.add(done)));
                    done += LANES;
                }
                if done < width {
                    let (mut halves, mut wide) = ([0; LANES], [0.0; LANES]);
                    from.add(done).copy_to_nonoverlapping(halves.as_mut_ptr(), width - done);
                    c.store(wide.as_mut_ptr(), c.widen::<F16>(halves.as_ptr()));
                    wide.as_ptr().copy_to_nonoverlapping(to.add(done), width - done);
                }
            }
        }
    }
}

impl Rows<*const f32, *mut u16> {
    /// Narrows them, of which a NaN is the canonical one; whole lines past the caches if `stream`.
    ///
    /// # Safety
    /// All of them can be read and written.
    pub unsafe fn narrow(self, level: Level, half: Half, stream: bool) {
        // SAFETY: says the caller; every `Level` in use was found on this CPU.
        unsafe {
            match level {
                #[cfg(target_arch = "x86_64")]
                Level::Avx512 => avx512::narrow(self, half, stream),
                #[cfg(target_arch = "x86_64")]
                Level::Avx2 => avx2::narrow(self, half, stream),
                _ => self.narrow_by(portable::Portable, half, stream),
            }
        }
    }

    /// # Safety
    /// As of `narrow`.
    #[inline(always)]
    unsafe fn narrow_by<C: Conversions>(self, c: C, half: Half, stream: bool) {
        // SAFETY: says the caller.
        unsafe {
            match (half, stream) {
                (Half::F16, false) => self.narrow_each::<C, true, false>(c),
                (Half::F16, true) => self.narrow_each::<C, true, true>(c),
                (Half::Bf16, false) => self.narrow_each::<C, false, false>(c),
                (Half::Bf16, true) => self.narrow_each::<C, false, true>(c),
            }
        }
        if stream {
            c.fence();
        }
    }

    /// # Safety
    /// As of `narrow`.
    #[inline(always)]
    unsafe fn narrow_each<C: Conversions, const F16: bool, const STREAM: bool>(self, c: C) {
        let Self { from, to, rows, width, from_stride, to_stride, ahead } = self;
        for row in 0..rows {
            let (from, to) = (from.wrapping_add(row * from_stride), to.wrapping_add(row * to_stride));
            let mut done = 0;
            // SAFETY: the row has these numbers.
            unsafe {
                if STREAM {
                    done = to.align_offset(LINE).min(width);
                    narrow_some::<C, F16>(c, from, to, done);
                    while done + LINE_NUMBERS <= width {
                        c.narrow::<F16, true>(to.add(done), c.load(from.add(done)));
                        c.narrow::<F16, true>(to.add(done + LANES), c.load(from.add(done + LANES)));
                        done += LINE_NUMBERS;
                    }
                }
                while !STREAM && done + LINE_NUMBERS <= width {
                    if ahead != 0 {
                        c.prefetch::<true>(to.wrapping_add(done.wrapping_add(ahead)));
                    }
                    c.narrow::<F16, false>(to.add(done), c.load(from.add(done)));
                    c.narrow::<F16, false>(to.add(done + LANES), c.load(from.add(done + LANES)));
                    done += LINE_NUMBERS;
                }
                narrow_some::<C, F16>(c, from.add(done), to.add(done), width - done);
            }
        }
    }
}

/// So many numbers, through the caches.
///
/// # Safety
/// They can be read and written.
#[inline(always)]
unsafe fn narrow_some<C: Conversions, const F16: bool>(c: C, from: *const f32, to: *mut u16, count: usize) {
    let mut done = 0;
    // SAFETY: says the caller; what is behind the last whole vector goes by way of two of the stack's.
    unsafe {
        while done + LANES <= count {
            c.narrow::<F16, false>(to.add(done), c.load(from.add(done)));
            done += LANES;
        }
        if done < count {
            let (mut wide, mut halves) = ([0.0; LANES], [0; LANES]);
            from.add(done).copy_to_nonoverlapping(wide.as_mut_ptr(), count - done);
            c.narrow::<F16, false>(halves.as_mut_ptr(), c.load(wide.as_ptr()));
            halves.as_ptr().copy_to_nonoverlapping(to.add(done), count - done);
        }
    }
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
            let rows = Rows {
                from: halves.as_ptr(),
                to: wide.as_mut_ptr(),
                rows: 1,
                width: halves.len(),
                from_stride: 0,
                to_stride: 0,
                ahead: 0,
            };
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

    fn narrow(wide: &[f32], to: &mut [u16], level: Level, half: Half, stream: bool) {
        let wide: Vec<f32> = wide.iter().map(|&x| if x.is_nan() { f32::NAN } else { x }).collect();
        let rows = Rows {
            from: wide.as_ptr(),
            to: to.as_mut_ptr(),
            rows: 1,
            width: wide.len().min(to.len()),
            from_stride: 0,
            to_stride: 0,
            ahead: 0,
        };
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
