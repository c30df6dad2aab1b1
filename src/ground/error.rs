//! What can be wrong with the arguments of a call.

#![forbid(unsafe_code)]

use std::fmt;

/// Why a call was refused. Nothing has been written when one of these is returned.
///
/// The text says what was given and what must be:
///
/// ```
/// use batchnorm::{BatchNorm, Shape};
/// let shape = Shape::nchw(&[2, 3, 4, 4])?;
/// let error = BatchNorm::new(8).forward_training(&shape, &[0.0f32; 96], &mut [0.0; 96]).unwrap_err();
/// assert_eq!(error.to_string(), "NCHW 2x3x4x4 has 3 channels, must have the 8 of the layer");
/// # Ok::<(), batchnorm::Error>(())
/// ```
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub enum Error {
    /// A shape has fewer than two dimensions; batch and channels are the least.
    Rank {
        /// The number of dimensions given.
        rank: usize,
    },
    /// A shape has more elements than a slice can.
    Overflow {
        /// The dimensions given, in their order.
        dims: Vec<usize>,
        /// The most elements there can be: a slice has no more than `isize::MAX` bytes.
        most: usize,
    },
    /// A slice has another length than the shape or the number of channels asks for.
    Length {
        /// The argument's name.
        argument: &'static str,
        /// Its length.
        got: usize,
        /// The length it must have.
        expected: usize,
        /// The shape that asks for it, if the slice is a tensor.
        shape: Option<String>,
    },
    /// A shape has another number of channels than the layer, or the statistics, that it goes with.
    Channels {
        /// The shape.
        shape: String,
        /// Its number of channels.
        got: usize,
        /// What it goes with: "layer" or "statistics".
        with: &'static str,
        /// The number of channels of that.
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
    /// Groups that what is to be split into them cannot be, none among them.
    Groups {
        /// The number of groups given.
        groups: usize,
        /// What is to be split.
        of: &'static str,
        /// How many there are.
        size: usize,
    },
    /// `eps` is negative, NaN or infinite.
    Epsilon {
        /// The value given.
        eps: f64,
    },
    /// A scalar (the learning rate) is NaN or infinite.
    NotFinite {
        /// The argument's name.
        argument: &'static str,
        /// The value given.
        value: f64,
    },
    /// A weight (momentum, decay) is not in the range from 0 to 1: it would let running statistics grow without bound.
    Weight {
        /// The argument's name.
        argument: &'static str,
        /// The value given.
        value: f64,
    },
    /// A weight of a sample that is neither 0 nor from 2^-60 to 2^60, whose sums might leave the range of f64.
    SampleWeight {
        /// The sample.
        sample: usize,
        /// Its weight.
        value: f64,
    },
    /// Samples that all have the weight 0, and so no statistics.
    NoSampleWeight,
    /// A limit of batch renormalization that is NaN, or below the least that it can be.
    Limit {
        /// The limit's name.
        argument: &'static str,
        /// The value given.
        value: f64,
        /// The least that it can be.
        least: f64,
    },
    /// A clip whose bounds are NaN, or leave nothing between them.
    Clip {
        /// The lower bound given.
        lo: f64,
        /// The upper bound given.
        hi: f64,
    },
    /// An activation with a residual, or with a mask, that it does not go with.
    Activation {
        /// The activation's name.
        activation: String,
        /// What it was to go with: "residual" or "mask".
        with: &'static str,
    },
    /// The unbiased variance m/(m-1) of a single element per channel, which does not exist.
    SingleElement,
    /// Statistics over another number of elements than the tensor has per channel.
    Count {
        /// The channel whose state differs.
        channel: usize,
        /// The count of its state.
        got: u64,
        /// The elements per channel of the shape, or of the sums over all of a batch that are given.
        expected: u64,
    },
    /// `backward` on a layer that has had no forward pass to go back through, but for inference.
    NoForward,
    /// The gradient of a residual of a layer whose last forward pass had none.
    NoResidual,
    /// `backward` of another shape than that of the layer's last forward pass.
    ForwardShape {
        /// The shape given.
        got: String,
        /// The shape of the forward pass.
        expected: String,
    },
    /// `backward` of another `x` than that of the layer's last forward pass.
    ForwardInput {
        /// An element that differs.
        index: usize,
        /// Its value.
        got: f64,
        /// Its value in the forward pass.
        expected: f64,
    },
    /// The instruction set is not one that this CPU (and this build) has.
    Level {
        /// The name of the level asked for.
        level: String,
        /// The names of those there are.
        available: Vec<String>,
    },
    /// An axis that a view does not have.
    Axis {
        /// The axis given.
        axis: usize,
        /// The number of the view's axes.
        rank: usize,
    },
    /// A domain that a layer does not have.
    Domain {
        /// The domain given.
        domain: usize,
        /// The number of the layer's domains.
        domains: usize,
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
        like: Option<String>,
    },
    /// Numbers that are no Welford state's.
    State {
        /// What is wrong with them.
        reason: &'static str,
    },
    /// Partial sums that do not go with others, or with a call.
    Partial {
        /// What is wrong with them.
        reason: &'static str,
    },
    /// Bytes that are not those of partial sums.
    Bytes {
        /// What is wrong with them.
        reason: &'static str,
    },
    /// What other processes know of their parts of a batch could not be had.
    Gather {
        /// Why not.
        reason: String,
    },
    /// A name that is none of an instruction set's.
    UnknownLevel {
        /// The name given.
        name: String,
    },
    /// There is no memory for what a call needs beside its arguments: some hundred kilobytes, and a state for each channel
    /// of each part of a large batch.
    OutOfMemory {
        /// The bytes that could not be had.
        bytes: usize,
    },
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Error::Rank { rank } => {
                write!(f, "shape has {rank} dimension(s), must have at least 2 (batch and channels)")
            }
            Error::Overflow { dims, most } => {
                write!(f, "shape {dims:?} has too many elements for a slice, must have at most {most}")
            }
            Error::Length { argument, got, expected, shape } => {
                write!(f, "{argument} has length {got}, must have length {expected}")?;
                shape.iter().try_for_each(|shape| write!(f, ", that of {shape}"))
            }
            Error::Channels { shape, got, with, expected } => {
                write!(f, "{shape} has {got} channels, must have the {expected} of the {with}")
            }
            Error::Missing { argument: "states" } => {
                write!(f, "states is missing, must be given (or, of frozen statistics, mean and var)")
            }
            Error::Missing { argument: "mask" } => write!(
                f,
                "mask is missing, must be given: backward through a residual and an activation takes what the forward pass \
                 was asked to write by its mask"
            ),
            Error::Missing { argument } => write!(f, "{argument} is missing, must be given"),
            Error::Twice { argument: "sums" } => {
                write!(f, "sums is given where the sums of all parts are gathered, must be left out")
            }
            Error::Twice { argument } => {
                write!(f, "{argument} has more than one place to go to, must have one: its own or an input's")
            }
            Error::Groups { groups, of, size } => {
                write!(f, "groups is {groups}, must divide the number of {of}, {size}")
            }
            Error::Epsilon { eps } => {
                write!(f, "eps is {eps:?}, must be finite and not negative")
            }
            Error::NotFinite { argument, value } => {
                write!(f, "{argument} is {value:?}, must be finite")
            }
            Error::Weight { argument, value } => {
                write!(f, "{argument} is {value:?}, must be between 0 and 1")
            }
            Error::SampleWeight { sample, value } => {
                write!(f, "weights[{sample}] is {value:?}, must be 0 or between 2^-60 and 2^60")
            }
            Error::NoSampleWeight => {
                write!(f, "weights are 0 for all samples of the batch, must be more for one at least")
            }
            Error::Limit { argument, value, least } => {
                write!(f, "{argument} is {value:?}, must be at least {least:?}")
            }
            Error::Clip { lo, hi } => {
                write!(f, "clip is from {lo:?} to {hi:?}, must be from a number to one that is not below it")
            }
            Error::Activation { activation, with } => write!(
                f,
                "{activation} goes with no {with}, must be identity, ReLU, leaky ReLU or clip to have one"
            ),
            Error::SingleElement => write!(
                f,
                "running variance is unbiased (m / (m - 1)), so m, N * S or the weights' sum times S, must be at least 2, but is 1"
            ),
            Error::Count { channel, got, expected } => write!(
                f,
                "states[{channel}] counts {got} elements, must count the {expected} elements per channel of the shape, or of the sums \
                 that are given"
            ),
            Error::NoForward => {
                write!(
                    f,
                    "backward has no forward pass to go back through, must follow one in training or frozen mode"
                )
            }
            Error::NoResidual => {
                write!(
                    f,
                    "backward has no residual to give the gradient of, must follow a forward pass that had one"
                )
            }
            Error::ForwardShape { got, expected } => {
                write!(f, "backward is of {got}, must be of {expected}, like the layer's last forward pass")
            }
            Error::ForwardInput { index, got, expected } => write!(
                f,
                "x[{index}] is {got:?}, must be {expected:?}: backward takes the x of the layer's last forward pass"
            ),
            Error::Level { level, available } => {
                let available = available.join(", ");
                write!(f, "level is {level}, must be one of those this CPU and build have: {available}")
            }
            Error::Axis { axis, rank } => {
                write!(f, "channel axis is {axis}, must be below {rank}, the number of axes")
            }
            Error::Domain { domain, domains } => {
                write!(f, "domain is {domain}, must be below {domains}, the number of the layer's domains")
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
                        "must lie in memory like the tensor it goes with, which is {like}: as_standard_layout() \
                         copies either"
                    ),
                }
            }
            Error::State { reason } => write!(f, "the parts of a Welford state have {reason}"),
            Error::Partial { reason } => write!(f, "partial sums {reason}"),
            Error::Bytes { reason } => write!(f, "the bytes of partial sums {reason}"),
            Error::Gather { reason } => write!(f, "not all parts of the batch could be had: {reason}"),
            Error::UnknownLevel { name } => {
                write!(f, "level is {name:?}, must be \"portable\", \"avx2\" or \"avx512\"")
            }
            Error::OutOfMemory { bytes } => {
                write!(f, "memory is short: {bytes} bytes of scratch space cannot be had")
            }
        }
    }
}

impl std::error::Error for Error {}

pub fn check_len(argument: &'static str, got: usize, expected: usize) -> Result<(), Error> {
    if got == expected { Ok(()) } else { Err(Error::Length { argument, got, expected, shape: None }) }
}

pub fn check_optional<T>(argument: &'static str, slice: Option<&[T]>, expected: usize) -> Result<(), Error> {
    slice.map_or(Ok(()), |slice| check_len(argument, slice.len(), expected))
}

/// What a number that is not negative is in order among such; by its bits, since a comparison takes a subnormal number for 0 where the
/// host's environment does, raises its flags, and ends in its traps. A NaN is none.
fn rank(value: f64) -> Option<u64> {
    let bits = if value.to_bits() == (-0.0f64).to_bits() { 0 } else { value.to_bits() };
    Some(bits).filter(|bits| *bits <= f64::INFINITY.to_bits())
}

pub fn check_finite(argument: &'static str, value: f64) -> Result<(), Error> {
    let is_finite = value.abs().to_bits() < f64::INFINITY.to_bits();
    if is_finite { Ok(()) } else { Err(Error::NotFinite { argument, value }) }
}

/// The weight of one of two things whose weights add up to 1.
pub fn check_weight(argument: &'static str, value: f64) -> Result<(), Error> {
    match rank(value) {
        Some(rank) if rank <= 1f64.to_bits() => Ok(()),
        _ => Err(Error::Weight { argument, value }),
    }
}

/// The largest weight of a sample: f64's squares and their sums leave so much room. The least one is 1 over it.
pub const LARGEST_WEIGHT: f64 = (1u64 << 60) as f64;

/// The weight of a sample.
pub fn check_sample_weight((sample, value): (usize, f64)) -> Result<(), Error> {
    const WEIGHTS: [u64; 2] = [(1.0 / LARGEST_WEIGHT).to_bits(), LARGEST_WEIGHT.to_bits()];
    match rank(value) {
        Some(rank) if rank == 0 || (WEIGHTS[0]..=WEIGHTS[1]).contains(&rank) => Ok(()),
        _ => Err(Error::SampleWeight { sample, value }),
    }
}

/// A limit, infinite for none; `least` is not negative.
pub fn check_least(argument: &'static str, value: f64, least: f64) -> Result<(), Error> {
    match rank(value) {
        Some(rank) if rank >= least.to_bits() => Ok(()),
        _ => Err(Error::Limit { argument, value, least }),
    }
}

pub fn check_eps(eps: f64) -> Result<(), Error> {
    match rank(eps) {
        Some(rank) if rank < f64::INFINITY.to_bits() => Ok(()),
        _ => Err(Error::Epsilon { eps }),
    }
}
