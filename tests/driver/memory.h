// Device memory and its shadow: of every byte whether it is allocated and written, of every word who used it last.
#pragma once
#include "order.h"

#include <map>
#include <sys/mman.h>

#ifdef __SANITIZE_ADDRESS__
#include <sanitizer/asan_interface.h>
// The kernels tell nothing then: AddressSanitizer stands guard, and every byte counts as written.
constexpr bool TOLD = false;
#else
constexpr bool TOLD = true;
#define __asan_poison_memory_region(start, bytes) (void)0
#define __asan_unpoison_memory_region(start, bytes) (void)0
#endif

// ---- uses --------------------------------------------------------------------------------------------------------

enum Kind : u64 { READ = 1, WRITE = 2, ATOMIC = 3 };
static const char* verb(u64 kind) { return kind == READ ? "reads" : kind == WRITE ? "writes" : "changes"; }

// Who used a word, in 64 bits: instance (34), thread (10), its count of __syncwarp (14), which bytes (4), how (2).
using Use = u64;
constexpr u32 MAX_SYNCS = (1 << 14) - 1;
static Use use_of(u64 instance, u32 thread, u32 syncs, u64 bytes, Kind kind) {
    return instance << 30 | (u64)thread << 20 | syncs << 6 | bytes << 2 | kind;
}
static u64 instance_of(Use use) { return use >> 30; }
static u32 thread_of(Use use) { return use >> 20 & 1023; }
static u32 syncs_of(Use use) { return use >> 6 & MAX_SYNCS; }
static u64 bytes_of(Use use) { return use >> 2 & 15; }
static Kind kind_of(Use use) { return Kind(use & 3); }

// Whether who is at work comes after that use. Shared memory is a new one in each block.
static bool is_ordered(Use use, bool shared) {
    const u64 instance = instance_of(use);
    if (instance < now.operation_instance) return shared || is_before(instance);
    if (instance < now.block_instance) return shared;
    if (instance < now.instance || thread_of(use) == now.thread) return true;
    return thread_of(use) / 32 == now.thread / 32 && syncs_of(use) < now.known[thread_of(use) % 32];
}

static bool conflict(Use a, Use b) {
    const bool harmless = kind_of(a) == kind_of(b) && kind_of(a) != WRITE;
    return !harmless && (bytes_of(a) & bytes_of(b));
}

// As many uses are kept of a word: the first ones that are not ordered with one another, and the last.
constexpr size_t KEPT = 4;
struct Uses {
    Use at[KEPT]; // the empty ones, which are 0, come last

    bool operator==(const Uses& other) const { return memcmp(at, other.at, sizeof at) == 0; }
};

// Adds a use, and drops those that it stands for. Returns an earlier one that it conflicts with and does not come
// after; 0: there is none.
static Use add(Uses& uses, Use use, bool shared) {
    size_t seen = 0, left = 0;
    for (; seen < KEPT && uses.at[seen] != 0; seen++) {
        const Use old = uses.at[seen];
        const bool ordered = is_ordered(old, shared);
        if (!ordered && conflict(old, use)) return old;
        const bool covered = (bytes_of(old) & ~bytes_of(use)) == 0 && (kind_of(use) != READ || kind_of(old) == READ);
        if (!ordered || !covered) uses.at[left++] = old;
    }
    uses.at[std::min(left, KEPT - 1)] = use;
    for (size_t i = left + 1; i < seen; i++) uses.at[i] = 0;
    return 0;
}

// ---- shadow ------------------------------------------------------------------------------------------------------

enum State : u8 { NOT_ALLOCATED = 0, NEVER_WRITTEN = 1, WRITTEN = 3 };

template <class T>
static T* reserve(u64 bytes) {
    const int flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE;
    void* memory = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, flags, -1, 0);
    if (memory == MAP_FAILED) die("cannot reserve %lu bytes of addresses", bytes);
    return (T*)memory;
}

// Of `bytes` bytes from `start` on, by offset. Takes no room where nothing is used.
struct Shadow {
    u64 start, bytes;
    bool shared;
    u8* state = reserve<u8>(bytes);
    Uses* uses = reserve<Uses>(bytes / 4 * sizeof(Uses));

    bool has(u64 address) const { return address - start < bytes; }
    Uses& uses_of(u64 address) const { return uses[(address - start) / 4]; }

    // Whether all the bytes are at least in that state, whose bits a higher one has, too.
    bool is(u64 address, u64 count, State least) const {
        const u8* at = state + (address - start);
        u8 common = 0xff;
        for (; count >= 8; at += 8, count -= 8) {
            const u64 all = 0x0101010101010101 * least;
            u64 eight;
            memcpy(&eight, at, 8);
            if ((eight & all) != all) return false;
        }
        while (count > 0) common &= at[--count];
        return (common & least) == least;
    }
    void set(u64 address, u64 count, State to) { memset(state + (address - start), to, count); }

    // Adds the use to every word; what it conflicts with, if it does. Neighbours have mostly been used alike.
    Use use(u64 address, u64 count, Kind kind) {
        const u32 syncs = now.known ? now.known[now.thread % 32] : 0;
        Uses before = {};
        const Uses* after = nullptr; // what became of it, in the word before
        Use last = 0;
        for (u64 word = address & ~3ul; word < address + count; word += 4) {
            const u64 first = word < address ? address - word : 0, behind = std::min<u64>(address + count - word, 4);
            const Use use = use_of(now.instance, now.thread, syncs, (1 << behind) - (1 << first), kind);
            Uses& uses = uses_of(word);
            if (use == last && uses == before) {
                uses = *after;
                continue;
            }
            before = uses, last = use, after = &uses;
            if (const Use other = add(uses, use, shared)) return other;
        }
        return 0;
    }
};

// ---- device memory -----------------------------------------------------------------------------------------------

// What a device has of it. It is handed out once: a freed address stays free.
constexpr u64 DEVICE_BYTES = 1ull << 37, GAP = 4096, ALIGNMENT = 256, LARGE = 1 << 20;
static Shadow memory{(u64)reserve<u8>(2 * DEVICE_BYTES), 2 * DEVICE_BYTES, false};
static u64 unused[2] = {memory.start + GAP, memory.start + DEVICE_BYTES + GAP};

static int device_of(u64 address) { return address < memory.start + DEVICE_BYTES ? 0 : 1; }

struct Allocation {
    u64 bytes;
    u64 instance;   // of the operation that made it, or that freed it
    bool pinned;    // the host's, which kernels may use, too
};
static std::map<u64, Allocation> allocations, freed; // by the first address

EXPORT u64 emulated_allocations() {
    return std::count_if(allocations.begin(), allocations.end(), [](auto& a) { return !a.second.pinned; });
}

uint64_t emulated::allocated_bytes(const void* start) {
    const auto found = allocations.find((u64)start);
    return found == allocations.end() ? 0 : found->second.bytes;
}

// The one with the address, or the last before it.
static auto at_or_before(std::map<u64, Allocation>& all, u64 address) {
    auto after = all.upper_bound(address);
    return after == all.begin() ? all.end() : --after;
}

// The live one with the address, or none.
static auto allocation_at(u64 address) {
    auto found = at_or_before(allocations, address);
    return found != allocations.end() && address - found->first < found->second.bytes ? found : allocations.end();
}

static string about(const std::pair<const u64, Allocation>& allocation) {
    char text[80];
    snprintf(text, sizeof text, "the %lu bytes at %#lx", allocation.second.bytes, allocation.first);
    return text;
}

// In words: where an address lies that does not lie in an allocation.
static string place_of(u64 address, u64 count) {
    const auto live = at_or_before(allocations, address), dead = at_or_before(freed, address);
    if (dead != freed.end() && address - dead->first < dead->second.bytes) {
        return std::to_string(address - dead->first) + " bytes into " + about(*dead) + ", which " +
               operation_of(dead->second.instance)->what + " freed";
    }
    const auto behind = allocations.upper_bound(address);
    if (behind != allocations.end() && behind->first - address <= GAP) {
        return std::to_string(behind->first - address) + " bytes before the start of " + about(*behind);
    }
    if (live != allocations.end() && address + count - live->first - live->second.bytes <= GAP) {
        const u64 end = live->first + live->second.bytes;
        return std::to_string(address + count - end) + " bytes past the end of " + about(*live);
    }
    return "which is not device memory";
}

[[noreturn]] static void not_allocated(u64 address, u64 count, Kind kind) {
    die("%s %lu bytes at %#lx, %s", verb(kind), count, address, place_of(address, count).c_str());
}

[[noreturn]] static void unordered(u64 address, Kind kind, Use other) {
    const auto found = allocation_at(address);
    const string place = std::to_string(address - found->first) + " bytes into " + about(*found);
    const char* other_verb = kind_of(other) == READ ? "read" : kind_of(other) == WRITE ? "wrote" : "changed";
    if (instance_of(other) < now.operation_instance) {
        die("%s memory that %s %s, and nothing orders them (%s)", verb(kind),
                      operation_of(instance_of(other))->what.c_str(), other_verb, place.c_str());
    }
    const bool same = instance_of(other) >= now.block_instance;
    die("a race: %s memory that thread %u of %s block %s, and nothing orders them (%s)", verb(kind),
                  thread_of(other), same ? "this" : "another", other_verb, place.c_str());
}

// Memory that a stream allocated is there for what comes after.
static void check_allocated_before(u64 address, Kind kind) {
    const auto found = allocation_at(address);
    if (is_before(found->second.instance)) return;
    die("%s memory that %s made, and nothing orders them", verb(kind),
                  operation_of(found->second.instance)->what.c_str());
}

// A use of device memory by who is at work. `fresh`: it may read what was never written.
static void use_memory(u64 address, u64 count, Kind kind, bool fresh = false) {
    if (count == 0) return;
    if (!memory.has(address) || memory.bytes - (address - memory.start) < count ||
        !memory.is(address, count, NEVER_WRITTEN)) {
        not_allocated(address, count, kind);
    }
    if (device_of(address) != now.device) die("%s memory of another device", verb(kind));
    if (kind != WRITE && !fresh && !memory.is(address, count, WRITTEN)) {
        const auto found = allocation_at(address);
        die("%s what was never written, %lu bytes into %s", verb(kind), address - found->first, about(*found).c_str());
    }
    if (kind == WRITE) memory.set(address, count, WRITTEN);
    if (const Use other = memory.use(address, count, kind)) unordered(address, kind, other);
    if (now.all_before < now.operation_instance) check_allocated_before(address, kind);
}

// ---- allocation --------------------------------------------------------------------------------------------------

// Advises of whole pages; no two allocations share one.
static void advise(void* start, u64 bytes, int advice) {
    const u64 from = (u64)start & ~4095ul, to = ((u64)start + bytes + 4095) & ~4095ul;
    madvise((void*)from, to - from, advice);
}

// By who is at work.
static int allocate(u64* start, u64 bytes, bool pinned = false) {
    u64& next = unused[now.device];
    const u64 end = memory.start + (now.device + 1) * DEVICE_BYTES;
    if (bytes == 0) return INVALID_VALUE;
    if (bytes > end - GAP - next) return OUT_OF_MEMORY;
    *start = next;
    next = (next + bytes + GAP + ALIGNMENT - 1) / ALIGNMENT * ALIGNMENT;
    memory.set(*start, bytes, TOLD && !pinned ? NEVER_WRITTEN : WRITTEN);
    allocations[*start] = {bytes, now.instance, pinned};
    if (bytes > LARGE) advise(&memory.uses_of(*start), bytes / 4 * sizeof(Uses), MADV_HUGEPAGE);
    __asan_poison_memory_region((void*)(*start - GAP), GAP);
    __asan_poison_memory_region((void*)(*start + bytes), next - *start - bytes);
    return SUCCESS;
}

static void release(u64 start) {
    const auto found = allocations.find(start);
    if (found == allocations.end()) die("frees %#lx, %s", start, place_of(start, 1).c_str());
    const u64 bytes = found->second.bytes, offset = start - memory.start;
    // Who still uses it?
    if (now.all_before < now.operation_instance) use_memory(start, bytes, WRITE);
    freed[start] = {bytes, now.instance, false};
    allocations.erase(found);
    advise((void*)start, bytes, MADV_DONTNEED);
    advise(memory.state + offset, bytes, MADV_DONTNEED);
    advise(&memory.uses_of(start), (bytes / 4 + 1) * sizeof(Uses), MADV_DONTNEED);
    __asan_poison_memory_region((void*)start, bytes);
}
