//! cudarc's views with their element type erased, kept whole until the step: a view carries the events by which
//! other streams wait for it, and an address alone does not.

use cudarc::driver::{CudaContext, CudaStream, CudaView, CudaViewMut, DeviceSlice, SyncOnDrop};
use half::{bf16, f16};
use std::sync::Arc;

/// A gradient on a GPU.
#[derive(Debug)]
pub enum View<'a> {
    F32(CudaView<'a, f32>),
    F16(CudaView<'a, f16>),
    BF16(CudaView<'a, bf16>),
}

/// A parameter on a GPU.
#[derive(Debug)]
pub enum ViewMut<'a> {
    F32(CudaViewMut<'a, f32>),
    F16(CudaViewMut<'a, f16>),
    BF16(CudaViewMut<'a, bf16>),
}

macro_rules! each {
    ($type:ident, $self:ident, $view:ident => $body:expr) => {
        match $self {
            $type::F32($view) => $body,
            $type::F16($view) => $body,
            $type::BF16($view) => $body,
        }
    };
}

impl<'a> View<'a> {
    pub(crate) fn context(&self) -> &Arc<CudaContext> {
        each!(View, self, view => view.stream().context())
    }

    /// Makes `stream` wait for who writes it; the guard records the reading when it is dropped, after the launch.
    pub(crate) fn address(self, stream: &'a CudaStream) -> (u64, SyncOnDrop<'a>) {
        each!(View, self, view => view.view_ptr(stream))
    }
}

impl<'a> ViewMut<'a> {
    pub(crate) fn context(&self) -> &Arc<CudaContext> {
        each!(ViewMut, self, view => view.stream().context())
    }

    /// Makes `stream` wait for who uses it; the guard records the writing when it is dropped, after the launch.
    pub(crate) fn address(self, stream: &'a CudaStream) -> (u64, SyncOnDrop<'a>) {
        each!(ViewMut, self, view => view.view_ptr_mut(stream))
    }
}
