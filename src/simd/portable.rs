//! What every build has, on `wide`: SSE2, NEON, wasm or more, as the build's target says.
//!
//! `wide` picks its instructions at compile time and cannot be raised at run time, hence the other backends. Its
//! `mul_add` and `reduce_add` differ between targets and are not used here.

use std::array::from_fn;

use wide::{f32x8, f64x4};

use super::Lanes;

/// The level that needs no proof. Eight lanes: with sixteen, sums of sixteen f64 and of their squares would take
/// every register that SSE2 has.
#[derive(Clone, Copy)]
pub struct Portable;

type Pair = [f64x4; 2];

/// `v` with zero in all lanes but the first `k`.
#[inline(always)]
fn zero_after<T: Default, const N: usize>(k: usize, mut v: [T; N]) -> [T; N] {
    v.iter_mut().skip(k).for_each(|lane| *lane = T::default());
    v
}

/// What is the same for both elements.
macro_rules! wide {
    () => {
        type Wide = Pair;
        const N: usize = 8;
        const STREAMS: usize = 1;
        const SCALE: f64 = 1.0;

        #[inline(always)]
        fn fence(self) {}
        #[inline(always)]
        fn zero_wide(self) -> Pair {
            [f64x4::splat(0.0); 2]
        }
        #[inline(always)]
        fn splat_wide(self, value: f64) -> Pair {
            [f64x4::splat(value); 2]
        }
        #[inline(always)]
        unsafe fn load_wide(self, at: *const f64) -> Pair {
            // SAFETY: 8 values can be read, says the caller.
            from_fn(|i| f64x4::new(unsafe { at.add(4 * i).cast::<[f64; 4]>().read_unaligned() }))
        }
        #[inline(always)]
        unsafe fn store_wide(self, at: *mut f64, v: Pair) {
            for (i, v) in v.into_iter().enumerate() {
                // SAFETY: 8 values can be written, says the caller.
                unsafe { at.add(4 * i).cast::<[f64; 4]>().write_unaligned(v.to_array()) }
            }
        }
        #[inline(always)]
        fn add_wide(self, a: Pair, b: Pair) -> Pair {
            from_fn(|i| a[i] + b[i])
        }
        #[inline(always)]
        fn add_scaled(self, sum: Pair, a: Pair) -> Pair {
            from_fn(|i| sum[i] + a[i])
        }
        #[inline(always)]
        fn keep_first(self, v: Pair, k: usize) -> Pair {
            from_fn(|i| f64x4::new(zero_after(k.saturating_sub(4 * i), v[i].to_array())))
        }
        #[inline(always)]
        fn sum_lanes(self, [low, high]: [Pair; 2]) -> f64 {
            let [a, b, c, d] = ((low[0] + high[0]) + (low[1] + high[1])).to_array();
            (a + c) + (b + d)
        }
        #[inline(always)]
        fn add_product(self, sum: Pair, a: Pair, b: Pair) -> Pair {
            from_fn(|i| sum[i] + a[i] * b[i])
        }
        #[inline(always)]
        fn add_element_product(self, sum: Pair, a: Pair, b: Pair) -> Pair {
            from_fn(|i| sum[i] + a[i] * b[i])
        }
    };
}

impl Lanes<f32> for Portable {
    type Vector = f32x8;
    wide!();

    #[inline(always)]
    unsafe fn load(self, at: *const f32) -> f32x8 {
        // SAFETY: 8 elements can be read, says the caller.
        f32x8::new(unsafe { at.cast::<[f32; 8]>().read_unaligned() })
    }
    #[inline(always)]
    unsafe fn load_first(self, at: *const f32, k: usize) -> f32x8 {
        let mut lanes = [0.0; 8];
        // SAFETY: `k` <= 8 elements can be read, says the caller.
        unsafe { std::ptr::copy_nonoverlapping(at, lanes.as_mut_ptr(), k) };
        f32x8::new(lanes)
    }
    #[inline(always)]
    unsafe fn store(self, at: *mut f32, v: f32x8) {
        // SAFETY: 8 elements can be written, says the caller.
        unsafe { at.cast::<[f32; 8]>().write_unaligned(v.to_array()) }
    }
    #[inline(always)]
    unsafe fn store_first(self, at: *mut f32, v: f32x8, k: usize) {
        // SAFETY: `k` <= 8 elements can be written, says the caller.
        unsafe { std::ptr::copy_nonoverlapping(v.to_array().as_ptr(), at, k) }
    }
    #[inline(always)]
    unsafe fn stream(self, at: *mut f32, v: f32x8) {
        // `wide` has no store that goes past the caches.
        // SAFETY: 8 elements can be written, says the caller.
        unsafe { Lanes::<f32>::store(self, at, v) }
    }
    #[inline(always)]
    fn zero(self) -> f32x8 {
        Lanes::<f32>::splat(self, 0.0)
    }
    #[inline(always)]
    fn splat(self, value: f32) -> f32x8 {
        f32x8::splat(value)
    }
    #[inline(always)]
    fn select_first(self, a: f32x8, b: f32x8, k: usize) -> f32x8 {
        let (a, mut b) = (a.to_array(), b.to_array());
        b.iter_mut().zip(a).take(k).for_each(|(b, a)| *b = a);
        f32x8::new(b)
    }
    #[inline(always)]
    fn add(self, a: f32x8, b: f32x8) -> f32x8 {
        a + b
    }
    #[inline(always)]
    fn sub(self, a: f32x8, b: f32x8) -> f32x8 {
        a - b
    }
    #[inline(always)]
    fn mul(self, a: f32x8, b: f32x8) -> f32x8 {
        a * b
    }
    #[inline(always)]
    fn canonical_nan(self, v: f32x8) -> f32x8 {
        v.is_nan().bitselect(f32x8::splat(f32::NAN), v)
    }
    #[inline(always)]
    fn widen(self, v: f32x8) -> Pair {
        let v = v.to_array();
        [0, 4].map(|i| f64x4::new([v[i] as f64, v[i + 1] as f64, v[i + 2] as f64, v[i + 3] as f64]))
    }
}

impl Lanes<f64> for Portable {
    type Vector = Pair;
    wide!();

    #[inline(always)]
    unsafe fn load(self, at: *const f64) -> Pair {
        // SAFETY: 8 elements can be read, says the caller.
        unsafe { Lanes::<f64>::load_wide(self, at) }
    }
    #[inline(always)]
    unsafe fn load_first(self, at: *const f64, k: usize) -> Pair {
        let mut lanes = [0.0; 8];
        // SAFETY: `k` <= 8 elements can be read, says the caller.
        unsafe { std::ptr::copy_nonoverlapping(at, lanes.as_mut_ptr(), k) };
        // SAFETY: `lanes` has 8 values.
        unsafe { Lanes::<f64>::load_wide(self, lanes.as_ptr()) }
    }
    #[inline(always)]
    unsafe fn store(self, at: *mut f64, v: Pair) {
        // SAFETY: 8 elements can be written, says the caller.
        unsafe { Lanes::<f64>::store_wide(self, at, v) }
    }
    #[inline(always)]
    unsafe fn store_first(self, at: *mut f64, v: Pair, k: usize) {
        let mut lanes = [0.0; 8];
        // SAFETY: `lanes` has 8 values; `k` <= 8 elements can be written, says the caller.
        unsafe {
            Lanes::<f64>::store_wide(self, lanes.as_mut_ptr(), v);
            std::ptr::copy_nonoverlapping(lanes.as_ptr(), at, k);
        }
    }
    #[inline(always)]
    unsafe fn stream(self, at: *mut f64, v: Pair) {
        // `wide` has no store that goes past the caches.
        // SAFETY: 8 elements can be written, says the caller.
        unsafe { Lanes::<f64>::store(self, at, v) }
    }
    #[inline(always)]
    fn zero(self) -> Pair {
        Lanes::<f64>::splat(self, 0.0)
    }
    #[inline(always)]
    fn splat(self, value: f64) -> Pair {
        Lanes::<f64>::splat_wide(self, value)
    }
    #[inline(always)]
    fn select_first(self, a: Pair, b: Pair, k: usize) -> Pair {
        from_fn(|i| {
            let (a, mut b) = (a[i].to_array(), b[i].to_array());
            b.iter_mut().zip(a).take(k.saturating_sub(4 * i)).for_each(|(b, a)| *b = a);
            f64x4::new(b)
        })
    }
    #[inline(always)]
    fn add(self, a: Pair, b: Pair) -> Pair {
        Lanes::<f64>::add_wide(self, a, b)
    }
    #[inline(always)]
    fn sub(self, a: Pair, b: Pair) -> Pair {
        from_fn(|i| a[i] - b[i])
    }
    #[inline(always)]
    fn mul(self, a: Pair, b: Pair) -> Pair {
        from_fn(|i| a[i] * b[i])
    }
    #[inline(always)]
    fn canonical_nan(self, v: Pair) -> Pair {
        v.map(|v| v.is_nan().bitselect(f64x4::splat(f64::NAN), v))
    }
    #[inline(always)]
    fn widen(self, v: Pair) -> Pair {
        v
    }
}
