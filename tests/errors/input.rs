//! Iterators that never end, lie about their lengths, or panic: an error or a panic of theirs, and an optimizer that works
//! as if the call had not been made.

use fused_adamw::{
    AdamW, AdamWConfig, Control, Device, Dtype, Error, Grad, Pair, Param, StepOptions, TensorSpec, TensorState,
};
use std::iter;
use std::panic::{AssertUnwindSafe, catch_unwind};

/// What `inner` gives, and what it says of its length.
struct Liar<I>(I, (usize, Option<usize>));

impl<I: Iterator> Iterator for Liar<I> {
    type Item = I::Item;

    fn next(&mut self) -> Option<I::Item> {
        self.0.next()
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        self.1
    }
}

const LIES: [(usize, Option<usize>); 4] =
    [(usize::MAX, None), (usize::MAX, Some(usize::MAX)), (0, Some(0)), (usize::MAX / 2, Some(3))];

/// Two tensors of two elements and their gradients, by address.
#[derive(Debug, PartialEq)]
struct Tensors {
    params: [[f32; 2]; 2],
    grads: [[f32; 2]; 2],
}

fn tensors() -> Tensors {
    Tensors { params: [[1.0, 2.0], [3.0, 4.0]], grads: [[0.5, -1.0], [0.25, 2.0]] }
}

impl Tensors {
    fn param(&mut self, i: usize) -> Param<'static> {
        // SAFETY: (all) of a living tensor, which nobody uses while a step does.
        unsafe { Param::from_raw(self.params[i % 2].as_mut_ptr() as u64, Dtype::F32, 2) }
    }

    fn grad(&self, i: usize) -> Grad<'static> {
        // SAFETY: see above.
        unsafe { Grad::from_raw(self.grads[i % 2].as_ptr() as u64, Dtype::F32, 2) }
    }

    fn pair(&mut self, i: usize) -> Pair<'static> {
        Pair::new(self.param(i), self.grad(i))
    }
}

fn optimizer() -> AdamW {
    AdamW::new(&Device::cpu(), AdamWConfig::default(), [2, 2]).unwrap()
}

fn states(opt: &AdamW) -> [TensorState; 2] {
    [0, 1].map(|i| opt.state(i).unwrap())
}

/// Whether a call took more tensors than there are.
#[track_caller]
fn assert_too_many(result: Result<(), Error>) {
    assert!(matches!(result, Err(Error::TensorCount { expected: 2, actual: 3, .. })), "{result:?}");
}

#[test]
fn endless_lists_of_tensors_are_too_many() {
    let (mut opt, mut t) = (optimizer(), tensors());
    assert_too_many(opt.step((0..usize::MAX).map(|i| t.pair(i))));
    assert_too_many(opt.step(iter::repeat_with(|| t.pair(1))));
    // SAFETY: the tensors are used by nobody, and the preparation is refused.
    assert_too_many(unsafe { opt.prepare((0..usize::MAX).map(|i| t.pair(i))) });
    assert_too_many(opt.accumulate((0..usize::MAX).map(|i| t.grad(i))));
    assert_too_many(opt.accumulate(iter::repeat([0.5_f32; 2]).map(|_| t.grad(0))));
    assert!(matches!(opt.step_accumulated(StepOptions::default(), [t.param(0)]), Err(Error::NoSums)));
    opt.accumulate([t.grad(0), t.grad(1)]).unwrap();
    assert_too_many(opt.step_accumulated(StepOptions::default(), (0..usize::MAX).map(|i| t.param(i))));
    opt.step_accumulated(StepOptions::default(), [t.param(0), t.param(1)]).unwrap();
    assert_eq!(states(&opt).map(|state| state.step), [1, 1]);
}

// Counting to 2^64 would not end; that the rest is not asked for can be seen.
#[test]
fn the_rest_of_a_list_that_is_too_long_is_not_asked_for() {
    let (mut opt, mut t, mut asked) = (optimizer(), tensors(), 0);
    assert_too_many(opt.step((0..1000).map(|i| {
        asked = i;
        t.pair(i)
    })));
    assert_eq!(asked, 2);
}

#[test]
fn lengths_that_are_lies_harm_no_step() {
    for lie in LIES {
        let (mut opt, mut t) = (optimizer(), tensors());
        opt.step(Liar((0..2).map(|i| t.pair(i)), lie)).unwrap();
        // SAFETY: the tensors stay where they are.
        unsafe { opt.prepare(Liar((0..2).map(|i| t.pair(i)), lie)).unwrap() };
        opt.step_prepared(StepOptions::default()).unwrap();
        opt.accumulate(Liar((0..2).map(|i| t.grad(i)), lie)).unwrap();
        opt.step_accumulated(StepOptions::default(), Liar((0..2).map(|i| t.param(i)), lie)).unwrap();
        assert_eq!(states(&opt).map(|state| state.step), [3, 3], "{lie:?}");
        let short = opt.step(Liar((0..1).map(|i| t.pair(i)), lie));
        assert!(matches!(short, Err(Error::TensorCount { expected: 2, actual: 1, .. })), "{short:?}");
        assert_too_many(opt.step(Liar((0..5).map(|i| t.pair(i)), lie)));
    }
}

#[test]
fn endless_lists_are_not_registered() {
    let new = |tensors: &mut dyn Iterator<Item = usize>| AdamW::new(&Device::cpu(), AdamWConfig::default(), tensors);
    let error = new(&mut iter::repeat(0)).unwrap_err();
    assert!(matches!(error, Error::TooManyTensors { count: usize::MAX, limit } if limit == (1 << 32) - 1), "{error}");
    let error = new(&mut (1..usize::MAX)).unwrap_err();
    assert!(matches!(error, Error::TooManyTensors { .. }), "{error}");
    // Without a promise of its length: it is asked until there is too much.
    let error = new(&mut iter::from_fn(|| Some(1 << 30))).unwrap_err();
    assert!(matches!(&error, Error::TooManyElements { tensor, .. } if tensor.index == 1024), "{error}");
    let error = new(&mut Liar(0..2, (1 << 32, None))).unwrap_err();
    assert!(matches!(error, Error::TooManyTensors { count: 0x1_0000_0000, .. }), "{error}");
    for lie in [(0, Some(0)), (1_000_000_000, None)] {
        assert_eq!(new(&mut Liar(0..2, lie)).unwrap().len(), 2);
    }
}

/// What `call` panics with is the iterator's own.
fn panics(call: impl FnOnce() -> Result<(), Error>) {
    let panic = catch_unwind(AssertUnwindSafe(call)).unwrap_err();
    assert_eq!(panic.downcast_ref::<&str>(), Some(&"the iterator's"));
}

/// `good` items, and a panic.
fn bomb<T>(good: usize, mut item: impl FnMut(usize) -> T) -> impl Iterator<Item = T> {
    (0..9).map(move |i| if i < good { item(i) } else { panic!("the iterator's") })
}

/// Panics as it becomes a tensor.
struct Bomb;

#[expect(clippy::from_over_into, reason = "a foreign type")]
impl<'a> Into<Pair<'a>> for Bomb {
    fn into(self) -> Pair<'a> {
        panic!("the iterator's")
    }
}

#[expect(clippy::from_over_into, reason = "a foreign type")]
impl<'a> Into<Param<'a>> for Bomb {
    fn into(self) -> Param<'a> {
        panic!("the iterator's")
    }
}

#[expect(clippy::from_over_into, reason = "a foreign type")]
impl<'a> Into<Grad<'a>> for Bomb {
    fn into(self) -> Grad<'a> {
        panic!("the iterator's")
    }
}

#[expect(clippy::from_over_into, reason = "a foreign type")]
impl Into<TensorSpec> for Bomb {
    fn into(self) -> TensorSpec {
        panic!("the iterator's")
    }
}

/// Panics as it is dropped, after all of its items.
struct Late<I>(I);

impl<I: Iterator> Iterator for Late<I> {
    type Item = I::Item;

    fn next(&mut self) -> Option<I::Item> {
        self.0.next()
    }
}

impl<I> Drop for Late<I> {
    fn drop(&mut self) {
        panic!("the iterator's");
    }
}

/// Panics in every way there is. `others`: tensors that are elsewhere.
fn panic_in_steps(opt: &mut AdamW, t: &mut Tensors, others: &mut Tensors) {
    for good in 0..3 {
        panics(|| opt.step(bomb(good, |i| t.pair(i))));
        panics(|| opt.step(bomb(good, |i| others.pair(i))));
        panics(|| opt.step_with(StepOptions { grad_scale: 0.5 }, bomb(good, |i| t.pair(i))));
        // SAFETY: it panics, and prepares nothing.
        panics(|| unsafe { opt.prepare(bomb(good, |i| others.pair(i))) });
    }
    panics(|| opt.step([Bomb, Bomb]));
    panics(|| opt.step(Late((0..2).map(|i| others.pair(i)))));
    panics(|| opt.step(Late((0..3).map(|i| t.pair(i)))));
}

/// As above, with sums of gradients.
fn panic_with_sums(opt: &mut AdamW, t: &mut Tensors, others: &mut Tensors) {
    let options = StepOptions { grad_scale: 0.5 };
    for good in 0..3 {
        panics(|| opt.accumulate(bomb(good, |i| others.grad(i))));
        panics(|| opt.step_accumulated(options, bomb(good, |i| t.param(i))));
        panics(|| opt.step_accumulated(options, bomb(good, |i| others.param(i))));
    }
    panics(|| opt.accumulate([Bomb, Bomb]));
    panics(|| opt.step_accumulated(options, [Bomb, Bomb]));
    panics(|| opt.accumulate(Late((0..2).map(|i| t.grad(i)))));
    panics(|| opt.step_accumulated(options, Late((0..2).map(|i| others.param(i)))));
    panics(|| opt.step_accumulated(options, Late((0..3).map(|i| t.param(i)))));
}

/// Three steps by sums of two passes, and by gradients in between.
fn trained(control: Option<Control>, with_panics: bool) -> ([TensorState; 2], Tensors, Tensors) {
    let (mut opt, mut t, mut others) = (optimizer(), tensors(), tensors());
    opt.set_control(control).unwrap();
    for step in 0..3 {
        t.grads = tensors().grads;
        if with_panics {
            panic_in_steps(&mut opt, &mut t, &mut others);
        }
        for _pass in 0..2 {
            opt.accumulate([t.grad(0), t.grad(1)]).unwrap();
            if with_panics {
                panic_with_sums(&mut opt, &mut t, &mut others);
            }
        }
        opt.step_accumulated(StepOptions::default(), [t.param(0), t.param(1)]).unwrap();
        if step > 0 {
            opt.step([t.pair(0), t.pair(1)]).unwrap();
        }
    }
    (states(&opt), t, others)
}

#[test]
fn a_panic_of_an_iterator_changes_nothing() {
    let clip = Control { max_grad_norm: Some(1.0), zero_grad: true, ..Default::default() };
    for control in [None, Some(clip)] {
        assert_eq!(trained(control.clone(), true), trained(control, false));
    }
    panics(|| AdamW::new(&Device::cpu(), AdamWConfig::default(), [Bomb]).map(drop));
}
