//! ndarray's views as the operations take them: feature `ndarray`.
//!
//! A view of any rank from 2 on, with its channel axis, gives a [`Shape`] and a slice without a copy, if its elements
//! are dense in memory and all axes but the channels' in their order: standard order with the channels in whichever axis
//! (NCHW as `Axis(1)`, NHWC as the last one), or a permuted view of such an array.
//!
//! ```
//! use batchnorm::ndarray::{slice, slice_mut_like};
//! use batchnorm::{Layout, Params, Welford};
//! use ndarray::{Array4, Axis};
//!
//! // In memory NHWC, seen as NCHW.
//! let x = Array4::from_shape_fn((8, 6, 5, 3), |(n, h, w, c)| (n + h * w + c) as f32);
//! let x = x.view().permuted_axes([0, 3, 1, 2]);
//! let mut y = Array4::zeros((8, 6, 5, 3)).permuted_axes([0, 3, 1, 2]);
//!
//! let (shape, x) = slice(x, Axis(1))?;
//! assert_eq!((shape.layout(), shape.channels()), (Layout::Nhwc, 3));
//! let mut states = vec![Welford::new(); 3];
//! let y = slice_mut_like(y.view_mut(), Axis(1), &shape)?;
//! batchnorm::forward_training(&shape, x, &Params::default(), y, &mut states)?;
//! # Ok::<(), batchnorm::Error>(())
//! ```
//!
//! A residual is one more tensor that lies as x does; y may be written over it:
//!
//! ```
//! use batchnorm::ndarray::{slice, slice_like, slice_mut_like};
//! use batchnorm::{Activation, Params, Training, Welford};
//! use ndarray::{Array4, Axis};
//!
//! let x = Array4::from_shape_fn((8, 3, 6, 5), |(n, c, h, w)| (n + c + h * w) as f32);
//! let z = Array4::from_elem((8, 3, 6, 5), 0.5f32);
//! let mut y = Array4::zeros((8, 3, 6, 5));
//!
//! let (shape, x) = slice(x.view(), Axis(1))?;
//! let z = slice_like(z.view(), Axis(1), &shape)?;
//! let (mut states, mut mask) = ([Welford::new(); 3], vec![0; shape.mask_len()]);
//! let params = Params::default().activation(Activation::Relu);
//! Training::new(&shape, params)
//!     .x(x)
//!     .residual(z)
//!     .y(slice_mut_like(y.view_mut(), Axis(1), &shape)?)
//!     .states(&mut states)
//!     .mask(&mut mask) // what the backward pass takes
//!     .run()?;
//! assert!(y.iter().all(|&y| y >= 0.0));
//! # Ok::<(), batchnorm::Error>(())
//! ```
//!
//! Views are of whatever a [`Storage`](crate::Storage) is: with the feature `half` of bf16 and f16 too, y of another than x.
//!
//! ```
//! # #[cfg(feature = "half")] {
//! use batchnorm::ndarray::{slice, slice_mut_like};
//! use batchnorm::{Params, Training, Welford};
//! use half::bf16;
//! use ndarray::{Array3, Axis};
//!
//! let x = Array3::from_shape_fn((8, 3, 6), |(n, c, l)| bf16::from_f32((n + c * l) as f32));
//! let mut y = Array3::<f32>::zeros((8, 3, 6));
//!
//! let (shape, x) = slice(x.view(), Axis(1))?;
//! let mut states = [Welford::new(); 3];
//! let training = Training::new(&shape, Params::default()).x(x).states(&mut states);
//! training.y_of(slice_mut_like(y.view_mut(), Axis(1), &shape)?).run()?;
//! assert_eq!(y[[0, 0, 0]], -y[[7, 0, 0]]);
//! # }
//! # Ok::<(), batchnorm::Error>(())
//! ```

#![forbid(unsafe_code)]

use ::ndarray::{ArrayView, ArrayViewMut, Axis, Dimension};

use crate::api::shape::{Layout, Shape};
use crate::ground::error::Error;

/// The shape and the elements of a view with its channels in axis `channels`.
///
/// # Errors
/// [`Error::Rank`], [`Error::Axis`], [`Error::Overflow`]; [`Error::View`] if the view does not lie in memory in one of
/// the layouts.
pub fn slice<'a, T, D: Dimension>(
    view: ArrayView<'a, T, D>,
    channels: Axis,
) -> Result<(Shape, &'a [T]), Error> {
    let shape = shape(view.shape(), view.strides(), channels, None)?;
    Ok((shape, view.to_slice_memory_order().unwrap_or_default()))
}

/// [`slice()`] to be written to.
///
/// # Errors
/// As [`slice()`].
pub fn slice_mut<'a, T, D: Dimension>(
    view: ArrayViewMut<'a, T, D>,
    channels: Axis,
) -> Result<(Shape, &'a mut [T]), Error> {
    let shape = shape(view.shape(), view.strides(), channels, None)?;
    Ok((shape, view.into_slice_memory_order().unwrap_or_default()))
}

/// The elements of a view that goes with another of this shape: for dy and a residual, which must lie in memory as x does.
///
/// # Errors
/// As [`slice()`]; [`Error::View`] also if the view is of another shape or layout.
pub fn slice_like<'a, T, D: Dimension>(
    view: ArrayView<'a, T, D>,
    channels: Axis,
    like: &Shape,
) -> Result<&'a [T], Error> {
    shape(view.shape(), view.strides(), channels, Some(like))?;
    Ok(view.to_slice_memory_order().unwrap_or_default())
}

/// [`slice_like`] to be written to: for y, dx and dz.
///
/// # Errors
/// As [`slice_like`].
pub fn slice_mut_like<'a, T, D: Dimension>(
    view: ArrayViewMut<'a, T, D>,
    channels: Axis,
    like: &Shape,
) -> Result<&'a mut [T], Error> {
    shape(view.shape(), view.strides(), channels, Some(like))?;
    Ok(view.into_slice_memory_order().unwrap_or_default())
}

/// The shape of a view with these dimensions and strides; `like` this one if there is a choice.
fn shape(dims: &[usize], strides: &[isize], channels: Axis, like: Option<&Shape>) -> Result<Shape, Error> {
    let (rank, axis) = (dims.len(), channels.0);
    if rank < 2 {
        return Err(Error::Rank { rank });
    }
    if axis >= rank {
        return Err(Error::Axis { axis, rank });
    }
    let others: Vec<usize> = (0..rank).filter(|&other| other != axis).collect();
    // Where the channels lie in memory among the other axes: where they lie among the dimensions, or else anywhere.
    for place in [axis, rank - 1].into_iter().chain(0..rank) {
        let (outer, inner) = others.split_at(place);
        let order: Vec<usize> = outer.iter().chain([&axis]).chain(inner).copied().collect();
        if !is_dense(dims, strides, &order) {
            continue;
        }
        let sizes = |axes: &[usize]| axes.iter().map(|&axis| dims[axis]).collect::<Vec<_>>();
        let shape = match (outer, inner) {
            ([batch, spatial @ ..], []) if !spatial.is_empty() => {
                Shape::new(Layout::Nhwc, dims[*batch], dims[axis], &sizes(spatial))?
            }
            _ => {
                // Refuses what overflows before the batch axes are multiplied.
                Shape::nchw(dims)?;
                Shape::new(Layout::Nchw, sizes(outer).iter().product(), dims[axis], &sizes(inner))?
            }
        };
        if like.is_none_or(|like| like.lies_like(&shape)) {
            return Ok(shape);
        }
    }
    let like = like.map(Shape::to_string);
    Err(Error::View { dims: dims.to_vec(), strides: strides.to_vec(), axis, like })
}

/// Whether the elements follow each other without gaps when the axes are nested in this order. What is dense in any order
/// is a slice to ndarray, too, but for some views of no elements, whose slice is the empty one.
fn is_dense(dims: &[usize], strides: &[isize], order: &[usize]) -> bool {
    let mut expected = 1usize;
    dims.contains(&0)
        || order.iter().rev().all(|&axis| {
            let dense = dims[axis] == 1 || usize::try_from(strides[axis]) == Ok(expected);
            expected = expected.saturating_mul(dims[axis]);
            dense
        })
}
