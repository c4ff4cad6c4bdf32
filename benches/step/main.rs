//! One step on the CPU beside the limit: a read-modify-write of the same bytes by the same threads with next to no
//! arithmetic, by whichever of two walks is the faster (`limit.rs`).
//!
//! `cargo bench -p fused-adamw-benches --bench step` takes, after `--`:
//!
//! | arguments | what it does |
//! | --- | --- |
//! | none | criterion's output, and at the end a table of shares of the limit |
//! | `FILTER` | the same for what criterion finds by `FILTER` |
//! | `--shares [WORD...]` | the table alone, of the rows that have all words in their names |
//! | `--test` | everything once, on small lists |
//!
//! | file | what it does |
//! | --- | --- |
//! | `tests/shared/lists.rs`, `cases.rs` | what is stepped, and how many bytes that has to move |
//! | `tensors.rs` | it in memory, with its optimizer |
//! | `limit.rs` | the limit's two walks |
//! | `table.rs` | rounds, medians, the table, and what a call costs |

use criterion::{Criterion, Throughput};
use std::time::Duration;

mod cases;
mod limit;
#[path = "../../tests/shared/lists.rs"]
mod lists;
mod table;
mod tensors;

use cases::Case;

/// Which of the cases criterion's filter chose: those that it ran.
fn with_criterion(cases: Vec<Case>) -> anyhow::Result<Vec<Case>> {
    let mut criterion = Criterion::default()
        .sample_size(10)
        .warm_up_time(Duration::from_millis(200))
        .measurement_time(Duration::from_secs(1))
        .configure_from_args();
    let mut ran = Vec::new();
    for case in cases {
        let (list, rest) = case.name();
        let mut group = criterion.benchmark_group(list);
        let mut tensors = None;
        group.throughput(Throughput::Bytes(case.bytes()));
        let pool = tensors::pool(case.threads)?;
        group.bench_function(rest, |bencher| {
            let tensors = tensors.get_or_insert_with(|| case.tensors().expect("memory for its tensors"));
            pool.install(|| bencher.iter(|| tensors.step()));
        });
        group.finish();
        if tensors.is_some() {
            ran.push(case);
        }
    }
    criterion.final_summary();
    Ok(ran)
}

fn main() -> anyhow::Result<()> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let has = |flag: &str| args.iter().any(|arg| arg == flag);
    let as_test = has("--test");
    let cases = cases::all(as_test);
    let chosen = if has("--shares") {
        let words: Vec<_> = args.iter().filter(|arg| !arg.starts_with("--")).collect();
        let has_all = |case: &Case| words.iter().all(|&word| case.to_string().contains(word));
        cases.into_iter().filter(has_all).collect()
    } else {
        with_criterion(cases)?
    };
    table::print(&chosen, as_test)
}
