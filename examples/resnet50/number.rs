//! What is done to numbers here beside calls of the library.

use batchnorm::{Error, Shape};
use rayon::prelude::*;

pub use crate::types::Type;

/// Elements that a separate operation takes at a time: 16 KiB of f32.
pub const CHUNK: usize = 4096;

/// A number of these types.
pub trait Number: crate::types::Number + PartialOrd {
    /// What the one rounding that gave this number may have changed: half the distance to the next. Nothing of f32, whose
    /// roundings are within what is promised.
    fn rounding(self) -> f64;

    /// y += z, on all threads.
    fn add(shape: &Shape, z: &[Self], y: &mut [Self]) -> Result<(), Error>;
}

impl Number for f32 {
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
