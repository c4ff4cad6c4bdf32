//! Tensors that never had a gradient: PyTorch keeps no state for them, so a trace may leave it out.

use serde_json::json;

use crate::malformed::{File, message};
use crate::on_cpu;
use crate::run::Report;
use crate::trace::Trace;

/// What PyTorch keeps of a tensor that had a gradient.
const STATE: [&str; 2] = ["expect.exp_avg", "expect.exp_avg_sq"];

/// The trace of `malformed.rs`, without any gradient for `tensors`.
fn without_gradients(tensors: &[u64]) -> File {
    let mut file = File::new();
    file.config(&json!({ "weight_decay": 0.1, "max_grad_norm": 1.0 }));
    for i in tensors {
        file.remove(&format!("grad.{i}.1"));
        file.remove(&format!("grad.{i}.2"));
    }
    file
}

fn without_state(tensors: &[u64]) -> File {
    let mut file = without_gradients(tensors);
    for i in tensors {
        STATE.iter().for_each(|name| file.remove(&format!("{name}.{i}.2")));
    }
    file
}

fn replayed(file: &File) -> Report {
    on_cpu(&Trace::parse(&file.bytes()).unwrap())
}

/// Writes `value` into the first element of a tensor.
fn poke(file: &mut File, name: &str, value: f32) {
    let start = usize::try_from(file.header[name]["data_offsets"][0].as_u64().unwrap()).unwrap();
    file.data[start..start + 4].copy_from_slice(&value.to_le_bytes());
}

#[test]
fn a_tensor_without_gradients_needs_no_state() {
    for tensors in [&[0][..], &[1], &[0, 1]] {
        let report = replayed(&without_state(tensors));
        assert!(report.passes() && report.max_ulp == 0 && report.unbounded == 0, "{tensors:?}");
    }
}

#[test]
fn a_bf16_tensor_without_gradients_needs_no_state() {
    let mut file = without_state(&[1]);
    for name in ["param.1.0", "expect.param.1.2"] {
        file.remove(name);
        file.add(name, "BF16", 2);
    }
    assert!(replayed(&file).passes());
}

#[test]
fn its_parameter_is_compared_all_the_same() {
    let mut file = without_state(&[1]);
    poke(&mut file, "expect.param.1.2", 1e-30);
    let report = replayed(&file);
    assert!(!report.passes());
    let worst = report.worst.unwrap();
    assert_eq!((worst.tensor, worst.buffer, worst.element), (1, "param", 0));
}

#[test]
fn state_that_is_there_is_compared_with_zeros() {
    assert!(replayed(&without_gradients(&[1])).passes());
    for name in STATE {
        let mut file = without_gradients(&[1]);
        poke(&mut file, &format!("{name}.1.2"), 1e-30);
        let report = replayed(&file);
        assert!(!report.passes(), "{name}");
        let worst = report.worst.unwrap();
        assert_eq!((worst.tensor, format!("expect.{}", worst.buffer)), (1, name.to_owned()));
    }
}

#[test]
fn a_tensor_with_any_gradient_needs_its_state() {
    for gradient in ["grad.1.1", "grad.1.2"] {
        for state in STATE {
            let mut file = File::new();
            file.remove(gradient);
            file.remove(&format!("{state}.1.2"));
            assert_eq!(message(&file.bytes()), format!("`{state}.1.2` is missing, `param.1.0` is there"));
        }
    }
}

#[test]
fn half_a_state_is_refused() {
    for [gone, left] in [STATE, [STATE[1], STATE[0]]] {
        let mut file = without_gradients(&[1]);
        file.remove(&format!("{gone}.1.2"));
        assert_eq!(message(&file.bytes()), format!("`{gone}.1.2` is missing, `{left}.1.2` is there"));
    }
}

#[test]
fn its_parameter_must_be_expected() {
    let mut file = without_state(&[1]);
    file.remove("expect.param.1.2");
    assert_eq!(message(&file.bytes()), "`expect.param.1.2` is missing, `param.1.0` is there");
}
