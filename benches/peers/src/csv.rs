//! The medians as a file, for other programs; pytorch.py writes the same columns.

use std::fs::File;
use std::io::{self, Write};
use std::path::Path;

use crate::number::Type;
use crate::tables::Row;

/// A file that grows line by line.
pub struct Writer {
    file: File,
    /// Behind the names: what tensors hold, if it is not f32.
    suffix: String,
}

impl Writer {
    /// A new file, or an old one emptied, with the names of the columns.
    pub fn create(path: &Path, number: Type) -> io::Result<Self> {
        let mut file = File::create(path)?;
        writeln!(file, "operation,shape,threads,contender,layout,median_us,fastest_us,samples")?;
        let suffix = if number == Type::F32 { String::new() } else { format!(" {}", number.name()) };
        Ok(Self { file, suffix })
    }

    /// A line for each contender.
    pub fn write(&mut self, threads: usize, row: &Row) -> io::Result<()> {
        for timing in &row.timings {
            writeln!(
                self.file,
                "{},{},{threads},{}{},{},{:.3},{:.3},{}",
                row.form.name(),
                row.shape,
                timing.name,
                self.suffix,
                timing.order.name(),
                timing.median * 1e6,
                timing.fastest * 1e6,
                timing.samples,
            )?;
        }
        Ok(())
    }
}
