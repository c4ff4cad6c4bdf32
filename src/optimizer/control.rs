//! The optimizer with a [`Control`]: set, read, captured.

use super::AdamW;
use super::capture::CONTROL_BEFORE;
use crate::classes::Classes;
use crate::control::{Control, NonFinite, Status};
use crate::controller::Tables;
use crate::error::{Error, Result};
use crate::metrics::Metrics;
use crate::table::{ControlState, Overrun};

#[cfg(feature = "cuda")]
use {cudarc::driver::CudaSlice, std::sync::Arc};

impl AdamW {
    /// Lets the device decide how its steps are taken, by `control`; or, with `None`, ends that. The tensors' step counts go on
    /// in any case. On a GPU this waits for what is enqueued.
    ///
    /// A control replaces the one before, whole: to change a field, write
    /// `Control { max_grad_norm: Some(0.5), ..opt.control().cloned().unwrap_or_default() }`. From the one before go on:
    ///
    /// - the counts `applied`, `skipped` and `skipped_running`, and with `applied` the schedule's position;
    /// - the loss scale and its growth, if both have one of the same `init_scale`; another `init_scale` sets the scale;
    /// - an alarm's mean and deviation, if both have it.
    ///
    /// `None` forgets all of these: a control set later starts with `applied` 0.
    ///
    /// ```
    /// use fused_adamw::{AdamW, AdamWConfig, Control, Device, LossScale, NonFinite};
    /// let mut opt = AdamW::new(&Device::cpu(), AdamWConfig::default(), [1])?;
    /// let loss_scale = Some(LossScale::default());
    /// opt.set_control(Some(Control { loss_scale, non_finite: NonFinite::SkipStep, ..Default::default() }))?;
    /// let mut p = [1.0_f32];
    /// opt.step([(&mut p, &[f32::INFINITY])])?; // too large a scale: skipped
    /// assert_eq!((p, opt.state(0)?.step), ([1.0], 0));
    /// assert_eq!(opt.status()?.unwrap().loss_scale, 32768.0);
    /// # Ok::<(), fused_adamw::Error>(())
    /// ```
    ///
    /// # Errors
    /// [`Error::Control`], [`Error::Schedule`], [`Error::LossScaleWithoutSkip`]; on a GPU `Error::Capturing`,
    /// `Error::Driver`. Nothing has changed then.
    pub fn set_control(&mut self, control: Option<Control>) -> Result<()> {
        control.iter().try_for_each(Control::check)?;
        let largest_factor = control.as_ref().map_or(1.0, Control::largest_factor);
        self.groups.iter().enumerate().try_for_each(|(i, group)| group.check_times(i, largest_factor))?;
        let in_capture = |error: Error| error.in_capture(CONTROL_BEFORE);
        self.engine.enter()?;
        let steps = self.steps().map_err(in_capture)?;
        let before = self.control.as_ref().zip(self.engine.control_state()?);
        let lens = self.tensors.iter().map(|tensor| tensor.len as u64).collect();
        let apart = control.as_ref().is_some_and(|control| control.non_finite == NonFinite::SkipTensor);
        let (classes, counts) = match apart {
            true => Classes::apart(&self.tensors, &steps),
            false => Classes::fewest(&self.tensors, &steps, &vec![false; self.tensors.len()]),
        };
        let tables = |control| Tables::new(control, lens, &self.groups, counts.clone(), before);
        let with_tables = control.as_ref().map(|control| (control, tables(control)));
        self.engine.set_control(with_tables, self.tensors.len()).map_err(in_capture)?;
        let goes_on = self.control.is_some() && control.is_some();
        self.overruns = if goes_on { self.overruns } else { 0 };
        (self.control, self.largest_factor) = (control, largest_factor);
        (self.classes, self.counts) = (classes, counts);
        self.forget_rows(); // the next step's are checked: this control may write other memory than the last
        Ok(())
    }

    /// The control as it was set; `None` without one.
    ///
    /// ```
    /// # use fused_adamw::{AdamW, AdamWConfig, Control, Device};
    /// # let mut opt = AdamW::new(&Device::cpu(), AdamWConfig::default(), [1])?;
    /// opt.set_control(Some(Control { zero_grad: true, ..Default::default() }))?;
    /// let clipped = Control { max_grad_norm: Some(1.0), ..opt.control().cloned().unwrap_or_default() };
    /// opt.set_control(Some(clipped))?;
    /// assert!(opt.control().unwrap().zero_grad);
    /// # Ok::<(), fused_adamw::Error>(())
    /// ```
    #[must_use]
    pub fn control(&self) -> Option<&Control> {
        self.control.as_ref()
    }

    /// The step counts of all tensors.
    pub(super) fn steps(&self) -> Result<Vec<u64>> {
        let counts = self.engine.counts()?;
        let counts = counts.as_ref().unwrap_or(&self.counts);
        Ok(self.classes.of.iter().map(|&class| counts[class as usize]).collect())
    }

    /// The step count of one tensor; costs the same for any number of them.
    pub(super) fn step_of(&self, index: usize) -> Result<u64> {
        let class = self.classes.of[index] as usize;
        Ok(self.engine.count(class)?.unwrap_or_else(|| self.counts[class]))
    }

    /// What the control has come to; `None` without one. On a GPU this waits for the steps that were enqueued.
    ///
    /// ```
    /// # use fused_adamw::{AdamW, AdamWConfig, Control, Device};
    /// # let mut opt = AdamW::new(&Device::cpu(), AdamWConfig::default(), [2])?;
    /// opt.set_control(Some(Control { max_grad_norm: Some(1.0), ..Default::default() }))?;
    /// opt.step([(&mut [0.0_f32; 2], &[3.0_f32, 4.0])])?;
    /// let status = opt.status()?.unwrap();
    /// assert_eq!((status.grad_norm, (1e6 * status.grad_scale).round()), (Some(5.0), 200_000.0));
    /// # Ok::<(), fused_adamw::Error>(())
    /// ```
    ///
    /// # Errors
    /// On a GPU `Error::Driver`, `Error::Capturing`.
    pub fn status(&self) -> Result<Option<Status>> {
        Ok(self.engine.control_state()?.map(Status::from))
    }

    /// The measurements of the newest step whose record has arrived; `None` before there is one. It takes
    /// [`Control::metrics`] or [`Control::rms_alarm`]. Never waits: on a GPU every step sends its record to one of 4 places
    /// in pinned memory, from where it is read if it is there. A record that nobody has read is overwritten by the fourth
    /// after it; one for which all places are still on their way is not kept, and [`Metrics::dropped`] counts those.
    ///
    /// Replays of a captured step are not seen by the host. Once one has been captured each call asks for the record of
    /// the last replay enqueued, and returns what has arrived of earlier ones.
    ///
    /// ```
    /// # use fused_adamw::{AdamW, AdamWConfig, Control, Device};
    /// # let mut opt = AdamW::new(&Device::cpu(), AdamWConfig { lr: 0.5, ..Default::default() }, [2])?;
    /// opt.set_control(Some(Control { metrics: true, ..Default::default() }))?;
    /// opt.step([(&mut [0.0_f32; 2], &[3.0_f32, 4.0])])?;
    /// let total = opt.metrics()?.unwrap().total;
    /// assert_eq!((total.grad_norm, total.max_update, total.non_finite), (5.0, 0.5, 0));
    /// # Ok::<(), fused_adamw::Error>(())
    /// ```
    ///
    /// # Errors
    /// [`Error::NoMetrics`] without a control that measures; on a GPU `Error::Capturing`, `Error::Driver`.
    pub fn metrics(&mut self) -> Result<Option<Metrics>> {
        if !self.control.as_ref().is_some_and(Control::measures) {
            return Err(Error::NoMetrics);
        }
        self.engine.enter()?;
        Ok(self.engine.record()?.map(|record| Metrics::new(&record, &self.tensors)))
    }

    /// An error if more steps one after the other have been skipped than the control allows: [`Control::max_skipped`]; none at
    /// all are allowed with [`NonFinite::Error`](crate::NonFinite::Error). Every run of skipped steps since the last call
    /// counts, also one that has ended in between. On a GPU this waits for the steps that were enqueued.
    ///
    /// ```
    /// # use fused_adamw::{AdamW, AdamWConfig, Control, Device, Error, NonFinite};
    /// # let mut opt = AdamW::new(&Device::cpu(), AdamWConfig::default(), [1])?;
    /// opt.set_control(Some(Control { non_finite: NonFinite::Error, ..Default::default() }))?;
    /// opt.step([(&mut [0.0_f32], &[f32::NAN])])?;
    /// opt.step([(&mut [0.0_f32], &[1.0])])?;
    /// assert!(matches!(opt.poll(), Err(Error::Skipped { skipped_running: 1, limit: 0, non_finite: 1, .. })));
    /// assert!(opt.poll().is_ok());
    /// # Ok::<(), fused_adamw::Error>(())
    /// ```
    ///
    /// # Errors
    /// [`Error::Skipped`], which tells of the newest skipped step that was one too many; on a GPU `Error::Driver`,
    /// `Error::Capturing`.
    pub fn poll(&mut self) -> Result<()> {
        let (Some(control), Some(state)) = (&self.control, self.engine.control_state()?) else { return Ok(()) };
        let (limit, ControlState { skipped_running, non_finite, grad_norm, overrun, .. }) =
            (control.allowed_skips(), state);
        let is_new = overrun.count > std::mem::replace(&mut self.overruns, overrun.count);
        if skipped_running > limit {
            return Err(Error::Skipped { skipped_running, limit, non_finite, grad_norm });
        }
        let Overrun { skipped_running, non_finite, grad_norm, .. } = overrun;
        if is_new { Err(Error::Skipped { skipped_running, limit, non_finite, grad_norm }) } else { Ok(()) }
    }

    /// Where on the GPU the loss scale lies, an f32: for the kernels that make the loss, so that the host need not know it.
    /// It changes in each step, in order on the device's stream, and moves with [`AdamW::set_control`]. `None` on the
    /// CPU and without a control.
    ///
    /// ```
    /// # use fused_adamw::{AdamW, AdamWConfig, Device};
    /// let opt = AdamW::new(&Device::cpu(), AdamWConfig::default(), [1])?;
    /// assert_eq!(opt.loss_scale_address(), None);
    /// # Ok::<(), fused_adamw::Error>(())
    /// ```
    #[cfg(feature = "cuda")]
    #[must_use]
    pub fn loss_scale_address(&self) -> Option<u64> {
        self.engine.loss_scale_address()
    }

    /// From the next step on every gradient is also multiplied by an f32 on the device, read when the step runs: a number
    /// that other work of the device makes, which the host need not know. `None` ends that. It takes a control. Graphs keep
    /// the number with which they were captured: `AdamW::allow_capture`.
    ///
    /// ```no_run
    /// # use fused_adamw::{AdamW, AdamWConfig, Control, Device};
    /// use std::sync::Arc;
    /// # let device = Device::cuda_at(0)?;
    /// # let mut opt = AdamW::new(&device, AdamWConfig::default(), [1])?;
    /// let one_over_tokens = Arc::new(device.stream().unwrap().clone_htod(&[1.0_f32 / 4096.0])?);
    /// opt.set_control(Some(Control::default()))?;
    /// opt.scale_grads_by(Some(one_over_tokens.clone()))?;
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    /// [`Error::NoControl`], [`Error::ScalarLength`] unless it has one element, [`Error::ScalarDevice`] for one of another
    /// device or context. Nothing has changed then.
    #[cfg(feature = "cuda")]
    pub fn scale_grads_by(&mut self, scalar: Option<Arc<CudaSlice<f32>>>) -> Result<()> {
        self.engine.scale_grads_by(scalar)
    }
}
