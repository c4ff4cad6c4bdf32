//! What a guard decides is decided on the device, too: the CPU's bits and counts.

use fused_adamw::StepOptions;

use crate::cases::{CONFIG, Case, cases};
use crate::controlled::{assert_same, set};
use crate::driver::each_driver;
use crate::twins::{Shape, Twins};

fn run(Case { name, lens, control, steps, counts, tensors }: &Case) {
    let mut twins = Twins::new(&[CONFIG], lens.iter().map(|&len| Shape::f32(len)));
    set(&mut twins, control);
    for step in steps {
        step.grads.iter().enumerate().for_each(|(i, grad)| twins.overwrite_grad(i, grad.to_bits()));
        let options = StepOptions { grad_scale: step.grad_scale };
        twins.gpu_step(options, |_| true).unwrap();
        twins.cpu_step(options, |_| true).unwrap();
    }
    assert_same(&twins);
    let status = twins.gpu.status().unwrap().unwrap();
    assert_eq!((status.applied, status.skipped), *counts, "{name}, {control:?}");
    let steps: Vec<u64> = (0..lens.len()).map(|i| twins.gpu.state(i).unwrap().step).collect();
    assert_eq!(&steps, tensors, "{name}");
    let [cpu, gpu] =
        [&mut twins.cpu, &mut twins.gpu].map(|opt| [opt.poll(), opt.poll()].map(|told| format!("{told:?}")));
    assert_eq!(cpu, gpu, "{name}: what poll tells");
}

#[test]
fn each_case_has_its_counts_on_the_device() {
    each_driver(|| cases().iter().for_each(run));
}
