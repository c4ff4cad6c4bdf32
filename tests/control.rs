//! A controlled step is a plain step with the multiplier, the learning rate and the tensors that the control decided
//! on: the same bits.

#![expect(clippy::unwrap_used, reason = "a test stops at the first error")]
#![expect(clippy::cast_precision_loss, reason = "values of indices")]

mod runs;

use fused_adamw::{
    AdamW, AdamWConfig, Control, Decay, Device, Error, LossScale, NonFinite, Schedule, Simd, StepOptions, TensorSpec,
};
use half::bf16;
use proptest::prelude::*;
use runs::{CONFIG, grads, optimizer, params, states};

fn skipping() -> Control {
    Control { non_finite: NonFinite::SkipStep, ..Default::default() }
}

const LENS: [usize; 5] = [3, 0, 2049, 17, 20_000];

#[test]
fn a_clipped_step_is_a_plain_one_of_that_multiplier() {
    let mut clipped = optimizer(&LENS, Some(Control { max_grad_norm: Some(0.5), ..Default::default() }));
    let mut plain = optimizer(&LENS, None);
    let (mut a, mut b) = (params(&LENS), params(&LENS));
    for t in 0..5 {
        let grads = grads(&LENS, t);
        clipped.step_with(StepOptions { grad_scale: 0.25 }, a.iter_mut().zip(&grads)).unwrap();
        let status = clipped.status().unwrap().unwrap();
        let squares: f64 = grads.iter().flatten().map(|&g| (0.25 * f64::from(g)).powi(2)).sum();
        approx::assert_relative_eq!(status.grad_norm.unwrap(), squares.sqrt(), max_relative = 1e-6);
        approx::assert_relative_eq!(
            status.grad_scale,
            0.25 * 0.5 / (status.grad_norm.unwrap() + 1e-6),
            max_relative = 1e-15
        );
        plain.step_with(StepOptions { grad_scale: status.grad_scale }, b.iter_mut().zip(&grads)).unwrap();
    }
    assert!(a == b && states(&clipped) == states(&plain));
}

#[test]
fn a_norm_below_the_limit_changes_nothing() {
    let mut clipped = optimizer(&LENS, Some(Control { max_grad_norm: Some(1e6), ..Default::default() }));
    let mut plain = optimizer(&LENS, None);
    let (mut a, mut b) = (params(&LENS), params(&LENS));
    clipped.step(a.iter_mut().zip(&grads(&LENS, 0))).unwrap();
    plain.step(b.iter_mut().zip(&grads(&LENS, 0))).unwrap();
    assert!(a == b && states(&clipped) == states(&plain));
}

// Threads, instruction sets, and where the gradients lie.
#[test]
fn the_norm_is_a_function_of_order_and_lengths_alone() {
    let norm = |threads: usize, simd: Simd, offset: usize| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        let lens = [300_001, 5, 9000];
        let mut opt = AdamW::new(&Device::cpu_with(simd).unwrap(), CONFIG, lens).unwrap();
        opt.set_control(Some(Control { max_grad_norm: Some(1.0), ..Default::default() })).unwrap();
        let (mut params, mut grads) = (params(&lens), grads(&lens, 3));
        grads.iter_mut().for_each(|grad| drop(grad.splice(0..0, vec![9.0; offset])));
        let pairs = params.iter_mut().zip(grads.iter().map(|grad| &grad[offset..]));
        pool.install(|| opt.step(pairs)).unwrap();
        opt.status().unwrap().unwrap().grad_norm.unwrap().to_bits()
    };
    let expected = norm(1, Simd::Portable, 0);
    for simd in [Simd::Portable, Simd::best()] {
        for (threads, offset) in [(1, 1), (2, 0), (3, 3)] {
            assert_eq!(norm(threads, simd, offset), expected, "{simd}, {threads} threads, {offset} elements before");
        }
    }
}

/// The norm of gradients that each have one value: lengths and values.
fn norm_of(tensors: &[(usize, f32)], control: &Control) -> f64 {
    let lens: Vec<usize> = tensors.iter().map(|&(len, _)| len).collect();
    let mut opt = AdamW::new(&Device::cpu(), CONFIG, &lens).unwrap();
    opt.set_control(Some(control.clone())).unwrap();
    let mut params = params(&lens);
    let grads: Vec<Vec<f32>> = tensors.iter().map(|&(len, g)| vec![g; len]).collect();
    opt.step(params.iter_mut().zip(&grads)).unwrap();
    opt.status().unwrap().unwrap().grad_norm.unwrap()
}

// Thousands of chunks, in any order, cut at a multiple of 8,192 or not at all: their norm is the root of an integer.
#[test]
fn the_norm_is_exact_over_chunks() {
    let tensors: Vec<(usize, f32)> = (0..3000_u16).map(|i| (usize::from(i % 3), f32::from(i))).collect();
    let exact: f64 = tensors.iter().map(|&(len, g)| len as f64 * f64::from(g) * f64::from(g)).sum();
    let clip = Control { max_grad_norm: Some(1.0), ..Default::default() };
    for control in [clip, skipping(), Control { non_finite: NonFinite::SkipTensor, ..Default::default() }] {
        assert_eq!(norm_of(&tensors, &control), exact.sqrt());
        let reversed: Vec<_> = tensors.iter().rev().copied().collect();
        assert_eq!(norm_of(&reversed, &control), exact.sqrt());
        // 0.1 has squares that round: within a chunk their order is fixed, and so is each chunk's sum.
        let (whole, cut) = ([(700 * 8192 + 5, 0.1)], [(5, 0.1), (300 * 8192, 0.1), (399 * 8192, 0.1), (8192, 0.1)]);
        assert_eq!(norm_of(&whole, &control).to_bits(), norm_of(&cut, &control).to_bits());
    }
}

#[test]
fn a_schedule_is_a_learning_rate_for_each_step() {
    let decay = Decay::Cosine { end: 9, floor: 0.1 };
    for schedule in [Schedule { warmup: 3, decay }, Schedule { warmup: 0, decay: Decay::List([0.5, 2.0].into()) }] {
        let control = Control { schedule: schedule.clone(), ..Default::default() };
        let (mut scheduled, mut plain) = (optimizer(&LENS, Some(control)), optimizer(&LENS, None));
        let (mut a, mut b) = (params(&LENS), params(&LENS));
        for t in 0..12 {
            scheduled.step(a.iter_mut().zip(&grads(&LENS, t))).unwrap();
            plain.set_lr(CONFIG.lr * schedule.factor(t as u64)).unwrap();
            plain.step(b.iter_mut().zip(&grads(&LENS, t))).unwrap();
        }
        assert!(a == b && states(&scheduled) == states(&plain));
    }
}

// At the first step, twice running, and as the last.
#[test]
fn a_skipped_step_changes_no_byte_and_does_not_count() {
    let schedule = Schedule { warmup: 10, ..Default::default() };
    let bad = [f32::NAN, f32::INFINITY, f32::NEG_INFINITY, 1e20];
    let mut skips = optimizer(&LENS, Some(Control { schedule: schedule.clone(), ..skipping() }));
    let mut plain = optimizer(&LENS, None);
    let (mut a, mut b) = (params(&LENS), params(&LENS));
    for t in 0..12 {
        let mut grads = grads(&LENS, t);
        let is_bad = [0, 4, 5, 11].contains(&t);
        if is_bad {
            grads[4][t * 1000] = bad[t % 4];
        }
        let before = (a.clone(), states(&skips));
        skips.step(a.iter_mut().zip(&grads)).unwrap();
        if is_bad {
            assert!(before == (a.clone(), states(&skips)), "step {t}");
        } else {
            let applied = plain.state(0).unwrap().step;
            plain.set_lr(CONFIG.lr * schedule.factor(applied)).unwrap();
            plain.step(b.iter_mut().zip(&grads)).unwrap();
        }
    }
    let status = skips.status().unwrap().unwrap();
    assert_eq!((status.applied, status.skipped, status.skipped_running), (8, 4, 1));
    assert!(a == b && states(&skips) == states(&plain));
}

// Its master has to be read from the parameter in the step that is skipped, or in the next.
#[test]
fn a_16_bit_parameter_may_be_skipped_in_its_first_step() {
    let mut opt = optimizer(&[2], Some(skipping()));
    let mut p = [bf16::from_f32(1.5), bf16::from_f32(-2.0)];
    opt.step([(&mut p, &[f32::NAN, 1.0])]).unwrap();
    assert_eq!(p.map(bf16::to_f32), [1.5, -2.0]);
    opt.step([(&mut p, &[0.5_f32, 1.0])]).unwrap();
    let mut plain = optimizer(&[2], None);
    let mut q = [bf16::from_f32(1.5), bf16::from_f32(-2.0)];
    plain.step([(&mut q, &[0.5_f32, 1.0])]).unwrap();
    assert_eq!((p, states(&opt)), (q, states(&plain)));
}

#[test]
fn a_tensor_that_is_skipped_is_one_without_a_gradient() {
    let control = Control { non_finite: NonFinite::SkipTensor, max_grad_norm: Some(1.0), ..Default::default() };
    let mut skips = optimizer(&LENS, Some(control));
    let mut without = optimizer(&LENS, Some(Control { max_grad_norm: Some(1.0), ..Default::default() }));
    let (mut a, mut b) = (params(&LENS), params(&LENS));
    for t in 0..6 {
        let bad = [0, 4, 4, 2, 3, 9][t];
        let mut grads = grads(&LENS, t);
        if bad < 5 {
            *grads[bad].last_mut().unwrap() = f32::NAN;
        }
        skips.step(a.iter_mut().zip(&grads)).unwrap();
        let grads = grads.iter().enumerate().map(|(i, grad)| (i != bad).then_some(grad));
        without.step(b.iter_mut().zip(grads)).unwrap();
    }
    assert!(a == b && states(&skips) == states(&without));
}

// PyTorch's GradScaler, in its words.
#[test]
fn the_loss_scale_is_a_grad_scalers() {
    let scale = LossScale { init_scale: 8.0, growth_interval: 3, ..Default::default() };
    let mut opt = optimizer(&[1], Some(Control { loss_scale: Some(scale), ..skipping() }));
    let (mut expected, mut growth_tracker) = (8.0_f32, 0);
    let mut plain = optimizer(&[1], None);
    let (mut p, mut q) = ([1.0_f32], [1.0_f32]);
    for t in 0..40_usize {
        assert_eq!(opt.status().unwrap().unwrap().loss_scale, expected);
        let grad = [if t % 7 == 5 || t % 11 == 3 { f32::INFINITY } else { expected * 0.5 }];
        opt.step([(&mut p, &grad)]).unwrap();
        if grad[0].is_infinite() {
            (expected, growth_tracker) = (expected * 0.5, 0);
            continue;
        }
        plain.step_with(StepOptions { grad_scale: 1.0 / f64::from(expected) }, [(&mut q, &grad)]).unwrap();
        growth_tracker += 1;
        if growth_tracker == 3 {
            (expected, growth_tracker) = (expected * 2.0, 0);
        }
    }
    assert_eq!((p, states(&opt)), (q, states(&plain)));
}

// It would be infinite, and every gradient 0.
#[test]
fn a_loss_scale_stays_finite() {
    let scale = LossScale { init_scale: 2.0_f32.powi(126), growth_interval: 1, ..Default::default() };
    let mut opt = optimizer(&[1], Some(Control { loss_scale: Some(scale), ..skipping() }));
    for _ in 0..5 {
        opt.step([(&mut [1.0_f32], &[1.0_f32])]).unwrap();
    }
    assert_eq!(opt.status().unwrap().unwrap().loss_scale, 2.0_f32.powi(127));
}

#[test]
fn a_control_may_come_and_go() {
    let (mut changing, mut plain) = (optimizer(&LENS, None), optimizer(&LENS, None));
    let (mut a, mut b) = (params(&LENS), params(&LENS));
    for t in 0..9 {
        changing.set_control((t % 3 != 0).then(skipping)).unwrap();
        let grads = grads(&LENS, t);
        let some = |i: usize| !(i + t).is_multiple_of(4);
        let pairs = |grads: Vec<Vec<f32>>| grads.into_iter().enumerate().map(move |(i, grad)| some(i).then_some(grad));
        let given: Vec<_> = pairs(grads).collect();
        changing.step(a.iter_mut().zip(given.iter().map(Option::as_ref))).unwrap();
        plain.step(b.iter_mut().zip(given.iter().map(Option::as_ref))).unwrap();
    }
    assert!(a == b && states(&changing) == states(&plain));
}

#[test]
fn schedule_and_loss_scale_go_on_where_the_control_before_was() {
    let schedule = Schedule { warmup: 100, ..Default::default() };
    let first = Control { schedule, loss_scale: Some(LossScale::default()), ..skipping() };
    let mut opt = optimizer(&[1], Some(first.clone()));
    opt.step([(&mut [1.0_f32], &[f32::NAN])]).unwrap();
    opt.step([(&mut [1.0_f32], &[1.0_f32])]).unwrap();
    opt.set_control(Some(Control { max_grad_norm: Some(1.0), ..first })).unwrap();
    let status = opt.status().unwrap().unwrap();
    assert_eq!((status.applied, status.skipped, status.loss_scale), (1, 1, 32768.0));
    opt.step([(&mut [1.0_f32], &[1.0_f32])]).unwrap();
    assert_eq!(opt.status().unwrap().unwrap().lr_factor, 0.02);
}

#[test]
fn groups_have_their_own_learning_rates() {
    let groups = [CONFIG, AdamWConfig { lr: 1e-3, weight_decay: 0.0, ..CONFIG }];
    let specs = [TensorSpec::new(5), TensorSpec::new(6).group(1)];
    let mut opts = [(); 2].map(|()| AdamW::with_groups(&Device::cpu(), &groups, &specs).unwrap());
    opts[0].set_control(Some(skipping())).unwrap();
    let [a, b] = opts.each_mut().map(|opt| {
        let mut params = params(&[5, 6]);
        opt.step(params.iter_mut().zip(&grads(&[5, 6], 0))).unwrap();
        opt.set_lr(0.5).unwrap();
        opt.set_group(1, AdamWConfig { betas: (0.5, 0.5), ..CONFIG }).unwrap();
        opt.step(params.iter_mut().zip(&grads(&[5, 6], 1))).unwrap();
        params
    });
    assert!(a == b && states(&opts[0]) == states(&opts[1]));
}

#[test]
fn too_many_skipped_steps_are_an_error_of_the_next_poll() {
    let mut opt = optimizer(&[1], Some(Control { max_skipped: Some(2), ..skipping() }));
    for skipped_running in 1..=3 {
        opt.step([(&mut [1.0_f32], &[f32::NAN])]).unwrap();
        match opt.poll() {
            Ok(()) => assert!(skipped_running <= 2),
            Err(Error::Skipped { skipped_running: found, limit: 2, non_finite: 1, grad_norm }) => {
                assert!(found == 3 && skipped_running == 3 && grad_norm.is_nan());
            }
            Err(other) => panic!("{other}"),
        }
    }
    opt.step([(&mut [1.0_f32], &[1.0_f32])]).unwrap();
    opt.poll().unwrap();
}

#[test]
fn what_is_out_of_its_range_is_named_and_changes_nothing() {
    let mut opt = optimizer(&[1], Some(Control { max_grad_norm: Some(7.0), ..Default::default() }));
    let mut refused = |control: Control| opt.set_control(Some(control)).unwrap_err().to_string();
    for norm in [0.0, -1.0, f64::NAN, f64::NEG_INFINITY] {
        let control = Control { max_grad_norm: Some(norm), ..Default::default() };
        assert_eq!(refused(control), format!("control: max_grad_norm is {norm}, must be in (0, inf]"));
    }
    let mut scaled = |scale: LossScale| refused(Control { loss_scale: Some(scale), ..skipping() });
    let fine = LossScale::default();
    for init_scale in [0.0, -1.0, f32::NAN, f32::INFINITY] {
        assert!(scaled(LossScale { init_scale, ..fine }).contains("loss_scale.init_scale"));
    }
    assert!(scaled(LossScale { growth_factor: 0.9, ..fine }).contains("growth_factor is 0.9"));
    assert!(scaled(LossScale { backoff_factor: f64::NAN, ..fine }).contains("backoff_factor is NaN"));
    assert!(scaled(LossScale { growth_interval: 0, ..fine }).contains("growth_interval is 0"));
    assert!(refused(Control { loss_scale: Some(fine), ..Default::default() }).contains("NonFinite::SkipStep"));
    let mut scheduled = |warmup, decay| refused(Control { schedule: Schedule { warmup, decay }, ..Default::default() });
    for end in [0, 5] {
        let error = scheduled(5, Decay::Cosine { end, floor: 0.0 });
        assert_eq!(error, format!("schedule: the decay starts at step 5 and ends at step {end}, must end later"));
    }
    assert!(scheduled(0, Decay::Linear { start: 9, end: 3, floor: 0.0 }).contains("ends at step 3"));
    assert!(scheduled(0, Decay::Cosine { end: 9, floor: 1.5 }).contains("floor is 1.5"));
    assert!(scheduled(0, Decay::List([].into())).contains("`Decay::List` is empty"));
    assert!(scheduled(0, Decay::List([1.0, f64::NAN].into())).contains("List is NaN"));
    opt.step([(&mut [1.0_f32], &[70.0_f32])]).unwrap();
    approx::assert_relative_eq!(opt.status().unwrap().unwrap().grad_scale, 0.1, max_relative = 1e-6);
}

/// What one step of a run is given.
#[derive(Clone, Debug)]
struct Step {
    grads: Vec<Option<[f32; 2]>>,
    grad_scale: f64,
}

fn step() -> impl Strategy<Value = Step> {
    let value = prop_oneof![9 => -2.0_f32..2.0, 1 => Just(f32::NAN), 1 => Just(f32::INFINITY)];
    let grad = prop::option::weighted(0.8, [value.clone(), value]);
    (prop::collection::vec(grad, 3), 0.25..4.0_f64).prop_map(|(grads, grad_scale)| Step { grads, grad_scale })
}

/// AdamW with everything that a control does, in f64 and as the papers write it.
#[derive(Debug, Default)]
struct Model {
    applied: u64,
    t: [i32; 3],
    p: [[f64; 2]; 3],
    m: [[f64; 2]; 3],
    v: [[f64; 2]; 3],
}

impl Model {
    fn step(&mut self, step: &Step, max_norm: f64, factor: impl Fn(u64) -> f64) {
        let grads: Vec<_> =
            step.grads.iter().map(|grad| grad.map(|g| g.map(|x| step.grad_scale * f64::from(x)))).collect();
        let all: Vec<f64> = grads.iter().flatten().flatten().copied().collect();
        if all.is_empty() || all.iter().any(|g| !g.is_finite()) {
            return;
        }
        let norm = all.iter().map(|g| g * g).sum::<f64>().sqrt();
        let clip = (max_norm / (norm + 1e-6)).min(1.0);
        let lr = CONFIG.lr * factor(self.applied);
        self.applied += 1;
        let (b1, b2) = CONFIG.betas;
        for (i, grad) in grads.into_iter().enumerate().filter_map(|(i, grad)| Some((i, grad?))) {
            self.t[i] += 1;
            for (j, g) in grad.into_iter().enumerate() {
                let (g, p, m, v) = (clip * g, &mut self.p[i][j], &mut self.m[i][j], &mut self.v[i][j]);
                *m = b1 * *m + (1.0 - b1) * g;
                *v = b2 * *v + (1.0 - b2) * g * g;
                let (m_hat, v_hat) = (*m / (1.0 - b1.powi(self.t[i])), *v / (1.0 - b2.powi(self.t[i])));
                *p = *p - lr * CONFIG.weight_decay * *p - lr * m_hat / (v_hat.sqrt() + CONFIG.eps);
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1000))]

    // Each step rounds p once in (4) and once in (5), and what it takes off p a few times: less than 2^-24 of |p|
    // twice, and less than 10 lr 2^-24 of what is at most lr times 10 (betas of 0.9 and 0.99).
    #[test]
    fn any_run_is_what_f64_makes_of_it(steps in prop::collection::vec(step(), 0..30), max_norm in 0.1..3.0_f64) {
        let schedule = Schedule { warmup: 4, decay: Decay::Linear { start: 6, end: 20, floor: 0.2 } };
        let control = Control { max_grad_norm: Some(max_norm), schedule: schedule.clone(), ..skipping() };
        let mut opt = optimizer(&[2; 3], Some(control));
        let mut params = [[1.0_f32, -0.5]; 3];
        let mut model = Model { p: params.map(|p| p.map(f64::from)), ..Default::default() };
        for step in &steps {
            let pairs = params.iter_mut().zip(step.grads.iter().map(Option::as_ref));
            opt.step_with(StepOptions { grad_scale: step.grad_scale }, pairs).unwrap();
            model.step(step, max_norm, |n| schedule.factor(n));
        }
        let bound = steps.len() as f64 * (2.0 * 2.0 + 10.0 * 10.0 * CONFIG.lr) * 2.0_f64.powi(-24);
        for (i, (p, exact)) in params.iter().zip(model.p).enumerate() {
            prop_assert_eq!(opt.state(i).unwrap().step, u64::try_from(model.t[i]).unwrap());
            for (&p, exact) in p.iter().zip(exact) {
                prop_assert!((f64::from(p) - exact).abs() <= bound, "{p} is not {exact}");
            }
        }
        prop_assert_eq!(opt.status().unwrap().unwrap().applied, model.applied);
    }
}
