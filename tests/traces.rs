//! The replay of `examples/03_replay`: the traces of `tests/traces` pass, wrong optimizers fail, bytes that are not
//! a trace are errors with names and numbers, and nothing panics.
//!
//! The traces were made by `scripts/make_traces.py committed tests/traces`.

#![expect(clippy::unwrap_used, reason = "a test stops at the first error")]

use std::fs;
use std::path::{Path, PathBuf};

use fused_adamw::Device;

use crate::mutants::{MUTANTS, Mutant, mutated};
use crate::run::{Report, replay};
use crate::trace::Trace;
use crate::values::Float;

#[path = "../examples/03_replay/bound.rs"]
mod bound;
#[path = "../examples/03_replay/clip.rs"]
mod clip;
#[path = "../examples/03_replay/config.rs"]
mod config;
#[path = "../examples/03_replay/container.rs"]
mod container;
#[path = "../examples/03_replay/error.rs"]
mod error;
#[path = "traces/fuzz.rs"]
mod fuzz;
#[path = "../examples/03_replay/json.rs"]
mod json;
#[path = "traces/limits.rs"]
mod limits;
#[path = "traces/malformed.rs"]
mod malformed;
#[path = "../examples/03_replay/memory.rs"]
mod memory;
#[path = "traces/mutants.rs"]
mod mutants;
#[path = "../examples/03_replay/run.rs"]
mod run;
#[path = "traces/stateless.rs"]
mod stateless;
#[path = "../examples/03_replay/tally.rs"]
mod tally;
#[path = "../examples/03_replay/trace.rs"]
mod trace;
#[path = "../examples/03_replay/values.rs"]
mod values;

/// Every trace of a folder, by name.
fn traces(folder: &Path) -> Vec<(String, Trace)> {
    let mut files: Vec<PathBuf> = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.retain(|file| file.extension().is_some_and(|extension| extension == "safetensors"));
    files.sort();
    let name = |file: &Path| file.file_stem().unwrap().to_string_lossy().into_owned();
    files.iter().map(|file| (name(file), Trace::parse(&fs::read(file).unwrap()).unwrap())).collect()
}

fn committed() -> Vec<(String, Trace)> {
    let traces = traces(Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/traces")));
    assert!(traces.len() >= 12, "the traces are there");
    traces
}

fn on_cpu(trace: &Trace) -> Report {
    replay(trace, &Device::cpu()).unwrap()
}

/// The largest deviation in units of its bound.
fn ratio(report: &Report) -> f64 {
    report.worst.as_ref().map_or(0.0, run::Deviation::ratio)
}

fn is_f32(trace: &Trace) -> bool {
    trace.tensors.iter().all(|tensor| tensor.initial.dtype() == Float::F32)
}

#[test]
fn every_committed_trace_passes() {
    for (name, trace) in committed() {
        let report = on_cpu(&trace);
        println!("{name}: {:.3} of the bound, {} ulp", ratio(&report), report.max_ulp);
        assert!(report.passes(), "{name}: {}", report.worst.unwrap());
        assert!(ratio(&report) <= 0.5, "{name}: the slack is not for roundings that are modelled");
        assert!(!is_f32(&trace) || report.unbounded == 0, "{name}: {} numbers have no bound", report.unbounded);
    }
}

#[test]
fn our_rms_error_is_not_above_pytorchs() {
    let mut measured = 0;
    for (name, trace) in committed() {
        let elements: usize = trace.tensors.iter().map(|tensor| tensor.initial.len()).sum();
        let report = on_cpu(&trace);
        let (Some(ours), Some(theirs)) = (report.rms, report.expect_rms) else { continue };
        if elements < 1000 || trace.steps < 10 {
            continue; // the luck of a few roundings decides
        }
        measured += 1;
        assert!(ours <= 1.05 * theirs, "{name}: {ours:e} against {theirs:e}");
        assert!(name != "digits-cut" || 3.0 * ours <= theirs, "{name}: {ours:e} against {theirs:e}");
    }
    assert_eq!(measured, 2, "defaults and digits-cut");
}

#[test]
fn f64_with_one_rounding_at_the_end_passes() {
    for (name, trace) in committed() {
        let report = on_cpu(&mutated(&trace, Mutant::None));
        assert!(report.passes(), "{name}: {}", report.worst.unwrap());
    }
}

// 10: a mutant that just fails on the trace made for it would pass on the next one.
#[test]
fn every_wrong_optimizer_fails_by_far() {
    let traces: Vec<_> = committed().into_iter().filter(|(_, trace)| is_f32(trace)).collect();
    for mutant in MUTANTS {
        let ratios = traces.iter().map(|(name, trace)| (ratio(&on_cpu(&mutated(trace, mutant))), name));
        let (largest, name) = ratios.max_by(|a, b| a.0.total_cmp(&b.0)).unwrap();
        println!("{mutant:?}: {largest:.1} times the bound ({name})");
        assert!(largest > 10.0, "{mutant:?} is caught");
    }
}

/// `TRACES=FOLDER cargo test --release --test traces -- --ignored --nocapture`: the figures behind `bound.rs`.
#[test]
#[ignore = "measures the traces of a folder of your own"]
fn how_much_of_the_bound_is_used() {
    let folder = std::env::var("TRACES").expect("TRACES names a folder of traces");
    let mut all: Vec<(f64, String)> = vec![];
    for (name, trace) in traces(Path::new(&folder)) {
        let report = on_cpu(&trace);
        let worst = report.worst.as_ref().map(ToString::to_string).unwrap_or_default();
        all.push((ratio(&report), format!("{name}: {worst}; {} without bound", report.unbounded)));
    }
    all.sort_by(|a, b| b.0.total_cmp(&a.0));
    let median = all.get(all.len() / 2).map_or(0.0, |(ratio, _)| *ratio);
    println!("{} traces, median {median:.3} of the bound; the largest:", all.len());
    for (ratio, name) in all.iter().take(12) {
        println!("{ratio:.3}  {name}");
    }
}
