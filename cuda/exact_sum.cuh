// A sum of f32 that no order can change: the addends as integers, rounded once at the end. Twin: src/exact_sum.rs.
#pragma once
#include "rounding.cuh"

DEVICE void raise(u64* s, u32 i, u64 by) { s[i] += by; }
DEVICE u64 get(const u64* s, u32 i) { return s[i]; }
DEVICE void set(u64* s, u32 i, u64 word) { s[i] = word; }

// The limb `by` below `top`, 0 if there is none.
DEVICE u64 below(const u64* s, u32 top, u32 by) { return top >= by ? s[top - by] : 0; }

// Adds |x| to a sum, by its `raise`. An addend that is not finite is counted.
template <class Sum>
DEVICE void exact_add(const Sum& s, f32 x) {
    // twin: exact_add {
    const u32 bits = to_bits(x) & 0x7fffffffu;
    const u32 exponent = bits >> 23u;
    const bool finite = exponent < 255u;
    const u32 leading = select(exponent > 0u, 0x800000u, 0u);
    const u32 mantissa = select(finite, (bits & 0x7fffffu) | leading, 0u);
    // Bit 0 of limb 0 is 2^-149.
    const u32 shift = select(exponent > 1u, exponent, 1u) - 1u;
    const u64 word = to_u64(mantissa) << (shift & 31u);
    const u32 limb = shift >> 5u;
    raise(s, limb, word & 0xffffffffull);
    raise(s, limb + 1u, word >> 32u);
    raise(s, select(is_nan(x), NAN_SUMS, INFINITE_SUMS), select(finite, 0ull, 1ull));
    // } twin
}

// The sum, to the nearest f64, ties to even; NaN if an addend was NaN, else infinite if one was infinite. Brings each limb
// below 2^32 first, which changes no sum.
DEVICE f64 exact_value(u64* s) {
    // twin: exact_value {
    u64 carry = 0;
    u32 i = 0;
    while (i < LIMBS) {
        const u64 sum = add_wrap64(get(s, i), carry);
        set(s, i, sum & 0xffffffffull);
        carry = sum >> 32u;
        i += 1;
    }
    // The highest limb that is not 0, and the two below it. All lower ones show in one bit.
    u32 top = LIMBS - 1u;
    while ((top > 0u) & (get(s, top) == 0ull)) {
        top -= 1;
    }
    u64 rest = 0;
    i = 0;
    while (i + 2u < top) {
        rest |= get(s, i);
        i += 1;
    }
    const u64 high = (get(s, top) << 32u) | below(s, top, 1u);
    const u64 zeros = leading_zeros64(high | 1ull);
    const u64 low = below(s, top, 2u) << zeros;
    const u64 sticky = select(((low & 0xffffffffull) | rest) != 0ull, 1ull, 0ull);
    // 64 bits to the 53 of an f64: the one rounding.
    const f64 rounded = count_to_f64((high << zeros) | (low >> 32u) | sticky);
    const f64 sum = mul_rn64(rounded, from_bits64((32ull * to_u64(top) + 842ull - zeros) << 52u));
    const f64 special = select(get(s, NAN_SUMS) > 0ull, nan64(), infinity64());
    return select((get(s, NAN_SUMS) | get(s, INFINITE_SUMS)) != 0ull, special, sum);
    // } twin
}
