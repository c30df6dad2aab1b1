//! What tensors hold where several types are measured: f32, and with the feature `half` its bf16 and f16.

use batchnorm::Storage;

/// The types that `--type` may name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Type {
    F32,
    #[cfg(feature = "half")]
    Bf16,
    #[cfg(feature = "half")]
    F16,
}

impl Type {
    pub fn name(self) -> &'static str {
        match self {
            Self::F32 => "f32",
            #[cfg(feature = "half")]
            Self::Bf16 => "bf16",
            #[cfg(feature = "half")]
            Self::F16 => "f16",
        }
    }

    /// The type of a name; the error says why it cannot be had.
    pub fn parse(name: &str) -> Result<Self, String> {
        match name {
            "f32" => Ok(Self::F32),
            #[cfg(feature = "half")]
            "bf16" => Ok(Self::Bf16),
            #[cfg(feature = "half")]
            "f16" => Ok(Self::F16),
            #[cfg(not(feature = "half"))]
            "bf16" | "f16" => {
                Err(format!("--type {name} needs the feature half: cargo run --release --features half ..."))
            }
            other => Err(format!("--type is {other:?}, must be f32, bf16 or f16")),
        }
    }
}

/// A number of these types.
pub trait Number: Storage<Arithmetic = f32> {
    /// Its type.
    const TYPE: Type;

    /// The value, rounded once.
    fn of(value: f32) -> Self;
}

impl Number for f32 {
    const TYPE: Type = Type::F32;

    fn of(value: f32) -> Self {
        value
    }
}

#[cfg(feature = "half")]
macro_rules! halves {
    ($($half:ty: $name:ident),*) => {$(
        impl Number for $half {
            const TYPE: Type = Type::$name;

            fn of(value: f32) -> Self {
                Self::from_f32(value)
            }
        }
    )*};
}
#[cfg(feature = "half")]
halves!(half::bf16: Bf16, half::f16: F16);
