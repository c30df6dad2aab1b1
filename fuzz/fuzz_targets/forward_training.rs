//! y of training against an exact oracle.
#![no_main]

use batchnorm_fuzz::operations::forward;
use batchnorm_fuzz::shared::problem::{Problem, Run};
use batchnorm_fuzz::with_element;

libfuzzer_sys::fuzz_target!(|input: (Run, Problem)| {
    let (run, problem) = input;
    with_element!(problem.element, forward::training, &problem, run);
});
