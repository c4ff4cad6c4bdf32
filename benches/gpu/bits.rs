//! Whether a step has the CPU's bits: asked of every variant before it is timed.

use anyhow::{Result, ensure};
use bytemuck::{Pod, cast_slice};
use fused_adamw::cudarc::driver::{CudaSlice, DeviceRepr, ValidAsZeroBits};
use fused_adamw::{AdamW, AdamWConfig, Device, Float, Pair};

use crate::work::{filled, stream_of};

/// Of three steps of a few tensors, which begin anywhere.
pub(crate) fn are_the_cpus<T>(device: &Device, of: fn(f32) -> T, longest: usize) -> Result<()>
where
    T: Float + DeviceRepr + ValidAsZeroBits + Pod,
{
    let lens = [1, 7, 1000, 4097, longest];
    let stream = stream_of(device);
    // Each begins at its number.
    let rooms: Vec<usize> = lens.iter().enumerate().map(|(at, len)| at + len).collect();
    let mut params = filled(stream, &rooms, |x| of(0.02 * x))?;
    let grads = filled(stream, &rooms, |x| of(1e-3 * x))?;
    let host = |tensor: &CudaSlice<T>| stream.clone_dtoh(tensor);
    let mut cpu_params = params.iter().map(host).collect::<Result<Vec<_>, _>>()?;
    let cpu_grads = grads.iter().map(host).collect::<Result<Vec<_>, _>>()?;
    let mut cpu = AdamW::new(&Device::cpu(), AdamWConfig::default(), lens)?;
    let mut gpu = AdamW::new(device, AdamWConfig::default(), lens)?;
    for _ in 0..3 {
        let pairs = cpu_params.iter_mut().zip(&cpu_grads).enumerate();
        cpu.step(pairs.map(|(at, (param, grad))| (&mut param[at..], &grad[at..])))?;
        let pairs = params.iter_mut().zip(&grads).enumerate();
        gpu.step(pairs.map(|(at, (param, grad))| Pair::new(param.slice_mut(at..), grad.slice(at..))))?;
    }
    for (i, (gpu_param, cpu_param)) in params.iter().zip(&cpu_params).enumerate() {
        let same = cast_slice::<T, u8>(&host(gpu_param)?) == cast_slice::<T, u8>(cpu_param);
        ensure!(same, "a wrong bit in a parameter of {} elements", lens[i]);
        let (cpu, gpu) = (cpu.state(i)?, gpu.state(i)?);
        let bits = |x: &[f32]| x.iter().map(|x| x.to_bits()).collect::<Vec<_>>();
        ensure!(bits(&cpu.m) == bits(&gpu.m) && bits(&cpu.v) == bits(&gpu.v), "a wrong bit in m or v");
    }
    Ok(())
}
