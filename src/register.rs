//! The tensors of an optimizer, as registered, and where their state lies.

use crate::arena::{Layout, Slot};
use crate::config::{AdamWConfig, TensorSpec};
use crate::error::{Error, Result, TensorId};
use crate::plan::{MAX_ELEMENTS, MAX_TENSORS, first_too_many};
use crate::tensor::Dtype;

/// A registered tensor and its state.
#[derive(Debug)]
pub(crate) struct Tensor {
    pub(crate) id: TensorId,
    pub(crate) len: usize,
    pub(crate) group: usize,
    /// Of its parameter; `None` until the first step if it was not registered with one.
    pub(crate) dtype: Option<Dtype>,
    /// It has had a step, applied or not: its state lies where it lies.
    pub(crate) started: bool,
    pub(crate) m: Slot,
    pub(crate) v: Slot,
    pub(crate) vmax: Option<Slot>,
    pub(crate) master: Option<Slot>,
    /// The master is to be read from the parameter in the next step.
    pub(crate) init_master: bool,
    /// Elements by which its state lies behind the beginning of its slots. Chosen in the first step, so that state
    /// and parameter reach a 32-byte boundary at the same element.
    pub(crate) phase: usize,
}

/// Lengths, if they and the groups are possible.
pub(crate) fn check_specs(specs: &[TensorSpec], groups: usize) -> Result<Vec<u64>> {
    if specs.len() > MAX_TENSORS {
        return Err(Error::TooManyTensors { count: specs.len(), limit: MAX_TENSORS });
    }
    let lens: Vec<u64> = specs.iter().map(|spec| spec.len as u64).collect();
    if let Some((i, elements)) = first_too_many(&lens) {
        return Err(Error::TooManyElements { tensor: specs[i].id(i), elements, limit: MAX_ELEMENTS });
    }
    match specs.iter().position(|spec| spec.group >= groups) {
        Some(i) => Err(Error::GroupIndex { tensor: Some(specs[i].id(i)), group: specs[i].group, groups }),
        None => Ok(lens),
    }
}

/// The tensors with their slots in the first arena: all m, all v, and vmax and masters as far as they are known to be
/// needed.
pub(crate) fn lay_out(specs: &[TensorSpec], groups: &[AdamWConfig]) -> (Vec<Tensor>, Layout) {
    let amsgrad = |spec: &TensorSpec| groups[spec.group].amsgrad;
    let narrow = |spec: &TensorSpec| spec.dtype.is_some_and(Dtype::is_narrow);
    let mut layout = Layout::default();
    let mut section = |needed: &dyn Fn(&TensorSpec) -> bool| -> Vec<Slot> {
        layout.section();
        specs.iter().map(|spec| layout.slot(if needed(spec) { spec.len } else { 0 })).collect()
    };
    let (m, v) = (section(&|_| true), section(&|_| true));
    let (vmax, master) = (section(&amsgrad), section(&narrow));
    let tensor = |(i, spec): (usize, &TensorSpec)| Tensor {
        id: spec.id(i),
        len: spec.len,
        group: spec.group,
        dtype: spec.dtype,
        started: false,
        m: m[i],
        v: v[i],
        vmax: amsgrad(spec).then_some(vmax[i]),
        master: narrow(spec).then_some(master[i]),
        init_master: true,
        phase: 0,
    };
    (specs.iter().enumerate().map(tensor).collect(), layout)
}
