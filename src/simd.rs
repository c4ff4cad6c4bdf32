//! The instruction sets the CPU backend is compiled for, which of them this processor has, and what the loops ask of them.

#![allow(clippy::inline_always, reason = "a call would leave the caller's target features")]

use crate::error::{Error, Result};
use crate::rounding::{canonical_to_bf16_rn, low_half};
use crate::tensor::Float;
use crate::tensor::sealed::Sealed;
use half::{bf16, f16};
use std::fmt;

/// An instruction set of the CPU backend. All give the same bits; they differ in speed alone.
///
/// ```
/// use fused_adamw::{Device, Simd};
/// let device = Device::cpu_with(Simd::best())?; // what `Device::cpu()` takes
/// assert!(Device::cpu_with(Simd::Portable).is_ok());
/// # Ok::<(), fused_adamw::Error>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Simd {
    /// What the binary was built for: NEON on aarch64. Plain x86-64 has no fused multiply-add: f64 arithmetic stands
    /// in for it, exact and slower.
    Portable,
    /// AVX2, FMA and F16C.
    Avx2,
    /// AVX-512 (F, BW, DQ, VL).
    Avx512,
}

impl Simd {
    /// The best that this processor has.
    ///
    /// ```
    /// assert!(fused_adamw::Simd::best().is_available());
    /// ```
    #[must_use]
    pub fn best() -> Self {
        let available = |simd: &Self| simd.is_available();
        [Self::Avx512, Self::Avx2].into_iter().find(available).unwrap_or(Self::Portable)
    }

    /// Whether this processor has it.
    ///
    /// ```
    /// assert!(fused_adamw::Simd::Portable.is_available());
    /// ```
    #[must_use]
    pub fn is_available(self) -> bool {
        match self {
            Self::Portable => true,
            #[cfg(target_arch = "x86_64")]
            Self::Avx2 => {
                is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") && is_x86_feature_detected!("f16c")
            }
            #[cfg(target_arch = "x86_64")]
            Self::Avx512 => {
                Self::Avx2.is_available()
                    && is_x86_feature_detected!("avx512f")
                    && is_x86_feature_detected!("avx512bw")
                    && is_x86_feature_detected!("avx512dq")
                    && is_x86_feature_detected!("avx512vl")
            }
            #[cfg(not(target_arch = "x86_64"))]
            Self::Avx2 | Self::Avx512 => false,
        }
    }

    pub(crate) fn check(self) -> Result<Self> {
        if self.is_available() { Ok(self) } else { Err(Error::Simd { requested: self, best: Self::best() }) }
    }
}

impl fmt::Display for Simd {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Portable => "portable code",
            Self::Avx2 => "AVX2",
            Self::Avx512 => "AVX-512",
        })
    }
}

/// Asks for the cache line of an address, whatever is there: nothing is read.
#[inline(always)]
pub(crate) fn prefetch<T>(address: *const T) {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: a hint, which is let pass at any address; every x86-64 has it.
    unsafe {
        std::arch::x86_64::_mm_prefetch::<{ std::arch::x86_64::_MM_HINT_T0 }>(address.cast());
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = address;
}

/// What the loops ask of an instruction set beyond what the compiler makes of Rust's operators.
pub(crate) trait Isa: Default {
    /// Who multiplies and adds without a doubt.
    type Exact: Isa<Exact = Self::Exact>;
    /// Whether that is one instruction.
    const HAS_FMA: bool;
    /// Whether there is ever a doubt.
    const MAY_DOUBT: bool;

    /// `a * b + c`, rounded once; or not quite that, and then there is a doubt.
    fn fma_rn(&self, a: f32, b: f32, c: f32) -> f32;

    /// Whether one of the results so far may be wrong.
    fn doubts(&self) -> bool {
        false
    }

    /// As [`crate::rounding::f16_to_f32`], but for the bits of a NaN.
    #[inline(always)]
    fn widen_f16(from: &[f16], to: &mut [f32]) {
        to.iter_mut().zip(from).for_each(|(wide, x)| *wide = x.widen());
    }

    /// As [`crate::rounding::f32_to_f16_rn`], if NaN is canonical.
    #[inline(always)]
    fn narrow_f16(from: &[f32], to: &mut [f16]) {
        to.iter_mut().zip(from).for_each(|(narrow, x)| *narrow = f16::narrow(*x));
    }
}

/// Portable code. Of the processors of 64 bits, only x86-64 before 2013 is without a fused multiply-add; a binary may be
/// built for later ones alone.
#[cfg(not(all(target_arch = "x86_64", not(target_feature = "fma"))))]
pub(crate) type Portable = crate::fma::Fused;
#[cfg(all(target_arch = "x86_64", not(target_feature = "fma")))]
pub(crate) type Portable = crate::fma::Wide;

#[cfg(target_arch = "x86_64")]
pub(crate) mod x86 {
    use super::Isa;
    use crate::fma::Fused;
    use bytemuck::must_cast;
    use half::f16;
    use std::arch::x86_64::{_MM_FROUND_TO_NEAREST_INT, _mm256_cvtph_ps, _mm256_cvtps_ph};

    /// AVX2 and AVX-512, which come with FMA and with instructions for f16. Only functions that are compiled for them
    /// name it.
    #[derive(Default)]
    pub(crate) struct Avx2;

    impl Isa for Avx2 {
        type Exact = Self;
        const HAS_FMA: bool = true;
        const MAY_DOUBT: bool = false;

        #[inline(always)]
        fn fma_rn(&self, a: f32, b: f32, c: f32) -> f32 {
            Fused.fma_rn(a, b, c)
        }

        #[inline(always)]
        fn widen_f16(from: &[f16], to: &mut [f32]) {
            let ((from, last), (to, last_to)) = (from.as_chunks(), to[..from.len()].as_chunks_mut());
            // SAFETY: the function that this stands in is compiled for AVX2 and F16C, and runs where they are available.
            from.iter().zip(to).for_each(|(from, to)| *to = unsafe { widen(*from) });
            Fused::widen_f16(last, last_to);
        }

        #[inline(always)]
        fn narrow_f16(from: &[f32], to: &mut [f16]) {
            let ((from, last), (to, last_to)) = (from.as_chunks(), to[..from.len()].as_chunks_mut());
            // SAFETY: as above.
            from.iter().zip(to).for_each(|(from, to)| *to = unsafe { narrow(*from) });
            Fused::narrow_f16(last, last_to);
        }
    }

    #[inline]
    #[target_feature(enable = "avx2,f16c")]
    fn widen(x: [f16; 8]) -> [f32; 8] {
        must_cast(_mm256_cvtph_ps(must_cast(x)))
    }

    #[inline]
    #[target_feature(enable = "avx2,f16c")]
    fn narrow(x: [f32; 8]) -> [f16; 8] {
        must_cast(_mm256_cvtps_ph::<_MM_FROUND_TO_NEAREST_INT>(must_cast(x)))
    }
}

/// Slices of a type to and from f32, as fast as an [`Isa`] has it. `to` is as long as `from`, or longer.
pub(crate) trait Convert: Float {
    /// Whether many at once are faster than one by one.
    const AT_ONCE: bool = false;

    #[inline(always)]
    fn widen_all<I: Isa>(from: &[Self], to: &mut [f32]) {
        to.iter_mut().zip(from).for_each(|(wide, x)| *wide = x.widen());
    }

    /// NaN is canonical.
    #[inline(always)]
    fn narrow_all<I: Isa>(from: &[f32], to: &mut [Self]) {
        to.iter_mut().zip(from).for_each(|(narrow, x)| *narrow = Self::narrow(*x));
    }
}

impl Convert for f32 {}

impl Convert for bf16 {
    #[inline(always)]
    fn narrow_all<I: Isa>(from: &[f32], to: &mut [Self]) {
        let narrow = |x: &f32| Self::from_bits(low_half(canonical_to_bf16_rn(*x)));
        to.iter_mut().zip(from).for_each(|(to, x)| *to = narrow(x));
    }
}

impl Convert for f16 {
    const AT_ONCE: bool = true;

    #[inline(always)]
    fn widen_all<I: Isa>(from: &[Self], to: &mut [f32]) {
        I::widen_f16(from, to);
    }

    #[inline(always)]
    fn narrow_all<I: Isa>(from: &[f32], to: &mut [Self]) {
        I::narrow_f16(from, to);
    }
}

/// Defines `$name(simd, ...)`: the function `$inlined`, which is `#[inline(always)]` and generic over
/// [`Isa`](crate::simd::Isa), compiled once for every instruction set and chosen at run time.
macro_rules! for_every_simd {
    ($(#[$doc:meta])* unsafe fn $name:ident($($arg:ident: $type:ty),+) -> $out:ty, by $inlined:ident) => {
        $(#[$doc])*
        unsafe fn $name(simd: $crate::simd::Simd, $($arg: $type),+) -> $out {
            #[cfg(target_arch = "x86_64")]
            #[target_feature(enable = "avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl")]
            unsafe fn avx512($($arg: $type),+) -> $out {
                // SAFETY: the caller's promise.
                unsafe { $inlined::<$crate::simd::x86::Avx2>($($arg),+) }
            }
            #[cfg(target_arch = "x86_64")]
            #[target_feature(enable = "avx2,fma,f16c")]
            unsafe fn avx2($($arg: $type),+) -> $out {
                // SAFETY: the caller's promise.
                unsafe { $inlined::<$crate::simd::x86::Avx2>($($arg),+) }
            }
            match simd {
                #[cfg(target_arch = "x86_64")]
                // SAFETY: the caller's promise, that the instruction set is available among it.
                $crate::simd::Simd::Avx512 => unsafe { avx512($($arg),+) },
                #[cfg(target_arch = "x86_64")]
                // SAFETY: likewise.
                $crate::simd::Simd::Avx2 => unsafe { avx2($($arg),+) },
                // SAFETY: likewise.
                _ => unsafe { $inlined::<$crate::simd::Portable>($($arg),+) },
            }
        }
    };
}
pub(crate) use for_every_simd;

#[cfg(all(test, target_arch = "x86_64"))]
mod tests {
    use super::x86::Avx2;
    use super::*;
    use crate::fma::Fused;
    use crate::rounding::canonical;

    fn same(a: f32, b: f32) -> bool {
        a.to_bits() == b.to_bits() || a.is_nan() && b.is_nan()
    }

    // Every f16, and around every turning point of the rounding; of a length that is no multiple of eight.
    #[test]
    fn the_instructions_for_f16_give_the_bits_of_the_integers() {
        if !Simd::Avx2.is_available() {
            return;
        }
        let halves: Vec<f16> = (0..=u16::MAX).map(f16::from_bits).chain([f16::ONE]).collect();
        let (mut ours, mut theirs) = (vec![0.0; halves.len()], vec![0.0; halves.len()]);
        Fused::widen_f16(&halves, &mut ours);
        Avx2::widen_f16(&halves, &mut theirs);
        assert!(ours.iter().zip(&theirs).all(|(a, b)| same(*a, *b)));

        let lower = [0_u32, 1, 0x0fff, 0x1000, 0x1001, 0x1fff, 0x2000, 0x7fff, 0x8000, 0x8001, 0xffff];
        let near = |upper: u16| lower.map(|lower| canonical(f32::from_bits(u32::from(upper) << 16 | lower)));
        let wide: Vec<f32> = (0..=u16::MAX).flat_map(near).chain([1.0]).collect();
        let (mut ours, mut theirs) = (vec![f16::ZERO; wide.len()], vec![f16::ZERO; wide.len()]);
        Fused::narrow_f16(&wide, &mut ours);
        Avx2::narrow_f16(&wide, &mut theirs);
        assert!(ours.iter().zip(&theirs).all(|(a, b)| a.to_bits() == b.to_bits()));
    }
}
