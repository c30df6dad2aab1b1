//! A bit for each element of a tensor, in the order of memory: bit i % 64 of word i / 64 is element i's. Bits behind the
//! last element are 0.
//!
//! Tasks write disjoint elements, whose bits may share words: those at a run's ends are put into their words by atomic operations,
//! the words between are stored.

use std::cell::Cell;
use std::marker::PhantomData;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::Relaxed;

use crate::ground::slices::{Input, Output};

/// Bits of a word.
const WORD: usize = u64::BITS as usize;

/// The words for so many elements.
pub fn words(elements: usize) -> usize {
    elements.div_ceil(WORD)
}

/// Vectors whose bits are put together at once.
const STAGED: usize = 64;

/// Words in part that are put into memory at once: an atomic operation waits for all stores before it, the next ones do not.
const SHARED: usize = 32;

/// Bits that are written in runs of vectors, of which the first and the last may have fewer lanes: kept a vector each for a
/// while, so that a loop does no more than store them, then shifted into words.
pub struct BitWriter<'a> {
    words: *mut u64,
    elements: usize,
    /// The first element whose bit is staged, the full vectors that are, and their lanes.
    start: Cell<usize>,
    vectors: Cell<usize>,
    lanes: Cell<usize>,
    staged: [Cell<u16>; STAGED],
    /// The last word of the run so far, and the first element that it has a bit of.
    word: Cell<u64>,
    first: Cell<usize>,
    /// Words in part: which, which bits of them, and those.
    shared: [Cell<(usize, u64, u64)>; SHARED],
    shares: Cell<usize>,
    lifetime: PhantomData<&'a mut [u64]>,
}

impl<'a> BitWriter<'a> {
    /// Of a tensor of so many elements.
    pub fn new(bits: Output<'a, u64>, elements: usize) -> Self {
        debug_assert!(bits.len() == words(elements));
        Self {
            words: bits.as_ptr(),
            elements,
            // No run's next: the first vector begins one.
            start: Cell::new(usize::MAX),
            vectors: Cell::new(0),
            lanes: Cell::new(0),
            staged: [const { Cell::new(0) }; STAGED],
            word: Cell::new(0),
            first: Cell::new(usize::MAX),
            shared: [const { Cell::new((0, 0, 0)) }; SHARED],
            shares: Cell::new(0),
            lifetime: PhantomData,
        }
    }

    /// The bits of the `count` elements from `at` on, of vectors of `lanes`, at most 16: 0 where these are 1, as comparisons have
    /// them and a register of predicates can be stored.
    ///
    /// # Safety
    /// They are elements of the tensor, and no one else writes their bits.
    #[inline(always)]
    pub unsafe fn push_complement(&self, at: usize, bits: u32, count: usize, lanes: usize) {
        debug_assert!(lanes <= 16);
        let vectors = self.vectors.get();
        if count == lanes && at == self.start.get() + vectors * lanes && vectors < STAGED {
            self.staged[vectors].set(bits as u16);
            return self.vectors.set(vectors + 1);
        }
        // SAFETY: says the caller.
        unsafe { self.push_other(at, bits, count, lanes) }
    }

    /// The same of a vector that is not full, or not the run's next, or one too many.
    #[cold]
    #[inline(never)]
    unsafe fn push_other(&self, at: usize, bits: u32, count: usize, lanes: usize) {
        self.lanes.set(lanes);
        // SAFETY: says the caller.
        unsafe {
            self.put_together();
            if at != self.start.get() {
                self.end();
                self.start.set(at);
                self.first.set(at);
            }
            self.append(u64::from(!bits) & !(u64::MAX << count), count);
        }
    }

    /// Writes what waits.
    ///
    /// # Safety
    /// As of `push_complement`.
    pub unsafe fn flush(&self) {
        // SAFETY: says the caller.
        unsafe {
            self.put_together();
            self.end();
            self.write_shared();
        }
    }

    /// Shifts what is staged into words.
    ///
    /// # Safety
    /// As of `push_complement`.
    unsafe fn put_together(&self) {
        let lanes = self.lanes.get();
        for vectors in self.staged[..self.vectors.replace(0)].chunks(WORD / 16) {
            let (mut bits, mut count) = (0u64, 0);
            for vector in vectors {
                bits |= u64::from(!vector.get() & (u16::MAX >> (16 - lanes))) << count;
                count += lanes;
            }
            // SAFETY: says the caller.
            unsafe { self.append(bits, count) };
        }
    }

    /// The run's next bits, of which those from `count` on are 0.
    ///
    /// # Safety
    /// As of `push_complement`.
    #[inline(always)]
    unsafe fn append(&self, bits: u64, count: usize) {
        let at = self.start.get();
        let offset = at % WORD;
        self.start.set(at + count);
        let word = self.word.get() | bits << offset;
        if offset + count < WORD {
            return self.word.set(word);
        }
        let next = (at / WORD + 1) * WORD;
        // SAFETY: the run's elements, says the caller.
        unsafe { self.put(self.first.replace(next), next, word) };
        // In two shifts, of which one by 64 is none.
        self.word.set(bits >> 1 >> (WORD - 1 - offset));
    }

    /// Ends a run, all of whose bits have been put together.
    ///
    /// # Safety
    /// As of `push_complement`.
    unsafe fn end(&self) {
        let (first, next, word) = (self.first.get(), self.start.get(), self.word.replace(0));
        if first < next {
            // With the last element come the bits behind it.
            let end = if next == self.elements { next.next_multiple_of(WORD) } else { next };
            // SAFETY: says the caller.
            unsafe { self.put(first, end, word) };
        }
        self.first.set(next);
    }

    /// The bits from `start` to `end` of one word.
    ///
    /// # Safety
    /// The word is the tensor's, and these bits no one else's.
    unsafe fn put(&self, start: usize, end: usize, bits: u64) {
        if end - start == WORD {
            // SAFETY: in bounds, and all bits are the caller's.
            return unsafe { self.words.add(start / WORD).write(bits) };
        }
        let own = !(u64::MAX << (end - start)) << (start % WORD);
        let shares = self.shares.get();
        self.shared[shares].set((start / WORD, own, bits));
        self.shares.set(shares + 1);
        if shares + 1 == SHARED {
            // SAFETY: as of all that was put.
            unsafe { self.write_shared() };
        }
    }

    /// # Safety
    /// As of `push_complement`.
    unsafe fn write_shared(&self) {
        for shared in &self.shared[..self.shares.replace(0)] {
            let (word, own, bits) = shared.get();
            // SAFETY: in bounds and aligned; others change it by atomic operations only.
            let word = unsafe { AtomicU64::from_ptr(self.words.add(word)) };
            let _ = word.fetch_update(Relaxed, Relaxed, |word| Some(word & !own | bits));
        }
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
                        let bits: u32 = (0..32).map(|i| u32::from(bit(at + i)) << i).sum();
                        // SAFETY: elements of the tensor, by this thread alone.
                        unsafe { writer.push_complement(at, !bits, count, 16) };
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
