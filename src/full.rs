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
unsafe fn full_chunk_inlined<I: Isa>(row: &TensorRow, chunk: Chunk, s: &StepScalars, f: &FullParams) -> Sums {
    macro_rules! step {
        ($param:ty, $grad:ty) => {{
            // SAFETY: the caller's promise, with the dtypes of the row.
            let sums = walk_chunk::<I, _, _>(unsafe { Arrays::<$param, $grad>::of(row, chunk) }, s, f);
            if has(f.flags, ZERO_GRAD) {
                // SAFETY: likewise; who has read them is done.
                unsafe { slice_mut::<$grad>(row.grad, chunk) }.fill(<$grad>::default());
            }
            sums
        }};
    }
    by_dtypes!(row, step)
}

/// Elements that are stepped and measured together, so that each loop over them is vectorized.
const TILE: usize = 256;

/// The measurements of a chunk so far; and up to [`TILE`] parameters and gradients as they are before their step.
struct Measured {
    /// By thread of a GPU's block, the sums whose order matters: gradient, parameter, update, ratio.
    threads: [[f32; BLOCK]; 4],
    /// The others.
    rest: Sums,
    before: [f32; TILE],
    grad: [f32; TILE],
}

impl Measured {
    const fn new() -> Self {
        let rest = Sums {
            grad: 0.0,
            param: 0.0,
            update: 0.0,
            ratio: 0.0,
            max_update: 0,
            non_finite: 0,
            unmoved: 0,
            below_eps: 0,
        };
        Self { threads: [[0.0; BLOCK]; 4], rest, before: [0.0; TILE], grad: [0.0; TILE] }
    }

    /// The next elements to be stepped.
    #[inline(always)]
    fn next(&mut self, weights: &[f32], grad: &[f32]) {
        self.before[..weights.len()].copy_from_slice(weights);
        self.grad[..grad.len()].copy_from_slice(grad);
    }

    /// Thread `k` adds elements `8k` to `8k + 7` of every 2048, in their order. `vmax` is what the step divided by.
    #[inline(always)]
    fn add<P: Convert>(
        &mut self,
        used: &[f32; TILE],
        start: usize,
        s: &StepScalars,
        p: &[f32],
        m: &[f32],
        vmax: &[f32],
    ) {
        let n = p.len().min(TILE);
        let (p, m, vmax, mut squares) = (&p[..n], &m[..n], &vmax[..n], [[0.0_f32; TILE]; 4]);
        for i in 0..n {
            let (before, e) = (self.before[i], Element { p: p[i], m: m[i], v: vmax[i], vmax: vmax[i] });
            let stays = to_bits(P::narrow(e.p).widen()) == to_bits(P::narrow(before).widen());
            let x = measure(s, self.grad[i], used[i], before, &e, stays);
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

    /// The sum over the threads of a chunk of `len` elements. A short chunk leaves most threads 0, which change no bit.
    fn total(&self, len: usize) -> Sums {
        let all = match len {
            0..=64 => self.of_threads::<8>(),
            65..=512 => self.of_threads::<64>(),
            _ => self.of_threads::<BLOCK>(),
        };
        add(&self.rest, &all)
    }

    /// The sum over the first `N` threads.
    fn of_threads<const N: usize>(&self) -> Sums {
        let [grad, param, update, ratio] = &self.threads;
        let mut threads: [Sums; N] = std::array::from_fn(|i| Sums {
            grad: grad[i],
            param: param[i],
            update: update[i],
            ratio: ratio[i],
            ..Sums::default()
        });
        of_block(&mut threads, |a, b| add(&a, &b))
    }
}

#[inline(always)]
fn walk_chunk<I: Isa, P: Convert, G: Convert>(a: Arrays<'_, P, G>, s: &StepScalars, f: &FullParams) -> Sums {
    let (scale, skip, measures) = (s.grad_scale, has(s.flags, SKIP), has(f.flags, METRICS));
    let s = &StepScalars { grad_scale: 1.0, ..*s };
    let Arrays { param, grad, m, v, vmax, master, .. } = a;
    let param_at = param.as_ptr();
    let (weights, copies) = P::weights(param, master);
    let len = weights.len();
    let (mut measured, mut used) = (measures.then(Measured::new), [0.0; TILE]);
    for start in (0..weights.len()).step_by(TILE) {
        let at = start..weights.len().min(start + TILE);
        let next = Next::at(param_at.wrapping_add(at.end), grad[at.end..].as_ptr());
        let (weights, m, v) = (&mut weights[at.clone()], &mut m[at.clone()], &mut v[at.clone()]);
        let (mut vmax, copies) = (vmax.get_mut(at.clone()), copies.get_mut(at.clone()).unwrap_or_default());
        G::widen_all::<I>(&grad[at], &mut used);
        measured.iter_mut().for_each(|measured| measured.next(weights, &used[..weights.len()]));
        used[..weights.len()].iter_mut().for_each(|used| *used = clamp(mul_rn(*used, scale), f.max_grad_value));
        match vmax.as_deref_mut() {
            _ if skip => {}
            Some(vmax) => walk::<I, P, f32, true>(s, weights, copies, &used[..weights.len()], m, v, vmax, next),
            None => walk::<I, P, f32, false>(s, weights, copies, &used[..weights.len()], m, v, &mut [], next),
        }
        if let Some(measured) = &mut measured {
            measured.add::<P>(&used, start, s, weights, m, vmax.as_deref().unwrap_or(v));
        }
    }
    measured.map_or(Sums::default(), |measured| measured.total(len))
}
