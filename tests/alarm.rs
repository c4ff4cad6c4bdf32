//! Alarms: of the gradients' norm, and of RMS_t, the gradients against the second moment.

#![expect(clippy::unwrap_used, reason = "a test stops at the first error")]

mod runs;

use fused_adamw::{AdamW, AdamWConfig, Alarm, AlarmStatus, Control, NonFinite, Pair, Status};
use proptest::prelude::*;
use runs::{CONFIG, grads, optimizer, params, states};

const ALARM: Alarm = Alarm { sigmas: 6.0, steps: 16, skip: false };
const SKIPS: Alarm = Alarm { skip: true, ..ALARM };

fn of_norm(alarm: Alarm) -> Control {
    Control { norm_alarm: Some(alarm), metrics: true, ..Default::default() }
}

fn of_both(alarm: Alarm) -> Control {
    Control { rms_alarm: Some(alarm), ..of_norm(alarm) }
}

fn status(opt: &AdamW) -> Status {
    opt.status().unwrap().unwrap()
}

// ---- of the norm ----

/// Norms of 1 or so, then what `spikes` says; whether each was an alarm.
fn alarms(alarm: Alarm, quiet: usize, spikes: &[f32]) -> (Vec<bool>, AdamW, [f32; 1]) {
    let mut opt = optimizer(&[1], Some(of_norm(alarm)));
    let (mut p, mut seen) = ([1.0_f32], Vec::new());
    let norms = (0..quiet).map(|t| 1.0 + [0.1, -0.1][t % 2]).chain(spikes.iter().copied());
    for norm in norms {
        opt.step([(&mut p, &[norm])]).unwrap();
        seen.push(status(&opt).norm_alarm.raised);
    }
    (seen, opt, p)
}

#[test]
fn a_norm_far_above_its_mean_is_an_alarm_and_not_before_there_is_a_mean() {
    let (seen, opt, _) = alarms(ALARM, 16, &[1.65, 1.5, f32::NAN, 1.0, 5.0]);
    assert_eq!(seen[16..], [true, false, false, false, true]);
    assert!(!seen[..16].contains(&true));
    assert_eq!(status(&opt).norm_alarm.alarms, 2);
    assert!(!alarms(ALARM, 15, &[1e6]).0.contains(&true));
    // Mean 1 and deviation 0.1, exactly but for the roundings of 0.1.
    let AlarmStatus { mean, sigma, .. } = status(&alarms(ALARM, 16, &[]).1).norm_alarm;
    approx::assert_relative_eq!(mean, 1.0, max_relative = 1e-7);
    approx::assert_relative_eq!(sigma, 0.1, max_relative = 1e-6);
}

#[test]
fn one_spike_does_not_hide_the_next_and_a_new_level_is_no_alarm_for_long() {
    assert_eq!(alarms(ALARM, 16, &[1e15, 1.0, 5.0, 1.0]).0[16..], [true, false, true, false]);
    let (seen, ..) = alarms(ALARM, 16, &[10.0; 20]);
    assert!(seen[16] && !seen[35], "{seen:?}");
}

#[test]
fn an_alarm_may_skip_the_step() {
    let (_, without, p) = alarms(SKIPS, 16, &[]);
    let (seen, opt, q) = alarms(SKIPS, 16, &[50.0]);
    let status = status(&opt);
    assert_eq!((seen[16], status.skipped, status.applied, p), (true, 1, 16, q));
    assert_eq!(states(&opt), states(&without));
}

// ---- of RMS_t ----

const LENS: [usize; 2] = [1000, 10];
/// The steps before a spike.
const QUIET: usize = 20;

/// A large tensor and one of a millionth of its squares.
fn unequal(t: usize) -> Vec<Vec<f32>> {
    let mut grads = grads(&LENS, t);
    grads[0].iter_mut().for_each(|g| *g *= 100.0);
    grads
}

/// What both alarms say of step [`QUIET`], in which a tensor's gradient is so many times what it was, and of the next two.
fn of_spike(alarm: Alarm, tensor: usize, factor: f32) -> (Vec<Status>, AdamW) {
    let (mut opt, mut params, mut seen) = (optimizer(&LENS, Some(of_both(alarm))), params(&LENS), Vec::new());
    for t in 0..QUIET + 3 {
        let mut grads = unequal(t);
        if t == QUIET {
            grads[tensor].iter_mut().for_each(|g| *g *= factor);
        }
        opt.step(params.iter_mut().zip(&grads)).unwrap();
        seen.push(status(&opt));
    }
    assert!(seen[..QUIET].iter().all(|seen| !seen.norm_alarm.raised && !seen.rms_alarm.raised));
    (seen.split_off(QUIET), opt)
}

fn raised(seen: &[Status]) -> Vec<[bool; 2]> {
    seen.iter().map(|seen| [seen.norm_alarm.raised, seen.rms_alarm.raised]).collect()
}

#[test]
fn a_small_tensor_that_leaps_is_an_alarm_of_rms_alone_in_the_next_step_which_names_it() {
    let (seen, _) = of_spike(ALARM, 1, 30.0);
    assert_eq!(raised(&seen), [[false, false], [false, true], [false, false]]);
    assert_eq!((seen[1].rms_tensor, seen[2].rms_alarm.alarms), (Some(1), 1));
    // About sqrt(30^2 / v_hat), of which v_hat has 0.01 * 30^2 / (1 - 0.99^21) from this very step.
    assert!((3.5..4.5).contains(&seen[1].rms), "{}", seen[1].rms);
}

// The first gradient of a tensor is its second moment: RMS_t is 1, whatever its norm.
#[test]
fn a_large_tensor_that_begins_is_an_alarm_of_the_norm_alone() {
    let (mut opt, mut params) = (optimizer(&LENS, Some(of_both(ALARM))), params(&LENS));
    let [large, small] = &mut params[..] else { unreachable!("two tensors") };
    for t in 0..QUIET + 2 {
        let grads = unequal(t);
        let begins = t == QUIET;
        opt.step([Pair::new(&mut *large, begins.then_some(&grads[0])), Pair::new(&mut *small, &grads[1])]).unwrap();
        assert_eq!(raised(&[status(&opt)]), [[begins, false]], "{t}");
    }
}

#[test]
fn a_skipped_step_has_no_rms_and_changes_no_byte() {
    let (seen, opt) = of_spike(SKIPS, 1, 30.0);
    assert_eq!(raised(&seen), [[false, false], [false, true], [false, false]]);
    let [spike, skipped, next] = [&seen[0], &seen[1], &seen[2]];
    assert_eq!([spike, skipped, next].map(|seen| (seen.applied, seen.skipped)), [(21, 0), (21, 1), (22, 1)]);
    assert_eq!((next.rms, next.rms_tensor, next.rms_alarm.mean), (0.0, None, skipped.rms_alarm.mean));
    // The same run, in which the skipped step never was.
    let (mut without, mut p) = (optimizer(&LENS, None), params(&LENS));
    for t in (0..QUIET + 3).filter(|t| *t != QUIET + 1) {
        let mut grads = unequal(t);
        grads[1].iter_mut().for_each(|g| *g *= if t == QUIET { 30.0 } else { 1.0 });
        without.step(p.iter_mut().zip(&grads)).unwrap();
    }
    assert_eq!(states(&opt), states(&without));
}

// Without eps a gradient whose square is 0 is infinitely far above its second moment.
#[test]
fn a_tensor_whose_rms_is_not_finite_hides_no_other() {
    let mut opt = optimizer(&[1; 3], Some(of_both(ALARM)));
    opt.set_group(0, AdamWConfig { eps: 0.0, ..CONFIG }).unwrap();
    for grads in [[[1e-30], [f32::NAN], [1.0]], [[1.0]; 3]] {
        opt.step([[1.0_f32]; 3].iter_mut().zip(&grads)).unwrap();
    }
    assert_eq!((status(&opt).rms, status(&opt).rms_tensor), (1.0, Some(2)));
}

#[test]
fn an_alarm_of_rms_measures_every_step() {
    let mut opt = optimizer(&[1], Some(Control { rms_alarm: Some(ALARM), ..Default::default() }));
    opt.step([(&mut [1.0_f32], &[1.0_f32])]).unwrap();
    assert_eq!(opt.metrics().unwrap().unwrap().total.rms, 1.0);
    // It does not ask for the norm.
    assert_eq!(status(&opt).grad_norm, None);
}

// What both have goes on; what one has not begins anew.
#[test]
fn an_alarm_goes_on_where_the_control_before_was() {
    let mut opt = optimizer(&LENS, Some(of_both(ALARM)));
    let mut params = params(&LENS);
    let mut step = |opt: &mut AdamW, t| opt.step(params.iter_mut().zip(&unequal(t))).unwrap();
    (0..3).for_each(|t| step(&mut opt, t));
    let before = status(&opt);
    opt.set_control(Some(Control { max_grad_norm: Some(1.0), ..of_both(SKIPS) })).unwrap();
    assert_eq!([status(&opt).norm_alarm, status(&opt).rms_alarm], [before.norm_alarm, before.rms_alarm]);
    assert!(before.rms > 0.0 && (status(&opt).rms, status(&opt).rms_tensor) == (0.0, None));
    // The record of the control before is gone.
    step(&mut opt, 3);
    assert_eq!((status(&opt).rms, status(&opt).rms_alarm), (0.0, before.rms_alarm));
    assert_ne!(status(&opt).norm_alarm, before.norm_alarm);
    step(&mut opt, 4);
    opt.set_control(Some(of_norm(ALARM))).unwrap();
    let norm_alarm = status(&opt).norm_alarm;
    assert_eq!((status(&opt).rms_alarm, norm_alarm.raised), (AlarmStatus::default(), false));
    opt.set_control(Some(Control { norm_alarm: None, ..of_both(ALARM) })).unwrap();
    assert_eq!([status(&opt).norm_alarm, status(&opt).rms_alarm], [AlarmStatus::default(); 2]);
    assert!(norm_alarm.mean > 0.0 && status(&opt).applied == 5);
}

#[test]
fn what_is_out_of_its_range_is_named() {
    let mut opt = optimizer(&[1], None);
    let mut refused = |control: Control| opt.set_control(Some(control)).unwrap_err().to_string();
    for sigmas in [-1.0, f64::NAN, f64::INFINITY] {
        let norm_alarm = Some(Alarm { sigmas, ..ALARM });
        let error = refused(Control { norm_alarm, ..Default::default() });
        assert_eq!(error, format!("control: norm_alarm.sigmas is {sigmas}, must be in [0, inf)"));
        let error = refused(Control { rms_alarm: norm_alarm, ..Default::default() });
        assert_eq!(error, format!("control: rms_alarm.sigmas is {sigmas}, must be in [0, inf)"));
    }
    let one = Some(Alarm { steps: 1, ..ALARM });
    let error = refused(Control { norm_alarm: one, ..Default::default() });
    assert_eq!(error, "control: norm_alarm.steps is 1, must be in [2, inf)");
    let error = refused(Control { rms_alarm: one, ..Default::default() });
    assert_eq!(error, "control: rms_alarm.steps is 1, must be in [2, inf)");
}

// The small tensor's spike is not the largest gradient.
#[test]
fn the_worst_tensor_is_the_one_that_spiked() {
    for skip in [false, true] {
        let mut opt = optimizer(&LENS, Some(of_norm(Alarm { steps: 8, skip, ..Default::default() })));
        let mut params = params(&LENS);
        for t in 0..9 {
            let mut grads = grads(&LENS, t);
            grads[0].iter_mut().for_each(|g| *g *= 10.0);
            if t == 8 {
                grads[1].iter_mut().for_each(|g| *g *= 60.0);
            }
            opt.step(params.iter_mut().zip(&grads)).unwrap();
        }
        let metrics = opt.metrics().unwrap().unwrap();
        assert!(metrics.status.norm_alarm.raised && metrics.status.skipped == u64::from(skip));
        assert!(metrics.tensors[0].1.grad_norm > metrics.tensors[1].1.grad_norm);
        assert_eq!(metrics.worst().unwrap().0.to_string(), "tensor 1 (one)");
    }
}

// ---- any run ----

/// Mean, variance and count by the words of [`Alarm`]'s documentation.
#[derive(Debug, Default)]
struct Seen {
    values: Vec<f64>,
    mean: f64,
    variance: f64,
}

impl Seen {
    /// One more value: is it an alarm? One of some of the tensors alone, not `complete`, enters no mean.
    fn add(&mut self, value: f64, complete: bool, alarm: Alarm) -> bool {
        let steps = usize::try_from(alarm.steps).unwrap();
        let limit = self.mean + alarm.sigmas * self.variance.sqrt();
        let raised = self.values.len() >= steps && value > limit;
        if !complete {
            return raised;
        }
        self.values.push(if raised { limit } else { value });
        #[expect(clippy::cast_precision_loss, reason = "small numbers")]
        let (count, steps) = (self.values.len() as f64, alarm.steps as f64);
        if count <= steps {
            self.mean = self.values.iter().sum::<f64>() / count;
            self.variance = self.values.iter().map(|x| (x - self.mean).powi(2)).sum::<f64>() / count;
        } else {
            let apart = self.values[self.values.len() - 1] - self.mean;
            self.mean += apart / steps;
            self.variance = (1.0 - 1.0 / steps) * (self.variance + apart * apart / steps);
        }
        raised
    }
}

/// Of each of three tensors, the second of no elements: its gradient's size, if it has one, which may be NaN.
fn step() -> impl Strategy<Value = [Option<f32>; 3]> {
    let size = prop_oneof![8 => 0.5_f32..2.0, 1 => Just(0.0), 1 => Just(f32::NAN), 1 => Just(100.0)];
    prop::array::uniform3(prop::option::weighted(0.8, size))
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(500))]

    // RMS_t is the largest that the last record has of a tensor that was stepped; the last record is of the last step.
    #[test]
    fn it_looks_at_the_largest_rms_of_the_tensors_that_were_stepped(
        steps in prop::collection::vec(step(), 0..40),
        policy in 0..3_usize,
        skip in any::<bool>(),
    ) {
        let non_finite = [NonFinite::Propagate, NonFinite::SkipStep, NonFinite::SkipTensor][policy];
        let alarm = Alarm { sigmas: 2.0, steps: 4, skip };
        let lens = [30, 0, 7];
        let mut opt = optimizer(&lens, Some(Control { rms_alarm: Some(alarm), non_finite, ..Default::default() }));
        let (mut params, mut seen) = (params(&lens), Seen::default());
        for (t, sizes) in steps.iter().enumerate() {
            let last = opt.metrics().unwrap();
            let stepped = last.iter().flat_map(|last| &last.tensors).filter(|(_, of)| of.stepped && of.elements > 0 && of.rms.is_finite());
            let peak = stepped.map(|(id, of)| (of.rms, id.index)).reduce(|a, b| if b.0 > a.0 { b } else { a });
            let mut grads = grads(&lens, t);
            for (grad, size) in grads.iter_mut().zip(sizes) {
                grad.iter_mut().for_each(|g| *g *= size.unwrap_or(1.0));
            }
            let given = grads.iter().zip(sizes).map(|(grad, size)| size.map(|_| grad));
            let before = status(&opt);
            opt.step(params.iter_mut().zip(given)).unwrap();
            let status = status(&opt);
            if sizes == &[None; 3] {
                prop_assert_eq!(format!("{before:?}"), format!("{status:?}")); // no step
                continue;
            }
            let complete = policy != 2 || last.is_some_and(|last| last.status.non_finite == Some(0));
            let raised = peak.is_some_and(|(rms, _)| seen.add(rms, complete, alarm));
            let peak = peak.filter(|(rms, _)| *rms > 0.0);
            prop_assert_eq!((status.rms, status.rms_tensor), peak.map_or((0.0, None), |(rms, i)| (rms, Some(i))));
            prop_assert_eq!(status.rms_alarm.raised, raised);
            prop_assert!((status.rms_alarm.mean - seen.mean).abs() <= 1e-12 * (1.0 + seen.mean));
            prop_assert!((status.rms_alarm.sigma - seen.variance.sqrt()).abs() <= 1e-6 * (1.0 + seen.mean));
            let given = [sizes[0], sizes[2]].into_iter().flatten(); // the tensors with elements
            let all_bad = given.clone().any(f32::is_nan) && given.clone().all(f32::is_nan);
            let skips = (raised && skip) || (status.non_finite > Some(0) && policy == 1) || (all_bad && policy == 2);
            prop_assert_eq!(status.skipped - before.skipped, u64::from(skips));
        }
    }
}
