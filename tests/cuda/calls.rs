//! What a step costs: the calls of the driver, counted.

use fused_adamw::cudarc::driver::sys::{CUgraphInstantiate_flags, CUstreamCaptureMode};
use fused_adamw::cudarc::driver::{CudaContext, DriverError};
use fused_adamw::{AdamWConfig, Control, Device, Dtype, Error, StepOptions};

use crate::driver::{allocations, calls, counts, emulated};
use crate::twins::{DTYPES, Shape, Twins, Values};

const CONFIG: AdamWConfig = AdamWConfig {
    lr: 1e-3,
    betas: (0.9, 0.999),
    eps: 1e-8,
    weight_decay: 0.1,
    amsgrad: false,
    maximize: false,
    algorithm: fused_adamw::Algorithm::AdamW,
};
const ALL: StepOptions = StepOptions { grad_scale: 1.0 };

const UPLOAD: (&str, usize) = ("cuMemcpyHtoDAsync_v2", 1);
/// Whether the stream is being captured: by every step, and by every copy to the device.
const ASKED: (&str, usize) = ("cuStreamIsCapturing", 1);
const ASKED_TWICE: (&str, usize) = ("cuStreamIsCapturing", 2);
const LAUNCH: (&str, usize) = ("cuLaunchKernel", 1);

/// After one step, in which the masters of 16-bit parameters were read.
fn steady(groups: u8, shapes: impl IntoIterator<Item = Shape>) -> Twins {
    let config = |i: u8| AdamWConfig { weight_decay: 0.01 * f64::from(i), ..CONFIG };
    let mut twins = Twins::new(&(0..groups).map(config).collect::<Vec<_>>(), shapes);
    twins.gpu_step(ALL, |_| true).unwrap();
    twins
}

#[test]
fn a_step_is_one_launch_and_no_other_call_however_long_the_list_and_whatever_is_in_it() {
    emulated(&[], || {
        for (tensors, groups) in [(1, 1), (1000, 1), (1000, 100), (10_000, 1), (10_000, 100)] {
            for mixed in [false, true] {
                let dtype = |i: usize| if mixed { DTYPES[i % 3] } else { Dtype::F32 };
                let shape = |i| Shape { group: i % usize::from(groups), ..Shape::new(i % 7, dtype(i), dtype(i + 1)) };
                let mut twins = steady(groups, (1..=tensors).map(shape));
                let before = allocations();
                for _ in 0..3 {
                    assert_eq!(calls(|| twins.gpu_step(ALL, |_| true).unwrap()), counts([LAUNCH, ASKED]), "{tensors}");
                }
                assert_eq!(allocations(), before);
            }
        }
        // For whoever runs the tests: `driver.rs` passes it on.
        eprintln!(
            "driver calls a step: 1 launch, 0 copies, 0 allocations, 0 synchronizations, for 1, 1000 and 10000 tensors"
        );
    });
}

// The scalars are arguments of the kernel: a schedule costs no copy.
#[test]
fn a_schedule_costs_nothing() {
    emulated(&[], || {
        let mut twins = steady(3, (0..9).map(|i| Shape { group: i % 3, ..Shape::f32(30) }));
        twins.gpu.set_lr(1e-5).unwrap();
        twins.gpu.set_group(1, AdamWConfig { betas: (0.3, 0.3), ..CONFIG }).unwrap();
        let options = StepOptions { grad_scale: 0.5 };
        assert_eq!(calls(|| twins.gpu_step(options, |_| true).unwrap()), counts([LAUNCH, ASKED]));
    });
}

#[test]
fn new_addresses_cost_one_copy_of_the_table_whichever_tensors_they_are_of() {
    emulated(&[], || {
        let mut twins = steady(1, (0..500).map(|_| Shape::f32(5)));
        for moved in [vec![0], vec![499], (0..500).collect()] {
            moved.into_iter().for_each(|i| twins.move_param(i, 3));
            assert_eq!(calls(|| twins.gpu_step(ALL, |_| true).unwrap()), counts([LAUNCH, UPLOAD, ASKED_TWICE]));
            assert_eq!(calls(|| twins.gpu_step(ALL, |_| true).unwrap()), counts([LAUNCH, ASKED]));
        }
    });
}

// Addresses that came back are those of two steps ago, but the table on the device is that of the step before.
#[test]
fn a_table_that_changes_to_and_fro_is_copied_each_time() {
    emulated(&[], || {
        let mut twins = steady(1, [Shape::f32(5), Shape::f32(6)]);
        for step in 0..4 {
            let gone = step % 2;
            twins.new_grads();
            assert_eq!(calls(|| twins.gpu_step(ALL, |i| i == gone).unwrap()), counts([LAUNCH, UPLOAD, ASKED_TWICE]));
        }
    });
}

#[test]
fn a_step_without_any_gradient_calls_nothing() {
    emulated(&[], || {
        let mut twins = steady(1, [Shape::f32(5), Shape::f32(0)]);
        assert_eq!(calls(|| twins.gpu_step(ALL, |_| false).unwrap()), counts([]));
        // One that has a gradient, but no elements.
        assert_eq!(calls(|| twins.gpu_step(ALL, |i| i == 1).unwrap()), counts([]));
        assert_eq!(calls(|| twins.gpu_step(ALL, |_| true).unwrap()).get("cuLaunchKernel"), Some(&1));
    });
}

// A list without elements has no chunks, and a grid of no blocks cannot be launched.
#[test]
fn a_list_without_elements_calls_nothing() {
    emulated(&[], || {
        for shapes in [vec![], vec![Shape::f32(0)], vec![Shape::new(0, Dtype::BF16, Dtype::F16); 3]] {
            let mut twins = steady(1, shapes);
            assert_eq!(calls(|| twins.gpu_step(ALL, |_| true).unwrap()), counts([]));
        }
    });
}

#[test]
fn more_scalars_than_fit_into_the_arguments_cost_one_copy_and_memory_once() {
    emulated(&[], || {
        let mut twins = steady(113, (0..113).map(|group| Shape { group, ..Shape::f32(3) }));
        let before = allocations();
        for _ in 0..3 {
            assert_eq!(calls(|| twins.gpu_step(ALL, |_| true).unwrap()), counts([LAUNCH, UPLOAD, ASKED_TWICE]));
        }
        assert_eq!(allocations(), before);
        let mut twins = steady(112, (0..112).map(|group| Shape { group, ..Shape::f32(3) }));
        assert_eq!(calls(|| twins.gpu_step(ALL, |_| true).unwrap()), counts([LAUNCH, ASKED]));
    });
}

// The optimizer has one arena, two tables, and for masters one more of each. Nothing is left when it is dropped.
#[test]
fn an_optimizer_is_three_allocations_and_gives_them_back() {
    emulated(&[], || {
        let mut twins = steady(1, [Shape::f32(5), Shape::new(7, Dtype::F16, Dtype::F32)]);
        let device = twins.gpu.device().clone();
        assert_eq!(allocations(), 4 + 5); // parameters and gradients; the optimizer's
        twins.gpu = fused_adamw::AdamW::new(&device, CONFIG, [5, 7]).unwrap();
        assert_eq!(allocations(), 4 + 3);
        let error: Result<(), DriverError> = device.stream().unwrap().context().check_err();
        drop(twins);
        assert_eq!((allocations(), error), (0, Ok(())));
    });
}

// `state` waits for what was enqueued; a step does not.
#[test]
fn reading_the_state_is_what_synchronizes() {
    emulated(&[], || {
        let twins = steady(1, [Shape::f32(5)]);
        let read = calls(|| drop(twins.gpu.state(0).unwrap()));
        assert_eq!(read, counts([("cuMemcpyDtoHAsync_v2", 2), ("cuStreamSynchronize", 2), ASKED_TWICE]));
    });
}

// A copy would be part of the graph, and read the host's memory at every replay.
#[test]
fn a_captured_step_is_its_launches_and_where_it_would_copy_it_is_refused_before_it_calls_anything_else() {
    emulated(&[], || {
        let stream = CudaContext::new(0).unwrap().new_stream().unwrap();
        // SAFETY: this test has one stream.
        unsafe { stream.context().disable_event_tracking() };
        let device = Device::cuda(&stream).unwrap();
        let captured = |twins: &mut Twins| {
            stream.begin_capture(CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL).unwrap();
            let mut result = Ok(());
            let calls = calls(|| result = twins.gpu_step(ALL, |_| true));
            drop(stream.end_capture(CUgraphInstantiate_flags(0)));
            (calls, result)
        };
        for groups in [1, 112, 113] {
            let shapes = (0..groups).map(|group| Shape { group, ..Shape::new(9, DTYPES[group % 3], Dtype::F32) });
            let mut twins = Twins::on(&device, &stream, Values::Tame, &vec![CONFIG; groups], shapes);
            twins.gpu.set_control(Some(Control::default())).unwrap();
            // SAFETY: every graph is dropped at once.
            unsafe { twins.gpu.allow_capture() };
            twins.step();
            let (calls, result) = captured(&mut twins);
            assert_eq!((calls, result.is_ok()), (counts([("cuLaunchKernel", 2), ASKED]), true));
            twins.move_param(0, 1);
            let (calls, result) = captured(&mut twins);
            assert!(matches!(result, Err(Error::Capturing { .. })), "{result:?}");
            assert_eq!(calls, counts([ASKED_TWICE]));
        }
    });
}
