// A libcuda.so.1 for tests: the functions of the driver that cudarc calls. README.md says what it checks, how a test
// steers it, and in which file what is done.
#include "access.h"
#include "copies.h"
#include "graphs.h"
#include "modules.h"

#include <chrono>

// ---- handles -----------------------------------------------------------------------------------------------------

struct Event {
    Clock clock;
    std::shared_ptr<Capture> capture; // in which it was recorded last
    bool recorded = false, asked = false;
    std::chrono::steady_clock::time_point time;
};

static Stream* const PER_THREAD = (Stream*)2;
static Handles<Stream> streams{"stream"};
static Handles<Event> events{"event"};
static Handles<Graph> graphs{"graph"};
static Handles<Graph> executables{"executable graph"};

static Stream* add_stream(bool blocking) {
    static int number = 0;
    Stream* const stream = streams.add({current, ++number, instances_of.size(), blocking, {}});
    instances_of.emplace_back();
    created.push_back(stream);
    return stream;
}

// The default stream of this thread: there is one in each that asks, and stays.
static Stream& per_thread_stream() {
    static thread_local Stream* mine[2] = {};
    Stream*& stream = mine[current->device];
    if (!stream) stream = add_stream(true);
    return *stream;
}

static Stream& stream_of(Stream* handle) {
    if (handle == PER_THREAD) return per_thread_stream();
    return handle ? streams[handle] : default_streams[current ? current->device : 0];
}
static int stream_number(Stream* handle) { return stream_of(handle).number; }

// How many there are: "streams", "events", "modules", "graphs" (of both kinds).
EXPORT u64 emulated_live(const char* what) {
    const string name = what;
    if (name == "streams") return streams.live.size();
    if (name == "events") return events.live.size();
    if (name == "modules") return modules.live.size();
    if (name == "graphs") return graphs.live.size() + executables.live.size();
    die("it does not count %s", what);
}

// ---- machine, contexts -------------------------------------------------------------------------------------------

DRIVER cuInit(unsigned) {
    CALL_OF_NO_CONTEXT();
    return devices > 0 ? SUCCESS : NO_DEVICE;
}
DRIVER cuDriverGetVersion(int* version) {
    CALL_OF_NO_CONTEXT();
    *version = driver_version;
    return SUCCESS;
}

// These two are no calls that can fail: cudarc prints errors with them.
DRIVER cuGetErrorName(int, const char** text) { return *text = "EMULATED_ERROR", SUCCESS; }
DRIVER cuGetErrorString(int, const char** text) { return *text = "an error of the emulated driver", SUCCESS; }

DRIVER cuDeviceGet(int* device, int ordinal) {
    CALL_OF_NO_CONTEXT();
    *device = ordinal;
    return ordinal >= 0 && ordinal < devices ? SUCCESS : INVALID_DEVICE;
}
DRIVER cuDeviceGetCount(int* count) {
    CALL_OF_NO_CONTEXT();
    *count = devices;
    return SUCCESS;
}
DRIVER cuDeviceGetName(char* name, int bytes, int) {
    CALL_OF_NO_CONTEXT();
    snprintf(name, bytes, "emulated");
    return SUCCESS;
}
DRIVER cuDeviceTotalMem_v2(size_t* bytes, int) {
    CALL_OF_NO_CONTEXT();
    *bytes = DEVICE_BYTES;
    return SUCCESS;
}

// A GPU of compute capability 7.5.
DRIVER cuDeviceGetAttribute(int* value, int attribute, int) {
    CALL_OF_NO_CONTEXT();
    switch (attribute) {
        case 1: *value = MAX_THREADS; return SUCCESS;
        case 8: *value = SHARED_BYTES; return SUCCESS;
        case 10: *value = WARP; return SUCCESS;
        case 16: *value = multiprocessors; return SUCCESS;
        case 39: *value = MAX_THREADS; return SUCCESS; // of a multiprocessor
        case 75: *value = 7; return SUCCESS;
        case 76: *value = 5; return SUCCESS;
        case 97: *value = MOST_SHARED_BYTES; return SUCCESS;
        case 115: *value = memory_pools; return SUCCESS;
    }
    die("asked for attribute %d of a device, which it does not know", attribute);
}

DRIVER cuDevicePrimaryCtxRetain(Context** context, int device) {
    CALL_OF_NO_CONTEXT();
    *context = &contexts[device];
    contexts[device].retained++;
    return SUCCESS;
}
DRIVER cuDevicePrimaryCtxRelease_v2(int device) {
    CALL_OF_NO_CONTEXT();
    if (contexts[device].retained-- == 0) die("released the context of device %d once too often", device);
    return SUCCESS;
}

DRIVER cuCtxGetCurrent(Context** context) {
    CALL_OF_NO_CONTEXT();
    *context = current;
    return SUCCESS;
}
DRIVER cuCtxSetCurrent(Context* context) {
    CALL_OF_NO_CONTEXT();
    current = context;
    return SUCCESS;
}
DRIVER cuCtxSynchronize() {
    CALL(nullptr);
    if (const int code = refused_in_any_capture(current)) return code;
    host_waits_for_all(current);
    return SUCCESS;
}

// ---- streams -----------------------------------------------------------------------------------------------------

constexpr unsigned NON_BLOCKING = 1;

DRIVER cuStreamCreate(Stream** stream, unsigned flags) {
    CALL(nullptr);
    *stream = add_stream(!(flags & NON_BLOCKING));
    return SUCCESS;
}
DRIVER cuStreamDestroy_v2(Stream* stream) {
    CALL(stream);
    created.erase(std::find(created.begin(), created.end(), stream));
    streams.remove(stream);
    return SUCCESS;
}

DRIVER cuStreamSynchronize(Stream* stream) {
    CALL(stream);
    Stream& waited = stream_of(stream);
    if (const int code = refused_in_capture(waited)) return code;
    wait_for_implied(waited);
    host_waits(waited.clock);
    return SUCCESS;
}

// Whether it is over: not yet, when asked for the first time. After that it is.
static int query(const Clock& clock, bool& asked) {
    if (!asked && !covers(host, clock)) return asked = true, NOT_READY;
    host_waits(clock);
    return SUCCESS;
}

DRIVER cuStreamQuery(Stream* stream) {
    CALL(stream);
    if (const int code = refused_in_capture(stream_of(stream))) return code;
    return query(stream_of(stream).clock, stream_of(stream).asked);
}

DRIVER cuStreamWaitEvent(Stream* stream, Event* event, unsigned) {
    CALL(stream);
    Stream& waiting = stream_of(stream);
    const Event& awaited = events[event];
    if (!awaited.recorded) return SUCCESS;
    if (waiting.capture && awaited.capture == waiting.capture) return SUCCESS; // one stream is in order
    if (waiting.capture) return waiting.capture->invalid = true, CAPTURE_ISOLATION;
    if (awaited.capture) die("stream %d waits for an event of a capture, which would fork it: not emulated", waiting.number);
    join(waiting.clock, awaited.clock);
    return SUCCESS;
}

// ---- events ------------------------------------------------------------------------------------------------------

DRIVER cuEventCreate(Event** event, unsigned) {
    CALL(nullptr);
    *event = events.add({});
    return SUCCESS;
}
DRIVER cuEventDestroy_v2(Event* event) {
    CALL(nullptr);
    events.remove(event);
    return SUCCESS;
}
DRIVER cuEventRecord(Event* event, Stream* stream) {
    CALL(stream);
    Stream& recorded = stream_of(stream);
    wait_for_implied(recorded);
    events[event] = {recorded.clock, recorded.capture, true, false, std::chrono::steady_clock::now()};
    return SUCCESS;
}
DRIVER cuEventSynchronize(Event* event) {
    CALL(nullptr);
    if (events[event].capture) return CAPTURED_EVENT;
    host_waits(events[event].clock);
    return SUCCESS;
}
DRIVER cuEventQuery(Event* event) {
    CALL(nullptr);
    if (const int code = refused_in_any_capture(current)) return code;
    if (events[event].capture) return CAPTURED_EVENT;
    return query(events[event].clock, events[event].asked);
}

static int elapsed(float* milliseconds, Event* start, Event* end) {
    if (!events[start].recorded || !events[end].recorded) return INVALID_VALUE;
    if (!covers(host, events[end].clock)) return NOT_READY;
    *milliseconds = std::chrono::duration<float, std::milli>(events[end].time - events[start].time).count();
    return SUCCESS;
}
DRIVER cuEventElapsedTime(float* milliseconds, Event* start, Event* end) {
    CALL(nullptr);
    return elapsed(milliseconds, start, end);
}
DRIVER cuEventElapsedTime_v2(float* milliseconds, Event* start, Event* end) {
    CALL(nullptr);
    return elapsed(milliseconds, start, end);
}

// ---- graphs ------------------------------------------------------------------------------------------------------

constexpr int RELAXED = 2;

DRIVER cuStreamBeginCapture_v2(Stream* stream, int mode) {
    CALL(stream);
    if (!stream || stream_of(stream).capture) return CAPTURE_UNSUPPORTED;
    stream_of(stream).capture = std::make_shared<Capture>(Capture{{}, mode == RELAXED});
    return SUCCESS;
}
DRIVER cuStreamEndCapture(Stream* stream, Graph** graph) {
    CALL(stream);
    const auto capture = std::move(stream_of(stream).capture);
    *graph = nullptr;
    if (!capture) return CAPTURE_UNMATCHED;
    if (capture->invalid) return CAPTURE_INVALIDATED;
    *graph = graphs.add(capture->nodes);
    return SUCCESS;
}
DRIVER cuStreamIsCapturing(Stream* stream, int* status) {
    CALL(stream);
    const auto& capture = stream_of(stream).capture;
    *status = !capture ? 0 : capture->invalid ? 2 : 1;
    return SUCCESS;
}

DRIVER cuGraphInstantiateWithFlags(Graph** executable, Graph* graph, u64) {
    CALL(nullptr);
    *executable = executables.add(graphs[graph]);
    return SUCCESS;
}
DRIVER cuGraphUpload(Graph* executable, Stream* stream) {
    CALL(stream);
    executables[executable];
    return SUCCESS;
}
DRIVER cuGraphLaunch(Graph* executable, Stream* stream) {
    CALL(stream);
    Stream& target = stream_of(stream);
    if (target.capture) die("a graph in a graph is not emulated");
    for (const Node& node : executables[executable]) run(target, node);
    return SUCCESS;
}
DRIVER cuGraphExecDestroy(Graph* executable) {
    CALL(nullptr);
    executables.remove(executable);
    return SUCCESS;
}
DRIVER cuGraphDestroy(Graph* graph) {
    CALL(nullptr);
    graphs.remove(graph);
    return SUCCESS;
}

// ---- memory ------------------------------------------------------------------------------------------------------

// By the host: over when it returns.
static int allocate_for_host(u64* start, size_t bytes, bool pinned) {
    if (const int code = refused_in_any_capture(current)) return code;
    const Running running(current, "allocation");
    return allocate(start, bytes, pinned);
}
static int release_by_host(u64 start, const char* what) {
    if (const int code = refused_in_any_capture(current)) return code;
    const Running running(current, what);
    release(start);
    return SUCCESS;
}

DRIVER cuMemAlloc_v2(u64* start, size_t bytes) {
    CALL(nullptr);
    return allocate_for_host(start, bytes, false);
}
DRIVER cuMemFree_v2(u64 start) {
    CALL(nullptr);
    return release_by_host(start, "cuMemFree");
}
DRIVER cuMemHostAlloc(u64* start, size_t bytes, unsigned) {
    CALL(nullptr);
    return allocate_for_host(start, bytes, true);
}
DRIVER cuMemAllocHost_v2(u64* start, size_t bytes) {
    CALL(nullptr);
    return allocate_for_host(start, bytes, true);
}
DRIVER cuMemFreeHost(u64 start) {
    CALL(nullptr);
    if (!is_pinned(start)) die("frees %#lx, which is not pinned memory", start);
    return release_by_host(start, "cuMemFreeHost");
}

DRIVER cuMemAllocAsync(u64* start, size_t bytes, Stream* stream) {
    CALL(stream);
    if (stream_of(stream).capture) die("captured an allocation of %zu bytes, which would be the graph's", bytes);
    const Running running(stream_of(stream), "allocation");
    return allocate(start, bytes);
}
DRIVER cuMemFreeAsync(u64 start, Stream* stream) {
    CALL(stream);
    // cudarc frees on the default stream of whichever device is the current one.
    Stream& target = stream ? stream_of(stream) : default_streams[device_of(start)];
    if (target.capture) die("captured a free, which would be the graph's");
    const Running running(target, "free");
    release(start);
    return SUCCESS;
}

DRIVER cuMemGetInfo_v2(size_t* left, size_t* total) {
    CALL(nullptr);
    *left = memory.start + (current->device + 1) * DEVICE_BYTES - unused[current->device];
    *total = DEVICE_BYTES;
    return SUCCESS;
}

DRIVER cuMemsetD8Async(u64 to, u8 value, size_t bytes, Stream* stream) {
    CALL(stream);
    return enqueue(stream_of(stream), {"fill", [=] { fill(to, value, bytes); }});
}

DRIVER cuMemcpyHtoDAsync_v2(u64 to, const void* from, size_t bytes, Stream* stream) {
    CALL(stream);
    const bool pinned = is_pinned((u64)from);
    // It would be read again at every replay, where nobody knows whether it is still there.
    if (stream_of(stream).capture && !pinned) die("captured a copy from memory of the host that is not pinned");
    return enqueue(stream_of(stream), {"copy from the host", [=] {
        pinned ? copy_from_pinned(to, (u64)from, bytes) : copy_from_host(to, from, bytes);
    }});
}

DRIVER cuMemcpyDtoHAsync_v2(void* to, u64 from, size_t bytes, Stream* stream) {
    CALL(stream);
    Stream& target = stream_of(stream);
    const bool pinned = is_pinned((u64)to);
    if (target.capture && !pinned) die("captured a copy to memory of the host that is not pinned");
    const int code = enqueue(target, {"copy to the host", [=] {
        pinned ? copy_to_pinned((u64)to, from, bytes) : copy_to_host(to, from, bytes);
    }});
    if (!pinned) host_waits(target.clock);
    return code;
}

DRIVER cuMemcpyDtoDAsync_v2(u64 to, u64 from, size_t bytes, Stream* stream) {
    CALL(stream);
    return enqueue(stream_of(stream), {"copy", [=] { copy_on_device(to, from, bytes); }});
}
