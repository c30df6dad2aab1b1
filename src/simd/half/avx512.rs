//! AVX-512F and BW: f16 by its own conversions, bf16 by integers. (AVX512_BF16's conversion takes subnormal numbers for 0.)

use std::arch::x86_64::*;

/// # Safety
/// 16 numbers can be read at `at`.
#[inline(always)]
pub unsafe fn widen<const F16: bool>(at: *const u16) -> __m512 {
    // SAFETY: says the caller.
    unsafe { widen_register::<F16>(_mm256_loadu_si256(at.cast())) }
}

/// The first `k` <= 16 numbers, zero in the other lanes: pairs by a masked load, what is left over by itself.
///
/// # Safety
/// They can be read at `at`.
#[inline(always)]
pub unsafe fn widen_first<const F16: bool>(at: *const u16, k: usize) -> __m512 {
    // SAFETY: says the caller; masked lanes are not read.
    unsafe {
        let pairs = ((1u32 << (k / 2)) - 1) as u16;
        let mut halves = _mm512_maskz_loadu_epi32(pairs, at.cast());
        if k % 2 == 1 {
            halves = _mm512_mask_set1_epi32(halves, pairs + 1, at.add(k - 1).read().into());
        }
        widen_register::<F16>(_mm512_castsi512_si256(halves))
    }
}

/// Writes the first `k` <= 16 numbers and nothing else.
///
/// # Safety
/// They can be written at `at`.
#[inline(always)]
pub unsafe fn store_first(at: *mut u16, halves: __m256i, k: usize) {
    let pairs = ((1u32 << (k / 2)) - 1) as u16;
    // SAFETY: says the caller; masked lanes are not written.
    unsafe {
        let halves = _mm512_castsi256_si512(halves);
        _mm512_mask_storeu_epi32(at.cast(), pairs, halves);
        if k % 2 == 1 {
            let last = _mm512_maskz_compress_epi32(pairs + 1, halves);
            at.add(k - 1).write(_mm_cvtsi128_si32(_mm512_castsi512_si128(last)) as u16);
        }
    }
}

#[inline(always)]
unsafe fn widen_register<const F16: bool>(halves: __m256i) -> __m512 {
    // SAFETY: says the caller.
    unsafe {
        match F16 {
            true => _mm512_cvtph_ps(halves),
            // To the upper halves of lanes.
            false => {
                let doubled = _mm512_set_epi16(
                    15, 15, 14, 14, 13, 13, 12, 12, 11, 11, 10, 10, 9, 9, 8, 8, 7, 7, 6, 6, 5, 5, 4, 4, 3, 3,
                    2, 2, 1, 1, 0, 0,
                );
                let halves = _mm512_castsi256_si512(halves);
                _mm512_castsi512_ps(_mm512_maskz_permutexvar_epi16(0xaaaa_aaaa, doubled, halves))
            }
        }
    }
}

/// The nearest numbers; a NaN is the canonical one.
#[inline(always)]
pub unsafe fn narrow<const F16: bool>(v: __m512) -> __m256i {
    // SAFETY: says the caller.
    unsafe {
        match F16 {
            true => _mm512_cvtps_ph::<{ _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC }>(v),
            false => {
                // Half of the last bit that stays, or a little less where that is 0: what is half goes to even.
                let bits = _mm512_castps_si512(v);
                let odd = _mm512_test_epi32_mask(bits, _mm512_set1_epi32(1 << 16));
                let rounded = _mm512_add_epi32(bits, _mm512_set1_epi32(0x7fff));
                let rounded = _mm512_mask_add_epi32(rounded, odd, rounded, _mm512_set1_epi32(1));
                let upper = _mm512_set_epi16(
                    0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 31, 29, 27, 25, 23, 21, 19, 17, 15, 13,
                    11, 9, 7, 5, 3, 1,
                );
                _mm512_castsi512_si256(_mm512_permutexvar_epi16(upper, rounded))
            }
        }
    }
}
