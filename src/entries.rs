//! The names of the kernels of `cuda/`, for the crate that loads them and for its build script.

/// In the order of `Kernel` (`kernels.rs`).
pub(crate) const ENTRIES: [&str; 10] = [
    "adamw_f32",
    "adamw_bf16",
    "adamw_f16",
    "adamw_mixed",
    "adamw_full",
    "grad_norm",
    "finalize",
    "collect",
    "accumulate",
    "init_masters",
];
