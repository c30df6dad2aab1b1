//! The gradients of training and of inference against an exact oracle.
#![no_main]

use batchnorm_fuzz::operations::gradients;
use batchnorm_fuzz::shared::calls::Wanted;
use batchnorm_fuzz::shared::problem::{Problem, Run};
use batchnorm_fuzz::with_element;

libfuzzer_sys::fuzz_target!(|input: (Run, Wanted, Problem)| {
    let (run, wanted, problem) = input;
    with_element!(problem.element, gradients::backward, &problem, run, wanted);
});
