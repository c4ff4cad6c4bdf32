// What may be otherwise without another bit. As it stands here it is the crate's; benches/gpu/variants.rs has what else
// is tried on a GPU, compiled with -D.
#pragma once

// Elements of a thread at a time where all is f32, 4 or 8; and the blocks a multiprocessor is to hold at once, which
// bounds the registers.
#ifndef F32_LANES
#define F32_LANES 4
#endif
#ifndef F32_BLOCKS
#define F32_BLOCKS 4
#endif
#ifndef MIXED_BLOCKS
#define MIXED_BLOCKS 3
#endif

// Whether 16-byte accesses tell the L2 cache to evict their line first.
#ifndef STREAM_LOADS
#define STREAM_LOADS 0
#endif
#ifndef STREAM_STORES
#define STREAM_STORES 0
#endif

// Whether a block takes every gridDim.x-th chunk, up to one that is empty, instead of one.
#ifndef PERSISTENT
#define PERSISTENT 0
#endif
