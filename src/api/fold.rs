//! Folding: a trained batch norm in the weights and the bias of the layer before it.

#![forbid(unsafe_code)]

use std::fmt;

use crate::api::params::Params;
use crate::api::shape::{Layout, Shape};
use crate::ground::error::{Error, check_len};
use crate::ground::slices::Sink;
use crate::operations::Element;
use crate::operations::fold::{Blocks, Fold};
use crate::operations::storage::Storage;

/// Where the output channels of a layer's weights are: their axis, among those before and behind it.
///
/// | layer | weights, as they lie in memory | shape |
/// |---|---|---|
/// | convolution of PyTorch, candle, burn, ONNX, with any groups | \[out, in / groups, kh, kw\] | `new(dims, 0)` |
/// | Linear of PyTorch and candle | \[out, in\] | `new(dims, 0)` |
/// | ConvTranspose of PyTorch, candle, burn, ONNX | \[in, out / groups, kh, kw\] | `grouped(dims, 1, groups)` |
/// | convolution of Keras, TensorFlow and Flax, with any groups | \[kh, kw, in / groups, out\] | `new(dims, 3)` |
/// | Dense of Keras and Flax, Linear of burn | \[in, out\] | `new(dims, 1)` |
/// | Conv2DTranspose of Keras | \[kh, kw, out, in\] | `new(dims, 2)` |
/// | DepthwiseConv2D of Keras | \[kh, kw, in, multiplier\] | `new(&[kh, kw, in * multiplier], 2)` |
///
/// Groups make a difference where the output channels come behind the input channels that they belong to: channel j of group g is
/// output channel g * (out / groups) + j. In the other layouts each weight says its output channel, whatever the groups.
///
/// It is printed as rows x channels x elements, as in "1x64x147" or, of each group, "2 groups of 8x16x9".
///
/// ```
/// use batchnorm::WeightShape;
/// assert_eq!(WeightShape::new(&[64, 3, 7, 7], 0)?.channels(), 64);
/// assert_eq!(WeightShape::new(&[7, 7, 3, 64], 3)?.channels(), 64);
/// let transposed = WeightShape::grouped(&[16, 16, 3, 3], 1, 2)?;
/// assert_eq!((transposed.channels(), transposed.len()), (32, 2304));
/// assert_eq!(transposed.to_string(), "2 groups of 8x16x9");
/// # Ok::<(), batchnorm::Error>(())
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct WeightShape {
    blocks: Blocks,
}

impl WeightShape {
    /// Weights of dimensions `dims` in their order in memory, with the output channels in axis `axis`.
    ///
    /// # Errors
    /// [`Error::Axis`] if there is no such axis, [`Error::Overflow`] if a slice cannot have so many elements.
    pub fn new(dims: &[usize], axis: usize) -> Result<Self, Error> {
        Self::grouped(dims, axis, 1)
    }

    /// Weights whose first axis goes through the groups, with the output channels of one group in axis `axis`.
    ///
    /// # Errors
    /// As [`new`](Self::new); [`Error::Groups`] if the product of the axes before `axis` (1 of none) is no multiple of the groups.
    pub fn grouped(dims: &[usize], axis: usize, groups: usize) -> Result<Self, Error> {
        let Some(&channels) = dims.get(axis) else { return Err(Error::Axis { axis, rank: dims.len() }) };
        match dims {
            [first, second, others @ ..] => Shape::new(Layout::Nchw, *first, *second, others)?,
            _ => Shape::new(Layout::Nchw, 1, channels, &[])?,
        };
        let (before, behind) = (&dims[..axis], &dims[axis + 1..]);
        let (rows, inner) = (before.iter().product::<usize>(), behind.iter().product());
        check_groups(groups, "rows before the output channels", rows)?;
        // Of no rows there may be any number of groups.
        Shape::new(Layout::Nchw, groups, channels, &[])?;
        Ok(Self { blocks: Blocks { groups, outer: rows / groups, channels, inner } })
    }

    /// The number of output channels.
    pub fn channels(&self) -> usize {
        self.blocks.groups * self.blocks.channels
    }

    /// The number of weights.
    #[expect(clippy::len_without_is_empty, reason = "a shape is a description, not a container")]
    pub fn len(&self) -> usize {
        let Blocks { groups, outer, channels, inner } = self.blocks;
        groups * outer * channels * inner
    }

    /// The output channel of the weight at an offset.
    pub(crate) fn channel(&self, offset: usize) -> usize {
        let Blocks { outer, channels, inner, .. } = self.blocks;
        let row = offset / (channels * inner);
        row / outer * channels + offset / inner % channels
    }

    /// That it has the number of channels of what it goes with.
    pub(crate) fn check_channels(&self, with: &'static str, expected: usize) -> Result<(), Error> {
        let got = self.channels();
        if got == expected {
            return Ok(());
        }
        Err(Error::Channels { shape: self.to_string(), got, with, expected })
    }
}

/// That groups are as large as each other.
pub(crate) fn check_groups(groups: usize, of: &'static str, size: usize) -> Result<(), Error> {
    if groups > 0 && size.is_multiple_of(groups) { Ok(()) } else { Err(Error::Groups { groups, of, size }) }
}

impl fmt::Display for WeightShape {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Blocks { groups, outer, channels, inner } = self.blocks;
        if groups != 1 {
            write!(f, "{groups} groups of ")?;
        }
        write!(f, "{outer}x{channels}x{inner}")
    }
}

/// Folds inference by a mean and a variance per output channel into the weights and the bias of the layer before it, which then
/// gives what both gave: with scale = gamma / sqrt(var + eps),
///
/// - weight = weight * scale, of the weight's output channel;
/// - bias = (bias - mean) * scale + beta.
///
/// `bias` holds the layer's bias, zeros where it has none, and then the bias that it has to have. It may be of other numbers than
/// `weight`, such as f32 beside bf16. What comes behind the normalization stays with the caller: a residual, and the activation of
/// `params`, which is checked and no more.
///
/// Each result is the formula's value to some 100 bits, rounded once, to the nearest, ties to even: neither a scale that is out of
/// range, nor terms that cancel, cost more. One of 16 bits has not been rounded to f32 before. All of it is done on the calling
/// thread.
///
/// A NaN variance, and a negative one that eps does not make up for (var + eps < 0), gives NaN in its channel and no other, as in
/// [`forward_inference`](crate::forward_inference). Where var + eps is 0, the scale is gamma / 0 as IEEE 754 has it: weights are
/// infinite, or NaN of 0, and sums of such are mostly NaN; fold with another eps then, or not at all.
///
/// # Errors
/// [`Error::Length`], [`Error::Epsilon`], [`Error::NotFinite`] and [`Error::Clip`] for the activation's numbers. Nothing has been
/// written then.
///
/// ```
/// use batchnorm::{Params, WeightShape, fold_into};
/// // A layer of 2 outputs, 3 inputs: PyTorch's Linear, without a bias.
/// let (mut weight, mut bias) = ([1.0f32, 2.0, 3.0, 4.0, 5.0, 6.0], [0.0f32; 2]);
/// let (mean, var, gamma, beta) = ([1.0, 2.0], [4.0, 16.0], [1.0, 8.0], [0.5, 0.25]);
/// let params = Params::new(0.0).gamma(&gamma).beta(&beta);
/// fold_into(&WeightShape::new(&[2, 3], 0)?, &mean, &var, &params, &mut weight, &mut bias)?;
/// assert_eq!(weight, [0.5, 1.0, 1.5, 8.0, 10.0, 12.0]);
/// assert_eq!(bias, [0.0, -3.75]);
/// # Ok::<(), batchnorm::Error>(())
/// ```
///
/// A convolution of bf16 (feature `half`) as Keras has it, with a bias of f32:
///
/// ```
/// # #[cfg(feature = "half")] {
/// use batchnorm::{Params, WeightShape, fold_into};
/// use half::bf16;
/// let shape = WeightShape::new(&[1, 2, 1, 2], 3)?;
/// let (mut weight, mut bias) = ([1.0, 2.0, 3.0, 4.0].map(bf16::from_f32), [0.1f32, 0.2]);
/// fold_into(&shape, &[0.0, 0.0], &[0.25, 1.0], &Params::new(0.0), &mut weight, &mut bias)?;
/// assert_eq!(weight, [2.0, 2.0, 6.0, 4.0].map(bf16::from_f32));
/// assert_eq!(bias, [0.2, 0.2]);
/// # }
/// # Ok::<(), batchnorm::Error>(())
/// ```
pub fn fold_into<S: Storage, B: Storage<Arithmetic = S::Arithmetic>>(
    shape: &WeightShape,
    mean: &[S::Arithmetic],
    var: &[S::Arithmetic],
    params: &Params<'_, S::Arithmetic>,
    weight: &mut [S],
    bias: &mut [B],
) -> Result<(), Error> {
    fold(shape, (mean, var), params, S::sink(weight), B::sink(bias))
}

/// The same of numbers of a type that is not the caller's to know.
pub(crate) fn fold<T: Element>(
    shape: &WeightShape,
    (mean, var): (&[T], &[T]),
    params: &Params<'_, T>,
    weight: Sink<'_, T>,
    bias: Sink<'_, T>,
) -> Result<(), Error> {
    let (len, channels) = (shape.len(), shape.channels());
    if weight.len() != len {
        let (got, shape) = (weight.len(), Some(shape.to_string()));
        return Err(Error::Length { argument: "weight", got, expected: len, shape });
    }
    check_len("bias", bias.len(), channels)?;
    check_len("mean", mean.len(), channels)?;
    check_len("var", var.len(), channels)?;
    let affine = params.checked(channels)?;
    T::fold(&Fold { blocks: shape.blocks, mean, var, affine, weight, bias });
    Ok(())
}
