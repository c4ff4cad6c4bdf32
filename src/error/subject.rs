//! A tensor, a buffer, a place in memory, as errors name them.

use std::fmt;
use std::sync::Arc;

/// A tensor as an error names it: its index in the registered list, and its name if it was given one.
///
/// ```
/// use fused_adamw::{AdamW, AdamWConfig, Device, TensorSpec};
/// let specs = [TensorSpec::new(2).named("bias")];
/// let mut opt = AdamW::new(&Device::cpu(), AdamWConfig::default(), specs)?;
/// let error = opt.step([(&mut [0.0_f32; 3], &[0.0_f32; 3])]).unwrap_err();
/// assert_eq!(error.to_string(), "tensor 0 (bias): the parameter has 3 elements, 2 are registered");
/// # Ok::<(), fused_adamw::Error>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TensorId {
    /// Position in the registered list, from 0.
    pub index: usize,
    /// As given by [`TensorSpec::named`](crate::TensorSpec::named).
    pub name: Option<Arc<str>>,
}

impl fmt::Display for TensorId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.name {
            Some(name) => write!(f, "tensor {} ({name})", self.index),
            None => write!(f, "tensor {}", self.index),
        }
    }
}

/// Which buffer of a tensor an error is about.
///
/// ```
/// assert_eq!(fused_adamw::Buffer::Grad.to_string(), "gradient");
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Buffer {
    /// The parameter, written by a step.
    Param,
    /// The gradient, read by a step; zeroed on request.
    Grad,
}

impl fmt::Display for Buffer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Param => "parameter",
            Self::Grad => "gradient",
        })
    }
}

/// A buffer of one tensor in memory, in bytes: half of an [`Error::Overlap`](crate::Error::Overlap).
///
/// ```
/// use fused_adamw::{AdamW, AdamWConfig, Device, Dtype, Error, Pair};
/// let (mut p, g) = ([1.0_f32; 4], [0.0_f32; 4]);
/// let address = p.as_mut_ptr() as u64;
/// let mut opt = AdamW::new(&Device::cpu(), AdamWConfig::default(), [3, 3])?;
/// // SAFETY: both parameters lie inside `p`, the gradients inside `g`.
/// let pair = |at| unsafe { Pair::from_raw(at, Dtype::F32, g.as_ptr() as u64, Dtype::F32, 3) };
/// let Err(Error::Overlap { first, second }) = opt.step([pair(address), pair(address + 4)]) else { panic!() };
/// assert_eq!((first.tensor.index, first.end), (0, address + 12));
/// assert_eq!((second.tensor.index, second.start), (1, address + 4));
/// # Ok::<(), Error>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Span {
    /// Whose.
    pub tensor: TensorId,
    /// Which.
    pub buffer: Buffer,
    /// Address of the first byte.
    pub start: u64,
    /// Address after the last byte.
    pub end: u64,
}

impl fmt::Display for Span {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}'s {} at {:#x}..{:#x}", self.tensor, self.buffer, self.start, self.end)
    }
}
