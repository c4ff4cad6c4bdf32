//! The learning rate's factor as the user sets it: rise and decay. The function of both: `decide.rs`.

use crate::config::fits_f32;
use crate::control::in_range;
use crate::decide::schedule_factor;
use crate::error::{Error, Result};
use crate::table::{ScheduleParams, schedule_kinds};
use std::sync::Arc;

/// A factor of the learning rate, as a function of the number of steps **applied** so far: skipped ones do not count.
///
/// In step `n` (from 0) it is the product of the rise, `(n + 1) / warmup` for `n < warmup` and 1 later, and of the
/// decay.
///
/// ```
/// use fused_adamw::{Decay, Schedule};
/// let schedule = Schedule { warmup: 4, decay: Decay::Linear { start: 10, end: 20, floor: 0.0 } };
/// assert_eq!([0, 3, 10, 15, 20, 1000].map(|n| schedule.factor(n)), [0.25, 1.0, 1.0, 0.5, 0.0, 0.0]);
/// ```
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Schedule {
    /// Steps of the linear rise. Default 0.
    pub warmup: u64,
    /// Default [`Decay::Constant`].
    pub decay: Decay,
}

/// How a [`Schedule`] goes on after its rise. Ends and starts count applied steps, the rise included.
///
/// ```
/// use fused_adamw::{Decay, Schedule};
/// let listed = Schedule { decay: Decay::List([1.0, 0.5].into()), ..Default::default() };
/// assert_eq!([0, 1, 2].map(|n| listed.factor(n)), [1.0, 0.5, 0.5]);
/// ```
#[derive(Clone, Debug, Default, PartialEq)]
pub enum Decay {
    /// 1. The default.
    #[default]
    Constant,
    /// Half a cosine from 1 at the end of the rise to `floor` at `end`, and `floor` from then on.
    Cosine {
        /// The step from which on the factor is `floor`; later than the rise.
        end: u64,
        /// Range `[0, 1]`.
        floor: f64,
    },
    /// 1 up to `start`, then a straight line to `floor` at `end`, and `floor` from then on. With `start` at the end of
    /// the rise the usual linear decay; with a later one, warm-up, stable, decay (WSD). Not earlier than the end of the
    /// rise: rise and decay would be multiplied (with `warmup` 10, `start` 0 and `end` 20, step 9 would have 0.55, not 1).
    Linear {
        /// The last step of factor 1.
        start: u64,
        /// The step from which on the factor is `floor`; later than `start`.
        end: u64,
        /// Range `[0, 1]`.
        floor: f64,
    },
    /// `sqrt(k / (n + 1))` from `n + 1 = k` on, where `k` is the length of the rise (at least 1).
    InverseSqrt,
    /// A factor for each step; the last one stays. Each in `[0, ∞)`, at least one of them.
    List(Arc<[f64]>),
}

impl Schedule {
    /// The factor of the step after `applied` ones: the very function that the device computes.
    ///
    /// ```
    /// assert_eq!(fused_adamw::Schedule::default().factor(7), 1.0);
    /// ```
    #[must_use]
    pub fn factor(&self, applied: u64) -> f64 {
        schedule_factor(self.params(0), applied, self.listed(applied))
    }

    /// The list's factor, 1 without a list.
    pub(crate) fn listed(&self, applied: u64) -> f64 {
        let index = usize::try_from(applied).unwrap_or(usize::MAX);
        let list = self.list();
        list.get(index).or(list.last()).copied().unwrap_or(1.0)
    }

    pub(crate) fn list(&self) -> &[f64] {
        if let Decay::List(list) = &self.decay { list } else { &[] }
    }

    /// `list`: the address of the list on the device.
    pub(crate) fn params(&self, list: u64) -> ScheduleParams {
        let warmup = self.warmup;
        let (kind, start, end, floor) = match self.decay {
            Decay::Constant => (schedule_kinds::CONSTANT, 0, 0, 0.0),
            Decay::Cosine { end, floor } => (schedule_kinds::COSINE, warmup, end, floor),
            Decay::Linear { start, end, floor } => (schedule_kinds::LINEAR, start, end, floor),
            Decay::InverseSqrt => (schedule_kinds::INVERSE_SQRT, warmup.max(1), 0, 0.0),
            Decay::List(_) => (schedule_kinds::LISTED, 0, 0, 0.0),
        };
        ScheduleParams { warmup, start, end, floor, list, list_len: self.list().len() as u64, kind }
    }

    pub(crate) fn check(&self) -> Result<()> {
        let ends = match self.decay {
            Decay::Cosine { end, floor } => Some((self.warmup, end, floor)),
            Decay::Linear { start, end, floor } => Some((start, end, floor)),
            Decay::Constant | Decay::InverseSqrt | Decay::List(_) => None,
        };
        if let Some((start, end, floor)) = ends {
            in_range("schedule.decay.floor", floor, (0.0..=1.0).contains(&floor), "[0, 1]")?;
            if end <= start {
                return Err(Error::Schedule { start, end });
            }
            if start < self.warmup {
                return Err(Error::DecayInWarmup { start, warmup: self.warmup });
            }
        }
        match &self.decay {
            Decay::List(list) if list.is_empty() => Err(Error::EmptyList),
            Decay::List(list) => list
                .iter()
                .try_for_each(|&x| in_range("schedule.decay.List", x, x >= 0.0 && fits_f32(x), "[0, inf), as f32")),
            _ => Ok(()),
        }
    }
}
