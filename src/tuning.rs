//! Kernels and a geometry other than the crate's own, for the bench of variants and for tests. No option of the crate:
//! what is best becomes what everybody gets.

use crate::plan::{CHUNK_STEP, Plan, gpu_chunk_len};
use crate::table::Chunk;

/// What is not as the crate has it. Whatever it says, the bits are the same.
#[doc(hidden)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tuning<'a> {
    /// Kernels in place of this build's: those of `cuda/`, with other constants of `cuda/variants.cuh`.
    pub ptx: Option<&'a str>,
    /// Elements of a chunk, at most; rounded up to what a chunk's length has to be a multiple of.
    pub chunk_len: Option<u32>,
    /// Blocks of an update, each of which takes many chunks: for kernels with `PERSISTENT`.
    pub grid: Option<u32>,
}

/// How the lists of one GPU are cut and launched.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Geometry {
    multiprocessors: u32,
    chunk_len: Option<u32>,
    grid: Option<u32>,
}

impl Geometry {
    pub(crate) fn new(multiprocessors: u32, tuning: Tuning<'_>) -> Self {
        let step = |len: u32| len.clamp(1, 1 << 24).next_multiple_of(CHUNK_STEP);
        Self { multiprocessors, chunk_len: tuning.chunk_len.map(step), grid: tuning.grid.map(|grid| grid.max(1)) }
    }

    pub(crate) fn plan(self, lens: Vec<u64>) -> Plan {
        let elements = lens.iter().sum();
        let chunk_len = self.chunk_len.unwrap_or_else(|| gpu_chunk_len(elements, self.multiprocessors));
        Plan::new(lens, chunk_len)
    }

    /// The blocks of an update of these chunks: one each, or a fixed number of which each stops at an empty chunk.
    pub(crate) fn grid(self, chunks: u32) -> u32 {
        self.grid.unwrap_or(chunks)
    }

    /// The table of chunks, with those empty ones.
    pub(crate) fn table(self, mut chunks: Vec<Chunk>) -> Vec<Chunk> {
        let empty = Chunk { start: 0, tensor: 0, len: 0 };
        chunks.extend((0..self.grid.unwrap_or(0)).map(|_| empty));
        chunks
    }
}
