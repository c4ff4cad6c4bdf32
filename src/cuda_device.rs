//! A GPU, and the kernels in its context: keeps the tensors of foreign contexts out.
//!
//! NOTE [contexts]: two `CudaContext`s of one device's primary context compare equal, but each counts its own streams, and
//! records and waits for events only if it has made one. So a step on a stream of the one is not in order with a use of
//! the tensor on a stream of the other, and such tensors are refused, but for one case. `Device::best` makes a context of
//! its own, and a user who has made one too has all on the default stream: then both contexts enqueue into the same
//! legacy default stream, which is in order with itself and with the per-thread default streams. A tensor is admitted if
//!
//! - both have the same `CUcontext`,
//! - the optimizer's stream is the legacy default stream, and the tensor's the legacy or the per-thread one,
//! - the tensor's context has made no stream.
//!
//! When it makes its first stream later, cudarc waits for the whole `CUcontext`, this step included (`new_stream`), or
//! lets the new stream wait for a default one (`fork`). If it does so while the step is being described, the step waits
//! for itself before it returns (`record`): until then the tensors are borrowed.

use crate::arena::Arena;
use crate::cuda_driver;
use crate::cuda_table::{Table, while_doing};
use crate::error::{Error, Result};
use crate::kernels::{Kernel, Kernels};
use crate::table::TensorRow;
use crate::tensor::Dtype;
use crate::tuning::Tuning;
use cudarc::driver::{CudaContext, CudaFunction, CudaStream, SyncOnDrop};
use std::collections::HashSet;
use std::fmt;
use std::sync::Arc;

/// A context in an error's words.
pub(crate) fn describe(context: &Arc<CudaContext>) -> String {
    format!("the memory of GPU {} in context {:p}", context.ordinal(), Arc::as_ptr(context))
}

/// The values of a `CUstream` that are the legacy default stream: null, and `CU_STREAM_LEGACY`.
const LEGACY: [usize; 2] = [0, 1];
/// And those that are a default stream: with `CU_STREAM_PER_THREAD`.
const DEFAULT: [usize; 3] = [0, 1, 2];

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
        cuda_driver::check_functions()?;
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

    /// True for the very same context object: two of one device compare equal, but neither waits for the other.
    #[inline]
    pub(crate) fn has_context(&self, context: &Arc<CudaContext>) -> bool {
        Arc::ptr_eq(context, self.stream.context())
    }

    /// An error, in words of where it lies, for what is in another context.
    pub(crate) fn check_context(&self, context: &Arc<CudaContext>) -> Result<(), String> {
        if self.has_context(context) { Ok(()) } else { Err(describe(context)) }
    }

    /// True if all that a context with such a stream enqueues is in order with ours: NOTE [contexts].
    pub(crate) fn shares_default_stream(&self, stream: &CudaStream) -> bool {
        let (ours, theirs) = (self.stream.context(), stream.context());
        ours.cu_ctx() == theirs.cu_ctx()
            && LEGACY.contains(&(self.stream.cu_stream() as usize))
            && DEFAULT.contains(&(stream.cu_stream() as usize))
            && !theirs.is_in_multi_stream_mode()
    }

    /// Whether there are other streams, which wait for events.
    pub(crate) fn records_events(&self) -> bool {
        self.stream.context().is_managing_stream_synchronization()
    }

    /// Drops the guards of a step, recording each event once: views of one allocation share it. `recorded`: there were
    /// such events when the step began. `admitted`: other contexts of the step's tensors.
    pub(crate) fn record(
        &self,
        guards: &mut Vec<SyncOnDrop<'_>>,
        recorded: bool,
        admitted: &[Arc<CudaContext>],
    ) -> Result<()> {
        let not_recorded = |source| Error::NotRecorded { source };
        if admitted.iter().any(|context| context.is_in_multi_stream_mode()) {
            self.stream.synchronize().map_err(not_recorded)?;
        }
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
