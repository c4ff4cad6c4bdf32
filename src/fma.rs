//! `a * b + c` with one rounding: by the processor, or for those without such an instruction in f64 arithmetic, which
//! the compiler vectorizes. The bits are the same.

#![allow(clippy::inline_always, reason = "a call would leave the caller's target features")]

use crate::simd::Isa;
use std::cell::Cell;

/// The processor. Where it has no such instruction this is a call of the math library, exact and slow.
#[derive(Default)]
pub(crate) struct Fused;

impl Isa for Fused {
    type Exact = Self;
    const HAS_FMA: bool = true;
    const MAY_DOUBT: bool = false;

    #[inline(always)]
    fn fma_rn(&self, a: f32, b: f32, c: f32) -> f32 {
        a.mul_add(b, c)
    }
}

/// f64 arithmetic, which rounds twice: the sum to f64, and that to f32.
///
/// The product is exact: 24 + 24 of 53 bits, of size 2^-298 to 2^256, as is a sum that is not 0. Zeros, infinities and
/// NaN come out as they should. Rounding keeps the order, and every tie (the middle between two neighbours in f32) is
/// an f64: so the second rounding errs only where the first one met a tie, coming from beside it. There is a doubt
/// wherever that can be:
///
/// - Ties from 2^-126 up, the one before infinity included, have 25 bits: the lower 29 are [`HALF`] ([`is_tie`]).
/// - A sum below 2^-126 that is not exact: f64 has its bits down to 2^-179 at least, and `c` ends at 2^-149; so the
///   product goes further down, and with its 48 bits is less than 2^-131. `c` is not 0, or the sum were the product;
///   it is less than 2^-125 ([`is_tiny`]).
///
/// Of numbers with few bits exact ties are frequent, and so are doubts; of others they are rare.
#[derive(Default)]
#[allow(dead_code, reason = "for processors without the instruction")]
pub(crate) struct Wide {
    doubt: Cell<bool>,
}

/// A half of the last place of an f32, in the bits of the f64.
const HALF: u32 = 1 << 28;
/// The bits of an f64, in its lower word, that an f32 does not have.
const BELOW: u32 = 2 * HALF - 1;

impl Isa for Wide {
    type Exact = Odd;
    const HAS_FMA: bool = false;
    const MAY_DOUBT: bool = true;

    #[inline(always)]
    #[expect(clippy::cast_possible_truncation, reason = "the rounding is the point")]
    fn fma_rn(&self, a: f32, b: f32, c: f32) -> f32 {
        let sum = f64::from(a) * f64::from(b) + f64::from(c);
        self.doubt.set(self.doubt.get() | is_tie(sum) | is_tiny(c));
        sum as f32
    }

    #[inline(always)]
    fn doubts(&self) -> bool {
        self.doubt.get()
    }
}

#[inline(always)]
#[expect(clippy::cast_possible_truncation, reason = "the lower word is the point")]
fn is_tie(x: f64) -> bool {
    x.to_bits() as u32 & BELOW == HALF
}

/// Less than 2^-125, and not 0: without its sign, the bits are less than `END`. Moved so that these end at the highest
/// number, and 0 wraps to the lowest, it is one comparison of signed integers, the only one that SSE2 has.
#[inline(always)]
fn is_tiny(x: f32) -> bool {
    const END: i32 = 2 << 24;
    const BELOW_ALL: i32 = i32::MAX - (END - 1);
    (x.to_bits() << 1).cast_signed().wrapping_add(BELOW_ALL) > BELOW_ALL
}

/// [`Wide`] without a doubt, and slower: the sum is rounded to f64 not to nearest but, unless it is exact, to
/// whichever of its two neighbours is odd. None of these is a tie, and on which side of one it lies is still to be seen
/// (Boldo and Melquiond, 2008: two bits more than the f32 has are enough, 29 are there).
#[derive(Default)]
#[allow(dead_code, reason = "for processors without the instruction")]
pub(crate) struct Odd;

impl Isa for Odd {
    type Exact = Self;
    const HAS_FMA: bool = false;
    const MAY_DOUBT: bool = false;

    #[inline(always)]
    #[expect(clippy::cast_possible_truncation, reason = "the rounding is the point")]
    fn fma_rn(&self, a: f32, b: f32, c: f32) -> f32 {
        sum_to_odd(f64::from(a) * f64::from(b), f64::from(c)) as f32
    }
}

/// `a + b`, and what the rounding took from it (Knuth's TwoSum; NaN where the sum is infinite).
#[inline(always)]
fn two_sum(a: f64, b: f64) -> (f64, f64) {
    let sum = a + b;
    let b_in_sum = sum - a;
    (sum, (a - (sum - b_in_sum)) + (b - b_in_sum))
}

#[inline(always)]
fn sum_to_odd(a: f64, b: f64) -> f64 {
    let (sum, error) = two_sum(a, b);
    let is_inexact = u64::from(error.abs() > 0.0);
    // Where the signs differ the sum was rounded away from zero: one place back, it is the neighbour on the other side.
    let is_beyond = (sum.to_bits() ^ error.to_bits()) >> 63 & is_inexact;
    f64::from_bits((sum.to_bits() - is_beyond) | is_inexact)
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::rngs::StdRng;
    use rand::{Rng, SeedableRng};

    const ROUNDS: usize = if cfg!(debug_assertions) { 100_000 } else { 4_000_000 };

    fn same(a: f32, b: f32) -> bool {
        a.to_bits() == b.to_bits() || a.is_nan() && b.is_nan()
    }

    /// Whether [`Wide`] is in doubt, and whether it is wrong.
    fn wide([a, b, c]: [f32; 3]) -> (bool, bool) {
        let wide = Wide::default();
        let is_wrong = !same(wide.fma_rn(a, b, c), Fused.fma_rn(a, b, c));
        (wide.doubts(), is_wrong)
    }

    /// Bits kept of a random number: with few, ties and cancellations are frequent.
    fn few_bits(random: &mut StdRng, exponents: std::ops::Range<u32>) -> f32 {
        let kept = !0 << random.random_range(0..24);
        f32::from_bits(
            random.random::<u32>() & (0x8000_0000 | 0x007f_ffff & kept) | random.random_range(exponents) << 23,
        )
    }

    /// A product of 25 bits, which is a tie, and an addend that is far below it.
    fn beside_a_tie(random: &mut StdRng) -> [f32; 3] {
        let factor = |random: &mut StdRng| f32::from(random.random_range(0x1000..=0x16a0_u16) | 1);
        let scale = 2.0_f32.powi(random.random_range(-60..60));
        let tiny = if random.random() { 1.0_f32 } else { -1.0 } * scale * 2.0_f32.powi(random.random_range(-40..-30));
        [factor(random) * scale, factor(random), tiny]
    }

    /// Half a place of a subnormal addend, or of 2^-126 less that, but for less than f64 has of the sum: (1 + x) (1 - x),
    /// (1 + x) (1 - x + x^2).
    fn subnormal(random: &mut StdRng) -> [f32; 3] {
        let below = 2.0_f32.powi(-random.random_range(15..24));
        let above = 2.0_f32.powi(-random.random_range(10..12));
        let [a, b] =
            [[1.0 + below, 1.0 - below], [1.0 + above, 1.0 - above + above * above]][random.random_range(0..2)];
        let scale = if random.random() { 1.0 } else { -1.0 } * 2.0_f32.powi(-75);
        let c = [f32::from_bits(random.random_range(1..0x0080_0000)), f32::MIN_POSITIVE][random.random_range(0..2)];
        [a * scale, b * scale.abs(), c]
    }

    #[test]
    fn what_is_not_doubted_is_right_and_what_is_rounded_to_odd_always() {
        let mut random = StdRng::seed_from_u64(5);
        let mut wrong = [0; 4];
        for _ in 0..ROUNDS {
            let inputs = [
                [(); 3].map(|()| f32::from_bits(random.random())),
                [(); 3].map(|()| few_bits(&mut random, 100..150)),
                beside_a_tie(&mut random),
                subnormal(&mut random),
            ];
            for (wrong, input) in wrong.iter_mut().zip(inputs) {
                let (is_doubted, is_wrong) = wide(input);
                assert!(is_doubted || !is_wrong, "{input:?}");
                let [a, b, c] = input;
                assert!(same(Odd.fma_rn(a, b, c), Fused.fma_rn(a, b, c)), "{input:?}");
                *wrong += usize::from(is_wrong);
            }
        }
        assert!(wrong[2].min(wrong[3]) > ROUNDS / 10, "the inputs are hard: {wrong:?}");
    }

    #[test]
    fn what_is_infinite_or_nothing_has_no_error() {
        let values = [0.0, -0.0, f32::MIN_POSITIVE, f32::MAX, -f32::MAX, f32::INFINITY, f32::NEG_INFINITY, f32::NAN];
        for (a, b, c) in values.iter().flat_map(|a| values.iter().flat_map(move |b| values.map(|c| (*a, *b, c)))) {
            assert!(same(Odd.fma_rn(a, b, c), Fused.fma_rn(a, b, c)), "{a:e} * {b:e} + {c:e}");
        }
    }

    // Doubts cost time: most numbers must be without them.
    #[test]
    fn doubts_are_rare() {
        let mut random = StdRng::seed_from_u64(6);
        let doubts = (0..ROUNDS).filter(|_| wide([(); 3].map(|()| random.random_range(-2.0_f32..2.0))).0).count();
        assert!(doubts <= ROUNDS / 10_000, "{doubts}");
    }
}
