#![doc = include_str!("../README.md")]
#![cfg_attr(docsrs, feature(doc_cfg))]

#[cfg(not(target_pointer_width = "64"))]
compile_error!("fused-adamw counts elements and addresses in 64 bits");

mod arena;
mod config;
mod cpu;
#[cfg(feature = "cuda")]
mod cuda;
#[cfg(feature = "cuda")]
mod cuda_view;
mod device;
mod error;
mod optimizer;
mod overlap;
mod plan;
mod rounding;
mod rows;
mod scalars;
mod simd;
mod table;
mod tensor;
#[cfg(test)]
mod twins;
mod update;

pub use config::{AdamWConfig, Algorithm, StepOptions, TensorSpec};
pub use device::Device;
pub use error::{Buffer, Error, Result, Span, TensorId};
pub use optimizer::{AdamW, TensorState};
pub use simd::Simd;
pub use tensor::{Dtype, Float, Grad, Pair, Param};

/// The cudarc of this crate's interface: its types are in it.
#[cfg(feature = "cuda")]
pub use cudarc;

/// The kernels of this build, for the tests.
#[cfg(feature = "cuda")]
#[doc(hidden)]
pub const PTX: &str = cuda::PTX;
/// The committed kernels, for the tests.
#[cfg(feature = "cuda")]
#[doc(hidden)]
pub const PTX_COMMITTED: &str = cuda::PTX_COMMITTED;
