//! What a step leaves for the next one, where both devices share the code: against values of their own.

use std::sync::Arc;

use fused_adamw::cudarc::driver::sys::CUresult;
use fused_adamw::{AdamW, AdamWConfig, Control, Device, Error, NonFinite, StepOptions};

use crate::controlled::{ALL, assert_same, control, set};
use crate::driver::{each_driver, emulated, fail, has_failed};
use crate::twins::{Shape, Twins};

const CODE: CUresult = CUresult::CUDA_ERROR_ECC_UNCORRECTABLE;

// The table of cohorts is half written then: the next step of the tensors before it has to write it again.
#[test]
fn a_failed_split_of_step_counts_is_made_up_for() {
    emulated(&[], || {
        for k in 1..20 {
            let mut twins = Twins::new(&[AdamWConfig::default()], [Shape::f32(30), Shape::f32(7)]);
            set(&mut twins, &control(NonFinite::SkipStep));
            (0..2).for_each(|_| twins.step());
            fail("*", k, CODE);
            let failed = twins.gpu_step(ALL, |i| i == 0).is_err();
            if !has_failed() {
                assert!(!failed && k > 4, "every call was made to fail: {k}");
                return;
            }
            assert!(failed);
            twins.step();
            assert_same(&twins);
            assert_eq!(twins.gpu.state(1).unwrap().step, 3, "call {k}");
        }
        unreachable!("a step has fewer calls");
    });
}

// The step was launched: its sums are used up.
#[test]
fn sums_of_a_step_that_was_not_recorded_are_used_up() {
    emulated(&[], || {
        let stream = Device::cuda_at(0).unwrap().stream().unwrap().context().new_stream().unwrap();
        let device = Device::cuda(&stream).unwrap();
        let (mut p, g) = (stream.alloc_zeros::<f32>(4).unwrap(), stream.clone_htod(&[1.0_f32; 4]).unwrap());
        let config = AdamWConfig { betas: (0.0, 0.0), ..Default::default() };
        let mut opt = AdamW::new(&device, config, [4]).unwrap();
        let mut not_recorded = 0;
        for k in 1..40 {
            opt.accumulate([&g]).unwrap();
            fail("cuEventRecord", k, CODE);
            let result = opt.step_accumulated(ALL, [&mut p]);
            let failed = has_failed();
            stream.synchronize().unwrap();
            if !failed {
                break;
            }
            assert!(matches!(result, Err(Error::NotRecorded { .. })), "{result:?}");
            not_recorded += 1;
            // With beta1 = 0, m is the gradient that was used: one pass, not two.
            assert_eq!(opt.state(0).unwrap().m, [1.0; 4], "record {k}");
        }
        assert!(not_recorded > 0);
    });
}

#[test]
fn a_second_control_keeps_the_multiplier_on_the_device() {
    each_driver(|| {
        let device = Device::cuda_at(0).unwrap();
        let stream = device.stream().unwrap();
        let half = Arc::new(stream.clone_htod(&[0.5_f32]).unwrap());
        let (mut p, g) = (stream.alloc_zeros::<f32>(1).unwrap(), stream.clone_htod(&[8.0_f32]).unwrap());
        let mut opt = AdamW::new(&device, AdamWConfig { betas: (0.0, 0.0), ..Default::default() }, [1]).unwrap();
        opt.set_control(Some(Control::default())).unwrap();
        opt.scale_grads_by(Some(half)).unwrap();
        opt.set_control(Some(Control { max_grad_norm: Some(1e9), ..Default::default() })).unwrap();
        opt.step_with(StepOptions { grad_scale: 0.25 }, [(&mut p, &g)]).unwrap();
        assert_eq!((opt.state(0).unwrap().m, opt.status().unwrap().unwrap().grad_norm), (vec![1.0], Some(1.0)));
    });
}

// More chunks than parts, and than threads that add the parts.
#[test]
fn the_norm_of_thousands_of_chunks_is_exact() {
    each_driver(|| {
        for non_finite in [NonFinite::SkipStep, NonFinite::SkipTensor] {
            let mut twins = Twins::new(&[AdamWConfig::default()], [Shape::f32(1); 3000]);
            for (i, tensor) in (0_u16..).zip(0..3000) {
                twins.overwrite_grad(tensor, f32::from(i).to_bits());
            }
            set(&mut twins, &Control { max_grad_norm: Some(1.0), non_finite, ..Default::default() });
            twins.gpu_step(ALL, |_| true).unwrap();
            twins.cpu_step(ALL, |_| true).unwrap();
            assert_same(&twins);
            let exact: f64 = (0_u16..3000).map(|i| f64::from(i).powi(2)).sum(); // far below 2^53
            assert_eq!(twins.gpu.status().unwrap().unwrap().grad_norm, Some(exact.sqrt()));
        }
    });
}
