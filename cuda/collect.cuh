// The last launch of a step that is measured: the sums of each tensor, and what the control says of itself, as a record.
// Beside it on the CPU, and twin of `add`: src/collect.rs.
#pragma once
#include "block.cuh"
#include "vec.cuh"

DEVICE TensorSums widened(const Sums& x) {
    return {to_f64(x.grad), to_f64(x.param), to_f64(x.update), to_f64(x.ratio),
            x.non_finite,   x.unmoved,       x.below_eps,      x.max_update,    0};
}

DEVICE TensorSums add(const TensorSums& a, const TensorSums& b) {
    TensorSums x;
    // twin: add {
    x.grad = add_rn64(a.grad, b.grad);
    x.param = add_rn64(a.param, b.param);
    x.update = add_rn64(a.update, b.update);
    x.ratio = add_rn64(a.ratio, b.ratio);
    x.non_finite = add_wrap64(a.non_finite, b.non_finite);
    x.unmoved = add_wrap64(a.unmoved, b.unmoved);
    x.below_eps = add_wrap64(a.below_eps, b.below_eps);
    x.max_update = select(b.max_update > a.max_update, b.max_update, a.max_update);
    x.flags = a.flags | b.flags;
    return x;
    // } twin
}

DEVICE TensorSums from_lane(const TensorSums& x, u32 apart) {
    return {from_lane(x.grad, apart),       from_lane(x.param, apart),     from_lane(x.update, apart),
            from_lane(x.ratio, apart),      from_lane(x.non_finite, apart), from_lane(x.unmoved, apart),
            from_lane(x.below_eps, apart),  from_lane(x.max_update, apart), from_lane(x.flags, apart)};
}

DEVICE u32 flags_of(const CollectTables& t, u32 tensor) {
    const TensorRow row = global<const TensorRow>(t.rows)[tensor];
    if (!has(row.flags, HAS_GRAD)) return 0;
    const bool skipped = has(global<const StepScalars>(t.scalars)[row.scalars].flags, SKIP);
    return skipped ? MEASURED : MEASURED | STEPPED;
}

// grid: one block a tensor. block: BLOCK threads.
extern "C" __global__ void __launch_bounds__(BLOCK) collect(const CollectTables t) {
    const u32 tensor = blockIdx.x;
    const u32* const firsts = global<const u32>(t.firsts);
    TensorSums sums = {};
    for (u32 i = firsts[tensor] + threadIdx.x; i < firsts[tensor + 1]; i += BLOCK)
        sums = add(sums, widened(global<const Sums>(t.sums)[i]));
    sums = block_sum<BLOCK>(sums, [](const TensorSums& a, const TensorSums& b) { return add(a, b); });
    if (threadIdx.x != 0) return;
    sums.grad = canonical64(sums.grad), sums.param = canonical64(sums.param);
    sums.update = canonical64(sums.update), sums.ratio = canonical64(sums.ratio);
    sums.flags = flags_of(t, tensor);
    global<TensorSums>(t.record + sizeof(ControlState))[tensor] = sums;
    if (tensor == 0) *global<ControlState>(t.record) = *global<const ControlState>(t.state);
}
