//! What the examples print and where they write.

use std::fmt;
use std::fs::{self, OpenOptions};
use std::io::{self, Write};
use std::path::Path;

/// Prints a line. Unlike `println!` it does not panic where nobody reads any more.
#[macro_export]
macro_rules! outln {
    ($($arguments:tt)*) => {
        $crate::output::print(format_args!("{}\n", format_args!($($arguments)*)))
    };
}

/// Prints a text. If its reader has closed the pipe (`| head -1`), the program has done what was asked and ends.
pub fn print(text: fmt::Arguments<'_>) {
    let mut out = io::stdout().lock();
    match out.write_fmt(text).and_then(|()| out.flush()) {
        Ok(()) => {}
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => std::process::exit(0),
        Err(error) => {
            eprintln!("error: standard output: {error}");
            std::process::exit(1);
        }
    }
}

/// Whether a file can be written, found out before the work whose result it is to hold. It is left as it was.
pub fn check_writable(path: &Path) -> Result<(), String> {
    let is_new = fs::symlink_metadata(path).is_err();
    let wrong = |error| format!("{}: {error}", path.display());
    OpenOptions::new().append(true).create(true).open(path).map_err(wrong)?;
    if is_new { fs::remove_file(path).map_err(wrong) } else { Ok(()) }
}
