//! A step that is like the one before it allocates nothing.

use fused_adamw::{AdamW, AdamWConfig, Alarm, Control, Decay, Device, NonFinite, Pair, Result, Schedule, StepOptions};
use half::bf16;
use rayon::ThreadPoolBuilder;
use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};

/// The system's, counted, on all threads.
struct Counting;

static ALLOCATIONS: AtomicUsize = AtomicUsize::new(0);

// SAFETY: the system's allocator, whose calls are handed on as they are.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.fetch_add(1, SeqCst);
        // SAFETY: the caller's promise.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        // SAFETY: the caller's promise.
        unsafe { System.dealloc(at, layout) }
    }

    unsafe fn realloc(&self, at: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        ALLOCATIONS.fetch_add(1, SeqCst);
        // SAFETY: the caller's promise.
        unsafe { System.realloc(at, layout, size) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// Lengths of f32 and of bf16 tensors, and a control.
type Case = (Vec<usize>, Vec<usize>, Option<Control>);

fn cases() -> Vec<Case> {
    let schedule = Schedule { warmup: 10, decay: Decay::Cosine { end: 100, floor: 0.1 } };
    let norm_alarm = Some(Alarm { skip: true, ..Default::default() });
    let clip = Control { max_grad_norm: Some(1.0), schedule, norm_alarm, ..Default::default() };
    let every_tensor = Control { non_finite: NonFinite::SkipTensor, ..clip.clone() };
    let full = Control { metrics: true, rms_alarm: norm_alarm, max_grad_value: Some(0.1), ..clip.clone() };
    vec![
        (vec![1000], vec![], None),
        (vec![1 << 20], vec![], None),
        (vec![300; 1000], vec![0, 5, 100_000], None),
        (vec![300; 100], vec![100_000], Some(clip)),
        (vec![300; 100], vec![100_000], Some(every_tensor)),
        (vec![300; 100], vec![100_000], Some(full)),
    ]
}

/// Allocations of ten steps after the first two, which have made the masters, and of ten prepared ones.
fn allocations((f32s, bf16s, control): &Case) -> Result<[usize; 2]> {
    let lens: Vec<usize> = f32s.iter().chain(bf16s).copied().collect();
    let mut opt = AdamW::new(&Device::cpu(), AdamWConfig::default(), &lens)?;
    opt.set_control(control.clone())?;
    let tensors = |scale: f32| f32s.iter().map(|&len| vec![scale; len]).collect::<Vec<_>>();
    let narrow = |scale: f32| bf16s.iter().map(|&len| vec![bf16::from_f32(scale); len]).collect::<Vec<_>>();
    let (mut p, g) = (tensors(1.0), tensors(0.5));
    let (mut p16, g16) = (narrow(1.0), narrow(0.5));
    let mut steps = |count: usize| -> Result<usize> {
        let before = ALLOCATIONS.load(SeqCst);
        for _ in 0..count {
            let wide = p.iter_mut().zip(&g).map(|(p, g)| Pair::new(p, g));
            opt.step(wide.chain(p16.iter_mut().zip(&g16).map(|(p, g)| Pair::new(p, g))))?;
        }
        Ok(ALLOCATIONS.load(SeqCst) - before)
    };
    steps(2)?;
    let steps = steps(10)?;
    let wide = p.iter_mut().zip(&g).map(|(p, g)| Pair::new(p, g));
    // SAFETY: nobody uses the tensors before the last of these steps.
    unsafe { opt.prepare(wide.chain(p16.iter_mut().zip(&g16).map(|(p, g)| Pair::new(p, g))))? };
    let before = ALLOCATIONS.load(SeqCst);
    (0..10).try_for_each(|_| opt.step_prepared(StepOptions::default()))?;
    Ok([steps, ALLOCATIONS.load(SeqCst) - before])
}

// In a pool, as where a model is trained: from outside, rayon's queue allocates a block for every 63 calls. A thread of the
// pool allocates when it first finds nothing to do, whenever that is; a step that allocates does so every time.
#[test]
fn a_step_like_the_one_before_allocates_nothing_whatever_it_has_to_do() {
    for threads in [1, 2] {
        let pool = ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        for (i, case) in cases().iter().enumerate() {
            let tries = (0..5).map(|_| pool.install(|| allocations(case)).unwrap());
            let [steps, prepared] = tries.reduce(|a, b| [a[0].min(b[0]), a[1].min(b[1])]).unwrap();
            assert_eq!([steps, prepared], [0, 0], "case {i}, {threads} threads");
        }
    }
}
