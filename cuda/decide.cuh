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
    // How much of the decay is over, 0 to 1.
    const f64 during = div_rn64(sub_rn64(step, start), sub_rn64(count_to_f64(s.end), start));
    const f64 over = select(applied <= s.start, 0.0, select(applied >= s.end, 1.0, during));
    const f64 cosine = mul_rn64(0.5, add_rn64(1.0, cos_pi(over)));
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

// The rules of PyTorch's GradScaler.
DEVICE void next_loss_scale(const ControlParams& c, bool finite, ControlState& s) {
    // twin: next_loss_scale {
    const f64 scale = to_f64(s.loss_scale);
    const u64 finite_steps = select(finite, add_wrap64(s.growth_tracker, 1), 0ull);
    const bool grow = finite & (finite_steps == c.growth_interval);
    const f32 grown = to_f32_rn(mul_rn64(scale, c.growth_factor));
    const f32 kept = select(grow & is_finite(grown), grown, s.loss_scale);
    s.loss_scale = select(finite, kept, to_f32_rn(mul_rn64(scale, c.backoff_factor)));
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

// What an alarm has come to with one more value: whether that is too far above the mean; and mean and variance with it.
DEVICE AlarmState watch(const AlarmParams& a, f64 value, const AlarmState& s) {
    AlarmState x;
    // twin: watch {
    const f64 limit = fma_rn64(a.sigmas, sqrt_rn64(s.variance), s.mean);
    const bool counts = has(a.flags, ALARM) & is_finite64(value);
    const bool raised = counts & (s.count >= a.steps) & (value > limit);
    // One spike must not hide the next: it counts as the limit.
    const f64 seen = select(raised, limit, value);
    const u64 count = select(s.count < a.steps, add_wrap64(s.count, 1), a.steps);
    // At first a plain mean, then an exponential one.
    const f64 weight = div_rn64(1.0, count_to_f64(count));
    const f64 apart = sub_rn64(seen, s.mean);
    const f64 variance = mul_rn64(sub_rn64(1.0, weight), fma_rn64(mul_rn64(weight, apart), apart, s.variance));
    x.mean = select(counts, fma_rn64(weight, apart, s.mean), s.mean);
    x.variance = select(counts, variance, s.variance);
    x.count = select(counts, count, s.count);
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

// `squares` is the sum of the gradients' squares as they lie in memory; `non_finite` of them are NaN or infinite. `peak` is
// of the step before.
DEVICE void decide(const ControlParams& c, f64 squares, u64 non_finite, const Peak& peak, f64 listed, f64 grad_scale,
                   ControlState& s) {
    // twin: decide {
    const f64 unscale = div_rn64(grad_scale, to_f64(s.loss_scale));
    const f64 norm = mul_rn64(sqrt_rn64(squares), unscale);
    // The squares of finite gradients may not be: such a norm is as bad.
    const bool finite = (non_finite == 0) & is_finite64(norm);
    // Without a peak NaN, which no alarm counts.
    const f64 rms = sqrt_rn64(peak.square);
    s.norm_alarm = watch(c.norm_alarm, norm, s.norm_alarm);
    s.rms_alarm = watch(c.rms_alarm, rms, s.rms_alarm);
    const bool alarm = skips(c.norm_alarm, s.norm_alarm) | skips(c.rms_alarm, s.rms_alarm);
    const bool skip = (has(c.flags, SKIP_STEP) & !finite) | alarm;
    const f64 clip = select(has(c.flags, CLIP_NORM), clip_factor(norm, c.max_grad_norm), 1.0);
    s.grad_norm = canonical64(norm);
    s.unscale = unscale;
    s.grad_scale = canonical64(mul_rn64(unscale, clip));
    s.lr_factor = schedule_factor(c.schedule, s.applied, listed);
    s.non_finite = non_finite;
    s.rms = select(is_finite64(rms), rms, 0.0);
    s.rms_tensor = peak.tensor;
    s.skip = select(skip, 1u, 0u);
    s.applied = add_wrap64(s.applied, select(skip, 0ull, 1ull));
    s.skipped = add_wrap64(s.skipped, select(skip, 1ull, 0ull));
    s.skipped_running = select(skip, add_wrap64(s.skipped_running, 1), 0ull);
    next_loss_scale(c, finite, s);
    // } twin
}
