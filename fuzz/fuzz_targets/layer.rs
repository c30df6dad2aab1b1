//! Sequences of calls of a layer, right and wrong ones, against a model of what it should hold.
#![no_main]

use batchnorm_fuzz::api::layer::{Sequence, run};
use batchnorm_fuzz::with_element;

libfuzzer_sys::fuzz_target!(|sequence: Sequence| {
    with_element!(sequence.element, run, &sequence);
});
