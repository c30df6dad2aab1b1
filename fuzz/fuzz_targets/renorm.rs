//! Batch renormalization by the operations and by the layer, against the reference, everywhere the same bits.
#![no_main]

use batchnorm_fuzz::api::renorm::{self, Limits};
use batchnorm_fuzz::operations::fused::After;
use batchnorm_fuzz::shared::problem::{Problem, Run};
use batchnorm_fuzz::with_element;

libfuzzer_sys::fuzz_target!(|input: (Run, Limits, After, Problem)| {
    let (run, limits, after, problem) = input;
    with_element!(problem.element, renorm::check, &problem, run, limits, after);
});
