//! Shapes of tensors in memory. The only file that says NCHW and NHWC.

#![forbid(unsafe_code)]

use crate::ground::error::Error;
use crate::ground::geometry::{Geometry, Pattern};
use crate::ground::sizes::GROUP;

/// Where the channel axis lies in memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Layout {
    /// Batch, channels, spatial axes (rank 2 to 5 in practice: NC, NCL, NCHW, NCDHW): each channel of a sample is one
    /// contiguous plane.
    Nchw,
    /// Batch, spatial axes, channels (NC, NLC, NHWC, NDHWC): the channels of one position are adjacent.
    Nhwc,
}

/// The shape of a dense tensor: batch N, channels C, the product S of the spatial axes, and their order in memory.
///
/// ```
/// use batchnorm::Shape;
/// let shape = Shape::nchw(&[32, 64, 56, 56])?;
/// assert_eq!((shape.batch(), shape.channels(), shape.spatial()), (32, 64, 56 * 56));
/// assert_eq!(shape.per_channel(), 32 * 56 * 56);
/// # Ok::<(), batchnorm::Error>(())
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Shape {
    layout: Layout,
    batch: usize,
    channels: usize,
    spatial: usize,
}

impl Shape {
    /// A tensor with dimensions `[N, C, spatial...]` in this order in memory.
    ///
    /// # Errors
    /// [`Error::Rank`] for fewer than two dimensions, [`Error::Overflow`] if their product overflows.
    pub fn nchw(dims: &[usize]) -> Result<Self, Error> {
        match dims {
            [batch, channels, spatial @ ..] => Self::new(Layout::Nchw, *batch, *channels, spatial),
            _ => Err(Error::Rank { rank: dims.len() }),
        }
    }

    /// A tensor with dimensions `[N, spatial..., C]` in this order in memory.
    ///
    /// # Errors
    /// [`Error::Rank`] for fewer than two dimensions, [`Error::Overflow`] if their product overflows.
    pub fn nhwc(dims: &[usize]) -> Result<Self, Error> {
        match dims {
            [batch, spatial @ .., channels] => Self::new(Layout::Nhwc, *batch, *channels, spatial),
            _ => Err(Error::Rank { rank: dims.len() }),
        }
    }

    /// A tensor of `batch` samples with `channels` channels over the axes `spatial` (none: one value per channel).
    ///
    /// # Errors
    /// [`Error::Overflow`] if the number of elements overflows `usize`.
    pub fn new(layout: Layout, batch: usize, channels: usize, spatial: &[usize]) -> Result<Self, Error> {
        // Zeros are left out of the product, so that a shape is accepted or refused whatever the order of its axes.
        let mut product = Some(1usize);
        for &dim in [batch, channels].iter().chain(spatial) {
            product = product.and_then(|p| p.checked_mul(dim.max(1)));
        }
        // Slices hold at most isize::MAX bytes; 8 is the widest element.
        if product.is_none_or(|p| p > isize::MAX as usize / 8) {
            let dims = [batch, channels].iter().chain(spatial).copied().collect();
            return Err(Error::Overflow { dims });
        }
        Ok(Self { layout, batch, channels, spatial: spatial.iter().product() })
    }

    /// The order of the axes in memory.
    pub fn layout(&self) -> Layout {
        self.layout
    }

    /// N, the number of samples.
    pub fn batch(&self) -> usize {
        self.batch
    }

    /// C, the number of channels.
    pub fn channels(&self) -> usize {
        self.channels
    }

    /// S, the product of the spatial axes.
    pub fn spatial(&self) -> usize {
        self.spatial
    }

    /// m = N * S, the number of elements that one channel's statistics run over.
    pub fn per_channel(&self) -> usize {
        self.batch * self.spatial
    }

    /// The number of elements of the tensor.
    #[expect(clippy::len_without_is_empty, reason = "a shape is a description, not a container")]
    pub fn len(&self) -> usize {
        self.batch * self.channels * self.spatial
    }

    /// The offset of an element in the tensor's slice, `position` counting through the spatial axes.
    pub fn offset(&self, sample: usize, channel: usize, position: usize) -> usize {
        match self.layout {
            Layout::Nchw => (sample * self.channels + channel) * self.spatial + position,
            Layout::Nhwc => (sample * self.spatial + position) * self.channels + channel,
        }
    }

    /// `None` if there is nothing to compute.
    ///
    /// Where both layouts are the same memory they must become the same problem: a single channel is one plane of n * s;
    /// single positions have the kept axis contiguous, and if there are few channels are better one plane of n positions.
    pub(crate) fn geometry(&self) -> Option<Geometry> {
        let (n, c, s) = (self.batch(), self.channels(), self.spatial());
        if self.len() == 0 {
            return None;
        }
        Some(match self.layout() {
            _ if c == 1 => Geometry { n: 1, c, s: n * s, pattern: Pattern::Along },
            _ if s == 1 && c < GROUP => Geometry { n: 1, c, s: n, pattern: Pattern::Across },
            _ if s == 1 => Geometry { n, c, s, pattern: Pattern::Across },
            Layout::Nchw => Geometry { n, c, s, pattern: Pattern::Along },
            Layout::Nhwc => Geometry { n, c, s, pattern: Pattern::Across },
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What is the same memory in both layouts is the same problem, and so the same bits by the same path.
    #[test]
    fn single_channels_and_single_positions_have_one_geometry() {
        let few = GROUP - 1;
        for (dims, geometry) in [
            ([3, 1, 5, 7], Geometry { n: 1, c: 1, s: 105, pattern: Pattern::Along }),
            ([9, few, 1, 1], Geometry { n: 1, c: few, s: 9, pattern: Pattern::Across }),
            ([9, GROUP, 1, 1], Geometry { n: 9, c: GROUP, s: 1, pattern: Pattern::Across }),
        ] {
            let [n, c, h, w] = dims;
            for shape in [Shape::nchw(&dims), Shape::nhwc(&[n, h, w, c])] {
                assert_eq!(shape.unwrap().geometry(), Some(geometry));
            }
        }
    }
}
