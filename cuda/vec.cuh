// Loads and stores of any dtype, 16 bytes at a time: memory, and no arithmetic but the exact widening and the
// rounding of the 16-bit formats.
#pragma once
#include "rounding.cuh"

// LANES consecutive values as they lie in memory: enough room for f32.
template <u32 LANES>
struct Raw {
    uint4 at[LANES / 4];
};

DEVICE u32 size_of(u8 dtype) { return dtype == F32 ? 4 : 2; }

// A pointer from an address of global memory. Said to the compiler, because it cannot tell for an address that comes
// from a table, and would emit generic loads; tests/ptx.rs counts them.
template <class T>
DEVICE T* global(u64 address) {
#if defined(__CUDACC__) || defined(__CUDACC_RTC__)
    return static_cast<T*>(__cvta_global_to_generic(address));
#else
    return reinterpret_cast<T*>(address);
#endif
}

// ---- one value ---------------------------------------------------------------------------------------------

DEVICE f32 load(u64 address, u8 dtype) {
    if (dtype == F32) return *global<const f32>(address);
    const u32 bits = *global<const u16>(address);
    return dtype == BF16 ? bf16_to_f32(bits) : f16_to_f32(bits);
}

DEVICE void store(u64 address, u8 dtype, f32 x) {
    if (dtype == F32) *global<f32>(address) = x;
    else *global<u16>(address) = (u16)(dtype == BF16 ? f32_to_bf16_rn(x) : f32_to_f16_rn(x));
}

// ---- LANES values --------------------------------------------------------------------------------------------
// A load is split into `fetch`, which only moves bytes, and `unpack`, so that every array's bytes are on their way
// before the first of them is needed.

template <u32 LANES>
DEVICE Raw<LANES> fetch_aligned(u64 address, u8 dtype) {
    Raw<LANES> raw;
    if (LANES == 4 && dtype != F32) {
        const uint2 words = *global<const uint2>(address);
        raw.at[0] = make_uint4(words.x, words.y, 0, 0);
        return raw;
    }
    const uint4* const from = global<const uint4>(address);
    raw.at[0] = from[0];
    if (LANES == 8 && dtype == F32) raw.at[LANES / 4 - 1] = from[1];
    return raw;
}

// An array whose phase is not that of the state: one value at a time, laid out as `fetch_aligned` would.
template <u32 LANES>
DEVICE Raw<LANES> fetch_unaligned(u64 address, u8 dtype) {
    Raw<LANES> raw;
    u32 words[LANES];
#pragma unroll
    for (u32 i = 0; i < LANES; i++) {
        if (dtype == F32) words[i] = global<const u32>(address)[i];
        else if (i < LANES / 2) words[i] = global<const u16>(address)[2 * i] | (u32)global<const u16>(address)[2 * i + 1] << 16;
        else words[i] = 0;
    }
#pragma unroll
    for (u32 i = 0; i < LANES / 4; i++) raw.at[i] = make_uint4(words[4 * i], words[4 * i + 1], words[4 * i + 2], words[4 * i + 3]);
    return raw;
}

template <u32 LANES>
DEVICE Raw<LANES> fetch(u64 address, u8 dtype, bool aligned) {
    return aligned ? fetch_aligned<LANES>(address, dtype) : fetch_unaligned<LANES>(address, dtype);
}

template <u32 LANES>
DEVICE void unpack(Raw<LANES> raw, u8 dtype, f32* x) {
    u32 words[LANES];
#pragma unroll
    for (u32 i = 0; i < LANES / 4; i++) {
        words[4 * i] = raw.at[i].x;
        words[4 * i + 1] = raw.at[i].y;
        words[4 * i + 2] = raw.at[i].z;
        words[4 * i + 3] = raw.at[i].w;
    }
#pragma unroll
    for (u32 i = 0; i < LANES; i++) {
        const u32 half = words[i / 2] >> 16 * (i % 2) & 0xffffu;
        x[i] = dtype == F32 ? from_bits(words[i]) : dtype == BF16 ? bf16_to_f32(half) : f16_to_f32(half);
    }
}

DEVICE uint4 as_uint4(const f32* x) {
    return make_uint4(to_bits(x[0]), to_bits(x[1]), to_bits(x[2]), to_bits(x[3]));
}

DEVICE u32 pair16(u8 dtype, f32 low, f32 high) {
    if (dtype == BF16) return f32_to_bf16_rn(low) | f32_to_bf16_rn(high) << 16;
    return f32_to_f16_rn(low) | f32_to_f16_rn(high) << 16;
}

// One store. Said to the compiler, because it makes four of it where it has the same words for another store.
template <class Words>
DEVICE void store_words(Words* to, Words words) {
#if defined(__CUDACC__) || defined(__CUDACC_RTC__)
    __stwb(to, words);
#else
    *to = words;
#endif
}

template <u32 LANES>
DEVICE void store_aligned(u64 address, u8 dtype, const f32* x) {
    if (dtype == F32) {
#pragma unroll
        for (u32 i = 0; i < LANES / 4; i++) store_words(global<uint4>(address) + i, as_uint4(x + 4 * i));
        return;
    }
    const uint2 low = make_uint2(pair16(dtype, x[0], x[1]), pair16(dtype, x[2], x[3]));
    if (LANES == 4) return store_words(global<uint2>(address), low);
    const uint2 high = make_uint2(pair16(dtype, x[LANES - 4], x[LANES - 3]), pair16(dtype, x[LANES - 2], x[LANES - 1]));
    store_words(global<uint4>(address), make_uint4(low.x, low.y, high.x, high.y));
}

template <u32 LANES>
DEVICE void store(u64 address, u8 dtype, bool aligned, const f32* x) {
    if (aligned) return store_aligned<LANES>(address, dtype, x);
#pragma unroll
    for (u32 i = 0; i < LANES; i++) store(address + i * size_of(dtype), dtype, x[i]);
}
