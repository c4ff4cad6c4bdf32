//! What a process pays once: the context, the module, and of each step the first, for which the driver compiles the
//! kernels that it needs and no others (unless it has them in its cache: `CUDA_CACHE_DISABLE=1`).

use std::time::Instant;

use anyhow::{Context, Result};
use fused_adamw::Device;
use fused_adamw::cudarc::driver::CudaContext;

use crate::suite::{List, MIXED};
use crate::work::{Case, by_dtype};

/// Of a list that costs no time itself.
const LENGTHS: [usize; 2] = [1_000, 10];

pub(crate) fn print() -> Result<()> {
    let context = timed("context", || Ok(CudaContext::new(0)?))?;
    let device = timed("device", || Ok(Device::cuda(&context.default_stream())?))?;
    let steps = [("", "f32"), ("", "bf16"), ("", MIXED), (", clipped", "f32"), (", with metrics", "f32")];
    for (beside, dtype) in steps {
        let list = List::new(beside, dtype, LENGTHS.into());
        for time in ["first", "next"] {
            let name = format!("{time} step, {dtype}{beside}");
            timed(&name, || step(&device, &list))?;
        }
    }
    Ok(())
}

/// Of a new optimizer, waited for.
fn step(device: &Device, list: &List) -> Result<()> {
    by_dtype!(list, |param, grad| Case::new(device, list, param, grad)?.step()?);
    Ok(device.stream().context("a GPU has a stream")?.synchronize()?)
}

fn timed<T>(name: &str, work: impl FnOnce() -> Result<T>) -> Result<T> {
    let start = Instant::now();
    let done = work()?;
    println!("{name:<30} {:>9.2} ms", 1e3 * start.elapsed().as_secs_f64());
    Ok(done)
}
