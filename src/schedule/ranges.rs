//! Ranges in pieces, grids in rectangles.

#![forbid(unsafe_code)]

use std::ops::Range;

/// A range in pieces of `size`.
pub fn pieces(range: Range<usize>, size: usize) -> impl Iterator<Item = Range<usize>> {
    let end = range.end;
    range.step_by(size).map(move |start| start..(start + size).min(end))
}

/// A range in pieces that end at multiples of `size`.
pub fn pieces_at(range: Range<usize>, size: usize) -> impl Iterator<Item = Range<usize>> {
    let Range { mut start, end } = range;
    std::iter::from_fn(move || {
        let piece = start..(start / size * size + size).min(end);
        start = piece.end;
        (!piece.is_empty()).then_some(piece)
    })
}

/// Rectangles that make up a range of the cells of a grid, row by row: a part of a row, whole rows, a part of a row.
pub fn rectangles(cells: Range<usize>, width: usize) -> impl Iterator<Item = (Range<usize>, Range<usize>)> {
    let Range { mut start, end } = cells;
    std::iter::from_fn(move || {
        let (row, column) = (start / width, start % width);
        let rest = end.saturating_sub(start);
        let (rows, columns) = match rest {
            0 => return None,
            _ if column > 0 || rest < width => (1, column..(column + rest).min(width)),
            _ => (rest / width, 0..width),
        };
        start += rows * columns.len();
        Some((row..row + rows, columns))
    })
}
