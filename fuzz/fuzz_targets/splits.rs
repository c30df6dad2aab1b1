//! Parts of a batch have the bits of the whole; bytes that say that they are parts are not trusted.
#![no_main]

use batchnorm_fuzz::operations::splits::{self, Bytes, Split};
use batchnorm_fuzz::shared::problem::{Problem, Run};
use batchnorm_fuzz::with_element;

libfuzzer_sys::fuzz_target!(|input: (Run, Split, Bytes, Problem)| {
    let (run, split, bytes, problem) = input;
    splits::bytes(&bytes);
    with_element!(problem.element, splits::parts, &problem, run, &split);
});
