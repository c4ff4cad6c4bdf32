//! What the PTX may hold, the one that this build made and the committed one, and what ptxas makes of it: registers,
//! spills, occupancy, machine code. No GPU needed. The tools for the latter are pinned: `scripts/cuda-compilers` installs
//! them, and `FUSED_ADAMW_CUDA_COMPILERS` is their folder. Without it these tests are skipped, in one line;
//! `FUSED_ADAMW_REQUIRE_PTXAS=1` makes that a failure. `FUSED_ADAMW_WRITE_RESOURCES=1` writes the table (`scripts/ptx`).
//!
//! The kernels are the CPU path's equal, bit for bit, only if the compiler rounds where the source does and nowhere
//! else. So the f32 instructions are counted, kernel by kernel, and must be those that the source spells out.
#![cfg(feature = "cuda")]

use std::ops::RangeInclusive;

use fused_adamw::{PTX, PTX_COMMITTED};

use text::{LANES, Plain, directive, kernels, opcodes, target};

#[path = "ptx/assemble.rs"]
mod assemble;
#[path = "shared/nvrtc.rs"]
mod nvrtc;
#[path = "ptx/occupancy.rs"]
mod occupancy;
#[path = "ptx/predictions.rs"]
mod predictions;
#[path = "ptx/rules.rs"]
mod rules;
#[path = "ptx/sass.rs"]
mod sass;
#[path = "ptx/table.rs"]
mod table;
#[path = "ptx/text.rs"]
mod text;
#[path = "shared/variants.rs"]
#[allow(dead_code, reason = "which list it concerns is the bench's")]
mod tried;

const README: &str = include_str!("../README.md");
const UPDATE_CUH: &str = include_str!("../cuda/update.cuh");
const ROUNDING_CUH: &str = include_str!("../cuda/rounding.cuh");

/// The f32 operations that round, as PTX and as our sources name them.
const ROUNDING: [(&str, &str); 6] = [
    ("add.rn.f32", "add_rn("),
    ("sub.rn.f32", "sub_rn("),
    ("mul.rn.f32", "mul_rn("),
    ("fma.rn.f32", "fma_rn("),
    ("div.rn.f32", "div_rn("),
    ("sqrt.rn.f32", "sqrt_rn("),
];

/// PTX ISA, the CUDA that brought it, and the branch of its driver, the oldest that reads it: "PTX ISA", release
/// history, and "CUDA Toolkit Release Notes", table of driver versions.
const DRIVERS: [(&str, &str, u32); 11] = [
    ("8.0", "12.0", 525),
    ("8.1", "12.1", 530),
    ("8.2", "12.2", 535),
    ("8.3", "12.3", 545),
    ("8.4", "12.4", 550),
    ("8.5", "12.5", 555),
    ("8.6", "12.7", 565),
    ("8.7", "12.8", 570),
    ("8.8", "12.9", 575),
    ("9.0", "13.0", 580),
    ("9.1", "13.1", 590),
];

#[test]
fn any_gpu_since_turing_can_run_it() {
    for (whose, ptx) in both() {
        assert!(target(ptx) >= 75, "{whose} PTX: sm_{}", target(ptx));
        assert_eq!(directive(ptx, ".address_size"), Some("64"), "{whose} PTX");
        assert_eq!(kernels(ptx), kernels(PTX_COMMITTED), "{whose} PTX");
    }
}

#[test]
fn the_readme_names_the_oldest_gpu_and_driver_that_can_run_the_committed_ptx() {
    let isa = directive(PTX_COMMITTED, ".version").expect(".version");
    let (_, cuda, branch) = DRIVERS.iter().find(|(known, ..)| *known == isa).expect("a known ISA");
    let (major, minor) = (target(PTX_COMMITTED) / 10, target(PTX_COMMITTED) % 10);
    let sentence = format!(
        "a GPU of compute capability {major}.{minor} (Turing) or newer and a driver of branch {branch} (CUDA {cuda}) \
         or newer: that is what PTX ISA {isa} of the committed kernels needs"
    );
    let readme = README.split_whitespace().collect::<Vec<_>>().join(" ");
    assert!(readme.contains(&sentence), "README.md: {sentence}");
}

#[test]
fn the_committed_ptx_tells_nothing_of_its_maker() {
    for line in PTX_COMMITTED.lines() {
        assert!(!line.replacen("//", "", 1).contains(['/', '\\']), "a path: {line}");
    }
}

#[test]
fn every_f32_operation_is_one_that_the_source_spells_out() {
    for (whose, ptx) in both() {
        for kernel in kernels(ptx) {
            let opcodes = opcodes(ptx, kernel);
            if let Some(plain) = Plain::of(kernel) {
                for (opcode, name) in ROUNDING {
                    let found = opcodes.get(opcode).copied().unwrap_or(0);
                    let wanted = spelled_out(name, plain);
                    assert!(wanted.contains(&found), "{whose} PTX, {kernel}: {found} {opcode}, not {wanted:?}");
                }
            }
            for opcode in opcodes.keys().filter(|opcode| opcode.contains(".f32")) {
                let moves = ["ld.", "st.", "mov.", "selp.", "setp.", "neg."].iter().any(|m| opcode.starts_with(m));
                let rounds = ROUNDING.iter().any(|(known, _)| known == opcode);
                // To and from f64, where there is f64.
                let converts = opcode.starts_with("cvt.") && opcode.contains(".f64") && Plain::of(kernel).is_none();
                assert!(moves || rounds || converts, "{whose} PTX, {kernel}: {opcode}, which nobody asked for");
            }
        }
    }
}

/// How often a kernel of the plain step has an operation, by the source.
fn spelled_out(name: &str, plain: Plain) -> RangeInclusive<usize> {
    let [from_f16, to_f16] = ["f16_to_f32", "f32_to_f16_rn"].map(|twin| self::twin(ROUNDING_CUH, twin));
    let [update, from_f16, to_f16] = [UPDATE_CUH, from_f16, to_f16].map(|source| source.matches(name).count());
    // One body for each lane, and one for the elements before and after the vectors.
    let bodies = LANES + 1;
    // Each body widens an f16 gradient, and narrows an f16 parameter, which it reads from the master. The vector's body
    // narrows twice, for aligned and other parameters, unless the compiler narrows before it asks.
    let has_f16 = usize::from([Plain::F16, Plain::Mixed].contains(&plain));
    // Of a mixed list bf16 goes its own way.
    let ways = if plain == Plain::Mixed { 2 } else { 1 };
    let others = ways * bodies * update + has_f16 * bodies * from_f16;
    others + has_f16 * bodies * to_f16..=others + has_f16 * (bodies + LANES) * to_f16
}

#[test]
fn nothing_is_inexact_wide_or_hidden() {
    for (whose, ptx) in both() {
        for inexact in [".ftz", ".approx", ".full"] {
            assert!(!ptx.contains(inexact), "{whose} PTX: {inexact}");
        }
        for kernel in kernels(ptx) {
            for opcode in opcodes(ptx, kernel).keys() {
                let wide = opcode.contains(".f64") && Plain::of(kernel).is_some();
                assert!(!wide, "{whose} PTX, {kernel}: {opcode} costs 2 to 64 times an f32");
                // An operation in a function of its own would escape the count.
                assert!(!opcode.starts_with("call"), "{whose} PTX, {kernel}: {opcode}");
            }
        }
    }
}

/// The compiler cannot tell that an address from a table is global, and may then emit generic accesses, which are
/// slower, without a word.
#[test]
fn memory_is_global_and_is_accessed_16_bytes_at_a_time() {
    for (whose, ptx) in both() {
        for kernel in kernels(ptx) {
            let opcodes = opcodes(ptx, kernel);
            for opcode in opcodes.keys().filter(|opcode| opcode.starts_with("ld.") || opcode.starts_with("st.")) {
                let known = ["ld.global.", "st.global.", "ld.param.", "ld.shared.", "st.shared."];
                assert!(known.iter().any(|known| opcode.starts_with(known)), "{whose} PTX, {kernel}: {opcode}");
            }
            let Some(plain) = Plain::of(kernel) else { continue };
            let vectors = |access: &str| -> usize {
                let of = |opcode: &str| opcode.starts_with(access) && opcode.contains(".v4.") && !opcode.ends_with("8");
                opcodes.iter().filter(|(opcode, _)| of(opcode)).map(|(_, count)| count).sum()
            };
            // Parameter or master, m, v, there and back; the gradient, if that may be of f32.
            let gradient = usize::from([Plain::F32, Plain::Mixed].contains(&plain));
            assert!(vectors("ld.global.") >= 3 + gradient, "{whose} PTX, {kernel}");
            assert!(vectors("st.global.") >= 3, "{whose} PTX, {kernel}");
        }
    }
}

/// This build's PTX and the committed one, if they are not the same.
fn both() -> impl Iterator<Item = (&'static str, &'static str)> {
    let committed = (PTX != PTX_COMMITTED).then_some(("committed", PTX_COMMITTED));
    [("this build's", PTX)].into_iter().chain(committed)
}

/// A function's text, between its marks.
fn twin<'a>(source: &'a str, name: &str) -> &'a str {
    let (_, body) = source.split_once(&format!("// twin: {name} {{")).unwrap_or_else(|| panic!("no twin {name}"));
    body.split_once("// } twin").expect("an end mark").0
}
