//! Lanes over tensors of 16-bit numbers.
//!
//! Kernels say where an element is by a pointer to elements, which are twice as long as the numbers. So a tensor that begins at address a
//! is given to them as one that begins at 2 * a: element i is at 2 * a + 4 * i there, and so its number at half of that, whichever tensor
//! it is of. Such a pointer points to nothing; it is only ever added to (`wrapping_add`), and halved by the lanes.

use std::ptr;

use super::super::{Kernel, Lanes};
use crate::ground::slices::{Input, Output};

/// The tensor as one of elements, for [`AsStored`] kernels; none if its addresses have no double.
pub fn doubled(tensor: Input<'_, u16>) -> Option<Input<'_, f32>> {
    let address = double(tensor.as_ptr().expose_provenance(), tensor.len())?;
    Some(tensor.at(ptr::without_provenance(address)))
}

/// The same of a tensor that is written.
pub fn doubled_mut(tensor: Output<'_, u16>) -> Option<Output<'_, f32>> {
    let address = double(tensor.as_ptr().expose_provenance(), tensor.len())?;
    Some(tensor.at(ptr::without_provenance_mut(address)))
}

fn double(address: usize, len: usize) -> Option<usize> {
    let end = address.checked_add(len.checked_mul(size_of::<u16>())?)?;
    end.checked_mul(2)?;
    Some(2 * address)
}

/// A kernel whose tensors are [`doubled`] ones.
pub struct AsStored<K, const F16: bool>(pub K);

impl<K: Kernel<f32>, const F16: bool> Kernel<f32> for AsStored<K, F16> {
    #[inline(always)]
    fn run<S: Lanes<f32>>(self, s: S) {
        self.0.run(Stored::<S, F16>(s));
    }
}

/// Lanes whose tensors are of 16-bit numbers.
#[derive(Clone, Copy)]
pub struct Stored<S, const F16: bool>(S);

/// The number of a doubled tensor's element.
#[inline(always)]
fn number(at: *const f32) -> *const u16 {
    ptr::with_exposed_provenance(at.addr() / 2)
}

/// The same, to be written.
#[inline(always)]
fn number_mut(at: *mut f32) -> *mut u16 {
    ptr::with_exposed_provenance_mut(at.addr() / 2)
}

/// Methods that are those of the lanes within.
macro_rules! within {
    (unsafe: $(fn $name:ident($($argument:ident: $type:ty),*) $(-> $result:ty)?;)*) => {$(
        #[inline(always)]
        unsafe fn $name(self, $($argument: $type),*) $(-> $result)? {
            // SAFETY: says the caller.
            unsafe { self.0.$name($($argument),*) }
        }
    )*};
    ($(fn $name:ident($($argument:ident: $type:ty),*) $(-> $result:ty)?;)*) => {$(
        #[inline(always)]
        fn $name(self, $($argument: $type),*) $(-> $result)? {
            self.0.$name($($argument),*)
        }
    )*};
}

impl<S: Lanes<f32>, const F16: bool> Lanes<f32> for Stored<S, F16> {
    type Vector = S::Vector;
    type Wide = S::Wide;
    type Predicate = S::Predicate;
    const N: usize = S::N;
    const STREAMS: usize = S::STREAMS;
    const SCALE: f64 = S::SCALE;
    const FILLS_LINES: bool = false;

    #[inline(always)]
    unsafe fn read(self, at: *const f32) -> S::Vector {
        // SAFETY: says the caller.
        unsafe { self.0.widen_half::<F16>(number(at)) }
    }
    #[inline(always)]
    unsafe fn read_first(self, at: *const f32, k: usize) -> S::Vector {
        // SAFETY: says the caller.
        unsafe { self.0.widen_half_first::<F16>(number(at), k) }
    }
    #[inline(always)]
    unsafe fn read_widened(self, at: *const f32, bits: u32) -> S::Wide {
        // SAFETY: says the caller.
        let v = unsafe { self.read(at) };
        self.0.widen(self.0.select(self.0.of_bits(bits), v, self.0.zero()))
    }
    #[inline(always)]
    unsafe fn write(self, at: *mut f32, v: S::Vector) {
        // SAFETY: says the caller.
        unsafe { self.0.narrow_half::<F16>(number_mut(at), v) }
    }
    #[inline(always)]
    unsafe fn write_first(self, at: *mut f32, v: S::Vector, k: usize) {
        // SAFETY: says the caller.
        unsafe { self.0.narrow_half_first::<F16>(number_mut(at), v, k) }
    }
    #[inline(always)]
    unsafe fn write_past(self, at: *mut f32, v: S::Vector) {
        // SAFETY: says the caller; where elements are aligned to a line, numbers are to half of one.
        unsafe { self.0.stream_half::<F16>(number_mut(at), v) }
    }
    #[inline(always)]
    fn address(self, at: *const f32) -> *const f32 {
        number(at).cast()
    }
    #[inline(always)]
    fn apart<K: Kernel<f32>>(self, kernel: K) {
        self.0.apart(AsStored::<K, F16>(kernel));
    }

    within! {
        unsafe:
        fn load(at: *const f32) -> S::Vector;
        fn load_first(at: *const f32, k: usize) -> S::Vector;
        fn store(at: *mut f32, v: S::Vector);
        fn store_first(at: *mut f32, v: S::Vector, k: usize);
        fn stream(at: *mut f32, v: S::Vector);
        fn load_wide(at: *const f64) -> S::Wide;
        fn store_wide(at: *mut f64, v: S::Wide);
    }
    within! {
        fn fence();
        fn zero() -> S::Vector;
        fn splat(value: f32) -> S::Vector;
        fn select_first(a: S::Vector, b: S::Vector, k: usize) -> S::Vector;
        fn add(a: S::Vector, b: S::Vector) -> S::Vector;
        fn sub(a: S::Vector, b: S::Vector) -> S::Vector;
        fn mul(a: S::Vector, b: S::Vector) -> S::Vector;
        fn canonical_nan(v: S::Vector) -> S::Vector;
        fn zero_unless_finite(v: S::Vector) -> S::Vector;
        fn div(a: S::Vector, b: S::Vector) -> S::Vector;
        fn at_least(bound: S::Vector, v: S::Vector) -> S::Vector;
        fn at_most(bound: S::Vector, v: S::Vector) -> S::Vector;
        fn less_equal(a: S::Vector, b: S::Vector) -> S::Predicate;
        fn is_nan(v: S::Vector) -> S::Predicate;
        fn select(predicate: S::Predicate, a: S::Vector, b: S::Vector) -> S::Vector;
        fn to_bits(predicate: S::Predicate) -> u32;
        fn of_bits(bits: u32) -> S::Predicate;
        fn exponents(v: S::Vector) -> S::Vector;
        fn widen(v: S::Vector) -> S::Wide;
        fn narrow(v: S::Wide) -> S::Vector;
        fn zero_wide() -> S::Wide;
        fn splat_wide(value: f64) -> S::Wide;
        fn add_wide(a: S::Wide, b: S::Wide) -> S::Wide;
        fn add_by(one: S::Wide, a: S::Wide, b: S::Wide) -> S::Wide;
        fn sub_wide(a: S::Wide, b: S::Wide) -> S::Wide;
        fn sub_by(one: S::Wide, a: S::Wide, b: S::Wide) -> S::Wide;
        fn mul_wide(a: S::Wide, b: S::Wide) -> S::Wide;
        fn product_rest(a: S::Wide, b: S::Wide, product: S::Wide) -> S::Wide;
        fn add_scaled(sum: S::Wide, a: S::Wide) -> S::Wide;
        fn keep_first(v: S::Wide, k: usize) -> S::Wide;
        fn sum_lanes(lanes: [S::Wide; 2]) -> f64;
        fn add_product(sum: S::Wide, a: S::Wide, b: S::Wide) -> S::Wide;
        fn add_element_product(sum: S::Wide, a: S::Wide, b: S::Wide) -> S::Wide;
    }
}
