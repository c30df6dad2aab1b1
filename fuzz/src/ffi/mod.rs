//! The C interface.

pub mod c_abi;
