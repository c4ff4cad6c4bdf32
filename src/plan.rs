//! Lengths to chunks. The plan is data: nothing is launched while it is made, so an empty tensor needs no branch,
//! and no tensor's place in the list can matter.

use crate::table::Chunk;

#[cfg(all(test, feature = "cuda"))]
mod waves;

/// How a list of tensors is cut.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Plan {
    lens: Vec<u64>,
    chunk_len: u32,
}

/// Elements of one optimizer, at most: 12 TiB of f32 state. Far below what a 64-bit offset or a grid can count.
pub(crate) const MAX_ELEMENTS: u64 = 1 << 40;

/// Tensors of one optimizer, at most: their indices are `u32`.
pub(crate) const MAX_TENSORS: usize = u32::MAX as usize;

/// A chunk's start is a multiple of this, so that the alignment of a tensor's first element is that of each chunk.
pub(crate) const CHUNK_STEP: u32 = 8;

impl Plan {
    /// `chunk_len` is a multiple of [`CHUNK_STEP`].
    pub(crate) fn new(lens: Vec<u64>, chunk_len: u32) -> Self {
        debug_assert!(chunk_len > 0 && chunk_len.is_multiple_of(CHUNK_STEP));
        Self { lens, chunk_len }
    }

    /// Every element of every tensor, once, in order.
    pub(crate) fn chunks(&self) -> impl Iterator<Item = Chunk> {
        (0_u32..).zip(&self.lens).flat_map(|(tensor, &len)| self.chunks_of(tensor, len))
    }

    fn chunks_of(&self, tensor: u32, len: u64) -> impl Iterator<Item = Chunk> + use<> {
        let step = u64::from(self.chunk_len);
        (0..len.div_ceil(step)).map(move |i| {
            let start = i * step;
            #[expect(clippy::cast_possible_truncation, reason = "at most `chunk_len`")]
            let len = step.min(len - start) as u32;
            Chunk { start, tensor, len }
        })
    }
}

/// Elements of a chunk on a GPU: what a block of `cuda/adamw.cu` takes at once, 256 threads with 4 each. Blocks that take
/// more, one round after the other, are slower (`benches/record/`): those that are at work at one time are then further
/// apart in memory. A chunk's 16 bytes in the table are a tenth of a percent of its parameters and state.
#[cfg(feature = "cuda")]
pub(crate) const GPU_CHUNK_LEN: u32 = 1024;
#[cfg(feature = "cuda")]
const _: () =
    assert!(GPU_CHUNK_LEN.is_multiple_of(CHUNK_STEP) && MAX_ELEMENTS / (GPU_CHUNK_LEN as u64) < 1 << 31, "one grid");

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const STEP: u32 = 16;

    fn len() -> impl Strategy<Value = u64> {
        let c = u64::from(STEP);
        prop_oneof![Just(0), Just(1), Just(c - 1), Just(c), Just(c + 1), Just(2 * c + 1), 0..5 * c]
    }

    proptest! {
        #[test]
        fn every_element_is_covered_once_and_in_order(lens in prop::collection::vec(len(), 0..40)) {
            let plan = Plan::new(lens.clone(), STEP);
            let covered = plan.chunks().flat_map(|c| (c.start..c.start + u64::from(c.len)).map(move |i| (c.tensor, i)));
            let wanted = (0_u32..).zip(lens).flat_map(|(t, len)| (0..len).map(move |i| (t, i)));
            prop_assert!(covered.eq(wanted));
        }

        #[test]
        fn no_chunk_is_empty_or_too_long_and_each_starts_on_a_step(lens in prop::collection::vec(len(), 0..40)) {
            for c in Plan::new(lens, STEP).chunks() {
                prop_assert!(c.len > 0 && c.len <= STEP && c.start.is_multiple_of(u64::from(CHUNK_STEP)));
            }
        }
    }

    // Where 32-bit counts of elements or bytes wrap; no tensor is allocated.
    #[test]
    fn tensors_above_2_to_the_32_elements_are_covered_to_the_last_one() {
        for len in [(1_u64 << 31) + 1, (1 << 32) - 1, (1 << 32) + 3, 3 << 32] {
            let plan = Plan::new(vec![5, len, 0, 7], 16 * 1024);
            let mut end = 0;
            for c in plan.chunks().filter(|c| c.tensor == 1) {
                assert_eq!(c.start, end);
                end += u64::from(c.len);
            }
            assert_eq!(end, len);
            assert_eq!(plan.chunks().last(), Some(Chunk { start: 0, tensor: 3, len: 7 }));
        }
    }
}
