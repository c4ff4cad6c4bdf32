//! Numbers that the update's f32 arithmetic could not hold, refused where the user sets them; and controls that would do
//! nothing, or too much.

use fused_adamw::{
    AdamW, AdamWConfig, Alarm, Algorithm, Control, Decay, Device, Error, LossScale, NonFinite, Schedule, StepOptions,
};

const CONFIG: AdamWConfig = AdamWConfig {
    lr: 1e-3,
    betas: (0.9, 0.999),
    eps: 1e-8,
    weight_decay: 0.0,
    amsgrad: false,
    maximize: false,
    algorithm: Algorithm::AdamW,
};

fn skipping(non_finite: NonFinite) -> Control {
    Control { non_finite, ..Default::default() }
}

fn refused(config: AdamWConfig) -> String {
    AdamW::new(&Device::cpu(), config, [1]).unwrap_err().to_string()
}

#[test]
fn a_hyper_parameter_without_an_f32_is_named() {
    let as_f32 = "must be in [0, inf), as f32";
    assert_eq!(refused(AdamWConfig { lr: 1e39, ..CONFIG }), format!("group 0: lr is 1e39, {as_f32}"));
    assert!(refused(AdamWConfig { lr: 1e300, ..CONFIG }).contains("lr is"));
    for algorithm in [Algorithm::AdamW, Algorithm::Adam] {
        let error = refused(AdamWConfig { weight_decay: 1e39, algorithm, ..CONFIG });
        assert_eq!(error, format!("group 0: weight_decay is 1e39, {as_f32}"));
    }
    assert!(refused(AdamWConfig { lr: 1e20, weight_decay: 1e20, ..CONFIG }).contains("lr * weight_decay"));
    assert!(refused(AdamWConfig { lr: 1e38, betas: (0.999, 0.999), ..CONFIG }).contains("lr / (1 - betas.0)"));
    assert!(refused(AdamWConfig { eps: 1e-46, ..CONFIG }).contains("eps is 1e-46"));
    assert!(refused(AdamWConfig { eps: 1e39, ..CONFIG }).contains("eps is"));
    for config in [
        AdamWConfig { eps: 1e-45, ..CONFIG },
        AdamWConfig { eps: 0.0, ..CONFIG },
        AdamWConfig { lr: 3e37, ..CONFIG },
        AdamWConfig { lr: 1e20, weight_decay: 1e20, algorithm: Algorithm::Adam, ..CONFIG },
    ] {
        AdamW::new(&Device::cpu(), config, [1]).unwrap();
    }
}

#[test]
fn a_schedule_or_a_multiplier_without_an_f32_is_refused_and_changes_nothing() {
    let mut opt = AdamW::new(&Device::cpu(), CONFIG, [1]).unwrap();
    let listed = |factors: &[f64]| Control {
        schedule: Schedule { warmup: 0, decay: Decay::List(factors.into()) },
        ..Default::default()
    };
    let error = opt.set_control(Some(listed(&[1.0, 1e300]))).unwrap_err().to_string();
    assert!(error.contains("schedule.decay.List is 1e300"), "{error}");
    assert!(opt.set_control(Some(listed(&[1.0, f64::INFINITY]))).is_err() && opt.control().is_none());
    // Each has an f32, their product has none: whichever comes last.
    opt.set_lr(1e10).unwrap();
    let error = opt.set_control(Some(listed(&[1e30, 1.0]))).unwrap_err();
    assert!(
        matches!(error, Error::Config { group: 0, .. }) && error.to_string().contains("with the schedule's factor")
    );
    opt.set_lr(1e-3).unwrap();
    opt.set_control(Some(listed(&[1e30, 1.0]))).unwrap();
    assert!(opt.set_lr(1e10).is_err());
    assert_eq!(opt.groups()[0].lr, 1e-3);
    for grad_scale in [1e39, f64::INFINITY, f64::NAN, -1e-300] {
        let error = opt.step_with(StepOptions { grad_scale }, [(&mut [1.0_f32], &[1.0_f32])]).unwrap_err();
        assert!(matches!(error, Error::GradScale { value } if value.to_bits() == grad_scale.to_bits()));
        assert!(error.to_string().ends_with("must be in [0, inf), as f32"));
    }
    assert_eq!(opt.state(0).unwrap().step, 0);
}

#[test]
fn controls_that_would_do_nothing_or_too_much_are_refused() {
    let mut opt = AdamW::new(&Device::cpu(), CONFIG, [1]).unwrap();
    let mut refused = |control: Control| opt.set_control(Some(control)).unwrap_err();
    let error = refused(Control { max_skipped: Some(3), ..Default::default() });
    assert!(matches!(error, Error::MaxSkippedWithoutSkip) && error.to_string().contains("NonFinite::SkipStep"));
    let decay = Decay::Linear { start: 9, end: 100, floor: 0.0 };
    let error = refused(Control { schedule: Schedule { warmup: 10, decay }, ..Default::default() });
    assert!(matches!(error, Error::DecayInWarmup { start: 9, warmup: 10 }), "{error}");
    let scale = |scale| Control { loss_scale: Some(scale), ..skipping(NonFinite::SkipStep) };
    for min_scale in [0.0, -1.0, f32::NAN, f32::INFINITY, f32::MIN_POSITIVE / 2.0] {
        let error = refused(scale(LossScale { min_scale, ..Default::default() })).to_string();
        assert!(error.contains("loss_scale.min_scale is") && error.contains("[2^-126, inf)"), "{error}");
    }
    for (growth, backoff) in [(0.99, 0.5), (f64::INFINITY, 0.5), (2.0, 0.0), (2.0, 1.01), (2.0, -0.5)] {
        let scale = LossScale { growth_factor: growth, backoff_factor: backoff, ..Default::default() };
        assert!(opt.set_control(Some(Control { loss_scale: Some(scale), ..skipping(NonFinite::SkipStep) })).is_err());
    }
    for (growth, backoff) in [(1.0, 0.5), (2.0, 1.0)] {
        let scale = LossScale { growth_factor: growth, backoff_factor: backoff, ..Default::default() };
        opt.set_control(Some(Control { loss_scale: Some(scale), ..skipping(NonFinite::SkipStep) })).unwrap();
    }
    for floor in [-0.1, 1.1, f64::NAN] {
        let decay = Decay::Linear { start: 0, end: 5, floor };
        assert!(
            opt.set_control(Some(Control { schedule: Schedule { warmup: 0, decay }, ..Default::default() })).is_err()
        );
    }
    let decay = Decay::List([1.0, -0.1].into());
    assert!(opt.set_control(Some(Control { schedule: Schedule { warmup: 0, decay }, ..Default::default() })).is_err());
    let alarm = Some(Alarm { skip: true, ..Default::default() });
    opt.set_control(Some(Control { max_skipped: Some(3), norm_alarm: alarm, ..Default::default() })).unwrap();
}
