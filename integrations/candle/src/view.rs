//! Which kernels a candle tensor can go to as it lies in memory.

#![forbid(unsafe_code)]

use batchnorm::{Layout, Shape};
use candle_core::{Error, Result, Tensor};

/// The axes of a tensor of this rank in the order in which they lie in memory: what makes a channels-last view, whose
/// dimensions are N, C, spatial..., contiguous.
pub(crate) fn to_memory(layout: Layout, rank: usize) -> Vec<usize> {
    match layout {
        Layout::Nchw => (0..rank).collect(),
        Layout::Nhwc => (0..1).chain(2..rank).chain(1..2).collect(),
    }
}

/// The inverse of [`to_memory`].
pub(crate) fn from_memory(layout: Layout, rank: usize) -> Vec<usize> {
    match layout {
        Layout::Nchw => (0..rank).collect(),
        Layout::Nhwc => (0..1).chain(rank - 1..rank).chain(1..rank - 1).collect(),
    }
}

/// The tensor, copied if it is neither contiguous nor a channels-last view, and its shape in memory.
pub(crate) fn dense(x: &Tensor) -> Result<(Tensor, Shape)> {
    let x = if x.is_contiguous() || is_channels_last(x) { x.clone() } else { x.contiguous()? };
    let layout = if x.is_contiguous() { Layout::Nchw } else { Layout::Nhwc };
    match *x.dims() {
        [batch, channels, ref spatial @ ..] => {
            let shape = Shape::new(layout, batch, channels, spatial).map_err(Error::wrap)?;
            Ok((x, shape))
        }
        _ => {
            candle_core::bail!("batch-norm input tensor must have at least two dimensions ({:?})", x.shape())
        }
    }
}

fn is_channels_last(x: &Tensor) -> bool {
    x.rank() > 2 && {
        let order = to_memory(Layout::Nhwc, x.rank());
        let dims: Vec<usize> = order.iter().map(|&axis| x.dims()[axis]).collect();
        let strides: Vec<usize> = order.iter().map(|&axis| x.stride()[axis]).collect();
        candle_core::Shape::from(dims).is_contiguous(&strides)
    }
}
