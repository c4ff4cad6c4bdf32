// What the threads of a block say to one another: sums over all of them, in one fixed order.
#pragma once
#include "rounding.cuh"

// Threads of a block, but for `finalize`.
constexpr u32 BLOCK = 256;
constexpr u32 WARP = 32;

// What the lane `apart` from this one has; of a struct see its own overload.
template <class T>
DEVICE T from_lane(T x, u32 apart) {
    return __shfl_xor_sync(0xffffffffu, x, apart);
}

// Thread i and thread i + 16, then 8, 4, 2, 1 apart; in every lane the same, because a + b is b + a.
template <u32 LANES, class T, class Add>
DEVICE T warp_sum(T x, Add add) {
#pragma unroll
    for (u32 apart = LANES / 2; apart > 0; apart /= 2) x = add(x, from_lane(x, apart));
    return x;
}

// The sum over THREADS threads, known to the first warp: of each warp, then of the warps. All threads call it.
template <u32 THREADS, class T, class Add>
DEVICE T block_sum(T x, Add add) {
    constexpr u32 WARPS = THREADS / WARP;
    __shared__ T of_warps[WARPS];
    x = warp_sum<WARP>(x, add);
    if (threadIdx.x % WARP == 0) of_warps[threadIdx.x / WARP] = x;
    __syncthreads();
    x = of_warps[threadIdx.x % WARPS];
    return warp_sum<WARPS>(x, add);
}
