//! How much of a multiprocessor a kernel can fill.

use super::assemble::Usage;

const WARP: u32 = 32;
/// Of every architecture here: 32-bit registers, and how many of them a warp takes at a time.
const REGISTERS: u32 = 65536;
const REGISTER_UNIT: u32 = 256;
/// A multiprocessor has four parts, each with a quarter of the registers; a warp lives in one of them.
const PARTS: u32 = 4;

/// What one multiprocessor holds: CUDA C++ Programming Guide, "Technical Specifications per Compute Capability".
struct Multiprocessor {
    warps: u32,
    blocks: u32,
    shared: u32,
    /// Shared memory that the system takes of each block, and the unit in which a block takes its own.
    shared_reserved: u32,
    shared_unit: u32,
}

impl Multiprocessor {
    fn of(sm: u32) -> Self {
        let (warps, blocks, shared_kib) = match sm {
            75 => (32, 16, 64),
            80 => (64, 32, 164),
            86 => (48, 16, 100),
            89 => (48, 24, 100),
            90 | 100 => (64, 32, 228),
            120 => (48, 24, 100),
            _ => panic!("sm_{sm}: its limits are not known here"),
        };
        let (shared_reserved, shared_unit) = if sm < 80 { (0, 256) } else { (1024, 128) };
        Self { warps, blocks, shared: shared_kib << 10, shared_reserved, shared_unit }
    }
}

pub(crate) struct Occupancy {
    /// Blocks and warps that a multiprocessor holds at once.
    pub(crate) blocks: u32,
    pub(crate) warps: u32,
    /// Of the warps that it can hold.
    pub(crate) percent: u32,
}

/// Of a kernel whose blocks have `threads` threads.
pub(crate) fn occupancy(sm: u32, threads: u32, usage: &Usage) -> Occupancy {
    let limit = Multiprocessor::of(sm);
    let warps_a_block = threads.div_ceil(WARP);
    let registers_a_warp = (usage.registers * WARP).next_multiple_of(REGISTER_UNIT);
    let warps = limit.warps.min(REGISTERS / PARTS / registers_a_warp * PARTS);
    let shared = (usage.shared + limit.shared_reserved).next_multiple_of(limit.shared_unit);
    let by_shared = limit.shared.checked_div(shared).unwrap_or(u32::MAX);
    let blocks = (warps / warps_a_block).min(by_shared).min(limit.blocks);
    let warps = blocks * warps_a_block;
    Occupancy { blocks, warps, percent: 100 * warps / limit.warps }
}

#[test]
fn each_limit_binds() {
    let blocks = |sm, threads, registers, shared| {
        occupancy(sm, threads, &Usage { registers, shared, ..Usage::default() }).blocks
    };
    assert_eq!(blocks(90, 256, 32, 0), 8, "warps");
    assert_eq!(blocks(90, 32, 16, 0), 32, "blocks");
    assert_eq!(blocks(90, 256, 64, 0), 4, "registers");
    assert_eq!(blocks(90, 256, 65, 0), 3, "registers, by units of 8 a thread");
    // 65536 / (168 * 32) is 12 warps; a quarter has room for 3.
    assert_eq!(blocks(90, 32, 168, 0), 12, "registers");
    assert_eq!(blocks(90, 32, 184, 0), 8, "registers, by quarters: 11 warps would be in all");
    assert_eq!(blocks(90, 256, 32, 56 << 10), 4, "shared memory, with the reserved KiB");
    assert_eq!(blocks(75, 256, 32, 32 << 10), 2, "shared memory");
    assert_eq!(blocks(75, 256, 32, (32 << 10) + 1), 1, "shared memory");
}
