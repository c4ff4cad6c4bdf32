//! Tensors where the optimizer wants them: on the host, or in a GPU's memory. And whether there is memory at all.

#[cfg(feature = "cuda")]
use std::sync::Arc;

#[cfg(feature = "cuda")]
use fused_adamw::cudarc::driver::{CudaSlice, CudaStream, DeviceRepr, DriverError, ValidAsZeroBits};
use fused_adamw::{Device, Dtype, Grad, Param};
use half::{bf16, f16};

use crate::error::TraceError;
use crate::values::Values;

/// A tensor on a device, in one of the dtypes that the crate takes.
#[derive(Debug)]
pub(crate) enum Slot {
    Host(Typed<Vec<f16>, Vec<bf16>, Vec<f32>>),
    /// With its length: the driver refuses to allocate 0 bytes, so that an empty tensor is no part of one element.
    #[cfg(feature = "cuda")]
    Cuda(Typed<CudaSlice<f16>, CudaSlice<bf16>, CudaSlice<f32>>, usize),
}

/// One of three owners of elements.
#[derive(Clone, Debug)]
pub(crate) enum Typed<A, B, C> {
    F16(A),
    Bf16(B),
    F32(C),
}

impl Slot {
    /// A copy of `values` on `device`, f64 rounded to f32.
    #[cfg_attr(not(feature = "cuda"), expect(unused_variables, clippy::unnecessary_wraps, reason = "CUDA only"))]
    pub(crate) fn upload(device: &Device, values: &Values) -> anyhow::Result<Self> {
        let host = narrowed(values);
        #[cfg(feature = "cuda")]
        if let Some(stream) = device.stream() {
            let typed = match &host {
                Typed::F16(x) => Typed::F16(copy_up(stream, x)?),
                Typed::Bf16(x) => Typed::Bf16(copy_up(stream, x)?),
                Typed::F32(x) => Typed::F32(copy_up(stream, x)?),
            };
            return Ok(Self::Cuda(typed, values.len()));
        }
        Ok(Self::Host(host))
    }

    #[cfg_attr(not(feature = "cuda"), expect(clippy::unnecessary_wraps, reason = "copies from a GPU can fail"))]
    pub(crate) fn download(self) -> anyhow::Result<Values> {
        Ok(match self {
            Self::Host(Typed::F16(x)) => Values::F16(x),
            Self::Host(Typed::Bf16(x)) => Values::Bf16(x),
            Self::Host(Typed::F32(x)) => Values::F32(x),
            #[cfg(feature = "cuda")]
            Self::Cuda(Typed::F16(x), len) => Values::F16(copy_down(&x, len)?),
            #[cfg(feature = "cuda")]
            Self::Cuda(Typed::Bf16(x), len) => Values::Bf16(copy_down(&x, len)?),
            #[cfg(feature = "cuda")]
            Self::Cuda(Typed::F32(x), len) => Values::F32(copy_down(&x, len)?),
        })
    }

    pub(crate) fn dtype(&self) -> Dtype {
        match self {
            Self::Host(typed) => typed.dtype(),
            #[cfg(feature = "cuda")]
            Self::Cuda(typed, _) => typed.dtype(),
        }
    }

    pub(crate) fn param(&mut self) -> Param<'_> {
        match self {
            Self::Host(Typed::F16(x)) => x.into(),
            Self::Host(Typed::Bf16(x)) => x.into(),
            Self::Host(Typed::F32(x)) => x.into(),
            #[cfg(feature = "cuda")]
            Self::Cuda(Typed::F16(x), len) => x.slice_mut(..*len).into(),
            #[cfg(feature = "cuda")]
            Self::Cuda(Typed::Bf16(x), len) => x.slice_mut(..*len).into(),
            #[cfg(feature = "cuda")]
            Self::Cuda(Typed::F32(x), len) => x.slice_mut(..*len).into(),
        }
    }

    pub(crate) fn grad(&self) -> Grad<'_> {
        match self {
            Self::Host(Typed::F16(x)) => x.into(),
            Self::Host(Typed::Bf16(x)) => x.into(),
            Self::Host(Typed::F32(x)) => x.into(),
            #[cfg(feature = "cuda")]
            Self::Cuda(Typed::F16(x), len) => x.slice(..*len).into(),
            #[cfg(feature = "cuda")]
            Self::Cuda(Typed::Bf16(x), len) => x.slice(..*len).into(),
            #[cfg(feature = "cuda")]
            Self::Cuda(Typed::F32(x), len) => x.slice(..*len).into(),
        }
    }
}

impl<A, B, C> Typed<A, B, C> {
    fn dtype(&self) -> Dtype {
        match self {
            Self::F16(_) => Dtype::F16,
            Self::Bf16(_) => Dtype::BF16,
            Self::F32(_) => Dtype::F32,
        }
    }
}

/// Asks for that much memory and gives it back. What takes no more afterwards does not abort for want of it.
pub(crate) fn afford(bytes: u64) -> Result<(), TraceError> {
    let error = TraceError::Memory { bytes };
    let Ok(size) = usize::try_from(bytes) else { return Err(error) };
    let mut memory = Vec::<u8>::new();
    let reserved = memory.try_reserve_exact(size);
    std::hint::black_box(&memory); // or the compiler leaves out what nobody uses
    reserved.map_err(|_| error)
}

fn narrowed(values: &Values) -> Typed<Vec<f16>, Vec<bf16>, Vec<f32>> {
    match values {
        Values::F16(x) => Typed::F16(x.clone()),
        Values::Bf16(x) => Typed::Bf16(x.clone()),
        Values::F32(x) => Typed::F32(x.clone()),
        #[expect(clippy::cast_possible_truncation, reason = "the rounding is the purpose; `bound.rs` counts it")]
        Values::F64(x) => Typed::F32(x.iter().map(|&x| x as f32).collect()),
    }
}

#[cfg(feature = "cuda")]
fn copy_up<T: DeviceRepr + ValidAsZeroBits>(stream: &Arc<CudaStream>, host: &[T]) -> Result<CudaSlice<T>, DriverError> {
    if host.is_empty() { stream.alloc_zeros(1) } else { stream.clone_htod(host) }
}

#[cfg(feature = "cuda")]
fn copy_down<T: DeviceRepr>(device: &CudaSlice<T>, len: usize) -> Result<Vec<T>, DriverError> {
    if len == 0 { Ok(Vec::new()) } else { device.stream().clone_dtoh(device) }
}
