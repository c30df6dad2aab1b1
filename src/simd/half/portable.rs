//! One by one, in a form that compilers make vectors of.

use std::array::from_fn;

use super::Conversions;
use crate::ground::half::Half;
use crate::ground::sizes::LANES;

/// The level that needs no proof.
#[derive(Clone, Copy)]
pub struct Portable;

impl Conversions for Portable {
    type Vector = [f32; LANES];

    #[inline(always)]
    unsafe fn widen<const F16: bool>(self, at: *const u16) -> [f32; LANES] {
        // SAFETY: says the caller.
        let halves = unsafe { at.cast::<[u16; LANES]>().read_unaligned() };
        from_fn(|i| if F16 { Half::F16.to_f32(halves[i]) } else { Half::Bf16.to_f32(halves[i]) })
    }

    #[inline(always)]
    unsafe fn narrow<const F16: bool, const STREAM: bool>(self, at: *mut u16, v: [f32; LANES]) {
        let halves: [u16; LANES] =
            from_fn(|i| if F16 { Half::F16.of_f32(v[i]) } else { Half::Bf16.of_f32(v[i]) });
        // SAFETY: says the caller.
        unsafe { at.cast::<[u16; LANES]>().write_unaligned(halves) }
    }

    #[inline(always)]
    unsafe fn load(self, at: *const f32) -> [f32; LANES] {
        // SAFETY: says the caller.
        unsafe { at.cast::<[f32; LANES]>().read_unaligned() }
    }

    #[inline(always)]
    unsafe fn store(self, at: *mut f32, v: [f32; LANES]) {
        // SAFETY: says the caller.
        unsafe { at.cast::<[f32; LANES]>().write_unaligned(v) }
    }

    #[inline(always)]
    fn prefetch<const WRITE: bool>(self, _: *const u16) {}

    #[inline(always)]
    fn fence(self) {}
}
