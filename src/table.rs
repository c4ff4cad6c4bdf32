//! What crosses from the host to the device: plain structs. Twin: `cuda/table.cuh`.
//!
//! The CPU backend reads the same tables, so that both devices run from the same description of a step.

/// [`TensorRow::param_dtype`] and [`TensorRow::grad_dtype`].
pub(crate) mod dtypes {
    // twin: dtypes {
    pub(crate) const F32: u8 = 0;
    pub(crate) const F16: u8 = 1;
    pub(crate) const BF16: u8 = 2;
    // } twin
}

/// [`TensorRow::flags`].
pub(crate) mod row_flags {
    // twin: row flags {
    pub(crate) const PARAM_ALIGNED: u8 = 1;
    pub(crate) const GRAD_ALIGNED: u8 = 2;
    pub(crate) const INIT_MASTER: u8 = 4;
    pub(crate) const HAS_GRAD: u8 = 8;
    // } twin
}

/// [`Hyper::flags`] and [`StepScalars::flags`].
pub(crate) mod step_flags {
    // twin: step flags {
    pub(crate) const L2: u32 = 1;
    pub(crate) const MAXIMIZE: u32 = 2;
    pub(crate) const AMSGRAD: u32 = 4;
    pub(crate) const SMALL_BETA1: u32 = 8;
    pub(crate) const SMALL_BETA2: u32 = 16;
    // } twin
}

/// One tensor in one step: addresses of its first elements, and how to read them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub(crate) struct TensorRow {
    /// Parameter.
    pub(crate) param: u64,
    /// Gradient.
    pub(crate) grad: u64,
    /// First moment, f32.
    pub(crate) m: u64,
    /// Second moment, f32.
    pub(crate) v: u64,
    /// AMSGrad's largest second moment, f32; 0: no AMSGrad.
    pub(crate) vmax: u64,
    /// f32 master of a 16-bit parameter; 0: the parameter is f32 itself.
    pub(crate) master: u64,
    /// Index into the step's [`StepScalars`].
    pub(crate) scalars: u32,
    /// One of [`dtypes`].
    pub(crate) param_dtype: u8,
    /// One of [`dtypes`].
    pub(crate) grad_dtype: u8,
    /// Elements before the first that lies on a 32-byte boundary of the state, 0 to 7.
    pub(crate) head: u8,
    /// Of [`row_flags`]: parameter and gradient lie on a 16-byte boundary at `head`; the master is to be read from the
    /// parameter; there is a gradient (else the tensor is left alone).
    pub(crate) flags: u8,
}
const _: () = assert!(size_of::<TensorRow>() == 56);

/// A run of elements of one tensor: the work of one thread block, or of one task on the CPU.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub(crate) struct Chunk {
    /// First element; a multiple of 8.
    pub(crate) start: u64,
    /// Index of the tensor.
    pub(crate) tensor: u32,
    /// Elements, at least 1.
    pub(crate) len: u32,
}
const _: () = assert!(size_of::<Chunk>() == 16);

/// A group's hyper-parameters as the user gave them, in f64.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
#[repr(C)]
pub(crate) struct Hyper {
    pub(crate) lr: f64,
    pub(crate) beta1: f64,
    pub(crate) beta2: f64,
    pub(crate) eps: f64,
    pub(crate) weight_decay: f64,
    /// `L2`, `MAXIMIZE`, `AMSGRAD` of [`step_flags`].
    pub(crate) flags: u32,
}
const _: () = assert!(size_of::<Hyper>() == 48);

/// What an element needs to know of its group and its step count, rounded once to f32.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
#[repr(C)]
pub(crate) struct StepScalars {
    /// The step's multiplier of every gradient; negative to maximize.
    pub(crate) grad_scale: f32,
    /// λ of Adam's L2 term.
    pub(crate) weight_decay: f32,
    /// `1 - beta1`; below `beta1 = 0.5`, `-beta1`.
    pub(crate) lerp1: f32,
    /// `1 - beta2`; below `beta2 = 0.5`, `-beta2`.
    pub(crate) lerp2: f32,
    /// `1 / sqrt(1 - beta2^t)`.
    pub(crate) inv_sqrt_bias_correction2: f32,
    /// Added to the denominator, outside the root.
    pub(crate) eps: f32,
    /// `lr λ`; 0 for Adam.
    pub(crate) decay: f32,
    /// `lr / (1 - beta1^t)`.
    pub(crate) step_size: f32,
    /// Of [`step_flags`].
    pub(crate) flags: u32,
}
const _: () = assert!(size_of::<StepScalars>() == 36);

/// As many as fit beside three pointers in the 4 KB of arguments that every driver takes.
#[cfg(feature = "cuda")]
pub(crate) const INLINE_SCALARS: usize = 112;

/// The scalars of a step as a kernel argument: no copy to the device when only they change.
#[cfg(feature = "cuda")]
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub(crate) struct InlineScalars {
    pub(crate) at: [StepScalars; INLINE_SCALARS],
}
#[cfg(feature = "cuda")]
const _: () = assert!(size_of::<InlineScalars>() + 3 * 8 <= 4096);

/// One element as [`crate::update::update`] sees it: parameter and moments, all f32.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
#[repr(C)]
pub(crate) struct Element {
    pub(crate) p: f32,
    pub(crate) m: f32,
    pub(crate) v: f32,
    pub(crate) vmax: f32,
}
