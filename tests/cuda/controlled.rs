//! Twins with a control: set on both, compared with what it says of itself, and captured.

use fused_adamw::cudarc::driver::sys::{CUgraphInstantiate_flags, CUstreamCaptureMode};
use fused_adamw::{AdamWConfig, Control, Decay, Device, LossScale, NonFinite, Schedule, StepOptions};

use crate::twins::{Shape, Twins, Values};

pub(crate) const ALL: StepOptions = StepOptions { grad_scale: 1.0 };

/// Everything at once.
pub(crate) fn control(non_finite: NonFinite) -> Control {
    let scale = LossScale { init_scale: 4.0, growth_interval: 3, ..Default::default() };
    let decay = Decay::Cosine { end: 12, floor: 0.1 };
    Control {
        max_grad_norm: Some(3.0),
        non_finite,
        loss_scale: Some(scale),
        schedule: Schedule { warmup: 3, decay },
        ..Default::default()
    }
}

pub(crate) fn set(twins: &mut Twins, control: &Control) {
    [&mut twins.cpu, &mut twins.gpu].into_iter().for_each(|opt| opt.set_control(Some(control.clone())).unwrap());
}

/// Tensors, and what the control says of itself.
#[track_caller]
pub(crate) fn assert_same(twins: &Twins) {
    let [cpu, gpu] = [&twins.cpu, &twins.gpu].map(|opt| format!("{:?}", opt.status().unwrap()));
    assert_eq!(cpu, gpu);
    twins.assert_same();
}

pub(crate) const MODE: CUstreamCaptureMode = CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL;
pub(crate) const FLAGS: CUgraphInstantiate_flags =
    CUgraphInstantiate_flags::CUDA_GRAPH_INSTANTIATE_FLAG_AUTO_FREE_ON_LAUNCH;

/// On a stream that can be captured, as the default one cannot.
pub(crate) fn capturable(shapes: impl IntoIterator<Item = Shape>) -> Twins {
    let stream = Device::cuda_at(0).unwrap().stream().unwrap().context().new_stream().unwrap();
    // SAFETY: all of this test is on the one stream.
    unsafe { stream.context().disable_event_tracking() };
    let device = Device::cuda(&stream).unwrap();
    Twins::on(&device, &stream, Values::Tame, &[AdamWConfig::default()], shapes)
}
