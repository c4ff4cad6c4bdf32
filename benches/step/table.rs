//! Shares of the limit. The speed of a shared machine drifts, so that a round times the limit's two walks and the step
//! one after the other, and the median is of the rounds' ratios.

#![expect(clippy::cast_precision_loss, reason = "bytes far below 2^53")]

use crate::cases::Case;
use crate::limit::Walk;
use crate::tensors::{Timed, pool};
use fused_adamw::{AdamW, AdamWConfig, Device};
use std::time::Instant;

/// Each of a round's times is of so many repeats that the clock, and what the others leave in the caches, do not count.
const SECONDS: f64 = 5e-3;

/// Of one list, by round.
#[derive(Default)]
struct Rounds {
    plain: Vec<f64>,
    two_places: Vec<f64>,
    roots: Vec<f64>,
    step: Vec<f64>,
}

fn quantile(values: impl Iterator<Item = f64>, part: f64) -> f64 {
    let mut values: Vec<f64> = values.collect();
    values.sort_by(f64::total_cmp);
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "an index")]
    let index = (values.len() as f64 * part) as usize;
    values[index]
}

fn median(values: &[f64]) -> f64 {
    quantile(values.iter().copied(), 0.5)
}

impl Rounds {
    fn of(tensors: &mut dyn Timed, case: &Case, once: bool) -> Self {
        let (repeats, repeats_of_roots) = if once { (1, 1) } else { (repeats(tensors), 1_000) };
        let count = match case.elements() {
            _ if once => 1,
            16_000_000.. => 21,
            _ => 51,
        };
        let elements_a_thread = case.elements() as f64 / case.threads_used() as f64;
        let mut rounds = Self::default();
        for _ in 0..count {
            let per_repeat = |seconds: f64| seconds / repeats as f64;
            rounds.plain.push(per_repeat(tensors.limits(Walk::Plain, repeats)));
            rounds.step.push(per_repeat(tensors.steps(repeats)));
            rounds.two_places.push(per_repeat(tensors.limits(Walk::TwoPlaces, repeats)));
            rounds.roots.push(elements_a_thread * tensors.roots(repeats_of_roots));
        }
        rounds
    }

    /// The limit is the faster walk.
    fn limit(&self) -> (&[f64], Walk) {
        let plain_is_faster = median(&self.plain) <= median(&self.two_places);
        if plain_is_faster { (&self.plain, Walk::Plain) } else { (&self.two_places, Walk::TwoPlaces) }
    }

    fn print(&self, case: &Case) {
        let ((limit, walk), bytes) = (self.limit(), case.bytes() as f64);
        let share = |of: &[f64], part| 100.0 * quantile(of.iter().zip(&self.step).map(|(of, step)| of / step), part);
        let slower: Vec<f64> = limit.iter().zip(&self.roots).map(|(limit, roots)| limit.max(*roots)).collect();
        let walk = if walk == Walk::Plain { "plain" } else { "two places" };
        let (list, rest) = case.name();
        println!(
            "{list:<28} {rest:<57} {:>2} {:>6.1} {walk:<10} {:>6.1} {:>6.1} {:>4.0}% {:>4.0}..{:<4} {:>4.0}%",
            case.bytes_an_element(),
            bytes / median(limit) / 1e9,
            bytes / median(&self.roots) / 1e9,
            bytes / median(&self.step) / 1e9,
            share(limit, 0.5),
            share(limit, 0.1),
            format!("{:.0}%", share(limit, 0.9)),
            share(&slower, 0.5),
        );
    }
}

#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a small count")]
fn repeats(tensors: &mut dyn Timed) -> usize {
    let first = tensors.limits(Walk::Plain, 1).min(tensors.limits(Walk::Plain, 1));
    (SECONDS / first).ceil().clamp(1.0, 1e5) as usize
}

/// The table; `once`: only to see that it works.
pub(crate) fn print(cases: &[Case], once: bool) -> anyhow::Result<()> {
    let rounds = if once { "once, which says nothing" } else { "median of 21 rounds or more, 10% and 90% of them" };
    println!("\n{}: shares of the limit, {rounds}", Device::cpu());
    println!(
        "limit: of the memory, by which walk; roots: a division and a root an element in the cache; step: in GB/s"
    );
    println!("share: of the memory's limit, and its spread; of both: of the slower of limit and roots");
    println!("{:<28} {:<56} B/el  limit             roots   step share           of both", "list", "");
    for case in cases {
        let mut tensors = case.tensors()?;
        let rounds = pool(case.threads)?.install(|| Rounds::of(&mut *tensors, case, once));
        rounds.print(case);
    }
    if !cases.is_empty() {
        print_calls(once)?;
    }
    Ok(())
}

/// What a call costs: where elements are few, and where tensors are many.
fn print_calls(once: bool) -> anyhow::Result<()> {
    println!("\nmicroseconds a call");
    for (tensors, len) in [(1, 1), (1, 1 << 10), (1_000, 1), (10_000, 1), (10_000, 1_000)] {
        let calls = if once { 1 } else { 200_000 / tensors };
        let us = pool(1)?.install(|| call(tensors, len, calls))?;
        println!("{tensors:>6} of {len:<5} {us:>10.2}, or {:>8.1} ns a tensor", 1e3 * us / tensors as f64);
    }
    Ok(())
}

fn call(tensors: usize, len: usize, calls: usize) -> anyhow::Result<f64> {
    let mut opt = AdamW::new(&Device::cpu(), AdamWConfig::default(), vec![len; tensors])?;
    let (mut params, grads) = (vec![vec![1.0_f32; len]; tensors], vec![vec![0.1_f32; len]; tensors]);
    let mut times = Vec::new();
    for _ in 0..calls {
        let start = Instant::now();
        opt.step(params.iter_mut().zip(&grads))?;
        times.push(start.elapsed().as_secs_f64());
    }
    Ok(1e6 * median(&times))
}
