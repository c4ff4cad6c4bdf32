// What is done before what. An operation of a stream runs at once, while it is enqueued; but a clock says which
// operations were over by then for certain, and memory.h reports whoever uses memory without waiting for its last use.
#pragma once
#include "calls.h"

#include <algorithm>
#include <deque>
#include <memory>
#include <vector>

// Of each stream, by its index: how many of its operations are over.
using Clock = std::vector<u64>;

static bool covers(const Clock& clock, size_t stream, u64 operation) {
    return stream < clock.size() && clock[stream] >= operation;
}

static bool covers(const Clock& clock, const Clock& other) {
    for (size_t i = 0; i < other.size(); i++) {
        if (other[i] > 0 && !covers(clock, i, other[i])) return false;
    }
    return true;
}

static void join(Clock& clock, const Clock& other) {
    if (clock.size() < other.size()) clock.resize(other.size());
    for (size_t i = 0; i < other.size(); i++) clock[i] = std::max(clock[i], other[i]);
}

struct Capture; // graphs.h

struct Stream {
    Context* context;
    int number;      // in traces and reports; the default stream's is 0
    size_t index;    // in clocks
    bool blocking;   // waits for the default stream, and that for it
    Clock clock;     // what is over when its last operation is
    bool asked = false;
    std::shared_ptr<Capture> capture = nullptr;
};

static Stream default_streams[2] = {{&contexts[0], 0, 0, true, {}}, {&contexts[1], 0, 1, true, {}}};

// What the host knows to be over.
static Clock host;

struct Operation {
    u64 instance; // the first of its instances: one of each block, from one barrier to the next; or one
    size_t stream;
    u64 sequence; // among the operations of its stream, from 1; the host's have none: 0
    string what;  // `stream 1's launch of adamw_f32`
};

// All there were, by instance; and of each stream the instances of its operations.
static std::deque<Operation> operations;
static std::vector<std::vector<u64>> instances_of(2);
static u64 next_instance = 1;

static const Operation* operation_of(u64 instance) {
    const auto later = [](u64 instance, const Operation& operation) { return instance < operation.instance; };
    auto after = std::upper_bound(operations.begin(), operations.end(), instance, later);
    return after == operations.begin() ? nullptr : &*--after;
}

// ---- who is at work ----------------------------------------------------------------------------------------------

// One operation; in a launch one thread of one block, since the last barrier. The instances up to its own are those
// of earlier operations, of other blocks, of this block before its last barrier, in this order.
static struct {
    const Operation* operation = nullptr;
    Clock clock;
    int device = 0;
    u64 all_before = 0; // every instance below belongs to an operation that this one comes after
    u64 operation_instance = 0, block_instance = 0, instance = 0;
    u32 thread = 0;
    const u16* known = nullptr; // of each lane of the warp: how many of its __syncwarp are known to this one
    const Kernel* kernel = nullptr;
    u64 stack = 0; // the thread's
} now;

static bool is_before(u64 instance) {
    if (instance < now.all_before) return true;
    const Operation* operation = operation_of(instance);
    return operation->sequence == 0 || covers(now.clock, operation->stream, operation->sequence);
}

// The first instance of all operations of others that `clock` does not cover.
static u64 first_uncovered(const Clock& clock) {
    u64 first = next_instance;
    for (size_t i = 0; i < instances_of.size(); i++) {
        const u64 over = i < clock.size() ? clock[i] : 0;
        if (over < instances_of[i].size()) first = std::min(first, instances_of[i][over]);
    }
    return first;
}

// ---- streams -----------------------------------------------------------------------------------------------------

static std::vector<Stream*> created; // that live

// Joins what an operation of this stream waits for without being told to.
static void wait_for_implied(Stream& stream) {
    Stream& main = default_streams[stream.context->device];
    join(stream.clock, host);
    if (&stream != &main && stream.blocking) join(stream.clock, main.clock);
    if (&stream != &main) return;
    for (const Stream* other : created) {
        if (other->context == stream.context && other->blocking) join(stream.clock, other->clock);
    }
}

static void deliver(); // pinned.h

static void host_waits(const Clock& clock) {
    join(host, clock);
    deliver();
}

static void host_waits_for_all(const Context* context) {
    join(host, default_streams[context->device].clock);
    for (const Stream* stream : created) {
        if (stream->context == context) join(host, stream->clock);
    }
    deliver();
}

// While it lives, an operation is at work: the next of a stream, or one of the host.
struct Running {
    Running(Stream& stream, const string& what) {
        wait_for_implied(stream);
        auto& instances = instances_of[stream.index];
        begin(stream.clock, stream.context->device,
              {next_instance, stream.index, instances.size() + 1, "stream " + std::to_string(stream.number) + "'s " + what});
        instances.push_back(next_instance++);
        stream.clock.resize(std::max(stream.clock.size(), stream.index + 1));
        stream.clock[stream.index] = instances.size();
        stream.asked = false;
    }
    // What the host does is over when it returns, and nobody has to wait for it.
    Running(const Context* context, const string& what) {
        begin(host, context->device, {next_instance++, SIZE_MAX, 0, "the host's " + what});
    }
    ~Running() { now.operation = nullptr; }

private:
    static void begin(const Clock& clock, int device, const Operation& operation) {
        operations.push_back(operation);
        now.operation = &operations.back();
        now.clock = clock;
        now.device = device;
        now.all_before = first_uncovered(clock);
        now.operation_instance = now.block_instance = now.instance = operation.instance;
        now.thread = 0;
    }
};
