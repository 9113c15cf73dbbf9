//! Ratios as a picture: one bar each on a logarithmic scale, with its quartiles, beside the line at 1.

use std::error::Error;
use std::path::Path;

use plotters::prelude::*;

use super::paired::Quartiles;

/// The picture's width and the height of one bar, in pixels.
const WIDTH: u32 = 900;
const BAR: u32 = 48;

/// Writes `bars` as an SVG picture to `path`.
pub fn ratios(path: &Path, title: &str, bars: &[(String, Quartiles)]) -> Result<(), Box<dyn Error>> {
    let least = bars.iter().map(|bar| bar.1.q1).fold(1.0, f64::min);
    let most = bars.iter().map(|bar| bar.1.q3).fold(1.0, f64::max);
    let root = SVGBackend::new(path, (WIDTH, BAR * bars.len() as u32 + 110)).into_drawing_area();
    root.fill(&WHITE)?;
    let mut chart = ChartBuilder::on(&root)
        .caption(title, ("sans-serif", 18))
        .margin(12)
        .x_label_area_size(40)
        .y_label_area_size(200)
        .build_cartesian_2d((least / 2.0..most * 2.0).log_scale(), 0.0..bars.len() as f64)?;
    chart
        .configure_mesh()
        .disable_y_mesh()
        .disable_y_axis()
        .x_desc("times as long")
        .x_label_formatter(&|ratio| format!("{ratio}"))
        .draw()?;
    for (row, (name, Quartiles { q1, median, q3 })) in bars.iter().rev().enumerate() {
        let middle = row as f64 + 0.5;
        let (low, high) = (median.min(1.0), median.max(1.0));
        let bar = Rectangle::new([(low, middle - 0.3), (high, middle + 0.3)], BLUE.mix(0.4).filled());
        chart.draw_series([bar])?;
        chart.draw_series([PathElement::new([(*q1, middle), (*q3, middle)], BLACK)])?;
        let label = (q3.max(1.0) * 1.05, middle + 0.12);
        chart.draw_series([Text::new(format!("{median:.2}"), label, ("sans-serif", 14))])?;
        let (_, y) = chart.backend_coord(&label);
        root.draw_text(name, &("sans-serif", 14).into_text_style(&root), (12, y))?;
    }
    chart.draw_series([PathElement::new([(1.0, 0.0), (1.0, bars.len() as f64)], BLACK)])?;
    root.present()?;
    Ok(())
}
