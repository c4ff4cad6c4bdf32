//! The learning rate of one group, of all groups, and of the next step.

#![expect(clippy::unwrap_used, reason = "a test stops at the first error")]

use fused_adamw::{AdamW, AdamWConfig, Control, Decay, Device, Error, NonFinite, Schedule, TensorSpec};

fn config(lr: f64) -> AdamWConfig {
    AdamWConfig { lr, weight_decay: 0.0, ..Default::default() }
}

/// Three groups, a tensor in each.
fn optimizer(lrs: [f64; 3]) -> AdamW {
    AdamW::with_groups(&Device::cpu(), &lrs.map(config), (0..3).map(|i| TensorSpec::new(1).group(i))).unwrap()
}

fn lrs(opt: &AdamW) -> [f64; 3] {
    [0, 1, 2].map(|i| opt.groups()[i].lr)
}

/// The parameters after a step from 1 by a gradient of 1.
fn stepped(opt: &mut AdamW) -> [[f32; 1]; 3] {
    let mut params = [[1.0_f32]; 3];
    opt.step(params.iter_mut().zip(&[[1.0_f32]; 3])).unwrap();
    params
}

#[test]
fn a_factor_keeps_the_ratios_of_the_groups() {
    for control in [None, Some(Control::default())] {
        let mut opt = optimizer([1e-3, 1e-2, 0.0]);
        opt.set_control(control).unwrap();
        opt.scale_lr(0.1).unwrap();
        assert_eq!(lrs(&opt), [1e-3 * 0.1, 1e-2 * 0.1, 0.0]);
        assert_eq!(stepped(&mut opt), stepped(&mut optimizer([1e-3 * 0.1, 1e-2 * 0.1, 0.0])));
        opt.scale_lr(0.0).unwrap();
        assert_eq!((lrs(&opt), stepped(&mut opt)), ([0.0; 3], [[1.0]; 3]));
    }
}

#[test]
fn a_groups_learning_rate_is_its_own() {
    for control in [None, Some(Control::default())] {
        let mut opt = optimizer([1e-3, 1e-2, 1e-1]);
        opt.set_control(control).unwrap();
        opt.set_group_lr(1, 0.5).unwrap();
        assert_eq!(lrs(&opt), [1e-3, 0.5, 1e-1]);
        assert_eq!(stepped(&mut opt), stepped(&mut optimizer([1e-3, 0.5, 1e-1])));
        let other = AdamWConfig { betas: (0.5, 0.5), amsgrad: false, ..config(0.5) };
        opt.set_group(1, other).unwrap();
        opt.set_group_lr(1, 0.25).unwrap();
        assert_eq!(opt.groups()[1], AdamWConfig { lr: 0.25, ..other });
    }
}

#[test]
fn out_of_its_range_no_group_changes() {
    let mut opt = optimizer([1e-3, 0.0, 1e30]);
    for factor in [f64::NAN, -0.5, f64::INFINITY] {
        let error = opt.scale_lr(factor).unwrap_err();
        assert!(matches!(error, Error::LrFactor { value } if value.to_bits() == factor.to_bits()), "{error}");
    }
    let error = opt.scale_lr(1e10).unwrap_err();
    assert!(matches!(error, Error::Config { field: "lr", group: 2, .. }), "{error}");
    for lr in [f64::NAN, -1.0, f64::INFINITY] {
        let error = opt.set_group_lr(1, lr).unwrap_err();
        assert!(matches!(error, Error::Config { field: "lr", group: 1, .. }), "{error}");
    }
    let error = opt.set_group_lr(3, 0.1).unwrap_err();
    assert!(matches!(error, Error::GroupIndex { tensor: None, group: 3, groups: 3 }), "{error}");
    assert!(matches!(opt.effective_lr(3), Err(Error::GroupIndex { group: 3, .. })));
    assert_eq!(lrs(&opt), [1e-3, 0.0, 1e30]);
}

#[test]
fn the_effective_rate_is_that_of_the_next_step() {
    let mut opt = optimizer([0.5, 0.25, 0.0]);
    let effective = |opt: &AdamW| [0, 1, 2].map(|i| opt.effective_lr(i).unwrap());
    assert_eq!(effective(&opt), [0.5, 0.25, 0.0]);
    let schedule = Schedule { warmup: 2, decay: Decay::Linear { start: 2, end: 4, floor: 0.25 } };
    opt.set_control(Some(Control { schedule, non_finite: NonFinite::SkipStep, ..Default::default() })).unwrap();
    for factor in [0.5, 1.0, 1.0, 0.625, 0.25, 0.25] {
        assert_eq!(effective(&opt), [0.5 * factor, 0.25 * factor, 0.0]);
        // A skipped step does not count.
        opt.step([[1.0_f32]; 3].iter_mut().zip(&[[f32::NAN]; 3])).unwrap();
        assert_eq!(effective(&opt), [0.5 * factor, 0.25 * factor, 0.0]);
        let expected = effective(&opt);
        stepped(&mut opt);
        assert_eq!(opt.status().unwrap().unwrap().lr_factor * 0.5, expected[0]);
    }
    opt.scale_lr(2.0).unwrap();
    assert_eq!(effective(&opt), [0.25, 0.125, 0.0]);
    opt.set_control(None).unwrap();
    assert_eq!(effective(&opt), [1.0, 0.5, 0.0]);
}
