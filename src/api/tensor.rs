//! An owning buffer, so that examples, tests and users have one.

#![forbid(unsafe_code)]

use aligned_vec::{AVec, ConstAlign};
use std::ops::{Deref, DerefMut};

use crate::api::shape::Shape;
use crate::ground::error::Error;
use crate::operations::storage::Storage;

/// A tensor that owns its elements, of any [`Storage`], aligned to 64 bytes (a cache line, and the widest vector).
///
/// It dereferences to a slice; the kernels take slices of any alignment, so this type is a convenience.
///
/// ```
/// use batchnorm::{Shape, Tensor};
/// let x = Tensor::from_fn(Shape::nchw(&[2, 3, 4, 4])?, |i| i as f32);
/// assert_eq!(x.len(), 96);
/// assert_eq!(x.as_ptr() as usize % 64, 0);
/// # Ok::<(), batchnorm::Error>(())
/// ```
#[derive(Debug, Clone, PartialEq)]
pub struct Tensor<S> {
    shape: Shape,
    data: AVec<S, ConstAlign<64>>,
}

impl<S: Storage> Tensor<S> {
    /// A tensor of zeros.
    pub fn zeros(shape: Shape) -> Self {
        Self::from_fn(shape, |_| S::default())
    }

    /// A tensor whose element at offset `i` of memory is `f(i)`.
    pub fn from_fn(shape: Shape, f: impl FnMut(usize) -> S) -> Self {
        let mut data = AVec::with_capacity(64, shape.len());
        for value in (0..shape.len()).map(f) {
            data.push(value);
        }
        Self { shape, data }
    }

    /// A copy of `values`, which lie in the shape's order.
    ///
    /// # Errors
    /// [`Error::Length`] if there are more or fewer than the shape has elements.
    pub fn from_slice(shape: Shape, values: &[S]) -> Result<Self, Error> {
        shape.check_tensor("values", values.len())?;
        Ok(Self { shape, data: AVec::from_slice(64, values) })
    }

    /// The shape.
    pub fn shape(&self) -> &Shape {
        &self.shape
    }
}

impl<S> Deref for Tensor<S> {
    type Target = [S];
    fn deref(&self) -> &[S] {
        &self.data
    }
}

impl<S> DerefMut for Tensor<S> {
    fn deref_mut(&mut self) -> &mut [S] {
        &mut self.data
    }
}
