//! Memory for results: burn makes a new tensor of every result, so a large one starts as pages that are not there yet.

/// A vector for a kernel's result, all of which the kernel writes. Zeros would cost one more pass over memory.
#[expect(
    clippy::uninit_vec,
    reason = "the elements are written before they are read; flex makes its results so, too"
)]
pub(crate) fn unwritten<T: bytemuck::Pod>(len: usize) -> Vec<T> {
    let mut vector = Vec::with_capacity(len);
    // SAFETY: the capacity is there, any bits are a `T`, and a kernel writes every element before anyone reads one: it
    // checks its arguments first, and a wrong one panics before the vector goes anywhere.
    unsafe { vector.set_len(len) };
    advise_huge_pages(&mut vector);
    vector
}

/// Asks for huge pages under a large vector, as NumPy does: the kernel then brings in 2 MiB at a fault, and not 4 KiB.
#[cfg(target_os = "linux")]
fn advise_huge_pages<T>(vector: &mut [T]) {
    const HUGE: usize = 2 << 20;
    let start = vector.as_ptr() as usize;
    let (first, end) = (start.next_multiple_of(HUGE), (start + size_of_val(vector)) / HUGE * HUGE);
    if end >= first + 2 * HUGE {
        let pages = vector.as_mut_ptr().wrapping_byte_add(first - start).cast();
        // SAFETY: the range lies within the vector and starts at a page; the advice changes no contents. It may be
        // declined, which is fine.
        unsafe { libc::madvise(pages, end - first, libc::MADV_HUGEPAGE) };
    }
}

#[cfg(not(target_os = "linux"))]
fn advise_huge_pages<T>(_: &mut [T]) {}
