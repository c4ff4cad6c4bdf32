// The step: one block a chunk of one tensor; each thread updates LANES elements, 16 bytes an access of f32.
// Beside it on the CPU: src/cpu.rs. What an element becomes: update.cuh. What the tables hold: src/table.rs.
//
// A chunk is no longer than its block takes at once (src/plan.rs): so the blocks that are at work walk through memory side by
// side, which is worth more than the time in which each begins.
#include "accumulate.cuh"
#include "arrays.cuh"
#include "collect.cuh"
#include "finalize.cuh"
#include "full.cuh"
#include "masters.cuh"
#include "norm.cuh"
#include "scalars.cuh"
#include "update.cuh"
#include "variants.cuh"

constexpr u32 LANES = 4;

// The elements before the first 16-byte boundary of the state and those after the last one are done one by one;
// a chunk starts at a multiple of 8 elements, so that `head` is the same for every chunk of a tensor.
DEVICE void update_chunk(const Arrays& a, u32 head, u32 len, const StepScalars& s) {
    const auto step = [&s](f32 grad, Element& e) { update(s, grad, e); };
    const u32 first = min(head, len);
    const u32 vectors = (len - first) / LANES;
    if (threadIdx.x < vectors) step_lanes<LANES>(a, first + threadIdx.x * LANES, true, step);
    const u32 rest = len - vectors * LANES;
    if (threadIdx.x < rest) step_one(a, threadIdx.x < first ? threadIdx.x : threadIdx.x + vectors * LANES, true, step);
}

// `table` holds the scalars when there are too many for the arguments; else it is null.
DEVICE const StepScalars scalars_of(const TensorRow& t, const StepScalars* table, const InlineScalars& inlined) {
    return table ? table[t.scalars] : inlined.at[t.scalars];
}

// A tensor's chunk. ALL: the dtype of parameter and gradient, without AMSGrad, and all other cases are compiled out; or ANY.
constexpr u8 ANY = 255;
template <u8 ALL>
DEVICE void update_tensor(TensorRow t, const Chunk& chunk, const StepScalars& s) {
    if (ALL != ANY) t.param_dtype = t.grad_dtype = ALL, t.vmax = 0;
    const Arrays a(t, chunk.start);
    if (has(s.flags, SKIP)) return;
    update_chunk(a, t.head, chunk.len, s);
}

// In a list of ANY, bf16 alone still goes its own way, which is shorter.
template <u8 ALL>
DEVICE void update_block(const TensorRow* rows, const Chunk* chunks, const StepScalars* table, const InlineScalars& inlined) {
    const Chunk chunk = chunks[blockIdx.x];
    const TensorRow t = rows[chunk.tensor];
    if (!has(t.flags, HAS_GRAD)) return;
    const StepScalars s = scalars_of(t, table, inlined);
    const bool is_bf16 = t.param_dtype == BF16 && t.grad_dtype == BF16 && !t.vmax;
    if (ALL == ANY && is_bf16) return update_tensor<BF16>(t, chunk, s);
    update_tensor<ALL>(t, chunk, s);
}

// grid, of all four: one block a chunk. block: BLOCK threads.
#define UPDATE(name, blocks, all)                                                                                 \
    extern "C" __global__ void __launch_bounds__(BLOCK, blocks)                                                   \
        name(const TensorRow* rows, const Chunk* chunks, const StepScalars* table, const InlineScalars inlined) { \
        update_block<all>(rows, chunks, table, inlined);                                                          \
    }
UPDATE(adamw_f32, UNIFORM_BLOCKS, F32)
UPDATE(adamw_bf16, UNIFORM_BLOCKS, BF16)
UPDATE(adamw_f16, UNIFORM_BLOCKS, F16)
UPDATE(adamw_mixed, MIXED_BLOCKS, ANY)
