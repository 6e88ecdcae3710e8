//! The picture of how times grow: one chart a work, both axes logarithmic.

use std::path::Path;

use plotters::prelude::*;

use crate::growth::Growth;
use crate::measure::{Outcome, WALL};

const SIZE: (u32, u32) = (960, 420);
const LABELS: (&str, u32) = ("sans-serif", 14);
/// One a side, distinguished by those who do not see all colours, too.
const COLOURS: [RGBColor; 4] =
    [RGBColor(120, 120, 120), RGBColor(0, 114, 178), RGBColor(213, 94, 0), RGBColor(0, 158, 115)];

/// Draws one chart for each of `growths` to the file `path`, as SVG.
pub fn draw(path: &Path, growths: &[Growth]) -> Outcome {
    let area = SVGBackend::new(path, SIZE).into_drawing_area();
    area.fill(&WHITE)?;
    for (part, growth) in area.split_evenly((1, growths.len())).iter().zip(growths) {
        chart(part, growth)?;
    }
    Ok(area.present()?)
}

fn chart(area: &DrawingArea<SVGBackend<'_>, plotters::coord::Shift>, growth: &Growth) -> Outcome {
    let sizes = growth.sizes.iter().map(|(pairs, _)| *pairs as f64);
    let (least, most) = range(sizes);
    let sides = growth.sizes.iter().flat_map(|(_, sides)| sides);
    let (fastest, slowest) = range(sides.filter_map(|side| side.median(WALL)));
    let mut chart = ChartBuilder::on(area)
        .caption(format!("{}: seconds over pairs", growth.work), ("sans-serif", 20))
        .margin(12)
        .x_label_area_size(36)
        .y_label_area_size(64)
        .build_cartesian_2d((least..most).log_scale(), (fastest..slowest).log_scale())?;
    chart
        .configure_mesh()
        .bold_line_style(BLACK.mix(0.12))
        .light_line_style(TRANSPARENT)
        .label_style(LABELS)
        .x_label_formatter(&|pairs| power_of_ten(*pairs, ""))
        .y_label_formatter(&|seconds| power_of_ten(*seconds, " s"))
        .draw()?;
    let names = growth.sizes.first().map(|(_, sides)| sides.as_slice()).unwrap_or_default();
    for (number, side) in names.iter().enumerate() {
        let colour = COLOURS[number % COLOURS.len()];
        let points: Vec<(f64, f64)> = growth
            .sizes
            .iter()
            .filter_map(|(pairs, sides)| Some((*pairs as f64, sides[number].median(WALL)?)))
            .collect();
        chart
            .draw_series(LineSeries::new(points.iter().copied(), colour.stroke_width(2)))?
            .label(side.name)
            .legend(move |(x, y)| PathElement::new([(x, y), (x + 18, y)], colour.stroke_width(2)));
        chart.draw_series(points.iter().map(|point| Circle::new(*point, 3, colour.filled())))?;
    }
    chart
        .configure_series_labels()
        .label_font(LABELS)
        .position(SeriesLabelPosition::LowerRight)
        .background_style(WHITE.mix(0.8))
        .border_style(BLACK.mix(0.3))
        .draw()?;
    Ok(())
}

/// Only these lines have labels: those of all lines would cover each other.
fn power_of_ten(value: f64, unit: &str) -> String {
    let exponent = value.log10().round();
    if (value.log10() - exponent).abs() > 1e-6 {
        return String::new();
    }
    let decimals = (-exponent).max(0.0) as usize;
    format!("{value:.decimals$}{unit}")
}

/// The powers of ten between which `values` lie, and a little more, so that each axis has labels
/// and no point lies on the frame.
fn range(values: impl Iterator<Item = f64> + Clone) -> (f64, f64) {
    let least = values.clone().fold(f64::INFINITY, f64::min);
    let most = values.fold(f64::NEG_INFINITY, f64::max);
    let power = |exponent: f64| 10_f64.powf(exponent);
    (power(least.log10().floor()) / 1.4, power(most.log10().ceil()) * 1.4)
}
