// Modules, the functions in them, and their launches.
#pragma once
#include "access.h"
#include "graphs.h"

#include <list>

static Stream& stream_of(Stream* handle); // driver.cpp

struct Function {
    const Kernel* kernel;
    int most_threads, blocks_per_multiprocessor; // as its PTX says
    int most_shared = SHARED_BYTES;
};

struct Module {
    string ptx;
    std::list<Function> functions;
};

static Handles<Module> modules{"module"};

DRIVER cuModuleLoadData(Module** module, const char* ptx) {
    CALL(nullptr);
    const char* version = strstr(ptx, ".version ");
    if (!version) return INVALID_PTX;
    if (isa_version(version + strlen(".version ")) > newest_ptx) return UNSUPPORTED_PTX_VERSION;
    *module = modules.add({ptx, {}});
    return SUCCESS;
}
DRIVER cuModuleUnload(Module* module) {
    CALL(nullptr);
    modules.remove(module);
    return SUCCESS;
}

// The number behind a directive of an entry of the PTX.
static int directive(const string& head, const char* name, int otherwise) {
    const size_t at = head.find(name);
    return at == string::npos ? otherwise : atoi(head.c_str() + at + strlen(name));
}

// In the PTX, and here.
DRIVER cuModuleGetFunction(Function** function, Module* module, const char* name) {
    CALL(nullptr);
    const string& ptx = modules[module].ptx;
    const size_t entry = ptx.find(".entry " + string(name) + "(");
    if (entry == string::npos) return NOT_FOUND;
    const string head = ptx.substr(entry, ptx.find('{', entry) - entry);
    const int most_threads = directive(head, ".maxntid ", MAX_THREADS);
    for (const Kernel* kernel = emulated::kernels; kernel->name; kernel++) {
        if (string(kernel->name) != name) continue;
        modules[module].functions.push_back({kernel, most_threads, directive(head, ".minnctapersm ", 1)});
        *function = &modules[module].functions.back();
        return SUCCESS;
    }
    die("kernels.cpp does not list the kernel %s", name);
}

enum { MAX_THREADS_PER_BLOCK = 0, MAX_DYNAMIC_SHARED = 8 };

DRIVER cuFuncGetAttribute(int* value, int attribute, const Function* function) {
    CALL(nullptr);
    switch (attribute) {
        case MAX_THREADS_PER_BLOCK: *value = function->most_threads; return SUCCESS;
        case MAX_DYNAMIC_SHARED: *value = function->most_shared; return SUCCESS;
    }
    die("asked for attribute %d of a kernel, which it does not know", attribute);
}
DRIVER cuFuncSetAttribute(Function* function, int attribute, int value) {
    CALL(nullptr);
    if (attribute != MAX_DYNAMIC_SHARED) die("told attribute %d of a kernel, which it does not know", attribute);
    if (value < 0 || value > (int)MOST_SHARED_BYTES) return INVALID_VALUE;
    function->most_shared = value;
    return SUCCESS;
}

static int active(int* blocks, const Function* function, int threads) {
    *blocks = std::min(function->blocks_per_multiprocessor, (int)MAX_THREADS / threads);
    return SUCCESS;
}
DRIVER cuOccupancyMaxActiveBlocksPerMultiprocessor(int* blocks, const Function* function, int threads, size_t) {
    CALL(nullptr);
    return active(blocks, function, threads);
}
DRIVER cuOccupancyMaxActiveBlocksPerMultiprocessorWithFlags(int* blocks, const Function* f, int threads, size_t, unsigned) {
    CALL(nullptr);
    return active(blocks, f, threads);
}
static int potential(int* grid, int* threads, const Function* function) {
    *threads = function->most_threads;
    *grid = multiprocessors * std::max(1, (int)MAX_THREADS / *threads);
    return SUCCESS;
}
DRIVER cuOccupancyMaxPotentialBlockSize(int* grid, int* threads, const Function* function, void*, size_t, int) {
    CALL(nullptr);
    return potential(grid, threads, function);
}
DRIVER cuOccupancyMaxPotentialBlockSizeWithFlags(int* grid, int* threads, const Function* f, void*, size_t, int, unsigned) {
    CALL(nullptr);
    return potential(grid, threads, f);
}

static bool is_possible(const Function& function, const Geometry& launch) {
    const auto volume = [](dim3 size) { return (u64)size.x * size.y * size.z; };
    const u64 blocks = volume(launch.grid), threads = volume(launch.block);
    return blocks > 0 && blocks <= 0x7fffffff && launch.grid.y <= 0xffff && launch.grid.z <= 0xffff && threads > 0 &&
           threads <= (u64)function.most_threads && launch.block.z <= 64 && launch.dynamic_shared <= (u32)function.most_shared;
}

DRIVER cuLaunchKernel(const Function* f, unsigned grid_x, unsigned grid_y, unsigned grid_z, unsigned block_x,
                      unsigned block_y, unsigned block_z, unsigned shared_bytes, Stream* stream, void** from, void**) {
    CALL(stream);
    const Kernel& kernel = *f->kernel;
    const Geometry launch = {{grid_x, grid_y, grid_z}, {block_x, block_y, block_z}, shared_bytes};
    if (!is_possible(*f, launch)) return INVALID_VALUE;
    std::vector<std::max_align_t> arguments(kernel.argument_bytes / sizeof(std::max_align_t) + 1);
    kernel.copy(arguments.data(), from);
    if (idle) return SUCCESS;
    return enqueue(stream_of(stream), {string("launch of ") + kernel.name, [=, &kernel] {
        if (kernel.check) kernel.check(arguments.data(), launch);
        run_grid(kernel, arguments.data(), launch);
    }});
}
