//! A controlled step in a CUDA graph: a replay is a step.

use fused_adamw::{Error, NonFinite};

use crate::controlled::{ALL, FLAGS, MODE, assert_same, capturable, control, set};
use crate::driver::each_driver;
use crate::twins::{DTYPES, Shape, Twins};

#[test]
fn fifty_replays_of_a_captured_step_are_fifty_steps() {
    each_driver(|| {
        let shapes = DTYPES.map(|dtype| Shape { param_at: 1, ..Shape::new(3000, dtype, dtype) });
        let mut twins = capturable(shapes);
        set(&mut twins, &control(NonFinite::SkipStep));
        (0..2).for_each(|_| twins.step());
        let stream = twins.gpu.device().stream().unwrap().clone();
        // SAFETY: what is captured outlives the graph, and is used between its launches alone, on this stream.
        unsafe { twins.gpu.allow_capture() };
        stream.begin_capture(MODE).unwrap();
        twins.gpu_step(ALL, |_| true).unwrap();
        let graph = stream.end_capture(FLAGS).unwrap().unwrap();
        for replay in 0..50 {
            twins.new_grads();
            if [7, 8, 49].contains(&replay) {
                twins.spoil_in_place(1);
            }
            if replay == 20 {
                [&mut twins.cpu, &mut twins.gpu].into_iter().for_each(|opt| opt.set_lr(3e-3).unwrap());
            }
            graph.launch().unwrap();
            twins.cpu_step(ALL, |_| true).unwrap();
            assert_same(&twins);
        }
        let status = twins.gpu.status().unwrap().unwrap();
        assert_eq!((status.applied, status.skipped), (49, 3));
    });
}

#[test]
fn a_step_is_captured_by_those_who_have_promised_what_it_takes() {
    each_driver(|| {
        let mut twins = capturable([Shape::f32(30)]);
        twins.step();
        let stream = twins.gpu.device().stream().unwrap().clone();
        let captured = |twins: &mut Twins| {
            stream.begin_capture(MODE).unwrap();
            let result = twins.gpu_step(ALL, |_| true);
            drop(stream.end_capture(FLAGS).unwrap());
            result
        };
        let before = twins.gpu_bits();
        assert!(matches!(captured(&mut twins), Err(Error::Captured)));
        // SAFETY: each graph is dropped before anything else happens.
        unsafe { twins.gpu.allow_capture() };
        // Without a control its numbers would be constants of the graph.
        assert!(matches!(captured(&mut twins), Err(Error::Captured)));
        set(&mut twins, &control(NonFinite::SkipStep));
        // Its classes are yet to be uploaded.
        assert!(matches!(captured(&mut twins), Err(Error::Capturing)));
        assert!(twins.gpu_bits() == before);
        twins.step();
        captured(&mut twins).unwrap();
        assert_same(&twins);
    });
}
