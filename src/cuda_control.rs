//! A controlled step on a GPU: its tables in device memory, and the two launches before the update. Beside it on the
//! CPU: `src/controller.rs`.
//!
//! Everything that changes from step to step lies on the device, so that a captured step is right at every replay.

use crate::classes::Classes;
use crate::control::Control;
use crate::controller::Tables;
use crate::cuda::BLOCK;
use crate::cuda_capture::refuse_capture;
use crate::cuda_device::{CudaDevice, describe};
use crate::cuda_full::CudaFull;
use crate::cuda_table::{Table, while_doing};
use crate::error::{Error, Result};
use crate::kernels::Kernel;
use crate::metrics::Record;
use crate::table::{
    Chunk, Class, ControlParams, ControlState, Counter, FinalizeTables, Hyper, NormPart, StepScalars, control_flags,
    norm_words,
};
use cudarc::driver::{CudaFunction, CudaSlice, DevicePtr, LaunchConfig, PushKernelArg};
use std::mem::offset_of;
use std::sync::Arc;

/// Threads of the one block of `finalize`: `FINALIZE_BLOCK` of `cuda/finalize.cuh`.
const FINALIZE_BLOCK: u32 = 1024;

/// 2^40 / 8192 and 2^32 at most, far below what a u64 of blocks can be.
pub(crate) fn count(chunks: &[Chunk]) -> u32 {
    u32::try_from(chunks.len()).unwrap_or(u32::MAX)
}

#[derive(Debug)]
pub(crate) struct CudaControl {
    device: Arc<CudaDevice>,
    finalize: CudaFunction,
    params: Table<ControlParams>,
    /// The schedule's factors, if they are listed.
    _list: Table<f64>,
    /// After and before the last step.
    state: Table<ControlState>,
    chunks: Table<Chunk>,
    /// Of these, those of which the norm is asked for: all, or 0.
    chunk_count: u32,
    full: Option<CudaFull>,
    /// Zeros between two steps.
    parts: Table<NormPart>,
    part_count: u32,
    /// A part is of one tensor.
    skips_tensors: bool,
    /// The norm was launched and the decision was not, which clears the parts.
    stale_parts: bool,
    /// Of each tensor, if RMS_t is watched.
    lens: Option<Table<u64>>,
    tensor_count: u32,
    hypers: Table<Hyper>,
    classes: Table<Class>,
    /// What `classes` holds.
    uploaded: Vec<Class>,
    counters: Table<Counter>,
    /// How many of them count.
    counted: usize,
    scalars: Table<StepScalars>,
    /// A multiplier of the user's.
    grad_scalar: Option<Arc<CudaSlice<f32>>>,
    /// The multipliers that graphs read.
    captured_scalars: Vec<Arc<CudaSlice<f32>>>,
    /// The last step was decided, but its update was not launched.
    undo: bool,
    /// True if the current step is recorded in a graph and not executed.
    is_capturing: bool,
}

impl CudaControl {
    pub(crate) fn new(device: &Arc<CudaDevice>, control: &Control, tables: &Tables, tensors: usize) -> Result<Self> {
        let stream = &device.stream;
        let doing = "upload the control of the steps";
        let list = Table::of(stream, control.schedule.list(), doing)?;
        let params = control.params(list.address);
        let chunk_count = if tables.norm { count(&tables.chunks) } else { 0 };
        let parts = match params.flags & control_flags::SKIP_TENSOR {
            _ if chunk_count == 0 => 0,
            0 => norm_words::NORM_PARTS as usize,
            _ => tensors,
        };
        let mut counters = Table::zeros(stream, tensors, doing)?;
        counters.upload(&tables.counts.iter().map(|&now| Counter { now, before: now }).collect::<Vec<_>>(), doing)?;
        if tables.norm {
            device.kernel(Kernel::GradNorm)?; // now, and not in the first step
        }
        Ok(Self {
            device: device.clone(),
            finalize: device.kernel(Kernel::Finalize)?.clone(),
            params: Table::of(stream, &[params], doing)?,
            _list: list,
            state: Table::of(stream, &[tables.state; 2], doing)?,
            chunks: Table::of(stream, &tables.chunks, doing)?,
            chunk_count,
            full: tables.full.map(|params| CudaFull::new(device, params, tables)).transpose()?,
            parts: Table::zeros(stream, parts, doing)?,
            part_count: u32::try_from(parts).unwrap_or(u32::MAX), // which counts tensors
            skips_tensors: params.flags & control_flags::SKIP_TENSOR != 0,
            stale_parts: false,
            lens: (!tables.lens.is_empty()).then(|| Table::of(stream, &tables.lens, doing)).transpose()?,
            tensor_count: u32::try_from(tensors).unwrap_or(u32::MAX), // which counts them
            hypers: Table::of(stream, &tables.hypers, doing)?,
            classes: Table::zeros(stream, tensors, doing)?,
            uploaded: Vec::new(),
            counted: tables.counts.len(),
            counters,
            scalars: Table::zeros(stream, tensors, doing)?,
            grad_scalar: None,
            captured_scalars: Vec::new(),
            undo: false,
            is_capturing: false,
        })
    }

    pub(crate) fn set_hyper(&mut self, group: usize, hyper: Hyper) -> Result<()> {
        self.hypers.upload_at(group, &[hyper], "upload the hyper-parameters of a group")
    }

    pub(crate) fn set_hypers(&mut self, hypers: &[Hyper]) -> Result<()> {
        self.hypers.upload(hypers, "upload the hyper-parameters")
    }

    pub(crate) fn grad_scalar(&self) -> Option<Arc<CudaSlice<f32>>> {
        self.grad_scalar.clone()
    }

    pub(crate) fn scale_grads_by(&mut self, scalar: Option<Arc<CudaSlice<f32>>>) -> Result<()> {
        if let Some(scalar) = &scalar {
            let expected = || describe(self.device.stream.context());
            self.device
                .check_context(scalar.context())
                .map_err(|actual| Error::ScalarDevice { expected: expected(), actual })?;
            if scalar.len() != 1 {
                return Err(Error::ScalarLength { actual: scalar.len() });
            }
        }
        self.grad_scalar = scalar;
        Ok(())
    }

    pub(crate) fn loss_scale_address(&self) -> u64 {
        self.state.address + offset_of!(ControlState, loss_scale) as u64
    }

    pub(crate) fn state(&self) -> Result<ControlState> {
        Ok(self.state.read(usize::from(self.undo), 1)?[0])
    }

    pub(crate) fn counts(&self) -> Result<Vec<u64>> {
        let counters = self.counters.read(0, self.counted)?;
        Ok(counters.into_iter().map(|counter| self.applied(counter)).collect())
    }

    pub(crate) fn count(&self, class: usize) -> Result<u64> {
        Ok(self.applied(self.counters.read(class, 1)?[0]))
    }

    const fn applied(&self, counter: Counter) -> u64 {
        if self.undo { counter.before } else { counter.now }
    }

    /// Where the scalars of the step will lie.
    pub(crate) fn scalars(&self) -> u64 {
        self.scalars.address
    }

    /// The classes of the step; those that were split begin with the counts of those they were part of.
    pub(crate) fn set_classes(&mut self, classes: &Classes, split: &[(u32, u32)]) -> Result<()> {
        let doing = "split the step counts";
        refuse_capture(&self.device.stream, doing)?;
        split.iter().try_for_each(|&(old, new)| self.counters.copy_within(old as usize, new as usize, doing))?;
        self.uploaded.clear();
        self.classes.upload(&classes.list, "upload the classes of tensors")?;
        self.uploaded.clone_from(&classes.list);
        self.counted = classes.list.len();
        Ok(())
    }

    /// Begins a step. Keeps the multiplier of a captured step alive. Refuses to capture a step that takes back a decision:
    /// every replay would take back one.
    pub(crate) fn begin(&mut self, is_capturing: bool) -> Result<()> {
        self.is_capturing = is_capturing;
        if !is_capturing {
            return Ok(());
        }
        if self.undo {
            refuse_capture(&self.device.stream, "take back the step that failed")?;
        }
        let is_kept =
            |scalar: &&Arc<CudaSlice<f32>>| self.captured_scalars.iter().any(|kept| Arc::ptr_eq(kept, scalar));
        let new = self.grad_scalar.as_ref().filter(|scalar| !is_kept(scalar)).cloned();
        self.captured_scalars.extend(new);
        Ok(())
    }

    /// Norm and decision: the scalars are there for whatever is launched next.
    ///
    /// # Safety
    /// `rows` is the address of as many rows as the chunks name, and their gradients may be read on the stream.
    pub(crate) unsafe fn decide(&mut self, rows: u64, grad_scale: f64) -> Result<()> {
        // SAFETY: the caller's promise.
        unsafe { self.norm(rows)? };
        // The guard waits for who writes it, and records our reading after the launch.
        let scalar = self.grad_scalar.as_ref().map(|scalar| scalar.device_ptr(&self.device.stream));
        let tables = self.tables(grad_scale, scalar.as_ref().map_or(0, |(address, _)| *address));
        let mut launch = self.device.stream.launch_builder(&self.finalize);
        launch.arg(&tables);
        let grid = LaunchConfig { grid_dim: (1, 1, 1), block_dim: (FINALIZE_BLOCK, 1, 1), shared_mem_bytes: 0 };
        // SAFETY: the argument is the kernel's, a twin (src/twins.rs); it names our own tables with their lengths, and
        // classes, counters and scalars have room for as many as there are tensors, which classes never outnumber.
        unsafe { launch.launch(grid) }.map_err(while_doing("launch the decision on the step"))?;
        drop(scalar);
        (self.undo, self.stale_parts) = (!self.is_capturing, false);
        Ok(())
    }

    /// Adds the gradients' squares to the parts, if they are asked for.
    ///
    /// # Safety
    /// As for [`CudaControl::decide`].
    unsafe fn norm(&mut self, rows: u64) -> Result<()> {
        if self.chunk_count == 0 {
            return Ok(());
        }
        let doing = "launch the norm of the gradients";
        let kernel = self.device.kernel(Kernel::GradNorm)?;
        if self.stale_parts {
            self.parts.clear(doing)?;
        }
        let by_tensor = u32::from(self.skips_tensors);
        let mut launch = self.device.stream.launch_builder(kernel);
        launch.arg(&rows).arg(&self.chunks.address).arg(&self.parts.address).arg(&by_tensor);
        let grid = LaunchConfig { grid_dim: (self.chunk_count, 1, 1), block_dim: (BLOCK, 1, 1), shared_mem_bytes: 0 };
        self.stale_parts = true;
        // SAFETY: the arguments are those of the kernel, in type and order. One block a chunk; every chunk lies in its
        // tensor (src/plan.rs), whose row names a gradient as long as that (the caller's promise). There are `NORM_PARTS`
        // parts, or with `by_tensor` one of each tensor.
        unsafe { launch.launch(grid) }.map_err(while_doing(doing))?;
        Ok(())
    }

    /// Whether the update is more than the plain one.
    pub(crate) const fn updates(&self) -> bool {
        self.full.is_some()
    }

    /// Launches that update.
    ///
    /// # Safety
    /// As for [`CudaControl::decide`]; and what the rows name may be written.
    pub(crate) unsafe fn update(&self, rows: u64) -> Result<()> {
        let Some(full) = &self.full else { return Ok(()) };
        // SAFETY: the caller's promise; there are scalars for every class, and the chunks are those it was made with.
        unsafe { full.update(rows, self.chunks.address, self.scalars.address) }
    }

    /// The update has been launched as well.
    pub(crate) fn done(&mut self, rows: u64) {
        self.undo = false;
        let (scalars, state) = (self.scalars.address, self.state.address);
        self.full.iter_mut().for_each(|full| full.measured(rows, scalars, state));
    }

    pub(crate) fn record(&mut self) -> Result<Option<Record>> {
        self.full.as_mut().map_or(Ok(None), CudaFull::record)
    }

    fn tables(&self, grad_scale: f64, grad_scalar: u64) -> FinalizeTables {
        FinalizeTables {
            params: self.params.address,
            state: self.state.address,
            parts: self.parts.address,
            hypers: self.hypers.address,
            classes: self.classes.address,
            counters: self.counters.address,
            scalars: self.scalars.address,
            grad_scalar,
            record: self.full.as_ref().map_or(0, CudaFull::record_address),
            lens: self.lens.as_ref().map_or(0, |lens| lens.address),
            grad_scale,
            part_count: self.part_count,
            class_count: u32::try_from(self.uploaded.len()).unwrap_or(u32::MAX), // no more than tensors
            tensor_count: self.tensor_count,
            undo: self.undo.into(),
        }
    }
}
