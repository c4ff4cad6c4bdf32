// What kernels.cpp hands to the driver: the kernels that there are.
#pragma once
#include "kernel.h"

#include <new>
#include <tuple>
#include <utility>

namespace emulated {

struct Geometry {
    dim3 grid, block;
    unsigned dynamic_shared; // bytes
};

struct Kernel {
    const char* name;
    size_t argument_bytes;
    void (*copy)(void* arguments, void** from);            // of what cuLaunchKernel is given
    void (*thread)(const void* arguments);                 // runs one thread
    void (*check)(const void* arguments, const Geometry&); // the crate's own, or null
};

// Ends with a kernel without a name.
extern const Kernel kernels[];

// Bytes of the allocation of device memory that starts there; 0: none does.
uint64_t allocated_bytes(const void* start);
[[noreturn]] void die(const char* format, ...) __attribute__((format(printf, 1, 2)));

template <auto KERNEL>
struct Launchable;

// The argument types are the kernel's own, so that they cannot differ from it.
template <class... A, void (*KERNEL)(A...)>
struct Launchable<KERNEL> {
    using Arguments = std::tuple<std::decay_t<A>...>;

    template <size_t... I>
    static void copy(void* to, void** from, std::index_sequence<I...>) {
        new (to) Arguments(*(const std::decay_t<A>*)from[I]...);
    }
    template <size_t... I>
    static __forceinline__ void call(const Arguments& arguments, std::index_sequence<I...>) {
        KERNEL(std::get<I>(arguments)...);
    }

    static void copy(void* to, void** from) { copy(to, from, std::index_sequence_for<A...>()); }
    static void thread(const void* arguments) {
        call(*(const Arguments*)arguments, std::index_sequence_for<A...>());
    }
    template <void (*CHECK)(const Arguments&, const Geometry&)>
    static void check(const void* arguments, const Geometry& geometry) {
        CHECK(*(const Arguments*)arguments, geometry);
    }
};

}  // namespace emulated

#define KERNEL(name) \
    { #name, sizeof(emulated::Launchable<name>::Arguments), emulated::Launchable<name>::copy, \
      emulated::Launchable<name>::thread, nullptr }
#define CHECKED_KERNEL(name, ...) \
    { #name, sizeof(emulated::Launchable<name>::Arguments), emulated::Launchable<name>::copy, \
      emulated::Launchable<name>::thread, emulated::Launchable<name>::check<__VA_ARGS__> }
