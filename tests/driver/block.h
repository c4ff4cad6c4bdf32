// A launch on one CPU thread: its blocks one after the other; a block's threads too, each until it waits.
#pragma once
#include "fiber.h"
#include "shared.h"

uint3 threadIdx, blockIdx;
dim3 blockDim, gridDim;


constexpr u32 MAX_THREADS = 1024, WARP = 32;

// The threads that are to meet: all of the block, or the lanes of `mask`.
struct Meeting {
    const char* what;
    Line line;
    u32 mask = 0, arrived = 0, times = 0;
    u64 brought[2][WARP]; // by lane, of this time and of the time before
    u32 count[2] = {};    // of those who brought `true`, likewise
};

struct Warp {
    u32 lanes = 0, exited = 0;      // that exist, that have ended
    std::deque<Meeting> meetings{}; // one for each mask
    u64 instance = 0;               // `known` is of the time since this barrier
    u16 known[WARP][WARP];          // of each lane: how many of the others' __syncwarp it knows, and of its own

    void forget_before(u64 barrier) {
        if (instance == barrier) return;
        instance = barrier;
        memset(known, 0, sizeof known);
    }
};

struct Thread {
    enum { READY, WAITING, ENDED } state;
    Stack* stack;
    const Meeting* waits_for;
};

static struct {
    const void* arguments;
    u32 threads, ended;
    Meeting barrier;
    Thread at[MAX_THREADS];
    Warp warps[MAX_THREADS / WARP];
    Caller caller;
} block;

static std::vector<Stack*> stacks; // that no thread uses

static Warp& warp() { return block.warps[now.thread / WARP]; }
unsigned emulated::lane() { return now.thread % WARP; }

static uint3 index_of(u32 linear, dim3 of) { return {linear % of.x, linear / of.x % of.y, linear / of.x / of.y}; }

// ---- threads -----------------------------------------------------------------------------------------------------

// Nobody may wait for a thread that has ended. (Not inlined: what AddressSanitizer keeps of a call that never returns
// would be in the way of the next thread on this stack.)
__attribute__((noinline)) static void end_thread() {
    const u32 bit = 1u << emulated::lane();
    for (const Meeting& meeting : warp().meetings) {
        if (meeting.arrived && meeting.mask & bit) {
            die("ends, but lanes %#x wait for it at %s, %s:%d", meeting.arrived, meeting.what,
                          meeting.line.file, meeting.line.number);
        }
    }
    if (block.barrier.arrived) {
        die("ends, but others of its block wait at a barrier, %s:%d", block.barrier.line.file,
                      block.barrier.line.number);
    }
    warp().exited |= bit;
    block.ended++;
    block.at[now.thread].state = Thread::ENDED;
}

static void run_thread() {
    AFTER_SWITCH(&block.caller.low, &block.caller.bytes);
    now.kernel->thread(block.arguments);
    end_thread();
    leave(*block.at[now.thread].stack, block.caller);
}

static void wait_at(const Meeting& meeting) {
    Thread& thread = block.at[now.thread];
    thread.state = Thread::WAITING;
    thread.waits_for = &meeting;
    leave(*thread.stack, block.caller);
}

// Starts a thread, or goes on with it, until it waits or ends.
static void run(u32 index) {
    Thread& thread = block.at[index];
    now.thread = index;
    threadIdx = index_of(index, blockDim);
    warp().forget_before(now.instance);
    now.known = warp().known[index % WARP];
    if (!thread.stack) {
        if (stacks.empty()) stacks.push_back(new Stack);
        thread.stack = stacks.back();
        stacks.pop_back();
        thread.stack->prepare(run_thread);
    }
    now.stack = (u64)thread.stack->low;
    enter(block.caller, *thread.stack);
    if (thread.state == Thread::ENDED) stacks.push_back(thread.stack);
}

static void release(const Meeting& meeting) {
    for (u32 i = 0; i < block.threads; i++) {
        Thread& thread = block.at[i];
        if (thread.state == Thread::WAITING && thread.waits_for == &meeting) thread.state = Thread::READY;
    }
}

// ---- barriers and warp operations --------------------------------------------------------------------------------

unsigned emulated::barrier(bool predicate, Line line) {
    Meeting& meeting = block.barrier;
    if (block.ended) die("waits at a barrier, %s:%d, that other threads of its block never reach", line.file, line.number);
    if (meeting.arrived && meeting.line.number != line.number) {
        die("waits at a barrier, %s:%d, while others of its block wait at another, line %d", line.file, line.number,
            meeting.line.number);
    }
    const u32 time = meeting.times % 2;
    if (meeting.arrived++ == 0) meeting.line = line, meeting.count[time] = 0;
    meeting.count[time] += predicate;
    if (meeting.arrived < block.threads) {
        wait_at(meeting);
    } else {
        meeting.arrived = 0;
        meeting.times++;
        now.instance = next_instance++;
        warp().forget_before(now.instance);
        release(meeting);
    }
    return meeting.count[time];
}

static const char* const SYNC = "__syncwarp";

static Meeting& meeting_of(u32 mask) {
    for (Meeting& meeting : warp().meetings) {
        if (meeting.mask == mask) return meeting;
    }
    Meeting& added = warp().meetings.emplace_back();
    added.mask = mask;
    return added;
}

static void check_mask(const char* what, u32 mask, Line line) {
    const u32 missing = mask & (~warp().lanes | warp().exited);
    if (!(mask >> emulated::lane() & 1)) {
        die("calls %s, %s:%d, with mask %#x, which leaves out its own lane %u", what, line.file, line.number,
                      mask, emulated::lane());
    }
    if (missing) {
        die("calls %s, %s:%d, with mask %#x, but the lanes %#x have ended or do not exist", what, line.file,
                      line.number, mask, missing);
    }
}

// What the lanes did until now is known to all of them.
static void order_memory(u32 mask) {
    auto& known = warp().known;
    u16 all[WARP] = {};
    for (u32 i = 0; i < WARP; i++) {
        if (!(mask >> i & 1)) continue;
        known[i][i]++;
        for (u32 j = 0; j < WARP; j++) all[j] = std::max(all[j], known[i][j]);
    }
    for (u32 i = 0; i < WARP; i++) {
        if (mask >> i & 1) memcpy(known[i], all, sizeof all);
    }
    // More than a use can count: as if there had been a barrier. That misses races, and invents none.
    if (*std::max_element(all, all + WARP) == MAX_SYNCS) warp().forget_before(now.instance = next_instance++);
}

void emulated::sync_warp(unsigned mask, Line line) { exchange(SYNC, mask, 0, line); }

const uint64_t* emulated::exchange(const char* what, unsigned mask, uint64_t value, Line line) {
    check_mask(what, mask, line);
    Meeting& meeting = meeting_of(mask);
    if (meeting.arrived && (meeting.what != what || meeting.line.number != line.number)) {
        die("calls %s, %s:%d, but lanes %#x of its mask wait at %s, line %d", what, line.file, line.number,
            meeting.arrived, meeting.what, meeting.line.number);
    }
    const u32 time = meeting.times % 2;
    meeting.what = what, meeting.line = line;
    meeting.brought[time][lane()] = value;
    meeting.arrived |= 1u << lane();
    if (meeting.arrived != mask) {
        wait_at(meeting);
    } else {
        meeting.arrived = 0;
        meeting.times++;
        if (what == SYNC) order_memory(mask); // a shuffle and a vote order nothing
        ::release(meeting);
    }
    return meeting.brought[time];
}

void emulated::outside_mask(const char* what, unsigned mask, unsigned source, Line line) {
    die("calls %s, %s:%d, which reads lane %u, outside its mask %#x", what, line.file, line.number, source, mask);
}

// ---- blocks ------------------------------------------------------------------------------------------------------

[[noreturn]] static void report_deadlock() {
    for (u32 i = 0; i < block.threads; i++) {
        if (block.at[i].state != Thread::WAITING) continue;
        const Meeting& meeting = *block.at[i].waits_for;
        now.thread = i, threadIdx = index_of(i, blockDim);
        if (&meeting == &block.barrier) continue;
        die("waits at %s, %s:%d, for lanes %#x, which never come", meeting.what, meeting.line.file,
                      meeting.line.number, meeting.mask & ~meeting.arrived);
    }
    die("waits at a barrier that others never reach");
}

// No order may matter. Every other launch goes from the last to the first; with a seed each is shuffled.
static std::vector<u32> order_of(u32 count, bool backwards) {
    static u64 random = (u64)seed;
    std::vector<u32> order(count);
    for (u32 i = 0; i < count; i++) order[i] = backwards ? count - 1 - i : i;
    for (u32 i = seed ? count : 0; i > 1; i--) {
        random = random * 6364136223846793005 + 1442695040888963407;
        std::swap(order[i - 1], order[(random >> 33) % i]);
    }
    return order;
}

static void begin_block() {
    block.ended = 0;
    block.barrier.arrived = 0;
    for (u32 i = 0; i < block.threads; i++) block.at[i] = {Thread::READY, nullptr, nullptr};
    for (u32 i = 0; i * WARP < block.threads; i++) {
        const u32 left = block.threads - i * WARP;
        block.warps[i].lanes = left < WARP ? (1u << left) - 1 : ~0u;
        block.warps[i].exited = 0;
        if (!block.warps[i].meetings.empty()) block.warps[i].meetings.clear();
    }
    now.block_instance = now.instance = next_instance++;
    forget_shared();
}

static void run_block(const std::vector<u32>& order) {
    begin_block();
    while (block.ended < block.threads) {
        bool moved = false;
        for (u32 i : order) {
            if (block.at[i].state != Thread::READY) continue;
            run(i);
            moved = true;
        }
        if (!moved) report_deadlock();
    }
}

static void run_grid(const Kernel& kernel, const void* arguments, const Geometry& launch) {
    gridDim = launch.grid, blockDim = launch.block;
    block.arguments = arguments;
    block.threads = launch.block.x * launch.block.y * launch.block.z;
    find_shared(launch.dynamic_shared);
    static bool backwards = true;
    backwards = !backwards;
    const std::vector<u32> blocks = order_of(launch.grid.x * launch.grid.y * launch.grid.z, backwards);
    const std::vector<u32> threads = order_of(block.threads, backwards);
    now.kernel = &kernel;
    for (u32 i : blocks) {
        blockIdx = index_of(i, gridDim);
        run_block(threads);
    }
    now.kernel = nullptr;
}
