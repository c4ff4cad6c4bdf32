// The first launch of a controlled step: of each chunk of gradients the sum of the squares, and how many are not
// finite. Which squares are added to which, and in which order, is a function of the chunk's length alone.
// Beside it on the CPU: src/norm.rs.
#pragma once
#include "block.cuh"
#include "vec.cuh"

DEVICE void add_square(f32 g, f32& sum, u32& non_finite) {
    sum = fma_rn(g, g, sum);
    non_finite += is_finite(g) ? 0 : 1;
}

// Each thread has 8 sums: of every 2048th gradient each.
DEVICE Squares squares_of_thread(u64 grad, u8 dtype, u32 len) {
    constexpr u32 LANES = 8;
    f32 sums[LANES] = {};
    u32 non_finite = 0;
    const bool aligned = grad % 16 == 0;
    for (u32 i = LANES * threadIdx.x; i < len; i += LANES * BLOCK) {
        const u64 from = grad + (u64)i * size_of(dtype);
        if (i + LANES <= len) {
            f32 g[LANES];
            unpack(fetch<LANES>(from, dtype, aligned), dtype, g);
#pragma unroll
            for (u32 lane = 0; lane < LANES; lane++) add_square(g[lane], sums[lane], non_finite);
        } else {
#pragma unroll
            for (u32 lane = 0; lane < LANES; lane++)
                if (i + lane < len) add_square(load(from + lane * size_of(dtype), dtype), sums[lane], non_finite);
        }
    }
    const f32 low = add_rn(add_rn(sums[0], sums[1]), add_rn(sums[2], sums[3]));
    const f32 high = add_rn(add_rn(sums[4], sums[5]), add_rn(sums[6], sums[7]));
    return {add_rn(low, high), non_finite};
}

DEVICE Squares squares_of_block(Squares mine) {
    const f32 sum = block_sum<BLOCK>(mine.sum, [](f32 a, f32 b) { return add_rn(a, b); });
    const u32 non_finite = block_sum<BLOCK>(mine.non_finite, [](u32 a, u32 b) { return a + b; });
    return {canonical(sum), non_finite};
}

// grid: one block a chunk. block: BLOCK threads. A tensor without a gradient counts as zeros.
extern "C" __global__ void __launch_bounds__(BLOCK)
    grad_norm(const TensorRow* rows, const Chunk* chunks, Squares* squares) {
    const Chunk chunk = chunks[blockIdx.x];
    const TensorRow t = rows[chunk.tensor];
    Squares mine = {};
    if (has(t.flags, HAS_GRAD))
        mine = squares_of_thread(t.grad + chunk.start * size_of(t.grad_dtype), t.grad_dtype, chunk.len);
    const Squares all = squares_of_block(mine);
    if (threadIdx.x == 0) squares[blockIdx.x] = all;
}
