// Every operation that rounds, by a name that says how; and the 16-bit formats. Twin: src/rounding.rs.
#pragma once
#include "table.cuh"

#if defined(__CUDACC__) || defined(__CUDACC_RTC__)
DEVICE u32 to_bits(f32 x) { return __float_as_uint(x); }
DEVICE f32 from_bits(u32 x) { return __uint_as_float(x); }
DEVICE f32 add_rn(f32 a, f32 b) { return __fadd_rn(a, b); }
DEVICE f32 sub_rn(f32 a, f32 b) { return __fsub_rn(a, b); }
DEVICE f32 mul_rn(f32 a, f32 b) { return __fmul_rn(a, b); }
DEVICE f32 div_rn(f32 a, f32 b) { return __fdiv_rn(a, b); }
DEVICE f32 sqrt_rn(f32 a) { return __fsqrt_rn(a); }
DEVICE f32 fma_rn(f32 a, f32 b, f32 c) { return __fmaf_rn(a, b, c); }
DEVICE f64 add_rn64(f64 a, f64 b) { return __dadd_rn(a, b); }
DEVICE f64 sub_rn64(f64 a, f64 b) { return __dsub_rn(a, b); }
DEVICE f64 mul_rn64(f64 a, f64 b) { return __dmul_rn(a, b); }
DEVICE f64 div_rn64(f64 a, f64 b) { return __ddiv_rn(a, b); }
DEVICE f64 sqrt_rn64(f64 a) { return __dsqrt_rn(a); }
DEVICE f64 fma_rn64(f64 a, f64 b, f64 c) { return __fma_rn(a, b, c); }
DEVICE f32 to_f32_rn(f64 a) { return __double2float_rn(a); }
DEVICE f64 from_bits64(u64 x) { return __longlong_as_double((long long)x); }
DEVICE u64 leading_zeros64(u64 a) { return (u64)__clzll((long long)a); }
#else
#include <cmath>
#include <cstring>
DEVICE u32 to_bits(f32 x) { u32 b; memcpy(&b, &x, sizeof b); return b; }
DEVICE f32 from_bits(u32 b) { f32 x; memcpy(&x, &b, sizeof x); return x; }
DEVICE f32 add_rn(f32 a, f32 b) { return a + b; }
DEVICE f32 sub_rn(f32 a, f32 b) { return a - b; }
DEVICE f32 mul_rn(f32 a, f32 b) { return a * b; }
DEVICE f32 div_rn(f32 a, f32 b) { return a / b; }
DEVICE f32 sqrt_rn(f32 a) { return std::sqrt(a); }
DEVICE f32 fma_rn(f32 a, f32 b, f32 c) { return std::fma(a, b, c); }
DEVICE f64 add_rn64(f64 a, f64 b) { return a + b; }
DEVICE f64 sub_rn64(f64 a, f64 b) { return a - b; }
DEVICE f64 mul_rn64(f64 a, f64 b) { return a * b; }
DEVICE f64 div_rn64(f64 a, f64 b) { return a / b; }
DEVICE f64 sqrt_rn64(f64 a) { return std::sqrt(a); }
DEVICE f64 fma_rn64(f64 a, f64 b, f64 c) { return std::fma(a, b, c); }
DEVICE f32 to_f32_rn(f64 a) { return (f32)a; }
DEVICE f64 from_bits64(u64 b) { f64 x; memcpy(&x, &b, sizeof x); return x; }
DEVICE u64 leading_zeros64(u64 a) { return a ? (u64)__builtin_clzll(a) : 64; }
#endif

DEVICE f64 nan64() { return from_bits64(0x7ff8000000000000ull); }
DEVICE f64 infinity64() { return from_bits64(0x7ff0000000000000ull); }
DEVICE f64 abs64(f64 a) { return a < 0 ? -a : a; }

// Exact for every f32, and for every count below 2^53; above to the nearest, ties to even.
DEVICE f64 to_f64(f32 a) { return (f64)a; }
DEVICE f64 count_to_f64(u64 a) { return (f64)a; }

DEVICE u32 add_wrap(u32 a, u32 b) { return a + b; }
DEVICE u64 add_wrap64(u64 a, u64 b) { return a + b; }
DEVICE u64 sub_wrap64(u64 a, u64 b) { return a - b; }
DEVICE u64 to_u64(u32 a) { return a; }

template <class T>
DEVICE T select(bool condition, T yes, T no) {
    return condition ? yes : no;
}

DEVICE bool has(u32 flags, u32 flag) {
    return (flags & flag) != 0;
}

DEVICE bool is_nan(f32 x) {
    return x != x;
}

DEVICE bool is_finite(f32 x) {
    return (to_bits(x) & 0x7f800000u) != 0x7f800000u;
}

DEVICE bool is_finite64(f64 x) {
    return x - x == 0.0;
}

// NaN in the one form in which it is stored; the sign and payload of a computed NaN differ between processors.
DEVICE f32 canonical(f32 x) {
    // twin: canonical {
    return select(is_nan(x), from_bits(0x7fc00000u), x);
    // } twin
}

DEVICE f64 canonical64(f64 x) {
    return select(x != x, nan64(), x);
}

// The larger; a NaN on either side wins.
DEVICE f32 max_nan(f32 a, f32 b) {
    // twin: max_nan {
    return select((b > a) | is_nan(b), b, a);
    // } twin
}

// bf16 is the upper half of an f32: exact.
DEVICE f32 bf16_to_f32(u32 h) {
    // twin: bf16_to_f32 {
    return from_bits(h << 16u);
    // } twin
}

// Nearest, ties to even; above the largest finite bf16 plus half a step it is infinite; a NaN is 0x7fc0.
DEVICE u32 f32_to_bf16_rn(f32 x) {
    // twin: f32_to_bf16_rn {
    const u32 bits = to_bits(x);
    // Half a step of the kept half, less one if that is even: only more than a half, or a tie on an odd value, carries.
    const u32 rounded = add_wrap(bits, 0x7fffu + ((bits >> 16u) & 1u)) >> 16u;
    return select(is_nan(x), 0x7fc0u, rounded);
    // } twin
}

// Exact, subnormals included.
DEVICE f32 f16_to_f32(u32 h) {
    // twin: f16_to_f32 {
    // Exponent and mantissa put in place are 2^112 too small, whether normal or not; the product is exact.
    const f32 magnitude = mul_rn(from_bits((h & 0x7fffu) << 13u), from_bits(0x77800000u));
    // Infinity and NaN come out as 2^16 and above: give them the exponent of their kind.
    const u32 special = select((h & 0x7c00u) == 0x7c00u, 0x7f800000u, 0u);
    return from_bits(to_bits(magnitude) | special | ((h & 0x8000u) << 16u));
    // } twin
}

// Nearest, ties to even; 65520 and above is infinite; subnormals are kept; a NaN is 0x7e00.
DEVICE u32 f32_to_f16_rn(f32 x) {
    // twin: f32_to_f16_rn {
    const u32 sign = (to_bits(x) >> 16u) & 0x8000u;
    const u32 bits = to_bits(x) & 0x7fffffffu;
    // Below 2^-14: adding 0.5 moves the last bit that f16 keeps to the last bit of the sum, which rounds it.
    const u32 small = to_bits(add_rn(from_bits(bits), 0.5f)) - 0x3f000000u;
    // Others: change the exponent's bias from 127 to 15 (a wrap of 2^32 is meant) and round as for bf16.
    const u32 normal = add_wrap(bits, 0xc8000fffu + ((bits >> 13u) & 1u)) >> 13u;
    const u32 finite = select(bits < 0x38800000u, small, normal);
    const u32 bounded = select(bits < 0x477ff000u, finite, 0x7c00u);
    return select(is_nan(x), 0x7e00u, sign | bounded);
    // } twin
}
