//! The emulated driver itself: kernels of `tests/driver/probes.cu` that it has to run right.

use std::sync::Arc;

use fused_adamw::cudarc::driver::sys::CUfunction_attribute;
use fused_adamw::cudarc::driver::{CudaContext, CudaFunction, CudaStream, DeviceRepr, LaunchConfig, PushKernelArg};
use fused_adamw::cudarc::nvrtc::Ptx;

use crate::driver::{emulated, traffic};

pub(crate) fn default_stream() -> Arc<CudaStream> {
    CudaContext::new(0).unwrap().default_stream()
}

/// The emulated driver looks for the entry alone.
pub(crate) fn function(stream: &CudaStream, name: &str) -> CudaFunction {
    let ptx = format!(".version 8.0\n.visible .entry {name}(\n)\n.minnctapersm 3\n{{\n}}\n");
    stream.context().load_module(Ptx::from_src(ptx)).unwrap().load_function(name).unwrap()
}

pub(crate) fn of_size(blocks: u32, threads: u32) -> LaunchConfig {
    LaunchConfig { grid_dim: (blocks, 1, 1), block_dim: (threads, 1, 1), shared_mem_bytes: 0 }
}

/// Launches a probe with these arguments.
macro_rules! launch {
    ($stream:expr, $probe:expr, $size:expr $(, $argument:expr)*) => {{
        let function = $crate::emulator::function(&$stream, $probe);
        let mut launch = $stream.launch_builder(&function);
        $(launch.arg($argument);)*
        // SAFETY: the arguments are the probe's; what it does wrong, the emulated driver is to report.
        unsafe { launch.launch($size) }.map(drop)
    }};
}
pub(crate) use launch;

pub(crate) fn words(range: std::ops::Range<u32>) -> Vec<u32> {
    range.collect()
}

// In launches from the first thread to the last and the other way round, and in any order.
#[test]
fn shuffles_shared_memory_and_barriers_sum_a_block() {
    for seed in ["0", "1", "2"] {
        emulated(&[("EMULATED_SEED", seed)], || {
            let stream = default_stream();
            let numbers: Vec<f64> = (0..3 * 256).map(f64::from).collect();
            let from = stream.clone_htod(&numbers).unwrap();
            let expected: Vec<f64> = numbers.chunks(256).map(|block| block.iter().sum()).collect();
            for _ in 0..2 {
                let mut sums = stream.alloc_zeros::<f64>(3).unwrap();
                launch!(stream, "probe_sum", of_size(3, 256), &from, &mut sums).unwrap();
                assert_eq!(stream.clone_dtoh(&sums).unwrap(), expected);
            }
        });
    }
}

#[test]
fn every_warp_operation_is_what_its_definition_says() {
    emulated(&[], || {
        let stream = default_stream();
        let mut out = stream.alloc_zeros::<u32>(10 * 64).unwrap();
        launch!(stream, "probe_warp", of_size(1, 64), &mut out).unwrap();
        let ballot = |vote: fn(u32) -> bool| (0..32).filter(|&i| vote(i)).map(|i| 1_u32 << i).sum::<u32>();
        for (thread, found) in stream.clone_dtoh(&out).unwrap().chunks(10).enumerate() {
            let lane = u32::try_from(thread % 32).unwrap();
            let up = if lane < 3 { lane } else { lane - 3 };
            let down = if lane > 28 { lane } else { lane + 3 };
            let half = if lane < 16 { ballot(|i| i < 16 && i % 2 == 1) } else { ballot(|i| i >= 16 && i % 4 == 0) };
            let shuffles = [5, up, down, lane ^ 9, lane / 8 * 8 + 1];
            let votes = [ballot(|i| i % 3 == 0), 1 + 4, 32, 1, half];
            assert_eq!(found, [shuffles, votes].concat(), "thread {thread}");
        }
    });
}

#[test]
fn a_syncwarp_orders_the_memory_of_its_lanes() {
    emulated(&[], || {
        let stream = default_stream();
        for _ in 0..2 {
            let mut out = stream.alloc_zeros::<u32>(32).unwrap();
            launch!(stream, "probe_syncwarp", of_size(1, 32), &mut out).unwrap();
            assert_eq!(stream.clone_dtoh(&out).unwrap(), (0..32).map(|i| (i + 5) % 32).collect::<Vec<_>>());
        }
    });
}

#[test]
fn atomics_of_all_blocks_meet_and_are_no_race() {
    emulated(&[], || {
        let stream = default_stream();
        let mut out = stream.clone_htod(&[0, 0, 9, 0, u32::MAX, 0, 0]).unwrap();
        let (mut sum, mut wide) = (stream.clone_htod(&[1.0_f32]).unwrap(), stream.clone_htod(&[0_u64]).unwrap());
        launch!(stream, "probe_atomics", of_size(4, 64), &mut out, &mut sum, &mut wide).unwrap();
        assert_eq!(stream.clone_dtoh(&out).unwrap(), [256, 255, 0, u32::MAX, 0, 256 % 7, 64]);
        assert_eq!(stream.clone_dtoh(&sum).unwrap(), [129.0]);
        assert_eq!(stream.clone_dtoh(&wide).unwrap(), [256 << 33]);
    });
}

#[test]
fn dynamic_shared_memory_is_as_large_as_the_launch_says() {
    emulated(&[], || {
        let stream = default_stream();
        let mut out = stream.clone_htod(&words(0..64)).unwrap();
        let size = LaunchConfig { shared_mem_bytes: 64 * 4, ..of_size(1, 64) };
        launch!(stream, "probe_dynamic", size, &mut out).unwrap();
        assert_eq!(stream.clone_dtoh(&out).unwrap(), (0..64).rev().collect::<Vec<_>>());
    });
}

#[test]
fn each_of_two_devices_runs_kernels_on_its_own_memory() {
    emulated(&[("EMULATED_DEVICES", "2")], || {
        let streams = [0, 1].map(|i| CudaContext::new(i).unwrap().default_stream());
        let mut out = streams.each_ref().map(|stream| stream.clone_htod(&words(0..64)).unwrap());
        let size = LaunchConfig { shared_mem_bytes: 64 * 4, ..of_size(1, 64) };
        for (stream, out) in streams.iter().zip(&mut out) {
            launch!(stream, "probe_dynamic", size, &mut *out).unwrap();
            assert_eq!(stream.clone_dtoh(out).unwrap()[0], 63);
        }
    });
}

#[test]
fn a_function_has_the_limits_that_it_is_given() {
    emulated(&[], || {
        let stream = default_stream();
        let probe = function(&stream, "probe_dynamic");
        let mut out = stream.clone_htod(&words(0..64)).unwrap();
        let mut launch = |threads, bytes| {
            let mut launch = stream.launch_builder(&probe);
            launch.arg(&mut out);
            // SAFETY: the arguments are the probe's, and the memory is enough for 64 threads.
            unsafe { launch.launch(LaunchConfig { shared_mem_bytes: bytes, ..of_size(1, threads) }) }.map(drop)
        };
        launch(1025, 5000).unwrap_err();
        launch(0, 5000).unwrap_err();
        launch(64, 48 * 1024 + 4).unwrap_err();
        let most = CUfunction_attribute::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
        probe.set_attribute(most, 64 * 1024).unwrap();
        probe.set_attribute(most, 65 * 1024).unwrap_err();
        launch(64, 48 * 1024 + 4).unwrap();
        assert_eq!(probe.get_attribute(most), Ok(64 * 1024));
        assert_eq!(probe.max_threads_per_block(), Ok(1024));
        assert_eq!(probe.occupancy_max_active_blocks_per_multiprocessor(64, 0, None), Ok(3));
        assert_eq!(probe.occupancy_max_active_blocks_per_multiprocessor(512, 0, None), Ok(2));
    });
}

#[test]
fn narrow_neighbours_and_turns_between_barriers_are_no_race() {
    emulated(&[], || {
        let stream = default_stream();
        let mut bytes = stream.alloc_zeros::<u8>(77).unwrap();
        launch!(stream, "probe_narrow", of_size(1, 77), &mut bytes).unwrap();
        assert_eq!(stream.clone_dtoh(&bytes).unwrap(), (0..77).collect::<Vec<u8>>());
        let mut out = stream.alloc_zeros::<u32>(64).unwrap();
        launch!(stream, "probe_global_turns", of_size(1, 64), &mut out).unwrap();
        assert_eq!(stream.clone_dtoh(&out).unwrap(), [2; 64]);
    });
}

#[test]
fn the_bytes_that_kernels_move_are_counted() {
    emulated(&[], || {
        let stream = default_stream();
        let from = stream.clone_htod(&words(0..100)).unwrap();
        let mut to = stream.alloc_zeros::<u32>(100).unwrap();
        traffic();
        launch!(stream, "probe_copy", of_size(4, 32), &from, &mut to, &100_u32).unwrap();
        assert_eq!(stream.clone_dtoh(&to).unwrap(), words(0..100));
        let told = std::env::var_os("FUSED_ADAMW_SANITIZE").is_none();
        assert_eq!(traffic(), if told { (400, 400) } else { (0, 0) });
        assert_eq!(traffic(), (0, 0));
    });
}

/// The argument of the probes `probe_argument` and `probe_outside_argument`.
#[repr(C)]
pub(crate) struct Big(pub(crate) [u32; 100]);
// SAFETY: plain numbers.
unsafe impl DeviceRepr for Big {}

#[test]
fn large_arguments_arrive() {
    emulated(&[], || {
        let stream = default_stream();
        let mut out = stream.alloc_zeros::<u32>(100).unwrap();
        let big = Big(std::array::from_fn(|i| 7 * u32::try_from(i).unwrap()));
        launch!(stream, "probe_argument", of_size(1, 100), &mut out, &big).unwrap();
        assert_eq!(stream.clone_dtoh(&out).unwrap(), big.0);
    });
}
