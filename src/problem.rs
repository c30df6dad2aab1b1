//! Checks of arguments, and the form of a problem that everything below works on.

#![forbid(unsafe_code)]

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
    /// Where both layouts are the same memory they must become the same problem, and one whose planes are long: a
    /// single channel is one plane of n * s, single positions are a plane of n positions.
    pub fn of(shape: &Shape) -> Option<Self> {
        let (n, c, s) = (shape.batch(), shape.channels(), shape.spatial());
        if shape.len() == 0 {
            return None;
        }
        Some(match shape.layout() {
            _ if c == 1 => Self { n: 1, c, s: n * s, pattern: Pattern::Along },
            _ if s == 1 => Self { n: 1, c, s: n, pattern: Pattern::Across },
            Layout::Nchw => Self { n, c, s, pattern: Pattern::Along },
            Layout::Nhwc => Self { n, c, s, pattern: Pattern::Across },
        })
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
