//! What tensors hold: f32, and with the feature `half` its bf16 and f16.

use batchnorm::{Error, Shape, Storage};
use rayon::prelude::*;

/// Elements that a separate operation takes at a time: 16 KiB of f32.
pub const CHUNK: usize = 4096;

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
            "bf16" | "f16" => Err(format!(
                "--type {name} needs the feature half: cargo run --release --features half --example resnet50 -- --type {name}"
            )),
            other => Err(format!("--type is {other:?}, must be f32, bf16 or f16")),
        }
    }
}

/// A number of these types.
pub trait Number: Storage<Arithmetic = f32> + PartialOrd {
    /// The value, rounded once.
    fn of(value: f32) -> Self;

    /// What the one rounding that gave this number may have changed: half the distance to the next. Nothing of f32, whose
    /// roundings are within what is promised.
    fn rounding(self) -> f64;

    /// y += z, on all threads.
    fn add(shape: &Shape, z: &[Self], y: &mut [Self]) -> Result<(), Error>;
}

impl Number for f32 {
    fn of(value: f32) -> Self {
        value
    }

    fn rounding(self) -> f64 {
        0.0
    }

    fn add(_: &Shape, z: &[Self], y: &mut [Self]) -> Result<(), Error> {
        let chunks = y.par_chunks_mut(CHUNK).zip(z.par_chunks(CHUNK));
        chunks.for_each(|(y, z)| y.iter_mut().zip(z).for_each(|(y, z)| *y += z));
        Ok(())
    }
}

#[cfg(feature = "half")]
mod halves {
    use batchnorm::{Error, Inference, Params, Shape};
    use half::{bf16, f16};

    use super::Number;

    macro_rules! halves {
        ($($half:ty),*) => {$(
            impl Number for $half {
                fn of(value: f32) -> Self {
                    Self::from_f32(value)
                }

                fn rounding(self) -> f64 {
                    // Away from 0, where the distance is the larger one at a power of two.
                    let next = Self::from_bits(self.to_bits() + 1);
                    (next.to_f64() - self.to_f64()).abs() / 2.0
                }

                // By the library, with parameters that change nothing: the compiler has no vectors for conversions on any CPU,
                // and without them the separate calls would look many times as slow as they need be.
                fn add(shape: &Shape, z: &[Self], y: &mut [Self]) -> Result<(), Error> {
                    let (zeros, ones) = (vec![0.0; shape.channels()], vec![1.0; shape.channels()]);
                    let call = Inference::new(shape, Params::new(0.0)).x_in_place(y).residual(z);
                    call.frozen(&zeros, &ones).run()
                }
            }
        )*};
    }
    halves!(bf16, f16);
}
