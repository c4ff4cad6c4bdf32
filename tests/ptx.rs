//! What the PTX may hold: the one that this build made and the committed one. No GPU and no compiler needed, but
//! for the last test, which asks ptxas (`FUSED_ADAMW_PTXAS`) about registers and spills.
//!
//! The kernels are the CPU path's equal, bit for bit, only if the compiler rounds where the source does and nowhere
//! else. So the f32 instructions are counted, kernel by kernel, and must be those that the source spells out.
#![cfg(feature = "cuda")]

use std::collections::BTreeMap;
use std::io::Write as _;
use std::{env, fs, process::Command};

use fused_adamw::{PTX, PTX_COMMITTED};

const KERNELS: [&str; 2] = ["adamw_f32", "adamw_mixed"];
const BOTH: [(&str, &str); 2] = [("this build's", PTX), ("committed", PTX_COMMITTED)];

const ADAMW_CU: &str = include_str!("../cuda/adamw.cu");
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

#[test]
fn any_gpu_since_turing_can_run_it() {
    for (whose, ptx) in BOTH {
        let target = directive(ptx, ".target");
        let number = target.strip_prefix("sm_").and_then(|number| number.parse::<u32>().ok());
        // `sm_90a`, with a suffix, would run on that one GPU and on no later one.
        assert!(number.is_some_and(|number| number >= 75), "{whose} PTX: .target {target}");
        assert_eq!(directive(ptx, ".address_size"), "64", "{whose} PTX");
    }
}

#[test]
fn the_committed_ptx_is_for_every_gpu_and_driver_that_we_support_and_tells_nothing_of_its_maker() {
    assert_eq!(directive(PTX_COMMITTED, ".target"), "sm_75");
    let version: f64 = directive(PTX_COMMITTED, ".version").parse().expect("a number");
    assert!(version <= 8.0, "PTX {version} needs a driver newer than 525");
    for line in PTX_COMMITTED.lines() {
        assert!(!line.replacen("//", "", 1).contains(['/', '\\']), "a path: {line}");
    }
}

#[test]
fn every_f32_operation_is_one_that_the_source_spells_out() {
    let update = twin(UPDATE_CUH, "update");
    let from_f16 = twin(ROUNDING_CUH, "f16_to_f32");
    let to_f16 = twin(ROUNDING_CUH, "f32_to_f16_rn");
    for (whose, ptx) in BOTH {
        for kernel in KERNELS {
            let opcodes = opcodes(ptx, kernel);
            // One body for each lane, and one for the elements before and after the vectors.
            let bodies = lanes(kernel) + 1;
            // Parameter and gradient are widened in each body, and the parameter is narrowed; twice over in the
            // vector's, where it may be aligned or not.
            let (widened, narrowed) = match kernel {
                "adamw_mixed" => (2 * bodies, bodies + lanes(kernel)),
                _ => (0, 0),
            };
            for (opcode, name) in ROUNDING {
                let expected = bodies * update.matches(name).count()
                    + widened * from_f16.matches(name).count()
                    + narrowed * to_f16.matches(name).count();
                let found = opcodes.get(opcode).copied().unwrap_or(0);
                assert_eq!(found, expected, "{whose} PTX, {kernel}: {opcode}");
            }
            for opcode in opcodes.keys().filter(|opcode| opcode.contains(".f32")) {
                let moves = ["ld.", "st.", "mov.", "selp.", "setp.", "neg."].iter().any(|m| opcode.starts_with(m));
                let rounds = ROUNDING.iter().any(|(known, _)| known == opcode);
                assert!(moves || rounds, "{whose} PTX, {kernel}: {opcode}, which nobody asked for");
            }
        }
    }
}

#[test]
fn nothing_is_inexact_wide_or_hidden() {
    for (whose, ptx) in BOTH {
        for inexact in [".ftz", ".approx", ".full"] {
            assert!(!ptx.contains(inexact), "{whose} PTX: {inexact}");
        }
        for kernel in KERNELS {
            for opcode in opcodes(ptx, kernel).keys() {
                assert!(!opcode.contains(".f64"), "{whose} PTX, {kernel}: {opcode} costs 2 to 64 times an f32");
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
    for (whose, ptx) in BOTH {
        for kernel in KERNELS {
            let opcodes = opcodes(ptx, kernel);
            for opcode in opcodes.keys().filter(|opcode| opcode.starts_with("ld.") || opcode.starts_with("st.")) {
                let known = ["ld.global.", "st.global.", "ld.param."].iter().any(|m| opcode.starts_with(m));
                assert!(known, "{whose} PTX, {kernel}: {opcode}");
            }
            let vectors = |access: &str| -> usize {
                let of = |opcode: &str| opcode.starts_with(access) && opcode.contains(".v4.");
                opcodes.iter().filter(|(opcode, _)| of(opcode)).map(|(_, count)| count).sum()
            };
            // Parameter, gradient, m, v; and all but the gradient back.
            assert!(vectors("ld.global.") >= 4, "{whose} PTX, {kernel}");
            assert!(vectors("st.global.") >= 3, "{whose} PTX, {kernel}");
        }
    }
}

#[test]
fn nothing_spills_and_the_registers_leave_room_for_the_blocks_asked_for() {
    let Some(ptxas) = env::var_os("FUSED_ADAMW_PTXAS") else {
        assert!(env::var_os("FUSED_ADAMW_REQUIRE_PTXAS").is_none(), "FUSED_ADAMW_PTXAS is not set");
        // Not `eprintln!`: a test that passes would keep it to itself.
        writeln!(std::io::stderr(), "SKIPPED: FUSED_ADAMW_PTXAS is not set, registers and spills are not known")
            .unwrap();
        return;
    };
    let folder = tempfile::tempdir().expect("a folder");
    let (input, output) = (folder.path().join("adamw.ptx"), folder.path().join("adamw.cubin"));
    for (whose, ptx) in BOTH {
        fs::write(&input, ptx).expect("a file");
        let oldest: u32 = directive(ptx, ".target")[3..].parse().expect("sm_NN");
        for sm in [75, 80, 86, 89, 90, 100, 120].into_iter().filter(|&sm| sm >= oldest) {
            let mut command = Command::new(&ptxas);
            command.args(["-v", &format!("-arch=sm_{sm}"), "-o"]).arg(&output).arg(&input);
            let done = command.output().expect("FUSED_ADAMW_PTXAS runs");
            let log = String::from_utf8_lossy(&done.stderr);
            assert!(done.status.success(), "{whose} PTX, sm_{sm}: {log}");
            for kernel in KERNELS {
                let of_kernel = log.split_once(&format!("Function properties for {kernel}\n"));
                let mut lines = of_kernel.expect("ptxas -v names the kernel").1.lines();
                let (memory, use_) = (lines.next().unwrap_or_default(), lines.next().unwrap_or_default());
                eprintln!("{whose:>12} PTX, sm_{sm:<3} {kernel:<11} {}", use_.replace("ptxas info    : ", ""));
                let none = "0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads";
                assert_eq!(memory.trim(), none, "{whose} PTX, {kernel}, sm_{sm}");
                // The register file has 65536; a block, 256 threads.
                let blocks: u32 = directive(entry(ptx, kernel), ".minnctapersm").parse().expect("a number");
                let registers = use_.split_once("Used ").and_then(|(_, rest)| rest.split_once(" registers"));
                let registers: u32 = registers.expect("ptxas -v counts registers").0.parse().expect("a number");
                assert!(registers * 256 * blocks <= 65536, "{whose} PTX, {kernel}, sm_{sm}: {registers} registers");
            }
        }
    }
}

/// What follows `.name` at the start of a line.
fn directive<'a>(ptx: &'a str, name: &str) -> &'a str {
    let value = ptx.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
    value.unwrap_or_else(|| panic!("no {name}")).trim()
}

/// A kernel, from its name to its closing brace.
fn entry<'a>(ptx: &'a str, kernel: &str) -> &'a str {
    let start = ptx.find(&format!(".visible .entry {kernel}(")).unwrap_or_else(|| panic!("no entry {kernel}"));
    let end = ptx[start..].find("\n}").expect("a closing brace");
    &ptx[start..start + end]
}

/// A kernel's instructions and how often each stands there.
fn opcodes<'a>(ptx: &'a str, kernel: &str) -> BTreeMap<&'a str, usize> {
    let mut counts = BTreeMap::new();
    let (_, body) = entry(ptx, kernel).split_once("\n{").expect("an opening brace");
    for line in body.lines() {
        let line = line.trim();
        let line = match line.strip_prefix('@') {
            Some(predicated) => predicated.split_once(' ').map_or("", |(_, rest)| rest.trim()),
            None => line,
        };
        let opcode = line.split([' ', '\t', ';']).next().unwrap_or_default();
        if opcode.starts_with(|c: char| c.is_ascii_lowercase()) {
            *counts.entry(opcode).or_insert(0) += 1;
        }
    }
    assert!(counts.len() > 20, "{kernel}: the instructions are found");
    counts
}

/// A function's text, between its marks.
fn twin<'a>(source: &'a str, name: &str) -> &'a str {
    let (_, body) = source.split_once(&format!("// twin: {name} {{")).unwrap_or_else(|| panic!("no twin {name}"));
    body.split_once("// } twin").expect("an end mark").0
}

/// The elements that one thread of a kernel updates at a time.
fn lanes(kernel: &str) -> usize {
    let (_, body) = ADAMW_CU.split_once(&format!("{kernel}(")).expect("the kernel");
    let (_, lanes) = body.split_once("update_chunk<").expect("its only call");
    lanes.split_once('>').expect("a template argument").0.parse().expect("a number")
}
