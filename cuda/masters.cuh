// The f32 masters of 16-bit parameters, read from these before a step: of parameters that are new, or were written by
// their owner. Beside it on the CPU: src/cpu.rs.
#pragma once
#include "block.cuh"
#include "vec.cuh"

// grid: one block a chunk. block: BLOCK threads. A tensor whose row has no master is left alone.
extern "C" __global__ void __launch_bounds__(BLOCK) init_masters(const MasterRow* rows, const Chunk* chunks) {
    const Chunk chunk = chunks[blockIdx.x];
    const MasterRow row = rows[chunk.tensor];
    if (!row.master) return;
    for (u64 i = chunk.start + threadIdx.x; i < chunk.start + chunk.len; i += BLOCK)
        store(row.master + 4 * i, F32, load(row.param + i * size_of(row.param_dtype), row.param_dtype));
}
