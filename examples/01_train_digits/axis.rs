//! Upright axes that begin, end and are labelled at round numbers.

use std::ops::Range;

use plotters::coord::ranged1d::{KeyPointHint, NoDefaultFormatting, Ranged, ValueFormatter};
use plotters::coord::types::RangedCoordf64;

#[derive(Clone)]
pub(crate) struct Axis {
    ticks: Vec<f64>,
    /// Distances on the picture are proportional to this.
    scale: fn(f64) -> f64,
    unit: &'static str,
}

impl Axis {
    /// Logarithmic, from and to the next 1, 2 or 5 times a power of ten.
    pub(crate) fn logarithmic(low: f64, high: f64) -> Self {
        // Quotients of integers: the closest f64 to each decimal, which prints without stray digits.
        let round = (0..20).flat_map(|power| [1.0, 2.0, 5.0].map(|digit| digit * 10_f64.powi(power) / 1e9));
        let round: Vec<f64> = round.collect();
        let first = round.partition_point(|&tick| tick <= low).saturating_sub(1);
        let last = round.partition_point(|&tick| tick < high).clamp(first + 1, round.len() - 1);
        Self { ticks: round[first..=last].to_vec(), scale: f64::log10, unit: "" }
    }

    /// Up to 100%, from the ten below `low`.
    pub(crate) fn percent(low: f64) -> Self {
        let bottom = (10.0 * (low / 10.0).floor()).min(90.0);
        let step = if bottom < 80.0 { 10.0 } else { 2.0 };
        let ticks = (0..=10).map(|index| bottom + step * f64::from(index)).filter(|&tick| tick <= 100.0);
        Self { ticks: ticks.collect(), scale: |percent| percent, unit: "%" }
    }
}

impl Ranged for Axis {
    type FormatOption = NoDefaultFormatting;
    type ValueType = f64;

    fn map(&self, value: &f64, limit: (i32, i32)) -> i32 {
        let Range { start, end } = self.range();
        let scaled = (self.scale)(start)..(self.scale)(end);
        // Clamped, because a loss of zero has no logarithm.
        RangedCoordf64::from(scaled).map(&(self.scale)(value.clamp(start, end)), limit)
    }

    fn key_points<Hint: KeyPointHint>(&self, hint: Hint) -> Vec<f64> {
        if hint.weight().allow_light_points() { Vec::new() } else { self.ticks.clone() }
    }

    fn range(&self) -> Range<f64> {
        self.ticks[0]..self.ticks[self.ticks.len() - 1]
    }
}

impl ValueFormatter<f64> for Axis {
    fn format_ext(&self, value: &f64) -> String {
        format!("{value}{}", self.unit)
    }
}
