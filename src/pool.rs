//! The threads of a step on the CPU: those of the caller's rayon pool, or of the global one, or the caller's alone.

use rayon::ThreadPoolBuilder;
use std::error::Error;
use std::process;
use std::sync::OnceLock;

/// How many threads work on a step that is called here; 1: the caller's alone.
///
/// Inside a pool these are the pool's. Outside they are the global pool's, which rayon makes once: 1 where no thread can
/// be made, and after a `fork`, which copies the pool without its threads.
pub(crate) fn threads() -> usize {
    if rayon::current_thread_index().is_some() {
        return rayon::current_num_threads();
    }
    static GLOBAL: OnceLock<(u32, usize)> = OnceLock::new();
    let &(process, threads) = GLOBAL.get_or_init(|| (process::id(), global_threads()));
    if process == process::id() { threads } else { 1 }
}

/// Threads of the global pool, made if it was not; 1 without one.
fn global_threads() -> usize {
    match ThreadPoolBuilder::new().build_global() {
        // No thread can be made. Rayon never tries again, and panics at every use of its global pool.
        Err(error) if error.source().is_some() => 1,
        Ok(()) => rayon::current_num_threads(),
        // The application has made one, or has failed to, which rayon tells by a panic alone.
        Err(_) => {
            let threads = std::panic::catch_unwind(rayon::current_num_threads).unwrap_or(1);
            if are_here(threads) { threads } else { 1 }
        }
    }
}

/// False if there are fewer threads than the pool's and the caller's, which is outside of it: the pool was made before
/// this process was forked off. Linux tells.
fn are_here(threads: usize) -> bool {
    std::fs::read_dir("/proc/self/task").map_or(true, |tasks| tasks.count() > threads)
}
