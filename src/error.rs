//! One variant per cause. On an error nothing has changed: no parameter, no moment, no step count.

use crate::{Dtype, Simd};
use std::sync::Arc;
use words::{are, group_index, short, skipped, tensor_count};

pub use subject::{Buffer, Span, TensorId};
pub(crate) use words::number_of;

mod subject;
mod words;

/// The crate's result.
pub type Result<T, E = Error> = std::result::Result<T, E>;

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
    #[error("group {group}: {field} is {}, must be in {range}", short(*value))]
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
    #[error("control: {field} is {}, must be in {range}", short(*value))]
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
        "control: max_skipped needs something that skips: set `non_finite: NonFinite::SkipStep`, or an alarm with `skip: true`"
    )]
    MaxSkippedWithoutSkip,
    /// A schedule that lists no factor.
    #[error("schedule: `Decay::List` is empty, it takes one factor at least")]
    EmptyList,
    /// A loss scale where nothing looks for gradients that are not finite: it could not adapt.
    #[error(
        "control: a loss scale adapts by the steps that are skipped, and none are: set `non_finite: NonFinite::SkipStep`"
    )]
    LossScaleWithoutSkip,
    /// Steps have been skipped because gradients were not finite: more of them one after the other than allowed, or any
    /// with [`NonFinite::Error`](crate::NonFinite::Error).
    #[error("{}, the norm {grad_norm}", skipped(*skipped_running, *limit, *non_finite))]
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
    #[error(
        "{tensor}: `zero_grad` writes its gradient, which was given as `&`: give it as `&mut`, or set `zero_grad: false`"
    )]
    SharedGrad {
        /// Whose.
        tensor: TensorId,
    },
    /// The factor of [`AdamW::scale_lr`](crate::AdamW::scale_lr) out of its range, or NaN.
    #[error("the factor of the learning rates is {}, must be in [0, inf)", short(*value))]
    LrFactor {
        /// What it was given.
        value: f64,
    },
    /// `grad_scale` out of its range, or NaN.
    #[error("grad_scale is {}, must be in [0, inf), as f32", short(*value))]
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
    /// An empty list of parameter groups.
    #[error("no parameter groups given: every tensor is in one, the first by default")]
    NoGroups,
    /// Two tensors registered by one name.
    #[error("tensors {first} and {second} are both named {name}: give each a name of its own, or none")]
    DuplicateName {
        /// Their name.
        name: Arc<str>,
        /// Index of the one that was named first.
        first: usize,
        /// Index of the other.
        second: usize,
    },
    /// A tensor's group, or a group to change, that does not exist.
    #[error("{}", group_index(tensor.as_ref(), *group, *groups as u64))]
    GroupIndex {
        /// The tensor that names the group, if one does.
        tensor: Option<TensorId>,
        /// The group asked for.
        group: usize,
        /// How many there are.
        groups: usize,
    },
    /// A tensor index that does not exist.
    #[error("tensor {index} is out of range, {} {} registered", number_of(*count as u64, "tensor"), are(*count as u64))]
    TensorIndex {
        /// The tensor asked for.
        index: usize,
        /// How many there are.
        count: usize,
    },
    /// A tensor name that does not exist.
    #[error("no tensor is named {name}: TensorSpec::named names them")]
    TensorName {
        /// The name asked for.
        name: String,
    },
    /// A step with another number of tensors than registered.
    #[error("{}", tensor_count(*expected as u64, *actual as u64, tensor.as_ref()))]
    TensorCount {
        /// Registered.
        expected: usize,
        /// Given. `expected + 1` stands for every larger number: the rest of the list is not asked for.
        actual: usize,
        /// With too few tensors the first that none was given for, with too many the last that is registered. `None` if
        /// none is registered.
        tensor: Option<TensorId>,
    },
    /// More elements than the optimizer can hold.
    #[error("{tensor}: {} up to and with this tensor, at most {limit} are possible", number_of(*elements, "element"))]
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
        /// Given, or at least as many: so many the iterator promised, or it was asked for no more.
        count: usize,
        /// The limit.
        limit: usize,
    },
    /// A buffer of another length than registered.
    #[error(
        "{tensor}: the {buffer} has {}, {expected} {} registered",
        number_of(*actual as u64, "element"),
        are(*expected as u64)
    )]
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
    #[error("{tensor}: the {buffer} lies in {actual}, the optimizer in {expected}: {remedy}")]
    WrongDevice {
        /// Whose.
        tensor: TensorId,
        /// Which.
        buffer: Buffer,
        /// Where the optimizer is.
        expected: String,
        /// Where the buffer is.
        actual: String,
        /// How the two come together.
        remedy: &'static str,
    },
    /// Two parameters, or a parameter and a gradient, that share bytes; or with
    /// [`Control::zero_grad`](crate::Control::zero_grad) two gradients.
    #[error("{first} overlaps {second}: {}", words::apart(first, second))]
    Overlap {
        /// Of two that are written, the one that lies first; else the parameter.
        first: Box<Span>,
        /// The other.
        second: Box<Span>,
    },
    /// A null address for a tensor that has elements.
    #[error("{tensor}: the {buffer} of {} is at address 0", number_of(*len as u64, "element"))]
    NullPointer {
        /// Whose.
        tensor: TensorId,
        /// Which.
        buffer: Buffer,
        /// Elements.
        len: usize,
    },
    /// An address that is not a multiple of the size of its dtype.
    #[error("{tensor}: the {buffer} at {address:#x} is not on a boundary of {alignment} bytes")]
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
    /// An address so high that the buffer would pass the last byte there can be.
    #[error("{tensor}: the {buffer} at {address:#x} of {bytes} bytes passes the end of the address space")]
    PastTheEnd {
        /// Whose.
        tensor: TensorId,
        /// Which.
        buffer: Buffer,
        /// Where.
        address: u64,
        /// Size of the buffer in bytes.
        bytes: u64,
    },
    /// The host or the GPU has not as much memory.
    #[error("out of memory: {} of {}", number_of(*bytes, "byte"), words::memory(*gpu))]
    OutOfMemory {
        /// Asked for.
        bytes: u64,
        /// The GPU that lacks it; `None`: the host does.
        gpu: Option<usize>,
        /// The driver's reason, where it was asked.
        #[cfg(feature = "cuda")]
        source: Option<cudarc::driver::DriverError>,
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
    /// A driver library without a function that this crate calls: too old, or a stub.
    #[cfg(feature = "cuda")]
    #[error("the NVIDIA driver {library} has no function {function}: it takes a driver for CUDA 12.0 or newer")]
    OldDriver {
        /// The library that was loaded.
        library: &'static str,
        /// The first function that was missed.
        function: &'static str,
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
    /// A call that a capture of the stream forbids: it allocates, copies to the device, or waits for the device.
    #[cfg(feature = "cuda")]
    #[error("the stream is being captured, cannot {doing}: {remedy}")]
    Capturing {
        /// The forbidden action.
        doing: &'static str,
        /// The way out.
        remedy: &'static str,
    },
    /// A step in a capture with cudarc's event tracking on, which is active with any stream of one's own.
    #[cfg(feature = "cuda")]
    #[error("capture with cudarc's events: call CudaContext::disable_event_tracking before allocating the tensors")]
    CaptureWithEvents,
    /// A step in a capture without `AdamW::allow_capture`, which promises that the graph's memory stays.
    #[cfg(feature = "cuda")]
    #[error("capture without the promise that the graph's memory stays: call allow_capture before")]
    CaptureNotAllowed,
    /// A step in a capture without a control: the step's numbers would be constants of the graph.
    #[cfg(feature = "cuda")]
    #[error("capture of a step whose numbers are the host's: call set_control before, with the default if need be")]
    CaptureWithoutControl,
    /// A prepared step without [`AdamW::prepare`](crate::AdamW::prepare), or after what ends it: a step with other tensors, a
    /// new control.
    #[error("no step is prepared: prepare first, and again after a step with other tensors or set_control")]
    NotPrepared,
    /// A step, or a preparation of one, while gradients that were added up wait for
    /// [`AdamW::step_accumulated`](crate::AdamW::step_accumulated): they would be added to those of a later batch.
    #[error("{tensor}: gradients have been accumulated: `step_accumulated` uses them, `clear_accumulated` drops them")]
    SumsPending {
        /// The first tensor that has a sum.
        tensor: TensorId,
    },
    /// A step by sums, with no [`AdamW::accumulate`](crate::AdamW::accumulate) since the step by sums before.
    #[error("nothing has been accumulated since the last `step_accumulated`: `accumulate` first, or `step`")]
    NoSums,
    /// Metrics, without a control that measures.
    #[error("nothing is measured: set `metrics: true` or an `rms_alarm` by `set_control`")]
    NoMetrics,
    /// What takes a control, without one.
    #[error("there is no control: set_control first")]
    NoControl,
    /// A multiplier of the gradients that lies on another device, or in another CUDA context of the same device.
    #[cfg(feature = "cuda")]
    #[error(
        "the multiplier of the gradients lies in {actual}, the optimizer in {expected}: allocate it on `device.stream()`"
    )]
    ScalarDevice {
        /// Where the optimizer is.
        expected: String,
        /// Where the multiplier is.
        actual: String,
    },
    /// A multiplier of the gradients that is not one number.
    #[cfg(feature = "cuda")]
    #[error("the multiplier of the gradients has {}, must have 1", number_of(*actual as u64, "element"))]
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
