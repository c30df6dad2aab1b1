//! The table, as text and as comma-separated values.

use std::fmt::Write as _;

use crate::limit::{self, Operation, Pass};
use crate::measure::Measured;
use crate::shapes::Problem;

/// A shape's line: an operation on all layers of this shape.
pub struct Row {
    pub problem: Problem,
    pub passes: &'static [Pass],
    pub measured: Measured,
}

impl Row {
    /// Of the limit, what is reached.
    pub fn share(&self) -> f64 {
        self.measured.limit / self.measured.seconds
    }

    /// Gigabytes per second, of each f32 tensor that must be read or written counted once.
    pub fn rate(&self, operation: Operation) -> f64 {
        let bytes = self.problem.dims.iter().product::<usize>() * size_of::<f32>() * operation.tensors();
        bytes as f64 / self.measured.seconds / 1e9
    }
}

/// What a network takes: the sum over all its layers of seconds, and of their limits.
pub fn total(rows: &[Row]) -> (f64, f64) {
    let sum = |of: fn(&Measured) -> f64| {
        rows.iter().map(|row| of(&row.measured) * row.problem.layers as f64).sum::<f64>()
    };
    (sum(|measured| measured.seconds), sum(|measured| measured.limit))
}

/// The table of an operation; `promised` is the largest error there may be.
pub fn text(operation: Operation, rows: &[Row], promised: f64) -> String {
    let mut text = String::new();
    let mut line = |cells: [&str; 8]| {
        let [shape, layers, us, rate, limit, share, passes, error] = cells;
        let cells = format!(
            "{shape:<18} {layers:>6} {us:>12} {rate:>7} {limit:>10} {share:>6}  {passes:<19} {error:>8}"
        );
        writeln!(text, "{}", cells.trim_end()).expect("writing to a string");
    };
    let us = |seconds: f64| grouped(seconds * 1e6);
    line([
        operation.name(),
        "layers",
        "microseconds",
        "GB/s",
        "limit us",
        "share",
        "limit's passes",
        "error",
    ]);
    for row in rows {
        line([
            &row.problem.to_string(),
            &row.problem.layers.to_string(),
            &us(row.measured.seconds),
            &format!("{:.1}", row.rate(operation)),
            &us(row.measured.limit),
            &format!("{:.2}", row.share()),
            &limit::names(row.passes),
            &format!("{:.1e}", row.measured.error),
        ]);
    }
    let mean = (rows.iter().map(|row| row.share().ln()).sum::<f64>() / rows.len() as f64).exp();
    line(["geometric mean", "", "", "", "", &format!("{mean:.2}"), "", ""]);
    let layers: usize = rows.iter().map(|row| row.problem.layers).sum();
    let ((seconds, limit), worst) = (total(rows), worst(rows));
    let (share, error) = (format!("{:.2}", limit / seconds), format!("{worst:.1e}"));
    line(["all layers", &layers.to_string(), &us(seconds), "", &us(limit), &share, "", &error]);
    if worst <= promised {
        writeln!(text, "error: at most {promised:.1e} is promised").expect("writing to a string");
    } else {
        writeln!(text, "ERROR LARGER THAN PROMISED ({promised:.1e})").expect("writing to a string");
    }
    text
}

/// The largest error of all shapes; NaN if one is.
pub fn worst(rows: &[Row]) -> f64 {
    rows.iter().map(|row| row.measured.error).fold(0.0, |a, b| if a >= b { a } else { b })
}

/// A number with commas between thousands and a decimal where it is small.
pub fn grouped(value: f64) -> String {
    if value < 100.0 {
        return format!("{value:.1}");
    }
    let digits = format!("{value:.0}");
    let groups: Vec<&str> = digits
        .as_bytes()
        .rchunks(3)
        .rev()
        .map(|group| std::str::from_utf8(group).expect("digits are text"))
        .collect();
    groups.join(",")
}

/// Comma-separated values of all operations, with a line of names first.
pub fn csv(layout: &str, threads: usize, level: &str, tables: &[(Operation, Vec<Row>)]) -> String {
    let mut text = "operation,layout,threads,level,shape,layers,microseconds,gigabytes_per_second,\
                    limit_microseconds,share,limit_passes,error\n"
        .to_owned();
    for (operation, rows) in tables {
        for row in rows {
            let Row { problem, passes, measured } = row;
            writeln!(
                text,
                "{},{layout},{threads},{level},{problem},{},{:.3},{:.3},{:.3},{:.4},{},{:.3e}",
                operation.name(),
                problem.layers,
                measured.seconds * 1e6,
                row.rate(*operation),
                measured.limit * 1e6,
                row.share(),
                limit::names(passes),
                measured.error
            )
            .expect("writing to a string");
        }
    }
    text
}
