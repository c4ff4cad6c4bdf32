//! A controlled step on the device: the CPU's bits, and what it costs.

use std::sync::Arc;

use fused_adamw::cudarc::driver::CudaContext;
use fused_adamw::cudarc::driver::sys::CUresult;
use fused_adamw::{
    AdamW, AdamWConfig, Control, Decay, Device, Dtype, Error, LossScale, NonFinite, Schedule, StepOptions,
};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use crate::controlled::{ALL, assert_same, control, set};
use crate::driver::{calls, counts, each_driver, emulated, fail, has_failed, is_sanitized, traffic};
use crate::twins::{DTYPES, LENGTHS, Shape, Twins, Values};

const LAUNCHES: fn(usize) -> (&'static str, usize) = |n| ("cuLaunchKernel", n);
const ASKED: (&str, usize) = ("cuStreamIsCapturing", 1);

/// Makes the gradient of a tensor not finite, on both devices.
fn spoil(twins: &mut Twins, i: usize) {
    let len = twins.tensors[i].shape.len;
    let bits = if twins.tensors[i].shape.grad == Dtype::F32 { 0x7f80_0000 } else { 0x7fff };
    twins.set_grad(i, vec![bits; len]);
}

#[test]
fn the_bits_are_the_cpus_whatever_the_control_decides() {
    each_driver(|| {
        for non_finite in [NonFinite::SkipStep, NonFinite::SkipTensor, NonFinite::Error] {
            let shape = |(i, len): (usize, usize)| Shape {
                param_at: i % 5,
                grad_at: i % 9,
                group: i % 2,
                ..Shape::new(len, DTYPES[i % 3], DTYPES[i / 3 % 3])
            };
            let groups = [AdamWConfig::default(), AdamWConfig { lr: 1e-2, amsgrad: true, ..Default::default() }];
            let mut twins = Twins::new(&groups, LENGTHS.into_iter().enumerate().map(shape));
            set(&mut twins, &control(non_finite));
            for step in 0..14 {
                twins.new_grads();
                if [0, 5, 6, 13].contains(&step) {
                    spoil(&mut twins, 3 + step);
                    spoil(&mut twins, 23 + step % 3); // in several chunks
                }
                let has_grad = |i: usize| !(i + step).is_multiple_of(7);
                twins.gpu_step(ALL, has_grad).unwrap();
                twins.cpu_step(ALL, has_grad).unwrap();
                assert_same(&twins);
            }
        }
    });
}

#[test]
fn the_norm_of_any_bits_whatsoever() {
    each_driver(|| {
        let shapes = DTYPES.into_iter().flat_map(|dtype| [1, 5000].map(|len| Shape::new(len, Dtype::F32, dtype)));
        for non_finite in [NonFinite::Propagate, NonFinite::SkipTensor] {
            let groups = [AdamWConfig::default()];
            let mut twins = Twins::with_values(Values::Wild, &groups, shapes.clone());
            set(&mut twins, &Control { loss_scale: None, ..control(non_finite) });
            for _ in 0..3 {
                twins.step();
                assert_same(&twins);
            }
        }
    });
}

#[test]
fn every_schedule() {
    each_driver(|| {
        for decay in [
            Decay::Constant,
            Decay::Linear { start: 4, end: 6, floor: 0.5 },
            Decay::InverseSqrt,
            Decay::List([1.0, 0.3, 0.7].into()),
        ] {
            let mut twins = Twins::new(&[AdamWConfig::default()], [Shape::f32(70)]);
            set(&mut twins, &Control { schedule: Schedule { warmup: 2, decay }, ..Default::default() });
            for _ in 0..8 {
                twins.step();
                assert_same(&twins);
            }
        }
    });
}

// More chunks than the block that adds them up has threads, and more classes.
#[test]
fn long_lists() {
    each_driver(|| {
        let groups: Vec<_> = (1..=100).map(|i| AdamWConfig { lr: 1e-3 * f64::from(i), ..Default::default() }).collect();
        let shapes = (0..1500).map(|i| Shape { group: i % 100, ..Shape::f32(1 + i % 40) });
        let mut twins = Twins::new(&groups, shapes);
        set(&mut twins, &control(NonFinite::SkipTensor));
        for step in 0..3 {
            twins.new_grads();
            spoil(&mut twins, 1400 + step);
            twins.gpu_step(ALL, |i| i % 3 != step).unwrap();
            twins.cpu_step(ALL, |i| i % 3 != step).unwrap();
        }
        assert_same(&twins);
    });
}

#[test]
fn a_step_is_at_most_three_launches_and_no_other_call() {
    emulated(&[], || {
        for (tensors, groups) in [(1, 1), (1000, 1), (1000, 100), (10_000, 100)] {
            for (control, launches) in [
                (Control::default(), 2),
                (Control { schedule: control(NonFinite::Error).schedule, ..Default::default() }, 2),
                (control(NonFinite::SkipStep), 3),
                (control(NonFinite::SkipTensor), 3),
            ] {
                let config = |i: u8| AdamWConfig { lr: 1e-3 * (1.0 + f64::from(i)), ..Default::default() };
                let configs: Vec<_> = (0..groups).map(config).collect();
                let group = |i: usize| i % usize::from(groups);
                let shapes = (1..=tensors).map(|i| Shape { group: group(i), ..Shape::f32(i % 7) });
                let mut twins = Twins::new(&configs, shapes);
                twins.gpu.set_control(Some(control)).unwrap();
                twins.gpu_step(ALL, |_| true).unwrap();
                let calls = calls(|| twins.gpu_step(ALL, |_| true).unwrap());
                assert_eq!(calls, counts([LAUNCHES(launches), ASKED]), "{tensors} tensors");
            }
        }
    });
}

// Parameter, gradient, m, v; three of them back; and for the norm the gradient once more. Up to 12 thousandths for the tables,
// of which each block of 1,024 elements reads its rows.
#[test]
fn bytes_an_element_by_the_kernels_own_loads_and_stores() {
    emulated(&[], || {
        const LEN: u64 = 1 << 20;
        // Of the norm's 64 parts of 128 bytes, each word is read, read beside its part's largest sum, and cleared.
        const PARTS: u64 = 3 * 64 * 128;
        let clip = Some(Control { max_grad_norm: Some(1.0), ..control(NonFinite::SkipStep) });
        for (param, grad, control, bytes) in [
            (Dtype::F32, Dtype::F32, None, 28),
            (Dtype::F32, Dtype::F32, Some(Control::default()), 28),
            (Dtype::F32, Dtype::F32, clip.clone(), 32),
            (Dtype::BF16, Dtype::BF16, None, 28),
            (Dtype::BF16, Dtype::BF16, clip, 30),
        ] {
            let mut twins = Twins::new(&[AdamWConfig::default()], [Shape::new(1 << 20, param, grad)]);
            twins.gpu.set_control(control).unwrap();
            (0..2).for_each(|_| twins.gpu_step(ALL, |_| true).unwrap());
            traffic();
            twins.gpu_step(ALL, |_| true).unwrap();
            let (loads, stores) = traffic();
            if is_sanitized() {
                return; // the emulator is then not told of accesses
            }
            let parts = if bytes == 30 || bytes == 32 { PARTS } else { 0 };
            let more = (loads + stores).checked_sub(bytes * LEN + parts).expect("every element is read and written");
            assert!(more * 1000 <= bytes * LEN * 12, "{more} bytes more than {bytes} an element: {loads} and {stores}");
        }
    });
}

// A new learning rate is a copy when it is set, and then no more.
#[test]
fn a_new_learning_rate_costs_one_copy() {
    emulated(&[], || {
        let mut twins = Twins::new(&[AdamWConfig::default()], [Shape::f32(70)]);
        set(&mut twins, &control(NonFinite::SkipStep));
        twins.step();
        let upload = counts([("cuMemcpyHtoDAsync_v2", 1), ASKED]);
        assert_eq!(calls(|| twins.gpu.set_lr(0.5).unwrap()), upload);
        twins.cpu.set_lr(0.5).unwrap();
        assert_eq!(calls(|| twins.gpu_step(ALL, |_| true).unwrap()), counts([LAUNCHES(3), ASKED]));
        twins.cpu_step(ALL, |_| true).unwrap();
        assert_same(&twins);
    });
}

#[test]
fn setting_a_control_and_dropping_it_leaks_nothing() {
    emulated(&[], || {
        let device = Device::cuda_at(0).unwrap();
        let mut opt = AdamW::new(&device, AdamWConfig::default(), [5, 7]).unwrap();
        let before = crate::driver::allocations();
        opt.set_control(Some(control(NonFinite::SkipTensor))).unwrap();
        assert!(crate::driver::allocations() > before);
        opt.set_control(None).unwrap();
        assert_eq!(crate::driver::allocations(), before);
    });
}

// A number that other work on the device makes.
#[test]
fn a_multiplier_on_the_device() {
    each_driver(|| {
        let mut twins = Twins::new(&[AdamWConfig::default()], [Shape::f32(3000)]);
        let stream = twins.gpu.device().stream().unwrap().clone();
        let scalar = Arc::new(stream.clone_htod(&[0.125_f32]).unwrap());
        assert!(matches!(twins.gpu.scale_grads_by(Some(scalar.clone())), Err(Error::NoControl)));
        set(&mut twins, &control(NonFinite::SkipStep));
        twins.gpu.scale_grads_by(Some(scalar)).unwrap();
        for _ in 0..3 {
            twins.new_grads();
            twins.gpu_step(StepOptions { grad_scale: 3.0 }, |_| true).unwrap();
            twins.cpu_step(StepOptions { grad_scale: 3.0 * 0.125 }, |_| true).unwrap();
            assert_same(&twins);
        }
        twins.gpu.scale_grads_by(None).unwrap();
        twins.step();
        assert_same(&twins);
    });
}

#[test]
fn a_multiplier_that_does_not_fit() {
    emulated(&[("EMULATED_DEVICES", "2")], || {
        let mut twins = Twins::new(&[AdamWConfig::default()], [Shape::f32(3)]);
        set(&mut twins, &control(NonFinite::SkipStep));
        let two = Arc::new(twins.gpu.device().stream().unwrap().clone_htod(&[1.0_f32; 2]).unwrap());
        assert!(matches!(twins.gpu.scale_grads_by(Some(two)), Err(Error::ScalarLength { actual: 2 })));
        for ordinal in [0, 1] {
            let elsewhere = CudaContext::new(ordinal).unwrap().default_stream();
            let scalar = Arc::new(elsewhere.clone_htod(&[1.0_f32]).unwrap());
            for opt in [&mut twins.gpu, &mut twins.cpu] {
                let error = opt.scale_grads_by(Some(scalar.clone())).unwrap_err();
                assert!(matches!(error, Error::ScalarDevice { .. }), "{error}");
            }
        }
        twins.step();
        assert_same(&twins);
    });
}

fn any_control(rng: &mut StdRng) -> Control {
    let decays = [
        Decay::Constant,
        Decay::Cosine { end: 6, floor: 0.1 },
        Decay::Linear { start: 3, end: 5, floor: 0.5 },
        Decay::InverseSqrt,
        Decay::List([0.5, 2.0].into()),
    ];
    let policies = [NonFinite::Propagate, NonFinite::SkipStep, NonFinite::SkipTensor, NonFinite::Error];
    let non_finite = policies[rng.random_range(0..4)];
    let scale = LossScale { init_scale: 8.0, growth_interval: rng.random_range(1..4), ..Default::default() };
    Control {
        max_grad_norm: rng.random::<bool>().then(|| rng.random_range(0.1..10.0)),
        non_finite,
        loss_scale: (non_finite != NonFinite::Propagate && rng.random()).then_some(scale),
        schedule: Schedule { warmup: rng.random_range(0..3), decay: decays[rng.random_range(0..5)].clone() },
        max_grad_value: rng.random::<bool>().then_some(0.5),
        ..Default::default()
    }
}

// Skips, groups, missing gradients, schedules, other controls and none, in any order.
#[test]
fn a_thousand_random_runs() {
    each_driver(|| {
        let mut rng = StdRng::seed_from_u64(7);
        let groups = [AdamWConfig::default(), AdamWConfig { lr: 1e-2, ..Default::default() }];
        for run in 0..1000 {
            let shape =
                |i: usize| Shape { group: i % 2, ..Shape::new(1 + i * 4, DTYPES[i % 3], DTYPES[(i + run) % 3]) };
            let mut twins = Twins::new(&groups, (0..3).map(shape));
            for _ in 0..rng.random_range(1..7) {
                if rng.random_range(0..3) == 0 {
                    let control = (rng.random_range(0..5) > 0).then(|| any_control(&mut rng));
                    twins.cpu.set_control(control.clone()).and_then(|()| twins.gpu.set_control(control)).unwrap();
                }
                twins.new_grads();
                if rng.random_range(0..4) == 0 {
                    twins.spoil_in_place(rng.random_range(0..3));
                }
                let missing = rng.random_range(0..6);
                twins.gpu_step(ALL, |i| i != missing).unwrap();
                twins.cpu_step(ALL, |i| i != missing).unwrap();
            }
            assert_same(&twins);
        }
    });
}

// The decision has been launched when the update fails to be: it is taken back.
#[test]
fn every_call_of_a_controlled_step_may_fail() {
    emulated(&[], || {
        let shapes = DTYPES.map(|dtype| Shape { param_at: 1, ..Shape::new(70, dtype, dtype) });
        let mut twins = Twins::new(&[AdamWConfig::default()], shapes);
        set(&mut twins, &control(NonFinite::SkipTensor));
        let mut failures = 0;
        for k in 1.. {
            twins.new_grads();
            // Another class, another table: uploads, too, may fail.
            let has_grad = |i: usize| i != k % 4;
            let before = (twins.gpu_bits(), twins.gpu.status().unwrap());
            fail("*", k.div_ceil(2), CUresult::CUDA_ERROR_ECC_UNCORRECTABLE);
            let result = twins.gpu_step(ALL, has_grad);
            let failed = has_failed();
            if result.is_err() {
                failures += 1;
                assert!(failed && before == (twins.gpu_bits(), twins.gpu.status().unwrap()), "call {k}");
                twins.gpu_step(ALL, has_grad).unwrap();
            }
            twins.cpu_step(ALL, has_grad).unwrap();
            assert_same(&twins);
            if !failed {
                break;
            }
        }
        assert!(failures > 2 * 6, "{failures}");
    });
}

#[test]
fn the_loss_scale_lies_where_it_is_said_to() {
    each_driver(|| {
        let mut twins = Twins::new(&[AdamWConfig::default()], [Shape::f32(3)]);
        assert_eq!(twins.gpu.loss_scale_address(), None);
        set(&mut twins, &control(NonFinite::SkipStep));
        spoil(&mut twins, 0);
        twins.gpu_step(ALL, |_| true).unwrap();
        let stream = twins.gpu.device().stream().unwrap();
        let address = twins.gpu.loss_scale_address().unwrap();
        // SAFETY: one f32 of the optimizer's, which lives until it is given back.
        let on_gpu = unsafe { stream.upgrade_device_ptr::<f32>(address, 1) };
        assert_eq!(stream.clone_dtoh(&on_gpu).unwrap(), [2.0]);
        assert_eq!(on_gpu.leak(), address);
    });
}

// What the norm multiplies by is 1 then, and no other bit changes.
#[test]
fn a_norm_below_the_limit_leaves_the_bits_of_a_step_that_is_not_clipped() {
    each_driver(|| {
        let shapes = DTYPES.map(|dtype| Shape::new(3000, dtype, dtype));
        let mut twins = Twins::new(&[AdamWConfig::default()], shapes);
        twins.gpu.set_control(Some(Control { max_grad_norm: Some(1e6), ..Default::default() })).unwrap();
        for _ in 0..3 {
            twins.step(); // on the CPU the plain one
            twins.assert_same();
        }
        assert_eq!(twins.gpu.status().unwrap().unwrap().grad_scale, 1.0);
    });
}

// 1e20 is an f32, its square is none; 1e160 would do for the f64 that the chunks are added in.
#[test]
fn finite_gradients_whose_squares_are_not_are_skipped() {
    each_driver(|| {
        let mut twins = Twins::new(&[AdamWConfig::default()], [Shape::f32(9000), Shape::f32(70)]);
        set(&mut twins, &Control { non_finite: NonFinite::SkipStep, ..Default::default() });
        for bits in [1e20_f32, -3e38, 1.0].map(f32::to_bits) {
            twins.new_grads();
            twins.set_grad(1, vec![bits; 70]);
            let before = twins.gpu_bits();
            twins.gpu_step(ALL, |_| true).unwrap();
            twins.cpu_step(ALL, |_| true).unwrap();
            let skipped = bits != 1.0_f32.to_bits();
            assert_eq!(twins.gpu_bits() == before, skipped);
            assert_same(&twins);
        }
        let status = twins.gpu.status().unwrap().unwrap();
        assert_eq!((status.applied, status.skipped, status.non_finite), (1, 2, Some(0)));
    });
}

// Nothing to update, but a step: its norm is 0, and it counts.
#[test]
fn a_list_without_elements_is_a_step_of_its_decision_alone() {
    emulated(&[], || {
        for more in [None, Some(1.0)] {
            let shapes = [Shape::f32(0), Shape::new(0, Dtype::BF16, Dtype::F16)];
            let mut twins = Twins::new(&[AdamWConfig::default()], shapes);
            set(&mut twins, &Control { max_grad_value: more, ..control(NonFinite::SkipStep) });
            (0..2).for_each(|_| twins.step());
            assert_same(&twins);
            assert_eq!(calls(|| twins.gpu_step(ALL, |_| true).unwrap()), counts([LAUNCHES(1), ASKED]));
            assert_eq!(twins.gpu.status().unwrap().unwrap().applied, 3);
        }
    });
}
