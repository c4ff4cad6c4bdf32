//! What the user sets, in f64: ranges, defaults, groups.

use crate::Dtype;
use crate::error::{Error, Result, TensorId};
use crate::rounding::to_f32_rn;
use crate::table::{Hyper, step_flags};
use std::sync::Arc;

/// How weight decay acts.
///
/// ```
/// assert_eq!(fused_adamw::Algorithm::default(), fused_adamw::Algorithm::AdamW);
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Algorithm {
    /// Decoupled: the parameter loses `lr * weight_decay` of itself (Loshchilov & Hutter, with PyTorch's factor
    /// `lr`). The default.
    #[default]
    AdamW,
    /// L2: `weight_decay * p` is added to the gradient, as in `torch.optim.Adam`.
    Adam,
}

/// The hyper-parameters of one parameter group. Defaults are those of `torch.optim.AdamW`.
///
/// ```
/// use fused_adamw::AdamWConfig;
/// let config = AdamWConfig { lr: 3e-4, betas: (0.9, 0.95), weight_decay: 0.1, ..Default::default() };
/// assert_eq!(config.eps, 1e-8);
/// ```
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct AdamWConfig {
    /// Learning rate: the length of a step in parameter units, about. Range `[0, ∞)`, so that `lr`, `lr / (1 - beta1)` and
    /// `lr * weight_decay` have an f32. Default `1e-3`.
    pub lr: f64,
    /// Decay rates of the moments, per step. Range `[0, 1)` each. Default `(0.9, 0.999)`.
    pub betas: (f64, f64),
    /// Added to the denominator **outside** the square root, in gradient units. Range `[0, ∞)`, as f32: 0, or
    /// large enough for one (7.1e-46). Default `1e-8`.
    pub eps: f64,
    /// λ, per step and unit of `lr`: multiplied by `lr` as in PyTorch and optax, unlike the paper, which multiplies
    /// it by the schedule's factor only. Range `[0, ∞)`, as f32. Default `1e-2`.
    pub weight_decay: f64,
    /// Divide by the largest second moment so far. As in PyTorch the maximum is of the uncorrected moment. Fixed
    /// once the optimizer exists. Default `false`.
    pub amsgrad: bool,
    /// Ascend instead of descend. Default `false`.
    pub maximize: bool,
    /// How weight decay acts. Default [`Algorithm::AdamW`].
    pub algorithm: Algorithm,
}

impl Default for AdamWConfig {
    fn default() -> Self {
        Self {
            lr: 1e-3,
            betas: (0.9, 0.999),
            eps: 1e-8,
            weight_decay: 1e-2,
            amsgrad: false,
            maximize: false,
            algorithm: Algorithm::AdamW,
        }
    }
}

impl AdamWConfig {
    /// Every condition is written so that NaN fails it, and is one of the f32 that the update computes with.
    pub(crate) fn check(&self, group: usize) -> Result<()> {
        let (number, beta) = (|x: f64| x >= 0.0 && fits_f32(x), |x: f64| (0.0..1.0).contains(&x));
        let eps = number(self.eps) && (self.eps == 0.0 || to_f32_rn(self.eps) > 0.0);
        let checks = [
            ("lr", self.lr, number(self.lr), "[0, inf), as f32"),
            ("betas.0", self.betas.0, beta(self.betas.0), "[0, 1)"),
            ("betas.1", self.betas.1, beta(self.betas.1), "[0, 1)"),
            ("eps", self.eps, eps, "[0, inf), as f32, and 0 only if it is 0"),
            ("weight_decay", self.weight_decay, number(self.weight_decay), "[0, inf), as f32"),
        ];
        match checks.into_iter().find(|(_, _, is_in, _)| !is_in) {
            Some((field, value, _, range)) => Err(Error::Config { group, field, value, range }),
            None => self.check_times(group, 1.0),
        }
    }

    /// Checks that f32 holds the update's numbers with a learning rate `factor` times as large, in every step.
    pub(crate) fn check_times(&self, group: usize, factor: f64) -> Result<()> {
        let lr = self.lr * factor;
        let step_size = ("lr / (1 - betas.0), with the schedule's factor,", lr / (1.0 - self.betas.0));
        let decay = if self.algorithm == Algorithm::Adam { 0.0 } else { lr * self.weight_decay };
        let decay = ("lr * weight_decay, with the schedule's factor,", decay);
        match [step_size, decay].into_iter().find(|&(_, value)| !fits_f32(value)) {
            Some((field, value)) => Err(Error::Config { group, field, value, range: "[0, inf), as f32" }),
            None => Ok(()),
        }
    }

    pub(crate) fn hyper(&self) -> Hyper {
        let flag = |on: bool, flag: u32| if on { flag } else { 0 };
        Hyper {
            lr: self.lr,
            beta1: self.betas.0,
            beta2: self.betas.1,
            eps: self.eps,
            weight_decay: self.weight_decay,
            flags: flag(self.algorithm == Algorithm::Adam, step_flags::L2)
                | flag(self.maximize, step_flags::MAXIMIZE)
                | flag(self.amsgrad, step_flags::AMSGRAD),
        }
    }
}

/// True for what is neither infinite nor NaN when rounded to f32.
pub(crate) fn fits_f32(x: f64) -> bool {
    to_f32_rn(x).is_finite()
}

/// A tensor to register: its length in elements; and if wanted its group, its name, its dtype.
///
/// A plain length is one, too: `AdamW::new(&device, config, &[768 * 50257, 768])`.
///
/// ```
/// use fused_adamw::{Dtype, TensorSpec};
/// let embedding = TensorSpec::new(768 * 50257).named("wte").group(1).dtype(Dtype::BF16);
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TensorSpec {
    pub(crate) len: usize,
    pub(crate) group: usize,
    pub(crate) name: Option<Arc<str>>,
    pub(crate) dtype: Option<Dtype>,
}

impl TensorSpec {
    /// A tensor of `len` elements in group 0. `0` is allowed.
    #[must_use]
    pub fn new(len: usize) -> Self {
        Self { len, group: 0, name: None, dtype: None }
    }

    /// The parameter group it belongs to. Default 0.
    #[must_use]
    pub fn group(self, group: usize) -> Self {
        Self { group, ..self }
    }

    /// The name that errors give it beside its index.
    #[must_use]
    pub fn named(self, name: &str) -> Self {
        Self { name: Some(name.into()), ..self }
    }

    /// The dtype of its parameter. Without it the first step decides; with it the memory of an f32 master is
    /// allocated at once, and a step with another dtype is an error.
    #[must_use]
    pub fn dtype(self, dtype: Dtype) -> Self {
        Self { dtype: Some(dtype), ..self }
    }

    pub(crate) fn id(&self, index: usize) -> TensorId {
        TensorId { index, name: self.name.clone() }
    }
}

impl From<usize> for TensorSpec {
    fn from(len: usize) -> Self {
        Self::new(len)
    }
}

impl From<&usize> for TensorSpec {
    fn from(&len: &usize) -> Self {
        Self::new(len)
    }
}

impl From<&TensorSpec> for TensorSpec {
    fn from(spec: &TensorSpec) -> Self {
        spec.clone()
    }
}

/// What changes from step to step.
///
/// ```
/// use fused_adamw::StepOptions;
/// // Gradients of a loss that was scaled by 1024, clipped to half their norm:
/// let options = StepOptions { grad_scale: 0.5 / 1024.0 };
/// assert_eq!(StepOptions::default().grad_scale, 1.0);
/// ```
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct StepOptions {
    /// Every gradient is multiplied by it, after one rounding to f32, in the same pass; the gradients in memory do
    /// not change. Range `[0, ∞)`, as f32. Default 1.
    pub grad_scale: f64,
}

impl Default for StepOptions {
    fn default() -> Self {
        Self { grad_scale: 1.0 }
    }
}

impl StepOptions {
    pub(crate) fn check(&self) -> Result<()> {
        let value = self.grad_scale;
        if value >= 0.0 && fits_f32(value) { Ok(()) } else { Err(Error::GradScale { value }) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_defaults_are_pytorchs() {
        let c = AdamWConfig::default();
        assert_eq!((c.lr, c.betas, c.eps, c.weight_decay), (1e-3, (0.9, 0.999), 1e-8, 1e-2));
        assert_eq!((c.amsgrad, c.maximize, c.algorithm), (false, false, Algorithm::AdamW));
    }

    #[test]
    fn every_hyper_parameter_out_of_its_range_is_named() {
        type Set = fn(&mut AdamWConfig, f64);
        let fields: [(&str, Set, &[f64]); 5] = [
            ("lr", |c, x| c.lr = x, &[]),
            ("betas.0", |c, x| c.betas.0 = x, &[1.0, 1.5]),
            ("betas.1", |c, x| c.betas.1 = x, &[1.0, 1.5]),
            ("eps", |c, x| c.eps = x, &[]),
            ("weight_decay", |c, x| c.weight_decay = x, &[]),
        ];
        for (name, set, above) in fields {
            for bad in [f64::NAN, -1e-300, f64::INFINITY, f64::NEG_INFINITY].iter().chain(above) {
                let mut config = AdamWConfig::default();
                set(&mut config, *bad);
                let error = config.check(7).unwrap_err();
                assert!(
                    matches!(error, Error::Config { group: 7, field, value, .. }
                        if field == name && value.to_bits() == bad.to_bits()),
                    "{name} = {bad}: {error}"
                );
            }
        }
    }

    #[test]
    fn the_ends_of_the_ranges_are_allowed() {
        let zero = AdamWConfig { lr: 0.0, betas: (0.0, 0.0), eps: 0.0, weight_decay: 0.0, ..Default::default() };
        assert!(zero.check(0).is_ok());
        assert!(AdamWConfig { betas: (1.0_f64.next_down(), 0.0), ..zero }.check(0).is_ok());
    }
}
