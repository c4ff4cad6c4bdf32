//! What a step does beside the update: what it measures, clamping and zeroing.

#![expect(clippy::unwrap_used, reason = "a test stops at the first error")]
#![expect(clippy::cast_precision_loss, reason = "small numbers")]

mod runs;

use fused_adamw::{
    AdamW, AdamWConfig, Buffer, Control, Device, Dtype, Error, Metrics, NonFinite, Pair, Simd, StepOptions,
    TensorMetrics, TensorSpec,
};
use half::bf16;
use proptest::prelude::*;
use runs::{CONFIG, grads, optimizer, params, states};

fn measuring() -> Control {
    Control { metrics: true, ..Default::default() }
}

const LENS: [usize; 4] = [3, 0, 20_000, 17];

// Measuring, clamping at a value that no gradient reaches, zeroing: the update's bits are those of the plain step.
#[test]
fn the_step_itself_is_the_plain_one() {
    let more = Control { max_grad_value: Some(3e38), zero_grad: true, ..measuring() };
    let (mut full, mut plain) = (optimizer(&LENS, Some(more)), AdamW::new(&Device::cpu(), CONFIG, LENS).unwrap());
    let (mut a, mut b) = (params(&LENS), params(&LENS));
    for t in 0..4 {
        full.step(a.iter_mut().zip(&mut grads(&LENS, t))).unwrap();
        plain.step(b.iter_mut().zip(&grads(&LENS, t))).unwrap();
    }
    assert!(a == b && states(&full) == states(&plain));
}

// torch.clamp(grad * scale, -value, value), which min and max leave a NaN alone in.
#[test]
fn a_clamped_step_is_a_plain_one_of_clamped_gradients() {
    let (mut clamped, mut plain) = (
        optimizer(&LENS, Some(Control { max_grad_value: Some(0.1), ..Default::default() })),
        optimizer(&LENS, Some(Control::default())),
    );
    let (mut a, mut b) = (params(&LENS), params(&LENS));
    for t in 0..4 {
        let mut grads = grads(&LENS, t);
        (grads[2][5], grads[2][6], grads[2][7]) = (f32::INFINITY, f32::NEG_INFINITY, f32::NAN);
        clamped.step_with(StepOptions { grad_scale: 0.3 }, a.iter_mut().zip(&grads)).unwrap();
        let torch = |g: &f32| (g * 0.3_f32).clamp(-0.1, 0.1);
        let grads: Vec<Vec<f32>> = grads.iter().map(|grad| grad.iter().map(torch).collect()).collect();
        plain.step(b.iter_mut().zip(&grads)).unwrap();
    }
    assert_eq!(a[2][6].to_bits(), b[2][6].to_bits());
    assert!(a[2][7].is_nan() && b[2][7].is_nan());
    let bits = |params: Vec<Vec<f32>>| params.into_iter().flatten().map(f32::to_bits).collect::<Vec<_>>();
    assert!(bits(a) == bits(b));
}

// Norm first, then value.
#[test]
fn both_clippings_in_their_order() {
    let mut both =
        optimizer(&[2], Some(Control { max_grad_norm: Some(5.0), max_grad_value: Some(3.0), ..Default::default() }));
    both.step([(&mut [0.0_f32; 2], &[30.0_f32, 40.0])]).unwrap();
    let m = both.state(0).unwrap().m;
    approx::assert_relative_eq!(m[0], 0.1 * 30.0 * 5.0 / (50.0 + 1e-6), max_relative = 1e-6);
    approx::assert_relative_eq!(m[1], 0.3, max_relative = 1e-6);
}

#[test]
fn gradients_are_zeroed_where_there_are_any_and_after_a_skipped_step_too() {
    for (skips, non_finite) in
        [(false, NonFinite::Propagate), (true, NonFinite::SkipStep), (true, NonFinite::SkipTensor)]
    {
        let mut opt = optimizer(&[3, 4], Some(Control { zero_grad: true, non_finite, ..Default::default() }));
        let (mut a, mut b, mut grad) = ([1.0_f32; 3], [bf16::ONE; 4], [bf16::NAN, -bf16::ONE, bf16::ZERO, bf16::ONE]);
        opt.step([Pair::without_grad(&mut a), Pair::new(&mut b, &mut grad)]).unwrap();
        assert_eq!(grad.map(bf16::to_bits), [0; 4]);
        assert_eq!(b == [bf16::ONE; 4], skips);
        // A step of zeros: nothing is skipped.
        opt.step([Pair::new(&mut a, &mut [0.0_f32; 3]), Pair::new(&mut b, &mut grad)]).unwrap();
        assert_eq!(opt.state(1).unwrap().step, if skips { 1 } else { 2 });
    }
}

#[test]
fn gradients_that_must_not_be_written_are_refused() {
    let mut opt = optimizer(&[2, 2], Some(Control { zero_grad: true, ..Default::default() }));
    let (mut a, mut b, mut grad, other) = ([1.0_f32; 2], [1.0_f32; 2], [1.0_f32; 2], [1.0_f32; 2]);
    let error = opt.step([Pair::new(&mut a, &mut grad), Pair::new(&mut b, &other)]).unwrap_err();
    assert_eq!(
        error.to_string(),
        "tensor 1 (one): `zero_grad` writes its gradient, which was given as `&`: give it as `&mut`, or set `zero_grad: false`"
    );
    let (at, grad_at) = ([a.as_mut_ptr(), b.as_mut_ptr()], grad.as_mut_ptr());
    let pair = |p: *mut f32| {
        // SAFETY: alive and writable; that the gradients overlap is what the step is to find.
        unsafe { Pair::from_raw(p as u64, Dtype::F32, grad_at as u64, Dtype::F32, 2) }
    };
    let pairs = || at.map(pair);
    assert!(matches!(opt.step(pairs()), Err(Error::Overlap { first, second })
        if (first.tensor.index, second.tensor.index) == (0, 1) && first.buffer == Buffer::Grad));
    // Without zeroing they may, and with it again they may not, though the addresses are known.
    opt.set_control(None).unwrap();
    opt.step(pairs()).unwrap();
    opt.set_control(Some(Control { zero_grad: true, ..Default::default() })).unwrap();
    assert!(opt.step(pairs()).is_err());
    assert_eq!(grad, [1.0; 2]);
}

/// What is measured of a tensor, in f64: gradient, parameter, update, and rms.
fn model(p: (&[f32], &[f32]), g: &[f32], v: &[f32], t: i32, scale: f64) -> [f64; 4] {
    let square = |x: f64| x * x;
    let norm = |squares: &dyn Fn(usize) -> f64| (0..g.len()).map(squares).sum::<f64>().sqrt();
    let f = |x: f32| f64::from(x);
    let root = |i: usize| (f(v[i]) / (1.0 - CONFIG.betas.1.powi(t))).sqrt().max(CONFIG.eps);
    [
        norm(&|i| square(scale * f(g[i]))),
        norm(&|i| square(f(p.1[i]))),
        norm(&|i| square(f(p.1[i]) - f(p.0[i]))),
        norm(&|i| square(scale * f(g[i]) / root(i))) / (g.len() as f64).sqrt(),
    ]
}

proptest! {
    // A sum of 8,192 squares in f32: a square is one rounding, and it passes 32 additions of a thread and 8 of the block;
    // the root halves these 41. Of the ratio six come before it is squared: scale, its product, root, correction, its
    // product, quotient. So all are off by less than 27 * 2^-24. The update is a difference of f32 numbers: one rounding.
    #[test]
    fn it_is_what_f64_makes_of_it(len in 1..20_000_usize, steps in 1..4_usize, scale in 0.25..4.0_f64) {
        let lens = [len, 5];
        let mut opt = optimizer(&lens, Some(measuring()));
        let mut params = params(&lens);
        for t in 0..steps {
            let (before, grads) = (params.clone(), grads(&lens, t));
            opt.step_with(StepOptions { grad_scale: scale }, params.iter_mut().zip(&grads)).unwrap();
            let metrics = opt.metrics().unwrap().unwrap();
            for (i, (_, found)) in metrics.tensors.iter().enumerate() {
                let v = opt.state(i).unwrap().v;
                let wanted = model((&before[i], &params[i]), &grads[i], &v, 1 + i32::try_from(t).unwrap(), scale);
                let found_norms = [found.grad_norm, found.param_norm, found.update_norm, found.rms];
                for (found, wanted) in found_norms.into_iter().zip(wanted) {
                    prop_assert!((found - wanted).abs() <= wanted * 27.0 * 2.0_f64.powi(-24), "{found} is not {wanted}");
                }
                let moved = params[i].iter().zip(&before[i]).map(|(p, q)| f64::from((p - q).abs())).fold(0.0, f64::max);
                prop_assert_eq!((found.max_update, found.elements), (moved, lens[i] as u64));
                prop_assert!(found.stepped && found.non_finite == 0);
                prop_assert_eq!(found.update_ratio, found.update_norm / found.param_norm);
            }
            let norm = |of: fn(&TensorMetrics) -> f64| {
                metrics.tensors.iter().map(|(_, tensor)| of(tensor).powi(2)).sum::<f64>().sqrt()
            };
            approx::assert_relative_eq!(metrics.total.grad_norm, norm(|t| t.grad_norm), max_relative = 1e-14);
            approx::assert_relative_eq!(metrics.total.update_norm, norm(|t| t.update_norm), max_relative = 1e-14);
            prop_assert_eq!(metrics.total.elements, len as u64 + 5);
        }
    }
}

// Threads, instruction sets, and where the arrays lie.
#[test]
fn it_is_a_function_of_order_and_lengths_alone() {
    let measured = |threads: usize, simd: Simd, offset: usize| -> Metrics {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        let lens = [300_001, 5, 9000];
        let mut opt = AdamW::new(&Device::cpu_with(simd).unwrap(), CONFIG, lens).unwrap();
        opt.set_control(Some(measuring())).unwrap();
        let padded = |t: usize| grads(&lens.map(|len| len + offset), t);
        let (mut params, mut grads) = (padded(1000), padded(3));
        for (all, fresh) in [(&mut params, runs::params(&lens)), (&mut grads, runs::grads(&lens, 3))] {
            all.iter_mut().zip(fresh).for_each(|(all, fresh)| all[offset..].copy_from_slice(&fresh));
        }
        let pairs = params.iter_mut().map(|p| &mut p[offset..]).zip(grads.iter().map(|g| &g[offset..]));
        pool.install(|| opt.step(pairs)).unwrap();
        opt.metrics().unwrap().unwrap()
    };
    let expected = measured(1, Simd::Portable, 0);
    for simd in [Simd::Portable, Simd::best()] {
        for (threads, offset) in [(1, 1), (2, 0), (3, 3)] {
            assert_eq!(
                measured(threads, simd, offset),
                expected,
                "{simd}, {threads} threads, {offset} elements before"
            );
        }
    }
}

#[test]
fn what_is_lost_in_rounding_and_what_eps_decides_is_counted() {
    let tiny = AdamWConfig { lr: 1e-4, weight_decay: 0.0, eps: 1e-3, ..CONFIG };
    let mut opt = AdamW::new(&Device::cpu(), tiny, [4, 2]).unwrap();
    opt.set_control(Some(measuring())).unwrap();
    // A step of 1e-4 is below half of bf16's step at 1, above it at 1/256, and nothing pulls at the last.
    let mut p = [1.0, 2.0, 1.0 / 256.0, 1.0].map(bf16::from_f32);
    opt.step([Pair::new(&mut p, &[0.5_f32, -0.5, 0.5, 0.0]), Pair::new(&mut [1.0_f32, 3000.0], &[1e-4_f32, 1.0])])
        .unwrap();
    let Metrics { tensors, total, .. } = opt.metrics().unwrap().unwrap();
    assert_eq!((tensors[0].1.unmoved, tensors[0].1.below_eps), (0.5, 0.25));
    assert_eq!((tensors[1].1.unmoved, tensors[1].1.below_eps), (0.5, 0.5));
    assert_eq!((total.unmoved, total.below_eps, total.elements), (0.5, 2.0 / 6.0, 6));
}

#[test]
fn a_tensor_without_a_gradient_and_a_step_that_is_skipped() {
    let mut opt = optimizer(&[2, 3], Some(Control { non_finite: NonFinite::SkipStep, ..measuring() }));
    let (mut a, mut b) = ([3.0_f32, 4.0], [1.0_f32; 3]);
    assert_eq!(opt.metrics().unwrap(), None);
    opt.step([Pair::new(&mut a, &[1.0_f32; 2]), Pair::without_grad(&mut b)]).unwrap();
    assert_eq!(opt.metrics().unwrap().unwrap().tensors[1].1, TensorMetrics::default());
    let before = (a, b);
    opt.step([Pair::new(&mut a, &[3.0_f32, 4.0]), Pair::new(&mut b, &[f32::NAN, f32::INFINITY, 1.0])]).unwrap();
    let metrics = opt.metrics().unwrap().unwrap();
    assert_eq!((before, metrics.status.skipped), ((a, b), 1));
    let (first, worst) = (metrics.tensors[0].1, metrics.worst().unwrap());
    assert_eq!((first.stepped, first.grad_norm, first.update_norm, first.non_finite), (false, 5.0, 0.0, 0));
    assert_eq!((worst.0.index, worst.1.non_finite, metrics.total.non_finite, metrics.total.stepped), (1, 2, 2, false));
    assert!(metrics.total.grad_norm.is_nan() && first.unmoved == 0.0);
}

// The norm that all are clipped to makes NaN of every tensor.
#[test]
fn the_worst_tensor_is_the_one_whose_gradient_is_not_finite() {
    let control = Control { max_grad_norm: Some(1.0), ..measuring() };
    let mut opt = optimizer(&[2, 2], Some(control));
    opt.step([(&mut [1.0_f32; 2], &[f32::NAN, 1.0]), (&mut [1.0_f32; 2], &[1.0, 1.0])]).unwrap();
    let metrics = opt.metrics().unwrap().unwrap();
    assert!(metrics.tensors.iter().all(|(_, tensor)| tensor.rms.is_nan()));
    assert_eq!(metrics.worst().unwrap().0.to_string(), "tensor 0 (zero)");
}

#[test]
fn what_is_out_of_its_range_is_named() {
    let mut opt = optimizer(&[1], Some(measuring()));
    let mut refused = |control: Control| opt.set_control(Some(control)).unwrap_err().to_string();
    let values =
        [(0.0, "0"), (-1.0, "-1"), (f64::NAN, "NaN"), (f64::INFINITY, "inf"), (1e-60, "1e-60"), (1e60, "1e60")];
    for (value, printed) in values {
        let control = Control { max_grad_value: Some(value), ..Default::default() };
        assert_eq!(refused(control), format!("control: max_grad_value is {printed}, must be in (0, inf), as f32"));
    }
    opt.step([(&mut [1.0_f32], &[1.0_f32])]).unwrap();
    assert!(opt.metrics().unwrap().is_some());
}

// Nothing was measured: nobody is to blame, and not the first of the list.
#[test]
fn without_elements_no_tensor_is_the_worst() {
    let mut opt = optimizer(&[0, 0], Some(measuring()));
    opt.step([(&mut [0.0_f32; 0], &[0.0_f32; 0]), (&mut [], &[])]).unwrap();
    let metrics = opt.metrics().unwrap().unwrap();
    assert!(metrics.worst().is_none() && metrics.total.elements == 0);
}

#[test]
fn a_registered_dtype_has_no_master_to_read_before_its_first_step() {
    let spec = TensorSpec::new(2).dtype(Dtype::BF16);
    let mut opt = AdamW::new(&Device::cpu(), AdamWConfig::default(), [spec]).unwrap();
    assert_eq!(opt.state(0).unwrap().master, None);
    let mut p = [bf16::ONE; 2];
    opt.step([(&mut p, &[0.0_f32; 2])]).unwrap();
    assert!(opt.state(0).unwrap().master.is_some());
}
