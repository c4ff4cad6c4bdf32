//! Which kernels are loaded, and when: a driver compiles what it loads, and most lists need one or two kernels of ten.

use fused_adamw::cudarc::driver::CudaContext;
use fused_adamw::cudarc::driver::sys::{CUgraphInstantiate_flags, CUresult, CUstreamCaptureMode};
use fused_adamw::{AdamWConfig, Control, Device, Dtype, Error, StepOptions};

use crate::driver::{emulated, fail, has_failed, live};
use crate::twins::{Shape, Twins, Values};

fn twins(device: &Device, shape: Shape) -> Twins {
    Twins::on(device, device.stream().unwrap(), Values::Tame, &[AdamWConfig::default()], [shape])
}

#[test]
fn each_is_loaded_when_it_is_first_needed_and_once() {
    emulated(&[], || {
        let device = Device::cuda_at(0).unwrap();
        let mut plain = twins(&device, Shape::f32(9));
        assert_eq!(live("modules"), 0, "for a device and an optimizer");
        (0..2).for_each(|_| plain.step());
        assert_eq!(live("modules"), 1, "f32");
        let mut mixed = twins(&device, Shape::new(9, Dtype::BF16, Dtype::F32));
        (0..2).for_each(|_| mixed.step());
        assert_eq!(live("modules"), 3, "two dtypes, and a master");
        (0..2).for_each(|_| twins(&device, Shape::new(9, Dtype::BF16, Dtype::BF16)).step());
        assert_eq!(live("modules"), 4, "another dtype");
        let clip = Control { max_grad_norm: Some(1.0), ..Control::default() };
        let metrics = Control { metrics: true, ..Control::default() };
        for (control, modules) in [(Control::default(), 5), (clip, 6), (metrics, 8)] {
            plain.gpu.set_control(Some(control.clone())).unwrap();
            plain.cpu.set_control(Some(control.clone())).unwrap();
            (0..2).for_each(|_| plain.step());
            plain.assert_same();
            assert_eq!(live("modules"), modules, "{control:?}");
        }
        twins(&device, Shape::f32(3)).step();
        assert_eq!(live("modules"), 8, "another optimizer");
    });
}

// Where the first step has failed to.
#[test]
fn none_is_loaded_in_a_capture() {
    emulated(&[], || {
        let stream = CudaContext::new(0).unwrap().new_stream().unwrap();
        // SAFETY: this test has one stream.
        unsafe { stream.context().disable_event_tracking() };
        let device = Device::cuda(&stream).unwrap();
        let mut twins = twins(&device, Shape::f32(9));
        twins.gpu.set_control(Some(Control::default())).unwrap();
        // SAFETY: the graph is dropped at once.
        unsafe { twins.gpu.allow_capture() };
        fail("cuModuleLoadData", 1, CUresult::CUDA_ERROR_OUT_OF_MEMORY);
        twins.gpu_step(StepOptions::default(), |_| true).unwrap_err();
        assert!(has_failed());
        let before = (live("modules"), twins.gpu_bits());
        stream.begin_capture(CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL).unwrap();
        let result = twins.gpu_step(StepOptions::default(), |_| true);
        drop(stream.end_capture(CUgraphInstantiate_flags(0)));
        assert!(matches!(result, Err(Error::Capturing { .. })), "{result:?}");
        assert_eq!(before, (live("modules"), twins.gpu_bits()));
    });
}

#[test]
fn one_that_cannot_be_loaded_leaves_everything_as_it_was_and_is_loaded_the_next_time() {
    emulated(&[], || {
        let device = Device::cuda_at(0).unwrap();
        let mut twins = twins(&device, Shape::f32(9));
        let before = twins.gpu_bits();
        fail("cuModuleLoadData", 1, CUresult::CUDA_ERROR_OUT_OF_MEMORY);
        let error = twins.gpu_step(StepOptions::default(), |_| true).unwrap_err();
        assert!(has_failed() && error.to_string().contains("load the kernels"), "{error}");
        assert!(twins.gpu_bits() == before);
        twins.step();
        twins.assert_same();
    });
}
