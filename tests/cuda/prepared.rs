//! Prepared steps on a GPU: those of the CPU, at one launch and no work for each tensor.

use fused_adamw::cudarc::driver::CudaContext;
use fused_adamw::cudarc::driver::sys::{CUgraphInstantiate_flags, CUresult, CUstreamCaptureMode};
use fused_adamw::{AdamWConfig, Control, Device, Dtype, Error, Result, StepOptions};

use crate::driver::{calls, counts, each_driver, emulated, fail};
use crate::twins::{DTYPES, Shape, Twins, Values};

const ALL: StepOptions = StepOptions { grad_scale: 1.0 };
const LAUNCH: (&str, usize) = ("cuLaunchKernel", 1);
const ASKED: (&str, usize) = ("cuStreamIsCapturing", 1);
const ASKED_TWICE: (&str, usize) = ("cuStreamIsCapturing", 2);
const UPLOAD: (&str, usize) = ("cuMemcpyHtoDAsync_v2", 1);

/// Of all dtypes in two groups, on a stream of its own, without events.
fn twins(tensors: usize) -> Twins {
    let stream = CudaContext::new(0).unwrap().new_stream().unwrap();
    // SAFETY: everything is on this stream.
    unsafe { stream.context().disable_event_tracking() };
    let groups = [AdamWConfig::default(), AdamWConfig { lr: 1e-2, ..Default::default() }];
    let shape = |i: usize| Shape { group: i % 2, ..Shape::new(i % 13, DTYPES[i % 3], DTYPES[i % 2]) };
    Twins::on(&Device::cuda(&stream).unwrap(), &stream, Values::Tame, &groups, (1..=tensors).map(shape))
}

fn prepare(twins: &mut Twins, has_grad: impl Fn(usize) -> bool) {
    let pairs = twins.tensors.iter_mut().enumerate().map(|(i, tensor)| tensor.gpu_pair(has_grad(i)));
    // SAFETY: the tensors stay where they are while they are stepped, and are used on the optimizer's stream alone.
    unsafe { twins.gpu.prepare(pairs).unwrap() };
}

/// Of new gradients, prepared on the GPU and ordinary on the CPU.
fn step(twins: &mut Twins, has_grad: impl Fn(usize) -> bool) {
    twins.new_grads();
    twins.gpu.step_prepared(ALL).unwrap();
    twins.cpu_step(ALL, has_grad).unwrap();
}

#[test]
fn prepared_steps_have_the_bits_of_ordinary_ones_on_the_cpu() {
    each_driver(|| {
        for control in [None, Some(Control { max_grad_norm: Some(0.5), ..Default::default() })] {
            let mut twins = twins(30);
            [&mut twins.cpu, &mut twins.gpu].into_iter().for_each(|opt| opt.set_control(control.clone()).unwrap());
            for modulus in [2, 1, 3] {
                let has_grad = |i: usize| i.is_multiple_of(modulus);
                prepare(&mut twins, has_grad);
                (0..3).for_each(|_| step(&mut twins, has_grad));
                [&mut twins.cpu, &mut twins.gpu].into_iter().for_each(|opt| opt.set_lr(1e-4).unwrap());
                [&mut twins.cpu, &mut twins.gpu].into_iter().for_each(|opt| opt.reload_masters().unwrap());
                (0..2).for_each(|_| step(&mut twins, has_grad));
                twins.assert_same();
            }
        }
    });
}

#[test]
fn a_prepared_step_is_one_launch_however_long_the_list() {
    emulated(&[], || {
        for tensors in [1, 1000, 10_000] {
            let mut twins = twins(tensors);
            prepare(&mut twins, |_| true);
            let mut step = || calls(|| twins.gpu.step_prepared(ALL).unwrap());
            step();
            assert_eq!([step(), step()], [counts([LAUNCH, ASKED]), counts([LAUNCH, ASKED])]);
        }
    });
}

#[test]
fn a_prepared_step_can_be_captured() {
    each_driver(|| {
        let mut twins = twins(20);
        [&mut twins.cpu, &mut twins.gpu].into_iter().for_each(|opt| opt.set_control(Some(Control::default())).unwrap());
        prepare(&mut twins, |_| true);
        let stream = twins.gpu.device().stream().unwrap().clone();
        let captured = |twins: &mut Twins| -> Result<()> {
            stream.begin_capture(CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL).unwrap();
            let result = twins.gpu.step_prepared(ALL);
            let graph = stream.end_capture(CUgraphInstantiate_flags(0)).unwrap();
            result.map(|()| graph.unwrap().launch().unwrap())
        };
        assert!(matches!(captured(&mut twins), Err(Error::CaptureNotAllowed)));
        // SAFETY: every graph is dropped after its one launch.
        unsafe { twins.gpu.allow_capture() };
        assert!(matches!(captured(&mut twins), Err(Error::Capturing { .. })));
        step(&mut twins, |_| true);
        captured(&mut twins).unwrap();
        twins.cpu_step(ALL, |_| true).unwrap();
        twins.assert_same();
    });
}

#[test]
fn a_prepared_step_whose_launch_or_copy_failed_is_made_again() {
    emulated(&[], || {
        for call in ["cuMemcpyHtoDAsync_v2", "cuLaunchKernel"] {
            let mut twins = twins(7);
            prepare(&mut twins, |_| true);
            fail(call, 1, CUresult::CUDA_ERROR_ECC_UNCORRECTABLE);
            assert!(matches!(twins.gpu.step_prepared(ALL), Err(Error::Driver { .. })), "{call}");
            (0..3).for_each(|_| step(&mut twins, |_| true));
            twins.assert_same();
        }
    });
}

// The classes are on the device already.
#[test]
fn a_controlled_step_of_other_addresses_copies_the_table_of_tensors_alone() {
    emulated(&[], || {
        let mut twins = twins(9);
        twins.gpu.set_control(Some(Control::default())).unwrap();
        (0..2).for_each(|_| twins.gpu_step(ALL, |i| i != 3).unwrap());
        twins.move_param(0, 5);
        let calls = calls(|| twins.gpu_step(ALL, |i| i != 3).unwrap());
        assert_eq!(calls, counts([("cuLaunchKernel", 2), UPLOAD, ASKED_TWICE]));
    });
}

// No chunks: neither a norm nor an update can be launched. The step counts all the same.
#[test]
fn a_controlled_step_of_empty_tensors_counts() {
    each_driver(|| {
        for metrics in [false, true] {
            let shapes = [Shape::f32(0), Shape::new(0, Dtype::BF16, Dtype::F16)];
            let mut twins = Twins::new(&[AdamWConfig::default()], shapes);
            let control = Control { max_grad_norm: Some(1.0), metrics, ..Default::default() };
            [&mut twins.cpu, &mut twins.gpu]
                .into_iter()
                .for_each(|opt| opt.set_control(Some(control.clone())).unwrap());
            (0..2).for_each(|_| twins.step_with(ALL, |i| i == 1));
            twins.assert_same();
            assert_eq!([0, 1].map(|i| twins.gpu.state(i).unwrap().step), [0, 2]);
            assert_eq!(twins.cpu.status().unwrap(), twins.gpu.status().unwrap());
        }
    });
}
