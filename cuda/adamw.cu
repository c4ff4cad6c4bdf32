// The step: one block a chunk of one tensor; each thread updates LANES elements at a time, 16 bytes an access.
// Beside it on the CPU: src/cpu.rs. What an element becomes: update.cuh. What the tables hold: src/table.rs.
#include "accumulate.cuh"
#include "finalize.cuh"
#include "norm.cuh"
#include "scalars.cuh"
#include "update.cuh"
#include "vec.cuh"

// A chunk's arrays, at its first element.
struct Arrays {
    u64 param, grad, m, v, vmax, master;
    u8 param_dtype, grad_dtype;
    bool param_aligned, grad_aligned, init_master;

    DEVICE Arrays(const TensorRow& t, u64 start)
        : param(t.param + start * size_of(t.param_dtype)), grad(t.grad + start * size_of(t.grad_dtype)),
          m(t.m + start * 4), v(t.v + start * 4), vmax(t.vmax ? t.vmax + start * 4 : 0),
          master(t.master ? t.master + start * 4 : 0), param_dtype(t.param_dtype), grad_dtype(t.grad_dtype),
          param_aligned(has(t.flags, PARAM_ALIGNED)), grad_aligned(has(t.flags, GRAD_ALIGNED)),
          init_master(has(t.flags, INIT_MASTER)) {}

    // The parameter is read from its f32 master if it has one that has been set.
    DEVICE bool reads_master() const { return master && !init_master; }
};

// All that a skipped step does: later ones read the masters.
DEVICE void init_masters(const Arrays& a, u32 len) {
    if (!a.master || !a.init_master) return;
#pragma unroll 1
    for (u64 i = threadIdx.x; i < len; i += BLOCK)
        store(a.master + 4 * i, F32, load(a.param + i * size_of(a.param_dtype), a.param_dtype));
}

DEVICE void update_one(const Arrays& a, const StepScalars& s, u64 i) {
    const u64 param = a.param + i * size_of(a.param_dtype);
    Element e;
    e.p = a.reads_master() ? load(a.master + 4 * i, F32) : load(param, a.param_dtype);
    e.m = load(a.m + 4 * i, F32);
    e.v = load(a.v + 4 * i, F32);
    e.vmax = a.vmax ? load(a.vmax + 4 * i, F32) : 0;
    update(s, load(a.grad + i * size_of(a.grad_dtype), a.grad_dtype), e);
    store(param, a.param_dtype, e.p);
    store(a.m + 4 * i, F32, e.m);
    store(a.v + 4 * i, F32, e.v);
    if (a.vmax) store(a.vmax + 4 * i, F32, e.vmax);
    if (a.master) store(a.master + 4 * i, F32, e.p);
}

// LANES elements from i on, where the state lies on a 16-byte boundary.
template <u32 LANES>
DEVICE void update_lanes(const Arrays& a, const StepScalars& s, u64 i) {
    const u64 param = a.param + i * size_of(a.param_dtype), grad = a.grad + i * size_of(a.grad_dtype);
    const bool reads_master = a.reads_master();
    const u8 p_dtype = reads_master ? F32 : a.param_dtype;
    const Raw<LANES> raw_p = fetch<LANES>(reads_master ? a.master + 4 * i : param, p_dtype, reads_master || a.param_aligned);
    const Raw<LANES> raw_g = fetch<LANES>(grad, a.grad_dtype, a.grad_aligned);
    const Raw<LANES> raw_m = fetch_aligned<LANES>(a.m + 4 * i, F32);
    const Raw<LANES> raw_v = fetch_aligned<LANES>(a.v + 4 * i, F32);
    Raw<LANES> raw_vmax = {};
    if (a.vmax) raw_vmax = fetch_aligned<LANES>(a.vmax + 4 * i, F32);

    f32 p[LANES], g[LANES], m[LANES], v[LANES], vmax[LANES];
    unpack(raw_p, p_dtype, p);
    unpack(raw_g, a.grad_dtype, g);
    unpack(raw_m, F32, m);
    unpack(raw_v, F32, v);
    unpack(raw_vmax, F32, vmax);
#pragma unroll
    for (u32 lane = 0; lane < LANES; lane++) {
        Element e = {p[lane], m[lane], v[lane], vmax[lane]};
        update(s, g[lane], e);
        p[lane] = e.p, m[lane] = e.m, v[lane] = e.v, vmax[lane] = e.vmax;
    }
    store<LANES>(param, a.param_dtype, a.param_aligned, p);
    store_aligned<LANES>(a.m + 4 * i, F32, m);
    store_aligned<LANES>(a.v + 4 * i, F32, v);
    if (a.vmax) store_aligned<LANES>(a.vmax + 4 * i, F32, vmax);
    if (a.master) store_aligned<LANES>(a.master + 4 * i, F32, p);
}

// The elements before the first 16-byte boundary of the state and those after the last one are done one by one;
// a chunk starts at a multiple of 8 elements, so that `head` is the same for every chunk of a tensor.
template <u32 LANES>
DEVICE void update_chunk(const Arrays& a, u32 head, u32 len, const StepScalars& s) {
    const u32 first = min(head, len);
    const u32 vectors = (len - first) / LANES;
    for (u32 i = threadIdx.x; i < vectors; i += BLOCK) update_lanes<LANES>(a, s, first + i * LANES);
    const u32 rest = len - vectors * LANES;
    if (threadIdx.x < rest) update_one(a, s, threadIdx.x < first ? threadIdx.x : threadIdx.x + vectors * LANES);
}

// `table` holds the scalars when there are too many for the arguments; else it is null.
DEVICE const StepScalars scalars_of(const TensorRow& t, const StepScalars* table, const InlineScalars& inlined) {
    return table ? table[t.scalars] : inlined.at[t.scalars];
}

// Every parameter and gradient f32, no AMSGrad: the other cases are compiled out.
// grid: one block a chunk. block: BLOCK threads.
extern "C" __global__ void __launch_bounds__(BLOCK, 4)
    adamw_f32(const TensorRow* rows, const Chunk* chunks, const StepScalars* table, const InlineScalars inlined) {
    const Chunk chunk = chunks[blockIdx.x];
    TensorRow t = rows[chunk.tensor];
    if (!has(t.flags, HAS_GRAD)) return;
    t.param_dtype = t.grad_dtype = F32;
    t.vmax = t.master = 0;
    const StepScalars s = scalars_of(t, table, inlined);
    if (has(s.flags, SKIP)) return;
    update_chunk<4>(Arrays(t, chunk.start), t.head, chunk.len, s);
}

// Any mixture of dtypes, with and without AMSGrad.
// grid: one block a chunk. block: BLOCK threads.
extern "C" __global__ void __launch_bounds__(BLOCK, 3)
    adamw_mixed(const TensorRow* rows, const Chunk* chunks, const StepScalars* table, const InlineScalars inlined) {
    const Chunk chunk = chunks[blockIdx.x];
    const TensorRow t = rows[chunk.tensor];
    if (!has(t.flags, HAS_GRAD)) return;
    const StepScalars s = scalars_of(t, table, inlined);
    const Arrays a(t, chunk.start);
    if (has(s.flags, SKIP)) return init_masters(a, chunk.len);
    update_chunk<8>(a, t.head, chunk.len, s);
}
