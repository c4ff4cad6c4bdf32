use fused_adamw::cudarc::driver::{CudaContext, sys};
use fused_adamw::{AdamW, AdamWConfig, Control, Device};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let context = CudaContext::new(0)?;
    // SAFETY: everything is on one stream. Before anything is allocated: what has events waits for them.
    unsafe { context.disable_event_tracking() };
    let stream = context.new_stream()?; // a context's default stream cannot be captured
    let (mut p, g) = (stream.clone_htod(&[1.0_f32; 1000])?, stream.clone_htod(&[0.5_f32; 1000])?);
    let mut opt = AdamW::new(&Device::cuda(&stream)?, AdamWConfig::default(), [1000])?;
    opt.set_control(Some(Control::default()))?;
    opt.step([(&mut p, &g)])?; // allocates, copies, loads kernels

    // SAFETY: `p`, `g` and `opt` outlive the graph, and nobody uses them in another way.
    unsafe { opt.allow_capture() };
    stream.begin_capture(sys::CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL)?;
    let captured = opt.step([(&mut p, &g)]);
    let flags = sys::CUgraphInstantiate_flags::CUDA_GRAPH_INSTANTIATE_FLAG_AUTO_FREE_ON_LAUNCH;
    let graph = stream.end_capture(flags)?.ok_or("nothing was captured")?; // ends it if the step failed, too
    captured?;
    for _ in 0..100 {
        graph.launch()?;
    }
    assert_eq!(opt.state(0)?.step, 101);
    Ok(())
}
