//! Whether a step has the CPU's bits: asked of every variant before it is timed, of more random bits than the tests have, and
//! of a tensor that is longer than theirs by far.

use std::ops::Range;

use anyhow::{Result, ensure};
use bytemuck::{Pod, cast_slice, cast_slice_mut};
use fused_adamw::cudarc::driver::CudaSlice;
use fused_adamw::{AdamW, AdamWConfig, Device, Pair, TensorState};
use half::{bf16, f16};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use crate::work::{Element, facts, filled, stream_of};

/// Of three steps of a few tensors, which begin anywhere.
pub(crate) fn are_the_cpus<P: Element, G: Element>(
    device: &Device,
    param: fn(f32) -> P,
    grad: fn(f32) -> G,
    longest: usize,
) -> Result<()> {
    let lens = [1, 7, 1000, 4097, longest];
    let stream = stream_of(device);
    // Each begins at its number.
    let rooms: Vec<usize> = lens.iter().enumerate().map(|(at, len)| at + len).collect();
    let mut params = filled(stream, &rooms, |x| param(0.02 * x))?;
    let grads = filled(stream, &rooms, |x| grad(1e-3 * x))?;
    let host = |tensor: &CudaSlice<P>| stream.clone_dtoh(tensor);
    let mut cpu_params = params.iter().map(host).collect::<Result<Vec<_>, _>>()?;
    let cpu_grads = grads.iter().map(|grad| stream.clone_dtoh(grad)).collect::<Result<Vec<_>, _>>()?;
    let mut cpu = AdamW::new(&Device::cpu(), AdamWConfig::default(), lens)?;
    let mut gpu = AdamW::new(device, AdamWConfig::default(), lens)?;
    for _ in 0..3 {
        let pairs = cpu_params.iter_mut().zip(&cpu_grads).enumerate();
        cpu.step(pairs.map(|(at, (param, grad))| (&mut param[at..], &grad[at..])))?;
        let pairs = params.iter_mut().zip(&grads).enumerate();
        gpu.step(pairs.map(|(at, (param, grad))| Pair::new(param.slice_mut(at..), grad.slice(at..))))?;
    }
    for (i, (gpu_param, cpu_param)) in params.iter().zip(&cpu_params).enumerate() {
        same(&host(gpu_param)?, cpu_param, &gpu.state(i)?, &cpu.state(i)?)?;
    }
    Ok(())
}

/// Parameters, m and v of one tensor.
fn same<P: Pod>(gpu_param: &[P], cpu_param: &[P], gpu: &TensorState, cpu: &TensorState) -> Result<()> {
    let bits = |x| cast_slice::<f32, u32>(x);
    let params = cast_slice::<P, u8>(gpu_param) == cast_slice::<P, u8>(cpu_param);
    ensure!(params, "a wrong bit in a parameter of {} elements", cpu_param.len());
    ensure!(bits(&cpu.m) == bits(&gpu.m) && bits(&cpu.v) == bits(&gpu.v), "a wrong bit in m or v");
    Ok(())
}

/// Elements of random bits.
const RANDOM: usize = 1 << 25;

/// Of three steps of a tensor of random bits: half of f32's are far from 1, and there are NaN of every kind.
pub(crate) fn random(device: &Device, small: bool) -> Result<()> {
    let len = if small { 10_007 } else { RANDOM };
    random_in::<f32, f32>(device, len)?;
    random_in::<bf16, bf16>(device, len)?;
    random_in::<f16, f16>(device, len)?;
    random_in::<bf16, f32>(device, len)
}

fn random_in<P: Element, G: Element>(device: &Device, len: usize) -> Result<()> {
    let stream = stream_of(device);
    let mut rng = StdRng::seed_from_u64(0);
    let (mut cpu_param, mut cpu_grad) = (vec![P::zeroed(); len], vec![G::zeroed(); len]);
    rng.fill(cast_slice_mut::<P, u8>(&mut cpu_param));
    let mut param = stream.clone_htod(&cpu_param)?;
    let mut cpu = AdamW::new(&Device::cpu(), AdamWConfig::default(), [len])?;
    let mut gpu = AdamW::new(device, AdamWConfig::default(), [len])?;
    for _ in 0..3 {
        rng.fill(cast_slice_mut::<G, u8>(&mut cpu_grad));
        cpu.step([(&mut cpu_param, &cpu_grad)])?;
        gpu.step([(&mut param, &stream.clone_htod(&cpu_grad)?)])?;
    }
    same(&stream.clone_dtoh(&param)?, &cpu_param, &gpu.state(0)?, &cpu.state(0)?)?;
    println!("{:?}, gradients {:?}: the CPU's bits in {len} elements of random bits", P::DTYPE, G::DTYPE);
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

fn far_in<T: Element>(device: &Device, len: usize, of: fn(f32) -> T) -> Result<()> {
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
