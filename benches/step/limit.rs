//! The limit: what a step reads is read, what it writes is written, by the threads and in the chunks of a step, and next
//! to nothing is computed. It is compiled for the best instruction set that there is, because the memory of some
//! processors is faster with wider loads.

#![allow(clippy::inline_always, reason = "a call would leave the caller's target features")]

use crate::cases::Extra;
use fused_adamw::{Float, Simd};
use half::{bf16, f16};
use rayon::prelude::*;
use std::hint::black_box;

/// Up to so many elements a step stays on the caller's thread (`src/cpu.rs`).
pub(crate) const ONE_THREAD: usize = 128 * 1024;

/// How a thread goes through its share of the data.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Walk {
    /// From the first to the last.
    Plain,
    /// In turns through two places, half of the data apart.
    TwoPlaces,
}

impl Walk {
    /// Elements of a chunk: of the plain walk as of a step's (`src/cpu.rs`).
    fn chunk(self) -> usize {
        match self {
            Self::Plain => 16 * 1024,
            Self::TwoPlaces => 4 * 1024,
        }
    }
}

/// A type of parameters and gradients, and the cheapest that can be done with it.
pub(crate) trait Value: Float {
    fn of(x: f32) -> Self;
    fn read(self) -> f32;
    /// Reads an f32; of 16 bits, whose f32 is the master, it only writes.
    fn touched(self, x: f32) -> Self;
    fn bits(self) -> u32;
}

impl Value for f32 {
    fn of(x: f32) -> Self {
        x
    }
    #[inline(always)]
    fn read(self) -> f32 {
        self
    }
    #[inline(always)]
    fn touched(self, x: f32) -> Self {
        self + x
    }
    #[inline(always)]
    fn bits(self) -> u32 {
        self.to_bits()
    }
}

/// 16 bits are moved to and from the upper half of an f32, whatever they mean.
macro_rules! narrow {
    ($type:ty) => {
        impl Value for $type {
            fn of(x: f32) -> Self {
                Self::from_f32(x)
            }
            #[inline(always)]
            fn read(self) -> f32 {
                f32::from_bits(self.bits() << 16)
            }
            #[inline(always)]
            fn touched(self, x: f32) -> Self {
                Self::from_bits((x.to_bits() >> 16) as u16)
            }
            #[inline(always)]
            fn bits(self) -> u32 {
                self.to_bits().into()
            }
        }
    };
}
narrow!(bf16);
narrow!(f16);

/// A chunk of a tensor: parameters, gradients, and 2 to 4 arrays of state, the rest of which are empty.
pub(crate) struct Part<'a, P, G> {
    p: &'a mut [P],
    g: &'a mut [G],
    state: [&'a mut [f32]; 4],
}

impl<'a, P, G> Part<'a, P, G> {
    /// The chunks of one tensor.
    pub(crate) fn cut(
        p: &'a mut [P],
        g: &'a mut [G],
        state: Vec<&'a mut [f32]>,
        walk: Walk,
    ) -> impl Iterator<Item = Self> {
        let mut state: Vec<_> = state.into_iter().map(|array| array.chunks_mut(walk.chunk())).collect();
        p.chunks_mut(walk.chunk()).zip(g.chunks_mut(walk.chunk())).map(move |(p, g)| {
            let mut next = state.iter_mut().map(|chunks| chunks.next().unwrap_or_default());
            Self { p, g, state: std::array::from_fn(|_| next.next().unwrap_or_default()) }
        })
    }
}

/// The parts in the order of a walk.
pub(crate) fn ordered<P, G>(mut parts: Vec<Part<'_, P, G>>, walk: Walk) -> Vec<Part<'_, P, G>> {
    if walk == Walk::Plain {
        return parts;
    }
    let mut second = parts.split_off(parts.len().div_ceil(2)).into_iter();
    parts.into_iter().flat_map(|part| [Some(part), second.next()]).flatten().collect()
}

/// All of it, on the threads of the current rayon pool.
pub(crate) fn read_modify_write<P: Value, G: Value>(parts: &mut [Part<'_, P, G>], extra: Extra) {
    if extra.reads_twice() {
        for_each(parts, |part| {
            black_box(read(part, ()));
        });
    }
    for_each(parts, |part| touch(part, extra.writes_grads()));
}

fn for_each<P: Value, G: Value>(parts: &mut [Part<'_, P, G>], of: impl Fn(&mut Part<'_, P, G>) + Send + Sync) {
    let elements: usize = parts.iter().map(|part| part.p.len()).sum();
    if elements <= ONE_THREAD {
        parts.iter_mut().for_each(of);
    } else {
        let together = Walk::Plain.chunk() * parts.len() / elements;
        parts.par_iter_mut().with_min_len(together.max(1)).for_each(of);
    }
}

/// Defines `$name`: the function `$inlined`, compiled for the best instruction set there is, too.
macro_rules! for_best_simd {
    (fn $name:ident($with:ty) -> $out:ty, by $inlined:ident) => {
        fn $name<P: Value, G: Value>(part: &mut Part<'_, P, G>, with: $with) -> $out {
            #[cfg(target_arch = "x86_64")]
            #[target_feature(enable = "avx2,fma,avx512f,avx512bw,avx512dq,avx512vl")]
            fn avx512<P: Value, G: Value>(part: &mut Part<'_, P, G>, with: $with) -> $out {
                $inlined(part, with)
            }
            #[cfg(target_arch = "x86_64")]
            #[target_feature(enable = "avx2,fma")]
            fn avx2<P: Value, G: Value>(part: &mut Part<'_, P, G>, with: $with) -> $out {
                $inlined(part, with)
            }
            match Simd::best() {
                #[cfg(target_arch = "x86_64")]
                // SAFETY: the best is available.
                Simd::Avx512 => unsafe { avx512(part, with) },
                #[cfg(target_arch = "x86_64")]
                // SAFETY: likewise.
                Simd::Avx2 => unsafe { avx2(part, with) },
                _ => $inlined(part, with),
            }
        }
    };
}

/// A division and a square root of each element of the first part, `repeats` times: what a step cannot do without, in
/// the cache. How many elements that were.
pub(crate) fn divide_and_root<P: Value, G: Value>(parts: &mut [Part<'_, P, G>], repeats: usize) -> usize {
    let Some(part) = parts.first_mut() else { return 0 };
    (0..repeats).for_each(|_| roots(black_box(&mut *part), ()));
    repeats * part.p.len().min(IN_CACHE)
}

/// Elements whose two arrays of f32 the first cache holds.
const IN_CACHE: usize = 2 * 1024;

for_best_simd! { fn roots(()) -> (), by roots_inlined }
for_best_simd! { fn read(()) -> u32, by read_inlined }
for_best_simd! { fn touch(bool) -> (), by touch_inlined }

#[inline(always)]
fn read_inlined<P: Value, G: Value>(part: &mut Part<'_, P, G>, (): ()) -> u32 {
    part.g.iter().fold(0, |all, g| all ^ g.bits())
}

#[inline(always)]
fn roots_inlined<P: Value, G: Value>(part: &mut Part<'_, P, G>, (): ()) {
    let [a, b, ..] = &mut part.state;
    let n = a.len().min(IN_CACHE);
    a[..n].iter_mut().zip(&b[..n]).for_each(|(a, b)| *a = 0.5 / b.sqrt());
}

#[inline(always)]
fn touch_inlined<P: Value, G: Value>(part: &mut Part<'_, P, G>, writes_grads: bool) {
    let Part { p, g, state: [a, b, c, d] } = part;
    match (c.is_empty(), d.is_empty()) {
        (true, _) if writes_grads => walk::<P, G, 2, true>(p, g, a, b, c, d),
        (true, _) => walk::<P, G, 2, false>(p, g, a, b, c, d),
        (false, true) => walk::<P, G, 3, false>(p, g, a, b, c, d),
        (false, false) => walk::<P, G, 4, false>(p, g, a, b, c, d),
    }
}

/// Slices and no arrays of them, so that the compiler knows that they do not overlap. Of the last two, as many as
/// `STATES` says.
#[inline(always)]
fn walk<P: Value, G: Value, const STATES: usize, const WRITES_GRADS: bool>(
    p: &mut [P],
    g: &mut [G],
    a: &mut [f32],
    b: &mut [f32],
    c: &mut [f32],
    d: &mut [f32],
) {
    let n = p.len();
    let (g, a, b) = (&mut g[..n], &mut a[..n], &mut b[..n]);
    let (c, d) = (&mut c[..if STATES > 2 { n } else { 0 }], &mut d[..if STATES > 3 { n } else { 0 }]);
    let written = G::of(0.01);
    for i in 0..n {
        let x = g[i].read();
        (p[i], a[i], b[i]) = (p[i].touched(x), a[i] + x, b[i] + x);
        if STATES > 2 {
            c[i] += x;
        }
        if STATES > 3 {
            d[i] += x;
        }
        if WRITES_GRADS {
            g[i] = written;
        }
    }
}
