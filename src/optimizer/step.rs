//! The step: describe, adopt, run, count. The counts move last. What the step before has described and checked is
//! compared, and not checked again.

use super::AdamW;
use crate::arena::Layout;
use crate::classes::Classes;
use crate::config::{AdamWConfig, StepOptions};
use crate::device::{Device, Guards};
use crate::engine::Work;
use crate::error::{Error, Result};
use crate::overlap;
use crate::scalars::step_scalars;
use crate::table::{Class, StepScalars, TensorRow};
use crate::tensor::{Elements, GradView, Pair};

impl AdamW {
    /// Steps every tensor that has a gradient: one launch on a GPU, one walk over all elements on the CPU.
    ///
    /// `pairs` are in the registered order: `(parameter, gradient)`, `(parameter, Option<gradient>)`, or [`Pair`]s.
    /// A GPU's work is enqueued on the device's stream, not waited for. When dtypes, addresses, and which tensors have a
    /// gradient are as in the step before, nothing is copied to the GPU. (But for the scalars, a few KB, in every step with
    /// more than 112 different pairs of group and step count.)
    ///
    /// Into a CUDA graph a step is captured after `AdamW::allow_capture`.
    ///
    /// ```
    /// # use fused_adamw::{AdamW, AdamWConfig, Device};
    /// # let mut opt = AdamW::new(&Device::cpu(), AdamWConfig::default(), [2, 1])?;
    /// let (mut w, mut b) = (vec![1.0_f32; 2], vec![1.0_f32]);
    /// let grads = [Some(vec![0.5_f32; 2]), None]; // `b` had no part in the loss
    /// opt.step([&mut w, &mut b].into_iter().zip(grads.iter().map(Option::as_ref)))?;
    /// assert_eq!((opt.state(0)?.step, opt.state(1)?.step, b), (1, 0, vec![1.0]));
    /// # Ok::<(), fused_adamw::Error>(())
    /// ```
    ///
    /// # Errors
    /// [`Error::TensorCount`], [`Error::Length`], [`Error::Dtype`], [`Error::WrongDevice`], [`Error::NullPointer`],
    /// [`Error::Misaligned`], [`Error::PastTheEnd`], [`Error::Overlap`], [`Error::SharedGrad`] for tensors that do not fit;
    /// [`Error::SumsPending`] after [`AdamW::accumulate`]; [`Error::OutOfMemory`] for the master of a 16-bit parameter seen
    /// for the first time; of a GPU `Error::Capturing`, `Error::CaptureNotAllowed` and its like, `Error::Driver`. Nothing has
    /// changed then. The exception is `Error::NotRecorded`.
    pub fn step<'a, I>(&mut self, pairs: I) -> Result<()>
    where
        I: IntoIterator,
        I::Item: Into<Pair<'a>>,
    {
        self.step_with(StepOptions::default(), pairs)
    }

    /// [`AdamW::step`] with [`StepOptions`].
    ///
    /// ```
    /// # use fused_adamw::{AdamW, AdamWConfig, Device, StepOptions};
    /// let mut opt = AdamW::new(&Device::cpu(), AdamWConfig::default(), [1])?;
    /// opt.step_with(StepOptions { grad_scale: 0.5 }, [(&mut [1.0_f32], &[4.0_f32])])?;
    /// assert_eq!(opt.state(0)?.m, [0.2]);
    /// # Ok::<(), fused_adamw::Error>(())
    /// ```
    ///
    /// # Errors
    /// As for [`AdamW::step`]; [`Error::GradScale`].
    pub fn step_with<'a, I>(&mut self, options: StepOptions, pairs: I) -> Result<()>
    where
        I: IntoIterator,
        I::Item: Into<Pair<'a>>,
    {
        self.refuse_pending_sums()?;
        self.step_pairs(options, pairs)
    }

    /// A step by gradients of the caller's, or by sums.
    pub(super) fn step_pairs<'a, I>(&mut self, options: StepOptions, pairs: I) -> Result<()>
    where
        I: IntoIterator,
        I::Item: Into<Pair<'a>>,
    {
        options.check()?;
        let device = self.device.clone();
        // Where the caller's iterator panics only their memory is lost.
        let mut guards = std::mem::take(&mut self.guards).next(&device);
        self.describe(pairs.into_iter().map(Into::into), &device, &mut guards)?;
        self.run(options)?;
        self.guards = guards.finish(&device)?;
        Ok(())
    }

    /// Describes the tensors of the steps to come, once: [`AdamW::step_prepared`] then steps them at a cost that does not
    /// grow with their number. `pairs` as for [`AdamW::step`], and checked as there. It lasts until a step with other
    /// tensors, or [`AdamW::set_control`]; hyper-parameters may change.
    ///
    /// ```
    /// use fused_adamw::{AdamW, AdamWConfig, Device, Dtype, Pair, StepOptions};
    /// let (mut p, mut g) = (vec![1.0_f32; 4], vec![0.0_f32; 4]);
    /// let (p_at, g_at) = (p.as_mut_ptr(), g.as_mut_ptr());
    /// let mut opt = AdamW::new(&Device::cpu(), AdamWConfig::default(), [4])?;
    /// // SAFETY: four f32 each, alive for all steps, and used by nobody else but between them, by these addresses.
    /// unsafe { opt.prepare([Pair::from_raw(p_at as u64, Dtype::F32, g_at as u64, Dtype::F32, 4)])? };
    /// for _ in 0..3 {
    ///     unsafe { g_at.write(1.0) }; // the backward pass
    ///     opt.step_prepared(StepOptions::default())?;
    /// }
    /// assert_eq!(opt.state(0)?.step, 3);
    /// # Ok::<(), fused_adamw::Error>(())
    /// ```
    ///
    /// # Errors
    /// As for [`AdamW::step`]. Nothing has changed then.
    ///
    /// # Safety
    /// Until the last prepared step has finished, all parameters and gradients stay where they are; nobody borrows them
    /// mutably, nor writes to or reads from them, but in order with the steps. On a GPU that order is the caller's: no
    /// events order other streams for the tensors.
    pub unsafe fn prepare<'a, I>(&mut self, pairs: I) -> Result<()>
    where
        I: IntoIterator,
        I::Item: Into<Pair<'a>>,
    {
        self.refuse_pending_sums()?;
        let device = self.device.clone();
        let mut guards = std::mem::take(&mut self.guards).next(&device); // as for a step
        self.describe(pairs.into_iter().map(Into::into), &device, &mut guards)?;
        self.prepared = true;
        self.guards = guards.finish(&device)?;
        Ok(())
    }

    /// A step of the tensors of [`AdamW::prepare`].
    ///
    /// ```
    /// # use fused_adamw::{AdamW, AdamWConfig, Device, Error, StepOptions};
    /// let mut opt = AdamW::new(&Device::cpu(), AdamWConfig::default(), [4])?;
    /// assert!(matches!(opt.step_prepared(StepOptions::default()), Err(Error::NotPrepared)));
    /// # Ok::<(), fused_adamw::Error>(())
    /// ```
    ///
    /// # Errors
    /// [`Error::NotPrepared`], [`Error::GradScale`], [`Error::SumsPending`]; of a GPU `Error::Capturing`,
    /// `Error::CaptureNotAllowed` and its like, `Error::Driver`. Nothing has changed then.
    pub fn step_prepared(&mut self, options: StepOptions) -> Result<()> {
        options.check()?;
        self.refuse_pending_sums()?;
        if !self.prepared {
            return Err(Error::NotPrepared);
        }
        self.engine.enter()?;
        // With a control a step of no elements is one, too.
        let works = self.effect == Effect::Steps || self.effect == Effect::Counts && self.control.is_some();
        self.is_capturing = works && self.check_capture()?;
        self.run(options)
    }

    /// Brings `rows` up to the pairs.
    fn describe<'d, 'p: 'd>(
        &mut self,
        pairs: impl Iterator<Item = Pair<'p>>,
        device: &'d Device,
        guards: &mut Guards<'d>,
    ) -> Result<()> {
        self.engine.enter()?;
        if self.are_named_by(pairs, device, guards)? { Ok(()) } else { self.adopt() }
    }

    /// Whether the pairs name what they named in the step before. Else it is in `next_named`.
    fn are_named_by<'d, 'p: 'd>(
        &mut self,
        pairs: impl Iterator<Item = Pair<'p>>,
        device: &'d Device,
        guards: &mut Guards<'d>,
    ) -> Result<bool> {
        let (mut pairs, mut asked, mut same, mut actual) = (pairs.fuse(), false, true, 0);
        self.next_named.clear();
        self.is_capturing = false;
        for (tensor, pair) in self.tensors.iter().zip(&mut pairs) {
            // With a control a step of no elements is one, too.
            let works = |grad: &Elements<GradView<'p>>| grad.len > 0 || self.control.is_some();
            if !asked && (guards.waits() || pair.grad.0.as_ref().is_some_and(works)) {
                self.is_capturing = self.check_capture()?;
                asked = true;
            }
            let named = tensor.named(pair, device, guards)?;
            if same && self.named.get(actual) != Some(&named) {
                same = false;
                self.next_named.extend_from_slice(&self.named[..actual]);
            }
            if !same {
                self.next_named.push(named);
            }
            actual += 1;
        }
        // One too many is enough to know.
        self.check_tensor_count(actual + usize::from(pairs.next().is_some()))?;
        Ok(same)
    }

    /// `actual`: at most one more than there are.
    pub(super) fn check_tensor_count(&self, actual: usize) -> Result<()> {
        let expected = self.tensors.len();
        if actual == expected {
            return Ok(());
        }
        let tensor = self.tensors.get(actual).or(self.tensors.last()).map(|tensor| tensor.id.clone());
        Err(Error::TensorCount { expected, actual, tensor })
    }

    fn fill_next_rows(&mut self) -> Result<()> {
        let zero_grad = self.zeroes_grads();
        self.next_rows.clear();
        for ((tensor, named), &class) in self.tensors.iter().zip(&self.next_named).zip(&self.classes.of) {
            let row = tensor.row(named, zero_grad, &self.arenas)?;
            self.next_rows.push(TensorRow { scalars: class, ..row });
        }
        Ok(())
    }

    pub(super) fn zeroes_grads(&self) -> bool {
        self.control.as_ref().is_some_and(|control| control.zero_grad)
    }

    /// Makes rows of `next_named`, with every check.
    fn adopt(&mut self) -> Result<()> {
        self.fill_next_rows()?;
        self.add_masters()?;
        overlap::check(&self.next_rows, &self.tensors, self.zeroes_grads())?;
        let has_grad: Vec<bool> = self.next_rows.iter().map(TensorRow::has_grad).collect();
        // Rows that were forgotten may have left classes behind of which the device does not know.
        let fit = !self.rows.is_empty() && self.classes.fit(&has_grad);
        self.forget_rows();
        let effect = self.effect_of(&self.next_rows);
        if effect != Effect::None && !fit {
            self.reclassify(&has_grad)?;
            self.next_rows.iter_mut().zip(&self.classes.of).for_each(|(row, &class)| row.scalars = class);
        }
        std::mem::swap(&mut self.rows, &mut self.next_rows);
        std::mem::swap(&mut self.named, &mut self.next_named);
        (self.effect, self.is_settled) = (effect, false);
        Ok(())
    }

    /// The next step's rows are checked, whatever they are.
    pub(super) fn forget_rows(&mut self) {
        self.rows.clear();
        self.named.clear();
        (self.effect, self.prepared, self.is_captured) = (Effect::None, false, false);
        self.engine.forget_rows();
    }

    fn reclassify(&mut self, has_grad: &[bool]) -> Result<()> {
        if self.control.is_some() {
            let (classes, split) = self.classes.split(has_grad);
            self.engine.set_classes(&classes, &split)?;
            self.classes = classes;
        } else {
            (self.classes, self.counts) = Classes::fewest(&self.tensors, &self.steps()?, has_grad);
        }
        Ok(())
    }

    /// Memory for the masters of 16-bit parameters that have none: one more arena.
    fn add_masters(&mut self) -> Result<()> {
        let mut layout = Layout { arena: self.arenas.len(), len: 0 };
        let lacking = self.next_rows.iter().zip(&self.tensors).enumerate();
        let lacking =
            lacking.filter(|(_, (row, _))| row.has_grad() && row.master == 0 && row.param_dtype().is_narrow());
        let slots: Vec<_> = lacking.map(|(i, (_, tensor))| (i, layout.slot(tensor.len))).collect();
        if slots.is_empty() {
            return Ok(());
        }
        self.arenas.push(self.device.alloc(layout.len)?);
        for (i, slot) in slots {
            self.tensors[i].master = Some(slot);
            self.next_rows[i] = self.tensors[i].with_state(self.next_rows[i], &self.arenas);
        }
        Ok(())
    }

    fn effect_of(&self, rows: &[TensorRow]) -> Effect {
        let with_grad = self.tensors.iter().zip(rows).filter(|(_, row)| row.has_grad());
        match with_grad.map(|(tensor, _)| tensor.len).max() {
            None => Effect::None,
            Some(0) => Effect::Counts,
            Some(_) => Effect::Steps,
        }
    }

    /// Steps by `rows`.
    fn run(&mut self, options: StepOptions) -> Result<()> {
        let StepOptions { grad_scale } = options;
        if self.effect == Effect::Steps && !self.is_settled {
            // SAFETY: as for the step below, of the same rows.
            unsafe { self.init_masters()? };
        }
        let work = match (&self.control, self.effect) {
            (_, Effect::None) => return Ok(()),
            (None, Effect::Counts) => {
                self.count();
                return Ok(());
            }
            (Some(control), _) => Work::Controlled {
                control,
                grad_scale,
                #[cfg(feature = "cuda")]
                is_capturing: self.is_capturing,
            },
            (None, Effect::Steps) => {
                plain_scalars(&mut self.scalars, &self.classes, &self.counts, &self.groups, grad_scale);
                Work::Plain(&self.scalars)
            }
        };
        // SAFETY: every row was made from a pair of the registered length (`Tensor::check`), whose parameter is
        // borrowed mutably and whose gradient is borrowed for as long as this function runs, or which the
        // caller of `Pair::from_raw`, `prepare` or `allow_capture` vouches for; gradients that are written are borrowed
        // mutably, too (`Tensor::check`). It lies on this device, aligned (`Tensor::row`); what is written overlaps
        // nothing (`overlap::check`, of these rows and this control, now or before). The state's slots are the
        // optimizer's own, disjoint, and long enough (`Layout`). The engine's chunks were made from the registered
        // lengths; there are scalars for every class (`adopt`). The guards are held until after the launch.
        unsafe { self.engine.run(&self.rows, work)? };
        self.is_captured |= self.is_capturing;
        self.count();
        Ok(())
    }

    /// The step is enqueued.
    fn count(&mut self) {
        if self.control.is_none() {
            self.counts
                .iter_mut()
                .zip(&self.classes.list)
                .for_each(|(count, class)| *count += u64::from(class.has_grad));
        }
        if !std::mem::replace(&mut self.is_settled, true) {
            let stepped = self.tensors.iter_mut().zip(&self.rows).filter(|(_, row)| row.has_grad());
            stepped.for_each(|(tensor, row)| tensor.stepped(row));
        }
    }
}

/// What a step of some rows does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Effect {
    /// No tensor has a gradient.
    None,
    /// Those that have one are empty: their step counts move.
    Counts,
    Steps,
}

/// Of the classes with gradients, which come first.
fn plain_scalars(
    scalars: &mut Vec<StepScalars>,
    classes: &Classes,
    counts: &[u64],
    groups: &[AdamWConfig],
    grad_scale: f64,
) {
    let with_grad = classes.list.iter().zip(counts).take_while(|(class, _)| class.has_grad != 0);
    let of =
        |(class, &count): (&Class, &u64)| step_scalars(&groups[class.group as usize].hyper(), count + 1, grad_scale);
    scalars.clear();
    scalars.extend(with_grad.map(of));
}
