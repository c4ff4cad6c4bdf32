//! The update with everything that a plain step does without: gradients clamped, written as zeros, and what is measured
//! of the step. It walks the chunks of the norm, and adds in the order of a GPU. Twin: `cuda/full.cuh`.

#![allow(clippy::inline_always, reason = "a call would leave the caller's target features")]
#![allow(
    clippy::needless_return,
    clippy::float_cmp,
    clippy::needless_bitwise_bool,
    clippy::field_reassign_with_default,
    reason = "the text is that of the .cuh"
)]
#![allow(clippy::needless_range_loop, reason = "several arrays of one length, which the compiler sees")]

use crate::cpu::{Arrays, by_dtypes, slice_mut, tasks};
use crate::norm::{BLOCK, LANES, of_block};
use crate::rounding::{
    add_rn, add_wrap, canonical, div_rn, has, is_finite, max_nan, mul_rn, select, sqrt_rn, sub_rn, to_bits,
};
use crate::simd::{Convert, Isa, Simd, for_every_simd};
use crate::table::full_flags::{METRICS, ZERO_GRAD};
use crate::table::step_flags::SKIP;
use crate::table::{Chunk, Element, FullParams, StepScalars, Sums, TensorRow, row_flags};
use crate::walk::{Next, walk};
use half::{bf16, f16};
use rayon::prelude::*;

#[inline(always)]
fn clamp(x: f32, most: f32) -> f32 {
    // twin: clamp {
    let raised = select(x < -most, -most, x);
    return select(raised > most, most, raised);
    // } twin
}

/// Of one element: `grad` as it lies in memory, `used` as the step took it; its parameter `before`; what has become of
/// it; whether it `stays` as it is stored.
#[inline(always)]
fn measure(s: &StepScalars, grad: f32, used: f32, before: f32, e: &Element, stays: bool) -> Sums {
    let mut x = Sums::default();
    // twin: measure {
    let moved = sub_rn(e.p, before);
    let root = mul_rn(sqrt_rn(e.vmax), s.inv_sqrt_bias_correction2);
    let ratio = select(used == 0.0, 0.0, div_rn(used, max_nan(s.eps, root)));
    let pulled = ((e.m != 0.0) & (s.step_size != 0.0)) | (mul_rn(s.decay, before) != 0.0);
    x.grad = mul_rn(grad, grad);
    x.param = mul_rn(e.p, e.p);
    x.update = mul_rn(moved, moved);
    x.ratio = mul_rn(ratio, ratio);
    x.max_update = to_bits(canonical(moved)) & 0x7fffffff;
    x.non_finite = select(is_finite(grad), 0, 1);
    x.unmoved = select(pulled & stays & !has(s.flags, SKIP), 1, 0);
    x.below_eps = select(root < s.eps, 1, 0);
    return x;
    // } twin
}

#[inline(always)]
fn add(a: &Sums, b: &Sums) -> Sums {
    let mut x = Sums::default();
    // twin: add {
    x.grad = add_rn(a.grad, b.grad);
    x.param = add_rn(a.param, b.param);
    x.update = add_rn(a.update, b.update);
    x.ratio = add_rn(a.ratio, b.ratio);
    // NaN is larger than anything else, as bits.
    x.max_update = select(b.max_update > a.max_update, b.max_update, a.max_update);
    x.non_finite = add_wrap(a.non_finite, b.non_finite);
    x.unmoved = add_wrap(a.unmoved, b.unmoved);
    x.below_eps = add_wrap(a.below_eps, b.below_eps);
    return x;
    // } twin
}

/// The step of every chunk, on the threads of the current rayon pool; with `METRICS`, `sums` is what is measured of each.
///
/// # Safety
/// As for [`crate::cpu::run`]; with `ZERO_GRAD`, gradients are among what is written. `sums` are as many as `chunks`.
pub(crate) unsafe fn run(
    simd: Simd,
    chunks: &[Chunk],
    rows: &[TensorRow],
    scalars: &[StepScalars],
    f: &FullParams,
    sums: &mut [Sums],
) {
    let one = |(sums, chunk): (&mut Sums, &Chunk)| {
        let row = &rows[chunk.tensor as usize];
        *sums = Sums::default();
        if row.flags & row_flags::HAS_GRAD != 0 {
            // SAFETY: the caller's promise; no two chunks share an element, so that no two threads do.
            *sums = unsafe { full_chunk(simd, row, *chunk, &scalars[row.scalars as usize], f) };
        }
    };
    match tasks(chunks) {
        None => sums.iter_mut().zip(chunks).for_each(one),
        Some(together) => sums.par_iter_mut().zip(chunks).with_min_len(together).for_each(one),
    }
}

for_every_simd! {
    /// # Safety
    /// As for [`run`], for this chunk of a tensor with a gradient.
    unsafe fn full_chunk(row: &TensorRow, chunk: Chunk, s: &StepScalars, f: &FullParams) -> Sums, by full_chunk_inlined
}

/// # Safety
/// As for [`full_chunk`].
#[inline(always)]
unsafe fn full_chunk_inlined<F: Isa>(row: &TensorRow, chunk: Chunk, s: &StepScalars, f: &FullParams) -> Sums {
    macro_rules! step {
        ($param:ty, $grad:ty) => {{
            // SAFETY: the caller's promise, with the dtypes of the row.
            let sums = walk_chunk::<F, _, _>(unsafe { Arrays::<$param, $grad>::of(row, chunk) }, s, f);
            if has(f.flags, ZERO_GRAD) {
                // SAFETY: likewise; who has read them is done.
                unsafe { slice_mut::<$grad>(row.grad, chunk) }.fill(<$grad>::default());
            }
            sums
        }};
    }
    by_dtypes!(row, step)
}

/// Elements that are loaded, stepped, measured and stored together, so that each loop over them is vectorized.
const TILE: usize = 256;

/// Up to [`TILE`] of them; behind `len` is whatever was there.
struct Tile {
    len: usize,
    before: [f32; TILE],
    p: [f32; TILE],
    m: [f32; TILE],
    v: [f32; TILE],
    vmax: [f32; TILE],
    grad: [f32; TILE],
    used: [f32; TILE],
}

impl Tile {
    #[inline(always)]
    fn new() -> Self {
        let zeros = [0.0; TILE];
        Self { len: 0, before: zeros, p: zeros, m: zeros, v: zeros, vmax: zeros, grad: zeros, used: zeros }
    }

    #[inline(always)]
    fn load<F: Isa, P, G: Convert>(&mut self, a: &Arrays<'_, P, G>, weights: &[f32], start: usize) {
        let at = start..weights.len().min(start + TILE);
        self.len = at.len().min(TILE); // for the compiler, which cannot tell
        let copy = |to: &mut [f32; TILE], from: &[f32]| to[..from.len()].copy_from_slice(from);
        copy(&mut self.before, &weights[at.clone()]);
        copy(&mut self.p, &weights[at.clone()]);
        copy(&mut self.m, &a.m[at.clone()]);
        copy(&mut self.v, &a.v[at.clone()]);
        // What a step without AMSGrad divides by.
        copy(&mut self.vmax, &(if a.vmax.is_empty() { &*a.v } else { &*a.vmax })[at.clone()]);
        G::widen_all::<F>(&a.grad[at], &mut self.grad[..self.len]);
    }

    #[inline(always)]
    fn store<F: Isa, P: Convert, G>(
        &self,
        a: &mut Arrays<'_, P, G>,
        weights: &mut [f32],
        copies: &mut [P],
        start: usize,
    ) {
        let (len, at) = (self.len, start..start + self.len);
        weights[at.clone()].copy_from_slice(&self.p[..len]);
        a.m[at.clone()].copy_from_slice(&self.m[..len]);
        a.v[at.clone()].copy_from_slice(&self.v[..len]);
        a.vmax.get_mut(at.clone()).into_iter().for_each(|vmax| vmax.copy_from_slice(&self.vmax[..len]));
        if P::NARROW {
            P::narrow_all::<F>(&self.p[..len], &mut copies[at]);
        }
    }

    #[inline(always)]
    fn clamp(&mut self, scale: f32, most: f32) {
        self.used.iter_mut().zip(&self.grad).for_each(|(used, grad)| *used = clamp(mul_rn(*grad, scale), most));
    }

    #[inline(always)]
    fn update<F: Isa>(&mut self, s: &StepScalars) {
        let Self { p, m, v, vmax, used, .. } = self;
        walk::<F, f32, f32, true>(s, p, &mut [], used, m, v, vmax, Next::default());
    }
}

/// What is measured of a chunk so far.
struct Measured {
    /// By thread of a GPU's block, the sums whose order matters: gradient, parameter, update, ratio.
    threads: [[f32; BLOCK]; 4],
    /// The others.
    rest: Sums,
}

impl Measured {
    /// Thread `k` adds elements `8k` to `8k + 7` of every 2048, in their order.
    #[inline(always)]
    fn add<P: Convert>(&mut self, tile: &Tile, start: usize, s: &StepScalars) {
        let mut squares = [[0.0_f32; TILE]; 4];
        for i in 0..tile.len.min(TILE) {
            let (p, before) = (tile.p[i], tile.before[i]);
            let e = Element { p, m: tile.m[i], v: tile.v[i], vmax: tile.vmax[i] };
            let stays = to_bits(P::narrow(p).widen()) == to_bits(P::narrow(before).widen());
            let x = measure(s, tile.grad[i], tile.used[i], before, &e, stays);
            (squares[0][i], squares[1][i], squares[2][i], squares[3][i]) = (x.grad, x.param, x.update, x.ratio);
            self.rest.max_update = self.rest.max_update.max(x.max_update);
            self.rest.non_finite += x.non_finite;
            self.rest.unmoved += x.unmoved;
            self.rest.below_eps += x.below_eps;
        }
        let first = start / LANES % BLOCK;
        for (threads, squares) in self.threads.iter_mut().zip(&squares) {
            for (sum, squares) in threads[first..].iter_mut().zip(squares.as_chunks::<LANES>().0) {
                *sum = squares.iter().fold(*sum, |sum, square| add_rn(sum, *square));
            }
        }
    }

    fn total(&self) -> Sums {
        let [grad, param, update, ratio] = &self.threads;
        let mut threads = [Sums::default(); BLOCK];
        for (i, x) in threads.iter_mut().enumerate() {
            *x = Sums { grad: grad[i], param: param[i], update: update[i], ratio: ratio[i], ..Sums::default() };
        }
        add(&self.rest, &of_block(&threads, |a, b| add(&a, &b)))
    }
}

#[inline(always)]
fn walk_chunk<F: Isa, P: Convert, G: Convert>(mut a: Arrays<'_, P, G>, s: &StepScalars, f: &FullParams) -> Sums {
    a.init_masters();
    let (scale, skip, measures) = (s.grad_scale, has(s.flags, SKIP), has(f.flags, METRICS));
    let s = StepScalars { grad_scale: 1.0, ..*s };
    let (param, master) = (std::mem::take(&mut a.param), std::mem::take(&mut a.master));
    let (weights, copies) = P::weights(param, master);
    let mut measured = Measured { threads: [[0.0; BLOCK]; 4], rest: Sums::default() };
    let mut tile = Tile::new();
    for start in (0..weights.len()).step_by(TILE) {
        tile.load::<F, _, _>(&a, weights, start);
        tile.clamp(scale, f.max_grad_value);
        if !skip {
            tile.update::<F>(&s);
            tile.store::<F, _, _>(&mut a, weights, copies, start);
        }
        if measures {
            measured.add::<P>(&tile, start, &s);
        }
    }
    measured.total()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fma::{Fused, Wide};
    use crate::scalars::step_scalars;
    use crate::table::Hyper;

    // m' = 0.25006103515625 * 4097 + m is a tie but for m, as in cpu.rs.
    #[test]
    fn a_tile_in_doubt_is_stepped_exactly_and_once() {
        let hyper = Hyper { lr: 1e-3, beta1: 0.9, beta2: 0.999, eps: 1e-8, weight_decay: 1e-2, flags: 0 };
        let s = StepScalars { lerp1: 4097.0 / 16384.0, ..step_scalars(&hyper, 3, 1.0) };
        let stepped = |update: fn(&mut Tile, &StepScalars)| {
            let mut tile = Tile::new();
            (tile.len, tile.p, tile.m, tile.used) = (TILE - 3, [1.0; TILE], [1e-30; TILE], [4097.0; TILE]);
            update(&mut tile, &s);
            (tile.p, tile.m, tile.v)
        };
        assert_eq!(stepped(Tile::update::<Wide>), stepped(Tile::update::<Fused>));
    }
}
