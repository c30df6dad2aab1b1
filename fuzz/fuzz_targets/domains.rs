//! A layer with several domains, which calls switch between, against a layer for each.
#![no_main]

use batchnorm_fuzz::api::domains::{Domains, run};
use batchnorm_fuzz::shared::problem::Run;
use batchnorm_fuzz::with_element;

libfuzzer_sys::fuzz_target!(|input: (Run, Domains)| {
    let (how, domains) = input;
    with_element!(domains.element, run, &domains, how);
});
