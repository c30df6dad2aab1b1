//! The statistics of a channel.

use std::ffi::c_void;

use super::arguments::{Arguments, Failure, call, check_states};
use super::status::Status;
use crate::api::builders::Normalizer;
use crate::ground::welford::Welford;
use crate::simd::environment;

/// The statistics of a channel, a Welford state: count, mean and the sum of squared deviations from it. All zeros is the
/// state of no elements. States may be stored and sent: those of parts merge to those of the whole.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
#[repr(C)]
pub struct State {
    /// The number of elements seen.
    pub count: u64,
    /// The mean, which is `mean + mean_low`: next to a large mean one double is not fine enough. NaN if an element was
    /// NaN or infinite.
    pub mean: f64,
    /// What is to be added to `mean`, divided by 2^`exponent`; small against it.
    pub mean_low: f64,
    /// The sum of squared deviations from the mean, divided by 4^`exponent`. The biased variance is `m2 / count`, the unbiased
    /// one `m2 / (count - 1)`.
    pub m2: f64,
    /// What is to be added to `m2`; small against it, and 0 for f32 elements.
    pub m2_low: f64,
    /// 0, unless squares of the elements leave f64's range: then 600 or -600.
    pub exponent: i64,
}

const _: () =
    assert!(size_of::<State>() == size_of::<Welford>() && align_of::<State>() == align_of::<Welford>());

impl Arguments {
    /// States, or else a mean and a variance.
    ///
    /// # Safety
    /// As of `read`.
    pub(super) unsafe fn statistics<'a, T>(
        &mut self,
        states: *const State,
        (mean, var): (*const c_void, *const c_void),
        c: usize,
    ) -> Result<Normalizer<'a, T>, Failure> {
        // SAFETY: says the caller.
        unsafe {
            if !states.is_null() {
                for (name, other) in [("mean", mean), ("var", var)] {
                    if !other.is_null() {
                        let message = format!("{name} is given, must be null, since states are given");
                        return Err(Failure(Status::Exclusive, message));
                    }
                }
                let states = self.read("states", states.cast::<Welford>(), c)?;
                check_states("states", states)?;
                return Ok(Normalizer::Batch(states));
            }
            if mean.is_null() && var.is_null() && c > 0 {
                let message = format!("states is null, must have {c} elements, or mean and var must");
                return Err(Failure(Status::NullPointer, message));
            }
            let mean = self.read("mean", mean.cast(), c)?;
            Ok(Normalizer::Frozen(mean, self.read("var", var.cast(), c)?))
        }
    }
}

/// A value of a state's, NaN of none.
unsafe fn value(state: *const State, of: fn(&Welford) -> f64) -> f64 {
    let (state, mut value) = (state.cast::<Welford>(), f64::NAN);
    if !state.is_null() && state.is_aligned() {
        // SAFETY: says the caller; a `State` is a `Welford`.
        environment::in_default(|| value = of(unsafe { &*state }));
    }
    value
}

/// A state's mean, as one double. NaN if an element was NaN or infinite, or the state is null.
///
/// # Safety
/// `state` is null or points to one.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn batchnorm_mean(state: *const State) -> f64 {
    // SAFETY: says the caller.
    unsafe { value(state, Welford::mean) }
}

/// A state's biased variance, by which training normalizes; 0 of no elements, NaN where the mean is.
///
/// # Safety
/// `state` is null or points to one.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn batchnorm_variance(state: *const State) -> f64 {
    // SAFETY: says the caller.
    unsafe { value(state, Welford::variance) }
}

/// A state's unbiased variance; NaN of fewer than two elements, and where the mean is.
///
/// # Safety
/// `state` is null or points to one.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn batchnorm_variance_unbiased(state: *const State) -> f64 {
    // SAFETY: says the caller.
    unsafe { value(state, Welford::variance_unbiased) }
}

/// Takes the elements that `from` has seen into `into`, for each of `channels` channels: the statistics of the parts of a
/// batch become those of the whole. Any order and grouping gives the same up to rounding.
///
/// # Safety
/// `channels` states can be read at `from`, read and written at `into`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn batchnorm_merge(channels: usize, into: *mut State, from: *const State) -> Status {
    call(|| {
        let mut arguments = Arguments::default();
        // SAFETY: says the caller; a `State` is a `Welford`.
        let (into, from) = unsafe {
            (
                arguments.write("into", into.cast::<Welford>(), channels)?,
                arguments.read("from", from.cast::<Welford>(), channels)?,
            )
        };
        check_states("into", into)?;
        check_states("from", from)?;
        let overflows = |(into, from): (&Welford, &Welford)| into.count().checked_add(from.count()).is_none();
        if let Some(channel) = into.iter().zip(from).position(overflows) {
            let (into, from) = (into[channel].count(), from[channel].count());
            let message = format!(
                "into[{channel}] counts {into} elements and from[{channel}] {from}, must be fewer than 2^64 together"
            );
            return Err(Failure(Status::Overflow, message));
        }
        environment::in_default(|| into.iter_mut().zip(from).for_each(|(into, from)| into.merge(from)));
        Ok(())
    })
}
