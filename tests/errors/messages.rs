//! What errors say, word for word: which tensor, both numbers, what to do; one of a thing and several.

use fused_adamw::{
    AdamW, AdamWConfig, Control, Decay, Device, Dtype, Error, Grad, LossScale, NonFinite, Pair, Schedule, StepOptions,
    TensorSpec,
};
use half::bf16;

const CONFIG: fn() -> AdamWConfig = AdamWConfig::default;

#[track_caller]
fn assert_says<T>(result: Result<T, Error>, text: &str) {
    assert_eq!(result.err().map(|error| error.to_string()).as_deref(), Some(text));
}

fn optimizer(lens: &[usize]) -> AdamW {
    let names = ["embed", "norm", "head.bias"];
    let specs = lens.iter().zip(names).map(|(&len, name)| TensorSpec::new(len).named(name));
    AdamW::new(&Device::cpu(), CONFIG(), specs).unwrap()
}

/// As many parameters of 1 element, and gradients.
fn step(opt: &mut AdamW, count: usize) -> Result<(), Error> {
    opt.step(vec![[1.0_f32]; count].iter_mut().zip(&vec![[1.0_f32]; count]))
}

#[test]
fn a_wrong_number_of_tensors_names_the_first_without_one() {
    let mut three = optimizer(&[1, 1, 1]);
    assert_says(
        step(&mut three, 2),
        "2 tensors were given, 3 are registered: tensor 2 (head.bias) is the first without one",
    );
    assert_says(step(&mut three, 1), "1 tensor was given, 3 are registered: tensor 1 (norm) is the first without one");
    assert_says(
        step(&mut three, 0),
        "0 tensors were given, 3 are registered: tensor 0 (embed) is the first without one",
    );
    let text = "more than 3 tensors were given, 3 are registered: tensor 2 (head.bias) is the last of these";
    assert_says(step(&mut three, 4), text);
    assert_says(step(&mut three, 7), text);
    assert_says(
        three.accumulate([[1.0_f32]; 2].iter()),
        "2 tensors were given, 3 are registered: tensor 2 (head.bias) is the first without one",
    );
    assert_says(three.accumulate([[1.0_f32]; 9].iter()), text);
    let text = "more than 1 tensor was given, 1 is registered: tensor 0 (embed) is the last of these";
    assert_says(step(&mut optimizer(&[1]), 2), text);
    assert_says(step(&mut optimizer(&[]), 1), "more than 0 tensors were given, 0 are registered");
}

#[test]
fn one_of_a_thing_and_several() {
    let mut p = [1.0_f32; 3];
    assert_says(
        optimizer(&[1]).step([(&mut p[..2], &[1.0_f32][..])]),
        "tensor 0 (embed): the parameter has 2 elements, 1 is registered",
    );
    assert_says(
        optimizer(&[2]).step([(&mut p[..2], &[1.0_f32][..])]),
        "tensor 0 (embed): the gradient has 1 element, 2 are registered",
    );
    assert_says(optimizer(&[2]).state(1), "tensor 1 is out of range, 1 tensor is registered");
    assert_says(optimizer(&[2, 1]).state(2), "tensor 2 is out of range, 2 tensors are registered");
    assert_says(optimizer(&[1]).set_group(1, CONFIG()), "group 1 is out of range, there is 1 group");
    let mut two = AdamW::with_groups(&Device::cpu(), &[CONFIG(); 2], [1]).unwrap();
    assert_says(two.set_group_lr(2, 0.1), "group 2 is out of range, there are 2 groups");
    assert_says(two.effective_lr(9), "group 9 is out of range, there are 2 groups");
    let device = |threads: usize| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        pool.install(|| Device::cpu().to_string())
    };
    assert!(device(1).ends_with(", 1 thread)") && device(2).ends_with(", 2 threads)"), "{}", device(1));
}

#[test]
fn skipped_steps() {
    let mut opt = optimizer(&[2]);
    let control = Control { non_finite: NonFinite::SkipStep, max_skipped: Some(1), ..Default::default() };
    opt.set_control(Some(control)).unwrap();
    (0..2).for_each(|_| opt.step([(&mut [1.0_f32; 2], &[f32::INFINITY, 1.0])]).unwrap());
    assert_says(
        opt.poll(),
        "2 steps skipped one after the other, at most 1 is allowed: 1 gradient of the last one was NaN or infinite, the norm inf",
    );
    let mut opt = optimizer(&[2]);
    opt.set_control(Some(Control { non_finite: NonFinite::Error, ..Default::default() })).unwrap();
    opt.step([(&mut [1.0_f32; 2], &[f32::NAN; 2])]).unwrap();
    assert_says(
        opt.poll(),
        "1 step skipped one after the other, at most 0 are allowed: 2 gradients of the last one were NaN or infinite, the norm NaN",
    );
}

#[test]
fn groups_and_names() {
    let none = AdamW::with_groups(&Device::cpu(), &[], [1_usize]).map(drop);
    assert_says(none, "no parameter groups given: every tensor is in one, the first by default");
    assert!(AdamW::with_groups(&Device::cpu(), &[], [0_usize; 0]).is_err());
    let named = |names: &[Option<&str>]| {
        let spec = |name: &Option<&str>| name.map_or(TensorSpec::new(1), |name| TensorSpec::new(1).named(name));
        AdamW::new(&Device::cpu(), CONFIG(), names.iter().map(spec)).map(drop)
    };
    assert_says(
        named(&[Some("a"), None, Some("b"), None, Some("a"), Some("b")]),
        "tensors 0 and 4 are both named a: give each a name of its own, or none",
    );
    assert_says(named(&[Some(""), Some("")]), "tensors 0 and 1 are both named : give each a name of its own, or none");
    named(&[Some("a"), None, Some("A"), None]).unwrap();
    let beyond = AdamW::new(&Device::cpu(), CONFIG(), [TensorSpec::new(1).named("w").group(3)]).map(drop);
    assert_says(beyond, "tensor 0 (w): group 3 is out of range, there is 1 group");
}

#[test]
fn a_control_names_its_remedy() {
    let mut opt = optimizer(&[1]);
    let set = |opt: &mut AdamW, control| opt.set_control(Some(control));
    assert_says(
        set(&mut opt, Control { loss_scale: Some(LossScale::default()), ..Default::default() }),
        "control: a loss scale adapts by the steps that are skipped, and none are: set `non_finite: NonFinite::SkipStep`",
    );
    let schedule = Schedule { decay: Decay::List([].into()), ..Default::default() };
    assert_says(
        set(&mut opt, Control { schedule, ..Default::default() }),
        "schedule: `Decay::List` is empty, it takes one factor at least",
    );
    set(&mut opt, Control { zero_grad: true, ..Default::default() }).unwrap();
    assert_says(
        step(&mut opt, 1),
        "tensor 0 (embed): `zero_grad` writes its gradient, which was given as `&`: give it as `&mut`, or set \
         `zero_grad: false`",
    );
}

#[test]
fn metrics_that_nobody_measures() {
    let text = "nothing is measured: set `metrics: true` or an `rms_alarm` by `set_control`";
    let mut opt = optimizer(&[1]);
    assert_says(opt.metrics(), text);
    opt.set_control(Some(Control { max_grad_norm: Some(1.0), ..Default::default() })).unwrap();
    step(&mut opt, 1).unwrap();
    assert_says(opt.metrics(), text);
    let alarm = Some(fused_adamw::Alarm::default());
    for control in [Control { metrics: true, ..Default::default() }, Control { rms_alarm: alarm, ..Default::default() }]
    {
        opt.set_control(Some(control)).unwrap();
        assert_eq!(opt.metrics().unwrap(), None);
        step(&mut opt, 1).unwrap();
        assert_eq!(opt.metrics().unwrap().unwrap().tensors.len(), 1);
    }
    opt.set_control(None).unwrap();
    assert_says(opt.metrics(), text);
}

#[test]
fn sums_that_wait_and_sums_that_are_not_there() {
    let mut opt = optimizer(&[1, 1]);
    let mut params = [[1.0_f32]; 2];
    let text = "nothing has been accumulated since the last `step_accumulated`: `accumulate` first, or `step`";
    assert_says(opt.step_accumulated(StepOptions::default(), &mut params), text);
    opt.accumulate([None, Some(&[1.0_f32])]).unwrap();
    assert_says(
        step(&mut opt, 2),
        "tensor 1 (norm): gradients have been accumulated: `step_accumulated` uses them, `clear_accumulated` drops them",
    );
}

fn raw(address: u64, grad: u64, len: usize) -> Pair<'static> {
    // SAFETY: addresses of living memory of that length, or ones that are refused unread.
    unsafe { Pair::from_raw(address, Dtype::F32, grad, Dtype::F32, len) }
}

#[test]
fn addresses() {
    let mut opt = optimizer(&[2, 2]);
    let (mut memory, g) = ([1.0_f32; 8], [1.0_f32; 2]);
    let (p, g) = (memory.as_mut_ptr() as u64, g.as_ptr() as u64);
    let second = |pair| [raw(p, g, 2), pair];
    assert_says(opt.step(second(raw(0, g, 2))), "tensor 1 (norm): the parameter of 2 elements is at address 0");
    let odd = p + 17;
    assert_says(
        opt.step(second(raw(odd, g, 2))),
        &format!("tensor 1 (norm): the parameter at {odd:#x} is not on a boundary of 4 bytes"),
    );
    // The last byte there is has no address behind it.
    for high in [u64::MAX - 7, u64::MAX - 3] {
        let text = format!("tensor 1 (norm): the gradient at {high:#x} of 8 bytes passes the end of the address space");
        assert_says(opt.step(second(raw(p + 16, high, 2))), &text);
        // SAFETY: (both) two f32, or refused unread.
        let grads = [g, high].map(|at| unsafe { Grad::from_raw(at, Dtype::F32, 2) });
        assert_says(opt.accumulate(grads), &text);
    }
    assert_says(
        opt.step(second(raw(p + 4, g, 2))),
        &format!(
            "tensor 0 (embed)'s parameter at {p:#x}..{:#x} overlaps tensor 1 (norm)'s parameter at {:#x}..{:#x}: register \
             a tied tensor once, with the sum of its gradients",
            p + 8,
            p + 4,
            p + 12
        ),
    );
    assert_says(
        opt.step(second(raw(p + 16, p, 2))),
        &format!(
            "tensor 0 (embed)'s parameter at {p:#x}..{:#x} overlaps tensor 1 (norm)'s gradient at {p:#x}..{:#x}: a step \
             writes the parameter, give the gradient memory of its own",
            p + 8,
            p + 8
        ),
    );
    opt.set_control(Some(Control { zero_grad: true, ..Default::default() })).unwrap();
    assert_says(
        opt.step(second(raw(p + 16, g, 2))),
        &format!(
            "tensor 0 (embed)'s gradient at {g:#x}..{:#x} overlaps tensor 1 (norm)'s gradient at {g:#x}..{:#x}: \
             `zero_grad` writes both, give each memory of its own",
            g + 8,
            g + 8
        ),
    );
    assert_eq!(memory, [1.0; 8]);
}

// Below its end the last address that there is can be used, by its numbers.
#[test]
fn sixteen_bits_are_half_as_far_from_the_end() {
    let mut opt = optimizer(&[2]);
    let mut p = [bf16::ONE; 2];
    // SAFETY: refused.
    let grad = unsafe { Grad::from_raw(u64::MAX - 3, Dtype::BF16, 2) };
    assert_says(
        opt.step([Pair::new(&mut p, grad)]),
        "tensor 0 (embed): the gradient at 0xfffffffffffffffc of 4 bytes passes the end of the address space",
    );
}

#[test]
fn factors_of_the_learning_rate() {
    let mut opt = optimizer(&[1]);
    for (factor, said) in [(f64::NAN, "NaN"), (-1.0, "-1"), (f64::INFINITY, "inf")] {
        let text = format!("the factor of the learning rates is {said}, must be in [0, inf)");
        assert_says(opt.scale_lr(factor), &text);
    }
    assert_says(opt.set_lr(1e300), "group 0: lr is 1e300, must be in [0, inf), as f32");
    assert_says(opt.set_lr(-0.125), "group 0: lr is -0.125, must be in [0, inf), as f32");
}
