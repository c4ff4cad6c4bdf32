// The second launch of a controlled step: one block that adds up the chunks' squares, decides, and writes the scalars
// that the update reads. Beside it on the CPU: src/controller.rs.
#pragma once
#include "block.cuh"
#include "decide.cuh"
#include "scalars.cuh"
#include "vec.cuh"

constexpr u32 FINALIZE_BLOCK = 1024;

// Every FINALIZE_BLOCK-th index, beginning with the thread's own.
template <class Do>
DEVICE void for_each(u32 count, Do work) {
    for (u32 i = threadIdx.x; i < count; i += FINALIZE_BLOCK) work(i);
}

// Marks the tensors with gradients that are not finite. All threads call it.
DEVICE void mark_bad_tensors(const FinalizeTables& t) {
    u32* const bad = global<u32>(t.bad_tensors);
    for_each(t.class_count, [&](u32 i) { bad[i] = 0; });
    __syncthreads();
    for_each(t.chunk_count, [&](u32 i) {
        if (global<const Squares>(t.squares)[i].non_finite > 0) atomicOr(&bad[global<const Chunk>(t.chunks)[i].tensor], 1u);
    });
    __syncthreads();
}

DEVICE bool is_bad(const FinalizeTables& t, u32 tensor) {
    return t.bad_tensors && global<const u32>(t.bad_tensors)[tensor] != 0;
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

// One thread's work. `s` is in shared memory: all of it does not fit into registers.
DEVICE void next_state(const FinalizeTables& t, const ControlParams& c, f64 squares, u64 non_finite, const Peak& peak,
                       ControlState& s) {
    ControlState* const states = global<ControlState>(t.state);
    s = last_state(t);
    states[1] = s;
    const f64 scalar = t.grad_scalar ? to_f64(*global<const f32>(t.grad_scalar)) : 1.0;
    decide(c, squares, non_finite, peak, listed(c.schedule, s.applied), mul_rn64(t.grad_scale, scalar), s);
    states[0] = s;
}

// The step count and the scalars of one class.
DEVICE void advance(const FinalizeTables& t, const ControlState& s, u32 i) {
    const Class of = global<const Class>(t.classes)[i];
    Counter* const counter = global<Counter>(t.counters) + i;
    StepScalars* const scalars = global<StepScalars>(t.scalars) + i;
    const u64 before = t.undo ? counter->before : counter->now;
    const bool steps = of.has_grad != 0 && s.skip == 0 && !is_bad(t, i);
    const u64 now = steps ? before + 1 : before;
    counter->now = now, counter->before = before;
    Hyper h = global<const Hyper>(t.hypers)[of.group];
    h.lr = mul_rn64(h.lr, s.lr_factor);
    // Of a skipped step, too: it may be measured.
    *scalars = step_scalars(h, now > 0 ? now : 1, s.grad_scale);
    if (!steps) scalars->flags |= SKIP;
}

// grid: one block. block: FINALIZE_BLOCK threads.
extern "C" __global__ void __launch_bounds__(FINALIZE_BLOCK) finalize(const FinalizeTables t) {
    if (t.bad_tensors) mark_bad_tensors(t);
    f64 sum = 0;
    u64 non_finite = 0;
    for_each(t.chunk_count, [&](u32 i) {
        const Squares squares = global<const Squares>(t.squares)[i];
        sum = add_rn64(sum, is_bad(t, global<const Chunk>(t.chunks)[i].tensor) ? 0.0 : to_f64(squares.sum));
        non_finite += squares.non_finite;
    });
    sum = block_sum<FINALIZE_BLOCK>(sum, [](f64 a, f64 b) { return add_rn64(a, b); });
    non_finite = block_sum<FINALIZE_BLOCK>(non_finite, [](u64 a, u64 b) { return a + b; });
    const Peak peak = last_peak(t);
    __shared__ ControlState decided;
    if (threadIdx.x == 0) next_state(t, *global<const ControlParams>(t.params), sum, non_finite, peak, decided);
    __syncthreads();
    for_each(t.class_count, [&](u32 i) { advance(t, decided, i); });
}
