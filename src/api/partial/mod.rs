//! Sums of parts of a batch, which join to those of the whole: a batch split over calls, processes or machines.

pub mod bytes;
pub mod gradients;
pub mod kind;
pub mod nodes;
pub mod statistics;
