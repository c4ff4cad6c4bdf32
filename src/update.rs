//! One element, equations (0) to (5) of the README's Conventions: the arithmetic, and no address. This is the
//! oracle. Twin: `cuda/update.cuh`.

#![allow(clippy::inline_always, reason = "a call would leave the caller's target features")]

use crate::rounding::{canonical, div_rn, has, max_nan, mul_rn, select, sqrt_rn, sub_rn};
use crate::simd::Isa;
use crate::table::step_flags::{AMSGRAD, L2, SMALL_BETA1, SMALL_BETA2};
use crate::table::{Element, StepScalars};

/// Steps `e` by the gradient `grad`. `e.vmax` is read with AMSGrad only.
#[inline(always)]
pub(crate) fn update(fma: &impl Isa, s: &StepScalars, grad: f32, e: &mut Element) {
    let g = gradient(fma, s, grad, e);
    let m = first_moment(fma, s, g, e);
    let (v, vmax) = second_moment(fma, s, g, e);
    let d = denominator(fma, s, vmax);
    let p = parameter(fma, s, e, m, d);
    // twin: stored {
    e.p = canonical(p);
    e.m = canonical(m);
    e.v = canonical(v);
    e.vmax = canonical(vmax);
    // } twin
}

#[inline(always)]
pub(crate) fn gradient<I: Isa>(_: &I, s: &StepScalars, grad: f32, e: &Element) -> f32 {
    // Most steps let the sum fall, and a doubt would stay.
    let fma_rn = |a, b, c| I::Exact::default().fma_rn(a, b, c);
    // twin: gradient {
    let g1 = mul_rn(grad, s.grad_scale);
    // (0) Adam only: weight decay as an L2 term of the gradient
    let g = select(has(s.flags, L2), fma_rn(s.weight_decay, e.p, g1), g1);
    // } twin
    g
}

#[inline(always)]
pub(crate) fn first_moment(fma: &impl Isa, s: &StepScalars, g: f32, e: &Element) -> f32 {
    let fma_rn = |a, b, c| fma.fma_rn(a, b, c);
    // twin: first moment {
    // (1)
    let m = fma_rn(s.lerp1, sub_rn(g, e.m), select(has(s.flags, SMALL_BETA1), g, e.m));
    // } twin
    m
}

/// And what it is divided by: with AMSGrad its largest value.
#[inline(always)]
pub(crate) fn second_moment(fma: &impl Isa, s: &StepScalars, g: f32, e: &Element) -> (f32, f32) {
    let fma_rn = |a, b, c| fma.fma_rn(a, b, c);
    // twin: second moment {
    // (2) AMSGrad keeps its largest value
    let v = fma_rn(s.lerp2, fma_rn(g, g, -e.v), select(has(s.flags, SMALL_BETA2), mul_rn(g, g), e.v));
    let vmax = select(has(s.flags, AMSGRAD), max_nan(e.vmax, v), v);
    // } twin
    (v, vmax)
}

#[inline(always)]
pub(crate) fn denominator(fma: &impl Isa, s: &StepScalars, vmax: f32) -> f32 {
    let fma_rn = |a, b, c| fma.fma_rn(a, b, c);
    // twin: denominator {
    // (3) eps is outside the root
    let d = fma_rn(sqrt_rn(vmax), s.inv_sqrt_bias_correction2, s.eps);
    // } twin
    d
}

#[inline(always)]
pub(crate) fn parameter(fma: &impl Isa, s: &StepScalars, e: &Element, m: f32, d: f32) -> f32 {
    let fma_rn = |a, b, c| fma.fma_rn(a, b, c);
    // twin: parameter {
    // (4) decoupled weight decay, of the old parameter
    let p1 = fma_rn(-s.decay, e.p, e.p);
    // (5) the step
    let p = fma_rn(-s.step_size, div_rn(m, d), p1);
    // } twin
    p
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fma::Fused;
    use crate::scalars::step_scalars;
    use crate::table::Hyper;

    const H: Hyper = Hyper { lr: 1e-3, beta1: 0.9, beta2: 0.999, eps: 1e-8, weight_decay: 0.0, flags: 0 };

    fn stepped(h: Hyper, g: f32, mut e: Element) -> Element {
        update(&Fused, &step_scalars(&h, 1, 1.0), g, &mut e);
        e
    }

    // g = eps = 1e-8 halves the first step of a parameter at 0; eps inside the root would leave 1e-4 of it.
    #[test]
    fn eps_is_outside_the_root() {
        let e = stepped(H, 1e-8, Element::default());
        approx::assert_relative_eq!(e.p, -0.5e-3, max_relative = 1e-6);
    }

    #[test]
    fn beta_zero_gives_exactly_the_gradient_and_its_square() {
        let h = Hyper { beta1: 0.0, beta2: 0.0, ..H };
        let old = Element { p: 1.0, m: 0.7, v: 0.3, vmax: 0.0 };
        for g in [0.1_f32, -3.3, 1e-20, 1e15] {
            let e = stepped(h, g, old);
            assert_eq!((e.m.to_bits(), e.v.to_bits()), (g.to_bits(), (g * g).to_bits()));
        }
    }

    #[test]
    fn weight_decay_is_multiplied_by_lr_and_taken_of_the_old_parameter() {
        let h = Hyper { lr: 0.5, weight_decay: 0.5, ..H };
        let e = stepped(h, 0.0, Element { p: 8.0, ..Element::default() });
        assert_eq!(e.p, 8.0 - 0.5 * 0.5 * 8.0);
    }

    #[test]
    fn amsgrad_divides_by_the_largest_second_moment() {
        let h = Hyper { flags: AMSGRAD, ..H };
        let e = stepped(h, 1.0, Element { vmax: 4.0, ..Element::default() });
        assert_eq!((e.vmax, e.v), (4.0, 1e-3));
    }

    #[test]
    fn a_nan_gradient_is_stored_as_the_canonical_nan() {
        let e = stepped(H, f32::from_bits(0xffc0_1234), Element { p: 1.0, ..Element::default() });
        assert_eq!([e.p, e.m, e.v].map(f32::to_bits), [0x7fc0_0000; 3]);
    }
}
