//! Captures of a stream: refuses what a capture forbids, and delays drops until the capture is over.

use crate::cuda_table::while_doing;
use crate::error::{Error, Result};
use cudarc::driver::CudaStream;
use cudarc::driver::sys::CUstreamCaptureStatus;
use std::any::Any;
use std::sync::{Arc, Mutex, PoisonError};

/// Refuses an action in a capture which one step before the capture makes unnecessary. A captured copy, for example, would
/// read the host's memory again at every replay. The text of `doing` follows "cannot".
pub(crate) fn refuse_capture(stream: &CudaStream, doing: &'static str) -> Result<()> {
    refuse(stream, doing, "step once before the capture, with the same tensors")
}

/// Refuses an action that waits for the device: the driver would break the capture.
pub(crate) fn refuse_reading(stream: &CudaStream, doing: &'static str) -> Result<()> {
    refuse(stream, doing, "read it after the capture, or between replays")
}

fn refuse(stream: &CudaStream, doing: &'static str, remedy: &'static str) -> Result<()> {
    if is_capturing(stream)? { Err(Error::Capturing { doing, remedy }) } else { Ok(()) }
}

pub(crate) fn is_capturing(stream: &CudaStream) -> Result<bool> {
    let status = stream.capture_status().map_err(while_doing("ask whether the stream is captured"))?;
    Ok(status != CUstreamCaptureStatus::CU_STREAM_CAPTURE_STATUS_NONE)
}

/// True for the per-thread default stream: each thread that calls the driver has its own behind the same handle.
pub(crate) fn is_per_thread(stream: &CudaStream) -> bool {
    const CU_STREAM_PER_THREAD: usize = 2;
    stream.cu_stream() as usize == CU_STREAM_PER_THREAD
}

/// A stream, and a value to drop when the stream is no longer captured.
type Left = (Arc<CudaStream>, Box<dyn Any + Send>);

static LEFT: Mutex<Vec<Left>> = Mutex::new(Vec::new());

/// Keeps `what` until [`drop_left`]. In a capture the driver would record its frees in the graph, and refuse its waits.
pub(crate) fn leave(stream: &Arc<CudaStream>, what: impl Any + Send) {
    LEFT.lock().unwrap_or_else(PoisonError::into_inner).push((stream.clone(), Box::new(what)));
}

/// Drops the kept values of streams that are no longer captured. Values of all other streams stay.
pub(crate) fn drop_left() {
    let is_free = |(stream, _): &mut Left| {
        let is_over = || !is_per_thread(stream) || stream.context().synchronize().is_ok();
        matches!(is_capturing(stream), Ok(false)) && is_over()
    };
    let mut left = LEFT.lock().unwrap_or_else(PoisonError::into_inner);
    let free: Vec<Left> = left.extract_if(.., is_free).collect();
    drop(left);
    drop(free);
}
