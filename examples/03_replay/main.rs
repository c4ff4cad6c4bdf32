//! 03 replay: how far the crate is from another implementation's recorded run.
//!
//! ```text
//! cargo run --release --example replay -- [--device cpu|cuda] FILE...
//! ```
//! A trace (its format: `trace.rs`) holds the parameters before a run, every gradient, and the parameters and moments
//! that another implementation had after it. For each file one line says how far we end from that, and, where the
//! trace has exact parameters, our rms error beside theirs. A trace fails where an element is further off than
//! `bound.rs` derives. Exit code 0: all pass; 1: one fails; 2: a file cannot be read or is not a trace, or the
//! device is not there.
//!
//! | file | what it turns into what |
//! | --- | --- |
//! | `container.rs` | bytes → named tensors, every claim of the header checked |
//! | `config.rs` | JSON → hyper-parameters of each group and step |
//! | `trace.rs` | both → a `Trace`; `error.rs`: why not |
//! | `bound.rs` | a trace → per element, how far two honest implementations may part; `clip.rs`: the norm's share |
//! | `run.rs` | a trace and a device → a `Report`; `memory.rs`: tensors on either device |

use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::Context;
use clap::{Parser, ValueEnum};
use fused_adamw::Device;

use crate::run::{Deviation, Report};
use crate::trace::Trace;

mod bound;
mod clip;
mod config;
mod container;
mod error;
mod memory;
mod run;
mod trace;
mod values;

/// Replays traces of another AdamW and compares the results.
#[derive(Parser)]
struct Arguments {
    /// Where the steps run.
    #[arg(long, value_enum, default_value_t = Kind::Cpu)]
    device: Kind,
    /// Traces: safetensors files of format `adamw-trace/1`.
    #[arg(required = true, value_name = "FILE")]
    files: Vec<PathBuf>,
}

#[derive(Clone, Copy, ValueEnum)]
enum Kind {
    Cpu,
    Cuda,
}

/// How many files ended how.
#[derive(Default)]
struct Tally {
    ok: usize,
    failed: usize,
    unreadable: usize,
    /// The largest deviation of all, in units of its bound.
    largest: f64,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let device = match open(arguments.device) {
        Ok(device) => device,
        Err(error) => {
            eprintln!("error: {error:#}");
            return ExitCode::from(2);
        }
    };
    let mut tally = Tally::default();
    for file in &arguments.files {
        tally.add(file, &device);
    }
    let Tally { ok, failed, unreadable, largest } = tally;
    println!(
        "{ok} ok, {failed} failed, {unreadable} unreadable on {device}; largest deviation {largest:.2} of {BOUND}"
    );
    ExitCode::from(if unreadable > 0 { 2 } else { u8::from(failed > 0) })
}

/// In words; the derivation is that file's.
const BOUND: &str = "its bound (twice the rounding errors of both programs, added up per element and step: bound.rs)";

fn open(kind: Kind) -> anyhow::Result<Device> {
    match kind {
        Kind::Cpu => Ok(Device::cpu()),
        #[cfg(feature = "cuda")]
        Kind::Cuda => Ok(Device::cuda_at(0)?),
        #[cfg(not(feature = "cuda"))]
        Kind::Cuda => anyhow::bail!("--device cuda: built without the feature `cuda`"),
    }
}

impl Tally {
    /// Replays one file, prints its line, counts it.
    fn add(&mut self, file: &Path, device: &Device) {
        match replay(file, device) {
            Ok((trace, report)) => {
                print(&name(file), &trace, &report);
                self.largest = self.largest.max(report.worst.as_ref().map_or(0.0, Deviation::ratio));
                *(if report.passes() { &mut self.ok } else { &mut self.failed }) += 1;
            }
            Err(error) => {
                eprintln!("error: {error:#}");
                self.unreadable += 1;
            }
        }
    }
}

fn replay(file: &Path, device: &Device) -> anyhow::Result<(Trace, Report)> {
    let bytes = fs::read(file).with_context(|| format!("{}: cannot be read", file.display()))?;
    let trace = Trace::parse(&bytes).with_context(|| format!("{}: not a trace", file.display()))?;
    let report = run::replay(&trace, device).with_context(|| format!("{}: cannot be replayed", file.display()))?;
    Ok((trace, report))
}

/// The file's name without its extension.
fn name(file: &Path) -> String {
    file.file_stem().unwrap_or(file.as_os_str()).to_string_lossy().into_owned()
}

fn print(name: &str, trace: &Trace, report: &Report) {
    let verdict = if report.passes() { "ok" } else { "FAIL" };
    let rms = |rms: Option<f64>| rms.map_or_else(|| "-".to_owned(), |rms| format!("{rms:.2e}"));
    println!(
        "{name} {verdict}  steps={}  max_ulp={}  rms={} expect_rms={}",
        trace.steps,
        report.max_ulp,
        rms(report.rms),
        rms(report.expect_rms),
    );
    if let Some(worst) = report.worst.as_ref().filter(|_| !report.passes()) {
        println!("    {worst}");
    }
    if report.unbounded > 0 {
        eprintln!("note: {name}: {} numbers have no finite bound (see bound.rs) and passed", report.unbounded);
    }
}
