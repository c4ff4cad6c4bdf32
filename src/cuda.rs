//! Uploads what changed, launches. Beside it on the CPU: `src/cpu.rs`.
//!
//! NOTE [guards]: the tables hold bare addresses, which cudarc's event tracking cannot see. So every tensor's view
//! gives its address together with a guard (`cuda_view.rs`), and all guards are held until the launch is enqueued;
//! dropping them records the use for other streams, and for the `free` of the tensor.

use crate::control::Control;
use crate::controller::Tables;
use crate::cuda_capture::{is_capturing, is_per_thread, refuse_capture};
use crate::cuda_control::CudaControl;
use crate::cuda_device::CudaDevice;
use crate::cuda_table::{Table, upload_changed, while_doing};
use crate::error::Result;
use crate::kernels::Kernel;
use crate::plan::Plan;
use crate::table::{Chunk, INLINE_SCALARS, InlineScalars, MasterRow, StepScalars, SumRow, TensorRow};
use cudarc::driver::{CudaFunction, LaunchConfig, PushKernelArg};
use std::sync::Arc;
use std::thread::{self, ThreadId};

/// Threads of a block: `BLOCK` of `cuda/block.cuh`.
pub(crate) const BLOCK: u32 = 256;

/// The tables of one optimizer in device memory.
#[derive(Debug)]
pub(crate) struct Launcher {
    device: Arc<CudaDevice>,
    chunks: Table<Chunk>,
    blocks: u32,
    rows: Table<TensorRow>,
    /// No other rows have been made since those of `rows` were uploaded.
    is_uploaded: bool,
    /// Of the last rows.
    update: Option<CudaFunction>,
    sums: Option<SumTable>,
    /// Rows of the masters that are read last; allocated for the first master.
    masters: Option<Table<MasterRow>>,
    /// Holds the scalars of a step that has more of them than fit into the arguments.
    spilled: Option<Table<StepScalars>>,
    /// The thread of the last use, if the stream is a per-thread default stream.
    thread: Option<ThreadId>,
}

/// Rows of the gradients that are added up, and the kernel.
#[derive(Debug)]
struct SumTable {
    kernel: CudaFunction,
    rows: Table<SumRow>,
    /// The contents of `rows`.
    uploaded: Vec<SumRow>,
    /// True if a graph reads `rows`.
    is_captured: bool,
    /// Older tables that graphs read.
    captured: Vec<Table<SumRow>>,
}

impl SumTable {
    fn new(device: &CudaDevice, tensors: usize) -> Result<Self> {
        let rows = Table::zeros(&device.stream, tensors, ALLOCATE_SUMS)?;
        let kernel = device.kernel(Kernel::Accumulate)?.clone();
        Ok(Self { kernel, rows, uploaded: Vec::new(), is_captured: false, captured: Vec::new() })
    }

    /// Uploads `rows`, into a new table if a graph reads the current one: replays go on with their gradients.
    fn upload(&mut self, device: &CudaDevice, rows: &[SumRow]) -> Result<()> {
        if self.is_captured && rows != self.uploaded {
            let next = Table::zeros(&device.stream, rows.len(), ALLOCATE_SUMS)?;
            self.captured.push(std::mem::replace(&mut self.rows, next));
            self.uploaded.clear();
            self.is_captured = false;
        }
        upload_changed(&mut self.rows, &mut self.uploaded, rows, "upload the table of sums")
    }
}

const ALLOCATE_SUMS: &str = "allocate the table of sums";

impl Launcher {
    pub(crate) fn new(device: &Arc<CudaDevice>, lens: Vec<u64>) -> Result<Self> {
        let tensors = lens.len();
        let list: Vec<Chunk> = Plan::new(lens, device.chunk_len).chunks().collect();
        // 2^40 elements in chunks of 1,024, and fewer tensors than a u32 counts.
        let blocks = u32::try_from(list.len()).unwrap_or(u32::MAX);
        Ok(Self {
            device: device.clone(),
            chunks: Table::of(&device.stream, &list, "upload the table of chunks")?,
            blocks,
            rows: Table::zeros(&device.stream, tensors, "allocate the table of tensors")?,
            is_uploaded: false,
            update: None,
            sums: None,
            masters: None,
            spilled: None,
            thread: is_per_thread(&device.stream).then(|| thread::current().id()),
        })
    }

    pub(crate) fn control(&self, control: &Control, tables: &Tables, tensors: usize) -> Result<CudaControl> {
        CudaControl::new(&self.device, control, tables, tensors)
    }

    /// One launch, and an upload of what has changed.
    ///
    /// # Safety
    /// As for [`crate::accumulate::run`], for memory of the device that is in order on its stream.
    pub(crate) unsafe fn accumulate(&mut self, rows: &[SumRow], first: u32, is_capturing: bool) -> Result<()> {
        if self.sums.is_none() {
            self.sums = Some(SumTable::new(&self.device, rows.len())?);
        }
        let Some(sums) = self.sums.as_mut().filter(|_| self.blocks > 0) else { return Ok(()) };
        sums.upload(&self.device, rows)?;
        let mut launch = self.device.stream.launch_builder(&sums.kernel);
        launch.arg(&sums.rows.address).arg(&self.chunks.address).arg(&first);
        let grid = LaunchConfig { grid_dim: (self.blocks, 1, 1), block_dim: (BLOCK, 1, 1), shared_mem_bytes: 0 };
        // SAFETY: the arguments are the kernel's, in type and order. One block a chunk, and every chunk lies in its
        // tensor, whose row names arrays as long as that (the caller's promise); no two blocks write the same sum.
        unsafe { launch.launch(grid) }.map_err(while_doing("launch the sum of gradients"))?;
        sums.is_captured |= is_capturing;
        Ok(())
    }

    /// Reads masters from their parameters: one upload, one launch.
    ///
    /// # Safety
    /// As for [`crate::cpu::init_masters`], for memory of the device that is in order on its stream.
    pub(crate) unsafe fn init_masters(&mut self, rows: &[MasterRow]) -> Result<()> {
        // Every replay of a captured launch would read the masters again.
        refuse_capture(&self.device.stream, "read the masters")?;
        if self.blocks == 0 {
            return Ok(());
        }
        let kernel = self.device.kernel(Kernel::InitMasters)?;
        let table = match &mut self.masters {
            Some(table) => table,
            none => none.insert(Table::zeros(&self.device.stream, rows.len(), "allocate the table of masters")?),
        };
        table.upload(rows, "upload the table of masters")?;
        let mut launch = self.device.stream.launch_builder(kernel);
        launch.arg(&table.address).arg(&self.chunks.address);
        let grid = LaunchConfig { grid_dim: (self.blocks, 1, 1), block_dim: (BLOCK, 1, 1), shared_mem_bytes: 0 };
        // SAFETY: the arguments are the kernel's, in type and order. One block a chunk, and every chunk lies in its
        // tensor, whose row names arrays as long as that (the caller's promise); no two blocks write the same master.
        unsafe { launch.launch(grid) }.map_err(while_doing("launch the reading of the masters"))?;
        Ok(())
    }

    /// Waits for the last thread, if this one has another stream behind the same handle.
    pub(crate) fn enter(&mut self) -> Result<()> {
        let (stream, doing) = (&self.device.stream, "wait for the steps of another thread");
        let now = thread::current().id();
        if self.thread.is_some_and(|last| last != now) {
            refuse_capture(stream, doing)?;
            stream.context().synchronize().map_err(while_doing(doing))?;
            self.thread = Some(now);
        }
        Ok(())
    }

    /// True unless the stream is being captured, or the steps of another thread cannot be waited for.
    pub(crate) fn may_be_freed(&mut self) -> bool {
        !matches!(is_capturing(&self.device.stream), Ok(true)) && self.enter().is_ok()
    }

    /// The rows are other ones from now on, or may be.
    pub(crate) fn forget_rows(&mut self) {
        self.is_uploaded = false;
        self.update = None;
    }

    fn upload(&mut self, rows: &[TensorRow]) -> Result<()> {
        if !self.is_uploaded {
            self.rows.upload(rows, "upload the table of tensors")?;
            self.is_uploaded = true;
        }
        Ok(())
    }

    /// The plain update of `rows`, loaded if it was not.
    fn update_of(&mut self, rows: &[TensorRow]) -> Result<CudaFunction> {
        match &self.update {
            Some(update) => Ok(update.clone()),
            None => Ok(self.update.insert(self.device.update_of(rows)?.clone()).clone()),
        }
    }

    /// One launch, and an upload of what has changed.
    ///
    /// # Safety
    /// As for [`crate::cpu::run`], for memory of the device that is in order on its stream: the guards of all tensors
    /// are held until this returns, and `rows` names what the plan of this launcher covers. Rows that are not those of the
    /// call before have been announced by [`Launcher::forget_rows`].
    pub(crate) unsafe fn run(&mut self, rows: &[TensorRow], scalars: &[StepScalars]) -> Result<()> {
        let update = self.update_of(rows)?;
        self.upload(rows)?;
        let table = self.spill(scalars)?;
        let mut inlined = InlineScalars { at: [StepScalars::default(); INLINE_SCALARS] };
        if table == 0 {
            inlined.at[..scalars.len()].copy_from_slice(scalars);
        }
        // SAFETY: the caller's promise; the scalars are in the table, or inlined.
        unsafe { self.launch(&update, table, &inlined) }
    }

    /// Norm, decision and update, with the scalars in device memory.
    ///
    /// # Safety
    /// As for [`Launcher::run`]; scalars are indexed by class, and `control` has as many as the classes of the rows. If it
    /// zeroes gradients, these are among what is written.
    pub(crate) unsafe fn run_controlled(
        &mut self,
        control: &mut CudaControl,
        rows: &[TensorRow],
        grad_scale: f64,
        is_capturing: bool,
    ) -> Result<()> {
        // Before anything is decided.
        control.begin(is_capturing)?;
        let plain = (!control.updates()).then(|| self.update_of(rows)).transpose()?;
        self.upload(rows)?;
        let address = self.rows.address;
        // SAFETY: the rows just uploaded; the caller's promise for what they name.
        unsafe { control.decide(address, grad_scale)? };
        // SAFETY: the caller's promise.
        unsafe { control.update(address)? };
        if let Some(update) = plain {
            let inlined = InlineScalars { at: [StepScalars::default(); INLINE_SCALARS] };
            // SAFETY: see above.
            unsafe { self.launch(&update, control.scalars(), &inlined)? };
        }
        control.done(address);
        Ok(())
    }

    /// # Safety
    /// As for [`Launcher::run`], with rows uploaded, their update, and scalars at `table` unless it is 0.
    unsafe fn launch(&self, update: &CudaFunction, table: u64, inlined: &InlineScalars) -> Result<()> {
        if self.blocks == 0 {
            return Ok(()); // of empty tensors alone; a grid has to have a block
        }
        let mut launch = self.device.stream.launch_builder(update);
        launch.arg(&self.rows.address).arg(&self.chunks.address).arg(&table).arg(inlined);
        let grid = LaunchConfig { grid_dim: (self.blocks, 1, 1), block_dim: (BLOCK, 1, 1), shared_mem_bytes: 0 };
        // SAFETY: the arguments are those of the kernels in cuda/adamw.cu, in type and order, and the structs are
        // their twins (src/twins.rs). One block a chunk; every chunk lies in its tensor (src/plan.rs, tested), and its
        // tensor's row names arrays as long as that, in order on this stream (the caller's promise); scalars are
        // indexed below their number (src/rows.rs hands out the indices). So every address the kernel forms is inside
        // an array, and no two blocks write the same one.
        unsafe { launch.launch(grid) }.map_err(while_doing("launch the step"))?;
        Ok(())
    }

    /// The address of the scalars in device memory, or 0 if they fit into the arguments.
    fn spill(&mut self, scalars: &[StepScalars]) -> Result<u64> {
        if scalars.len() <= INLINE_SCALARS {
            return Ok(0);
        }
        let doing = "upload the scalars of the step";
        let table = match &mut self.spilled {
            Some(table) if table.len() >= scalars.len() => table,
            too_short => too_short.insert(Table::zeros(&self.device.stream, scalars.len(), doing)?),
        };
        // Where this is refused, in a capture say, the table stays: its `free` would be captured, too.
        table.upload(scalars, doing)?;
        Ok(table.address)
    }
}

/// cudarc waits for no event any more once a context's last stream of its own is dropped: if that was ours, tensors that
/// are freed after it would be freed while a step is still at work.
impl Drop for Launcher {
    fn drop(&mut self) {
        // An error is that of a step, or of a lost device: whoever uses the stream next hears of it.
        let _ = self.device.stream.synchronize();
    }
}
