// Copies and fills. Memory of the host that is not pinned is read or written before the call returns, as a driver does
// it. Pinned memory a copy reaches later: what it brings is there when the host has waited for it, and what it takes
// must not change until then.
#pragma once
#include "memory.h"

#include <list>

struct Pending {
    bool to_host;
    u64 at; // pinned memory
    std::vector<u8> bytes;
    size_t operation; // its index
};
static std::list<Pending> pending; // in order

constexpr u8 NOT_YET = 0xa5;

static void finish(const Pending& copy) {
    if (copy.to_host) {
        memcpy((void*)copy.at, copy.bytes.data(), copy.bytes.size());
    } else if (memcmp((void*)copy.at, copy.bytes.data(), copy.bytes.size()) != 0) {
        die("pinned memory changed before %s was waited for", operations[copy.operation].what.c_str());
    }
}

template <class Which>
static void finish_those(Which which) {
    for (auto copy = pending.begin(); copy != pending.end();) {
        const auto at = copy++;
        if (!which(*at)) continue;
        finish(*at);
        pending.erase(at);
    }
}

static void deliver() {
    finish_those([](const Pending& copy) {
        const Operation& operation = operations[copy.operation];
        return covers(host, operation.stream, operation.sequence);
    });
}

// The copies from and to this memory are over for an operation that comes after them, as `use_memory` has seen.
static void finish_for(u64 at, u64 bytes) {
    finish_those([=](const Pending& copy) { return copy.at < at + bytes && at < copy.at + copy.bytes.size(); });
}

static bool is_pinned(u64 address) {
    const auto found = allocation_at(address);
    return found != allocations.end() && found->second.pinned;
}

static void postpone(bool to_host, u64 at, const void* bytes, u64 count) {
    const u8* from = (const u8*)bytes;
    pending.push_back({to_host, at, {from, from + count}, operations.size() - 1});
}

// ---- what an operation of a stream does --------------------------------------------------------------------------

static void fill(u64 to, u8 value, u64 bytes) {
    use_memory(to, bytes, WRITE);
    memset((void*)to, value, bytes);
}

static void copy_from_host(u64 to, const void* from, u64 bytes) {
    use_memory(to, bytes, WRITE);
    memcpy((void*)to, from, bytes);
}

static void copy_from_pinned(u64 to, u64 from, u64 bytes) {
    use_memory(from, bytes, READ);
    finish_for(from, bytes);
    copy_from_host(to, (void*)from, bytes);
    postpone(false, from, (void*)from, bytes);
}

static void copy_to_host(void* to, u64 from, u64 bytes) {
    use_memory(from, bytes, READ);
    memcpy(to, (void*)from, bytes);
}

static void copy_to_pinned(u64 to, u64 from, u64 bytes) {
    use_memory(from, bytes, READ);
    use_memory(to, bytes, WRITE);
    finish_for(to, bytes);
    postpone(true, to, (void*)from, bytes);
    memset((void*)to, NOT_YET, bytes);
}

// What was never written stays so.
static void copy_on_device(u64 to, u64 from, u64 bytes) {
    use_memory(from, bytes, READ, true);
    use_memory(to, bytes, WRITE);
    memmove(memory.state + (to - memory.start), memory.state + (from - memory.start), bytes);
    memmove((void*)to, (void*)from, bytes);
}
