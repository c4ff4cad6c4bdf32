// From a group's f64 hyper-parameters and a step count to the few f32 numbers an element needs. Twin: src/scalars.rs.
#pragma once
#include "rounding.cuh"

// x^n by binary exponentiation: `pow` differs between math libraries, this does not.
DEVICE f64 pow_rn64(f64 x, u64 n) {
    // twin: pow_rn64 {
    f64 power = 1.0;
    f64 square = x;
    u64 rest = n;
    while (rest > 0) {
        power = select((rest & 1) == 1, mul_rn64(power, square), power);
        square = mul_rn64(square, square);
        rest >>= 1;
    }
    return power;
    // } twin
}

// `t` counts this step.
DEVICE StepScalars step_scalars(const Hyper& h, u64 t, f64 grad_scale) {
    StepScalars s;
    // twin: step_scalars {
    const f64 bias_correction1 = sub_rn64(1.0, pow_rn64(h.beta1, t));
    const f64 bias_correction2 = sub_rn64(1.0, pow_rn64(h.beta2, t));
    const bool small_beta1 = h.beta1 < 0.5;
    const bool small_beta2 = h.beta2 < 0.5;
    s.grad_scale = to_f32_rn(select(has(h.flags, MAXIMIZE), -grad_scale, grad_scale));
    s.weight_decay = to_f32_rn(h.weight_decay);
    // The second form of (1) and (2) makes beta = 0 give exactly g and g^2.
    s.lerp1 = to_f32_rn(select(small_beta1, -h.beta1, sub_rn64(1.0, h.beta1)));
    s.lerp2 = to_f32_rn(select(small_beta2, -h.beta2, sub_rn64(1.0, h.beta2)));
    s.inv_sqrt_bias_correction2 = to_f32_rn(div_rn64(1.0, sqrt_rn64(bias_correction2)));
    s.eps = to_f32_rn(h.eps);
    // Adam's decay is in its gradient.
    s.decay = to_f32_rn(select(has(h.flags, L2), 0.0, mul_rn64(h.lr, h.weight_decay)));
    s.step_size = to_f32_rn(div_rn64(h.lr, bias_correction1));
    s.flags = h.flags | select(small_beta1, SMALL_BETA1, 0u) | select(small_beta2, SMALL_BETA2, 0u);
    // } twin
    return s;
}
