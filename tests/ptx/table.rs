//! `cuda/ptx/resources.txt`: what the committed PTX takes of a GPU. `scripts/ptx make` writes it; where it is not what
//! the pinned tools say now, for worse or for better, the test fails and shows the rows.

use std::fmt::Display;
use std::{env, fs};

use fused_adamw::PTX_COMMITTED;

use super::assemble::{NEWEST, OLDEST, Ptxas, Usage, compilers};
use super::occupancy::occupancy;
use super::rules::budget;
use super::sass::{Accesses, Census, Sass};
use super::text::{LANES, Plain, kernels, launch_bounds};

const TABLE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/cuda/ptx/resources.txt");

const RESOURCES: &str = "
Registers, stack and spilled bytes of a thread; shared memory of a block; constant memory with the arguments (not told
from sm_90 on); the blocks and warps that one multiprocessor holds at once, and their share of the warps it can hold.
";
const ACCESSES: &str = "
Instructions for sm_90 that access global memory, 16 bytes at a time (for f32, bf16 and f16) and fewer (table rows,
scalars, 4 elements of 16 bits, arrays off a boundary, the few elements before and after the vectors). Generic and
local accesses. Calls, but for slow paths of / and sqrt.
";
/// Others than those of the plain step, with the elements that a thread takes, or takes in a round of the main loop.
const OTHERS: [(&str, usize); 3] = [("accumulate", 4), ("adamw_full", 8), ("grad_norm", 8)];
const INSTRUCTIONS: &str = "
Instructions an element, for sm_90: the longest way (all dtypes, alignments and options) that takes no slow path of / or
sqrt, through the main loop of adamw_full and grad_norm, and through all of the others, with 4 elements and one of the
tail. Float and integer together, the arithmetic, have a budget in the kernels of a plain step.
";

#[test]
fn the_table_of_resources_is_current() {
    let Some(_) = compilers() else { return };
    let now = table();
    if env::var_os("FUSED_ADAMW_WRITE_RESOURCES").is_some() {
        return fs::write(TABLE, now).expect(TABLE);
    }
    let committed = fs::read_to_string(TABLE).unwrap_or_default();
    let changes = lines_without(&committed, &now, '-') + &lines_without(&now, &committed, '+');
    assert!(now == committed, "cuda/ptx/resources.txt is stale. If this is meant, run scripts/ptx make:\n{changes}");
}

/// The lines of a text that another one does not have.
fn lines_without(text: &str, other: &str, mark: char) -> String {
    let missing = text.lines().filter(|line| other.lines().all(|known| known != *line));
    missing.map(|line| format!("{mark} {line}\n")).collect()
}

fn table() -> String {
    let text = NEWEST.sass(PTX_COMMITTED, 90);
    let codes: Vec<_> = kernels(PTX_COMMITTED).into_iter().map(|kernel| (kernel, Sass::of(&text, kernel))).collect();
    let title = "The committed PTX. Made by scripts/ptx, checked by tests/ptx.\n";
    let (newest, oldest) = (resources(&NEWEST), resources(&OLDEST));
    let (accesses, instructions) = (accesses(&codes), instructions(&codes));
    format!("{title}{RESOURCES}\n{newest}\n{oldest}{ACCESSES}\n{accesses}{INSTRUCTIONS}\n{instructions}")
}

fn resources(ptxas: &Ptxas) -> String {
    let heads = ["registers", "stack", "stores", "loads", "shared", "constant", "blocks", "warps", "share"];
    let mut table = row(&format!("ptxas {}", ptxas.version), heads);
    for &sm in ptxas.architectures {
        let usages = ptxas.usage(PTX_COMMITTED, sm);
        table.extend(usages.iter().map(|usage| row(&format!("{} sm_{sm}", usage.kernel), figures(sm, usage))));
    }
    table
}

fn figures(sm: u32, usage: &Usage) -> [String; 9] {
    let Usage { registers, stack, spill_stores, spill_loads, shared, .. } = *usage;
    let held = occupancy(sm, launch_bounds(PTX_COMMITTED, &usage.kernel).0, usage);
    let constant = usage.constant.map_or("-".to_owned(), |bytes| bytes.to_string());
    let [registers, stack, stores, loads, shared, blocks, warps] =
        [registers, stack, spill_stores, spill_loads, shared, held.blocks, held.warps].map(|n| n.to_string());
    [registers, stack, stores, loads, shared, constant, blocks, warps, format!("{}%", held.percent)]
}

fn accesses(codes: &[(&str, Sass<'_>)]) -> String {
    let mut table = row("", ["LDG.128", "STG.128", "LDG", "STG", "generic", "local", "calls"]);
    for (kernel, sass) in codes {
        table += &row(kernel, counts(&sass.accesses()));
    }
    table
}

fn counts(of: &Accesses) -> [usize; 7] {
    let Accesses { wide_loads, wide_stores, narrow_loads, narrow_stores, generic, local, calls } = *of;
    [wide_loads, wide_stores, narrow_loads, narrow_stores, generic, local, calls]
}

fn instructions(codes: &[(&str, Sass<'_>)]) -> String {
    let mut table = row("", ["float", "integer", "float+int", "budget", "memory", "control", "all"]);
    for (kernel, sass) in codes {
        let plain = Plain::of(kernel);
        let other = OTHERS.iter().find_map(|&(other, lanes)| (other == *kernel).then_some(lanes));
        let Some(lanes) = plain.map(|_| LANES).or(other) else { continue };
        let round = sass.longest_way().expect("a way");
        let Census { float, integer, memory, control } = round;
        let budget = plain.map_or("-".to_owned(), |plain| per_element(budget(plain) * lanes, lanes));
        let [float, integer, arithmetic, memory, control, all] =
            [float, integer, round.arithmetic(), memory, control, round.all()].map(|count| per_element(count, lanes));
        table += &row(kernel, [float, integer, arithmetic, budget, memory, control, all]);
    }
    table
}

/// With two decimals, exactly: a thread updates 4 or 8 elements at a time.
fn per_element(count: usize, lanes: usize) -> String {
    let hundredths = 100 * count / lanes;
    format!("{}.{:02}", hundredths / 100, hundredths % 100)
}

fn row<const N: usize>(name: &str, cells: [impl Display; N]) -> String {
    cells.iter().fold(format!("{name:<20}"), |row, cell| format!("{row}{cell:>10}")).trim_end().to_owned() + "\n"
}
