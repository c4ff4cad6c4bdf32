//! One variant per cause. On an error nothing has changed: no parameter, no moment, no step count.

use crate::{Dtype, Simd};
use std::fmt;
use std::sync::Arc;

/// The crate's result.
pub type Result<T, E = Error> = std::result::Result<T, E>;

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

/// A buffer of one tensor in memory, in bytes: half of an [`Error::Overlap`].
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

/// Why a call did nothing.
///
/// On an error nothing has changed: no parameter, no moment, no step count (`NotRecorded` is the exception, and says
/// so). A driver's own error is the [`source`](std::error::Error::source), never repeated in the text.
///
/// ```
/// use fused_adamw::{AdamW, AdamWConfig, Device, Error};
/// let config = AdamWConfig { lr: f64::NAN, ..Default::default() };
/// let error = AdamW::new(&Device::cpu(), config, [1]).unwrap_err();
/// assert!(matches!(error, Error::Config { field: "lr", group: 0, .. }));
/// ```
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A hyper-parameter out of its range, or NaN.
    #[error("group {group}: {field} is {value}, must be in {range}")]
    Config {
        /// Index of the parameter group.
        group: usize,
        /// Name of the field.
        field: &'static str,
        /// What it was given.
        value: f64,
        /// What it may be.
        range: &'static str,
    },
    /// A field of [`Control`](crate::Control) out of its range, or NaN.
    #[error("control: {field} is {value}, must be in {range}")]
    Control {
        /// Name of the field.
        field: &'static str,
        /// What it was given.
        value: f64,
        /// What it may be.
        range: &'static str,
    },
    /// A schedule whose decay ends before it begins.
    #[error("schedule: the decay starts at step {start} and ends at step {end}, must end later")]
    Schedule {
        /// Its start: given, or the end of the rise.
        start: u64,
        /// Its end.
        end: u64,
    },
    /// A linear decay that would start before the rise has ended: the two would be multiplied.
    #[error(
        "schedule: the decay starts at step {start}, inside the warmup of {warmup} steps: start it at {warmup} or later"
    )]
    DecayInWarmup {
        /// The decay's start.
        start: u64,
        /// The end of the rise.
        warmup: u64,
    },
    /// A limit of skipped steps where no step can be skipped.
    #[error(
        "control: max_skipped needs something that skips: set non_finite: NonFinite::SkipStep, or an alarm with skip: true"
    )]
    MaxSkippedWithoutSkip,
    /// A loss scale where nothing looks for gradients that are not finite: it could not adapt.
    #[error("control: a loss scale needs non_finite to be another than Propagate")]
    LossScaleWithoutSkip,
    /// Steps have been skipped because gradients were not finite: more of them one after the other than allowed, or any
    /// with [`NonFinite::Error`](crate::NonFinite::Error).
    #[error(
        "{skipped_running} steps skipped one after the other, at most {limit} are allowed: {non_finite} gradients of the last one were NaN or infinite, their norm {grad_norm}"
    )]
    Skipped {
        /// Steps skipped since the last that was applied.
        skipped_running: u64,
        /// How many are allowed.
        limit: u64,
        /// Of the last step.
        non_finite: u64,
        /// Of the last step.
        grad_norm: f64,
    },
    /// A gradient given as `&`, which [`Control::zero_grad`](crate::Control::zero_grad) would write.
    #[error("{tensor}: its gradient is to be written as zeros, but was not given as &mut")]
    SharedGrad {
        /// Whose.
        tensor: TensorId,
    },
    /// `grad_scale` out of its range, or NaN.
    #[error("grad_scale is {value}, must be in [0, inf), as f32")]
    GradScale {
        /// What it was given.
        value: f64,
    },
    /// `amsgrad` cannot change once the state has been allocated.
    #[error("group {group}: amsgrad is {given}, its state was allocated with {allocated}")]
    Amsgrad {
        /// Index of the parameter group.
        group: usize,
        /// What it was given.
        given: bool,
        /// What it has been since the optimizer was made.
        allocated: bool,
    },
    /// A tensor's group, or a group to change, that does not exist.
    #[error("{}group {group} is out of range, there are {groups} groups", tensor.as_ref().map_or(String::new(), |t| format!("{t}: ")))]
    GroupIndex {
        /// The tensor that names the group, if one does.
        tensor: Option<TensorId>,
        /// The group asked for.
        group: usize,
        /// How many there are.
        groups: usize,
    },
    /// A tensor index that does not exist.
    #[error("tensor {index} is out of range, {count} tensors are registered")]
    TensorIndex {
        /// The tensor asked for.
        index: usize,
        /// How many there are.
        count: usize,
    },
    /// A step with another number of tensors than registered.
    #[error("{actual} tensors were given, {expected} are registered")]
    TensorCount {
        /// Registered.
        expected: usize,
        /// Given.
        actual: usize,
    },
    /// More elements than the optimizer can hold.
    #[error("{tensor}: {elements} elements up to and with this tensor, at most {limit} are possible")]
    TooManyElements {
        /// The first tensor that is too much.
        tensor: TensorId,
        /// Elements of all tensors up to and with this one, saturating.
        elements: u64,
        /// The limit.
        limit: u64,
    },
    /// More tensors than a table can index.
    #[error("{count} tensors, at most {limit} are possible")]
    TooManyTensors {
        /// Given.
        count: usize,
        /// The limit.
        limit: usize,
    },
    /// A buffer of another length than registered.
    #[error("{tensor}: the {buffer} has {actual} elements, {expected} are registered")]
    Length {
        /// Whose.
        tensor: TensorId,
        /// Which.
        buffer: Buffer,
        /// Registered.
        expected: usize,
        /// Given.
        actual: usize,
    },
    /// A parameter of another dtype than registered, or than in its first step.
    #[error("{tensor}: the {buffer} is {actual}, it was registered or first stepped as {expected}")]
    Dtype {
        /// Whose.
        tensor: TensorId,
        /// Which.
        buffer: Buffer,
        /// Registered, or that of its first step.
        expected: Dtype,
        /// Given.
        actual: Dtype,
    },
    /// A buffer that lies on another device, or in another CUDA context of the same device.
    #[error("{tensor}: the {buffer} lies in {actual}, the optimizer in {expected}")]
    WrongDevice {
        /// Whose.
        tensor: TensorId,
        /// Which.
        buffer: Buffer,
        /// Where the optimizer is.
        expected: String,
        /// Where the buffer is.
        actual: String,
    },
    /// Two parameters, or a parameter and a gradient, that share bytes; or with
    /// [`Control::zero_grad`](crate::Control::zero_grad) two gradients.
    #[error("{first} overlaps {second}")]
    Overlap {
        /// Of two that are written, the one that lies first; else the parameter.
        first: Box<Span>,
        /// The other.
        second: Box<Span>,
    },
    /// A null address for a tensor that has elements.
    #[error("{tensor}: the {buffer} of {len} elements is at address 0")]
    NullPointer {
        /// Whose.
        tensor: TensorId,
        /// Which.
        buffer: Buffer,
        /// Elements.
        len: usize,
    },
    /// An address that is not a multiple of the size of its dtype, or so high that the buffer wraps.
    #[error(
        "{tensor}: the {buffer} at {address:#x} is not on a boundary of {alignment} bytes, or passes the end of memory"
    )]
    Misaligned {
        /// Whose.
        tensor: TensorId,
        /// Which.
        buffer: Buffer,
        /// Where.
        address: u64,
        /// Size of an element in bytes.
        alignment: u64,
    },
    /// The host has not as much memory.
    #[error("out of memory: {bytes} bytes for the optimizer's state")]
    OutOfMemory {
        /// Asked for.
        bytes: u64,
    },
    /// A SIMD level that this processor lacks.
    #[error("this processor has no {requested}, its best is {best}")]
    Simd {
        /// Asked for.
        requested: Simd,
        /// The best there is.
        best: Simd,
    },
    /// No NVIDIA driver library.
    #[cfg(feature = "cuda")]
    #[error("no NVIDIA driver: {library} cannot be loaded")]
    NoDriver {
        /// The name that was tried last.
        library: &'static str,
        /// The loader's reason.
        source: libloading::Error,
    },
    /// A driver, but no such device.
    #[cfg(feature = "cuda")]
    #[error("no CUDA device {ordinal}")]
    NoDevice {
        /// The device asked for.
        ordinal: usize,
        /// The driver's reason.
        source: cudarc::driver::DriverError,
    },
    /// The driver is older than the kernels: neither the PTX of the build nor the committed PTX loads.
    #[cfg(feature = "cuda")]
    #[error("the driver takes CUDA {driver}, the oldest PTX of this build needs ISA {ptx}")]
    PtxTooNew {
        /// ISA version of the committed PTX.
        ptx: String,
        /// CUDA version of the driver.
        driver: String,
        /// The driver's reason.
        source: cudarc::driver::DriverError,
    },
    /// Memory has to be allocated or a table uploaded while the stream is being captured into a graph.
    #[cfg(feature = "cuda")]
    #[error(
        "the stream is being captured, and there is memory to allocate or to upload: step before with the same tensors"
    )]
    Capturing,
    /// Work while the stream is being captured. What the graph points at must not die or move, which
    /// `AdamW::allow_capture` makes the caller's promise; and its numbers must lie on the device: `AdamW::set_control`.
    #[cfg(feature = "cuda")]
    #[error("the stream is being captured: that takes allow_capture, and set_control")]
    Captured,
    /// A prepared step without [`AdamW::prepare`](crate::AdamW::prepare), or after what ends it: a step with other tensors, a
    /// new control.
    #[error("no step is prepared: prepare first, and again after a step with other tensors or set_control")]
    NotPrepared,
    /// What takes a control, without one.
    #[error("there is no control: set_control first")]
    NoControl,
    /// A multiplier of the gradients that lies on another device, or in another CUDA context of the same device.
    #[cfg(feature = "cuda")]
    #[error("the multiplier of the gradients lies in {actual}, the optimizer in {expected}")]
    ScalarDevice {
        /// Where the optimizer is.
        expected: String,
        /// Where the multiplier is.
        actual: String,
    },
    /// A multiplier of the gradients that is not one number.
    #[cfg(feature = "cuda")]
    #[error("the multiplier of the gradients has {actual} elements, must have 1")]
    ScalarLength {
        /// Given.
        actual: usize,
    },
    /// The exception: the step **was** applied and counted, but its use of the tensors could not be recorded for
    /// other streams. Synchronize before another stream uses them.
    #[cfg(feature = "cuda")]
    #[error("the step was launched, but its use of the tensors could not be recorded for other streams")]
    NotRecorded {
        /// The driver's reason.
        source: cudarc::driver::DriverError,
    },
    /// A call of the driver failed.
    #[cfg(feature = "cuda")]
    #[error("could not {doing}")]
    Driver {
        /// What was being done.
        doing: &'static str,
        /// The driver's reason.
        source: cudarc::driver::DriverError,
    },
}
