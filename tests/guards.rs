//! A step that the update's f32 arithmetic could not hold is skipped, and its run goes on as if it had not been.

#![expect(clippy::unwrap_used, reason = "a test stops at the first error")]
#![allow(clippy::cast_possible_truncation, reason = "a scale is made of its exponent")]

#[path = "guards/mod.rs"]
mod cases;

use cases::{CONFIG, Case, cases, scaled, skipping};
use fused_adamw::{
    AdamW, AdamWConfig, Alarm, Control, Decay, Device, Error, LossScale, NonFinite, Schedule, Status, StepOptions,
};
use proptest::prelude::*;

fn optimizer(lens: &[usize], control: Control) -> AdamW {
    let mut opt = AdamW::new(&Device::cpu(), CONFIG, lens).unwrap();
    opt.set_control(Some(control)).unwrap();
    opt
}

fn status(opt: &AdamW) -> Status {
    opt.status().unwrap().unwrap()
}

/// A step of one parameter; its value.
fn step(opt: &mut AdamW, grad: f32) -> f32 {
    let mut p = [1.0_f32];
    opt.step([(&mut p, &[grad])]).unwrap();
    p[0]
}

fn steps(opt: &mut AdamW, count: usize, grad: f32) {
    (0..count).for_each(|_| {
        step(opt, grad);
    });
}

fn run(Case { name, lens, control, steps, counts, tensors }: &Case) -> AdamW {
    let mut opt = optimizer(lens, control.clone());
    let mut params: Vec<Vec<f32>> = lens.iter().map(|&len| vec![1.0; len]).collect();
    for step in steps {
        let grads: Vec<Vec<f32>> = lens.iter().zip(&step.grads).map(|(&len, &g)| vec![g; len]).collect();
        opt.step_with(StepOptions { grad_scale: step.grad_scale }, params.iter_mut().zip(&grads)).unwrap();
    }
    let status = status(&opt);
    assert_eq!((status.applied, status.skipped), *counts, "{name}, {control:?}");
    for (i, (param, &steps)) in params.iter().zip(tensors).enumerate() {
        let state = opt.state(i).unwrap();
        assert_eq!(state.step, steps, "{name}: steps of tensor {i}");
        let all = param.iter().chain(&state.m).chain(&state.v);
        assert!(all.clone().all(|x| x.is_finite()), "{name}: tensor {i} has {param:?}, {state:?}");
        assert!(steps > 0 || param.iter().all(|&p| p == 1.0), "{name}: tensor {i} has moved");
    }
    opt
}

#[test]
fn each_case_has_its_counts_and_leaves_nothing_infinite() {
    cases().iter().for_each(|case| drop(run(case)));
}

fn case(name: &str) -> AdamW {
    run(cases().iter().find(|case| case.name == name).unwrap())
}

#[test]
fn norms_of_half_a_list_enter_no_mean() {
    for name in ["an alarm and half a list", "an alarm and none of the list"] {
        let alarm = status(&case(name)).norm_alarm;
        assert_eq!((alarm.mean, alarm.sigma, alarm.alarms), (5.0, 0.0, 0), "{name}");
    }
}

// What is left of the list may raise it: the whole could only be larger.
#[test]
fn a_norm_of_half_a_list_may_raise_the_alarm() {
    let alarm = Alarm { sigmas: 3.0, steps: 4, skip: true };
    let mut opt = optimizer(&[1, 1], Control { norm_alarm: Some(alarm), ..skipping(NonFinite::SkipTensor) });
    let (mut a, mut b) = ([1.0_f32], [1.0_f32]);
    for grads in [[4.0, 3.0]; 5].into_iter().chain([[f32::NAN, 100.0]]) {
        opt.step([(&mut a, &[grads[0]]), (&mut b, &[grads[1]])]).unwrap();
    }
    let (status, alarm) = (status(&opt), status(&opt).norm_alarm);
    assert_eq!((status.applied, status.skipped, alarm.alarms, alarm.mean), (5, 1, 1, 5.0));
}

// RMS_t of the healthy tensor is 1; without the other's 2 the mean would fall.
#[test]
fn rms_of_half_a_list_enters_no_mean() {
    let alarm = Alarm { sigmas: 3.0, steps: 4, skip: false };
    let control = Control { rms_alarm: Some(alarm), ..skipping(NonFinite::SkipTensor) };
    let mut opt = AdamW::new(&Device::cpu(), AdamWConfig { betas: (0.9, 0.0), ..CONFIG }, [1, 2]).unwrap();
    opt.set_control(Some(control)).unwrap();
    let (mut a, mut b) = ([1.0_f32], [1.0_f32; 2]);
    let mut means = Vec::new();
    for grad in [1.0, 1.0, 1.0, f32::NAN, f32::NAN, f32::NAN] {
        opt.step([(&mut a[..], &[grad][..]), (&mut b[..], &[0.0, 1.0][..])]).unwrap();
        means.push(status(&opt).rms_alarm.mean);
    }
    // The value of a step is that of the step before it, and 0.7 of `b` alone from the fifth on.
    assert_eq!(means, [0.0, 1.0, 1.0, 1.0, 1.0, 1.0]);
    assert!((status(&opt).rms - 0.5_f64.sqrt()).abs() < 1e-6);
}

#[test]
fn steps_that_no_tensor_takes_are_an_error_and_leave_the_schedule() {
    let mut opt = case("no tensor takes the step");
    assert!(matches!(opt.poll(), Err(Error::Skipped { skipped_running: 10, limit: 3, non_finite: 2, .. })));
    let state = status(&opt);
    assert!(state.grad_norm.unwrap().is_nan() && state.lr_factor == 1.0);
    let mut p = [[1.0_f32]; 2];
    opt.step(p.iter_mut().map(|p| (p, &[1.0_f32]))).unwrap();
    assert_eq!((status(&opt).applied, status(&opt).lr_factor), (1, 1.0));
}

#[test]
fn poll_tells_of_every_skipped_step_since_it_was_asked() {
    let mut opt = optimizer(&[1], skipping(NonFinite::Error));
    for grad in [f32::NAN, 1.0, f32::INFINITY, 1.0] {
        step(&mut opt, grad);
    }
    let error = opt.poll().unwrap_err();
    let Error::Skipped { skipped_running, limit, non_finite, grad_norm } = error else { panic!("{error}") };
    assert_eq!((skipped_running, limit, non_finite, grad_norm), (1, 0, 1, f64::INFINITY));
    opt.poll().unwrap();
    step(&mut opt, 1.0);
    opt.poll().unwrap();
}

#[test]
fn poll_tells_of_a_run_of_skips_that_has_ended() {
    let mut opt = optimizer(&[1], Control { max_skipped: Some(2), ..skipping(NonFinite::SkipStep) });
    let run = |opt: &mut AdamW, skips: usize| {
        steps(opt, skips, f32::NAN);
        step(opt, 1.0);
    };
    run(&mut opt, 2);
    opt.poll().unwrap();
    run(&mut opt, 4);
    run(&mut opt, 1);
    assert!(matches!(opt.poll(), Err(Error::Skipped { skipped_running: 4, limit: 2, non_finite: 1, .. })));
    opt.poll().unwrap();
    // A control that goes on keeps what nobody has asked for yet.
    run(&mut opt, 3);
    opt.set_control(Some(Control { zero_grad: false, ..opt.control().unwrap().clone() })).unwrap();
    assert!(matches!(opt.poll(), Err(Error::Skipped { skipped_running: 3, .. })));
}

#[test]
fn a_hundred_skipped_steps_are_allowed_by_default() {
    for non_finite in [NonFinite::SkipStep, NonFinite::SkipTensor] {
        let mut opt = optimizer(&[1], skipping(non_finite));
        steps(&mut opt, 100, f32::NAN);
        opt.poll().unwrap();
        step(&mut opt, f32::NAN);
        assert!(matches!(opt.poll(), Err(Error::Skipped { skipped_running: 101, limit: 100, .. })));
    }
}

#[test]
fn a_tighter_limit_tells_of_the_run_that_goes_on() {
    let mut opt = optimizer(&[1], skipping(NonFinite::SkipStep));
    steps(&mut opt, 5, f32::NAN);
    opt.set_control(Some(Control { max_skipped: Some(3), ..skipping(NonFinite::SkipStep) })).unwrap();
    assert!(matches!(opt.poll(), Err(Error::Skipped { skipped_running: 5, limit: 3, non_finite: 1, .. })));
}

#[test]
fn the_loss_scale_does_not_fall_below_its_floor_and_leaves_it() {
    for (min_scale, backoff_factor) in [(1.0, 0.5), (1.0, 1e-30), (f32::MIN_POSITIVE, 0.5), (1024.0, 0.5)] {
        let scale = LossScale { min_scale, backoff_factor, growth_interval: 1, ..Default::default() };
        let mut opt = optimizer(&[1], Control { loss_scale: Some(scale), ..skipping(NonFinite::SkipStep) });
        steps(&mut opt, 400, f32::NAN);
        assert_eq!(status(&opt).loss_scale, min_scale);
        // The floor's reciprocal is an f32: a step that is fine is applied, and the scale grows.
        assert!(step(&mut opt, 0.0).is_finite());
        assert_eq!((status(&opt).applied, status(&opt).loss_scale), (1, 2.0 * min_scale));
    }
}

#[test]
fn a_scale_below_the_floor_is_brought_to_the_floor() {
    let mut opt = optimizer(&[1], scaled(NonFinite::SkipStep, -128));
    assert_eq!(step(&mut opt, 0.0), 1.0);
    assert_eq!((status(&opt).skipped, status(&opt).loss_scale), (1, 1.0));
    assert!(step(&mut opt, 1.0) < 1.0);
}

#[test]
fn another_init_scale_is_another_loss_scale() {
    let mut opt = optimizer(&[1], scaled(NonFinite::SkipStep, 4));
    step(&mut opt, f32::NAN);
    assert_eq!(status(&opt).loss_scale, 8.0);
    opt.set_control(Some(Control { max_grad_norm: Some(1.0), ..scaled(NonFinite::SkipStep, 4) })).unwrap();
    assert_eq!(status(&opt).loss_scale, 8.0);
    opt.set_control(Some(scaled(NonFinite::SkipStep, 6))).unwrap();
    assert_eq!(status(&opt).loss_scale, 64.0);
    opt.set_control(Some(skipping(NonFinite::SkipStep))).unwrap();
    assert_eq!(status(&opt).loss_scale, 1.0);
    opt.set_control(Some(scaled(NonFinite::SkipStep, 6))).unwrap();
    assert_eq!(status(&opt).loss_scale, 64.0);
}

#[test]
fn the_growth_of_a_scale_begins_with_the_scale() {
    let every = |growth_interval, init_scale| Control {
        loss_scale: Some(LossScale { growth_interval, init_scale, ..Default::default() }),
        ..skipping(NonFinite::SkipStep)
    };
    let mut opt = optimizer(&[1], every(3, 8.0));
    steps(&mut opt, 2, 1.0);
    opt.set_control(Some(every(3, 16.0))).unwrap();
    steps(&mut opt, 2, 1.0);
    assert_eq!(status(&opt).loss_scale, 16.0);
    step(&mut opt, 1.0);
    assert_eq!(status(&opt).loss_scale, 32.0);
}

#[test]
fn a_shorter_growth_interval_under_a_running_counter() {
    let every = |growth_interval| Control {
        loss_scale: Some(LossScale { growth_interval, init_scale: 4.0, ..Default::default() }),
        ..skipping(NonFinite::SkipStep)
    };
    let mut opt = optimizer(&[1], every(10));
    steps(&mut opt, 5, 1.0);
    opt.set_control(Some(every(3))).unwrap();
    step(&mut opt, 1.0);
    assert_eq!(status(&opt).loss_scale, 8.0);
    steps(&mut opt, 3, 1.0);
    assert_eq!(status(&opt).loss_scale, 16.0);
}

#[test]
fn a_decay_ends_at_exactly_its_floor() {
    for floor in [0.0, 1e-300, 0.1, 1.0 / 3.0, 0.7, 1.0] {
        for (warmup, end) in [(0, 1), (3, 10), (7, 1000), (1 << 40, (1 << 40) + 5)] {
            let cosine = Schedule { warmup, decay: Decay::Cosine { end, floor } };
            let linear = Schedule { warmup, decay: Decay::Linear { start: warmup, end, floor } };
            for schedule in [cosine, linear] {
                let factors = [end, end + 1, 10 * end, u64::MAX].map(|n| schedule.factor(n));
                assert_eq!(factors, [floor; 4], "{schedule:?}");
                assert!(schedule.factor(end - 1) >= floor);
            }
        }
    }
}

#[test]
fn counts_beyond_2_to_the_53_are_subtracted_before_they_are_rounded() {
    let start = 1_u64 << 54;
    for decay in [
        Decay::Linear { start, end: start + 1, floor: 0.5 },
        Decay::Linear { start: u64::MAX - 2, end: u64::MAX, floor: 0.5 },
    ] {
        let schedule = Schedule { warmup: 0, decay };
        let factors =
            [0, start - 1, start, start + 1, u64::MAX - 2, u64::MAX - 1, u64::MAX].map(|n| schedule.factor(n));
        assert!(factors.iter().all(|factor| (0.5..=1.0).contains(factor)), "{schedule:?}: {factors:?}");
        assert_eq!((factors[0], factors[6]), (1.0, 0.5));
    }
    let schedule = Schedule { warmup: 0, decay: Decay::Linear { start: u64::MAX - 2, end: u64::MAX, floor: 0.0 } };
    assert_eq!(schedule.factor(u64::MAX - 1), 0.5);
}

#[test]
fn an_infinite_limit_measures_the_norm_and_clips_nothing() {
    let mut opt = optimizer(&[2], Control { max_grad_norm: Some(f64::INFINITY), ..Default::default() });
    let mut p = [1.0_f32; 2];
    for grads in [[3.0, 4.0], [3e38, 3e38], [f32::INFINITY, 1.0]] {
        opt.step([(&mut p, &grads)]).unwrap();
        assert_eq!(status(&opt).grad_scale, 1.0, "{grads:?}");
    }
    assert_eq!(status(&opt).grad_norm, Some(f64::INFINITY));
}

#[test]
fn a_norm_that_nobody_asked_for_is_none() {
    let mut opt = optimizer(&[1], Control::default());
    step(&mut opt, 3.0);
    assert_eq!((status(&opt).grad_norm, status(&opt).non_finite), (None, None));
    opt.set_control(Some(Control { max_grad_norm: Some(5.0), ..Default::default() })).unwrap();
    assert_eq!(status(&opt).grad_norm, None); // no step yet
    step(&mut opt, 3.0);
    assert_eq!((status(&opt).grad_norm, status(&opt).non_finite), (Some(3.0), Some(0)));
}

/// Any finite number of either sign, of every size alike.
fn any_size() -> impl Strategy<Value = f32> {
    any::<u32>().prop_map(f32::from_bits).prop_filter("finite", |x| x.is_finite())
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(2000) })]

    // The guard is in the arithmetic that it guards: no gradient, multiplier or limit makes a step that it applies infinite.
    #[test]
    fn no_applied_step_leaves_anything_infinite(
        grads in prop::collection::vec(any_size(), 1..4),
        exponent in -149..128_i32,
        grad_scale in prop_oneof![Just(1.0), (-60.0..38.0_f64).prop_map(|e| 10.0_f64.powf(e))],
        clip in prop::option::of(1e-3..1e3_f64),
        by_tensor in any::<bool>(),
        beta2 in prop_oneof![Just(0.0), Just(0.999)],
    ) {
        let policy = if by_tensor { NonFinite::SkipTensor } else { NonFinite::SkipStep };
        let config = AdamWConfig { betas: (0.9, beta2), ..CONFIG };
        let mut opt = AdamW::new(&Device::cpu(), config, vec![1; grads.len()]).unwrap();
        opt.set_control(Some(Control { max_grad_norm: clip, ..scaled(policy, exponent) })).unwrap();
        let mut params = vec![[1.0_f32]; grads.len()];
        for _ in 0..2 {
            let grads = grads.iter().map(std::slice::from_ref);
            let params = params.iter_mut().map(|p| &mut p[..]);
            opt.step_with(StepOptions { grad_scale }, params.zip(grads)).unwrap();
        }
        for (i, p) in params.iter().enumerate() {
            let state = opt.state(i).unwrap();
            prop_assert!([p[0], state.m[0], state.v[0]].iter().all(|x| x.is_finite()), "{:?}: {:?}", p, state);
        }
    }

    // And none is skipped that could be held, but for the last millionth below the largest square.
    #[test]
    fn no_step_that_can_be_held_is_skipped(grad in any_size(), exponent in -100..100_i32) {
        let mut opt = optimizer(&[1], scaled(NonFinite::SkipStep, exponent));
        step(&mut opt, grad);
        let (scale, square) = (2.0_f64.powi(-exponent), f64::from(grad) * f64::from(grad));
        let holds = square < 3.402e38 && square * scale * scale < 3.402e38;
        let overflows = square > 3.403e38 || square * scale * scale > 3.403e38;
        prop_assert!(!holds || status(&opt).applied == 1);
        prop_assert!(!overflows || status(&opt).skipped == 1);
    }
}
