//! NVIDIA's driver library: whether there is one, and with all that this crate calls.
//!
//! cudarc loads each function when it is first called, and panics if there is no library or no such function in it; even
//! at the printing of an error.

use crate::error::{Error, Result};
use cudarc::driver::sys::CUresult;
use cudarc::driver::{CudaContext, CudaStream, DriverError};
use libloading::Library;
use std::sync::Arc;

/// The functions that this crate calls, directly or through cudarc: all of them are in every driver for CUDA 12.0, which
/// the committed kernels need.
pub const DRIVER_FUNCTIONS: &[&str] = &[
    "cuInit",
    "cuDriverGetVersion",
    "cuGetErrorString",
    "cuDeviceGet",
    "cuDeviceGetAttribute",
    "cuDeviceGetName",
    "cuDevicePrimaryCtxRetain",
    "cuDevicePrimaryCtxRelease_v2",
    "cuCtxGetCurrent",
    "cuCtxSetCurrent",
    "cuModuleLoadData",
    "cuModuleGetFunction",
    "cuModuleUnload",
    "cuLaunchKernel",
    "cuMemAllocAsync",
    "cuMemAlloc_v2",
    "cuMemFreeAsync",
    "cuMemFree_v2",
    "cuMemHostAlloc",
    "cuMemFreeHost",
    "cuMemsetD8Async",
    "cuMemcpyHtoDAsync_v2",
    "cuMemcpyDtoHAsync_v2",
    "cuMemcpyDtoDAsync_v2",
    "cuStreamSynchronize",
    "cuStreamIsCapturing",
    "cuStreamWaitEvent",
    "cuEventCreate",
    "cuEventRecord",
    "cuEventQuery",
    "cuEventSynchronize",
    "cuEventDestroy_v2",
];

/// The default stream of a device, whatever is missing on this machine.
pub(crate) fn stream_of(ordinal: usize) -> Result<Arc<CudaStream>> {
    check(&load()?)?;
    let no_device = |source| Error::NoDevice { ordinal, source };
    // cudarc would cut a larger number off.
    i32::try_from(ordinal).map_err(|_| no_device(DriverError(CUresult::CUDA_ERROR_INVALID_DEVICE)))?;
    let context = CudaContext::new(ordinal).map_err(|source| match source.0 {
        CUresult::CUDA_ERROR_NO_DEVICE | CUresult::CUDA_ERROR_INVALID_DEVICE | CUresult::CUDA_ERROR_STUB_LIBRARY => {
            no_device(source)
        }
        _ => Error::Driver { doing: "open the device", source },
    })?;
    Ok(context.default_stream())
}

/// An error if the driver of a stream that there is lacks a function.
pub(crate) fn check_functions() -> Result<()> {
    // If it cannot be loaded by these names, it was by another one, or is linked.
    load().map_or(Ok(()), |library| check(&library))
}

/// The library, by the first name that there is.
struct Driver {
    name: &'static str,
    library: Library,
}

fn load() -> Result<Driver> {
    const NAMES: [&str; 2] = if cfg!(windows) { ["nvcuda.dll", "nvcuda.dll"] } else { ["libcuda.so", "libcuda.so.1"] };
    // SAFETY: initialisers of NVIDIA's driver library, which cudarc is about to run in any case.
    let load = |name| unsafe { Library::new(name) }.map(|library| Driver { name, library });
    load(NAMES[0]).or_else(|_| load(NAMES[1])).map_err(|source| Error::NoDriver { library: NAMES[1], source })
}

fn check(driver: &Driver) -> Result<()> {
    DRIVER_FUNCTIONS.iter().try_for_each(|&function| {
        // SAFETY: the symbol is looked for, and not used.
        let found = unsafe { driver.library.get::<*const ()>(function) };
        found.map(drop).map_err(|source| Error::OldDriver { library: driver.name, function, source })
    })
}
