//! Every operation that rounds, by a name that says how; and the 16-bit formats. Twin: `cuda/rounding.cuh`.
//!
//! `_rn` rounds once, to the nearest, ties to even. Conversions are in integers, because they then mean the same
//! on every processor, and vectorize.

#![allow(unused_parens, clippy::needless_return, reason = "the text is that of the .cuh")]
// Always inlined, so that they take on the instruction set of the loop that they stand in (src/cpu.rs).
#![allow(clippy::inline_always, reason = "a call would leave the caller's target features")]

#[inline(always)]
pub(crate) fn to_bits(x: f32) -> u32 {
    x.to_bits()
}

#[inline(always)]
pub(crate) fn from_bits(bits: u32) -> f32 {
    f32::from_bits(bits)
}

#[inline(always)]
pub(crate) fn add_rn(a: f32, b: f32) -> f32 {
    a + b
}

#[inline(always)]
pub(crate) fn sub_rn(a: f32, b: f32) -> f32 {
    a - b
}

#[inline(always)]
pub(crate) fn mul_rn(a: f32, b: f32) -> f32 {
    a * b
}

#[inline(always)]
pub(crate) fn div_rn(a: f32, b: f32) -> f32 {
    a / b
}

#[inline(always)]
pub(crate) fn sqrt_rn(a: f32) -> f32 {
    a.sqrt()
}

#[inline(always)]
pub(crate) fn add_rn64(a: f64, b: f64) -> f64 {
    a + b
}

#[inline(always)]
pub(crate) fn sub_rn64(a: f64, b: f64) -> f64 {
    a - b
}

#[inline(always)]
pub(crate) fn mul_rn64(a: f64, b: f64) -> f64 {
    a * b
}

#[inline(always)]
pub(crate) fn div_rn64(a: f64, b: f64) -> f64 {
    a / b
}

#[inline(always)]
pub(crate) fn sqrt_rn64(a: f64) -> f64 {
    a.sqrt()
}

/// `a * b + c`, rounded once.
#[inline(always)]
pub(crate) fn fma_rn64(a: f64, b: f64, c: f64) -> f64 {
    a.mul_add(b, c)
}

#[inline(always)]
pub(crate) fn abs64(a: f64) -> f64 {
    a.abs()
}

#[inline(always)]
pub(crate) fn nan64() -> f64 {
    f64::NAN
}

#[inline(always)]
pub(crate) fn infinity64() -> f64 {
    f64::INFINITY
}

#[inline(always)]
pub(crate) fn from_bits64(bits: u64) -> f64 {
    f64::from_bits(bits)
}

/// Exact.
#[inline(always)]
pub(crate) fn to_f64(a: f32) -> f64 {
    a.into()
}

/// Exact below 2^53; else to the nearest, ties to even.
#[inline(always)]
#[expect(clippy::cast_precision_loss, reason = "the rounding is the point")]
pub(crate) fn count_to_f64(a: u64) -> f64 {
    a as f64
}

#[inline(always)]
#[expect(clippy::cast_possible_truncation, reason = "the rounding is the point")]
pub(crate) fn to_f32_rn(a: f64) -> f32 {
    a as f32
}

#[inline(always)]
pub(crate) fn add_wrap(a: u32, b: u32) -> u32 {
    a.wrapping_add(b)
}

#[inline(always)]
pub(crate) fn add_wrap64(a: u64, b: u64) -> u64 {
    a.wrapping_add(b)
}

#[inline(always)]
pub(crate) fn sub_wrap64(a: u64, b: u64) -> u64 {
    a.wrapping_sub(b)
}

#[inline(always)]
pub(crate) fn to_u64(a: u32) -> u64 {
    a.into()
}

/// 0 to 64.
#[inline(always)]
pub(crate) fn leading_zeros64(a: u64) -> u64 {
    a.leading_zeros().into()
}

#[inline(always)]
pub(crate) fn select<T>(condition: bool, yes: T, no: T) -> T {
    if condition { yes } else { no }
}

#[inline(always)]
pub(crate) fn has(flags: u32, flag: u32) -> bool {
    (flags & flag) != 0
}

#[inline(always)]
pub(crate) fn is_nan(x: f32) -> bool {
    x.is_nan()
}

#[inline(always)]
pub(crate) fn is_finite(x: f32) -> bool {
    x.is_finite()
}

#[inline(always)]
pub(crate) fn is_finite64(x: f64) -> bool {
    x.is_finite()
}

/// NaN in the one form in which it is stored; the sign and payload of a computed NaN differ between processors.
#[inline(always)]
pub(crate) fn canonical(x: f32) -> f32 {
    // twin: canonical {
    return select(is_nan(x), from_bits(0x7fc00000), x);
    // } twin
}

/// As [`canonical`].
#[inline(always)]
pub(crate) fn canonical64(x: f64) -> f64 {
    select(x.is_nan(), f64::NAN, x)
}

/// The larger; a NaN on either side wins.
#[inline(always)]
pub(crate) fn max_nan(a: f32, b: f32) -> f32 {
    // twin: max_nan {
    return select((b > a) | is_nan(b), b, a);
    // } twin
}

/// bf16 is the upper half of an f32: exact.
#[inline(always)]
pub(crate) fn bf16_to_f32(h: u32) -> f32 {
    // twin: bf16_to_f32 {
    return from_bits(h << 16);
    // } twin
}

/// Nearest, ties to even; above the largest finite bf16 plus half a step it is infinite; a NaN is 0x7fc0.
#[inline(always)]
pub(crate) fn f32_to_bf16_rn(x: f32) -> u32 {
    // twin: f32_to_bf16_rn {
    let bits = to_bits(x);
    // Half a step of the kept half, less one if that is even: only more than a half, or a tie on an odd value, carries.
    let rounded = add_wrap(bits, 0x7fff + ((bits >> 16) & 1)) >> 16;
    return select(is_nan(x), 0x7fc0, rounded);
    // } twin
}

/// Exact, subnormals included.
#[inline(always)]
pub(crate) fn f16_to_f32(h: u32) -> f32 {
    // twin: f16_to_f32 {
    // Exponent and mantissa put in place are 2^112 too small, whether normal or not; the product is exact.
    let magnitude = mul_rn(from_bits((h & 0x7fff) << 13), from_bits(0x77800000));
    // Infinity and NaN come out as 2^16 and above: give them the exponent of their kind.
    let special = select((h & 0x7c00) == 0x7c00, 0x7f800000, 0);
    return from_bits(to_bits(magnitude) | special | ((h & 0x8000) << 16));
    // } twin
}

/// Nearest, ties to even; 65520 and above is infinite; subnormals are kept; a NaN is 0x7e00.
#[inline(always)]
pub(crate) fn f32_to_f16_rn(x: f32) -> u32 {
    // twin: f32_to_f16_rn {
    let sign = (to_bits(x) >> 16) & 0x8000;
    let bits = to_bits(x) & 0x7fffffff;
    // Below 2^-14: adding 0.5 moves the last bit that f16 keeps to the last bit of the sum, which rounds it.
    let small = to_bits(add_rn(from_bits(bits), 0.5)) - 0x3f000000;
    // Others: change the exponent's bias from 127 to 15 (a wrap of 2^32 is meant) and round as for bf16.
    let normal = add_wrap(bits, 0xc8000fff + ((bits >> 13) & 1)) >> 13;
    let finite = select(bits < 0x38800000, small, normal);
    let bounded = select(bits < 0x477ff000, finite, 0x7c00);
    return select(is_nan(x), 0x7e00, sign | bounded);
    // } twin
}

/// [`f32_to_bf16_rn`] of what is [`canonical`]: nothing is to be said of NaN, whose rounding leaves it as it is.
#[inline(always)]
pub(crate) fn canonical_to_bf16_rn(x: f32) -> u32 {
    add_wrap(to_bits(x), 0x7fff + ((to_bits(x) >> 16) & 1)) >> 16
}

/// What the 16-bit formats are held in.
#[inline(always)]
#[expect(clippy::cast_possible_truncation, reason = "the upper half is 0")]
pub(crate) fn low_half(bits: u32) -> u16 {
    bits as u16
}

#[cfg(test)]
mod tests {
    use super::*;
    use half::{bf16, f16};

    // Every 16-bit pattern, against the `half` crate.
    #[test]
    fn widening_is_exact_for_every_pattern() {
        for bits in 0..=u16::MAX {
            let (b, h) = (bf16::from_bits(bits), f16::from_bits(bits));
            let wide = bf16_to_f32(bits.into());
            assert!(wide.to_bits() == b.to_f32().to_bits() || wide.is_nan() && b.is_nan(), "bf16 {bits:#06x}");
            let wide = f16_to_f32(bits.into());
            assert!(wide.to_bits() == h.to_f32().to_bits() || wide.is_nan() && h.is_nan(), "f16 {bits:#06x}");
        }
    }

    fn assert_narrows_like_half(x: f32) {
        let bf = if x.is_nan() { 0x7fc0 } else { bf16::from_f32(x).to_bits().into() };
        let h = if x.is_nan() { 0x7e00 } else { f16::from_f32(x).to_bits().into() };
        assert_eq!(f32_to_bf16_rn(x), bf, "bf16 of {x:e} = {:#010x}", x.to_bits());
        assert_eq!(canonical_to_bf16_rn(canonical(x)), bf, "bf16 of {x:e} = {:#010x}", x.to_bits());
        assert_eq!(f32_to_f16_rn(x), h, "f16 of {x:e} = {:#010x}", x.to_bits());
    }

    // A rounding decides on the bits below the last kept one: around each of its turning points.
    #[test]
    fn narrowing_rounds_to_nearest_even_around_every_turning_point() {
        for upper in 0..=u16::MAX {
            for lower in [0_u32, 1, 0x0fff, 0x1000, 0x1001, 0x1fff, 0x2000, 0x7fff, 0x8000, 0x8001, 0xffff] {
                assert_narrows_like_half(f32::from_bits(u32::from(upper) << 16 | lower));
            }
        }
    }

    #[test]
    #[ignore = "all 2^32 inputs: run with --release"]
    fn narrowing_rounds_to_nearest_even_everywhere() {
        (0..=u32::MAX).for_each(|bits| assert_narrows_like_half(f32::from_bits(bits)));
    }

    #[test]
    fn nan_is_stored_in_one_form_and_wins_a_maximum() {
        for bits in [0x7fc0_0000_u32, 0x7fff_ffff, 0xffc0_0001, 0x7f80_0001] {
            let nan = f32::from_bits(bits);
            assert_eq!(canonical(nan).to_bits(), 0x7fc0_0000);
            assert!(max_nan(nan, 1.0).is_nan() && max_nan(1.0, nan).is_nan());
        }
        assert_eq!(canonical(-0.0).to_bits(), (-0.0_f32).to_bits());
        assert_eq!((max_nan(1.0, 2.0), max_nan(2.0, 1.0)), (2.0, 2.0));
    }
}
