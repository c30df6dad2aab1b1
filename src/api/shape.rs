//! Shapes of tensors in memory. The only file that says NCHW and NHWC.

#![forbid(unsafe_code)]

use std::fmt;

use crate::ground::error::Error;
use crate::ground::geometry::{Geometry, Pattern};
use crate::kernel::bits::words;
use crate::schedule::blocks::granularity;
#[cfg(feature = "tuning")]
use crate::schedule::{blocks::Samples, plan::Plan, policies::Traffic};

/// The spatial axes that a shape keeps one by one.
const SPATIAL_AXES: usize = 6;

/// Where the channel axis lies in memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub enum Layout {
    /// Batch, channels, spatial axes (rank 2 to 5 in practice: NC, NCL, NCHW, NCDHW): each channel of a sample is one
    /// contiguous plane.
    Nchw,
    /// Batch, spatial axes, channels (NC, NLC, NHWC, NDHWC): the channels of one position are adjacent.
    Nhwc,
}

/// The shape of a dense tensor: batch N, channels C, the spatial axes, and their order in memory.
///
/// Operations look at the product S of the spatial axes only; a tensor of 4x4 positions lies in memory like one of 16,
/// which [`lies_like`](Self::lies_like) tells. Shapes are equal if all their axes are. Of more than six spatial axes,
/// the sixth stands for itself and all behind it.
///
/// ```
/// use batchnorm::Shape;
/// let shape = Shape::nchw(&[32, 64, 56, 56])?;
/// assert_eq!((shape.batch(), shape.channels(), shape.spatial()), (32, 64, 56 * 56));
/// assert_eq!(shape.per_channel(), 32 * 56 * 56);
/// assert_eq!(shape.dims(), [32, 64, 56, 56]);
/// assert_eq!(shape.to_string(), "NCHW 32x64x56x56");
/// # Ok::<(), batchnorm::Error>(())
/// ```
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[cfg_attr(feature = "serde", serde(try_from = "Dims", into = "Dims"))]
pub struct Shape {
    layout: Layout,
    batch: usize,
    channels: usize,
    spatial: usize,
    /// In their order in memory, then zeros.
    dims: [usize; SPATIAL_AXES + 2],
    rank: usize,
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
    /// [`Error::Overflow`] if a slice cannot have so many elements.
    pub fn new(layout: Layout, batch: usize, channels: usize, spatial: &[usize]) -> Result<Self, Error> {
        // Slices hold at most isize::MAX bytes; 8 is the widest element.
        const MOST: usize = isize::MAX as usize / 8;
        // Zeros are left out of the product, so that a shape is accepted or refused whatever the order of its axes.
        let mut product = Some(1usize);
        for &dim in [batch, channels].iter().chain(spatial) {
            product = product.and_then(|p| p.checked_mul(dim.max(1)));
        }
        if product.is_none_or(|p| p > MOST) {
            let (before, behind) = match layout {
                Layout::Nchw => (&[batch, channels][..], &[][..]),
                Layout::Nhwc => (&[batch][..], &[channels][..]),
            };
            return Err(Error::Overflow { dims: [before, spatial, behind].concat(), most: MOST });
        }
        let (kept, folded) = spatial.split_at(spatial.len().min(SPATIAL_AXES));
        let mut dims = [0; SPATIAL_AXES + 2];
        let rank = kept.len() + 2;
        let (first, channel_axis) = match layout {
            Layout::Nchw => (2, 1),
            Layout::Nhwc => (1, rank - 1),
        };
        dims[0] = batch;
        dims[channel_axis] = channels;
        dims[first..][..kept.len()].copy_from_slice(kept);
        if !folded.is_empty() {
            dims[first + SPATIAL_AXES - 1] *= folded.iter().product::<usize>();
        }
        Ok(Self { layout, batch, channels, spatial: spatial.iter().product(), dims, rank })
    }

    /// The order of the axes in memory.
    pub fn layout(&self) -> Layout {
        self.layout
    }

    /// The dimensions in their order in memory: `[N, C, spatial...]` or `[N, spatial..., C]`.
    pub fn dims(&self) -> &[usize] {
        &self.dims[..self.rank]
    }

    /// The spatial axes.
    pub fn spatial_dims(&self) -> &[usize] {
        match self.layout {
            Layout::Nchw => &self.dims[2..self.rank],
            Layout::Nhwc => &self.dims[1..self.rank - 1],
        }
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

    /// The words of a mask of the tensor, a bit an element: see [`Training::mask`](crate::Training::mask).
    pub fn mask_len(&self) -> usize {
        words(self.len())
    }

    /// The samples that a batch can be split between: statistics and gradient sums of parts whose first samples are multiples of
    /// it have the bits of the whole batch's ([`PartialStatistics`](crate::PartialStatistics)). A power of two that follows from S: 1 of
    /// 1024 positions and more, at most 16 of 32 and more, 256 of one.
    ///
    /// ```
    /// use batchnorm::Shape;
    /// let granularity = |dims: &[usize]| Shape::nchw(dims).map(|shape| shape.granularity());
    /// assert_eq!((granularity(&[32, 64, 56, 56])?, granularity(&[32, 64, 7, 7])?), (1, 16));
    /// # Ok::<(), batchnorm::Error>(())
    /// ```
    pub fn granularity(&self) -> usize {
        granularity(self.spatial)
    }

    /// The offset of an element in the tensor's slice, `position` counting through the spatial axes.
    pub fn offset(&self, sample: usize, channel: usize, position: usize) -> usize {
        match self.layout {
            Layout::Nchw => (sample * self.channels + channel) * self.spatial + position,
            Layout::Nhwc => (sample * self.spatial + position) * self.channels + channel,
        }
    }

    /// Whether every element (sample, channel, position) has the same offset in both: the same tensor, with its spatial
    /// axes folded or not, and of one channel or one position in either layout.
    ///
    /// ```
    /// use batchnorm::Shape;
    /// let shape = Shape::nchw(&[2, 3, 4, 4])?;
    /// assert!(shape.lies_like(&Shape::nchw(&[2, 3, 16])?) && !shape.lies_like(&Shape::nhwc(&[2, 4, 4, 3])?));
    /// # Ok::<(), batchnorm::Error>(())
    /// ```
    pub fn lies_like(&self, other: &Self) -> bool {
        let sizes = |shape: &Self| (shape.batch, shape.channels, shape.spatial);
        sizes(self) == sizes(other)
            && (self.layout == other.layout || self.channels <= 1 || self.spatial <= 1)
    }

    /// That a tensor of this shape has the right length.
    pub(crate) fn check_tensor(&self, argument: &'static str, got: usize) -> Result<(), Error> {
        let expected = self.len();
        if got == expected {
            return Ok(());
        }
        Err(Error::Length { argument, got, expected, shape: Some(self.to_string()) })
    }

    /// The same of its mask.
    pub(crate) fn check_mask(&self, got: usize) -> Result<(), Error> {
        let expected = self.mask_len();
        if got == expected {
            return Ok(());
        }
        Err(Error::Length {
            argument: "mask",
            got,
            expected,
            shape: Some(format!("64 bits a word of {self}")),
        })
    }

    /// That it has the number of channels of what it goes with.
    pub(crate) fn check_channels(&self, with: &'static str, expected: usize) -> Result<(), Error> {
        let got = self.channels;
        if got == expected {
            return Ok(());
        }
        Err(Error::Channels { shape: self.to_string(), got, with, expected })
    }

    /// For what follows from sums alone, where tensors have no elements: that of channels.
    pub(crate) fn without_elements(&self) -> Option<Geometry> {
        (self.channels > 0).then(|| Geometry::of_single_positions(1, self.channels))
    }

    /// `None` if there is nothing to compute.
    ///
    /// Where both layouts are the same memory, they become the same problem.
    pub(crate) fn geometry(&self) -> Option<Geometry> {
        let (n, c, s) = (self.batch(), self.channels(), self.spatial());
        if self.len() == 0 {
            return None;
        }
        Some(match self.layout() {
            _ if s == 1 => Geometry::of_single_positions(n, c),
            _ if c == 1 => Geometry::new(n, c, s, Pattern::Along),
            Layout::Nchw => Geometry::new(n, c, s, Pattern::Along),
            Layout::Nhwc => Geometry::new(n, c, s, Pattern::Across),
        })
    }
}

impl fmt::Display for Layout {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Layout::Nchw => "NCHW",
            Layout::Nhwc => "NHWC",
        })
    }
}

/// The axes by their letters and sizes, in their order in memory, as in "NHWC 32x56x56x64"; of more than three spatial
/// axes the letters are the layout's.
impl fmt::Display for Shape {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let letters = match (self.layout, self.rank) {
            (_, 2) => "NC",
            (Layout::Nchw, 3) => "NCL",
            (Layout::Nhwc, 3) => "NLC",
            (Layout::Nchw, 5) => "NCDHW",
            (Layout::Nhwc, 5) => "NDHWC",
            (Layout::Nchw, _) => "NCHW",
            (Layout::Nhwc, _) => "NHWC",
        };
        let sizes: Vec<String> = self.dims().iter().map(usize::to_string).collect();
        f.pad(&format!("{letters} {}", sizes.join("x")))
    }
}

impl fmt::Debug for Shape {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Shape({self})")
    }
}

/// What is stored of a shape.
#[cfg(feature = "serde")]
#[derive(serde::Serialize, serde::Deserialize)]
#[serde(rename = "Shape", deny_unknown_fields)]
struct Dims {
    layout: Layout,
    dims: Vec<usize>,
}

#[cfg(feature = "serde")]
impl From<Shape> for Dims {
    fn from(shape: Shape) -> Self {
        Self { layout: shape.layout, dims: shape.dims().to_vec() }
    }
}

#[cfg(feature = "serde")]
impl TryFrom<Dims> for Shape {
    type Error = Error;
    fn try_from(Dims { layout, dims }: Dims) -> Result<Self, Error> {
        match layout {
            Layout::Nchw => Self::nchw(&dims),
            Layout::Nhwc => Self::nhwc(&dims),
        }
    }
}

/// The plan of an operation that reads so many tensors and has a reduction, a map, or both: for the benchmark of plans.
#[cfg(feature = "tuning")]
pub fn plan<T>(shape: &Shape, (reads, reduces, maps): (usize, bool, bool)) -> String {
    let traffic =
        Traffic { element: size_of::<T>(), arithmetic: size_of::<T>(), reads, beside: 0, reduces, maps };
    let plan = |geometry: Geometry| Plan::of(&geometry, &Samples::all(&geometry), traffic);
    shape.geometry().map_or_else(String::new, |geometry| format!("{:?}", plan(geometry)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn axes_are_kept_and_printed() {
        for (dims, nchw, nhwc) in [
            (&[7, 3][..], "NC 7x3", "NC 7x3"),
            (&[7, 3, 5], "NCL 7x3x5", "NLC 7x3x5"),
            (&[7, 3, 5, 2], "NCHW 7x3x5x2", "NHWC 7x3x5x2"),
            (&[7, 3, 5, 2, 4], "NCDHW 7x3x5x2x4", "NDHWC 7x3x5x2x4"),
            (&[7, 3, 5, 2, 4, 0, 1, 6], "NCHW 7x3x5x2x4x0x1x6", "NHWC 7x3x5x2x4x0x1x6"),
        ] {
            for (shape, text) in [(Shape::nchw(dims).unwrap(), nchw), (Shape::nhwc(dims).unwrap(), nhwc)] {
                assert_eq!((shape.dims(), shape.to_string()), (dims, text.to_owned()));
                assert_eq!(format!("{shape:?}|{shape:>24}"), format!("Shape({text})|{text:>24}"));
                let again = Shape::new(shape.layout(), 7, shape.channels(), shape.spatial_dims()).unwrap();
                assert_eq!(again, shape);
                assert_eq!(shape.spatial_dims().iter().product::<usize>(), shape.spatial());
            }
        }
        let long = [7, 2, 2, 2, 2, 2, 3, 5, 4];
        let folded = [Shape::nchw(&long).unwrap(), Shape::nhwc(&long).unwrap()];
        assert_eq!(folded[0].dims(), [7, 2, 2, 2, 2, 2, 3, 20]);
        assert_eq!(folded[1].dims(), [7, 2, 2, 2, 2, 2, 15, 4]);
        assert!(folded.iter().all(|shape| shape.len() == long.iter().product::<usize>()));
    }

    /// Against the offsets themselves.
    #[test]
    fn what_lies_alike_has_the_same_offsets() {
        let dims = [[2, 3, 4, 1], [2, 3, 2, 2], [2, 1, 2, 2], [2, 3, 1, 1], [4, 3, 2, 1], [3, 2, 2, 2]];
        let shapes = || {
            dims.iter().flat_map(|[n, c, h, w]| {
                [Layout::Nchw, Layout::Nhwc].map(|layout| Shape::new(layout, *n, *c, &[*h, *w]).unwrap())
            })
        };
        for (a, b) in shapes().flat_map(|a| shapes().map(move |b| (a, b))) {
            let sizes = |shape: &Shape| (shape.batch(), shape.channels(), shape.spatial());
            let (n, c, s) = sizes(&a);
            let mut elements = (0..n).flat_map(|n| (0..c).flat_map(move |c| (0..s).map(move |s| (n, c, s))));
            let alike =
                sizes(&a) == sizes(&b) && elements.all(|(n, c, s)| a.offset(n, c, s) == b.offset(n, c, s));
            assert_eq!(a.lies_like(&b), alike, "{a} and {b}");
        }
    }

    /// What is the same memory in both layouts is the same problem, and so the same bits by the same path.
    #[test]
    fn single_channels_and_single_positions_have_one_geometry() {
        for (dims, geometry) in [
            ([3, 1, 5, 7], Geometry::new(3, 1, 35, Pattern::Along)),
            ([9, 1, 1, 1], Geometry::of_single_positions(9, 1)),
            ([9, 3, 1, 1], Geometry::of_single_positions(9, 3)),
        ] {
            let [n, c, h, w] = dims;
            for shape in [Shape::nchw(&dims), Shape::nhwc(&[n, h, w, c])] {
                assert_eq!(shape.unwrap().geometry(), Some(geometry));
            }
        }
    }
}
