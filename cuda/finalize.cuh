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

// One thread's work.
DEVICE ControlState next_state(const FinalizeTables& t, const ControlParams& c, f64 squares, u64 non_finite) {
    ControlState* const states = global<ControlState>(t.state);
    ControlState s = states[t.undo ? 1 : 0];
    states[1] = s;
    const f64 scalar = t.grad_scalar ? to_f64(*global<const f32>(t.grad_scalar)) : 1.0;
    decide(c, squares, non_finite, listed(c.schedule, s.applied), mul_rn64(t.grad_scale, scalar), s);
    states[0] = s;
    return s;
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
    __shared__ ControlState decided;
    if (threadIdx.x == 0) decided = next_state(t, *global<const ControlParams>(t.params), sum, non_finite);
    __syncthreads();
    for_each(t.class_count, [&](u32 i) { advance(t, decided, i); });
}
