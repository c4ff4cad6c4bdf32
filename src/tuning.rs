//! Kernels and a geometry other than the crate's own, for the bench of variants and for tests. No option of the crate:
//! what is best becomes what everybody gets.

use crate::plan::{CHUNK_STEP, GPU_CHUNK_LEN};

/// What is not as the crate has it. Whatever it says, the bits are the same.
#[doc(hidden)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tuning<'a> {
    /// Kernels in place of this build's: those of `cuda/`, with other constants of `cuda/variants.cuh`.
    pub ptx: Option<&'a str>,
    /// Elements of a chunk, at most; no more than a block takes, and a multiple of what a chunk's length has to be.
    pub chunk_len: Option<u32>,
}

impl Tuning<'_> {
    pub(crate) fn chunk_len(self) -> u32 {
        self.chunk_len.map_or(GPU_CHUNK_LEN, |len| len.clamp(1, GPU_CHUNK_LEN).next_multiple_of(CHUNK_STEP))
    }
}
