// Shared memory: a block's, and new in each. It is the thread-local memory of this library (kernel.h); each CPU thread
// has its own, so its shadow lies by offset.
#pragma once
#include "memory.h"

#include <dlfcn.h>
#include <link.h>

extern "C" __attribute__((visibility("hidden"))) thread_local char emulated_dynamic_shared[];

// What a block may have by default, and if its function asks for it; the room in kernels.cpp.
constexpr u32 SHARED_BYTES = 48 << 10, MOST_SHARED_BYTES = 64 << 10;

static Shadow shared_memory{0, 1 << 20, true};

static struct {
    u64 dynamic;       // where that part starts
    u32 dynamic_bytes; // of this launch
    bool used;         // by this block
    bool has_dynamic(u64 address) const { return address - dynamic < MOST_SHARED_BYTES; }
} shared;

// This library in memory: its code and constants, and its thread-local memory on this CPU thread.
struct Image {
    u64 start = 0, end = 0, local = 0, local_bytes = 0;
};

static int look_at_image(dl_phdr_info* info, size_t, void* into) {
    Image image;
    for (int i = 0; i < info->dlpi_phnum; i++) {
        const auto& part = info->dlpi_phdr[i];
        const u64 start = info->dlpi_addr + part.p_vaddr;
        if (part.p_type == PT_LOAD) {
            image.start = image.start ? image.start : start;
            image.end = start + part.p_memsz;
        }
        if (part.p_type == PT_TLS) image.local_bytes = part.p_memsz;
    }
    image.local = (u64)info->dlpi_tls_data;
    if ((u64)look_at_image < image.start || (u64)look_at_image >= image.end) return 0;
    *(Image*)into = image;
    return 1;
}

static Image image;

// For a launch on this CPU thread.
static void find_shared(u32 dynamic_bytes) {
    shared.dynamic_bytes = dynamic_bytes;
    const u64 dynamic = (u64)emulated_dynamic_shared; // and now there is a `dlpi_tls_data`
    if (shared.dynamic != dynamic) dl_iterate_phdr(look_at_image, &image);
    shared.dynamic = dynamic;
    shared_memory.start = image.local & ~3ul;
    if (image.local_bytes > shared_memory.bytes - 4) die("more shared memory than emulated");
    shared.used = true;
    if (!TOLD) __asan_poison_memory_region((void*)(shared.dynamic + dynamic_bytes), MOST_SHARED_BYTES - dynamic_bytes);
    if (!TOLD) __asan_unpoison_memory_region((void*)shared.dynamic, dynamic_bytes);
}

// A new block.
static void forget_shared() {
    if (!shared.used) return;
    shared_memory.set(shared_memory.start, image.local_bytes, NEVER_WRITTEN);
    shared.used = false;
}

// A use by who is at work.
static void use_shared(u64 address, u64 count, Kind kind) {
    shared.used = true;
    if (shared.has_dynamic(address) && address + count - shared.dynamic > shared.dynamic_bytes) {
        die("%s %lu bytes past the end of the %u bytes of dynamic shared memory", verb(kind),
                      address + count - shared.dynamic - shared.dynamic_bytes, shared.dynamic_bytes);
    }
    if (kind != WRITE && !shared_memory.is(address, count, WRITTEN)) {
        die("%s shared memory that no thread of this block has written", verb(kind));
    }
    if (kind == WRITE) shared_memory.set(address, count, WRITTEN);
    if (const Use other = shared_memory.use(address, count, kind)) {
        die("a race: %s shared memory that thread %u of this block %s, and nothing orders them", verb(kind),
                      thread_of(other), kind_of(other) == READ ? "read" : kind_of(other) == WRITE ? "wrote" : "changed");
    }
}
