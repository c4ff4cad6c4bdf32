//! How evenly a grid fills a GPU: a model of blocks started in their order, for tests of how lists are cut, and for
//! `benches/record/PREDICTIONS.md`.
//!
//! A multiprocessor has places for as many blocks as its registers allow (`cuda/ptx/resources.txt`). A block, one a chunk,
//! takes the place that is free first, and keeps it for a fixed time and the time of its bytes at that place's share of
//! the bandwidth. What a place lacks of the time until the last block ends is idle. That is more than on a GPU, where
//! the blocks that are left at the end have the bandwidth to themselves. The fixed time, in which a block moves no element,
//! is not idle: another block of the multiprocessor has the memory then. But the more of it, the less there is to hide it.

use super::{GPU_CHUNK_LEN, Plan};
use crate::norm::NORM_CHUNK_LEN;
use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::fmt::Write as _;
use std::path::Path;
use std::{env, fs};

#[path = "../../tests/shared/lists.rs"]
mod lists;

const RESOURCES: &str = include_str!("../../cuda/ptx/resources.txt");
const PREDICTIONS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/benches/record/PREDICTIONS.md");

/// Of a block, in picoseconds: its start, and two loads of tables, one after the other, before its first element. A guess.
const FIXED_PS: u64 = 1_200_000;

#[derive(Clone, Copy)]
struct Gpu {
    name: &'static str,
    multiprocessors: u32,
    architecture: &'static str,
    /// 10^9 a second.
    bytes: u64,
}

const GPUS: [Gpu; 4] = [
    Gpu { name: "H200", multiprocessors: 132, architecture: "sm_90", bytes: 4800 },
    Gpu { name: "A100 80GB", multiprocessors: 108, architecture: "sm_80", bytes: 2039 },
    Gpu { name: "RTX A6000", multiprocessors: 84, architecture: "sm_86", bytes: 768 },
    Gpu { name: "RTX 4060", multiprocessors: 24, architecture: "sm_89", bytes: 272 },
];

impl Gpu {
    /// Blocks of a kernel that it holds at once.
    fn places(self, kernel: &str) -> u64 {
        let row = format!("{kernel} {} ", self.architecture);
        let row = RESOURCES.lines().find(|line| line.starts_with(&row)).expect("a row of the kernel");
        let blocks: u64 = row.split_whitespace().nth(8).expect("a column of blocks").parse().expect("a number");
        blocks * u64::from(self.multiprocessors)
    }
}

/// A list as the benches have it.
struct List {
    name: &'static str,
    lens: Vec<u64>,
    kind: Kind,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Large,
    /// Of tensors shorter than any chunk.
    Short,
    Small,
}

fn all_lists() -> [List; 6] {
    let list = |name, kind, lens: Vec<usize>| List { name, kind, lens: lens.iter().map(|&len| len as u64).collect() };
    [
        list("one of 256M", Kind::Large, vec![256 << 20]),
        list("GPT-2 124M", Kind::Large, lists::gpt2()),
        list("ResNet-50", Kind::Large, lists::resnet50()),
        list("Llama-3-8B", Kind::Large, lists::llama3_8b()),
        list("10,000 of 1,000", Kind::Short, vec![1_000; 10_000]),
        list("one of 1M", Kind::Small, vec![1_000_000]),
    ]
}

/// A kernel, the bytes it moves for an element, and how its chunks are cut.
struct Pass {
    kernel: &'static str,
    bytes: u64,
    chunk_len: u32,
}

const F32: Pass = Pass { kernel: "adamw_f32", bytes: 28, chunk_len: GPU_CHUNK_LEN };
const MIXED: Pass = Pass { kernel: "adamw_mixed", bytes: 28, chunk_len: GPU_CHUNK_LEN };
// In chunks of the sums, whose length is part of the contract: `src/norm.rs`.
const FULL: Pass = Pass { kernel: "adamw_full", bytes: 28, chunk_len: NORM_CHUNK_LEN };
const NORM: Pass = Pass { kernel: "grad_norm", bytes: 4, chunk_len: NORM_CHUNK_LEN };

/// What a grid is like.
#[derive(Debug, PartialEq)]
struct Filled {
    blocks: u64,
    /// Of the places' time until the last block ends, in hundredths of a percent.
    idle: u64,
    /// Of the blocks' time.
    fixed: u64,
}

impl Pass {
    fn fill(&self, list: &List, gpu: Gpu) -> Filled {
        let places = gpu.places(self.kernel);
        // A byte takes a nanosecond over the bandwidth, and there is one such byte for every place.
        let time = |len: u32| FIXED_PS + (u64::from(len) * self.bytes + 72) * 1000 * places / gpu.bytes;
        let mut free_at: BinaryHeap<_> = (0..places).map(|_| Reverse(0_u64)).collect();
        let (mut blocks, mut busy, mut end) = (0, 0, 0);
        for chunk in Plan::new(list.lens.clone(), self.chunk_len).chunks() {
            let mut place = free_at.peek_mut().expect("a place");
            place.0 += time(chunk.len);
            (blocks, busy, end) = (blocks + 1, busy + time(chunk.len), end.max(place.0));
        }
        let share = |part: u64, of: u64| 10_000 * part / of;
        Filled { blocks, idle: share(places * end - busy, places * end), fixed: share(blocks * FIXED_PS, busy) }
    }
}

#[test]
fn a_gpu_is_busy_until_the_last_block() {
    for gpu in GPUS {
        for list in all_lists() {
            for pass in [F32, MIXED] {
                let (about, filled) = ((gpu.name, list.name, pass.kernel), pass.fill(&list, gpu));
                let most_idle = match list.kind {
                    Kind::Large => 300,
                    Kind::Short => 1500,
                    Kind::Small => 4000,
                };
                assert!(filled.idle < most_idle, "{about:?}: {filled:?}");
                assert!(filled.blocks >= gpu.places(pass.kernel), "{about:?}: a place without a block: {filled:?}");
            }
        }
    }
}

#[test]
fn places_are_taken_in_the_order_in_which_they_get_free() {
    let three = Gpu { multiprocessors: 1, ..GPUS[0] };
    let times = |lens: &[u64]| {
        let list = List { name: "", kind: Kind::Small, lens: lens.into() };
        let pass = Pass { kernel: "adamw_full", bytes: 0, chunk_len: 8 };
        pass.fill(&list, three)
    };
    // Without bytes to speak of, three places and chunks of one duration: 4 of 6, then 6 of 6.
    assert_eq!((times(&[8; 4]).idle, times(&[8; 4]).blocks), (3333, 4));
    assert_eq!(times(&[24, 24]).idle, 0);
    assert_eq!(times(&[8]).idle, 6666);
    assert!(times(&[8]).fixed > 9000);
}

/// `FUSED_ADAMW_WRITE_PREDICTIONS=1` writes it.
#[test]
fn the_predicted_waves_are_current() {
    if !Path::new(PREDICTIONS).exists() {
        return; // in the package, which leaves out `benches/`
    }
    let page = fs::read_to_string(PREDICTIONS).expect(PREDICTIONS);
    let (begin, end) = ("<!-- waves: src/plan/waves.rs -->\n", "<!-- end -->");
    let (head, rest) = page.split_once(begin).expect("the mark before the waves");
    let (was, tail) = rest.split_once(end).expect("the mark behind the waves");
    let now = table();
    if env::var_os("FUSED_ADAMW_WRITE_PREDICTIONS").is_some() {
        return fs::write(PREDICTIONS, format!("{head}{begin}{now}{end}{tail}")).expect(PREDICTIONS);
    }
    assert!(
        was == now,
        "benches/record/PREDICTIONS.md is stale; with FUSED_ADAMW_WRITE_PREDICTIONS=1 it becomes:\n{now}"
    );
}

fn table() -> String {
    let mut page = "| list | GPU | blocks | f32: idle | fixed | mixed: idle | fixed | full: idle | norm: idle |\n\
                    | --- | --- | --- | --- | --- | --- | --- | --- | --- |\n"
        .to_owned();
    for list in all_lists() {
        for gpu in GPUS {
            let [f32, mixed, full, norm] = [F32, MIXED, FULL, NORM].map(|pass| pass.fill(&list, gpu));
            let percents = [f32.idle, f32.fixed, mixed.idle, mixed.fixed, full.idle, norm.idle];
            let cells = percents.map(|share| format!("{}.{}%", share / 100, share / 10 % 10)).join(" | ");
            let about = format!("{} | {} ({})", list.name, gpu.name, gpu.multiprocessors);
            writeln!(page, "| {about} | {} | {cells} |", f32.blocks).expect("a string takes it");
        }
    }
    page
}
