//! cudarc's views with their element type erased, kept whole until the step: a view carries the events by which
//! other streams wait for it, and an address alone does not.

use cudarc::driver::{CudaStream, CudaView, CudaViewMut, DeviceSlice, SyncOnDrop};
use half::{bf16, f16};
use std::sync::Arc;

/// What is on a GPU, and can be waited for.
pub(crate) trait Located<'a> {
    /// The stream that it was allocated on.
    fn stream(&self) -> &Arc<CudaStream>;

    /// Makes `stream` wait for whoever is in the way; the guard records our use when it is dropped, after the launch.
    fn address(self, stream: &'a CudaStream) -> (u64, SyncOnDrop<'a>);
}

macro_rules! erased {
    ($(#[$doc:meta])* $name:ident, $view:ident, $address:ident) => {
        $(#[$doc])*
        #[derive(Debug)]
        pub enum $name<'a> {
            F32($view<'a, f32>),
            F16($view<'a, f16>),
            BF16($view<'a, bf16>),
        }

        impl<'a> Located<'a> for $name<'a> {
            #[inline]
            fn stream(&self) -> &Arc<CudaStream> {
                match self {
                    Self::F32(view) => view.stream(),
                    Self::F16(view) => view.stream(),
                    Self::BF16(view) => view.stream(),
                }
            }

            #[inline]
            fn address(self, stream: &'a CudaStream) -> (u64, SyncOnDrop<'a>) {
                match self {
                    Self::F32(view) => view.$address(stream),
                    Self::F16(view) => view.$address(stream),
                    Self::BF16(view) => view.$address(stream),
                }
            }
        }
    };
}

erased!(
    /// A gradient on a GPU: waits for who writes it, records a reading.
    View, CudaView, view_ptr
);
erased!(
    /// A parameter on a GPU: waits for who uses it, records a writing.
    ViewMut, CudaViewMut, view_ptr_mut
);

/// A gradient that may be written, or not.
#[derive(Debug)]
pub(crate) enum GradView<'a> {
    Shared(View<'a>),
    Unique(ViewMut<'a>),
}

impl<'a> Located<'a> for GradView<'a> {
    #[inline]
    fn stream(&self) -> &Arc<CudaStream> {
        match self {
            Self::Shared(view) => view.stream(),
            Self::Unique(view) => view.stream(),
        }
    }

    #[inline]
    fn address(self, stream: &'a CudaStream) -> (u64, SyncOnDrop<'a>) {
        match self {
            Self::Shared(view) => view.address(stream),
            Self::Unique(view) => view.address(stream),
        }
    }
}
