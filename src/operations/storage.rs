//! What tensors may hold.

#![forbid(unsafe_code)]

use std::fmt::Debug;

use crate::ground::scalar::Sealed;
use crate::ground::slices::{Input, Output, Sink, Source};
use crate::operations::Element;

/// A number that tensors may hold: `f32` and `f64`, in which arithmetic is done too, and with the feature `half` its `bf16` and
/// `f16`, for which arithmetic is that of f32. Sealed.
///
/// Of `bf16` and `f16`, results are those of the operation on the tensors widened to f32, each rounded once, to the nearest, ties
/// to even. Parameters and statistics of channels are f32.
pub trait Storage: Stored + Copy + Default + PartialEq + Debug + Send + Sync + 'static {
    /// What arithmetic is done in, and what is per channel.
    type Arithmetic: Element;

    /// The value, exactly.
    fn widened(self) -> Self::Arithmetic;
    #[doc(hidden)]
    fn source(tensor: &[Self]) -> Source<'_, Self::Arithmetic>;
    #[doc(hidden)]
    fn sink(tensor: &mut [Self]) -> Sink<'_, Self::Arithmetic>;
}

/// Private by being unnameable.
pub trait Stored {}

impl<T: Sealed> Stored for T {}

macro_rules! elements {
    ($($element:ty),*) => {$(
        impl Storage for $element {
            type Arithmetic = $element;

            fn widened(self) -> $element {
                self
            }
            fn source(tensor: &[Self]) -> Source<'_, $element> {
                Source::Whole(Input::new(tensor))
            }
            fn sink(tensor: &mut [Self]) -> Sink<'_, $element> {
                Sink::Whole(Output::new(tensor))
            }
        }
    )*};
}
crate::ground::scalar::for_elements!(elements);

#[cfg(feature = "half")]
macro_rules! halves {
    ($($number:ty: $half:ident),*) => {$(
        impl Stored for $number {}

        impl Storage for $number {
            type Arithmetic = f32;

            fn widened(self) -> f32 {
                self.to_f32()
            }
            fn source(tensor: &[Self]) -> Source<'_, f32> {
                Source::Half(Input::new(tensor.reinterpret_cast()), Half::$half)
            }
            fn sink(tensor: &mut [Self]) -> Sink<'_, f32> {
                Sink::Half(Output::new(tensor.reinterpret_cast_mut()), Half::$half)
            }
        }
    )*};
}
#[cfg(feature = "half")]
use {crate::ground::half::Half, half::slice::HalfFloatSliceExt};
#[cfg(feature = "half")]
halves!(half::bf16: Bf16, half::f16: F16);
