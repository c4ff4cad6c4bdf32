// A libcuda.so.1 for tests: host memory plays device memory, and a launch runs the kernels of cuda/adamw.cu on the
// CPU, one thread after the other, before it returns. README.md says what it checks and how a test steers it.
#include "cuda_shim.h"

#include "../../cuda/adamw.cu"

#include <map>
#include <mutex>
#include <set>
#include <string>

using std::string;

// ---- switches and trace ------------------------------------------------------------------------------------------

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
    STREAM_CAPTURE_UNSUPPORTED = 900,
};

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

// The call that will fail: the `countdown`-th from now on of the function `name`, or of any for "*".
static struct {
    string name;
    long countdown = 0;
    int code = 0;
} fault;

static std::mutex one_at_a_time;
static bool tracing = false;
static string trace;  // a line for each call: its name, and the number of its stream

struct Stream;
static int stream_number(Stream* stream);

// What the call returns instead of doing its work; 0: it is to do it.
static int called(const char* name, Stream* stream) {
    if (tracing) trace += string(name) + " " + std::to_string(stream_number(stream)) + "\n";
    const bool meant = fault.countdown > 0 && (fault.name == "*" || fault.name == name);
    return meant && --fault.countdown == 0 ? fault.code : SUCCESS;
}

// The first line of every function of the driver.
#define CALL(stream)                                  \
    std::lock_guard<std::mutex> guard(one_at_a_time); \
    if (const int code = called(__func__, stream)) return code

#define EXPORT extern "C" __attribute__((visibility("default")))
#define DRIVER EXPORT int

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

// ---- handles -----------------------------------------------------------------------------------------------------

struct Context {
    int device, retained;
};
struct Stream {
    int number;
    bool capturing;
};
struct Event {};
struct Module {
    string ptx;
};

// Everything of one type that has been handed out and not been taken back.
template <class T>
struct Handles {
    const char* what;
    std::set<T*> live;

    T* add(T value) { return *live.insert(new T(value)).first; }
    T& operator[](T* handle) {
        if (!live.count(handle)) die(what, (u64)handle);
        return *handle;
    }
    void remove(T* handle) {
        delete &(*this)[handle];
        live.erase(handle);
    }
};

static Handles<Stream> streams{"not a stream", {}};
static Handles<Event> events{"not an event", {}};
static Handles<Module> modules{"not a module", {}};
static Context contexts[2] = {{0, 0}, {1, 0}};
static thread_local Context* current = nullptr;

// The stream of no number is the default one.
static Stream default_stream{0, false};
static Stream& stream_of(Stream* handle) { return handle ? streams[handle] : default_stream; }
static int stream_number(Stream* handle) { return stream_of(handle).number; }

// ---- memory ------------------------------------------------------------------------------------------------------

// Between allocations lies what must not change. AddressSanitizer has red zones of its own, which see reads, too.
#ifdef __SANITIZE_ADDRESS__
constexpr u64 FENCE = 0;
#else
constexpr u64 FENCE = 256;
#endif
constexpr u8 FENCE_BYTE = 0xfe, FRESH_BYTE = 0xa5, FREED_BYTE = 0xdd;

static std::map<u64, u64> allocations;  // address of the first byte -> bytes

EXPORT u64 emulated_allocations() { return allocations.size(); }

static void check_fences(u64 start, u64 bytes) {
    for (u64 i = 0; i < FENCE; i++) {
        if (*(u8*)(start - 1 - i) != FENCE_BYTE) die("written before the start of an allocation of these bytes", bytes);
        if (*(u8*)(start + bytes + i) != FENCE_BYTE) die("written past the end of an allocation of these bytes", bytes);
    }
}

static int allocate(u64* start, u64 bytes) {
    void* memory = nullptr;
    if (!current) return INVALID_CONTEXT;
    if (bytes == 0) return INVALID_VALUE;
    if (posix_memalign(&memory, 256, bytes + 2 * FENCE)) return OUT_OF_MEMORY;
    memset(memory, FENCE_BYTE, bytes + 2 * FENCE);
    *start = (u64)memory + FENCE;
    memset((void*)*start, FRESH_BYTE, bytes);
    allocations[*start] = bytes;
    return SUCCESS;
}

static int release(u64 start) {
    const auto found = allocations.find(start);
    if (found == allocations.end()) die("freed what is not allocated", start);
    check_fences(start, found->second);
    memset((void*)start, FREED_BYTE, found->second);
    allocations.erase(found);
    free((void*)(start - FENCE));
    return SUCCESS;
}

// Dies unless the bytes lie inside one allocation.
static void* device_memory(u64 address, u64 bytes) {
    auto after = allocations.upper_bound(address);
    if (after == allocations.begin()) die("not device memory", address);
    const auto [start, size] = *--after;
    if (bytes > size || address - start > size - bytes) die("past the end of an allocation", address);
    return (void*)address;
}

// ---- the driver: machine, contexts -------------------------------------------------------------------------------

DRIVER cuInit(unsigned) { CALL(nullptr); return devices > 0 ? SUCCESS : NO_DEVICE; }
DRIVER cuDriverGetVersion(int* version) { CALL(nullptr); *version = driver_version; return SUCCESS; }

// These two are no calls that can fail: cudarc prints errors with them.
DRIVER cuGetErrorName(int, const char** text) { *text = "EMULATED_ERROR"; return SUCCESS; }
DRIVER cuGetErrorString(int, const char** text) { *text = "an error of the emulated driver"; return SUCCESS; }

DRIVER cuDeviceGet(int* device, int ordinal) {
    CALL(nullptr);
    *device = ordinal;
    return ordinal >= 0 && ordinal < devices ? SUCCESS : INVALID_DEVICE;
}

DRIVER cuDeviceGetCount(int* count) { CALL(nullptr); *count = devices; return SUCCESS; }

DRIVER cuDeviceGetName(char* name, int bytes, int) {
    CALL(nullptr);
    snprintf(name, bytes, "emulated");
    return SUCCESS;
}

DRIVER cuDeviceGetAttribute(int* value, int attribute, int) {
    CALL(nullptr);
    switch (attribute) {
        case 16: *value = multiprocessors; return SUCCESS;
        case 75: *value = 7; return SUCCESS;  // compute capability 7.5
        case 76: *value = 5; return SUCCESS;
        case 115: *value = memory_pools; return SUCCESS;
    }
    die("asked for an attribute that it does not know", attribute);
}

DRIVER cuDevicePrimaryCtxRetain(Context** context, int device) {
    CALL(nullptr);
    *context = &contexts[device];
    contexts[device].retained++;
    return SUCCESS;
}

DRIVER cuDevicePrimaryCtxRelease_v2(int device) {
    CALL(nullptr);
    if (contexts[device].retained-- == 0) die("released a context once too often", device);
    return SUCCESS;
}

DRIVER cuCtxGetCurrent(Context** context) { CALL(nullptr); *context = current; return SUCCESS; }
DRIVER cuCtxSetCurrent(Context* context) { CALL(nullptr); current = context; return SUCCESS; }
DRIVER cuCtxSynchronize() { CALL(nullptr); return SUCCESS; }

// ---- the driver: streams, events ---------------------------------------------------------------------------------

DRIVER cuStreamCreate(Stream** stream, unsigned) {
    CALL(nullptr);
    static int number = 0;
    *stream = streams.add({++number, false});
    return SUCCESS;
}

DRIVER cuStreamDestroy_v2(Stream* stream) { CALL(stream); streams.remove(stream); return SUCCESS; }

DRIVER cuStreamSynchronize(Stream* stream) {
    CALL(stream);
    return stream_of(stream).capturing ? STREAM_CAPTURE_UNSUPPORTED : SUCCESS;
}

DRIVER cuStreamWaitEvent(Stream* stream, Event* event, unsigned) { CALL(stream); events[event]; return SUCCESS; }

DRIVER cuStreamBeginCapture_v2(Stream* stream, int) {
    CALL(stream);
    if (!stream) return STREAM_CAPTURE_UNSUPPORTED;
    stream_of(stream).capturing = true;
    return SUCCESS;
}

// The graph is none: what was captured is forgotten.
DRIVER cuStreamEndCapture(Stream* stream, void** graph) {
    CALL(stream);
    stream_of(stream).capturing = false;
    *graph = nullptr;
    return SUCCESS;
}

DRIVER cuStreamIsCapturing(Stream* stream, int* status) {
    CALL(stream);
    *status = stream_of(stream).capturing;
    return SUCCESS;
}

DRIVER cuEventCreate(Event** event, unsigned) { CALL(nullptr); *event = events.add({}); return SUCCESS; }
DRIVER cuEventDestroy_v2(Event* event) { CALL(nullptr); events.remove(event); return SUCCESS; }
DRIVER cuEventRecord(Event* event, Stream* stream) { CALL(stream); events[event]; return SUCCESS; }

// ---- the driver: memory ------------------------------------------------------------------------------------------

DRIVER cuMemAlloc_v2(u64* start, size_t bytes) { CALL(nullptr); return allocate(start, bytes); }
DRIVER cuMemAllocAsync(u64* start, size_t bytes, Stream* stream) {
    CALL(stream);
    if (stream_of(stream).capturing) die("captured an allocation, which would be the graph's, of bytes", bytes);
    return allocate(start, bytes);
}
DRIVER cuMemFree_v2(u64 start) { CALL(nullptr); return release(start); }
DRIVER cuMemFreeAsync(u64 start, Stream* stream) { CALL(stream); return release(start); }

DRIVER cuMemsetD8Async(u64 to, u8 value, size_t bytes, Stream* stream) {
    CALL(stream);
    memset(device_memory(to, bytes), value, bytes);
    return SUCCESS;
}

// Of memory that is not page-locked the driver takes a copy before it returns; so a copy at once is the same. In a
// capture the address of the host's memory would be kept instead.
DRIVER cuMemcpyHtoDAsync_v2(u64 to, const void* from, size_t bytes, Stream* stream) {
    CALL(stream);
    if (stream_of(stream).capturing) die("captured a copy from the host's memory", to);
    memcpy(device_memory(to, bytes), from, bytes);
    return SUCCESS;
}

DRIVER cuMemcpyDtoHAsync_v2(void* to, u64 from, size_t bytes, Stream* stream) {
    CALL(stream);
    memcpy(to, device_memory(from, bytes), bytes);
    return SUCCESS;
}

DRIVER cuMemcpyDtoDAsync_v2(u64 to, u64 from, size_t bytes, Stream* stream) {
    CALL(stream);
    memmove(device_memory(to, bytes), device_memory(from, bytes), bytes);
    return SUCCESS;
}

// ---- the driver: kernels -----------------------------------------------------------------------------------------

struct Arguments {
    const TensorRow* rows;
    const Chunk* chunks;
    const StepScalars* table;
    const InlineScalars& inlined;
};

// Every other launch runs its blocks and threads from the last to the first: no order may matter.
template <class Kernel>
static void run(Kernel kernel, u32 blocks) {
    static bool backwards = false;
    for (u32 block = 0; block < blocks; block++) {
        for (u32 thread = 0; thread < BLOCK; thread++) {
            blockIdx.x = backwards ? blocks - 1 - block : block;
            threadIdx.x = backwards ? BLOCK - 1 - thread : thread;
            kernel();
        }
    }
    backwards = !backwards;
}

static void run_f32(const Arguments& a, u32 blocks) {
    run([&a]() __attribute__((always_inline)) { adamw_f32(a.rows, a.chunks, a.table, a.inlined); }, blocks);
}

static void run_mixed(const Arguments& a, u32 blocks) {
    run([&a]() __attribute__((always_inline)) { adamw_mixed(a.rows, a.chunks, a.table, a.inlined); }, blocks);
}

struct Function {
    string name;
    void (*run)(const Arguments&, u32 blocks);
};
static Function functions[] = {{"adamw_f32", run_f32}, {"adamw_mixed", run_mixed}};

DRIVER cuModuleLoadData(Module** module, const char* ptx) {
    CALL(nullptr);
    const char* version = strstr(ptx, "\n.version ");
    if (!version) return INVALID_PTX;
    if (isa_version(version + strlen("\n.version ")) > newest_ptx) return UNSUPPORTED_PTX_VERSION;
    *module = modules.add({ptx});
    return SUCCESS;
}

DRIVER cuModuleUnload(Module* module) { CALL(nullptr); modules.remove(module); return SUCCESS; }

// In the PTX, and here.
DRIVER cuModuleGetFunction(Function** function, Module* module, const char* name) {
    CALL(nullptr);
    if (modules[module].ptx.find(".entry " + string(name) + "(") == string::npos) return NOT_FOUND;
    for (Function& known : functions) {
        if (known.name == name) return *function = &known, SUCCESS;
    }
    die("a kernel that driver.cpp does not list");
}

// One block a chunk: neither a block without a chunk nor a chunk without a block, in the one table of them.
static void check_tables(const Arguments& a, u32 blocks) {
    const auto chunks = allocations.find((u64)a.chunks), rows = allocations.find((u64)a.rows);
    if (chunks == allocations.end() || rows == allocations.end()) die("a table that is not an allocation");
    if (chunks->second != blocks * sizeof(Chunk)) die("not one block a chunk", blocks);
    if (a.table) device_memory((u64)a.table, sizeof(StepScalars));
    for (u32 block = 0; block < blocks; block++) {
        device_memory((u64)&a.rows[a.chunks[block].tensor], sizeof(TensorRow));
    }
}

DRIVER cuLaunchKernel(Function* f, unsigned grid_x, unsigned grid_y, unsigned grid_z, unsigned block_x,
                      unsigned block_y, unsigned block_z, unsigned shared_bytes, Stream* stream, void** arguments,
                      void**) {
    CALL(stream);
    if (grid_x == 0 || grid_x > 0x7fffffff || block_x == 0) return INVALID_VALUE;
    if (grid_y != 1 || grid_z != 1 || block_x != BLOCK || block_y != 1 || block_z != 1 || shared_bytes != 0)
        die("another geometry than the kernels are for", block_x);
    const Arguments a = {*(const TensorRow**)arguments[0], *(const Chunk**)arguments[1],
                         *(const StepScalars**)arguments[2], *(const InlineScalars*)arguments[3]};
    check_tables(a, grid_x);
    if (stream_of(stream).capturing) return SUCCESS;
    f->run(a, grid_x);
    for (const auto& [start, bytes] : allocations) check_fences(start, bytes);
    return SUCCESS;
}
