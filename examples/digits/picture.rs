//! The picture: test accuracy by epoch, a panel per regime, a curve per run.

use std::error::Error;
use std::path::Path;

use plotters::prelude::*;

use crate::Run;

const SIZE: (u32, u32) = (1000, 420);
/// Of a panel's runs.
const COLORS: [RGBColor; 2] = [RGBColor(196, 62, 28), RGBColor(31, 111, 178)];

/// Draws the runs to an SVG file.
pub fn draw(path: &Path, title: &str, panels: &[(&str, Vec<Run>)]) -> Result<(), Box<dyn Error>> {
    let root = SVGBackend::new(path, SIZE).into_drawing_area();
    root.fill(&WHITE)?;
    let root = root.titled(title, ("sans-serif", 22))?;
    for (area, (regime, runs)) in root.split_evenly((1, panels.len())).iter().zip(panels) {
        let epochs = runs.iter().map(|run| run.accuracy.len()).max().unwrap_or(0).max(2);
        let mut chart = ChartBuilder::on(area)
            .caption(regime, ("sans-serif", 17))
            .margin(12)
            .x_label_area_size(42)
            .y_label_area_size(56)
            .build_cartesian_2d(1.0..epochs as f64, 0.0..100.0)?;
        chart
            .configure_mesh()
            .light_line_style(WHITE)
            .x_desc("epoch")
            .y_desc("test accuracy, %")
            .x_label_formatter(&|epoch| format!("{epoch:.0}"))
            .y_label_formatter(&|accuracy| format!("{accuracy:.0}"))
            .x_labels(8)
            .label_style(("sans-serif", 13))
            .draw()?;
        for (run, color) in runs.iter().zip(COLORS) {
            let points = || run.accuracy.iter().enumerate().map(|(i, a)| ((i + 1) as f64, a * 100.0));
            chart
                .draw_series(LineSeries::new(points(), color.stroke_width(2)))?
                .label(&run.name)
                .legend(move |(x, y)| PathElement::new([(x, y), (x + 18, y)], color.stroke_width(2)));
            chart.draw_series(points().map(|point| Circle::new(point, 3, color.filled())))?;
        }
        chart
            .configure_series_labels()
            .position(SeriesLabelPosition::Coordinate(60, 150))
            .background_style(WHITE)
            .border_style(RGBColor(200, 200, 200))
            .label_font(("sans-serif", 14))
            .draw()?;
    }
    root.present()?;
    Ok(())
}
