//! What is measured of a step, from its chunks to its tensors: on the CPU. Twin: `cuda/collect.cuh`.

#![allow(clippy::needless_return, clippy::field_reassign_with_default, reason = "the text is that of the .cuh")]

use crate::norm::{BLOCK, of_block};
use crate::rounding::{add_rn64, add_wrap64, canonical64, has, select, to_f64};
use crate::table::step_flags::SKIP;
use crate::table::sums_flags::{MEASURED, STEPPED};
use crate::table::{Chunk, StepScalars, Sums, TensorRow, TensorSums, row_flags};

pub(crate) fn add(a: &TensorSums, b: &TensorSums) -> TensorSums {
    let mut x = TensorSums::default();
    // twin: add {
    x.grad = add_rn64(a.grad, b.grad);
    x.param = add_rn64(a.param, b.param);
    x.update = add_rn64(a.update, b.update);
    x.ratio = add_rn64(a.ratio, b.ratio);
    x.non_finite = add_wrap64(a.non_finite, b.non_finite);
    x.unmoved = add_wrap64(a.unmoved, b.unmoved);
    x.below_eps = add_wrap64(a.below_eps, b.below_eps);
    x.max_update = select(b.max_update > a.max_update, b.max_update, a.max_update);
    x.flags = a.flags | b.flags;
    return x;
    // } twin
}

/// Of each tensor the index of its first chunk, and behind them the number of chunks.
pub(crate) fn firsts(chunks: &[Chunk], tensors: usize) -> Vec<u32> {
    let index = |tensor: usize| chunks.partition_point(|chunk| (chunk.tensor as usize) < tensor);
    (0..=tensors).map(|tensor| u32::try_from(index(tensor)).unwrap_or(u32::MAX)).collect() // as `chunk_count`
}

/// Of each tensor, from its chunks' `sums`.
pub(crate) fn collect<'a>(
    rows: &'a [TensorRow],
    scalars: &'a [StepScalars],
    firsts: &'a [u32],
    sums: &'a [Sums],
) -> impl Iterator<Item = TensorSums> + 'a {
    let range = |ends: &[u32]| ends[0] as usize..ends[1] as usize;
    let of_tensor = move |(row, ends)| TensorSums { flags: flags_of(row, scalars), ..of_chunks(&sums[range(ends)]) };
    rows.iter().zip(firsts.windows(2)).map(of_tensor)
}

/// Of one tensor; thread `k` of a GPU adds every 256th, from the k-th on.
fn of_chunks(sums: &[Sums]) -> TensorSums {
    // One chunk is what a tensor has by far the most often; zeros change no bit.
    let x = match sums {
        [] => TensorSums::default(),
        [one] => add(&TensorSums::default(), &widened(one)),
        _ => of_many(sums),
    };
    let [grad, param, update, ratio] = [x.grad, x.param, x.update, x.ratio].map(canonical64);
    TensorSums { grad, param, update, ratio, ..x }
}

fn of_many(sums: &[Sums]) -> TensorSums {
    let mut threads = [TensorSums::default(); BLOCK];
    sums.iter().enumerate().for_each(|(i, sums)| threads[i % BLOCK] = add(&threads[i % BLOCK], &widened(sums)));
    of_block(&mut threads, |a, b| add(&a, &b))
}

fn widened(x: &Sums) -> TensorSums {
    let [grad, param, update, ratio] = [x.grad, x.param, x.update, x.ratio].map(to_f64);
    let [non_finite, unmoved, below_eps] = [x.non_finite, x.unmoved, x.below_eps].map(u64::from);
    TensorSums { grad, param, update, ratio, non_finite, unmoved, below_eps, max_update: x.max_update, flags: 0 }
}

fn flags_of(row: &TensorRow, scalars: &[StepScalars]) -> u32 {
    let skipped = || has(scalars[row.scalars as usize].flags, SKIP);
    match row.flags & row_flags::HAS_GRAD {
        0 => 0,
        _ if skipped() => MEASURED,
        _ => MEASURED | STEPPED,
    }
}
