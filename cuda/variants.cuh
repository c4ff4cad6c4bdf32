// Constants that change no bit. As they stand here they are the crate's; tests/shared/variants.rs has what else
// is tried on a GPU, compiled with -D.
#pragma once

// The blocks that a multiprocessor is to hold at once, which bounds the registers: where all is of one dtype, and in any
// other list.
#ifndef UNIFORM_BLOCKS
#define UNIFORM_BLOCKS 6
#endif
#ifndef MIXED_BLOCKS
#define MIXED_BLOCKS 5
#endif
