// A chunk's arrays: elements of any dtype are loaded, stepped, stored. What a step makes of one is the caller's.
#pragma once
#include "block.cuh"
#include "vec.cuh"

// A chunk's arrays, at its first element. A 16-bit parameter has a master, from which it is read; one of f32 has none.
struct Arrays {
    u64 param, grad, m, v, vmax, master;
    u8 param_dtype, grad_dtype;
    bool param_aligned, grad_aligned, has_master;

    DEVICE Arrays(const TensorRow& t, u64 start)
        : param(t.param + start * size_of(t.param_dtype)), grad(t.grad + start * size_of(t.grad_dtype)),
          m(t.m + start * 4), v(t.v + start * 4), vmax(t.vmax ? t.vmax + start * 4 : 0),
          master(t.master + start * 4), param_dtype(t.param_dtype), grad_dtype(t.grad_dtype),
          param_aligned(has(t.flags, PARAM_ALIGNED)), grad_aligned(has(t.flags, GRAD_ALIGNED)),
          has_master(t.param_dtype != F32) {}
};

// One element: what `step` makes of it and its gradient; it is left as it was unless `stores`.
template <class Step>
DEVICE void step_one(const Arrays& a, u64 i, bool stores, const Step& step) {
    const u64 param = a.param + i * size_of(a.param_dtype);
    Element e;
    e.p = a.has_master ? load(a.master + 4 * i, F32) : load(param, a.param_dtype);
    e.m = load(a.m + 4 * i, F32);
    e.v = load(a.v + 4 * i, F32);
    e.vmax = a.vmax ? load(a.vmax + 4 * i, F32) : 0;
    step(load(a.grad + i * size_of(a.grad_dtype), a.grad_dtype), e);
    if (!stores) return;
    store(param, a.param_dtype, e.p);
    store(a.m + 4 * i, F32, e.m);
    store(a.v + 4 * i, F32, e.v);
    if (a.vmax) store(a.vmax + 4 * i, F32, e.vmax);
    if (a.has_master) store(a.master + 4 * i, F32, e.p);
}

// LANES elements from i on, where the state lies on a 16-byte boundary.
template <u32 LANES, class Step>
DEVICE void step_lanes(const Arrays& a, u64 i, bool stores, const Step& step) {
    const u64 param = a.param + i * size_of(a.param_dtype), grad = a.grad + i * size_of(a.grad_dtype);
    const u8 p_dtype = a.has_master ? F32 : a.param_dtype;
    const Raw<LANES> raw_p = fetch<LANES>(a.has_master ? a.master + 4 * i : param, p_dtype, a.has_master || a.param_aligned);
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
        step(g[lane], e);
        p[lane] = e.p, m[lane] = e.m, v[lane] = e.v, vmax[lane] = e.vmax;
    }
    if (!stores) return;
    store<LANES>(param, a.param_dtype, a.param_aligned, p);
    store_aligned<LANES>(a.m + 4 * i, F32, m);
    store_aligned<LANES>(a.v + 4 * i, F32, v);
    if (a.vmax) store_aligned<LANES>(a.vmax + 4 * i, F32, vmax);
    if (a.has_master) store_aligned<LANES>(a.master + 4 * i, F32, p);
}
