//! The table, as text and as comma-separated values.

use std::fmt::Write as _;

use crate::measure::Measured;
use crate::number::Type;
use crate::plain_loops::{self, Form, Operation, Pass};
use crate::shapes::Problem;

/// The share of the median that the quartiles may be apart.
pub const SCATTER: f64 = 0.2;

/// A shape's line: an operation on all layers of this shape.
pub struct Row {
    pub problem: Problem,
    pub form: Form,
    /// Of an element.
    pub bytes: usize,
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

    /// Gigabytes per second, of each tensor that must be read or written counted once.
    pub fn rate(&self) -> f64 {
        let bytes = self.problem.dims.iter().product::<usize>() * self.bytes * self.form.tensors();
        bytes as f64 / self.measured.times.median / 1e9
    }
}

/// What a network takes: sums over all its layers, in seconds.
#[derive(Debug, Clone, Copy, Default)]
pub struct Total {
    pub seconds: f64,
    /// Of plain loops.
    pub loops: f64,
    /// Of separate calls.
    pub apart: f64,
}

impl Total {
    pub fn plus(self, other: Self) -> Self {
        Self {
            seconds: self.seconds + other.seconds,
            loops: self.loops + other.loops,
            apart: self.apart + other.apart,
        }
    }
}

pub fn total(rows: &[Row]) -> Total {
    let sum = |of: fn(&Measured) -> f64| {
        rows.iter().map(|row| of(&row.measured) * row.problem.layers as f64).sum::<f64>()
    };
    Total {
        seconds: sum(|measured| measured.times.median),
        loops: sum(|measured| measured.loops.median),
        apart: sum(Measured::apart_seconds),
    }
}

/// The table of an operation; `promised` is the largest error there may be. With `fused` it has what follows each layer, and
/// separate calls.
pub fn text(operation: Operation, rows: &[Row], promised: f64, number: Type, fused: bool) -> String {
    let mut text = String::new();
    let mut line = |cells: [&str; 10], [then, apart, gain]: [&str; 3]| {
        let [shape, layers, us, low, high, rate, loops, share, passes, error] = cells;
        let then = if fused { format!(" {then:<12}") } else { String::new() };
        let apart = if fused { format!(" {apart:>10} {gain:>7}") } else { String::new() };
        let times = format!("{us:>12} {low:>6} {high:>6} {rate:>7}{apart} {loops:>10} {share:>6}");
        let passes = if fused { format!("{passes:<26}") } else { format!("{passes:<19}") };
        let cells = format!("{shape:<18}{then} {layers:>6} {times}  {passes} {error:>8}");
        writeln!(text, "{}", cells.trim_end()).expect("writing to a string");
    };
    let us = |seconds: f64| grouped(seconds * 1e6);
    line(
        [
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
        ],
        ["then", "apart us", "apart /"],
    );
    for row in rows {
        let times = row.measured.times;
        let percent = |quartile: f64| format!("{:+.0} %", 100.0 * (quartile / times.median - 1.0));
        let (then, apart) = (row.problem.epilogue.to_string(), row.measured.apart_seconds());
        line(
            [
                &row.problem.to_string(),
                &row.problem.layers.to_string(),
                &us(times.median),
                &percent(times.lower_quartile),
                &percent(times.upper_quartile),
                &format!("{:.1}", row.rate()),
                &us(row.measured.loops.median),
                &format!("{:.2}", row.share()),
                &plain_loops::names(row.passes),
                &format!("{:.1e}", row.measured.error),
            ],
            [&then, &us(apart), &format!("{:.2}", apart / times.median)],
        );
    }
    let mean = |of: fn(&Row) -> f64| {
        format!("{:.2}", (rows.iter().map(|row| of(row).ln()).sum::<f64>() / rows.len() as f64).exp())
    };
    let gain = mean(|row| row.measured.apart_seconds() / row.measured.times.median);
    line(["geometric mean", "", "", "", "", "", "", &mean(Row::share), "", ""], ["", "", &gain]);
    let layers: usize = rows.iter().map(|row| row.problem.layers).sum();
    let (Total { seconds, loops, apart }, worst) = (total(rows), worst(rows));
    let (share, error) = (format!("{:.2}", loops / seconds), format!("{worst:.1e}"));
    line(
        ["all layers", &layers.to_string(), &us(seconds), "", "", "", &us(loops), &share, "", &error],
        ["", &us(apart), &format!("{:.2}", apart / seconds)],
    );
    if worst <= promised {
        let rounding = format!("beyond one rounding to {}, ", number.name());
        let beyond = if number == Type::F32 { "" } else { &rounding };
        writeln!(text, "error: {beyond}at most {promised:.1e} is promised").expect("writing to a string");
    } else {
        writeln!(text, "ERROR LARGER THAN PROMISED ({promised:.1e})").expect("writing to a string");
    }
    if !all_same(rows) {
        text.push_str("ONE CALL HAS NOT THE BITS OF SEPARATE ONES\n");
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

/// Whether all that was done in one call has the bits of separate ones.
pub fn all_same(rows: &[Row]) -> bool {
    rows.iter().all(|row| row.measured.apart.is_none_or(|apart| apart.same))
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

/// Comma-separated values of all operations, with a line of names first. With `fused` two columns more.
pub fn csv(
    layout: &str,
    threads: usize,
    level: &str,
    number: &str,
    tables: &[(Operation, Vec<Row>)],
    fused: bool,
) -> String {
    let mut text = "operation,layout,threads,level,type,shape,layers,microseconds,gigabytes_per_second,\
                    loops_microseconds,share,plain_loops,error,lower_quartile_us,upper_quartile_us"
        .to_owned();
    text.push_str(if fused { ",then,apart_microseconds\n" } else { "\n" });
    for (operation, rows) in tables {
        for row in rows {
            let Row { problem, form, passes, measured, .. } = row;
            write!(
                text,
                "{},{layout},{threads},{level},{number},{problem},{},{:.3},{:.3},{:.3},{:.4},{},{:.3e},{:.3},{:.3}",
                operation.name(),
                problem.layers,
                measured.times.median * 1e6,
                row.rate(),
                measured.loops.median * 1e6,
                row.share(),
                plain_loops::names(passes),
                measured.error,
                measured.times.lower_quartile * 1e6,
                measured.times.upper_quartile * 1e6
            )
            .expect("writing to a string");
            if fused {
                let (then, apart) = (form.epilogue.to_string(), measured.apart_seconds() * 1e6);
                write!(text, ",{then},{apart:.3}").expect("writing to a string");
            }
            text.push('\n');
        }
    }
    text
}
