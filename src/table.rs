//! What crosses from the host to the device: plain structs. Twin: `cuda/table.cuh`.
//!
//! The CPU backend reads the same tables, so that both devices run from the same description of a step.

pub(crate) use crate::flags::*;

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
    /// f32 master of a 16-bit parameter, from which it is read; 0: the parameter is f32 itself, or has no gradient.
    pub(crate) master: u64,
    /// Index into the step's [`StepScalars`].
    pub(crate) scalars: u32,
    /// One of [`dtypes`].
    pub(crate) param_dtype: u8,
    /// One of [`dtypes`].
    pub(crate) grad_dtype: u8,
    /// Elements before the first that lies on a 32-byte boundary of the state, 0 to 7.
    pub(crate) head: u8,
    /// Bits of [`row_flags`]: parameter and gradient lie on a 16-byte boundary at `head`; there is a gradient (else the tensor
    /// is left alone).
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

/// The learning rate's factor as a function of the applied steps: [`crate::decide::schedule_factor`].
#[derive(Clone, Copy, Debug, Default, PartialEq)]
#[repr(C)]
pub(crate) struct ScheduleParams {
    /// Steps of the linear rise at the beginning.
    pub(crate) warmup: u64,
    /// The step at which the decay begins.
    pub(crate) start: u64,
    /// The step at which it ends; later than `start`.
    pub(crate) end: u64,
    /// The factor from `end` on.
    pub(crate) floor: f64,
    /// Address of the `LISTED` factors, f64.
    pub(crate) list: u64,
    /// How many they are; the last stays.
    pub(crate) list_len: u64,
    /// One of [`schedule_kinds`].
    pub(crate) kind: u32,
}
const _: () = assert!(size_of::<ScheduleParams>() == 56);

/// What the user has set of an alarm.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
#[repr(C)]
pub(crate) struct AlarmParams {
    /// How many standard deviations a value may lie above the mean.
    pub(crate) sigmas: f64,
    /// The values of which mean and deviation are.
    pub(crate) steps: u64,
    /// Of [`alarm_flags`]; 0: no alarm.
    pub(crate) flags: u32,
}
const _: () = assert!(size_of::<AlarmParams>() == 24);

/// What the user has set of a controlled step.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
#[repr(C)]
pub(crate) struct ControlParams {
    pub(crate) schedule: ScheduleParams,
    /// With `CLIP_NORM`, the largest norm of all gradients together.
    pub(crate) max_grad_norm: f64,
    /// Of the loss scale after `growth_interval` finite steps running.
    pub(crate) growth_factor: f64,
    /// Of the loss scale after a step that was not finite.
    pub(crate) backoff_factor: f64,
    pub(crate) growth_interval: u64,
    /// More steps skipped one after the other are counted in [`ControlState::overrun`].
    pub(crate) max_skipped: u64,
    /// Of the gradients' norm.
    pub(crate) norm_alarm: AlarmParams,
    /// Of the largest RMS_t of a tensor.
    pub(crate) rms_alarm: AlarmParams,
    /// The loss scale does not fall below.
    pub(crate) min_loss_scale: f32,
    /// Of [`control_flags`].
    pub(crate) flags: u32,
}
const _: () = assert!(size_of::<ControlParams>() == 152);

/// What an alarm has come to.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
#[repr(C)]
pub(crate) struct AlarmState {
    /// Running mean of the values, and their variance.
    pub(crate) mean: f64,
    pub(crate) variance: f64,
    /// How many values these are of, `steps` at most.
    pub(crate) count: u64,
    /// Alarms, in all.
    pub(crate) alarms: u64,
    /// Whether the last step's value was one.
    pub(crate) raised: u64,
}
const _: () = assert!(size_of::<AlarmState>() == 40);

/// Steps skipped beyond `max_skipped`: kept until the host asks.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
#[repr(C)]
pub(crate) struct Overrun {
    /// Such steps, in all.
    pub(crate) count: u64,
    /// `skipped_running`, `non_finite` and `grad_norm` of the newest of them.
    pub(crate) skipped_running: u64,
    pub(crate) non_finite: u64,
    pub(crate) grad_norm: f64,
}
const _: () = assert!(size_of::<Overrun>() == 32);

/// What a controlled optimizer knows of itself: on its device, where each step changes it.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
#[repr(C)]
pub(crate) struct ControlState {
    /// Steps applied: what the schedule counts.
    pub(crate) applied: u64,
    /// Steps skipped, in all.
    pub(crate) skipped: u64,
    /// Steps skipped since the last one that was applied.
    pub(crate) skipped_running: u64,
    /// Finite steps since the loss scale changed.
    pub(crate) growth_tracker: u64,
    /// Norm of the last step's gradients, unscaled, before clipping.
    pub(crate) grad_norm: f64,
    /// What the last step multiplied its gradients by.
    pub(crate) grad_scale: f64,
    /// The learning rate's factor of the last step.
    pub(crate) lr_factor: f64,
    /// Gradients of the last step that were NaN or infinite.
    pub(crate) non_finite: u64,
    /// Of `grad_scale`, what is not clipping.
    pub(crate) unscale: f64,
    /// The largest RMS_t of a tensor in the step before the last; 0 if it is not watched, or there is none.
    pub(crate) rms: f64,
    pub(crate) norm_alarm: AlarmState,
    pub(crate) rms_alarm: AlarmState,
    pub(crate) overrun: Overrun,
    /// Of the next step.
    pub(crate) loss_scale: f32,
    /// Whether the last step was skipped.
    pub(crate) skip: u32,
    /// The tensor that `rms` is of.
    pub(crate) rms_tensor: u32,
    /// 1 if the last step left tensors out: [`control_flags::SKIP_TENSOR`].
    pub(crate) left_out: u32,
    /// 1 if `grad_norm` and `non_finite` were computed in the last step.
    pub(crate) has_norm: u32,
    pub(crate) padding: u32,
}
const _: () = assert!(size_of::<ControlState>() == 216);

/// Tensors of one group that have had their gradients in the same steps so far, and so have one step count.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[repr(C)]
pub(crate) struct Class {
    /// Index of the group.
    pub(crate) group: u32,
    /// Whether they have gradients in this step.
    pub(crate) has_grad: u32,
}
const _: () = assert!(size_of::<Class>() == 8);

/// The step count of a class.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub(crate) struct Counter {
    pub(crate) now: u64,
    /// Before the last step.
    pub(crate) before: u64,
}
const _: () = assert!(size_of::<Counter>() == 16);

/// One tensor's gradient and the sum that it is added to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub(crate) struct SumRow {
    pub(crate) grad: u64,
    /// f32, on a 16-byte boundary.
    pub(crate) sum: u64,
    /// One of [`dtypes`].
    pub(crate) grad_dtype: u8,
    /// Of [`row_flags`]: there is a gradient; it is the first since a step.
    pub(crate) flags: u8,
    pub(crate) unused1: u16,
    pub(crate) unused2: u32,
}
const _: () = assert!(size_of::<SumRow>() == 24);

/// One tensor's parameter and the master that is to be read from it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub(crate) struct MasterRow {
    /// 16-bit.
    pub(crate) param: u64,
    /// f32; 0: none is to be read.
    pub(crate) master: u64,
    /// One of [`dtypes`].
    pub(crate) param_dtype: u8,
    pub(crate) unused1: u8,
    pub(crate) unused2: u16,
    pub(crate) unused3: u32,
}
const _: () = assert!(size_of::<MasterRow>() == 24);

/// Of one chunk of gradients, as they lie in memory.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
#[repr(C)]
pub(crate) struct Squares {
    /// Of the squares, in the order of [`crate::norm`].
    pub(crate) sum: f32,
    /// How many are NaN or infinite.
    pub(crate) non_finite: u32,
}
const _: () = assert!(size_of::<Squares>() == 8);

/// Totals over the gradients of a step, as they lie in memory.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
#[repr(C)]
pub(crate) struct Gradients {
    /// The sum of their squares; without the tensors that are left out.
    pub(crate) squares: f64,
    /// How many are NaN or infinite.
    pub(crate) non_finite: u64,
    /// Not 0 if some chunk is bad: [`crate::decide::is_bad_sum`].
    pub(crate) bad: u64,
    /// Not 0 if some chunk with a gradient is in no tensor that is left out.
    pub(crate) good: u64,
}
const _: () = assert!(size_of::<Gradients>() == 32);

/// The sums of squares of several chunks on a GPU, in 64-bit words: the first 12 are those of
/// [`crate::exact_sum::ExactSum`], the others stand in `cuda/norm.cuh`.
#[cfg(feature = "cuda")]
#[derive(Clone, Copy, Debug, Default)]
#[repr(C)]
pub(crate) struct NormPart {
    pub(crate) words: [u64; norm_words::NORM_WORDS as usize],
}

/// The argument of the kernel `finalize`: addresses of tables, and their lengths.
#[cfg(feature = "cuda")]
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub(crate) struct FinalizeTables {
    /// One [`ControlParams`].
    pub(crate) params: u64,
    /// Two [`ControlState`]s: after and before the last step.
    pub(crate) state: u64,
    /// The [`NormPart`]s: with `SKIP_TENSOR` one of each tensor, which is then a class of its own.
    pub(crate) parts: u64,
    /// A [`Hyper`] of each group.
    pub(crate) hypers: u64,
    /// The [`Class`]es.
    pub(crate) classes: u64,
    /// A [`Counter`] of each class.
    pub(crate) counters: u64,
    /// The [`StepScalars`] of each class.
    pub(crate) scalars: u64,
    /// 0, or the address of an f32 by which gradients are multiplied as well.
    pub(crate) grad_scalar: u64,
    /// A [`ControlState`] and behind it the [`TensorSums`] of each tensor, as [`CollectTables`] says; read if there are
    /// lengths.
    pub(crate) record: u64,
    /// 0, or the length of each tensor, u64: the largest RMS_t is asked for.
    pub(crate) lens: u64,
    /// The host's multiplier of this step.
    pub(crate) grad_scale: f64,
    /// 0: no norm is asked for.
    pub(crate) part_count: u32,
    pub(crate) class_count: u32,
    pub(crate) tensor_count: u32,
    /// Whether the last decision is to be taken back first: its update was never launched.
    pub(crate) undo: u32,
}
#[cfg(feature = "cuda")]
const _: () = assert!(size_of::<FinalizeTables>() == 104);

/// What the kernel `adamw_full` does beside the update.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
#[repr(C)]
pub(crate) struct FullParams {
    /// The largest absolute value of a gradient; infinite: any.
    pub(crate) max_grad_value: f32,
    /// Of [`full_flags`].
    pub(crate) flags: u32,
}
const _: () = assert!(size_of::<FullParams>() == 8);

/// What is measured of one element, or of the elements of one chunk.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
#[repr(C)]
pub(crate) struct Sums {
    /// Squares of the gradients, as they lie in memory.
    pub(crate) grad: f32,
    /// Squares of the parameters, after the step.
    pub(crate) param: f32,
    /// Squares of what the step added to them.
    pub(crate) update: f32,
    /// Squares of the gradients, as used, over the root of their second moment.
    pub(crate) ratio: f32,
    /// The largest absolute value that was added, as bits.
    pub(crate) max_update: u32,
    /// Gradients that are NaN or infinite.
    pub(crate) non_finite: u32,
    /// Parameters that are stored as before although they were to move.
    pub(crate) unmoved: u32,
    /// Roots of the second moment below eps.
    pub(crate) below_eps: u32,
}
const _: () = assert!(size_of::<Sums>() == 32);

/// [`Sums`] of a tensor.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
#[repr(C)]
pub(crate) struct TensorSums {
    pub(crate) grad: f64,
    pub(crate) param: f64,
    pub(crate) update: f64,
    pub(crate) ratio: f64,
    pub(crate) non_finite: u64,
    pub(crate) unmoved: u64,
    pub(crate) below_eps: u64,
    pub(crate) max_update: u32,
    /// Of [`sums_flags`].
    pub(crate) flags: u32,
}
const _: () = assert!(size_of::<TensorSums>() == 64);

/// Of all tensors the one with the largest RMS_t.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
#[repr(C)]
pub(crate) struct Peak {
    /// Its square; negative: no tensor has any.
    pub(crate) square: f64,
    pub(crate) tensor: u32,
}
const _: () = assert!(size_of::<Peak>() == 16);

/// The argument of the kernel `collect`: addresses of tables.
#[cfg(feature = "cuda")]
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub(crate) struct CollectTables {
    /// The [`TensorRow`]s.
    pub(crate) rows: u64,
    /// The [`StepScalars`] that they index.
    pub(crate) scalars: u64,
    /// A [`Sums`] of each chunk.
    pub(crate) sums: u64,
    /// Of each tensor the index of its first chunk, and behind them the number of chunks; u32.
    pub(crate) firsts: u64,
    /// The [`ControlState`].
    pub(crate) state: u64,
    /// Where a [`ControlState`] is to lie and behind it the [`TensorSums`] of each tensor.
    pub(crate) record: u64,
}
#[cfg(feature = "cuda")]
const _: () = assert!(size_of::<CollectTables>() == 48);

/// One element as [`crate::update::update`] sees it: parameter and moments, all f32.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
#[repr(C)]
pub(crate) struct Element {
    pub(crate) p: f32,
    pub(crate) m: f32,
    pub(crate) v: f32,
    pub(crate) vmax: f32,
}
