//! Who does the tasks.

#[path = "../common/mod.rs"]
mod common;
mod threads;
