// The first launch of a controlled step: the squares of all gradients, added up, and how many are not finite. Within a chunk
// the order of the sum is a function of the chunk's length alone; the chunks' sums are added exactly, in any order.
// Beside it on the CPU: src/norm.rs.
#pragma once
#include "block.cuh"
#include "exact_sum.cuh"
#include "vec.cuh"

// The words of a NormPart behind its ExactSum: gradients that are not finite; the largest sum of a chunk, as bits; chunks.
// The last word counts bad parts, in the sum of all parts.
constexpr u32 NON_FINITE = 12;
constexpr u32 LARGEST = 13;
constexpr u32 GOOD = 14;
constexpr u32 BAD = 15;

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

// Words that several blocks add to.
struct CommonWords {
    u64* words;
};

DEVICE void raise(const CommonWords& s, u32 i, u64 by) {
    if (by) atomicAdd(s.words + i, by);
}

// One thread's work. As bits, sums are in the order of their sizes: the largest is a NaN if there is one.
DEVICE void add_chunk(const CommonWords& s, const Squares& chunk) {
    exact_add(s, chunk.sum);
    raise(s, NON_FINITE, chunk.non_finite);
    atomicMax(s.words + LARGEST, to_u64(to_bits(chunk.sum)));
    raise(s, GOOD, 1);
}

// Adds to `parts`, which are zeros before the first block: one of each tensor, or NORM_PARTS at which the blocks take turns,
// so that few of them meet.
// grid: one block a chunk. block: BLOCK threads.
extern "C" __global__ void __launch_bounds__(BLOCK)
    grad_norm(const TensorRow* rows, const Chunk* chunks, NormPart* parts, u32 by_tensor) {
    const Chunk chunk = chunks[blockIdx.x];
    const TensorRow t = rows[chunk.tensor];
    if (!has(t.flags, HAS_GRAD)) return;
    const u64 grad = t.grad + chunk.start * size_of(t.grad_dtype);
    const Squares all = squares_of_block(squares_of_thread(grad, t.grad_dtype, chunk.len));
    if (threadIdx.x == 0) add_chunk({parts[by_tensor ? chunk.tensor : blockIdx.x % NORM_PARTS].words}, all);
}
