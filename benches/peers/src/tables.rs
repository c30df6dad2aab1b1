//! The tables that are printed: times, then ratios with their geometric means.

use std::fmt::Write;

use crate::contender::{PLAIN_LOOPS, Role};
use crate::number::Type;
use crate::plain_loops::Form;
use crate::problem::Order;
use crate::timing::Timing;

/// What all contenders took on a shape.
#[derive(Debug, Clone)]
pub struct Row {
    /// The shape's name.
    pub shape: String,
    /// What was done.
    pub form: Form,
    /// How many layers of a network have it.
    pub layers: usize,
    /// In the order of [`field::all`](crate::field::all).
    pub timings: Vec<Timing>,
}

impl Row {
    /// The median of whom a column is about, in seconds.
    fn median(&self, (role, name, order): Column) -> Option<f64> {
        let of = |order| {
            let same = |timing: &&Timing| (timing.role, timing.name, timing.order) == (role, name, order);
            self.timings.iter().find(same).map(|timing| timing.median)
        };
        // Where NHWC needs the same passes as NCHW, one set of loops is for both.
        of(order).or_else(|| if role == Role::PlainLoops { of(Order::Nchw) } else { None })
    }

    fn loops(&self, order: Order) -> Option<f64> {
        self.median((Role::PlainLoops, PLAIN_LOOPS, order))
    }

    /// The fastest in an order.
    fn best_in(&self, role: Role, order: Order) -> Option<f64> {
        let all = self.timings.iter().filter(|timing| (timing.role, timing.order) == (role, order));
        all.map(|timing| timing.median).reduce(f64::min)
    }

    /// The fastest in whatever order.
    fn best(&self, role: Role) -> Option<&Timing> {
        let all = self.timings.iter().filter(|timing| timing.role == role);
        all.min_by(|a, b| a.median.total_cmp(&b.median))
    }

    fn best_of(&self, name: &str) -> Option<f64> {
        let all = self.timings.iter().filter(|timing| timing.name == name);
        all.map(|timing| timing.median).reduce(f64::min)
    }
}

/// Someone in an order: a column.
type Column = (Role, &'static str, Order);

/// Those who have one of some parts in any row, in the order in which they appear.
fn columns(rows: &[Row], roles: &[Role]) -> Vec<Column> {
    let mut columns = Vec::new();
    for timing in rows.iter().flat_map(|row| &row.timings).filter(|timing| roles.contains(&timing.role)) {
        let column = (timing.role, timing.name, timing.order);
        if !columns.contains(&column) {
            columns.push(column);
        }
    }
    columns
}

/// The two tables of an operation, as Markdown; of a network's layers with their sums.
pub fn format(name: &str, number: Type, rows: &[Row], network: bool) -> String {
    let name = if network { format!("{name}, ResNet-50's layers") } else { name.to_owned() };
    let (number, times) = (number.name(), aligned(&times(rows, network)));
    let mut text = format!("{name}, {number}, microseconds (medians)\n\n{times}");
    write!(text, "\n{name}, {number}, ratios\n\n{}", aligned(&ratios(rows, network)))
        .expect("strings take any text");
    text
}

/// A row's name: in a network with what follows and the number of layers.
fn named(row: &Row, network: bool) -> String {
    if network {
        format!("{} x{} {}", row.shape, row.layers, row.form.epilogue).trim_end().to_owned()
    } else {
        row.shape.clone()
    }
}

/// A table of everyone's medians.
fn times(rows: &[Row], network: bool) -> Vec<Vec<String>> {
    let mut all = [Order::Nchw, Order::Nhwc].map(|order| (Role::PlainLoops, PLAIN_LOOPS, order)).to_vec();
    all.extend(columns(rows, &[Role::Ours, Role::Bare, Role::Peer]));
    let mut head = vec!["shape".to_owned()];
    head.extend(all.iter().map(|(_, name, order)| format!("{name} {}", order.name())));
    head.push("best peer".to_owned());
    let mut table = vec![head];
    let cell = |seconds: Option<f64>| seconds.map_or("-".to_owned(), |seconds| microseconds(seconds * 1e6));
    for row in rows {
        let mut line = vec![named(row, network)];
        line.extend(all.iter().map(|&column| cell(row.median(column))));
        let best = row.best(Role::Peer);
        line.push(best.map_or("-".to_owned(), |peer| format!("{} {}", peer.name, peer.order.name())));
        table.push(line);
    }
    if network {
        let sum = |column| rows.iter().map(|row| Some(row.layers as f64 * row.median(column)?)).sum();
        let mut line = vec!["all layers".to_owned()];
        line.extend(all.iter().map(|&column| cell(sum(column))));
        line.push(String::new());
        table.push(line);
    }
    table
}

/// Someone's time in a row, in seconds.
type Seconds = Box<dyn Fn(&Row) -> Option<f64>>;

/// How many times as long one takes as another, in a row.
struct Ratio {
    name: String,
    dividend: Seconds,
    divisor: Seconds,
}

impl Ratio {
    fn new(
        name: impl Into<String>,
        dividend: impl Fn(&Row) -> Option<f64> + 'static,
        divisor: impl Fn(&Row) -> Option<f64> + 'static,
    ) -> Self {
        Self { name: name.into(), dividend: Box::new(dividend), divisor: Box::new(divisor) }
    }

    fn value(&self, row: &Row) -> Option<f64> {
        Some((self.dividend)(row)? / (self.divisor)(row)?)
    }

    /// The ratio in each row that has it.
    fn values(&self, rows: &[Row]) -> Vec<f64> {
        rows.iter().filter_map(|row| self.value(row)).collect()
    }

    /// The ratio of the sums over all layers of those rows.
    fn of_sums(&self, rows: &[Row]) -> Option<f64> {
        let (mut dividends, mut divisors) = (0.0, 0.0);
        for row in rows.iter().filter(|row| self.value(row).is_some()) {
            dividends += row.layers as f64 * (self.dividend)(row)?;
            divisors += row.layers as f64 * (self.divisor)(row)?;
        }
        (divisors > 0.0).then(|| dividends / divisors)
    }
}

/// The fastest of a part's median in whatever order.
fn fastest(role: Role) -> impl Fn(&Row) -> Option<f64> {
    move |row| row.best(role).map(|timing| timing.median)
}

/// What is compared: how near ours is to plain loops, how many times longer the peers take, and ours than its bare operation.
fn compared(rows: &[Row]) -> Vec<Ratio> {
    let layouts = [Order::Nchw, Order::Nhwc];
    let ours = |order| move |row: &Row| row.best_in(Role::Ours, order);
    let mut ratios = Vec::new();
    for order in layouts {
        let name = format!("plain loops / ours {}", order.name());
        ratios.push(Ratio::new(name, move |row| row.loops(order), ours(order)));
    }
    // nChw16c is no layout of ours; it counts among the best.
    for column in columns(rows, &[Role::Peer]).into_iter().filter(|(.., order)| *order != Order::Blocked) {
        let (_, name, order) = column;
        let name = format!("{name} / ours {}", order.name());
        ratios.push(Ratio::new(name, move |row| row.median(column), ours(order)));
    }
    ratios.push(Ratio::new("best peer / ours nchw", fastest(Role::Peer), ours(Order::Nchw)));
    ratios.push(Ratio::new("best peer / best ours", fastest(Role::Peer), fastest(Role::Ours)));
    if !columns(rows, &[Role::Bare]).is_empty() {
        let onednn = |row: &Row| row.best_of("oneDNN");
        for order in layouts {
            let name = format!("best oneDNN / ours {}", order.name());
            ratios.push(Ratio::new(name, onednn, ours(order)));
        }
        ratios.push(Ratio::new("best oneDNN / best ours", onednn, fastest(Role::Ours)));
        for order in layouts {
            let name = format!("ours / bare {}", order.name());
            ratios.push(Ratio::new(name, ours(order), move |row| row.best_in(Role::Bare, order)));
        }
    }
    ratios
}

/// A table of ratios.
fn ratios(rows: &[Row], network: bool) -> Vec<Vec<String>> {
    let ratios = compared(rows);
    let mut table = vec![vec!["shape".to_owned()]];
    table[0].extend(ratios.iter().map(|ratio| ratio.name.clone()));
    let line = |name: String, of: &dyn Fn(&Ratio) -> Option<f64>| {
        let cell = |ratio| of(ratio).map_or("-".to_owned(), |value| format!("{value:.2}"));
        [name].into_iter().chain(ratios.iter().map(cell)).collect::<Vec<String>>()
    };
    for row in rows {
        table.push(line(named(row, network), &|ratio| ratio.value(row)));
    }
    let values = |ratio: &Ratio| ratio.values(rows).into_iter();
    table.push(line("least".to_owned(), &|ratio| values(ratio).reduce(f64::min)));
    table.push(line("most".to_owned(), &|ratio| values(ratio).reduce(f64::max)));
    table.push(line("geometric mean".to_owned(), &|ratio| geometric_mean(&ratio.values(rows))));
    if network {
        table.push(line("all layers".to_owned(), &|ratio| ratio.of_sums(rows)));
    }
    table
}

/// What fused forms are asked to be, in one table: a line for each form, in each cell the geometric mean of a ratio and its worst.
pub fn summary(tables: &[Vec<Row>]) -> String {
    let fused = tables.iter().filter(|rows| !columns(rows, &[Role::Bare]).is_empty());
    let mut table: Vec<Vec<String>> = Vec::new();
    for rows in fused {
        let wanted = |ratio: &Ratio| {
            let name = ratio.name.as_str();
            name.starts_with("ours / bare") || name.contains("oneDNN") && name != "oneDNN / ours nchw"
        };
        let ratios: Vec<Ratio> = compared(rows).into_iter().filter(wanted).collect();
        if table.is_empty() {
            let names = ratios.iter().map(|ratio| ratio.name.clone());
            table.push(["form".to_owned()].into_iter().chain(names).collect());
        }
        let cell = |ratio: &Ratio| {
            let values = ratio.values(rows);
            let worst = if ratio.name.starts_with("ours / bare") { f64::max } else { f64::min };
            let worst = values.iter().copied().reduce(worst);
            let mean = geometric_mean(&values).zip(worst);
            mean.map_or("-".to_owned(), |(mean, worst)| format!("{mean:.2} ({worst:.2})"))
        };
        table.push([rows[0].form.name()].into_iter().chain(ratios.iter().map(cell)).collect());
    }
    if table.is_empty() {
        return String::new();
    }
    format!("fused forms, geometric mean and worst of the shapes\n\n{}", aligned(&table))
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
