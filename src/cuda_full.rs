//! An update that is more than the plain one, on a GPU; and what was measured, on its way to the host. Beside it on the
//! CPU: `src/full.rs`, `src/collect.rs`.
//!
//! The record of a step is made in device memory. An eager step then sends it to the oldest of [`PLACES`] in pinned memory,
//! with an event behind; a captured one cannot (no event of a graph can be asked), so that after a capture it is the
//! reader who sends it, and reads it next time. Everything is on one stream: no record changes while it is copied.

use crate::controller::Tables;
use crate::cuda::BLOCK;
use crate::cuda_capture::{is_capturing, refuse_reading};
use crate::cuda_control::count;
use crate::cuda_device::CudaDevice;
use crate::cuda_table::{Table, out_of_memory, while_doing};
use crate::error::Result;
use crate::kernels::Kernel;
use crate::metrics::Record;
use crate::table::{CollectTables, ControlState, FullParams, Sums, TensorSums, full_flags};
use cudarc::driver::sys::CUresult;
use cudarc::driver::{CudaEvent, CudaFunction, DriverError, HostSlice, LaunchConfig, PinnedHostSlice, PushKernelArg};
use std::sync::Arc;

#[derive(Debug)]
pub(crate) struct CudaFull {
    device: Arc<CudaDevice>,
    adamw_full: CudaFunction,
    params: FullParams,
    chunk_count: u32,
    recorder: Option<Recorder>,
}

impl CudaFull {
    pub(crate) fn new(device: &Arc<CudaDevice>, params: FullParams, tables: &Tables) -> Result<Self> {
        let measures = params.flags & full_flags::METRICS != 0;
        let recorder = measures.then(|| Recorder::new(device, tables)).transpose()?;
        Ok(Self {
            device: device.clone(),
            adamw_full: device.kernel(Kernel::AdamwFull)?.clone(),
            params,
            chunk_count: count(&tables.chunks),
            recorder,
        })
    }

    /// # Safety
    /// As for [`crate::cuda::Launcher::run`], for `chunks` of the tables this was made of; gradients are among what is
    /// written, if the control zeroes them.
    pub(crate) unsafe fn update(&self, rows: u64, chunks: u64, scalars: u64) -> Result<()> {
        if self.chunk_count == 0 {
            return Ok(()); // of empty tensors alone; a grid has to have a block
        }
        let sums = self.recorder.as_ref().map_or(0, |recorder| recorder.sums.address);
        let mut launch = self.device.stream.launch_builder(&self.adamw_full);
        launch.arg(&rows).arg(&chunks).arg(&scalars).arg(&self.params).arg(&sums);
        let grid = LaunchConfig { grid_dim: (self.chunk_count, 1, 1), block_dim: (BLOCK, 1, 1), shared_mem_bytes: 0 };
        // SAFETY: the arguments are those of the kernel in cuda/full.cuh, in type and order. One block a chunk, which lies
        // in its tensor (src/plan.rs), whose row names arrays as long as that (the caller's promise); with `METRICS`
        // there are as many sums.
        unsafe { launch.launch(grid) }.map_err(while_doing("launch the step"))?;
        Ok(())
    }

    /// The step has been launched. That it cannot be measured is no error of it: its record is dropped.
    pub(crate) fn measured(&mut self, rows: u64, scalars: u64, state: u64) {
        if let Some(recorder) = &mut self.recorder {
            let sent = recorder.collect(rows, scalars, state).and_then(|()| recorder.send_unless_captured());
            recorder.dropped += u64::from(sent.is_err());
        }
    }

    /// Of the record in device memory; 0 if nothing is measured.
    pub(crate) fn record_address(&self) -> u64 {
        self.recorder.as_ref().map_or(0, |recorder| recorder.record.address)
    }

    pub(crate) fn record(&mut self) -> Result<Option<Record>> {
        self.recorder.as_mut().map_or(Ok(None), Recorder::newest)
    }
}

/// How many records can be on their way, or wait to be read.
const PLACES: usize = 4;

const HEAD: usize = size_of::<ControlState>() / 8;
const WORDS: usize = size_of::<TensorSums>() / 8;

/// Collects a step's record, and sends it.
#[derive(Debug)]
struct Recorder {
    device: Arc<CudaDevice>,
    collect: CudaFunction,
    sums: Table<Sums>,
    firsts: Table<u32>,
    tensors: u32,
    /// A [`ControlState`] and the [`TensorSums`] of all tensors.
    record: Table<u64>,
    places: [Place; PLACES],
    /// How many have been sent.
    sent: u64,
    dropped: u64,
    /// Steps have been captured: there may be records that nobody has sent.
    captured: bool,
}

/// Where a record lies, or will lie when `arrived` is over.
#[derive(Debug)]
struct Place {
    memory: PinnedHostSlice<u64>,
    arrived: CudaEvent,
    /// From 1; 0: none was sent here.
    number: u64,
}

impl Place {
    fn new(device: &CudaDevice, words: usize) -> Result<Self> {
        let doing = while_doing("allocate the memory of the metrics");
        let allocating = |source: DriverError| match source.0 {
            CUresult::CUDA_ERROR_OUT_OF_MEMORY => out_of_memory(size_of::<u64>() * words, None, source),
            _ => doing(source),
        };
        let context = device.stream.context();
        // SAFETY: it is not read before a record has been copied there. Read by the host: not write-combined.
        let memory = unsafe { context.alloc_pinned_with_flags(words, 0) }.map_err(allocating)?;
        Ok(Self { memory, arrived: context.new_event(None).map_err(doing)?, number: 0 })
    }

    fn has_arrived(&self) -> Result<bool> {
        self.arrived.try_is_complete().map_err(while_doing("ask for the metrics"))
    }
}

impl Drop for Place {
    /// Memory to which a copy is on its way must not be freed; cudarc waits for it with several streams only.
    fn drop(&mut self) {
        let context = self.memory.context().clone();
        context.record_err(self.arrived.synchronize());
    }
}

impl Recorder {
    fn new(device: &Arc<CudaDevice>, tables: &Tables) -> Result<Self> {
        let (stream, doing) = (&device.stream, "allocate the tables of the metrics");
        let tensors = tables.firsts.len() - 1;
        let words = HEAD + WORDS * tensors;
        let place = || Place::new(device, words);
        Ok(Self {
            device: device.clone(),
            collect: device.kernel(Kernel::Collect)?.clone(),
            sums: Table::zeros(stream, tables.chunks.len(), doing)?,
            firsts: Table::of(stream, &tables.firsts, doing)?,
            tensors: u32::try_from(tensors).unwrap_or(u32::MAX), // which counts them
            record: Table::zeros(stream, words, doing)?,
            places: [place()?, place()?, place()?, place()?],
            sent: 0,
            dropped: 0,
            captured: false,
        })
    }

    /// Sums of chunks to a record of tensors.
    fn collect(&self, rows: u64, scalars: u64, state: u64) -> Result<()> {
        let (sums, firsts, record) = (self.sums.address, self.firsts.address, self.record.address);
        let tables = CollectTables { rows, scalars, sums, firsts, state, record };
        let mut launch = self.device.stream.launch_builder(&self.collect);
        launch.arg(&tables);
        let grid = LaunchConfig { grid_dim: (self.tensors, 1, 1), block_dim: (BLOCK, 1, 1), shared_mem_bytes: 0 };
        // SAFETY: the argument is the kernel's, a twin (src/twins.rs); it names our own tables and those of the step that
        // was launched just before, each with as many entries as there are tensors, chunks or classes.
        unsafe { launch.launch(grid) }.map_err(while_doing("launch the collection of the metrics"))?;
        Ok(())
    }

    fn send_unless_captured(&mut self) -> Result<()> {
        let captured = is_capturing(&self.device.stream)?;
        self.captured |= captured;
        if captured { Ok(()) } else { self.send() }
    }

    /// To the place of the oldest record; not if that one is still on its way, because then all are.
    fn send(&mut self) -> Result<()> {
        let Some(place) = self.places.iter_mut().min_by_key(|place| place.number) else { return Ok(()) };
        if place.number > 0 && !place.has_arrived()? {
            self.dropped += 1;
            return Ok(());
        }
        place.number = 0; // if what follows fails, there is nothing to read
        let (stream, sending) = (&self.device.stream, "send the metrics");
        let doing = while_doing(sending);
        // SAFETY: it is given to a copy on this stream.
        let (memory, written) = unsafe { place.memory.stream_synced_mut_slice(stream) };
        // SAFETY: of one length; read and freed only after the event that is recorded next, or after the stream.
        unsafe { self.record.send(memory, sending)? };
        drop(written);
        if let Err(error) = place.arrived.record(stream) {
            // Nobody else could tell when the copy is over.
            stream.synchronize().map_err(&doing)?;
            return Err(doing(error));
        }
        self.sent += 1;
        place.number = self.sent;
        Ok(())
    }

    fn newest(&mut self) -> Result<Option<Record>> {
        // To ask an event would end the capture with an error.
        refuse_reading(&self.device.stream, "read the metrics")?;
        if self.captured {
            self.send()?;
        }
        let mut newest: Option<&Place> = None;
        for place in &self.places {
            if place.number > newest.map_or(0, |newest| newest.number) && place.has_arrived()? {
                newest = Some(place);
            }
        }
        newest.map(|place| self.read(place)).transpose()
    }

    fn read(&self, place: &Place) -> Result<Record> {
        let words = place.memory.as_slice().map_err(while_doing("read the metrics"))?;
        let (head, sums) = words.split_at(HEAD);
        Ok(Record {
            state: bytemuck::pod_read_unaligned(bytemuck::cast_slice(head)),
            sums: bytemuck::cast_slice(sums).to_vec(),
            dropped: self.dropped,
        })
    }
}

// SAFETY: (both) repr(C), numbers of which any bits are a value.
unsafe impl bytemuck::AnyBitPattern for ControlState {}
// SAFETY: see above.
unsafe impl bytemuck::AnyBitPattern for TensorSums {}
// SAFETY: (both) of numbers zero is a value.
unsafe impl bytemuck::Zeroable for ControlState {}
// SAFETY: see above.
unsafe impl bytemuck::Zeroable for TensorSums {}
