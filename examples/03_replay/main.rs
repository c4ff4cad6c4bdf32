//! 03 replay: how far the crate is from another implementation's recorded run.
//!
//! ```text
//! cargo run --release --example replay -- [--device cpu|cuda] FILE...
//! ```
//! A trace (its format: `trace.rs`) holds the parameters before a run, every gradient, and the parameters and moments
//! that another implementation had after it. For each file one line says how far we end from that, and, where the
//! trace has exact parameters, our rms error beside theirs. A trace fails where an element is further off than
//! `bound.rs` derives. Exit code 0: all pass; 1: one fails; 2: a file cannot be read or is not a trace, or the
//! device is not there, or the output cannot be written.
//!
//! | file | what it turns into what |
//! | --- | --- |
//! | `container.rs` | bytes → named tensors, every claim of the header checked |
//! | `json.rs` | text → JSON in which each name is there once |
//! | `config.rs` | JSON → hyper-parameters of each group and step |
//! | `trace.rs` | both → a `Trace`; `error.rs`: why not |
//! | `bound.rs` | a trace → per element, how far two honest implementations may part; `clip.rs`: the norm's share |
//! | `run.rs` | a trace and a device → a `Report`; `memory.rs`: tensors on either device |
//! | `tally.rs` | files → lines and an exit status |

use std::io::{self, Write};
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context;
use clap::{Parser, ValueEnum};
use fused_adamw::Device;

mod bound;
mod clip;
mod config;
mod container;
mod error;
mod json;
mod memory;
mod run;
mod tally;
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

fn main() -> ExitCode {
    match replay(&Arguments::parse()) {
        Ok(status) => ExitCode::from(status),
        Err(error) => {
            let _ = writeln!(io::stderr(), "error: {error:#}"); // the status says it, too
            ExitCode::from(2)
        }
    }
}

fn replay(arguments: &Arguments) -> anyhow::Result<u8> {
    let device = open(arguments.device)?;
    let (mut out, mut err) = (io::stdout(), io::stderr());
    let status = tally::replay_all(&arguments.files, &device, &mut out, &mut err);
    status.context("standard output cannot be written")
}

fn open(kind: Kind) -> anyhow::Result<Device> {
    match kind {
        Kind::Cpu => Ok(Device::cpu()),
        #[cfg(feature = "cuda")]
        Kind::Cuda => Ok(Device::cuda_at(0)?),
        #[cfg(not(feature = "cuda"))]
        Kind::Cuda => anyhow::bail!("--device cuda: built without the feature `cuda`"),
    }
}
