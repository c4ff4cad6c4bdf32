//! The optimizer's own memory: one allocation for all tensors, cut into slots.

use crate::error::{Error, Result};

/// f32 memory of the device, zero at first, of a fixed address.
#[derive(Debug)]
pub(crate) enum Arena {
    /// Every access goes through the address that was exposed when it was made.
    Host(Vec<f32>),
    #[cfg(feature = "cuda")]
    Cuda(crate::cuda_table::Table<f32>),
}

impl Arena {
    /// `len` zeros on the host.
    pub(crate) fn host(len: usize) -> Result<Self> {
        let zeros = bytemuck::allocation::try_zeroed_slice_box(len).map_err(|()| no_host_memory::<f32>(len))?;
        let mut zeros: Vec<f32> = zeros.into_vec();
        zeros.as_mut_ptr().expose_provenance();
        Ok(Self::Host(zeros))
    }

    /// Of the first element.
    pub(crate) fn address(&self) -> u64 {
        match self {
            Self::Host(memory) => memory.as_ptr() as u64,
            #[cfg(feature = "cuda")]
            Self::Cuda(memory) => memory.address,
        }
    }

    /// A copy of `len` elements from `offset` on; on a GPU this waits for the stream.
    pub(crate) fn read(&self, offset: usize, len: usize) -> Result<Vec<f32>> {
        match self {
            Self::Host(memory) => copy_of(&memory[offset..offset + len]),
            #[cfg(feature = "cuda")]
            Self::Cuda(memory) => memory.read(offset, len),
        }
    }
}

/// A copy in host memory, if there is as much.
fn copy_of<T: Copy>(from: &[T]) -> Result<Vec<T>> {
    let mut copy = room_for(from.len())?;
    copy.extend_from_slice(from);
    Ok(copy)
}

/// An empty vector with room for `len`, if there is as much memory.
pub(crate) fn room_for<T>(len: usize) -> Result<Vec<T>> {
    let mut room = Vec::new();
    room.try_reserve_exact(len).map_err(|_| no_host_memory::<T>(len))?;
    Ok(room)
}

/// The host has no memory for `len` more.
pub(crate) fn no_host_memory<T>(len: usize) -> Error {
    Error::OutOfMemory {
        bytes: (len as u64).saturating_mul(size_of::<T>() as u64),
        gpu: None,
        #[cfg(feature = "cuda")]
        source: None,
    }
}

/// Where a tensor's slot begins in an [`Arena`], in elements.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Slot {
    pub(crate) arena: usize,
    pub(crate) offset: usize,
}

/// Hands out slots of an arena that is yet to be allocated.
#[derive(Debug, Default)]
pub(crate) struct Layout {
    pub(crate) arena: usize,
    pub(crate) len: usize,
}

/// A slot begins on a boundary of as many elements (64 bytes, a cache line)...
const SLOT_ALIGN: usize = 16;
/// ... and leaves room for its data to begin up to so many elements later: in phase with the parameter.
pub(crate) const PHASES: usize = 8;

impl Layout {
    /// Room for a tensor of `len` elements, at most 2^40 in all.
    pub(crate) fn slot(&mut self, len: usize) -> Slot {
        let offset = self.len;
        if len > 0 {
            self.len += (len + PHASES - 1).next_multiple_of(SLOT_ALIGN);
        }
        Slot { arena: self.arena, offset }
    }

    /// The next slots begin a section of their own: at another place of the page than those of the section before.
    /// A processor takes a load for one of what was just stored at the same offset of another page, and waits; with
    /// m and v a page less 64 bytes apart, 10,000 tensors of 1,000 elements took a quarter longer.
    pub(crate) fn section(&mut self) {
        const PAGE: usize = 4096 / 4;
        const APART: usize = 21 * SLOT_ALIGN; // a third of a page, for three sections
        self.len = self.len.next_multiple_of(PAGE) + if self.len > 0 { APART } else { 0 };
    }
}
