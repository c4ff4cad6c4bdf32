//! A case's tensors in host memory.

use crate::suite::run::Buffer;
use fused_adamw::{Device, Dtype, Grad, Param};
use half::{bf16, f16};

#[derive(Debug)]
pub(crate) enum Host {
    F32(Vec<f32>),
    F16(Vec<f16>),
    BF16(Vec<bf16>),
}

fn half(bits: u32) -> u16 {
    u16::try_from(bits).unwrap()
}

/// `$body` for whatever `$this` holds.
macro_rules! each {
    ($this:expr, $x:ident => $body:expr) => {
        match $this {
            Host::F32($x) => $body,
            Host::F16($x) => $body,
            Host::BF16($x) => $body,
        }
    };
}

impl Buffer for Host {
    fn new(_: &Device, dtype: Dtype, bits: &[u32]) -> Self {
        let bits = bits.iter().copied();
        match dtype {
            Dtype::F32 => Self::F32(bits.map(f32::from_bits).collect()),
            Dtype::F16 => Self::F16(bits.map(|bits| f16::from_bits(half(bits))).collect()),
            Dtype::BF16 => Self::BF16(bits.map(|bits| bf16::from_bits(half(bits))).collect()),
        }
    }

    fn write(&mut self, bits: &[u32]) {
        match self {
            Self::F32(x) => x.iter_mut().zip(bits).for_each(|(x, &bits)| *x = f32::from_bits(bits)),
            Self::F16(x) => x.iter_mut().zip(bits).for_each(|(x, &bits)| *x = f16::from_bits(half(bits))),
            Self::BF16(x) => x.iter_mut().zip(bits).for_each(|(x, &bits)| *x = bf16::from_bits(half(bits))),
        }
    }

    fn read(&self) -> Vec<u32> {
        match self {
            Self::F32(x) => x.iter().map(|x| x.to_bits()).collect(),
            Self::F16(x) => x.iter().map(|x| x.to_bits().into()).collect(),
            Self::BF16(x) => x.iter().map(|x| x.to_bits().into()).collect(),
        }
    }

    fn param(&mut self) -> Param<'_> {
        each!(self, x => x.into())
    }

    fn grad(&self) -> Grad<'_> {
        each!(self, x => x.into())
    }

    fn grad_mut(&mut self) -> Grad<'_> {
        each!(self, x => x.into())
    }
}
