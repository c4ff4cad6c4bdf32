//! Whether a step has the CPU's bits: asked of every variant before it is timed, and of a tensor that is longer than the
//! tests' by far.

use std::ops::Range;

use anyhow::{Result, ensure};
use bytemuck::{Pod, cast_slice};
use fused_adamw::cudarc::driver::{CudaSlice, DeviceRepr, ValidAsZeroBits};
use fused_adamw::{AdamW, AdamWConfig, Device, Float, Pair};
use half::bf16;

use crate::work::{facts, filled, stream_of};

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

/// Elements of a tensor whose bytes, elements and 16-byte vectors have no number of 32 bits.
const FAR: usize = (1 << 34) / 4 + 1003;
/// Elements that are compared, at each of some places.
const WINDOW: usize = 5000;

/// The exit status of what cannot be tried here.
const SKIPPED: i32 = 77;

/// Of three steps of one tensor of [`FAR`] elements: its beginning, its end, and where a number of 31 or 32 bits ends.
pub(crate) fn far(device: &Device, small: bool) -> Result<()> {
    let (len, free) = (if small { 100_003 } else { FAR }, facts(device)?.free_bytes);
    if free / 17 < len {
        println!("16 bytes for each of {len} elements do not fit into {free}");
        std::process::exit(SKIPPED);
    }
    far_in(device, len, |x| x)?;
    far_in(device, len, bf16::from_f32)
}

fn far_in<T>(device: &Device, len: usize, of: fn(f32) -> T) -> Result<()>
where
    T: Float + DeviceRepr + ValidAsZeroBits + Pod,
{
    let windows = [0, len / 8, len / 4, len / 2, len - WINDOW / 2].map(|at| at.saturating_sub(WINDOW / 2));
    let windows = windows.map(|at| at..at + WINDOW);
    let stream = stream_of(device);
    let [param, grad] = [0.02, 1e-3].map(|by| filled(stream, &[len], |x| of(by * x)));
    let (param, grad) = (&mut param?[0], &grad?[0]);
    let host = |tensor: &CudaSlice<T>| {
        let window = |at: &Range<usize>| stream.clone_dtoh(&tensor.slice(at.clone()));
        windows.iter().map(window).collect::<Result<Vec<_>, _>>()
    };
    let (mut cpu_params, cpu_grads) = (host(param)?, host(grad)?);
    let mut cpu = AdamW::new(&Device::cpu(), AdamWConfig::default(), [WINDOW; 5])?;
    let mut gpu = AdamW::new(device, AdamWConfig::default(), [len])?;
    for _ in 0..3 {
        cpu.step(cpu_params.iter_mut().zip(&cpu_grads))?;
        gpu.step([(&mut *param, grad)])?;
    }
    for (at, (gpu, cpu)) in windows.iter().zip(host(param)?.iter().zip(&cpu_params)) {
        ensure!(cast_slice::<T, u8>(gpu) == cast_slice::<T, u8>(cpu), "a wrong bit in {at:?} of {len} elements");
    }
    println!("{:?}: the CPU's bits at {windows:?} of {len} elements", T::DTYPE);
    Ok(())
}
