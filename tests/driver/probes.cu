// Kernels for tests/cuda/emulator.rs: what the emulator has to do right, and what it has to report.

#define PROBE extern "C" __global__ void

typedef unsigned int word;
typedef unsigned long long wide;

// ---- right -------------------------------------------------------------------------------------------------------

PROBE probe_copy(const word* from, word* to, word len) {
    const word i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < len) to[i] = from[i];
}

// The sum of the block's part: shuffles, shared memory, a barrier.
template <class T>
__device__ T block_sum(T x) {
    __shared__ T sums[32];
    for (int lanes = 16; lanes > 0; lanes /= 2) x += __shfl_down_sync(~0u, x, lanes);
    if (threadIdx.x % 32 == 0) sums[threadIdx.x / 32] = x;
    __syncthreads();
    T sum = 0;
    for (word i = 0; i < blockDim.x / 32; i++) sum += sums[i];
    return sum;
}

PROBE probe_sum(const double* from, double* sums) {
    const double sum = block_sum(from[blockIdx.x * blockDim.x + threadIdx.x]);
    if (threadIdx.x == 0) sums[blockIdx.x] = sum;
}

// Every warp operation and vote, to be compared with what they are by definition.
PROBE probe_warp(word* to) {
    const word lane = threadIdx.x % 32, all = ~0u;
    word* out = to + 10 * (blockIdx.x * blockDim.x + threadIdx.x);
    out[0] = __shfl_sync(all, lane, 5);
    out[1] = __shfl_up_sync(all, lane, 3);
    out[2] = __shfl_down_sync(all, lane, 3);
    out[3] = __shfl_xor_sync(all, lane, 9);
    out[4] = __shfl_sync(all, lane, 1, 8);
    out[5] = __ballot_sync(all, lane % 3 == 0);
    out[6] = __any_sync(all, lane == 7) + 2 * __any_sync(all, lane > 31) + 4 * __all_sync(all, lane < 32) + 8 * __all_sync(all, lane > 0);
    out[7] = __syncthreads_count(threadIdx.x % 2 == 0);
    out[8] = __syncthreads_or(threadIdx.x == 40) + 2 * __syncthreads_and(threadIdx.x < 40);
    // Half a warp each.
    out[9] = lane < 16 ? __ballot_sync(0x0000ffff, lane % 2) : __ballot_sync(0xffff0000, lane % 4 == 0);
}

// A ring through a warp: what a lane wrote its neighbour reads, in turns.
PROBE probe_syncwarp(word* to) {
    __shared__ word ring[32];
    word x = threadIdx.x;
    for (int i = 0; i < 5; i++) {
        ring[threadIdx.x] = x;
        __syncwarp();
        x = ring[(threadIdx.x + 1) % 32];
        __syncwarp();
    }
    to[threadIdx.x] = x;
}

PROBE probe_atomics(word* to, float* sum, wide* wide_sum) {
    atomicAdd(&to[0], 1u);
    atomicMax(&to[1], blockIdx.x * blockDim.x + threadIdx.x);
    atomicMin(&to[2], threadIdx.x);
    atomicOr(&to[3], 1u << threadIdx.x % 32);
    atomicAnd(&to[4], ~(1u << threadIdx.x % 32));
    atomicInc(&to[5], 6u);
    atomicCAS(&to[6], threadIdx.x, threadIdx.x + 1);
    atomicAdd(sum, 0.5f);
    atomicAdd(wide_sum, (wide)1 << 33);
}

// Reverses the block's words in memory whose size the launch says.
PROBE probe_dynamic(word* to) {
    extern __shared__ word dynamic_words[];
    dynamic_words[threadIdx.x] = to[threadIdx.x];
    __syncthreads();
    to[threadIdx.x] = dynamic_words[blockDim.x - 1 - threadIdx.x];
}

// ---- wrong -------------------------------------------------------------------------------------------------------

PROBE probe_read_at(const char* from, long long offset) { (void)*(volatile const word*)(from + offset); }
PROBE probe_write_at(char* to, long long offset) { *(volatile word*)(to + offset) = 1; }
PROBE probe_read_table(const word* const* table) { (void)*(volatile const word*)table[threadIdx.x]; }
PROBE probe_vector_at(const char* from, uint4* to, long long offset) { *to = *(const uint4*)(from + offset); }

// The barrier between the two is missing.
PROBE probe_no_barrier(word* to) {
    __shared__ word words[64];
    words[threadIdx.x] = threadIdx.x;
    to[threadIdx.x] = words[63 - threadIdx.x];
}

// A warp's operations order its own memory alone.
PROBE probe_syncwarp_for_barrier(word* to) {
    __shared__ word words[64];
    words[threadIdx.x] = threadIdx.x;
    __syncwarp();
    to[threadIdx.x] = words[63 - threadIdx.x];
}

// A shuffle orders no memory.
PROBE probe_shuffle_for_syncwarp(word* to) {
    __shared__ word words[32];
    words[threadIdx.x] = threadIdx.x;
    __shfl_sync(~0u, 1, 0);
    to[threadIdx.x] = words[31 - threadIdx.x];
}

// Everybody reads the first word, and then a thread changes it.
PROBE probe_late_write(word* to) {
    __shared__ word word_of_all;
    if (threadIdx.x == 0) word_of_all = to[0];
    __syncthreads();
    const word x = *(volatile word*)&word_of_all;
    if (threadIdx.x == 5) word_of_all = x + 1;
}

// The first of its readers writes it, when the others have read it, too; the shuffle orders nothing.
PROBE probe_first_reader_writes(word* to) {
    const word x = *(volatile word*)to;
    __shfl_sync(~0u, 1, 0);
    if (threadIdx.x == 0) to[0] = x + 1;
}

PROBE probe_global_race(word* to) {
    to[threadIdx.x] = 1;
    to[(threadIdx.x + 1) % blockDim.x] = 2;
}

// With a barrier it is none.
PROBE probe_global_turns(word* to) {
    to[threadIdx.x] = 1;
    __syncthreads();
    to[(threadIdx.x + 1) % blockDim.x] = 2;
}

PROBE probe_blocks_write_one(word* to) { to[0] = blockIdx.x; }
PROBE probe_blocks_read_one(word* to) {
    if (blockIdx.x == 1) to[0] = 1;
    else (void)*(volatile word*)to;
}
PROBE probe_atomic_and_plain(word* to) {
    if (blockIdx.x == 1) to[0] = 1;
    else atomicAdd(to, 1u);
}
// Neighbours of less than a word are no race.
PROBE probe_narrow(unsigned char* to) { to[threadIdx.x] = (unsigned char)threadIdx.x; }

PROBE probe_half_at_barrier() {
    if (threadIdx.x < 16) __syncthreads();
}
PROBE probe_two_barriers() {
    if (threadIdx.x < 16) __syncthreads();
    else
        __syncthreads();
}
PROBE probe_barrier_after_exit() {
    if (threadIdx.x == 3) return;
    __syncthreads();
}

PROBE probe_mask_without_caller() { __shfl_sync(0xfffffffe, 1, 1); }
PROBE probe_mask_of_ended() {
    if (threadIdx.x == 31) return;
    __ballot_sync(~0u, 1);
}
PROBE probe_mask_of_never() {
    if (threadIdx.x == 31) __syncthreads();
    else __ballot_sync(~0u, 1);
}
PROBE probe_read_outside_mask() {
    if (threadIdx.x < 16) __shfl_sync(0x0000ffff, 1, 20);
}
PROBE probe_two_operations() {
    if (threadIdx.x < 16) __shfl_sync(~0u, 1, 0);
    else __ballot_sync(~0u, 1);
}

PROBE probe_unwritten_shared(word* to) {
    __shared__ word words[32];
    if (threadIdx.x != 7) words[threadIdx.x] = 1;
    __syncthreads();
    to[threadIdx.x] = words[threadIdx.x];
}
// What another block wrote is gone.
PROBE probe_shared_of_another_block(word* to) {
    __shared__ word words[32];
    if (blockIdx.x == to[0]) words[threadIdx.x] = 1;
    __syncthreads();
    if (blockIdx.x != to[0]) (void)*(volatile word*)&words[threadIdx.x];
}
PROBE probe_outside_shared(word* to, word index) {
    __shared__ word words[32];
    words[index] = 1;
    to[0] = words[index];
}

struct Big {
    word at[100];
};
PROBE probe_argument(word* to, const Big big) { to[threadIdx.x] = big.at[threadIdx.x]; }
PROBE probe_outside_argument(word* to, const Big big, word index) { to[0] = big.at[index]; }
