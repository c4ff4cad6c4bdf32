// One element, equations (0) to (5) of the README's Conventions: the arithmetic, and no address. Twin: src/update.rs.
#pragma once
#include "rounding.cuh"

DEVICE void update(const StepScalars& s, f32 grad, Element& e) {
    // twin: gradient {
    const f32 g1 = mul_rn(grad, s.grad_scale);
    // (0) Adam only: weight decay as an L2 term of the gradient
    const f32 g = select(has(s.flags, L2), fma_rn(s.weight_decay, e.p, g1), g1);
    // } twin
    // twin: first moment {
    // (1)
    const f32 m = fma_rn(s.lerp1, sub_rn(g, e.m), select(has(s.flags, SMALL_BETA1), g, e.m));
    // } twin
    // twin: second moment {
    // (2) AMSGrad keeps its largest value
    const f32 v = fma_rn(s.lerp2, fma_rn(g, g, -e.v), select(has(s.flags, SMALL_BETA2), mul_rn(g, g), e.v));
    const f32 vmax = select(has(s.flags, AMSGRAD), max_nan(e.vmax, v), v);
    // } twin
    // twin: denominator {
    // (3) eps is outside the root
    const f32 d = fma_rn(sqrt_rn(vmax), s.inv_sqrt_bias_correction2, s.eps);
    // } twin
    // twin: parameter {
    // (4) decoupled weight decay, of the old parameter
    const f32 p1 = fma_rn(-s.decay, e.p, e.p);
    // (5) the step
    const f32 p = fma_rn(-s.step_size, div_rn(m, d), p1);
    // } twin
    // twin: stored {
    e.p = canonical(p);
    e.m = canonical(m);
    e.v = canonical(v);
    e.vmax = canonical(vmax);
    // } twin
}
