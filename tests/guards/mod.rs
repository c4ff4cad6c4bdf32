//! Runs that a guard decides, as data: for the CPU (`tests/guards.rs`) and for CUDA (`tests/cuda/guards.rs`).

use fused_adamw::{AdamWConfig, Alarm, Control, Decay, LossScale, NonFinite, Schedule};

pub(crate) const CONFIG: AdamWConfig = AdamWConfig {
    lr: 1e-3,
    betas: (0.9, 0.999),
    eps: 1e-8,
    weight_decay: 0.0,
    amsgrad: false,
    maximize: false,
    algorithm: fused_adamw::Algorithm::AdamW,
};

/// A list of tensors, a control, and what each step is given.
#[derive(Debug)]
pub(crate) struct Case {
    pub(crate) name: &'static str,
    pub(crate) lens: Vec<usize>,
    pub(crate) control: Control,
    pub(crate) steps: Vec<Step>,
    /// Steps applied and skipped, in the end.
    pub(crate) counts: (u64, u64),
    /// The step count of each tensor, in the end.
    pub(crate) tensors: Vec<u64>,
}

/// The one value of all elements of each gradient, and the multiplier.
#[derive(Clone, Debug)]
pub(crate) struct Step {
    pub(crate) grads: Vec<f32>,
    pub(crate) grad_scale: f64,
}

fn step(grads: &[f32]) -> Step {
    Step { grads: grads.to_vec(), grad_scale: 1.0 }
}

pub(crate) fn skipping(non_finite: NonFinite) -> Control {
    Control { non_finite, ..Default::default() }
}

/// A loss scale of 2^`exponent`, of which the smallest is 2^-149.
#[expect(clippy::cast_possible_truncation, reason = "exact")]
pub(crate) fn scaled(non_finite: NonFinite, exponent: i32) -> Control {
    let init_scale = 2.0_f64.powi(exponent) as f32;
    Control { loss_scale: Some(LossScale { init_scale, ..Default::default() }), ..skipping(non_finite) }
}

/// One tensor and one step, which is applied or not.
fn one(name: &'static str, control: Control, grad: f32, grad_scale: f64, applied: bool) -> Case {
    let counts = (u64::from(applied), u64::from(!applied));
    let steps = vec![Step { grads: vec![grad], grad_scale }];
    Case { name, lens: vec![1], control, steps, counts, tensors: vec![counts.0] }
}

pub(crate) fn cases() -> Vec<Case> {
    let policies = [NonFinite::SkipStep, NonFinite::SkipTensor, NonFinite::Error];
    policies.into_iter().flat_map(multipliers).chain(tensors()).collect()
}

/// 2e19 has no square in f32, 1.8e19 has one; whatever the multiplier makes it of.
fn multipliers(policy: NonFinite) -> Vec<Case> {
    let exact = |exponent: i32, true_grad: f32| true_grad * 2.0_f32.powi(exponent);
    vec![
        one("an infinite multiplier", scaled(policy, -128), 0.0, 1.0, false),
        one("the smallest loss scale", scaled(policy, -149), 1e-30, 1.0, false),
        one("a multiplier that is 0 by rounding", scaled(policy, 127), 1.0, 1e-10, false),
        one("a multiplier of 0", scaled(policy, 127), 1.0, 0.0, true),
        one("a small loss scale, a large gradient", scaled(policy, -14), exact(-14, 1e20), 1.0, false),
        one("a small loss scale, the smallest bad one", scaled(policy, -14), exact(-14, 2e19), 1.0, false),
        one("a small loss scale, the largest good one", scaled(policy, -14), exact(-14, 1.8e19), 1.0, true),
        one("a large grad_scale", skipping(policy), 1e10, 1e10, false),
        one("a large grad_scale, a small gradient", skipping(policy), 1e9, 1e10, true),
        one("no multiplier", skipping(policy), 2e19, 1.0, false),
        one("no multiplier, the largest good one", skipping(policy), -1.8e19, 1.0, true),
        one("a small multiplier", skipping(policy), 1e19, 1e-10, true),
        one("a square that overflows, and a small multiplier", skipping(policy), 2e19, 1e-10, false),
    ]
}

fn tensors() -> Vec<Case> {
    let tensor = |control: Control| Control { non_finite: NonFinite::SkipTensor, ..control };
    let two = vec![step(&[2e19, 0.5]), step(&[0.5, 0.5])];
    let clip = Control { max_grad_norm: Some(1.0), ..Default::default() };
    let decay = Decay::Linear { start: 0, end: 10, floor: 0.0 };
    let scheduled =
        Control { max_skipped: Some(3), schedule: Schedule { warmup: 0, decay }, ..skipping(NonFinite::SkipTensor) };
    let alarm = Alarm { sigmas: 3.0, steps: 4, skip: true };
    let watched = Control { norm_alarm: Some(alarm), ..skipping(NonFinite::SkipTensor) };
    let nan = f32::NAN;
    let healthy = vec![step(&[4.0, 3.0]); 8];
    let quiet = |bad: &[f32]| [healthy.clone(), vec![step(bad); 20], healthy.clone()].concat();
    let case = |name, control, steps, counts, tensors| Case { name, lens: vec![1, 1], control, steps, counts, tensors };
    vec![
        case("a square that overflows, in one tensor", tensor(Control::default()), two.clone(), (2, 0), vec![1, 2]),
        case("the same, clipped", tensor(clip), two, (2, 0), vec![1, 2]),
        case("no tensor takes the step", scheduled, vec![step(&[nan, nan]); 10], (0, 10), vec![0, 0]),
        case("an alarm and half a list", watched.clone(), quiet(&[nan, 3.0]), (36, 0), vec![16, 36]),
        case("an alarm and none of the list", watched, quiet(&[nan, nan]), (16, 20), vec![16, 16]),
        case(
            "a tensor that is always NaN",
            scaled(NonFinite::SkipTensor, 16),
            vec![step(&[nan, 1e-3]); 200],
            (200, 0),
            vec![0, 200],
        ),
        Case {
            name: "a skipped step that is over, for poll to tell of",
            lens: vec![1],
            control: skipping(NonFinite::Error),
            steps: vec![step(&[nan]), step(&[1.0])],
            counts: (1, 1),
            tensors: vec![1],
        },
        Case {
            name: "tensors without elements do not take a step that all others miss",
            lens: vec![0, 9000],
            control: skipping(NonFinite::SkipTensor),
            steps: vec![step(&[1.0, nan]), step(&[1.0, 1.0])],
            counts: (1, 1),
            tensors: vec![1, 1],
        },
    ]
}
