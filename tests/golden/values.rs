//! The suite's generator and its hash. README.md, "Values", says the same in words.

use fused_adamw::Dtype;
use serde::Deserialize;

/// FNV-1a, 64 bits: the offset basis.
pub(crate) const BASIS: u64 = 0xcbf2_9ce4_8422_2325;

/// FNV-1a of `bytes`, continuing from `hash`.
pub(crate) fn fnv1a(hash: u64, bytes: &[u8]) -> u64 {
    bytes.iter().fold(hash, |hash, &byte| (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3))
}

/// Output number `element`, from 0, of SplitMix64 seeded with the hash of `key`.
pub(crate) fn word(key: u64, element: u64) -> u64 {
    let state = key.wrapping_add((element + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15));
    let z = (state ^ state >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ z >> 31
}

/// Names of a range of values.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Values {
    /// Magnitudes from 2^-12 to 2^4.
    Tame,
    /// Squares underflow in f32; in f16 subnormals and the smallest normals.
    Tiny,
    /// Squares are around the overflow of f32; in f16 the largest values.
    Large,
    /// Tame, with one finite value of [`SPECIAL`] in 16.
    Salted,
    /// Any bits, and a value of [`SPECIAL`] in every second place.
    Wild,
}

/// The last four are not finite.
const SPECIAL: [u32; 32] = [
    0x0000_0000,
    0x8000_0000,
    0x0000_0001,
    0x8000_0001,
    0x007f_ffff,
    0x807f_ffff,
    0x0080_0000,
    0x8080_0000,
    0x0001_0000,
    0x8001_0000,
    0x0040_0000,
    0x1e3c_e508,
    0x9e3c_e508,
    0x2000_0000,
    0x1fff_ffff,
    0x9b00_0000,
    0x3380_0000,
    0x3400_0000,
    0x3f7f_ffff,
    0x3f80_0000,
    0xbf80_0000,
    0x4b80_0000,
    0x5f7f_ffff,
    0x5f80_0000,
    0xdf80_0000,
    0x7f7f_ffff,
    0xff7f_ffff,
    0x3f00_0000,
    0x7f80_0000,
    0xff80_0000,
    0xffc1_2345,
    0x7f81_0001,
];

/// [`SPECIAL`] for f16.
const SPECIAL_F16: [u32; 32] = [
    0x0000, 0x8000, 0x0001, 0x8001, 0x03ff, 0x83ff, 0x0400, 0x8400, 0x0002, 0x8200, 0x0080, 0x068e, 0x868e, 0x1400,
    0x13ff, 0x0c00, 0x1000, 0x1001, 0x3bff, 0x3c00, 0xbc00, 0x5bff, 0x5c00, 0xdc00, 0x7bff, 0xfbff, 0x7000, 0x3800,
    0x7c00, 0xfc00, 0xfe12, 0x7d01,
];

const FINITE: u64 = 28;

impl Values {
    /// The bits of a value, made of a word of the generator.
    pub(crate) fn bits(self, dtype: Dtype, word: u64) -> u32 {
        match dtype {
            Dtype::F32 => self.bits_f32(word),
            Dtype::BF16 => self.bits_f32(word) >> 16,
            Dtype::F16 => self.bits_f16(word),
        }
    }

    fn bits_f32(self, word: u64) -> u32 {
        let exponent = |first, mask| first + (word >> 32 & mask);
        let float = |exponent: u64| low(word >> 63 << 31 | exponent << 23 | word & 0x007f_ffff);
        match (self, self.special(word)) {
            (_, Some(index)) => SPECIAL[index],
            (Self::Tame | Self::Salted, None) => float(exponent(115, 15)),
            (Self::Tiny, None) => float(exponent(40, 31)),
            (Self::Large, None) => float(exponent(187, 7)),
            (Self::Wild, None) => low(word),
        }
    }

    fn bits_f16(self, word: u64) -> u32 {
        let exponent = |first, mask| first + (word >> 32 & mask);
        let float = |exponent: u64| low(word >> 63 << 15 | exponent << 10 | word & 0x03ff);
        match (self, self.special(word)) {
            (_, Some(index)) => SPECIAL_F16[index],
            (Self::Tame | Self::Salted, None) => float(exponent(3, 15)),
            (Self::Tiny, None) => low(word >> 63 << 15 | word & 0x07ff),
            (Self::Large, None) => float(exponent(27, 3)),
            (Self::Wild, None) => low(word & 0xffff),
        }
    }

    /// The place in the table of special values, if the word asks for one.
    fn special(self, word: u64) -> Option<usize> {
        let index = |count| usize::try_from(word % count).unwrap();
        match self {
            Self::Salted if word >> 40 & 15 == 0 => Some(index(FINITE)),
            Self::Wild if word >> 40 & 1 == 1 => Some(index(32)),
            _ => None,
        }
    }
}

/// The low 32 bits.
fn low(word: u64) -> u32 {
    u32::try_from(word & 0xffff_ffff).unwrap()
}
