// What cuda/*.cu take from CUDA, for the host's C++ compiler: enough for kernels whose threads never talk to one
// another (no barrier, no shuffle, no shared memory, no atomic). A thread is a call; see `run` in driver.cpp.
#pragma once
#include <cstdint>
#include <cstdio>
#include <cstdlib>

#define __global__ inline __attribute__((always_inline)) // or each thread would copy 4 KB of arguments
#define __launch_bounds__(...)

[[noreturn]] inline void die(const char* why, unsigned long long what = 0) {
    fprintf(stderr, "emulated driver: %s (%llu, %#llx)\n", why, what, what);
    abort();
}

// A vector access off its boundary faults on a GPU and often works on a CPU. So every copy asks.
inline void check_boundary(const void* address) {
    asm("" : "+r"(address)); // or the compiler would know the answer from the type
    if ((uintptr_t)address % 16) die("a 16-byte access off its boundary", (uintptr_t)address);
}

struct alignas(16) uint4 {
    unsigned x, y, z, w;

    uint4() = default;
    uint4(unsigned x, unsigned y, unsigned z, unsigned w) : x(x), y(y), z(z), w(w) {}
    uint4(const uint4& from) { *this = from; }
    uint4& operator=(const uint4& from) {
        check_boundary(this), check_boundary(&from);
        x = from.x, y = from.y, z = from.z, w = from.w;
        return *this;
    }
};

inline uint4 make_uint4(unsigned x, unsigned y, unsigned z, unsigned w) { return {x, y, z, w}; }
inline unsigned min(unsigned a, unsigned b) { return a < b ? a : b; }

struct uint3 {
    unsigned x, y, z;
};
inline uint3 threadIdx, blockIdx;
