// The step: one block a chunk of one tensor; each thread updates LANES elements at a time, 16 bytes an access.
// Beside it on the CPU: src/cpu.rs. What an element becomes: update.cuh. What the tables hold: src/table.rs.
#include "accumulate.cuh"
#include "arrays.cuh"
#include "collect.cuh"
#include "finalize.cuh"
#include "full.cuh"
#include "norm.cuh"
#include "scalars.cuh"
#include "update.cuh"
#include "variants.cuh"

// The elements before the first 16-byte boundary of the state and those after the last one are done one by one;
// a chunk starts at a multiple of 8 elements, so that `head` is the same for every chunk of a tensor.
template <u32 LANES>
DEVICE void update_chunk(const Arrays& a, u32 head, u32 len, const StepScalars& s) {
    const auto step = [&s](f32 grad, Element& e) { update(s, grad, e); };
    const u32 first = min(head, len);
    const u32 vectors = (len - first) / LANES;
    for (u32 i = threadIdx.x; i < vectors; i += BLOCK) step_lanes<LANES>(a, first + i * LANES, true, step);
    const u32 rest = len - vectors * LANES;
    if (threadIdx.x < rest) step_one(a, threadIdx.x < first ? threadIdx.x : threadIdx.x + vectors * LANES, true, step);
}

// `table` holds the scalars when there are too many for the arguments; else it is null.
DEVICE const StepScalars scalars_of(const TensorRow& t, const StepScalars* table, const InlineScalars& inlined) {
    return table ? table[t.scalars] : inlined.at[t.scalars];
}

// The block's chunk; or its chunks, where the grid is as large as the GPU and the table ends with an empty chunk for each.
template <class Do>
DEVICE void for_chunks(const Chunk* chunks, const Do& work) {
    if constexpr (PERSISTENT) {
        for (u32 i = blockIdx.x; chunks[i].len > 0; i += gridDim.x) work(chunks[i]);
    } else {
        work(chunks[blockIdx.x]);
    }
}

// Every parameter and gradient f32, no AMSGrad: the other cases are compiled out.
// grid: one block a chunk. block: BLOCK threads.
extern "C" __global__ void __launch_bounds__(BLOCK, F32_BLOCKS)
    adamw_f32(const TensorRow* rows, const Chunk* chunks, const StepScalars* table, const InlineScalars inlined) {
    for_chunks(chunks, [&](const Chunk chunk) {
        TensorRow t = rows[chunk.tensor];
        if (!has(t.flags, HAS_GRAD)) return;
        t.param_dtype = t.grad_dtype = F32;
        t.vmax = t.master = 0;
        const StepScalars s = scalars_of(t, table, inlined);
        if (has(s.flags, SKIP)) return;
        update_chunk<F32_LANES>(Arrays(t, chunk.start), t.head, chunk.len, s);
    });
}

// Any mixture of dtypes, with and without AMSGrad.
// grid: one block a chunk. block: BLOCK threads.
extern "C" __global__ void __launch_bounds__(BLOCK, MIXED_BLOCKS)
    adamw_mixed(const TensorRow* rows, const Chunk* chunks, const StepScalars* table, const InlineScalars inlined) {
    for_chunks(chunks, [&](const Chunk chunk) {
        const TensorRow t = rows[chunk.tensor];
        if (!has(t.flags, HAS_GRAD)) return;
        const StepScalars s = scalars_of(t, table, inlined);
        const Arrays a(t, chunk.start);
        if (has(s.flags, SKIP)) return init_masters(a, chunk.len);
        update_chunk<8>(a, t.head, chunk.len, s);
    });
}
