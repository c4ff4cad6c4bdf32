//! The CPU's bits are the GPU's: parameters, m, v, vmax, masters, and whatever lies around the parameters.

use fused_adamw::cudarc::driver::{DevicePtr, DevicePtrMut};
use fused_adamw::{AdamW, AdamWConfig, Algorithm, Device, Dtype, Pair, StepOptions};
use half::bf16;

use crate::driver::{each_driver, emulated};
use crate::twins::{DTYPES, LENGTHS, Shape, Twins, Values};

/// Distinct in every field, and each unlike the defaults.
const CONFIG: AdamWConfig = AdamWConfig {
    lr: 3e-3,
    betas: (0.85, 0.97),
    eps: 1e-6,
    weight_decay: 0.1,
    amsgrad: false,
    maximize: false,
    algorithm: Algorithm::AdamW,
};

/// Every branch of the arithmetic.
fn groups() -> [AdamWConfig; 8] {
    [
        CONFIG,
        AdamWConfig { amsgrad: true, lr: 1e-2, ..CONFIG },
        AdamWConfig { maximize: true, eps: 1e-3, betas: (0.85, 0.45), ..CONFIG },
        AdamWConfig { algorithm: Algorithm::Adam, weight_decay: 0.3, ..CONFIG },
        AdamWConfig { algorithm: Algorithm::Adam, amsgrad: true, maximize: true, ..CONFIG },
        AdamWConfig { betas: (0.0, 0.0), ..CONFIG },
        AdamWConfig { betas: (0.3, 0.97), amsgrad: true, ..CONFIG },
        AdamWConfig { eps: 0.0, lr: 0.0, weight_decay: 0.0, betas: (0.9, 0.999), ..CONFIG },
    ]
}

fn dtype_pairs() -> impl Iterator<Item = (Dtype, Dtype)> {
    DTYPES.into_iter().flat_map(|param| DTYPES.map(|grad| (param, grad)))
}

fn steps(mut twins: Twins, steps: usize) {
    for _ in 0..steps {
        twins.step();
    }
    twins.assert_same();
}

// Such a list has a kernel of its own; with AMSGrad it has not.
#[test]
fn one_dtype_of_every_length() {
    each_driver(|| {
        for (group, dtype) in groups().into_iter().flat_map(|group| DTYPES.map(|dtype| (group, dtype))) {
            steps(Twins::new(&[group], LENGTHS.map(|len| Shape::new(len, dtype, dtype))), 3);
        }
    });
}

// A dtype taken for another, a tail of 16-bit elements, the master read before it was set.
#[test]
fn every_pair_of_dtypes_of_every_length() {
    each_driver(|| {
        for (param, grad) in dtype_pairs() {
            steps(Twins::new(&[CONFIG], LENGTHS.map(|len| Shape::new(len, param, grad))), 3);
        }
    });
}

// The length of the head follows from the phase; the numbers of vectors and of what is left, from both.
#[test]
fn every_pair_of_dtypes_of_every_length_in_every_phase() {
    each_driver(|| {
        let short = LENGTHS.into_iter().filter(|&len| len <= 2049);
        let places: Vec<_> = short.flat_map(|len| (0..8).map(move |param_at| (len, param_at))).collect();
        for (param, grad) in dtype_pairs() {
            let shape = |&(len, param_at)| Shape { param_at, grad_at: len * 5 % 8, ..Shape::new(len, param, grad) };
            steps(Twins::new(&[CONFIG], places.iter().map(shape)), 2);
        }
    });
}

// A 16-byte access that is not on its boundary, a head or a tail done twice or not at all.
#[test]
fn views_that_begin_and_end_anywhere() {
    each_driver(|| {
        let phases = || (0..9).flat_map(|param_at| (0..9).map(move |grad_at| (param_at, grad_at)));
        for (param, grad) in dtype_pairs() {
            for len in [1, 6, 7, 8, 20, 1031] {
                let shape = |(param_at, grad_at)| Shape { param_at, grad_at, ..Shape::new(len, param, grad) };
                steps(Twins::new(&[CONFIG], phases().map(shape)), 2);
            }
        }
    });
}

// State that is laid out anew when its parameter moves would lose its moments.
#[test]
fn the_state_stays_where_it_is_when_its_parameter_moves() {
    each_driver(|| {
        let shape = |(param, grad)| [0, 1, 5].map(|param_at| Shape { param_at, ..Shape::new(1100, param, grad) });
        let mut twins = Twins::new(&[AdamWConfig { amsgrad: true, ..CONFIG }], dtype_pairs().flat_map(shape));
        for step in 0..6 {
            twins.step();
            twins.assert_same();
            (0..twins.tensors.len()).for_each(|i| twins.move_param(i, (i + 3 * step) % 9));
        }
    });
}

// A group's scalars given to another group; a branch of the update that one side lacks.
#[test]
fn every_group_with_every_pair_of_dtypes_through_a_schedule() {
    each_driver(|| {
        let groups = groups();
        let shapes = (0..groups.len()).flat_map(|group| {
            dtype_pairs().map(move |(param, grad)| Shape { group, ..Shape::new(40 + group, param, grad) })
        });
        let mut twins = Twins::new(&groups, shapes);
        for t in 1..=12_u8 {
            let lr = 1e-2 / f64::from(t);
            twins.cpu.set_lr(lr).and_then(|()| twins.gpu.set_lr(lr)).unwrap();
            let changed = AdamWConfig { weight_decay: 0.01 * f64::from(t), ..groups[3] };
            twins.cpu.set_group(3, changed).and_then(|()| twins.gpu.set_group(3, changed)).unwrap();
            twins.step_with(StepOptions { grad_scale: 1.0 / f64::from(t) }, |_| true);
            twins.assert_same();
        }
    });
}

// A step count of 8 bits, an f32 power of beta, an error that grows.
#[test]
fn three_hundred_steps() {
    each_driver(|| {
        let groups = groups();
        let shapes = dtype_pairs().enumerate().flat_map(|(i, (param, grad))| {
            (0..groups.len()).map(move |group| Shape { group, param_at: i, ..Shape::new(9 + i, param, grad) })
        });
        let mut twins = Twins::new(&groups, shapes);
        for _ in 0..3 {
            (0..100).for_each(|_| twins.step());
            twins.assert_same();
        }
        assert_eq!(twins.gpu.state(0).unwrap().step, 300);
    });
}

// Step counts then differ within a group, and so do the bias corrections.
#[test]
fn tensors_without_a_gradient_are_left_alone_and_their_step_counts_stay_behind() {
    each_driver(|| {
        let shapes = (0..24).map(|i| Shape { group: i % 8, ..Shape::new(30 + i, DTYPES[i % 3], DTYPES[i / 3 % 3]) });
        let mut twins = Twins::new(&groups(), shapes);
        for step in 0..7 {
            twins.step_with(StepOptions::default(), |i| (i + step) % 3 != 0 && i != 5);
            twins.assert_same();
        }
        let counts = |i| twins.gpu.state(i).unwrap().step;
        assert_eq!((counts(0), counts(1), counts(5)), (4, 5, 0));
    });
}

// The bias corrections are those of a tensor's own count, not of its group's: the same wrong ones on both devices.
#[test]
fn a_tensor_that_missed_a_step_is_then_where_its_twin_was_before() {
    each_driver(|| {
        let mut twins = Twins::new(&[CONFIG], [Shape::f32(20); 2]);
        for i in 0..2 {
            twins.set_param(i, (0x3f80_0000..).take(20).collect());
            twins.set_grad(i, (0x3d80_0000..).take(20).collect());
        }
        let mut stepped = |has_grad: fn(usize) -> bool| {
            twins.gpu_step(StepOptions::default(), has_grad).unwrap();
            [0, 1].map(|i| (twins.gpu.state(i).unwrap(), twins.tensors[i].param.1.to_host().bits()))
        };
        let [before, _] = stepped(|i| i == 0);
        let [after, late] = stepped(|_| true);
        assert!(late == before && late != after);
    });
}

// NaN that is stored as it came, a subnormal flushed to zero, an infinity that a 16-bit format rounds otherwise.
#[test]
fn any_bits_whatsoever() {
    each_driver(|| {
        let lists = [dtype_pairs().collect()].into_iter().chain(DTYPES.map(|dtype| vec![(dtype, dtype)]));
        for (list, config) in lists.flat_map(|list| groups().map(|config| (list.clone(), config))) {
            let shapes = list.into_iter().map(|(param, grad)| Shape::new(4000, param, grad));
            let mut twins = Twins::with_values(Values::Wild, &[config], shapes);
            for grad_scale in [1.0, 1e-3, 1e30] {
                twins.step_with(StepOptions { grad_scale }, |_| true);
                twins.assert_same();
            }
        }
    });
}

// Infinite in 16 bits, and finite in its master.
#[test]
fn a_parameter_that_outgrows_its_dtype() {
    each_driver(|| {
        let shapes = dtype_pairs().map(|(param, grad)| Shape::new(300, param, grad));
        let mut twins = Twins::new(&[AdamWConfig { lr: 2e4, weight_decay: 0.0, ..CONFIG }], shapes);
        (0..6).for_each(|_| twins.step());
        twins.assert_same();
        for (i, tensor) in twins.tensors.iter().enumerate().filter(|(_, tensor)| tensor.shape.param == Dtype::F16) {
            assert!(tensor.param.1.to_host().bits().contains(&0x7c00));
            assert!(twins.gpu.state(i).unwrap().master.unwrap().into_iter().all(f32::is_finite));
        }
    });
}

#[test]
fn all_16_bit_patterns_as_parameter_and_as_gradient() {
    each_driver(|| {
        for (param, grad) in dtype_pairs().filter(|(param, grad)| param.size() + grad.size() == 4) {
            let mut twins = Twins::new(&[CONFIG], [Shape::new(1 << 16, param, grad)]);
            // Gradients in an order of their own, so that an ordinary one meets a special parameter and vice versa.
            twins.set_param(0, (0..1 << 16).collect());
            twins.set_grad(0, (0..1 << 16).map(|i| (i * 40_503) & 0xffff).collect());
            for _ in 0..2 {
                twins.gpu_step(StepOptions::default(), |_| true).unwrap();
                twins.cpu_step(StepOptions::default(), |_| true).unwrap();
            }
            twins.assert_same();
        }
    });
}

// The first tensor alone, the first table full, an index of 16 bits.
#[test]
fn lists_of_1_to_3000_tensors() {
    each_driver(|| {
        for tensors in [1, 2, 3, 36, 257, 3000] {
            let shape = |i: usize| Shape { param_at: i % 9, ..Shape::new(i * 7 % 50, DTYPES[i % 3], DTYPES[i % 2]) };
            steps(Twins::new(&[CONFIG], (0..tensors).map(shape)), 2);
            steps(Twins::new(&[CONFIG], (0..tensors).map(|i| Shape::f32(i * 11 % 50))), 2);
        }
    });
}

// Apex loses the whole launch to an empty last tensor.
#[test]
fn empty_tensors_first_in_the_middle_and_last() {
    each_driver(|| {
        for dtype in DTYPES {
            for lengths in [vec![0, 5, 0, 0, 1025, 0], vec![5, 0], vec![0, 5], vec![0], vec![0, 0], vec![]] {
                steps(Twins::new(&[CONFIG], lengths.into_iter().map(|len| Shape::new(len, dtype, dtype))), 3);
            }
        }
    });
}

// Up to 112 pairs of group and step count are arguments of the kernel; more lie in device memory.
#[test]
fn more_groups_and_step_counts_than_fit_into_the_arguments() {
    each_driver(|| {
        for groups in [111, 112, 113, 150] {
            let config = |i: u8| AdamWConfig { lr: 1e-3 * (1.0 + f64::from(i)), ..CONFIG };
            let configs: Vec<_> = (0..groups).map(config).collect();
            let groups = configs.len();
            for dtype in [Dtype::F32, Dtype::BF16] {
                let shapes = (0..2 * groups).map(|i| Shape { group: i % groups, ..Shape::new(9, dtype, dtype) });
                let mut twins = Twins::new(&configs, shapes);
                twins.step();
                // Of each group one of two tensors: twice as many pairs from now on.
                twins.step_with(StepOptions::default(), |i| i < groups);
                twins.step();
                twins.step_with(StepOptions::default(), |i| i < 20); // and now few
                twins.step();
                twins.assert_same();
            }
        }
    });
}

// Masters that begin as zeros on both devices are the same, and wrong.
#[test]
fn a_learning_rate_of_0_leaves_every_parameter_as_it_is() {
    each_driver(|| {
        let shapes = dtype_pairs().map(|(param, grad)| Shape { param_at: 1, ..Shape::new(300, param, grad) });
        let mut twins = Twins::new(&[AdamWConfig { lr: 0.0, ..CONFIG }], shapes);
        let params = |twins: &Twins| twins.tensors.iter().map(|t| t.param.1.to_host().bits()).collect::<Vec<_>>();
        let before = params(&twins);
        (0..3).for_each(|_| twins.step());
        assert!(before == params(&twins));
    });
}

#[test]
fn a_gpu_without_memory_pools() {
    emulated(&[("EMULATED_MEMORY_POOLS", "0")], || {
        steps(Twins::new(&[CONFIG], LENGTHS.map(|len| Shape::new(len, Dtype::F16, Dtype::F32))), 2);
    });
}

// Masters that are not read again would undo what was written to their parameters.
#[test]
fn masters_are_read_again_when_asked() {
    each_driver(|| {
        let mut twins = Twins::new(&[CONFIG], [(Dtype::F16, 40), (Dtype::BF16, 9)].map(|(d, n)| Shape::new(n, d, d)));
        twins.step();
        for i in 0..2 {
            twins.set_param(i, (0x3c00..).take(twins.tensors[i].shape.len).collect());
        }
        [&mut twins.cpu, &mut twins.gpu].into_iter().for_each(|opt| opt.reload_masters().unwrap());
        twins.step();
        twins.assert_same();
        twins.step();
        twins.assert_same();
    });
}

// Memory that cudarc does not know: addresses alone.
#[test]
fn raw_addresses() {
    each_driver(|| {
        let device = Device::cuda_at(0).unwrap();
        let stream = device.stream().unwrap();
        let (p, g) = ([bf16::from_f32(1.5); 37], [0.25_f32; 37]);
        let (mut on_gpu, grad) = (stream.clone_htod(&p).unwrap(), stream.clone_htod(&g).unwrap());
        let mut on_cpu = p;
        let mut optimizers = [&device, &Device::cpu()].map(|device| AdamW::new(device, CONFIG, [36]).unwrap());
        for _ in 0..3 {
            let (param, _written) = on_gpu.device_ptr_mut(stream);
            let (grad, _read) = grad.device_ptr(stream);
            // SAFETY: 36 elements from the second one on, of 37, in order on the optimizer's stream.
            let raw = unsafe { Pair::from_raw(param + 2, Dtype::BF16, grad + 4, Dtype::F32, 36) };
            optimizers[0].step([raw]).unwrap();
            optimizers[1].step([(&mut on_cpu[1..], &g[1..])]).unwrap();
        }
        assert_eq!(stream.clone_dtoh(&on_gpu).unwrap(), on_cpu);
        assert_eq!(optimizers[0].state(0).unwrap(), optimizers[1].state(0).unwrap());
        assert_ne!(on_cpu[1], p[1]);
    });
}
