//! Two contexts of one device: what is on their common default stream is in order, and nothing else.

use std::iter;
use std::sync::Arc;

use fused_adamw::cudarc::driver::{CudaContext, CudaSlice, CudaStream, DevicePtr};
use fused_adamw::{AdamW, AdamWConfig, Control, Device, Error, StepOptions};

use crate::driver::{each_driver, emulated, trace};

/// The default stream of a context of the user's own.
fn theirs() -> Arc<CudaStream> {
    CudaContext::new(0).unwrap().default_stream()
}

fn tensors(stream: &Arc<CudaStream>) -> [CudaSlice<f32>; 2] {
    [1.0, 0.5].map(|x| stream.clone_htod(&[x; 100]).unwrap())
}

fn optimizer(device: &Device) -> AdamW {
    AdamW::new(device, AdamWConfig::default(), [100]).unwrap()
}

/// The parameter after three steps, one of them by sums.
fn on_the_cpu() -> [f32; 100] {
    let (mut p, g) = ([1.0_f32; 100], [0.5_f32; 100]);
    let mut opt = optimizer(&Device::cpu());
    (0..3).for_each(|_| opt.step([(&mut p, &g)]).unwrap());
    p
}

#[test]
fn the_best_device_takes_tensors_of_the_users_own_default_stream() {
    each_driver(|| {
        let (device, theirs) = (Device::best(), theirs());
        assert!(!Arc::ptr_eq(device.stream().unwrap().context(), theirs.context()));
        let [mut p, g] = tensors(&theirs);
        let mut opt = optimizer(&device);
        opt.step([(&mut p, &g)]).unwrap();
        opt.accumulate([&g]).unwrap();
        opt.step_accumulated(StepOptions::default(), [&mut p]).unwrap();
        // Of both contexts.
        let [_, h] = tensors(device.stream().unwrap());
        opt.step([(&mut p, &h)]).unwrap();
        assert_eq!(theirs.clone_dtoh(&p).unwrap(), on_the_cpu());
        // The new stream waits for all that was enqueued.
        let another = theirs.context().new_stream().unwrap();
        assert_eq!(another.clone_dtoh(&p).unwrap(), on_the_cpu());
    });
}

#[track_caller]
fn assert_refused(result: Result<(), Error>) {
    let text = result.unwrap_err().to_string();
    let remedy = "make the optimizer on its stream, `Device::cuda(&stream)`, or allocate it on the optimizer's \
                  `device.stream()`";
    assert!(
        text.starts_with("tensor 0: the parameter lies in the memory of GPU 0") && text.ends_with(remedy),
        "{text}"
    );
}

// A stream of theirs would not wait for a step of ours.
#[test]
fn the_users_context_is_refused_while_it_has_a_stream_of_its_own() {
    each_driver(|| {
        let (device, theirs) = (Device::best(), theirs());
        let [mut p, g] = tensors(&theirs);
        let mut opt = optimizer(&device);
        (0..2).for_each(|_| opt.step([(&mut p, &g)]).unwrap());
        let another = theirs.context().new_stream().unwrap();
        (0..2).for_each(|_| assert_refused(opt.step([(&mut p, &g)])));
        let [mut q, h] = tensors(&another);
        assert_refused(opt.step([(&mut q, &h)]));
        // The remedy.
        optimizer(&Device::cuda(&theirs).unwrap()).step([(&mut q, &h)]).unwrap();
        drop((another, q, h));
        opt.step([(&mut p, &g)]).unwrap();
        assert_eq!((theirs.clone_dtoh(&p).unwrap(), opt.state(0).unwrap().step), (on_the_cpu().to_vec(), 3));
    });
}

// Work on the default stream does not wait for our stream, nor ours for it.
#[test]
fn an_optimizer_on_a_stream_of_its_own_takes_no_tensors_of_other_contexts() {
    each_driver(|| {
        let ours = CudaContext::new(0).unwrap().new_stream().unwrap();
        let [mut p, g] = tensors(&theirs());
        assert_refused(optimizer(&Device::cuda(&ours).unwrap()).step([(&mut p, &g)]));
    });
}

// Of a stream that somebody else has made a context does not know.
#[test]
fn a_tensor_of_another_context_on_a_borrowed_stream_is_refused() {
    each_driver(|| {
        let [mut device, theirs] = [Device::best(), Device::best()];
        let made = CudaContext::new(0).unwrap().new_stream().unwrap();
        // SAFETY: it outlives the tensors, and nobody else uses it.
        let borrowed = unsafe { theirs.stream().unwrap().context().wrap_borrowed_stream(made.cu_stream()) };
        let [mut p, g] = tensors(&borrowed);
        assert_refused(optimizer(&device).step([(&mut p, &g)]));
        device = Device::cuda(&borrowed).unwrap();
        optimizer(&device).step([(&mut p, &g)]).unwrap();
        borrowed.synchronize().unwrap();
    });
}

// As another thread may at any time: then the tensors' context knows of no event of the step.
#[test]
fn a_stream_that_the_other_context_makes_during_the_step_may_use_its_tensors() {
    each_driver(|| {
        let (device, theirs) = (Device::best(), theirs());
        let [mut p, g] = tensors(&theirs);
        let mut opt = optimizer(&device);
        let mut made = None;
        let last = iter::from_fn(|| {
            made = theirs.context().new_stream().ok();
            None
        });
        opt.step([(&mut p, &g)].into_iter().chain(last)).unwrap();
        assert!(made.unwrap().clone_dtoh(&p).unwrap()[0] < 1.0);
    });
}

#[test]
fn a_step_of_another_context_on_the_default_stream_waits_for_nothing() {
    emulated(&[], || {
        let (device, theirs) = (Device::best(), theirs());
        let [mut p, g] = tensors(&theirs);
        let mut opt = optimizer(&device);
        opt.step([(&mut p, &g)]).unwrap();
        let names: Vec<_> = trace(|| opt.step([(&mut p, &g)]).unwrap()).into_iter().map(|call| call.name).collect();
        assert_eq!(names, ["cuStreamIsCapturing", "cuLaunchKernel"]);
    });
}

// The address is that of the step before, and so are dtype and length.
#[test]
fn a_tensor_at_the_same_address_of_another_context_or_of_no_gpu_is_refused() {
    each_driver(|| {
        let device = Device::best();
        let stream = device.stream().unwrap();
        let [mut p, g] = tensors(stream);
        let mut opt = optimizer(&device);
        (0..2).for_each(|_| opt.step([(&mut p, &g)]).unwrap());
        let before = (stream.clone_dtoh(&p).unwrap(), opt.state(0).unwrap());
        let other = CudaContext::new(0).unwrap().new_stream().unwrap();
        let address = p.device_ptr(stream).0;
        // SAFETY: memory of 100 f32, of which the second owner gives up before it is dropped.
        let mut foreign = unsafe { other.upgrade_device_ptr::<f32>(address, 100) };
        assert_refused(opt.step([(&mut foreign, &g)]));
        assert!(foreign.leak() == address);
        assert_eq!((stream.clone_dtoh(&p).unwrap(), opt.state(0).unwrap()), before);
        opt.step([(&mut p, &g)]).unwrap();

        let (mut host, h) = (vec![1.0_f32; 100], vec![0.5_f32; 100]);
        let mut opt = optimizer(&Device::cpu());
        (0..2).for_each(|_| opt.step([(&mut host, &h)]).unwrap());
        // SAFETY: never used by the GPU, and given up.
        let mut on_gpu = unsafe { stream.upgrade_device_ptr::<f32>(host.as_mut_ptr() as u64, 100) };
        let error = opt.step([(&mut on_gpu, &h)]).unwrap_err();
        assert!(on_gpu.leak() == host.as_ptr() as u64);
        assert!(matches!(error, Error::WrongDevice { .. }), "{error}");
        assert!(error.to_string().ends_with(": make the optimizer on its stream, `Device::cuda(&stream)`"), "{error}");
        assert_eq!(opt.state(0).unwrap().step, 2);
    });
}

// From safe code: what was given as `&` would be written.
#[test]
fn a_gradient_that_may_be_written_no_more_is_refused_at_the_same_address() {
    each_driver(|| {
        let device = Device::cuda_at(0).unwrap();
        let stream = device.stream().unwrap();
        let [mut p, mut g] = tensors(stream);
        let mut opt = optimizer(&device);
        opt.set_control(Some(Control { zero_grad: true, ..Default::default() })).unwrap();
        for _ in 0..2 {
            opt.step([(&mut p, &mut g)]).unwrap();
            stream.memcpy_htod(&[0.25; 100], &mut g).unwrap();
        }
        for _ in 0..2 {
            let error = opt.step([(&mut p, &g)]).unwrap_err();
            assert!(matches!(error, Error::SharedGrad { .. }), "{error}");
            assert_eq!(stream.clone_dtoh(&g).unwrap(), [0.25; 100]);
        }
        opt.step([(&mut p, &mut g)]).unwrap();
        assert_eq!((stream.clone_dtoh(&g).unwrap(), opt.state(0).unwrap().step), (vec![0.0; 100], 3));
    });
}

// Lengths, dtypes, and whether there is a gradient.
#[test]
fn other_fields_at_the_same_address() {
    each_driver(|| {
        let device = Device::cuda_at(0).unwrap();
        let stream = device.stream().unwrap();
        let [mut p, g] = tensors(stream);
        let mut opt = optimizer(&device);
        let good =
            |opt: &mut AdamW, p: &mut CudaSlice<f32>| (0..2).for_each(|_| opt.step([(p.as_view_mut(), &g)]).unwrap());
        good(&mut opt, &mut p);
        let error = opt.step([(p.slice_mut(..99), g.as_view())]).unwrap_err();
        assert!(matches!(error, Error::Length { actual: 99, .. }), "{error}");
        let error = opt.step([(p.as_view_mut(), g.slice(..99))]).unwrap_err();
        assert!(matches!(error, Error::Length { actual: 99, .. }), "{error}");
        // SAFETY: half of the f32s, as as many elements.
        let narrow = unsafe { p.transmute_mut::<half::bf16>(100) }.unwrap();
        let error = opt.step([(narrow, g.as_view())]).unwrap_err();
        assert!(matches!(error, Error::Dtype { .. }), "{error}");
        good(&mut opt, &mut p);
        opt.step([(&mut p, None::<&CudaSlice<f32>>)]).unwrap();
        assert_eq!(opt.state(0).unwrap().step, 4);
        // SAFETY: as above.
        let halves = unsafe { g.transmute::<half::bf16>(100) }.unwrap();
        opt.step([(p.as_view_mut(), halves)]).unwrap();
        let (mut q, h) = ([1.0_f32; 100], [0.5_f32; 100]);
        let mut cpu = optimizer(&Device::cpu());
        (0..4).for_each(|_| cpu.step([(&mut q, &h)]).unwrap());
        // The lower half of 0.5 is 0, the upper one 0.5 as well.
        let halves = [0.0, 0.5].map(half::bf16::from_f32).repeat(50);
        cpu.step([(&mut q, &halves)]).unwrap();
        assert_eq!(stream.clone_dtoh(&p).unwrap(), q);
    });
}
