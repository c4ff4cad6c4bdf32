//! A step on the CPU belongs to the rayon pool that it is called in, and to no other. No test here may use the global
//! pool outside a process of its own: that nobody has made one is what is asserted.

#![expect(clippy::unwrap_used, reason = "a test stops at the first error")]

use fused_adamw::{AdamW, AdamWConfig, Device};
use rayon::prelude::*;
use rayon::{ThreadPool, ThreadPoolBuilder};
use std::process::Command;
use std::sync::mpsc;
use std::time::Duration;

/// More than a step leaves to the caller's thread alone.
const MANY: usize = 1 << 20;

fn pool(threads: usize) -> ThreadPool {
    ThreadPoolBuilder::new().num_threads(threads).build().unwrap()
}

/// A tensor of `len` after two steps.
fn stepped(len: usize) -> Vec<f32> {
    let mut opt = AdamW::new(&Device::cpu(), AdamWConfig::default(), [len]).unwrap();
    let (mut param, grad) = (vec![1.0_f32; len], vec![0.5_f32; len]);
    for _ in 0..2 {
        opt.step([(&mut param, &grad)]).unwrap();
    }
    param
}

// Rayon makes the global pool when it is first used, once: here that is after the steps.
#[test]
fn a_small_step_needs_no_pool_and_a_large_one_that_of_its_caller() {
    stepped(1000);
    pool(2).install(|| stepped(MANY));
    ThreadPoolBuilder::new().num_threads(1).build_global().expect("nobody has made a global pool");
}

#[cfg(target_os = "linux")]
#[test]
fn every_thread_of_the_pool_takes_part() {
    let (threads, started) = mpsc::channel();
    let name = move |_| threads.send(std::fs::read_link("/proc/thread-self").unwrap()).unwrap();
    let pool = ThreadPoolBuilder::new().num_threads(3).start_handler(name).build().unwrap();
    let threads: Vec<_> = started.iter().take(3).collect();
    let nanoseconds = |thread: &std::path::PathBuf| -> u64 {
        let times = std::fs::read_to_string(std::path::Path::new("/proc").join(thread).join("schedstat")).unwrap();
        times.split(' ').next().unwrap().parse().unwrap()
    };
    // All steps are called by the same thread: the others work for them, or not at all. An idle thread looks for work now
    // and then, and sleeps: far below a tenth of the time.
    let all_work = || {
        let times: Vec<u64> = threads.iter().map(nanoseconds).collect();
        let most = times.iter().copied().max().unwrap_or(0);
        most > 100_000_000 && times.iter().all(|&time| time > most / 10)
    };
    let steps = || (0..300).any(|_| !stepped(MANY).is_empty() && all_work());
    assert!(pool.install(steps), "nanoseconds by thread: {:?}", threads.iter().map(nanoseconds).collect::<Vec<_>>());
}

// A step waits for its chunks, and a thread that waits takes other tasks: even if they are steps themselves.
#[test]
fn steps_in_tasks_of_a_pool_come_to_an_end_with_the_same_bits() {
    let alone = pool(1).install(|| stepped(MANY));
    for threads in [1, 2, 8] {
        let (done, finished) = mpsc::channel();
        std::thread::spawn(move || {
            let together = |_| rayon::join(|| stepped(MANY), || stepped(1000)).0;
            let all: Vec<_> = pool(threads).install(|| (0..12).into_par_iter().map(together).collect());
            done.send(all).unwrap();
        });
        let all = finished.recv_timeout(Duration::from_secs(300)).expect("the steps wait for one another");
        assert!(all.iter().all(|param| *param == alone), "{threads} threads");
    }
}

#[test]
fn the_environment_sets_the_threads_of_the_global_pool() {
    for threads in ["1", "3", "64"] {
        let mut child = Command::new(std::env::current_exe().unwrap());
        child.args(["--exact", "in_the_global_pool", "--ignored", "--nocapture"]).env("RAYON_NUM_THREADS", threads);
        let output = child.output().unwrap();
        let said = String::from_utf8_lossy(&output.stdout);
        assert!(output.status.success() && said.contains(&format!(", {threads} threads)")), "{threads}: {said}");
    }
}

#[test]
#[ignore = "in a process of its own: by the_environment_sets_the_threads_of_the_global_pool"]
fn in_the_global_pool() {
    assert!(stepped(MANY) == pool(1).install(|| stepped(MANY)));
    if rayon::current_num_threads() == 1 {
        steps_do_without_one_thread();
    }
    println!("{}", Device::cpu());
}

/// The caller's is as good, and need not be woken.
fn steps_do_without_one_thread() {
    let (_free, held) = mpsc::channel::<()>();
    rayon::spawn(move || held.iter().for_each(drop));
    let (done, finished) = mpsc::channel();
    std::thread::spawn(move || done.send(stepped(MANY)).unwrap());
    finished.recv_timeout(Duration::from_secs(60)).expect("a step waits for the pool's one thread");
}
