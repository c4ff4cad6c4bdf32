//! What the tests of runs share: a list of tensors, gradients of each step, and an optimizer of them.

use fused_adamw::{AdamW, AdamWConfig, Control, Device, TensorSpec, TensorState};

pub(crate) const CONFIG: AdamWConfig = AdamWConfig {
    lr: 1e-2,
    betas: (0.9, 0.99),
    eps: 1e-8,
    weight_decay: 0.1,
    amsgrad: false,
    maximize: false,
    algorithm: fused_adamw::Algorithm::AdamW,
};

const NAMES: [&str; 5] = ["zero", "one", "two", "three", "four"];

/// Gradients of step `t`: any, but the same for the same `t`.
#[expect(clippy::cast_precision_loss, reason = "values of indices")]
pub(crate) fn grads(lens: &[usize], t: usize) -> Vec<Vec<f32>> {
    let value = |i: usize, j: usize| ((i * 31 + j * 7 + t * 13) % 97) as f32 / 48.0 - 1.0;
    lens.iter().enumerate().map(|(i, &len)| (0..len).map(|j| value(i, j)).collect()).collect()
}

pub(crate) fn params(lens: &[usize]) -> Vec<Vec<f32>> {
    grads(lens, 1000)
}

/// On the CPU, of up to five named tensors.
pub(crate) fn optimizer(lens: &[usize], control: Option<Control>) -> AdamW {
    let specs = lens.iter().zip(NAMES).map(|(&len, name)| TensorSpec::new(len).named(name));
    let mut opt = AdamW::new(&Device::cpu(), CONFIG, specs).unwrap();
    opt.set_control(control).unwrap();
    opt
}

pub(crate) fn states(opt: &AdamW) -> Vec<TensorState> {
    (0..opt.len()).map(|i| opt.state(i).unwrap()).collect()
}
