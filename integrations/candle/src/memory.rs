//! Memory for results: candle makes a new tensor of every result, so a large one starts as pages that are not there yet.

use candle_core::backend::BackendDevice;
use candle_core::cpu_backend::CpuDevice;
use candle_core::{Result, WithDType};

/// A vector for a kernel's result, all of which the kernel writes. Zeros would cost one more pass over memory.
pub(crate) fn unwritten<T: WithDType>(len: usize) -> Result<Vec<T>> {
    // SAFETY: candle asks that the elements be written before they are read. A kernel that succeeds has written every
    // one of them; when it fails the vector is dropped, which for numbers reads nothing.
    let storage = unsafe { CpuDevice.alloc_uninit(&len.into(), T::DTYPE)? };
    let mut vector = T::cpu_storage_data(storage)?;
    advise_huge_pages(&mut vector);
    Ok(vector)
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
