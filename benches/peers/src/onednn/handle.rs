//! Owners of what oneDNN allocates.

use std::error::Error;
use std::ffi::CStr;
use std::{fmt, ptr};

use super::ffi::{self, Object, Status};
use crate::Result;

/// What oneDNN did not do.
#[derive(Debug)]
pub struct Failure {
    pub status: Status,
    text: String,
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.text)
    }
}

impl Error for Failure {}

/// The error that a status stands for.
pub fn check(what: &str, status: Status) -> Result<()> {
    if status == 0 {
        return Ok(());
    }
    // SAFETY: the function takes any number and returns a constant string.
    let name = unsafe { CStr::from_ptr(ffi::dnnl_status2str(status)) };
    let text = format!("oneDNN, {what}: {}", name.to_string_lossy());
    Err(Failure { status, text }.into())
}

/// An object that is freed with its owner.
pub struct Handle<T: Object> {
    object: *mut T,
}

impl<T: Object> Handle<T> {
    /// What `create` puts where it is told to, unless it fails.
    ///
    /// # Safety
    /// If `create` returns 0, it has put there an object that nobody else frees.
    pub unsafe fn new(what: &str, create: impl FnOnce(*mut *mut T) -> Status) -> Result<Self> {
        let mut object = ptr::null_mut();
        check(what, create(&raw mut object))?;
        Ok(Self { object })
    }

    /// The object, valid as long as the owner.
    pub fn get(&self) -> *mut T {
        self.object
    }
}

impl<T: Object> Drop for Handle<T> {
    fn drop(&mut self) {
        // SAFETY: the object is ours alone, by the word of who called `new`, and goes with us. It can only fail for null.
        unsafe { T::DESTROY(self.object) };
    }
}
