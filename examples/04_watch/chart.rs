//! The picture: one panel a quantity, a mark where a step was skipped.

use std::path::Path;

use anyhow::Result;
use fused_adamw::Metrics;
use plotters::coord::Shift;
use plotters::prelude::*;

use crate::axis::Axis;
use crate::picture::{INK, Sheet, text};

const SIZE: (u32, u32) = (1800, 1500);
const GRID: RGBColor = RGBColor(226, 229, 234);
const CURVE: RGBColor = RGBColor(31, 119, 180);
const LIMIT: RGBColor = RGBColor(150, 155, 165);
const SKIPPED: RGBColor = RGBColor(214, 39, 40);

/// What a panel shows.
struct Panel {
    label: &'static str,
    value: fn(&Metrics) -> f64,
    /// A second curve.
    limit: Option<fn(&Metrics) -> f64>,
}

const PANELS: [Panel; 3] = [
    Panel {
        label: "gradient norm; grey: 6 sigma above its mean",
        value: |record| record.total.grad_norm,
        limit: Some(|record| record.status.norm_alarm.mean + 6.0 * record.status.norm_alarm.sigma),
    },
    Panel { label: "update norm / parameter norm", value: |record| record.total.update_ratio, limit: None },
    Panel {
        label: "RMS_t of the tensor where it is largest; grey: 6 sigma above its mean",
        value: |record| record.worst().map_or(0.0, |(_, tensor)| tensor.rms),
        limit: Some(|record| record.status.rms_alarm.mean + 6.0 * record.status.rms_alarm.sigma),
    },
];

pub(crate) fn draw(records: &[Metrics], path: &Path) -> Result<()> {
    let mut sheet = Sheet::new(SIZE)?;
    let title = "A run with a planted NaN, a spike and a leap (red: skipped on the device)";
    let areas = sheet.area().margin(20, 20, 20, 20).titled(title, text(40))?.split_evenly((PANELS.len(), 1));
    areas.iter().zip(&PANELS).try_for_each(|(area, panel)| draw_panel(area, records, panel))?;
    drop(areas);
    sheet.save(path)
}

fn draw_panel(area: &DrawingArea<BitMapBackend<'_>, Shift>, records: &[Metrics], panel: &Panel) -> Result<()> {
    let curve = |value: fn(&Metrics) -> f64| {
        // A skipped step has no update, a NaN no place: they are gaps.
        let points = records.iter().map(move |record| (number(record), value(record)));
        points.filter(|(_, y)| y.is_finite() && *y > 0.0).collect::<Vec<_>>()
    };
    let (values, limits) = (curve(panel.value), panel.limit.map(curve).unwrap_or_default());
    let all = values.iter().chain(&limits).map(|(_, y)| *y);
    let (low, high) = all.fold((f64::INFINITY, 0.0_f64), |(low, high), y| (low.min(y), high.max(y)));
    let steps = records.last().map_or(1, number);
    let mut chart = ChartBuilder::on(area)
        .margin(14)
        .caption(panel.label, text(30))
        .x_label_area_size(44)
        .y_label_area_size(110)
        .build_cartesian_2d(0..steps, Axis::logarithmic(low, high))?;
    let mut mesh = chart.configure_mesh();
    mesh.label_style(text(24)).axis_style(INK).bold_line_style(GRID).light_line_style(WHITE);
    mesh.draw()?;
    let skipped = records.iter().filter(|record| !record.total.stepped).map(number);
    let mark = |step| PathElement::new([(step, 0.0), (step, f64::INFINITY)], SKIPPED.stroke_width(4));
    chart.draw_series(skipped.map(mark))?;
    chart.draw_series(LineSeries::new(limits, LIMIT.stroke_width(3)))?;
    chart.draw_series(LineSeries::new(values, CURVE.stroke_width(3)))?;
    Ok(())
}

fn number(record: &Metrics) -> u64 {
    record.status.applied + record.status.skipped
}
