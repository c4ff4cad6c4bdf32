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

// TensorRow::flags.
// twin: row flags {
constexpr u8 PARAM_ALIGNED = 1;
constexpr u8 GRAD_ALIGNED = 2;
constexpr u8 INIT_MASTER = 4;
constexpr u8 HAS_GRAD = 8;
// } twin

// Hyper::flags and StepScalars::flags.
// twin: step flags {
constexpr u32 L2 = 1;
constexpr u32 MAXIMIZE = 2;
constexpr u32 AMSGRAD = 4;
constexpr u32 SMALL_BETA1 = 8;
constexpr u32 SMALL_BETA2 = 16;
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

// One element as `update` sees it: parameter and moments, all f32.
struct Element {
    f32 p;
    f32 m;
    f32 v;
    f32 vmax;
};
