//! What the pictures of the examples have in common: a white sheet, the font, the ink.

use std::path::Path;

use anyhow::{Result, anyhow};
use plotters::coord::Shift;
use plotters::prelude::*;
use plotters::style::register_font;

const FONT: &str = "sans-serif";
pub(crate) const INK: RGBColor = RGBColor(40, 46, 56);

/// A white sheet of so many pixels, to be written to `path`.
pub(crate) fn blank(path: &Path, size: (u32, u32)) -> Result<DrawingArea<BitMapBackend<'_>, Shift>> {
    // The font comes with the program: fonts of the system are neither needed nor looked for.
    register_font(FONT, FontStyle::Normal, epaint_default_fonts::UBUNTU_LIGHT)
        .map_err(|_| anyhow!("the built-in font cannot be read"))?;
    let root = BitMapBackend::new(path, size).into_drawing_area();
    root.fill(&WHITE)?;
    Ok(root)
}

pub(crate) fn text(size: u32) -> TextStyle<'static> {
    (FONT, size).into_font().color(&INK)
}
