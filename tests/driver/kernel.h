// What cuda/*.cu take from CUDA, for the host's C++ compiler: the language, vectors, barriers, warps, atomics and
// intrinsics. A block runs on one CPU thread, its threads are fibers (block.h); of every access to memory that the
// compiler emits for a kernel access.h is told first.
#pragma once
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>

// ---- language ----------------------------------------------------------------------------------------------------

#define __global__ inline __attribute__((always_inline)) // or each thread would copy 4 KB of arguments
#define __device__
#define __host__
#define __constant__ static const
#define __forceinline__ inline __attribute__((always_inline))
#define __launch_bounds__(...)
// One block at a time runs on a CPU thread: what is the thread's is the block's. It is the one storage class that fits
// both forms, `__shared__ T x[N]` in a function and `extern __shared__ T x[]`.
#define __shared__ thread_local
// A name in `extern __shared__ T name[]` has to be listed beside the kernels. All are the same memory.
#define DYNAMIC_SHARED(name) asm(IN_DYNAMIC_SHARED(".balign 128\n.globl " #name "\n" #name ":\n"))
#define IN_DYNAMIC_SHARED(text) ".pushsection .tbss.dynamic,\"awT\",%nobits\n" text ".popsection"

struct uint3 {
    unsigned x, y, z;
};
struct dim3 {
    unsigned x = 1, y = 1, z = 1;
};
extern uint3 threadIdx, blockIdx;
extern dim3 blockDim, gridDim;
constexpr int warpSize = 32;

// ---- what the emulator does for a kernel (block.h, access.h) -----------------------------------------------------

namespace emulated {

// A call in the source, for the reports; as a default argument it is where the caller stands.
struct Line {
    const char* file = nullptr;
    int number = 0;
};
#define HERE emulated::Line line = {__builtin_FILE(), __builtin_LINE()}

// Returns when all threads of the block are here: how many of them brought `true`.
unsigned barrier(bool predicate, Line line);

// Returns when all lanes of `mask` are here: what they brought, by lane. `what` names the operation.
const uint64_t* exchange(const char* what, unsigned mask, uint64_t value, Line line);

// Returns when all lanes of `mask` are here; what they did before is done for all of them.
void sync_warp(unsigned mask, Line line);
unsigned lane();

[[noreturn]] void misaligned(const void* address, size_t bytes);
[[noreturn]] void outside_mask(const char* what, unsigned mask, unsigned source, Line line);
void atomic_access(const void* address, size_t bytes);

// Neither instrumented itself nor inlined into what is.
#define EMULATOR __attribute__((noinline, no_sanitize("thread", "address", "undefined")))

}  // namespace emulated

// ---- vectors -----------------------------------------------------------------------------------------------------

namespace emulated {

// By one access, as on a GPU. Off its boundary it faults there, and often works on a CPU; so every copy asks.
template <class Vector>
__forceinline__ void copy_vector(Vector& to, const Vector& from) {
    typedef uint64_t Whole __attribute__((vector_size(sizeof(Vector)), may_alias));
    const void* addresses[] = {&to, &from};
    for (const void* address : addresses) {
        asm("" : "+r"(address)); // or the compiler would know the answer from the type
        if ((uintptr_t)address % sizeof(Vector)) misaligned(address, sizeof(Vector));
    }
    *(Whole*)&to = *(const Whole*)&from;
}

}  // namespace emulated

#define COPIED_WHOLE(Vector)                                               \
    Vector() = default;                                                    \
    Vector(const Vector& from) { emulated::copy_vector(*this, from); }     \
    Vector& operator=(const Vector& from) {                                \
        emulated::copy_vector(*this, from);                                \
        return *this;                                                      \
    }

#define VECTOR2(Vector, T)               \
    struct alignas(2 * sizeof(T)) Vector { \
        T x, y;                          \
        COPIED_WHOLE(Vector)             \
    };                                   \
    inline Vector make_##Vector(T x, T y) { \
        Vector v;                        \
        v.x = x, v.y = y;                \
        return v;                        \
    }

#define VECTOR4(Vector, T)               \
    struct alignas(4 * sizeof(T)) Vector { \
        T x, y, z, w;                    \
        COPIED_WHOLE(Vector)             \
    };                                   \
    inline Vector make_##Vector(T x, T y, T z, T w) { \
        Vector v;                        \
        v.x = x, v.y = y, v.z = z, v.w = w; \
        return v;                        \
    }

VECTOR2(float2, float)
VECTOR2(uint2, unsigned)
VECTOR2(double2, double)
VECTOR4(float4, float)
VECTOR4(uint4, unsigned)

// ---- barriers and warps ------------------------------------------------------------------------------------------

inline void __syncthreads(HERE) { emulated::barrier(false, line); }
inline int __syncthreads_count(int predicate, HERE) { return (int)emulated::barrier(predicate != 0, line); }
inline int __syncthreads_or(int predicate, HERE) { return emulated::barrier(predicate != 0, line) != 0; }
inline int __syncthreads_and(int predicate, HERE) { return emulated::barrier(predicate == 0, line) == 0; }

constexpr unsigned ALL_LANES = 0xffffffff;

inline void __syncwarp(unsigned mask = ALL_LANES, HERE) { emulated::sync_warp(mask, line); }

namespace emulated {

// What the lane `source` brought; without one, the caller's own.
template <class T>
EMULATOR T shuffle(const char* what, unsigned mask, T value, int source, bool exists, Line line) {
    static_assert(sizeof(T) == 4 || sizeof(T) == 8, "a shuffle moves 4 or 8 bytes");
    uint64_t bits = 0;
    memcpy(&bits, &value, sizeof(T));
    const uint64_t* all = exchange(what, mask, bits, line);
    if (!exists) return value;
    if (!(mask >> source & 1)) outside_mask(what, mask, source, line);
    memcpy(&value, &all[source], sizeof(T));
    return value;
}

inline EMULATOR unsigned ballot(const char* what, unsigned mask, bool predicate, Line line) {
    const uint64_t* all = exchange(what, mask, predicate, line);
    unsigned votes = 0;
    for (unsigned i = 0; i < 32; i++) votes |= mask >> i & all[i] ? 1u << i : 0;
    return votes;
}

// The first lane of the caller's part of the warp, whose parts have `width` lanes.
inline int part(int width) { return (int)lane() & ~(width - 1); }

}  // namespace emulated

template <class T>
T __shfl_sync(unsigned mask, T value, int source, int width = 32, HERE) {
    return emulated::shuffle("__shfl_sync", mask, value, emulated::part(width) + (source & (width - 1)), true, line);
}

template <class T>
T __shfl_up_sync(unsigned mask, T value, unsigned delta, int width = 32, HERE) {
    const int source = (int)emulated::lane() - (int)delta;
    return emulated::shuffle("__shfl_up_sync", mask, value, source, source >= emulated::part(width), line);
}

template <class T>
T __shfl_down_sync(unsigned mask, T value, unsigned delta, int width = 32, HERE) {
    const int source = (int)(emulated::lane() + delta);
    return emulated::shuffle("__shfl_down_sync", mask, value, source, source < emulated::part(width) + width, line);
}

template <class T>
T __shfl_xor_sync(unsigned mask, T value, int lanes, int width = 32, HERE) {
    const int source = (int)emulated::lane() ^ lanes;
    return emulated::shuffle("__shfl_xor_sync", mask, value, source, source < emulated::part(width) + width, line);
}

inline unsigned __ballot_sync(unsigned mask, int predicate, HERE) {
    return emulated::ballot("__ballot_sync", mask, predicate != 0, line);
}
inline int __any_sync(unsigned mask, int predicate, HERE) {
    return emulated::ballot("__any_sync", mask, predicate != 0, line) != 0;
}
inline int __all_sync(unsigned mask, int predicate, HERE) {
    return emulated::ballot("__all_sync", mask, predicate == 0, line) == 0;
}

// ---- atomics: the threads take turns, so each is one in any case -------------------------------------------------

namespace emulated {

template <class T, class Change>
EMULATOR T atomic(T* address, Change change) {
    atomic_access(address, sizeof(T));
    const T old = *address;
    *address = change(old);
    return old;
}

}  // namespace emulated

template <class T> T atomicAdd(T* to, T x) { return emulated::atomic(to, [x](T old) { return old + x; }); }
template <class T> T atomicOr(T* to, T x) { return emulated::atomic(to, [x](T old) { return old | x; }); }
template <class T> T atomicAnd(T* to, T x) { return emulated::atomic(to, [x](T old) { return old & x; }); }
template <class T> T atomicMax(T* to, T x) { return emulated::atomic(to, [x](T old) { return old < x ? x : old; }); }
template <class T> T atomicMin(T* to, T x) { return emulated::atomic(to, [x](T old) { return x < old ? x : old; }); }
template <class T> T atomicExch(T* to, T x) { return emulated::atomic(to, [x](T) { return x; }); }
template <class T> T atomicCAS(T* to, T expected, T x) {
    return emulated::atomic(to, [=](T old) { return old == expected ? x : old; });
}
inline unsigned atomicInc(unsigned* to, unsigned limit) {
    return emulated::atomic(to, [limit](unsigned old) { return old >= limit ? 0 : old + 1; });
}
inline void __threadfence() {}
inline void __threadfence_block() {}

// ---- loads, stores, bits and arithmetic --------------------------------------------------------------------------

template <class T> T __ldg(const T* from) { return *from; }
template <class T> T __ldcg(const T* from) { return *from; }
template <class T> T __ldcs(const T* from) { return *from; }
template <class T> void __stcg(T* to, T x) { *to = x; }
template <class T> void __stcs(T* to, T x) { *to = x; }

namespace emulated {

template <class To, class From>
To bit_cast(From from) {
    static_assert(sizeof(To) == sizeof(From), "of one size");
    To to;
    memcpy(&to, &from, sizeof to);
    return to;
}

}  // namespace emulated

inline unsigned __float_as_uint(float x) { return emulated::bit_cast<unsigned>(x); }
inline int __float_as_int(float x) { return emulated::bit_cast<int>(x); }
inline float __uint_as_float(unsigned x) { return emulated::bit_cast<float>(x); }
inline float __int_as_float(int x) { return emulated::bit_cast<float>(x); }
inline long long __double_as_longlong(double x) { return emulated::bit_cast<long long>(x); }
inline double __longlong_as_double(long long x) { return emulated::bit_cast<double>(x); }

inline int __popc(unsigned x) { return __builtin_popcount(x); }
inline int __ffs(int x) { return __builtin_ffs(x); }
inline int __clz(int x) { return x ? __builtin_clz((unsigned)x) : 32; }
inline unsigned __umulhi(unsigned a, unsigned b) { return (unsigned)((uint64_t)a * b >> 32); }

template <class T> T min(T a, T b) { return b < a ? b : a; }
template <class T> T max(T a, T b) { return a < b ? b : a; }

// To the nearest, ties to even, which is what the host does; nothing is contracted (-ffp-contract=off).
inline float __fadd_rn(float a, float b) { return a + b; }
inline float __fsub_rn(float a, float b) { return a - b; }
inline float __fmul_rn(float a, float b) { return a * b; }
inline float __fdiv_rn(float a, float b) { return a / b; }
inline float __fsqrt_rn(float a) { return std::sqrt(a); }
inline float __fmaf_rn(float a, float b, float c) { return std::fma(a, b, c); }
inline double __dadd_rn(double a, double b) { return a + b; }
inline double __dsub_rn(double a, double b) { return a - b; }
inline double __dmul_rn(double a, double b) { return a * b; }
inline double __ddiv_rn(double a, double b) { return a / b; }
inline double __dsqrt_rn(double a) { return std::sqrt(a); }
inline double __fma_rn(double a, double b, double c) { return std::fma(a, b, c); }
inline float __double2float_rn(double a) { return (float)a; }
