//! A step by sums is a step by the f32 sums of the gradients, in the order in which they came.

#![expect(clippy::unwrap_used, reason = "a test stops at the first error")]
#![expect(clippy::cast_precision_loss, reason = "values of indices")]

use fused_adamw::{AdamW, AdamWConfig, Buffer, Control, Device, Error, NonFinite, StepOptions};
use half::{bf16, f16};

const LENS: [usize; 4] = [5, 0, 70_000, 70_001];

fn value(i: usize, j: usize, t: usize) -> f32 {
    ((i * 31 + j * 7 + t * 13) % 97) as f32 / 48.0 - 1.0
}

fn tensors(t: usize) -> Vec<Vec<f32>> {
    LENS.iter().enumerate().map(|(i, &len)| (0..len).map(|j| value(i, j, t)).collect()).collect()
}

fn optimizer() -> AdamW {
    AdamW::new(&Device::cpu(), AdamWConfig::default(), LENS).unwrap()
}

#[test]
fn the_sums_are_f32_and_in_order() {
    let (mut accumulating, mut plain) = (optimizer(), optimizer());
    let (mut a, mut b) = (tensors(100), tensors(100));
    for step in 0..3 {
        let mut sums = tensors(1000).iter().map(|sum| vec![0.0_f32; sum.len()]).collect::<Vec<_>>();
        for t in 3 * step..3 * step + 3 {
            // Another dtype each time.
            let grads = tensors(t);
            let f16s: Vec<Vec<f16>> = grads.iter().map(|g| g.iter().map(|&x| f16::from_f32(x)).collect()).collect();
            let bf16s: Vec<Vec<bf16>> = grads.iter().map(|g| g.iter().map(|&x| bf16::from_f32(x)).collect()).collect();
            let widened: Vec<Vec<f32>> = match t % 3 {
                0 => grads.clone(),
                1 => f16s.iter().map(|g| g.iter().map(|x| x.to_f32()).collect()).collect(),
                _ => bf16s.iter().map(|g| g.iter().map(|x| x.to_f32()).collect()).collect(),
            };
            match t % 3 {
                0 => accumulating.accumulate(&grads).unwrap(),
                1 => accumulating.accumulate(&f16s).unwrap(),
                _ => accumulating.accumulate(&bf16s).unwrap(),
            }
            sums.iter_mut().flatten().zip(widened.iter().flatten()).for_each(|(sum, g)| *sum += g);
        }
        let options = StepOptions { grad_scale: 1.0 / 3.0 };
        accumulating.step_accumulated(options, &mut a).unwrap();
        plain.step_with(options, b.iter_mut().zip(&sums)).unwrap();
    }
    assert!(a == b);
    (0..LENS.len()).for_each(|i| assert!(accumulating.state(i).unwrap() == plain.state(i).unwrap()));
}

// The first gradient of one tensor is the second of another.
#[test]
fn tensors_may_miss_some_passes_or_all() {
    let (mut accumulating, mut plain) = (optimizer(), optimizer());
    let (mut a, mut b) = (tensors(100), tensors(100));
    for step in 0..4 {
        let mut sums: Vec<Option<Vec<f32>>> = vec![None; LENS.len()];
        for pass in 0..3 {
            let grads = tensors(3 * step + pass);
            let has = |i: usize| (i + pass + step).is_multiple_of(3) || (i == 2 && pass == 2);
            accumulating.accumulate(grads.iter().enumerate().map(|(i, g)| has(i).then_some(g))).unwrap();
            for (i, grad) in grads.into_iter().enumerate().filter(|(i, _)| has(*i)) {
                match &mut sums[i] {
                    None => sums[i] = Some(grad),
                    Some(sum) => sum.iter_mut().zip(grad).for_each(|(sum, g)| *sum += g),
                }
            }
        }
        accumulating.step_accumulated(StepOptions::default(), &mut a).unwrap();
        plain.step(b.iter_mut().zip(sums.iter().map(Option::as_ref))).unwrap();
    }
    assert!(a == b);
}

#[test]
fn without_a_sum_there_is_no_gradient() {
    let mut opt = optimizer();
    let mut params = tensors(0);
    let no_sums = |opt: &mut AdamW, params: &mut Vec<Vec<f32>>| {
        let error = opt.step_accumulated(StepOptions::default(), params).unwrap_err();
        assert!(matches!(error, Error::NoSums), "{error}");
    };
    no_sums(&mut opt, &mut params);
    // A batch in which no tensor had a gradient.
    opt.accumulate([None::<&[f32]>; 4]).unwrap();
    opt.step(params.iter_mut().map(|param| (param, None::<&[f32]>))).unwrap(); // nothing waits
    opt.step_accumulated(StepOptions::default(), &mut params).unwrap();
    assert!(params == tensors(0) && opt.state(0).unwrap().step == 0);
    no_sums(&mut opt, &mut params);
    opt.accumulate(&tensors(1)).unwrap();
    opt.step_accumulated(StepOptions::default(), &mut params).unwrap();
    no_sums(&mut opt, &mut params); // they have been used
    assert_eq!(opt.state(0).unwrap().step, 1);
    // A list without tensors, and one without elements.
    for lens in [vec![], vec![0]] {
        let mut opt = AdamW::new(&Device::cpu(), AdamWConfig::default(), &lens).unwrap();
        let mut params: Vec<Vec<f32>> = lens.iter().map(|_| vec![]).collect();
        no_sums(&mut opt, &mut params);
        opt.accumulate(&params).unwrap();
        opt.step_accumulated(StepOptions::default(), &mut params).unwrap();
        no_sums(&mut opt, &mut params);
    }
}

// The sums of a batch would be added to those of the next one.
#[test]
fn a_step_by_other_gradients_is_refused_while_sums_wait() {
    let mut opt = AdamW::new(&Device::cpu(), AdamWConfig::default(), [1, 1]).unwrap();
    let (mut params, grads) = ([[1.0_f32]; 2], [[1.0_f32]; 2]);
    // SAFETY: (both) the tensors stay where they are, and are used between steps alone.
    unsafe { opt.prepare(params.iter_mut().zip(&grads)).unwrap() };
    opt.step_prepared(StepOptions::default()).unwrap();
    opt.accumulate([None, Some(&[1.0_f32])]).unwrap();
    let before = ([0, 1].map(|i| opt.state(i).unwrap()), params);
    for _ in 0..2 {
        let refused = [
            opt.step(params.iter_mut().zip(&grads)),
            opt.step_with(StepOptions::default(), params.iter_mut().zip(&grads)),
            opt.step_prepared(StepOptions::default()),
            // SAFETY: see above.
            unsafe { opt.prepare(params.iter_mut().zip(&grads)) },
        ];
        let is_told =
            |result: &Result<(), Error>| matches!(result, Err(Error::SumsPending { tensor }) if tensor.index == 1);
        assert!(refused.iter().all(is_told), "{refused:?}");
    }
    assert_eq!(([0, 1].map(|i| opt.state(i).unwrap()), params), before);
    opt.step_accumulated(StepOptions::default(), &mut params).unwrap();
    assert_eq!([0, 1].map(|i| opt.state(i).unwrap().step), [1, 2]);
    opt.step(params.iter_mut().zip(&grads)).unwrap();
    opt.accumulate([&[1.0_f32], &[1.0]]).unwrap();
    opt.step_accumulated(StepOptions::default(), &mut params).unwrap();
    assert_eq!([0, 1].map(|i| opt.state(i).unwrap().step), [3, 4]);
}

#[test]
fn sums_that_are_dropped_are_not_added_to_the_next() {
    let mut opt = AdamW::new(&Device::cpu(), AdamWConfig::default(), [1, 1]).unwrap();
    let mut params = [[1.0_f32]; 2];
    opt.clear_accumulated(); // nothing
    opt.accumulate([&[f32::NAN], &[f32::NAN]]).unwrap();
    opt.clear_accumulated();
    let error = opt.step_accumulated(StepOptions::default(), &mut params).unwrap_err();
    assert!(matches!(error, Error::NoSums), "{error}");
    opt.step(params.iter_mut().zip(&[[0.0_f32]; 2])).unwrap();
    opt.accumulate([Some(&[1.0_f32]), None]).unwrap();
    opt.step_accumulated(StepOptions::default(), &mut params).unwrap();
    assert_eq!([0, 1].map(|i| opt.state(i).unwrap().m), [vec![0.1], vec![0.0]]);
    assert_eq!([0, 1].map(|i| opt.state(i).unwrap().step), [2, 1]);
}

#[test]
fn a_skipped_step_uses_the_sums_up() {
    let mut opt = AdamW::new(&Device::cpu(), AdamWConfig::default(), [1]).unwrap();
    opt.set_control(Some(Control { non_finite: NonFinite::SkipStep, ..Default::default() })).unwrap();
    let mut p = [1.0_f32];
    for g in [f32::NAN, 1.0] {
        opt.accumulate([&[g]]).unwrap();
    }
    opt.step_accumulated(StepOptions::default(), [&mut p]).unwrap();
    assert_eq!((p, opt.state(0).unwrap().step), ([1.0], 0));
    opt.accumulate([&[1.0_f32]]).unwrap();
    opt.step_accumulated(StepOptions::default(), [&mut p]).unwrap();
    assert_eq!((opt.state(0).unwrap().m, opt.state(0).unwrap().step), (vec![0.1], 1));
}

#[test]
fn what_does_not_fit_changes_nothing() {
    let mut opt = AdamW::new(&Device::cpu(), AdamWConfig::default(), [2, 1]).unwrap();
    let error = opt.accumulate([&[1.0_f32, 2.0][..]]).unwrap_err();
    assert!(matches!(error, Error::TensorCount { expected: 2, actual: 1, .. }), "{error}");
    let error = opt.accumulate([&[1.0_f32, 2.0][..], &[1.0, 2.0]]).unwrap_err();
    assert!(matches!(&error, Error::Length { buffer: Buffer::Grad, expected: 1, actual: 2, .. }), "{error}");
    opt.accumulate([&[1.0_f32, 2.0][..], &[3.0]]).unwrap();
    let error = opt.step_accumulated(StepOptions::default(), [&mut [0.0_f32; 2][..]]).unwrap_err();
    assert!(matches!(error, Error::TensorCount { expected: 2, actual: 1, .. }), "{error}");
    let error = opt.step_accumulated(StepOptions::default(), [&mut [0.0_f32; 2][..], &mut [0.0; 2]]).unwrap_err();
    assert!(matches!(&error, Error::Length { buffer: Buffer::Param, .. }), "{error}");
    opt.step_accumulated(StepOptions::default(), [&mut [0.0_f32; 2][..], &mut [0.0]]).unwrap();
    assert_eq!([0, 1].map(|i| opt.state(i).unwrap().m), [vec![0.1, 0.2], vec![0.3]]);
}
