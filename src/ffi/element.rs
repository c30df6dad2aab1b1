//! What tensors hold, which a problem says, and how they become what Rust takes.

use std::ffi::c_void;

use super::arguments::{Arguments, Failure};
use crate::ground::half::{Half, Halves};
use crate::ground::slices::{Input, Output, Sink, Source};
use crate::operations::Element;

/// What a tensor's elements are.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum ElementType {
    F32,
    F64,
    Half(Half),
}

/// Calls a function of what arithmetic on the problem's elements is done in.
macro_rules! by_element {
    ($problem:expr, $function:ident($($argument:expr),*)) => {
        match $problem.element {
            $crate::ffi::element::ElementType::F64 => $function::<f64>($($argument),*),
            _ => $function::<f32>($($argument),*),
        }
    };
}
pub(super) use by_element;

impl Arguments {
    /// A tensor that is read, of numbers that arithmetic in T stands for.
    ///
    /// # Safety
    /// As of `read`.
    pub(super) unsafe fn source<'a, T: Element>(
        &mut self,
        name: &'static str,
        at: *const c_void,
        (len, element): (usize, ElementType),
    ) -> Result<Source<'a, T>, Failure> {
        // SAFETY: says the caller.
        unsafe {
            match half_of::<T>(element) {
                None => Ok(T::source(self.read(name, at.cast(), len)?)),
                Some(half) => Ok(Source::Half(Input::new(self.read(name, at.cast(), len)?), half)),
            }
        }
    }

    /// The same that is written.
    ///
    /// # Safety
    /// As of `write`.
    pub(super) unsafe fn sink<'a, T: Element>(
        &mut self,
        name: &'static str,
        at: *mut c_void,
        (len, element): (usize, ElementType),
    ) -> Result<Sink<'a, T>, Failure> {
        // SAFETY: says the caller.
        unsafe {
            match half_of::<T>(element) {
                None => Ok(T::sink(self.write(name, at.cast(), len)?)),
                Some(half) => Ok(Sink::Half(Output::new(self.write(name, at.cast(), len)?), half)),
            }
        }
    }
}

/// The 16-bit numbers that an element type is of, if it is.
fn half_of<T: Element>(element: ElementType) -> Option<T::Half> {
    match element {
        ElementType::Half(half) => T::Half::of(half),
        _ => None,
    }
}
