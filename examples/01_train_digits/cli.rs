//! The command line, and what each choice means to the library.

use anyhow::Result;
use clap::{Parser, ValueEnum, value_parser};
use fused_adamw::{AdamWConfig, Algorithm, Device};

/// Trains a small network on handwritten digits and reports its accuracy on images it never saw.
#[derive(Debug, Parser)]
pub(crate) struct Cli {
    /// Where the optimizer runs
    #[arg(long, value_enum, default_value_t = DeviceChoice::Auto)]
    pub(crate) device: DeviceChoice,
    /// Passes over the training images
    #[arg(long, default_value_t = 40, value_parser = value_parser!(u16).range(1..))]
    pub(crate) epochs: u16,
    /// The update rule
    #[arg(long, value_enum, default_value_t = OptimizerChoice::Adamw)]
    pub(crate) optimizer: OptimizerChoice,
    /// Chooses the first weights and the order of the images, not which images are for testing
    #[arg(long, default_value_t = 0)]
    pub(crate) seed: u64,
    /// The learning rate of the first epoch; it falls to zero along half a cosine
    // A negative number reaches the library, whose error says more than "unexpected argument".
    #[arg(long, default_value_t = 5e-3, allow_negative_numbers = true)]
    pub(crate) lr: f64,
    /// Images a step
    #[arg(long, default_value_t = 32, value_parser = value_parser!(u16).range(1..))]
    pub(crate) batch: u16,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
pub(crate) enum DeviceChoice {
    /// The first GPU if it can be used, else the CPU
    Auto,
    /// The CPU, even beside a GPU
    Cpu,
    /// The first GPU, or an error that says what is missing
    Cuda,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
pub(crate) enum OptimizerChoice {
    /// Decoupled weight decay
    Adamw,
    /// Adam without weight decay
    Adam,
    /// AdamW that divides by the largest second moment so far
    Amsgrad,
}

impl Cli {
    /// Each rule with the weight decay that PyTorch gives it by default.
    pub(crate) fn config(&self) -> AdamWConfig {
        let adamw = AdamWConfig { lr: self.lr, ..AdamWConfig::default() };
        match self.optimizer {
            OptimizerChoice::Adamw => adamw,
            OptimizerChoice::Adam => AdamWConfig { algorithm: Algorithm::Adam, weight_decay: 0.0, ..adamw },
            OptimizerChoice::Amsgrad => AdamWConfig { amsgrad: true, ..adamw },
        }
    }

    pub(crate) fn name(&self) -> &'static str {
        match self.optimizer {
            OptimizerChoice::Adamw => "AdamW",
            OptimizerChoice::Adam => "Adam",
            OptimizerChoice::Amsgrad => "AdamW with AMSGrad",
        }
    }
}

impl DeviceChoice {
    pub(crate) fn open(self) -> Result<Device> {
        match self {
            Self::Auto => Ok(Device::best()),
            Self::Cpu => Ok(Device::cpu()),
            #[cfg(feature = "cuda")]
            Self::Cuda => Ok(Device::cuda_at(0)?),
            #[cfg(not(feature = "cuda"))]
            Self::Cuda => {
                anyhow::bail!("this program was built without CUDA: build it with `--features cuda`")
            }
        }
    }
}
