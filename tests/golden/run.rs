//! Runs a case on a device, whatever its memory.

use crate::suite::case::{Case, Step};
use crate::suite::record::{Hashes, Record, add_metrics, add_status};
use crate::suite::values::{BASIS, Values, fnv1a, word};
use fused_adamw::{AdamW, AdamWConfig, Control, Device, Dtype, Grad, Pair, Param, StepOptions, TensorSpec};
use half::f16;
use serde_json::{Value, json};

/// A tensor in a device's memory.
pub(crate) trait Buffer: Sized {
    fn new(device: &Device, dtype: Dtype, bits: &[u32]) -> Self;
    /// Other values in the same place.
    fn write(&mut self, bits: &[u32]);
    fn read(&self) -> Vec<u32>;
    fn param(&mut self) -> Param<'_>;
    fn grad(&self) -> Grad<'_>;
    fn grad_mut(&mut self) -> Grad<'_>;
}

/// A case under way.
struct Run<'a, B> {
    case: &'a Case,
    opt: AdamW,
    control: Option<Control>,
    params: Vec<B>,
    grads: Vec<B>,
    hashes: Hashes,
    metrics: Hashes,
    record: Record,
}

/// The numbers that `case` leaves behind on `device`.
pub(crate) fn run<B: Buffer>(device: &Device, case: &Case) -> Record {
    let mut run = Run::<B>::new(device, case);
    for (t, step) in case.steps().enumerate() {
        run.set(t, step);
        run.step(t, step);
        run.note();
    }
    run.finish()
}

/// The bits of a tensor: `key` names it.
fn bits(key: &str, values: Values, dtype: Dtype, len: usize) -> Vec<u32> {
    let key = fnv1a(BASIS, key.as_bytes());
    (0..len as u64).map(|element| values.bits(dtype, word(key, element))).collect()
}

impl<'a, B: Buffer> Run<'a, B> {
    fn new(device: &Device, case: &'a Case) -> Self {
        let specs = case.tensors().map(|tensor| TensorSpec::new(tensor.0).group(tensor.3));
        let mut opt = AdamW::with_groups(device, &case.configs(), specs).unwrap();
        let control = case.control.as_ref().map(|control| control.control());
        opt.set_control(control.clone()).unwrap();
        let tensors = || case.tensors().enumerate();
        let param = |i| B::new(device, param_type(case, i), &param_bits(case, i, 0));
        let grad = |i| B::new(device, grad_type(case, i), &grad_bits(case, i, 0, 0, case.grads));
        let params = tensors().map(|(i, _)| param(i)).collect();
        let grads = tensors().map(|(i, _)| grad(i)).collect();
        let (hashes, metrics, record) = (Hashes::default(), Hashes::default(), Record::new());
        Self { case, opt, control, params, grads, hashes, metrics, record }
    }

    /// What is told to the optimizer before step `t`.
    fn set(&mut self, t: usize, step: &Step) {
        for (i, &lr) in step.lr.iter().enumerate() {
            let config = self.opt.groups()[i];
            self.opt.set_group(i, AdamWConfig { lr, ..config }).unwrap();
        }
        if step.reload_masters {
            let params = self.params.iter_mut().enumerate();
            params.for_each(|(i, param)| param.write(&param_bits(self.case, i, t)));
            self.opt.reload_masters().unwrap();
        }
    }

    fn step(&mut self, t: usize, step: &Step) {
        let options = StepOptions { grad_scale: step.grad_scale.unwrap_or(1.0) };
        if step.passes.is_empty() {
            self.new_grads(t, 0, step);
            return self.step_by_grads(t, options, &step.missing);
        }
        for (pass, missing) in step.passes.iter().enumerate() {
            self.new_grads(t, pass, step);
            let grads = self.grads.iter().enumerate();
            self.opt.accumulate(grads.map(|(i, grad)| has(missing, i).then(|| grad.grad()))).unwrap();
        }
        self.opt.step_accumulated(options, self.params.iter_mut().map(B::param)).unwrap();
    }

    fn new_grads(&mut self, t: usize, pass: usize, step: &Step) {
        let values = step.grads.unwrap_or(self.case.grads);
        for (i, grad) in self.grads.iter_mut().enumerate() {
            let mut bits = grad_bits(self.case, i, t, pass, values);
            for (_, element, value) in step.write.iter().filter(|(tensor, ..)| *tensor == i) {
                bits[*element] = u32::from_str_radix(value, 16).unwrap();
            }
            grad.write(&bits);
        }
    }

    fn step_by_grads(&mut self, t: usize, options: StepOptions, missing: &[usize]) {
        let zero = self.control.as_ref().is_some_and(|control| control.zero_grad);
        let tensors = self.params.iter_mut().zip(&mut self.grads).enumerate();
        let pairs = tensors.map(|(i, (param, grad))| {
            let grad = has(missing, i).then(|| if zero { grad.grad_mut() } else { grad.grad() });
            Pair::new(param.param(), grad)
        });
        match (self.case.prepare, t) {
            (false, _) => return self.opt.step_with(options, pairs).unwrap(),
            // SAFETY: the tensors outlive the optimizer's last step, stay where they are, and are written between steps.
            (true, 0) => unsafe { self.opt.prepare(pairs) }.unwrap(),
            (true, _) => drop(pairs),
        }
        self.opt.step_prepared(options).unwrap();
    }

    /// Hashes what the step has left.
    fn note(&mut self) {
        let zero = self.control.as_ref().is_some_and(|control| control.zero_grad);
        for i in 0..self.params.len() {
            let place = self.place(i);
            self.note_bits("p", place, param_type(self.case, i), self.params[i].read());
            if zero {
                self.note_bits("g", place, grad_type(self.case, i), self.grads[i].read());
            }
            let state = self.opt.state(i).unwrap();
            let arrays = [("m", Some(state.m)), ("v", Some(state.v)), ("vmax", state.vmax), ("master", state.master)];
            for (kind, array) in arrays {
                array.iter().for_each(|array| self.hashes.add(kind, place, array.iter().map(|x| x.to_le_bytes())));
            }
        }
        self.note_control();
    }

    fn note_bits(&mut self, kind: &'static str, place: usize, dtype: Dtype, bits: Vec<u32>) {
        match dtype.size() {
            4 => self.hashes.add(kind, place, bits.into_iter().map(u32::to_le_bytes)),
            _ => self.hashes.add(kind, place, bits.into_iter().map(|bits| u16::try_from(bits).unwrap().to_le_bytes())),
        }
    }

    fn note_control(&mut self) {
        let Some(control) = &self.control else { return };
        let status = self.opt.status().unwrap().unwrap();
        add_status(&mut self.record, control, &status);
        if control.metrics {
            let metrics = self.opt.metrics().unwrap().unwrap();
            let joined = self.case.joined();
            add_metrics(&mut self.metrics, &metrics, |i| if joined { 0 } else { i });
        }
    }

    /// Where tensor `i` is hashed.
    fn place(&self, i: usize) -> usize {
        if self.case.joined() { 0 } else { i }
    }

    fn finish(mut self) -> Record {
        let places = if self.case.joined() { 1 } else { self.params.len() };
        let steps = (0..self.params.len()).map(|i| json!(self.opt.state(i).unwrap().step));
        self.record.extend([("step".into(), steps.collect()), ("look".into(), self.look())]);
        self.record.append(&mut self.hashes.record(places));
        self.record.append(&mut self.metrics.record(1 + places));
        self.record
    }

    /// A few elements to read: the first and the last of the first and the last tensor that have any.
    fn look(&self) -> Vec<Value> {
        let full: Vec<usize> = (0..self.params.len()).filter(|&i| !self.params[i].read().is_empty()).collect();
        let (first, last) = (full[0], full[full.len() - 1]);
        let end = |i: usize| self.params[i].read().len() - 1;
        let mut places = vec![(first, 0), (first, end(first)), (last, 0), (last, end(last))];
        places.dedup();
        places.into_iter().map(|(i, element)| self.look_at(i, element)).collect()
    }

    fn look_at(&self, i: usize, element: usize) -> Value {
        let state = self.opt.state(i).unwrap();
        let dtype = param_type(self.case, i);
        let bits = self.params[i].read()[element];
        let p = match dtype {
            Dtype::F32 => format!("{bits:08x} {:e}", f32::from_bits(bits)),
            Dtype::F16 => format!("{bits:04x} {:e}", f16::from_bits(u16::try_from(bits).unwrap()).to_f32()),
            Dtype::BF16 => format!("{bits:04x} {:e}", f32::from_bits(bits << 16)),
        };
        let wide = |x: f32| format!("{:08x} {x:e}", x.to_bits());
        let (m, v) = (wide(state.m[element]), wide(state.v[element]));
        json!({ "tensor": i, "element": element, "p": p, "m": m, "v": v })
    }
}

fn has(missing: &[usize], i: usize) -> bool {
    !missing.contains(&i)
}

fn param_type(case: &Case, i: usize) -> Dtype {
    case.tensors[i % case.tensors.len()].1.dtype()
}

fn grad_type(case: &Case, i: usize) -> Dtype {
    case.tensors[i % case.tensors.len()].2.dtype()
}

/// The parameter at the beginning, and as it is written before step `t`.
fn param_bits(case: &Case, i: usize, t: usize) -> Vec<u32> {
    let len = case.tensors[i % case.tensors.len()].0;
    bits(&format!("{}/param/{i}/{t}", case.name), case.params, param_type(case, i), len)
}

fn grad_bits(case: &Case, i: usize, t: usize, pass: usize, values: Values) -> Vec<u32> {
    let len = case.tensors[i % case.tensors.len()].0;
    bits(&format!("{}/grad/{i}/{t}/{pass}", case.name), values, grad_type(case, i), len)
}
