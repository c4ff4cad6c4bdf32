//! Common parts of the pictures: a white sheet, the font, the ink, the way to a file.

use std::path::Path;

use anyhow::{Result, anyhow};
use plotters::coord::Shift;
use plotters::prelude::*;
use plotters::style::register_font;

use crate::output;

const FONT: &str = "sans-serif";
pub(crate) const INK: RGBColor = RGBColor(40, 46, 56);

/// Pixels in memory, row by row, a byte each of red, green and blue.
pub(crate) struct Sheet {
    size: (u32, u32),
    pixels: Vec<u8>,
}

impl Sheet {
    pub(crate) fn new(size: (u32, u32)) -> Result<Self> {
        // The font comes with the program: fonts of the system are neither needed nor looked for.
        register_font(FONT, FontStyle::Normal, epaint_default_fonts::UBUNTU_LIGHT)
            .map_err(|_| anyhow!("the built-in font cannot be read"))?;
        let bytes = usize::try_from(size.0)? * usize::try_from(size.1)? * 3;
        Ok(Self { size, pixels: vec![u8::MAX; bytes] })
    }

    /// The sheet, white so far.
    pub(crate) fn area(&mut self) -> DrawingArea<BitMapBackend<'_>, Shift> {
        BitMapBackend::with_buffer(&mut self.pixels, self.size).into_drawing_area()
    }

    /// Writes the sheet as a PNG, or leaves at `path` what is there.
    pub(crate) fn save(&self, path: &Path) -> Result<()> {
        output::save(path, &self.png()?)
    }

    fn png(&self) -> Result<Vec<u8>, png::EncodingError> {
        let mut bytes = Vec::new();
        let mut encoder = png::Encoder::new(&mut bytes, self.size.0, self.size.1);
        encoder.set_color(png::ColorType::Rgb);
        let mut image = encoder.write_header()?;
        image.write_image_data(&self.pixels)?;
        image.finish()?;
        Ok(bytes)
    }
}

pub(crate) fn text(size: u32) -> TextStyle<'static> {
    (FONT, size).into_font().color(&INK)
}
