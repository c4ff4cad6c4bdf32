//! The driver and a GPU: finds them, loads the PTX, keeps foreign contexts out.

use crate::arena::Arena;
use crate::cuda_table::{Table, while_doing};
use crate::error::{Error, Result};
use crate::table::TensorRow;
use crate::tensor::Dtype;
use cudarc::driver::sys::{self, CUdevice_attribute, CUresult};
use cudarc::driver::{CudaContext, CudaFunction, CudaModule, CudaStream, DriverError, SyncOnDrop};
use cudarc::nvrtc::Ptx;
use std::collections::HashSet;
use std::fmt;
use std::sync::Arc;

/// The kernels as this build compiled them, and by what.
pub(crate) const PTX: &str = include_str!(concat!(env!("OUT_DIR"), "/adamw.ptx"));
pub(crate) const PTX_ORIGIN: &str = env!("FUSED_ADAMW_PTX_ORIGIN");
/// The kernels as committed: of an older ISA than most compilers emit, for older drivers.
pub(crate) const PTX_COMMITTED: &str = include_str!("../cuda/ptx/adamw.ptx");

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

    pub(crate) fn kernel(&self, rows: &[TensorRow]) -> &CudaFunction {
        if rows.iter().all(is_plain_f32) { &self.adamw_f32 } else { &self.adamw_mixed }
    }

    /// Two contexts of one device compare equal, but neither waits for the other: only the very same one will do.
    #[inline]
    pub(crate) fn check_context(&self, context: &Arc<CudaContext>) -> Result<(), String> {
        if Arc::ptr_eq(context, self.stream.context()) { Ok(()) } else { Err(describe(context)) }
    }

    /// Drops the guards of a step, recording each event once: views of one allocation share it.
    pub(crate) fn record(&self, guards: &mut Vec<SyncOnDrop<'_>>) -> Result<()> {
        // With one stream nothing is recorded.
        if self.stream.context().is_managing_stream_synchronization() {
            keep_one_of_each_event(guards);
        }
        guards.clear();
        // A drop cannot return an error; the context keeps it for us to ask.
        self.stream.context().check_err().map_err(|source| Error::NotRecorded { source })
    }
}

impl fmt::Display for CudaDevice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "GPU {} ({}), kernels by {}", self.stream.context().ordinal(), self.name, self.ptx_origin)
    }
}

fn keep_one_of_each_event(guards: &mut [SyncOnDrop<'_>]) {
    let mut seen = HashSet::new();
    for guard in guards {
        if let SyncOnDrop::Record(target) = guard {
            target.take_if(|(event, _)| !seen.insert(event.cu_event()));
        }
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

/// What `adamw_f32` can do.
fn is_plain_f32(row: &TensorRow) -> bool {
    let f32 = row.param_dtype() == Dtype::F32 && row.grad_dtype() == Dtype::F32;
    !row.has_grad() || (f32 && row.vmax == 0)
}
