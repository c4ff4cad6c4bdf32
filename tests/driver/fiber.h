// A call that can stop in the middle and go on later: a stack of its own, and the switch to it and back.
#pragma once
#include "calls.h"

#include <sys/mman.h>
#ifdef __SANITIZE_ADDRESS__
#include <sanitizer/common_interface_defs.h>
#endif

#ifdef __x86_64__
// Keeps the registers that a call has to keep on the stack that it leaves.
extern "C" __attribute__((visibility("hidden"))) void emulated_switch(void** from, void* to);
asm(R"(
.pushsection .text
.globl emulated_switch
.hidden emulated_switch
.type emulated_switch, @function
emulated_switch:
    push %rbp
    push %rbx
    push %r12
    push %r13
    push %r14
    push %r15
    mov %rsp, (%rdi)
    mov %rsi, %rsp
    pop %r15
    pop %r14
    pop %r13
    pop %r12
    pop %rbx
    pop %rbp
    ret
.size emulated_switch, . - emulated_switch
.popsection
)");
#else
#include <ucontext.h>
#endif

struct Stack {
    static constexpr size_t PAGE = 4096, BYTES = 256 << 10;
    char* low;
#ifdef __x86_64__
    void* at = nullptr; // where it stopped
#else
    ucontext_t at;
#endif

    // Behind a page that nobody may touch.
    Stack() : low((char*)mmap(nullptr, PAGE + BYTES, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0)) {
        if (low == MAP_FAILED) die("no memory for a stack");
        mprotect(low, PAGE, PROT_NONE);
        low += PAGE;
    }

    // The next switch to it calls `entry`, which never returns.
    void prepare(void (*entry)()) {
#ifdef __x86_64__
        void** top = (void**)(low + BYTES);
        *--top = nullptr; // a return address is 8 bytes off a boundary of 16
        *--top = (void*)entry;
        at = top - 6; // six registers of any value
#else
        getcontext(&at);
        at.uc_stack.ss_sp = low, at.uc_stack.ss_size = BYTES, at.uc_link = nullptr;
        makecontext(&at, entry, 0);
#endif
    }
};

// The stack of who switches to fibers: none of ours.
struct Caller {
    decltype(Stack::at) at;
    const void* low = nullptr;
    size_t bytes = 0;
};

#ifdef __SANITIZE_ADDRESS__
#define BEFORE_SWITCH(low, bytes) __sanitizer_start_switch_fiber(nullptr, low, bytes)
#define AFTER_SWITCH(low, bytes) __sanitizer_finish_switch_fiber(nullptr, low, bytes)
#else
#define BEFORE_SWITCH(low, bytes) (void)0
#define AFTER_SWITCH(low, bytes) (void)0
#endif

static void swap(decltype(Stack::at)& from, decltype(Stack::at)& to) {
#ifdef __x86_64__
    emulated_switch(&from, to);
#else
    swapcontext(&from, &to);
#endif
}

static void enter(Caller& caller, Stack& stack) {
    BEFORE_SWITCH(stack.low, Stack::BYTES);
    swap(caller.at, stack.at);
    AFTER_SWITCH(nullptr, nullptr);
}

static void leave(Stack& stack, Caller& caller) {
    BEFORE_SWITCH(caller.low, caller.bytes);
    swap(stack.at, caller.at);
    AFTER_SWITCH(&caller.low, &caller.bytes);
}
