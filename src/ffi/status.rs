//! What became of a call.

/// What became of a call. Unless it is OK, nothing has been written (after BATCHNORM_STATUS_INTERNAL, perhaps a part).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(C)]
pub enum Status {
    /// Done.
    Ok = 0,
    /// A pointer is null, and its length is not 0.
    NullPointer = 1,
    /// A pointer is not aligned to its element. (It need not be aligned to more.)
    Misaligned = 2,
    /// What is written overlaps another argument, and is not one that may be written over.
    Overlap = 3,
    /// The number of elements, or of their bytes, overflows; or a count that a merge would make.
    Overflow = 4,
    /// A number stands for no element, layout, activation, level, rule or variance.
    UnknownValue = 5,
    /// eps is negative, NaN or infinite.
    Epsilon = 6,
    /// A learning rate or a slope is NaN or infinite, or a momentum or decay not between 0 and 1.
    NotFinite = 7,
    /// The unbiased variance of one element per channel does not exist.
    SingleElement = 8,
    /// A state's count is not the number of elements per channel.
    Count = 9,
    /// The CPU does not have the level.
    Level = 10,
    /// The number of threads cannot be set: the pool is running already, or cannot be started.
    Threads = 11,
    /// The size in a struct is not the struct's, or the struct has a field that this version of the library does not know.
    Size = 12,
    /// Two arguments are given of which one has to be null.
    Exclusive = 13,
    /// A bug in the library.
    Internal = 14,
    /// There is no memory for what a call needs beside its arguments. Then there is no message of the call's own either.
    OutOfMemory = 15,
    /// A state's numbers are none that elements give.
    State = 16,
    /// An activation has a residual, or a mask, that it does not go with.
    Activation = 17,
    /// A clip's bounds are NaN, or leave nothing between them.
    Clip = 18,
    /// Partial sums do not go with others, with the call, or into the room for them.
    Part = 19,
    /// Bytes are not those of partial sums, or were damaged.
    Bytes = 20,
    /// Not all processes' parts of the batch could be had: one has an error, or the program's gather failed.
    Gather = 21,
    /// A number of groups does not divide the channels, or the weights' rows, that are in groups.
    Groups = 22,
    /// A limit of batch renormalization is NaN, r_max is below 1, or d_max below 0.
    Limit = 23,
    /// A weight of a sample is neither 0 nor from 2^-60 to 2^60, or all are 0.
    Weights = 24,
}
