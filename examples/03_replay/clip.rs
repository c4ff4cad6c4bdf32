//! Clipping by the norm of all gradients of a step: the coefficient in f64, and how far two implementations of it,
//! ours among them, may be apart.
//!
//! A norm of N elements in f32, in any order of summation, is off by about sqrt(N) u (random rounding; N u is never
//! seen), plus 4 roundings for the norms of norms. The coefficient adds 3: the quotient, its rounding and the product
//! with the gradient, all in the gradients' format, which is where 16-bit ones underflow; and 10 of ours: f32(clip), the
//! product, and half of the 15 that a square passes through on its way into the norm. The error is 0 where the norm is so far below the limit that both coefficients are 1, and infinite
//! where the other's norm overflows.

use crate::bound::OURS;
use crate::values::{Float, Values};

/// The coefficient by which clipping multiplies every gradient of a step; its error is relative.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Clip {
    pub(crate) value: f64,
    pub(crate) error: f64,
}

impl Clip {
    pub(crate) const NONE: Self = Self { value: 1.0, error: 0.0 };

    /// PyTorch's `clip_grad_norm_` over all gradients of a step.
    pub(crate) fn new<'a>(max_norm: f64, gradients: impl Iterator<Item = &'a Values>) -> Self {
        let (mut squares, mut count, mut format) = (0.0, 0.0, Float::F32);
        for gradient in gradients {
            squares += gradient.to_f64().iter().map(|g| g * g).sum::<f64>();
            count += float(gradient.len());
            format = if gradient.dtype().unit() > format.unit() { gradient.dtype() } else { format };
        }
        let norm = f64::sqrt(squares) + 1e-6;
        let norm_error = f64::sqrt(count) * OURS + 4.0 * (format.unit() + format.underflow() / norm);
        let value = max_norm / norm;
        if value > 1.0 + 2.0 * norm_error {
            return Self::NONE;
        }
        // `min` would turn the NaN of a NaN gradient into 1.
        let value = if value > 1.0 { 1.0 } else { value };
        let overflows = norm > format.max().min(f64::sqrt(Float::F32.max()));
        let rounding = 3.0 * format.unit() + format.underflow() / value + 10.0 * OURS;
        Self { value, error: if overflows { f64::INFINITY } else { norm_error + rounding } }
    }
}

#[expect(clippy::cast_precision_loss, reason = "a length of a tensor in memory is below 2^53")]
fn float(count: usize) -> f64 {
    count as f64
}
