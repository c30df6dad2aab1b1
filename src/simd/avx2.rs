//! AVX2, FMA and F16C: two registers of 8 f32, four of 4 f64.

use std::arch::x86_64::*;

use super::half::avx2 as half;
use super::{Kernel, Lanes};

/// Proof that the CPU has AVX2, FMA and F16C.
#[derive(Clone, Copy)]
pub struct Avx2(());

/// Runs a kernel compiled for AVX2, FMA and F16C.
///
/// # Safety
/// The CPU has AVX2, FMA and F16C.
#[target_feature(enable = "avx2,fma,f16c")]
pub unsafe fn run<T, K: Kernel<T>>(kernel: K)
where
    Avx2: Lanes<T>,
{
    kernel.run(Avx2(()))
}

/// The same, never inlined; cold, so that loops keep what they have in registers where it is not called.
///
/// # Safety
/// The CPU has AVX2, FMA and F16C.
#[target_feature(enable = "avx2,fma,f16c")]
#[cold]
#[inline(never)]
unsafe fn run_apart<T, K: Kernel<T>>(kernel: K)
where
    Avx2: Lanes<T>,
{
    kernel.run(Avx2(()))
}

/// `[f(0), f(1)]` or `[f(0), .. f(3)]`, spelt out: an intrinsic in a closure (of `array::from_fn`, say) can end up in a
/// function without the instruction set, and then is a call.
macro_rules! each {
    (2, $i:ident => $value:expr) => {
        each!([0 1] $i => $value)
    };
    (4, $i:ident => $value:expr) => {
        each!([0 1 2 3] $i => $value)
    };
    ([$($n:literal)*] $i:ident => $value:expr) => {
        [$({
            const $i: usize = $n;
            $value
        }),*]
    };
}

/// Sixteen f32.
type Two = [__m256; 2];
/// Sixteen f64, and the sums of sixteen lanes.
type Four = [__m256d; 4];

/// Masks of the first `k` <= 16 lanes begin at entry 16 - k.
static FIRST_32: [i32; 32] = first_mask();
static FIRST_64: [i64; 32] = {
    let (narrow, mut wide, mut i) = (first_mask(), [0; 32], 0);
    while i < 32 {
        wide[i] = narrow[i] as i64;
        i += 1;
    }
    wide
};

const fn first_mask() -> [i32; 32] {
    let (mut mask, mut i) = ([0; 32], 0);
    while i < 16 {
        mask[i] = -1;
        i += 1;
    }
    mask
}

#[inline(always)]
fn first_32(_: Avx2, k: usize) -> [__m256i; 2] {
    let from = &FIRST_32[16 - k..32 - k];
    // SAFETY: an `Avx2` exists, so the CPU has AVX2; `from` has 16 entries.
    each!(2, I => unsafe { _mm256_loadu_si256(from.as_ptr().add(8 * I).cast()) })
}

#[inline(always)]
fn first_64(_: Avx2, k: usize) -> [__m256i; 4] {
    let from = &FIRST_64[16 - k..32 - k];
    // SAFETY: an `Avx2` exists, so the CPU has AVX2; `from` has 16 entries.
    each!(4, I => unsafe { _mm256_loadu_si256(from.as_ptr().add(4 * I).cast()) })
}

/// What is the same for both elements: f64 are four registers.
macro_rules! wide {
    () => {
        type Wide = Four;
        const N: usize = 16;
        const STREAMS: usize = 1;

        #[inline(always)]
        fn fence(self) {
            // SAFETY: every x86-64 CPU has SSE.
            unsafe { _mm_sfence() }
        }
        #[inline(always)]
        fn zero_wide(self) -> Four {
            // SAFETY: `self` is proof that the CPU has AVX2.
            [unsafe { _mm256_setzero_pd() }; 4]
        }
        #[inline(always)]
        fn splat_wide(self, value: f64) -> Four {
            // SAFETY: `self` is proof that the CPU has AVX2.
            [unsafe { _mm256_set1_pd(value) }; 4]
        }
        #[inline(always)]
        unsafe fn load_wide(self, at: *const f64) -> Four {
            // SAFETY: `self` is proof that the CPU has AVX2; 16 values can be read, says the caller.
            each!(4, I => unsafe { _mm256_loadu_pd(at.add(4 * I)) })
        }
        #[inline(always)]
        unsafe fn store_wide(self, at: *mut f64, v: Four) {
            for (i, v) in v.into_iter().enumerate() {
                // SAFETY: `self` is proof that the CPU has AVX2; 16 values can be written, says the caller.
                unsafe { _mm256_storeu_pd(at.add(4 * i), v) }
            }
        }
        #[inline(always)]
        fn add_wide(self, a: Four, b: Four) -> Four {
            // SAFETY: `self` is proof that the CPU has AVX2.
            each!(4, I => unsafe { _mm256_add_pd(a[I], b[I]) })
        }
        #[inline(always)]
        fn sub_wide(self, a: Four, b: Four) -> Four {
            // SAFETY: `self` is proof that the CPU has AVX2.
            each!(4, I => unsafe { _mm256_sub_pd(a[I], b[I]) })
        }
        #[inline(always)]
        fn sub_by(self, one: Four, a: Four, b: Four) -> Four {
            // SAFETY: `self` is proof that the CPU has FMA.
            each!(4, I => unsafe { _mm256_fmsub_pd(a[I], one[I], b[I]) })
        }
        #[inline(always)]
        fn mul_wide(self, a: Four, b: Four) -> Four {
            // SAFETY: `self` is proof that the CPU has AVX2.
            each!(4, I => unsafe { _mm256_mul_pd(a[I], b[I]) })
        }
        #[inline(always)]
        fn product_rest(self, a: Four, b: Four, product: Four) -> Four {
            // SAFETY: `self` is proof that the CPU has FMA.
            each!(4, I => unsafe { _mm256_fmsub_pd(a[I], b[I], product[I]) })
        }
        #[inline(always)]
        fn keep_first(self, v: Four, k: usize) -> Four {
            let mask = first_64(self, k);
            // SAFETY: `self` is proof that the CPU has AVX2.
            each!(4, I => unsafe { _mm256_and_pd(v[I], _mm256_castsi256_pd(mask[I])) })
        }
        #[inline(always)]
        fn sum_lanes(self, [lanes, _]: [Four; 2]) -> f64 {
            // SAFETY: `self` is proof that the CPU has AVX2.
            unsafe {
                let (low, high) = (_mm256_add_pd(lanes[0], lanes[2]), _mm256_add_pd(lanes[1], lanes[3]));
                let four = _mm256_add_pd(low, high);
                let two = _mm_add_pd(_mm256_castpd256_pd128(four), _mm256_extractf128_pd::<1>(four));
                _mm_cvtsd_f64(_mm_add_sd(two, _mm_unpackhi_pd(two, two)))
            }
        }
        #[inline(always)]
        fn add_product(self, sum: Four, a: Four, b: Four) -> Four {
            // SAFETY: `self` is proof that the CPU has AVX2.
            each!(4, I => unsafe { _mm256_add_pd(sum[I], _mm256_mul_pd(a[I], b[I])) })
        }
    };
}

impl Lanes<f32> for Avx2 {
    type Vector = Two;
    type Predicate = Two;
    const SCALE: f64 = 2.0;
    wide!();

    #[inline(always)]
    unsafe fn load(self, at: *const f32) -> Two {
        // SAFETY: `self` is proof that the CPU has AVX2; 16 elements can be read, says the caller.
        each!(2, I => unsafe { _mm256_loadu_ps(at.add(8 * I)) })
    }
    #[inline(always)]
    unsafe fn load_first(self, at: *const f32, k: usize) -> Two {
        let mask = first_32(self, k);
        // SAFETY: `self` is proof that the CPU has AVX2; masked lanes are not read.
        each!(2, I => unsafe { _mm256_maskload_ps(at.wrapping_add(8 * I), mask[I]) })
    }
    #[inline(always)]
    unsafe fn store(self, at: *mut f32, v: Two) {
        for (i, v) in v.into_iter().enumerate() {
            // SAFETY: `self` is proof that the CPU has AVX2; 16 elements can be written, says the caller.
            unsafe { _mm256_storeu_ps(at.add(8 * i), v) }
        }
    }
    #[inline(always)]
    unsafe fn store_first(self, at: *mut f32, v: Two, k: usize) {
        let mask = first_32(self, k);
        for (i, v) in v.into_iter().enumerate() {
            // SAFETY: `self` is proof that the CPU has AVX2; masked lanes are not written.
            unsafe { _mm256_maskstore_ps(at.wrapping_add(8 * i), mask[i], v) }
        }
    }
    #[inline(always)]
    unsafe fn stream(self, at: *mut f32, v: Two) {
        for (i, v) in v.into_iter().enumerate() {
            // SAFETY: `self` is proof that the CPU has AVX2; 16 elements can be written at an aligned `at`, says the
            // caller.
            unsafe { _mm256_stream_ps(at.add(8 * i), v) }
        }
    }
    #[inline(always)]
    fn zero(self) -> Two {
        // SAFETY: `self` is proof that the CPU has AVX2.
        unsafe { [_mm256_setzero_ps(); 2] }
    }
    #[inline(always)]
    fn splat(self, value: f32) -> Two {
        // SAFETY: `self` is proof that the CPU has AVX2.
        [unsafe { _mm256_set1_ps(value) }; 2]
    }
    #[inline(always)]
    fn select_first(self, a: Two, b: Two, k: usize) -> Two {
        let mask = first_32(self, k);
        // SAFETY: `self` is proof that the CPU has AVX2.
        each!(2, I => unsafe { _mm256_blendv_ps(b[I], a[I], _mm256_castsi256_ps(mask[I])) })
    }
    #[inline(always)]
    fn add(self, a: Two, b: Two) -> Two {
        // SAFETY: `self` is proof that the CPU has AVX2.
        each!(2, I => unsafe { _mm256_add_ps(a[I], b[I]) })
    }
    #[inline(always)]
    fn sub(self, a: Two, b: Two) -> Two {
        // SAFETY: `self` is proof that the CPU has AVX2.
        each!(2, I => unsafe { _mm256_sub_ps(a[I], b[I]) })
    }
    #[inline(always)]
    fn mul(self, a: Two, b: Two) -> Two {
        // SAFETY: `self` is proof that the CPU has AVX2.
        each!(2, I => unsafe { _mm256_mul_ps(a[I], b[I]) })
    }
    #[inline(always)]
    fn canonical_nan(self, v: Two) -> Two {
        // SAFETY: `self` is proof that the CPU has AVX2.
        each!(2, I => unsafe {
            let nan = _mm256_cmp_ps::<_CMP_UNORD_Q>(v[I], v[I]);
            _mm256_blendv_ps(v[I], _mm256_set1_ps(f32::NAN), nan)
        })
    }
    #[inline(always)]
    fn narrow(self, v: Four) -> Two {
        // SAFETY: `self` is proof that the CPU has AVX2.
        each!(2, I => unsafe { _mm256_set_m128(_mm256_cvtpd_ps(v[2 * I + 1]), _mm256_cvtpd_ps(v[2 * I])) })
    }
    #[inline(always)]
    fn zero_unless_finite(self, v: Two) -> Two {
        // SAFETY: `self` is proof that the CPU has AVX2.
        each!(2, I => unsafe {
            let none = _mm256_sub_ps(v[I], v[I]);
            _mm256_and_ps(v[I], _mm256_cmp_ps::<_CMP_ORD_Q>(none, none))
        })
    }
    #[inline(always)]
    fn div(self, a: Two, b: Two) -> Two {
        // SAFETY: `self` is proof that the CPU has AVX2.
        each!(2, I => unsafe { _mm256_div_ps(a[I], b[I]) })
    }
    #[inline(always)]
    fn at_least(self, bound: Two, v: Two) -> Two {
        // SAFETY: `self` is proof that the CPU has AVX2.
        each!(2, I => unsafe { _mm256_max_ps(bound[I], v[I]) })
    }
    #[inline(always)]
    fn at_most(self, bound: Two, v: Two) -> Two {
        // SAFETY: `self` is proof that the CPU has AVX2.
        each!(2, I => unsafe { _mm256_min_ps(bound[I], v[I]) })
    }
    #[inline(always)]
    fn less_equal(self, a: Two, b: Two) -> Two {
        // SAFETY: `self` is proof that the CPU has AVX2.
        each!(2, I => unsafe { _mm256_cmp_ps::<_CMP_LE_OQ>(a[I], b[I]) })
    }
    #[inline(always)]
    fn is_nan(self, v: Two) -> Two {
        // SAFETY: `self` is proof that the CPU has AVX2.
        each!(2, I => unsafe { _mm256_cmp_ps::<_CMP_UNORD_Q>(v[I], v[I]) })
    }
    #[inline(always)]
    fn select(self, predicate: Two, a: Two, b: Two) -> Two {
        // SAFETY: `self` is proof that the CPU has AVX2.
        each!(2, I => unsafe { _mm256_blendv_ps(b[I], a[I], predicate[I]) })
    }
    #[inline(always)]
    fn to_bits(self, predicate: Two) -> u32 {
        // SAFETY: `self` is proof that the CPU has AVX2.
        let bits = each!(2, I => unsafe { _mm256_movemask_ps(predicate[I]) as u32 });
        bits[0] | bits[1] << 8
    }
    #[inline(always)]
    fn of_bits(self, bits: u32) -> Two {
        // SAFETY: `self` is proof that the CPU has AVX2.
        each!(2, I => unsafe {
            let lanes = _mm256_setr_epi32(1, 2, 4, 8, 16, 32, 64, 128);
            let bits = _mm256_set1_epi32((bits >> (8 * I)) as i32);
            _mm256_castsi256_ps(_mm256_cmpeq_epi32(_mm256_and_si256(bits, lanes), lanes))
        })
    }
    #[inline(always)]
    fn exponents(self, v: Two) -> Two {
        // SAFETY: `self` is proof that the CPU has AVX2.
        each!(2, I => unsafe { _mm256_castsi256_ps(_mm256_slli_epi32::<23>(_mm256_castps_si256(v[I]))) })
    }
    #[inline(always)]
    fn apart<K: Kernel<f32>>(self, kernel: K) {
        // SAFETY: `self` is proof that the CPU has AVX2, FMA and F16C.
        unsafe { run_apart(kernel) }
    }
    #[inline(always)]
    unsafe fn read_widened(self, at: *const f32, bits: u32) -> Four {
        // SAFETY: 16 elements can be read, says the caller.
        let v = unsafe { Lanes::<f32>::load(self, at) };
        let v = Lanes::<f32>::select(self, Lanes::<f32>::of_bits(self, bits), v, Lanes::<f32>::zero(self));
        Lanes::<f32>::widen(self, v)
    }
    #[inline(always)]
    unsafe fn widen_half<const F16: bool>(self, at: *const u16) -> Two {
        // SAFETY: says the caller.
        unsafe { half::widen::<F16>(at) }
    }
    #[inline(always)]
    unsafe fn widen_half_first<const F16: bool>(self, at: *const u16, k: usize) -> Two {
        // SAFETY: says the caller.
        unsafe { half::widen_first::<F16>(at, k) }
    }
    #[inline(always)]
    unsafe fn narrow_half_first<const F16: bool>(self, at: *mut u16, v: Two, k: usize) {
        // SAFETY: says the caller.
        unsafe { half::store_first(at, half::narrow::<F16>(v), k) }
    }
    #[inline(always)]
    unsafe fn narrow_half<const F16: bool>(self, at: *mut u16, v: Two) {
        // SAFETY: `self` is proof that the CPU has AVX2; 16 numbers can be written, says the caller.
        unsafe { _mm256_storeu_si256(at.cast(), half::narrow::<F16>(v)) }
    }
    #[inline(always)]
    unsafe fn stream_half<const F16: bool>(self, at: *mut u16, v: Two) {
        // SAFETY: as above, aligned.
        unsafe { _mm256_stream_si256(at.cast(), half::narrow::<F16>(v)) }
    }
    #[inline(always)]
    fn widen(self, v: Two) -> Four {
        // SAFETY: `self` is proof that the CPU has AVX2.
        each!(4, I => unsafe {
            let (v, half) = (v[I / 2], I % 2);
            _mm256_cvtps_pd(if half == 0 { _mm256_castps256_ps128(v) } else { _mm256_extractf128_ps::<1>(v) })
        })
    }
    #[inline(always)]
    fn add_scaled(self, sum: Four, a: Four) -> Four {
        let scale = Lanes::<f32>::splat_wide(self, <Self as Lanes<f32>>::SCALE);
        Lanes::<f32>::add_element_product(self, sum, a, scale)
    }
    #[inline(always)]
    fn add_element_product(self, sum: Four, a: Four, b: Four) -> Four {
        // SAFETY: `self` is proof that the CPU has FMA.
        each!(4, I => unsafe { _mm256_fmadd_pd(a[I], b[I], sum[I]) })
    }
}

impl Lanes<f64> for Avx2 {
    type Vector = Four;
    type Predicate = Four;
    const SCALE: f64 = 1.0;
    wide!();

    #[inline(always)]
    unsafe fn load(self, at: *const f64) -> Four {
        // SAFETY: 16 elements can be read, says the caller.
        unsafe { Lanes::<f64>::load_wide(self, at) }
    }
    #[inline(always)]
    unsafe fn load_first(self, at: *const f64, k: usize) -> Four {
        let mask = first_64(self, k);
        // SAFETY: `self` is proof that the CPU has AVX2; masked lanes are not read.
        each!(4, I => unsafe { _mm256_maskload_pd(at.wrapping_add(4 * I), mask[I]) })
    }
    #[inline(always)]
    unsafe fn store(self, at: *mut f64, v: Four) {
        // SAFETY: 16 elements can be written, says the caller.
        unsafe { Lanes::<f64>::store_wide(self, at, v) }
    }
    #[inline(always)]
    unsafe fn store_first(self, at: *mut f64, v: Four, k: usize) {
        let mask = first_64(self, k);
        for (i, v) in v.into_iter().enumerate() {
            // SAFETY: `self` is proof that the CPU has AVX2; masked lanes are not written.
            unsafe { _mm256_maskstore_pd(at.wrapping_add(4 * i), mask[i], v) }
        }
    }
    #[inline(always)]
    unsafe fn stream(self, at: *mut f64, v: Four) {
        for (i, v) in v.into_iter().enumerate() {
            // SAFETY: `self` is proof that the CPU has AVX2; 16 elements can be written at an aligned `at`, says the
            // caller.
            unsafe { _mm256_stream_pd(at.add(4 * i), v) }
        }
    }
    #[inline(always)]
    fn zero(self) -> Four {
        Lanes::<f64>::zero_wide(self)
    }
    #[inline(always)]
    fn splat(self, value: f64) -> Four {
        Lanes::<f64>::splat_wide(self, value)
    }
    #[inline(always)]
    fn select_first(self, a: Four, b: Four, k: usize) -> Four {
        let mask = first_64(self, k);
        // SAFETY: `self` is proof that the CPU has AVX2.
        each!(4, I => unsafe { _mm256_blendv_pd(b[I], a[I], _mm256_castsi256_pd(mask[I])) })
    }
    #[inline(always)]
    fn add(self, a: Four, b: Four) -> Four {
        Lanes::<f64>::add_wide(self, a, b)
    }
    #[inline(always)]
    fn sub(self, a: Four, b: Four) -> Four {
        // SAFETY: `self` is proof that the CPU has AVX2.
        each!(4, I => unsafe { _mm256_sub_pd(a[I], b[I]) })
    }
    #[inline(always)]
    fn mul(self, a: Four, b: Four) -> Four {
        // SAFETY: `self` is proof that the CPU has AVX2.
        each!(4, I => unsafe { _mm256_mul_pd(a[I], b[I]) })
    }
    #[inline(always)]
    fn canonical_nan(self, v: Four) -> Four {
        // SAFETY: `self` is proof that the CPU has AVX2.
        each!(4, I => unsafe {
            let nan = _mm256_cmp_pd::<_CMP_UNORD_Q>(v[I], v[I]);
            _mm256_blendv_pd(v[I], _mm256_set1_pd(f64::NAN), nan)
        })
    }
    #[inline(always)]
    fn narrow(self, v: Four) -> Four {
        v
    }
    #[inline(always)]
    fn zero_unless_finite(self, v: Four) -> Four {
        // SAFETY: `self` is proof that the CPU has AVX2.
        each!(4, I => unsafe {
            let none = _mm256_sub_pd(v[I], v[I]);
            _mm256_and_pd(v[I], _mm256_cmp_pd::<_CMP_ORD_Q>(none, none))
        })
    }
    #[inline(always)]
    fn div(self, a: Four, b: Four) -> Four {
        // SAFETY: `self` is proof that the CPU has AVX2.
        each!(4, I => unsafe { _mm256_div_pd(a[I], b[I]) })
    }
    #[inline(always)]
    fn at_least(self, bound: Four, v: Four) -> Four {
        // SAFETY: `self` is proof that the CPU has AVX2.
        each!(4, I => unsafe { _mm256_max_pd(bound[I], v[I]) })
    }
    #[inline(always)]
    fn at_most(self, bound: Four, v: Four) -> Four {
        // SAFETY: `self` is proof that the CPU has AVX2.
        each!(4, I => unsafe { _mm256_min_pd(bound[I], v[I]) })
    }
    #[inline(always)]
    fn less_equal(self, a: Four, b: Four) -> Four {
        // SAFETY: `self` is proof that the CPU has AVX2.
        each!(4, I => unsafe { _mm256_cmp_pd::<_CMP_LE_OQ>(a[I], b[I]) })
    }
    #[inline(always)]
    fn is_nan(self, v: Four) -> Four {
        // SAFETY: `self` is proof that the CPU has AVX2.
        each!(4, I => unsafe { _mm256_cmp_pd::<_CMP_UNORD_Q>(v[I], v[I]) })
    }
    #[inline(always)]
    fn select(self, predicate: Four, a: Four, b: Four) -> Four {
        // SAFETY: `self` is proof that the CPU has AVX2.
        each!(4, I => unsafe { _mm256_blendv_pd(b[I], a[I], predicate[I]) })
    }
    #[inline(always)]
    fn to_bits(self, predicate: Four) -> u32 {
        // SAFETY: `self` is proof that the CPU has AVX2.
        let bits = each!(4, I => unsafe { _mm256_movemask_pd(predicate[I]) as u32 });
        bits[0] | bits[1] << 4 | bits[2] << 8 | bits[3] << 12
    }
    #[inline(always)]
    fn of_bits(self, bits: u32) -> Four {
        // SAFETY: `self` is proof that the CPU has AVX2.
        each!(4, I => unsafe {
            let lanes = _mm256_setr_epi64x(1, 2, 4, 8);
            let bits = _mm256_set1_epi64x((bits >> (4 * I)) as i64);
            _mm256_castsi256_pd(_mm256_cmpeq_epi64(_mm256_and_si256(bits, lanes), lanes))
        })
    }
    #[inline(always)]
    fn exponents(self, v: Four) -> Four {
        // SAFETY: `self` is proof that the CPU has AVX2.
        each!(4, I => unsafe { _mm256_castsi256_pd(_mm256_slli_epi64::<52>(_mm256_castpd_si256(v[I]))) })
    }
    #[inline(always)]
    fn apart<K: Kernel<f64>>(self, kernel: K) {
        // SAFETY: `self` is proof that the CPU has AVX2, FMA and F16C.
        unsafe { run_apart(kernel) }
    }
    #[inline(always)]
    unsafe fn read_widened(self, at: *const f64, bits: u32) -> Four {
        // SAFETY: 16 elements can be read, says the caller.
        let v = unsafe { Lanes::<f64>::load(self, at) };
        let v = Lanes::<f64>::select(self, Lanes::<f64>::of_bits(self, bits), v, Lanes::<f64>::zero(self));
        Lanes::<f64>::widen(self, v)
    }
    #[inline(always)]
    fn widen(self, v: Four) -> Four {
        v
    }
    #[inline(always)]
    fn add_scaled(self, sum: Four, a: Four) -> Four {
        Lanes::<f64>::add_wide(self, sum, a)
    }
    #[inline(always)]
    fn add_element_product(self, sum: Four, a: Four, b: Four) -> Four {
        Lanes::<f64>::add_product(self, sum, a, b)
    }
}
