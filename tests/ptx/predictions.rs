//! The tables of `benches/record/PREDICTIONS.md` that follow from `cuda/ptx/resources.txt` and from what ptxas makes of the
//! variants. `FUSED_ADAMW_WRITE_PREDICTIONS=1` writes them.

use std::fmt::Write as _;
use std::path::Path;
use std::{env, fs};

use super::assemble::{NEWEST, compilers};
use super::nvrtc::Nvrtc;
use super::occupancy::occupancy;
use super::text::launch_bounds;
use super::tried::{VARIANTS, Variant};

const ROOT: &str = env!("CARGO_MANIFEST_DIR");
const RESOURCES: &str = include_str!("../../cuda/ptx/resources.txt");

/// What a GPU is assumed to do under a memory-bound load.
struct Gpu {
    name: &'static str,
    architecture: &'static str,
    multiprocessors: u64,
    /// 10^9 bytes a second.
    bandwidth: u64,
    /// The clock of the multiprocessors, below its boost: the memory takes its part of the power.
    megahertz: u64,
}

const GPUS: [Gpu; 4] = [
    Gpu { name: "H200", architecture: "sm_90", multiprocessors: 132, bandwidth: 4800, megahertz: 1600 },
    Gpu { name: "H100 SXM", architecture: "sm_90", multiprocessors: 132, bandwidth: 3350, megahertz: 1600 },
    Gpu { name: "A100 80GB", architecture: "sm_80", multiprocessors: 108, bandwidth: 2039, megahertz: 1300 },
    Gpu { name: "L4", architecture: "sm_89", multiprocessors: 58, bandwidth: 300, megahertz: 1200 },
];

/// Of a load, with the memory busy.
const LATENCY_NS: u64 = 800;
/// Instructions that a multiprocessor issues in a cycle, times the threads of a warp.
const ISSUED: u64 = 4 * 32;
const THREADS: u64 = 256;

/// What a kernel moves for an element (`tests/cuda/control.rs` and `metrics.rs` count it), and what a thread has on its way.
struct Work {
    kernel: &'static str,
    dtype: &'static str,
    read: u64,
    written: u64,
    /// Bytes that a thread loads before it needs the first of them.
    loads: u64,
}

const fn work(kernel: &'static str, dtype: &'static str, read: u64, written: u64, loads: u64) -> Work {
    Work { kernel, dtype, read, written, loads }
}

const WORKS: [Work; 9] = [
    work("adamw_f32", "f32", 16, 12, 64),
    work("adamw_bf16", "bf16", 14, 14, 56),
    work("adamw_mixed", "bf16, f32 gradients", 16, 14, 64),
    work("adamw_full", "f32", 16, 12, 128),
    work("adamw_full", "bf16", 14, 14, 112),
    work("grad_norm", "f32", 4, 0, 32),
    work("grad_norm", "bf16", 2, 0, 16),
    work("accumulate", "f32", 8, 4, 32),
    work("accumulate", "bf16", 6, 4, 24),
];

impl Work {
    fn row(&self, gpu: &Gpu) -> String {
        let resources = |name: &str, column: usize| {
            let row = RESOURCES.lines().filter(|line| line.starts_with(&format!("{name} "))).nth(0);
            row.unwrap_or_else(|| panic!("no row {name}")).split_whitespace().nth(column).expect("a column").to_owned()
        };
        let blocks: u64 = resources(&format!("{} {}", self.kernel, gpu.architecture), 8).parse().expect("a number");
        let instructions = instructions(self.kernel);
        let on_their_way = blocks * THREADS * self.loads;
        let bytes = self.read + self.written;
        let needed = gpu.bandwidth * self.read * LATENCY_NS / bytes / gpu.multiprocessors;
        // The time to issue over the time to move, of one element, in percent.
        let issue = instructions * gpu.bandwidth * 1000 / (ISSUED * gpu.multiprocessors * gpu.megahertz * bytes);
        let times = |tenths: u64| format!("{}.{}", tenths / 10, tenths % 10);
        format!(
            "| {} | {} | {} | {} + {} | {}.{:02} | {blocks} | {} | {} | {}x | {issue}% | {} |",
            self.kernel,
            self.dtype,
            gpu.name,
            self.read,
            self.written,
            instructions / 100,
            instructions % 100,
            kib(on_their_way),
            kib(needed),
            times(10 * on_their_way / needed),
            bound(issue, 10 * on_their_way / needed),
        )
    }
}

/// Of an element, in hundredths: the last column of the last table.
fn instructions(kernel: &str) -> u64 {
    let (_, table) = RESOURCES.split_once("Instructions an element").expect("the last table");
    let row = table.lines().find(|line| line.starts_with(&format!("{kernel} "))).expect("a row of the kernel");
    let all = row.split_whitespace().last().expect("a column");
    all.replace('.', "").parse().expect("two decimals")
}

fn bound(issue_percent: u64, loads_tenths: u64) -> &'static str {
    match () {
        () if issue_percent >= 100 => "issue",
        () if loads_tenths < 15 => "latency",
        () if issue_percent >= 70 => "memory, barely",
        () => "memory",
    }
}

fn kib(bytes: u64) -> String {
    format!("{}.{}", bytes / 1024, bytes % 1024 * 10 / 1024)
}

#[test]
fn the_predicted_bounds_are_current() {
    let mut table = "| kernel | dtypes | GPU | bytes | instructions | blocks | KiB on their way | needed | margin | issue | bound by |\n\
                     | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |\n"
        .to_owned();
    for row in WORKS.iter().flat_map(|work| GPUS.iter().map(|gpu| work.row(gpu))) {
        writeln!(table, "{row}").expect("a string takes it");
    }
    keep("bounds", &table);
}

#[test]
fn the_predictions_of_the_variants_are_current_and_none_spills_in_a_plain_step() {
    let Some(compilers) = compilers() else { return };
    let nvrtc = Nvrtc::in_folder(&compilers.join("nvrtc-12.0.140/lib")).expect("NVRTC");
    let mut table =
        "| variant | constants | registers | blocks | KiB on their way | large | 10,000 of 1,000 | because |\n\
                     | --- | --- | --- | --- | --- | --- | --- | --- |\n"
            .to_owned();
    for variant in &VARIANTS {
        let ptx = nvrtc.compile(&Path::new(ROOT).join("cuda"), variant.defines()).expect("a PTX");
        for inexact in [".ftz", ".approx"] {
            assert!(!ptx.contains(inexact), "{}: {inexact}", variant.name);
        }
        writeln!(table, "{}", variant_row(variant, &ptx)).expect("a string takes it");
    }
    keep("variants", &table);
}

/// Of `adamw_f32`, `adamw_bf16` and `adamw_mixed`, for sm_90.
fn variant_row(variant: &Variant, ptx: &str) -> String {
    let usages = NEWEST.usage(ptx, 90);
    let of = |kernel: &str| usages.iter().find(|usage| usage.kernel == kernel).expect("the kernel");
    let plain = [of("adamw_f32"), of("adamw_bf16"), of("adamw_mixed")];
    assert!(plain.iter().all(|usage| usage.spill_stores == 0), "{}: {plain:?}", variant.name);
    let blocks = plain.map(|usage| u64::from(occupancy(90, launch_bounds(ptx, &usage.kernel).0, usage).blocks));
    let loads = [64, 56, 64].map(|bytes| THREADS * bytes);
    let mut constants: Vec<String> = variant.defines().map(|define| format!("`{define}`")).collect();
    constants.extend(variant.chunk_len.map(|len| format!("chunks of {len}")));
    let cells = [
        variant.name.to_owned(),
        constants.join(" "),
        plain.map(|usage| usage.registers.to_string()).join(", "),
        blocks.map(|blocks| blocks.to_string()).join(", "),
        [0, 1, 2].map(|i| kib(blocks[i] * loads[i])).join(", "),
        variant.predicted.join(" | "),
        variant.why.to_owned(),
    ];
    format!("| {} |", cells.join(" | "))
}

/// Compares, or writes, what stands behind the mark of that name.
fn keep(name: &str, now: &str) {
    let file = Path::new(ROOT).join("benches/record/PREDICTIONS.md");
    let page = fs::read_to_string(&file).expect("the page");
    let mark = format!("<!-- {name}: tests/ptx/predictions.rs -->\n");
    let (head, rest) = page.split_once(&mark).expect("the mark before the table");
    let (was, tail) = rest.split_once("<!-- end -->").expect("the mark behind it");
    if env::var_os("FUSED_ADAMW_WRITE_PREDICTIONS").is_some() {
        fs::write(&file, format!("{head}{mark}{now}<!-- end -->{tail}")).expect("the page");
    } else {
        assert!(was == now, "PREDICTIONS.md is stale; with FUSED_ADAMW_WRITE_PREDICTIONS=1 it becomes:\n{now}");
    }
}
