//! The plan of one optimizer and the device that walks it.

use crate::cpu;
use crate::device::{Device, Kind};
use crate::error::Result;
use crate::plan::Plan;
use crate::simd::Simd;
use crate::table::{Chunk, StepScalars, TensorRow};

#[cfg(feature = "cuda")]
use crate::{cuda::Launcher, plan::gpu_chunk_len};

/// What walks the plan.
#[derive(Debug)]
pub(crate) enum Engine {
    Cpu(Simd, Vec<Chunk>),
    #[cfg(feature = "cuda")]
    Cuda(Box<Launcher>),
}

impl Engine {
    pub(crate) fn new(device: &Device, lens: Vec<u64>) -> Result<Self> {
        match &device.0 {
            Kind::Cpu(simd, _) => Ok(Self::Cpu(*simd, Plan::new(lens, cpu::CHUNK_LEN).chunks().collect())),
            #[cfg(feature = "cuda")]
            Kind::Cuda(device) => {
                let (tensors, elements) = (lens.len(), lens.iter().sum());
                let plan = Plan::new(lens, gpu_chunk_len(elements, device.multiprocessors));
                let chunks: Vec<Chunk> = plan.chunks().collect();
                Ok(Self::Cuda(Box::new(Launcher::new(device, &chunks, tensors)?)))
            }
        }
    }

    /// # Safety
    /// As for [`cpu::run`]; on a GPU as for [`Launcher::run`].
    pub(crate) unsafe fn run(&mut self, rows: &[TensorRow], scalars: &[StepScalars]) -> Result<()> {
        match self {
            Self::Cpu(simd, chunks) => {
                // SAFETY: the caller's promise; a `Simd` in a device is available.
                unsafe { cpu::run(*simd, chunks, rows, scalars) };
                Ok(())
            }
            #[cfg(feature = "cuda")]
            // SAFETY: the caller's promise.
            Self::Cuda(launcher) => unsafe { launcher.run(rows, scalars) },
        }
    }
}
