//! The statistics of parts, merged in any order, against an exact oracle of the whole.
#![no_main]

use batchnorm_fuzz::ground::merge::{Split, merge};
use batchnorm_fuzz::shared::problem::Run;
use batchnorm_fuzz::with_element;

libfuzzer_sys::fuzz_target!(|input: (Run, Split)| {
    let (run, split) = input;
    with_element!(split.element, merge, &split, run);
});
