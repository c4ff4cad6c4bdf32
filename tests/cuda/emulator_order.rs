//! The emulated driver itself: that it reports work which nothing orders, delivers what pinned memory is to hold when
//! it has been waited for and not before, replays graphs, and stays lost once it is.

use std::sync::Arc;

use fused_adamw::cudarc::driver::sys::{CUevent_flags, CUgraphInstantiate_flags, CUresult, CUstreamCaptureMode};
use fused_adamw::cudarc::driver::{CudaContext, CudaGraph, CudaSlice, CudaStream, DriverError, PushKernelArg};

use crate::driver::{allocations, emulated, emulated_dies, emulated_dies_if_told, fail, live};
use crate::emulator::{default_stream, launch, of_size};

/// Two streams that nothing orders but the test itself.
fn two_streams() -> [Arc<CudaStream>; 2] {
    let context = CudaContext::new(0).unwrap();
    // SAFETY: what the tests leave unordered, the emulated driver is to report.
    unsafe { context.disable_event_tracking() };
    [context.new_stream().unwrap(), context.new_stream().unwrap()]
}

fn copy(stream: &Arc<CudaStream>, from: &CudaSlice<u32>, to: &mut CudaSlice<u32>) {
    launch!(stream, "probe_copy", of_size(1, 32), from, to, &8_u32).unwrap();
}

/// An array that the first stream has written, and one of the second stream's own.
fn written(streams: &[Arc<CudaStream>; 2]) -> (CudaSlice<u32>, CudaSlice<u32>) {
    let from = streams[0].clone_htod(&[7_u32; 8]).unwrap();
    (from, streams[1].alloc_zeros(8).unwrap())
}

// ---- streams -----------------------------------------------------------------------------------------------------

#[test]
fn a_read_that_does_not_wait_for_the_write() {
    emulated_dies_if_told(
        &[],
        "stream 2's launch of probe_copy: block (0,0,0) thread (0,0,0) reads memory that",
        || {
            let streams = two_streams();
            let (from, mut to) = written(&streams);
            copy(&streams[1], &from, &mut to);
        },
    );
}

#[test]
fn a_copy_that_does_not_wait_for_a_kernel() {
    emulated_dies_if_told(
        &[],
        "reads memory that stream 2's launch of probe_copy wrote, and nothing orders them",
        || {
            let streams = two_streams();
            let (from, mut to) = written(&streams);
            streams[1].join(&streams[0]).unwrap();
            copy(&streams[1], &from, &mut to);
            streams[0].clone_dtoh(&to).unwrap();
        },
    );
}

#[test]
fn a_free_that_does_not_wait_for_a_read() {
    emulated_dies_if_told(&[], "stream 1's free: writes memory that stream 2's launch of probe_copy read", || {
        let streams = two_streams();
        let (from, mut to) = written(&streams);
        streams[1].join(&streams[0]).unwrap();
        copy(&streams[1], &from, &mut to);
        drop(from);
    });
}

#[test]
fn a_write_that_does_not_wait_for_the_allocation() {
    emulated_dies_if_told(&[], "stream 2's fill: writes memory that stream 1's allocation made", || {
        let streams = two_streams();
        // SAFETY: plain numbers.
        let mut memory = unsafe { streams[0].alloc::<u32>(8) }.unwrap();
        streams[1].memset_zeros(&mut memory).unwrap();
    });
}

// Of an event, of the host for a stream, for an event, for the context; and fork, which waits for its parent.
#[test]
fn every_way_to_wait_is_one() {
    emulated(&[], || {
        let waits: [fn(&[Arc<CudaStream>; 2]); 5] = [
            |[a, b]| b.join(a).unwrap(),
            |[a, _]| a.synchronize().unwrap(),
            |[a, _]| a.record_event(None).unwrap().synchronize().unwrap(),
            |[a, _]| a.context().synchronize().unwrap(),
            |[a, _]| {
                let event = a.record_event(None).unwrap();
                assert_eq!([event.is_complete(), event.is_complete(), event.is_complete()], [false, true, true]);
            },
        ];
        for wait in waits {
            let streams = two_streams();
            let (from, mut to) = written(&streams);
            wait(&streams);
            copy(&streams[1], &from, &mut to);
            assert_eq!(streams[1].clone_dtoh(&to).unwrap(), [7; 8]);
            let forked = streams[1].fork().unwrap();
            copy(&forked, &from, &mut to);
            forked.synchronize().unwrap();
        }
    });
}

#[test]
fn an_event_that_was_recorded_before_the_write_does_not_order_it() {
    emulated_dies_if_told(&[], "reads memory that stream 1's copy from the host wrote", || {
        let streams = two_streams();
        let event = streams[0].record_event(None).unwrap();
        let (from, mut to) = written(&streams);
        streams[1].wait(&event).unwrap();
        copy(&streams[1], &from, &mut to);
    });
}

#[test]
fn the_time_between_two_events_is_known_when_both_are_over() {
    emulated(&[], || {
        let stream = default_stream();
        let [start, end] = [0, 1].map(|_| stream.record_event(Some(CUevent_flags::CU_EVENT_DEFAULT)).unwrap());
        assert!(start.elapsed_ms(&end).unwrap() >= 0.0);
    });
}

// ---- pinned memory -----------------------------------------------------------------------------------------------

#[test]
fn a_copy_to_pinned_memory_arrives_when_it_has_been_waited_for() {
    emulated(&[], || {
        let stream = default_stream();
        let from = stream.clone_htod(&[7_u32; 8]).unwrap();
        // SAFETY: plain numbers.
        let mut to = unsafe { stream.context().alloc_pinned::<u32>(8) }.unwrap();
        let address = to.as_mut_ptr().unwrap();
        stream.memcpy_dtoh(&from, &mut to).unwrap();
        // SAFETY: (both) a word of `to`.
        assert_eq!(unsafe { address.read_volatile() }, 0xa5a5_a5a5);
        stream.synchronize().unwrap();
        // SAFETY: see above.
        assert_eq!(unsafe { address.read_volatile() }, 7);
        // On the device it is there at once, for what comes after it.
        stream.memcpy_dtoh(&from, &mut to).unwrap();
        let back = stream.clone_htod(&to).unwrap();
        assert_eq!(stream.clone_dtoh(&back).unwrap(), [7; 8]);
        assert_eq!(to.as_slice().unwrap(), [7; 8]);
        drop(to);
        assert_eq!(allocations(), 2);
    });
}

#[test]
fn pinned_memory_that_changes_under_a_copy() {
    emulated_dies(&[], "pinned memory changed before stream 0's copy from the host was waited for", || {
        let stream = default_stream();
        // SAFETY: plain numbers.
        let mut from = unsafe { stream.context().alloc_pinned::<u32>(8) }.unwrap();
        from.as_mut_slice().unwrap().fill(7);
        let address = from.as_mut_ptr().unwrap();
        let _to = stream.clone_htod(&from).unwrap();
        // SAFETY: a word of `from`.
        unsafe { address.write_volatile(8) };
        stream.synchronize().unwrap();
    });
}

// ---- graphs ------------------------------------------------------------------------------------------------------

fn capture(stream: &Arc<CudaStream>, body: impl FnOnce()) -> Result<CudaGraph, DriverError> {
    stream.begin_capture(CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL)?;
    body();
    stream.end_capture(CUgraphInstantiate_flags(0)).map(Option::unwrap)
}

// With the arguments of the time of the capture: a copy of them, as the address of `to` alone is an argument.
#[test]
fn a_graph_does_what_was_captured_when_it_is_launched_and_as_often() {
    emulated(&[], || {
        let [stream, other] = two_streams();
        let mut from = stream.clone_htod(&[1_u32; 8]).unwrap();
        let (mut to, mut copied) = (stream.alloc_zeros::<u32>(8).unwrap(), stream.alloc_zeros::<u32>(8).unwrap());
        let graph = capture(&stream, || {
            copy(&stream, &from, &mut to);
            stream.memcpy_dtod(&to, &mut copied).unwrap();
            stream.memset_zeros(&mut to).unwrap();
        });
        assert_eq!(stream.clone_dtoh(&copied).unwrap(), [0; 8]);
        let graph = graph.unwrap();
        for value in [2, 3] {
            stream.memcpy_htod(&[value; 8], &mut from).unwrap();
            graph.upload().unwrap();
            graph.launch().unwrap();
            assert_eq!(stream.clone_dtoh(&copied).unwrap(), [value; 8]);
            assert_eq!(stream.clone_dtoh(&to).unwrap(), [0; 8]);
        }
        assert_eq!((live("graphs"), live("streams")), (2, 2));
        drop((graph, other));
        assert_eq!((live("graphs"), live("streams"), live("events")), (0, 1, 0));
    });
}

#[test]
fn a_graph_reads_pinned_memory_at_each_launch() {
    emulated(&[], || {
        let [stream, _] = two_streams();
        // SAFETY: plain numbers.
        let mut from = unsafe { stream.context().alloc_pinned::<u32>(8) }.unwrap();
        let mut to = stream.alloc_zeros::<u32>(8).unwrap();
        let graph = capture(&stream, || stream.memcpy_htod(&from, &mut to).unwrap()).unwrap();
        for value in [2, 3] {
            from.as_mut_slice().unwrap().fill(value);
            graph.launch().unwrap();
            stream.synchronize().unwrap();
            assert_eq!(stream.clone_dtoh(&to).unwrap(), [value; 8]);
        }
    });
}

#[test]
fn a_graph_over_freed_memory() {
    emulated_dies(&[], "which stream 1's free freed", || {
        let [stream, _] = two_streams();
        let (from, mut to) = (stream.clone_htod(&[1_u32; 8]).unwrap(), stream.alloc_zeros::<u32>(8).unwrap());
        let graph = capture(&stream, || copy(&stream, &from, &mut to)).unwrap();
        graph.launch().unwrap();
        drop(from);
        graph.launch().unwrap();
    });
}

#[test]
fn a_capture_ends_at_what_it_cannot_hold() {
    emulated(&[], || {
        let [stream, other] = two_streams();
        let code = |result: Result<(), DriverError>| result.unwrap_err().0;
        let ended = capture(&stream, || {
            assert_eq!(code(stream.synchronize()), CUresult::CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED);
        });
        assert_eq!(ended.err().unwrap().0, CUresult::CUDA_ERROR_STREAM_CAPTURE_INVALIDATED);
        let event = other.record_event(None).unwrap();
        let ended = capture(&stream, || {
            assert_eq!(code(stream.wait(&event)), CUresult::CUDA_ERROR_STREAM_CAPTURE_ISOLATION);
        });
        assert_eq!(ended.err().unwrap().0, CUresult::CUDA_ERROR_STREAM_CAPTURE_INVALIDATED);
        // An event of the capture itself is none.
        capture(&stream, || stream.wait(&stream.record_event(None).unwrap()).unwrap()).unwrap().launch().unwrap();
    });
}

#[test]
fn a_capture_of_two_streams() {
    emulated_dies(&[], "waits for an event of a capture, which would fork it", || {
        let [stream, other] = two_streams();
        let _ = capture(&stream, || other.join(&stream).unwrap());
    });
}

#[test]
fn a_captured_copy_from_memory_that_may_be_gone() {
    emulated_dies(&[], "captured a copy from memory of the host that is not pinned", || {
        let [stream, _] = two_streams();
        let mut to = stream.alloc_zeros::<u32>(8).unwrap();
        let _ = capture(&stream, || stream.memcpy_htod(&[1; 8], &mut to).unwrap());
    });
}

// ---- faults ------------------------------------------------------------------------------------------------------

#[test]
fn a_lost_device_stays_lost() {
    emulated(&[("EMULATED_DEVICES", "2")], || {
        let stream = default_stream();
        let (from, mut to) = (stream.clone_htod(&[1_u32; 8]).unwrap(), stream.alloc_zeros::<u32>(8).unwrap());
        let probe = crate::emulator::function(&stream, "probe_copy");
        fail("cuLaunchKernel", 1, CUresult::CUDA_ERROR_ILLEGAL_ADDRESS);
        let code = |result: Result<(), DriverError>| result.unwrap_err().0;
        let mut launch = stream.launch_builder(&probe);
        launch.arg(&from).arg(&mut to).arg(&8_u32);
        // SAFETY: it is not launched.
        let result = unsafe { launch.launch(of_size(1, 32)) }.map(drop);
        assert_eq!(code(result), CUresult::CUDA_ERROR_ILLEGAL_ADDRESS);
        assert_eq!(code(stream.synchronize()), CUresult::CUDA_ERROR_ILLEGAL_ADDRESS);
        assert_eq!(code(stream.clone_dtoh(&to).map(drop)), CUresult::CUDA_ERROR_ILLEGAL_ADDRESS);
        drop(from); // fails, too, and is not freed
        assert_eq!(allocations(), 2);
        let other = CudaContext::new(1).unwrap().default_stream();
        assert_eq!(other.clone_dtoh(&other.clone_htod(&[5_u32]).unwrap()), Ok(vec![5]));
    });
}

#[test]
fn a_fault_that_does_not_lose_the_device_passes() {
    emulated(&[], || {
        let stream = default_stream();
        fail("cuStreamSynchronize", 1, CUresult::CUDA_ERROR_OUT_OF_MEMORY);
        assert_eq!(stream.synchronize().unwrap_err().0, CUresult::CUDA_ERROR_OUT_OF_MEMORY);
        stream.synchronize().unwrap();
    });
}
