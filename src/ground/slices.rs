//! Slices that many tasks read and write disjoint parts of at once, and that may be the same memory (in place).

use std::marker::PhantomData;
use std::ops::Range;

use crate::ground::half::Halves;
use crate::ground::scalar::Scalar;

/// A slice to read from while other parts of the same memory may be written.
#[derive(Clone, Copy)]
pub struct Input<'a, T> {
    start: *const T,
    len: usize,
    lifetime: PhantomData<&'a [T]>,
}

/// A slice that tasks write disjoint parts of.
#[derive(Clone, Copy)]
pub struct Output<'a, T> {
    start: *mut T,
    len: usize,
    lifetime: PhantomData<&'a mut [T]>,
}

// SAFETY: an `Input` gives out nothing but a pointer, whose readers have to answer for what they do with it.
unsafe impl<T: Sync> Send for Input<'_, T> {}
// SAFETY: as above.
unsafe impl<T: Sync> Sync for Input<'_, T> {}
// SAFETY: as above; parts of `T: Send` may go to other threads.
unsafe impl<T: Send> Send for Output<'_, T> {}
// SAFETY: as above.
unsafe impl<T: Send> Sync for Output<'_, T> {}

impl<'a, T> Input<'a, T> {
    pub fn new(slice: &'a [T]) -> Self {
        Self { start: slice.as_ptr(), len: slice.len(), lifetime: PhantomData }
    }

    pub fn len(&self) -> usize {
        self.len
    }

    pub fn as_ptr(&self) -> *const T {
        self.start
    }

    /// As many elements of another type, wherever: they are read by who knows how.
    pub fn at<U>(&self, start: *const U) -> Input<'a, U> {
        Input { start, len: self.len, lifetime: PhantomData }
    }
}

impl<'a, T> Output<'a, T> {
    pub fn new(slice: &'a mut [T]) -> Self {
        Self { start: slice.as_mut_ptr(), len: slice.len(), lifetime: PhantomData }
    }

    /// The same memory to read from, for an operation in place.
    pub fn as_input(&self) -> Input<'a, T> {
        Input { start: self.start, len: self.len, lifetime: PhantomData }
    }

    pub fn len(&self) -> usize {
        self.len
    }

    pub fn as_ptr(&self) -> *mut T {
        self.start
    }

    /// As many elements of another type, wherever: they are written by who knows how.
    pub fn at<U>(&self, start: *mut U) -> Output<'a, U> {
        Output { start, len: self.len, lifetime: PhantomData }
    }

    /// A part of the slice.
    ///
    /// # Safety
    /// The range lies within the slice, and no other use of the part, through this or a copy, overlaps in time.
    #[expect(
        clippy::mut_from_ref,
        reason = "handing out disjoint parts of one slice is what the type is for"
    )]
    pub unsafe fn part(&self, range: Range<usize>) -> &mut [T] {
        debug_assert!(range.start <= range.end && range.end <= self.len);
        // SAFETY: in bounds and unaliased by the caller's word, alive as long as `'a`.
        unsafe { std::slice::from_raw_parts_mut(self.start.add(range.start), range.len()) }
    }
}

/// A tensor that is read: of elements, or of 16-bit numbers that stand for them.
#[derive(Clone, Copy)]
pub enum Source<'a, T: Scalar> {
    Whole(Input<'a, T>),
    Half(Input<'a, u16>, T::Half),
}

/// A tensor that is written, of either.
#[derive(Clone, Copy)]
pub enum Sink<'a, T: Scalar> {
    Whole(Output<'a, T>),
    Half(Output<'a, u16>, T::Half),
}

impl<'a, T: Scalar> Source<'a, T> {
    /// Numbers in it.
    pub fn len(&self) -> usize {
        match self {
            Source::Whole(input) => input.len(),
            Source::Half(input, _) => input.len(),
        }
    }

    /// Bytes of one.
    pub fn bytes(&self) -> usize {
        match self {
            Source::Whole(_) => size_of::<T>(),
            Source::Half(..) => size_of::<u16>(),
        }
    }

    /// As it is, if it is of elements.
    pub fn whole(self) -> Result<Input<'a, T>, T::Half> {
        match self {
            Source::Whole(input) => Ok(input),
            Source::Half(_, half) => Err(half),
        }
    }
}

impl<'a, T: Scalar> Sink<'a, T> {
    /// Numbers in it.
    pub fn len(&self) -> usize {
        match self {
            Sink::Whole(output) => output.len(),
            Sink::Half(output, _) => output.len(),
        }
    }

    /// The same memory to read from, for an operation in place.
    pub fn as_source(&self) -> Source<'a, T> {
        match self {
            Sink::Whole(output) => Source::Whole(output.as_input()),
            Sink::Half(output, half) => Source::Half(output.as_input(), *half),
        }
    }

    /// As it is, if it is of elements.
    pub fn whole(self) -> Result<Output<'a, T>, T::Half> {
        match self {
            Sink::Whole(output) => Ok(output),
            Sink::Half(_, half) => Err(half),
        }
    }
}

impl<T: Scalar> std::fmt::Debug for Source<'_, T> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Source::Whole(input) => write!(f, "{} elements", input.len()),
            Source::Half(input, half) => write!(f, "{} of {:?}", input.len(), half.half()),
        }
    }
}

impl<T: Scalar> std::fmt::Debug for Sink<'_, T> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.as_source().fmt(f)
    }
}
