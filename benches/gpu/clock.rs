//! How a time is taken: between two events of the stream, with the L2 cache flushed and the host ahead of the GPU.
//!
//! Before each repeat the stream is given fills of a buffer larger than any L2: as many as last twice as long as the host
//! takes to enqueue the work (up to a limit). So the events enclose the GPU's time alone, as in a training run, where
//! the step is enqueued behind a backward pass. The host's time is that of the call; nothing is waited for in it.
//! `benches/peers/torch_adamw.py` does the same.

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use fused_adamw::cudarc::driver::sys::{CUevent, CUevent_flags, CUresult};
use fused_adamw::cudarc::driver::{CudaEvent, CudaSlice, CudaStream};
use libloading::{Library, Symbol};

use crate::rows::Quantiles;

/// At least twice the L2 of any GPU so far.
const FLUSH_BYTES: usize = 256 << 20;
const MOST_FLUSHES: u32 = 256;

pub(crate) struct Clock {
    stream: Arc<CudaStream>,
    begin: CudaEvent,
    end: CudaEvent,
    elapsed: Symbol<'static, ElapsedTime>,
    flush: CudaSlice<u8>,
    warm_up: Duration,
    /// Repeats of it, at least.
    warm_ups: u32,
}

/// One of each for every repeat.
pub(crate) struct Times {
    pub(crate) ms: Quantiles,
    pub(crate) host_us: Quantiles,
}

impl Clock {
    pub(crate) fn new(stream: &Arc<CudaStream>, small: bool) -> Result<Self> {
        let event = || stream.context().new_event(Some(CUevent_flags::CU_EVENT_DEFAULT));
        Ok(Self {
            stream: stream.clone(),
            begin: event()?,
            end: event()?,
            elapsed: elapsed_time()?,
            flush: stream.alloc_zeros(if small { 1 << 10 } else { FLUSH_BYTES })?,
            // The clocks of a GPU that was idle take a while to rise.
            warm_up: Duration::from_millis(if small { 0 } else { 300 }),
            warm_ups: 3,
        })
    }

    /// For what is timed many times over: the clocks of the GPU are nearly up.
    pub(crate) fn brief(stream: &Arc<CudaStream>, small: bool) -> Result<Self> {
        Ok(Self {
            warm_up: Duration::from_millis(if small { 0 } else { 50 }),
            warm_ups: 1,
            ..Self::new(stream, small)?
        })
    }

    /// Times `work`, after a warm-up.
    pub(crate) fn measure(&mut self, repeats: usize, mut work: impl FnMut() -> Result<()>) -> Result<Times> {
        let flushes = self.warm_up(&mut work)?;
        let times: Vec<_> = (0..repeats).map(|_| self.once(flushes, &mut work)).collect::<Result<_>>()?;
        let (ms, host_us) = times.into_iter().map(|(ms, host_ms)| (ms, 1e3 * host_ms)).unzip();
        Ok(Times { ms: Quantiles::of(ms), host_us: Quantiles::of(host_us) })
    }

    /// How many flushes last twice as long as the host takes, whose time varies.
    fn warm_up(&mut self, work: &mut impl FnMut() -> Result<()>) -> Result<u32> {
        let start = Instant::now();
        let mut host_ms = 0.0;
        for repeat in 0.. {
            if repeat >= self.warm_ups && start.elapsed() >= self.warm_up {
                break;
            }
            host_ms = self.once(1, work)?.1;
        }
        let flush_ms = self.flush_ms()?;
        Ok((1..MOST_FLUSHES).find(|&n| f64::from(n) * flush_ms > 2.0 * host_ms).unwrap_or(MOST_FLUSHES))
    }

    /// Milliseconds of the stream and of the host.
    fn once(&mut self, flushes: u32, work: &mut impl FnMut() -> Result<()>) -> Result<(f64, f64)> {
        for _ in 0..flushes {
            self.stream.memset_zeros(&mut self.flush)?;
        }
        self.begin.record(&self.stream)?;
        let start = Instant::now();
        work()?;
        let host = start.elapsed();
        self.end.record(&self.stream)?;
        Ok((self.read()?, 1e3 * host.as_secs_f64()))
    }

    fn flush_ms(&mut self) -> Result<f64> {
        self.begin.record(&self.stream)?;
        self.stream.memset_zeros(&mut self.flush)?;
        self.end.record(&self.stream)?;
        self.read()
    }

    /// The time between the events, when all is done.
    fn read(&self) -> Result<f64> {
        self.stream.synchronize()?;
        let mut ms = 0.0;
        // SAFETY: two recorded events of one context, which is this thread's, and a number of ours.
        let result = unsafe { (self.elapsed)(&raw mut ms, self.begin.cu_event(), self.end.cu_event()) };
        result.result()?;
        Ok(ms.into())
    }
}

type ElapsedTime = unsafe extern "C" fn(*mut f32, CUevent, CUevent) -> CUresult;

/// Not through cudarc, which asks for the second version by name and panics with a driver before 12.8.
fn elapsed_time() -> Result<Symbol<'static, ElapsedTime>> {
    // SAFETY: the driver's library, which cudarc has loaded and initialised already.
    let load = |name: &&str| unsafe { Library::new(*name) }.ok();
    let library = ["libcuda.so", "libcuda.so.1"].iter().find_map(load).context("the driver's library is gone")?;
    let library = Box::leak(Box::new(library));
    // SAFETY: the type is that of cuda.h, of both versions.
    let symbol = |name: &&str| unsafe { library.get(*name) }.ok();
    ["cuEventElapsedTime_v2", "cuEventElapsedTime"].iter().find_map(symbol).context("the driver has no event times")
}
