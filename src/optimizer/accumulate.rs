//! The optimizer with sums of gradients, for batches that take several backward passes.

use super::AdamW;
use super::capture::ACCUMULATE_BEFORE;
use crate::arena::{Arena, Layout, Slot};
use crate::config::StepOptions;
use crate::device::Guards;
use crate::error::{Buffer, Error, Result};
use crate::register::Tensor;
use crate::table::{SumRow, firsts};
use crate::tensor::{Dtype, Elements, Grad, Pair, Param, Place};

/// An f32 sum for each tensor.
#[derive(Debug)]
pub(super) struct Sums {
    arena: Arena,
    slots: Vec<Slot>,
    lens: Vec<usize>,
    /// Whether a gradient has been added since the last step.
    pending: Vec<bool>,
}

impl Sums {
    fn address(&self, i: usize) -> u64 {
        self.arena.address() + 4 * self.slots[i].offset as u64
    }

    /// The sum of tensor `i`, if there is such a tensor and anything has been added to it.
    fn grad<'a>(&self, i: usize) -> Grad<'a> {
        let sum = || Place::Raw(self.address(i));
        let pending = self.pending.get(i).is_some_and(|&pending| pending);
        Grad(pending.then(|| Elements { place: sum(), dtype: Dtype::F32, len: self.lens[i], writable: true }))
    }
}

impl AdamW {
    /// Adds gradients to sums that the optimizer keeps, f32 whatever the gradients are: for a batch that takes several
    /// backward passes. [`AdamW::step_accumulated`] then steps by the sums. `grads` are in the registered order; `None`
    /// adds nothing. The sums (4 bytes an element) are allocated by the first call; the first gradient after a step
    /// replaces its sum, so that nothing is ever set to zero. Until that step, or [`AdamW::clear_accumulated`], a step by
    /// other gradients is an error: the sums would be added to those of the next batch.
    ///
    /// One launch on a GPU, and no copy while addresses are as in the call before.
    ///
    /// ```
    /// use fused_adamw::{AdamW, AdamWConfig, Device, StepOptions};
    /// use half::bf16;
    /// let mut opt = AdamW::new(&Device::cpu(), AdamWConfig::default(), [2])?;
    /// let mut p = [1.0_f32; 2];
    /// for g in [[256.0, 1.0], [1.0, 1.0]] {
    ///     opt.accumulate([&g.map(bf16::from_f32)])?;
    /// }
    /// opt.step_accumulated(StepOptions { grad_scale: 0.5 }, [&mut p])?; // their mean
    /// assert_eq!(opt.state(0)?.m, [12.85, 0.1]); // 257 has no bf16
    /// # Ok::<(), fused_adamw::Error>(())
    /// ```
    ///
    /// # Errors
    /// Those of [`AdamW::step`] that are about gradients. Nothing has changed then.
    pub fn accumulate<'a, I>(&mut self, grads: I) -> Result<()>
    where
        I: IntoIterator,
        I::Item: Into<Grad<'a>>,
    {
        // One too many is enough to know.
        let grads: Vec<Grad<'a>> = grads.into_iter().take(self.tensors.len() + 1).map(Into::into).collect();
        self.check_grads(&grads)?;
        let has_grad: Vec<bool> = grads.iter().map(|grad| grad.0.is_some()).collect();
        if !has_grad.contains(&true) {
            self.accumulated = true;
            return Ok(());
        }
        let is_capturing = self.check_capture()?;
        self.engine.enter()?;
        if self.sums.is_none() {
            self.sums = Some(self.new_sums().map_err(|error| error.in_capture(ACCUMULATE_BEFORE))?);
        }
        let Some(sums) = &mut self.sums else { return Ok(()) };
        let which_first = which_first(&sums.pending, &has_grad);
        let device = self.device.clone();
        let mut guards = Guards::default().next(&device);
        let mut rows = Vec::with_capacity(grads.len());
        for (i, (tensor, grad)) in self.tensors.iter().zip(grads).enumerate() {
            let first = which_first == firsts::ROWS_FIRST && !sums.pending[i];
            let sum = sums.address(i);
            rows.push(match grad.0 {
                Some(grad) => SumRow { sum, ..tensor.sum_row(grad, first, &device, &mut guards)? },
                None => SumRow { sum, ..SumRow::default() },
            });
        }
        // SAFETY: every gradient is of the registered length (`check_grads`), lies on this device, aligned
        // (`Tensor::sum_row`), and is borrowed for as long as this function runs, or as `Grad`'s maker vouches for; the
        // sums are the optimizer's own, as long as the tensors and apart (`Layout`), so that no gradient is among them.
        // The guards are held until after the launch.
        unsafe { self.engine.accumulate(&rows, which_first, is_capturing) }
            .map_err(|error| error.in_capture(ACCUMULATE_BEFORE))?;
        sums.pending.iter_mut().zip(has_grad).for_each(|(pending, has)| *pending |= has);
        self.accumulated = true;
        guards.finish(&device).map(drop)
    }

    fn check_grads(&self, grads: &[Grad<'_>]) -> Result<()> {
        self.check_tensor_count(grads.len())?;
        let check = |(tensor, grad): (&Tensor, &Grad<'_>)| {
            grad.0.as_ref().map_or(Ok(()), |grad| tensor.check_len(Buffer::Grad, grad.len))
        };
        self.tensors.iter().zip(grads).try_for_each(check)
    }

    fn new_sums(&self) -> Result<Sums> {
        let mut layout = Layout::default();
        let lens: Vec<usize> = self.tensors.iter().map(|tensor| tensor.len).collect();
        let slots = lens.iter().map(|&len| layout.slot(len)).collect();
        Ok(Sums { arena: self.device.alloc(layout.len)?, slots, lens, pending: vec![false; self.tensors.len()] })
    }

    /// A step by the sums of [`AdamW::accumulate`]. A tensor that nothing has been added to since the last step has no
    /// gradient. `params` are in the registered order. The sums are used up, also by a step that a control skips.
    ///
    /// ```
    /// # use fused_adamw::{AdamW, AdamWConfig, Device, StepOptions};
    /// let mut opt = AdamW::new(&Device::cpu(), AdamWConfig::default(), [1, 1])?;
    /// let (mut w, mut frozen) = ([1.0_f32], [1.0_f32]);
    /// opt.accumulate([Some(&[0.5_f32]), None])?;
    /// opt.step_accumulated(StepOptions::default(), [&mut w, &mut frozen])?;
    /// assert!(w[0] < 1.0 && frozen == [1.0]);
    /// # Ok::<(), fused_adamw::Error>(())
    /// ```
    ///
    /// # Errors
    /// As for [`AdamW::step_with`]; [`Error::NoSums`] without an [`AdamW::accumulate`] since the last such step, be it one
    /// of `None`s. Nothing has changed then, and the sums are still there.
    pub fn step_accumulated<'a, I>(&mut self, options: StepOptions, params: I) -> Result<()>
    where
        I: IntoIterator,
        I::Item: Into<Param<'a>>,
    {
        if !self.accumulated {
            return Err(Error::NoSums);
        }
        let mut lent = Lent { sums: self.sums.take(), opt: self };
        let Lent { opt, sums } = &mut lent;
        let grad = |i| sums.as_ref().map_or(Grad(None), |sums| sums.grad(i));
        let pairs = params.into_iter().zip(0..).map(|(param, i)| Pair { param: param.into(), grad: grad(i) });
        let result = opt.step_pairs(options, pairs);
        drop(lent);
        if was_applied(&result) {
            self.clear_accumulated();
        }
        result
    }

    /// Drops what has been accumulated since the last step by sums: a batch that is given up. The memory stays.
    ///
    /// ```
    /// # use fused_adamw::{AdamW, AdamWConfig, Device, Error};
    /// let mut opt = AdamW::new(&Device::cpu(), AdamWConfig::default(), [1])?;
    /// let mut p = [1.0_f32];
    /// opt.accumulate([&[f32::NAN]])?;
    /// assert!(matches!(opt.step([(&mut p, &[1.0_f32])]), Err(Error::SumsPending { .. })));
    /// opt.clear_accumulated();
    /// opt.step([(&mut p, &[1.0_f32])])?;
    /// # Ok::<(), Error>(())
    /// ```
    pub fn clear_accumulated(&mut self) {
        self.sums.iter_mut().for_each(|sums| sums.pending.fill(false));
        self.accumulated = false;
    }

    /// An error if a step by other gradients would leave sums behind, to be added to those of the next batch.
    pub(super) fn refuse_pending_sums(&self) -> Result<()> {
        let first = || self.sums.as_ref()?.pending.iter().position(|&pending| pending);
        match self.accumulated.then(first).flatten() {
            Some(first) => Err(Error::SumsPending { tensor: self.tensors[first].id.clone() }),
            None => Ok(()),
        }
    }
}

/// Sums that a step reads while it has the optimizer, to which they come back whatever the caller's iterator does.
struct Lent<'a> {
    opt: &'a mut AdamW,
    sums: Option<Sums>,
}

impl Drop for Lent<'_> {
    fn drop(&mut self) {
        self.opt.sums = self.sums.take();
    }
}

/// The one error after which a step was applied is that its use could not be recorded.
fn was_applied(result: &Result<()>) -> bool {
    match result {
        #[cfg(feature = "cuda")]
        Err(Error::NotRecorded { .. }) => true,
        result => result.is_ok(),
    }
}

/// Of tensors that are all alike nothing has to be uploaded.
fn which_first(pending: &[bool], has_grad: &[bool]) -> u32 {
    let mut given = pending.iter().zip(has_grad).filter(|(_, has)| **has).map(|(&pending, _)| pending);
    let one = given.next().unwrap_or(false);
    match given.all(|other| other == one) {
        true if one => firsts::NONE_FIRST,
        true => firsts::ALL_FIRST,
        false => firsts::ROWS_FIRST,
    }
}
