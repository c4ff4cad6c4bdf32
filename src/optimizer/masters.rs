//! Masters: the f32 copies of 16-bit parameters, read before the first step and again on request.

use super::AdamW;
use super::capture::RELOAD_BEFORE;
use crate::error::{Error, Result};
use crate::register::Tensor;
use crate::table::{MasterRow, TensorRow};

impl AdamW {
    /// Reads all f32 masters again from their 16-bit parameters, before the next step. Call this function after you have
    /// written to such parameters (loaded or pruned weights): a step takes the master, and overwrites the parameter. Every
    /// master loses the bits that its parameter does not have; [`AdamW::reload_master`] reads the master of one tensor.
    ///
    /// The next step enqueues the reading. After a captured step this function itself enqueues the reading, so that the
    /// next replay uses the new masters (`AdamW::allow_capture`).
    ///
    /// ```
    /// # use fused_adamw::{AdamW, AdamWConfig, Device};
    /// # use half::bf16;
    /// let mut opt = AdamW::new(&Device::cpu(), AdamWConfig { lr: 0.0, ..Default::default() }, [1])?;
    /// let mut p = [bf16::ONE];
    /// opt.step([(&mut p, &[1.0_f32])])?;
    /// p[0] = bf16::from_f32(3.0);
    /// opt.reload_masters()?;
    /// opt.step([(&mut p, &[1.0_f32])])?;
    /// assert_eq!(opt.state(0)?.master, Some(vec![3.0]));
    /// # Ok::<(), fused_adamw::Error>(())
    /// ```
    ///
    /// # Errors
    /// After a captured step `Error::Driver`, and `Error::Capturing` in a capture. Nothing has changed then.
    pub fn reload_masters(&mut self) -> Result<()> {
        self.reload(|_| true)
    }

    /// Reads the master of one tensor again, as [`AdamW::reload_masters`] does. All other masters keep every bit. For an
    /// f32 parameter, which has no master, nothing happens.
    ///
    /// ```
    /// # use fused_adamw::{AdamW, AdamWConfig, Device};
    /// # use half::bf16;
    /// let mut opt = AdamW::new(&Device::cpu(), AdamWConfig { lr: 1e-5, ..Default::default() }, [1, 1])?;
    /// let (mut p, mut q) = ([bf16::ONE], [bf16::ONE]);
    /// opt.step([(&mut p, &[1.0_f32]), (&mut q, &[1.0])])?;
    /// p[0] = bf16::from_f32(3.0);
    /// opt.reload_master(0)?;
    /// opt.step([(&mut p, &[0.0_f32]), (&mut q, &[0.0])])?;
    /// assert!(opt.state(0)?.master.unwrap()[0] > 2.9);
    /// assert!(opt.state(1)?.master.unwrap()[0] < 1.0 && q == [bf16::ONE]); // not rounded to its parameter
    /// # Ok::<(), fused_adamw::Error>(())
    /// ```
    ///
    /// # Errors
    /// [`Error::TensorIndex`]; those of [`AdamW::reload_masters`].
    pub fn reload_master(&mut self, index: usize) -> Result<()> {
        self.tensor(index)?;
        self.reload(|tensor| tensor.id.index == index)
    }

    /// Reads the master of the tensor of this name ([`TensorSpec::named`](crate::TensorSpec::named)) again, as
    /// [`AdamW::reload_master`] does.
    ///
    /// ```
    /// # use fused_adamw::{AdamW, AdamWConfig, Device, Error, TensorSpec};
    /// let specs = [TensorSpec::new(2).named("wte")];
    /// let mut opt = AdamW::new(&Device::cpu(), AdamWConfig::default(), specs)?;
    /// opt.reload_master_named("wte")?;
    /// assert!(matches!(opt.reload_master_named("wpe"), Err(Error::TensorName { name }) if name == "wpe"));
    /// # Ok::<(), Error>(())
    /// ```
    ///
    /// # Errors
    /// [`Error::TensorName`]; those of [`AdamW::reload_masters`].
    pub fn reload_master_named(&mut self, name: &str) -> Result<()> {
        let is_meant = |tensor: &Tensor| tensor.id.name.as_deref() == Some(name);
        if !self.tensors.iter().any(is_meant) {
            return Err(Error::TensorName { name: name.into() });
        }
        self.reload(is_meant)
    }

    fn reload(&mut self, is_meant: impl Fn(&Tensor) -> bool) -> Result<()> {
        if self.is_captured {
            self.engine.enter()?;
            // SAFETY: a step of `rows` was captured, and whoever called `allow_capture` vouches for their parameters.
            unsafe { self.read_masters(&is_meant) }.map_err(|error| error.in_capture(RELOAD_BEFORE))?;
        }
        for (i, tensor) in self.tensors.iter_mut().enumerate().filter(|(_, tensor)| is_meant(tensor)) {
            let is_read = self.is_captured && self.rows.get(i).is_some_and(|row| row.master != 0);
            tensor.init_master = !is_read;
        }
        self.is_settled = false;
        Ok(())
    }

    /// Reads the masters that are still to be read. A failed step repeats the reading.
    ///
    /// # Safety
    /// As for a step of `rows`.
    pub(super) unsafe fn init_masters(&mut self) -> Result<()> {
        // SAFETY: the caller's promise.
        unsafe { self.read_masters(|tensor| tensor.init_master) }
    }

    /// # Safety
    /// As for a step of `rows`.
    unsafe fn read_masters(&mut self, is_meant: impl Fn(&Tensor) -> bool) -> Result<()> {
        let described = self.tensors.iter().zip(&self.rows);
        let row = |(tensor, row)| if is_meant(tensor) { TensorRow::master_row(row) } else { MasterRow::default() };
        if described.clone().map(row).all(|row| row.master == 0) {
            return Ok(());
        }
        let rows: Vec<MasterRow> = described.map(row).collect();
        // SAFETY: as for the step in `run`: arrays of the registered lengths, on this device, aligned; the masters are
        // the optimizer's own, apart.
        unsafe { self.engine.init_masters(&rows) }
    }
}
