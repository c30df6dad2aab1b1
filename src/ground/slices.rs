//! Slices that many tasks read and write disjoint parts of at once, and that may be the same memory (in place).

use std::marker::PhantomData;
use std::ops::Range;

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
