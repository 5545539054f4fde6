//! Latency against load, as an SVG.

use std::error::Error;
use std::fs;
use std::path::{Path, PathBuf};

use plotters::prelude::*;

use crate::rounds::Rounds;
use crate::scenarios::{Case, Picture, Scenario};
use etherply_bench::figures::{Spread, grouped};

const SIZE: (u32, u32) = (960, 600);
const COLOURS: [RGBColor; 6] = [
    RGBColor(0x1B, 0x6C, 0xA8),
    RGBColor(0xC2, 0x4A, 0x1E),
    RGBColor(0x55, 0x55, 0x55),
    RGBColor(0x2E, 0x8B, 0x57),
    RGBColor(0x8A, 0x4F, 0xA8),
    RGBColor(0xB0, 0x8A, 0x00),
];

/// The factor that leaves space for the legend above the highest latency.
const ABOVE: f64 = 12.0;

/// A line of the picture: the latency of a contestant over the load, as medians of the rounds.
struct Line {
    name: String,
    points: Vec<(f64, f64)>,
    colour: RGBColor,
    is_first: bool,
}

/// Draws the picture of a scenario.
pub fn draw(
    scenario: &dyn Scenario,
    picture: &Picture,
    cases: &[(Case, Rounds)],
    folder: &Path,
) -> Result<PathBuf, Box<dyn Error>> {
    fs::create_dir_all(folder)?;
    let path = folder.join(format!("{}.svg", scenario.name()));
    let lines = lines(picture, cases);
    let points = || lines.iter().flat_map(|line| line.points.iter());
    let range = |of: fn(&(f64, f64)) -> f64, above: f64| {
        let spread = Spread::of(points().map(of));
        spread.map_or(1.0..10.0, |spread| spread.least / 1.5..spread.most * above)
    };
    let root = SVGBackend::new(&path, SIZE).into_drawing_area();
    root.fill(&WHITE)?;
    let title = format!("{}: {}", scenario.name(), "latency against load");
    let mut chart = ChartBuilder::on(&root)
        .caption(title, ("sans-serif", 22))
        .margin(16)
        .x_label_area_size(44)
        .y_label_area_size(72)
        .build_cartesian_2d(
            range(|point| point.0, 1.5).log_scale(),
            range(|point| point.1, ABOVE).log_scale(),
        )?;
    chart
        .configure_mesh()
        .x_desc(picture.load.title())
        .y_desc("latency, µs")
        .x_label_formatter(&|number| grouped(*number, 0))
        .y_label_formatter(&|number| grouped(*number, 0))
        .light_line_style(RGBColor(0xEE, 0xEE, 0xEE))
        .draw()?;
    for line in &lines {
        let (colour, is_first) = (line.colour, line.is_first);
        let width = if is_first { 3 } else { 1 };
        let style = colour.stroke_width(width);
        chart
            .draw_series(LineSeries::new(line.points.iter().copied(), style))?
            .label(&line.name)
            .legend(move |(x, y)| PathElement::new([(x, y), (x + 24, y)], style));
        let marks = line.points.iter();
        chart.draw_series(marks.map(|point| Circle::new(*point, 4, colour.filled())))?;
    }
    chart
        .configure_series_labels()
        .position(SeriesLabelPosition::UpperLeft)
        .background_style(WHITE.mix(0.8))
        .border_style(RGBColor(0xCC, 0xCC, 0xCC))
        .draw()?;
    root.present()?;
    drop(chart);
    drop(root);
    Ok(path)
}

/// Returns a line for each contestant of the first case and each latency.
fn lines(picture: &Picture, cases: &[(Case, Rounds)]) -> Vec<Line> {
    let mut lines = Vec::new();
    let Some((first, _)) = cases.first() else {
        return lines;
    };
    for (place, contestant) in first.contestants.iter().enumerate() {
        for (rank, latency) in picture.latencies.iter().enumerate() {
            let point = |(_, rounds): &(Case, Rounds)| {
                let median = |id| {
                    let numbers = rounds.get(place)?.iter();
                    let spread = Spread::of(numbers.filter_map(|numbers| numbers.get(id).copied()));
                    spread.map(|spread| spread.median)
                };
                median(picture.load.id).zip(median(latency.id))
            };
            let mut points: Vec<(f64, f64)> = cases.iter().filter_map(point).collect();
            points.sort_by(|one, other| one.0.total_cmp(&other.0));
            lines.push(Line {
                name: format!("{} {}", contestant.name, latency.name),
                points,
                colour: COLOURS[place % COLOURS.len()],
                is_first: rank == 0,
            });
        }
    }
    lines
}
