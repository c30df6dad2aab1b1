//! What tensors may hold.

#![forbid(unsafe_code)]

use std::fmt::Debug;

use crate::ground::scalar::Sealed;
use crate::ground::slices::{Input, Output, Sink, Source};
use crate::operations::Element;

/// A number that tensors may hold: `f32` and `f64`, in which arithmetic is done too, and with the feature `half` the crate half's
/// `bf16` and `f16`, for which arithmetic is that of f32. Sealed.
///
/// Of `bf16` and `f16`, results are those of the operation on the tensors widened to f32, each rounded once, to the nearest, ties
/// to even: subnormal numbers are kept, what is beyond the largest `f16` is infinite, a NaN is the canonical one. Parameters,
/// statistics and their gradients, all that is per channel, are f32.
///
/// ```
/// # #[cfg(feature = "half")] {
/// use batchnorm::{Params, Shape, Welford};
/// use half::bf16;
///
/// let (x, gamma) = ([1.0, 3.0, 1.0, 3.0].map(bf16::from_f32), [0.1f32]);
/// let (mut y, mut states) = ([bf16::ZERO; 4], [Welford::new()]);
/// let params = Params::new(0.0).gamma(&gamma);
/// batchnorm::forward_training(&Shape::nchw(&[4, 1])?, &x, &params, &mut y, &mut states)?;
/// assert_eq!(y, [-0.1, 0.1, -0.1, 0.1].map(bf16::from_f32));
/// # }
/// # Ok::<(), batchnorm::Error>(())
/// ```
///
/// x, and dx which lies as it does, are of one type; y, dy, the residual and dz may be of another whose arithmetic is the same
/// ([`Training::y_of`](crate::Training::y_of), [`Backward::dy_of`](crate::Backward::dy_of) and their like). The layer takes any of them,
/// all tensors of a call of one type:
///
/// ```
/// # #[cfg(feature = "half")] {
/// use batchnorm::{BatchNorm, Shape};
/// use half::f16;
///
/// let (shape, mut layer) = (Shape::nchw(&[2, 3, 5])?, BatchNorm::<f32>::new(3));
/// let x: Vec<f16> = (0..30u8).map(f16::from).collect();
/// let (mut y, mut dx) = (x.clone(), x.clone());
/// layer.forward_training(&shape, &x, &mut y)?;
/// layer.backward(&shape, &x, &y, &mut dx)?;
/// assert_eq!(layer.running_mean()[0], 0.95); // of the batch's mean, 9.5
/// # }
/// # Ok::<(), batchnorm::Error>(())
/// ```
pub trait Storage: Stored + Copy + Default + PartialEq + Debug + Send + Sync + 'static {
    /// What arithmetic is done in, and what is per channel: f32 for `f32`, `bf16` and `f16`, f64 for `f64`.
    type Arithmetic: Element;

    /// The value, exactly.
    ///
    /// ```
    /// use batchnorm::Storage;
    /// assert_eq!(1.5f32.widened(), 1.5);
    /// # #[cfg(feature = "half")]
    /// assert_eq!(half::bf16::from_bits(0x3fc0).widened(), 1.5f32);
    /// ```
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
