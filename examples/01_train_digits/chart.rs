//! The picture: loss on the left, accuracy on the right, training images against test images.

use std::path::Path;

use anyhow::Result;
use plotters::coord::{Shift, types::RangedCoordu32};
use plotters::prelude::*;

use crate::picture::{INK, Sheet, text};
use crate::{axis::Axis, curves::Point, network::Score};

const SIZE: (u32, u32) = (2400, 1080);
const GRID: RGBColor = RGBColor(222, 225, 230);
const FINE_GRID: RGBColor = RGBColor(240, 241, 244);
const TRAIN: RGBColor = RGBColor(31, 119, 180);
const TEST: RGBColor = RGBColor(225, 87, 20);

type Area<'a> = DrawingArea<BitMapBackend<'a>, Shift>;
type Chart<'a> = ChartContext<'a, BitMapBackend<'a>, Cartesian2d<RangedCoordu32, Axis>>;

/// What differs between the two panels.
struct Panel {
    label: &'static str,
    value: fn(&Score) -> f64,
    axis: Axis,
    legend: SeriesLabelPosition,
}

pub(crate) fn draw(points: &[Point], title: &str, path: &Path) -> Result<()> {
    let mut sheet = Sheet::new(SIZE)?;
    let (left, right) = sheet.area().margin(28, 12, 12, 0).titled(title, text(54))?.split_horizontally(SIZE.0 / 2);
    draw_panel(&left, points, &loss_panel(points))?;
    draw_panel(&right, points, &accuracy_panel(points))?;
    drop((left, right));
    sheet.save(path)
}

fn loss_panel(points: &[Point]) -> Panel {
    let value = |score: &Score| score.loss;
    let (low, high) = extremes(points, value);
    let axis = Axis::logarithmic(low, high);
    Panel { label: "cross-entropy, mean over the images", value, axis, legend: SeriesLabelPosition::UpperRight }
}

fn accuracy_panel(points: &[Point]) -> Panel {
    let value = |score: &Score| score.accuracy;
    let axis = Axis::percent(extremes(points, value).0);
    Panel { label: "images classified correctly", value, axis, legend: SeriesLabelPosition::LowerRight }
}

fn extremes(points: &[Point], value: fn(&Score) -> f64) -> (f64, f64) {
    let values = points.iter().flat_map(|point| [value(&point.train), value(&point.test)]);
    values.fold((f64::INFINITY, f64::NEG_INFINITY), |(low, high), y| (low.min(y), high.max(y)))
}

fn draw_panel(area: &Area<'_>, points: &[Point], panel: &Panel) -> Result<()> {
    let epochs: u32 = points.last().map_or(1, |point| point.epoch.into());
    let mut chart = ChartBuilder::on(area)
        .margin(20)
        .margin_top(40)
        .margin_right(48)
        .x_label_area_size(104)
        .y_label_area_size(164)
        .build_cartesian_2d(0..epochs, panel.axis.clone())?;
    draw_axes(&mut chart, panel.label)?;
    draw_curve(&mut chart, points, |point| (panel.value)(&point.train), ("training images", TRAIN))?;
    draw_curve(&mut chart, points, |point| (panel.value)(&point.test), ("test images", TEST))?;
    draw_legend(&mut chart, panel.legend.clone())
}

fn draw_axes(chart: &mut Chart<'_>, label: &str) -> Result<()> {
    let mut mesh = chart.configure_mesh();
    mesh.x_desc("epochs of training").y_desc(label).label_style(text(36)).axis_style(INK.stroke_width(2));
    mesh.bold_line_style(GRID.stroke_width(2)).light_line_style(FINE_GRID);
    mesh.set_all_tick_mark_size(12);
    Ok(mesh.draw()?)
}

fn draw_curve(
    chart: &mut Chart<'_>,
    points: &[Point],
    value: impl Fn(&Point) -> f64,
    (label, colour): (&str, RGBColor),
) -> Result<()> {
    let dots = points.iter().map(|point| (point.epoch.into(), value(point)));
    // Dots too: a run of one epoch has no line.
    let line = LineSeries::new(dots, colour.filled().stroke_width(5)).point_size(7);
    let sample = move |(x, y)| PathElement::new([(x, y), (x + 54, y)], colour.stroke_width(6));
    chart.draw_series(line)?.label(label).legend(sample);
    Ok(())
}

fn draw_legend(chart: &mut Chart<'_>, corner: SeriesLabelPosition) -> Result<()> {
    let mut legend = chart.configure_series_labels();
    legend.position(corner).label_font(text(36)).legend_area_size(78).margin(28);
    // See-through: in an unusual run the curves may pass behind it.
    legend.background_style(WHITE.mix(0.8)).border_style(GRID);
    Ok(legend.draw()?)
}
