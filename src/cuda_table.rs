//! The optimizer's own memory on a GPU, and the structs that lie there.

use crate::arena::room_for;
use crate::cuda_capture::{is_per_thread, refuse_capture, refuse_reading};
use crate::error::{Error, Result};
use crate::table::{
    Chunk, Class, CollectTables, ControlParams, ControlState, Counter, FinalizeTables, FullParams, Hyper,
    InlineScalars, MasterRow, NormPart, StepScalars, SumRow, Sums, TensorRow,
};
use cudarc::driver::sys::CUresult;
use cudarc::driver::{CudaStream, DeviceRepr, DriverError, ValidAsZeroBits, result};
use std::marker::PhantomData;
use std::sync::Arc;

// SAFETY: (all of these) repr(C), plain numbers without padding that anyone reads, of the same fields and size as their
// twins in cuda/table.cuh (asserted there, in src/table.rs and in src/twins.rs).
unsafe impl DeviceRepr for InlineScalars {}
// SAFETY: see above.
unsafe impl DeviceRepr for FinalizeTables {}
// SAFETY: see above.
unsafe impl DeviceRepr for FullParams {}
// SAFETY: see above.
unsafe impl DeviceRepr for CollectTables {}

/// What tables are made of.
macro_rules! in_tables {
    ($($row:ty),+) => {$(
        // SAFETY: as for the structs above.
        unsafe impl DeviceRepr for $row {}
        // SAFETY: plain numbers, for which zero is a value.
        unsafe impl ValidAsZeroBits for $row {}
    )+};
}
in_tables!(
    MasterRow,
    SumRow,
    TensorRow,
    Chunk,
    StepScalars,
    Hyper,
    ControlParams,
    ControlState,
    Class,
    Counter,
    NormPart,
    Sums
);

pub(crate) fn while_doing(doing: &'static str) -> impl Fn(DriverError) -> Error {
    move |source| Error::Driver { doing, source }
}

/// A driver has no memory, of that GPU or, with `None`, of the host.
pub(crate) fn out_of_memory(bytes: usize, gpu: Option<usize>, source: DriverError) -> Error {
    Error::OutOfMemory { bytes: bytes as u64, gpu, source: Some(source) }
}

/// Device memory of the optimizer's own. It is used on its own stream alone, where uses and the final free are in
/// order; so it needs none of the events of cudarc's `CudaSlice`, which is forgotten, not freed, if they cannot be made.
#[derive(Debug)]
pub(crate) struct Table<T> {
    pub(crate) address: u64,
    len: usize,
    stream: Arc<CudaStream>,
    element: PhantomData<T>,
}

impl<T: DeviceRepr + ValidAsZeroBits> Table<T> {
    /// Not in a capture: what is allocated there belongs to the graph.
    pub(crate) fn zeros(stream: &Arc<CudaStream>, len: usize, doing: &'static str) -> Result<Self> {
        refuse_capture(stream, doing)?;
        let bytes = len.max(1) * size_of::<T>(); // zero bytes cannot be allocated
        let address = allocate(stream, bytes).map_err(|source| match source.0 {
            CUresult::CUDA_ERROR_OUT_OF_MEMORY => out_of_memory(bytes, Some(stream.context().ordinal()), source),
            _ => Error::Driver { doing, source },
        })?;
        let mut table = Self { address, len, stream: stream.clone(), element: PhantomData };
        table.clear(doing)?;
        Ok(table)
    }

    /// Zeros from now on.
    pub(crate) fn clear(&mut self, doing: &'static str) -> Result<()> {
        let bytes = self.len.max(1) * size_of::<T>();
        // SAFETY: the whole of the allocation, of numbers for which zero is a value.
        unsafe { result::memset_d8_async(self.address, 0, bytes, self.stream.cu_stream()) }.map_err(while_doing(doing))
    }

    pub(crate) fn upload(&mut self, from: &[T], doing: &'static str) -> Result<()> {
        self.upload_at(0, from, doing)
    }

    /// `from` in place of the elements from `offset` on.
    pub(crate) fn upload_at(&mut self, offset: usize, from: &[T], doing: &'static str) -> Result<()> {
        if from.is_empty() {
            return Ok(());
        }
        refuse_capture(&self.stream, doing)?;
        assert!(offset + from.len() <= self.len, "a table is as long as what it holds");
        let to = self.address + (offset * size_of::<T>()) as u64;
        // SAFETY: within the allocation. The driver has taken its copy of memory that is not page-locked when it
        // returns.
        unsafe { result::memcpy_htod_async(to, from, self.stream.cu_stream()) }.map_err(while_doing(doing))
    }

    pub(crate) fn len(&self) -> usize {
        self.len
    }

    /// A copy of `from`.
    pub(crate) fn of(stream: &Arc<CudaStream>, from: &[T], doing: &'static str) -> Result<Self> {
        let mut table = Self::zeros(stream, from.len(), doing)?;
        table.upload(from, doing)?;
        Ok(table)
    }

    /// Copies one element to the place of another.
    pub(crate) fn copy_within(&mut self, from: usize, to: usize, doing: &'static str) -> Result<()> {
        assert!(from.max(to) < self.len && from != to, "two elements of the table");
        let at = |i: usize| self.address + (i * size_of::<T>()) as u64;
        // SAFETY: within the allocation, and apart.
        unsafe { result::memcpy_dtod_async(at(to), at(from), size_of::<T>(), self.stream.cu_stream()) }
            .map_err(while_doing(doing))
    }

    /// A copy of all to page-locked memory, which is not waited for.
    ///
    /// # Safety
    /// `to` is as long as the table, and is not read, written or freed before the copy is over.
    pub(crate) unsafe fn send(&self, to: &mut [T], doing: &'static str) -> Result<()> {
        assert!(to.len() == self.len, "as long as the table");
        // SAFETY: within the allocation; the caller's promise.
        unsafe { result::memcpy_dtoh_async(to, self.address, self.stream.cu_stream()) }.map_err(while_doing(doing))
    }

    /// `len` elements from `offset` on, after everything enqueued before.
    pub(crate) fn read(&self, offset: usize, len: usize) -> Result<Vec<T>>
    where
        T: Clone + Default,
    {
        const READ: &str = "read the optimizer's state";
        let doing = while_doing(READ);
        assert!(offset + len <= self.len, "a slot lies in its arena");
        refuse_reading(&self.stream, READ)?;
        if is_per_thread(&self.stream) {
            self.stream.context().synchronize().map_err(&doing)?; // another thread may have enqueued the last step
        }
        let mut copy = room_for(len)?;
        copy.resize(len, T::default());
        if len > 0 {
            let from = self.address + (offset * size_of::<T>()) as u64;
            // SAFETY: within the allocation; plain numbers, for which every bit pattern is a value; `copy` outlives
            // the copy, for which `synchronize` waits.
            unsafe { result::memcpy_dtoh_async(&mut copy, from, self.stream.cu_stream()) }.map_err(&doing)?;
        }
        self.stream.synchronize().map_err(doing)?;
        Ok(copy)
    }
}

fn allocate(stream: &CudaStream, bytes: usize) -> Result<u64, DriverError> {
    stream.context().bind_to_thread()?;
    if stream.context().has_async_alloc() {
        // SAFETY: a stream of the context that is current; the caller sets the memory before it is read.
        unsafe { result::malloc_async(stream.cu_stream(), bytes) }
    } else {
        // SAFETY: as above.
        unsafe { result::malloc_sync(bytes) }
    }
}

impl<T> Drop for Table<T> {
    /// A drop cannot return an error; the context keeps it for the next call.
    fn drop(&mut self) {
        let context = self.stream.context();
        context.record_err(context.bind_to_thread());
        if context.has_async_alloc() {
            // SAFETY: allocated by `allocate`, and freed once, after all that was enqueued before.
            context.record_err(unsafe { result::free_async(self.address, self.stream.cu_stream()) });
        } else {
            context.record_err(self.stream.synchronize());
            // SAFETY: as above; what was enqueued is done.
            context.record_err(unsafe { result::free_sync(self.address) });
        }
    }
}

/// `uploaded` is what the table holds; empty if that is not known.
pub(crate) fn upload_changed<T>(
    table: &mut Table<T>,
    uploaded: &mut Vec<T>,
    rows: &[T],
    doing: &'static str,
) -> Result<()>
where
    T: DeviceRepr + ValidAsZeroBits + Copy + PartialEq,
{
    if rows != uploaded.as_slice() {
        uploaded.clear();
        table.upload(rows, doing)?;
        uploaded.extend_from_slice(rows);
    }
    Ok(())
}
