//! Bad input gives a typed error that names the tensor and both values, and changes nothing.

#![expect(clippy::unwrap_used, reason = "a test stops at the first error")]

use fused_adamw::{AdamW, AdamWConfig, Buffer, Device, Dtype, Error, Pair, Simd, StepOptions, TensorSpec, TensorState};
use half::bf16;
use proptest::prelude::*;

#[path = "errors/input.rs"]
mod input;
#[path = "errors/memory.rs"]
mod memory;
#[path = "errors/messages.rs"]
mod messages;
#[path = "errors/ranges.rs"]
mod ranges;
#[path = "errors/same_address.rs"]
mod same_address;

/// Two named tensors that have been stepped once.
struct Stepped {
    opt: AdamW,
    w: Vec<f32>,
    b: Vec<f32>,
    g: Vec<f32>,
}

fn stepped() -> Stepped {
    let specs = [TensorSpec::new(4).named("w"), TensorSpec::new(2).named("b")];
    let opt = AdamW::new(&Device::cpu(), AdamWConfig::default(), specs).unwrap();
    let mut all = Stepped { opt, w: vec![1.0; 4], b: vec![2.0; 2], g: vec![0.5; 4] };
    all.opt.step([(&mut all.w, &all.g[..4]), (&mut all.b, &all.g[..2])]).unwrap();
    all
}

impl Stepped {
    fn everything(&self) -> (Vec<TensorState>, Vec<f32>, Vec<f32>, Vec<f32>) {
        let states = (0..2).map(|i| self.opt.state(i).unwrap()).collect();
        (states, self.w.clone(), self.b.clone(), self.g.clone())
    }

    /// What `step` says, having changed nothing; and the optimizer works on.
    fn refused(mut self, step: impl FnOnce(&mut Self) -> fused_adamw::Result<()>) -> Error {
        let before = self.everything();
        let error = step(&mut self).unwrap_err();
        assert_eq!(self.everything(), before, "{error}");
        self.opt.step([(&mut self.w, &self.g[..4]), (&mut self.b, &self.g[..2])]).unwrap();
        assert_eq!(self.opt.state(0).unwrap().step, 2);
        error
    }
}

fn raw(address: u64, grad: u64, len: usize) -> Pair<'static> {
    // SAFETY: every test hands over addresses of living memory of that length, or ones that are refused unread.
    unsafe { Pair::from_raw(address, Dtype::F32, grad, Dtype::F32, len) }
}

#[test]
fn too_few_and_too_many_tensors() {
    let error = stepped().refused(|s| s.opt.step([(&mut s.w, &s.g)]));
    assert!(matches!(error, Error::TensorCount { expected: 2, actual: 1, .. }));
    let error = stepped().refused(|s| s.opt.step([(&mut s.w, &s.g[..4]), (&mut s.b, &s.g[..2]), (&mut vec![], &[])]));
    assert!(matches!(error, Error::TensorCount { expected: 2, actual: 3, tensor: Some(last) } if last.index == 1));
}

#[test]
fn a_parameter_or_gradient_of_another_length() {
    let error = stepped().refused(|s| s.opt.step([(&mut s.w[..], &s.g[..4]), (&mut s.b[..1], &s.g[..2])]));
    assert!(
        matches!(&error, Error::Length { tensor, buffer: Buffer::Param, expected: 2, actual: 1 } if tensor.index == 1)
    );
    let error = stepped().refused(|s| s.opt.step([(&mut s.w, &s.g[..3]), (&mut s.b, &s.g[..2])]));
    assert_eq!(error.to_string(), "tensor 0 (w): the gradient has 3 elements, 4 are registered");
}

#[test]
fn a_parameter_of_another_dtype_than_in_its_first_step_or_than_registered() {
    let error = stepped().refused(|s| {
        let mut other = [bf16::ONE; 2];
        s.opt.step([Pair::new(&mut s.w, &s.g[..4]), Pair::new(&mut other, &s.g[..2])])
    });
    assert_eq!(error.to_string(), "tensor 1 (b): the parameter is bf16, it was registered or first stepped as f32");

    let specs = [TensorSpec::new(1).dtype(Dtype::BF16)];
    let mut opt = AdamW::new(&Device::cpu(), AdamWConfig::default(), specs).unwrap();
    let mut p = [1.0_f32];
    let error = opt.step([(&mut p, &[1.0_f32])]).unwrap_err();
    assert!(matches!(error, Error::Dtype { expected: Dtype::BF16, actual: Dtype::F32, .. }));
    assert_eq!((p, opt.state(0).unwrap().step), ([1.0], 0));
}

#[test]
fn a_step_that_fails_does_not_decide_the_dtype() {
    let mut opt = AdamW::new(&Device::cpu(), AdamWConfig::default(), [1, 1]).unwrap();
    let (mut narrow, mut wide, g) = ([bf16::ONE], [1.0_f32], [1.0_f32]);
    let null = raw(0, g.as_ptr() as u64, 1);
    assert!(matches!(opt.step([Pair::new(&mut narrow, &g), null]), Err(Error::NullPointer { .. })));
    let mut other = [1.0_f32];
    opt.step([(&mut wide, &g), (&mut other, &g)]).unwrap();
    assert_eq!((opt.state(0).unwrap().step, opt.state(0).unwrap().master), (1, None));
}

#[test]
fn the_same_parameter_twice_and_parameters_that_share_one_byte() {
    for (shift, len) in [(0, 2), (4, 2), (12, 1)] {
        let mut shared = vec![1.0_f32; 8];
        let address = shared.as_mut_ptr() as u64;
        let error = stepped().refused(|s| {
            let g = s.g.as_ptr() as u64;
            let mut opt = AdamW::new(&Device::cpu(), AdamWConfig::default(), [4, len])?;
            opt.step([raw(address, g, 4), raw(address + shift, g, len)])
        });
        let Error::Overlap { first, second } = error else { panic!("{error}") };
        assert_eq!((first.tensor.index, second.tensor.index), (0, 1));
        assert_eq!((first.start, second.start), (address, address + shift));
        assert_eq!(shared, [1.0; 8]);
    }
}

#[test]
fn parameters_that_touch_do_not_overlap_nor_does_an_empty_one_anywhere() {
    let (mut shared, g) = (vec![1.0_f32; 8], vec![1.0_f32; 4]);
    let mut opt = AdamW::new(&Device::cpu(), AdamWConfig::default(), [4, 0, 0, 4]).unwrap();
    let (address, g) = (shared.as_mut_ptr() as u64, g.as_ptr() as u64);
    opt.step([raw(address + 16, g, 4), raw(address + 4, g, 0), raw(0, u64::MAX, 0), raw(address, g, 4)]).unwrap();
    assert!(shared.iter().all(|&x| x < 1.0));
}

#[test]
fn a_gradient_that_overlaps_any_parameter() {
    // Its own, and the last byte of another's, in both orders in memory.
    let error = stepped().refused(|s| {
        let (w, b, g) = (s.w.as_mut_ptr() as u64, s.b.as_mut_ptr() as u64, s.g.as_ptr() as u64);
        s.opt.step([raw(w, w, 4), raw(b, g, 2)])
    });
    assert!(error.to_string().starts_with("tensor 0 (w)'s parameter at 0x"), "{error}");
    let mut memory = vec![1.0_f32; 16];
    let address = memory.as_mut_ptr() as u64;
    let mut opt = AdamW::new(&Device::cpu(), AdamWConfig::default(), [4, 4]).unwrap();
    for grad in [4 * 4 - 12, 4 * 4 + 12] {
        let error = opt.step([raw(address + 48, address, 4), raw(address + 16, address + grad, 4)]).unwrap_err();
        let Error::Overlap { first, second } = error else { panic!("{error}") };
        assert_eq!((first.tensor.index, first.buffer, second.buffer), (1, Buffer::Param, Buffer::Grad));
    }
    assert_eq!(memory, [1.0; 16]);
}

#[test]
fn one_gradient_for_two_tensors_is_no_overlap() {
    let mut s = stepped();
    s.opt.step([(&mut s.w, &s.g[..4]), (&mut s.b, &s.g[1..3])]).unwrap();
}

#[test]
fn an_overlap_is_found_when_only_the_addresses_have_changed() {
    let (mut p, mut q, g) = (vec![1.0_f32; 4], vec![1.0_f32; 4], vec![1.0_f32; 4]);
    let (p_at, q_at, g_at) = (p.as_mut_ptr() as u64, q.as_mut_ptr() as u64, g.as_ptr() as u64);
    let mut opt = AdamW::new(&Device::cpu(), AdamWConfig::default(), [4, 4]).unwrap();
    let good = || [raw(p_at, g_at, 4), raw(q_at, g_at, 4)];
    opt.step(good()).unwrap();
    opt.step(good()).unwrap();
    assert!(matches!(opt.step([raw(p_at, g_at, 4), raw(p_at, g_at, 4)]), Err(Error::Overlap { .. })));
    assert!(matches!(opt.step([raw(p_at, g_at, 4), raw(p_at, g_at, 4)]), Err(Error::Overlap { .. })), "and again");
    opt.step(good()).unwrap();
    assert_eq!(opt.state(1).unwrap().step, 3);
    assert_eq!((p, g), (q, vec![1.0; 4]));
}

#[test]
fn null_misaligned_and_wrapping_raw_pointers() {
    let at = |s: &Stepped| (s.w.as_ptr() as u64, s.g.as_ptr() as u64, s.b.as_ptr() as u64);
    let step = |edit: fn((u64, u64, u64)) -> (u64, u64)| {
        stepped().refused(|s| {
            let (w, g, b) = at(s);
            let (param, grad) = edit((w, g, b));
            s.opt.step([raw(param, grad, 4), raw(b, g, 2)])
        })
    };
    assert_eq!(step(|(_, g, _)| (0, g)).to_string(), "tensor 0 (w): the parameter of 4 elements is at address 0");
    assert!(matches!(step(|(w, _, _)| (w, 0)), Error::NullPointer { buffer: Buffer::Grad, len: 4, .. }));
    assert!(matches!(step(|(w, g, _)| (w + 2, g)), Error::Misaligned { buffer: Buffer::Param, alignment: 4, .. }));
    assert!(matches!(step(|(w, g, _)| (w, g + 1)), Error::Misaligned { buffer: Buffer::Grad, alignment: 4, .. }));
    assert!(matches!(step(|(_, g, _)| (u64::MAX - 3, g)), Error::PastTheEnd { buffer: Buffer::Param, bytes: 16, .. }));
    assert!(matches!(step(|(_, g, _)| (u64::MAX - 2, g)), Error::Misaligned { .. }));
}

#[test]
fn hyper_parameters_out_of_their_range_change_no_group() {
    let good = AdamWConfig::default();
    let bad = AdamWConfig { betas: (0.9, 1.0), ..good };
    let error = AdamW::with_groups(&Device::cpu(), &[good, bad], [1_usize]).unwrap_err();
    assert_eq!(error.to_string(), "group 1: betas.1 is 1, must be in [0, 1)");
    let mut opt = AdamW::new(&Device::cpu(), good, [1]).unwrap();
    assert!(matches!(opt.set_lr(-1.0), Err(Error::Config { field: "lr", value: -1.0, .. })));
    assert!(matches!(opt.set_group(0, bad), Err(Error::Config { group: 0, field: "betas.1", .. })));
    let amsgrad = AdamWConfig { amsgrad: true, ..good };
    assert!(matches!(opt.set_group(0, amsgrad), Err(Error::Amsgrad { group: 0, given: true, allocated: false })));
    assert_eq!(opt.groups(), [good]);
}

#[test]
fn a_grad_scale_out_of_its_range() {
    for grad_scale in [f64::NAN, -1.0, f64::INFINITY] {
        let error = stepped()
            .refused(|s| s.opt.step_with(StepOptions { grad_scale }, [(&mut s.w, &s.g[..4]), (&mut s.b, &s.g[..2])]));
        assert!(matches!(error, Error::GradScale { value } if value.to_bits() == grad_scale.to_bits()));
    }
}

#[test]
fn a_group_or_tensor_that_is_not_there() {
    let specs = [TensorSpec::new(1), TensorSpec::new(1).named("head").group(1)];
    let error = AdamW::new(&Device::cpu(), AdamWConfig::default(), &specs).unwrap_err();
    assert_eq!(error.to_string(), "tensor 1 (head): group 1 is out of range, there is 1 group");
    let mut opt = AdamW::new(&Device::cpu(), AdamWConfig::default(), [1]).unwrap();
    let error = opt.set_group(1, AdamWConfig::default()).unwrap_err();
    assert_eq!(error.to_string(), "group 1 is out of range, there is 1 group");
    assert!(matches!(opt.state(1), Err(Error::TensorIndex { index: 1, count: 1 })));
}

#[test]
fn more_than_2_to_the_40_elements() {
    let lens = [1 << 39, 1 << 39, 1];
    let error = AdamW::new(&Device::cpu(), AdamWConfig::default(), lens).unwrap_err();
    let Error::TooManyElements { tensor, elements, limit } = error else { panic!("{error}") };
    assert_eq!((tensor.index, elements, limit), (2, (1 << 40) + 1, 1 << 40));
    assert!(AdamW::new(&Device::cpu(), AdamWConfig::default(), [usize::MAX, usize::MAX]).is_err());
}

#[test]
fn no_tensors_and_only_empty_tensors_step() {
    let mut none = AdamW::new(&Device::cpu(), AdamWConfig::default(), [0_usize; 0]).unwrap();
    none.step::<[(&mut [f32], &[f32]); 0]>([]).unwrap();
    assert!(none.is_empty());
    let mut empty = AdamW::new(&Device::cpu(), AdamWConfig::default(), [0, 0]).unwrap();
    empty.step([(&mut [0.0_f32; 0], &[0.0_f32; 0]), (&mut [], &[])]).unwrap();
    assert_eq!((empty.state(1).unwrap().step, empty.state(1).unwrap().m), (1, vec![]));
}

#[test]
fn an_instruction_set_that_the_processor_lacks() {
    for simd in [Simd::Portable, Simd::Avx2, Simd::Avx512] {
        match Device::cpu_with(simd) {
            Ok(device) => assert!(simd.is_available() && device.to_string().contains(&simd.to_string())),
            Err(Error::Simd { requested, best }) => assert!(requested == simd && best < simd && !simd.is_available()),
            Err(error) => panic!("{error}"),
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    // Every f64 there is, in every field: an error or a step, never a panic.
    #[test]
    fn no_configuration_panics(fields in prop::array::uniform6(any::<u64>().prop_map(f64::from_bits)), p in any::<[u32; 4]>()) {
        let [lr, beta1, beta2, eps, weight_decay, grad_scale] = fields;
        let wild = AdamWConfig { lr, betas: (beta1, beta2), eps, weight_decay, ..Default::default() };
        // Folded into the ranges it is extreme, and legal: within f32, products and quotients too.
        let legal = |x: f64| if x.is_finite() && (1e-45..1e19).contains(&x.abs()) { x.abs() } else { 0.0 };
        let tame = AdamWConfig {
            lr: legal(lr), betas: (legal(beta1) % 1.0, legal(beta2) % 1.0), eps: legal(eps),
            weight_decay: legal(weight_decay), ..Default::default()
        };
        for config in [wild, tame] {
            let Ok(mut opt) = AdamW::new(&Device::cpu(), config, [4]) else { continue };
            let mut params = p.map(f32::from_bits);
            let _ = opt.step_with(StepOptions { grad_scale }, [(&mut params, &p.map(f32::from_bits))]);
            opt.step([(&mut params, &p.map(f32::from_bits))]).unwrap();
            opt.set_lr(lr).unwrap_or_default();
        }
        prop_assert!(AdamW::new(&Device::cpu(), tame, [4]).is_ok());
    }
}

// A compile error is the failure.
#[test]
fn an_optimizer_and_its_errors_can_go_to_another_thread() {
    fn movable<T: Send + Sync>() {}
    movable::<AdamW>();
    movable::<Device>();
    movable::<Error>();
}
