// What the compiler tells of a kernel: every access to memory, before it is made. These are ThreadSanitizer's hooks
// (the kernels are compiled with -fsanitize=thread, and its own library is not linked); and one of
// UndefinedBehaviorSanitizer's, for an index outside an array.
#pragma once
#include "block.h"

// Bytes of device memory that kernels loaded and stored; what the threads of a block read in common counts twice or so.
static u64 loaded = 0, stored = 0;

EXPORT void emulated_traffic(u64* loads, u64* stores) {
    *loads = loaded, *stores = stored;
    loaded = stored = 0;
}

// In words: who is at work.
static string who() {
    string text = now.operation ? now.operation->what + ": " : "";
    if (!now.kernel) return text;
    char thread[120];
    snprintf(thread, sizeof thread, "block (%u,%u,%u) thread (%u,%u,%u) ", blockIdx.x, blockIdx.y, blockIdx.z,
             threadIdx.x, threadIdx.y, threadIdx.z);
    return text + thread;
}

void emulated::die(const char* format, ...) {
    va_list values;
    va_start(values, format);
    fprintf(stderr, "emulated driver: %s", who().c_str());
    vfprintf(stderr, format, values);
    fprintf(stderr, "\n");
    abort();
}

void emulated::misaligned(const void* address, size_t bytes) {
    die("misaligned: accesses %zu bytes at %p, which is not a multiple of %zu", bytes, address, bytes);
}

// Its own stack, its arguments, this library: read by every thread, and nobody else's concern.
static bool is_private(u64 address, u64 count, Kind kind) {
    if (address - now.stack < Stack::BYTES) return true;
    if (kind != READ) return false;
    const u64 arguments = (u64)block.arguments;
    return address - image.start < image.end - image.start ||
           (address >= arguments && address + count <= arguments + now.kernel->argument_bytes);
}

// Reads that many threads of a block have in common, as of a row of a table.
static struct Common {
    u64 address, count, instance;
    u32 warp, syncs, lanes; // of the first who read it
    bool two_warps;
} common_reads[8192];

// Whether this read adds nothing to those of two other threads since the same barrier and __syncwarp: whoever writes,
// from now on or before, conflicts with one of the two, because nobody is ordered with both. (Of one warp they count
// only for that warp; a later __syncwarp of some of its lanes may then go unnoticed.)
static bool is_common_read(u64 address, u64 count) {
    Common& common = common_reads[(u32)address * 2654435769u >> 19]; // scattered, and 13 bits
    const u32 warp = now.thread / WARP, syncs = now.known[now.thread % WARP];
    if (common.instance != now.instance || common.address != address || common.count != count || common.syncs != syncs) {
        common = {address, count, now.instance, warp, syncs, 1, false};
        return false;
    }
    if (common.two_warps || (common.warp == warp && common.lanes == 2)) return true;
    common.warp == warp ? (void)common.lanes++ : (void)(common.two_warps = true);
    return false;
}

static void use(u64 address, u64 count, Kind kind) {
    if (!now.kernel) return; // the host's part of kernels.cpp
    if (memory.has(address)) {
        if (kind == READ && is_common_read(address, count)) return; // from a GPU's cache, too
        if (kind != WRITE) loaded += count;
        if (kind != READ) stored += count;
        return use_memory(address, count, kind);
    }
    if (is_private(address, count, kind)) return;
    if (address - image.local < image.local_bytes) return use_shared(address, count, kind);
    not_allocated(address, count, kind);
}

static void use_aligned(const void* address, u64 count, Kind kind) {
    if ((u64)address % count) emulated::misaligned(address, count);
    use((u64)address, count, kind);
}

void emulated::atomic_access(const void* address, size_t bytes) { use_aligned(address, bytes, ATOMIC); }

#define HOOK extern "C" __attribute__((visibility("hidden"))) void
#define HOOKS(bytes)                                                                                         \
    HOOK __tsan_read##bytes(const void* at) { use_aligned(at, bytes, READ); }                                \
    HOOK __tsan_write##bytes(void* at) { use_aligned(at, bytes, WRITE); }                                    \
    HOOK __tsan_unaligned_read##bytes(const void* at) { use((u64)at, bytes, READ); }                         \
    HOOK __tsan_unaligned_write##bytes(void* at) { use((u64)at, bytes, WRITE); }
HOOKS(1)
HOOKS(2)
HOOKS(4)
HOOKS(8)
HOOKS(16)

HOOK __tsan_init() {}
HOOK __tsan_func_entry(void*) {}
HOOK __tsan_func_exit() {}
HOOK __tsan_read_range(const void* at, size_t bytes) { use((u64)at, bytes, READ); }
HOOK __tsan_write_range(void* at, size_t bytes) { use((u64)at, bytes, WRITE); }

extern "C" __attribute__((visibility("hidden"))) void* __tsan_memcpy(void* to, const void* from, size_t bytes) {
    use((u64)from, bytes, READ), use((u64)to, bytes, WRITE);
    return memcpy(to, from, bytes);
}
extern "C" __attribute__((visibility("hidden"))) void* __tsan_memmove(void* to, const void* from, size_t bytes) {
    use((u64)from, bytes, READ), use((u64)to, bytes, WRITE);
    return memmove(to, from, bytes);
}
extern "C" __attribute__((visibility("hidden"))) void* __tsan_memset(void* to, int value, size_t bytes) {
    use((u64)to, bytes, WRITE);
    return memset(to, value, bytes);
}

#ifndef __SANITIZE_ADDRESS__
// The first argument starts with the place in the source.
HOOK __ubsan_handle_out_of_bounds_abort(const Line* line, u64 index) {
    die("index %ld is outside its array, %s:%d", (long)index, line->file, line->number);
}
#endif
