//! Where the parameters live: the one file that knows a GPU from the CPU.

use anyhow::Result;
use fused_adamw::{AdamW, Device};

#[cfg(feature = "cuda")]
use fused_adamw::cudarc::driver::{CudaSlice, CudaStream, DriverError};
#[cfg(feature = "cuda")]
use std::sync::Arc;

#[derive(Debug)]
pub(crate) struct Parameters {
    /// What the network computes with: on a GPU a copy, brought up to date by every step.
    host: Vec<Vec<f32>>,
    #[cfg(feature = "cuda")]
    gpu: Option<Gpu>,
}

impl Parameters {
    #[cfg(feature = "cuda")]
    pub(crate) fn place(host: Vec<Vec<f32>>, device: &Device) -> Result<Self> {
        let gpu = device.stream().map(|stream| Gpu::upload(&host, stream)).transpose()?;
        Ok(Self { host, gpu })
    }

    #[cfg(not(feature = "cuda"))]
    pub(crate) fn place(host: Vec<Vec<f32>>, _: &Device) -> Result<Self> {
        Ok(Self { host })
    }

    pub(crate) fn host(&self) -> &[Vec<f32>] {
        &self.host
    }

    pub(crate) fn step(&mut self, optimizer: &mut AdamW, gradients: &[Vec<f32>]) -> Result<()> {
        #[cfg(feature = "cuda")]
        if let Some(gpu) = &mut self.gpu {
            return gpu.step(optimizer, gradients, &mut self.host);
        }
        Ok(optimizer.step(self.host.iter_mut().zip(gradients))?)
    }
}

#[cfg(feature = "cuda")]
#[derive(Debug)]
struct Gpu {
    stream: Arc<CudaStream>,
    parameters: Vec<CudaSlice<f32>>,
    gradients: Vec<CudaSlice<f32>>,
}

#[cfg(feature = "cuda")]
impl Gpu {
    fn upload(host: &[Vec<f32>], stream: &Arc<CudaStream>) -> Result<Self, DriverError> {
        let parameters = host.iter().map(|tensor| stream.clone_htod(tensor)).collect::<Result<_, _>>()?;
        let gradients = host.iter().map(|tensor| stream.alloc_zeros(tensor.len())).collect::<Result<_, _>>()?;
        Ok(Self { stream: Arc::clone(stream), parameters, gradients })
    }

    /// A real model would leave both on the GPU; here the network's arithmetic needs them back.
    fn step(&mut self, optimizer: &mut AdamW, gradients: &[Vec<f32>], host: &mut [Vec<f32>]) -> Result<()> {
        for (host, device) in gradients.iter().zip(&mut self.gradients) {
            self.stream.memcpy_htod(host, device)?;
        }
        optimizer.step(self.parameters.iter_mut().zip(&self.gradients))?;
        for (device, host) in self.parameters.iter().zip(host) {
            self.stream.memcpy_dtoh(device, host)?;
        }
        Ok(self.stream.synchronize()?)
    }
}
