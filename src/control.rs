//! What the user sets of a controlled step: clipping, loss scale, what is not finite, schedule. What it does:
//! `decide.rs`.

use crate::alarm::{Alarm, AlarmStatus};
use crate::error::{Error, Result};
use crate::rounding::to_f32_rn;
use crate::schedule::Schedule;
use crate::table::{AlarmParams, AlarmState, ControlParams, ControlState, FullParams, control_flags, full_flags};

/// Clipping, loss scaling, skipping and a learning-rate schedule, decided on the device: no step waits for the host.
///
/// Given to [`AdamW::set_control`](crate::AdamW::set_control). A step is then up to three launches: the norm of all
/// gradients (one more reading of them, 32 bytes an f32 element instead of 28), the decision, the update. The norm is
/// not asked for, and the first launch is left out, where nothing below needs it. Gradients are not written but with
/// `zero_grad`. With `metrics` there is one launch more.
///
/// There is no clipping by each tensor's RMS_t (StableAdamW): its factor has to be known before the update and needs the
/// new second moment, which takes one more pass over v.
///
/// ```
/// use fused_adamw::{AdamW, AdamWConfig, Control, Decay, Device, Schedule};
/// let mut opt = AdamW::new(&Device::cpu(), AdamWConfig::default(), [3])?;
/// let decay = Decay::Cosine { end: 10_000, floor: 0.1 };
/// let control = Control {
///     max_grad_norm: Some(1.0),
///     schedule: Schedule { warmup: 100, decay },
///     ..Default::default()
/// };
/// opt.set_control(Some(control))?;
/// opt.step([(&mut [1.0_f32; 3], &[100.0_f32; 3])])?;
/// assert_eq!(opt.status()?.unwrap().grad_norm, Some(30_000_f64.sqrt()));
/// # Ok::<(), fused_adamw::Error>(())
/// ```
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Control {
    /// Gradients are multiplied by `min(1, max_grad_norm / (norm + 1e-6))`, where `norm` is the root of the sum of all
    /// their squares, unscaled: `torch.nn.utils.clip_grad_norm_`, but in the update's own pass. Range `(0, ∞]`; with ∞ the
    /// norm is measured and nothing is clipped. Default `None`: no clipping.
    pub max_grad_norm: Option<f64>,
    /// Every gradient, after its division by the loss scale and after clipping by norm, is brought between this value and
    /// its negative, as by `torch.nn.utils.clip_grad_value_`; NaN stays NaN. Range `(0, ∞)`, as f32. Default `None`.
    pub max_grad_value: Option<f64>,
    /// What becomes of gradients that are NaN or infinite. Default [`NonFinite::Propagate`].
    pub non_finite: NonFinite,
    /// Divide gradients by a scale that the loss was multiplied by, and adapt it. Default `None`.
    pub loss_scale: Option<LossScale>,
    /// A factor of every group's learning rate. Default: 1 always.
    pub schedule: Schedule,
    /// More steps than this, skipped one after the other, are an error of [`AdamW::poll`](crate::AdamW::poll). An error of
    /// [`AdamW::set_control`](crate::AdamW::set_control) if nothing can skip a step. Default `None`: 100.
    pub max_skipped: Option<u64>,
    /// Every gradient is zero after the step, also after one that is skipped, as by PyTorch's `optimizer.zero_grad(
    /// set_to_none=False)`, but in the update's own pass. Gradients have to be given as `&mut` then, and overlap nothing.
    /// Default `false`.
    pub zero_grad: bool,
    /// Measure every step for [`AdamW::metrics`](crate::AdamW::metrics), in the update's own pass. Default `false`: costs
    /// nothing.
    pub metrics: bool,
    /// Watch the norm of the gradients. Default `None`.
    pub norm_alarm: Option<Alarm>,
    /// Watch RMS_t, the gradients against the second moment. Every step is measured then, as by `metrics`. Default `None`.
    pub rms_alarm: Option<Alarm>,
}

/// The policy for a step with bad gradients.
///
/// Gradients are bad where the update's f32 arithmetic could not hold them: a gradient is NaN or infinite; or the squares of
/// some 8,192 neighbours of one tensor, added up and multiplied by the square of the step's multiplier (`grad_scale` over the
/// loss scale), reach 3.4e38. So a gradient of 1.9e19 is bad, as its square has no f32. A multiplier that as f32 is infinite,
/// NaN, or 0 by rounding makes all of them bad. All policies use this one definition.
///
/// A skipped step changes no byte of a parameter or a moment, and advances neither step count nor schedule.
///
/// ```
/// assert_eq!(fused_adamw::NonFinite::default(), fused_adamw::NonFinite::Propagate);
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum NonFinite {
    /// They make their parameters NaN, as in PyTorch without a `GradScaler`. Nothing looks at them. The default.
    #[default]
    Propagate,
    /// The step is skipped, as a `GradScaler` does.
    SkipStep,
    /// The tensors concerned are skipped, and are left out of the norm. Each tensor then counts its own steps. A step in
    /// which all tensors would be skipped is skipped itself.
    SkipTensor,
    /// The step is skipped, and [`AdamW::poll`](crate::AdamW::poll) says so.
    Error,
}

/// A loss scale and its rules, those of PyTorch's `GradScaler` with its defaults: half as large after a step that was
/// not finite, twice as large after 2,000 finite ones running. The scale is an f32 on the device.
///
/// ```
/// assert_eq!(fused_adamw::LossScale::default().init_scale, 65536.0);
/// ```
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct LossScale {
    /// The scale of the first step. Range `(0, ∞)`. Default 2^16.
    pub init_scale: f32,
    /// Range `[1, ∞)`. Default 2.
    pub growth_factor: f64,
    /// Range `(0, 1]`. Default 0.5.
    pub backoff_factor: f64,
    /// Finite steps until the scale grows. From 1 on. Default 2,000.
    pub growth_interval: u64,
    /// A skipped step leaves no smaller scale. Range `[2^-126, ∞)`, so that `1 / scale` has an f32. PyTorch has no such
    /// floor: there a tensor that is always NaN brings the scale to 0, where all gradients are lost. Default 1, as in
    /// Megatron: a loss scale lifts small gradients, which one below 1 does not.
    pub min_scale: f32,
}

impl Default for LossScale {
    fn default() -> Self {
        Self { init_scale: 65536.0, growth_factor: 2.0, backoff_factor: 0.5, growth_interval: 2000, min_scale: 1.0 }
    }
}

pub(crate) fn in_range(field: &'static str, value: f64, is_in: bool, range: &'static str) -> Result<()> {
    if is_in { Ok(()) } else { Err(Error::Control { field, value, range }) }
}

impl Control {
    /// Every condition is written so that NaN fails it.
    pub(crate) fn check(&self) -> Result<()> {
        if let Some(norm) = self.max_grad_norm {
            in_range("max_grad_norm", norm, norm > 0.0, "(0, inf]")?;
        }
        if let Some(value) = self.max_grad_value {
            let rounded = to_f32_rn(value);
            in_range("max_grad_value", value, rounded > 0.0 && rounded < f32::INFINITY, "(0, inf), as f32")?;
        }
        self.norm_alarm.iter().try_for_each(|alarm| alarm.check(["norm_alarm.sigmas", "norm_alarm.steps"]))?;
        self.rms_alarm.iter().try_for_each(|alarm| alarm.check(["rms_alarm.sigmas", "rms_alarm.steps"]))?;
        if let Some(scale) = self.loss_scale {
            scale.check()?;
            if self.non_finite == NonFinite::Propagate {
                return Err(Error::LossScaleWithoutSkip);
            }
        }
        if self.max_skipped.is_some() && !self.may_skip() {
            return Err(Error::MaxSkippedWithoutSkip);
        }
        self.schedule.check()
    }

    /// True if some step may be skipped.
    fn may_skip(&self) -> bool {
        let skips = |alarm: &Option<Alarm>| alarm.is_some_and(|alarm| alarm.skip);
        self.non_finite != NonFinite::Propagate || skips(&self.norm_alarm) || skips(&self.rms_alarm)
    }

    /// The number of skipped steps one after the other that is no error.
    pub(crate) fn allowed_skips(&self) -> u64 {
        match self.non_finite {
            NonFinite::Error => 0,
            NonFinite::Propagate | NonFinite::SkipStep | NonFinite::SkipTensor => self.max_skipped.unwrap_or(100),
        }
    }

    /// The largest factor of the schedule, at least 1: with it, too, the groups' learning rates have to be f32.
    pub(crate) fn largest_factor(&self) -> f64 {
        self.schedule.list().iter().copied().fold(1.0, f64::max)
    }

    /// True if the gradients are read before the update.
    pub(crate) fn needs_norm(&self) -> bool {
        self.max_grad_norm.is_some() || self.non_finite != NonFinite::Propagate || self.norm_alarm.is_some()
    }

    /// Whether every step is measured.
    pub(crate) fn measures(&self) -> bool {
        self.metrics || self.rms_alarm.is_some()
    }

    /// What an update is to do beside the plain one; `None`: nothing.
    pub(crate) fn full(&self) -> Option<FullParams> {
        let flag = |on: bool, flag: u32| if on { flag } else { 0 };
        let flags = flag(self.measures(), full_flags::METRICS) | flag(self.zero_grad, full_flags::ZERO_GRAD);
        let max_grad_value = self.max_grad_value.map_or(f32::INFINITY, to_f32_rn);
        (flags != 0 || self.max_grad_value.is_some()).then_some(FullParams { max_grad_value, flags })
    }

    /// `list`: the address of the schedule's list on the device.
    pub(crate) fn params(&self, list: u64) -> ControlParams {
        let flag = |on: bool, flag: u32| if on { flag } else { 0 };
        let skip_step = matches!(self.non_finite, NonFinite::SkipStep | NonFinite::Error);
        let fixed = LossScale { growth_factor: 1.0, backoff_factor: 1.0, growth_interval: 0, ..LossScale::default() };
        let scale = self.loss_scale.unwrap_or(fixed);
        ControlParams {
            schedule: self.schedule.params(list),
            max_grad_norm: self.max_grad_norm.unwrap_or(0.0),
            growth_factor: scale.growth_factor,
            backoff_factor: scale.backoff_factor,
            growth_interval: scale.growth_interval,
            max_skipped: self.allowed_skips(),
            norm_alarm: self.norm_alarm.as_ref().map_or(AlarmParams::default(), Alarm::params),
            rms_alarm: self.rms_alarm.as_ref().map_or(AlarmParams::default(), Alarm::params),
            min_loss_scale: scale.min_scale,
            flags: flag(self.max_grad_norm.is_some_and(f64::is_finite), control_flags::CLIP_NORM)
                | flag(self.needs_norm(), control_flags::NORM)
                | flag(skip_step, control_flags::SKIP_STEP)
                | flag(self.non_finite == NonFinite::SkipTensor, control_flags::SKIP_TENSOR),
        }
    }

    /// `before` is what a control before this one has come to: the schedule goes on from there, and what both have of loss
    /// scale and alarms; but another `init_scale` is a new loss scale.
    pub(crate) fn first_state(&self, before: Option<(&Self, ControlState)>) -> ControlState {
        let fresh =
            ControlState { loss_scale: 1.0, grad_scale: 1.0, unscale: 1.0, lr_factor: 1.0, ..ControlState::default() };
        let state = before.map_or(fresh, |(_, state)| state);
        let watches = |control: &Self| [control.norm_alarm.is_some(), control.rms_alarm.is_some()];
        let goes_on = before.map_or([false; 2], |(control, _)| watches(control));
        let alarm = |i: usize, state| if goes_on[i] && watches(self)[i] { state } else { AlarmState::default() };
        let (norm_alarm, rms_alarm) = (alarm(0, state.norm_alarm), alarm(1, state.rms_alarm));
        let state = ControlState { rms: 0.0, rms_tensor: 0, left_out: 0, norm_alarm, rms_alarm, ..state };
        let scale_before = before.and_then(|(control, _)| control.loss_scale);
        match self.loss_scale {
            None => ControlState { loss_scale: 1.0, growth_tracker: 0, ..state },
            Some(scale) if scale_before.is_some_and(|before| before.init_scale == scale.init_scale) => state,
            Some(scale) => ControlState { loss_scale: scale.init_scale, growth_tracker: 0, ..state },
        }
    }
}

impl LossScale {
    fn check(&self) -> Result<()> {
        let Self { init_scale, growth_factor, backoff_factor, growth_interval, min_scale } = *self;
        let init = init_scale > 0.0 && init_scale < f32::INFINITY;
        in_range("loss_scale.init_scale", init_scale.into(), init, "(0, inf)")?;
        let growth = (1.0..f64::INFINITY).contains(&growth_factor);
        in_range("loss_scale.growth_factor", growth_factor, growth, "[1, inf)")?;
        let backoff = backoff_factor > 0.0 && backoff_factor <= 1.0;
        in_range("loss_scale.backoff_factor", backoff_factor, backoff, "(0, 1]")?;
        let min = (f32::MIN_POSITIVE..f32::INFINITY).contains(&min_scale);
        in_range("loss_scale.min_scale", min_scale.into(), min, "[2^-126, inf)")?;
        in_range("loss_scale.growth_interval", 0.0, growth_interval > 0, "[1, inf)")
    }
}

/// What a controlled optimizer has decided so far, read by [`AdamW::status`](crate::AdamW::status).
///
/// ```
/// # use fused_adamw::{AdamW, AdamWConfig, Control, Device};
/// let mut opt = AdamW::new(&Device::cpu(), AdamWConfig::default(), [1])?;
/// assert_eq!(opt.status()?, None);
/// opt.set_control(Some(Control::default()))?;
/// opt.step([(&mut [1.0_f32], &[1.0_f32])])?;
/// assert_eq!(opt.status()?.unwrap().applied, 1);
/// # Ok::<(), fused_adamw::Error>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq)]
#[non_exhaustive]
pub struct Status {
    /// Steps applied since there is a control: what the schedule counts.
    pub applied: u64,
    /// Steps skipped since then.
    pub skipped: u64,
    /// Steps skipped since the last one that was applied.
    pub skipped_running: u64,
    /// Norm of the last step's gradients, unscaled, before clipping, without the tensors that the step left out. NaN stands
    /// for every NaN, and for no tensor at all. `None` before the first step, and where nothing asks for it:
    /// [`Control::max_grad_norm`], [`Control::non_finite`] and [`Control::norm_alarm`] do.
    pub grad_norm: Option<f64>,
    /// Gradients of the last step that were NaN or infinite. `None` as for `grad_norm`.
    pub non_finite: Option<u64>,
    /// What the last step multiplied its gradients by, clipping included.
    pub grad_scale: f64,
    /// The schedule's factor in the last step.
    pub lr_factor: f64,
    /// What the next loss is to be multiplied by; 1 without [`LossScale`].
    pub loss_scale: f32,
    /// What has become of [`Control::norm_alarm`].
    pub norm_alarm: AlarmStatus,
    /// What has become of [`Control::rms_alarm`].
    pub rms_alarm: AlarmStatus,
    /// RMS_t that the last step looked at: the largest that a tensor had in the step before it. 0 where there was none, and
    /// without [`Control::rms_alarm`].
    pub rms: f64,
    /// The tensor that had it.
    pub rms_tensor: Option<usize>,
}

impl From<ControlState> for Status {
    fn from(state: ControlState) -> Self {
        let has_norm = state.has_norm != 0;
        Self {
            applied: state.applied,
            skipped: state.skipped,
            skipped_running: state.skipped_running,
            grad_norm: has_norm.then_some(state.grad_norm),
            non_finite: has_norm.then_some(state.non_finite),
            grad_scale: state.grad_scale,
            lr_factor: state.lr_factor,
            loss_scale: state.loss_scale,
            norm_alarm: state.norm_alarm.into(),
            rms_alarm: state.rms_alarm.into(),
            rms: state.rms,
            rms_tensor: (state.rms > 0.0).then_some(state.rms_tensor as usize),
        }
    }
}
