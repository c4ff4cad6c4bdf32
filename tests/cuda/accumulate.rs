//! Gradients of several passes, added up on the device: the CPU's bits, and what it costs.

use std::iter;
use std::panic::{AssertUnwindSafe, catch_unwind};

use fused_adamw::cudarc::driver::CudaContext;
use fused_adamw::{AdamWConfig, Control, Device, Error};

use crate::controlled::{ALL, FLAGS, MODE, capturable, set};
use crate::driver::{calls, counts, each_driver, emulated};
use crate::twins::{DTYPES, LENGTHS, Shape, Twins, Values};

#[test]
fn sums_are_the_cpus_and_cost_one_launch_a_pass() {
    each_driver(|| {
        let shape =
            |(i, len): (usize, usize)| Shape { grad_at: i % 9, ..Shape::new(len, DTYPES[i % 3], DTYPES[i / 3 % 3]) };
        let mut twins = Twins::new(&[AdamWConfig::default()], LENGTHS.into_iter().enumerate().map(shape));
        for step in 0..3 {
            for pass in 0..3 {
                twins.new_grads();
                let has = |i: usize| !(i + pass + step).is_multiple_of(4);
                let Twins { gpu, cpu, tensors, .. } = &mut twins;
                gpu.accumulate(tensors.iter().enumerate().map(|(i, t)| t.gpu_grad(has(i)))).unwrap();
                cpu.accumulate(tensors.iter().enumerate().map(|(i, t)| t.cpu_grad(has(i)))).unwrap();
            }
            let Twins { gpu, cpu, tensors, .. } = &mut twins;
            gpu.step_accumulated(ALL, tensors.iter_mut().map(|t| t.gpu_param())).unwrap();
            cpu.step_accumulated(ALL, tensors.iter_mut().map(|t| t.cpu_param())).unwrap();
            twins.assert_same();
        }
    });
}

#[test]
fn a_pass_is_one_launch_and_no_copy_when_the_addresses_are_the_same() {
    emulated(&[], || {
        let mut twins = Twins::new(&[AdamWConfig::default()], (0..1000).map(|i| Shape::f32(i % 40)));
        for step in 0..3 {
            for pass in 0..2 {
                let Twins { gpu, tensors, .. } = &mut twins;
                let calls = calls(|| gpu.accumulate(tensors.iter().map(|t| t.gpu_grad(true))).unwrap());
                if (step, pass) != (0, 0) {
                    assert_eq!(calls, counts([("cuLaunchKernel", 1), ("cuStreamIsCapturing", 1)]));
                }
            }
            let Twins { gpu, tensors, .. } = &mut twins;
            gpu.step_accumulated(ALL, tensors.iter_mut().map(|t| t.gpu_param())).unwrap();
        }
    });
}

#[test]
fn of_a_list_without_elements() {
    each_driver(|| {
        let mut twins = Twins::new(&[AdamWConfig::default()], [Shape::f32(0); 3]);
        let Twins { gpu, tensors, .. } = &mut twins;
        gpu.accumulate(tensors.iter().map(|t| t.gpu_grad(true))).unwrap();
        gpu.step_accumulated(ALL, tensors.iter_mut().map(|t| t.gpu_param())).unwrap();
        assert_eq!(gpu.state(2).unwrap().step, 1);
    });
}

#[test]
fn what_does_not_go_together_is_refused_as_on_the_cpu() {
    each_driver(|| {
        let mut twins = Twins::new(&[AdamWConfig::default()], [Shape::f32(20), Shape::f32(30)]);
        let Twins { gpu, tensors, .. } = &mut twins;
        let no_sums = gpu.step_accumulated(ALL, tensors.iter_mut().map(|t| t.gpu_param()));
        assert!(matches!(no_sums, Err(Error::NoSums)), "{no_sums:?}");
        gpu.accumulate(tensors.iter().map(|t| t.gpu_grad(true))).unwrap();
        let before = twins.gpu_bits();
        let pending = twins.gpu_step(ALL, |_| true);
        assert!(matches!(pending, Err(Error::SumsPending { .. })), "{pending:?}");
        assert!(twins.gpu_bits() == before);
        twins.gpu.clear_accumulated();
        twins.step();
        twins.assert_same();
    });
}

/// Behind the last tensor, where a step looks for one too many.
fn bomb<T>() -> impl Iterator<Item = T> {
    iter::from_fn(|| panic!("the iterator's"))
}

fn panics<T>(call: impl FnOnce() -> T) {
    catch_unwind(AssertUnwindSafe(call)).err().expect("the iterator panics");
}

// A graph that adds to the sums writes to freed memory if they are lost.
#[test]
fn a_panic_of_an_iterator_loses_no_sums() {
    each_driver(|| {
        let mut twins = capturable([Shape::f32(20), Shape::f32(30)]);
        set(&mut twins, &Control::default());
        let stream = twins.gpu.device().stream().unwrap().clone();
        for _ in 0..3 {
            let Twins { gpu, cpu, tensors, .. } = &mut twins;
            (0..2).for_each(|_| gpu.accumulate(tensors.iter().map(|t| t.gpu_grad(true))).unwrap());
            (0..3).for_each(|_| cpu.accumulate(tensors.iter().map(|t| t.cpu_grad(true))).unwrap());
            // SAFETY: the graph is dropped before anything that it uses.
            unsafe { gpu.allow_capture() };
            stream.begin_capture(MODE).unwrap();
            gpu.accumulate(tensors.iter().map(|t| t.gpu_grad(true))).unwrap();
            let graph = stream.end_capture(FLAGS).unwrap().unwrap();
            panics(|| gpu.step_accumulated(ALL, tensors.iter_mut().map(|t| t.gpu_param()).chain(bomb())));
            panics(|| gpu.accumulate(tensors.iter().map(|t| t.gpu_grad(true)).chain(bomb())));
            graph.launch().unwrap();
            gpu.step_accumulated(ALL, tensors.iter_mut().map(|t| t.gpu_param())).unwrap();
            cpu.step_accumulated(ALL, tensors.iter_mut().map(|t| t.cpu_param())).unwrap();
            drop(graph);
            twins.assert_same();
        }
    });
}

// Between streams: the guards of the tensors that were named are dropped, and the next step takes them again.
#[test]
fn a_panic_of_an_iterator_changes_no_step_between_streams() {
    each_driver(|| {
        let context = CudaContext::new(0).unwrap();
        let device = Device::cuda(&context.new_stream().unwrap()).unwrap();
        let groups = [AdamWConfig::default()];
        let shapes = [Shape::f32(20), Shape::f32(30)];
        let mut twins = Twins::on(&device, &context.default_stream(), Values::Tame, &groups, shapes);
        for _ in 0..3 {
            let Twins { gpu, tensors, .. } = &mut twins;
            panics(|| gpu.step(tensors.iter_mut().map(|t| t.gpu_pair(true)).chain(bomb())));
            // SAFETY: nothing is prepared.
            panics(|| unsafe { gpu.prepare(tensors.iter_mut().map(|t| t.gpu_pair(true)).chain(bomb())) });
            twins.step();
        }
        twins.assert_same();
    });
}
