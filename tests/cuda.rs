//! The whole CUDA path, without a GPU: cudarc's calls, tables, geometry, the kernels themselves. A driver of our own
//! (`tests/driver`) runs `cuda/adamw.cu` on the CPU, counts the calls and fails those it is told to.
//!
//! A test on that driver runs in a process of its own, because cudarc looks for libcuda once a process. The parity
//! tests run on this machine's driver too, if it has one. Without a C++ compiler or a GPU, one line says so;
//! `FUSED_ADAMW_REQUIRE_CXX=1` and `FUSED_ADAMW_REQUIRE_GPU=1` make that a failure. `FUSED_ADAMW_SANITIZE=1` builds
//! the driver with AddressSanitizer and UndefinedBehaviorSanitizer (g++); `FUSED_ADAMW_EMULATED=0` leaves it out.
#![cfg(feature = "cuda")]
#![expect(clippy::unwrap_used, reason = "tests: clippy.toml allows it in the functions marked as such alone")]

#[path = "cuda/accumulate.rs"]
mod accumulate;
#[path = "cuda/alarm.rs"]
mod alarm;
#[path = "cuda/calls.rs"]
mod calls;
#[path = "cuda/captures.rs"]
mod captures;
#[path = "guards/mod.rs"]
mod cases;
#[path = "cuda/contexts.rs"]
mod contexts;
#[path = "cuda/control.rs"]
mod control;
#[path = "cuda/controlled.rs"]
mod controlled;
#[path = "cuda/driver.rs"]
mod driver;
#[path = "cuda/emulator.rs"]
mod emulator;
#[path = "cuda/emulator_order.rs"]
mod emulator_order;
#[path = "cuda/emulator_wrong.rs"]
mod emulator_wrong;
#[path = "cuda/errors.rs"]
mod errors;
#[path = "cuda/faults.rs"]
mod faults;
#[path = "cuda/golden.rs"]
mod golden;
#[path = "cuda/graphs.rs"]
mod graphs;
#[path = "cuda/guards.rs"]
mod guards;
#[path = "cuda/kernels.rs"]
mod kernels;
#[path = "cuda/metrics.rs"]
mod metrics;
#[path = "cuda/parity.rs"]
mod parity;
#[path = "cuda/prepared.rs"]
mod prepared;
#[path = "cuda/streams.rs"]
mod streams;
#[path = "golden/mod.rs"]
#[allow(dead_code, reason = "tests/golden.rs writes the hashes")]
mod suite;
#[path = "cuda/survivors.rs"]
mod survivors;
#[path = "shared/variants.rs"]
#[allow(dead_code, reason = "its predictions are the bench's")]
mod tried;
#[path = "cuda/twins.rs"]
mod twins;
#[path = "cuda/typed.rs"]
mod typed;
#[path = "cuda/variants.rs"]
mod variants;
