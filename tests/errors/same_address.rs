//! A step compares its tensors with those of the step before, and checks what has changed. So every field that a check
//! depends on is changed here after a good step, at the same address.

use fused_adamw::{AdamW, AdamWConfig, Buffer, Control, Device, Dtype, Error, Grad, Pair, Param, TensorState};
use half::bf16;

/// Two tensors of four f32 after two good steps, the gradients where `at` says in `grads`.
struct Good {
    opt: AdamW,
    params: [[f32; 4]; 2],
    /// Of 16 bytes each, and as much behind.
    grads: [[u32; 8]; 2],
}

fn param(at: u64, dtype: Dtype, len: usize) -> Param<'static> {
    // SAFETY: addresses of arrays that outlive the steps, and are used by nobody in them.
    unsafe { Param::from_raw(at, dtype, len) }
}

fn grad(at: u64, dtype: Dtype, len: usize) -> Grad<'static> {
    // SAFETY: as above.
    unsafe { Grad::from_raw(at, dtype, len) }
}

impl Good {
    fn new(control: Option<Control>) -> Box<Self> {
        let opt = AdamW::new(&Device::cpu(), AdamWConfig::default(), [4, 4]).unwrap();
        let mut good = Box::new(Self { opt, params: [[1.0; 4]; 2], grads: [[0x3f00_3f00; 8]; 2] });
        good.opt.set_control(control).unwrap();
        good
    }

    /// Steps by this second pair twice, and then by the other one.
    fn then(
        &mut self,
        first: impl Fn(u64, u64) -> Pair<'static>,
        then: impl Fn(u64, u64) -> Pair<'static>,
    ) -> Result<(), Error> {
        let [p, q] = self.params.each_mut().map(|param| param.as_mut_ptr() as u64);
        let [g, h] = self.grads.each_mut().map(|grad| grad.as_mut_ptr() as u64);
        let one = || Pair::new(param(p, Dtype::F32, 4), grad(g, Dtype::F32, 4));
        (0..2).for_each(|_| self.opt.step([one(), first(q, h)]).unwrap());
        self.opt.step([one(), then(q, h)])
    }

    fn everything(&self) -> (Vec<TensorState>, [[f32; 4]; 2], [[u32; 8]; 2]) {
        ((0..2).map(|i| self.opt.state(i).unwrap()).collect(), self.params, self.grads)
    }
}

fn plain(q: u64, h: u64) -> Pair<'static> {
    Pair::new(param(q, Dtype::F32, 4), grad(h, Dtype::F32, 4))
}

/// The error of `bad` after two steps by `good`; and that nothing has changed since those.
fn refused(
    control: Option<Control>,
    good: impl Fn(u64, u64) -> Pair<'static>,
    bad: impl Fn(u64, u64) -> Pair<'static>,
) -> Error {
    let (mut tried, mut spared) = (Good::new(control.clone()), Good::new(control));
    let error = tried.then(&good, bad).unwrap_err();
    spared.then(&good, |_, _| plain(0, 0)).unwrap_err();
    assert_eq!(tried.everything(), spared.everything(), "{error}");
    error
}

#[test]
fn the_length_of_the_parameter_and_of_the_gradient() {
    let short_param = |q, h| Pair::new(param(q, Dtype::F32, 3), grad(h, Dtype::F32, 4));
    let error = refused(None, plain, short_param);
    assert!(matches!(error, Error::Length { buffer: Buffer::Param, expected: 4, actual: 3, .. }), "{error}");
    let short_grad = |q, h| Pair::new(param(q, Dtype::F32, 4), grad(h, Dtype::F32, 3));
    let error = refused(None, plain, short_grad);
    assert!(matches!(error, Error::Length { buffer: Buffer::Grad, expected: 4, actual: 3, .. }), "{error}");
}

#[test]
fn the_dtype_of_the_parameter() {
    let narrow = |q, h| Pair::new(param(q, Dtype::BF16, 4), grad(h, Dtype::F32, 4));
    let error = refused(None, plain, narrow);
    assert!(matches!(error, Error::Dtype { expected: Dtype::F32, actual: Dtype::BF16, .. }), "{error}");
}

// An address fits one dtype, and not another; and the same bits are other numbers.
#[test]
fn the_dtype_of_the_gradient() {
    let good = |q, h| Pair::new(param(q, Dtype::F32, 4), grad(h + 2, Dtype::BF16, 4));
    let error = refused(None, good, |q, h| Pair::new(param(q, Dtype::F32, 4), grad(h + 2, Dtype::F32, 4)));
    assert!(matches!(error, Error::Misaligned { buffer: Buffer::Grad, alignment: 4, .. }), "{error}");

    let mut all = Good::new(None);
    all.then(plain, |q, h| Pair::new(param(q, Dtype::F32, 4), grad(h, Dtype::BF16, 4))).unwrap();
    let (mut opt, mut q) = (AdamW::new(&Device::cpu(), AdamWConfig::default(), [4]).unwrap(), [1.0_f32; 4]);
    let (wide, narrow) = ([f32::from_bits(0x3f00_3f00); 4], [bf16::from_bits(0x3f00); 4]);
    (0..2).for_each(|_| opt.step([(&mut q, &wide)]).unwrap());
    opt.step([(&mut q, &narrow)]).unwrap();
    assert_eq!((all.params[1], all.opt.state(1).unwrap()), (q, opt.state(0).unwrap()));
}

#[test]
fn the_address_of_the_parameter_and_of_the_gradient() {
    let error = refused(None, plain, |q, h| plain(q - 8, h));
    assert!(matches!(error, Error::Overlap { .. }), "{error}");
    let error = refused(None, plain, |q, _| plain(q, q));
    assert!(matches!(error, Error::Overlap { .. }), "{error}");
    let error = refused(None, plain, |q, h| plain(q, h + 2));
    assert!(matches!(error, Error::Misaligned { buffer: Buffer::Grad, .. }), "{error}");
    let error = refused(None, plain, |_, h| plain(0, h));
    assert!(matches!(error, Error::NullPointer { buffer: Buffer::Param, .. }), "{error}");
    let error = refused(None, plain, |q, _| plain(q, u64::MAX - 7));
    assert!(matches!(error, Error::PastTheEnd { buffer: Buffer::Grad, .. }), "{error}");
}

#[test]
fn that_there_is_a_gradient() {
    let mut all = Good::new(None);
    all.then(plain, |q, _| Pair::without_grad(param(q, Dtype::F32, 4))).unwrap();
    assert_eq!([0, 1].map(|i| all.opt.state(i).unwrap().step), [3, 2]);
    let mut all = Good::new(None);
    all.then(|q, _| Pair::without_grad(param(q, Dtype::F32, 4)), plain).unwrap();
    assert_eq!([0, 1].map(|i| all.opt.state(i).unwrap().step), [3, 1]);
    let without = |q, _| Pair::without_grad(param(q, Dtype::F32, 4));
    let error = refused(None, without, |q, h| Pair::new(param(q, Dtype::F32, 4), grad(h, Dtype::F32, 5)));
    assert!(matches!(error, Error::Length { buffer: Buffer::Grad, .. }), "{error}");
}

fn zero_grad() -> Option<Control> {
    Some(Control { zero_grad: true, ..Default::default() })
}

// From safe code: what was given as `&` would be written.
#[test]
fn that_the_gradient_may_be_written() {
    let mut opt = AdamW::new(&Device::cpu(), AdamWConfig::default(), [4]).unwrap();
    opt.set_control(zero_grad()).unwrap();
    let (mut p, mut g) = ([1.0_f32; 4], [0.5_f32; 4]);
    for _ in 0..2 {
        opt.step([(&mut p, &mut g)]).unwrap();
        g = [0.25; 4];
    }
    let before = (p, opt.state(0).unwrap());
    for _ in 0..2 {
        let error = opt.step([(&mut p, &g)]).unwrap_err();
        assert!(matches!(&error, Error::SharedGrad { tensor } if tensor.index == 0), "{error}");
        // SAFETY: nobody uses the tensors; it is refused.
        let error = unsafe { opt.prepare([(&mut p, &g)]) }.unwrap_err();
        assert!(matches!(error, Error::SharedGrad { .. }), "{error}");
    }
    assert_eq!(((p, opt.state(0).unwrap()), g), (before, [0.25; 4]));
    opt.step([(&mut p, &mut g)]).unwrap();
    assert_eq!((g, opt.state(0).unwrap().step), ([0.0; 4], 3));
}

#[test]
fn a_gradient_by_its_address_may_be_written_and_a_shared_one_there_may_not() {
    let mut opt = AdamW::new(&Device::cpu(), AdamWConfig::default(), [4]).unwrap();
    opt.set_control(zero_grad()).unwrap();
    let (mut p, mut g) = ([1.0_f32; 4], [0.5_f32; 4]);
    let at = g.as_mut_ptr() as u64;
    opt.step([(&mut p, grad(at, Dtype::F32, 4))]).unwrap();
    g = [0.25; 4];
    assert!(matches!(opt.step([(&mut p, &g)]), Err(Error::SharedGrad { .. })));
    assert_eq!(g, [0.25; 4]);
}

// The tensors have not changed, what is written has.
#[test]
fn a_control_that_writes_gradients_is_told_of_shared_ones() {
    let mut opt = AdamW::new(&Device::cpu(), AdamWConfig::default(), [4]).unwrap();
    let (mut p, g) = ([1.0_f32; 4], [0.5_f32; 4]);
    for control in [None, Some(Control::default())] {
        opt.set_control(control).unwrap();
        (0..2).for_each(|_| opt.step([(&mut p, &g)]).unwrap());
        opt.set_control(zero_grad()).unwrap();
        assert!(matches!(opt.step([(&mut p, &g)]), Err(Error::SharedGrad { .. })));
        assert_eq!(g, [0.5; 4]);
    }
}

// The sums are written, and a gradient that is added is checked in every call.
#[test]
fn a_gradient_that_is_accumulated() {
    let mut opt = AdamW::new(&Device::cpu(), AdamWConfig::default(), [4]).unwrap();
    let g = [0x3f00_3f00_u32; 8];
    let at = g.as_ptr() as u64;
    (0..2).for_each(|_| opt.accumulate([grad(at + 2, Dtype::BF16, 4)]).unwrap());
    let error = opt.accumulate([grad(at + 2, Dtype::F32, 4)]).unwrap_err();
    assert!(matches!(error, Error::Misaligned { buffer: Buffer::Grad, .. }), "{error}");
    let error = opt.accumulate([grad(at + 2, Dtype::BF16, 5)]).unwrap_err();
    assert!(matches!(error, Error::Length { buffer: Buffer::Grad, .. }), "{error}");
    let mut p = [1.0_f32; 4];
    opt.step_accumulated(Default::default(), [&mut p]).unwrap();
    assert_eq!(opt.state(0).unwrap().m, [0.1 * 2.0 * bf16::from_bits(0x3f00).to_f32(); 4]);
}
