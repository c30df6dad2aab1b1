//! Plain loops over memory: read, read of two, copy, triad and four streams, as fast as the instruction set allows.
//!
//! Each exists for AVX-512, AVX2 and for any CPU, and in two forms: *near*, for data in the caches (ordinary stores, and
//! where nothing is written prefetch: 8 to 15 % faster from L3), and *far*, for data in memory (non-temporal stores, the
//! prefetch left to the CPU: 5 % faster from there). They do nothing that batch normalization could leave out: one
//! multiply and one add per element written, one add per element read.

use std::iter::Sum;
use std::ops::{Add, Mul};

use batchnorm::Element;

/// The numbers in y = A * x + B and y = A * x + B * z; any would do.
const A: f32 = 0.75;
const B: f32 = 0.25;

/// The loops of one element type on one instruction set, over slices of the same length.
pub struct Loops<T> {
    /// The sum of x, in no particular order.
    pub read: fn(&[T]) -> T,
    /// The sum of x and z.
    pub read_two: fn(&[T], &[T]) -> T,
    /// y = a * x + b.
    pub copy: fn(&[T], &mut [T]),
    /// y = a * x + b * z.
    pub triad: fn(&[T], &[T], &mut [T]),
    /// y = a * x + b * z and w = b * z + a, where y and w lie alike in their cache lines.
    pub four: fn([&[T]; 2], [&mut [T]; 2]),
}

/// An element type that the loops exist for.
pub trait Float: Element + Add<Output = Self> + Mul<Output = Self> + Sum + From<f32> {
    /// The loops of the best instruction set that the CPU has, in their far or their near form.
    fn loops(far: bool) -> &'static Loops<Self>;
}

/// Vectors in flight in a loop that sums: an addition takes 4 cycles, and two can start in each.
#[cfg(target_arch = "x86_64")]
const SUMS: usize = 8;

/// Vectors per turn of a loop that writes.
#[cfg(target_arch = "x86_64")]
const TURN: usize = 4;

/// Bytes that the near loops prefetch ahead.
#[cfg(target_arch = "x86_64")]
const AHEAD: usize = 1024;

macro_rules! instruction_set {
    ($name:ident, $feature:literal, $element:ty, $vector:ty, $zero:ident, $splat:ident, $load:ident, $store:ident,
     $stream:ident, $add:ident, $mul:ident) => {
        #[cfg(target_arch = "x86_64")]
        mod $name {
            use std::arch::x86_64::*;

            use super::{A, AHEAD, B, Loops, SUMS, TURN};

            type T = $element;
            const LANES: usize = size_of::<$vector>() / size_of::<T>();

            pub static LOOPS: [Loops<T>; 2] = [loops::<false>(), loops::<true>()];

            const fn loops<const FAR: bool>() -> Loops<T> {
                Loops {
                    // SAFETY: `Float::loops` gives these out only where the CPU has the instruction set.
                    read: |x| unsafe { read::<FAR>(x) },
                    // SAFETY: as above.
                    read_two: |x, z| unsafe { read_two::<FAR>(x, z) },
                    // SAFETY: as above.
                    copy: |x, y| unsafe { map::<false, FAR>(x, x, y) },
                    // SAFETY: as above.
                    triad: |x, z, y| unsafe { map::<true, FAR>(x, z, y) },
                    // SAFETY: as above.
                    four: |inputs, outputs| unsafe { four::<FAR>(inputs, outputs) },
                }
            }

            /// The vector at `at`; in the near loops also asks for one further on.
            ///
            /// # Safety
            /// `LANES` elements can be read at `at`.
            #[inline]
            #[target_feature(enable = $feature)]
            unsafe fn load<const FAR: bool>(at: *const T) -> $vector {
                if !FAR {
                    _mm_prefetch::<_MM_HINT_T0>(at.wrapping_byte_add(AHEAD).cast());
                }
                // SAFETY: the caller's word.
                unsafe { $load(at) }
            }

            #[target_feature(enable = $feature)]
            fn total(sums: [$vector; SUMS]) -> T {
                // SAFETY: a vector is `LANES` elements, and every bit pattern is one.
                let lanes: [[T; LANES]; SUMS] = unsafe { std::mem::transmute(sums) };
                lanes.as_flattened().iter().sum()
            }

            #[target_feature(enable = $feature)]
            fn read<const FAR: bool>(x: &[T]) -> T {
                let mut sums = [$zero(); SUMS];
                let turns = x.chunks_exact(SUMS * LANES);
                let rest: T = turns.remainder().iter().sum();
                for turn in turns {
                    for (k, sum) in sums.iter_mut().enumerate() {
                        // SAFETY: a turn has `SUMS` vectors.
                        *sum = $add(*sum, unsafe { load::<FAR>(turn.as_ptr().add(k * LANES)) });
                    }
                }
                rest + total(sums)
            }

            #[target_feature(enable = $feature)]
            fn read_two<const FAR: bool>(x: &[T], z: &[T]) -> T {
                const HALF: usize = SUMS / 2;
                let mut sums = [$zero(); SUMS];
                let (xs, zs) = (x.chunks_exact(HALF * LANES), z.chunks_exact(HALF * LANES));
                let rest: T = xs.remainder().iter().chain(zs.remainder()).sum();
                for (x, z) in xs.zip(zs) {
                    for k in 0..HALF {
                        // SAFETY: a turn has `HALF` vectors of each.
                        unsafe {
                            sums[k] = $add(sums[k], load::<FAR>(x.as_ptr().add(k * LANES)));
                            sums[HALF + k] = $add(sums[HALF + k], load::<FAR>(z.as_ptr().add(k * LANES)));
                        }
                    }
                }
                rest + total(sums)
            }

            /// y = A * x + B, or with `TWO` A * x + B * z; with `FAR` past the caches.
            #[target_feature(enable = $feature)]
            fn map<const TWO: bool, const FAR: bool>(x: &[T], z: &[T], y: &mut [T]) {
                let (a, b) = (T::from(A), T::from(B));
                let one = |x: T, z: T| a * x + if TWO { b * z } else { b };
                let len = y.len().min(x.len()).min(z.len());
                // Whole cache lines are written; what lies before the first is done one by one.
                let head = y.as_ptr().align_offset(64).min(len);
                let tail = len - (len - head) % (TURN * LANES);
                let (va, vb) = ($splat(a), $splat(b));
                for i in (0..head).chain(tail..len) {
                    y[i] = one(x[i], z[i]);
                }
                for i in (head..tail).step_by(TURN * LANES) {
                    for i in (0..TURN).map(|k| i + k * LANES) {
                        // SAFETY: i + LANES <= tail <= the length of each, and y + i is aligned to a vector, as it is
                        // whole vectors past `head`.
                        unsafe {
                            let ax = $mul(va, $load(x.as_ptr().add(i)));
                            let v = $add(ax, if TWO { $mul(vb, $load(z.as_ptr().add(i))) } else { vb });
                            if FAR {
                                $stream(y.as_mut_ptr().add(i).cast(), v);
                            } else {
                                $store(y.as_mut_ptr().add(i), v);
                            }
                        }
                    }
                }
                if FAR {
                    _mm_sfence();
                }
            }

            /// y = A * x + B * z and w = B * z + A; with `FAR` past the caches.
            #[target_feature(enable = $feature)]
            fn four<const FAR: bool>([x, z]: [&[T]; 2], [y, w]: [&mut [T]; 2]) {
                let (a, b) = (T::from(A), T::from(B));
                let len = y.len().min(x.len()).min(z.len()).min(w.len());
                let head = y.as_ptr().align_offset(64).min(len);
                let tail = len - (len - head) % (TURN * LANES);
                assert!(
                    head == w.as_ptr().align_offset(64).min(len),
                    "y and w lie alike in their cache lines"
                );
                let (va, vb) = ($splat(a), $splat(b));
                for i in (0..head).chain(tail..len) {
                    y[i] = a * x[i] + b * z[i];
                    w[i] = b * z[i] + a;
                }
                for i in (head..tail).step_by(TURN * LANES) {
                    for i in (0..TURN).map(|k| i + k * LANES) {
                        // SAFETY: i + LANES <= tail <= the length of each, and y + i and w + i are aligned to a vector, as
                        // they are whole vectors past `head`.
                        unsafe {
                            let bz = $mul(vb, $load(z.as_ptr().add(i)));
                            let v = $add($mul(va, $load(x.as_ptr().add(i))), bz);
                            if FAR {
                                $stream(y.as_mut_ptr().add(i).cast(), v);
                                $stream(w.as_mut_ptr().add(i).cast(), $add(bz, va));
                            } else {
                                $store(y.as_mut_ptr().add(i), v);
                                $store(w.as_mut_ptr().add(i), $add(bz, va));
                            }
                        }
                    }
                }
                if FAR {
                    _mm_sfence();
                }
            }
        }
    };
}

instruction_set!(
    avx512_f32,
    "avx512f",
    f32,
    __m512,
    _mm512_setzero_ps,
    _mm512_set1_ps,
    _mm512_loadu_ps,
    _mm512_store_ps,
    _mm512_stream_ps,
    _mm512_add_ps,
    _mm512_mul_ps
);
instruction_set!(
    avx512_f64,
    "avx512f",
    f64,
    __m512d,
    _mm512_setzero_pd,
    _mm512_set1_pd,
    _mm512_loadu_pd,
    _mm512_store_pd,
    _mm512_stream_pd,
    _mm512_add_pd,
    _mm512_mul_pd
);
instruction_set!(
    avx2_f32,
    "avx2",
    f32,
    __m256,
    _mm256_setzero_ps,
    _mm256_set1_ps,
    _mm256_loadu_ps,
    _mm256_store_ps,
    _mm256_stream_ps,
    _mm256_add_ps,
    _mm256_mul_ps
);
instruction_set!(
    avx2_f64,
    "avx2",
    f64,
    __m256d,
    _mm256_setzero_pd,
    _mm256_set1_pd,
    _mm256_loadu_pd,
    _mm256_store_pd,
    _mm256_stream_pd,
    _mm256_add_pd,
    _mm256_mul_pd
);

/// For any CPU, in shapes that compilers turn into vectors; near and far are the same.
mod portable {
    use super::{A, B, Float, Loops};

    /// Independent sums.
    const SUMS: usize = 64;

    pub const fn loops<T: Float>() -> Loops<T> {
        Loops { read, read_two, copy, triad, four }
    }

    fn read<T: Float>(x: &[T]) -> T {
        let mut sums = [T::default(); SUMS];
        let turns = x.chunks_exact(SUMS);
        let rest: T = turns.remainder().iter().copied().sum();
        for turn in turns {
            for (sum, &x) in sums.iter_mut().zip(turn) {
                *sum = *sum + x;
            }
        }
        rest + sums.into_iter().sum()
    }

    fn read_two<T: Float>(x: &[T], z: &[T]) -> T {
        let mut sums = [T::default(); SUMS];
        let (xs, zs) = (x.chunks_exact(SUMS), z.chunks_exact(SUMS));
        let rest: T = xs.remainder().iter().chain(zs.remainder()).copied().sum();
        for (x, z) in xs.zip(zs) {
            for (sum, (&x, &z)) in sums.iter_mut().zip(x.iter().zip(z)) {
                *sum = *sum + (x + z);
            }
        }
        rest + sums.into_iter().sum()
    }

    fn copy<T: Float>(x: &[T], y: &mut [T]) {
        let (a, b) = (T::from(A), T::from(B));
        for (y, &x) in y.iter_mut().zip(x) {
            *y = a * x + b;
        }
    }

    fn triad<T: Float>(x: &[T], z: &[T], y: &mut [T]) {
        let (a, b) = (T::from(A), T::from(B));
        for (y, (&x, &z)) in y.iter_mut().zip(x.iter().zip(z)) {
            *y = a * x + b * z;
        }
    }

    fn four<T: Float>([x, z]: [&[T]; 2], [y, w]: [&mut [T]; 2]) {
        let (a, b) = (T::from(A), T::from(B));
        for ((y, w), (&x, &z)) in y.iter_mut().zip(w).zip(x.iter().zip(z)) {
            *y = a * x + b * z;
            *w = b * z + a;
        }
    }
}

macro_rules! floats {
    ($($element:ty: $avx512:ident, $avx2:ident;)*) => {$(
        impl Float for $element {
            fn loops(far: bool) -> &'static Loops<Self> {
                static PORTABLE: Loops<$element> = portable::loops();
                #[cfg(target_arch = "x86_64")]
                if is_x86_feature_detected!("avx512f") {
                    return &$avx512::LOOPS[usize::from(far)];
                } else if is_x86_feature_detected!("avx2") {
                    return &$avx2::LOOPS[usize::from(far)];
                }
                let _ = far;
                &PORTABLE
            }
        }
    )*};
}
floats! {
    f32: avx512_f32, avx2_f32;
    f64: avx512_f64, avx2_f64;
}
