//! The images, from bytes inside the program, so that it runs in any folder.

use std::io::Read;

use anyhow::{Context, Result, ensure};
use flate2::read::GzDecoder;
use rand::{SeedableRng, rngs::StdRng, seq::SliceRandom};

/// Source and licence: `examples/data/README.md`.
const DIGITS: &[u8] = include_bytes!("../data/digits.csv.gz");

pub(crate) const PIXELS: usize = 64;
pub(crate) const CLASSES: usize = 10;
const WHITEST: f32 = 16.0;

/// One split for every `--seed`: accuracies of different seeds are about the same test images.
const SPLIT_SEED: u64 = 0;

#[derive(Clone, Debug)]
pub(crate) struct Image {
    /// From 0 to 1, row by row.
    pub(crate) pixels: Vec<f32>,
    pub(crate) label: usize,
}

#[derive(Debug)]
pub(crate) struct Digits {
    pub(crate) train: Vec<Image>,
    pub(crate) test: Vec<Image>,
    order: StdRng,
}

impl Digits {
    /// Four fifths to train with, one fifth to test with; `seed` is for the order of training alone.
    pub(crate) fn load(seed: u64) -> Result<Self> {
        let mut images = read_all()?;
        images.shuffle(&mut StdRng::seed_from_u64(SPLIT_SEED));
        let test = images.split_off(images.len() * 4 / 5);
        Ok(Self { train: images, test, order: StdRng::seed_from_u64(seed) })
    }

    pub(crate) fn shuffle_train(&mut self) {
        self.train.shuffle(&mut self.order);
    }
}

fn read_all() -> Result<Vec<Image>> {
    let mut table = String::new();
    GzDecoder::new(DIGITS).read_to_string(&mut table)?;
    table.lines().map(image).collect()
}

fn image(line: &str) -> Result<Image> {
    let mut line = line.split(',').map(str::parse).collect::<Result<Vec<u8>, _>>()?;
    let label = usize::from(line.pop().context("an empty line")?);
    ensure!(line.len() == PIXELS && label < CLASSES, "a line is {PIXELS} pixels and a label below {CLASSES}");
    let pixels = line.into_iter().map(|grey| f32::from(grey) / WHITEST).collect();
    Ok(Image { pixels, label })
}
