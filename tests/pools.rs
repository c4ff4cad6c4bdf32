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

/// What the ignored test `name` says, in a process of its own.
fn in_a_process(name: &str, environment: &[(&str, &str)]) -> String {
    let mut child = Command::new(std::env::current_exe().unwrap());
    child.args(["--exact", name, "--ignored", "--nocapture", "--test-threads=1"]).envs(environment.iter().copied());
    let output = child.output().unwrap();
    let [stdout, stderr] = [&output.stdout, &output.stderr].map(|said| String::from_utf8_lossy(said));
    assert!(output.status.success() && stdout.contains("1 passed"), "{name}, {environment:?}: {stdout}{stderr}");
    stdout.into_owned()
}

#[test]
fn the_environment_sets_the_threads_of_the_global_pool() {
    for (threads, said) in [("1", ", 1 thread)"), ("3", ", 3 threads)"), ("64", ", 64 threads)")] {
        let output = in_a_process("in_the_global_pool", &[("RAYON_NUM_THREADS", threads)]);
        assert!(output.contains(said), "{output}");
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

// No address space has room for such a stack.
#[cfg(target_os = "linux")]
#[test]
fn where_no_thread_can_be_made_the_callers_does_it() {
    let stack = (1_u64 << 47).to_string();
    in_a_process("without_threads", &[("RUST_MIN_STACK", &stack), ("RAYON_NUM_THREADS", "3")]);
}

#[test]
#[ignore = "in a process of its own: by where_no_thread_can_be_made_the_callers_does_it"]
fn without_threads() {
    std::thread::Builder::new().spawn(|| ()).expect_err("a thread can be made");
    works_alone();
}

// Rayon tries once, and has no global pool from then on.
#[test]
fn where_the_application_has_failed_to_make_a_pool_the_callers_thread_does_it() {
    in_a_process("after_a_pool_that_failed", &[]);
}

#[test]
#[ignore = "in a process of its own: by where_the_application_has_failed_to_make_a_pool_the_callers_thread_does_it"]
fn after_a_pool_that_failed() {
    let none = ThreadPoolBuilder::new().num_threads(3).spawn_handler(|_| Err(std::io::Error::other("none")));
    none.build_global().unwrap_err();
    works_alone();
    // Pools of one's own can be made all the same.
    assert!(pool(2).install(|| Device::cpu().to_string()).ends_with(", 2 threads)"));
}

/// Large steps, by the caller's thread.
fn works_alone() {
    for _ in 0..2 {
        let device = Device::cpu().to_string();
        assert!(stepped(MANY)[0] < 1.0 && device.ends_with(", 1 thread)"), "{device}");
    }
}

#[cfg(target_os = "linux")]
mod forked {
    use super::{MANY, in_a_process, pool, stepped};
    use fused_adamw::Device;
    use rayon::ThreadPoolBuilder;
    use std::time::Duration;

    unsafe extern "C" {
        safe fn fork() -> i32;
        unsafe fn waitpid(process: i32, status: *mut i32, options: i32) -> i32;
        safe fn kill(process: i32, signal: i32) -> i32;
        safe fn _exit(status: i32) -> !;
    }

    /// Whether `body` is true in a process that is forked off here: false, too, if it has not ended in time.
    fn in_a_fork(body: impl FnOnce() -> bool) -> bool {
        let child = fork();
        assert!(child >= 0);
        if child == 0 {
            let ended = std::panic::catch_unwind(std::panic::AssertUnwindSafe(body));
            _exit(i32::from(!ended.unwrap_or(false)));
        }
        let mut status = -1;
        for _ in 0..600 {
            // SAFETY: a child of ours, and a place for its status. 1: it is not waited for.
            if unsafe { waitpid(child, &raw mut status, 1) } == child {
                return status == 0;
            }
            std::thread::sleep(Duration::from_millis(100));
        }
        kill(child, 9);
        // SAFETY: as above; it has been killed.
        unsafe { waitpid(child, &raw mut status, 0) };
        false
    }

    fn threads() -> String {
        Device::cpu().to_string().rsplit_once(", ").unwrap().1.into()
    }

    // The pool's threads are not in the child, and nobody would do what is given to them.
    #[test]
    fn after_a_fork_the_callers_thread_does_it() {
        in_a_process("forked::after_a_step", &[("RAYON_NUM_THREADS", "3")]);
        in_a_process("forked::before_any_step", &[("RAYON_NUM_THREADS", "3")]);
        in_a_process("forked::after_the_applications_pool_has_been_used", &[]);
        in_a_process("forked::after_the_applications_pool_alone", &[]);
    }

    #[test]
    #[ignore = "in a process of its own: by after_a_fork_the_callers_thread_does_it"]
    fn after_a_step() {
        let expected = stepped(MANY);
        assert_eq!(threads(), "3 threads)");
        assert!(in_a_fork(|| stepped(MANY) == expected && threads() == "1 thread)"));
        // A fork of a fork, and a pool that the child makes for itself.
        assert!(in_a_fork(|| in_a_fork(|| stepped(MANY) == expected)));
        assert!(in_a_fork(|| pool(2).install(|| stepped(MANY) == expected && threads() == "2 threads)")));
        assert!(stepped(MANY) == expected && threads() == "3 threads)");
    }

    #[test]
    #[ignore = "in a process of its own: by after_a_fork_the_callers_thread_does_it"]
    fn before_any_step() {
        assert!(in_a_fork(|| stepped(MANY)[0] < 1.0 && threads() == "3 threads)"));
        assert!(stepped(MANY)[0] < 1.0 && threads() == "3 threads)");
    }

    #[test]
    #[ignore = "in a process of its own: by after_a_fork_the_callers_thread_does_it"]
    fn after_the_applications_pool_has_been_used() {
        ThreadPoolBuilder::new().num_threads(2).build_global().unwrap();
        let expected = stepped(MANY);
        assert!(in_a_fork(|| stepped(MANY) == expected && threads() == "1 thread)"));
    }

    #[test]
    #[ignore = "in a process of its own: by after_a_fork_the_callers_thread_does_it"]
    fn after_the_applications_pool_alone() {
        ThreadPoolBuilder::new().num_threads(2).build_global().unwrap();
        rayon::join(|| (), || ());
        assert!(in_a_fork(|| stepped(MANY)[0] < 1.0 && threads() == "1 thread)"));
        assert!(stepped(MANY)[0] < 1.0 && threads() == "2 threads)");
    }
}
