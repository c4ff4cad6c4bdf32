//! The Rust and the CUDA text of the arithmetic are twins: the same lines, the same fields, the same bits. Twins that
//! nobody compares drift.

mod bits;
mod text;
