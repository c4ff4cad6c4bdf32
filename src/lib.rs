//! AdamW over a whole list of tensors in one call: one CUDA launch a step, and the same bits on the CPU.
//!
//! ```
//! use fused_adamw::{AdamW, AdamWConfig, Device};
//!
//! let mut params = vec![vec![1.0_f32; 768 * 64], vec![0.0; 64]];
//! let grads = vec![vec![0.01_f32; 768 * 64], vec![0.02; 64]];
//!
//! let device = Device::best(); // a GPU if one works, else the CPU; printing it says which and why
//! # let device = Device::cpu();
//! let config = AdamWConfig { lr: 3e-4, betas: (0.9, 0.95), weight_decay: 0.1, ..Default::default() };
//! let mut opt = AdamW::new(&device, config, params.iter().map(Vec::len))?;
//! opt.step(params.iter_mut().zip(&grads))?;
//! # Ok::<(), fused_adamw::Error>(())
//! ```
//!
//! # What a step computes
//!
//! For every element, with the parameter `p`, its gradient `g`, the moments `m` and `v`, and `t` the number of steps
//! applied to its tensor, this one included:
//!
//! ```text
//!     g ← g · grad_scale                         (−g to maximize)
//! (0) g ← g + λ·p                                Adam only: weight decay as L2
//! (1) m ← m + (1 − β1)·(g − m)
//! (2) v ← v + (1 − β2)·(g² − v)                  AMSGrad: (3) takes the largest v so far
//! (3) d = √v · 1/√(1 − β2^t) + ε                 ε outside the root
//! (4) p ← p − lr·λ·p                             AdamW only: decoupled weight decay, of the old p
//! (5) p ← p − lr/(1 − β1^t) · m / d
//! ```
//!
//! in f32, each operation rounded once to nearest, in an order that is part of the contract: README, "Conventions",
//! says it with every rounding, and where it differs from PyTorch and the papers.
//!
//! # The house, in the order in which data flows
//!
//! | file | what it does | twin |
//! | --- | --- | --- |
//! | `config.rs`, `control.rs`, `schedule.rs`, `alarm.rs` | hyper-parameters in f64, groups, tensors to register; clipping, loss scale, schedule, alarms: ranges and defaults | |
//! | `tensor.rs`, `raw.rs` | what the user hands over: pairs of parameter and gradient, types erased; by address | |
//! | `register.rs`, `arena.rs` | the tensors as registered, and where their state lies | |
//! | `plan.rs` | lengths to chunks: pure data | |
//! | `rows.rs`, `overlap.rs` | a step's pairs to rows of a table: every check | |
//! | `table.rs`, `flags.rs` | the structs that cross to the device, and their constants | `cuda/table.cuh` |
//! | `scalars.rs` | hyper-parameters and `t` to the f32 numbers an element needs | `cuda/scalars.cuh` |
//! | `rounding.rs` | operations named by their rounding; bf16 and f16 | `cuda/rounding.cuh` |
//! | `norm.rs` | the sum of the squares of all gradients | beside `cuda/norm.cuh` |
//! | `exact_sum.rs` | a sum that no order can change | `cuda/exact_sum.cuh` |
//! | `decide.rs` | a norm and RMS_t to what the step is to be: multiplier, skip, loss scale, schedule | `cuda/decide.cuh` |
//! | `classes.rs` | tensors with one step count, where the device counts | |
//! | `controller.rs`, `cuda_control.rs` | a controlled step: norm, decision, scalars | beside `cuda/finalize.cuh` |
//! | `accumulate.rs` | gradients of several passes, added up | `cuda/accumulate.cuh` |
//! | `update.rs` | **one element**, equations (0) to (5): the oracle | `cuda/update.cuh` |
//! | `cpu.rs`, `simd.rs` | walks the plan on the CPU | beside `cuda/adamw.cu` |
//! | `pool.rs` | the threads that a step is called on, or the caller's alone | |
//! | `walk.rs` | a chunk's elements: loops, and what memory they ask for ahead | beside `cuda/vec.cuh` |
//! | `fma.rs` | the fused multiply-add, for processors without it too | |
//! | `full.rs` | the update that clamps, zeroes and measures as well | `cuda/full.cuh` |
//! | `collect.rs`, `metrics.rs` | what was measured, by chunk, by tensor, and as the user reads it | `cuda/collect.cuh` |
//! | `cuda_driver.rs`, `cuda_device.rs`, `cuda_view.rs`, `cuda_table.rs` | the driver; a GPU; tensors there; memory of the optimizer's own | |
//! | `cuda_capture.rs` | what a capture of the stream forbids and delays | |
//! | `kernels.rs` | the kernels, each loaded when it is first needed | |
//! | `tuning.rs` | how lists are cut and launched there; for the bench, otherwise | |
//! | `cuda.rs` | uploads what changed, launches | beside `cuda/adamw.cu` |
//! | `cuda_full.rs` | that update on a GPU, and its record's way to the host | |
//! | `device.rs`, `engine.rs` | where a step runs; the plan and the device that walks it | |
//! | `optimizer.rs`, `optimizer/` | the public [`AdamW`]; its step: describe, launch, count; its control; its sums; its masters; its captures | |
//! | `error.rs` | what can go wrong | |
//!
//! Twins are the same text; `twins/` compares text, fields and bits.
//!
//! # Features
//!
//! `cuda` (default): NVIDIA GPUs through cudarc. Neither building nor running it needs a toolkit or a driver; without
//! a driver [`Device::best`] is the CPU. Without the feature the crate is CPU only.
//!
//! # Panics
//!
//! No function of this crate panics, whatever it is given. A panic of an iterator that it is given, or of a conversion of
//! an item, passes through, and the optimizer is as if the call had not been made. A list is asked for one tensor more than
//! there can be, and no further, whatever it says of its length.
//!
//! Where memory for parameters' state, sums or copies is missing, that is [`Error::OutOfMemory`]; where there is none for
//! the few hundred bytes that a tensor takes in the tables, Rust's allocator ends the process.

#![cfg_attr(docsrs, feature(doc_cfg))]
#![cfg_attr(
    test,
    allow(clippy::cast_possible_truncation, clippy::cast_precision_loss, reason = "tests make values of indices")
)]

#[cfg(not(target_pointer_width = "64"))]
compile_error!("fused-adamw counts elements and addresses in 64 bits");

mod accumulate;
mod alarm;
mod arena;
mod classes;
mod collect;
mod config;
mod control;
mod controller;
mod cpu;
#[cfg(feature = "cuda")]
mod cuda;
#[cfg(feature = "cuda")]
mod cuda_capture;
#[cfg(feature = "cuda")]
mod cuda_control;
#[cfg(feature = "cuda")]
mod cuda_device;
#[cfg(feature = "cuda")]
mod cuda_driver;
#[cfg(feature = "cuda")]
mod cuda_full;
#[cfg(feature = "cuda")]
mod cuda_table;
#[cfg(feature = "cuda")]
mod cuda_view;
mod decide;
mod device;
mod engine;
#[cfg(feature = "cuda")]
mod entries;
mod error;
mod exact_sum;
mod flags;
mod fma;
mod full;
#[cfg(feature = "cuda")]
mod kernels;
mod metrics;
mod norm;
mod optimizer;
mod overlap;
mod plan;
mod pool;
mod raw;
mod register;
mod rounding;
mod rows;
mod scalars;
mod schedule;
mod simd;
mod table;
mod tensor;
#[cfg(feature = "cuda")]
mod tuning;
#[cfg(test)]
mod twins;
mod update;
mod walk;

pub use alarm::{Alarm, AlarmStatus};
pub use config::{AdamWConfig, Algorithm, StepOptions, TensorSpec};
pub use control::{Control, LossScale, NonFinite, Status};
pub use device::Device;
pub use error::{Buffer, Error, Result, Span, TensorId};
pub use metrics::{Metrics, TensorMetrics};
pub use optimizer::{AdamW, TensorState};
pub use schedule::{Decay, Schedule};
pub use simd::Simd;
pub use tensor::{Dtype, Float, Grad, Pair, Param};

/// The cudarc of this crate's interface: its types are in it.
#[cfg(feature = "cuda")]
pub use cudarc;

/// The half of this crate's interface: [`half::bf16`] and [`half::f16`] are what 16-bit tensors hold.
pub use half;

#[cfg(feature = "cuda")]
#[doc(hidden)]
pub use tuning::Tuning;

/// The functions that a driver has to have, for the tests.
#[cfg(feature = "cuda")]
#[doc(hidden)]
pub use cuda_driver::DRIVER_FUNCTIONS;

/// The kernels of this build, for the tests.
#[cfg(feature = "cuda")]
#[doc(hidden)]
pub const PTX: &str = kernels::PTX;
/// The committed kernels, for the tests.
#[cfg(feature = "cuda")]
#[doc(hidden)]
pub const PTX_COMMITTED: &str = kernels::PTX_COMMITTED;
#[cfg(feature = "cuda")]
#[doc(hidden)]
pub use kernels::{probe as ptx_probe, with as ptx_with};

/// The README's examples, as tests.
#[cfg(all(doctest, feature = "cuda"))]
#[doc = include_str!("../README.md")]
struct Readme;
