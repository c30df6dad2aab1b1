//! The C interface with wrong arguments among right ones: a status, and never a write.
#![no_main]

use batchnorm_fuzz::ffi::c_abi::{Call, call};

libfuzzer_sys::fuzz_target!(|input: Call| call(&input));
