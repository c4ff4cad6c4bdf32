//! Loads the PTX, uploads the tables when they changed, launches. Beside it on the CPU: `src/cpu.rs`.
//!
//! NOTE [guards]: the tables hold bare addresses, which cudarc's event tracking cannot see. So every tensor's view
//! gives its address together with a guard (`cuda_view.rs`), and all guards are held until the launch is enqueued;
//! dropping them records the use for other streams, and for the `free` of the tensor.

use crate::arena::Arena;
use crate::control::Control;
use crate::controller::Tables;
use crate::cuda_control::CudaControl;
use crate::error::{Error, Result};
use crate::table::{
    Chunk, Class, CollectTables, ControlParams, ControlState, Counter, FinalizeTables, FullParams, Hyper,
    INLINE_SCALARS, InlineScalars, Squares, StepScalars, SumRow, Sums, TensorRow, dtypes, row_flags,
};
use cudarc::driver::sys::{self, CUdevice_attribute, CUresult, CUstreamCaptureStatus};
use cudarc::driver::{
    CudaContext, CudaFunction, CudaModule, CudaStream, DeviceRepr, DriverError, LaunchConfig, PushKernelArg,
    SyncOnDrop, ValidAsZeroBits, result,
};
use cudarc::nvrtc::Ptx;
use std::collections::HashSet;
use std::fmt;
use std::marker::PhantomData;
use std::sync::Arc;

/// The kernels as this build compiled them, and by what.
pub(crate) const PTX: &str = include_str!(concat!(env!("OUT_DIR"), "/adamw.ptx"));
pub(crate) const PTX_ORIGIN: &str = env!("FUSED_ADAMW_PTX_ORIGIN");
/// The kernels as committed: of an older ISA than most compilers emit, for older drivers.
pub(crate) const PTX_COMMITTED: &str = include_str!("../cuda/ptx/adamw.ptx");

/// Threads of a block: `BLOCK` of `cuda/block.cuh`.
pub(crate) const BLOCK: u32 = 256;

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
in_tables!(SumRow, TensorRow, Chunk, StepScalars, Hyper, ControlParams, ControlState, Class, Counter, Squares, Sums);

pub(crate) fn while_doing(doing: &'static str) -> impl Fn(DriverError) -> Error {
    move |source| Error::Driver { doing, source }
}

/// A context in an error's words.
pub(crate) fn describe(context: &Arc<CudaContext>) -> String {
    format!("the memory of GPU {} in context {:p}", context.ordinal(), Arc::as_ptr(context))
}

/// The default stream of a device, whatever is missing on this machine.
pub(crate) fn stream_of(ordinal: usize) -> Result<Arc<CudaStream>> {
    probe_driver()?;
    let context = CudaContext::new(ordinal).map_err(|source| match source.0 {
        CUresult::CUDA_ERROR_NO_DEVICE | CUresult::CUDA_ERROR_INVALID_DEVICE | CUresult::CUDA_ERROR_STUB_LIBRARY => {
            Error::NoDevice { ordinal, source }
        }
        _ => Error::Driver { doing: "open the device", source },
    })?;
    Ok(context.default_stream())
}

/// cudarc panics at every call, and even at the printing of its errors, if there is no driver library.
fn probe_driver() -> Result<()> {
    const NAMES: [&str; 2] = if cfg!(windows) { ["nvcuda.dll", "nvcuda.dll"] } else { ["libcuda.so", "libcuda.so.1"] };
    // SAFETY: initialisers of NVIDIA's driver library, which cudarc is about to run in any case.
    let load = |name: &str| unsafe { libloading::Library::new(name) };
    match load(NAMES[0]).or_else(|_| load(NAMES[1])) {
        Ok(_) => Ok(()),
        Err(source) => Err(Error::NoDriver { library: NAMES[1], source }),
    }
}

/// A stream of a GPU with the kernels loaded in its context.
#[derive(Debug)]
pub(crate) struct CudaDevice {
    pub(crate) stream: Arc<CudaStream>,
    /// Lists of f32 alone.
    adamw_f32: CudaFunction,
    /// Every list.
    adamw_mixed: CudaFunction,
    module: Arc<CudaModule>,
    pub(crate) multiprocessors: u32,
    name: String,
    ptx_origin: &'static str,
}

impl CudaDevice {
    pub(crate) fn new(stream: &Arc<CudaStream>) -> Result<Self> {
        let context = stream.context();
        let (module, ptx_origin) = load_module(context)?;
        let function = |name| function(&module, name);
        let multiprocessors = context
            .attribute(CUdevice_attribute::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT)
            .map_err(while_doing("ask for the number of multiprocessors"))?;
        Ok(Self {
            stream: stream.clone(),
            adamw_f32: function("adamw_f32")?,
            adamw_mixed: function("adamw_mixed")?,
            module,
            multiprocessors: u32::try_from(multiprocessors).unwrap_or(1),
            name: context.name().map_err(while_doing("ask for the name of the device"))?,
            ptx_origin,
        })
    }

    pub(crate) fn function(&self, name: &str) -> Result<CudaFunction> {
        function(&self.module, name)
    }

    pub(crate) fn alloc(&self, len: usize) -> Result<Arena> {
        Ok(Arena::Cuda(Table::zeros(&self.stream, len, "allocate the optimizer's state")?))
    }

    fn kernel(&self, rows: &[TensorRow]) -> &CudaFunction {
        if rows.iter().all(is_plain_f32) { &self.adamw_f32 } else { &self.adamw_mixed }
    }

    /// Two contexts of one device compare equal, but neither waits for the other: only the very same one will do.
    pub(crate) fn check_context(&self, context: &Arc<CudaContext>) -> Result<(), String> {
        if Arc::ptr_eq(context, self.stream.context()) { Ok(()) } else { Err(describe(context)) }
    }

    /// Drops the guards of a step, recording each event once: views of one allocation share it.
    pub(crate) fn record(&self, mut guards: Vec<SyncOnDrop<'_>>) -> Result<()> {
        let mut seen = HashSet::new();
        for guard in &mut guards {
            if let SyncOnDrop::Record(target) = guard {
                target.take_if(|(event, _)| !seen.insert(event.cu_event()));
            }
        }
        drop(guards);
        // A drop cannot return an error; the context keeps it for us to ask.
        self.stream.context().check_err().map_err(|source| Error::NotRecorded { source })
    }
}

impl fmt::Display for CudaDevice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "GPU {} ({}), kernels by {}", self.stream.context().ordinal(), self.name, self.ptx_origin)
    }
}

fn function(module: &Arc<CudaModule>, name: &str) -> Result<CudaFunction> {
    module.load_function(name).map_err(while_doing("find the kernel in its module"))
}

/// The PTX of this build, or the committed one if the driver is too old for that.
fn load_module(context: &Arc<CudaContext>) -> Result<(Arc<CudaModule>, &'static str)> {
    let too_new = |error: &DriverError| error.0 == CUresult::CUDA_ERROR_UNSUPPORTED_PTX_VERSION;
    match context.load_module(Ptx::from_src(PTX)) {
        Ok(module) => Ok((module, PTX_ORIGIN)),
        Err(error) if too_new(&error) => match context.load_module(Ptx::from_src(PTX_COMMITTED)) {
            Ok(module) => Ok((module, "committed PTX, the driver is older than the compiler of this build")),
            Err(source) if too_new(&source) => Err(ptx_too_new(source)),
            Err(source) => Err(Error::Driver { doing: LOADING, source }),
        },
        Err(source) => Err(Error::Driver { doing: LOADING, source }),
    }
}

const LOADING: &str = "load the kernels, which need a GPU of compute capability 7.5 or newer";

fn ptx_too_new(source: DriverError) -> Error {
    let mut version = 0;
    // SAFETY: writes an integer to the address of one. Its failure leaves 0, which the message shows.
    unsafe { sys::cuDriverGetVersion(&raw mut version) };
    let driver = format!("{}.{}", version / 1000, version % 1000 / 10);
    Error::PtxTooNew { ptx: isa_version(PTX_COMMITTED).into(), driver, source }
}

/// The `8.0` of `.version 8.0`.
fn isa_version(ptx: &str) -> &str {
    ptx.lines().find_map(|line| line.strip_prefix(".version ")).map_or("?", str::trim)
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
        refuse_capture(stream)?;
        let bytes = len.max(1) * size_of::<T>(); // zero bytes cannot be allocated
        let address = allocate(stream, bytes).map_err(while_doing(doing))?;
        let table = Self { address, len, stream: stream.clone(), element: PhantomData };
        // SAFETY: the whole of a new allocation, which `table` frees on this stream.
        unsafe { result::memset_d8_async(address, 0, bytes, stream.cu_stream()) }.map_err(while_doing(doing))?;
        Ok(table)
    }

    pub(crate) fn upload(&mut self, from: &[T], doing: &'static str) -> Result<()> {
        if from.is_empty() {
            return Ok(());
        }
        refuse_capture(&self.stream)?;
        assert!(from.len() <= self.len, "a table is as long as what it holds");
        // SAFETY: within the allocation. The driver has taken its copy of memory that is not page-locked when it
        // returns.
        unsafe { result::memcpy_htod_async(self.address, from, self.stream.cu_stream()) }.map_err(while_doing(doing))
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
        let doing = while_doing("read the optimizer's state");
        assert!(offset + len <= self.len, "a slot lies in its arena");
        self.stream.context().bind_to_thread().map_err(&doing)?;
        let mut copy = vec![T::default(); len];
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

/// A copy that is captured would read the host's memory again at every replay of the graph, and not happen now.
pub(crate) fn refuse_capture(stream: &CudaStream) -> Result<()> {
    if is_capturing(stream)? { Err(Error::Capturing) } else { Ok(()) }
}

pub(crate) fn is_capturing(stream: &CudaStream) -> Result<bool> {
    let status = stream.capture_status().map_err(while_doing("ask whether the stream is captured"))?;
    Ok(status != CUstreamCaptureStatus::CU_STREAM_CAPTURE_STATUS_NONE)
}

/// The tables of one optimizer in device memory.
#[derive(Debug)]
pub(crate) struct Launcher {
    device: Arc<CudaDevice>,
    chunks: Table<Chunk>,
    blocks: u32,
    rows: Table<TensorRow>,
    /// What `rows` holds; empty if that is not known.
    uploaded: Vec<TensorRow>,
    /// Rows of the gradients that are added up, what is uploaded of them, and the kernel.
    sums: Option<(Table<SumRow>, Vec<SumRow>, CudaFunction)>,
    /// Holds the scalars of a step that has more of them than fit into the arguments.
    spilled: Option<Table<StepScalars>>,
}

impl Launcher {
    pub(crate) fn new(device: &Arc<CudaDevice>, list: &[Chunk], tensors: usize) -> Result<Self> {
        let mut chunks = Table::zeros(&device.stream, list.len(), "allocate the table of chunks")?;
        chunks.upload(list, "upload the table of chunks")?;
        Ok(Self {
            device: device.clone(),
            chunks,
            // 2^40 elements in chunks of 1,024 and more, and fewer tensors than a u32 counts.
            blocks: u32::try_from(list.len()).unwrap_or(u32::MAX),
            rows: Table::zeros(&device.stream, tensors, "allocate the table of tensors")?,
            uploaded: Vec::new(),
            sums: None,
            spilled: None,
        })
    }

    pub(crate) fn control(&self, control: &Control, tables: &Tables, tensors: usize) -> Result<CudaControl> {
        CudaControl::new(&self.device, control, tables, tensors)
    }

    /// One launch, and an upload of what has changed.
    ///
    /// # Safety
    /// As for [`crate::accumulate::run`], for memory of the device that is in order on its stream.
    pub(crate) unsafe fn accumulate(&mut self, rows: &[SumRow], first: u32) -> Result<()> {
        if self.sums.is_none() {
            let table = Table::zeros(&self.device.stream, rows.len(), "allocate the table of sums")?;
            self.sums = Some((table, Vec::new(), self.device.function("accumulate")?));
        }
        let Some((table, uploaded, kernel)) = &mut self.sums else { return Ok(()) };
        upload_changed(table, uploaded, rows, "upload the table of sums")?;
        let mut launch = self.device.stream.launch_builder(kernel);
        launch.arg(&table.address).arg(&self.chunks.address).arg(&first);
        let grid = LaunchConfig { grid_dim: (self.blocks, 1, 1), block_dim: (BLOCK, 1, 1), shared_mem_bytes: 0 };
        // SAFETY: the arguments are the kernel's, in type and order. One block a chunk, and every chunk lies in its
        // tensor, whose row names arrays as long as that (the caller's promise); no two blocks write the same sum.
        unsafe { launch.launch(grid) }.map_err(while_doing("launch the sum of gradients"))?;
        Ok(())
    }

    /// The address of `rows`, uploaded if they have changed.
    pub(crate) fn upload(&mut self, rows: &[TensorRow]) -> Result<u64> {
        upload_changed(&mut self.rows, &mut self.uploaded, rows, "upload the table of tensors")?;
        Ok(self.rows.address)
    }

    /// One launch, and an upload of what has changed.
    ///
    /// # Safety
    /// As for [`crate::cpu::run`], for memory of the device that is in order on its stream: the guards of all tensors
    /// are held until this returns, and `rows` names what the plan of this launcher covers.
    pub(crate) unsafe fn run(&mut self, rows: &[TensorRow], scalars: &[StepScalars]) -> Result<()> {
        self.upload(rows)?;
        let table = self.spill(scalars)?;
        let mut inlined = InlineScalars { at: [StepScalars::default(); INLINE_SCALARS] };
        if table == 0 {
            inlined.at[..scalars.len()].copy_from_slice(scalars);
        }
        // SAFETY: the caller's promise; the scalars are in the table, or inlined.
        unsafe { self.launch(rows, table, &inlined) }
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
    ) -> Result<()> {
        let address = self.upload(rows)?;
        // SAFETY: the rows just uploaded; the caller's promise for what they name.
        unsafe { control.decide(address, grad_scale)? };
        // SAFETY: (both) the caller's promise.
        if !unsafe { control.update(address)? } {
            let inlined = InlineScalars { at: [StepScalars::default(); INLINE_SCALARS] };
            // SAFETY: see above.
            unsafe { self.launch(rows, control.scalars(), &inlined)? };
        }
        control.done(address);
        Ok(())
    }

    /// # Safety
    /// As for [`Launcher::run`], with `rows` uploaded and scalars at `table` unless it is 0.
    unsafe fn launch(&self, rows: &[TensorRow], table: u64, inlined: &InlineScalars) -> Result<()> {
        let mut launch = self.device.stream.launch_builder(self.device.kernel(rows));
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
            Some(table) if table.len >= scalars.len() => table,
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
        if refuse_capture(&self.device.stream).is_ok() {
            // An error is that of a step, or of a lost device: whoever uses the stream next hears of it.
            let _ = self.device.stream.synchronize();
        }
    }
}

/// `uploaded` is what the table holds; empty if that is not known.
fn upload_changed<T>(table: &mut Table<T>, uploaded: &mut Vec<T>, rows: &[T], doing: &'static str) -> Result<()>
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

/// What `adamw_f32` can do.
fn is_plain_f32(row: &TensorRow) -> bool {
    let f32 = row.param_dtype == dtypes::F32 && row.grad_dtype == dtypes::F32;
    row.flags & row_flags::HAS_GRAD == 0 || (f32 && row.vmax == 0)
}
