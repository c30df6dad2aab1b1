//! A bit for each element of a tensor, in the order of memory: bit i % 64 of word i / 64 is element i's. Bits behind the
//! last element are 0.
//!
//! Tasks write disjoint elements, whose bits may share words: those at a run's ends are put into their words atomically, the
//! words between are stored.

use std::cell::Cell;
use std::marker::PhantomData;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::ground::slices::{Input, Output};

/// Bits of a word.
const WORD: usize = u64::BITS as usize;

/// The words for so many elements.
pub fn words(elements: usize) -> usize {
    elements.div_ceil(WORD)
}

/// Bits that are written in runs.
pub struct BitWriter<'a> {
    words: *mut u64,
    elements: usize,
    /// The bits that wait, those of the word of the element before `next`, and the first of them.
    pending: Cell<u64>,
    first: Cell<usize>,
    next: Cell<usize>,
    lifetime: PhantomData<&'a mut [u64]>,
}

impl<'a> BitWriter<'a> {
    /// Of a tensor of so many elements.
    pub fn new(bits: Output<'a, u64>, elements: usize) -> Self {
        debug_assert!(bits.len() == words(elements));
        Self {
            words: bits.as_ptr(),
            elements,
            pending: Cell::new(0),
            first: Cell::new(0),
            next: Cell::new(0),
            lifetime: PhantomData,
        }
    }

    /// The bits of `count` elements from `at` on, at most 32.
    ///
    /// # Safety
    /// They are elements of the tensor, and no one else writes their bits.
    #[inline(always)]
    pub unsafe fn push(&self, at: usize, bits: u32, count: usize) {
        if at != self.next.get() {
            // SAFETY: says the caller.
            unsafe { self.flush() };
            self.first.set(at);
            self.next.set(at);
        }
        let bits = u64::from(bits) & !(u64::MAX << count);
        let offset = at % WORD;
        let pending = self.pending.get() | bits << offset;
        let end = at + count;
        self.next.set(end);
        if offset + count < WORD {
            return self.pending.set(pending);
        }
        let word = at / WORD;
        if self.first.get() <= word * WORD {
            // SAFETY: the word's elements are all this run's.
            unsafe { self.words.add(word).write(pending) };
        } else {
            // SAFETY: says the caller.
            unsafe { self.put(word, self.first.get() % WORD..WORD, pending) };
        }
        self.first.set((word + 1) * WORD);
        // In two shifts, of which one by 64 is none.
        self.pending.set(bits >> 1 >> (WORD - 1 - offset));
    }

    /// Writes what waits.
    ///
    /// # Safety
    /// As of `push`.
    pub unsafe fn flush(&self) {
        let (first, next) = (self.first.get(), self.next.get());
        if first < next {
            // With the last element come the bits behind it.
            let end = if next == self.elements { WORD } else { next - first / WORD * WORD };
            // SAFETY: says the caller.
            unsafe { self.put(first / WORD, first % WORD..end, self.pending.get()) };
        }
        self.pending.set(0);
        self.first.set(next);
    }

    /// # Safety
    /// The word is the tensor's, and the range's bits no one else's.
    unsafe fn put(&self, word: usize, range: std::ops::Range<usize>, bits: u64) {
        let keep = !(u64::MAX << range.start) | u64::MAX.checked_shl(range.end as u32).unwrap_or(0);
        // SAFETY: in bounds and aligned, says the caller; others change it by atomic operations only.
        let word = unsafe { AtomicU64::from_ptr(self.words.add(word)) };
        word.fetch_and(keep, Ordering::Relaxed);
        word.fetch_or(bits, Ordering::Relaxed);
    }
}

/// Bits that are read.
#[derive(Clone, Copy)]
pub struct Bits<'a>(pub Input<'a, u64>);

impl Bits<'_> {
    /// Those from element `at` on, 32 of them or as many as there are.
    ///
    /// # Safety
    /// The tensor has that element.
    #[inline(always)]
    pub unsafe fn from(self, at: usize) -> u32 {
        let (word, offset) = (at / WORD, at % WORD);
        let next = (word + 1).min(self.0.len() - 1);
        // SAFETY: both words are in bounds.
        let (low, high) = unsafe { (self.0.as_ptr().add(word).read(), self.0.as_ptr().add(next).read()) };
        (low >> offset | high << 1 << (WORD - 1 - offset)) as u32
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Runs in any order give the bits that one run gives, and leave nothing of what was there.
    #[test]
    fn runs_put_together_are_the_whole() {
        for elements in [1, 15, 63, 64, 65, 200, 1000] {
            let bit = |i: usize| i.wrapping_mul(0x9E37_79B9) >> 7 & 1 == 1;
            let mut expected = vec![0; words(elements)];
            (0..elements).filter(|i| bit(*i)).for_each(|i| expected[i / WORD] |= 1 << (i % WORD));
            for run in [1, 3, 16, 37, 64, 128, elements] {
                let mut words = vec![0xDEAD_BEEF_DEAD_BEEF; words(elements)];
                let writer = BitWriter::new(Output::new(&mut words), elements);
                for run_start in (0..elements).step_by(run).rev() {
                    let end = (run_start + run).min(elements);
                    for at in (run_start..end).step_by(16) {
                        let count = (end - at).min(16);
                        let bits = (0..32).map(|i| u32::from(bit(at + i)) << i).sum();
                        // SAFETY: elements of the tensor, by this thread alone.
                        unsafe { writer.push(at, bits, count) };
                    }
                }
                // SAFETY: as above.
                unsafe { writer.flush() };
                assert_eq!(words, expected, "{elements} in runs of {run}");
                let read = Bits(Input::new(&words));
                for at in 0..elements {
                    let count = (elements - at).min(32);
                    // SAFETY: an element of the tensor.
                    let bits = unsafe { read.from(at) };
                    assert!((0..count).all(|i| (bits >> i & 1 == 1) == bit(at + i)));
                }
            }
        }
    }
}
