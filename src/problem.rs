//! Checks of arguments, and the form of a problem that everything below works on.

#![forbid(unsafe_code)]

use crate::plan::GROUP;
use crate::simd::LANES;
use crate::{Error, Layout, Shape};

pub(crate) fn check_len(argument: &'static str, got: usize, expected: usize) -> Result<(), Error> {
    if got == expected { Ok(()) } else { Err(Error::Length { argument, got, expected }) }
}

pub(crate) fn check_optional<T>(
    argument: &'static str,
    slice: Option<&[T]>,
    expected: usize,
) -> Result<(), Error> {
    slice.map_or(Ok(()), |slice| check_len(argument, slice.len(), expected))
}

pub(crate) fn check_finite(argument: &'static str, value: f64) -> Result<(), Error> {
    if value.is_finite() { Ok(()) } else { Err(Error::NotFinite { argument, value }) }
}

pub(crate) fn check_eps(eps: f64) -> Result<(), Error> {
    if eps.is_finite() && eps >= 0.0 { Ok(()) } else { Err(Error::Epsilon { eps }) }
}

/// The most positions of a plane for [`Geometry::small_planes`]: 7 x 7 and 8 x 8 are. Part of the order of arithmetic.
pub const SMALL_PLANE: usize = 64;

/// Which axis is contiguous.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pattern {
    /// The reduced axis: a channel of a sample is a contiguous plane.
    Along,
    /// The kept axis: the channels of a position are adjacent.
    Across,
}

/// A non-empty problem, lowered from a shape: n samples of c channels over planes of s positions.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Geometry {
    pub n: usize,
    pub c: usize,
    pub s: usize,
    pub pattern: Pattern,
}

impl Geometry {
    /// `None` if there is nothing to compute.
    ///
    /// Where both layouts are the same memory they must become the same problem: a single channel is one plane of n * s;
    /// single positions have the kept axis contiguous, and if there are few channels are better one plane of n positions.
    pub fn of(shape: &Shape) -> Option<Self> {
        let (n, c, s) = (shape.batch(), shape.channels(), shape.spatial());
        if shape.len() == 0 {
            return None;
        }
        Some(match shape.layout() {
            _ if c == 1 => Self { n: 1, c, s: n * s, pattern: Pattern::Along },
            _ if s == 1 && c < GROUP => Self { n: 1, c, s: n, pattern: Pattern::Across },
            _ if s == 1 => Self { n, c, s, pattern: Pattern::Across },
            Layout::Nchw => Self { n, c, s, pattern: Pattern::Along },
            Layout::Nhwc => Self { n, c, s, pattern: Pattern::Across },
        })
    }

    /// Whether planes are so small that each of their positions is a lane of its own, summed down the samples: then the
    /// positions of neighbouring channels, which are contiguous, fill vectors that single planes would leave half empty.
    /// (If all of them together fill a few.)
    pub fn small_planes(&self) -> bool {
        self.n > 1 && self.s <= SMALL_PLANE && self.c * self.s >= GROUP
    }

    /// Whether planes are so small that an elementwise loop takes them as rows of positions too: those that do not fill
    /// a vector.
    pub fn tiny_planes(&self) -> bool {
        self.small_planes() && self.s < LANES
    }

    /// The number of lanes that a channel's elements are dealt out to: position s goes to lane s of small planes, else to
    /// lane s mod 16.
    pub fn lanes(&self) -> usize {
        if self.small_planes() { self.s } else { self.s.min(LANES) }
    }

    /// Elements per channel.
    pub fn m(&self) -> usize {
        self.n * self.s
    }

    /// Elements of the tensor.
    pub fn len(&self) -> usize {
        self.n * self.c * self.s
    }

    /// Offset of an element in the tensor.
    #[inline(always)]
    pub fn offset(&self, sample: usize, channel: usize, position: usize) -> usize {
        match self.pattern {
            Pattern::Along => (sample * self.c + channel) * self.s + position,
            Pattern::Across => (sample * self.s + position) * self.c + channel,
        }
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
                assert_eq!(Geometry::of(&shape.unwrap()), Some(geometry));
            }
        }
    }
}
