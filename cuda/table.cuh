// What crosses from the host to the device. Twin: src/table.rs (same fields, same order; src/twins.rs).
#pragma once

typedef unsigned char u8;
typedef unsigned short u16;
typedef unsigned int u32;
typedef unsigned long long u64;
typedef float f32;
typedef double f64;

#if defined(__CUDACC__) || defined(__CUDACC_RTC__)
#define DEVICE __device__ __forceinline__
#else  // the host's C++ compiler, for the tests: -ffp-contract=off
#define DEVICE inline
#endif

// Dtype of a parameter or a gradient.
// twin: dtypes {
constexpr u8 F32 = 0;
constexpr u8 F16 = 1;
constexpr u8 BF16 = 2;
// } twin

// TensorRow::flags and SumRow::flags.
// twin: row flags {
constexpr u8 PARAM_ALIGNED = 1;
constexpr u8 GRAD_ALIGNED = 2;
constexpr u8 HAS_GRAD = 8;
constexpr u8 FIRST = 16;
// } twin

// Whose gradients are the first since a step.
// twin: firsts {
constexpr u32 NONE_FIRST = 0;
constexpr u32 ALL_FIRST = 1;
constexpr u32 ROWS_FIRST = 2;
// } twin

// Hyper::flags and StepScalars::flags.
// twin: step flags {
constexpr u32 L2 = 1;
constexpr u32 MAXIMIZE = 2;
constexpr u32 AMSGRAD = 4;
constexpr u32 SMALL_BETA1 = 8;
constexpr u32 SMALL_BETA2 = 16;
constexpr u32 SKIP = 32;
// } twin

// ControlParams::flags.
// twin: control flags {
constexpr u32 CLIP_NORM = 1;
constexpr u32 SKIP_STEP = 2;
constexpr u32 SKIP_TENSOR = 4;
constexpr u32 NORM = 8;
// } twin

// The words of an ExactSum: limbs, and counts of what is not finite.
// twin: exact words {
constexpr u32 LIMBS = 10;
constexpr u32 INFINITE_SUMS = 10;
constexpr u32 NAN_SUMS = 11;
constexpr u32 EXACT_WORDS = 12;
// } twin

// Words of a NormPart, and parts that chunks take turns at.
// twin: norm words {
constexpr u32 NORM_WORDS = 16;
constexpr u32 NORM_PARTS = 64;
// } twin

// AlarmParams::flags.
// twin: alarm flags {
constexpr u32 ALARM = 1;
constexpr u32 SKIP_ALARM = 2;
// } twin

// FullParams::flags.
// twin: full flags {
constexpr u32 METRICS = 1;
constexpr u32 ZERO_GRAD = 2;
// } twin

// TensorSums::flags.
// twin: sums flags {
constexpr u32 MEASURED = 1;
constexpr u32 STEPPED = 2;
// } twin

// ScheduleParams::kind.
// twin: schedule kinds {
constexpr u32 CONSTANT = 0;
constexpr u32 COSINE = 1;
constexpr u32 LINEAR = 2;
constexpr u32 INVERSE_SQRT = 3;
constexpr u32 LISTED = 4;
// } twin

struct TensorRow {
    u64 param;
    u64 grad;
    u64 m;
    u64 v;
    u64 vmax;
    u64 master;
    u32 scalars;
    u8 param_dtype;
    u8 grad_dtype;
    u8 head;
    u8 flags;
};
static_assert(sizeof(TensorRow) == 56, "src/table.rs");

struct Chunk {
    u64 start;
    u32 tensor;
    u32 len;
};
static_assert(sizeof(Chunk) == 16, "src/table.rs");

struct Hyper {
    f64 lr;
    f64 beta1;
    f64 beta2;
    f64 eps;
    f64 weight_decay;
    u32 flags;
};
static_assert(sizeof(Hyper) == 48, "src/table.rs");

struct StepScalars {
    f32 grad_scale;
    f32 weight_decay;
    f32 lerp1;
    f32 lerp2;
    f32 inv_sqrt_bias_correction2;
    f32 eps;
    f32 decay;
    f32 step_size;
    u32 flags;
};
static_assert(sizeof(StepScalars) == 36, "src/table.rs");

// As many as fit beside three pointers in the 4 KB of arguments that every driver takes.
constexpr u32 INLINE_SCALARS = 112;

struct InlineScalars {
    StepScalars at[INLINE_SCALARS];
};
static_assert(sizeof(InlineScalars) + 3 * 8 <= 4096, "src/table.rs");

struct ScheduleParams {
    u64 warmup;
    u64 start;
    u64 end;
    f64 floor;
    u64 list;
    u64 list_len;
    u32 kind;
};
static_assert(sizeof(ScheduleParams) == 56, "src/table.rs");

struct AlarmParams {
    f64 sigmas;
    u64 steps;
    u32 flags;
};
static_assert(sizeof(AlarmParams) == 24, "src/table.rs");

struct ControlParams {
    ScheduleParams schedule;
    f64 max_grad_norm;
    f64 growth_factor;
    f64 backoff_factor;
    u64 growth_interval;
    u64 max_skipped;
    AlarmParams norm_alarm;
    AlarmParams rms_alarm;
    f32 min_loss_scale;
    u32 flags;
};
static_assert(sizeof(ControlParams) == 152, "src/table.rs");

struct AlarmState {
    f64 mean;
    f64 variance;
    u64 count;
    u64 alarms;
    u64 raised;
};
static_assert(sizeof(AlarmState) == 40, "src/table.rs");

struct Overrun {
    u64 count;
    u64 skipped_running;
    u64 non_finite;
    f64 grad_norm;
};
static_assert(sizeof(Overrun) == 32, "src/table.rs");

struct ControlState {
    u64 applied;
    u64 skipped;
    u64 skipped_running;
    u64 growth_tracker;
    f64 grad_norm;
    f64 grad_scale;
    f64 lr_factor;
    u64 non_finite;
    f64 unscale;
    f64 rms;
    AlarmState norm_alarm;
    AlarmState rms_alarm;
    Overrun overrun;
    f32 loss_scale;
    u32 skip;
    u32 rms_tensor;
    u32 left_out;
    u32 has_norm;
    u32 padding;
};
static_assert(sizeof(ControlState) == 216, "src/table.rs");

struct Class {
    u32 group;
    u32 has_grad;
};
static_assert(sizeof(Class) == 8, "src/table.rs");

struct Counter {
    u64 now;
    u64 before;
};
static_assert(sizeof(Counter) == 16, "src/table.rs");

struct SumRow {
    u64 grad;
    u64 sum;
    u8 grad_dtype;
    u8 flags;
    u16 unused1;
    u32 unused2;
};
static_assert(sizeof(SumRow) == 24, "src/table.rs");

// One tensor's parameter and the master that is to be read from it.
struct MasterRow {
    u64 param;
    u64 master;
    u8 param_dtype;
    u8 unused1;
    u16 unused2;
    u32 unused3;
};
static_assert(sizeof(MasterRow) == 24, "src/table.rs");

// Of one chunk of gradients.
struct Squares {
    f32 sum;
    u32 non_finite;
};
static_assert(sizeof(Squares) == 8, "src/table.rs");

struct Gradients {
    f64 squares;
    u64 non_finite;
    u64 bad;
    u64 good;
};
static_assert(sizeof(Gradients) == 32, "src/table.rs");

// A sum over several chunks; the first words are those of ExactSum.
struct NormPart {
    u64 words[NORM_WORDS];
};
static_assert(sizeof(NormPart) == 128, "src/table.rs");

struct FinalizeTables {
    u64 params;
    u64 state;
    u64 parts;
    u64 hypers;
    u64 classes;
    u64 counters;
    u64 scalars;
    u64 grad_scalar;
    u64 record;
    u64 lens;
    f64 grad_scale;
    u32 part_count;
    u32 class_count;
    u32 tensor_count;
    u32 undo;
};
static_assert(sizeof(FinalizeTables) == 104, "src/table.rs");

struct FullParams {
    f32 max_grad_value;
    u32 flags;
};
static_assert(sizeof(FullParams) == 8, "src/table.rs");

// Of one element, or of the elements of one chunk.
struct Sums {
    f32 grad;
    f32 param;
    f32 update;
    f32 ratio;
    u32 max_update;
    u32 non_finite;
    u32 unmoved;
    u32 below_eps;
};
static_assert(sizeof(Sums) == 32, "src/table.rs");

// Of one tensor.
struct TensorSums {
    f64 grad;
    f64 param;
    f64 update;
    f64 ratio;
    u64 non_finite;
    u64 unmoved;
    u64 below_eps;
    u32 max_update;
    u32 flags;
};
static_assert(sizeof(TensorSums) == 64, "src/table.rs");

// Of all tensors the one with the largest RMS_t.
struct Peak {
    f64 square;
    u32 tensor;
};
static_assert(sizeof(Peak) == 16, "src/table.rs");

struct CollectTables {
    u64 rows;
    u64 scalars;
    u64 sums;
    u64 firsts;
    u64 state;
    u64 record;
};
static_assert(sizeof(CollectTables) == 48, "src/table.rs");

// One element as `update` sees it: parameter and moments, all f32.
struct Element {
    f32 p;
    f32 m;
    f32 v;
    f32 vmax;
};
