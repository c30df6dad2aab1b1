//! What tensors hold: f32, bf16 or f16. Parameters are f32 beside each of them.

use batchnorm::Storage;
use half::{bf16, f16};

/// The types that `--type` may name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Type {
    /// f32.
    F32,
    /// The upper half of an f32.
    Bf16,
    /// IEEE's binary16.
    F16,
}

impl Type {
    /// By their names on the command line.
    pub const NAMED: [(&str, Self); 3] = [("f32", Self::F32), ("bf16", Self::Bf16), ("f16", Self::F16)];

    /// Its name in tables.
    pub fn name(self) -> &'static str {
        Self::NAMED.iter().find(|(_, of)| *of == self).expect("each has a name").0
    }
}

/// A number of these types.
pub trait Number: Storage<Arithmetic = f32> {
    /// As the command line has it.
    const TYPE: Type;
    /// How far results may be off, relative to their own size or the tensor's root mean square, whichever is larger: what the peers'
    /// sums in f32 lose, or two roundings to 16 bits, of which one is of y before a residual is added and may be some times its sum.
    const TOLERANCE: f32;

    /// The value, rounded once.
    fn of(value: f32) -> Self;
}

impl Number for f32 {
    const TYPE: Type = Type::F32;
    const TOLERANCE: f32 = 1e-3;

    fn of(value: f32) -> Self {
        value
    }
}

impl Number for bf16 {
    const TYPE: Type = Type::Bf16;
    const TOLERANCE: f32 = 1.0 / 64.0;

    fn of(value: f32) -> Self {
        Self::from_f32(value)
    }
}

impl Number for f16 {
    const TYPE: Type = Type::F16;
    const TOLERANCE: f32 = 1.0 / 512.0;

    fn of(value: f32) -> Self {
        Self::from_f32(value)
    }
}
