//! What a step costs the host: the time of the call, nothing waited for. On a machine without a GPU the emulated driver
//! stands in (`EMULATED_IDLE=1`: it counts launches and runs none), and what is left is this crate's and cudarc's share.

use std::time::{Duration, Instant};

use anyhow::Result;
use fused_adamw::cudarc::driver::{CudaContext, CudaSlice, CudaStream};
use fused_adamw::{AdamW, AdamWConfig, Device, Error, StepOptions};

const TENSORS: [usize; 4] = [1, 100, 1_000, 10_000];
const ROUNDS: usize = 21;
/// Steps that are timed together: fewer than a GPU's queue holds.
const TOGETHER: u32 = 20;

/// How cudarc keeps streams apart.
#[derive(Clone, Copy)]
enum Streams {
    /// One stream: nobody has to wait.
    One,
    /// Several, ordered by the caller.
    Untracked,
    /// Several, ordered by events.
    Tracked,
}

pub(crate) fn print(small: bool) -> Result<()> {
    println!("{:<28} {:>8} {:>12} {:>14} {:>15}", "", "tensors", "step us", "ns a tensor", "prepared us");
    let ways = [("one stream", Streams::One), ("events off", Streams::Untracked), ("events on", Streams::Tracked)];
    for (name, streams) in ways {
        for &tensors in if small { &TENSORS[..2] } else { &TENSORS } {
            let Timed { step, prepared } = Case::new(streams, tensors)?.timed(if small { 3 } else { ROUNDS })?;
            let ns = 1e3 * step / f64::from(u32::try_from(tensors)?);
            println!("{name:<28} {tensors:>8} {step:>12.2} {ns:>14.1} {prepared:>15.2}");
        }
    }
    Ok(())
}

struct Case {
    opt: AdamW,
    params: Vec<CudaSlice<f32>>,
    grads: Vec<CudaSlice<f32>>,
    /// Last: it is of the context.
    _others: Vec<std::sync::Arc<CudaStream>>,
}

/// Medians, in microseconds.
struct Timed {
    step: f64,
    prepared: f64,
}

impl Case {
    fn new(streams: Streams, tensors: usize) -> Result<Self> {
        let context = CudaContext::new(0)?;
        if matches!(streams, Streams::Untracked) {
            // SAFETY: everything is used on one stream.
            unsafe { context.disable_event_tracking() };
        }
        let stream = context.default_stream();
        let others = if matches!(streams, Streams::One) { vec![] } else { vec![context.new_stream()?] };
        let zeros = || (0..tensors).map(|_| stream.alloc_zeros::<f32>(8)).collect::<Result<Vec<_>, _>>();
        let opt = AdamW::new(&Device::cuda(&stream)?, AdamWConfig::default(), vec![8; tensors])?;
        Ok(Self { opt, params: zeros()?, grads: zeros()?, _others: others })
    }

    fn timed(&mut self, rounds: usize) -> Result<Timed> {
        let Self { opt, params, grads, .. } = self;
        let step = median(rounds, opt, |opt| opt.step(params.iter_mut().zip(&*grads)))?;
        // SAFETY: the tensors outlive the steps, and are used on this stream alone.
        unsafe { opt.prepare(params.iter_mut().zip(&*grads))? };
        let prepared = median(rounds, opt, |opt| opt.step_prepared(StepOptions::default()))?;
        Ok(Timed { step, prepared })
    }
}

fn median(rounds: usize, opt: &mut AdamW, mut step: impl FnMut(&mut AdamW) -> Result<(), Error>) -> Result<f64> {
    let mut round = |_| -> Result<Duration> {
        opt.device().stream().expect("a GPU has a stream").synchronize()?;
        let start = Instant::now();
        (0..TOGETHER).try_for_each(|_| step(opt))?;
        Ok(start.elapsed() / TOGETHER)
    };
    round(0)?;
    let mut times = (0..rounds).map(round).collect::<Result<Vec<_>>>()?;
    times.sort();
    Ok(1e6 * times[rounds / 2].as_secs_f64())
}
