//! What ptxas makes of every PTX: no spill, blocks enough, wide and global accesses, arithmetic within its budget.

use fused_adamw::{PTX_COMMITTED, ptx_probe, ptx_with};

use super::assemble::{NEWEST, OLDEST, Usage, compilers};
use super::both;
use super::occupancy::occupancy;
use super::sass::{Accesses, Sass};
use super::text::{kernels, lanes, launch_bounds, target};

/// The bytes a thread that the ptxas of the oldest driver may spill; the newest may spill none.
const OLDEST_SPILLS: u32 = 8;

/// Arithmetic instructions an element, at most, of a kernel that updates so many at a time. 8 are of any dtype: the
/// figure is today's, rounded up, of f16 that lies off a 16-byte boundary.
pub(crate) fn budget(lanes: usize) -> usize {
    if lanes == 4 { 46 } else { 82 }
}

#[test]
fn nothing_spills_and_every_multiprocessor_holds_the_blocks_asked_for() {
    let Some(_) = compilers() else { return };
    for (whose, ptx) in both() {
        for &sm in NEWEST.architectures.iter().filter(|&&sm| sm >= target(ptx)) {
            for usage in NEWEST.usage(ptx, sm) {
                let memory = (usage.stack, usage.spill_stores, usage.spill_loads);
                assert_eq!(memory, (0, 0, 0), "{whose} PTX, sm_{sm}: {usage:?}");
                holds_the_blocks_asked_for(whose, ptx, sm, &usage);
            }
        }
    }
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
    assert!(held >= asked, "{whose} PTX, sm_{sm}: {held} blocks, not {asked}: {usage:?}");
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
            let Some(lanes) = lanes(kernel) else { continue };
            let round = sass.accesses_a_round().expect("a loop");
            assert!(is_wide_enough(lanes, &round), "{what}: {round:?}");
        }
    }
}

/// Of the accesses in the main loop.
fn is_wide_enough(lanes: usize, round: &Accesses) -> bool {
    let of_f32 = lanes / 4;
    // Of any dtype: vmax is read, vmax and the master are written; and what may lie off a 16-byte boundary is loaded as
    // 16 bits or 32, and stored as f16, bf16 or f32.
    let any = usize::from(lanes == 8);
    // Parameter, gradient, m, v; and all but the gradient back. 8 elements of 16 bits are one access: the first load of
    // f32's two, and a store of their own.
    round.wide_loads >= (4 + any) * of_f32
        && round.wide_stores >= (3 + 2 * any) * of_f32 + any
        && round.second_halves >= 2 * any
        // Parameter and gradient, off a boundary; nothing else may be narrow.
        && round.narrow_loads <= 2 * lanes * (1 + any)
        && round.narrow_stores <= lanes * (1 + 2 * any)
}

#[test]
fn arithmetic_stays_within_its_budget() {
    let Some(_) = compilers() else { return };
    for (whose, ptx) in both() {
        let text = NEWEST.sass(ptx, 90);
        for (kernel, lanes) in kernels(ptx).into_iter().filter_map(|kernel| Some((kernel, lanes(kernel)?))) {
            let round = Sass::of(&text, kernel).longest_round().expect("a loop");
            let budget = budget(lanes) * lanes;
            assert!(round.arithmetic() <= budget, "{whose} PTX, {kernel}: {round:?}, more than {budget}");
        }
    }
}
