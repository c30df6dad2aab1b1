//! The medians as a file, for other programs; pytorch.py writes the same columns.

use std::fs::File;
use std::io::{self, Write};
use std::path::Path;

use crate::tables::Row;

/// A file that grows line by line.
pub struct Writer {
    file: File,
}

impl Writer {
    /// A new file, or an old one emptied, with the names of the columns.
    pub fn create(path: &Path) -> io::Result<Self> {
        let mut file = File::create(path)?;
        writeln!(file, "operation,shape,threads,contender,layout,median_us,fastest_us,samples")?;
        Ok(Self { file })
    }

    /// A line for each contender.
    pub fn write(&mut self, threads: usize, row: &Row) -> io::Result<()> {
        for timing in &row.timings {
            writeln!(
                self.file,
                "{},{},{threads},{},{},{:.3},{:.3},{}",
                row.form.name(),
                row.shape,
                timing.name,
                timing.order.name(),
                timing.median * 1e6,
                timing.fastest * 1e6,
                timing.samples,
            )?;
        }
        Ok(())
    }
}
