//! What ptxas makes of every PTX: no spill, blocks enough, wide and global accesses, arithmetic within its budget.

use fused_adamw::{PTX_COMMITTED, ptx_probe, ptx_with};

use super::assemble::{NEWEST, OLDEST, Usage, compilers};
use super::both;
use super::occupancy::occupancy;
use super::sass::Sass;
use super::text::{LANES, Plain, kernels, launch_bounds, target};

/// The bytes a thread that the ptxas of the oldest driver may spill; for the newest see [`may_spill`].
const OLDEST_SPILLS: u32 = 16;

/// Arithmetic instructions an element, at most, of a thread that takes 4 elements and one of the tail, of 16 bits off a 16-byte
/// boundary: today's figures and a tenth.
pub(crate) fn budget(plain: Plain) -> usize {
    match plain {
        Plain::F32 => 76,
        Plain::Bf16 => 89,
        Plain::F16 => 111,
        Plain::Mixed => 149,
    }
}

#[test]
fn next_to_nothing_spills_and_every_multiprocessor_holds_the_blocks_asked_for() {
    let Some(_) = compilers() else { return };
    for (whose, ptx) in both() {
        for &sm in NEWEST.architectures.iter().filter(|&&sm| sm >= target(ptx)) {
            for usage in NEWEST.usage(ptx, sm) {
                let memory = usage.stack.max(usage.spill_stores).max(usage.spill_loads);
                assert!(memory <= may_spill(&usage.kernel, sm), "{whose} PTX, sm_{sm}: {usage:?}");
                holds_the_blocks_asked_for(whose, ptx, sm, &usage);
            }
        }
    }
}

/// The bytes a thread that the newest ptxas may spill: four words on a small GPU, whose ptxas keeps more values than others.
fn may_spill(kernel: &str, sm: u32) -> u32 {
    if sm == 120 && ["adamw_bf16", "adamw_f16", "adamw_full"].contains(&kernel) { 16 } else { 0 }
}

#[test]
fn the_oldest_driver_takes_the_committed_ptx() {
    let Some(_) = compilers() else { return };
    for &sm in OLDEST.architectures {
        for usage in OLDEST.usage(PTX_COMMITTED, sm) {
            let spilled = usage.stack.max(usage.spill_stores).max(usage.spill_loads);
            assert!(spilled <= OLDEST_SPILLS, "ptxas {}, sm_{sm}: {usage:?}", OLDEST.version);
            holds_the_blocks_asked_for("committed", PTX_COMMITTED, sm, &usage);
        }
    }
}

/// As it is loaded (src/kernels.rs), a kernel is assembled by itself, to the same code.
#[test]
fn a_kernel_alone_is_what_it_is_among_the_others() {
    let Some(_) = compilers() else { return };
    for (whose, ptx) in both() {
        for together in NEWEST.usage(ptx, 90) {
            let alone = NEWEST.usage(&ptx_with(ptx, &together.kernel), 90);
            assert_eq!(format!("{alone:?}"), format!("{:?}", [&together]), "{whose} PTX");
        }
    }
    assert!(OLDEST.assembles(&ptx_probe(PTX_COMMITTED), 75), "what is loaded to ask whether it can be");
}

fn holds_the_blocks_asked_for(whose: &str, ptx: &str, sm: u32, usage: &Usage) {
    let (threads, asked) = launch_bounds(ptx, &usage.kernel);
    let held = occupancy(sm, threads, usage).blocks;
    // Turing's multiprocessors have room for half as many threads as are asked for.
    let most = occupancy(sm, threads, &Usage { registers: 1, ..Usage::default() }).blocks;
    assert!(held >= asked.min(most), "{whose} PTX, sm_{sm}: {held} blocks, not {asked}: {usage:?}");
}

#[test]
fn machine_code_accesses_global_memory_16_bytes_at_a_time() {
    let Some(_) = compilers() else { return };
    for (whose, ptx) in both() {
        let text = NEWEST.sass(ptx, 90);
        for kernel in kernels(ptx) {
            let (sass, what) = (Sass::of(&text, kernel), format!("{whose} PTX, {kernel}"));
            let all = sass.accesses();
            assert_eq!((all.generic, all.local, all.calls), (0, 0, 0), "{what}: {all:?}");
            let Some(plain) = Plain::of(kernel) else { continue };
            assert!((all.wide_loads, all.wide_stores) >= wide(plain), "{what}: {all:?}");
        }
    }
}

/// Loads of the parameter or its master, m, v; stores of the same. The gradient, where it may be of f32; vmax, where it may be.
fn wide(plain: Plain) -> (usize, usize) {
    match plain {
        Plain::F32 => (4, 3),
        Plain::Bf16 | Plain::F16 => (3, 3),
        Plain::Mixed => (5, 5), // the parameter and its master apart
    }
}

#[test]
fn arithmetic_stays_within_its_budget() {
    let Some(_) = compilers() else { return };
    for (whose, ptx) in both() {
        let text = NEWEST.sass(ptx, 90);
        for (kernel, plain) in kernels(ptx).into_iter().filter_map(|kernel| Some((kernel, Plain::of(kernel)?))) {
            let round = Sass::of(&text, kernel).longest_way().expect("a way");
            let budget = budget(plain) * LANES;
            assert!(round.arithmetic() <= budget, "{whose} PTX, {kernel}: {round:?}, more than {budget}");
        }
    }
}
