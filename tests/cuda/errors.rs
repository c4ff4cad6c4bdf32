//! What is missing, what does not fit: an error that says so, and a step that works afterwards.

use std::error::Error as _;
use std::sync::Arc;

use fused_adamw::cudarc::driver::sys::{CUgraphInstantiate_flags, CUresult, CUstreamCaptureMode};
use fused_adamw::cudarc::driver::{CudaContext, CudaStream, DevicePtr, DevicePtrMut, DriverError};
use fused_adamw::{
    AdamW, AdamWConfig, Alarm, Buffer, Control, DRIVER_FUNCTIONS, Decay, Device, Dtype, Error, NonFinite, PTX,
    PTX_COMMITTED, Pair, Param, Schedule, StepOptions, TensorSpec,
};
use half::bf16;

use crate::driver::{calls, counts, driver_without, each_driver, emulated, fail, has_failed, without_driver};

fn driver_code(error: &Error) -> Option<CUresult> {
    error.source()?.downcast_ref::<DriverError>().map(|error| error.0)
}

// ---- machines that lack something --------------------------------------------------------------------------------

// cudarc panics at every call, and at the printing of its errors.
#[test]
fn no_driver() {
    without_driver(|| {
        let error = Device::cuda_at(0).unwrap_err();
        assert!(matches!(error, Error::NoDriver { library: "libcuda.so.1", .. }), "{error:?}");
        let best = Device::best();
        assert!(best.stream().is_none());
        let text = best.to_string();
        assert!(text.starts_with("CPU (") && text.contains("no NVIDIA driver"), "{text}");
        assert!(text.contains("no-driver/libcuda.so.1: "), "the loader's reason: {text}");
        AdamW::new(&best, AdamWConfig::default(), [1]).unwrap().step([(&mut [1.0_f32], &[1.0_f32])]).unwrap();
    });
}

#[test]
fn no_device() {
    emulated(&[("EMULATED_DEVICES", "0")], || {
        let error = Device::cuda_at(0).unwrap_err();
        assert!(matches!(error, Error::NoDevice { ordinal: 0, .. }), "{error:?}");
        assert_eq!(driver_code(&error), Some(CUresult::CUDA_ERROR_NO_DEVICE));
        let text = Device::best().to_string();
        assert!(text.starts_with("CPU (") && text.contains("no CUDA device 0"), "{text}");
    });
}

#[test]
fn no_such_device() {
    each_driver(|| {
        let error = Device::cuda_at(5000).unwrap_err();
        assert!(matches!(error, Error::NoDevice { ordinal: 5000, .. }), "{error:?}");
        assert_eq!(driver_code(&error), Some(CUresult::CUDA_ERROR_INVALID_DEVICE));
    });
}

#[test]
fn the_best_device_is_the_gpu_and_says_who_compiled_its_kernels() {
    each_driver(|| {
        let best = Device::best();
        assert!(best.stream().is_some());
        let text = best.to_string();
        assert!(text.starts_with("GPU 0 (") && text.contains("kernels by "), "{text}");
    });
}

/// The `8.0` of `.version 8.0`.
fn isa(ptx: &str) -> &str {
    ptx.lines().find_map(|line| line.strip_prefix(".version ")).unwrap()
}

// The driver takes the committed PTX and no newer one. (If the build's own is the committed one, there is no newer.)
#[test]
fn a_driver_older_than_the_build_is_given_the_committed_ptx() {
    emulated(&[("EMULATED_PTX", isa(PTX_COMMITTED))], || {
        let mut device = None;
        let calls = calls(|| device = Some(Device::cuda_at(0).unwrap()));
        let newer = isa(PTX) != isa(PTX_COMMITTED);
        assert_eq!(calls["cuModuleLoadData"], if newer { 2 } else { 1 });
        assert_eq!(device.unwrap().to_string().contains("driver is older"), newer);
    });
}

#[test]
fn a_driver_older_than_the_committed_ptx_is_named_with_both_versions() {
    emulated(&[("EMULATED_PTX", "7.8"), ("EMULATED_DRIVER", "11080")], || {
        let error = Device::cuda_at(0).unwrap_err();
        assert!(
            matches!(&error, Error::PtxTooNew { ptx, driver, .. } if ptx == isa(PTX_COMMITTED) && driver == "11.8"),
            "{error:?}"
        );
        assert_eq!(driver_code(&error), Some(CUresult::CUDA_ERROR_UNSUPPORTED_PTX_VERSION));
    });
}

#[test]
fn a_gpu_that_cannot_run_the_kernels() {
    emulated(&[], || {
        fail("cuModuleLoadData", 1, CUresult::CUDA_ERROR_NO_BINARY_FOR_GPU);
        let error = Device::cuda_at(0).unwrap_err();
        assert!(has_failed() && error.to_string().contains("compute capability 7.5"), "{error}");
        assert_eq!(driver_code(&error), Some(CUresult::CUDA_ERROR_NO_BINARY_FOR_GPU));
    });
}

// cudarc panics at the first call of a function that is not there. A driver as old as that, or a stub, is none.
#[test]
fn a_driver_that_lacks_a_function() {
    for lacking in ["cuInit", "cuLaunchKernel", "cuMemAllocAsync", "cuGetErrorString", "cuEventDestroy_v2"] {
        driver_without(lacking, || {
            let error = Device::cuda_at(0).unwrap_err();
            assert!(matches!(error, Error::OldDriver { library: "libcuda.so", .. }), "{error:?}");
            let text = Device::best().to_string();
            assert!(
                text.starts_with("CPU (") && text.contains("the NVIDIA driver libcuda.so has no function cu"),
                "{text}"
            );
            assert!(error.to_string().ends_with("it takes a driver for CUDA 12.0 or newer"), "{error}");
        });
    }
}

// What is not in that list would be found missing by a panic.
#[test]
fn every_function_that_is_called_is_looked_for() {
    for pools in ["0", "1"] {
        emulated(&[("EMULATED_MEMORY_POOLS", pools)], || {
            let alarm = Some(Alarm { skip: true, ..Default::default() });
            let list = Schedule { decay: Decay::List([1.0, 0.5].into()), ..Default::default() };
            let skips = Control { non_finite: NonFinite::SkipTensor, schedule: list, ..Default::default() };
            let all = Control { metrics: true, zero_grad: true, norm_alarm: alarm, rms_alarm: alarm, ..skips.clone() };
            let called = calls(|| {
                for several_streams in [false, true] {
                    let controls = [None, Some(skips.clone()), Some(all.clone())];
                    controls.into_iter().for_each(|control| everything(several_streams, control));
                }
            });
            let unknown: Vec<_> = called.keys().filter(|name| !DRIVER_FUNCTIONS.contains(&name.as_str())).collect();
            // Of the tests' own.
            let known = ["cuStreamCreate", "cuStreamDestroy_v2", "cuCtxSynchronize"];
            assert!(unknown.iter().all(|name| known.contains(&name.as_str())), "{unknown:?}");
            assert!(called.len() > 20, "{called:?}");
        });
    }
}

/// All that an optimizer does, and its end.
fn everything(several_streams: bool, control: Option<Control>) {
    let mut device = Device::cuda_at(0).unwrap();
    let stream = device.stream().unwrap().clone();
    if several_streams {
        device = Device::cuda(&stream.context().new_stream().unwrap()).unwrap();
    }
    println!("{device}, {:?}", Device::cuda_at(7));
    let mut opt = AdamW::new(&device, AdamWConfig::default(), [4, 4]).unwrap();
    let (mut p, mut g) = (stream.clone_htod(&[1.0_f32; 4]).unwrap(), stream.clone_htod(&[1.0_f32; 4]).unwrap());
    let (mut q, mut h) = (stream.clone_htod(&[bf16::ONE; 4]).unwrap(), stream.clone_htod(&[1.0_f32; 4]).unwrap());
    let measures = control.as_ref().is_some_and(|control| control.metrics);
    opt.set_control(control).unwrap();
    for step in 0..3 {
        opt.accumulate([&g, &h]).unwrap();
        opt.step_accumulated(StepOptions::default(), [Param::from(&mut p), Param::from(&mut q)]).unwrap();
        let grad = (step > 0).then_some(&mut h); // other tensors: a class is split
        opt.step([Pair::new(&mut p, &mut g), Pair::new(&mut q, grad)]).unwrap();
        opt.set_lr(0.1).unwrap();
        opt.reload_masters().unwrap();
        if measures {
            drop(opt.metrics().unwrap());
        }
    }
    println!("{:?}, {:?}, {}", opt.status().unwrap(), opt.state(1).unwrap(), opt.effective_lr(0).unwrap());
}

#[test]
fn a_number_that_no_device_has_is_not_cut_off() {
    each_driver(|| {
        for ordinal in [1 << 31, 1 << 32, (1 << 32) + 1, usize::MAX] {
            let error = Device::cuda_at(ordinal).unwrap_err();
            assert_eq!(error.to_string(), format!("no CUDA device {ordinal}"));
            assert!(matches!(error, Error::NoDevice { ordinal: told, .. } if told == ordinal), "{error:?}");
            assert_eq!(driver_code(&error), Some(CUresult::CUDA_ERROR_INVALID_DEVICE));
        }
    });
}

#[test]
fn a_gpu_without_memory_says_how_much_was_asked_for() {
    for (pools, call) in [("1", "cuMemAllocAsync"), ("0", "cuMemAlloc_v2")] {
        emulated(&[("EMULATED_MEMORY_POOLS", pools)], || {
            let device = Device::cuda_at(0).unwrap();
            fail(call, 1, CUresult::CUDA_ERROR_OUT_OF_MEMORY);
            let error = AdamW::new(&device, AdamWConfig::default(), [1 << 10]).unwrap_err();
            let Error::OutOfMemory { bytes, gpu, .. } = error else { panic!("{error:?}") };
            assert!(has_failed() && bytes >= 8 << 10 && gpu == Some(0));
            assert_eq!(error.to_string(), format!("out of memory: {bytes} bytes of the memory of GPU 0"));
            assert_eq!(driver_code(&error), Some(CUresult::CUDA_ERROR_OUT_OF_MEMORY));
            AdamW::new(&device, AdamWConfig::default(), [1 << 10]).unwrap();
        });
    }
}

#[test]
fn a_host_without_pinned_memory_says_how_much_was_asked_for() {
    emulated(&[], || {
        let mut opt = AdamW::new(&Device::cuda_at(0).unwrap(), AdamWConfig::default(), [4]).unwrap();
        fail("cuMemHostAlloc", 1, CUresult::CUDA_ERROR_OUT_OF_MEMORY);
        let error = opt.set_control(Some(Control { metrics: true, ..Default::default() })).unwrap_err();
        assert!(has_failed() && matches!(error, Error::OutOfMemory { gpu: None, .. }), "{error:?}");
        assert!(error.to_string().ends_with(" bytes of host memory"), "{error}");
        assert_eq!(driver_code(&error), Some(CUresult::CUDA_ERROR_OUT_OF_MEMORY));
    });
}

// ---- tensors that do not fit -------------------------------------------------------------------------------------

const SPECS: fn() -> [TensorSpec; 2] = || [TensorSpec::new(4), TensorSpec::new(4).named("bias")];

fn wrong_device(result: Result<(), Error>, wanted: Buffer) -> (String, String) {
    match result {
        Err(Error::WrongDevice { tensor, buffer, expected, actual, remedy }) => {
            assert_eq!((tensor.to_string(), buffer), ("tensor 1 (bias)".into(), wanted));
            assert!(remedy.contains("`Device::c"), "{remedy}");
            (expected, actual)
        }
        other => panic!("{other:?}"),
    }
}

// The two contexts compare equal, and neither waits for the other's streams.
#[test]
fn a_tensor_of_another_context_of_the_same_device_is_refused() {
    each_driver(|| {
        let device = Device::cuda_at(0).unwrap();
        let [ours, theirs] = [device.stream().unwrap().clone(), CudaContext::new(0).unwrap().default_stream()];
        let _another = theirs.context().new_stream().unwrap();
        let four = |stream: &Arc<CudaStream>| stream.clone_htod(&[1.0_f32; 4]).unwrap();
        let (mut a, mut b, mut c) = (four(&ours), four(&ours), four(&theirs));
        let (g, h) = (four(&ours), four(&theirs));
        let mut opt = AdamW::with_groups(&device, &[AdamWConfig::default()], SPECS()).unwrap();
        let (expected, actual) = wrong_device(opt.step([(&mut a, &g), (&mut c, &g)]), Buffer::Param);
        assert!(expected != actual && [expected, actual].iter().all(|text| text.contains("GPU 0")));
        wrong_device(opt.step([(&mut a, &g), (&mut b, &h)]), Buffer::Grad);
        assert_eq!(opt.state(0).unwrap().step, 0);
        opt.step([(&mut a, &g), (&mut b, &g)]).unwrap();
        assert_eq!(opt.state(1).unwrap().step, 1);
    });
}

#[test]
fn a_tensor_of_another_gpu_is_refused() {
    emulated(&[("EMULATED_DEVICES", "2")], || {
        let [zero, one] = [0, 1].map(|i| Device::cuda_at(i).unwrap());
        let four = |device: &Device| device.stream().unwrap().clone_htod(&[1.0_f32; 4]).unwrap();
        let (mut a, mut b, g) = (four(&one), four(&zero), four(&one));
        let mut opt = AdamW::with_groups(&one, &[AdamWConfig::default()], SPECS()).unwrap();
        let (expected, actual) = wrong_device(opt.step([(&mut a, &g), (&mut b, &g)]), Buffer::Param);
        assert!(expected.contains("GPU 1") && actual.contains("GPU 0"), "{expected}, {actual}");
    });
}

#[test]
fn host_memory_on_a_gpu_and_device_memory_on_the_cpu_are_refused() {
    each_driver(|| {
        let device = Device::cuda_at(0).unwrap();
        let four = || device.stream().unwrap().clone_htod(&[1.0_f32; 4]).unwrap();
        let (mut a, mut b, g) = (four(), four(), four());
        let (mut p, mut q, h) = ([1.0_f32; 4], [1.0_f32; 4], [1.0_f32; 4]);
        let groups = [AdamWConfig::default()];

        let mut on_gpu = AdamW::with_groups(&device, &groups, SPECS()).unwrap();
        let (expected, actual) =
            wrong_device(on_gpu.step([Pair::new(&mut a, &g), Pair::new(&mut p, &g)]), Buffer::Param);
        assert!(expected.contains("GPU 0") && actual == "host memory", "{expected}, {actual}");
        wrong_device(on_gpu.step([Pair::new(&mut a, &g), Pair::new(&mut b, &h)]), Buffer::Grad);

        let mut on_cpu = AdamW::with_groups(&Device::cpu(), &groups, SPECS()).unwrap();
        let (expected, actual) =
            wrong_device(on_cpu.step([Pair::new(&mut p, &h), Pair::new(&mut a, &h)]), Buffer::Param);
        assert!(expected == "host memory" && actual.contains("GPU 0"), "{expected}, {actual}");
        wrong_device(on_cpu.step([Pair::new(&mut p, &h), Pair::new(&mut q, &g)]), Buffer::Grad);
        assert_eq!((p, q), ([1.0; 4], [1.0; 4]));
    });
}

// Views of cudarc cannot overlap, addresses can.
#[test]
fn parameters_that_share_bytes_are_refused() {
    each_driver(|| {
        let device = Device::cuda_at(0).unwrap();
        let stream = device.stream().unwrap();
        let mut p = stream.clone_htod(&[1.0_f32; 12]).unwrap();
        let g = stream.clone_htod(&[1.0_f32; 4]).unwrap();
        let (param, grad) = (p.device_ptr_mut(stream).0, g.device_ptr(stream).0);
        let mut opt = AdamW::with_groups(&device, &[AdamWConfig::default()], SPECS()).unwrap();
        // SAFETY: four elements each, inside `p` and `g`, in order on the optimizer's stream.
        let pair = |p, g| unsafe { Pair::from_raw(p, Dtype::F32, g, Dtype::F32, 4) };
        for (second, grad) in [(param + 12, grad), (param, grad), (param + 16, param + 8), (param + 16, param + 28)] {
            let error = opt.step([pair(param, grad), pair(second, grad)]).unwrap_err();
            assert!(matches!(error, Error::Overlap { .. }), "{error:?}");
        }
        assert_eq!(stream.clone_dtoh(&p).unwrap(), [1.0; 12]);
        opt.step([pair(param, grad), pair(param + 16, grad)]).unwrap();
    });
}

// An allocation that is captured belongs to the graph: the masters would lie in memory that no eager step may touch.
#[test]
fn nothing_is_allocated_in_a_capture() {
    each_driver(|| {
        let stream = CudaContext::new(0).unwrap().new_stream().unwrap();
        // SAFETY: this test has one stream.
        unsafe { stream.context().disable_event_tracking() };
        let device = Device::cuda(&stream).unwrap();
        let mut opt = AdamW::new(&device, AdamWConfig::default(), [4]).unwrap();
        let grad = stream.clone_htod(&[1.0_f32; 4]).unwrap();
        let mut p = stream.clone_htod(&[half::bf16::ONE; 4]).unwrap();
        stream.begin_capture(CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL).unwrap();
        let refused = [opt.step([(&mut p, &grad)]), AdamW::new(&device, AdamWConfig::default(), [4]).map(drop)];
        drop(stream.end_capture(CUgraphInstantiate_flags(0)));
        assert!(matches!(refused, [Err(Error::CaptureNotAllowed), Err(Error::Capturing { .. })]), "{refused:?}");
        opt.step([(&mut p, &grad)]).unwrap();
        assert_eq!((opt.state(0).unwrap().step, opt.state(0).unwrap().m), (1, vec![0.1; 4]));
    });
}

// Which function a test forgot to emulate is said by name, not by a crash.
#[test]
fn a_function_that_the_emulated_driver_lacks_is_named() {
    emulated(&[], || {
        let context = CudaContext::new(0).unwrap();
        let panic = std::panic::catch_unwind(|| context.uuid()).unwrap_err();
        assert!(panic.downcast_ref::<String>().unwrap().contains("cuDeviceGetUuid"));
    });
}

// The counting itself counts.
#[test]
fn a_copy_is_counted() {
    emulated(&[], || {
        let device = Device::cuda_at(0).unwrap();
        let calls = calls(|| drop(device.stream().unwrap().clone_htod(&[1_u8]).unwrap()));
        let copy = [("cuMemAllocAsync", 1), ("cuMemcpyHtoDAsync_v2", 1), ("cuMemFreeAsync", 1)];
        assert_eq!(calls, counts([copy[0], copy[1], copy[2], ("cuEventCreate", 2), ("cuEventDestroy_v2", 2)]));
    });
}

// A kernel that was handed the unused master of an f32 parameter would step that, and undo what its owner wrote.
#[test]
fn the_master_of_a_16_bit_step_that_failed_is_not_used_by_the_f32_steps_after_it() {
    each_driver(|| {
        let device = Device::cuda_at(0).unwrap();
        let stream = device.stream().unwrap();
        let mut opt = AdamW::new(&device, AdamWConfig { lr: 0.0, ..Default::default() }, [4, 4]).unwrap();
        let grad = stream.clone_htod(&[1.0_f32; 4]).unwrap();
        let grad16 = stream.clone_htod(&[half::bf16::ONE; 4]).unwrap();
        let mut narrow = grad16.clone();
        // SAFETY: address 0 is refused before anything is read.
        let null = unsafe { Pair::from_raw(0, Dtype::F32, 0, Dtype::F32, 4) };
        assert!(matches!(opt.step([Pair::new(&mut narrow, &grad), null]), Err(Error::NullPointer { .. })));
        let (mut p, mut q) = (stream.clone_htod(&[1.0_f32; 4]).unwrap(), stream.clone_htod(&[1.0_f32; 4]).unwrap());
        for value in [1.0, 2.0, 3.0] {
            stream.memcpy_htod(&[value; 4], &mut p).unwrap();
            // The 16-bit gradient is for the kernel that knows masters.
            opt.step([Pair::new(&mut p, &grad), Pair::new(&mut q, &grad16)]).unwrap();
            assert_eq!(stream.clone_dtoh(&p).unwrap(), [value; 4]);
        }
    });
}
