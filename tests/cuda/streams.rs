//! Several streams: who waits for whom, and that a step's use of its tensors is recorded after its launch.

use fused_adamw::cudarc::driver::{CudaContext, CudaStream};
use fused_adamw::{AdamW, AdamWConfig, Control, Device, Dtype, StepOptions};

use crate::driver::{Call, calls, counts, each_driver, emulated, trace};
use crate::twins::{DTYPES, Shape, Twins, Values};

const ALL: StepOptions = StepOptions { grad_scale: 1.0 };
const ASKED: (&str, usize) = ("cuStreamIsCapturing", 1);

fn shapes(tensors: usize) -> impl Iterator<Item = Shape> {
    (0..tensors).map(|i| Shape::new(20 + i, DTYPES[i % 3], Dtype::F32))
}

/// The optimizer on a stream of its own, the tensors on the default one. Two steps are done.
fn two_streams(tensors: usize) -> Twins {
    let context = CudaContext::new(0).unwrap();
    let device = Device::cuda(&context.new_stream().unwrap()).unwrap();
    let groups = [AdamWConfig::default()];
    let mut twins = Twins::on(&device, &context.default_stream(), Values::Tame, &groups, shapes(tensors));
    (0..2).for_each(|_| twins.step());
    twins
}

#[test]
fn the_bits_are_the_same_with_several_streams() {
    each_driver(|| two_streams(40).assert_same());
}

// A parameter is written: its step waits for who reads and for who writes it. A gradient is read: for who writes it.
#[test]
fn a_step_waits_for_every_tensor_and_records_every_tensor() {
    emulated(&[], || {
        for tensors in [1, 7, 1000] {
            let mut twins = two_streams(tensors);
            let expected = counts([
                ASKED,
                ("cuStreamWaitEvent", 3 * tensors),
                ("cuLaunchKernel", 1),
                ("cuEventRecord", 2 * tensors),
            ]);
            assert_eq!(calls(|| twins.gpu_step(ALL, |_| true).unwrap()), expected);
        }
    });
}

// A guard dropped before the launch records a use that is yet to come: others would run into the step.
#[test]
fn waits_come_before_the_launch_and_records_after_it_all_on_the_optimizers_stream() {
    emulated(&[], || {
        let mut twins = two_streams(5);
        twins.move_param(2, 1); // with a copy of the table in between
        let calls = trace(|| twins.gpu_step(ALL, |_| true).unwrap());
        assert!(calls.iter().all(|call| call.stream == 1), "{calls:?}");
        let launch = calls.iter().position(|call| call.name == "cuLaunchKernel").unwrap();
        let upload = calls.iter().position(|call| call.name == "cuMemcpyHtoDAsync_v2").unwrap();
        assert!(upload < launch);
        let records = |calls: &[Call]| calls.iter().filter(|call| call.name == "cuEventRecord").count();
        let waits = |calls: &[Call]| calls.iter().filter(|call| call.name == "cuStreamWaitEvent").count();
        // None for the table itself, which no other stream ever uses.
        assert_eq!((waits(&calls[..launch]), waits(&calls[launch..])), (3 * 5, 0), "{calls:?}");
        assert_eq!((records(&calls[..launch]), records(&calls[launch..])), (0, 2 * 5), "{calls:?}");
    });
}

// As another thread may at any time. The tensors that were looked at before have been given no event.
#[test]
fn a_stream_that_is_made_during_the_step_may_use_its_tensors_after_it() {
    each_driver(|| {
        let context = CudaContext::new(0).unwrap();
        let stream = context.default_stream();
        let mut params = [1.0, 2.0].map(|x| stream.clone_htod(&[x; 30]).unwrap());
        let grads = params.clone();
        let mut opt = AdamW::new(&Device::cuda(&stream).unwrap(), AdamWConfig::default(), [30; 2]).unwrap();
        let mut made = None;
        let pairs = params.iter_mut().zip(&grads).inspect(|_| made = made.take().or_else(|| context.new_stream().ok()));
        opt.step(pairs).unwrap();
        assert!(params.iter().all(|p| made.as_ref().unwrap().clone_dtoh(p).unwrap()[0] > 0.9));
    });
}

#[test]
fn views_of_one_allocation_are_recorded_once() {
    emulated(&[], || {
        let context = CudaContext::new(0).unwrap();
        let device = Device::cuda(&context.new_stream().unwrap()).unwrap();
        let stream = context.default_stream();
        let [mut params, grads] = [1.0, 2.0].map(|x| stream.clone_htod(&[x; 30]).unwrap());
        let mut other = stream.clone_htod(&[1.0_f32; 10]).unwrap();
        let mut opt = AdamW::new(&device, AdamWConfig::default(), [10; 4]).unwrap();
        let mut step = || {
            let (a, mut behind) = params.split_at_mut(10);
            let (b, c) = behind.split_at_mut(10);
            let grads = [0, 10, 20, 0].map(|i| grads.slice(i..i + 10));
            opt.step([a, b, c, other.as_view_mut()].into_iter().zip(grads)).unwrap();
        };
        step();
        // Written: `params`, `other`. Read: `grads`.
        let expected = counts([ASKED, ("cuStreamWaitEvent", 3 * 4), ("cuLaunchKernel", 1), ("cuEventRecord", 3)]);
        assert_eq!(calls(step), expected);
    });
}

// Tensors without a gradient are neither read nor written, but an address is taken, and with it a wait and a record.
#[test]
fn no_record_is_lost_when_a_step_launches_nothing() {
    emulated(&[], || {
        let mut twins = two_streams(4);
        let calls = calls(|| twins.gpu_step(ALL, |_| false).unwrap());
        assert_eq!(calls, counts([ASKED, ("cuStreamWaitEvent", 2 * 4), ("cuEventRecord", 4)]));
    });
}

#[test]
fn without_event_tracking_several_streams_cost_nothing() {
    emulated(&[], || {
        let mut twins = two_streams(7);
        let stream = twins.gpu.device().stream().unwrap().clone();
        // SAFETY: this test waits by itself.
        unsafe { stream.context().disable_event_tracking() };
        assert_eq!(calls(|| twins.gpu_step(ALL, |_| true).unwrap()), counts([ASKED, ("cuLaunchKernel", 1)]));
        stream.synchronize().unwrap();
    });
}

/// The optimizer on a stream of its own; tensors are written, moved and read on another one. cudarc's events order the
/// two streams, or, without them, `join` does.
fn on_two_streams(event_tracking: bool) {
    let context = CudaContext::new(0).unwrap();
    if !event_tracking {
        // SAFETY: the joins below order every use.
        unsafe { context.disable_event_tracking() };
    }
    let [ours, theirs] = [(); 2].map(|()| context.new_stream().unwrap());
    let join = |one: &CudaStream, other: &CudaStream| {
        if !event_tracking {
            one.join(other).unwrap();
        }
    };
    let shapes = (0..9).map(|i| Shape { param_at: 1, ..Shape::new(3000, DTYPES[i % 3], DTYPES[i / 3]) });
    let mut twins = Twins::on(&Device::cuda(&ours).unwrap(), &theirs, Values::Tame, &[AdamWConfig::default()], shapes);
    for step in 0..6 {
        twins.move_param(step, step);
        twins.new_grads();
        join(&ours, &theirs);
        twins.gpu_step(ALL, |_| true).unwrap();
        twins.cpu_step(ALL, |_| true).unwrap();
        join(&theirs, &ours);
    }
    twins.assert_same();
}

// A gradient read before it is written, a parameter read before it is stepped, memory freed while it is in use.
#[test]
fn several_streams_ordered_by_events() {
    each_driver(|| on_two_streams(true));
}

#[test]
fn several_streams_ordered_by_the_caller() {
    each_driver(|| on_two_streams(false));
}

// Tables of one optimizer that another one overwrites.
#[test]
fn two_optimizers_each_on_its_stream() {
    each_driver(|| {
        let context = CudaContext::new(0).unwrap();
        let stream = context.default_stream();
        let mut lists = [1e-3, 0.1].map(|lr| {
            let device = Device::cuda(&context.new_stream().unwrap()).unwrap();
            let shapes = (0..30).map(|i| Shape::new(40 * i, DTYPES[i % 3], Dtype::F32));
            Twins::on(&device, &stream, Values::Tame, &[AdamWConfig { lr, ..Default::default() }], shapes)
        });
        for _ in 0..5 {
            lists.iter_mut().for_each(Twins::step);
        }
        lists.iter().for_each(Twins::assert_same);
    });
}

// cudarc frees what lies on the default stream without waiting, once the last other stream is gone.
#[test]
fn an_optimizer_with_the_last_handle_of_its_stream_may_be_dropped_before_its_tensors() {
    each_driver(|| {
        let context = CudaContext::new(0).unwrap();
        let (stream, default_stream) = (context.new_stream().unwrap(), context.default_stream());
        let [mut param, grad] = [1.0, 2.0].map(|x| default_stream.clone_htod(&[x; 10]).unwrap());
        let mut opt = AdamW::new(&Device::cuda(&stream).unwrap(), AdamWConfig::default(), [10_usize]).unwrap();
        drop(stream);
        opt.step([(&mut param, &grad)]).unwrap();
        drop(opt);
        drop((param, grad));
    });
}

/// Twins on the default stream of the thread that makes them.
fn per_thread() -> Twins {
    let stream = CudaContext::new(0).unwrap().per_thread_stream();
    Twins::on(&Device::cuda(&stream).unwrap(), &stream, Values::Tame, &[AdamWConfig::default()], shapes(9))
}

/// In a thread of its own, whose default stream is another one.
fn elsewhere<T: Send>(body: impl FnOnce() -> T + Send) -> T {
    std::thread::scope(|scope| scope.spawn(body).join().unwrap())
}

// Its memory would be freed while the other thread's steps are at work.
#[test]
fn per_thread_optimizer_drops_in_another_thread() {
    each_driver(|| {
        let twins = elsewhere(|| {
            let mut twins = per_thread();
            (0..2).for_each(|_| twins.step());
            twins
        });
        let Twins { gpu, tensors, .. } = twins;
        drop(gpu);
        drop(tensors);
    });
}

#[test]
fn per_thread_optimizer_steps_in_any_thread() {
    each_driver(|| {
        let mut twins = per_thread();
        let control =
            |step: usize| step.is_multiple_of(2).then(|| Control { max_grad_norm: Some(1.0), ..Default::default() });
        // The same gradients throughout: nothing but the optimizer orders the steps.
        let step = |twins: &mut Twins| {
            twins.gpu_step(ALL, |_| true).unwrap();
            twins.cpu_step(ALL, |_| true).unwrap();
        };
        for i in 0..4 {
            step(&mut twins);
            elsewhere(|| step(&mut twins));
            let state = |i: usize| [&twins.cpu, &twins.gpu].map(|opt| opt.state(i).unwrap());
            assert!((0..9).map(state).all(|[cpu, gpu]| cpu == gpu));
            elsewhere(|| [&mut twins.cpu, &mut twins.gpu].map(|opt| opt.set_lr(1e-4).unwrap()));
            step(&mut twins);
            elsewhere(|| [&mut twins.cpu, &mut twins.gpu].map(|opt| opt.set_control(control(i)).unwrap()));
        }
        twins.gpu.device().stream().unwrap().context().synchronize().unwrap();
        twins.assert_same();
    });
}

// A stream of one's own is the same in every thread: nothing is waited for.
#[test]
fn other_threads_cost_no_wait_on_shared_streams() {
    emulated(&[], || {
        let stream = CudaContext::new(0).unwrap().default_stream();
        let groups = [AdamWConfig::default()];
        let mut twins = Twins::on(&Device::cuda(&stream).unwrap(), &stream, Values::Tame, &groups, shapes(9));
        twins.step();
        let calls = elsewhere(|| calls(|| twins.gpu_step(ALL, |_| true).unwrap()));
        assert_eq!((calls.get("cuCtxSynchronize"), calls["cuLaunchKernel"]), (None, 1));
    });
}
