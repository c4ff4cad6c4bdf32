//! Walks the plan on the CPU: threads over one list of chunks, and in each chunk a plain loop over
//! [`update`](crate::update::update) (`walk.rs`) that the compiler vectorizes, once for every instruction set. Beside it on
//! a GPU: `cuda/adamw.cu`.
//!
//! The loops take slices, not addresses; [`Chunk`] and [`TensorRow`] are made into slices in one place, `Arrays::of`.

#![allow(clippy::inline_always, reason = "a call would leave the caller's target features")]
#![allow(clippy::cast_possible_truncation, reason = "usize has 64 bits: src/lib.rs")]

use crate::pool;
use crate::rounding::has;
use crate::simd::{Convert, Isa, Simd, for_every_simd};
use crate::table::step_flags::{AMSGRAD, SKIP};
use crate::table::{Chunk, MasterRow, StepScalars, TensorRow, row_flags};
use crate::tensor::{Dtype, Float};
use crate::walk::{Next, walk};
use half::{bf16, f16};
use rayon::prelude::*;

/// Elements of a chunk: 448 KiB of f32 traffic, an eighth of a millisecond of one thread.
pub(crate) const CHUNK_LEN: u32 = 16 * 1024;

/// Up to so many elements the caller's thread is done before a pool of threads would have woken.
const ONE_THREAD: u64 = 128 * 1024;

/// Steps every chunk, on the threads of the current rayon pool.
///
/// # Safety
/// Every row with a gradient describes arrays of host memory that the step may use: at `param`, `grad`, `m`, `v`, and
/// `vmax` and `master` where not 0, as many elements as the row's chunks cover, aligned for their dtype; those that
/// are written overlap nothing. `chunks` covers no element twice, and names no row and no scalars that are not there.
/// `simd` is available.
pub(crate) unsafe fn run(simd: Simd, chunks: &[Chunk], rows: &[TensorRow], scalars: &[StepScalars]) {
    let step = |(i, chunk): (usize, &Chunk)| {
        let row = &rows[chunk.tensor as usize];
        let next = chunks.get(i + 1).map_or(Next::default(), |next| Next::of(&rows[next.tensor as usize], next.start));
        if row.flags & row_flags::HAS_GRAD != 0 {
            // SAFETY: the caller's promise; no two chunks share an element, so that no two threads do.
            unsafe { step_chunk(simd, row, *chunk, &scalars[row.scalars as usize], next) };
        }
    };
    match tasks(chunks) {
        None => chunks.iter().enumerate().for_each(step),
        Some(together) => chunks.par_iter().enumerate().with_min_len(together).for_each(step),
    }
}

/// Reads masters from 16-bit parameters, before these are stepped. Beside it on a GPU: `cuda/masters.cuh`.
///
/// # Safety
/// Every row with a master names arrays of host memory, aligned, of as many elements as the row's chunks cover: a parameter
/// that may be read, and a master that nobody else uses. `chunks` covers no element twice, and names no row that is
/// not there.
pub(crate) unsafe fn init_masters(chunks: &[Chunk], rows: &[MasterRow]) {
    let one = |chunk: &Chunk| {
        let row = &rows[chunk.tensor as usize];
        match Dtype::of_code(row.param_dtype) {
            _ if row.master == 0 => {}
            Dtype::F32 => {}
            // SAFETY: (both) the caller's promise, with the dtype of the row; no two chunks share an element.
            Dtype::F16 => unsafe { init_master::<f16>(row, *chunk) },
            // SAFETY: see above.
            Dtype::BF16 => unsafe { init_master::<bf16>(row, *chunk) },
        }
    };
    match tasks(chunks) {
        None => chunks.iter().for_each(one),
        Some(together) => chunks.par_iter().with_min_len(together).for_each(one),
    }
}

/// # Safety
/// As for [`init_masters`], for this chunk of a parameter `P`.
unsafe fn init_master<P: Float>(row: &MasterRow, chunk: Chunk) {
    // SAFETY: the caller's promise.
    let master = unsafe { slice_mut::<f32>(row.master, chunk) };
    // SAFETY: likewise.
    let param = unsafe { slice::<P>(row.param, chunk) };
    master.iter_mut().zip(param).for_each(|(master, p)| *master = p.widen());
}

/// How many chunks a task of a thread takes, at least: about a full chunk's worth of small tensors. `None`: the caller's
/// thread does them alone, being so few elements, or because there is no other thread, or one that would only be woken.
pub(crate) fn tasks(chunks: &[Chunk]) -> Option<usize> {
    let elements: u64 = chunks.iter().map(|c| u64::from(c.len)).sum();
    let mean_len = elements.checked_div(chunks.len() as u64).unwrap_or(0);
    let together = usize::try_from(u64::from(CHUNK_LEN) / mean_len.max(1)).unwrap_or(usize::MAX);
    (elements > ONE_THREAD && pool::threads() > 1).then_some(together.max(1))
}

/// `$step!(P, G)` with the types of a row's parameter and gradient.
macro_rules! by_dtypes {
    ($row:expr, $step:ident) => {{
        use $crate::table::dtypes::{F16, F32};
        match ($row.param_dtype, $row.grad_dtype) {
            (F32, F32) => $step!(f32, f32),
            (F32, F16) => $step!(f32, f16),
            (F32, _) => $step!(f32, bf16),
            (F16, F32) => $step!(f16, f32),
            (F16, F16) => $step!(f16, f16),
            (F16, _) => $step!(f16, bf16),
            (_, F32) => $step!(bf16, f32),
            (_, F16) => $step!(bf16, f16),
            (_, _) => $step!(bf16, bf16),
        }
    }};
}
pub(crate) use by_dtypes;

for_every_simd! {
    /// # Safety
    /// As for [`run`], for this chunk.
    unsafe fn step_chunk(row: &TensorRow, chunk: Chunk, s: &StepScalars, next: Next) -> (), by step_chunk_inlined
}

/// # Safety
/// As for [`step_chunk`].
#[inline(always)]
unsafe fn step_chunk_inlined<I: Isa>(row: &TensorRow, chunk: Chunk, s: &StepScalars, next: Next) {
    macro_rules! step {
        ($param:ty, $grad:ty) => {
            // SAFETY: the caller's promise, with the dtypes of the row.
            unsafe { Arrays::<$param, $grad>::of(row, chunk) }.step::<I>(s, next)
        };
    }
    by_dtypes!(row, step)
}

/// A chunk's arrays, all of one length; `vmax` is empty without AMSGrad, `master` for an f32 parameter.
pub(crate) struct Arrays<'a, P, G> {
    pub(crate) param: &'a mut [P],
    pub(crate) grad: &'a [G],
    pub(crate) m: &'a mut [f32],
    pub(crate) v: &'a mut [f32],
    pub(crate) vmax: &'a mut [f32],
    pub(crate) master: &'a mut [f32],
}

impl<P: Convert, G: Convert> Arrays<'_, P, G> {
    /// # Safety
    /// As for [`step_chunk`], for parameters `P` and gradients `G`.
    #[inline(always)]
    pub(crate) unsafe fn of(row: &TensorRow, chunk: Chunk) -> Self {
        Self {
            // SAFETY: the caller's promise.
            param: unsafe { slice_mut(row.param, chunk) },
            // SAFETY: likewise; gradients may be shared, nobody writes to one while this lives.
            grad: unsafe { slice(row.grad, chunk) },
            // SAFETY: likewise.
            m: unsafe { slice_mut(row.m, chunk) },
            // SAFETY: likewise.
            v: unsafe { slice_mut(row.v, chunk) },
            // SAFETY: likewise.
            vmax: unsafe { slice_mut(row.vmax, chunk) },
            // SAFETY: likewise.
            master: unsafe { slice_mut(row.master, chunk) },
        }
    }

    #[inline(always)]
    fn step<I: Isa>(self, s: &StepScalars, next: Next) {
        if has(s.flags, SKIP) {
            return;
        }
        let (weights, copies) = P::weights(self.param, self.master);
        if has(s.flags, AMSGRAD) {
            walk::<I, P, G, true>(s, weights, copies, self.grad, self.m, self.v, self.vmax, next);
        } else {
            walk::<I, P, G, false>(s, weights, copies, self.grad, self.m, self.v, &mut [], next);
        }
    }
}

/// `len` elements from the chunk's start of the array at `address`; none if that is 0.
///
/// # Safety
/// Unless it is 0, at `address` the array is that long, of this type, and borrowed by nobody else for `'a`.
#[inline(always)]
pub(crate) unsafe fn slice_mut<'a, T>(address: u64, chunk: Chunk) -> &'a mut [T] {
    if address == 0 {
        return &mut [];
    }
    let base = std::ptr::with_exposed_provenance_mut::<T>(address as usize);
    // SAFETY: inside the array, says the caller.
    let start = unsafe { base.add(chunk.start as usize) };
    // SAFETY: likewise.
    unsafe { std::slice::from_raw_parts_mut(start, chunk.len as usize) }
}

/// As [`slice_mut`], shared.
///
/// # Safety
/// As for [`slice_mut`], but that others may read.
#[inline(always)]
pub(crate) unsafe fn slice<'a, T>(address: u64, chunk: Chunk) -> &'a [T] {
    let base = std::ptr::with_exposed_provenance::<T>(address as usize);
    // SAFETY: inside the array, says the caller.
    let start = unsafe { base.add(chunk.start as usize) };
    // SAFETY: likewise.
    unsafe { std::slice::from_raw_parts(start, chunk.len as usize) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::Plan;
    use crate::scalars::step_scalars;
    use crate::table::Hyper;

    const HYPER: Hyper = Hyper { lr: 1e-3, beta1: 0.9, beta2: 0.999, eps: 1e-8, weight_decay: 1e-2, flags: 0 };

    /// p, m, v of a tensor of `len` after a step in chunks of `chunk_len`.
    fn stepped(len: usize, chunk_len: u32, simd: Simd) -> [Vec<u32>; 3] {
        let value = |i: usize| (i * 37 % 101) as f32 / 50.0 - 1.0;
        let mut arrays: [Vec<f32>; 3] =
            [1.0, 0.1, 0.01].map(|scale| (0..len).map(|i| scale * value(i).abs()).collect());
        let grad: Vec<f32> = (0..len).map(|i| value(i + 7)).collect();
        let [p, m, v] = arrays.each_mut().map(|array| array.as_mut_ptr().expose_provenance() as u64);
        let grad = grad.as_ptr().expose_provenance() as u64;
        let row = TensorRow { param: p, grad, m, v, flags: row_flags::HAS_GRAD, ..TensorRow::default() };
        let chunks: Vec<Chunk> = Plan::new(vec![len as u64], chunk_len).chunks().collect();
        // SAFETY: four arrays of `len` f32 each that nobody else uses, and the plan's chunks of such a tensor.
        unsafe { run(simd, &chunks, &[row], &[step_scalars(&HYPER, 3, 1.0)]) };
        arrays.map(|array| array.into_iter().map(f32::to_bits).collect())
    }

    // The longest takes the path of many threads.
    #[test]
    fn the_chunk_length_changes_no_bit() {
        for len in [1, 7, 63, 64, 65, 127, 1000, 200_000] {
            let whole = stepped(len, 1 << 20, Simd::Portable);
            for chunk_len in [8, 16, 1024, CHUNK_LEN] {
                assert_eq!(stepped(len, chunk_len, Simd::best()), whole, "{len} elements in chunks of {chunk_len}");
            }
        }
    }
}
