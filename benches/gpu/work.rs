//! What is timed.

use std::sync::Arc;

use anyhow::{Result, ensure};
use bytemuck::Pod;
use fused_adamw::cudarc::driver::sys::{self, CUdevice_attribute};
use fused_adamw::cudarc::driver::{CudaSlice, CudaStream, DeviceRepr, ValidAsZeroBits};
use fused_adamw::{AdamW, AdamWConfig, Control, Device, Float};

use crate::clock::{Clock, Times};
use crate::rows::{Copied, Facts, OURS, Step};
use crate::suite::List;

pub(crate) fn stream_of(device: &Device) -> &Arc<CudaStream> {
    device.stream().expect("a GPU has a stream")
}

pub(crate) fn facts(device: &Device) -> Result<Facts> {
    let context = stream_of(device).context();
    let (major, minor) = context.compute_capability()?;
    let (free_bytes, total_bytes) = context.mem_get_info()?;
    let mut version = 0;
    // SAFETY: writes an integer to the address of one.
    unsafe { sys::cuDriverGetVersion(&raw mut version) }.result()?;
    Ok(Facts {
        name: context.name()?,
        compute_capability: format!("{major}.{minor}"),
        multiprocessors: context.attribute(CUdevice_attribute::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT)?,
        total_bytes,
        free_bytes,
        driver_cuda: format!("{}.{}", version / 1000, version % 1000 / 10),
        device: device.to_string(),
    })
}

/// Of several sizes; the fastest is what a step is measured by.
pub(crate) fn copies(device: &Device, small: bool) -> Result<()> {
    let stream = stream_of(device);
    let unit = if small { 1 << 10 } else { 1 << 30 };
    let repeats = if small { 3 } else { 51 };
    let mut clock = Clock::new(stream, small)?;
    for bytes in [unit, 4 * unit] {
        let from = stream.alloc_zeros::<u8>(bytes)?;
        let mut to = stream.alloc_zeros::<u8>(bytes)?;
        let times = clock.measure(repeats, || Ok(stream.memcpy_dtod(&from, &mut to)?))?;
        Copied { bytes, repeats, ms: times.ms }.print()?;
    }
    Ok(())
}

pub(crate) fn step(device: &Device, list: &List, small: bool) -> Result<Step> {
    ensure!(!list.lengths.is_empty(), "its first tensor does not fit into the free memory");
    let elements = list.lengths.iter().sum();
    let repeats = match elements {
        _ if small => 3,
        1_000_000_000.. => 21,
        _ => 51,
    };
    let Times { ms, host_us } =
        by_dtype!(list, |param, grad| Case::new(device, list, param, grad)?.measure(repeats, small)?);
    Ok(Step {
        by: OURS.into(),
        list: list.name.clone(),
        dtype: list.dtype.clone(),
        tensors: list.lengths.len(),
        elements,
        of_tensors: list.of_tensors,
        of_elements: list.of_elements,
        bytes_an_element: list.bytes_an_element(),
        repeats,
        ms,
        host_us,
    })
}

/// `$work` with the functions that make parameters and gradients of the list's dtypes out of f32.
macro_rules! by_dtype {
    ($list:expr, |$param:ident, $grad:ident| $work:expr) => {{
        let (f32, bf16): (fn(f32) -> f32, fn(f32) -> half::bf16) = (|x| x, half::bf16::from_f32);
        match $list.dtype.as_str() {
            "f32" => {
                let ($param, $grad) = (f32, f32);
                $work
            }
            "bf16" => {
                let ($param, $grad) = (bf16, bf16);
                $work
            }
            _ => {
                let ($param, $grad) = (bf16, f32);
                $work
            }
        }
    }};
}
pub(crate) use by_dtype;

/// What a tensor can be of.
pub(crate) trait Element: Float + DeviceRepr + ValidAsZeroBits + Pod {}
impl<T: Float + DeviceRepr + ValidAsZeroBits + Pod> Element for T {}

/// A list on the GPU, with its optimizer.
pub(crate) struct Case<P, G> {
    opt: AdamW,
    accumulates: bool,
    params: Vec<CudaSlice<P>>,
    grads: Vec<CudaSlice<G>>,
}

impl<P: Element, G: Element> Case<P, G> {
    pub(crate) fn new(device: &Device, list: &List, param: fn(f32) -> P, grad: fn(f32) -> G) -> Result<Self> {
        let (stream, lengths) = (stream_of(device), &list.lengths);
        Ok(Self {
            opt: optimizer(device, list)?,
            accumulates: list.accumulates,
            params: filled(stream, lengths, |x| param(0.02 * x))?,
            grads: filled(stream, lengths, |x| grad(1e-3 * x))?,
        })
    }

    fn measure(mut self, repeats: usize, small: bool) -> Result<Times> {
        let stream = self.params[0].stream().clone();
        let times = self.times(&mut Clock::new(&stream, small)?, repeats);
        drop(self);
        stream.synchronize()?; // the memory is the next list's only now
        times
    }

    pub(crate) fn times(&mut self, clock: &mut Clock, repeats: usize) -> Result<Times> {
        clock.measure(repeats, || self.step())
    }

    /// A step, or a pass of gradients; not waited for.
    pub(crate) fn step(&mut self) -> Result<()> {
        if self.accumulates {
            self.opt.accumulate(&self.grads)?;
        } else {
            self.opt.step(self.params.iter_mut().zip(&self.grads))?;
        }
        Ok(())
    }

    /// Another optimizer of the same tensors, on the same stream.
    pub(crate) fn set_device(&mut self, device: &Device, list: &List) -> Result<()> {
        self.opt = optimizer(device, list)?;
        Ok(())
    }
}

fn optimizer(device: &Device, list: &List) -> Result<AdamW> {
    let mut opt = AdamW::new(device, AdamWConfig::default(), &list.lengths)?;
    let List { max_grad_norm, metrics, .. } = *list;
    let control = Control { max_grad_norm, metrics, ..Default::default() };
    opt.set_control((max_grad_norm.is_some() || metrics).then_some(control))?;
    Ok(opt)
}

/// Values between -0.4 and 0.6, through `of`. From the host come the first million; the rest are copies on the device.
#[expect(clippy::cast_precision_loss, reason = "values below 1,013")]
pub(crate) fn filled<T: DeviceRepr + ValidAsZeroBits>(
    stream: &Arc<CudaStream>,
    lengths: &[usize],
    of: impl Fn(f32) -> T,
) -> Result<Vec<CudaSlice<T>>> {
    let longest = lengths.iter().copied().max().unwrap_or(0);
    let pattern = (0..longest.min(1 << 20)).map(|i| of((i % 1013) as f32 / 1013.0 - 0.4));
    let pattern = stream.clone_htod(&pattern.collect::<Vec<_>>())?;
    let tensor = |&len: &usize| {
        let mut tensor = stream.alloc_zeros::<T>(len)?;
        for start in (0..len).step_by(pattern.len()) {
            let part = pattern.len().min(len - start);
            stream.memcpy_dtod(&pattern.slice(..part), &mut tensor.slice_mut(start..start + part))?;
        }
        Ok(tensor)
    };
    lengths.iter().map(tensor).collect()
}
