//! The same bits of every operation on every level, and on any number of threads.
#![no_main]

use batchnorm_fuzz::operations::agreement;
use batchnorm_fuzz::operations::fused::After;
use batchnorm_fuzz::shared::problem::{Problem, Run};
use batchnorm_fuzz::with_element;

libfuzzer_sys::fuzz_target!(|input: (Run, Problem, After)| {
    let (run, problem, after) = input;
    with_element!(problem.element, agreement::levels, &problem, run, after);
});
