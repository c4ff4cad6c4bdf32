//! The numbers of one tensor, in the type that the file gave them.

use half::{bf16, f16};

/// A dtype that a trace may use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Float {
    F16,
    Bf16,
    F32,
    F64,
}

impl Float {
    /// `None` for every dtype that is not one of the four: integers, booleans, 8-bit floats, names nobody knows.
    pub(crate) fn parse(name: &str) -> Option<Self> {
        match name {
            "F16" => Some(Self::F16),
            "BF16" => Some(Self::Bf16),
            "F32" => Some(Self::F32),
            "F64" => Some(Self::F64),
            _ => None,
        }
    }

    /// Bytes an element.
    pub(crate) fn size(self) -> u64 {
        match self {
            Self::F16 | Self::Bf16 => 2,
            Self::F32 => 4,
            Self::F64 => 8,
        }
    }

    /// The largest relative error of rounding to nearest: half a unit in the last place of 1.
    pub(crate) fn unit(self) -> f64 {
        match self {
            Self::F16 => 2f64.powi(-11),
            Self::Bf16 => 2f64.powi(-8),
            Self::F32 => 2f64.powi(-24),
            Self::F64 => 2f64.powi(-53),
        }
    }

    /// The largest absolute error of rounding to nearest where numbers are subnormal: half of the smallest one.
    pub(crate) fn underflow(self) -> f64 {
        match self {
            Self::F16 => 2f64.powi(-25),
            Self::Bf16 => 2f64.powi(-134),
            Self::F32 => 2f64.powi(-150),
            Self::F64 => 0.0,
        }
    }

    /// The place of `x`, rounded to this format (f64: to f32), in the order of the format's numbers: neighbours
    /// differ by 1, both zeros are 0, NaN is beyond infinity.
    #[expect(clippy::cast_possible_truncation, reason = "the rounding is the purpose")]
    pub(crate) fn rank(self, x: f64) -> i64 {
        let (bits, sign) = match self {
            Self::F16 => (u32::from(f16::from_f64(x).to_bits()), 1 << 15),
            Self::Bf16 => (u32::from(bf16::from_f64(x).to_bits()), 1 << 15),
            Self::F32 | Self::F64 => ((x as f32).to_bits(), 1 << 31),
        };
        let magnitude = i64::from(bits & (sign - 1));
        if bits & sign == 0 { magnitude } else { -magnitude }
    }

    /// The largest finite number.
    pub(crate) fn max(self) -> f64 {
        match self {
            Self::F16 => f16::MAX.to_f64(),
            Self::Bf16 => bf16::MAX.to_f64(),
            Self::F32 => f64::from(f32::MAX),
            Self::F64 => f64::MAX,
        }
    }
}

/// A tensor's elements.
#[derive(Clone, Debug)]
pub(crate) enum Values {
    F16(Vec<f16>),
    Bf16(Vec<bf16>),
    F32(Vec<f32>),
    F64(Vec<f64>),
}

impl Values {
    /// Little-endian elements; bytes after the last whole one are ignored (the reader admits none).
    pub(crate) fn decode(dtype: Float, bytes: &[u8]) -> Self {
        match dtype {
            Float::F16 => Self::F16(bytes.as_chunks().0.iter().map(|&b| f16::from_le_bytes(b)).collect()),
            Float::Bf16 => Self::Bf16(bytes.as_chunks().0.iter().map(|&b| bf16::from_le_bytes(b)).collect()),
            Float::F32 => Self::F32(bytes.as_chunks().0.iter().map(|&b| f32::from_le_bytes(b)).collect()),
            Float::F64 => Self::F64(bytes.as_chunks().0.iter().map(|&b| f64::from_le_bytes(b)).collect()),
        }
    }

    /// Zeros of the same type and number.
    pub(crate) fn zeros(&self) -> Self {
        match self {
            Self::F16(x) => Self::F16(vec![f16::ZERO; x.len()]),
            Self::Bf16(x) => Self::Bf16(vec![bf16::ZERO; x.len()]),
            Self::F32(x) => Self::F32(vec![0.0; x.len()]),
            Self::F64(x) => Self::F64(vec![0.0; x.len()]),
        }
    }

    pub(crate) fn dtype(&self) -> Float {
        match self {
            Self::F16(_) => Float::F16,
            Self::Bf16(_) => Float::Bf16,
            Self::F32(_) => Float::F32,
            Self::F64(_) => Float::F64,
        }
    }

    pub(crate) fn len(&self) -> usize {
        match self {
            Self::F16(x) => x.len(),
            Self::Bf16(x) => x.len(),
            Self::F32(x) => x.len(),
            Self::F64(x) => x.len(),
        }
    }

    /// Every dtype fits f64 exactly.
    pub(crate) fn to_f64(&self) -> Vec<f64> {
        match self {
            Self::F16(x) => x.iter().map(|x| x.to_f64()).collect(),
            Self::Bf16(x) => x.iter().map(|x| x.to_f64()).collect(),
            Self::F32(x) => x.iter().map(|&x| f64::from(x)).collect(),
            Self::F64(x) => x.clone(),
        }
    }
}
