//! A step's bits are a function of each element's own values and step count, and of nothing else: not of the cut into
//! tensors, their order, their alignment, the threads, or the instruction set.

#![expect(clippy::unwrap_used, reason = "a test stops at the first error")]

use fused_adamw::{AdamW, AdamWConfig, Algorithm, Device, Dtype, Error, Float, Pair, Simd, StepOptions, TensorSpec};
use half::{bf16, f16};
use proptest::prelude::*;

const STEPS: usize = 3;

/// A list of tensors as values: parameters, and gradients of every step.
#[derive(Clone, Debug)]
struct List {
    params: Vec<Vec<f32>>,
    grads: [Vec<Vec<f32>>; STEPS],
}

/// Bits of p, m, v, vmax after the last step, tensor by tensor.
type Bits = Vec<[Vec<u32>; 4]>;

fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|x| x.to_bits()).collect()
}

impl List {
    fn lens(&self) -> Vec<usize> {
        self.params.iter().map(Vec::len).collect()
    }

    fn stepped(&self, device: &Device, config: AdamWConfig) -> Bits {
        let mut params = self.params.clone();
        let mut opt = AdamW::new(device, config, self.lens()).unwrap();
        for grads in &self.grads {
            opt.step(params.iter_mut().zip(grads)).unwrap();
        }
        collect(&opt, &params)
    }

    /// The same elements, in one tensor.
    fn joined(&self) -> Self {
        Self { params: vec![self.params.concat()], grads: self.grads.clone().map(|grads| vec![grads.concat()]) }
    }

    fn permuted(&self, order: &[usize]) -> Self {
        let permute = |tensors: &Vec<Vec<f32>>| order.iter().map(|&i| tensors[i].clone()).collect();
        Self { params: permute(&self.params), grads: self.grads.each_ref().map(permute) }
    }

    fn with_empty_at(&self, at: usize) -> Self {
        let mut list = self.clone();
        list.params.insert(at, Vec::new());
        list.grads.iter_mut().for_each(|grads| grads.insert(at, Vec::new()));
        list
    }
}

fn collect(opt: &AdamW, params: &[Vec<f32>]) -> Bits {
    let of = |(i, p): (usize, &Vec<f32>)| {
        let state = opt.state(i).unwrap();
        [bits(p), bits(&state.m), bits(&state.v), bits(&state.vmax.unwrap_or_default())]
    };
    params.iter().enumerate().map(of).collect()
}

fn joined_bits(list: &Bits) -> [Vec<u32>; 4] {
    std::array::from_fn(|i| list.iter().flat_map(|tensor| tensor[i].clone()).collect())
}

/// A value that meets in practice, or any bit pattern: zeros, subnormals, infinities, NaN.
fn value() -> impl Strategy<Value = f32> {
    prop_oneof![4 => -2.0_f32..2.0, 1 => (-1.0_f32..1.0).prop_map(|x| x * 1e-20), 1 => any::<u32>().prop_map(f32::from_bits)]
}

/// Lengths around what a vector register holds, and around a chunk.
fn len() -> impl Strategy<Value = usize> {
    prop_oneof![6 => 0..70_usize, 1 => 16 * 1024 - 1..16 * 1024 + 2_usize]
}

fn list() -> impl Strategy<Value = List> {
    prop::collection::vec(len(), 1..6).prop_flat_map(|lens| {
        // A few hundred different values, repeated at different places of each tensor, are as good as all different.
        prop::collection::vec(value(), 257).prop_map(move |pool| {
            let tensor = |salt: usize, len: usize| (0..len).map(|i| pool[(i * 7 + salt * 101) % 257]).collect();
            let tensors = |salt: usize| lens.iter().enumerate().map(|(i, &len)| tensor(salt + i, len)).collect();
            List { params: tensors(0), grads: std::array::from_fn(|step| tensors(10 * (step + 1))) }
        })
    })
}

fn config() -> impl Strategy<Value = AdamWConfig> {
    let beta = || prop_oneof![Just(0.0), Just(0.3), Just(0.9), Just(0.999)];
    let switches = (any::<bool>(), any::<bool>(), any::<bool>());
    (beta(), beta(), 0.0..0.2_f64, switches).prop_map(|(beta1, beta2, weight_decay, (amsgrad, maximize, l2))| {
        AdamWConfig {
            betas: (beta1, beta2),
            weight_decay,
            amsgrad,
            maximize,
            algorithm: if l2 { Algorithm::Adam } else { Algorithm::AdamW },
            ..Default::default()
        }
    })
}

fn simds() -> impl Iterator<Item = Simd> {
    [Simd::Portable, Simd::Avx2, Simd::Avx512].into_iter().filter(|simd| simd.is_available())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: cases(), failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn cutting_the_same_elements_into_other_tensors_changes_no_bit(list in list(), config in config()) {
        let whole = list.joined().stepped(&Device::cpu(), config);
        prop_assert_eq!(joined_bits(&list.stepped(&Device::cpu(), config)), joined_bits(&whole));
    }

    #[test]
    fn the_order_of_the_tensors_changes_no_bit(list in list(), config in config(), turn in 0..6_usize) {
        let order: Vec<usize> = (0..list.params.len()).rev().map(|i| (i + turn) % list.params.len()).collect();
        let stepped = list.stepped(&Device::cpu(), config);
        let wanted: Bits = order.iter().map(|&i| stepped[i].clone()).collect();
        prop_assert_eq!(list.permuted(&order).stepped(&Device::cpu(), config), wanted);
    }

    #[test]
    fn an_empty_tensor_anywhere_changes_no_bit(list in list(), config in config(), at in 0..6_usize) {
        let at = at.min(list.params.len());
        let mut stepped = list.with_empty_at(at).stepped(&Device::cpu(), config);
        prop_assert_eq!(stepped.remove(at), [const { Vec::new() }; 4]);
        prop_assert_eq!(stepped, list.stepped(&Device::cpu(), config));
    }

    #[test]
    fn threads_and_instruction_sets_change_no_bit(list in list(), config in config(), threads in 1..5_usize) {
        let wanted = list.stepped(&Device::cpu_with(Simd::Portable).unwrap(), config);
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        for simd in simds() {
            let device = Device::cpu_with(simd).unwrap();
            prop_assert_eq!(&pool.install(|| list.stepped(&device, config)), &wanted, "{}", simd);
        }
    }

    #[test]
    fn the_alignment_of_parameters_and_gradients_changes_no_bit(
        list in list(), config in config(), shifts in [0..9_usize, 0..9]
    ) {
        let shifted = |tensor: &[f32], by: usize| [vec![9.0; by], tensor.to_vec()].concat();
        let mut params: Vec<_> = list.params.iter().map(|p| shifted(p, shifts[0])).collect();
        let mut opt = AdamW::new(&Device::cpu(), config, list.lens()).unwrap();
        for grads in &list.grads {
            let grads: Vec<_> = grads.iter().map(|g| shifted(g, shifts[1])).collect();
            let pairs = params.iter_mut().zip(&grads);
            opt.step(pairs.map(|(p, g)| (&mut p[shifts[0]..], &g[shifts[1]..]))).unwrap();
        }
        prop_assert!(params.iter().all(|p| p[..shifts[0]].iter().all(|&x| x == 9.0)), "nothing before is written");
        let params: Vec<_> = params.iter().map(|p| p[shifts[0]..].to_vec()).collect();
        prop_assert_eq!(collect(&opt, &params), list.stepped(&Device::cpu(), config));
    }

    #[test]
    fn a_parameter_may_move_between_steps(list in list(), config in config(), shifts in [0..9_usize, 0..9, 0..9]) {
        let mut params = list.params.clone();
        let mut opt = AdamW::new(&Device::cpu(), config, list.lens()).unwrap();
        for (grads, shift) in list.grads.iter().zip(shifts) {
            let mut moved: Vec<_> = params.iter().map(|p| [vec![9.0; shift], p.clone()].concat()).collect();
            opt.step(moved.iter_mut().zip(grads).map(|(p, g)| (&mut p[shift..], g))).unwrap();
            params = moved.iter().map(|p| p[shift..].to_vec()).collect();
        }
        prop_assert_eq!(collect(&opt, &params), list.stepped(&Device::cpu(), config));
    }

    // The f32 arithmetic sees only widened values, so a 16-bit list is an f32 list of the same values with copies.
    #[test]
    fn a_16_bit_parameter_is_the_rounded_copy_of_an_f32_one(list in list(), config in config()) {
        narrow_is_a_copy::<bf16, f32>(&list, config)?;
        narrow_is_a_copy::<f16, f32>(&list, config)?;
        narrow_is_a_copy::<bf16, bf16>(&list, config)?;
        narrow_is_a_copy::<bf16, f16>(&list, config)?;
        narrow_is_a_copy::<f16, f16>(&list, config)?;
        narrow_is_a_copy::<f16, bf16>(&list, config)?;
        narrow_is_a_copy::<f32, f16>(&list, config)?;
        narrow_is_a_copy::<f32, bf16>(&list, config)?;
    }
}

/// Miri and valgrind are slow; the environment's own number counts.
fn cases() -> u32 {
    if std::env::var_os("PROPTEST_CASES").is_some() { ProptestConfig::default().cases } else { 48 }
}

/// What the test needs of a dtype, by the `half` crate and not by ours.
trait Convert: Float + std::fmt::Debug {
    fn of(x: f32) -> Self;
    fn wide(self) -> f32;
}

impl Convert for f32 {
    fn of(x: f32) -> Self {
        x
    }
    fn wide(self) -> f32 {
        self
    }
}

impl Convert for f16 {
    fn of(x: f32) -> Self {
        Self::from_f32(x)
    }
    fn wide(self) -> f32 {
        self.to_f32()
    }
}

impl Convert for bf16 {
    fn of(x: f32) -> Self {
        Self::from_f32(x)
    }
    fn wide(self) -> f32 {
        self.to_f32()
    }
}

fn converted<T: Convert>(tensors: &[Vec<f32>]) -> Vec<Vec<T>> {
    tensors.iter().map(|tensor| tensor.iter().map(|&x| T::of(x)).collect()).collect()
}

fn widened<T: Convert>(tensors: &[Vec<T>]) -> Vec<Vec<f32>> {
    tensors.iter().map(|tensor| tensor.iter().map(|x| x.wide()).collect()).collect()
}

fn narrow_is_a_copy<P: Convert, G: Convert>(list: &List, config: AdamWConfig) -> Result<(), TestCaseError>
where
    for<'a> &'a mut Vec<P>: Into<fused_adamw::Param<'a>>,
    for<'a> &'a Vec<G>: Into<fused_adamw::Grad<'a>>,
{
    let (first, grads) = (converted::<P>(&list.params), list.grads.each_ref().map(|g| converted::<G>(g)));
    let wide = List { params: widened(&first), grads: grads.each_ref().map(|g| widened(g)) };
    let wanted = wide.stepped(&Device::cpu(), config);
    for simd in simds() {
        let mut narrow = first.clone();
        let mut opt = AdamW::new(&Device::cpu_with(simd).unwrap(), config, list.lens()).unwrap();
        for grads in &grads {
            opt.step(narrow.iter_mut().zip(grads)).unwrap();
        }
        let masters: Vec<Vec<f32>> = match P::DTYPE {
            Dtype::F32 => widened(&narrow),
            _ => (0..opt.len()).map(|i| opt.state(i).unwrap().master.unwrap()).collect(),
        };
        prop_assert_eq!(collect(&opt, &masters), wanted.clone(), "{}", simd);
        for (x, master) in narrow.concat().into_iter().zip(masters.concat()) {
            let (x, copy) = (x.wide().to_bits(), P::of(master).wide().to_bits());
            let is_nan = master.is_nan() && f32::from_bits(x).is_nan();
            prop_assert!(x == copy || is_nan, "{}: {:#x} of {}", simd, x, master);
        }
    }
    Ok(())
}

#[test]
fn every_nan_that_is_stored_is_the_canonical_one() {
    let nans = [0x7fc0_0001, 0xffc0_0000, 0x7f80_0001, 0xffff_ffff].map(f32::from_bits);
    for simd in simds() {
        let list = List { params: vec![vec![1.0; 4]], grads: std::array::from_fn(|_| vec![nans.to_vec()]) };
        let [p, m, v, _] = &list.stepped(&Device::cpu_with(simd).unwrap(), AdamWConfig::default())[0];
        assert!([p, m, v].into_iter().flatten().all(|&bits| bits == 0x7fc0_0000), "{simd}");
    }
}

#[test]
fn a_tensor_without_a_gradient_is_left_alone_and_its_step_count_does_not_move() {
    let mut opt = AdamW::new(&Device::cpu(), AdamWConfig::default(), [3, 2]).unwrap();
    let (mut w, mut b) = ([1.0_f32, 2.0, 3.0], [4.0_f32, 5.0]);
    opt.step([Pair::new(&mut w, &[0.1_f32; 3]), Pair::new(&mut b, &[0.2_f32; 2])]).unwrap();
    let (before, b_before) = (opt.state(1).unwrap(), b);
    opt.step([Pair::new(&mut w, &[0.3_f32; 3]), Pair::without_grad(&mut b)]).unwrap();
    assert_eq!((opt.state(0).unwrap().step, opt.state(1).unwrap(), b), (2, before, b_before));
    // Its second step is its second: as if the step without a gradient had not been.
    let mut alone = AdamW::new(&Device::cpu(), AdamWConfig::default(), [2]).unwrap();
    let mut c = [4.0_f32, 5.0];
    alone.step([(&mut c, &[0.2_f32; 2])]).unwrap();
    alone.step([(&mut c, &[0.5_f32; 2])]).unwrap();
    opt.step([Pair::without_grad(&mut w), Pair::new(&mut b, &[0.5_f32; 2])]).unwrap();
    assert_eq!((bits(&b), opt.state(1).unwrap().step), (bits(&c), 2));
}

#[test]
fn maximize_is_descent_along_the_negated_gradient() {
    let (p, g) = ([1.0_f32, -2.0, 0.5], [0.1_f32, -0.0, 3.0]);
    let step = |config: AdamWConfig, g: [f32; 3]| {
        let (mut opt, mut p) = (AdamW::new(&Device::cpu(), config, [3]).unwrap(), p);
        opt.step([(&mut p, &g)]).unwrap();
        bits(&p)
    };
    let maximize = AdamWConfig { maximize: true, ..Default::default() };
    assert_eq!(step(maximize, g), step(AdamWConfig::default(), g.map(|x| -x)));
}

#[test]
fn grad_scale_multiplies_every_gradient_and_rewrites_none() {
    let mut opt = AdamW::new(&Device::cpu(), AdamWConfig::default(), [2]).unwrap();
    let mut twin = AdamW::new(&Device::cpu(), AdamWConfig::default(), [2]).unwrap();
    let (mut p, mut q, g) = ([1.0_f32, 2.0], [1.0_f32, 2.0], [0.3_f32, 7.0]);
    opt.step_with(StepOptions { grad_scale: 0.1 }, [(&mut p, &g)]).unwrap();
    twin.step([(&mut q, &g.map(|x| x * 0.1_f32))]).unwrap();
    assert_eq!((bits(&p), g), (bits(&q), [0.3, 7.0]));
}

#[test]
fn groups_have_their_own_hyper_parameters_and_can_be_changed_between_steps() {
    let (fast, slow) = (AdamWConfig { lr: 0.1, ..Default::default() }, AdamWConfig { lr: 0.01, ..Default::default() });
    let specs = [TensorSpec::new(1).group(1), TensorSpec::new(1)];
    let mut opt = AdamW::with_groups(&Device::cpu(), &[fast, slow], specs).unwrap();
    let (mut a, mut b) = ([0.0_f32], [0.0_f32]);
    opt.step([(&mut a, &[1.0_f32]), (&mut b, &[1.0_f32])]).unwrap();
    assert!((a[0] + 0.01).abs() < 1e-6 && (b[0] + 0.1).abs() < 1e-6, "{a:?} {b:?}");
    opt.set_group(1, AdamWConfig { lr: 0.0, ..slow }).unwrap();
    let before = a;
    opt.step([(&mut a, &[1.0_f32]), (&mut b, &[1.0_f32])]).unwrap();
    assert!(a == before && b[0] < -0.19);
    opt.set_lr(0.5).unwrap();
    assert!(opt.groups().iter().all(|group| group.lr == 0.5));
}

#[test]
fn reload_masters_takes_over_what_was_written_to_a_16_bit_parameter() {
    let mut opt = AdamW::new(&Device::cpu(), AdamWConfig { lr: 0.0, ..Default::default() }, [1]).unwrap();
    let mut p = [bf16::from_f32(1.0)];
    opt.step([(&mut p, &[1.0_f32])]).unwrap();
    p = [bf16::from_f32(8.0)];
    opt.step([(&mut p, &[1.0_f32])]).unwrap();
    assert_eq!(p[0].to_f32(), 1.0, "the master is what counts");
    p = [bf16::from_f32(8.0)];
    opt.reload_masters().unwrap();
    opt.step([(&mut p, &[1.0_f32])]).unwrap();
    assert_eq!((p[0].to_f32(), opt.state(0).unwrap().master), (8.0, Some(vec![8.0])));
}

#[test]
fn reload_master_leaves_other_masters_alone() {
    type Reload = fn(&mut AdamW);
    let ways: [Reload; 2] = [|opt| opt.reload_master(1).unwrap(), |opt| opt.reload_master_named("wte").unwrap()];
    for reload in ways {
        let specs = ["wpe", "wte", "head"].map(|name| TensorSpec::new(2).named(name));
        let mut opt = AdamW::new(&Device::cpu(), AdamWConfig { lr: 1e-5, ..Default::default() }, specs).unwrap();
        let mut params = [[1.0, 3.0].map(bf16::from_f32); 3];
        let step = |params: &mut [[bf16; 2]; 3], opt: &mut AdamW| {
            opt.step(params.iter_mut().zip([[0.5_f32, -0.5]; 3].iter())).unwrap();
            [0, 1, 2].map(|i| bits(&opt.state(i).unwrap().master.unwrap()))
        };
        let expected = {
            let specs = [(); 3].map(|()| TensorSpec::new(2));
            let mut twin = AdamW::new(&Device::cpu(), opt.groups()[0], specs).unwrap();
            let mut params = params;
            step(&mut params, &mut twin);
            step(&mut params, &mut twin)
        };
        step(&mut params, &mut opt);
        params[1] = [8.0, -8.0].map(bf16::from_f32);
        reload(&mut opt);
        let masters = step(&mut params, &mut opt);
        assert_eq!((&masters[0], &masters[2]), (&expected[0], &expected[2]));
        assert!(masters[1].iter().zip([8.0_f32, -8.0]).all(|(&x, p)| (f32::from_bits(x) - p).abs() < 1e-4));
    }
}

#[test]
fn reload_master_names_an_unknown_tensor() {
    let mut opt = AdamW::new(&Device::cpu(), AdamWConfig::default(), [TensorSpec::new(1).named("b")]).unwrap();
    let error = opt.reload_master_named("w").unwrap_err();
    assert_eq!(error.to_string(), "no tensor is named w: TensorSpec::named names them");
    assert!(matches!(opt.reload_master(1), Err(Error::TensorIndex { index: 1, count: 1 })));
    let mut p = [1.0_f32];
    opt.step([(&mut p, &[1.0_f32])]).unwrap();
    opt.reload_master_named("b").unwrap();
    opt.step([(&mut p, &[1.0_f32])]).unwrap();
    assert_eq!((opt.state(0).unwrap().step, opt.state(0).unwrap().master), (2, None));
}
