//! Gradients of several backward passes, added up in f32. Beside it on a GPU: `cuda/accumulate.cuh`.

#![allow(clippy::inline_always, reason = "a call would leave the caller's target features")]
#![allow(clippy::needless_return, reason = "the text is that of the .cuh")]

use crate::cpu::{slice, slice_mut, tasks};
use crate::rounding::{add_rn, canonical, select};
use crate::simd::{Isa, Simd, for_every_simd};
use crate::table::firsts::{ALL_FIRST, ROWS_FIRST};
use crate::table::row_flags::{FIRST, HAS_GRAD};
use crate::table::{Chunk, SumRow, dtypes};
use crate::tensor::Float;
use half::{bf16, f16};
use rayon::prelude::*;

/// The first gradient after a step is the sum, so that nobody has to write zeros.
#[inline(always)]
fn next_sum(first: bool, sum: f32, g: f32) -> f32 {
    // twin: next_sum {
    return canonical(select(first, g, add_rn(sum, g)));
    // } twin
}

/// Adds every chunk, on the threads of the current rayon pool.
///
/// # Safety
/// Every row with a gradient names, in host memory, a gradient that may be read, and a sum that nobody else uses, of as many
/// elements as the row's chunks cover. `chunks` covers no element twice, and names no row that is not there. `simd` is
/// available.
pub(crate) unsafe fn run(simd: Simd, chunks: &[Chunk], rows: &[SumRow], which_first: u32) {
    let one = |chunk: &Chunk| {
        let row = &rows[chunk.tensor as usize];
        let first = which_first == ALL_FIRST || (which_first == ROWS_FIRST && row.flags & FIRST != 0);
        if row.flags & HAS_GRAD != 0 {
            // SAFETY: the caller's promise; no two chunks share an element.
            unsafe { add_chunk(simd, row, *chunk, first) };
        }
    };
    match tasks(chunks) {
        None => chunks.iter().for_each(one),
        Some(together) => chunks.par_iter().with_min_len(together).for_each(one),
    }
}

for_every_simd! {
    /// # Safety
    /// As for [`run`], for this chunk of a tensor with a gradient.
    unsafe fn add_chunk(row: &SumRow, chunk: Chunk, first: bool) -> (), by add_chunk_inlined
}

/// # Safety
/// As for [`add_chunk`].
#[inline(always)]
unsafe fn add_chunk_inlined<I: Isa>(row: &SumRow, chunk: Chunk, first: bool) {
    // SAFETY: the caller's promise.
    let sums = unsafe { slice_mut::<f32>(row.sum, chunk) };
    match row.grad_dtype {
        // SAFETY: (all three) the caller's promise, with the dtype of the row.
        dtypes::F32 => add(sums, unsafe { slice::<f32>(row.grad, chunk) }, first),
        // SAFETY: see above.
        dtypes::F16 => add(sums, unsafe { slice::<f16>(row.grad, chunk) }, first),
        // SAFETY: see above.
        _ => add(sums, unsafe { slice::<bf16>(row.grad, chunk) }, first),
    }
}

#[inline(always)]
fn add<G: Float>(sums: &mut [f32], grad: &[G], first: bool) {
    for (sum, g) in sums.iter_mut().zip(grad) {
        *sum = next_sum(first, *sum, g.widen());
    }
}
