//! Captures: their conditions, their refusals, and the memory that outlives them.

use std::sync::Arc;

use fused_adamw::cudarc::driver::sys::CUresult;
use fused_adamw::cudarc::driver::{CudaContext, CudaStream};
use fused_adamw::{AdamW, AdamWConfig, Control, Device, Error, LossScale, NonFinite, Result, StepOptions};

use crate::controlled::{ALL, FLAGS, MODE, assert_same, capturable, control, set};
use crate::driver::{allocations, calls, counts, each_driver, emulated, fail, has_failed, live};
use crate::graphs::{captured, replay};
use crate::twins::{Shape, Twins, Values};

/// The very lines of the documentation of `allow_capture`.
mod example {
    include!("../../src/optimizer/capture_example.rs");

    #[test]
    fn example_of_allow_capture_runs() {
        crate::driver::each_driver(|| main().unwrap());
    }
}

fn stream_of(twins: &Twins) -> Arc<CudaStream> {
    twins.gpu.device().stream().unwrap().clone()
}

/// `body` in a capture, which must be as if it had done nothing.
fn refused<T>(twins: &mut Twins, body: impl FnOnce(&mut Twins) -> Result<T>) -> Error {
    let stream = stream_of(twins);
    stream.begin_capture(MODE).unwrap();
    let result = body(twins);
    let graph = stream.end_capture(FLAGS).expect("the capture goes on");
    let before = twins.gpu_bits();
    graph.unwrap().launch().unwrap();
    assert!(twins.gpu_bits() == before, "nothing was captured");
    result.err().expect("an error")
}

#[test]
fn each_cause_of_a_refused_capture_has_its_error() {
    each_driver(|| {
        let stream = CudaContext::new(0).unwrap().new_stream().unwrap();
        let device = Device::cuda(&stream).unwrap();
        let mut twins = Twins::on(&device, &stream, Values::Tame, &[AdamWConfig::default()], [Shape::f32(30)]);
        twins.step();
        let step = |twins: &mut Twins| twins.gpu_step(ALL, |_| true);
        let accumulate = |twins: &mut Twins| {
            let Twins { gpu, tensors, .. } = twins;
            gpu.accumulate(tensors.iter().map(|t| t.gpu_grad(true)))
        };
        let without_grad = |twins: &mut Twins| twins.gpu_step(ALL, |_| false);
        // cudarc would wait for the events of parameters, whatever is done with them.
        for error in [refused(&mut twins, step), refused(&mut twins, accumulate), refused(&mut twins, without_grad)] {
            assert!(matches!(error, Error::CaptureWithEvents), "{error:?}");
            assert!(error.to_string().contains("CudaContext::disable_event_tracking before"), "{error}");
        }
        // SAFETY: this test has one stream.
        unsafe { stream.context().disable_event_tracking() };
        for error in [refused(&mut twins, step), refused(&mut twins, accumulate)] {
            assert!(matches!(error, Error::CaptureNotAllowed), "{error:?}");
            assert!(error.to_string().contains("call allow_capture before"), "{error}");
        }
        // SAFETY: each graph is dropped before anything else happens.
        unsafe { twins.gpu.allow_capture() };
        for error in [refused(&mut twins, step), refused(&mut twins, accumulate)] {
            assert!(matches!(error, Error::CaptureWithoutControl), "{error:?}");
            assert!(error.to_string().contains("call set_control before"), "{error}");
        }
        set(&mut twins, &control(NonFinite::SkipStep));
        let error = refused(&mut twins, step); // its classes are yet to be copied
        assert!(matches!(error, Error::Capturing { .. }), "{error:?}");
        assert!(error.to_string().ends_with("step once before the capture, with the same tensors"), "{error}");
        twins.step();
        stream.begin_capture(MODE).unwrap();
        step(&mut twins).unwrap();
        let graph = stream.end_capture(FLAGS).unwrap().unwrap();
        replay(&mut twins, &graph);
    });
}

#[test]
fn waits_and_copies_are_refused_in_a_capture() {
    each_driver(|| {
        let mut twins = capturable([Shape::f32(30), Shape::f32(7)]);
        set(&mut twins, &Control { metrics: true, max_skipped: Some(3), ..control(NonFinite::SkipStep) });
        twins.step();
        // SAFETY: each graph is dropped before anything else happens.
        unsafe { twins.gpu.allow_capture() };
        type Call = fn(&mut Twins) -> Result<()>;
        let lr = AdamWConfig { lr: 1e-4, ..Default::default() };
        let reads: [Call; 4] = [
            |twins| twins.gpu.state(0).map(drop),
            |twins| twins.gpu.status().map(drop),
            |twins| twins.gpu.poll(),
            |twins| twins.gpu.metrics().map(drop),
        ];
        let told: [(&[Call], &str); 5] = [
            (&reads, "read it after the capture, or between replays"),
            (
                &[
                    |twins| twins.gpu.set_lr(1e-4),
                    |twins| twins.gpu.set_group(0, AdamWConfig { lr: 1e-4, ..Default::default() }),
                ],
                "set it before the capture or between replays, each of which reads it",
            ),
            (
                &[|twins| twins.gpu.set_control(None), |twins| twins.gpu.set_control(Some(Control::default()))],
                "set the control before the capture",
            ),
            (
                &[|twins| AdamW::new(&twins.gpu.device().clone(), AdamWConfig::default(), [3]).map(drop)],
                "make the optimizer before the capture",
            ),
            (
                &[|Twins { gpu, tensors, .. }| gpu.accumulate(tensors.iter().map(|t| t.gpu_grad(true)))],
                "before the capture call accumulate and step_accumulated once as in it, with the same tensors",
            ),
        ];
        for (call, remedy) in told.into_iter().flat_map(|(calls, remedy)| calls.iter().map(move |call| (call, remedy)))
        {
            let error = refused(&mut twins, call);
            assert!(matches!(error, Error::Capturing { .. }), "{error:?}");
            assert!(error.to_string().ends_with(remedy), "{error}");
        }
        assert_eq!(twins.gpu.groups()[0].lr, AdamWConfig::default().lr);
        // And what they say helps.
        twins.gpu.set_lr(lr.lr).unwrap();
        twins.cpu.set_lr(lr.lr).unwrap();
        twins.step();
        assert_same(&twins);
    });
}

// The plain step's numbers are arguments, which nobody copies: without a control there is nothing to refuse.
#[test]
fn lr_without_control_can_be_set_in_a_capture() {
    each_driver(|| {
        let mut twins = capturable([Shape::f32(30)]);
        let stream = stream_of(&twins);
        stream.begin_capture(MODE).unwrap();
        twins.gpu.set_lr(1e-2).unwrap();
        twins.gpu.poll().unwrap();
        assert_eq!(twins.gpu.status().unwrap(), None);
        drop(stream.end_capture(FLAGS).unwrap());
        twins.cpu.set_lr(1e-2).unwrap();
        twins.step();
        twins.assert_same();
    });
}

#[test]
fn reload_is_refused_in_a_capture() {
    each_driver(|| {
        let (mut twins, graph) = captured();
        let error = refused(&mut twins, |twins| twins.gpu.reload_master(1));
        assert!(error.to_string().ends_with("reload masters before the capture, or between replays"), "{error}");
        replay(&mut twins, &graph);
        // Before it, but after the last step: every replay would read them.
        let mut fresh = capturable([Shape::new(50, fused_adamw::Dtype::BF16, fused_adamw::Dtype::F32)]);
        set(&mut fresh, &Control::default());
        // SAFETY: the graph is dropped at once.
        unsafe { fresh.gpu.allow_capture() };
        fresh.step();
        fresh.gpu.reload_masters().unwrap();
        let error = refused(&mut fresh, |twins| twins.gpu_step(ALL, |_| true));
        assert!(error.to_string().ends_with("step once before the capture, with the same tensors"), "{error}");
    });
}

// The replays would multiply by what lies in freed memory.
#[test]
fn captured_multiplier_stays_alive() {
    each_driver(|| {
        let mut twins = capturable([Shape::f32(3000)]);
        let stream = stream_of(&twins);
        set(&mut twins, &control(NonFinite::SkipStep));
        let scalar = Arc::new(stream.clone_htod(&[0.125_f32]).unwrap());
        let alive = Arc::downgrade(&scalar);
        twins.gpu.scale_grads_by(Some(scalar)).unwrap();
        let scaled = StepOptions { grad_scale: 0.125 };
        twins.new_grads();
        twins.gpu_step(ALL, |_| true).unwrap();
        twins.cpu_step(scaled, |_| true).unwrap();
        // SAFETY: what is captured outlives the graph, and is used between its launches alone, on this stream.
        unsafe { twins.gpu.allow_capture() };
        let graphs = [(); 2].map(|()| {
            stream.begin_capture(MODE).unwrap();
            twins.gpu_step(ALL, |_| true).unwrap();
            stream.end_capture(FLAGS).unwrap().unwrap()
        });
        twins.gpu.scale_grads_by(None).unwrap();
        for graph in &graphs {
            twins.new_grads();
            graph.launch().unwrap();
            twins.cpu_step(scaled, |_| true).unwrap();
            assert_same(&twins);
        }
        twins.step(); // by 1
        assert_same(&twins);
        assert_eq!(alive.strong_count(), 1, "kept once");
        twins.gpu.set_control(None).unwrap();
        assert_eq!(alive.strong_count(), 0);
    });
}

// One that no graph reads is not kept.
#[test]
fn multiplier_of_eager_steps_is_dropped() {
    emulated(&[], || {
        let (mut twins, _graph) = captured();
        let scalar = Arc::new(stream_of(&twins).clone_htod(&[1.0_f32]).unwrap());
        let alive = Arc::downgrade(&scalar);
        twins.gpu.scale_grads_by(Some(scalar)).unwrap();
        twins.step();
        twins.gpu.scale_grads_by(None).unwrap();
        assert_eq!(alive.strong_count(), 0);
    });
}

fn accumulate(twins: &mut Twins, both: bool) {
    let Twins { gpu, cpu, tensors, .. } = twins;
    gpu.accumulate(tensors.iter().map(|t| t.gpu_grad(true))).unwrap();
    if both {
        cpu.accumulate(tensors.iter().map(|t| t.cpu_grad(true))).unwrap();
    }
}

fn step_accumulated(twins: &mut Twins, both: bool) {
    let Twins { gpu, cpu, tensors, .. } = twins;
    gpu.step_accumulated(ALL, tensors.iter_mut().map(|t| t.gpu_param())).unwrap();
    if both {
        cpu.step_accumulated(ALL, tensors.iter_mut().map(|t| t.cpu_param())).unwrap();
    }
}

// The graph would add up what lies in the freed memory of other gradients.
#[test]
fn captured_sums_keep_their_gradients() {
    each_driver(|| {
        let mut twins =
            capturable([Shape::f32(3000), Shape::new(70, fused_adamw::Dtype::BF16, fused_adamw::Dtype::F16)]);
        let stream = stream_of(&twins);
        set(&mut twins, &control(NonFinite::SkipStep));
        twins.new_grads();
        let pass = |twins: &mut Twins, both| {
            (0..2).for_each(|_| accumulate(twins, both));
            step_accumulated(twins, both);
        };
        pass(&mut twins, true);
        // SAFETY: what is captured outlives the graph, and is used between its launches alone, on this stream.
        unsafe { twins.gpu.allow_capture() };
        stream.begin_capture(MODE).unwrap();
        pass(&mut twins, false);
        let graph = stream.end_capture(FLAGS).unwrap().unwrap();
        for _ in 0..3 {
            twins.new_grads();
            graph.launch().unwrap();
            let Twins { cpu, tensors, .. } = &mut twins;
            (0..2).for_each(|_| cpu.accumulate(tensors.iter().map(|t| t.cpu_grad(true))).unwrap());
            cpu.step_accumulated(ALL, tensors.iter_mut().map(|t| t.cpu_param())).unwrap();
            assert_same(&twins);
            // Eager sums, the last one of other gradients, which are freed.
            let Twins { gpu, cpu, tensors, .. } = &mut twins;
            gpu.accumulate(tensors.iter().map(|t| t.gpu_grad(true))).unwrap();
            cpu.accumulate(tensors.iter().map(|t| t.cpu_grad(true))).unwrap();
            let other = stream.clone_htod(&vec![1.0_f32; 3000]).unwrap();
            gpu.accumulate([Some(&other), None]).unwrap();
            cpu.accumulate([Some(&vec![1.0_f32; 3000]), None]).unwrap();
            drop(other);
            step_accumulated(&mut twins, true);
            assert_same(&twins);
        }
    });
}

// It was recorded, and not executed: there is nothing to take back.
#[test]
fn failed_captured_step_takes_back_no_other() {
    emulated(&[], || {
        let mut twins = capturable([Shape::f32(30)]);
        set(&mut twins, &control(NonFinite::SkipStep));
        twins.step();
        // SAFETY: nothing is launched.
        unsafe { twins.gpu.allow_capture() };
        let stream = stream_of(&twins);
        for k in 1..=3 {
            stream.begin_capture(MODE).unwrap();
            fail("cuLaunchKernel", k, CUresult::CUDA_ERROR_UNKNOWN);
            twins.gpu_step(ALL, |_| true).unwrap_err();
            assert!(has_failed(), "{k}");
            drop(stream.end_capture(FLAGS));
            assert_same(&twins);
            twins.step();
            assert_same(&twins);
        }
        // But a step that was decided and not made must not be taken back by every replay.
        fail("cuLaunchKernel", 3, CUresult::CUDA_ERROR_UNKNOWN);
        twins.gpu_step(ALL, |_| true).unwrap_err();
        assert!(has_failed());
        let error = refused(&mut twins, |twins| twins.gpu_step(ALL, |_| true));
        assert!(matches!(error, Error::Capturing { .. }), "{error:?}");
        twins.step();
        assert_same(&twins);
    });
}

// A free would be captured, and a wait would end the capture: an early return drops the optimizer there.
#[test]
fn optimizer_dropped_in_a_capture_is_freed_later() {
    emulated(&[], || {
        for memory_is_used in [false, true] {
            let mut twins =
                capturable([Shape::f32(30), Shape::new(9, fused_adamw::Dtype::BF16, fused_adamw::Dtype::F32)]);
            let control =
                Control { metrics: true, loss_scale: Some(LossScale::default()), ..control(NonFinite::SkipStep) };
            set(&mut twins, &control);
            if memory_is_used {
                twins.new_grads();
                accumulate(&mut twins, true);
                step_accumulated(&mut twins, true);
            }
            let (stream, device) = (stream_of(&twins), twins.gpu.device().clone());
            // On another stream of its own.
            let other = Device::cuda(&stream.context().new_stream().unwrap()).unwrap();
            let next = AdamW::new(&other, AdamWConfig::default(), [1]).unwrap();
            let before = allocations();
            stream.begin_capture(MODE).unwrap();
            let dropped = calls(|| drop(std::mem::replace(&mut twins.gpu, next)));
            assert_eq!(dropped, counts([("cuStreamIsCapturing", 1)]));
            // Nor does an optimizer that is dropped meanwhile free it.
            drop(AdamW::new(&other, AdamWConfig::default(), [1]).unwrap());
            let graph = stream.end_capture(FLAGS).expect("the capture goes on").unwrap();
            graph.launch().unwrap();
            assert_eq!(allocations(), before);
            drop(AdamW::new(&device, AdamWConfig::default(), [1]).unwrap());
            assert!(allocations() < before);
            drop((twins, graph));
            assert_eq!(allocations(), 0);
            drop((device, other, stream));
            assert_eq!([live("events"), live("modules")], [0, 0]);
        }
    });
}
