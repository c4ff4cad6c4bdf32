//! Files -> a line each, a line for all, and an exit status.

use std::fs::File;
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};

use anyhow::Context;
use fused_adamw::Device;

use crate::container::{LENGTH_BYTES, check_length};
use crate::run::{self, Deviation, Report};
use crate::trace::Trace;

/// In words; the derivation is that file's.
const BOUND: &str = "its bound (twice the rounding errors of both programs, added up per element and step: bound.rs)";

/// How many files ended how.
#[derive(Default)]
struct Tally {
    ok: usize,
    failed: usize,
    unreadable: usize,
    /// The largest deviation of all, in units of its bound.
    largest: f64,
}

/// Replays all files. Results are written to `out`, and what is wrong with a file to `err`. Returns the exit status: 0 if all
/// pass, 1 if one fails, 2 if one is not a trace.
///
/// # Errors
/// Where `out` cannot be written. What `err` does not take is lost.
pub(crate) fn replay_all(
    files: &[PathBuf],
    device: &Device,
    out: &mut dyn Write,
    err: &mut dyn Write,
) -> io::Result<u8> {
    let mut tally = Tally::default();
    for file in files {
        tally.add(file, device, out, err)?;
    }
    let Tally { ok, failed, unreadable, largest } = tally;
    let of = format_args!("on {device}; largest deviation {largest:.2} of {BOUND}");
    writeln!(out, "{ok} ok, {failed} failed, {unreadable} unreadable {of}")?;
    out.flush()?;
    Ok(if unreadable > 0 { 2 } else { u8::from(failed > 0) })
}

impl Tally {
    /// Replays one file, prints its line, counts it.
    fn add(&mut self, file: &Path, device: &Device, out: &mut dyn Write, err: &mut dyn Write) -> io::Result<()> {
        match replay(file, device) {
            Ok((trace, report)) => {
                print(&name(file), &trace, &report, out, err)?;
                self.largest = self.largest.max(report.worst.as_ref().map_or(0.0, Deviation::ratio));
                *(if report.passes() { &mut self.ok } else { &mut self.failed }) += 1;
            }
            Err(error) => {
                let _ = writeln!(err, "error: {error:#}");
                self.unreadable += 1;
            }
        }
        Ok(())
    }
}

fn replay(file: &Path, device: &Device) -> anyhow::Result<(Trace, Report)> {
    let bytes = read(file)?;
    let trace = Trace::parse(&bytes).with_context(|| format!("{}: not a trace", file.display()))?;
    let report = run::replay(&trace, device).with_context(|| format!("{}: cannot be replayed", file.display()))?;
    Ok((trace, report))
}

/// The bytes of a file whose header's length can be a trace's. Others are not read: they may be of any size, as /dev/zero is.
pub(crate) fn read(file: &Path) -> anyhow::Result<Vec<u8>> {
    let unreadable = || format!("{}: cannot be read", file.display());
    let mut reader = File::open(file).with_context(unreadable)?;
    let mut bytes = Vec::new();
    Read::by_ref(&mut reader).take(LENGTH_BYTES as u64).read_to_end(&mut bytes).with_context(unreadable)?;
    check_length(&bytes).with_context(|| format!("{}: not a trace", file.display()))?;
    reader.read_to_end(&mut bytes).with_context(unreadable)?;
    Ok(bytes)
}

/// The file's name without its extension.
fn name(file: &Path) -> String {
    file.file_stem().unwrap_or(file.as_os_str()).to_string_lossy().into_owned()
}

fn print(name: &str, trace: &Trace, report: &Report, out: &mut dyn Write, err: &mut dyn Write) -> io::Result<()> {
    let verdict = if report.passes() { "ok" } else { "FAIL" };
    let rms = |rms: Option<f64>| rms.map_or_else(|| "-".to_owned(), |rms| format!("{rms:.2e}"));
    let (ours, theirs) = (rms(report.rms), rms(report.expect_rms));
    let (steps, ulp) = (trace.steps, report.max_ulp);
    writeln!(out, "{name} {verdict}  steps={steps}  max_ulp={ulp}  rms={ours} expect_rms={theirs}")?;
    if let Some(worst) = report.worst.as_ref().filter(|_| !report.passes()) {
        writeln!(out, "    {worst}")?;
    }
    if report.unbounded > 0 {
        let count = report.unbounded;
        let _ = writeln!(err, "note: {name}: {count} numbers have no finite bound (see bound.rs) and passed");
    }
    Ok(())
}
