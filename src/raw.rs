//! Tensors by their addresses: of owners of memory that neither Rust's borrows nor cudarc know, such as cubecl.

use crate::tensor::{Dtype, Elements, Grad, Pair, Param, Place};

impl Param<'_> {
    /// `len` elements at an address of the optimizer's device: [`Pair::from_raw`] for a parameter that has no gradient in
    /// this step, and for [`AdamW::step_accumulated`](crate::AdamW::step_accumulated).
    ///
    /// ```
    /// use fused_adamw::{AdamW, AdamWConfig, Device, Dtype, Pair, Param};
    /// let mut frozen = vec![1.0_f32; 4];
    /// let mut opt = AdamW::new(&Device::cpu(), AdamWConfig::default(), [4])?;
    /// // SAFETY: four f32, alive, and nobody else uses them.
    /// opt.step([Pair::without_grad(unsafe { Param::from_raw(frozen.as_mut_ptr() as u64, Dtype::F32, 4) })])?;
    /// # Ok::<(), fused_adamw::Error>(())
    /// ```
    ///
    /// # Safety
    /// As for the parameter of [`Pair::from_raw`].
    #[must_use]
    pub unsafe fn from_raw(address: u64, dtype: Dtype, len: usize) -> Self {
        Self(Elements { place: Place::Raw(address), dtype, len, writable: true })
    }
}

impl Grad<'_> {
    /// `len` elements at an address of the optimizer's device: [`Pair::from_raw`] beside a parameter that is not raw, and
    /// for [`AdamW::accumulate`](crate::AdamW::accumulate).
    ///
    /// ```
    /// use fused_adamw::{AdamW, AdamWConfig, Device, Dtype, Grad};
    /// let g = vec![1.0_f32; 4];
    /// let mut opt = AdamW::new(&Device::cpu(), AdamWConfig::default(), [4])?;
    /// // SAFETY: four f32, alive, and nobody writes to them.
    /// opt.accumulate([unsafe { Grad::from_raw(g.as_ptr() as u64, Dtype::F32, 4) }])?;
    /// # Ok::<(), fused_adamw::Error>(())
    /// ```
    ///
    /// # Safety
    /// As for the gradient of [`Pair::from_raw`].
    #[must_use]
    pub unsafe fn from_raw(address: u64, dtype: Dtype, len: usize) -> Self {
        Self(Some(Elements { place: Place::Raw(address), dtype, len, writable: true }))
    }
}

impl Pair<'_> {
    /// `len` elements at addresses of the optimizer's device: device addresses (`CUdeviceptr`) for a GPU, host
    /// addresses for the CPU. For owners of device memory that cudarc does not know, such as cubecl.
    ///
    /// A null or misaligned address, and an overlap with another tensor of the step, are found by the step.
    ///
    /// ```
    /// use fused_adamw::{AdamW, AdamWConfig, Device, Dtype, Pair};
    /// let (mut p, g) = (vec![1.0_f32; 4], vec![1.0_f32; 4]);
    /// let mut opt = AdamW::new(&Device::cpu(), AdamWConfig::default(), [4])?;
    /// // SAFETY: four f32 each, alive, and nobody else uses them.
    /// opt.step([unsafe { Pair::from_raw(p.as_mut_ptr() as u64, Dtype::F32, g.as_ptr() as u64, Dtype::F32, 4) }])?;
    /// assert!(p[0] < 1.0);
    /// # Ok::<(), fused_adamw::Error>(())
    /// ```
    ///
    /// # Safety
    /// Both addresses are of `len` elements of their dtype in memory of the optimizer's device, the parameter's
    /// writable; with [`Control::zero_grad`](crate::Control::zero_grad) the gradient's too, and what is said of the parameter
    /// goes for it. From the step's call until the work that it enqueues has finished (on a GPU: on the optimizer's
    /// stream) they stay allocated, nobody else writes to either, and nobody else reads the parameter: no events
    /// order other streams for them.
    #[must_use]
    pub unsafe fn from_raw(param: u64, param_dtype: Dtype, grad: u64, grad_dtype: Dtype, len: usize) -> Self {
        // SAFETY: the caller's promise.
        let param = unsafe { Param::from_raw(param, param_dtype, len) };
        // SAFETY: likewise.
        let grad = unsafe { Grad::from_raw(grad, grad_dtype, len) };
        Self { param, grad }
    }
}
