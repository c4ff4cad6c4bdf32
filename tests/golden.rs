//! Golden bits: the cases of `tests/golden` leave behind the committed hashes of every parameter and all state. A change
//! that both twins make together shows here alone. On CUDA: `tests/cuda/golden.rs`.

#![expect(clippy::unwrap_used, reason = "a test stops at the first error")]

#[path = "golden/host.rs"]
mod host;
#[path = "golden/mod.rs"]
mod suite;

use fused_adamw::{Device, Dtype, Simd};
use host::Host;
use std::path::Path;
use suite::values::{BASIS, Values, fnv1a, word};

/// Where `scripts/golden make` sets `FUSED_ADAMW_WRITE_GOLDEN`, writes the hashes instead.
#[test]
fn portable_code_leaves_the_golden_bits() {
    let device = Device::cpu_with(Simd::Portable).unwrap();
    if std::env::var_os("FUSED_ADAMW_WRITE_GOLDEN").is_none() {
        return suite::check::<Host>(&device);
    }
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/expected.json");
    std::fs::write(file, suite::records::<Host>(&device)).unwrap();
}

#[test]
fn the_best_instruction_set_leaves_the_golden_bits() {
    suite::check::<Host>(&Device::cpu());
}

// The generator is written in words there: its own examples are what it makes here.
#[test]
fn the_values_are_those_of_the_format_readme() {
    let readme = include_str!("golden/README.md");
    let examples = readme.split("```text\n").find(|block| block.starts_with("adamw-f32/")).unwrap();
    let examples: Vec<_> = examples.lines().take_while(|line| *line != "```").collect();
    for line in &examples {
        let [key, element, _, kind, ..] = line.split(' ').collect::<Vec<_>>()[..] else { panic!("{line}") };
        let kind: Values = serde_json::from_value(kind.into()).unwrap();
        let word = word(fnv1a(BASIS, key.as_bytes()), element.parse().unwrap());
        let [f32, bf16, f16] = [Dtype::F32, Dtype::BF16, Dtype::F16].map(|dtype| kind.bits(dtype, word));
        assert!(line.ends_with(&format!("{f32:08x} {bf16:04x} {f16:04x}")) && line.contains(&format!(" {word:016x} ")));
    }
    assert_eq!(examples.len(), 8);
}
