//! AVX2 and F16C: f16 by its own conversions, bf16 by integers.

use std::arch::x86_64::*;

/// # Safety
/// 16 numbers can be read at `at`.
#[inline(always)]
pub unsafe fn widen<const F16: bool>(at: *const u16) -> [__m256; 2] {
    // SAFETY: says the caller.
    unsafe { widen_register::<F16>(_mm256_loadu_si256(at.cast())) }
}

/// Masks of the first `k` <= 8 pairs begin at entry 8 - k.
static PAIRS: [i32; 16] = [-1, -1, -1, -1, -1, -1, -1, -1, 0, 0, 0, 0, 0, 0, 0, 0];

/// The mask of the first pairs of `k` <= 16 numbers.
#[inline(always)]
unsafe fn pairs(k: usize) -> __m256i {
    let from = &PAIRS[8 - k / 2..16 - k / 2];
    // SAFETY: says the caller; `from` has 8 entries.
    unsafe { _mm256_loadu_si256(from.as_ptr().cast()) }
}

/// The first `k` <= 16 numbers, zero in the other lanes: pairs by a masked load, what is left over by itself.
///
/// # Safety
/// They can be read at `at`.
#[inline(always)]
pub unsafe fn widen_first<const F16: bool>(at: *const u16, k: usize) -> [__m256; 2] {
    // SAFETY: says the caller; masked lanes are not read.
    unsafe {
        let mut halves = _mm256_maskload_epi32(at.cast(), pairs(k));
        if k % 2 == 1 {
            let last = _mm256_set1_epi32(at.add(k - 1).read().into());
            // Of the first pair that is not whole.
            let place = _mm256_andnot_si256(pairs(k), pairs(k + 1));
            halves = _mm256_blendv_epi8(halves, last, place);
        }
        widen_register::<F16>(halves)
    }
}

/// Writes the first `k` <= 16 numbers and nothing else.
///
/// # Safety
/// They can be written at `at`.
#[inline(always)]
pub unsafe fn store_first(at: *mut u16, halves: __m256i, k: usize) {
    // SAFETY: says the caller; masked lanes are not written.
    unsafe {
        _mm256_maskstore_epi32(at.cast(), pairs(k), halves);
        if k % 2 == 1 {
            let place = _mm256_set1_epi32((k / 2) as i32);
            let last = _mm256_permutevar8x32_epi32(halves, place);
            at.add(k - 1).write(_mm_cvtsi128_si32(_mm256_castsi256_si128(last)) as u16);
        }
    }
}

#[inline(always)]
unsafe fn widen_register<const F16: bool>(halves: __m256i) -> [__m256; 2] {
    // SAFETY: says the caller.
    unsafe {
        let (low, high) = (_mm256_castsi256_si128(halves), _mm256_extracti128_si256::<1>(halves));
        if F16 {
            return [_mm256_cvtph_ps(low), _mm256_cvtph_ps(high)];
        }
        let (low, high) = (_mm256_cvtepu16_epi32(low), _mm256_cvtepu16_epi32(high));
        let (low, high) = (_mm256_slli_epi32::<16>(low), _mm256_slli_epi32::<16>(high));
        [_mm256_castsi256_ps(low), _mm256_castsi256_ps(high)]
    }
}

/// The nearest numbers; a NaN is the canonical one.
#[inline(always)]
pub unsafe fn narrow<const F16: bool>([low, high]: [__m256; 2]) -> __m256i {
    // SAFETY: says the caller.
    unsafe {
        if F16 {
            let low = _mm256_cvtps_ph::<_MM_FROUND_TO_NEAREST_INT>(low);
            return _mm256_set_m128i(_mm256_cvtps_ph::<_MM_FROUND_TO_NEAREST_INT>(high), low);
        }
        // Half of the last bit that stays, or a little less where that is 0: what is half goes to even.
        let (one, half) = (_mm256_set1_epi32(1), _mm256_set1_epi32(0x7fff));
        let (low, high) = (_mm256_castps_si256(low), _mm256_castps_si256(high));
        let odd_low = _mm256_and_si256(_mm256_srli_epi32::<16>(low), one);
        let odd_high = _mm256_and_si256(_mm256_srli_epi32::<16>(high), one);
        let low = _mm256_add_epi32(low, _mm256_add_epi32(odd_low, half));
        let high = _mm256_add_epi32(high, _mm256_add_epi32(odd_high, half));
        let packed = _mm256_packus_epi32(_mm256_srli_epi32::<16>(low), _mm256_srli_epi32::<16>(high));
        _mm256_permute4x64_epi64::<0b11_01_10_00>(packed)
    }
}
