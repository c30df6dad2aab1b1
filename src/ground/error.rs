//! What can be wrong with the arguments of a call.

#![forbid(unsafe_code)]

use std::fmt;

/// Why a call was refused. Nothing has been written when one of these is returned.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub enum Error {
    /// A shape has fewer than two dimensions; batch and channels are the least.
    Rank {
        /// The number of dimensions given.
        rank: usize,
    },
    /// The product of a shape's dimensions does not fit in `usize`.
    Overflow {
        /// The dimensions given.
        dims: Vec<usize>,
    },
    /// A slice has another length than the shape or the number of channels asks for.
    Length {
        /// The argument's name.
        argument: &'static str,
        /// Its length.
        got: usize,
        /// The length it must have.
        expected: usize,
    },
    /// An operand that the operation needs has not been given to its builder.
    Missing {
        /// The operand's name.
        argument: &'static str,
    },
    /// A result that a builder has been given more than one place for.
    Twice {
        /// The result's name.
        argument: &'static str,
    },
    /// `eps` is negative, NaN or infinite.
    Epsilon {
        /// The value given.
        eps: f64,
    },
    /// A scalar (momentum, decay, learning rate) is NaN or infinite.
    NotFinite {
        /// The argument's name.
        argument: &'static str,
        /// The value given.
        value: f64,
    },
    /// The unbiased variance m/(m-1) of a single element per channel, which does not exist.
    SingleElement,
    /// Statistics over another number of elements than the tensor has per channel.
    Count {
        /// The channel whose state differs.
        channel: usize,
        /// The count of its state.
        got: u64,
        /// The elements per channel of the shape.
        expected: u64,
    },
    /// `backward` on a layer that has no forward training pass of the same shape to go back through.
    NoForward,
    /// The instruction set is not one that this CPU (and this build) has.
    Level {
        /// The level asked for.
        level: crate::Level,
    },
    /// An axis that a view does not have.
    Axis {
        /// The axis given.
        axis: usize,
        /// The number of the view's axes.
        rank: usize,
    },
    /// A view whose elements lie in memory in neither layout, or not as those of the tensor that it goes with.
    View {
        /// The view's dimensions.
        dims: Vec<usize>,
        /// The view's strides, in elements.
        strides: Vec<isize>,
        /// The channel axis given.
        axis: usize,
        /// The shape of the tensor that the view goes with, if it goes with one.
        like: Option<crate::Shape>,
    },
    /// Numbers that are no Welford state's.
    State {
        /// What is wrong with them.
        reason: &'static str,
    },
    /// A name that is none of an instruction set's.
    UnknownLevel {
        /// The name given.
        name: String,
    },
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Error::Rank { rank } => {
                write!(f, "shape has {rank} dimension(s), must have at least 2 (batch and channels)")
            }
            Error::Overflow { dims } => {
                write!(f, "shape {dims:?} has more elements than usize can count")
            }
            Error::Length { argument, got, expected } => {
                write!(f, "{argument} has length {got}, must have length {expected}")
            }
            Error::Missing { argument: "states" } => {
                write!(f, "states is missing, must be given (or, of frozen statistics, mean and var)")
            }
            Error::Missing { argument } => write!(f, "{argument} is missing, must be given"),
            Error::Twice { argument } => {
                write!(f, "{argument} has more than one place to go to, must have one: its own or an input's")
            }
            Error::Epsilon { eps } => {
                write!(f, "eps is {eps}, must be finite and not negative")
            }
            Error::NotFinite { argument, value } => {
                write!(f, "{argument} is {value}, must be finite")
            }
            Error::SingleElement => write!(
                f,
                "running variance is unbiased (m / (m - 1)), so m = N * S must be at least 2, but is 1"
            ),
            Error::Count { channel, got, expected } => write!(
                f,
                "states[{channel}] counts {got} elements, must count the {expected} elements per channel of the shape"
            ),
            Error::NoForward => {
                write!(f, "backward needs a forward_training of the same shape before it")
            }
            Error::Level { level } => {
                write!(f, "level is {level}, must be one of those this CPU and build have: ")?;
                for (i, available) in crate::Level::available().iter().enumerate() {
                    write!(f, "{}{available}", if i == 0 { "" } else { ", " })?;
                }
                Ok(())
            }
            Error::Axis { axis, rank } => {
                write!(f, "channel axis is {axis}, must be below {rank}, the number of axes")
            }
            Error::View { dims, strides, axis, like } => {
                write!(f, "view of dimensions {dims:?} and strides {strides:?} with channel axis {axis} ")?;
                match like {
                    None => write!(
                        f,
                        "is dense in neither layout, must be made so: as_standard_layout() copies it"
                    ),
                    Some(like) => write!(
                        f,
                        "must lie in memory like the tensor it goes with, which is {like:?}: as_standard_layout() \
                         copies either"
                    ),
                }
            }
            Error::State { reason } => write!(f, "the parts of a Welford state have {reason}"),
            Error::UnknownLevel { name } => {
                write!(f, "level is {name:?}, must be \"portable\", \"avx2\" or \"avx512\"")
            }
        }
    }
}

impl std::error::Error for Error {}

pub fn check_len(argument: &'static str, got: usize, expected: usize) -> Result<(), Error> {
    if got == expected { Ok(()) } else { Err(Error::Length { argument, got, expected }) }
}

pub fn check_optional<T>(argument: &'static str, slice: Option<&[T]>, expected: usize) -> Result<(), Error> {
    slice.map_or(Ok(()), |slice| check_len(argument, slice.len(), expected))
}

pub fn check_finite(argument: &'static str, value: f64) -> Result<(), Error> {
    if value.is_finite() { Ok(()) } else { Err(Error::NotFinite { argument, value }) }
}

pub fn check_eps(eps: f64) -> Result<(), Error> {
    if eps.is_finite() && eps >= 0.0 { Ok(()) } else { Err(Error::Epsilon { eps }) }
}
