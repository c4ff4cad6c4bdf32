//! What is more than a plain step, on the device: the CPU's bits, what it costs, and how its record reaches the host.

use fused_adamw::cudarc::driver::sys::CUresult;
use fused_adamw::{
    AdamW, AdamWConfig, Alarm, Algorithm, Control, Dtype, Error, LossScale, Metrics, NonFinite, StepOptions,
};

use crate::controlled::{FLAGS, MODE, capturable, set};
use crate::driver::{allocations, calls, counts, each_driver, emulated, fail, has_failed, is_sanitized, traffic};
use crate::twins::{DTYPES, LENGTHS, Shape, Twins, Values};

const SCALED: StepOptions = StepOptions { grad_scale: 0.75 };

fn measuring() -> Control {
    Control { metrics: true, ..Default::default() }
}

/// Everything at once.
fn control() -> Control {
    Control {
        max_grad_norm: Some(40.0),
        max_grad_value: Some(0.5),
        non_finite: NonFinite::SkipStep,
        loss_scale: Some(LossScale { init_scale: 2.0, ..Default::default() }),
        norm_alarm: Some(Alarm { sigmas: 50.0, steps: 3, skip: true }),
        zero_grad: true,
        ..measuring()
    }
}

fn step_gpu(twins: &mut Twins, has_grad: impl Fn(usize) -> bool) -> fused_adamw::Result<()> {
    let Twins { gpu, tensors, .. } = twins;
    gpu.step_with(SCALED, tensors.iter_mut().enumerate().map(|(i, tensor)| tensor.gpu_pair_mut(has_grad(i))))
}

fn step_cpu(twins: &mut Twins, has_grad: impl Fn(usize) -> bool) {
    let Twins { cpu, tensors, .. } = twins;
    let pairs = tensors.iter_mut().enumerate().map(|(i, tensor)| tensor.cpu_pair_mut(has_grad(i)));
    cpu.step_with(SCALED, pairs).unwrap();
}

fn step(twins: &mut Twins, has_grad: impl Fn(usize) -> bool) {
    twins.new_grads();
    step_gpu(twins, &has_grad).unwrap();
    step_cpu(twins, &has_grad);
}

/// Of the newest step of all.
fn gpu_metrics(twins: &mut Twins) -> Metrics {
    twins.gpu.status().unwrap(); // waits
    twins.gpu.metrics().unwrap().unwrap()
}

/// Tensors, gradients and what was measured, every bit.
#[track_caller]
fn assert_same(twins: &mut Twins) {
    let cpu = twins.cpu.metrics().unwrap().unwrap();
    let gpu = gpu_metrics(twins);
    for (cpu, gpu) in cpu.tensors.iter().zip(&gpu.tensors) {
        assert_eq!(format!("{cpu:?}"), format!("{gpu:?}"));
    }
    assert_eq!(format!("{cpu:?}"), format!("{gpu:?}"));
    twins.assert_same();
}

/// Every branch of the arithmetic.
fn groups() -> [AdamWConfig; 4] {
    let config = AdamWConfig { lr: 1e-2, weight_decay: 0.1, ..Default::default() };
    [
        config,
        AdamWConfig { amsgrad: true, betas: (0.5, 0.9), ..config },
        AdamWConfig { maximize: true, eps: 1e-3, ..config },
        AdamWConfig { algorithm: Algorithm::Adam, amsgrad: true, eps: 0.0, weight_decay: 0.3, ..config },
    ]
}

/// Every pair of dtypes and every group, at lengths where something changes; every third off its boundary.
fn shapes() -> impl Iterator<Item = Shape> {
    let lens = LENGTHS.into_iter().chain([8191, 8192, 8193, 20_000]);
    lens.enumerate().map(|(i, len)| Shape {
        group: i / 3 % 4,
        param_at: if i % 3 == 2 { i % 5 } else { 0 },
        grad_at: if i % 4 == 3 { i % 7 } else { 0 },
        ..Shape::new(len, DTYPES[i % 3], DTYPES[i / 3 % 3])
    })
}

#[test]
fn what_is_measured_is_the_cpus_whatever_the_step_does() {
    each_driver(|| {
        for control in [
            control(),
            Control { non_finite: NonFinite::SkipTensor, ..control() },
            Control {
                zero_grad: false,
                max_grad_value: None,
                loss_scale: None,
                non_finite: NonFinite::Propagate,
                ..control()
            },
        ] {
            let mut twins = Twins::new(&groups(), shapes());
            set(&mut twins, &control);
            for t in 0..6 {
                twins.new_grads();
                if t == 0 || t == 3 {
                    twins.overwrite_grad(5 + t, 0x7fc0);
                    twins.overwrite_grad(12, 0x7fff);
                }
                if t == 5 {
                    twins.overwrite_grad(
                        29,
                        if twins.tensors[29].shape.grad == Dtype::F32 { 0x4700_0000 } else { 0x4700 },
                    );
                }
                let has_grad = |i: usize| !(i + t).is_multiple_of(9);
                step_gpu(&mut twins, has_grad).unwrap();
                step_cpu(&mut twins, has_grad);
                assert_same(&mut twins);
            }
            let status = twins.gpu.status().unwrap().unwrap();
            assert!(status.norm_alarm.raised && status.norm_alarm.alarms == 1, "{status:?}");
        }
    });
}

#[test]
fn of_any_bits_whatsoever() {
    each_driver(|| {
        for non_finite in [NonFinite::Propagate, NonFinite::SkipTensor] {
            let shapes = DTYPES.into_iter().flat_map(|param| DTYPES.map(|grad| Shape::new(3000, param, grad)));
            let mut twins = Twins::with_values(Values::Wild, &groups()[..1], shapes);
            set(&mut twins, &Control { max_grad_value: Some(1e30), zero_grad: true, non_finite, ..measuring() });
            for _ in 0..3 {
                step(&mut twins, |_| true);
                assert_same(&mut twins);
            }
        }
    });
}

#[test]
fn clamping_and_zeroing_alone() {
    each_driver(|| {
        for control in [
            Control { max_grad_value: Some(0.1), ..Default::default() },
            Control { zero_grad: true, ..Default::default() },
        ] {
            let mut twins = Twins::new(&groups(), shapes());
            set(&mut twins, &control);
            for t in 0..3 {
                step(&mut twins, |i| i % 5 != t);
                twins.assert_same();
                assert!(matches!(twins.gpu.metrics(), Err(Error::NoMetrics)));
                let zeroed = |i: usize| i % 5 != t && control.zero_grad;
                for (i, tensor) in twins.tensors.iter().enumerate() {
                    let Shape { len, grad_at, .. } = tensor.shape;
                    let grad = &tensor.grad.1.to_host().bits()[grad_at..grad_at + len];
                    assert_eq!(grad.iter().all(|&bits| bits == 0), zeroed(i) || len == 0, "{i}");
                }
            }
        }
    });
}

#[test]
fn what_it_costs() {
    emulated(&[], || {
        let (launches, asked) = (|n| ("cuLaunchKernel", n), |n| ("cuStreamIsCapturing", n));
        for tensors in [1, 1000] {
            for (control, expected) in [
                (
                    Control { max_grad_value: Some(1.0), zero_grad: true, ..Default::default() },
                    counts([launches(2), asked(1)]),
                ),
                (Control { norm_alarm: Some(Alarm::default()), ..Default::default() }, counts([launches(3), asked(1)])),
                (
                    Control { max_grad_norm: Some(1.0), ..measuring() },
                    counts([
                        launches(4),
                        asked(2),
                        ("cuEventQuery", 1),
                        ("cuStreamWaitEvent", 1),
                        ("cuMemcpyDtoHAsync_v2", 1),
                        ("cuEventRecord", 1),
                    ]),
                ),
            ] {
                let mut twins = Twins::new(&groups()[..1], (1..=tensors).map(|i| Shape::f32(i % 7)));
                twins.gpu.set_control(Some(control)).unwrap();
                (0..6).for_each(|_| step_gpu(&mut twins, |_| true).unwrap());
                twins.gpu.status().unwrap();
                let before = allocations();
                assert_eq!(calls(|| step_gpu(&mut twins, |_| true).unwrap()), expected, "{tensors} tensors");
                assert_eq!(allocations(), before);
            }
        }
    });
}

// Of f32: 28 bytes an element. Chunks of 8,192 write 32 bytes, a tensor reads them and writes 64. Beside the same kernel
// that does not measure: the driver counts what each thread reads of the tables.
#[test]
fn measuring_adds_less_than_a_hundredth_to_the_traffic() {
    emulated(&[], || {
        let bytes = |metrics: bool| {
            let mut twins = Twins::new(&groups()[..1], [100_000, 3000, 1000].map(Shape::f32));
            let control = Control { max_grad_value: Some(1.0), metrics, ..Default::default() };
            twins.gpu.set_control(Some(control)).unwrap();
            (0..2).for_each(|_| step_gpu(&mut twins, |_| true).unwrap());
            traffic();
            step_gpu(&mut twins, |_| true).unwrap();
            let (loads, stores) = traffic();
            loads + stores
        };
        let (without, with) = (bytes(false), bytes(true));
        if is_sanitized() {
            return; // the kernels tell nothing then
        }
        assert!(28 * 104_000 <= without && without < with, "{without} {with}");
        assert!((with - without) * 100 <= 28 * 104_000, "{without} {with}");
    });
}

#[test]
fn reading_never_waits_and_a_record_too_many_is_dropped() {
    emulated(&[], || {
        let mut twins = Twins::new(&groups()[..1], [Shape::f32(70)]);
        set(&mut twins, &measuring());
        assert_eq!(twins.gpu.metrics().unwrap(), None);
        step(&mut twins, |_| true);
        // Not yet there when asked for the first time.
        let read = calls(|| assert_eq!(twins.gpu.metrics().unwrap(), None));
        assert_eq!(read, counts([("cuStreamIsCapturing", 1), ("cuEventQuery", 1)]));
        (0..4).for_each(|_| step(&mut twins, |_| true));
        let metrics = gpu_metrics(&mut twins);
        assert_eq!((metrics.status.applied, metrics.dropped), (5, 0));
        (0..4).for_each(|_| step(&mut twins, |_| true));
        let dropped = calls(|| step(&mut twins, |_| true));
        assert!(!dropped.contains_key("cuMemcpyDtoHAsync_v2") && !dropped.contains_key("cuEventRecord"));
        let metrics = gpu_metrics(&mut twins);
        assert_eq!((metrics.status.applied, metrics.dropped), (9, 1));
        twins.assert_same();
    });
}

// Whatever fails of it, the step has been made; and what fails before it has not.
#[test]
fn a_record_that_fails_is_dropped_and_its_step_is_not() {
    emulated(&[], || {
        let code = CUresult::CUDA_ERROR_UNKNOWN;
        let mut twins = Twins::new(&groups()[..1], [Shape::f32(70)]);
        set(&mut twins, &Control { max_grad_norm: Some(1.0), zero_grad: true, ..measuring() });
        step(&mut twins, |_| true);
        for (dropped, (call, k)) in
            (1..).zip([("cuLaunchKernel", 4), ("cuMemcpyDtoHAsync_v2", 1), ("cuEventRecord", 1)])
        {
            twins.new_grads();
            fail(call, k, code);
            step_gpu(&mut twins, |_| true).unwrap();
            assert!(has_failed(), "{call}");
            step_cpu(&mut twins, |_| true);
            step(&mut twins, |_| true);
            assert_eq!(gpu_metrics(&mut twins).dropped, dropped);
            twins.assert_same();
        }
        for k in 1..=3 {
            let before = twins.gpu_bits();
            twins.new_grads();
            fail("cuLaunchKernel", k, code);
            step_gpu(&mut twins, |_| true).unwrap_err();
            assert!(has_failed() && twins.gpu_bits() == before);
            step_gpu(&mut twins, |_| true).unwrap();
            step_cpu(&mut twins, |_| true);
            let [cpu, gpu] = [&twins.cpu, &twins.gpu].map(|opt| format!("{:?}", opt.status().unwrap()));
            assert_eq!(cpu, gpu);
            twins.assert_same();
        }
    });
}

#[test]
fn replays_of_a_captured_step_are_measured() {
    each_driver(|| {
        let mut twins = capturable(DTYPES.map(|dtype| Shape::new(3000, dtype, dtype)));
        let stream = twins.gpu.device().stream().unwrap().clone();
        set(&mut twins, &Control { loss_scale: None, ..control() });
        (0..2).for_each(|_| step(&mut twins, |_| true));
        // SAFETY: what is captured outlives the graph, and is used between its launches alone, on this stream.
        unsafe { twins.gpu.allow_capture() };
        stream.begin_capture(MODE).unwrap();
        let Twins { gpu, tensors, .. } = &mut twins;
        gpu.step_with(SCALED, tensors.iter_mut().map(|tensor| tensor.gpu_pair_mut(true))).unwrap();
        assert!(matches!(gpu.metrics(), Err(Error::Capturing { .. }))); // and the capture goes on
        let graph = stream.end_capture(FLAGS).unwrap().unwrap();
        for replay in 0..12 {
            twins.new_grads();
            if [7, 11].contains(&replay) {
                twins.spoil_in_place(1);
            }
            graph.launch().unwrap();
            step_cpu(&mut twins, |_| true);
            twins.gpu.metrics().unwrap(); // asks for the record
            assert_same(&mut twins);
        }
        let metrics = gpu_metrics(&mut twins);
        assert_eq!((metrics.status.skipped, metrics.worst().unwrap().0.index), (2, 1));
    });
}

#[test]
fn dropping_it_leaks_nothing() {
    emulated(&[], || {
        let mut twins = Twins::new(&groups()[..1], [Shape::f32(70)]);
        let before = allocations();
        set(&mut twins, &control());
        step(&mut twins, |_| true);
        assert!(allocations() > before);
        twins.gpu.set_control(None).unwrap();
        assert_eq!(allocations(), before);
        for event_fails in [false, true] {
            set(&mut twins, &control());
            fail("cuEventRecord", usize::from(event_fails), CUresult::CUDA_ERROR_UNKNOWN);
            step_gpu(&mut twins, |_| true).unwrap();
            assert!(has_failed());
            // Dropped while its record is on its way.
            let device = twins.gpu.device().clone();
            twins.gpu = AdamW::new(&device, AdamWConfig::default(), [70]).unwrap();
        }
    });
}

#[test]
fn of_a_tensor_of_more_chunks_than_a_block_has_threads() {
    each_driver(|| {
        let mut twins = Twins::new(&groups()[..1], [Shape::f32(3), Shape::f32(260 * 8192 + 5)]);
        set(&mut twins, &measuring());
        step(&mut twins, |_| true);
        assert_same(&mut twins);
    });
}
