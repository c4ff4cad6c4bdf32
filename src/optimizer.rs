//! The public optimizer: check, plan, launch, count. The counts move last.

use crate::arena::{Arena, Layout, Slot};
use crate::classes::Classes;
use crate::config::{AdamWConfig, StepOptions, TensorSpec};
use crate::control::Control;
use crate::controller::Controlled;
use crate::device::{Device, Guards};
use crate::engine::{Engine, Work};
use crate::error::{Error, Result};
use crate::overlap;
use crate::register::{Tensor, check_specs, lay_out};
use crate::rows::Scalars;
use crate::table::{StepScalars, TensorRow, row_flags};
use crate::tensor::{Dtype, Pair};
use accumulate::Sums;

mod accumulate;
mod control;

/// AdamW over a list of tensors: registered once by their lengths, stepped all together by one call.
///
/// The moments `m` and `v` (f32, 8 bytes an element) are the optimizer's, on its device; parameters and gradients
/// stay the caller's and may move between steps. A 16-bit parameter gets an f32 master (4 bytes more), read from it
/// in its first step; the arithmetic is f32 always.
///
/// The equations, and where they differ from PyTorch and the papers, are in the [crate's documentation](crate).
///
/// ```
/// use fused_adamw::{AdamW, AdamWConfig, Device};
/// let mut params = vec![vec![1.0_f32; 1000], vec![2.0; 10]];
/// let grads = vec![vec![0.1_f32; 1000], vec![0.2; 10]];
/// let lengths: Vec<usize> = params.iter().map(Vec::len).collect();
///
/// let config = AdamWConfig { lr: 3e-4, weight_decay: 0.1, ..Default::default() };
/// let mut opt = AdamW::new(&Device::cpu(), config, &lengths)?;
/// opt.step(params.iter_mut().zip(&grads))?;
/// assert_eq!(opt.state(1)?.step, 1);
/// # Ok::<(), fused_adamw::Error>(())
/// ```
#[derive(Debug)]
pub struct AdamW {
    device: Device,
    groups: Vec<AdamWConfig>,
    tensors: Vec<Tensor>,
    arenas: Vec<Arena>,
    /// Of the last step, checked for overlaps; and room for the next.
    rows: Vec<TensorRow>,
    next_rows: Vec<TensorRow>,
    engine: Engine,
    /// With it, step counts are the engine's, by class.
    control: Option<(Control, Classes)>,
    sums: Option<Sums>,
    may_be_captured: bool,
}

/// A copy of one tensor's state, read by [`AdamW::state`]. Lengths are the tensor's.
///
/// ```
/// # use fused_adamw::{AdamW, AdamWConfig, Device};
/// let mut opt = AdamW::new(&Device::cpu(), AdamWConfig::default(), [1])?;
/// opt.step([(&mut [1.0_f32], &[2.0_f32])])?;
/// let state = opt.state(0)?;
/// assert_eq!((state.step, state.m, state.v), (1, vec![0.2], vec![0.004]));
/// # Ok::<(), fused_adamw::Error>(())
/// ```
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct TensorState {
    /// Steps applied to it: not counted are those in which it had no gradient.
    pub step: u64,
    /// First moment (PyTorch: `exp_avg`), in gradient units.
    pub m: Vec<f32>,
    /// Second moment (PyTorch: `exp_avg_sq`), in squared gradient units.
    pub v: Vec<f32>,
    /// With AMSGrad the largest second moment (PyTorch: `max_exp_avg_sq`), else `None`.
    pub vmax: Option<Vec<f32>>,
    /// The f32 master of a 16-bit parameter; `None` for an f32 parameter and before the first step.
    pub master: Option<Vec<f32>>,
}

impl AdamW {
    /// One parameter group. `tensors` are lengths in elements, or [`TensorSpec`]s; a length may be 0. Allocates and
    /// zeroes the moments.
    ///
    /// ```
    /// # use fused_adamw::{AdamW, AdamWConfig, Device, TensorSpec};
    /// let by_length = AdamW::new(&Device::cpu(), AdamWConfig::default(), [768 * 768, 768, 0])?;
    /// let by_name = AdamW::new(&Device::cpu(), AdamWConfig::default(), [TensorSpec::new(768).named("bias")])?;
    /// # Ok::<(), fused_adamw::Error>(())
    /// ```
    ///
    /// # Errors
    /// [`Error::Config`] for a hyper-parameter out of its range, [`Error::GroupIndex`] for a group other than 0,
    /// [`Error::TooManyElements`] above 2^40, [`Error::TooManyTensors`] from 2^32 on, [`Error::OutOfMemory`] or
    /// `Error::Driver` if the memory is not there, `Error::Capturing`.
    pub fn new<I>(device: &Device, config: AdamWConfig, tensors: I) -> Result<Self>
    where
        I: IntoIterator,
        I::Item: Into<TensorSpec>,
    {
        Self::with_groups(device, &[config], tensors)
    }

    /// Several parameter groups; each tensor names its own by [`TensorSpec::group`]. Groups do not cost a launch.
    ///
    /// ```
    /// use fused_adamw::{AdamW, AdamWConfig, Device, TensorSpec};
    /// let decay = AdamWConfig { weight_decay: 0.1, ..Default::default() };
    /// let no_decay = AdamWConfig { weight_decay: 0.0, ..decay };
    /// let specs = [TensorSpec::new(768 * 768).named("w"), TensorSpec::new(768).named("b").group(1)];
    /// let opt = AdamW::with_groups(&Device::cpu(), &[decay, no_decay], specs)?;
    /// assert_eq!(opt.groups().len(), 2);
    /// # Ok::<(), fused_adamw::Error>(())
    /// ```
    ///
    /// # Errors
    /// As for [`AdamW::new`].
    pub fn with_groups<I>(device: &Device, groups: &[AdamWConfig], tensors: I) -> Result<Self>
    where
        I: IntoIterator,
        I::Item: Into<TensorSpec>,
    {
        groups.iter().enumerate().try_for_each(|(i, config)| config.check(i))?;
        let specs: Vec<TensorSpec> = tensors.into_iter().map(Into::into).collect();
        let lens = check_specs(&specs, groups.len())?;
        let (tensors, layout) = lay_out(&specs, groups);
        Ok(Self {
            arenas: vec![device.alloc(layout.len)?],
            engine: Engine::new(device, lens)?,
            device: device.clone(),
            groups: groups.to_vec(),
            tensors,
            rows: Vec::new(),
            next_rows: Vec::new(),
            control: None,
            sums: None,
            may_be_captured: false,
        })
    }

    /// Steps every tensor that has a gradient: one launch on a GPU, one walk over all elements on the CPU.
    ///
    /// `pairs` are in the registered order: `(parameter, gradient)`, `(parameter, Option<gradient>)`, or [`Pair`]s.
    /// A GPU's work is enqueued on the device's stream, not waited for. When dtypes, addresses, and which tensors have a
    /// gradient are as in the step before, nothing is copied to the GPU. (The table is copied once more in the second
    /// step of a 16-bit parameter, which is the first to read its master; and the scalars, a few KB, in every step with
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
    /// [`Error::Misaligned`], [`Error::Overlap`], [`Error::SharedGrad`] for tensors that do not fit;
    /// [`Error::OutOfMemory`] for the master of a 16-bit parameter seen for the first time; of a GPU `Error::Capturing`,
    /// `Error::Captured`, `Error::Driver`. Nothing has changed then. The exception is `Error::NotRecorded`.
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
        let pairs: Vec<Pair<'a>> = pairs.into_iter().map(Into::into).collect();
        self.enqueue(options, pairs)
    }

    fn enqueue(&mut self, options: StepOptions, pairs: Vec<Pair<'_>>) -> Result<()> {
        options.check()?;
        self.check_pairs(&pairs)?;
        let has_grad: Vec<bool> = pairs.iter().map(|pair| pair.grad.0.is_some()).collect();
        if pairs.iter().any(|pair| pair.grad.0.as_ref().is_some_and(|grad| grad.len > 0)) {
            self.refuse_capture()?;
        }
        self.add_masters(&pairs)?;
        let dtypes: Vec<Dtype> = pairs.iter().map(|pair| pair.param.0.dtype).collect();
        let (device, mut guards) = (self.device.clone(), Guards::default());
        self.describe(pairs, &device, &mut guards)?;
        let work = self.index_scalars(options.grad_scale, &has_grad);
        if self.next_rows != self.rows {
            overlap::check(&self.next_rows, &self.tensors, self.zeroes_grads())?;
        }
        // SAFETY: every row was made from a pair of the registered length (`check_pairs`), whose parameter is
        // borrowed mutably and whose gradient is borrowed for as long as this function runs, or which the
        // caller of `Pair::from_raw` or `allow_capture` vouches for; gradients that are written are borrowed mutably, too
        // (`Tensor::check`). It lies on this device, aligned (`Tensor::row`); what is written overlaps nothing
        // (`overlap::check`, of these rows and this control, now or before). The state's
        // slots are the optimizer's own, disjoint, and long enough (`Layout`). The engine's chunks were made from the
        // registered lengths; scalar indices come with `work`. The guards are held until after the launch.
        unsafe { self.engine.run(&self.next_rows, &work)? };
        self.applied(work, &dtypes);
        guards.finish(&device)
    }

    fn check_pairs(&self, pairs: &[Pair<'_>]) -> Result<()> {
        if pairs.len() != self.tensors.len() {
            return Err(Error::TensorCount { expected: self.tensors.len(), actual: pairs.len() });
        }
        let zero_grad = self.zeroes_grads();
        self.tensors.iter().zip(pairs).try_for_each(|(tensor, pair)| tensor.check(pair, zero_grad))
    }

    fn zeroes_grads(&self) -> bool {
        self.control.as_ref().is_some_and(|(control, _)| control.zero_grad)
    }

    /// Memory for the masters of 16-bit parameters that have none: one more arena.
    fn add_masters(&mut self, pairs: &[Pair<'_>]) -> Result<()> {
        let narrow = |pair: &Pair<'_>| pair.param.0.dtype.is_narrow() && pair.grad.0.is_some();
        let mut layout = Layout { arena: self.arenas.len(), len: 0 };
        let lacking = self.tensors.iter().zip(pairs).map(|(tensor, pair)| tensor.master.is_none() && narrow(pair));
        let slots = lacking.zip(&self.tensors).enumerate().filter(|(_, (lacks, _))| *lacks);
        let slots: Vec<_> = slots.map(|(i, (_, tensor))| (i, layout.slot(tensor.len))).collect();
        if !slots.is_empty() {
            self.arenas.push(self.device.alloc(layout.len)?);
        }
        slots.into_iter().for_each(|(i, slot)| self.tensors[i].master = Some(slot));
        Ok(())
    }

    /// Fills `next_rows`, but for their scalars.
    fn describe<'a>(&mut self, pairs: Vec<Pair<'a>>, device: &'a Device, guards: &mut Guards<'a>) -> Result<()> {
        self.next_rows.clear();
        for (tensor, pair) in self.tensors.iter().zip(pairs) {
            self.next_rows.push(tensor.row(pair, device, &self.arenas, guards)?);
        }
        Ok(())
    }

    /// Gives each of `next_rows` the index of its scalars.
    fn index_scalars(&mut self, grad_scale: f64, has_grad: &[bool]) -> Work {
        let Some((control, classes)) = &self.control else { return Work::Plain(self.plain_scalars(grad_scale)) };
        if !has_grad.contains(&true) {
            return Work::Plain(Vec::new());
        }
        let (next, split) = classes.next(has_grad).unwrap_or_else(|| (classes.clone(), Vec::new()));
        self.next_rows.iter_mut().zip(&next.of).for_each(|(row, &class)| row.scalars = class);
        Work::Controlled(Box::new(Controlled { control: control.clone(), classes: next, split, grad_scale }))
    }

    fn plain_scalars(&mut self, grad_scale: f64) -> Vec<StepScalars> {
        let mut scalars = Scalars::new(self.groups.len(), grad_scale);
        for (tensor, row) in self.tensors.iter().zip(&mut self.next_rows) {
            if row.flags & row_flags::HAS_GRAD != 0 && tensor.len > 0 {
                row.scalars = scalars.index(tensor.group, tensor.step + 1, &self.groups);
            }
        }
        scalars.list
    }

    fn applied(&mut self, work: Work, dtypes: &[Dtype]) {
        std::mem::swap(&mut self.rows, &mut self.next_rows);
        for ((tensor, row), dtype) in self.tensors.iter_mut().zip(&self.rows).zip(dtypes) {
            if row.flags & row_flags::HAS_GRAD != 0 {
                tensor.applied(row, *dtype);
            }
        }
        if let (Some((_, classes)), Work::Controlled(step)) = (&mut self.control, work) {
            *classes = step.classes;
        }
    }

    /// A copy of a tensor's state; on a GPU this waits for the steps that were enqueued.
    ///
    /// ```
    /// # use fused_adamw::{AdamW, AdamWConfig, Device};
    /// let opt = AdamW::new(&Device::cpu(), AdamWConfig::default(), [3])?;
    /// let state = opt.state(0)?;
    /// assert_eq!((state.step, state.m, state.vmax), (0, vec![0.0; 3], None));
    /// # Ok::<(), fused_adamw::Error>(())
    /// ```
    ///
    /// # Errors
    /// [`Error::TensorIndex`]; on a GPU `Error::Driver`.
    pub fn state(&self, index: usize) -> Result<TensorState> {
        let tensor = self.tensor(index)?;
        let read = |slot: Slot| self.arenas[slot.arena].read(slot.offset + tensor.phase, tensor.len);
        let has_master = tensor.started && tensor.dtype.is_some_and(Dtype::is_narrow);
        Ok(TensorState {
            step: self.steps()?[index],
            m: read(tensor.m)?,
            v: read(tensor.v)?,
            vmax: tensor.vmax.map(read).transpose()?,
            master: tensor.master.filter(|_| has_master).map(read).transpose()?,
        })
    }

    fn tensor(&self, index: usize) -> Result<&Tensor> {
        self.tensors.get(index).ok_or(Error::TensorIndex { index, count: self.tensors.len() })
    }

    /// Sets the learning rate of every group, from the next step on. Costs nothing on the device.
    ///
    /// ```
    /// # use fused_adamw::{AdamW, AdamWConfig, Device};
    /// # let mut opt = AdamW::new(&Device::cpu(), AdamWConfig::default(), [1])?;
    /// opt.set_lr(1e-4)?;
    /// assert!(opt.set_lr(f64::NAN).is_err());
    /// assert_eq!(opt.groups()[0].lr, 1e-4);
    /// # Ok::<(), fused_adamw::Error>(())
    /// ```
    ///
    /// # Errors
    /// [`Error::Config`]; no group has changed then.
    pub fn set_lr(&mut self, lr: f64) -> Result<()> {
        let changed: Vec<AdamWConfig> = self.groups.iter().map(|group| AdamWConfig { lr, ..*group }).collect();
        changed.iter().enumerate().try_for_each(|(i, config)| config.check(i))?;
        self.set_groups(changed)
    }

    /// Replaces the hyper-parameters of a group, from the next step on. Costs nothing on the device.
    ///
    /// ```
    /// # use fused_adamw::{AdamW, AdamWConfig, Device};
    /// # let mut opt = AdamW::new(&Device::cpu(), AdamWConfig::default(), [1])?;
    /// let group = opt.groups()[0];
    /// opt.set_group(0, AdamWConfig { weight_decay: 0.0, ..group })?;
    /// # Ok::<(), fused_adamw::Error>(())
    /// ```
    ///
    /// # Errors
    /// [`Error::GroupIndex`], [`Error::Config`], [`Error::Amsgrad`]: its memory is there from the beginning or not.
    pub fn set_group(&mut self, group: usize, config: AdamWConfig) -> Result<()> {
        config.check(group)?;
        let mut changed = self.groups.clone();
        let groups = changed.len();
        let current = changed.get_mut(group).ok_or(Error::GroupIndex { tensor: None, group, groups })?;
        if config.amsgrad != current.amsgrad {
            return Err(Error::Amsgrad { group, given: config.amsgrad, allocated: current.amsgrad });
        }
        *current = config;
        self.set_groups(changed)
    }

    fn set_groups(&mut self, groups: Vec<AdamWConfig>) -> Result<()> {
        self.engine.set_hypers(groups.iter().map(AdamWConfig::hyper).collect())?;
        self.groups = groups;
        Ok(())
    }

    /// The next step reads the f32 masters again from the 16-bit parameters. To be called after writing to such
    /// parameters oneself (loaded weights, tied or pruned ones): their masters do not know of it.
    ///
    /// ```
    /// # use fused_adamw::{AdamW, AdamWConfig, Device};
    /// # use half::bf16;
    /// let mut opt = AdamW::new(&Device::cpu(), AdamWConfig { lr: 0.0, ..Default::default() }, [1])?;
    /// let mut p = [bf16::ONE];
    /// opt.step([(&mut p, &[1.0_f32])])?;
    /// p[0] = bf16::from_f32(3.0);
    /// opt.reload_masters();
    /// opt.step([(&mut p, &[1.0_f32])])?;
    /// assert_eq!(opt.state(0)?.master, Some(vec![3.0]));
    /// # Ok::<(), fused_adamw::Error>(())
    /// ```
    pub fn reload_masters(&mut self) {
        self.tensors.iter_mut().for_each(|tensor| tensor.init_master = true);
    }

    /// The parameter groups, in their order.
    ///
    /// ```
    /// # use fused_adamw::{AdamW, AdamWConfig, Device};
    /// let opt = AdamW::new(&Device::cpu(), AdamWConfig::default(), [1])?;
    /// assert_eq!(opt.groups(), [AdamWConfig::default()]);
    /// # Ok::<(), fused_adamw::Error>(())
    /// ```
    #[must_use]
    pub fn groups(&self) -> &[AdamWConfig] {
        &self.groups
    }

    /// How many tensors are registered.
    ///
    /// ```
    /// # use fused_adamw::{AdamW, AdamWConfig, Device};
    /// let opt = AdamW::new(&Device::cpu(), AdamWConfig::default(), [5, 0])?;
    /// assert_eq!((opt.len(), opt.is_empty()), (2, false));
    /// # Ok::<(), fused_adamw::Error>(())
    /// ```
    #[must_use]
    pub fn len(&self) -> usize {
        self.tensors.len()
    }

    /// Whether no tensor is registered.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.tensors.is_empty()
    }

    /// Where the optimizer is.
    ///
    /// ```
    /// # use fused_adamw::{AdamW, AdamWConfig, Device};
    /// let opt = AdamW::new(&Device::cpu(), AdamWConfig::default(), [1])?;
    /// assert!(opt.device().to_string().starts_with("CPU"));
    /// # Ok::<(), fused_adamw::Error>(())
    /// ```
    #[must_use]
    pub fn device(&self) -> &Device {
        &self.device
    }
}
