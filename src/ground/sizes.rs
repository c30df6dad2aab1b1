//! Sizes that several floors share: of vectors, of groups of channels, of tiles.

#![forbid(unsafe_code)]

/// A size, or under fuzzing a small one: then small inputs reach every merge, every schedule and every way to write.
pub const fn fuzzed(size: usize, small: usize) -> usize {
    if cfg!(fuzzing) { small } else { size }
}

/// The logical width of a reduction: element s of a plane belongs to lane s mod 16 on every instruction set.
pub const LANES: usize = 16;

/// The same of samples with a single position: enough that few channels fill vectors, few enough that the sums of many channels
/// stay in L1.
pub const SAMPLE_LANES: usize = 4;

/// Bytes of a cache line.
pub const LINE: usize = 64;

/// The most positions of a plane whose every position is a lane of its own: 7 x 7 and 8 x 8 are. Part of the order of
/// arithmetic.
pub const SMALL_PLANE: usize = 64;

/// The most channels whose coefficients are derived at once, and that are reduced at once in NCHW.
pub const GROUP: usize = 64;

/// The most channels that are reduced at once in NHWC: runs of 2 KiB of f32, whose sums per lane stay in L2.
pub const BAND: usize = 512;

/// The most channels that are mapped at once: runs of 8 KiB of f32 in NHWC.
pub const SPAN: usize = 2048;

/// Columns of a tile in NHWC: their coefficients stay in L1 from row to row.
pub const TILE_COLUMNS: usize = fuzzed(512, 32);

/// Rows of a tile: what is prefetched, some rows further down, is then the next tile's of these columns.
pub const TILE_ROWS: usize = fuzzed(16, 4);
