//! The table at the end of `cargo bench`: how fast operations are next to plain loops, over all shapes.

use std::fmt;

/// The medians of an operation on a shape in seconds, for NCHW and NHWC; none where a filter has left something out.
#[derive(Debug, Default, Clone, Copy)]
pub struct Medians {
    /// Of this library.
    pub ours: [Option<f64>; 2],
    /// Of plain loops over the same bytes.
    pub loops: [Option<f64>; 2],
}

/// The shares of an operation in a layout: plain loops' time / its own, with the shape's name.
type Shares = Vec<(f64, String)>;

/// An operation with a number of threads.
#[derive(Debug)]
struct Line {
    operation: String,
    threads: usize,
    shares: [Shares; 2],
}

/// What has been measured, in the order in which it was.
#[derive(Debug, Default)]
pub struct Summary {
    lines: Vec<Line>,
}

impl Summary {
    /// Takes in an operation on a shape.
    pub fn add(&mut self, operation: &str, threads: usize, shape: &str, medians: Medians) {
        let same = |line: &Line| line.operation == operation && line.threads == threads;
        let index = self.lines.iter().position(same).unwrap_or_else(|| {
            self.lines.push(Line { operation: operation.to_owned(), threads, shares: Default::default() });
            self.lines.len() - 1
        });
        for (layout, shares) in self.lines[index].shares.iter_mut().enumerate() {
            if let (Some(ours), Some(loops)) = (medians.ours[layout], medians.loops[layout]) {
                shares.push((loops / ours, shape.to_owned()));
            }
        }
    }
}

impl fmt::Display for Summary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let measured = |line: &&Line| line.shares.iter().any(|shares| !shares.is_empty());
        let mut lines = self.lines.iter().filter(measured).peekable();
        if lines.peek().is_none() {
            return Ok(());
        }
        writeln!(
            f,
            "Speed next to plain loops over the same bytes (their time / ours): geometric mean, lowest"
        )?;
        writeln!(f, "{:<36} {:<30}{:<30}shapes", "", "nchw", "nhwc")?;
        for Line { operation, threads, shares } in lines {
            let plural = if *threads == 1 { "" } else { "s" };
            write!(f, "{:<36} ", format!("{operation}, {threads} thread{plural}"))?;
            for shares in shares {
                write!(f, "{:<30}", cell(shares))?;
            }
            writeln!(f, "{}", shares.iter().map(Vec::len).max().unwrap_or(0))?;
        }
        Ok(())
    }
}

fn cell(shares: &Shares) -> String {
    let lowest = shares.iter().min_by(|a, b| a.0.total_cmp(&b.0));
    lowest.map_or("-".to_owned(), |(lowest, shape)| {
        let mean = (shares.iter().map(|(share, _)| share.ln()).sum::<f64>() / shares.len() as f64).exp();
        format!("{mean:.2}, {lowest:.2} {shape}")
    })
}
