//! The table, as text and as comma-separated values.

use std::fmt::Write as _;

use crate::measure::Measured;
use crate::plain_loops::{self, Operation, Pass};
use crate::shapes::Problem;

/// The share of the median that the quartiles may be apart.
pub const SCATTER: f64 = 0.2;

/// A shape's line: an operation on all layers of this shape.
pub struct Row {
    pub problem: Problem,
    pub passes: &'static [Pass],
    pub measured: Measured,
}

impl Row {
    /// What plain loops take, as a share of what the operation takes: above 1 it is faster than they are.
    pub fn share(&self) -> f64 {
        self.measured.loops.median / self.measured.times.median
    }

    /// How far samples scatter: those of the operation or of the loops, whichever do more.
    pub fn scatter(&self) -> f64 {
        self.measured.times.scatter().max(self.measured.loops.scatter())
    }

    /// Gigabytes per second, of each f32 tensor that must be read or written counted once.
    pub fn rate(&self, operation: Operation) -> f64 {
        let bytes = self.problem.dims.iter().product::<usize>() * size_of::<f32>() * operation.tensors();
        bytes as f64 / self.measured.times.median / 1e9
    }
}

/// What a network takes: the sum over all its layers of seconds, and of those of plain loops.
pub fn total(rows: &[Row]) -> (f64, f64) {
    let sum = |of: fn(&Measured) -> f64| {
        rows.iter().map(|row| of(&row.measured) * row.problem.layers as f64).sum::<f64>()
    };
    (sum(|measured| measured.times.median), sum(|measured| measured.loops.median))
}

/// The table of an operation; `promised` is the largest error there may be.
pub fn text(operation: Operation, rows: &[Row], promised: f64) -> String {
    let mut text = String::new();
    let mut line = |cells: [&str; 10]| {
        let [shape, layers, us, low, high, rate, loops, share, passes, error] = cells;
        let times = format!("{us:>12} {low:>6} {high:>6} {rate:>7} {loops:>10} {share:>6}");
        let cells = format!("{shape:<18} {layers:>6} {times}  {passes:<19} {error:>8}");
        writeln!(text, "{}", cells.trim_end()).expect("writing to a string");
    };
    let us = |seconds: f64| grouped(seconds * 1e6);
    line([
        operation.name(),
        "layers",
        "microseconds",
        "lower",
        "upper",
        "GB/s",
        "loops us",
        "share",
        "plain loops",
        "error",
    ]);
    for row in rows {
        let times = row.measured.times;
        let percent = |quartile: f64| format!("{:+.0} %", 100.0 * (quartile / times.median - 1.0));
        line([
            &row.problem.to_string(),
            &row.problem.layers.to_string(),
            &us(times.median),
            &percent(times.lower_quartile),
            &percent(times.upper_quartile),
            &format!("{:.1}", row.rate(operation)),
            &us(row.measured.loops.median),
            &format!("{:.2}", row.share()),
            &plain_loops::names(row.passes),
            &format!("{:.1e}", row.measured.error),
        ]);
    }
    let mean = (rows.iter().map(|row| row.share().ln()).sum::<f64>() / rows.len() as f64).exp();
    line(["geometric mean", "", "", "", "", "", "", &format!("{mean:.2}"), "", ""]);
    let layers: usize = rows.iter().map(|row| row.problem.layers).sum();
    let ((seconds, loops), worst) = (total(rows), worst(rows));
    let (share, error) = (format!("{:.2}", loops / seconds), format!("{worst:.1e}"));
    line(["all layers", &layers.to_string(), &us(seconds), "", "", "", &us(loops), &share, "", &error]);
    if worst <= promised {
        writeln!(text, "error: at most {promised:.1e} is promised").expect("writing to a string");
    } else {
        writeln!(text, "ERROR LARGER THAN PROMISED ({promised:.1e})").expect("writing to a string");
    }
    text
}

/// What to say of rows whose samples scatter by more than [`SCATTER`]: nothing if there are none.
pub fn warning(tables: &[(Operation, Vec<Row>)]) -> Option<String> {
    let rows = tables.iter().flat_map(|(operation, rows)| rows.iter().map(move |row| (operation, row)));
    let loud: Vec<String> = rows
        .filter(|(_, row)| row.scatter() > SCATTER)
        .map(|(operation, row)| {
            format!("{} {} {:.0} %", operation.name(), row.problem, 100.0 * row.scatter())
        })
        .collect();
    if loud.is_empty() {
        return None;
    }
    let (count, list) = (loud.len(), loud.join(", "));
    Some(format!(
        "WARNING: in {count} rows samples of the operation or of the plain loops scatter by more than {:.0} % (quartiles, \
         of the median). Something else used the machine: measure these again before trusting them.\n{list}",
        100.0 * SCATTER
    ))
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
                    loops_microseconds,share,plain_loops,error,lower_quartile_us,upper_quartile_us\n"
        .to_owned();
    for (operation, rows) in tables {
        for row in rows {
            let Row { problem, passes, measured } = row;
            writeln!(
                text,
                "{},{layout},{threads},{level},{problem},{},{:.3},{:.3},{:.3},{:.4},{},{:.3e},{:.3},{:.3}",
                operation.name(),
                problem.layers,
                measured.times.median * 1e6,
                row.rate(*operation),
                measured.loops.median * 1e6,
                row.share(),
                plain_loops::names(passes),
                measured.error,
                measured.times.lower_quartile * 1e6,
                measured.times.upper_quartile * 1e6
            )
            .expect("writing to a string");
        }
    }
    text
}
