//! Vectors: one trait, one thin implementation per instruction set, and the run-time choice between them.
//!
//! Kernels are generic over [`Lanes`] and never name an instruction set. What keeps their bits equal on all of them:
//! only IEEE add, subtract, multiply, divide and compare; a fused multiply-add only where the product is exact in f64, so that fusing
//! changes nothing, or for what a product's rounding left, which has one value however it is found; no horizontal
//! operation (sums over lanes go through memory in a fixed order).

#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
pub mod environment;
pub mod half;
mod level;
mod portable;

pub use level::Level;

use crate::ground::half::Half;
use crate::ground::scalar::{Scalar, for_elements};
use crate::ground::sizes::{LANES, LINE};

/// Asks for the lines of the vector at `at`, which may lie anywhere, to be brought near, to be written if `WRITE`.
#[inline(always)]
pub fn prefetch<const WRITE: bool, T, S: Lanes<T>>(s: S, at: *const T) {
    for line in (0..S::N).step_by(LINE / size_of::<T>()) {
        let at = s.address(at.wrapping_add(line));
        #[cfg(target_arch = "x86_64")]
        // SAFETY: every x86-64 CPU has SSE, and those without PREFETCHW ignore it; a prefetch changes nothing that a
        // program could notice.
        unsafe {
            use std::arch::x86_64::{_MM_HINT_ET0, _MM_HINT_T0, _mm_prefetch};
            if WRITE {
                _mm_prefetch::<_MM_HINT_ET0>(at.cast())
            } else {
                _mm_prefetch::<_MM_HINT_T0>(at.cast())
            }
        }
        #[cfg(not(target_arch = "x86_64"))]
        let _ = at;
    }
}

/// The vectors of one instruction set for elements of type `T`.
///
/// A value of an implementing type is proof that the CPU has the instruction set, which makes the arithmetic safe.
pub trait Lanes<T>: Copy {
    /// `N` elements.
    type Vector: Copy;
    /// `N` f64.
    type Wide: Copy;
    /// Of each of `N` lanes, whether something holds.
    type Predicate: Copy;
    /// Elements per vector; divides `LANES`.
    const N: usize;
    /// How many vectors to keep in flight in a reduction, 1 or 2: where one's sums are few registers, additions to them
    /// would wait for each other.
    const STREAMS: usize;
    /// Whether loops of their own write past the caches: as much code again, which CPUs of old do without.
    const NON_TEMPORAL: bool = true;
    /// Whether a vector of a tensor fills a line, or several a line at once: else what goes past the caches row by row would be
    /// written in halves.
    const FILLS_LINES: bool = true;
    /// A power of two, so that what is scaled by it has the bits that it would have without. Where it is not 1, adding with
    /// it is a fused multiply-add: sums of f32 keep the adders busy, with conversions too, and leave the multipliers idle
    /// (by 1, the compiler would make it an addition).
    const SCALE: f64;

    /// # Safety
    /// `N` elements can be read at `at`, which need not be aligned beyond its element.
    unsafe fn load(self, at: *const T) -> Self::Vector;
    /// The first `k` <= `N` elements, zero in the other lanes.
    /// # Safety
    /// `k` elements can be read at `at`.
    unsafe fn load_first(self, at: *const T, k: usize) -> Self::Vector;
    /// # Safety
    /// `N` elements can be written at `at`.
    unsafe fn store(self, at: *mut T, v: Self::Vector);
    /// Writes the first `k` <= `N` lanes and nothing else.
    /// # Safety
    /// `k` elements can be written at `at`.
    unsafe fn store_first(self, at: *mut T, v: Self::Vector, k: usize);
    /// Like `store`, past the caches where the instruction set can; `fence` has to follow before other threads may look.
    /// # Safety
    /// `N` elements can be written at `at`, which is aligned to [`LINE`], or to a vector where that is less.
    #[inline(always)]
    unsafe fn stream(self, at: *mut T, v: Self::Vector) {
        // SAFETY: says the caller.
        unsafe { self.store(at, v) }
    }
    /// Orders what `stream` wrote before all that comes later.
    #[inline(always)]
    fn fence(self) {}

    /// As `load`, of a tensor; which for lanes over 16-bit numbers ([`half::Stored`]) is not in memory as vectors are.
    /// # Safety
    /// `N` elements of a tensor can be read at `at`.
    #[inline(always)]
    unsafe fn read(self, at: *const T) -> Self::Vector {
        // SAFETY: says the caller.
        unsafe { self.load(at) }
    }
    /// As `load_first`.
    /// # Safety
    /// `k` elements of a tensor can be read at `at`.
    #[inline(always)]
    unsafe fn read_first(self, at: *const T, k: usize) -> Self::Vector {
        // SAFETY: says the caller.
        unsafe { self.load_first(at, k) }
    }
    /// `N` elements widened, zero in the lanes whose bit is 0.
    /// # Safety
    /// As of `read`.
    unsafe fn read_widened(self, at: *const T, bits: u32) -> Self::Wide;
    /// As `store`; a NaN is the canonical one.
    /// # Safety
    /// `N` elements of a tensor can be written at `at`.
    #[inline(always)]
    unsafe fn write(self, at: *mut T, v: Self::Vector) {
        // SAFETY: says the caller.
        unsafe { self.store(at, v) }
    }
    /// As `store_first`.
    /// # Safety
    /// `k` elements of a tensor can be written at `at`.
    #[inline(always)]
    unsafe fn write_first(self, at: *mut T, v: Self::Vector, k: usize) {
        // SAFETY: says the caller.
        unsafe { self.store_first(at, v, k) }
    }
    /// As `stream`.
    /// # Safety
    /// `N` elements of a tensor can be written at `at`, which is aligned to [`LINE`], or to a vector where that is less.
    #[inline(always)]
    unsafe fn write_past(self, at: *mut T, v: Self::Vector) {
        // SAFETY: says the caller.
        unsafe { self.stream(at, v) }
    }
    /// Where a tensor's element is in memory.
    #[inline(always)]
    fn address(self, at: *const T) -> *const T {
        at
    }

    /// `N` 16-bit numbers, widened.
    /// # Safety
    /// They can be read at `at`.
    #[inline(always)]
    unsafe fn widen_half<const F16: bool>(self, at: *const u16) -> Self::Vector
    where
        T: Scalar,
    {
        let half = if F16 { Half::F16 } else { Half::Bf16 };
        let mut elements = [T::default(); LANES];
        // SAFETY: says the caller; as many elements are loaded as there are.
        unsafe {
            for (i, element) in elements.iter_mut().enumerate().take(Self::N) {
                *element = T::from_f64(half.to_f32(at.add(i).read()).into());
            }
            self.load(elements.as_ptr())
        }
    }
    /// The first `k` <= `N`, zero in the other lanes.
    /// # Safety
    /// They can be read at `at`.
    #[inline(always)]
    unsafe fn widen_half_first<const F16: bool>(self, at: *const u16, k: usize) -> Self::Vector
    where
        T: Scalar,
    {
        let mut numbers = [0; LANES];
        // SAFETY: says the caller; one by one, since a copy of a length known at run time is a call.
        unsafe {
            for (i, number) in numbers.iter_mut().enumerate().take(k) {
                *number = at.add(i).read();
            }
            self.widen_half::<F16>(numbers.as_ptr())
        }
    }
    /// Writes the nearest 16-bit numbers; a NaN is the canonical one.
    /// # Safety
    /// `N` can be written at `at`.
    #[inline(always)]
    unsafe fn narrow_half<const F16: bool>(self, at: *mut u16, v: Self::Vector)
    where
        T: Scalar,
    {
        let half = if F16 { Half::F16 } else { Half::Bf16 };
        let mut elements = [T::default(); LANES];
        // SAFETY: says the caller; as many elements are stored as there are.
        unsafe {
            self.store(elements.as_mut_ptr(), v);
            for (i, element) in elements.iter().enumerate().take(Self::N) {
                at.add(i).write(half.of_f32(element.to_f64() as f32));
            }
        }
    }
    /// The same of the first `k` <= `N` lanes.
    /// # Safety
    /// `k` can be written at `at`.
    #[inline(always)]
    unsafe fn narrow_half_first<const F16: bool>(self, at: *mut u16, v: Self::Vector, k: usize)
    where
        T: Scalar,
    {
        let mut numbers = [0; LANES];
        // SAFETY: says the caller; one by one, since a copy of a length known at run time is a call.
        unsafe {
            self.narrow_half::<F16>(numbers.as_mut_ptr(), v);
            for (i, number) in numbers.iter().enumerate().take(k) {
                at.add(i).write(*number);
            }
        }
    }
    /// The same past the caches where the instruction set can.
    /// # Safety
    /// `N` can be written at `at`, which is aligned to so many.
    #[inline(always)]
    unsafe fn stream_half<const F16: bool>(self, at: *mut u16, v: Self::Vector)
    where
        T: Scalar,
    {
        // SAFETY: says the caller.
        unsafe { self.narrow_half::<F16>(at, v) }
    }
    fn zero(self) -> Self::Vector;
    fn splat(self, value: T) -> Self::Vector;
    /// The first `k` <= `N` lanes of `a`, the others of `b`.
    fn select_first(self, a: Self::Vector, b: Self::Vector, k: usize) -> Self::Vector;
    fn add(self, a: Self::Vector, b: Self::Vector) -> Self::Vector;
    fn sub(self, a: Self::Vector, b: Self::Vector) -> Self::Vector;
    fn mul(self, a: Self::Vector, b: Self::Vector) -> Self::Vector;
    /// Every NaN replaced by the canonical one: whose NaN survives an operation differs between CPUs.
    fn canonical_nan(self, v: Self::Vector) -> Self::Vector;
    /// Every NaN and infinity replaced by 0.
    fn zero_unless_finite(self, v: Self::Vector) -> Self::Vector;
    fn div(self, a: Self::Vector, b: Self::Vector) -> Self::Vector;
    /// `bound` where that is more, else `v`: a NaN stays, and a zero.
    fn at_least(self, bound: Self::Vector, v: Self::Vector) -> Self::Vector;
    /// `bound` where that is less, else `v`.
    fn at_most(self, bound: Self::Vector, v: Self::Vector) -> Self::Vector;
    /// a <= b, which a NaN is not.
    fn less_equal(self, a: Self::Vector, b: Self::Vector) -> Self::Predicate;
    fn is_nan(self, v: Self::Vector) -> Self::Predicate;
    /// `a` where it holds, else `b`.
    fn select(self, predicate: Self::Predicate, a: Self::Vector, b: Self::Vector) -> Self::Vector;
    /// Bit i for lane i.
    fn to_bits(self, predicate: Self::Predicate) -> u32;
    /// The same back; bits beyond the lanes are not looked at.
    fn of_bits(self, bits: u32) -> Self::Predicate;
    /// The elements whose exponent (and sign) are the last bits of these elements' significands, and whose significands are
    /// those of a power of two.
    fn exponents(self, v: Self::Vector) -> Self::Vector;
    /// Runs a kernel as a function of its own: code that is too long to stand wherever a vector is made.
    fn apart<K: Kernel<T>>(self, kernel: K);

    fn widen(self, v: Self::Vector) -> Self::Wide;
    /// The nearest elements.
    fn narrow(self, v: Self::Wide) -> Self::Vector;
    fn zero_wide(self) -> Self::Wide;
    fn splat_wide(self, value: f64) -> Self::Wide;
    /// # Safety
    /// `N` values can be read at `at`.
    unsafe fn load_wide(self, at: *const f64) -> Self::Wide;
    /// # Safety
    /// `N` values can be written at `at`.
    unsafe fn store_wide(self, at: *mut f64, v: Self::Wide);
    fn add_wide(self, a: Self::Wide, b: Self::Wide) -> Self::Wide;
    /// The same, where `one` is 1: some of it by a fused multiply-add, where adders have conversions to do besides.
    #[inline(always)]
    fn add_by(self, _one: Self::Wide, a: Self::Wide, b: Self::Wide) -> Self::Wide {
        self.add_wide(a, b)
    }
    fn sub_wide(self, a: Self::Wide, b: Self::Wide) -> Self::Wide;
    /// a * one - b, where `one` is 1: by a fused multiply-add where there is one, since sums keep the adders busy and leave the
    /// multipliers idle. (A 1 that the compiler knew would make it a subtraction.)
    fn sub_by(self, one: Self::Wide, a: Self::Wide, b: Self::Wide) -> Self::Wide;
    fn mul_wide(self, a: Self::Wide, b: Self::Wide) -> Self::Wide;
    /// a * b - product, rounded once: of the rounded product, what its rounding left, exactly.
    fn product_rest(self, a: Self::Wide, b: Self::Wide, product: Self::Wide) -> Self::Wide;
    /// sum + `SCALE` * a.
    fn add_scaled(self, sum: Self::Wide, a: Self::Wide) -> Self::Wide;
    /// Zero in all lanes but the first `k` <= `N`.
    fn keep_first(self, v: Self::Wide, k: usize) -> Self::Wide;
    /// The sum of 16 lanes by halves: l and l + 8, then l and l + 4, l + 2, l + 1. They are the first vector, or both.
    fn sum_lanes(self, lanes: [Self::Wide; 2]) -> f64;
    /// sum + a * b, in two operations.
    fn add_product(self, sum: Self::Wide, a: Self::Wide, b: Self::Wide) -> Self::Wide;
    /// The same for factors that are elements: of f32 the product is exact (48 bits), so a fused multiply-add, where there
    /// is one, gives the same bits; of f64 it is two operations.
    fn add_element_product(self, sum: Self::Wide, a: Self::Wide, b: Self::Wide) -> Self::Wide;
}

/// The first `N` elements.
#[inline(always)]
pub fn load<T, S: Lanes<T>>(s: S, elements: &[T]) -> S::Vector {
    let elements = &elements[..S::N];
    // SAFETY: the slice has N elements.
    unsafe { s.load(elements.as_ptr()) }
}

/// To the first `N` elements.
#[inline(always)]
pub fn store<T, S: Lanes<T>>(s: S, elements: &mut [T], v: S::Vector) {
    let elements = &mut elements[..S::N];
    // SAFETY: the slice has N elements.
    unsafe { s.store(elements.as_mut_ptr(), v) }
}

/// Work to be compiled for every instruction set: a struct of arguments with one method.
pub trait Kernel<T> {
    /// Whether it interleaves two loops, which takes registers: then it is compiled for no level without many
    /// ([`Level::interleaves`]), and must be run on no other.
    const INTERLEAVES: bool = false;
    /// Whether it is compiled for lanes over 16-bit numbers ([`half`]), too, which takes code: it must be run on none else.
    const OF_HALVES: bool = false;

    /// Does the work. `#[inline(always)]` in every implementation and in all that it calls, and no vector operation in a
    /// closure (which cannot be told to be inlined): only then is it compiled with the instruction set of the
    /// trampoline that calls it.
    fn run<S: Lanes<T>>(self, lanes: S);
}

/// An element type that kernels can be dispatched for.
pub trait Dispatch: Sized {
    /// Runs a kernel on `level`, which the CPU must have: [`Level::active`] returns no other.
    fn dispatch<K: Kernel<Self>>(level: Level, kernel: K);
}

macro_rules! dispatch {
    ($($element:ty),*) => {$(
        impl Dispatch for $element {
            fn dispatch<K: Kernel<Self>>(level: Level, kernel: K) {
                match level {
                    // SAFETY: every `Level` in use was found on this CPU by `Level::available`.
                    #[cfg(target_arch = "x86_64")]
                    Level::Avx512 => unsafe { avx512::run(kernel) },
                    // SAFETY: as above.
                    #[cfg(target_arch = "x86_64")]
                    Level::Avx2 if !K::INTERLEAVES => unsafe { avx2::run(kernel) },
                    _ if !K::INTERLEAVES => kernel.run(portable::Portable),
                    _ => debug_assert!(false, "{level} interleaves no loops"),
                }
            }
        }
    )*};
}
for_elements!(dispatch);
