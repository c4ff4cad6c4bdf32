// Gradients of several backward passes, added up in f32. Beside it on the CPU: src/accumulate.rs.
#pragma once
#include "block.cuh"
#include "vec.cuh"

// Elements of one thread: a block takes a chunk at once.
constexpr u32 SUM_LANES = 4;

// The first gradient after a step is the sum, so that nobody has to write zeros.
DEVICE f32 next_sum(bool first, f32 sum, f32 g) {
    // twin: next_sum {
    return canonical(select(first, g, add_rn(sum, g)));
    // } twin
}

DEVICE void add_one(const SumRow& row, bool first, u64 i) {
    const u64 sum = row.sum + 4 * i;
    const f32 g = load(row.grad + i * size_of(row.grad_dtype), row.grad_dtype);
    store(sum, F32, next_sum(first, first ? 0 : load(sum, F32), g));
}

DEVICE void add_lanes(const SumRow& row, bool first, bool aligned, u64 i) {
    const u64 sum = row.sum + 4 * i;
    const Raw<SUM_LANES> raw_g = fetch<SUM_LANES>(row.grad + i * size_of(row.grad_dtype), row.grad_dtype, aligned);
    Raw<SUM_LANES> raw_sum = {};
    if (!first) raw_sum = fetch_aligned<SUM_LANES>(sum, F32);
    f32 g[SUM_LANES], sums[SUM_LANES];
    unpack(raw_g, row.grad_dtype, g);
    unpack(raw_sum, F32, sums);
#pragma unroll
    for (u32 lane = 0; lane < SUM_LANES; lane++) sums[lane] = next_sum(first, sums[lane], g[lane]);
    store_aligned<SUM_LANES>(sum, F32, sums);
}

// `first`: of every tensor (ALL_FIRST), of none (NONE_FIRST), or as its row says. Sums lie on a 16-byte boundary.
// grid: one block a chunk. block: BLOCK threads.
extern "C" __global__ void __launch_bounds__(BLOCK)
    accumulate(const SumRow* rows, const Chunk* chunks, u32 which_first) {
    const Chunk chunk = chunks[blockIdx.x];
    const SumRow row = rows[chunk.tensor];
    if (!has(row.flags, HAS_GRAD)) return;
    const bool first = which_first == ALL_FIRST || (which_first == ROWS_FIRST && has(row.flags, FIRST));
    const bool aligned = (row.grad + chunk.start * size_of(row.grad_dtype)) % 16 == 0;
    const u32 vectors = chunk.len / SUM_LANES;
    if (threadIdx.x < vectors) add_lanes(row, first, aligned, chunk.start + threadIdx.x * SUM_LANES);
    const u32 rest = chunk.len - vectors * SUM_LANES;
    if (threadIdx.x < rest) add_one(row, first, chunk.start + vectors * SUM_LANES + threadIdx.x);
}
