//! A controlled step in a CUDA graph: a replay is a step.

use fused_adamw::cudarc::driver::CudaGraph;
use fused_adamw::{Dtype, NonFinite};

use crate::controlled::{ALL, FLAGS, MODE, assert_same, capturable, control, set};
use crate::driver::{calls, counts, each_driver, emulated};
use crate::twins::{DTYPES, Shape, Twins};

#[test]
fn fifty_replays_of_a_captured_step_are_fifty_steps() {
    each_driver(|| {
        let shapes = DTYPES.map(|dtype| Shape { param_at: 1, ..Shape::new(3000, dtype, dtype) });
        let mut twins = capturable(shapes);
        set(&mut twins, &control(NonFinite::SkipStep));
        twins.step();
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
        assert_eq!((status.applied, status.skipped), (48, 3));
    });
}

/// Two 16-bit tensors and one of f32 after a step that was captured, with its graph.
pub(crate) fn captured() -> (Twins, CudaGraph) {
    let shapes = [Dtype::F16, Dtype::BF16, Dtype::F32].map(|dtype| Shape::new(3000, dtype, dtype));
    let mut twins = capturable(shapes);
    set(&mut twins, &control(NonFinite::SkipStep));
    twins.step();
    let stream = twins.gpu.device().stream().unwrap().clone();
    // SAFETY: what is captured outlives the graph, and is used between its launches alone, on this stream.
    unsafe { twins.gpu.allow_capture() };
    stream.begin_capture(MODE).unwrap();
    twins.gpu_step(ALL, |_| true).unwrap();
    let graph = stream.end_capture(FLAGS).unwrap().unwrap();
    (twins, graph)
}

pub(crate) fn replay(twins: &mut Twins, graph: &CudaGraph) {
    twins.new_grads();
    graph.launch().unwrap();
    twins.cpu_step(ALL, |_| true).unwrap();
    assert_same(twins);
}

// The replays would read the rounded parameters again, each time.
#[test]
fn replays_after_reload_and_eager_step_are_steps() {
    each_driver(|| {
        let (mut twins, graph) = captured();
        (0..3).for_each(|_| replay(&mut twins, &graph));
        (0..2).for_each(|i| twins.overwrite_param(i, 0x3c01));
        [&mut twins.cpu, &mut twins.gpu].into_iter().for_each(|opt| opt.reload_masters().unwrap());
        twins.step();
        assert_same(&twins);
        (0..20).for_each(|_| replay(&mut twins, &graph));
        twins.step();
        (0..3).for_each(|_| replay(&mut twins, &graph));
    });
}

#[test]
fn replay_right_after_reload_reads_masters_once() {
    each_driver(|| {
        let (mut twins, graph) = captured();
        for bits in [0x3c01, 0x4005] {
            (0..2).for_each(|i| twins.overwrite_param(i, bits));
            [&mut twins.cpu, &mut twins.gpu].into_iter().for_each(|opt| opt.reload_masters().unwrap());
            (0..5).for_each(|_| replay(&mut twins, &graph));
        }
    });
}

#[test]
fn reload_of_one_master_keeps_the_others_in_replays() {
    each_driver(|| {
        let (mut twins, graph) = captured();
        (0..3).for_each(|_| replay(&mut twins, &graph));
        twins.overwrite_param(1, 0x4005);
        [&mut twins.cpu, &mut twins.gpu].into_iter().for_each(|opt| opt.reload_master(1).unwrap());
        let masters = [0, 2].map(|i| twins.gpu.state(i).unwrap());
        assert_eq!(masters, [0, 2].map(|i| twins.cpu.state(i).unwrap()));
        (0..3).for_each(|_| replay(&mut twins, &graph));
        twins.step();
        assert_same(&twins);
    });
}

// Such a step is not the graph's: what it named is not there any more.
#[test]
fn reload_after_other_tensors_waits_for_a_step() {
    emulated(&[], || {
        let (mut twins, graph) = captured();
        drop(graph);
        twins.move_param(0, 1);
        twins.step();
        twins.set_param(0, vec![0x3c01; 3000]); // what was stepped is freed
        let read = calls(|| twins.gpu.reload_masters().unwrap());
        assert_eq!(read, counts([]));
        twins.cpu.reload_masters().unwrap();
        twins.step();
        assert_same(&twins);
    });
}
