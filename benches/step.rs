//! One step on the CPU beside the limit: a read-modify-write of the same 28 bytes an element (read p, g, m, v; write
//! p, m, v) by the same threads with next to no arithmetic.
//!
//! `cargo bench --bench step` ends with a table of shares of the limit: medians over rounds in which both are timed
//! one after the other, because the speed of a shared machine drifts. `-- --test` runs everything once.

#![expect(clippy::cast_precision_loss, reason = "values of indices, and bytes far below 2^53")]

use criterion::{Criterion, Throughput};
use fused_adamw::{AdamW, AdamWConfig, Device};
use rayon::prelude::*;
use rayon::{ThreadPool, ThreadPoolBuilder};
use std::time::Instant;

#[expect(dead_code, reason = "the larger lists are for GPUs")]
mod lists;

/// f32: 4 reads and 3 writes.
const BYTES_AN_ELEMENT: usize = 28;
const THREADS: [usize; 2] = [1, 2];
const ROUNDS: usize = 21;

/// Name and tensor lengths.
type List = (&'static str, Vec<usize>);

fn lists() -> Vec<List> {
    vec![("one of 16M", vec![16 << 20]), ("GPT-2 124M", lists::gpt2()), ("10,000 of 1,000", vec![1_000; 10_000])]
}

fn filled(lens: &[usize], scale: f32) -> Vec<Vec<f32>> {
    let value = |i: usize| scale * ((i % 1013) as f32 / 1013.0 - 0.4);
    lens.iter().map(|&len| (0..len).map(value).collect()).collect()
}

/// A list in memory, with its optimizer and with moments of the limit's own.
struct Case {
    opt: AdamW,
    params: Vec<Vec<f32>>,
    grads: Vec<Vec<f32>>,
    m: Vec<Vec<f32>>,
    v: Vec<Vec<f32>>,
}

impl Case {
    fn new(lens: &[usize]) -> anyhow::Result<Self> {
        Ok(Self {
            opt: AdamW::new(&Device::cpu(), AdamWConfig::default(), lens)?,
            params: filled(lens, 1.0),
            grads: filled(lens, 1e-2),
            m: filled(lens, 1e-3),
            v: filled(lens, 1e-4),
        })
    }

    fn step(&mut self) {
        self.opt.step(self.params.iter_mut().zip(&self.grads)).expect("the list is the registered one");
    }

    /// The chunks that a step has, for the limit.
    fn work(&mut self) -> Vec<Work<'_>> {
        const CHUNK: usize = 16 * 1024;
        let tensors = self.params.iter_mut().zip(&self.grads).zip(self.m.iter_mut().zip(&mut self.v));
        let chunks = tensors.flat_map(|((p, g), (m, v))| {
            p.chunks_mut(CHUNK).zip(g.chunks(CHUNK)).zip(m.chunks_mut(CHUNK).zip(v.chunks_mut(CHUNK)))
        });
        chunks.map(|((p, g), (m, v))| (p, g, m, v)).collect()
    }
}

/// p, g, m, v of a chunk.
type Work<'a> = (&'a mut [f32], &'a [f32], &'a mut [f32], &'a mut [f32]);

/// The same memory on the same threads; only the arithmetic is missing.
fn read_modify_write(work: &mut [Work<'_>]) {
    work.par_iter_mut().for_each(|(p, g, m, v)| touch(p, g, m, v));
}

fn touch(p: &mut [f32], g: &[f32], m: &mut [f32], v: &mut [f32]) {
    let n = p.len();
    let (g, m, v) = (&g[..n], &mut m[..n], &mut v[..n]);
    for i in 0..n {
        p[i] += g[i];
        m[i] += g[i];
        v[i] += g[i];
    }
}

fn pool(threads: usize) -> ThreadPool {
    ThreadPoolBuilder::new().num_threads(threads).build().expect("threads")
}

fn criterion_benches(criterion: &mut Criterion) -> anyhow::Result<()> {
    for (name, lens) in lists() {
        let bytes = BYTES_AN_ELEMENT * lens.iter().sum::<usize>();
        let mut case = Case::new(&lens)?;
        for threads in THREADS {
            let mut group = criterion.benchmark_group(format!("{name}, {threads} thread(s)"));
            group.sample_size(10).throughput(Throughput::Bytes(bytes as u64));
            let pool = pool(threads);
            let mut work = case.work();
            group.bench_function("limit", |b| b.iter(|| pool.install(|| read_modify_write(&mut work))));
            group.bench_function("step", |b| b.iter(|| pool.install(|| case.step())));
            group.finish();
        }
    }
    Ok(())
}

fn seconds(work: impl FnOnce()) -> f64 {
    let start = Instant::now();
    work();
    start.elapsed().as_secs_f64()
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

fn share(case: &mut Case) -> (f64, f64) {
    let round = |_| {
        let mut work = case.work();
        let limit = seconds(|| read_modify_write(&mut work));
        (limit, seconds(|| case.step()))
    };
    let rounds: Vec<_> = (0..ROUNDS).map(round).collect();
    let limit = median(rounds.iter().map(|(limit, _)| *limit).collect());
    (limit, median(rounds.iter().map(|(limit, step)| limit / step).collect()))
}

fn print_shares() -> anyhow::Result<()> {
    println!("\n{}; f32, {BYTES_AN_ELEMENT} bytes an element, median of {ROUNDS} rounds", Device::cpu());
    println!("{:<16} {:>8} {:>12} {:>10}", "list", "threads", "limit GB/s", "share");
    for (name, lens) in lists() {
        let bytes = (BYTES_AN_ELEMENT * lens.iter().sum::<usize>()) as f64;
        let mut case = Case::new(&lens)?;
        for threads in THREADS {
            let (limit, share) = pool(threads).install(|| share(&mut case));
            println!("{name:<16} {threads:>8} {:>12.1} {:>9.0}%", bytes / limit / 1e9, 100.0 * share);
        }
    }
    Ok(())
}

fn main() -> anyhow::Result<()> {
    let mut criterion = Criterion::default().configure_from_args();
    criterion_benches(&mut criterion)?;
    criterion.final_summary();
    let as_test = std::env::args().any(|arg| arg == "--test");
    if as_test { Ok(()) } else { print_shares() }
}
