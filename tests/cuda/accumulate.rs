//! Gradients of several passes, added up on the device: the CPU's bits, and what it costs.

use fused_adamw::AdamWConfig;

use crate::controlled::ALL;
use crate::driver::{calls, counts, each_driver, emulated};
use crate::twins::{DTYPES, LENGTHS, Shape, Twins};

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
