//! What benches that compare forms over a table of shapes are told on the command line, and the numbers that they are about.

use std::time::Duration;

use batchnorm::Layout;

use crate::shapes::{self, Problem};

/// Both layouts, as options name them.
pub const LAYOUTS: [(Layout, &str); 2] = [(Layout::Nchw, "nchw"), (Layout::Nhwc, "nhwc")];

/// The options.
pub struct Options {
    /// `--csv`: lines for benches/record.
    pub csv: bool,
    /// `--only`: what the names of the operations hold.
    pub only: String,
    /// `--seconds`: for how long the forms of a shape take turns; none with `--test`.
    pub budget: Duration,
    /// `--shapes`: those whose names hold this; two of them with `--test`.
    pub problems: Vec<Problem>,
    layout: String,
}

impl Options {
    /// Of the shapes of this table, for so many seconds if not said otherwise.
    pub fn of(table: &str, seconds: &str) -> Self {
        let arguments: Vec<String> = std::env::args().collect();
        let has = |name: &str| arguments.iter().any(|argument| argument == name);
        let value = |name: &str, default: &str| {
            let at = arguments.iter().position(|argument| argument == name);
            at.and_then(|at| arguments.get(at + 1)).map_or(default, String::as_str).to_owned()
        };
        let seconds: f64 = value("--seconds", seconds).parse().expect("a number of seconds");
        let budget = if has("--test") { Duration::ZERO } else { Duration::from_secs_f64(seconds) };
        let mut problems = shapes::parse(table).expect("the table of shapes");
        problems.retain(|problem| problem.to_string().contains(&value("--shapes", "")));
        if has("--test") {
            problems.drain(..problems.len().saturating_sub(2));
        }
        Self { csv: has("--csv"), only: value("--only", ""), budget, problems, layout: value("--layout", "") }
    }

    /// `--layout`: those whose names hold this.
    pub fn layouts(&self) -> impl Iterator<Item = (Layout, &'static str)> {
        LAYOUTS.into_iter().filter(|(_, name)| name.contains(&self.layout))
    }

    /// Elements of the largest shape.
    pub fn largest(&self) -> usize {
        self.problems.iter().map(|problem| problem.dims.iter().product()).max().unwrap_or(0)
    }
}

/// Numbers spread evenly over (-1, 1), in no order that a channel or a branch would notice.
pub fn noise(seed: u32) -> impl Fn(usize) -> f32 {
    move |i| {
        let bits = (i as u32).wrapping_add(seed).wrapping_mul(0x9e37_79b9);
        (bits ^ bits >> 15).wrapping_mul(0x85eb_ca6b) as i32 as f32 / (1u32 << 31) as f32
    }
}
