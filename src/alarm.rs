//! An alarm for a number that leaps: what the user sets of it, and what it has come to. What it does: `decide.rs`.

use crate::control::in_range;
use crate::error::Result;
use crate::rounding::count_to_f64;
use crate::table::alarm_flags::{ALARM, SKIP_ALARM};
use crate::table::{AlarmParams, AlarmState};

/// An alarm for a number that is far above what it used to be: `x > mean + sigmas · σ`, where `x` is the norm of the
/// gradients ([`Control::norm_alarm`](crate::Control::norm_alarm)) or RMS_t
/// ([`Control::rms_alarm`](crate::Control::rms_alarm)). Each has its own mean and σ, and may skip the step on the device.
///
/// **The norm** is that of the step about to be made, of all gradients together, unscaled, before clipping.
///
/// **RMS_t** is the root of the mean of `g² / max(v_hat, eps²)` over the elements of one tensor
/// ([`TensorMetrics::rms`](crate::TensorMetrics::rms)), and `x` is the largest that any tensor had: in the total a spike
/// of one tensor would drown. It is known when the update has been made, so that a step looks at the step before, and an
/// alarm skips the step **after** the spike. That is in time: in Wortsman et al. 2023 (*Stable and low-precision training
/// for large-scale vision-language models*), who watch one tensor's, the loss spikes 1 to 8 steps after RMS_t does. There
/// is none to look at, and nothing counts, in the first step of a control, after a step that was skipped, and, of a GPU,
/// after a step whose record could not be made. A tensor without a gradient, or skipped by
/// [`NonFinite::SkipTensor`](crate::NonFinite::SkipTensor), has none.
///
/// Mean and variance are plain ones over the first `steps` values, among which there is no alarm; after that each value
/// weighs `1 / steps`, those of skipped steps too. An alarm counts with the value that would just not have been one, so
/// that a spike does not hide the next; where the values stay on a new level, alarms end by themselves. Values that are
/// not finite are no alarm and do not count: they are [`NonFinite`](crate::NonFinite)'s business.
///
/// ```
/// assert_eq!(fused_adamw::Alarm::default(), fused_adamw::Alarm { sigmas: 6.0, steps: 128, skip: false });
/// ```
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Alarm {
    /// More than so many standard deviations above the mean. Range `[0, ∞)`. Default 6.
    pub sigmas: f64,
    /// Values to compare with. From 2 on. Default 128.
    pub steps: u64,
    /// Skip the step, on the device. Default `false`.
    pub skip: bool,
}

impl Default for Alarm {
    fn default() -> Self {
        Self { sigmas: 6.0, steps: 128, skip: false }
    }
}

impl Alarm {
    /// The fields' names are those of the control that it is part of.
    pub(crate) fn check(&self, [sigmas, steps]: [&'static str; 2]) -> Result<()> {
        in_range(sigmas, self.sigmas, (0.0..f64::INFINITY).contains(&self.sigmas), "[0, inf)")?;
        in_range(steps, count_to_f64(self.steps), self.steps >= 2, "[2, inf)")
    }

    pub(crate) fn params(&self) -> AlarmParams {
        let flags = ALARM | if self.skip { SKIP_ALARM } else { 0 };
        AlarmParams { sigmas: self.sigmas, steps: self.steps, flags }
    }
}

/// What an [`Alarm`] has come to, part of [`Status`](crate::Status). All is 0 without one.
///
/// ```
/// use fused_adamw::{AdamW, AdamWConfig, Alarm, Control, Device};
/// let mut opt = AdamW::new(&Device::cpu(), AdamWConfig::default(), [1])?;
/// opt.set_control(Some(Control { norm_alarm: Some(Alarm::default()), ..Default::default() }))?;
/// for norm in [1.0_f32, 3.0] {
///     opt.step([(&mut [1.0_f32], &[norm])])?;
/// }
/// let alarm = opt.status()?.unwrap().norm_alarm;
/// assert_eq!((alarm.raised, alarm.alarms, alarm.mean, alarm.sigma), (false, 0, 2.0, 1.0));
/// # Ok::<(), fused_adamw::Error>(())
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq)]
#[non_exhaustive]
pub struct AlarmStatus {
    /// Whether it was raised in the last step.
    pub raised: bool,
    /// In how many steps it was, since it was set.
    pub alarms: u64,
    /// Mean of the values that the next is compared with.
    pub mean: f64,
    /// Standard deviation of these values.
    pub sigma: f64,
}

impl From<AlarmState> for AlarmStatus {
    fn from(state: AlarmState) -> Self {
        Self { raised: state.raised != 0, alarms: state.alarms, mean: state.mean, sigma: state.variance.sqrt() }
    }
}
