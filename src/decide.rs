//! What a step is to be, given the norm of its gradients and RMS_t of the step before: its multiplier, whether it is
//! skipped, the next loss scale, the learning rate's factor. In f64. Twin: `cuda/decide.cuh`.

#![allow(
    clippy::needless_return,
    clippy::excessive_precision,
    clippy::neg_cmp_op_on_partial_ord,
    clippy::approx_constant,
    clippy::needless_bitwise_bool,
    clippy::float_cmp,
    clippy::field_reassign_with_default,
    reason = "the text is that of the .cuh"
)]

use crate::rounding::{
    abs64, add_rn64, add_wrap64, canonical64, count_to_f64, div_rn64, fma_rn64, has, is_finite, is_finite64, mul_rn64,
    nan64, select, sqrt_rn64, sub_rn64, sub_wrap64, to_f32_rn, to_f64,
};
use crate::table::alarm_flags::{ALARM, SKIP_ALARM};
use crate::table::control_flags::{CLIP_NORM, NORM, SKIP_STEP, SKIP_TENSOR};
use crate::table::schedule_kinds::{COSINE, INVERSE_SQRT, LINEAR, LISTED};
use crate::table::sums_flags::STEPPED;
use crate::table::{
    AlarmParams, AlarmState, ControlParams, ControlState, Gradients, Overrun, Peak, ScheduleParams, TensorSums,
};

/// `cos(pi x)` for x from 0 to 1, within 4e-16: the Taylor series of `sin(pi y)` at `y = 1/2 - x`.
fn cos_pi(x: f64) -> f64 {
    // twin: cos_pi {
    let y = sub_rn64(0.5, x);
    let z = mul_rn64(y, y);
    let mut sum = 5.392664662608129e-10;
    sum = fma_rn64(sum, z, -2.2948428997269873e-08);
    sum = fma_rn64(sum, z, 7.952054001475513e-07);
    sum = fma_rn64(sum, z, -2.1915353447830217e-05);
    sum = fma_rn64(sum, z, 0.00046630280576761255);
    sum = fma_rn64(sum, z, -0.0073704309457143504);
    sum = fma_rn64(sum, z, 0.08214588661112823);
    sum = fma_rn64(sum, z, -0.5992645293207921);
    sum = fma_rn64(sum, z, 2.5501640398773455);
    sum = fma_rn64(sum, z, -5.16771278004997);
    sum = fma_rn64(sum, z, 3.141592653589793);
    return mul_rn64(sum, y);
    // } twin
}

/// The learning rate's factor in the step after `applied` ones. `listed` is the list's factor, if there is a list.
pub(crate) fn schedule_factor(s: ScheduleParams, applied: u64, listed: f64) -> f64 {
    // twin: schedule_factor {
    let step = count_to_f64(applied);
    let next = add_rn64(step, 1.0);
    let start = count_to_f64(s.start);
    let rise = select(applied < s.warmup, div_rn64(next, count_to_f64(s.warmup)), 1.0);
    // How much of the decay is over, 0 to 1. The counts are subtracted before they are rounded.
    let length = count_to_f64(sub_wrap64(s.end, s.start));
    let during = div_rn64(count_to_f64(sub_wrap64(applied, s.start)), length);
    let ended = applied >= s.end;
    let over = select(applied <= s.start, 0.0, select(ended, 1.0, during));
    let cosine = select(ended, 0.0, mul_rn64(0.5, add_rn64(1.0, cos_pi(over))));
    let left = select(s.kind == COSINE, cosine, select(s.kind == LINEAR, sub_rn64(1.0, over), 1.0));
    let root = select(next > start, sqrt_rn64(div_rn64(start, next)), 1.0);
    let decayed = fma_rn64(left, sub_rn64(1.0, s.floor), s.floor);
    let factor = select(s.kind == INVERSE_SQRT, root, select(s.kind == LISTED, listed, decayed));
    return mul_rn64(rise, factor);
    // } twin
}

/// PyTorch's. A norm that is NaN gives NaN.
fn clip_factor(norm: f64, max_norm: f64) -> f64 {
    // twin: clip_factor {
    let factor = div_rn64(max_norm, add_rn64(norm, 1e-6));
    return select(factor > 1.0, 1.0, factor);
    // } twin
}

/// True if no square of a gradient of a chunk can be relied on: `sum` is that of the squares as they lie in memory, and the
/// update squares what is `unscale` times as large, in f32. The bound is 2^128 - 2^108: all roundings on the way are less
/// than 2^-20.
pub(crate) fn is_bad_sum(sum: f32, unscale: f64) -> bool {
    // twin: is_bad_sum {
    let scale = to_f64(to_f32_rn(unscale));
    let scaled = mul_rn64(mul_rn64(to_f64(sum), scale), scale);
    return !(scaled < 3.4028204240238481e38);
    // } twin
}

/// True if the f32 that the update multiplies by stands for `multiplier`: neither infinite nor NaN, nor 0 by rounding.
fn is_usable(multiplier: f64) -> bool {
    // twin: is_usable {
    let rounded = to_f32_rn(multiplier);
    return is_finite(rounded) & ((rounded != 0.0) | (multiplier == 0.0));
    // } twin
}

/// PyTorch's `GradScaler`'s rules, and a floor.
fn next_loss_scale(c: &ControlParams, finite: bool, s: &mut ControlState) {
    // twin: next_loss_scale {
    let scale = to_f64(s.loss_scale);
    let finite_steps = select(finite, add_wrap64(s.growth_tracker, 1), 0);
    let grow = finite & (finite_steps >= c.growth_interval);
    let grown = to_f32_rn(mul_rn64(scale, c.growth_factor));
    let kept = select(grow & is_finite(grown), grown, s.loss_scale);
    let smaller = to_f32_rn(mul_rn64(scale, c.backoff_factor));
    s.loss_scale = select(finite, kept, select(smaller > c.min_loss_scale, smaller, c.min_loss_scale));
    s.growth_tracker = select(grow, 0, finite_steps);
    // } twin
}

/// Of no tensor.
pub(crate) const NO_PEAK: Peak = Peak { square: -1.0, tensor: 0 };

/// RMS_t of one tensor, squared; -1 if the step was not applied to it, or left it none.
pub(crate) fn peak_of(sums: &TensorSums, len: u64, tensor: u32) -> Peak {
    let mut x = Peak::default();
    // twin: peak_of {
    let square = div_rn64(sums.ratio, count_to_f64(len));
    let counts = has(sums.flags, STEPPED) & is_finite64(square);
    x.square = select(counts, square, -1.0);
    x.tensor = tensor;
    return x;
    // } twin
}

pub(crate) fn larger(a: &Peak, b: &Peak) -> Peak {
    let mut x = Peak::default();
    // twin: larger {
    // Of equals the first, in whatever order they meet.
    let later = (b.square > a.square) | ((b.square == a.square) & (b.tensor < a.tensor));
    x.square = select(later, b.square, a.square);
    x.tensor = select(later, b.tensor, a.tensor);
    return x;
    // } twin
}

/// An alarm's state after one more value. A value of some of the tensors alone is not `complete`: it may raise the alarm, since
/// the missing ones can only add to it, but enters no mean.
fn watch(a: AlarmParams, value: f64, complete: bool, s: AlarmState) -> AlarmState {
    let mut x = AlarmState::default();
    // twin: watch {
    let limit = fma_rn64(a.sigmas, sqrt_rn64(s.variance), s.mean);
    let counts = has(a.flags, ALARM) & is_finite64(value);
    let raised = counts & (s.count >= a.steps) & (value > limit);
    let counted = counts & complete;
    // One spike must not hide the next: it counts as the limit.
    let seen = select(raised, limit, value);
    let count = select(s.count < a.steps, add_wrap64(s.count, 1), a.steps);
    // At first a plain mean, then an exponential one.
    let weight = div_rn64(1.0, count_to_f64(count));
    let apart = sub_rn64(seen, s.mean);
    let variance = mul_rn64(sub_rn64(1.0, weight), fma_rn64(mul_rn64(weight, apart), apart, s.variance));
    x.mean = select(counted, fma_rn64(weight, apart, s.mean), s.mean);
    x.variance = select(counted, variance, s.variance);
    x.count = select(counted, count, s.count);
    x.alarms = add_wrap64(s.alarms, select(raised, 1, 0));
    x.raised = select(raised, 1, 0);
    return x;
    // } twin
}

fn skips(a: AlarmParams, s: AlarmState) -> bool {
    // twin: skips {
    return has(a.flags, SKIP_ALARM) & (s.raised != 0);
    // } twin
}

/// The report of skipped steps with the last one: it was one too many if it is `over`.
fn overran(over: bool, s: &ControlState) -> Overrun {
    let mut x = Overrun::default();
    // twin: overran {
    x.count = add_wrap64(s.overrun.count, select(over, 1, 0));
    x.skipped_running = select(over, s.skipped_running, s.overrun.skipped_running);
    x.non_finite = select(over, s.non_finite, s.overrun.non_finite);
    x.grad_norm = select(over, s.grad_norm, s.overrun.grad_norm);
    return x;
    // } twin
}

/// The multiplier of every gradient beside clipping.
pub(crate) fn unscale_of(grad_scale: f64, loss_scale: f32) -> f64 {
    // twin: unscale_of {
    return div_rn64(grad_scale, to_f64(loss_scale));
    // } twin
}

/// Decides what the step is to be. `unscale` multiplies every gradient beside clipping. `peak` is of the step before.
pub(crate) fn decide(c: &ControlParams, g: &Gradients, peak: &Peak, listed: f64, unscale: f64, s: &mut ControlState) {
    // twin: decide {
    let complete = g.bad == 0;
    let taken = complete | (g.good > 0) | !has(c.flags, SKIP_TENSOR);
    let norm = select(taken, mul_rn64(sqrt_rn64(g.squares), abs64(unscale)), nan64());
    let clip = select(has(c.flags, CLIP_NORM), clip_factor(norm, c.max_grad_norm), 1.0);
    let grad_scale = mul_rn64(unscale, clip);
    let usable = is_usable(unscale) & is_usable(grad_scale);
    let finite = complete & usable;
    // Without a peak NaN, which no alarm counts.
    let rms = sqrt_rn64(peak.square);
    s.norm_alarm = watch(c.norm_alarm, norm, complete, s.norm_alarm);
    s.rms_alarm = watch(c.rms_alarm, rms, s.left_out == 0, s.rms_alarm);
    let alarm = skips(c.norm_alarm, s.norm_alarm) | skips(c.rms_alarm, s.rms_alarm);
    let all_bad = has(c.flags, SKIP_TENSOR) & !(taken & usable);
    let skip = (has(c.flags, SKIP_STEP) & !finite) | all_bad | alarm;
    s.grad_norm = canonical64(norm);
    s.unscale = unscale;
    s.grad_scale = canonical64(grad_scale);
    s.lr_factor = schedule_factor(c.schedule, s.applied, listed);
    s.non_finite = g.non_finite;
    s.has_norm = select(has(c.flags, NORM), 1, 0);
    s.left_out = select(has(c.flags, SKIP_TENSOR) & !complete, 1, 0);
    s.rms = select(is_finite64(rms), rms, 0.0);
    s.rms_tensor = peak.tensor;
    s.skip = select(skip, 1, 0);
    s.applied = add_wrap64(s.applied, select(skip, 0, 1));
    s.skipped = add_wrap64(s.skipped, select(skip, 1, 0));
    s.skipped_running = select(skip, add_wrap64(s.skipped_running, 1), 0);
    s.overrun = overran(s.skipped_running > c.max_skipped, s);
    next_loss_scale(c, finite, s);
    // } twin
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::{Control, LossScale, NonFinite};
    use crate::schedule::{Decay, Schedule};
    use std::f64::consts::PI;

    #[test]
    fn cos_pi_is_within_4e_16() {
        for i in 0..=100_000 {
            let x = f64::from(i) / 100_000.0;
            assert!((cos_pi(x) - (PI * x).cos()).abs() <= 4e-16, "{x}");
        }
    }

    fn factors(warmup: u64, decay: Decay, steps: impl IntoIterator<Item = u64>) -> Vec<f64> {
        let schedule = Schedule { warmup, decay };
        steps.into_iter().map(|n| schedule.factor(n)).collect()
    }

    #[test]
    fn the_rise_ends_at_1() {
        assert_eq!(factors(4, Decay::Constant, 0..6), [0.25, 0.5, 0.75, 1.0, 1.0, 1.0]);
        assert_eq!(factors(0, Decay::Constant, [0, u64::MAX]), [1.0, 1.0]);
    }

    #[test]
    fn a_cosine_is_half_way_down_in_the_middle() {
        let found = factors(10, Decay::Cosine { end: 110, floor: 0.2 }, [9, 10, 35, 60, 110, 111, u64::MAX]);
        let wanted = [1.0, 1.0, 0.2 + 0.4 * (1.0 + (PI / 4.0).cos()), 0.6, 0.2, 0.2, 0.2];
        found.iter().zip(wanted).for_each(|(f, w)| approx::assert_relative_eq!(*f, w, max_relative = 1e-15));
    }

    #[test]
    fn warm_up_stable_decay() {
        let decay = Decay::Linear { start: 8, end: 12, floor: 0.5 };
        assert_eq!(factors(2, decay, [0, 1, 5, 8, 9, 10, 12, 99]), [0.5, 1.0, 1.0, 1.0, 0.875, 0.75, 0.5, 0.5]);
    }

    #[test]
    fn an_inverse_square_root_begins_where_the_rise_ends() {
        assert_eq!(factors(4, Decay::InverseSqrt, [0, 3, 15, 63]), [0.25, 1.0, 0.5, 0.25]);
        assert_eq!(factors(0, Decay::InverseSqrt, [0, 3]), [1.0, 0.5]);
    }

    #[test]
    fn the_last_of_a_list_stays() {
        assert_eq!(factors(0, Decay::List([3.0, 0.0, 0.5].into()), 0..5), [3.0, 0.0, 0.5, 0.5, 0.5]);
    }

    fn decided(control: &Control, squares: f64, non_finite: u64) -> ControlState {
        let mut state = control.first_state(None);
        let bad = u64::from(non_finite > 0 || !squares.is_finite());
        let gradients = Gradients { squares, non_finite, bad, good: 0 };
        let unscale = unscale_of(1.0, state.loss_scale);
        decide(&control.params(0), &gradients, &NO_PEAK, 1.0, unscale, &mut state);
        state
    }

    #[test]
    fn the_norm_of_a_scaled_loss_is_unscaled_before_it_is_clipped() {
        let scale = LossScale { init_scale: 8.0, ..Default::default() };
        let non_finite = NonFinite::SkipStep;
        let control = Control { max_grad_norm: Some(1.0), loss_scale: Some(scale), non_finite, ..Default::default() };
        let state = decided(&control, 256.0, 0);
        assert_eq!((state.grad_norm, state.grad_scale), (2.0, 0.125 * (1.0 / (2.0 + 1e-6))));
    }

    // As clamp(max_norm / (norm + 1e-6), max=1) does, with error_if_nonfinite=False.
    #[test]
    fn what_is_not_finite_goes_on_if_it_may() {
        let control = Control { max_grad_norm: Some(1.0), ..Default::default() };
        assert!(decided(&control, f64::NAN, 1).grad_scale.is_nan());
        assert_eq!(decided(&control, f64::INFINITY, 1).grad_scale, 0.0);
        assert_eq!(decided(&control, f64::NAN, 1).skip, 0);
    }

    #[test]
    fn finite_gradients_whose_squares_are_not_are_skipped() {
        let control = Control { non_finite: NonFinite::SkipStep, ..Default::default() };
        let state = decided(&control, f64::INFINITY, 0);
        assert_eq!((state.skip, state.applied, state.skipped, state.skipped_running), (1, 0, 1, 1));
    }
}
