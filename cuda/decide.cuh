// What a step is to be, given the norm of its gradients and RMS_t of the step before: its multiplier, whether it is
// skipped, the next loss scale, the learning rate's factor. One thread's work, in f64. Twin: src/decide.rs.
#pragma once
#include "rounding.cuh"

// cos(pi x) for x from 0 to 1, within 4e-16: the Taylor series of sin(pi y) at y = 1/2 - x.
DEVICE f64 cos_pi(f64 x) {
    // twin: cos_pi {
    const f64 y = sub_rn64(0.5, x);
    const f64 z = mul_rn64(y, y);
    f64 sum = 5.392664662608129e-10;
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

// The learning rate's factor in the step after `applied` ones. `listed` is the list's factor, if there is a list.
DEVICE f64 schedule_factor(const ScheduleParams& s, u64 applied, f64 listed) {
    // twin: schedule_factor {
    const f64 step = count_to_f64(applied);
    const f64 next = add_rn64(step, 1.0);
    const f64 start = count_to_f64(s.start);
    const f64 rise = select(applied < s.warmup, div_rn64(next, count_to_f64(s.warmup)), 1.0);
    // How much of the decay is over, 0 to 1. The counts are subtracted before they are rounded.
    const f64 length = count_to_f64(sub_wrap64(s.end, s.start));
    const f64 during = div_rn64(count_to_f64(sub_wrap64(applied, s.start)), length);
    const bool ended = applied >= s.end;
    const f64 over = select(applied <= s.start, 0.0, select(ended, 1.0, during));
    const f64 cosine = select(ended, 0.0, mul_rn64(0.5, add_rn64(1.0, cos_pi(over))));
    const f64 left = select(s.kind == COSINE, cosine, select(s.kind == LINEAR, sub_rn64(1.0, over), 1.0));
    const f64 root = select(next > start, sqrt_rn64(div_rn64(start, next)), 1.0);
    const f64 decayed = fma_rn64(left, sub_rn64(1.0, s.floor), s.floor);
    const f64 factor = select(s.kind == INVERSE_SQRT, root, select(s.kind == LISTED, listed, decayed));
    return mul_rn64(rise, factor);
    // } twin
}

// PyTorch's. A norm that is NaN gives NaN.
DEVICE f64 clip_factor(f64 norm, f64 max_norm) {
    // twin: clip_factor {
    const f64 factor = div_rn64(max_norm, add_rn64(norm, 1e-6));
    return select(factor > 1.0, 1.0, factor);
    // } twin
}

// True if no square of a gradient of a chunk can be relied on: `sum` is that of the squares as they lie in memory, and the
// update squares what is `unscale` times as large, in f32. The bound is 2^128 - 2^108: all roundings on the way are less
// than 2^-20.
DEVICE bool is_bad_sum(f32 sum, f64 unscale) {
    // twin: is_bad_sum {
    const f64 scale = to_f64(to_f32_rn(unscale));
    const f64 scaled = mul_rn64(mul_rn64(to_f64(sum), scale), scale);
    return !(scaled < 3.4028204240238481e38);
    // } twin
}

// True if the f32 that the update multiplies by stands for `multiplier`: neither infinite nor NaN, nor 0 by rounding.
DEVICE bool is_usable(f64 multiplier) {
    // twin: is_usable {
    const f32 rounded = to_f32_rn(multiplier);
    return is_finite(rounded) & ((rounded != 0.0f) | (multiplier == 0.0));
    // } twin
}

// PyTorch's GradScaler's rules, and a floor.
DEVICE void next_loss_scale(const ControlParams& c, bool finite, ControlState& s) {
    // twin: next_loss_scale {
    const f64 scale = to_f64(s.loss_scale);
    const u64 finite_steps = select(finite, add_wrap64(s.growth_tracker, 1), 0ull);
    const bool grow = finite & (finite_steps >= c.growth_interval);
    const f32 grown = to_f32_rn(mul_rn64(scale, c.growth_factor));
    const f32 kept = select(grow & is_finite(grown), grown, s.loss_scale);
    const f32 smaller = to_f32_rn(mul_rn64(scale, c.backoff_factor));
    s.loss_scale = select(finite, kept, select(smaller > c.min_loss_scale, smaller, c.min_loss_scale));
    s.growth_tracker = select(grow, 0ull, finite_steps);
    // } twin
}

// RMS_t of one tensor, squared; -1 if the step was not applied to it, or left it none.
DEVICE Peak peak_of(const TensorSums& sums, u64 len, u32 tensor) {
    Peak x;
    // twin: peak_of {
    const f64 square = div_rn64(sums.ratio, count_to_f64(len));
    const bool counts = has(sums.flags, STEPPED) & is_finite64(square);
    x.square = select(counts, square, -1.0);
    x.tensor = tensor;
    return x;
    // } twin
}

DEVICE Peak larger(const Peak& a, const Peak& b) {
    Peak x;
    // twin: larger {
    // Of equals the first, in whatever order they meet.
    const bool later = (b.square > a.square) | ((b.square == a.square) & (b.tensor < a.tensor));
    x.square = select(later, b.square, a.square);
    x.tensor = select(later, b.tensor, a.tensor);
    return x;
    // } twin
}

// An alarm's state after one more value. A value of some of the tensors alone is not `complete`: it may raise the alarm, since
// the missing ones can only add to it, but enters no mean.
DEVICE AlarmState watch(const AlarmParams& a, f64 value, bool complete, const AlarmState& s) {
    AlarmState x;
    // twin: watch {
    const f64 limit = fma_rn64(a.sigmas, sqrt_rn64(s.variance), s.mean);
    const bool counts = has(a.flags, ALARM) & is_finite64(value);
    const bool raised = counts & (s.count >= a.steps) & (value > limit);
    const bool counted = counts & complete;
    // One spike must not hide the next: it counts as the limit.
    const f64 seen = select(raised, limit, value);
    const u64 count = select(s.count < a.steps, add_wrap64(s.count, 1), a.steps);
    // At first a plain mean, then an exponential one.
    const f64 weight = div_rn64(1.0, count_to_f64(count));
    const f64 apart = sub_rn64(seen, s.mean);
    const f64 variance = mul_rn64(sub_rn64(1.0, weight), fma_rn64(mul_rn64(weight, apart), apart, s.variance));
    x.mean = select(counted, fma_rn64(weight, apart, s.mean), s.mean);
    x.variance = select(counted, variance, s.variance);
    x.count = select(counted, count, s.count);
    x.alarms = add_wrap64(s.alarms, select(raised, 1ull, 0ull));
    x.raised = select(raised, 1ull, 0ull);
    return x;
    // } twin
}

DEVICE bool skips(const AlarmParams& a, const AlarmState& s) {
    // twin: skips {
    return has(a.flags, SKIP_ALARM) & (s.raised != 0);
    // } twin
}

// The report of skipped steps with the last one: it was one too many if it is `over`.
DEVICE Overrun overran(bool over, const ControlState& s) {
    Overrun x;
    // twin: overran {
    x.count = add_wrap64(s.overrun.count, select(over, 1ull, 0ull));
    x.skipped_running = select(over, s.skipped_running, s.overrun.skipped_running);
    x.non_finite = select(over, s.non_finite, s.overrun.non_finite);
    x.grad_norm = select(over, s.grad_norm, s.overrun.grad_norm);
    return x;
    // } twin
}

// The multiplier of every gradient beside clipping.
DEVICE f64 unscale_of(f64 grad_scale, f32 loss_scale) {
    // twin: unscale_of {
    return div_rn64(grad_scale, to_f64(loss_scale));
    // } twin
}

// Decides what the step is to be. `unscale` multiplies every gradient beside clipping. `peak` is of the step before.
DEVICE void decide(const ControlParams& c, const Gradients& g, const Peak& peak, f64 listed, f64 unscale, ControlState& s) {
    // twin: decide {
    const bool complete = g.bad == 0ull;
    const bool taken = complete | (g.good > 0ull) | !has(c.flags, SKIP_TENSOR);
    const f64 norm = select(taken, mul_rn64(sqrt_rn64(g.squares), abs64(unscale)), nan64());
    const f64 clip = select(has(c.flags, CLIP_NORM), clip_factor(norm, c.max_grad_norm), 1.0);
    const f64 grad_scale = mul_rn64(unscale, clip);
    const bool usable = is_usable(unscale) & is_usable(grad_scale);
    const bool finite = complete & usable;
    // Without a peak NaN, which no alarm counts.
    const f64 rms = sqrt_rn64(peak.square);
    s.norm_alarm = watch(c.norm_alarm, norm, complete, s.norm_alarm);
    s.rms_alarm = watch(c.rms_alarm, rms, s.left_out == 0u, s.rms_alarm);
    const bool alarm = skips(c.norm_alarm, s.norm_alarm) | skips(c.rms_alarm, s.rms_alarm);
    const bool all_bad = has(c.flags, SKIP_TENSOR) & !(taken & usable);
    const bool skip = (has(c.flags, SKIP_STEP) & !finite) | all_bad | alarm;
    s.grad_norm = canonical64(norm);
    s.unscale = unscale;
    s.grad_scale = canonical64(grad_scale);
    s.lr_factor = schedule_factor(c.schedule, s.applied, listed);
    s.non_finite = g.non_finite;
    s.has_norm = select(has(c.flags, NORM), 1u, 0u);
    s.left_out = select(has(c.flags, SKIP_TENSOR) & !complete, 1u, 0u);
    s.rms = select(is_finite64(rms), rms, 0.0);
    s.rms_tensor = peak.tensor;
    s.skip = select(skip, 1u, 0u);
    s.applied = add_wrap64(s.applied, select(skip, 0ull, 1ull));
    s.skipped = add_wrap64(s.skipped, select(skip, 1ull, 0ull));
    s.skipped_running = select(skip, add_wrap64(s.skipped_running, 1), 0ull);
    s.overrun = overran(s.skipped_running > c.max_skipped, s);
    next_loss_scale(c, finite, s);
    // } twin
}
