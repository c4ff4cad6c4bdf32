//! The golden bits of `tests/golden` on CUDA.

use fused_adamw::{Device, Dtype, Grad, Param};

use crate::driver::each_driver;
use crate::suite::check;
use crate::suite::run::Buffer;
use crate::twins::copy;
use crate::typed::{Gpu, Host};

/// A tensor with one element more in its allocation: the driver allocates nothing of no bytes.
struct Tensor {
    dtype: Dtype,
    len: usize,
    memory: Gpu,
}

fn host(dtype: Dtype, bits: &[u32]) -> Host {
    Host::from_bits(dtype, bits.iter().copied().chain([0]))
}

impl Buffer for Tensor {
    fn new(device: &Device, dtype: Dtype, bits: &[u32]) -> Self {
        Self { dtype, len: bits.len(), memory: host(dtype, bits).to_gpu(device.stream().unwrap()) }
    }

    fn write(&mut self, bits: &[u32]) {
        let stream = match &self.memory {
            Gpu::F32(x) => x.stream().clone(),
            Gpu::F16(x) => x.stream().clone(),
            Gpu::BF16(x) => x.stream().clone(),
        };
        copy(&host(self.dtype, bits), &mut self.memory, &stream);
    }

    fn read(&self) -> Vec<u32> {
        let mut bits = self.memory.to_host().bits();
        assert_eq!(bits.pop(), Some(0), "the element behind the tensor");
        bits
    }

    fn param(&mut self) -> Param<'_> {
        self.memory.param(0, self.len)
    }

    fn grad(&self) -> Grad<'_> {
        self.memory.grad(0, self.len)
    }

    fn grad_mut(&mut self) -> Grad<'_> {
        self.memory.grad_mut(0, self.len)
    }
}

#[test]
fn cuda_leaves_the_golden_bits() {
    each_driver(|| check::<Tensor>(&Device::cuda_at(0).unwrap()));
}
