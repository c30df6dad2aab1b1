//! Work that is done between the vectors of a reduction: software pipelining.

#![forbid(unsafe_code)]

use std::ops::Range;

use crate::simd::Lanes;

/// What else is done while planes are summed: with the vectors of one other plane for each.
pub trait Interleave<T> {
    /// Whether there is anything to do.
    const ANY: bool;
    /// Where that is, in a plane.
    type Plane<S: Lanes<T>>;

    /// Begins with these positions of the plane that has this place among the other ones.
    fn begin<S: Lanes<T>>(
        &self,
        s: S,
        sample: usize,
        channel: usize,
        positions: &Range<usize>,
    ) -> Self::Plane<S>;
    /// Does the next vector, if there is one.
    fn step<S: Lanes<T>>(&self, s: S, plane: &mut Self::Plane<S>);
    /// Does what is left.
    fn finish<S: Lanes<T>>(&self, s: S, plane: Self::Plane<S>);
}

/// Nothing else.
pub struct NoInterleave;

impl<T> Interleave<T> for NoInterleave {
    const ANY: bool = false;
    type Plane<S: Lanes<T>> = ();

    #[inline(always)]
    fn begin<S: Lanes<T>>(&self, _: S, _: usize, _: usize, _: &Range<usize>) {}
    #[inline(always)]
    fn step<S: Lanes<T>>(&self, _: S, (): &mut ()) {}
    #[inline(always)]
    fn finish<S: Lanes<T>>(&self, _: S, (): ()) {}
}
