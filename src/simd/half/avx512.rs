//! AVX-512F: f16 by its own conversions, bf16 by integers. (AVX512_BF16's conversion takes subnormal numbers for 0.)

use std::arch::x86_64::*;

use super::{Conversions, Rows};
use crate::ground::half::Half;

/// Proof that the CPU has AVX-512F.
#[derive(Clone, Copy)]
struct Avx512(());

/// # Safety
/// The CPU has AVX-512F; as of [`Rows::widen`].
#[target_feature(enable = "avx512f")]
pub unsafe fn widen(rows: Rows<*const u16, *mut f32>, half: Half) {
    // SAFETY: says the caller.
    unsafe { rows.widen_by(Avx512(()), half) }
}

/// # Safety
/// The CPU has AVX-512F; as of [`Rows::narrow`].
#[target_feature(enable = "avx512f")]
pub unsafe fn narrow(rows: Rows<*const f32, *mut u16>, half: Half, stream: bool) {
    // SAFETY: says the caller.
    unsafe { rows.narrow_by(Avx512(()), half, stream) }
}

impl Conversions for Avx512 {
    type Vector = __m512;

    #[inline(always)]
    unsafe fn widen<const F16: bool>(self, at: *const u16) -> __m512 {
        // SAFETY: `self` is proof that the CPU has AVX-512F; 16 numbers can be read, says the caller.
        unsafe {
            let halves = _mm256_loadu_si256(at.cast());
            match F16 {
                true => _mm512_cvtph_ps(halves),
                false => _mm512_castsi512_ps(_mm512_slli_epi32::<16>(_mm512_cvtepu16_epi32(halves))),
            }
        }
    }

    #[inline(always)]
    unsafe fn narrow<const F16: bool, const STREAM: bool>(self, at: *mut u16, v: __m512) {
        // SAFETY: `self` is proof that the CPU has AVX-512F; 16 numbers can be written, says the caller.
        unsafe {
            let halves = match F16 {
                true => _mm512_cvtps_ph::<{ _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC }>(v),
                false => {
                    // Half of the last bit that stays, or a little less where that is 0: what is half goes to even.
                    let bits = _mm512_castps_si512(v);
                    let odd = _mm512_and_si512(_mm512_srli_epi32::<16>(bits), _mm512_set1_epi32(1));
                    let half = _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff));
                    _mm512_cvtepi32_epi16(_mm512_srli_epi32::<16>(_mm512_add_epi32(bits, half)))
                }
            };
            if STREAM {
                _mm256_stream_si256(at.cast(), halves)
            } else {
                _mm256_storeu_si256(at.cast(), halves)
            }
        }
    }

    #[inline(always)]
    unsafe fn load(self, at: *const f32) -> __m512 {
        // SAFETY: `self` is proof that the CPU has AVX-512F; 16 numbers can be read, says the caller.
        unsafe { _mm512_loadu_ps(at) }
    }

    #[inline(always)]
    unsafe fn store(self, at: *mut f32, v: __m512) {
        // SAFETY: `self` is proof that the CPU has AVX-512F; 16 numbers can be written, says the caller.
        unsafe { _mm512_storeu_ps(at, v) }
    }

    #[inline(always)]
    fn prefetch<const WRITE: bool>(self, at: *const u16) {
        // SAFETY: every x86-64 CPU has SSE, and those without PREFETCHW ignore it; a prefetch changes nothing to be noticed.
        unsafe {
            if WRITE {
                _mm_prefetch::<_MM_HINT_ET0>(at.cast())
            } else {
                _mm_prefetch::<_MM_HINT_T0>(at.cast())
            }
        }
    }

    #[inline(always)]
    fn fence(self) {
        // SAFETY: every x86-64 CPU has SSE.
        unsafe { _mm_sfence() }
    }
}
