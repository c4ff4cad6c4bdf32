//! The sum of the squares of all gradients. Beside it on a GPU: `cuda/norm.cuh`, and `finalize.cuh` for the sum of the parts.
//!
//! A tensor is cut into chunks of [`NORM_CHUNK_LEN`]. In a chunk, gradient `i` is added to sum `i % 2048`, in f32; then
//! the sums of 8 neighbours, of 32 such, of 8 such. The chunks' sums are added exactly (`exact_sum.rs`) and rounded once: so
//! no order of the tensors, and no cut of one at a multiple of the chunk's length, changes a bit.

#![allow(clippy::inline_always, reason = "a call would leave the caller's target features")]

use crate::cpu::{slice, tasks};
use crate::exact_sum::ExactSum;
use crate::rounding::{add_rn, canonical, is_finite};
use crate::simd::{Isa, Simd, for_every_simd};
use crate::table::{Chunk, Squares, TensorRow, dtypes, row_flags};
use crate::tensor::Float;
use crate::walk::{RUN, prefetch_run};
use half::{bf16, f16};
use rayon::prelude::*;

/// Elements of a chunk: a million gradients are 123 blocks of a GPU.
pub(crate) const NORM_CHUNK_LEN: u32 = 8 * 1024;

/// Sums of a thread, threads of a warp, warps of a block: as on a GPU.
pub(crate) const LANES: usize = 8;
const WARP: usize = 32;
const WARPS: usize = 8;
pub(crate) const BLOCK: usize = WARP * WARPS;
const SUMS: usize = LANES * BLOCK;

/// The squares of each chunk; of a tensor without a gradient, none.
///
/// # Safety
/// As for [`crate::cpu::run`], for the gradients alone. `squares` are as many as `chunks`.
pub(crate) unsafe fn of_chunks(simd: Simd, chunks: &[Chunk], rows: &[TensorRow], squares: &mut [Squares]) {
    let one = |(squares, chunk): (&mut Squares, &Chunk)| {
        let row = &rows[chunk.tensor as usize];
        let has_grad = row.flags & row_flags::HAS_GRAD != 0;
        // SAFETY: the caller's promise.
        *squares = if has_grad { unsafe { of_chunk(simd, row, *chunk) } } else { Squares::default() };
    };
    match tasks(chunks) {
        None => squares.iter_mut().zip(chunks).for_each(one),
        Some(together) => squares.par_iter_mut().zip(chunks).with_min_len(together).for_each(one),
    }
}

for_every_simd! {
    /// # Safety
    /// As for [`of_chunks`], for this chunk of a tensor with a gradient.
    unsafe fn of_chunk(row: &TensorRow, chunk: Chunk) -> Squares, by of_chunk_inlined
}

/// # Safety
/// As for [`of_chunk`].
#[inline(always)]
unsafe fn of_chunk_inlined<I: Isa>(row: &TensorRow, chunk: Chunk) -> Squares {
    match row.grad_dtype {
        // SAFETY: (all three) the caller's promise, with the dtype of the row.
        dtypes::F32 => of::<I, _>(unsafe { slice::<f32>(row.grad, chunk) }),
        // SAFETY: see above.
        dtypes::F16 => of::<I, _>(unsafe { slice::<f16>(row.grad, chunk) }),
        // SAFETY: see above.
        _ => of::<I, _>(unsafe { slice::<bf16>(row.grad, chunk) }),
    }
}

/// A short chunk leaves most sums 0, which change no bit of the total: they are left out.
#[inline(always)]
fn of<I: Isa, G: Float>(grad: &[G]) -> Squares {
    match grad.len() {
        0..=32 => by_sums::<I, G, 32>(grad),
        33..=128 => by_sums::<I, G, 128>(grad),
        129..=512 => by_sums::<I, G, 512>(grad),
        _ => by_sums::<I, G, SUMS>(grad),
    }
}

/// By the first `N` sums, a power of 2: as many as there are, or as elements.
#[inline(always)]
fn by_sums<I: Isa, G: Float, const N: usize>(grad: &[G]) -> Squares {
    let (mut sums, mut non_finite) = ([0.0_f32; N], 0);
    for row in grad.chunks(N) {
        non_finite += add_row::<I, G, N>(&mut sums, row);
    }
    Squares { sum: canonical(tree(&sums)), non_finite }
}

/// Adds a row to the sums; how many of it are not finite. Squares of 16-bit gradients leave too many doubts to try them.
#[inline(always)]
fn add_row<I: Isa, G: Float, const N: usize>(sums: &mut [f32; N], row: &[G]) -> u32 {
    if I::MAY_DOUBT && !G::NARROW {
        let (isa, before) = (I::default(), *sums);
        let non_finite = add(&isa, sums, row);
        if !isa.doubts() {
            return non_finite;
        }
        *sums = before;
    }
    add(&I::Exact::default(), sums, row)
}

/// How many elements ahead their memory is asked for: 256 to 2,048 are about as good.
const AHEAD: usize = 512;

#[inline(always)]
fn add<G: Float, const N: usize>(isa: &impl Isa, sums: &mut [f32; N], row: &[G]) -> u32 {
    let mut non_finite = 0;
    for (sums, grad) in sums.chunks_mut(RUN).zip(row.chunks(RUN)) {
        prefetch_run(grad.as_ptr().wrapping_add(AHEAD));
        for (sum, g) in sums.iter_mut().zip(grad) {
            let g = g.widen();
            *sum = isa.fma_rn(g, g, *sum);
            non_finite += u32::from(!is_finite(g));
        }
    }
    non_finite
}

#[inline(always)]
fn tree<const N: usize>(sums: &[f32; N]) -> f32 {
    let mut threads = [0.0_f32; N];
    for (thread, s) in threads.iter_mut().zip(sums.as_chunks::<LANES>().0) {
        let (low, high) =
            (add_rn(add_rn(s[0], s[1]), add_rn(s[2], s[3])), add_rn(add_rn(s[4], s[5]), add_rn(s[6], s[7])));
        *thread = add_rn(low, high);
    }
    of_block(&mut threads[..N / LANES], add_rn)
}

/// The sum over the first threads of a block, a power of 2, if the others have 0: of each warp, then of the warps.
#[inline(always)]
pub(crate) fn of_block<T: Copy + Default>(threads: &mut [T], add: impl Fn(T, T) -> T + Copy) -> T {
    if threads.len() <= WARP {
        return halved(threads, add);
    }
    let mut warps = [T::default(); WARP];
    let all = threads.as_chunks_mut::<WARP>().0;
    let count = all.len();
    for (warp, threads) in warps.iter_mut().zip(all) {
        *warp = halved(threads, add);
    }
    halved(&mut warps[..count], add)
}

/// The sum of all: of those half of them apart, then a quarter, then neighbours.
#[inline(always)]
fn halved<T: Copy>(values: &mut [T], add: impl Fn(T, T) -> T) -> T {
    let mut apart = values.len() / 2;
    while apart > 0 {
        for i in 0..apart {
            values[i] = add(values[i], values[i + apart]);
        }
        apart /= 2;
    }
    values[0]
}

/// The exact sum of the chunks that `counts` holds for, rounded once.
pub(crate) fn total(squares: &[Squares], counts: impl Fn(usize) -> bool) -> f64 {
    let mut sum = ExactSum::default();
    squares.iter().enumerate().filter(|&(i, _)| counts(i)).for_each(|(_, squares)| sum.add(squares.sum));
    sum.value()
}

/// The largest sum of a chunk, where a NaN is larger than all else.
pub(crate) fn largest<'a>(squares: impl IntoIterator<Item = &'a Squares>) -> f32 {
    f32::from_bits(squares.into_iter().map(|squares| squares.sum.to_bits()).max().unwrap_or(0))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fma::{Fused, Wide};

    // Against f64, for lengths around a lane's, a row's and a chunk's.
    #[test]
    fn it_is_the_sum_of_the_squares() {
        for len in [0, 1, 7, 8, 9, 255, 256, 257, 2047, 2048, 2049, 8191, 8192] {
            let grad: Vec<f32> = (0..len).map(|i| (i * 37 % 101) as f32 / 50.0 - 1.0).collect();
            let exact: f64 = grad.iter().map(|&g| f64::from(g) * f64::from(g)).sum();
            approx::assert_relative_eq!(f64::from(of::<Fused, _>(&grad).sum), exact, max_relative = 1e-6);
        }
    }

    #[test]
    fn what_is_not_finite_is_counted_and_shows_in_the_sum() {
        let mut grad = vec![1.0_f32; 3000];
        (grad[5], grad[2999]) = (f32::NEG_INFINITY, f32::INFINITY);
        assert_eq!(of::<Fused, _>(&grad), Squares { sum: f32::INFINITY, non_finite: 2 });
        grad[7] = f32::from_bits(0xffc1_2345);
        assert_eq!((of::<Fused, _>(&grad).sum.to_bits(), of::<Fused, _>(&grad).non_finite), (0x7fc0_0000, 3));
    }

    #[test]
    fn the_instruction_set_changes_no_bit() {
        let grad: Vec<f32> = (0..5000).map(|i| 1.0 / (1.0 + i as f32)).collect();
        let row = TensorRow { grad: grad.as_ptr().expose_provenance() as u64, ..TensorRow::default() };
        let chunk = Chunk { start: 8, tensor: 0, len: 4990 };
        for simd in [Simd::Portable, Simd::Avx2, Simd::Avx512].into_iter().filter(|simd| simd.is_available()) {
            // SAFETY: a chunk inside `grad`, which nobody writes, and a `Simd` that is available.
            assert_eq!(unsafe { of_chunk(simd, &row, chunk) }, of::<Fused, _>(&grad[8..4998]));
        }
    }

    // 4097 * 4097 is a tie but for the sum before it, 1e-30: the second row is in doubt.
    #[test]
    fn a_row_in_doubt_is_added_exactly_and_once() {
        let mut grad = vec![0.0_f32; SUMS + 8];
        (grad[0], grad[SUMS]) = (1e-15, 4097.0);
        assert_eq!(of::<Wide, _>(&grad), of::<Fused, _>(&grad));
        grad[SUMS + 7] = f32::NAN;
        assert_eq!(of::<Wide, _>(&grad).non_finite, 1);
    }

    #[test]
    fn chunks_that_do_not_count_are_left_out() {
        let squares = [1.0, 2.0, f32::NAN, 8.0].map(|sum| Squares { sum, non_finite: 0 });
        assert_eq!(total(&squares, |i| i != 2), 11.0);
        assert!(total(&squares, |_| true).is_nan());
    }

    #[test]
    fn the_largest_sum_is_nan_before_infinite_before_all() {
        let largest = |sums: &[f32]| {
            largest(&sums.iter().map(|&sum| Squares { sum, non_finite: 0 }).collect::<Vec<_>>()).to_bits()
        };
        assert_eq!(largest(&[]), 0);
        assert_eq!(largest(&[1.0, 3e38, 2.0]), 3e38_f32.to_bits());
        assert_eq!(largest(&[3e38, f32::INFINITY, 0.0]), f32::INFINITY.to_bits());
        assert_eq!(largest(&[f32::INFINITY, f32::NAN]), f32::NAN.to_bits());
    }
}
