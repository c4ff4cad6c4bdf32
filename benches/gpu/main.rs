//! The step on a GPU, beside the speed at which the GPU copies memory:
//! `cargo bench -p fused-adamw-benches --bench gpu -- copy`, and so on.
//!
//! Each command prints rows, a line of JSON each (`rows.rs`); the bundle for machines without Rust
//! (`scripts/gpu-bundle`) runs them one after the other, PyTorch in between on the very same lists, and `report`
//! makes one report of all rows.
//!
//! | file | what it does |
//! | --- | --- |
//! | `tests/shared/lists.rs`, `suite.rs` | the lists of tensors, cut to the GPU's memory |
//! | `clock.rs` | how a time is taken |
//! | `work.rs` | what is timed: a copy, and a step of a list |
//! | `host.rs`, `start.rs` | what a step costs the host, and what a process pays once |
//! | `tests/shared/variants.rs` | other constants and chunks, and what is expected of each: data |
//! | `tests/shared/nvrtc.rs`, `vary.rs`, `bits.rs` | these compiled, timed, and first compared with the CPU |
//! | `rows.rs` | what is measured, as JSON |
//! | `report.rs`, `table.rs` | the parts of a run and their rows → `report.json`, `report.md` |

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use clap::{CommandFactory, Parser, Subcommand};
use fused_adamw::Device;

use crate::suite::List;

mod bits;
mod clock;
mod host;
#[path = "../../tests/shared/lists.rs"]
mod lists;
#[path = "../../tests/shared/nvrtc.rs"]
mod nvrtc;
mod report;
mod rows;
mod start;
mod suite;
mod table;
#[path = "../../tests/shared/variants.rs"]
mod variants;
mod vary;
mod work;

/// Measures the step on the first GPU.
#[derive(Parser)]
struct Cli {
    #[command(subcommand)]
    command: Option<Command>,
    /// Tiny lists, few repeats: to try the program, not the GPU
    #[arg(long, global = true)]
    small: bool,
    /// What cargo adds
    #[arg(long, global = true, hide = true)]
    bench: bool,
}

#[derive(Subcommand)]
enum Command {
    /// Says which GPU and which driver it is
    Facts,
    /// Writes the lists of tensors, cut to the free memory
    Lists { file: PathBuf },
    /// Measures a copy on the device
    Copy,
    /// Measures the step of each list
    Step { lists: PathBuf },
    /// Measures the time of the call, for lists of 1 to 10,000 tensors
    Host,
    /// Compares steps of random bits, and of a tensor of more than 2^32 elements, with the CPU's
    Bits,
    /// Measures the first steps of a process
    Start,
    /// Compiles the variants of the kernels into a folder
    Compile { folder: PathBuf, cuda: PathBuf, nvrtc: PathBuf },
    /// Compares and measures these variants
    Vary { folder: PathBuf, lists: PathBuf },
    /// Makes `report.json`, `report.md` and `logs.txt` of a run's parts
    Report { folder: PathBuf },
}

fn main() -> Result<()> {
    let Cli { command, small, .. } = Cli::parse();
    match command {
        None => Ok(Cli::command().print_help()?),
        Some(Command::Report { folder }) => report::write(&folder),
        Some(Command::Facts) => work::facts(&Device::cuda_at(0)?)?.print(),
        Some(Command::Copy) => work::copies(&Device::cuda_at(0)?, small),
        Some(Command::Host) => host::print(small),
        Some(Command::Bits) => {
            let device = Device::cuda_at(0)?;
            bits::random(&device, small).and_then(|()| bits::far(&device, small))
        }
        Some(Command::Start) => start::print(),
        Some(Command::Lists { file }) => {
            let free = work::facts(&Device::cuda_at(0)?)?.free_bytes;
            let lists = suite::lists(free, small);
            lists.iter().for_each(|list| println!("{list}"));
            Ok(fs::write(file, serde_json::to_string(&lists)?)?)
        }
        Some(Command::Step { lists }) => steps(&read(&lists)?, small),
        Some(Command::Compile { folder, cuda, nvrtc }) => vary::compile(&folder, &cuda, &nvrtc),
        Some(Command::Vary { folder, lists }) => vary::run(&folder, &read(&lists)?, small),
    }
}

fn read(lists: &Path) -> Result<Vec<List>> {
    let lists = fs::read(lists).with_context(|| format!("{}: cannot be read", lists.display()))?;
    Ok(serde_json::from_slice(&lists)?)
}

/// Every list, whichever of them fails.
fn steps(lists: &[List], small: bool) -> Result<()> {
    let device = Device::cuda_at(0)?;
    let mut failed = 0;
    for list in lists {
        if let Err(error) = work::step(&device, list, small).and_then(rows::Step::print) {
            failed += 1;
            rows::Failed::new(list, &error).print()?;
        }
    }
    ensure!(failed == 0, "{failed} of {} lists failed", lists.len());
    Ok(())
}
