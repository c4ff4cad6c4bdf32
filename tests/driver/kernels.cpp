// The kernels that the driver can launch, compiled for the CPU: a line each in the table at the end. The one
// translation unit in which the compiler tells access.h of every access to memory.
#include "launch.h"

// An access that is a call of the library is told, too.
#ifdef __SANITIZE_THREAD__
extern "C" {
void* memcpy(void*, const void*, size_t) noexcept __asm__("__tsan_memcpy");
void* memmove(void*, const void*, size_t) noexcept __asm__("__tsan_memmove");
void* memset(void*, int, size_t) noexcept __asm__("__tsan_memset");
}
#endif

#include "adamw.cu"
#include "probes.cu"

DYNAMIC_SHARED(dynamic_words);
// The room behind those names: what a GPU of compute capability 7.5 has for a block.
asm(IN_DYNAMIC_SHARED(".globl emulated_dynamic_shared\nemulated_dynamic_shared:\n.zero 65536\n"));

// One block a chunk: neither a block without a chunk nor a chunk without a block, in the one table of them.
template <class Arguments>
static void one_block_a_chunk(const Arguments& arguments, const emulated::Geometry& launch) {
    const Chunk* chunks = std::get<1>(arguments);
    if (launch.block.x != BLOCK || launch.block.y * launch.block.z * launch.grid.y * launch.grid.z != 1) {
        emulated::die("blocks of %u threads, but the kernel is for %u", launch.block.x, BLOCK);
    }
    if (emulated::allocated_bytes(chunks) != launch.grid.x * sizeof(Chunk)) {
        emulated::die("%u blocks, which is not one a chunk", launch.grid.x);
    }
}

const emulated::Kernel emulated::kernels[] = {
    CHECKED_KERNEL(adamw_f32, one_block_a_chunk),
    CHECKED_KERNEL(adamw_bf16, one_block_a_chunk),
    CHECKED_KERNEL(adamw_f16, one_block_a_chunk),
    CHECKED_KERNEL(adamw_mixed, one_block_a_chunk),
    CHECKED_KERNEL(adamw_full, one_block_a_chunk),
    CHECKED_KERNEL(grad_norm, one_block_a_chunk),
    KERNEL(finalize),
    KERNEL(collect),
    CHECKED_KERNEL(accumulate, one_block_a_chunk),
    CHECKED_KERNEL(init_masters, one_block_a_chunk),
    KERNEL(probe_copy),
    KERNEL(probe_sum),
    KERNEL(probe_warp),
    KERNEL(probe_syncwarp),
    KERNEL(probe_atomics),
    KERNEL(probe_dynamic),
    KERNEL(probe_read_at),
    KERNEL(probe_write_at),
    KERNEL(probe_read_table),
    KERNEL(probe_vector_at),
    KERNEL(probe_no_barrier),
    KERNEL(probe_syncwarp_for_barrier),
    KERNEL(probe_shuffle_for_syncwarp),
    KERNEL(probe_late_write),
    KERNEL(probe_first_reader_writes),
    KERNEL(probe_global_race),
    KERNEL(probe_global_turns),
    KERNEL(probe_blocks_write_one),
    KERNEL(probe_blocks_read_one),
    KERNEL(probe_atomic_and_plain),
    KERNEL(probe_narrow),
    KERNEL(probe_half_at_barrier),
    KERNEL(probe_two_barriers),
    KERNEL(probe_barrier_after_exit),
    KERNEL(probe_mask_without_caller),
    KERNEL(probe_mask_of_ended),
    KERNEL(probe_mask_of_never),
    KERNEL(probe_read_outside_mask),
    KERNEL(probe_two_operations),
    KERNEL(probe_unwritten_shared),
    KERNEL(probe_shared_of_another_block),
    KERNEL(probe_outside_shared),
    KERNEL(probe_argument),
    KERNEL(probe_outside_argument),
    {},
};
