//! The C interface and its header.

mod c_api;
mod header;
