//! The numbers a case leaves behind: hashes of every bit, and the control's own numbers.

use crate::suite::values::{BASIS, fnv1a};
use fused_adamw::{AlarmStatus, Control, Metrics, Status, TensorMetrics};
use serde_json::{Value, json};
use std::collections::BTreeMap;

/// Kind of number to its values: by tensor, by step, or, of metrics, by total and tensors.
pub(crate) type Record = BTreeMap<String, Vec<Value>>;

/// Hashes of each kind of state of each tensor, continued from step to step.
#[derive(Debug, Default)]
pub(crate) struct Hashes(BTreeMap<&'static str, BTreeMap<usize, u64>>);

impl Hashes {
    /// `elements` are little-endian.
    pub(crate) fn add<const N: usize>(
        &mut self,
        kind: &'static str,
        i: usize,
        elements: impl IntoIterator<Item = [u8; N]>,
    ) {
        let hash = self.0.entry(kind).or_default().entry(i).or_insert(BASIS);
        *hash = elements.into_iter().fold(*hash, |hash, bytes| fnv1a(hash, &bytes));
    }

    /// `count` values for each kind; null where nothing was added.
    pub(crate) fn record(self, count: usize) -> Record {
        let value = |hash: Option<&u64>| hash.map_or(Value::Null, |hash| hex64(*hash));
        let list = |hashes: BTreeMap<usize, u64>| (0..count).map(|i| value(hashes.get(&i))).collect();
        self.0.into_iter().map(|(kind, hashes)| (kind.into(), list(hashes))).collect()
    }
}

fn hex64(bits: u64) -> Value {
    format!("{bits:016x}").into()
}

/// One number for every NaN.
fn bits(x: f64) -> u64 {
    if x.is_nan() { f64::NAN.to_bits() } else { x.to_bits() }
}

fn double(x: f64) -> Value {
    hex64(bits(x))
}

/// The control's numbers after a step.
pub(crate) fn add_status(record: &mut Record, control: &Control, status: &Status) {
    // Null where no norm was asked for.
    let (norm, non_finite) = (status.grad_norm, status.non_finite);
    let scale = format!("{:08x}", status.loss_scale.to_bits());
    let numbers = [
        ("applied", json!(status.applied)),
        ("skipped", json!(status.skipped)),
        ("skipped_running", json!(status.skipped_running)),
        ("grad_norm", norm.map_or(Value::Null, double)),
        ("non_finite", json!(non_finite)),
        ("grad_scale", double(status.grad_scale)),
        ("lr_factor", double(status.lr_factor)),
        ("loss_scale", scale.into()),
    ];
    numbers.into_iter().for_each(|(name, value)| push(record, &format!("status.{name}"), value));
    if control.norm_alarm.is_some() {
        add_alarm(record, "norm_alarm", &status.norm_alarm);
    }
    if control.rms_alarm.is_some() {
        add_alarm(record, "rms_alarm", &status.rms_alarm);
        push(record, "status.rms", double(status.rms));
        push(record, "status.rms_tensor", json!(status.rms_tensor));
    }
}

fn add_alarm(record: &mut Record, name: &str, alarm: &AlarmStatus) {
    let AlarmStatus { raised, alarms, mean, sigma, .. } = *alarm;
    let numbers =
        [("raised", json!(raised)), ("alarms", json!(alarms)), ("mean", double(mean)), ("sigma", double(sigma))];
    numbers.into_iter().for_each(|(field, value)| push(record, &format!("status.{name}.{field}"), value));
}

fn push(record: &mut Record, kind: &str, value: Value) {
    record.entry(kind.into()).or_default().push(value);
}

/// What a step measured: place 0 is the total, the others are the tensors. `place` maps a tensor to its place.
pub(crate) fn add_metrics(hashes: &mut Hashes, metrics: &Metrics, place: impl Fn(usize) -> usize) {
    add_tensor(hashes, 0, &metrics.total);
    for (i, (_, tensor)) in metrics.tensors.iter().enumerate() {
        add_tensor(hashes, 1 + place(i), tensor);
    }
}

fn add_tensor(hashes: &mut Hashes, place: usize, tensor: &TensorMetrics) {
    let numbers = [
        ("metrics.elements", tensor.elements),
        ("metrics.stepped", tensor.stepped.into()),
        ("metrics.grad_norm", bits(tensor.grad_norm)),
        ("metrics.param_norm", bits(tensor.param_norm)),
        ("metrics.update_norm", bits(tensor.update_norm)),
        ("metrics.update_ratio", bits(tensor.update_ratio)),
        ("metrics.max_update", bits(tensor.max_update)),
        ("metrics.rms", bits(tensor.rms)),
        ("metrics.non_finite", tensor.non_finite),
        ("metrics.unmoved", bits(tensor.unmoved)),
        ("metrics.below_eps", bits(tensor.below_eps)),
    ];
    numbers.into_iter().for_each(|(kind, number)| hashes.add(kind, place, [number.to_le_bytes()]));
}
