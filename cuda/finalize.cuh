// The second launch of a controlled step: one block that adds up the parts of the norm, decides, and writes the scalars
// that the update reads. Beside it on the CPU: src/controller.rs.
#pragma once
#include "block.cuh"
#include "decide.cuh"
#include "norm.cuh"
#include "scalars.cuh"
#include "vec.cuh"

constexpr u32 FINALIZE_BLOCK = 1024;

// Every FINALIZE_BLOCK-th index, beginning with the thread's own.
template <class Do>
DEVICE void for_each(u32 count, Do work) {
    for (u32 i = threadIdx.x; i < count; i += FINALIZE_BLOCK) work(i);
}

DEVICE NormPart* parts_of(const FinalizeTables& t) {
    return global<NormPart>(t.parts);
}

// True if the sums of a part cannot be relied on.
DEVICE bool is_bad(const NormPart& part, f64 unscale) {
    return is_bad_sum(from_bits((u32)part.words[LARGEST]), unscale);
}

// The addend of one word of a part. A tensor that is left out adds the count of its gradients that are not finite, and no more.
DEVICE u64 addend(const NormPart& part, u32 word, f64 unscale, bool leaves_out) {
    const bool bad = is_bad(part, unscale);
    if (word == BAD) return bad;
    return bad && leaves_out && word != NON_FINITE ? 0 : part.words[word];
}

// Adds up all parts in `total`, except for LARGEST. All threads call it: each has a word, of every 64th part.
DEVICE void add_parts(const FinalizeTables& t, f64 unscale, bool leaves_out, u64* total) {
    constexpr u32 COLUMNS = FINALIZE_BLOCK / WARP;
    __shared__ u64 columns[COLUMNS][NORM_WORDS];
    const u32 word = threadIdx.x % NORM_WORDS, warp = threadIdx.x / WARP;
    u64 sum = 0;
    for (u32 i = threadIdx.x / NORM_WORDS; i < t.part_count; i += FINALIZE_BLOCK / NORM_WORDS)
        sum += addend(parts_of(t)[i], word, unscale, leaves_out);
    sum += from_lane(sum, NORM_WORDS);
    if (threadIdx.x % WARP < NORM_WORDS) columns[warp][word] = sum;
    __syncthreads();
    u64 all = 0;
    for (u32 i = 0; i < COLUMNS; i++) all += columns[i][word];
    if (threadIdx.x < NORM_WORDS) total[word] = all;
}

// The list's factor for the next step, 1 without a list.
DEVICE f64 listed(const ScheduleParams& s, u64 applied) {
    if (s.kind != LISTED) return 1.0;
    return global<const f64>(s.list)[applied < s.list_len ? applied : s.list_len - 1];
}

DEVICE Peak from_lane(const Peak& x, u32 apart) {
    return {from_lane(x.square, apart), from_lane(x.tensor, apart)};
}

DEVICE const ControlState& last_state(const FinalizeTables& t) {
    return global<const ControlState>(t.state)[t.undo ? 1 : 0];
}

// It is not, if that one could not be made.
DEVICE bool record_is_of_last_step(const FinalizeTables& t) {
    const ControlState &recorded = *global<const ControlState>(t.record), &last = last_state(t);
    return recorded.applied + recorded.skipped == last.applied + last.skipped;
}

// The largest RMS_t of a tensor in the last step, if it is asked for; known to the first warp. All threads call it. No
// early return: NVRTC 12.0 does not come to an end then.
DEVICE Peak last_peak(const FinalizeTables& t) {
    Peak peak = {-1, 0};
    const TensorSums* const sums = global<const TensorSums>(t.record + sizeof(ControlState));
    const u32 recorded = t.lens && record_is_of_last_step(t) ? t.tensor_count : 0;
    for_each(recorded, [&](u32 i) { peak = larger(peak, peak_of(sums[i], global<const u64>(t.lens)[i], i)); });
    return block_sum<FINALIZE_BLOCK>(peak, [](const Peak& a, const Peak& b) { return larger(a, b); });
}

// The multiplier of every gradient in this step beside clipping.
DEVICE f64 unscale_of_step(const FinalizeTables& t) {
    const f64 scalar = t.grad_scalar ? to_f64(*global<const f32>(t.grad_scalar)) : 1.0;
    return unscale_of(mul_rn64(t.grad_scale, scalar), last_state(t).loss_scale);
}

// One thread's work. `s` is in shared memory: all of it does not fit into registers.
DEVICE void next_state(const FinalizeTables& t, const ControlParams& c, u64* total, f64 unscale, const Peak& peak, ControlState& s) {
    ControlState* const states = global<ControlState>(t.state);
    s = last_state(t);
    states[1] = s;
    const Gradients g = {exact_value(total), total[NON_FINITE], total[BAD], total[GOOD]};
    decide(c, g, peak, listed(c.schedule, s.applied), unscale, s);
    states[0] = s;
}

// The step count and the scalars of one class: with `by_tensor` of one tensor.
DEVICE void advance(const FinalizeTables& t, const ControlState& s, bool by_tensor, u32 i) {
    const Class of = global<const Class>(t.classes)[i];
    Counter* const counter = global<Counter>(t.counters) + i;
    StepScalars* const scalars = global<StepScalars>(t.scalars) + i;
    const u64 before = t.undo ? counter->before : counter->now;
    const bool steps = of.has_grad != 0 && s.skip == 0 && !(by_tensor && is_bad(parts_of(t)[i], s.unscale));
    const u64 now = steps ? before + 1 : before;
    counter->now = now, counter->before = before;
    Hyper h = global<const Hyper>(t.hypers)[of.group];
    h.lr = mul_rn64(h.lr, s.lr_factor);
    // Of a skipped step, too: it may be measured.
    *scalars = step_scalars(h, now > 0 ? now : 1, s.grad_scale);
    if (!steps) scalars->flags |= SKIP;
}

// For the next step.
DEVICE void clear_parts(const FinalizeTables& t) {
    for (u32 i = threadIdx.x / NORM_WORDS; i < t.part_count; i += FINALIZE_BLOCK / NORM_WORDS)
        parts_of(t)[i].words[threadIdx.x % NORM_WORDS] = 0;
}

// grid: one block. block: FINALIZE_BLOCK threads.
extern "C" __global__ void __launch_bounds__(FINALIZE_BLOCK) finalize(const FinalizeTables t) {
    __shared__ u64 total[NORM_WORDS];
    __shared__ ControlState decided;
    const ControlParams& params = *global<const ControlParams>(t.params);
    const f64 unscale = unscale_of_step(t);
    const bool by_tensor = has(params.flags, SKIP_TENSOR) && t.part_count > 0;
    add_parts(t, unscale, by_tensor, total);
    const Peak peak = last_peak(t);
    __syncthreads();
    if (threadIdx.x == 0) next_state(t, params, total, unscale, peak, decided);
    __syncthreads();
    for_each(t.class_count, [&](u32 i) { advance(t, decided, by_tensor, i); });
    __syncthreads();
    clear_parts(t);
}
