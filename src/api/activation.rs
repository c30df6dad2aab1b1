//! Activations of slices: what the fused operations give the bits of.

#![forbid(unsafe_code)]

use crate::ground::error::{Error, check_len};
use crate::kernel::activations::{Activation, ActivationOf, Elementwise};
use crate::operations::Element;
use crate::simd::{Level, environment};

impl Activation {
    /// y = act(u), written over u, on the calling thread: the separate operation that an activation fused with a normalization
    /// has the bits of.
    ///
    /// # Errors
    /// [`Error::NotFinite`] for a slope, [`Error::Clip`]. Nothing has been written then.
    pub fn apply<T: Element>(self, u: &mut [T]) -> Result<(), Error> {
        self.check()?;
        run(self, None, u);
        Ok(())
    }

    /// g = dy * act'(u), written over dy, likewise.
    ///
    /// ```
    /// use batchnorm::Activation;
    /// let mut dy = [1.0f64, -2.0, 3.0];
    /// Activation::Relu.gradient(&[-1.0, 0.5, 0.0], &mut dy)?;
    /// assert_eq!(dy, [0.0, -2.0, 0.0]);
    /// # Ok::<(), batchnorm::Error>(())
    /// ```
    ///
    /// # Errors
    /// [`Error::Length`], [`Error::NotFinite`] for a slope, [`Error::Clip`]. Nothing has been written then.
    pub fn gradient<T: Element>(self, u: &[T], dy: &mut [T]) -> Result<(), Error> {
        self.check()?;
        check_len("dy", dy.len(), u.len())?;
        run(self, Some(u), dy);
        Ok(())
    }
}

fn run<T: Element>(activation: Activation, u: Option<&[T]>, values: &mut [T]) {
    let level = Level::active();
    environment::in_default(|| {
        let activation = ActivationOf::new(activation);
        T::dispatch(level, Elementwise { activation, u, values });
    });
}
