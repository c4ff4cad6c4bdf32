//! The plan of one optimizer and the device that walks it.

use crate::accumulate;
use crate::classes::Classes;
use crate::control::Control;
use crate::controller::{HostControl, Tables};
use crate::cpu;
use crate::device::{Device, Kind};
use crate::error::Result;
use crate::metrics::Record;
use crate::plan::Plan;
use crate::simd::Simd;
use crate::table::{Chunk, ControlState, Hyper, MasterRow, StepScalars, SumRow, TensorRow};

#[cfg(feature = "cuda")]
use {
    crate::{Error, cuda::Launcher, cuda_control::CudaControl, cuda_device::describe, device::HOST},
    cudarc::driver::CudaSlice,
    std::sync::Arc,
};

/// What a step's rows index: scalars, one for each class.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Work<'a> {
    /// From the host.
    Plain(&'a [StepScalars]),
    /// That the device makes.
    Controlled {
        control: &'a Control,
        grad_scale: f64,
        #[cfg(feature = "cuda")]
        is_capturing: bool,
    },
}

/// What walks the plan, and with a control, what decides before.
#[derive(Debug)]
pub(crate) enum Engine {
    Cpu(Simd, Vec<Chunk>, Option<Box<HostControl>>),
    #[cfg(feature = "cuda")]
    Cuda(Box<Launcher>, Option<Box<CudaControl>>),
}

impl Engine {
    pub(crate) fn new(device: &Device, lens: Vec<u64>) -> Result<Self> {
        match &device.0 {
            Kind::Cpu(simd, _) => Ok(Self::Cpu(*simd, Plan::new(lens, cpu::CHUNK_LEN).chunks().collect(), None)),
            #[cfg(feature = "cuda")]
            Kind::Cuda(device) => Ok(Self::Cuda(Box::new(Launcher::new(device, lens)?), None)),
        }
    }

    /// An engine without chunks.
    pub(crate) const fn none() -> Self {
        Self::Cpu(Simd::Portable, Vec::new(), None)
    }

    /// Orders the calls of this thread after those of the thread before.
    #[allow(clippy::unnecessary_wraps, reason = "with `cuda` it can fail")]
    pub(crate) fn enter(&mut self) -> Result<()> {
        match self {
            Self::Cpu(..) => Ok(()),
            #[cfg(feature = "cuda")]
            Self::Cuda(launcher, _) => launcher.enter(),
        }
    }

    /// True if the engine and its memory can be dropped now.
    pub(crate) fn may_be_freed(&mut self) -> bool {
        match self {
            Self::Cpu(..) => true,
            #[cfg(feature = "cuda")]
            Self::Cuda(launcher, _) => launcher.may_be_freed(),
        }
    }

    /// # Safety
    /// As for [`cpu::run`]; on a GPU as for [`Launcher::run`]. The rows index their scalars as `work` says, and with a
    /// control that zeroes gradients, these are among what is written.
    pub(crate) unsafe fn run(&mut self, rows: &[TensorRow], work: Work<'_>) -> Result<()> {
        match (self, work) {
            (Self::Cpu(simd, chunks, _), Work::Plain(scalars)) => {
                // SAFETY: the caller's promise; a `Simd` in a device is available.
                unsafe { cpu::run(*simd, chunks, rows, scalars) };
            }
            (Self::Cpu(simd, chunks, Some(host)), Work::Controlled { control, grad_scale, .. }) => {
                // SAFETY: the caller's promise; a `Simd` in a device is available.
                unsafe { host.step(*simd, chunks, control, grad_scale, rows) };
            }
            #[cfg(feature = "cuda")]
            // SAFETY: the caller's promise.
            (Self::Cuda(launcher, _), Work::Plain(scalars)) => unsafe { launcher.run(rows, scalars)? },
            #[cfg(feature = "cuda")]
            // SAFETY: the caller's promise; there are scalars for every class.
            (Self::Cuda(launcher, Some(on_gpu)), Work::Controlled { grad_scale, is_capturing, .. }) => unsafe {
                launcher.run_controlled(on_gpu, rows, grad_scale, is_capturing)?;
            },
            _ => {}
        }
        Ok(())
    }

    /// Reads masters from their parameters, before a step. May be repeated.
    ///
    /// # Safety
    /// As for [`cpu::init_masters`]; on a GPU as for [`Launcher::init_masters`].
    pub(crate) unsafe fn init_masters(&mut self, rows: &[MasterRow]) -> Result<()> {
        match self {
            // SAFETY: the caller's promise.
            Self::Cpu(_, chunks, _) => unsafe { cpu::init_masters(chunks, rows) },
            #[cfg(feature = "cuda")]
            // SAFETY: the caller's promise.
            Self::Cuda(launcher, _) => unsafe { launcher.init_masters(rows)? },
        }
        Ok(())
    }

    /// The rows are other ones from now on.
    pub(crate) fn forget_rows(&mut self) {
        #[cfg(feature = "cuda")]
        if let Self::Cuda(launcher, _) = self {
            launcher.forget_rows();
        }
    }

    /// With a control: the classes from now on. Those that were split, `(old, new)`, begin with the counts of those they
    /// were part of.
    pub(crate) fn set_classes(&mut self, classes: &Classes, split: &[(u32, u32)]) -> Result<()> {
        match self {
            Self::Cpu(_, _, Some(control)) => control.set_classes(classes, split),
            #[cfg(feature = "cuda")]
            Self::Cuda(_, Some(control)) => control.set_classes(classes, split)?,
            _ => {}
        }
        Ok(())
    }

    /// With tables that replace those of the last control, or without.
    pub(crate) fn set_control(&mut self, control: Option<(&Control, Tables)>, tensors: usize) -> Result<()> {
        match self {
            Self::Cpu(_, _, host) => *host = control.map(|(_, tables)| Box::new(HostControl::new(tables))),
            #[cfg(feature = "cuda")]
            Self::Cuda(launcher, on_gpu) => {
                let scalar = on_gpu.as_ref().and_then(|control| control.grad_scalar());
                let new = |(control, tables): (&Control, Tables)| launcher.control(control, &tables, tensors);
                *on_gpu = control.map(new).transpose()?.map(Box::new);
                on_gpu.iter_mut().try_for_each(|control| control.scale_grads_by(scalar.clone()))?;
            }
        }
        let _ = tensors;
        Ok(())
    }

    /// The hyper-parameters of one group have changed.
    pub(crate) fn set_hyper(&mut self, group: usize, hyper: Hyper) -> Result<()> {
        match self {
            Self::Cpu(_, _, Some(control)) => control.set_hyper(group, hyper),
            #[cfg(feature = "cuda")]
            Self::Cuda(_, Some(control)) => control.set_hyper(group, hyper)?,
            _ => {}
        }
        Ok(())
    }

    /// The hyper-parameters of all groups have changed.
    pub(crate) fn set_hypers(&mut self, hypers: Vec<Hyper>) -> Result<()> {
        match self {
            Self::Cpu(_, _, Some(control)) => control.set_hypers(hypers),
            #[cfg(feature = "cuda")]
            Self::Cuda(_, Some(control)) => control.set_hypers(&hypers)?,
            _ => {}
        }
        Ok(())
    }

    /// What the control has come to; on a GPU after everything enqueued.
    pub(crate) fn control_state(&self) -> Result<Option<ControlState>> {
        match self {
            Self::Cpu(_, _, control) => Ok(control.as_ref().map(|control| control.state())),
            #[cfg(feature = "cuda")]
            Self::Cuda(_, control) => control.as_ref().map(|control| control.state()).transpose(),
        }
    }

    /// What was measured of the newest step that is known of.
    pub(crate) fn record(&mut self) -> Result<Option<Record>> {
        match self {
            Self::Cpu(_, _, control) => Ok(control.as_ref().and_then(|control| control.record())),
            #[cfg(feature = "cuda")]
            Self::Cuda(_, control) => control.as_mut().map_or(Ok(None), |control| control.record()),
        }
    }

    /// The step counts of all classes, if a control counts them; on a GPU after everything enqueued.
    pub(crate) fn counts(&self) -> Result<Option<Vec<u64>>> {
        match self {
            Self::Cpu(_, _, control) => Ok(control.as_ref().map(|control| control.counts())),
            #[cfg(feature = "cuda")]
            Self::Cuda(_, control) => control.as_ref().map(|control| control.counts()).transpose(),
        }
    }

    /// The step count of one class, as [`Engine::counts`] has it.
    pub(crate) fn count(&self, class: usize) -> Result<Option<u64>> {
        match self {
            Self::Cpu(_, _, control) => Ok(control.as_ref().map(|control| control.count(class))),
            #[cfg(feature = "cuda")]
            Self::Cuda(_, control) => control.as_ref().map(|control| control.count(class)).transpose(),
        }
    }

    #[cfg(feature = "cuda")]
    pub(crate) fn loss_scale_address(&self) -> Option<u64> {
        match self {
            Self::Cuda(_, Some(control)) => Some(control.loss_scale_address()),
            _ => None,
        }
    }

    #[cfg(feature = "cuda")]
    pub(crate) fn scale_grads_by(&mut self, scalar: Option<Arc<CudaSlice<f32>>>) -> Result<()> {
        match self {
            Self::Cuda(_, Some(control)) => control.scale_grads_by(scalar),
            Self::Cpu(_, _, Some(_)) => match scalar {
                None => Ok(()),
                Some(scalar) => Err(Error::ScalarDevice { expected: HOST.into(), actual: describe(scalar.context()) }),
            },
            _ => Err(Error::NoControl),
        }
    }

    /// Adds the gradients of `rows` to their sums. `first`: one of [`crate::table::firsts`].
    ///
    /// # Safety
    /// Every row with a gradient names one that may be read, and a sum that nobody else uses, of as many elements as the
    /// plan's chunks of that tensor; on a GPU in order on its stream.
    pub(crate) unsafe fn accumulate(&mut self, rows: &[SumRow], first: u32, is_capturing: bool) -> Result<()> {
        let _ = is_capturing; // all the same to a CPU
        match self {
            Self::Cpu(simd, chunks, _) => {
                // SAFETY: the caller's promise; a `Simd` in a device is available.
                unsafe { accumulate::run(*simd, chunks, rows, first) };
                Ok(())
            }
            #[cfg(feature = "cuda")]
            // SAFETY: the caller's promise.
            Self::Cuda(launcher, _) => unsafe { launcher.accumulate(rows, first, is_capturing) },
        }
    }
}
