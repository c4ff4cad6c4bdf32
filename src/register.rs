//! The tensors of an optimizer, as registered, and where their state lies.

use crate::arena::{Layout, Slot, no_host_memory};
use crate::config::{AdamWConfig, TensorSpec};
use crate::error::{Error, Result, TensorId};
use crate::plan::{MAX_ELEMENTS, MAX_TENSORS};
use crate::tensor::Dtype;
use std::collections::HashMap;

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
    /// The master is to be read from the parameter before its next step.
    pub(crate) init_master: bool,
    /// Elements by which its state lies behind the beginning of its slots. Chosen in the first step, so that state
    /// and parameter reach a 32-byte boundary at the same element.
    pub(crate) phase: usize,
}

/// Collects the tensors up to the first that is too much: an endless iterator ends there, too.
pub(crate) fn collect_specs<I>(tensors: I) -> Result<Vec<TensorSpec>>
where
    I: IntoIterator,
    I::Item: Into<TensorSpec>,
{
    let tensors = tensors.into_iter();
    let (mut specs, mut elements) = (Vec::new(), 0_u64);
    check_count(tensors.size_hint().0)?;
    for spec in tensors {
        let spec: TensorSpec = spec.into();
        check_count(specs.len().saturating_add(1))?;
        elements = elements.saturating_add(spec.len as u64);
        if elements > MAX_ELEMENTS {
            return Err(Error::TooManyElements { tensor: spec.id(specs.len()), elements, limit: MAX_ELEMENTS });
        }
        specs.try_reserve(1).map_err(|_| no_host_memory::<TensorSpec>(specs.len() + 1))?;
        specs.push(spec);
    }
    Ok(specs)
}

fn check_count(count: usize) -> Result<()> {
    if count > MAX_TENSORS { Err(Error::TooManyTensors { count, limit: MAX_TENSORS }) } else { Ok(()) }
}

/// Lengths, if the groups are there and no name is given twice.
pub(crate) fn check_specs(specs: &[TensorSpec], groups: usize) -> Result<Vec<u64>> {
    if let Some(i) = specs.iter().position(|spec| spec.group >= groups) {
        return Err(Error::GroupIndex { tensor: Some(specs[i].id(i)), group: specs[i].group, groups });
    }
    let mut named: HashMap<&str, usize> = HashMap::new();
    for (second, name) in specs.iter().enumerate().filter_map(|(i, spec)| Some((i, spec.name.as_ref()?))) {
        if let Some(first) = named.insert(name, second) {
            return Err(Error::DuplicateName { name: name.clone(), first, second });
        }
    }
    Ok(specs.iter().map(|spec| spec.len as u64).collect())
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

#[cfg(test)]
mod tests {
    use super::*;

    fn too_many(lens: &[usize]) -> Option<(usize, u64)> {
        match collect_specs(lens) {
            Err(Error::TooManyElements { tensor, elements, limit: MAX_ELEMENTS }) => Some((tensor.index, elements)),
            specs => specs.map(|specs| assert_eq!(specs.len(), lens.len())).err().map(|error| panic!("{error}")),
        }
    }

    #[test]
    fn more_than_2_to_the_40_elements_are_too_many_and_the_sum_does_not_wrap() {
        assert_eq!(too_many(&[1 << 39, 0, 1 << 39]), None);
        assert_eq!(too_many(&[1 << 39, 1 << 39, 1, 5]), Some((2, MAX_ELEMENTS + 1)));
        assert_eq!(too_many(&[7, usize::MAX]), Some((1, u64::MAX)));
    }
}
