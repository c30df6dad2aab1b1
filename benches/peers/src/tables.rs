//! The tables that are printed: times, then ratios with their geometric means.

use std::fmt::Write;

use crate::contender::{PLAIN_LOOPS, Role};
use crate::plain_loops::Operation;
use crate::problem::Order;
use crate::timing::Timing;

/// What all contenders took on a shape.
#[derive(Debug, Clone)]
pub struct Row {
    /// The shape's name.
    pub shape: String,
    /// In the order of [`contender::all`](crate::contender::all).
    pub timings: Vec<Timing>,
}

impl Row {
    /// The median of whom a column is about, in seconds.
    fn median(&self, role: Role, name: &str, order: Order) -> Option<f64> {
        let of = |order| {
            let same = |timing: &&Timing| (timing.role, timing.name, timing.order) == (role, name, order);
            self.timings.iter().find(same).map(|timing| timing.median)
        };
        // Where NHWC needs the same passes as NCHW, one set of loops is for both.
        of(order).or_else(|| if role == Role::PlainLoops { of(Order::Nchw) } else { None })
    }

    fn ours(&self, order: Order) -> Option<f64> {
        self.median(Role::Ours, "ours", order)
    }

    fn best(&self, role: Role) -> Option<&Timing> {
        let all = self.timings.iter().filter(|timing| timing.role == role);
        all.min_by(|a, b| a.median.total_cmp(&b.median))
    }
}

/// A peer in an order: a column.
type Column = (&'static str, Order);

/// The peers of all rows, in the order in which they appear.
fn peers(rows: &[Row]) -> Vec<Column> {
    let mut columns = Vec::new();
    for timing in rows.iter().flat_map(|row| &row.timings).filter(|timing| timing.role == Role::Peer) {
        let column = (timing.name, timing.order);
        if !columns.contains(&column) {
            columns.push(column);
        }
    }
    columns
}

/// The two tables of an operation, as Markdown.
pub fn format(operation: Operation, rows: &[Row]) -> String {
    let peers = peers(rows);
    let name = operation.name();
    let mut text = format!("{name}, f32, microseconds (medians)\n\n{}", aligned(&times(rows, &peers)));
    write!(text, "\n{name}, ratios\n\n{}", aligned(&ratios(rows, &peers))).expect("strings take any text");
    text
}

/// A table of everyone's medians.
fn times(rows: &[Row], peers: &[Column]) -> Vec<Vec<String>> {
    let mut columns = Vec::new();
    for (role, name) in [(Role::PlainLoops, PLAIN_LOOPS), (Role::Ours, "ours")] {
        columns.extend([Order::Nchw, Order::Nhwc].map(|order| (role, name, order)));
    }
    columns.extend(peers.iter().map(|&(name, order)| (Role::Peer, name, order)));
    let mut head = vec!["shape".to_owned()];
    head.extend(columns.iter().map(|(_, name, order)| format!("{name} {}", order.name())));
    head.push("best peer".to_owned());
    let mut table = vec![head];
    for row in rows {
        let mut line = vec![row.shape.clone()];
        line.extend(columns.iter().map(|&(role, name, order)| {
            row.median(role, name, order).map_or("-".to_owned(), |seconds| microseconds(seconds * 1e6))
        }));
        let best = row.best(Role::Peer);
        line.push(best.map_or("-".to_owned(), |peer| format!("{} {}", peer.name, peer.order.name())));
        table.push(line);
    }
    table
}

/// A table of ratios: how near ours is to plain loops, and how many times longer the peers take.
fn ratios(rows: &[Row], peers: &[Column]) -> Vec<Vec<String>> {
    // nChw16c is no layout of ours; it counts among the best.
    let comparable = peers.iter().filter(|(_, order)| *order != Order::Blocked);
    let comparable: Vec<&Column> = comparable.collect();
    let mut head =
        ["shape", "plain loops / ours nchw", "plain loops / ours nhwc"].map(str::to_owned).to_vec();
    head.extend(comparable.iter().map(|(name, order)| format!("{name} / ours {}", order.name())));
    head.extend(["best peer / ours nchw", "best peer / best ours"].map(str::to_owned));

    let ratio = |dividend: Option<f64>, divisor: Option<f64>| Some(dividend? / divisor?);
    let values = |row: &Row| {
        let mut values: Vec<Option<f64>> = [Order::Nchw, Order::Nhwc]
            .map(|order| ratio(row.median(Role::PlainLoops, PLAIN_LOOPS, order), row.ours(order)))
            .to_vec();
        values.extend(
            comparable
                .iter()
                .map(|&&(name, order)| ratio(row.median(Role::Peer, name, order), row.ours(order))),
        );
        let best = |role| row.best(role).map(|timing| timing.median);
        values.push(ratio(best(Role::Peer), row.ours(Order::Nchw)));
        values.push(ratio(best(Role::Peer), best(Role::Ours)));
        values
    };
    let values: Vec<Vec<Option<f64>>> = rows.iter().map(values).collect();
    let line = |name: &str, values: Vec<Option<f64>>| {
        let cells = values.iter().map(|value| value.map_or("-".to_owned(), |value| format!("{value:.2}")));
        [name.to_owned()].into_iter().chain(cells).collect::<Vec<String>>()
    };
    let columns = head.len() - 1;
    let column = |index: usize| values.iter().filter_map(|row| row[index]).collect::<Vec<f64>>();
    let least = |values: Vec<f64>| values.into_iter().reduce(f64::min);
    let mut table = vec![head];
    table.extend(rows.iter().zip(&values).map(|(row, values)| line(&row.shape, values.clone())));
    table.push(line("least", (0..columns).map(|index| least(column(index))).collect()));
    table.push(line("geometric mean", (0..columns).map(|index| geometric_mean(&column(index))).collect()));
    table
}

fn geometric_mean(values: &[f64]) -> Option<f64> {
    let logarithms: f64 = values.iter().map(|value| value.ln()).sum();
    (!values.is_empty()).then(|| (logarithms / values.len() as f64).exp())
}

/// Three digits or more, such as 3.41, 20.9, 1937.
fn microseconds(time: f64) -> String {
    let decimals = if time < 10.0 { 2 } else { usize::from(time < 100.0) };
    format!("{time:.decimals$}")
}

/// Lines of cells as a Markdown table that is aligned as text too; the first line is the head.
fn aligned(table: &[Vec<String>]) -> String {
    let columns = table[0].len();
    let width = |column: usize| table.iter().map(|line| line[column].len()).max().unwrap_or(0);
    let widths: Vec<usize> = (0..columns).map(width).collect();
    let mut text = String::new();
    for (number, line) in table.iter().enumerate() {
        for (column, (cell, &width)) in line.iter().zip(&widths).enumerate() {
            let cell = if column == 0 { format!("| {cell:<width$} |") } else { format!(" {cell:>width$} |") };
            text.push_str(&cell);
        }
        text.push('\n');
        if number == 0 {
            for (column, &width) in widths.iter().enumerate() {
                let rule = "-".repeat(width);
                text.push_str(&if column == 0 { format!("|-{rule}-|") } else { format!("-{rule}:|") });
            }
            text.push('\n');
        }
    }
    text
}
