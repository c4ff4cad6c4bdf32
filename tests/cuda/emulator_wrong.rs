//! The emulated driver itself: wrong kernels of `tests/driver/probes.cu`, each in a process of its own that it stops,
//! saying why.

use std::sync::Arc;

use fused_adamw::cudarc::driver::{CudaContext, CudaStream, DevicePtr, LaunchConfig, PushKernelArg};

use crate::driver::{emulated_dies, emulated_dies_if_told};
use crate::emulator::{Big, default_stream, launch, of_size, words};

// ---- memory -----------------------------------------------------------------------------------------------

/// Sixteen words; a read or a write of a word `offset` bytes from the first.
fn touch(probe: &str, offset: i64) {
    let stream = default_stream();
    let mut memory = stream.clone_htod(&[1_u32; 16]).unwrap();
    launch!(stream, probe, of_size(1, 1), &mut memory, &offset).unwrap();
}

#[test]
fn a_read_before_the_start() {
    emulated_dies(&[], "reads 4 bytes", || touch("probe_read_at", -4));
}

#[test]
fn a_read_past_the_end() {
    emulated_dies(&[], "4 bytes past the end of the 64 bytes at 0x", || touch("probe_read_at", 64));
}

#[test]
fn a_write_before_the_start() {
    emulated_dies(&[], "4 bytes before the start of the 64 bytes at 0x", || touch("probe_write_at", -4));
}

#[test]
fn a_write_past_the_end() {
    emulated_dies(&[], "launch of probe_write_at: block (0,0,0) thread (0,0,0) writes 4 bytes", || {
        touch("probe_write_at", 64);
    });
}

#[test]
fn a_word_off_its_boundary() {
    emulated_dies(&[], "misaligned: accesses 4 bytes", || touch("probe_read_at", 6));
}

/// Thread 1 reads the word at `address`; thread 0 what is right.
fn read_table(stream: &Arc<CudaStream>, address: u64) {
    let word = stream.clone_htod(&[1_u32]).unwrap();
    let table = stream.clone_htod(&[word.device_ptr(stream).0, address]).unwrap();
    launch!(stream, "probe_read_table", of_size(1, 2), &table).unwrap();
}

#[test]
fn a_read_of_what_is_freed() {
    emulated_dies(&[], "0 bytes into the 12 bytes at 0x", || {
        let stream = default_stream();
        let freed = stream.clone_htod(&[1_u32; 3]).unwrap().device_ptr(&stream).0;
        read_table(&stream, freed);
    });
}

#[test]
fn a_pointer_of_the_host_in_a_table() {
    emulated_dies_if_told(&[], "thread (1,0,0) reads 4 bytes at 0x", || {
        let host = Box::new(1_u32);
        read_table(&default_stream(), (&raw const *host) as u64);
    });
}

#[test]
fn a_null_pointer_in_a_table() {
    emulated_dies(&[], "which is not device memory", || read_table(&default_stream(), 0));
}

#[test]
fn a_vector_off_its_boundary() {
    emulated_dies(&[], "misaligned: accesses 16 bytes", || {
        let stream = default_stream();
        let (from, mut to) = (stream.clone_htod(&[1_u32; 8]).unwrap(), stream.clone_htod(&[0_u32; 4]).unwrap());
        launch!(stream, "probe_vector_at", of_size(1, 1), &from, &mut to, &4_i64).unwrap();
    });
}

#[test]
fn a_read_of_what_was_never_written() {
    emulated_dies_if_told(&[], "reads what was never written, 8 bytes into the 64 bytes", || {
        let stream = default_stream();
        // SAFETY: plain numbers. That they are read before they are written is what this test is about.
        let memory = unsafe { stream.alloc::<u32>(16) }.unwrap();
        launch!(stream, "probe_read_at", of_size(1, 1), &memory, &8_i64).unwrap();
    });
}

#[test]
fn a_copy_of_what_was_never_written_is_no_more_written() {
    emulated_dies_if_told(&[], "copy to the host: reads what was never written, 0 bytes into the 16 bytes", || {
        let stream = default_stream();
        // SAFETY: plain numbers. That they are read before they are written is what this test is about.
        let memory = unsafe { stream.alloc::<u32>(4) }.unwrap();
        let copy = stream.clone_dtod(&memory).unwrap();
        stream.clone_dtoh(&copy).unwrap();
    });
}

#[test]
fn memory_of_another_device() {
    emulated_dies_if_told(&[("EMULATED_DEVICES", "2")], "reads memory of another device", || {
        let [one, zero] = [1, 0].map(|i| CudaContext::new(i).unwrap().default_stream());
        let theirs = one.clone_htod(&[1_u32; 4]).unwrap();
        launch!(zero, "probe_read_at", of_size(1, 1), &theirs, &0_i64).unwrap();
    });
}

// ---- races ------------------------------------------------------------------------------------------------

/// A probe that takes an array of 64 words.
fn race(probe: &str, blocks: u32, threads: u32) {
    let stream = default_stream();
    let mut memory = stream.clone_htod(&words(0..64)).unwrap();
    launch!(stream, probe, of_size(blocks, threads), &mut memory).unwrap();
}

#[test]
fn a_missing_barrier() {
    emulated_dies_if_told(&[], "shared memory that", || race("probe_no_barrier", 1, 64));
}

#[test]
fn a_syncwarp_instead_of_a_barrier() {
    emulated_dies_if_told(&[], "shared memory that", || race("probe_syncwarp_for_barrier", 1, 64));
}

#[test]
fn a_shuffle_instead_of_a_syncwarp() {
    emulated_dies_if_told(&[], "a race: reads shared memory that thread 0 of this block wrote", || {
        race("probe_shuffle_for_syncwarp", 1, 32);
    });
}

#[test]
fn a_write_of_what_others_are_reading() {
    emulated_dies_if_told(&[], "thread (5,0,0) a race: writes shared memory", || {
        race("probe_late_write", 1, 32);
    });
}

#[test]
fn the_first_of_many_readers_writes() {
    emulated_dies_if_told(&[], "thread (0,0,0) a race: writes memory that thread 1 of this block read", || {
        race("probe_first_reader_writes", 1, 32);
    });
}

#[test]
fn two_threads_write_one_word() {
    emulated_dies_if_told(&[], "a race: writes memory that thread 0 of this block wrote", || {
        race("probe_global_race", 1, 64);
    });
}

#[test]
fn two_blocks_write_one_word() {
    emulated_dies_if_told(&[], "a race: writes memory that thread 0 of another block wrote", || {
        race("probe_blocks_write_one", 2, 1);
    });
}

#[test]
fn a_block_writes_what_another_reads() {
    emulated_dies_if_told(&[], "a race: writes memory that thread 0 of another block read", || {
        race("probe_blocks_read_one", 2, 64);
    });
}

#[test]
fn a_block_writes_what_another_changes_by_an_atomic() {
    emulated_dies_if_told(&[], "a race: writes memory that thread 0 of another block changed", || {
        race("probe_atomic_and_plain", 2, 1);
    });
}

#[test]
fn shared_memory_that_nobody_wrote() {
    emulated_dies_if_told(&[], "thread (7,0,0) reads shared memory that no thread of this block has written", || {
        race("probe_unwritten_shared", 1, 32);
    });
}

#[test]
fn shared_memory_of_the_block_before() {
    emulated_dies_if_told(
        &[],
        "block (1,0,0) thread (31,0,0) reads shared memory that no thread of this block has",
        || {
            race("probe_shared_of_another_block", 2, 32);
        },
    );
}

#[test]
fn past_the_end_of_a_shared_array() {
    emulated_dies(&[], "index 32 is outside its array", || {
        let stream = default_stream();
        let mut out = stream.clone_htod(&[0_u32]).unwrap();
        launch!(stream, "probe_outside_shared", of_size(1, 1), &mut out, &32_u32).unwrap();
    });
}

#[test]
fn past_the_end_of_an_argument() {
    emulated_dies(&[], "index 100 is outside its array", || {
        let stream = default_stream();
        let mut out = stream.clone_htod(&[0_u32]).unwrap();
        launch!(stream, "probe_outside_argument", of_size(1, 1), &mut out, &Big([0; 100]), &100_u32).unwrap();
    });
}

#[test]
fn past_the_end_of_dynamic_shared_memory() {
    emulated_dies(&[], "4 bytes past the end of the 252 bytes of dynamic shared memory", || {
        let stream = default_stream();
        let mut out = stream.clone_htod(&words(0..64)).unwrap();
        let size = LaunchConfig { shared_mem_bytes: 63 * 4, ..of_size(1, 64) };
        launch!(stream, "probe_dynamic", size, &mut out).unwrap();
    });
}

// ---- barriers and warps -----------------------------------------------------------------------------------

fn meet(probe: &str) {
    let stream = default_stream();
    launch!(stream, probe, of_size(1, 32)).unwrap();
}

#[test]
fn a_barrier_for_half_a_block() {
    emulated_dies(&[], "ends, but others of its block wait at a barrier", || meet("probe_half_at_barrier"));
}

#[test]
fn two_barriers_at_once() {
    emulated_dies(&[], "while others of its block wait at another", || meet("probe_two_barriers"));
}

#[test]
fn a_barrier_after_a_thread_has_ended() {
    emulated_dies(&[], "ends, but others of its block wait at a barrier", || meet("probe_barrier_after_exit"));
}

#[test]
fn a_mask_without_the_caller() {
    emulated_dies(&[], "with mask 0xfffffffe, which leaves out its own lane 0", || meet("probe_mask_without_caller"));
}

#[test]
fn a_mask_with_a_lane_that_ends() {
    emulated_dies(&[], "ends, but lanes 0x7fffffff wait for it at __ballot_sync", || meet("probe_mask_of_ended"));
}

#[test]
fn a_mask_with_a_lane_that_has_ended() {
    emulated_dies(&[], "but the lanes 0x80000000 have ended or do not exist", || {
        let stream = default_stream();
        // Of every two launches one runs from the last thread to the first.
        launch!(stream, "probe_half_at_barrier", of_size(1, 16)).unwrap();
        launch!(stream, "probe_mask_of_ended", of_size(1, 32)).unwrap();
    });
}

#[test]
fn a_mask_with_a_lane_that_never_comes() {
    emulated_dies(&[], "waits at __ballot_sync, ", || meet("probe_mask_of_never"));
}

#[test]
fn a_shuffle_from_outside_its_mask() {
    emulated_dies(&[], "which reads lane 20, outside its mask 0xffff", || meet("probe_read_outside_mask"));
}

#[test]
fn two_warp_operations_at_once() {
    emulated_dies(&[], "calls __ballot_sync, ", || meet("probe_two_operations"));
}
