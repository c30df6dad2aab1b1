//! The picture: for each operation a bar per shape, as long as its speed next to plain loops.

use std::path::Path;

use plotters::prelude::*;
use plotters::style::text_anchor::{HPos, Pos, VPos};

use crate::plain_loops::Operation;
use crate::table::{self, Row, Total};

const LEFT: i32 = 190;
const PANEL: i32 = 400;
/// Pixels of a bar that is as fast as plain loops.
const FULL: i32 = 220;
const GAP: i32 = 24;
const TOP: i32 = 128;
const ROW: i32 = 32;
const BAR: i32 = 22;
const BOTTOM: i32 = 72;

const INK: RGBColor = RGBColor(36, 41, 47);
const FAINT: RGBColor = RGBColor(110, 119, 129);
const GRID: RGBColor = RGBColor(225, 228, 232);
const LOOPS: RGBColor = RGBColor(196, 62, 28);
/// One colour per panel.
const BARS: [RGBColor; 3] = [RGBColor(31, 111, 178), RGBColor(44, 140, 90), RGBColor(125, 84, 170)];

/// Draws the tables to an SVG file.
pub fn draw(
    path: &Path,
    title: &str,
    subtitle: &str,
    tables: &[(Operation, Vec<Row>)],
) -> Result<(), Box<dyn std::error::Error>> {
    let rows = tables.iter().map(|(_, rows)| rows.len()).max().unwrap_or(0) as i32;
    let end = TOP + rows * ROW;
    let size = (LEFT + tables.len() as i32 * (PANEL + GAP), end + BOTTOM);
    let root = SVGBackend::new(path, (size.0 as u32, size.1 as u32)).into_drawing_area();
    root.fill(&WHITE)?;
    let text = |text: &str, at: (i32, i32), size: i32, color: RGBColor, across: HPos, bold: bool| {
        // The font's size that plotters takes is 1.24 times what it writes.
        let font = ("sans-serif", 1.24 * f64::from(size)).into_font();
        let font = if bold { font.style(FontStyle::Bold) } else { font };
        let style = font.color(&color).pos(Pos::new(across, VPos::Center));
        root.draw(&Text::new(text.to_owned(), at, style))
    };
    let line = |from: (i32, i32), to: (i32, i32), style: ShapeStyle| {
        root.draw(&PathElement::new(vec![from, to], style))
    };

    text(title, (24, 30), 22, INK, HPos::Left, true)?;
    text(subtitle, (24, 58), 14, FAINT, HPos::Left, false)?;

    for (panel, ((operation, rows), color)) in tables.iter().zip(BARS.iter().cycle()).enumerate() {
        let left = LEFT + panel as i32 * (PANEL + GAP);
        let Total { seconds, loops, .. } = table::total(rows);
        let all = format!(
            "all layers {:.1} ms, plain loops {:.1} ms ({:.0} %)",
            seconds * 1e3,
            loops * 1e3,
            100.0 * loops / seconds
        );
        text(operation.name(), (left, TOP - 38), 16, *color, HPos::Left, true)?;
        text(&all, (left + 98, TOP - 37), 13, FAINT, HPos::Left, false)?;
        for percent in [0, 25, 50, 75] {
            let x = left + FULL * percent / 100;
            line((x, TOP - 8), (x, end), GRID.stroke_width(1))?;
            text(&percent.to_string(), (x, end + 14), 12, FAINT, HPos::Center, false)?;
        }
        for (index, row) in rows.iter().enumerate() {
            let middle = TOP + index as i32 * ROW + ROW / 2;
            if panel == 0 {
                let layers = row.problem.layers;
                let times = if layers == 1 { String::new() } else { format!("  ×{layers}") };
                let (shape, then) = (row.problem.to_string(), row.problem.epilogue.to_string());
                let above = if then.is_empty() { 0 } else { 6 };
                text(&shape, (LEFT - 46, middle - above), 14, INK, HPos::Right, false)?;
                text(&then, (LEFT - 46, middle + 8), 11, FAINT, HPos::Right, false)?;
                text(&times, (LEFT - 12, middle), 13, FAINT, HPos::Right, false)?;
            }
            // A bar past the plain loops ends before its label would run into the next panel.
            let length = (row.share() * f64::from(FULL)).round().min(1.15 * f64::from(FULL)) as i32;
            let corners = [(left, middle - BAR / 2), (left + length, middle + BAR / 2)];
            root.draw(&Rectangle::new(corners, color.mix(0.85).filled()))?;
            let share = format!("{:.0} %", 100.0 * row.share());
            if length > 50 {
                text(&share, (left + length.min(FULL) - 8, middle), 13, WHITE, HPos::Right, true)?;
            } else {
                text(&share, (left + length + 8, middle), 13, *color, HPos::Left, true)?;
            }
            let beside =
                format!("{} µs · {:.0} GB/s", table::grouped(row.measured.times.median * 1e6), row.rate());
            text(&beside, (left + length.max(FULL) + 10, middle), 13, INK, HPos::Left, false)?;
        }
        let x = left + FULL;
        line((x, TOP - 8), (x, end + 4), LOOPS.stroke_width(2))?;
        text("plain loops", (x, TOP - 16), 12, LOOPS, HPos::Center, true)?;
        text("100 %", (x, end + 14), 12, LOOPS, HPos::Center, false)?;
    }
    let note = "Bars: speed next to plain read, copy and triad loops over the same bytes on the same threads, \
                in the same run (100 %: as fast). GB/s: each tensor counted once.";
    text(note, (24, end + 48), 13, FAINT, HPos::Left, false)?;
    root.present()?;
    Ok(())
}
