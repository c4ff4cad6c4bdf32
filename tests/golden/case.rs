//! A case as `cases.json` describes it. README.md, "A case", says what every field means.

use crate::suite::values::Values;
use fused_adamw::{AdamWConfig, Alarm, Algorithm, Control, Decay, Dtype, LossScale, NonFinite, Schedule};
use serde::Deserialize;

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Case {
    pub(crate) name: String,
    pub(crate) groups: Vec<Group>,
    pub(crate) tensors: Vec<Tensor>,
    #[serde(default = "one")]
    pub(crate) repeat: usize,
    pub(crate) params: Values,
    pub(crate) grads: Values,
    pub(crate) steps: Vec<Step>,
    #[serde(default)]
    pub(crate) control: Option<Controlled>,
    #[serde(default)]
    pub(crate) prepare: bool,
}

fn one() -> usize {
    1
}

/// Length, dtypes of parameter and gradient, group.
#[derive(Clone, Copy, Debug, Deserialize)]
pub(crate) struct Tensor(pub(crate) usize, pub(crate) Type, pub(crate) Type, pub(crate) usize);

#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Type {
    F32,
    F16,
    Bf16,
}

#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Group {
    lr: f64,
    betas: (f64, f64),
    eps: f64,
    weight_decay: f64,
    amsgrad: bool,
    maximize: bool,
    l2: bool,
}

/// One step, or `times` steps that are alike.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Step {
    #[serde(default = "one")]
    pub(crate) times: usize,
    #[serde(default)]
    pub(crate) missing: Vec<usize>,
    /// For each backward pass the tensors that miss it; empty: a plain step.
    #[serde(default)]
    pub(crate) passes: Vec<Vec<usize>>,
    #[serde(default)]
    pub(crate) grads: Option<Values>,
    /// Tensor, element, bits.
    #[serde(default)]
    pub(crate) write: Vec<(usize, usize, String)>,
    #[serde(default)]
    pub(crate) grad_scale: Option<f64>,
    /// The learning rate of each group from here on.
    #[serde(default)]
    pub(crate) lr: Vec<f64>,
    #[serde(default)]
    pub(crate) reload_masters: bool,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Controlled {
    #[serde(default)]
    max_grad_norm: Option<f64>,
    #[serde(default)]
    max_grad_value: Option<f64>,
    #[serde(default)]
    non_finite: Policy,
    #[serde(default)]
    loss_scale: Option<Scale>,
    #[serde(default)]
    warmup: u64,
    #[serde(default)]
    decay: Decayed,
    #[serde(default)]
    zero_grad: bool,
    #[serde(default)]
    metrics: bool,
    #[serde(default)]
    norm_alarm: Option<Alarmed>,
    #[serde(default)]
    rms_alarm: Option<Alarmed>,
}

#[derive(Clone, Copy, Debug, Default, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Policy {
    #[default]
    Propagate,
    SkipStep,
    SkipTensor,
    Error,
}

#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Scale {
    init_scale: f32,
    growth_factor: f64,
    backoff_factor: f64,
    growth_interval: u64,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
enum Decayed {
    #[default]
    Constant,
    Cosine {
        end: u64,
        floor: f64,
    },
    Linear {
        start: u64,
        end: u64,
        floor: f64,
    },
    InverseSqrt,
    List(Vec<f64>),
}

#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Alarmed {
    sigmas: f64,
    steps: u64,
    skip: bool,
}

impl Case {
    pub(crate) fn tensors(&self) -> impl Iterator<Item = &Tensor> {
        std::iter::repeat_n(&self.tensors, self.repeat).flatten()
    }

    /// A repeated list is hashed as one.
    pub(crate) fn joined(&self) -> bool {
        self.repeat > 1
    }

    /// Every step by itself.
    pub(crate) fn steps(&self) -> impl Iterator<Item = &Step> {
        self.steps.iter().flat_map(|step| std::iter::repeat_n(step, step.times))
    }

    pub(crate) fn configs(&self) -> Vec<AdamWConfig> {
        self.groups.iter().map(Group::config).collect()
    }
}

impl Type {
    pub(crate) fn dtype(self) -> Dtype {
        match self {
            Self::F32 => Dtype::F32,
            Self::F16 => Dtype::F16,
            Self::Bf16 => Dtype::BF16,
        }
    }
}

impl Group {
    fn config(&self) -> AdamWConfig {
        let Self { lr, betas, eps, weight_decay, amsgrad, maximize, l2 } = *self;
        let algorithm = if l2 { Algorithm::Adam } else { Algorithm::AdamW };
        AdamWConfig { lr, betas, eps, weight_decay, amsgrad, maximize, algorithm }
    }
}

impl Controlled {
    pub(crate) fn control(&self) -> Control {
        Control {
            max_grad_norm: self.max_grad_norm,
            max_grad_value: self.max_grad_value,
            non_finite: self.non_finite.non_finite(),
            loss_scale: self.loss_scale.map(|scale| scale.loss_scale()),
            schedule: Schedule { warmup: self.warmup, decay: self.decay.decay() },
            zero_grad: self.zero_grad,
            metrics: self.metrics,
            norm_alarm: self.norm_alarm.map(|alarm| alarm.alarm()),
            rms_alarm: self.rms_alarm.map(|alarm| alarm.alarm()),
            ..Default::default()
        }
    }
}

impl Policy {
    fn non_finite(self) -> NonFinite {
        match self {
            Self::Propagate => NonFinite::Propagate,
            Self::SkipStep => NonFinite::SkipStep,
            Self::SkipTensor => NonFinite::SkipTensor,
            Self::Error => NonFinite::Error,
        }
    }
}

impl Scale {
    fn loss_scale(self) -> LossScale {
        let Self { init_scale, growth_factor, backoff_factor, growth_interval } = self;
        #[allow(clippy::needless_update, reason = "a field to come")]
        LossScale { init_scale, growth_factor, backoff_factor, growth_interval, ..Default::default() }
    }
}

impl Decayed {
    fn decay(&self) -> Decay {
        match self {
            Self::Constant => Decay::Constant,
            Self::Cosine { end, floor } => Decay::Cosine { end: *end, floor: *floor },
            Self::Linear { start, end, floor } => Decay::Linear { start: *start, end: *end, floor: *floor },
            Self::InverseSqrt => Decay::InverseSqrt,
            Self::List(list) => Decay::List(list.as_slice().into()),
        }
    }
}

impl Alarmed {
    fn alarm(self) -> Alarm {
        let Self { sigmas, steps, skip } = self;
        #[allow(clippy::needless_update, reason = "a field to come")]
        Alarm { sigmas, steps, skip, ..Default::default() }
    }
}
