//! AVX-512F and BW: one register of 16 f32, two of 8 f64.

use std::arch::x86_64::*;

use super::half::avx512 as half;
use super::{Kernel, Lanes};

/// Proof that the CPU has AVX-512F and BW.
#[derive(Clone, Copy)]
pub struct Avx512(());

/// Runs a kernel compiled for AVX-512F and BW.
///
/// # Safety
/// The CPU has AVX-512F and BW.
#[target_feature(enable = "avx512f,avx512bw")]
pub unsafe fn run<T, K: Kernel<T>>(kernel: K)
where
    Avx512: Lanes<T>,
{
    kernel.run(Avx512(()))
}

/// The same, never inlined; cold, so that loops keep what they have in registers where it is not called.
///
/// # Safety
/// The CPU has AVX-512F and BW.
#[target_feature(enable = "avx512f,avx512bw")]
#[cold]
#[inline(never)]
unsafe fn run_apart<T, K: Kernel<T>>(kernel: K)
where
    Avx512: Lanes<T>,
{
    kernel.run(Avx512(()))
}

/// Sixteen f64, and the sums of sixteen lanes.
type Pair = (__m512d, __m512d);

/// The mask of the first `k` <= 16 lanes.
#[inline(always)]
fn first(k: usize) -> u16 {
    ((1u32 << k) - 1) as u16
}

/// What is the same for both elements: f64 are pairs of registers.
macro_rules! wide {
    () => {
        type Wide = Pair;
        type Predicate = u16;
        const N: usize = 16;
        const STREAMS: usize = 2;

        #[inline(always)]
        fn to_bits(self, predicate: u16) -> u32 {
            predicate.into()
        }
        #[inline(always)]
        fn of_bits(self, bits: u32) -> u16 {
            bits as u16
        }

        #[inline(always)]
        fn fence(self) {
            // SAFETY: every x86-64 CPU has SSE.
            unsafe { _mm_sfence() }
        }
        #[inline(always)]
        fn zero_wide(self) -> Pair {
            // SAFETY: `self` is proof that the CPU has AVX-512F and BW.
            unsafe { (_mm512_setzero_pd(), _mm512_setzero_pd()) }
        }
        #[inline(always)]
        fn splat_wide(self, value: f64) -> Pair {
            // SAFETY: `self` is proof that the CPU has AVX-512F and BW.
            unsafe { (_mm512_set1_pd(value), _mm512_set1_pd(value)) }
        }
        #[inline(always)]
        unsafe fn load_wide(self, at: *const f64) -> Pair {
            // SAFETY: `self` is proof that the CPU has AVX-512F and BW; 16 values can be read, says the caller.
            unsafe { (_mm512_loadu_pd(at), _mm512_loadu_pd(at.add(8))) }
        }
        #[inline(always)]
        unsafe fn store_wide(self, at: *mut f64, v: Pair) {
            // SAFETY: `self` is proof that the CPU has AVX-512F and BW; 16 values can be written, says the caller.
            unsafe {
                _mm512_storeu_pd(at, v.0);
                _mm512_storeu_pd(at.add(8), v.1);
            }
        }
        #[inline(always)]
        fn add_wide(self, a: Pair, b: Pair) -> Pair {
            // SAFETY: `self` is proof that the CPU has AVX-512F and BW.
            unsafe { (_mm512_add_pd(a.0, b.0), _mm512_add_pd(a.1, b.1)) }
        }
        #[inline(always)]
        fn add_by(self, one: Pair, a: Pair, b: Pair) -> Pair {
            // SAFETY: `self` is proof that the CPU has AVX-512F and BW.
            unsafe { (_mm512_add_pd(a.0, b.0), _mm512_fmadd_pd(b.1, one.1, a.1)) }
        }
        #[inline(always)]
        fn sub_wide(self, a: Pair, b: Pair) -> Pair {
            // SAFETY: `self` is proof that the CPU has AVX-512F and BW.
            unsafe { (_mm512_sub_pd(a.0, b.0), _mm512_sub_pd(a.1, b.1)) }
        }
        #[inline(always)]
        fn sub_by(self, one: Pair, a: Pair, b: Pair) -> Pair {
            // SAFETY: `self` is proof that the CPU has AVX-512F and BW.
            unsafe { (_mm512_fmsub_pd(a.0, one.0, b.0), _mm512_fmsub_pd(a.1, one.1, b.1)) }
        }
        #[inline(always)]
        fn mul_wide(self, a: Pair, b: Pair) -> Pair {
            // SAFETY: `self` is proof that the CPU has AVX-512F and BW.
            unsafe { (_mm512_mul_pd(a.0, b.0), _mm512_mul_pd(a.1, b.1)) }
        }
        #[inline(always)]
        fn product_rest(self, a: Pair, b: Pair, product: Pair) -> Pair {
            // SAFETY: `self` is proof that the CPU has AVX-512F and BW.
            unsafe { (_mm512_fmsub_pd(a.0, b.0, product.0), _mm512_fmsub_pd(a.1, b.1, product.1)) }
        }
        #[inline(always)]
        fn keep_first(self, v: Pair, k: usize) -> Pair {
            let mask = first(k);
            // SAFETY: `self` is proof that the CPU has AVX-512F and BW.
            unsafe { (_mm512_maskz_mov_pd(mask as u8, v.0), _mm512_maskz_mov_pd((mask >> 8) as u8, v.1)) }
        }
        #[inline(always)]
        fn sum_lanes(self, [(low, high), _]: [Pair; 2]) -> f64 {
            // SAFETY: `self` is proof that the CPU has AVX-512F and BW, and so AVX and SSE2.
            unsafe {
                let eight = _mm512_add_pd(low, high);
                let four = _mm256_add_pd(_mm512_castpd512_pd256(eight), _mm512_extractf64x4_pd::<1>(eight));
                let two = _mm_add_pd(_mm256_castpd256_pd128(four), _mm256_extractf128_pd::<1>(four));
                _mm_cvtsd_f64(_mm_add_sd(two, _mm_unpackhi_pd(two, two)))
            }
        }
        #[inline(always)]
        fn add_product(self, sum: Pair, a: Pair, b: Pair) -> Pair {
            // SAFETY: `self` is proof that the CPU has AVX-512F and BW.
            unsafe {
                (_mm512_add_pd(sum.0, _mm512_mul_pd(a.0, b.0)), _mm512_add_pd(sum.1, _mm512_mul_pd(a.1, b.1)))
            }
        }
    };
}

impl Lanes<f32> for Avx512 {
    type Vector = __m512;
    const SCALE: f64 = 2.0;
    wide!();

    #[inline(always)]
    unsafe fn load(self, at: *const f32) -> __m512 {
        // SAFETY: `self` is proof that the CPU has AVX-512F and BW; 16 elements can be read, says the caller.
        unsafe { _mm512_loadu_ps(at) }
    }
    #[inline(always)]
    unsafe fn load_first(self, at: *const f32, k: usize) -> __m512 {
        // SAFETY: `self` is proof that the CPU has AVX-512F and BW; masked lanes are not read.
        unsafe { _mm512_maskz_loadu_ps(first(k), at) }
    }
    #[inline(always)]
    unsafe fn store(self, at: *mut f32, v: __m512) {
        // SAFETY: `self` is proof that the CPU has AVX-512F and BW; 16 elements can be written, says the caller.
        unsafe { _mm512_storeu_ps(at, v) }
    }
    #[inline(always)]
    unsafe fn store_first(self, at: *mut f32, v: __m512, k: usize) {
        // SAFETY: `self` is proof that the CPU has AVX-512F and BW; masked lanes are not written.
        unsafe { _mm512_mask_storeu_ps(at, first(k), v) }
    }
    #[inline(always)]
    unsafe fn stream(self, at: *mut f32, v: __m512) {
        // SAFETY: `self` is proof that the CPU has AVX-512F and BW; a line can be written at an aligned `at`, says the caller.
        unsafe { _mm512_stream_ps(at, v) }
    }
    #[inline(always)]
    fn zero(self) -> __m512 {
        // SAFETY: `self` is proof that the CPU has AVX-512F and BW.
        unsafe { _mm512_setzero_ps() }
    }
    #[inline(always)]
    fn splat(self, value: f32) -> __m512 {
        // SAFETY: `self` is proof that the CPU has AVX-512F and BW.
        unsafe { _mm512_set1_ps(value) }
    }
    #[inline(always)]
    fn select_first(self, a: __m512, b: __m512, k: usize) -> __m512 {
        // SAFETY: `self` is proof that the CPU has AVX-512F and BW.
        unsafe { _mm512_mask_mov_ps(b, first(k), a) }
    }
    #[inline(always)]
    fn add(self, a: __m512, b: __m512) -> __m512 {
        // SAFETY: `self` is proof that the CPU has AVX-512F and BW.
        unsafe { _mm512_add_ps(a, b) }
    }
    #[inline(always)]
    fn sub(self, a: __m512, b: __m512) -> __m512 {
        // SAFETY: `self` is proof that the CPU has AVX-512F and BW.
        unsafe { _mm512_sub_ps(a, b) }
    }
    #[inline(always)]
    fn mul(self, a: __m512, b: __m512) -> __m512 {
        // SAFETY: `self` is proof that the CPU has AVX-512F and BW.
        unsafe { _mm512_mul_ps(a, b) }
    }
    #[inline(always)]
    fn canonical_nan(self, v: __m512) -> __m512 {
        // SAFETY: `self` is proof that the CPU has AVX-512F and BW.
        unsafe {
            let nan = _mm512_cmp_ps_mask::<_CMP_UNORD_Q>(v, v);
            _mm512_mask_mov_ps(v, nan, _mm512_set1_ps(f32::NAN))
        }
    }
    #[inline(always)]
    fn narrow(self, v: Pair) -> __m512 {
        // SAFETY: `self` is proof that the CPU has AVX-512F and BW.
        unsafe {
            let (low, high) = (_mm512_cvtpd_ps(v.0), _mm256_castps_pd(_mm512_cvtpd_ps(v.1)));
            let low = _mm512_castps_pd(_mm512_castps256_ps512(low));
            _mm512_castpd_ps(_mm512_insertf64x4::<1>(low, high))
        }
    }
    #[inline(always)]
    fn zero_unless_finite(self, v: __m512) -> __m512 {
        // SAFETY: `self` is proof that the CPU has AVX-512F and BW.
        unsafe {
            let none = _mm512_sub_ps(v, v);
            _mm512_maskz_mov_ps(_mm512_cmp_ps_mask::<_CMP_ORD_Q>(none, none), v)
        }
    }
    #[inline(always)]
    fn div(self, a: __m512, b: __m512) -> __m512 {
        // SAFETY: `self` is proof that the CPU has AVX-512F and BW.
        unsafe { _mm512_div_ps(a, b) }
    }
    #[inline(always)]
    fn at_least(self, bound: __m512, v: __m512) -> __m512 {
        // SAFETY: `self` is proof that the CPU has AVX-512F and BW.
        unsafe { _mm512_max_ps(bound, v) }
    }
    #[inline(always)]
    fn at_most(self, bound: __m512, v: __m512) -> __m512 {
        // SAFETY: `self` is proof that the CPU has AVX-512F and BW.
        unsafe { _mm512_min_ps(bound, v) }
    }
    #[inline(always)]
    fn less_equal(self, a: __m512, b: __m512) -> u16 {
        // SAFETY: `self` is proof that the CPU has AVX-512F and BW.
        unsafe { _mm512_cmp_ps_mask::<_CMP_LE_OQ>(a, b) }
    }
    #[inline(always)]
    fn is_nan(self, v: __m512) -> u16 {
        // SAFETY: `self` is proof that the CPU has AVX-512F and BW.
        unsafe { _mm512_cmp_ps_mask::<_CMP_UNORD_Q>(v, v) }
    }
    #[inline(always)]
    fn select(self, predicate: u16, a: __m512, b: __m512) -> __m512 {
        // SAFETY: `self` is proof that the CPU has AVX-512F and BW.
        unsafe { _mm512_mask_mov_ps(b, predicate, a) }
    }
    #[inline(always)]
    fn exponents(self, v: __m512) -> __m512 {
        // SAFETY: `self` is proof that the CPU has AVX-512F and BW.
        unsafe { _mm512_castsi512_ps(_mm512_slli_epi32::<23>(_mm512_castps_si512(v))) }
    }
    #[inline(always)]
    fn apart<K: Kernel<f32>>(self, kernel: K) {
        // SAFETY: `self` is proof that the CPU has AVX-512F and BW.
        unsafe { run_apart(kernel) }
    }
    #[inline(always)]
    unsafe fn read_widened(self, at: *const f32, bits: u32) -> Pair {
        // From memory a conversion takes one port, from a register two.
        // SAFETY: `self` is proof that the CPU has AVX-512F and BW; 16 elements can be read, says the caller.
        unsafe {
            let (low, high) = (_mm256_loadu_ps(at), _mm256_loadu_ps(at.add(8)));
            (_mm512_maskz_cvtps_pd(bits as u8, low), _mm512_maskz_cvtps_pd((bits >> 8) as u8, high))
        }
    }
    #[inline(always)]
    unsafe fn widen_half<const F16: bool>(self, at: *const u16) -> __m512 {
        // SAFETY: says the caller.
        unsafe { half::widen::<F16>(at) }
    }
    #[inline(always)]
    unsafe fn widen_half_first<const F16: bool>(self, at: *const u16, k: usize) -> __m512 {
        // SAFETY: says the caller.
        unsafe { half::widen_first::<F16>(at, k) }
    }
    #[inline(always)]
    unsafe fn narrow_half_first<const F16: bool>(self, at: *mut u16, v: __m512, k: usize) {
        // SAFETY: says the caller.
        unsafe { half::store_first(at, half::narrow::<F16>(v), k) }
    }
    #[inline(always)]
    unsafe fn narrow_half<const F16: bool>(self, at: *mut u16, v: __m512) {
        // SAFETY: `self` is proof that the CPU has AVX-512F and BW; 16 numbers can be written, says the caller.
        unsafe { _mm256_storeu_si256(at.cast(), half::narrow::<F16>(v)) }
    }
    #[inline(always)]
    unsafe fn stream_half<const F16: bool>(self, at: *mut u16, v: __m512) {
        // SAFETY: as above, aligned.
        unsafe { _mm256_stream_si256(at.cast(), half::narrow::<F16>(v)) }
    }
    #[inline(always)]
    fn widen(self, v: __m512) -> Pair {
        // SAFETY: `self` is proof that the CPU has AVX-512F and BW.
        unsafe {
            let high = _mm256_castpd_ps(_mm512_extractf64x4_pd::<1>(_mm512_castps_pd(v)));
            (_mm512_cvtps_pd(_mm512_castps512_ps256(v)), _mm512_cvtps_pd(high))
        }
    }
    #[inline(always)]
    fn add_scaled(self, sum: Pair, a: Pair) -> Pair {
        let scale = Lanes::<f32>::splat_wide(self, <Self as Lanes<f32>>::SCALE);
        Lanes::<f32>::add_element_product(self, sum, a, scale)
    }
    #[inline(always)]
    fn add_element_product(self, sum: Pair, a: Pair, b: Pair) -> Pair {
        // SAFETY: `self` is proof that the CPU has AVX-512F and BW.
        unsafe { (_mm512_fmadd_pd(a.0, b.0, sum.0), _mm512_fmadd_pd(a.1, b.1, sum.1)) }
    }
}

impl Lanes<f64> for Avx512 {
    type Vector = Pair;
    const SCALE: f64 = 1.0;
    wide!();

    #[inline(always)]
    unsafe fn load(self, at: *const f64) -> Pair {
        // SAFETY: 16 elements can be read, says the caller.
        unsafe { Lanes::<f64>::load_wide(self, at) }
    }
    #[inline(always)]
    unsafe fn load_first(self, at: *const f64, k: usize) -> Pair {
        let mask = first(k);
        // SAFETY: `self` is proof that the CPU has AVX-512F and BW; masked lanes are not read.
        unsafe {
            let high = _mm512_maskz_loadu_pd((mask >> 8) as u8, at.wrapping_add(8));
            (_mm512_maskz_loadu_pd(mask as u8, at), high)
        }
    }
    #[inline(always)]
    unsafe fn store(self, at: *mut f64, v: Pair) {
        // SAFETY: 16 elements can be written, says the caller.
        unsafe { Lanes::<f64>::store_wide(self, at, v) }
    }
    #[inline(always)]
    unsafe fn store_first(self, at: *mut f64, v: Pair, k: usize) {
        let mask = first(k);
        // SAFETY: `self` is proof that the CPU has AVX-512F and BW; masked lanes are not written.
        unsafe {
            _mm512_mask_storeu_pd(at, mask as u8, v.0);
            _mm512_mask_storeu_pd(at.wrapping_add(8), (mask >> 8) as u8, v.1);
        }
    }
    #[inline(always)]
    unsafe fn stream(self, at: *mut f64, v: Pair) {
        // SAFETY: `self` is proof that the CPU has AVX-512F and BW; two lines can be written at an aligned `at`, says the
        // caller.
        unsafe {
            _mm512_stream_pd(at, v.0);
            _mm512_stream_pd(at.add(8), v.1);
        }
    }
    #[inline(always)]
    fn zero(self) -> Pair {
        Lanes::<f64>::zero_wide(self)
    }
    #[inline(always)]
    fn splat(self, value: f64) -> Pair {
        Lanes::<f64>::splat_wide(self, value)
    }
    #[inline(always)]
    fn select_first(self, a: Pair, b: Pair, k: usize) -> Pair {
        let mask = first(k);
        // SAFETY: `self` is proof that the CPU has AVX-512F and BW.
        unsafe { (_mm512_mask_mov_pd(b.0, mask as u8, a.0), _mm512_mask_mov_pd(b.1, (mask >> 8) as u8, a.1)) }
    }
    #[inline(always)]
    fn add(self, a: Pair, b: Pair) -> Pair {
        Lanes::<f64>::add_wide(self, a, b)
    }
    #[inline(always)]
    fn sub(self, a: Pair, b: Pair) -> Pair {
        // SAFETY: `self` is proof that the CPU has AVX-512F and BW.
        unsafe { (_mm512_sub_pd(a.0, b.0), _mm512_sub_pd(a.1, b.1)) }
    }
    #[inline(always)]
    fn mul(self, a: Pair, b: Pair) -> Pair {
        // SAFETY: `self` is proof that the CPU has AVX-512F and BW.
        unsafe { (_mm512_mul_pd(a.0, b.0), _mm512_mul_pd(a.1, b.1)) }
    }
    #[inline(always)]
    fn canonical_nan(self, v: Pair) -> Pair {
        #[inline(always)]
        fn half(v: __m512d) -> __m512d {
            // SAFETY: called below only, with a proof that the CPU has AVX-512F and BW at hand.
            unsafe {
                let nan = _mm512_cmp_pd_mask::<_CMP_UNORD_Q>(v, v);
                _mm512_mask_mov_pd(v, nan, _mm512_set1_pd(f64::NAN))
            }
        }
        (half(v.0), half(v.1))
    }
    #[inline(always)]
    fn narrow(self, v: Pair) -> Pair {
        v
    }
    #[inline(always)]
    fn zero_unless_finite(self, v: Pair) -> Pair {
        // SAFETY: `self` is proof that the CPU has AVX-512F and BW.
        unsafe {
            let none = (_mm512_sub_pd(v.0, v.0), _mm512_sub_pd(v.1, v.1));
            let low = _mm512_cmp_pd_mask::<_CMP_ORD_Q>(none.0, none.0);
            let high = _mm512_cmp_pd_mask::<_CMP_ORD_Q>(none.1, none.1);
            (_mm512_maskz_mov_pd(low, v.0), _mm512_maskz_mov_pd(high, v.1))
        }
    }
    #[inline(always)]
    fn div(self, a: Pair, b: Pair) -> Pair {
        // SAFETY: `self` is proof that the CPU has AVX-512F and BW.
        unsafe { (_mm512_div_pd(a.0, b.0), _mm512_div_pd(a.1, b.1)) }
    }
    #[inline(always)]
    fn at_least(self, bound: Pair, v: Pair) -> Pair {
        // SAFETY: `self` is proof that the CPU has AVX-512F and BW.
        unsafe { (_mm512_max_pd(bound.0, v.0), _mm512_max_pd(bound.1, v.1)) }
    }
    #[inline(always)]
    fn at_most(self, bound: Pair, v: Pair) -> Pair {
        // SAFETY: `self` is proof that the CPU has AVX-512F and BW.
        unsafe { (_mm512_min_pd(bound.0, v.0), _mm512_min_pd(bound.1, v.1)) }
    }
    #[inline(always)]
    fn less_equal(self, a: Pair, b: Pair) -> u16 {
        // SAFETY: `self` is proof that the CPU has AVX-512F and BW.
        let (low, high) = unsafe {
            (_mm512_cmp_pd_mask::<_CMP_LE_OQ>(a.0, b.0), _mm512_cmp_pd_mask::<_CMP_LE_OQ>(a.1, b.1))
        };
        u16::from_le_bytes([low, high])
    }
    #[inline(always)]
    fn is_nan(self, v: Pair) -> u16 {
        // SAFETY: `self` is proof that the CPU has AVX-512F and BW.
        let (low, high) = unsafe {
            (_mm512_cmp_pd_mask::<_CMP_UNORD_Q>(v.0, v.0), _mm512_cmp_pd_mask::<_CMP_UNORD_Q>(v.1, v.1))
        };
        u16::from_le_bytes([low, high])
    }
    #[inline(always)]
    fn select(self, predicate: u16, a: Pair, b: Pair) -> Pair {
        let [low, high] = predicate.to_le_bytes();
        // SAFETY: `self` is proof that the CPU has AVX-512F and BW.
        unsafe { (_mm512_mask_mov_pd(b.0, low, a.0), _mm512_mask_mov_pd(b.1, high, a.1)) }
    }
    #[inline(always)]
    fn exponents(self, v: Pair) -> Pair {
        #[inline(always)]
        fn half(v: __m512d) -> __m512d {
            // SAFETY: called below only, with a proof that the CPU has AVX-512F and BW at hand.
            unsafe { _mm512_castsi512_pd(_mm512_slli_epi64::<52>(_mm512_castpd_si512(v))) }
        }
        (half(v.0), half(v.1))
    }
    #[inline(always)]
    fn apart<K: Kernel<f64>>(self, kernel: K) {
        // SAFETY: `self` is proof that the CPU has AVX-512F and BW.
        unsafe { run_apart(kernel) }
    }
    #[inline(always)]
    unsafe fn read_widened(self, at: *const f64, bits: u32) -> Pair {
        // SAFETY: `self` is proof that the CPU has AVX-512F and BW; 16 elements can be read, says the caller.
        unsafe {
            (_mm512_maskz_loadu_pd(bits as u8, at), _mm512_maskz_loadu_pd((bits >> 8) as u8, at.add(8)))
        }
    }
    #[inline(always)]
    fn widen(self, v: Pair) -> Pair {
        v
    }
    #[inline(always)]
    fn add_scaled(self, sum: Pair, a: Pair) -> Pair {
        Lanes::<f64>::add_wide(self, sum, a)
    }
    #[inline(always)]
    fn add_element_product(self, sum: Pair, a: Pair, b: Pair) -> Pair {
        Lanes::<f64>::add_product(self, sum, a, b)
    }
}
