//! The same bits of every operation with an activation, a residual and a mask as of the separate operations.
#![no_main]

use batchnorm_fuzz::operations::fused::{self, After};
use batchnorm_fuzz::shared::problem::{Problem, Run};
use batchnorm_fuzz::with_element;

libfuzzer_sys::fuzz_target!(|input: (Run, After, Problem)| {
    let (run, after, problem) = input;
    with_element!(problem.element, fused::composition, &problem, run, after);
});
