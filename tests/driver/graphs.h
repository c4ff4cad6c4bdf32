// Captured operations, and graphs of them. A graph is a list here: it is captured from one stream, and runs in order.
#pragma once
#include "order.h"

#include <functional>
#include <set>

// An operation that is still to run.
struct Node {
    string what;
    std::function<void()> work;
};
using Graph = std::vector<Node>;

struct Capture {
    Graph nodes;
    bool relaxed; // other calls may do what a capture forbids
    bool invalid = false;
};

// Everything of one type that has been handed out and not been taken back.
template <class T>
struct Handles {
    const char* what;
    std::set<T*> live{};

    T* add(T value) { return *live.insert(new T(std::move(value))).first; }
    T& operator[](T* handle) {
        if (!live.count(handle)) die("%p is no %s", (void*)handle, what);
        return *handle;
    }
    void remove(T* handle) {
        delete &(*this)[handle];
        live.erase(handle);
    }
};

static void run(Stream& stream, const Node& node) {
    const Running running(stream, node.what);
    node.work();
}

// The next operation of the stream: runs, or is captured.
static int enqueue(Stream& stream, Node node) {
    if (!stream.capture) return run(stream, node), SUCCESS;
    if (stream.capture->invalid) return CAPTURE_INVALIDATED;
    stream.capture->nodes.push_back(std::move(node));
    return SUCCESS;
}

// For a call that a capture of this stream forbids.
static int refused_in_capture(Stream& stream) {
    if (!stream.capture) return SUCCESS;
    stream.capture->invalid = true;
    return CAPTURE_UNSUPPORTED;
}

// For a call that a capture of any stream of the context forbids.
static int refused_in_any_capture(const Context* context) {
    for (Stream* stream : created) {
        if (stream->context == context && stream->capture && !stream->capture->relaxed) return refused_in_capture(*stream);
    }
    return SUCCESS;
}
