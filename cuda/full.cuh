// The update with everything that a plain step does without: gradients clamped, written as zeros, and what is measured
// of the step. It walks the chunks of the norm, and which element is whose is a function of its index alone: so are the
// sums. Beside it on the CPU, and twin of `clamp`, `measure` and `add`: src/full.rs.
#pragma once
#include "arrays.cuh"
#include "update.cuh"

DEVICE f32 clamp(f32 x, f32 most) {
    // twin: clamp {
    const f32 raised = select(x < -most, -most, x);
    return select(raised > most, most, raised);
    // } twin
}

// Of one element: `grad` as it lies in memory, `used` as the step took it; its parameter `before`; what has become of it;
// whether it `stays` as it is stored.
DEVICE Sums measure(const StepScalars& s, f32 grad, f32 used, f32 before, const Element& e, bool stays) {
    Sums x;
    // twin: measure {
    const f32 moved = sub_rn(e.p, before);
    const f32 root = mul_rn(sqrt_rn(e.vmax), s.inv_sqrt_bias_correction2);
    const f32 ratio = select(used == 0.0f, 0.0f, div_rn(used, max_nan(s.eps, root)));
    const bool pulled = ((e.m != 0.0f) & (s.step_size != 0.0f)) | (mul_rn(s.decay, before) != 0.0f);
    x.grad = mul_rn(grad, grad);
    x.param = mul_rn(e.p, e.p);
    x.update = mul_rn(moved, moved);
    x.ratio = mul_rn(ratio, ratio);
    x.max_update = to_bits(canonical(moved)) & 0x7fffffffu;
    x.non_finite = select(is_finite(grad), 0u, 1u);
    x.unmoved = select(pulled & stays & !has(s.flags, SKIP), 1u, 0u);
    x.below_eps = select(root < s.eps, 1u, 0u);
    return x;
    // } twin
}

DEVICE Sums add(const Sums& a, const Sums& b) {
    Sums x;
    // twin: add {
    x.grad = add_rn(a.grad, b.grad);
    x.param = add_rn(a.param, b.param);
    x.update = add_rn(a.update, b.update);
    x.ratio = add_rn(a.ratio, b.ratio);
    // NaN is larger than anything else, as bits.
    x.max_update = select(b.max_update > a.max_update, b.max_update, a.max_update);
    x.non_finite = add_wrap(a.non_finite, b.non_finite);
    x.unmoved = add_wrap(a.unmoved, b.unmoved);
    x.below_eps = add_wrap(a.below_eps, b.below_eps);
    return x;
    // } twin
}

DEVICE Sums from_lane(const Sums& x, u32 apart) {
    return {from_lane(x.grad, apart),       from_lane(x.param, apart),      from_lane(x.update, apart),
            from_lane(x.ratio, apart),      from_lane(x.max_update, apart), from_lane(x.non_finite, apart),
            from_lane(x.unmoved, apart),    from_lane(x.below_eps, apart)};
}

// A parameter as it is stored.
DEVICE u32 stored(f32 p, u8 dtype) {
    return dtype == F32 ? to_bits(p) : dtype == BF16 ? f32_to_bf16_rn(p) : f32_to_f16_rn(p);
}

DEVICE void zero_grads(const Arrays& a, u64 i, u32 count, bool aligned) {
    const f32 zeros[8] = {};
    const u64 grad = a.grad + i * size_of(a.grad_dtype);
    if (count == 8) return store<8>(grad, a.grad_dtype, aligned, zeros);
#pragma unroll 1
    for (u32 j = 0; j < count; j++) store(grad + j * size_of(a.grad_dtype), a.grad_dtype, 0);
}

// What this thread sees of the chunk: 8 elements of every 2048, in their order.
// SKIPS is known to the compiler, which else keeps more than fits into the registers.
template <bool SKIPS>
DEVICE Sums walk_chunk(const Arrays& a, bool aligned, u32 len, StepScalars s, const FullParams& f) {
    const f32 scale = s.grad_scale;
    s.grad_scale = 1;
    Sums sums = {};
    const auto step = [&](f32 grad, Element& e) {
        const f32 before = e.p, used = clamp(mul_rn(grad, scale), f.max_grad_value);
        if (!SKIPS) update(s, used, e);
        else if (!a.vmax) e.vmax = e.v;
        if (!has(f.flags, METRICS)) return;
        const bool stays = stored(e.p, a.param_dtype) == stored(before, a.param_dtype);
        sums = add(sums, measure(s, grad, used, before, e, stays));
    };
#pragma unroll 1
    for (u32 i = 8 * threadIdx.x; i < len; i += 8 * BLOCK) {
        const u32 count = min(8u, len - i);
        if (aligned && count == 8) {
            step_lanes<8>(a, i, !SKIPS, step);
        } else {
#pragma unroll 1
            for (u32 j = i; j < i + count; j++) step_one(a, j, !SKIPS, step);
        }
        if (has(f.flags, ZERO_GRAD)) zero_grads(a, i, count, aligned && a.grad_aligned);
    }
    return sums;
}

DEVICE Sums full_chunk(const Arrays& a, bool aligned, u32 len, const StepScalars& s, const FullParams& f) {
    return has(s.flags, SKIP) ? walk_chunk<true>(a, aligned, len, s, f) : walk_chunk<false>(a, aligned, len, s, f);
}

// With METRICS, `sums` has one for each chunk; a tensor without a gradient counts as zeros.
// grid: one block a chunk of the norm. block: BLOCK threads.
extern "C" __global__ void __launch_bounds__(BLOCK, 3)
    adamw_full(const TensorRow* rows, const Chunk* chunks, const StepScalars* table, const FullParams f, Sums* sums) {
    const Chunk chunk = chunks[blockIdx.x];
    const TensorRow t = rows[chunk.tensor];
    Sums mine = {};
    if (has(t.flags, HAS_GRAD))
        mine = full_chunk(Arrays(t, chunk.start), t.head == 0, chunk.len, table[t.scalars], f);
    if (!has(f.flags, METRICS)) return;
    const Sums all = block_sum<BLOCK>(mine, [](const Sums& a, const Sums& b) { return add(a, b); });
    if (threadIdx.x == 0) sums[blockIdx.x] = all;
}
