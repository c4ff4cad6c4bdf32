//! The conformance suite of `tests/golden`: cases, generator, hashes. README.md has its format.

mod case;
mod record;
pub(crate) mod run;
pub(crate) mod values;

use case::Case;
use record::Record;
use run::Buffer;
use std::collections::BTreeMap;
use std::fmt::Write as _;

use fused_adamw::Device;

/// In the test program, which may run where these files are not.
const CASES: &str = include_str!("cases.json");
const EXPECTED: &str = include_str!("expected.json");

type Records = BTreeMap<String, Record>;

fn cases() -> Vec<Case> {
    serde_json::from_str(CASES).unwrap()
}

/// Every case leaves behind on `device` what `expected.json` says.
#[track_caller]
pub(crate) fn check<B: Buffer>(device: &Device) {
    let expected: Records = serde_json::from_str(EXPECTED).unwrap();
    let cases = cases();
    let mut differences = Vec::new();
    for case in &cases {
        let found = run::run::<B>(device, case);
        match expected.get(&case.name) {
            Some(expected) => compare(&case.name, expected, &found, &mut differences),
            None => differences.push(format!("{}: not in expected.json", case.name)),
        }
    }
    let shown = differences.iter().take(40).cloned().collect::<Vec<_>>().join("\n");
    assert!(differences.is_empty(), "{device}: {} numbers differ\n{shown}\n{REMEDY}", differences.len());
    assert_eq!(expected.len(), cases.len(), "expected.json has a case that cases.json has not: scripts/golden make");
}

const REMEDY: &str = "These bits are part of the contract (README, Conventions). If they are meant to change: \
    scripts/golden make, and a line under Numerics in CHANGELOG.md.";

fn compare(case: &str, expected: &Record, found: &Record, differences: &mut Vec<String>) {
    for kind in expected.keys().chain(found.keys().filter(|kind| !expected.contains_key(*kind))) {
        let [old, new] = [expected, found].map(|record| record.get(kind).map_or(&[][..], Vec::as_slice));
        for i in (0..old.len().max(new.len())).filter(|&i| old.get(i) != new.get(i)) {
            let [old, new] = [old, new].map(|list| list.get(i).map_or("nothing".into(), ToString::to_string));
            differences.push(format!("{case}: {kind}[{i}]: expected {old}, found {new}"));
        }
    }
}

/// All records, to be kept as `expected.json`: a line for each kind of number.
pub(crate) fn records<B: Buffer>(device: &Device) -> String {
    let cases = cases().into_iter().map(|case| written(&case.name, &run::run::<B>(device, &case)));
    format!("{{\n{}\n}}\n", cases.collect::<Vec<_>>().join(",\n"))
}

fn written(name: &str, record: &Record) -> String {
    let mut text = format!("  \"{name}\": {{\n");
    for (i, (kind, values)) in record.iter().enumerate() {
        let comma = if i + 1 < record.len() { "," } else { "" };
        writeln!(text, "    \"{kind}\": {}{comma}", serde_json::to_string(values).unwrap()).unwrap();
    }
    text + "  }"
}
