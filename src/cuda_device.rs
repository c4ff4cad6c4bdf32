//! The driver and a GPU: finds them, keeps foreign contexts out.

use crate::arena::Arena;
use crate::cuda_table::{Table, while_doing};
use crate::error::{Error, Result};
use crate::kernels::{Kernel, Kernels};
use crate::table::TensorRow;
use crate::tensor::Dtype;
use crate::tuning::{Geometry, Tuning};
use cudarc::driver::sys::{CUdevice_attribute, CUresult};
use cudarc::driver::{CudaContext, CudaFunction, CudaStream, SyncOnDrop};
use std::collections::HashSet;
use std::fmt;
use std::sync::Arc;

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

/// A stream of a GPU, and the kernels in its context.
#[derive(Debug)]
pub(crate) struct CudaDevice {
    pub(crate) stream: Arc<CudaStream>,
    kernels: Kernels,
    pub(crate) geometry: Geometry,
    name: String,
}

impl CudaDevice {
    pub(crate) fn new(stream: &Arc<CudaStream>, tuning: Tuning<'_>) -> Result<Self> {
        let context = stream.context();
        let kernels = Kernels::new(context, tuning.ptx)?;
        let multiprocessors = context
            .attribute(CUdevice_attribute::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT)
            .map_err(while_doing("ask for the number of multiprocessors"))?;
        Ok(Self {
            stream: stream.clone(),
            kernels,
            geometry: Geometry::new(u32::try_from(multiprocessors).unwrap_or(1), tuning),
            name: context.name().map_err(while_doing("ask for the name of the device"))?,
        })
    }

    pub(crate) fn kernel(&self, kernel: Kernel) -> Result<&CudaFunction> {
        self.kernels.get(kernel, &self.stream)
    }

    pub(crate) fn alloc(&self, len: usize) -> Result<Arena> {
        Ok(Arena::Cuda(Table::zeros(&self.stream, len, "allocate the optimizer's state")?))
    }

    /// The plain update of these rows.
    pub(crate) fn update_of(&self, rows: &[TensorRow]) -> Result<&CudaFunction> {
        self.kernel(if rows.iter().all(is_plain_f32) { Kernel::AdamwF32 } else { Kernel::AdamwMixed })
    }

    /// Two contexts of one device compare equal, but neither waits for the other: only the very same one will do.
    #[inline]
    pub(crate) fn check_context(&self, context: &Arc<CudaContext>) -> Result<(), String> {
        if Arc::ptr_eq(context, self.stream.context()) { Ok(()) } else { Err(describe(context)) }
    }

    /// Whether there are other streams, which wait for events.
    pub(crate) fn records_events(&self) -> bool {
        self.stream.context().is_managing_stream_synchronization()
    }

    /// Drops the guards of a step, recording each event once: views of one allocation share it. `recorded`: there were
    /// such events when the step began.
    pub(crate) fn record(&self, guards: &mut Vec<SyncOnDrop<'_>>, recorded: bool) -> Result<()> {
        let not_recorded = |source| Error::NotRecorded { source };
        if self.records_events() {
            keep_one_of_each_event(guards);
            if !recorded {
                // Another thread has made a stream meanwhile, which knows of no event of this step.
                self.stream.synchronize().map_err(not_recorded)?;
            }
        }
        guards.clear();
        // A drop cannot return an error; the context keeps it for us to ask.
        self.stream.context().check_err().map_err(not_recorded)
    }
}

impl fmt::Display for CudaDevice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "GPU {} ({}), kernels by {}", self.stream.context().ordinal(), self.name, self.kernels.origin)
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

/// What `adamw_f32` can do.
fn is_plain_f32(row: &TensorRow) -> bool {
    let f32 = row.param_dtype() == Dtype::F32 && row.grad_dtype() == Dtype::F32;
    !row.has_grad() || (f32 && row.vmax == 0)
}
