//! A sum of f32 that no order can change: the addends as integers, rounded once at the end. Twin: `cuda/exact_sum.cuh`.
//!
//! The sum is ten limbs of 32 bits in words of 64, so that 2^32 addends fit before a carry. Sums of sums are sums of words:
//! any partition of the addends over threads, blocks or devices gives the same words after carrying.

#![allow(
    unused_parens,
    clippy::needless_return,
    clippy::needless_bitwise_bool,
    reason = "the text is that of the .cuh"
)]

use crate::rounding::{
    add_wrap64, count_to_f64, from_bits64, infinity64, is_nan, leading_zeros64, mul_rn64, nan64, select, to_bits,
    to_u64,
};
use crate::table::exact_words::{EXACT_WORDS, INFINITE_SUMS, LIMBS, NAN_SUMS};

/// The words of a sum.
pub(crate) type Words = [u64; EXACT_WORDS as usize];

/// A sum of absolute values of f32.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct ExactSum {
    words: Words,
}

impl ExactSum {
    /// Adds |x|. An addend that is not finite is counted.
    pub(crate) fn add(&mut self, x: f32) {
        exact_add(&mut self.words, x);
    }

    /// The sum, to the nearest f64, ties to even; NaN if an addend was NaN, else infinite if one was infinite.
    pub(crate) fn value(mut self) -> f64 {
        exact_value(&mut self.words)
    }
}

fn raise(s: &mut Words, i: u32, by: u64) {
    s[i as usize] += by;
}

fn get(s: &Words, i: u32) -> u64 {
    s[i as usize]
}

fn set(s: &mut Words, i: u32, word: u64) {
    s[i as usize] = word;
}

/// The limb `by` below `top`, 0 if there is none.
fn below(s: &Words, top: u32, by: u32) -> u64 {
    if top >= by { s[(top - by) as usize] } else { 0 }
}

fn exact_add(s: &mut Words, x: f32) {
    // twin: exact_add {
    let bits = to_bits(x) & 0x7fffffff;
    let exponent = bits >> 23;
    let finite = exponent < 255;
    let leading = select(exponent > 0, 0x800000, 0);
    let mantissa = select(finite, (bits & 0x7fffff) | leading, 0);
    // Bit 0 of limb 0 is 2^-149.
    let shift = select(exponent > 1, exponent, 1) - 1;
    let word = to_u64(mantissa) << (shift & 31);
    let limb = shift >> 5;
    raise(s, limb, word & 0xffffffff);
    raise(s, limb + 1, word >> 32);
    raise(s, select(is_nan(x), NAN_SUMS, INFINITE_SUMS), select(finite, 0, 1));
    // } twin
}

/// Brings each limb below 2^32 first, which changes no sum.
fn exact_value(s: &mut Words) -> f64 {
    // twin: exact_value {
    let mut carry = 0;
    let mut i = 0;
    while (i < LIMBS) {
        let sum = add_wrap64(get(s, i), carry);
        set(s, i, sum & 0xffffffff);
        carry = sum >> 32;
        i += 1;
    }
    // The highest limb that is not 0, and the two below it. All lower ones show in one bit.
    let mut top = LIMBS - 1;
    while ((top > 0) & (get(s, top) == 0)) {
        top -= 1;
    }
    let mut rest = 0;
    i = 0;
    while (i + 2 < top) {
        rest |= get(s, i);
        i += 1;
    }
    let high = (get(s, top) << 32) | below(s, top, 1);
    let zeros = leading_zeros64(high | 1);
    let low = below(s, top, 2) << zeros;
    let sticky = select(((low & 0xffffffff) | rest) != 0, 1, 0);
    // 64 bits to the 53 of an f64: the one rounding.
    let rounded = count_to_f64((high << zeros) | (low >> 32) | sticky);
    let sum = mul_rn64(rounded, from_bits64((32 * to_u64(top) + 842 - zeros) << 52));
    let special = select(get(s, NAN_SUMS) > 0, nan64(), infinity64());
    return select((get(s, NAN_SUMS) | get(s, INFINITE_SUMS)) != 0, special, sum);
    // } twin
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn sum(addends: impl IntoIterator<Item = f32>) -> ExactSum {
        let mut sum = ExactSum::default();
        addends.into_iter().for_each(|x| sum.add(x));
        sum
    }

    /// `mantissa * 2^exponent`, exact.
    fn scaled(mantissa: u32, exponent: i32) -> f32 {
        (f64::from(mantissa) * 2.0_f64.powi(exponent)) as f32
    }

    #[test]
    fn an_addend_alone_comes_out_as_it_went_in() {
        for bits in [0, 1, 2, 0x007f_ffff, 0x0080_0000, 0x0080_0001, 0x3f80_0000, 0x7f7f_ffff, 0x1fff_ffff, 0x2000_0001]
        {
            let x = f32::from_bits(bits);
            assert_eq!(sum([x]).value().to_bits(), f64::from(x).to_bits(), "{bits:#x}");
            assert_eq!(sum([-x]).value().to_bits(), f64::from(x).to_bits(), "{bits:#x}, negative");
        }
    }

    // 2^53 + 1 has no f64; what lies far below decides a tie.
    #[test]
    fn the_rounding_is_to_nearest_even_and_sees_the_last_bit() {
        let two_53 = 2.0_f32.powi(53);
        assert_eq!(sum([two_53, 1.0]).value(), 2.0_f64.powi(53));
        assert_eq!(sum([two_53, 3.0]).value(), 2.0_f64.powi(53) + 4.0);
        assert_eq!(sum([two_53, 1.0, 2.0_f32.powi(-149)]).value(), 2.0_f64.powi(53) + 2.0);
        assert_eq!(sum([f32::MAX, f32::from_bits(1)]).value(), f64::from(f32::MAX));
    }

    #[test]
    fn carries_pass_through_every_limb() {
        let mut all = ExactSum::default();
        (0..10_000).for_each(|_| all.add(f32::MAX));
        assert_eq!(all.value(), 10_000.0 * f64::from(f32::MAX));
        let ones = (0..253).map(|e| f32::from_bits((e + 1) << 23)); // 2^-126 to 2^126
        assert_eq!(sum(ones.chain([2.0_f32.powi(-126)])).value(), 2.0_f64.powi(127));
    }

    #[test]
    fn nan_wins_over_infinite_wins_over_all() {
        assert_eq!(sum([1.0, f32::INFINITY, f32::MAX]).value(), f64::INFINITY);
        assert!(sum([f32::INFINITY, f32::NAN, 1.0]).value().is_nan());
        assert_eq!(sum([]).value().to_bits(), 0);
    }

    proptest! {
        // Within 2^60, where a u128 holds the sum as well.
        #[test]
        fn it_is_the_integer_sum_rounded_once(
            addends in prop::collection::vec((0x80_0000_u32..=0xff_ffff, 0..60), 1..40),
            offset in -149..=44,
        ) {
            let exact: u128 = addends.iter().map(|&(mantissa, shift)| u128::from(mantissa) << shift).sum();
            let found = sum(addends.iter().map(|&(mantissa, shift)| scaled(mantissa, shift + offset))).value();
            prop_assert_eq!(found, exact as f64 * 2.0_f64.powi(offset));
        }

        #[test]
        fn no_order_and_no_partition_changes_a_bit(
            bits in prop::collection::vec(0_u32..0x7f80_0000, 0..60),
            cuts in prop::collection::vec(0..60_usize, 0..6),
        ) {
            let addends: Vec<f32> = bits.iter().copied().map(f32::from_bits).collect();
            let whole = sum(addends.iter().copied());
            prop_assert_eq!(sum(addends.iter().rev().copied()).value().to_bits(), whole.value().to_bits());
            let mut ends: Vec<usize> = cuts.into_iter().map(|cut| cut.min(addends.len())).chain([0, addends.len()]).collect();
            ends.sort_unstable();
            let mut parts = ExactSum::default();
            for ends in ends.windows(2).rev() {
                let part = sum(addends[ends[0]..ends[1]].iter().copied());
                parts.words.iter_mut().zip(part.words).for_each(|(all, word)| *all += word);
            }
            prop_assert_eq!(parts, whole);
        }
    }
}
