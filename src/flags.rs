//! The constants in the tables of `table.rs`, by the field that they stand in. Twin: `cuda/table.cuh`.

#[cfg(doc)]
use crate::table::{
    AlarmParams, ControlParams, FullParams, Hyper, ScheduleParams, StepScalars, SumRow, TensorRow, TensorSums,
};

/// [`TensorRow::param_dtype`] and [`TensorRow::grad_dtype`].
pub(crate) mod dtypes {
    // twin: dtypes {
    pub(crate) const F32: u8 = 0;
    pub(crate) const F16: u8 = 1;
    pub(crate) const BF16: u8 = 2;
    // } twin
}

/// [`TensorRow::flags`] and [`SumRow::flags`].
pub(crate) mod row_flags {
    // twin: row flags {
    pub(crate) const PARAM_ALIGNED: u8 = 1;
    pub(crate) const GRAD_ALIGNED: u8 = 2;
    pub(crate) const HAS_GRAD: u8 = 8;
    pub(crate) const FIRST: u8 = 16;
    // } twin
}

/// Whose gradients are the first since a step: nobody's, everybody's, or as [`SumRow::flags`] say.
pub(crate) mod firsts {
    // twin: firsts {
    pub(crate) const NONE_FIRST: u32 = 0;
    pub(crate) const ALL_FIRST: u32 = 1;
    pub(crate) const ROWS_FIRST: u32 = 2;
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
    pub(crate) const SKIP: u32 = 32;
    // } twin
}

/// [`ControlParams::flags`].
pub(crate) mod control_flags {
    // twin: control flags {
    pub(crate) const CLIP_NORM: u32 = 1;
    pub(crate) const SKIP_STEP: u32 = 2;
    pub(crate) const SKIP_TENSOR: u32 = 4;
    pub(crate) const NORM: u32 = 8;
    // } twin
}

/// The words of an [`ExactSum`](crate::exact_sum::ExactSum): limbs, and counts of addends that are not finite.
pub(crate) mod exact_words {
    // twin: exact words {
    pub(crate) const LIMBS: u32 = 10;
    pub(crate) const INFINITE_SUMS: u32 = 10;
    pub(crate) const NAN_SUMS: u32 = 11;
    pub(crate) const EXACT_WORDS: u32 = 12;
    // } twin
}

/// The words of a [`NormPart`](crate::table::NormPart), and how many parts the chunks take turns at without `SKIP_TENSOR`.
#[cfg(feature = "cuda")]
pub(crate) mod norm_words {
    // twin: norm words {
    pub(crate) const NORM_WORDS: u32 = 16;
    pub(crate) const NORM_PARTS: u32 = 64;
    // } twin
}

/// [`AlarmParams::flags`].
pub(crate) mod alarm_flags {
    // twin: alarm flags {
    pub(crate) const ALARM: u32 = 1;
    pub(crate) const SKIP_ALARM: u32 = 2;
    // } twin
}

/// [`FullParams::flags`].
pub(crate) mod full_flags {
    // twin: full flags {
    pub(crate) const METRICS: u32 = 1;
    pub(crate) const ZERO_GRAD: u32 = 2;
    // } twin
}

/// [`TensorSums::flags`].
pub(crate) mod sums_flags {
    // twin: sums flags {
    pub(crate) const MEASURED: u32 = 1;
    pub(crate) const STEPPED: u32 = 2;
    // } twin
}

/// [`ScheduleParams::kind`].
pub(crate) mod schedule_kinds {
    // twin: schedule kinds {
    pub(crate) const CONSTANT: u32 = 0;
    pub(crate) const COSINE: u32 = 1;
    pub(crate) const LINEAR: u32 = 2;
    pub(crate) const INVERSE_SQRT: u32 = 3;
    pub(crate) const LISTED: u32 = 4;
    // } twin
}
