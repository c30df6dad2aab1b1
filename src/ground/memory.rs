//! Memory that may not be there: what cannot be had is an error, not the end of the process.

#![forbid(unsafe_code)]

use crate::ground::error::Error;

/// `len` values, or [`Error::OutOfMemory`].
pub fn filled<T: Clone>(len: usize, value: T) -> Result<Vec<T>, Error> {
    let mut values = Vec::new();
    if values.try_reserve_exact(len).is_err() {
        return Err(Error::OutOfMemory { bytes: len.saturating_mul(size_of::<T>()) });
    }
    values.resize(len, value);
    Ok(values)
}

/// Room for `more` values, or [`Error::OutOfMemory`].
pub fn reserved<T>(values: &mut Vec<T>, more: usize) -> Result<(), Error> {
    let bytes = more.saturating_mul(size_of::<T>());
    values.try_reserve_exact(more).map_err(|_| Error::OutOfMemory { bytes })
}

/// Whether so many bytes can be had now. It comes before calls of others' code that aborts where it gets none.
pub fn is_there(bytes: usize) -> bool {
    let mut probe = Vec::<u8>::new();
    let there = probe.try_reserve_exact(bytes).is_ok();
    // Or the compiler would leave the allocation out.
    std::hint::black_box(probe.as_mut_ptr());
    there
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_cannot_be_had_is_an_error() {
        assert!(is_there(1 << 10) && !is_there(isize::MAX as usize));
        assert_eq!(filled(3, 7u64), Ok(vec![7; 3]));
        assert_eq!(filled(1 << 59, 7u64), Err(Error::OutOfMemory { bytes: 1 << 62 }));
        assert_eq!(filled(usize::MAX, 7u64), Err(Error::OutOfMemory { bytes: usize::MAX }));
    }
}
