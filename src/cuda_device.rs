//! The driver and a GPU: finds them, keeps foreign contexts out.

use crate::arena::Arena;
use crate::cuda_table::{Table, while_doing};
use crate::error::{Error, Result};
use crate::kernels::{Kernel, Kernels};
use crate::table::TensorRow;
use crate::tensor::Dtype;
use crate::tuning::Tuning;
use cudarc::driver::sys::CUresult;
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
    /// Elements of a chunk of an update, at most.
    pub(crate) chunk_len: u32,
    name: String,
}

impl CudaDevice {
    pub(crate) fn new(stream: &Arc<CudaStream>, tuning: Tuning<'_>) -> Result<Self> {
        let context = stream.context();
        let kernels = Kernels::new(context, tuning.ptx)?;
        Ok(Self {
            stream: stream.clone(),
            kernels,
            chunk_len: tuning.chunk_len(),
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
        self.kernel(match uniform_dtype(rows) {
            Some(Dtype::F32) => Kernel::AdamwF32,
            Some(Dtype::BF16) => Kernel::AdamwBf16,
            Some(Dtype::F16) => Kernel::AdamwF16,
            None => Kernel::AdamwMixed,
        })
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

/// The one dtype of all parameters and gradients that are stepped, if there is no AMSGrad: what has a kernel of its own.
fn uniform_dtype(rows: &[TensorRow]) -> Option<Dtype> {
    let mut stepped = rows.iter().filter(|row| row.has_grad());
    let dtype = stepped.clone().next().map_or(Dtype::F32, TensorRow::param_dtype);
    let is_plain = |row: &TensorRow| row.param_dtype() == dtype && row.grad_dtype() == dtype && row.vmax == 0;
    stepped.all(is_plain).then_some(dtype)
}
