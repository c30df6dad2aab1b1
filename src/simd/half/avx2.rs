//! AVX2 and F16C: f16 by its own conversions, bf16 by integers.

use std::arch::x86_64::*;

use super::{Conversions, Rows};
use crate::ground::half::Half;

/// Proof that the CPU has AVX2 and F16C.
#[derive(Clone, Copy)]
struct Avx2(());

/// # Safety
/// The CPU has AVX2 and F16C; as of [`Rows::widen`].
#[target_feature(enable = "avx2,f16c")]
pub unsafe fn widen(rows: Rows<*const u16, *mut f32>, half: Half) {
    // SAFETY: says the caller.
    unsafe { rows.widen_by(Avx2(()), half) }
}

/// # Safety
/// The CPU has AVX2 and F16C; as of [`Rows::narrow`].
#[target_feature(enable = "avx2,f16c")]
pub unsafe fn narrow(rows: Rows<*const f32, *mut u16>, half: Half, stream: bool) {
    // SAFETY: says the caller.
    unsafe { rows.narrow_by(Avx2(()), half, stream) }
}

impl Avx2 {
    #[inline(always)]
    fn widen_eight<const F16: bool>(self, halves: __m128i) -> __m256 {
        // SAFETY: `self` is proof that the CPU has AVX2 and F16C.
        unsafe {
            match F16 {
                true => _mm256_cvtph_ps(halves),
                false => _mm256_castsi256_ps(_mm256_slli_epi32::<16>(_mm256_cvtepu16_epi32(halves))),
            }
        }
    }

    /// Of bf16, in the low halves of lanes.
    #[inline(always)]
    fn round_eight(self, v: __m256) -> __m256i {
        // SAFETY: `self` is proof that the CPU has AVX2.
        unsafe {
            // Half of the last bit that stays, or a little less where that is 0: what is half goes to even.
            let bits = _mm256_castps_si256(v);
            let odd = _mm256_and_si256(_mm256_srli_epi32::<16>(bits), _mm256_set1_epi32(1));
            let half = _mm256_add_epi32(odd, _mm256_set1_epi32(0x7fff));
            _mm256_srli_epi32::<16>(_mm256_add_epi32(bits, half))
        }
    }

    #[inline(always)]
    fn narrow_eight(self, v: __m256) -> __m128i {
        // SAFETY: `self` is proof that the CPU has AVX2 and F16C.
        unsafe { _mm256_cvtps_ph::<_MM_FROUND_TO_NEAREST_INT>(v) }
    }
}

impl Conversions for Avx2 {
    type Vector = (__m256, __m256);

    #[inline(always)]
    unsafe fn widen<const F16: bool>(self, at: *const u16) -> (__m256, __m256) {
        // SAFETY: `self` is proof that the CPU has AVX2; 16 numbers can be read, says the caller.
        let (low, high) = unsafe { (_mm_loadu_si128(at.cast()), _mm_loadu_si128(at.add(8).cast())) };
        (self.widen_eight::<F16>(low), self.widen_eight::<F16>(high))
    }

    #[inline(always)]
    unsafe fn narrow<const F16: bool, const STREAM: bool>(self, at: *mut u16, (low, high): (__m256, __m256)) {
        // SAFETY: `self` is proof that the CPU has AVX2; 16 numbers can be written, says the caller.
        unsafe {
            let halves = match F16 {
                true => _mm256_set_m128i(self.narrow_eight(high), self.narrow_eight(low)),
                false => {
                    let packed = _mm256_packus_epi32(self.round_eight(low), self.round_eight(high));
                    _mm256_permute4x64_epi64::<0b11_01_10_00>(packed)
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
    unsafe fn load(self, at: *const f32) -> (__m256, __m256) {
        // SAFETY: `self` is proof that the CPU has AVX2; 16 numbers can be read, says the caller.
        unsafe { (_mm256_loadu_ps(at), _mm256_loadu_ps(at.add(8))) }
    }

    #[inline(always)]
    unsafe fn store(self, at: *mut f32, (low, high): (__m256, __m256)) {
        // SAFETY: `self` is proof that the CPU has AVX2; 16 numbers can be written, says the caller.
        unsafe {
            _mm256_storeu_ps(at, low);
            _mm256_storeu_ps(at.add(8), high);
        }
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
