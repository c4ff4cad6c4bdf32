//! A prepared step is the step it stands for, on the CPU; on a GPU: `tests/cuda/prepared.rs`.

#![allow(
    clippy::unwrap_used,
    clippy::cast_precision_loss,
    reason = "a test fails by panicking, and makes values of indices"
)]

use fused_adamw::{AdamW, AdamWConfig, Control, Device, Dtype, Error, Grad, Pair, Param, StepOptions, TensorSpec};
use half::bf16;
use proptest::prelude::*;

const LENS: [usize; 4] = [5, 0, 17, 8];

/// Four tensors, the last two of bf16, and their optimizer.
struct Model {
    opt: AdamW,
    wide: [Vec<f32>; 2],
    narrow: [Vec<bf16>; 2],
    grads: [Vec<f32>; 4],
}

impl Model {
    fn new() -> Self {
        let groups = [AdamWConfig::default(), AdamWConfig { weight_decay: 0.1, ..Default::default() }];
        let specs = LENS.iter().enumerate().map(|(i, &len)| TensorSpec::new(len).group(i % 2));
        Self {
            opt: AdamW::with_groups(&Device::cpu(), &groups, specs).unwrap(),
            wide: [vec![1.0; LENS[0]], vec![2.0; LENS[1]]],
            narrow: [vec![bf16::ONE; LENS[2]], vec![bf16::NEG_ONE; LENS[3]]],
            grads: LENS.map(|len| vec![0.0; len]),
        }
    }

    /// By address, so that nothing is borrowed between prepared steps.
    fn pairs(&mut self, has_grad: [bool; 4]) -> Vec<Pair<'static>> {
        let wide = self.wide.iter_mut().map(|p| (p.as_mut_ptr() as u64, Dtype::F32));
        let narrow = self.narrow.iter_mut().map(|p| (p.as_mut_ptr() as u64, Dtype::BF16));
        let params: Vec<_> = wide.chain(narrow).collect();
        let pair = |i: usize| {
            let (p, dtype) = params[i];
            let g = self.grads[i].as_ptr() as u64;
            // SAFETY: (both) as many elements at each address, and used by nobody but between steps.
            let p = unsafe { Param::from_raw(p, dtype, LENS[i]) };
            // SAFETY: see above.
            let g = unsafe { Grad::from_raw(g, Dtype::F32, LENS[i]) };
            if has_grad[i] { Pair::new(p, g) } else { Pair::without_grad(p) }
        };
        (0..4).map(pair).collect()
    }

    fn set_grads(&mut self, step: usize) {
        let value = |i: usize| ((i + 3 * step) % 7) as f32 * 0.3 - 1.0;
        self.grads.iter_mut().for_each(|grad| (0..grad.len()).for_each(|i| grad[i] = value(i)));
    }

    fn bits(&self) -> Vec<u32> {
        let state = |i| self.opt.state(i).unwrap();
        let states = (0..4).map(state).flat_map(|s| [s.m, s.v, s.master.unwrap_or_default(), vec![s.step as f32]]);
        let narrow = self.narrow.iter().flatten().map(|p| u32::from(p.to_bits()));
        self.wide.iter().cloned().chain(states).flatten().map(f32::to_bits).chain(narrow).collect()
    }
}

#[derive(Clone, Debug)]
enum Event {
    Steps(usize),
    /// Of these tensors from now on.
    Grads([bool; 4]),
    Lr(f64),
    /// Somebody writes to a 16-bit parameter.
    Write(f32),
    Clip(f64),
}

fn event() -> impl Strategy<Value = Event> {
    prop_oneof![
        4 => (1..4_usize).prop_map(Event::Steps),
        2 => any::<[bool; 4]>().prop_map(Event::Grads),
        1 => (1e-4..1e-1).prop_map(Event::Lr),
        1 => (-2.0..2.0_f32).prop_map(Event::Write),
        1 => (0.1..10.0).prop_map(Event::Clip),
    ]
}

impl Model {
    /// After all of `events`, by prepared steps or by others.
    fn run(mut self, events: &[Event], prepared: bool) -> Vec<u32> {
        let (mut has_grad, mut step, mut is_prepared) = ([true; 4], 0, false);
        for event in events {
            match event {
                Event::Grads(next) => has_grad = *next,
                Event::Lr(lr) => self.opt.set_lr(*lr).unwrap(),
                Event::Write(value) => {
                    self.narrow[0].fill(bf16::from_f32(*value));
                    self.opt.reload_masters().unwrap();
                }
                Event::Clip(norm) => {
                    self.opt.set_control(Some(Control { max_grad_norm: Some(*norm), ..Default::default() })).unwrap();
                }
                Event::Steps(count) => {
                    for _ in 0..*count {
                        self.set_grads(step);
                        step += 1;
                        self.step(has_grad, prepared && is_prepared, prepared);
                        is_prepared = true;
                    }
                }
            }
            is_prepared &= matches!(event, Event::Steps(_) | Event::Lr(_) | Event::Write(_));
        }
        self.bits()
    }

    fn step(&mut self, has_grad: [bool; 4], is_prepared: bool, prepared: bool) {
        let pairs = self.pairs(has_grad);
        if !prepared {
            return self.opt.step(pairs).unwrap();
        }
        if !is_prepared {
            // SAFETY: the model's tensors stay where they are, and are used between steps alone.
            unsafe { self.opt.prepare(pairs).unwrap() };
        }
        self.opt.step_prepared(StepOptions::default()).unwrap();
    }
}

proptest! {
    #[test]
    fn prepared_steps_are_the_steps_they_stand_for(events in prop::collection::vec(event(), 1..12)) {
        prop_assert_eq!(Model::new().run(&events, true), Model::new().run(&events, false));
    }
}

#[track_caller]
fn assert_not_prepared(model: &mut Model) {
    let before = model.bits();
    assert!(matches!(model.opt.step_prepared(StepOptions::default()), Err(Error::NotPrepared)));
    assert_eq!(model.bits(), before);
}

#[test]
fn a_preparation_lasts_until_a_step_with_other_tensors_or_a_control() {
    let mut model = Model::new();
    assert_not_prepared(&mut model);
    let all = model.pairs([true; 4]);
    // SAFETY: (all) the model's tensors stay where they are, and nobody uses them in a step.
    unsafe { model.opt.prepare(all).unwrap() };
    let all = model.pairs([true; 4]);
    model.opt.step(all).unwrap();
    model.opt.step_prepared(StepOptions::default()).unwrap();
    let fewer = model.pairs([true, true, false, true]);
    model.opt.step(fewer).unwrap();
    assert_not_prepared(&mut model);
    let all = model.pairs([true; 4]);
    // SAFETY: see above.
    unsafe { model.opt.prepare(all).unwrap() };
    model.opt.set_control(Some(Control::default())).unwrap();
    assert_not_prepared(&mut model);
}

#[test]
fn a_preparation_that_fails_leaves_the_one_before() {
    let mut model = Model::new();
    let all = model.pairs([true; 4]);
    // SAFETY: (both) the model's tensors stay where they are, and nobody uses them in a step.
    unsafe { model.opt.prepare(all).unwrap() };
    let fewer = model.pairs([true; 4]).into_iter().skip(1);
    // SAFETY: see above.
    let error = unsafe { model.opt.prepare(fewer).unwrap_err() };
    assert!(matches!(error, Error::TensorCount { expected: 4, actual: 3, .. }), "{error}");
    model.opt.step_prepared(StepOptions::default()).unwrap();
    let bad = model.opt.step_prepared(StepOptions { grad_scale: f64::NAN }).unwrap_err();
    assert!(matches!(bad, Error::GradScale { .. }), "{bad}");
    assert_eq!(model.opt.state(2).unwrap().step, 1);
}

#[test]
fn a_prepared_step_without_gradients_does_nothing() {
    let mut model = Model::new();
    let none = model.pairs([false; 4]);
    let before = model.bits();
    // SAFETY: the model's tensors stay where they are, and nobody uses them in a step.
    unsafe { model.opt.prepare(none).unwrap() };
    model.opt.step_prepared(StepOptions::default()).unwrap();
    assert_eq!(model.bits(), before);
}
