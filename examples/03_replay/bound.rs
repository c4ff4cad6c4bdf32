//! How far our result and another implementation's may lie apart, per element: a running error analysis.
//!
//! Beside the replay runs the recurrence of the README's Conventions in f64 with unrounded hyper-parameters,
//! the *reference*. Each of its numbers x carries a bound E(x) >= |ours - x| + |theirs - x|. A trace fails where
//! |ours - expect| > 2 E. E is absolute: where m cancels, or p passes 0, a relative bound or one in ULP says
//! nothing, while the terms below are relative to what was *added*, not to what is left.
//!
//! ```text
//! u   = 2^-24, our unit roundoff (f32, round to nearest)
//! w   = theirs: of the widest rounding among the dtypes of param.0 and of the three expects, at least 2^-24
//! d_b = |f32(b) - b|: what a program loses that keeps beta in f32 (PyTorch's fused kernels; the others only
//!       in the factor of v). It is the exact figure and not u b: beta = 0.5 loses nothing
//! n   = the least positive number of the format, halved: the error of an operation whose result is subnormal
//!
//! E(g)  = |g| E(clip)  + for Adam with L2:  l E(p) + w (2 l|p| + |g|) + u (l|p| + |g|)
//! E(m') = b1 E(m) + (1-b1) E(g) + d_b1 (|m|+|g|)
//!         + w (|m'| + b1|m| + 3 (1-b1)(|m|+|g|)) + u (|m'| + 2 (1-b1)(|m|+|g|)) + 4n
//! E(v') = b2 E(v) + (1-b2) (2|g| E(g) + E(g)^2) + d_b2 (v+g^2)
//!         + w (v' + b2 v + 3 (1-b2) g^2) + u (v' + 4 (1-b2)(v+g^2)) + 4n
//! E(vmax') = max(E(vmax), E(v'))                             max moves no further than its arguments
//! E(s)  = sqrt(q) - sqrt(q - E(q))                           s = sqrt(q), q = v' or vmax': the larger side
//! E(d)  = E(s) r (1+e_r) + s r e_r + (6w + 4u) d + n         d = s r + eps, r = 1/sqrt(1 - b2^t)
//! E(U)  = (a E(m') + |U| (E(d) + d (e_a + 4w + 2u)) + n) / low + n       U = a m'/d, a = lr/(1 - b1^t)
//!         low = max(d - E(d), eps (1 - 4w) - n): d is never below eps, however little v is known
//! E(p') = |1 - lr l| E(p) + E(U) + (w+u) |p'| + n
//!         + with decay: (w+u) (|p1| + 2 lr l|p|) + d_(1 - lr l) |p|
//! ```
//! The factors count roundings. Example, theirs for m: `b1 m + (1-b1) g` rounds the product with m
//! (b1|m|), the constant, the product and once more in a lerp's difference (3), and the sum (|m'|); ours:
//! the difference and the constant (2), and the fma (|m'|). `6w`: square root (2: MKL's is not correctly
//! rounded), its quotient by the correction and that one's own rounding, the sum, eps. `4w`: the step
//! size, its product with m, the quotient, one more in the capturable form. A result's own rounding is
//! applied to |x| + E, so that no second-order term is lost.
//!
//! `e_r`, `e_a`: 1 - b^t of a program that has beta, and the power, in f32: e = (t d_b b^(t-1) + u b^t) /
//! (1 - b^t); then e_a = e1 / (1-e1), e_r = 1/sqrt(1-e2) - 1. This is the largest term of the first
//! steps: 3e-5 lr at beta2 = 0.999, t = 1.
//!
//! `E(clip)` is derived in `clip.rs`.
//!
//! **Twice E.** Honest programs do reach E: two roundings of a p just above a power of 2 fall one ULP =
//! 2u|p| apart, and beta in f32 costs v exactly d_b. The other half is for what is not modelled: a power
//! or a quotient that is off by 2 ULP, one more rounding of p. Measured in units of 2 E: PyTorch's
//! for-loop, foreach and fused forms use at most 0.42 (900 random traces on the CPU, median 0.07), 0.41
//! in bf16 and 0.36 in f16 (300 each), a program with every scalar in f32 at most 0.50 (300). The mutants
//! of `tests/traces/mutants.rs` reach 24 (decay after the update, which differs by lr^2 l p) and 2,500 to
//! 10^40.
//!
//! **16-bit parameters.** The crate computes on an f32 master; PyTorch has none, stores p, m and v in 16
//! bits at every step, and its foreach form rounds every intermediate result so. Then w = 2^-8 (bf16) or
//! 2^-11 (f16), which covers both, and the comparison means little where the format cannot do the work
//! (bf16 v with beta2 = 0.999 never decays, f16 eps is 0): E grows past the values, or is infinite. What
//! rounds once at the end is held to the same bound. With f32 the bound is tight.
//!
//! **Infinite bounds.** Where the reference, or reference + E, leaves the range of the format (|g| above
//! 1.8e19 overflows v: NaN here, infinite and frozen in PyTorch), E is infinite and everything passes;
//! `run.rs` counts these elements. Where the reference is NaN, both must be NaN.

use fused_adamw::{AdamWConfig, Algorithm};

use crate::clip::Clip;
use crate::trace::Tensor;
use crate::values::{Float, Values};

/// Our unit roundoff.
pub(crate) const OURS: f64 = 1.0 / 16_777_216.0;

/// The share of the bound that no rounding above has claimed.
const SLACK: f64 = 2.0;

/// A number of the reference and how far ours and theirs may be from it, in sum.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Bounded {
    pub(crate) value: f64,
    error: f64,
}

impl Bounded {
    /// How far ours may be from theirs.
    pub(crate) fn bound(self) -> f64 {
        SLACK * self.error
    }
}

/// One element of the reference.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Element {
    pub(crate) p: Bounded,
    pub(crate) m: Bounded,
    pub(crate) v: Bounded,
    vmax: Bounded,
}

/// The reference of one tensor.
#[derive(Clone, Debug)]
pub(crate) struct Reference {
    pub(crate) elements: Vec<Element>,
    steps: u32,
    theirs: f64,
    formats: [Float; 4],
    stored: Float,
}

impl Reference {
    pub(crate) fn new(tensor: &Tensor) -> Self {
        let expect = &tensor.expect;
        let formats = [&tensor.initial, &expect.param, &expect.exp_avg, &expect.exp_avg_sq].map(Values::dtype);
        let theirs = formats.iter().map(|format| format.unit()).fold(OURS, f64::max);
        let stored = tensor.initial.dtype();
        // Where param.0 is wider than what it is kept in, it is rounded before the first step.
        let kept = formats[1].unit().max(OURS);
        let narrowed = if stored.unit() < kept { kept + OURS } else { 0.0 };
        let start = |value: f64| Bounded { value, error: value.abs() * narrowed };
        let elements = tensor.initial.to_f64().into_iter();
        let elements = elements.map(|p| Element { p: start(p), ..Element::default() }).collect();
        Self { elements, steps: 0, theirs, formats, stored }
    }

    /// One step with a gradient.
    pub(crate) fn step(&mut self, config: &AdamWConfig, clip: Clip, gradient: &Values) {
        self.steps += 1;
        let scalars = Scalars::new(config, self.steps, clip, self, gradient.dtype());
        for (element, g) in self.elements.iter_mut().zip(gradient.to_f64()) {
            scalars.update(element, g);
        }
    }

    /// The parameters as we store them: a 16-bit one is the master's rounding.
    pub(crate) fn stored(&self, p: Bounded) -> Bounded {
        if self.stored.size() > 2 {
            return p;
        }
        let rounding = self.stored.unit() * (p.value.abs() + p.error) + self.stored.underflow();
        Bounded { error: p.error + rounding, ..p }
    }
}

/// What the elements of a tensor share in a step.
struct Scalars {
    config: AdamWConfig,
    clip: Clip,
    /// Of theirs, and its sum with ours.
    w: f64,
    both: f64,
    underflow: f64,
    max: f64,
    /// |f32(x) - x| of beta1, beta2, 1 - lr l.
    lost: [f64; 3],
    /// lr / (1 - beta1^t), 1 / sqrt(1 - beta2^t), their relative errors.
    step_size: f64,
    step_error: f64,
    root: f64,
    root_error: f64,
}

impl Scalars {
    fn new(config: &AdamWConfig, steps: u32, clip: Clip, tensor: &Reference, gradient: Float) -> Self {
        let (beta1, beta2) = config.betas;
        let (correction1, e1) = correction(beta1, steps);
        let (correction2, e2) = correction(beta2, steps);
        // A gradient in f64 is rounded by us, and perhaps by them.
        let narrowed = if gradient == Float::F64 { 2.0 * OURS } else { 0.0 };
        Self {
            clip: Clip { error: clip.error + narrowed, ..clip },
            w: tensor.theirs,
            both: tensor.theirs + OURS,
            underflow: tensor.formats.iter().map(|f| f.underflow()).fold(Float::F32.underflow(), f64::max),
            max: tensor.formats.iter().map(|f| f.max()).fold(Float::F32.max(), f64::min),
            lost: [beta1, beta2, 1.0 - config.lr * config.weight_decay].map(lost_in_f32),
            step_size: config.lr / correction1,
            step_error: finite_or_infinite(e1 / (1.0 - e1)),
            root: 1.0 / correction2.sqrt(),
            root_error: finite_or_infinite(1.0 / (1.0 - e2).sqrt() - 1.0),
            config: *config,
        }
    }

    fn update(&self, e: &mut Element, g: f64) {
        let g = self.gradient(e, g);
        e.m = self.first_moment(e.m, g);
        e.v = self.second_moment(e.v, g);
        e.vmax = Bounded { value: max_or_nan(e.vmax.value, e.v.value), error: e.vmax.error.max(e.v.error) };
        let q = if self.config.amsgrad { e.vmax } else { e.v };
        e.p = self.parameter(e.p, self.change(e.m, self.denominator(q)));
    }

    fn gradient(&self, e: &Element, g: f64) -> Bounded {
        let clipped = g * self.clip.value * if self.config.maximize { -1.0 } else { 1.0 };
        let error = if self.clip.error == 0.0 { 0.0 } else { clipped.abs() * self.clip.error + self.underflow };
        if self.config.algorithm != Algorithm::Adam || self.config.weight_decay == 0.0 {
            return Bounded { value: clipped, error };
        }
        let l2 = self.config.weight_decay;
        let value = clipped + l2 * e.p.value;
        let rounding =
            self.w * (2.0 * l2 * e.p.value.abs() + value.abs()) + OURS * (l2 * e.p.value.abs() + value.abs());
        Bounded { value, error: error + l2 * e.p.error + rounding + self.underflow }
    }

    fn first_moment(&self, m: Bounded, g: Bounded) -> Bounded {
        let (beta, rest) = (self.config.betas.0, 1.0 - self.config.betas.0);
        let terms = m.value.abs() + g.value.abs();
        let value = beta * m.value + rest * g.value;
        let inherited = beta * m.error + rest * g.error + self.lost[0] * terms;
        let rounding = self.w * (beta * m.value.abs() + 3.0 * rest * terms) + OURS * 2.0 * rest * terms;
        self.rounded(value, inherited + rounding + 4.0 * self.underflow)
    }

    fn second_moment(&self, v: Bounded, g: Bounded) -> Bounded {
        let (beta, rest) = (self.config.betas.1, 1.0 - self.config.betas.1);
        let square = g.value * g.value;
        let terms = v.value + square;
        let value = beta * v.value + rest * square;
        let square_error = (2.0 * g.value.abs() + g.error) * g.error;
        let inherited = beta * v.error + rest * square_error + self.lost[1] * terms;
        let rounding = self.w * (beta * v.value + 3.0 * rest * square) + OURS * 4.0 * rest * terms;
        self.rounded(value, inherited + rounding + 4.0 * self.underflow)
    }

    fn denominator(&self, q: Bounded) -> Bounded {
        let s = q.value.sqrt();
        // Where v is not known at all, both sides may be anywhere up to the root of the sum: sqrt(2) of it in sum.
        let known = q.error < q.value;
        let error = if known { s - (q.value - q.error).sqrt() } else { 1.5 * (q.value + q.error).sqrt() };
        let value = s * self.root + self.config.eps;
        let inherited = error * self.root * (1.0 + self.root_error) + s * self.root * self.root_error;
        Bounded { value, error: inherited + (6.0 * self.w + 4.0 * OURS) * value + self.underflow }
    }

    fn change(&self, m: Bounded, d: Bounded) -> Bounded {
        let value = self.step_size * m.value / d.value;
        let low = (d.value - d.error).max(self.config.eps * (1.0 - 4.0 * self.w) - self.underflow);
        let scalars = self.step_error + 4.0 * self.w + 2.0 * OURS;
        let scaled = self.step_size * m.error + value.abs() * (d.error + d.value * scalars) + self.underflow;
        let error = scaled / low + self.underflow;
        Bounded { value, error: if low > 0.0 { error } else { f64::INFINITY } }
    }

    fn parameter(&self, p: Bounded, change: Bounded) -> Bounded {
        let decoupled = self.config.algorithm == Algorithm::AdamW && self.config.weight_decay != 0.0;
        let decay = if decoupled { self.config.lr * self.config.weight_decay } else { 0.0 };
        let kept = (1.0 - decay) * p.value;
        let decay_rounding = self.both * (kept.abs() + 2.0 * decay * p.value.abs()) + self.lost[2] * p.value.abs();
        let rounding = if decoupled { decay_rounding } else { 0.0 };
        self.rounded(kept - change.value, (1.0 - decay).abs() * p.error + rounding + change.error + self.underflow)
    }

    /// A stored result: rounded once by us and once by them.
    fn rounded(&self, value: f64, error: f64) -> Bounded {
        let error = error + self.both * (value.abs() + error);
        let inside = value.is_nan() || value.abs() + error <= self.max;
        Bounded { value, error: if inside { error } else { f64::INFINITY } }
    }
}

/// 1 - beta^t, and the relative error of an f32 program's.
fn correction(beta: f64, steps: u32) -> (f64, f64) {
    let t = f64::from(steps);
    let power = beta.powf(t);
    let lost = t * lost_in_f32(beta) * beta.powf(t - 1.0) + OURS * power;
    (1.0 - power, lost / (1.0 - power))
}

/// A relative error of 1 and more, whatever the formula then makes of it, bounds nothing.
fn finite_or_infinite(error: f64) -> f64 {
    if error >= 0.0 { error } else { f64::INFINITY }
}

#[expect(clippy::cast_possible_truncation, reason = "the rounding is the purpose")]
fn lost_in_f32(x: f64) -> f64 {
    (f64::from(x as f32) - x).abs()
}

fn max_or_nan(a: f64, b: f64) -> f64 {
    if a.is_nan() || b.is_nan() { f64::NAN } else { a.max(b) }
}
