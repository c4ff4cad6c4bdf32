//! The instruction sets the CPU backend is compiled for, and which of them this processor has.

use crate::error::{Error, Result};
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
    /// AVX2 and FMA.
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
            Self::Avx2 => is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma"),
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
#[allow(clippy::inline_always, reason = "one instruction")]
pub(crate) fn prefetch<T>(address: *const T) {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: a hint, which is let pass at any address; every x86-64 has it.
    unsafe {
        std::arch::x86_64::_mm_prefetch::<{ std::arch::x86_64::_MM_HINT_T0 }>(address.cast());
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = address;
}

/// Who multiplies and adds in portable code. Of the processors of 64 bits, only x86-64 before 2013 is without the
/// instruction; a binary may be built for later ones alone.
#[cfg(not(all(target_arch = "x86_64", not(target_feature = "fma"))))]
pub(crate) type PortableFma = crate::fma::Fused;
#[cfg(all(target_arch = "x86_64", not(target_feature = "fma")))]
pub(crate) type PortableFma = crate::fma::Wide;

/// Defines `$name(simd, ...)`: the function `$inlined`, which is `#[inline(always)]` and generic over
/// [`Fma`](crate::fma::Fma), compiled once for every instruction set and chosen at run time.
macro_rules! for_every_simd {
    ($(#[$doc:meta])* unsafe fn $name:ident($($arg:ident: $type:ty),+) -> $out:ty, by $inlined:ident) => {
        $(#[$doc])*
        unsafe fn $name(simd: $crate::simd::Simd, $($arg: $type),+) -> $out {
            #[cfg(target_arch = "x86_64")]
            #[target_feature(enable = "avx2,fma,avx512f,avx512bw,avx512dq,avx512vl")]
            unsafe fn avx512($($arg: $type),+) -> $out {
                // SAFETY: the caller's promise.
                unsafe { $inlined::<$crate::fma::Fused>($($arg),+) }
            }
            #[cfg(target_arch = "x86_64")]
            #[target_feature(enable = "avx2,fma")]
            unsafe fn avx2($($arg: $type),+) -> $out {
                // SAFETY: the caller's promise.
                unsafe { $inlined::<$crate::fma::Fused>($($arg),+) }
            }
            match simd {
                #[cfg(target_arch = "x86_64")]
                // SAFETY: the caller's promise, that the instruction set is available among it.
                $crate::simd::Simd::Avx512 => unsafe { avx512($($arg),+) },
                #[cfg(target_arch = "x86_64")]
                // SAFETY: likewise.
                $crate::simd::Simd::Avx2 => unsafe { avx2($($arg),+) },
                // SAFETY: likewise.
                _ => unsafe { $inlined::<$crate::simd::PortableFma>($($arg),+) },
            }
        }
    };
}
pub(crate) use for_every_simd;
