//! Elements of any dtype, in host memory or in the GPU's, and as parameters and gradients of a step.

use std::sync::Arc;

use fused_adamw::cudarc::driver::{CudaSlice, CudaStream};
use fused_adamw::{Dtype, Grad, Param};
use half::{bf16, f16};
use rand::rngs::StdRng;

use crate::twins::Values;

/// Elements of one of the three dtypes, in host memory or in the GPU's.
#[derive(Debug)]
pub(crate) enum Typed<F32, F16, BF16> {
    F32(F32),
    F16(F16),
    BF16(BF16),
}
pub(crate) type Host = Typed<Vec<f32>, Vec<f16>, Vec<bf16>>;
pub(crate) type Gpu = Typed<CudaSlice<f32>, CudaSlice<f16>, CudaSlice<bf16>>;

/// `$body` for whatever `$this` holds.
macro_rules! each {
    ($this:expr, $x:ident => $body:expr) => {
        match $this {
            Typed::F32($x) => $body,
            Typed::F16($x) => $body,
            Typed::BF16($x) => $body,
        }
    };
}

impl Host {
    pub(crate) fn from_bits(dtype: Dtype, bits: impl IntoIterator<Item = u32>) -> Self {
        let halves = |bits: u32| u16::try_from(bits).unwrap();
        let bits = bits.into_iter();
        match dtype {
            Dtype::F32 => Self::F32(bits.map(f32::from_bits).collect()),
            Dtype::F16 => Self::F16(bits.map(|bits| f16::from_bits(halves(bits))).collect()),
            Dtype::BF16 => Self::BF16(bits.map(|bits| bf16::from_bits(halves(bits))).collect()),
        }
    }

    pub(crate) fn random(dtype: Dtype, len: usize, values: Values, rng: &mut StdRng) -> Self {
        Self::from_bits(dtype, (0..len).map(|_| values.bits(dtype, rng)))
    }

    pub(crate) fn bits(&self) -> Vec<u32> {
        match self {
            Self::F32(x) => x.iter().map(|x| x.to_bits()).collect(),
            Self::F16(x) => x.iter().map(|x| x.to_bits().into()).collect(),
            Self::BF16(x) => x.iter().map(|x| x.to_bits().into()).collect(),
        }
    }

    pub(crate) fn param(&mut self, at: usize, len: usize) -> Param<'_> {
        each!(self, x => (&mut x[at..at + len]).into())
    }

    pub(crate) fn grad(&self, at: usize, len: usize) -> Grad<'_> {
        each!(self, x => (&x[at..at + len]).into())
    }

    pub(crate) fn grad_mut(&mut self, at: usize, len: usize) -> Grad<'_> {
        each!(self, x => (&mut x[at..at + len]).into())
    }

    pub(crate) fn to_gpu(&self, stream: &Arc<CudaStream>) -> Gpu {
        match self {
            Self::F32(x) => Gpu::F32(stream.clone_htod(x).unwrap()),
            Self::F16(x) => Gpu::F16(stream.clone_htod(x).unwrap()),
            Self::BF16(x) => Gpu::BF16(stream.clone_htod(x).unwrap()),
        }
    }
}

impl Gpu {
    pub(crate) fn param(&mut self, at: usize, len: usize) -> Param<'_> {
        each!(self, x => x.slice_mut(at..at + len).into())
    }

    pub(crate) fn grad(&self, at: usize, len: usize) -> Grad<'_> {
        each!(self, x => x.slice(at..at + len).into())
    }

    pub(crate) fn grad_mut(&mut self, at: usize, len: usize) -> Grad<'_> {
        each!(self, x => x.slice_mut(at..at + len).into())
    }

    pub(crate) fn to_host(&self) -> Host {
        match self {
            Self::F32(x) => Host::F32(x.stream().clone_dtoh(x).unwrap()),
            Self::F16(x) => Host::F16(x.stream().clone_dtoh(x).unwrap()),
            Self::BF16(x) => Host::BF16(x.stream().clone_dtoh(x).unwrap()),
        }
    }
}
