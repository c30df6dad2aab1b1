//! What every build has, on `wide`: SSE2, NEON, wasm or more, as the build's target says.
//!
//! `wide` picks its instructions at compile time and cannot be raised at run time, hence the other backends. Its
//! `mul_add` and `reduce_add` differ between targets and are not used here.

use std::array::from_fn;

use wide::{f32x8, f64x4};

use super::{Kernel, Lanes};

/// The level that needs no proof. Eight lanes: with sixteen, sums of sixteen f64 and of their squares would take
/// every register that SSE2 has.
#[derive(Clone, Copy)]
pub struct Portable;

type Pair = [f64x4; 2];

/// Masks of the first `k` <= 8 lanes begin at entry 8 - k.
static FIRST_32: [[f32; 8]; 2] = [[f32::from_bits(u32::MAX); 8], [0.0; 8]];
static FIRST_64: [[f64; 8]; 2] = [[f64::from_bits(u64::MAX); 8], [0.0; 8]];

#[inline(always)]
fn first_32(k: usize) -> f32x8 {
    let from = &FIRST_32.as_flattened()[8 - k..16 - k];
    // SAFETY: `from` has 8 entries.
    unsafe { Lanes::<f32>::load(Portable, from.as_ptr()) }
}

#[inline(always)]
fn first_64(k: usize) -> Pair {
    let from = &FIRST_64.as_flattened()[8 - k..16 - k];
    // SAFETY: `from` has 8 entries.
    unsafe { Lanes::<f64>::load(Portable, from.as_ptr()) }
}

/// The first `k` <= 8 elements, zero in the other lanes. One by one: a copy of a length known at run time is a call.
///
/// # Safety
/// `k` elements can be read at `at`.
#[inline(always)]
unsafe fn read_first<T: Copy + Default>(at: *const T, k: usize) -> [T; 8] {
    let mut lanes = [T::default(); 8];
    for (i, lane) in lanes.iter_mut().enumerate() {
        if i < k {
            // SAFETY: says the caller.
            *lane = unsafe { at.add(i).read() };
        }
    }
    lanes
}

/// Writes the first `k` <= 8 of some elements.
///
/// # Safety
/// `k` elements can be written at `at`.
#[inline(always)]
unsafe fn write_first<T>(at: *mut T, lanes: [T; 8], k: usize) {
    for (i, lane) in lanes.into_iter().enumerate() {
        if i < k {
            // SAFETY: says the caller.
            unsafe { at.add(i).write(lane) };
        }
    }
}

/// a * b - product without fused operations: by Dekker's product where nothing of it leaves f64's range, else one by one,
/// since `mul_add` is a call where the build has no such instruction.
#[inline(always)]
fn product_rest(a: f64x4, b: f64x4, product: f64x4) -> f64x4 {
    const LARGE: f64 = f64::from_bits((1023 + 990) << 52);
    const SMALL: f64 = f64::from_bits((1023 - 900) << 52);
    let near = a.abs().simd_lt(f64x4::splat(LARGE))
        & b.abs().simd_lt(f64x4::splat(LARGE))
        & product.abs().simd_lt(f64x4::splat(LARGE));
    let zero = f64x4::splat(0.0);
    let far = product.abs().simd_gt(f64x4::splat(SMALL)) | a.simd_eq(zero) | b.simd_eq(zero);
    if (near & far).all() {
        let splitter = f64x4::splat(((1u32 << 27) + 1) as f64);
        let (a_scaled, b_scaled) = (a * splitter, b * splitter);
        let (a_high, b_high) = (a_scaled - (a_scaled - a), b_scaled - (b_scaled - b));
        let (a_low, b_low) = (a - a_high, b - b_high);
        (((a_high * b_high - product) + a_high * b_low) + a_low * b_high) + a_low * b_low
    } else {
        let (a, b, product) = (a.to_array(), b.to_array(), product.to_array());
        f64x4::new(from_fn(|i| a[i].mul_add(b[i], -product[i])))
    }
}

/// Runs a kernel, never inlined; cold, so that loops keep what they have in registers where it is not called.
#[cold]
#[inline(never)]
fn run_apart<T, K: Kernel<T>>(kernel: K)
where
    Portable: Lanes<T>,
{
    kernel.run(Portable)
}

/// What is the same for both elements.
macro_rules! wide {
    () => {
        type Wide = Pair;
        const N: usize = 8;
        const STREAMS: usize = 1;
        const NON_TEMPORAL: bool = false;
        const SCALE: f64 = 1.0;

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
        fn sub_wide(self, a: Pair, b: Pair) -> Pair {
            from_fn(|i| a[i] - b[i])
        }
        #[inline(always)]
        fn sub_by(self, _: Pair, a: Pair, b: Pair) -> Pair {
            from_fn(|i| a[i] - b[i])
        }
        #[inline(always)]
        fn mul_wide(self, a: Pair, b: Pair) -> Pair {
            from_fn(|i| a[i] * b[i])
        }
        #[inline(always)]
        fn product_rest(self, a: Pair, b: Pair, product: Pair) -> Pair {
            from_fn(|i| product_rest(a[i], b[i], product[i]))
        }
        #[inline(always)]
        fn keep_first(self, v: Pair, k: usize) -> Pair {
            let mask = first_64(k);
            from_fn(|i| mask[i] & v[i])
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
    type Predicate = f32x8;
    wide!();

    #[inline(always)]
    unsafe fn load(self, at: *const f32) -> f32x8 {
        // SAFETY: 8 elements can be read, says the caller.
        f32x8::new(unsafe { at.cast::<[f32; 8]>().read_unaligned() })
    }
    #[inline(always)]
    unsafe fn load_first(self, at: *const f32, k: usize) -> f32x8 {
        // SAFETY: `k` <= 8 elements can be read, says the caller.
        f32x8::new(unsafe { read_first(at, k) })
    }
    #[inline(always)]
    unsafe fn store(self, at: *mut f32, v: f32x8) {
        // SAFETY: 8 elements can be written, says the caller.
        unsafe { at.cast::<[f32; 8]>().write_unaligned(v.to_array()) }
    }
    #[inline(always)]
    unsafe fn store_first(self, at: *mut f32, v: f32x8, k: usize) {
        // SAFETY: `k` <= 8 elements can be written, says the caller.
        unsafe { write_first(at, v.to_array(), k) }
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
        first_32(k).bitselect(a, b)
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
        let nan = v.is_nan();
        // Without blend instructions, a branch that is not taken is cheaper.
        if nan.any() { nan.bitselect(f32x8::splat(f32::NAN), v) } else { v }
    }
    #[inline(always)]
    fn narrow(self, v: Pair) -> f32x8 {
        let [a, b] = v.map(f64x4::to_array);
        f32x8::new(from_fn(|i| if i < 4 { a[i] as f32 } else { b[i - 4] as f32 }))
    }
    #[expect(clippy::eq_op, reason = "0 for finite numbers, NaN for others")]
    #[inline(always)]
    fn zero_unless_finite(self, v: f32x8) -> f32x8 {
        let finite = (v - v).simd_eq(f32x8::splat(0.0));
        finite & v
    }
    #[inline(always)]
    fn div(self, a: f32x8, b: f32x8) -> f32x8 {
        a / b
    }
    #[inline(always)]
    fn at_least(self, bound: f32x8, v: f32x8) -> f32x8 {
        bound.simd_gt(v).bitselect(bound, v)
    }
    #[inline(always)]
    fn at_most(self, bound: f32x8, v: f32x8) -> f32x8 {
        bound.simd_lt(v).bitselect(bound, v)
    }
    #[inline(always)]
    fn less_equal(self, a: f32x8, b: f32x8) -> f32x8 {
        a.simd_le(b)
    }
    #[inline(always)]
    fn is_nan(self, v: f32x8) -> f32x8 {
        v.is_nan()
    }
    #[inline(always)]
    fn select(self, predicate: f32x8, a: f32x8, b: f32x8) -> f32x8 {
        predicate.bitselect(a, b)
    }
    #[inline(always)]
    fn to_bits(self, predicate: f32x8) -> u32 {
        predicate.to_bitmask()
    }
    #[inline(always)]
    fn of_bits(self, bits: u32) -> f32x8 {
        f32x8::new(from_fn(|i| f32::from_bits((bits >> i & 1).wrapping_neg())))
    }
    #[inline(always)]
    fn exponents(self, v: f32x8) -> f32x8 {
        f32x8::new(v.to_array().map(|v| f32::from_bits(v.to_bits() << 23)))
    }
    #[inline(always)]
    fn apart<K: Kernel<f32>>(self, kernel: K) {
        run_apart(kernel);
    }
    #[inline(always)]
    unsafe fn read_widened(self, at: *const f32, bits: u32) -> Pair {
        // SAFETY: 8 elements can be read, says the caller.
        let v = unsafe { Lanes::<f32>::load(self, at) };
        let v = Lanes::<f32>::select(self, Lanes::<f32>::of_bits(self, bits), v, Lanes::<f32>::zero(self));
        Lanes::<f32>::widen(self, v)
    }
    #[inline(always)]
    fn widen(self, v: f32x8) -> Pair {
        let v = v.to_array();
        [0, 4].map(|i| f64x4::new([v[i] as f64, v[i + 1] as f64, v[i + 2] as f64, v[i + 3] as f64]))
    }
}

impl Lanes<f64> for Portable {
    type Vector = Pair;
    type Predicate = Pair;
    wide!();

    #[inline(always)]
    unsafe fn load(self, at: *const f64) -> Pair {
        // SAFETY: 8 elements can be read, says the caller.
        unsafe { Lanes::<f64>::load_wide(self, at) }
    }
    #[inline(always)]
    unsafe fn load_first(self, at: *const f64, k: usize) -> Pair {
        // SAFETY: `k` <= 8 elements can be read, says the caller.
        let lanes = unsafe { read_first(at, k) };
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
            write_first(at, lanes, k);
        }
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
        let mask = first_64(k);
        from_fn(|i| mask[i].bitselect(a[i], b[i]))
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
        v.map(|v| {
            let nan = v.is_nan();
            if nan.any() { nan.bitselect(f64x4::splat(f64::NAN), v) } else { v }
        })
    }
    #[inline(always)]
    fn narrow(self, v: Pair) -> Pair {
        v
    }
    #[expect(clippy::eq_op, reason = "0 for finite numbers, NaN for others")]
    #[inline(always)]
    fn zero_unless_finite(self, v: Pair) -> Pair {
        from_fn(|i| (v[i] - v[i]).simd_eq(f64x4::splat(0.0)) & v[i])
    }
    #[inline(always)]
    fn div(self, a: Pair, b: Pair) -> Pair {
        from_fn(|i| a[i] / b[i])
    }
    #[inline(always)]
    fn at_least(self, bound: Pair, v: Pair) -> Pair {
        from_fn(|i| bound[i].simd_gt(v[i]).bitselect(bound[i], v[i]))
    }
    #[inline(always)]
    fn at_most(self, bound: Pair, v: Pair) -> Pair {
        from_fn(|i| bound[i].simd_lt(v[i]).bitselect(bound[i], v[i]))
    }
    #[inline(always)]
    fn less_equal(self, a: Pair, b: Pair) -> Pair {
        from_fn(|i| a[i].simd_le(b[i]))
    }
    #[inline(always)]
    fn is_nan(self, v: Pair) -> Pair {
        v.map(f64x4::is_nan)
    }
    #[inline(always)]
    fn select(self, predicate: Pair, a: Pair, b: Pair) -> Pair {
        from_fn(|i| predicate[i].bitselect(a[i], b[i]))
    }
    #[inline(always)]
    fn to_bits(self, [low, high]: Pair) -> u32 {
        low.to_bitmask() | high.to_bitmask() << 4
    }
    #[inline(always)]
    fn of_bits(self, bits: u32) -> Pair {
        let lane = |i: usize| f64::from_bits(u64::from(bits >> i & 1).wrapping_neg());
        from_fn(|half| f64x4::new(from_fn(|i| lane(4 * half + i))))
    }
    #[inline(always)]
    fn exponents(self, v: Pair) -> Pair {
        v.map(|v| f64x4::new(v.to_array().map(|v| f64::from_bits(v.to_bits() << 52))))
    }
    #[inline(always)]
    fn apart<K: Kernel<f64>>(self, kernel: K) {
        run_apart(kernel);
    }
    #[inline(always)]
    unsafe fn read_widened(self, at: *const f64, bits: u32) -> Pair {
        // SAFETY: 8 elements can be read, says the caller.
        let v = unsafe { Lanes::<f64>::load(self, at) };
        let v = Lanes::<f64>::select(self, Lanes::<f64>::of_bits(self, bits), v, Lanes::<f64>::zero(self));
        Lanes::<f64>::widen(self, v)
    }
    #[inline(always)]
    fn widen(self, v: Pair) -> Pair {
        v
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// With `mul_add`, which rounds once, of any bits: numbers near each other, far from each other, at the ends of the range.
    #[test]
    fn what_a_product_leaves_is_exact() {
        let mut bits = 1u64;
        let mut next = || {
            bits = bits.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            bits ^ bits >> 29
        };
        for i in 0..400_000 {
            let numbers: [[f64; 4]; 2] = from_fn(|_| {
                from_fn(|_| match (i % 4, next()) {
                    (0, bits) => f64::from_bits(bits),
                    (1, bits) => f64::from_bits(bits >> 12 | 0x3ff0_0000_0000_0000),
                    (2, bits) => f64::from_bits(bits & 0x800f_ffff_ffff_ffff | (bits & 0x7ff) << 52),
                    (_, bits) => {
                        if bits % 3 == 0 {
                            0.0
                        } else {
                            f64::from_bits(bits & 0xbfff_ffff_ffff_ffff)
                        }
                    }
                })
            });
            let [a, b] = numbers.map(f64x4::new);
            let rest = product_rest(a, b, a * b).to_array();
            for ((a, b), rest) in numbers[0].iter().zip(&numbers[1]).zip(rest) {
                let expected = a.mul_add(*b, -(a * b));
                assert!(
                    rest == expected || (rest.is_nan() && expected.is_nan()),
                    "{a:e} * {b:e}: {rest:e}, {expected:e}"
                );
            }
        }
    }
}
