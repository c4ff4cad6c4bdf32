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
    fn of(tensors: &mut dyn Timed, elements: usize, once: bool) -> Self {
        let repeats = if once { 1 } else { repeats(tensors) };
        let count = match elements {
            _ if once => 1,
            16_000_000.. => 21,
            _ => 51,
        };
        let mut rounds = Self::default();
        for _ in 0..count {
            let per_repeat = |seconds: f64| seconds / repeats as f64;
            rounds.plain.push(per_repeat(tensors.limits(Walk::Plain, repeats)));
            rounds.step.push(per_repeat(tensors.steps(repeats)));
            rounds.two_places.push(per_repeat(tensors.limits(Walk::TwoPlaces, repeats)));
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
        let share = |part| 100.0 * quantile(limit.iter().zip(&self.step).map(|(limit, step)| limit / step), part);
        let walk = if walk == Walk::Plain { "plain" } else { "two places" };
        let (list, rest) = case.name();
        println!(
            "{list:<28} {rest:<57} {:>2} {:>6.1} {walk:<10} {:>6.1} {:>4.0}% {:>4.0}..{:.0}%",
            case.bytes_an_element(),
            bytes / median(limit) / 1e9,
            bytes / median(&self.step) / 1e9,
            share(0.5),
            share(0.1),
            share(0.9),
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
    println!("{:<28} {:<56} B/el  limit GB/s      step GB/s  share", "list", "");
    for case in cases {
        let mut tensors = case.tensors()?;
        let rounds = pool(case.threads)?.install(|| Rounds::of(&mut *tensors, case.elements(), once));
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
