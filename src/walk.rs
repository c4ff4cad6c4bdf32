//! The elements of a chunk, one after the other: loops over slices that the compiler vectorizes. The slices are named one
//! by one in every signature, because in a struct they might overlap, for all that the compiler knows.

#![allow(clippy::inline_always, reason = "a call would leave the caller's target features")]
#![allow(clippy::too_many_arguments, reason = "see above")]
#![allow(clippy::cast_possible_truncation, reason = "usize has 64 bits: src/lib.rs")]

use crate::rounding::{canonical, has};
use crate::simd::{Convert, Isa, prefetch};
use crate::table::step_flags::{L2, SMALL_BETA1, SMALL_BETA2};
use crate::table::{Element, StepScalars, TensorRow};
use crate::tensor::Dtype;
use crate::update::{denominator, first_moment, gradient, parameter, second_moment, update};
use std::ops::Range;

/// Elements of a run: four cache lines of f32.
pub(crate) const RUN: usize = 64;

/// Bytes of a cache line.
const LINE: usize = 64;

/// How many elements ahead of the arithmetic their memory is asked for: 128 to 384 are about as good. On a Zen 4 64 was
/// 4 to 10% faster; on a Zen 5, with one thread, 7% slower on 16M and 10% faster on 1M elements.
const AHEAD: usize = 256;

/// What is stepped next: addresses of parameters and gradients, or 0.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Next {
    param: usize,
    grad: usize,
}

impl Next {
    pub(crate) fn at<P, G>(param: *const P, grad: *const G) -> Self {
        Self { param: param.addr(), grad: grad.addr() }
    }

    /// Of a chunk that begins at `start`.
    pub(crate) fn of(row: &TensorRow, start: u64) -> Self {
        let at = |address: u64, dtype: Dtype| (address + start * dtype.size() as u64) as usize;
        Self { param: at(row.param, row.param_dtype()), grad: at(row.grad, row.grad_dtype()) }
    }

    /// Asks for what is [`AHEAD`] of `start` in the caller's arrays: in these or, behind their whole runs, in the next.
    #[inline(always)]
    fn prefetch<P, G>(self, whole: usize, start: usize, grad: &[G], param: *const P) {
        let ahead = start + AHEAD;
        if ahead < whole {
            prefetch_run(grad.as_ptr().wrapping_add(ahead));
            prefetch_run(param.wrapping_add(ahead));
        } else {
            let ahead = (ahead - whole).min(start);
            prefetch_run(std::ptr::without_provenance::<G>(self.grad).wrapping_add(ahead));
            prefetch_run(std::ptr::without_provenance::<P>(self.param).wrapping_add(ahead));
        }
    }
}

/// Steps slices of one length; of `copies` and `vmax`, that length or none.
///
/// In runs of a length that the compiler knows, which leaves a place between them to ask for what comes. The processor
/// sees by itself what is read next, but not far enough beside this arithmetic: 16M elements take a sixth longer without.
#[inline(always)]
pub(crate) fn walk<I: Isa, P: Convert, G: Convert, const AMSGRAD: bool>(
    s: &StepScalars,
    weights: &mut [f32],
    copies: &mut [P],
    grad: &[G],
    m: &mut [f32],
    v: &mut [f32],
    vmax: &mut [f32],
    next: Next,
) {
    if !I::HAS_FMA {
        return walk_staged::<I, P, G, AMSGRAD>(s, weights, copies, grad, m, v, vmax);
    }
    let whole = weights.len() - weights.len() % RUN;
    macro_rules! step {
        ($at:expr) => {{
            let at = $at;
            next.prefetch(whole, at.start, grad, if P::NARROW { copies.as_ptr() } else { weights.as_ptr().cast() });
            if P::NARROW {
                prefetch_run(weights.as_ptr().wrapping_add(at.start + AHEAD));
            }
            prefetch_run(m.as_ptr().wrapping_add(at.start + AHEAD));
            prefetch_run(v.as_ptr().wrapping_add(at.start + AHEAD));
            if AMSGRAD {
                prefetch_run(vmax.as_ptr().wrapping_add(at.start + AHEAD));
            }
            step_run::<I, P, G, AMSGRAD>(s, at, weights, copies, grad, m, v, vmax);
        }};
    }
    for start in (0..whole).step_by(RUN) {
        step!(start..start + RUN);
    }
    if whole < weights.len() {
        step!(whole..weights.len());
    }
}

/// A run's cache lines. It may lie behind the end, where the next chunk often is.
#[inline(always)]
pub(crate) fn prefetch_run<T>(address: *const T) {
    (0..RUN * size_of::<T>()).step_by(LINE).for_each(|line| prefetch(address.wrapping_byte_add(line)));
}

/// Slices of one length, said once before the loop, so that no index is checked inside it.
#[inline(always)]
fn step_run<I: Isa, P: Convert, G: Convert, const AMSGRAD: bool>(
    s: &StepScalars,
    at: Range<usize>,
    weights: &mut [f32],
    copies: &mut [P],
    grad: &[G],
    m: &mut [f32],
    v: &mut [f32],
    vmax: &mut [f32],
) {
    let (fma, none) = (I::default(), 0..0);
    let copies = &mut copies[if P::NARROW { at.clone() } else { none.clone() }];
    let vmax = &mut vmax[if AMSGRAD { at.clone() } else { none }];
    let (grad, m, v) = (&grad[at.clone()], &mut m[at.clone()], &mut v[at.clone()]);
    let weights = &mut weights[at];
    let mut wide = [0.0; RUN];
    if G::AT_ONCE {
        G::widen_all::<I>(grad, &mut wide);
    }
    for i in 0..weights.len().min(RUN) {
        let vmax_i = if AMSGRAD { vmax[i] } else { 0.0 };
        let mut e = Element { p: weights[i], m: m[i], v: v[i], vmax: vmax_i };
        update(&fma, s, if G::AT_ONCE { wide[i] } else { grad[i].widen() }, &mut e);
        (weights[i], m[i], v[i]) = (e.p, e.m, e.v);
        if AMSGRAD {
            vmax[i] = e.vmax;
        }
    }
    P::narrow_all::<I>(weights, copies);
}

/// Elements that go through the equations together where a multiply-add is many instructions: with those of all
/// equations in one loop, the processor would see too few elements at a time.
const STAGED: usize = 32;

type Stage = [f32; STAGED];

#[inline(always)]
fn walk_staged<I: Isa, P: Convert, G: Convert, const AMSGRAD: bool>(
    s: &StepScalars,
    weights: &mut [f32],
    copies: &mut [P],
    grad: &[G],
    m: &mut [f32],
    v: &mut [f32],
    vmax: &mut [f32],
) {
    let (mut wide, mut spare, mut new) = ([0.0; STAGED], [[0.0; STAGED]; 4], [[0.0; STAGED]; 4]);
    for start in (0..weights.len()).step_by(STAGED) {
        let at = start..weights.len().min(start + STAGED);
        G::widen_all::<I>(&grad[at.clone()], &mut wide);
        let [p, m0, v0, x] = &mut spare;
        let (p, m0, v0) = (stage(&weights[at.clone()], p), stage(&m[at.clone()], m0), stage(&v[at.clone()], v0));
        let x = if AMSGRAD { stage(&vmax[at.clone()], x) } else { &*x };
        step_staged::<I, AMSGRAD>(s, G::NARROW, p, &wide, m0, v0, x, &mut new);
        store(&mut weights[at.clone()], &new[0]);
        store(&mut m[at.clone()], &new[1]);
        store(&mut v[at.clone()], &new[2]);
        if AMSGRAD {
            store(&mut vmax[at.clone()], &new[3]);
        }
        if P::NARROW {
            P::narrow_all::<I>(&new[0][..at.len()], &mut copies[at]);
        }
    }
}

/// The elements themselves, or the last few of them, in `spare`, before whatever was there.
#[inline(always)]
fn stage<'a>(elements: &'a [f32], spare: &'a mut Stage) -> &'a Stage {
    if let Ok(all) = elements.try_into() {
        return all;
    }
    spare[..elements.len()].copy_from_slice(elements);
    spare
}

#[inline(always)]
fn store(elements: &mut [f32], new: &Stage) {
    match <&mut Stage>::try_from(&mut *elements) {
        Ok(all) => *all = *new,
        Err(_) => elements.copy_from_slice(&new[..elements.len()]),
    }
}

/// `new` is p, m, v and vmax. Of `short` gradients, which have 16 bits, an `I` that may doubt would have so many doubts
/// that it is not tried. Not inlined: then the arrays are apart, for all that the compiler knows.
#[inline(never)]
fn step_staged<I: Isa, const AMSGRAD: bool>(
    s: &StepScalars,
    short: bool,
    p: &Stage,
    grad: &Stage,
    m: &Stage,
    v: &Stage,
    vmax: &Stage,
    new: &mut [Stage; 4],
) {
    const UNUSUAL: u32 = L2 | SMALL_BETA1 | SMALL_BETA2;
    if has(s.flags, UNUSUAL) {
        step_by::<I::Exact, AMSGRAD>(s, p, grad, m, v, vmax, new);
        return;
    }
    // The compiler sees which flags are not there, and leaves out what is not selected.
    let s = &StepScalars { flags: s.flags & !UNUSUAL, ..*s };
    if short || !step_by::<I, AMSGRAD>(s, p, grad, m, v, vmax, new) {
        step_by::<I::Exact, AMSGRAD>(s, p, grad, m, v, vmax, new);
    }
}

/// Equation by equation; whether `new` is right.
#[inline(always)]
fn step_by<I: Isa, const AMSGRAD: bool>(
    s: &StepScalars,
    p: &Stage,
    grad: &Stage,
    m: &Stage,
    v: &Stage,
    vmax: &Stage,
    [p1, m1, v1, x1]: &mut [Stage; 4],
) -> bool {
    let fma = I::default();
    let e = |i: usize| Element { p: p[i], m: m[i], v: v[i], vmax: if AMSGRAD { vmax[i] } else { 0.0 } };
    // A NaN in m or v is one in p, and that is a doubt: the exact `I` stores it as it has to be.
    let stored = |x: f32| if I::MAY_DOUBT { x } else { canonical(x) };
    for i in 0..STAGED {
        m1[i] = stored(first_moment(&fma, s, gradient(&fma, s, grad[i], &e(i)), &e(i)));
    }
    for i in 0..STAGED {
        let (v, vmax) = second_moment(&fma, s, gradient(&fma, s, grad[i], &e(i)), &e(i));
        v1[i] = stored(v);
        if AMSGRAD {
            x1[i] = stored(vmax);
        }
    }
    for i in 0..STAGED {
        p1[i] = denominator(&fma, s, if AMSGRAD { x1[i] } else { v1[i] });
    }
    let mut is_nan = false;
    for i in 0..STAGED {
        let p = parameter(&fma, s, &e(i), m1[i], p1[i]);
        is_nan |= p.is_nan();
        p1[i] = stored(p);
    }
    !(fma.doubts() | is_nan)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fma::{Fused, Odd, Wide};
    use crate::scalars::step_scalars;
    use crate::table::Hyper;
    use crate::table::step_flags::AMSGRAD;

    const HYPER: Hyper = Hyper { lr: 1e-3, beta1: 0.9, beta2: 0.999, eps: 1e-8, weight_decay: 1e-2, flags: 0 };

    /// m' = 0.25006103515625 * 4097 + m is a tie but for m, which no f64 sum of the two has: it is in doubt.
    const DOUBTFUL: (f32, f32, f32) = (4097.0 / 16384.0, 4097.0, 1e-30);

    fn assert_right<I: Isa>(s: &StepScalars, old: &[Element], grad: &[f32]) {
        let of = |field: fn(&Element) -> f32| old.iter().map(field).collect::<Vec<f32>>();
        let (mut p, mut m, mut v, mut vmax) = (of(|e| e.p), of(|e| e.m), of(|e| e.v), of(|e| e.vmax));
        walk::<I, f32, f32, true>(s, &mut p, &mut [], grad, &mut m, &mut v, &mut vmax, Next::default());
        for (i, e) in old.iter().enumerate() {
            let mut e = *e;
            update(&Fused, s, grad[i], &mut e);
            let (walked, right) = ([p[i], m[i], v[i], vmax[i]], [e.p, e.m, e.v, e.vmax]);
            assert_eq!(walked.map(f32::to_bits), right.map(f32::to_bits), "element {i}: {walked:?}, {right:?}");
        }
    }

    #[test]
    fn elements_in_doubt_are_stepped_exactly_and_once() {
        let (lerp1, grad, tiny) = DOUBTFUL;
        let s = StepScalars { lerp1, ..step_scalars(&HYPER, 3, 1.0) };
        let old = |i: usize| Element { p: 1.0 + i as f32, m: if i < 64 { tiny } else { -tiny }, v: 0.1, vmax: 0.2 };
        for n in [0, 1, STAGED - 1, STAGED, STAGED + 1, 2 * STAGED, 5 * STAGED + 5] {
            let old: Vec<_> = (0..n).map(old).collect();
            assert_right::<Wide>(&s, &old, &vec![grad; n]);
            assert_right::<Odd>(&s, &old, &vec![grad; n]);
        }
    }

    // One of them, among others that have none.
    #[test]
    fn a_nan_and_an_infinity_are_stored_as_they_have_to_be() {
        let old = vec![Element { p: 1.0, m: 0.1, v: 0.01, vmax: 0.02 }; 2 * STAGED];
        for flags in [0, AMSGRAD, L2, SMALL_BETA1 | SMALL_BETA2] {
            let s = StepScalars { flags, ..step_scalars(&HYPER, 3, 1.0) };
            for bad in [f32::from_bits(0xffc1_2345), f32::from_bits(0x7f80_0001), f32::INFINITY, -1e20] {
                let mut grad = vec![0.5; old.len()];
                grad[7] = bad;
                assert_right::<Wide>(&s, &old, &grad);
                let mut old = old.clone();
                (old[1].p, old[2].m, old[3].v, old[STAGED].vmax) = (bad, bad, bad, bad);
                assert_right::<Wide>(&s, &old, &vec![0.5; old.len()]);
            }
        }
    }
}
