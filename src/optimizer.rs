//! The public optimizer: made, read, and told its hyper-parameters. Its step: `optimizer/step.rs`.

use crate::arena::{Arena, Slot};
use crate::classes::Classes;
use crate::config::{AdamWConfig, TensorSpec};
use crate::control::Control;
use crate::device::{Device, Guards};
use crate::engine::Engine;
use crate::error::{Error, Result};
use crate::register::{Tensor, check_specs, collect_specs, lay_out};
use crate::rows::NamedPair;
use crate::table::{StepScalars, TensorRow};
use crate::tensor::Dtype;
use accumulate::Sums;
use capture::{MAKE_BEFORE, SET_BEFORE};
use step::Effect;

mod accumulate;
mod capture;
mod control;
mod masters;
mod step;

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
    /// Of the last step, or prepared for the next: as given, and as rows, checked and indexed by class. And room for others.
    named: Vec<NamedPair>,
    rows: Vec<TensorRow>,
    next_named: Vec<NamedPair>,
    next_rows: Vec<TensorRow>,
    /// True if a step of `rows` has been launched, the tensors know it, and no master is still to be read.
    is_settled: bool,
    /// True if the current step is recorded in a graph.
    is_capturing: bool,
    /// True if a step of `rows` has been captured.
    is_captured: bool,
    effect: Effect,
    /// `rows` may be stepped again as they are.
    prepared: bool,
    engine: Engine,
    /// Tensors by their step counts; and these, but with a control, where they are the engine's.
    classes: Classes,
    counts: Vec<u64>,
    /// Of the last step, by class.
    scalars: Vec<StepScalars>,
    control: Option<Control>,
    /// The largest of the control's schedule, at least 1.
    largest_factor: f64,
    /// Steps skipped beyond the control's limit that `poll` has told of.
    overruns: u64,
    sums: Option<Sums>,
    /// Gradients have been accumulated, be it none, since the last step by sums.
    accumulated: bool,
    /// None, but their memory.
    guards: Guards<'static>,
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
    /// [`Error::DuplicateName`], [`Error::TooManyElements`] above 2^40, [`Error::TooManyTensors`] from 2^32 on: the
    /// iterator is asked for no more, and for none if its `size_hint` promises as many. [`Error::OutOfMemory`] if the
    /// memory is not there; of a GPU `Error::Driver`, `Error::Capturing`.
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
    /// As for [`AdamW::new`]; [`Error::NoGroups`] for an empty list of them.
    pub fn with_groups<I>(device: &Device, groups: &[AdamWConfig], tensors: I) -> Result<Self>
    where
        I: IntoIterator,
        I::Item: Into<TensorSpec>,
    {
        if groups.is_empty() {
            return Err(Error::NoGroups);
        }
        groups.iter().enumerate().try_for_each(|(i, config)| config.check(i))?;
        let specs = collect_specs(tensors)?;
        let lens = check_specs(&specs, groups.len())?;
        let (tensors, layout) = lay_out(&specs, groups);
        let none = vec![0; tensors.len()];
        let (classes, counts) = Classes::fewest(&tensors, &none, &vec![false; tensors.len()]);
        let in_capture = |error: Error| error.in_capture(MAKE_BEFORE);
        device.drop_left();
        Ok(Self {
            arenas: vec![device.alloc(layout.len).map_err(in_capture)?],
            engine: Engine::new(device, lens).map_err(in_capture)?,
            device: device.clone(),
            groups: groups.to_vec(),
            tensors,
            named: Vec::new(),
            rows: Vec::new(),
            next_named: Vec::new(),
            next_rows: Vec::new(),
            is_settled: true,
            is_capturing: false,
            is_captured: false,
            effect: Effect::None,
            prepared: false,
            classes,
            counts,
            scalars: Vec::new(),
            control: None,
            largest_factor: 1.0,
            overruns: 0,
            sums: None,
            accumulated: false,
            guards: Guards::default(),
            may_be_captured: false,
        })
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
    /// [`Error::TensorIndex`], [`Error::OutOfMemory`] if the host has no memory for the copy; on a GPU `Error::Driver`,
    /// `Error::Capturing`.
    pub fn state(&self, index: usize) -> Result<TensorState> {
        let tensor = self.tensor(index)?;
        let read = |slot: Slot| self.arenas[slot.arena].read(slot.offset + tensor.phase, tensor.len);
        let has_master = tensor.started && tensor.dtype.is_some_and(Dtype::is_narrow);
        Ok(TensorState {
            step: self.step_of(index)?,
            m: read(tensor.m)?,
            v: read(tensor.v)?,
            vmax: tensor.vmax.map(read).transpose()?,
            master: tensor.master.filter(|_| has_master).map(read).transpose()?,
        })
    }

    fn tensor(&self, index: usize) -> Result<&Tensor> {
        self.tensors.get(index).ok_or(Error::TensorIndex { index, count: self.tensors.len() })
    }

    /// Sets the learning rate of every group to one value, from the next step on. Costs nothing on the device. The ratios
    /// of the groups are lost: [`AdamW::set_group_lr`] sets one group's, [`AdamW::scale_lr`] multiplies all of them.
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
    /// [`Error::Config`]; with a control on a GPU `Error::Driver`, `Error::Capturing`. No group has changed then.
    pub fn set_lr(&mut self, lr: f64) -> Result<()> {
        self.set_lrs(|_| lr)
    }

    /// Sets the learning rate of one group, from the next step on.
    ///
    /// ```
    /// # use fused_adamw::{AdamW, AdamWConfig, Device};
    /// # let config = AdamWConfig::default();
    /// # let mut opt = AdamW::with_groups(&Device::cpu(), &[config, config], [1])?;
    /// opt.set_group_lr(1, 1e-2)?;
    /// assert_eq!([opt.groups()[0].lr, opt.groups()[1].lr], [1e-3, 1e-2]);
    /// # Ok::<(), fused_adamw::Error>(())
    /// ```
    ///
    /// # Errors
    /// [`Error::GroupIndex`], [`Error::Config`]; nothing has changed then.
    pub fn set_group_lr(&mut self, group: usize, lr: f64) -> Result<()> {
        let config = AdamWConfig { lr, ..*self.group(group)? };
        self.set_group(group, config)
    }

    /// Multiplies the learning rate of every group by `factor`, in `[0, ∞)`, from the next step on: for a plateau, say.
    ///
    /// ```
    /// # use fused_adamw::{AdamW, AdamWConfig, Device};
    /// # let [slow, fast] = [1e-3, 1e-2].map(|lr| AdamWConfig { lr, ..Default::default() });
    /// # let mut opt = AdamW::with_groups(&Device::cpu(), &[slow, fast], [1])?;
    /// opt.scale_lr(0.5)?;
    /// assert_eq!([opt.groups()[0].lr, opt.groups()[1].lr], [5e-4, 5e-3]);
    /// # Ok::<(), fused_adamw::Error>(())
    /// ```
    ///
    /// # Errors
    /// [`Error::LrFactor`], [`Error::Config`] for a product out of its range; no group has changed then.
    pub fn scale_lr(&mut self, factor: f64) -> Result<()> {
        if !(0.0..f64::INFINITY).contains(&factor) {
            return Err(Error::LrFactor { value: factor });
        }
        self.set_lrs(|lr| lr * factor)
    }

    fn set_lrs(&mut self, lr: impl Fn(f64) -> f64) -> Result<()> {
        let changed: Vec<AdamWConfig> =
            self.groups.iter().map(|group| AdamWConfig { lr: lr(group.lr), ..*group }).collect();
        changed.iter().enumerate().try_for_each(|(i, config)| config.check(i))?;
        self.set_groups(changed)
    }

    /// The learning rate of a group's next step: `lr` times the factor of the control's [`Schedule`](crate::Schedule). On
    /// a GPU with a control this waits for the steps that were enqueued.
    ///
    /// ```
    /// use fused_adamw::{AdamW, AdamWConfig, Control, Device, Schedule};
    /// let mut opt = AdamW::new(&Device::cpu(), AdamWConfig { lr: 0.5, ..Default::default() }, [1])?;
    /// assert_eq!(opt.effective_lr(0)?, 0.5);
    /// opt.set_control(Some(Control { schedule: Schedule { warmup: 4, ..Default::default() }, ..Default::default() }))?;
    /// opt.step([(&mut [1.0_f32], &[1.0_f32])])?;
    /// assert_eq!(opt.effective_lr(0)?, 0.25); // the second of four
    /// # Ok::<(), fused_adamw::Error>(())
    /// ```
    ///
    /// # Errors
    /// [`Error::GroupIndex`]; on a GPU `Error::Driver`.
    pub fn effective_lr(&self, group: usize) -> Result<f64> {
        let lr = self.group(group)?.lr;
        let controlled = self.control.as_ref().zip(self.engine.control_state()?);
        Ok(controlled.map_or(lr, |(control, state)| lr * control.schedule.factor(state.applied)))
    }

    fn group(&self, group: usize) -> Result<&AdamWConfig> {
        let groups = self.groups.len();
        self.groups.get(group).ok_or(Error::GroupIndex { tensor: None, group, groups })
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
    /// [`Error::GroupIndex`], [`Error::Config`], [`Error::Amsgrad`]: its memory is there from the beginning or not. With a
    /// control on a GPU `Error::Driver`, `Error::Capturing`.
    pub fn set_group(&mut self, group: usize, config: AdamWConfig) -> Result<()> {
        let allocated = self.group(group)?.amsgrad;
        config.check(group)?;
        config.check_times(group, self.largest_factor)?;
        if config.amsgrad != allocated {
            return Err(Error::Amsgrad { group, given: config.amsgrad, allocated });
        }
        self.engine.enter()?;
        self.engine.set_hyper(group, config.hyper()).map_err(|error| error.in_capture(SET_BEFORE))?;
        self.groups[group] = config;
        Ok(())
    }

    fn set_groups(&mut self, groups: Vec<AdamWConfig>) -> Result<()> {
        groups.iter().enumerate().try_for_each(|(i, config)| config.check_times(i, self.largest_factor))?;
        self.engine.enter()?;
        let set = self.engine.set_hypers(groups.iter().map(AdamWConfig::hyper).collect());
        set.map_err(|error| error.in_capture(SET_BEFORE))?;
        self.groups = groups;
        Ok(())
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

/// Frees nothing in a capture of the stream, and nothing that steps of another thread still use.
impl Drop for AdamW {
    fn drop(&mut self) {
        self.device.drop_left();
        if !self.engine.may_be_freed() {
            let engine = std::mem::replace(&mut self.engine, Engine::none());
            self.device.leave((std::mem::take(&mut self.arenas), self.sums.take(), engine));
        }
    }
}
