//! From a group's f64 hyper-parameters and a step count to the few f32 numbers an element needs.
//! Twin: `cuda/scalars.cuh`.

#![allow(unused_parens, clippy::needless_return, reason = "the text is that of the .cuh")]

use crate::rounding::{div_rn64, has, mul_rn64, select, sqrt_rn64, sub_rn64, to_f32_rn};
use crate::table::step_flags::{L2, MAXIMIZE, SMALL_BETA1, SMALL_BETA2};
use crate::table::{Hyper, StepScalars};

/// `x^n` by binary exponentiation: `pow` differs between math libraries, this does not.
pub(crate) fn pow_rn64(x: f64, n: u64) -> f64 {
    // twin: pow_rn64 {
    let mut power = 1.0;
    let mut square = x;
    let mut rest = n;
    while (rest > 0) {
        power = select((rest & 1) == 1, mul_rn64(power, square), power);
        square = mul_rn64(square, square);
        rest >>= 1;
    }
    return power;
    // } twin
}

/// `t` counts this step.
pub(crate) fn step_scalars(h: &Hyper, t: u64, grad_scale: f64) -> StepScalars {
    let mut s = StepScalars::default();
    // twin: step_scalars {
    let bias_correction1 = sub_rn64(1.0, pow_rn64(h.beta1, t));
    let bias_correction2 = sub_rn64(1.0, pow_rn64(h.beta2, t));
    let small_beta1 = h.beta1 < 0.5;
    let small_beta2 = h.beta2 < 0.5;
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
    s.flags = h.flags | select(small_beta1, SMALL_BETA1, 0) | select(small_beta2, SMALL_BETA2, 0);
    // } twin
    s
}

#[cfg(test)]
mod tests {
    use super::*;

    const H: Hyper = Hyper { lr: 1e-3, beta1: 0.9, beta2: 0.999, eps: 1e-8, weight_decay: 1e-2, flags: 0 };

    // One rounding from f64, not `1.0f32 - 0.999f32`, which is 1.3e-5 off.
    #[test]
    fn one_minus_beta_is_rounded_once() {
        let s = step_scalars(&H, 1, 1.0);
        assert_eq!(s.lerp2.to_bits(), 1.0e-3_f32.to_bits());
        assert_ne!(s.lerp2, 1.0 - 0.999_f32);
    }

    #[test]
    fn the_bias_corrections_are_those_of_the_step() {
        let s = step_scalars(&H, 3, 1.0);
        approx::assert_relative_eq!(s.step_size, (1e-3 / (1.0 - 0.729)) as f32, max_relative = 1e-7);
        let c2 = 1.0 / (1.0 - 0.999_f64.powi(3)).sqrt();
        approx::assert_relative_eq!(s.inv_sqrt_bias_correction2, c2 as f32, max_relative = 1e-7);
        assert_eq!(s.decay, 1e-5);
    }

    #[test]
    fn a_power_of_a_huge_step_count_is_zero_and_fast() {
        assert_eq!(pow_rn64(0.999, u64::MAX), 0.0);
        assert_eq!(pow_rn64(0.0, 0), 1.0);
        approx::assert_relative_eq!(pow_rn64(0.999_999, 1_000_000), 0.999_999_f64.powf(1e6), max_relative = 1e-9);
    }

    #[test]
    fn adam_does_not_decay_the_parameter_and_maximize_turns_the_gradient() {
        let s = step_scalars(&Hyper { flags: L2 | MAXIMIZE, ..H }, 1, 0.5);
        assert_eq!((s.decay, s.weight_decay, s.grad_scale), (0.0, 1e-2, -0.5));
    }
}
