//! Folding into weights of any layout against an exact oracle, and shapes and lengths that do not fit.
#![no_main]

use ::half::{bf16, f16};
use batchnorm_fuzz::api::fold::{Call, Number, fold};

libfuzzer_sys::fuzz_target!(|call: Call| match call.number {
    Number::F32 => fold::<f32>(&call),
    Number::F64 => fold::<f64>(&call),
    Number::Bf16 => fold::<bf16>(&call),
    Number::F16 => fold::<f16>(&call),
});
