//! The same bits of every operation on bf16 and f16 as on the widened tensors, rounded once.
#![no_main]

use ::half::{bf16, f16};
use batchnorm_fuzz::operations::fused::After;
use batchnorm_fuzz::operations::half::{self, Numbers};
use batchnorm_fuzz::shared::problem::{Problem, Run};

libfuzzer_sys::fuzz_target!(|input: (Run, Numbers, After, Problem)| {
    let (run, numbers, after, problem) = input;
    match numbers.f16 {
        true => half::rounding::<f16>(&problem, run, after, numbers),
        false => half::rounding::<bf16>(&problem, run, after, numbers),
    }
});
