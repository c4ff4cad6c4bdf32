//! One contender of the table of peers (scripts/peers): holds a list of tensors and steps it when asked. A line in, a line
//! out: `ok NUMBER...`, or `failed WHY`, after which the list is gone.
//!
//! ```text
//! peers lists [--quick]        a line a list: NAME, tab, LENGTH,LENGTH,...
//! peers NAME                   limit, fused-adamw, candle or burn
//!   load DTYPE LENGTH,...      ok VALUE...         some parameters after two steps (values.rs); none of the limit
//!   go NANOSECONDS             ok NANOSECONDS...   a step, as a mean over about so long; the limit: each of its walks
//!   drop                       ok                  the list's memory is free
//! ```
//!
//! benches/peers/torch_peers.py is the same for peers in Python.

#[cfg(feature = "burn")]
mod burn_adamw;
#[cfg(feature = "candle")]
mod candle;
mod limit;
mod ours;
mod values;

#[path = "../../../tests/shared/lists.rs"]
#[expect(dead_code, reason = "the other benches have more lists")]
mod lists;

use anyhow::{Context, Result, bail};
use half::bf16;
use std::io::{BufRead, Write, stdin, stdout};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::{Duration, Instant};
use values::{GRAD_SCALE, sampled};

/// The same in torch_peers.py.
const LR: f64 = 1e-3;
const BETAS: (f64, f64) = (0.9, 0.999);
const EPS: f64 = 1e-8;
const WEIGHT_DECAY: f64 = 1e-2;

/// An optimizer with its list.
trait Peer {
    fn set_grads(&mut self, scale: f32) -> Result<()>;

    fn step(&mut self) -> Result<()>;

    /// A parameter's values.
    fn param(&self, tensor: usize) -> Result<Vec<f32>>;

    /// The time that `steps` take, for each way that there is to take them.
    fn time(&mut self, steps: u32) -> Result<Vec<Duration>> {
        let start = Instant::now();
        for _ in 0..steps {
            self.step()?;
        }
        Ok(vec![start.elapsed()])
    }
}

fn load(name: &str, dtype: &str, lens: &[usize]) -> Result<Box<dyn Peer>> {
    Ok(match (name, dtype) {
        ("limit", "f32") => Box::new(limit::Limit::new(lens, |x| x)),
        ("limit", "bf16") => Box::new(limit::Limit::new(lens, bf16::from_f32)),
        ("fused-adamw", "f32") => Box::new(ours::Ours::new(lens, |x| x)?),
        ("fused-adamw", "bf16") => Box::new(ours::Ours::new(lens, bf16::from_f32)?),
        #[cfg(feature = "candle")]
        ("candle", _) => Box::new(candle::Candle::new(lens, dtype)?),
        #[cfg(feature = "burn")]
        ("burn", _) => Box::new(burn_adamw::Burn::new(dtype, lens)?),
        _ => bail!("{name} is not built in, or has no {dtype}"),
    })
}

/// Some parameters after two steps with different gradients: with equal ones betas would not show.
fn two_steps(peer: &mut dyn Peer, lens: &[usize]) -> Result<Vec<f32>> {
    peer.step()?;
    peer.set_grads(-0.5 * GRAD_SCALE)?;
    peer.step()?;
    sampled(lens, |tensor| peer.param(tensor))
}

/// Nanoseconds of a step. The first is there to say how many fit into `at_least`, and to bring the list into the cache.
fn turn(peer: &mut dyn Peer, at_least: Duration) -> Result<Vec<f64>> {
    let first = peer.time(1)?;
    let longest = first.iter().max().context("a contender without times")?;
    let steps = at_least.as_nanos() / longest.as_nanos().max(1);
    let steps = u32::try_from(steps)?;
    let times = if steps == 0 { first } else { peer.time(steps)? };
    Ok(times.iter().map(|time| time.as_nanos() as f64 / f64::from(steps.max(1))).collect())
}

fn answer(name: &str, line: &str, loaded: &mut Option<Box<dyn Peer>>) -> Result<String> {
    let join = |values: &[String]| format!("ok {}", values.join(" "));
    Ok(match line.split(' ').collect::<Vec<_>>()[..] {
        ["load", dtype, lens] => {
            let lens = lens.split(',').map(str::parse).collect::<Result<Vec<_>, _>>()?;
            *loaded = None; // its memory first
            let values = two_steps(loaded.insert(load(name, dtype, &lens)?).as_mut(), &lens)?;
            join(&values.iter().map(|x| format!("{x:e}")).collect::<Vec<_>>())
        }
        ["go", nanoseconds] => {
            let peer = loaded.as_mut().context("nothing is loaded")?;
            let times = turn(peer.as_mut(), Duration::from_nanos(nanoseconds.parse()?))?;
            join(&times.iter().map(|x| format!("{x:.1}")).collect::<Vec<_>>())
        }
        ["drop"] => {
            *loaded = None;
            "ok".into()
        }
        _ => bail!("not understood: {line:.60}"),
    })
}

fn serve(name: &str) -> Result<()> {
    let mut loaded = None;
    for line in stdin().lock().lines() {
        let line = line?;
        // A peer that panics is a row that says so; the message is on standard error, too.
        let result = catch_unwind(AssertUnwindSafe(|| answer(name, &line, &mut loaded)));
        let result = result.unwrap_or_else(|panic| bail!("panic: {}", panic_message(&*panic)));
        let reply = result.unwrap_or_else(|error| {
            loaded = None;
            format!("failed {}", format!("{error:#}").replace('\n', " "))
        });
        writeln!(stdout(), "{reply}")?;
    }
    Ok(())
}

fn panic_message(panic: &(dyn std::any::Any + Send)) -> &str {
    let text = panic.downcast_ref::<String>().map(String::as_str);
    text.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("without a message")
}

fn print_lists(quick: bool) {
    let full = || {
        vec![
            ("1K", vec![1 << 10]),
            ("64K", vec![1 << 16]),
            ("1M", vec![1 << 20]),
            ("16M", vec![1 << 24]),
            ("GPT-2 124M", lists::gpt2()),
            ("10,000 x 1,000", vec![1000; 10_000]),
        ]
    };
    let small =
        || vec![("1K", vec![1 << 10]), ("mixed", vec![1, 100_000, 7, 33_000]), ("100 x 1,000", vec![1000; 100])];
    for (name, lens) in if quick { small() } else { full() } {
        let lens: Vec<_> = lens.iter().map(usize::to_string).collect();
        println!("{name}\t{}", lens.join(","));
    }
}

fn main() -> Result<()> {
    let args: Vec<_> = std::env::args().skip(1).collect();
    match args.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        ["lists"] => print_lists(false),
        ["lists", "--quick"] => print_lists(true),
        [name] => serve(name)?,
        _ => bail!("usage: peers NAME, or peers lists [--quick]"),
    }
    Ok(())
}
