//! 01: trains a small network on 8x8 images of handwritten digits, on the CPU or a GPU. Next: 02, one step on a GPU.
//!
//! ```text
//! cargo run --release --example 01_train_digits -- --help
//! ```
//!
//! The network's own arithmetic stays in plain Rust, so what runs on the chosen device is the
//! optimizer and nothing else. The test images are only ever counted: they train nothing and choose nothing.

mod axis;
mod chart;
mod cli;
mod curves;
mod data;
mod network;
mod output;
mod parameters;
mod picture;
mod progress;
mod training;

use std::path::Path;

use anyhow::{Context, Result};
use clap::Parser;
use fused_adamw::AdamW;

use crate::{cli::Cli, curves::Point, data::Digits, output::say, parameters::Parameters, progress::Progress};

fn main() -> Result<()> {
    let cli = Cli::parse();
    let device = cli.device.open()?;
    say(&device)?;

    let digits = Digits::load(cli.seed)?;
    let initial = network::initial_tensors(cli.seed);
    let mut optimizer = AdamW::new(&device, cli.config(), network::tensor_lengths())?;
    let mut parameters = Parameters::place(initial, &device)?;
    let progress = Progress::start(cli.epochs);
    let points = training::train(&cli, digits, &mut parameters, &mut optimizer, &progress)?;

    let accuracy = points.last().context("nothing was trained")?.test.accuracy;
    let title = format!("{} on 8x8 digits, seed {}: {accuracy:.1}% right on test images", cli.name(), cli.seed);
    write_curves(&points, &title)?;
    say(format_args!("test accuracy: {accuracy:.1}%"))
}

fn write_curves(points: &[Point], title: &str) -> Result<()> {
    let folder = Path::new("target").join("digits");
    std::fs::create_dir_all(&folder).with_context(|| format!("cannot make {}", folder.display()))?;
    let (picture, table) = (folder.join("curves.png"), folder.join("curves.csv"));
    chart::draw(points, title, &picture)?;
    curves::save(points, &table)?;
    say(format_args!("{}\n{}", picture.display(), table.display()))
}
