//! A host that has no memory left: an error, where the process would be stopped.

use fused_adamw::{AdamW, AdamWConfig, Device, Error};
use half::bf16;
use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::iter;

/// The system's, up to a size for each thread.
struct Limited;

thread_local! {
    /// Bytes that an allocation of this thread may take.
    static LIMIT: Cell<usize> = const { Cell::new(usize::MAX) };
}

fn is_too_much(size: usize) -> bool {
    LIMIT.try_with(|limit| size > limit.get()).unwrap_or(false)
}

// SAFETY: the system's allocator, whose calls are handed on as they are, or fail.
unsafe impl GlobalAlloc for Limited {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        if is_too_much(layout.size()) {
            return std::ptr::null_mut();
        }
        // SAFETY: the caller's promise.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        if is_too_much(layout.size()) {
            return std::ptr::null_mut();
        }
        // SAFETY: the caller's promise.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        // SAFETY: the caller's promise.
        unsafe { System.dealloc(at, layout) }
    }

    unsafe fn realloc(&self, at: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        if is_too_much(size) {
            return std::ptr::null_mut();
        }
        // SAFETY: the caller's promise.
        unsafe { System.realloc(at, layout, size) }
    }
}

#[global_allocator]
static ALLOCATOR: Limited = Limited;

/// What `call` returns where no allocation can be larger.
fn with_at_most<T>(bytes: usize, call: impl FnOnce() -> T) -> T {
    LIMIT.set(bytes);
    let returned = call();
    LIMIT.set(usize::MAX);
    returned
}

fn missed<T>(result: Result<T, Error>) -> u64 {
    match result.err() {
        Some(Error::OutOfMemory { bytes, gpu: None, .. }) => bytes,
        other => panic!("{other:?}"),
    }
}

const LEN: usize = 100_000;

#[test]
fn a_copy_of_the_state() {
    let mut opt = AdamW::new(&Device::cpu(), AdamWConfig::default(), [LEN]).unwrap();
    opt.step([(&mut vec![1.0_f32; LEN], &vec![1.0_f32; LEN])]).unwrap();
    assert_eq!(missed(with_at_most(4 * LEN - 1, || opt.state(0))), 4 * LEN as u64);
    let text = with_at_most(4 * LEN - 1, || opt.state(0)).unwrap_err().to_string();
    assert_eq!(text, "out of memory: 400000 bytes of host memory");
    assert_eq!(with_at_most(4 * LEN, || opt.state(0)).unwrap().step, 1);
}

#[test]
fn the_state_its_masters_and_the_sums() {
    let new = || AdamW::new(&Device::cpu(), AdamWConfig::default(), [LEN]);
    assert!(missed(with_at_most(8 * LEN - 1, new)) >= 8 * LEN as u64);
    let mut opt = new().unwrap();
    let (mut p, g) = (vec![bf16::ONE; LEN], vec![1.0_f32; LEN]);
    assert!(missed(with_at_most(4 * LEN - 1, || opt.step([(&mut p, &g)]))) >= 4 * LEN as u64);
    assert!(missed(with_at_most(4 * LEN - 1, || opt.accumulate([&g]))) >= 4 * LEN as u64);
    assert_eq!((opt.state(0).unwrap().step, p[0]), (0, bf16::ONE));
    opt.accumulate([&g]).unwrap();
    opt.step_accumulated(Default::default(), [&mut p]).unwrap();
    assert_eq!(opt.state(0).unwrap().step, 1);
}

// Without end, and without a word of it.
#[test]
fn the_list_of_tensors() {
    let endless = || AdamW::new(&Device::cpu(), AdamWConfig::default(), iter::from_fn(|| Some(0_usize)));
    assert!(missed(with_at_most(1 << 20, endless)) <= 1 << 20);
}
