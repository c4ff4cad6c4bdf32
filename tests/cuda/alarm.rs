//! The alarm of RMS_t on the device: the CPU's bits, whatever the last step was, and what it costs.

use fused_adamw::cudarc::driver::sys::CUresult;
use fused_adamw::{AdamWConfig, Alarm, Control, NonFinite};

use crate::controlled::{ALL, FLAGS, MODE, assert_same, capturable, set};
use crate::driver::{calls, counts, each_driver, emulated, fail, has_failed};
use crate::twins::{DTYPES, Shape, Twins};

const ALARM: Alarm = Alarm { sigmas: 2.0, steps: 3, skip: true };

fn watching(non_finite: NonFinite) -> Control {
    Control {
        rms_alarm: Some(ALARM),
        norm_alarm: Some(Alarm { skip: false, ..ALARM }),
        non_finite,
        ..Default::default()
    }
}

/// One step of both; in it the gradient of `spiked` is 64 everywhere, about a hundred times what it was.
fn step(twins: &mut Twins, spiked: Option<usize>, has_grad: impl Fn(usize) -> bool) {
    twins.new_grads();
    if let Some(i) = spiked {
        let bits = [64.0_f32.to_bits(), 0x5400, 0x4280];
        let dtype = DTYPES.into_iter().position(|dtype| dtype == twins.tensors[i].shape.grad).unwrap();
        twins.overwrite_grad(i, bits[dtype]);
    }
    both(twins, has_grad);
}

/// One step of both, of the gradients as they are.
fn both(twins: &mut Twins, has_grad: impl Fn(usize) -> bool) {
    twins.gpu_step(ALL, &has_grad).unwrap();
    twins.cpu_step(ALL, &has_grad).unwrap();
}

// Spikes, NaN, missing gradients; tensors of no elements among the others, and of several chunks.
#[test]
fn it_is_the_cpus_whatever_the_steps_are() {
    each_driver(|| {
        for non_finite in [NonFinite::Propagate, NonFinite::SkipStep, NonFinite::SkipTensor] {
            let lens = [0, 5, 9000, 0, 33, 700];
            let shapes =
                (0..6).map(|i| Shape { param_at: i % 3, ..Shape::new(lens[i], DTYPES[i % 3], DTYPES[(i + 1) % 3]) });
            let mut twins = Twins::new(&[AdamWConfig { eps: 0.0, ..Default::default() }], shapes);
            set(&mut twins, &watching(non_finite));
            // Its square is 0: infinitely far above its second moment.
            twins.overwrite_grad(5, 1e-30_f32.to_bits());
            both(&mut twins, |_| true);
            for t in 0..16 {
                let spiked = [(5, 4), (9, 2), (10, 5)].into_iter().find(|(at, _)| *at == t);
                step(&mut twins, spiked.map(|(_, i)| i), |i| !(i + t).is_multiple_of(7));
                assert_same(&twins);
                if t == 12 {
                    twins.spoil_in_place(1);
                    both(&mut twins, |_| true);
                    assert_same(&twins);
                }
            }
            let status = twins.gpu.status().unwrap().unwrap();
            assert!(status.rms_alarm.alarms >= 2 && status.skipped >= 2, "{status:?}");
        }
    });
}

// More tensors than the block that looks for the largest has threads; of equals the first.
#[test]
fn it_finds_the_tensor_in_a_long_list() {
    each_driver(|| {
        let mut twins = Twins::new(&[AdamWConfig::default()], (0..1100).map(|i| Shape::f32(i % 3)));
        set(&mut twins, &watching(NonFinite::Propagate));
        (0..1100).for_each(|i| twins.overwrite_grad(i, 1.0_f32.to_bits()));
        both(&mut twins, |_| true);
        // The first has no elements.
        for (spiked, found) in [(Some(1090), 1), (None, 1090)] {
            step(&mut twins, spiked, |_| true);
            assert_same(&twins);
            assert_eq!(twins.gpu.status().unwrap().unwrap().rms_tensor, Some(found));
        }
    });
}

#[test]
fn replays_of_a_captured_step_are_steps() {
    each_driver(|| {
        let mut twins = capturable(DTYPES.map(|dtype| Shape::new(3000, dtype, dtype)));
        set(&mut twins, &watching(NonFinite::SkipStep));
        (0..2).for_each(|_| step(&mut twins, None, |_| true));
        let stream = twins.gpu.device().stream().unwrap().clone();
        // SAFETY: what is captured outlives the graph, and is used between its launches alone, on this stream.
        unsafe { twins.gpu.allow_capture() };
        stream.begin_capture(MODE).unwrap();
        twins.gpu_step(ALL, |_| true).unwrap();
        let graph = stream.end_capture(FLAGS).unwrap().unwrap();
        for replay in 0..20 {
            twins.new_grads();
            if replay == 11 {
                twins.overwrite_grad(0, 64.0_f32.to_bits());
            }
            graph.launch().unwrap();
            twins.cpu_step(ALL, |_| true).unwrap();
            assert_same(&twins);
        }
        assert!(twins.gpu.status().unwrap().unwrap().skipped >= 1);
    });
}

#[test]
fn it_costs_what_measuring_costs() {
    emulated(&[], || {
        let cost = |control: Control| {
            let mut twins = Twins::new(&[AdamWConfig::default()], (0..100).map(Shape::f32));
            twins.gpu.set_control(Some(control)).unwrap();
            (0..6).for_each(|_| twins.gpu_step(ALL, |_| true).unwrap());
            twins.gpu.status().unwrap();
            calls(|| twins.gpu_step(ALL, |_| true).unwrap())
        };
        let measured = cost(Control { metrics: true, ..Default::default() });
        assert_eq!(measured["cuLaunchKernel"], 3);
        assert_eq!(cost(Control { rms_alarm: Some(ALARM), ..Default::default() }), measured);
    });
}

// A decision that is taken back has looked at the record of the step before, and looks at it again. A record that could
// not be made leaves none to look at, and above all not the one before it.
#[test]
fn of_steps_that_fail() {
    emulated(&[], || {
        let code = CUresult::CUDA_ERROR_UNKNOWN;
        let mut twins = Twins::new(&[AdamWConfig::default()], [Shape::f32(70)]);
        set(&mut twins, &Control { rms_alarm: Some(ALARM), ..Default::default() });
        step(&mut twins, None, |_| true);
        fail("cuLaunchKernel", 2, code); // the update
        twins.gpu_step(ALL, |_| true).unwrap_err();
        step(&mut twins, None, |_| true);
        assert_same(&twins);
        assert!(has_failed() && twins.gpu.status().unwrap().unwrap().rms > 0.0);
        fail("cuLaunchKernel", 3, code); // the record
        step(&mut twins, None, |_| true);
        step(&mut twins, None, |_| true);
        let status = twins.gpu.status().unwrap().unwrap();
        assert_eq!((has_failed(), status.rms, status.rms_tensor), (true, 0.0, None));
        step(&mut twins, None, |_| true);
        assert!(twins.gpu.status().unwrap().unwrap().rms > 0.0);
        twins.assert_same();
    });
}

#[test]
fn of_a_list_without_elements_there_is_none() {
    emulated(&[], || {
        let mut twins = Twins::new(&[AdamWConfig::default()], [Shape::f32(0); 3]);
        set(&mut twins, &watching(NonFinite::SkipTensor));
        (0..3).for_each(|_| step(&mut twins, None, |_| true));
        assert_same(&twins);
        // Nor is there a step where no tensor has a gradient.
        assert_eq!(calls(|| twins.gpu_step(ALL, |_| false).unwrap()), counts([]));
    });
}
