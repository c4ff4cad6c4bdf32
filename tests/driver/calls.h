// What every call of the driver passes first: the lock, the trace, the faults that a test asks for. And the switches.
#pragma once
#include "launch.h"

#include <cstdarg>
#include <cstdio>
#include <cstdlib>
#include <mutex>
#include <string>

using std::string;
using emulated::Geometry, emulated::Kernel, emulated::Line, emulated::die;
typedef unsigned char u8;
typedef uint16_t u16;
typedef uint32_t u32;
typedef uint64_t u64;

#define EXPORT extern "C" __attribute__((visibility("default")))
#define DRIVER EXPORT int

// The CUresults that we give.
enum : int {
    SUCCESS = 0,
    INVALID_VALUE = 1,
    OUT_OF_MEMORY = 2,
    NO_DEVICE = 100,
    INVALID_DEVICE = 101,
    INVALID_CONTEXT = 201,
    INVALID_PTX = 218,
    UNSUPPORTED_PTX_VERSION = 222,
    NOT_FOUND = 500,
    NOT_READY = 600,
    FIRST_STICKY = 700, // an illegal address
    LAST_STICKY = 719,  // a launch that failed
    CAPTURE_UNSUPPORTED = 900,
    CAPTURE_INVALIDATED = 901,
    CAPTURE_UNMATCHED = 903,
    CAPTURE_ISOLATION = 905,
    CAPTURED_EVENT = 907,
};

// ---- switches ----------------------------------------------------------------------------------------------------

static string environment(const char* name, const char* otherwise) {
    const char* value = getenv(name);
    return value ? value : otherwise;
}

static int number(const char* name, const char* otherwise) { return atoi(environment(name, otherwise).c_str()); }

// `8.0` as 800.
static int isa_version(const char* text) {
    int major = 0, minor = 0;
    sscanf(text, "%d.%d", &major, &minor);
    return 100 * major + minor;
}

static const int devices = number("EMULATED_DEVICES", "1");
static const int driver_version = number("EMULATED_DRIVER", "13000");
static const int newest_ptx = isa_version(environment("EMULATED_PTX", "99.0").c_str());
static const int multiprocessors = number("EMULATED_MULTIPROCESSORS", "132");
static const int memory_pools = number("EMULATED_MEMORY_POOLS", "1");
static const int idle = number("EMULATED_IDLE", "0");
static const int seed = number("EMULATED_SEED", "0");

// ---- calls -------------------------------------------------------------------------------------------------------

struct Stream;
static int stream_number(Stream* stream);

struct Context {
    int device;
    int retained = 0;
    int lost = 0; // the sticky code that every call returns from now on
};
static Context contexts[2] = {{0}, {1}};
static thread_local Context* current = nullptr;

static std::mutex one_at_a_time;
static bool tracing = false;
static string trace; // a line for each call: its name, and the number of its stream

// The call that will fail: the `countdown`-th from now on of the function `name`, or of any for "*".
static struct {
    string name;
    long countdown = 0;
    int code = 0;
} fault;

// What the call returns instead of doing its work; 0: it is to do it.
static int called(const char* name, Stream* stream) {
    if (tracing) trace += string(name) + " " + std::to_string(stream_number(stream)) + "\n";
    const bool meant = fault.countdown > 0 && (fault.name == "*" || fault.name == name);
    if (!meant || --fault.countdown != 0) return SUCCESS;
    if (current && fault.code >= FIRST_STICKY && fault.code <= LAST_STICKY) current->lost = fault.code;
    return fault.code;
}

// The first line of every function of the driver: of those that need no context, and of the others.
#define CALL_OF_NO_CONTEXT()                          \
    std::lock_guard<std::mutex> guard(one_at_a_time); \
    if (const int code = called(__func__, nullptr)) return code
#define CALL(stream)                                            \
    std::lock_guard<std::mutex> guard(one_at_a_time);           \
    if (!current) return INVALID_CONTEXT;                       \
    if (const int code = called(__func__, stream)) return code; \
    if (current->lost) return current->lost

EXPORT void emulated_trace_begin() {
    std::lock_guard<std::mutex> guard(one_at_a_time);
    tracing = true;
    trace.clear();
}

// Valid until the next call of the driver.
EXPORT const char* emulated_trace() { return trace.c_str(); }

EXPORT void emulated_fail(const char* name, long countdown, int code) { fault = {name, countdown, code}; }

// Whether the call that was to fail is still to come.
EXPORT int emulated_fault_pending() { return fault.countdown > 0; }
