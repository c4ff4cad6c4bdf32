//! Who plays the driver: the emulated one of `tests/driver` in a process of its own, or the one of this machine.

use std::collections::BTreeMap;
use std::env;
use std::ffi::{CStr, CString, c_char, c_int, c_long};
use std::fs;
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Once, OnceLock};

use fused_adamw::Device;
use fused_adamw::cudarc::driver::sys::CUresult;
use libloading::{Library, Symbol};

/// Set in a process that a test has started.
const CHILD: &str = "FUSED_ADAMW_TEST_CHILD";

/// Runs `body`, the whole of a test, on the emulated driver; `switches` are those of `tests/driver/README.md`.
pub(crate) fn emulated<F: FnOnce()>(switches: &[(&str, &str)], body: F) {
    if env::var_os(CHILD).is_some() {
        let set = |(name, value): &(&str, &str)| env::var(name).as_deref() == Ok(*value);
        return if switches.iter().all(set) {
            body()
        };
    }
    if let Some(folder) = folder() {
        run_child::<F>(folder, switches);
    } else if emulation_is_off() {
        say(&format!("SKIPPED {}", name_of::<F>()));
    }
}

/// Runs `body`, the whole of a test, on the emulated driver and on the GPU of this machine.
pub(crate) fn each_driver<F: Fn()>(body: F) {
    if env::var_os(CHILD).is_some() {
        return body();
    }
    if let Some(folder) = folder() {
        run_child::<F>(folder, &[]);
    }
    match Device::cuda_at(0) {
        Ok(_) => body(),
        Err(error) => {
            assert!(env::var_os("FUSED_ADAMW_REQUIRE_GPU").is_none(), "no GPU: {error}");
            static ONCE: Once = Once::new();
            ONCE.call_once(|| say(&format!("SKIPPED on a GPU, every test of this file: {error}")));
        }
    }
}

/// Runs `body`, the whole of a test, where the library in the first place to look is none.
pub(crate) fn without_driver<F: FnOnce()>(body: F) {
    if env::var_os(CHILD).is_some() {
        return body();
    }
    if emulation_is_off() {
        return say(&format!("SKIPPED {}", name_of::<F>()));
    }
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("no-driver");
    fs::create_dir_all(&folder).unwrap();
    for name in NAMES {
        fs::write(folder.join(name), "not a library").unwrap();
    }
    run_child::<F>(&folder, &[]);
}

/// What cudarc and the crate look for, in this order.
const NAMES: [&str; 2] = ["libcuda.so", "libcuda.so.1"];

/// Runs the one test whose body is `F` again, with `folder` the first place in which libcuda is looked for.
fn run_child<F>(folder: &Path, switches: &[(&str, &str)]) {
    let name = name_of::<F>();
    let mut folders = vec![folder.to_path_buf()];
    folders.extend(env::var_os("LD_LIBRARY_PATH").iter().flat_map(env::split_paths));
    let mut child = Command::new(env::current_exe().unwrap());
    child.args([&name, "--exact", "--nocapture"]).env("LD_LIBRARY_PATH", env::join_paths(folders).unwrap());
    child.env(CHILD, "1").envs(switches.iter().copied());
    if let Some(asan) = sanitizer() {
        child.env("LD_PRELOAD", asan).env("ASAN_OPTIONS", "detect_leaks=0");
    }
    let output = child.output().unwrap();
    let [stdout, stderr] = [&output.stdout, &output.stderr].map(|bytes| String::from_utf8_lossy(bytes));
    assert!(output.status.success(), "{name} with {switches:?}: {}\n{stdout}\n{stderr}", output.status);
    assert!(stdout.contains("1 passed"), "{name} is not the name of a test: {stdout}");
    stderr.lines().filter(|line| line.starts_with("SKIPPED")).for_each(say);
}

/// Of the test that `F` is the body of: `cuda::parity::name_of_test::{{closure}}`.
fn name_of<F>() -> String {
    let name = std::any::type_name::<F>().split("::").collect::<Vec<_>>();
    name[1..name.len() - 1].join("::")
}

/// Whether the tests take this machine's driver alone: where they were not built, no folder is theirs to write.
fn emulation_is_off() -> bool {
    env::var_os("FUSED_ADAMW_EMULATED").is_some_and(|value| value == "0")
}

/// Not by `eprintln!`: a test that passes would keep it to itself.
fn say(line: &str) {
    io::stderr().write_all(format!("{line}\n").as_bytes()).unwrap();
}

/// Where the emulated driver is, built once; `None`, after saying so, where it cannot be.
fn folder() -> Option<&'static Path> {
    if emulation_is_off() {
        return None;
    }
    static FOLDER: OnceLock<Option<PathBuf>> = OnceLock::new();
    let built = FOLDER.get_or_init(|| build().map_err(|why| say(&format!("SKIPPED, no emulated driver: {why}"))).ok());
    let required = env::var_os("FUSED_ADAMW_REQUIRE_CXX").is_some();
    assert!(built.is_some() || !required, "no emulated driver");
    built.as_deref()
}

fn build() -> Result<PathBuf, &'static str> {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/driver/driver.cpp");
    let cxx = cxx().ok_or("there is no C++ compiler")?;
    if !cfg!(target_os = "linux") || !source.exists() {
        return Err("this is not Linux, or not where the tests were built");
    }
    let name = if sanitizer().is_some() { "emulated-driver-sanitized" } else { "emulated-driver" };
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
    fs::create_dir_all(&folder).unwrap();
    // Another process may build, or load, the same files: each name appears at once and whole.
    let part = |name: &str| folder.join(format!("{name}.{}", std::process::id()));
    let mut command = Command::new(cxx);
    command.args(["-std=c++17", "-O2", "-Wall", "-Wextra", "-Wno-unknown-pragmas", "-Wno-unused-function"]);
    command.args(["-ffp-contract=off", "-fno-strict-aliasing", "-fPIC", "-shared", "-o"]).arg(part(NAMES[0]));
    if sanitizer().is_some() {
        command.args(["-g", "-fsanitize=address,undefined", "-fno-sanitize-recover=all"]);
    }
    assert!(command.arg(source).status().unwrap().success(), "tests/driver/driver.cpp does not compile");
    fs::copy(part(NAMES[0]), part(NAMES[1])).unwrap();
    NAMES.into_iter().for_each(|name| fs::rename(part(name), folder.join(name)).unwrap());
    Ok(folder)
}

fn cxx() -> Option<String> {
    let works = |cxx: &String| Command::new(cxx).arg("--version").output().is_ok_and(|out| out.status.success());
    env::var("CXX").into_iter().chain(["c++", "g++", "clang++"].map(String::from)).find(works)
}

/// The library that a process has to load first when another one of it was built with AddressSanitizer.
fn sanitizer() -> Option<PathBuf> {
    env::var_os("FUSED_ADAMW_SANITIZE")?;
    let found = Command::new(cxx()?).arg("-print-file-name=libasan.so").output().unwrap();
    Some(String::from_utf8(found.stdout).unwrap().trim().into())
}

// ---- in the child: the emulated driver's own functions -----------------------------------------------------------

fn function<T>(name: &str) -> Symbol<'static, T> {
    static LIBRARY: OnceLock<Library> = OnceLock::new();
    // SAFETY: the emulated driver, which this process has loaded already or is about to.
    let library = LIBRARY.get_or_init(|| unsafe { Library::new(NAMES[0]) }.unwrap());
    // SAFETY: the callers name the types that stand in driver.cpp.
    unsafe { library.get(name) }.expect("the emulated driver, not another one")
}

/// A call of the driver: the function, and the number of the stream it was given (0 for none, and for the default
/// one; others are counted from 1 as they are made).
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Call {
    pub(crate) name: String,
    pub(crate) stream: u32,
}

/// What `body` calls, in order; without `cuCtxGetCurrent`, with which cudarc precedes nearly every call.
pub(crate) fn trace(body: impl FnOnce()) -> Vec<Call> {
    let begin = function::<extern "C" fn()>("emulated_trace_begin");
    let end = function::<extern "C" fn() -> *const c_char>("emulated_trace");
    begin();
    body();
    // SAFETY: a string that lives until the next call of the driver, which this process makes on one thread only.
    let text = unsafe { CStr::from_ptr(end()) }.to_str().unwrap();
    let parse = |line: &str| {
        let (name, stream) = line.split_once(' ').unwrap();
        Call { name: name.into(), stream: stream.parse().unwrap() }
    };
    text.lines().map(parse).filter(|call| call.name != "cuCtxGetCurrent").collect()
}

/// How often `body` calls which function.
pub(crate) fn calls(body: impl FnOnce()) -> BTreeMap<String, usize> {
    let mut counts = BTreeMap::new();
    trace(body).into_iter().for_each(|call| *counts.entry(call.name).or_default() += 1);
    counts
}

/// What [`calls`] returns.
pub(crate) fn counts<const N: usize>(counts: [(&str, usize); N]) -> BTreeMap<String, usize> {
    counts.into_iter().filter(|(_, n)| *n > 0).map(|(name, n)| (name.into(), n)).collect()
}

/// The `k`-th call, from 1, of `name` (`*`: of any function) from now on will fail with `code`.
pub(crate) fn fail(name: &str, k: usize, code: CUresult) {
    let name = CString::new(name).unwrap();
    let fail = function::<extern "C" fn(*const c_char, c_long, c_int)>("emulated_fail");
    fail(name.as_ptr(), k.try_into().unwrap(), code as c_int);
}

/// Ends [`fail`]; whether the call that was to fail has been made.
pub(crate) fn has_failed() -> bool {
    let pending = function::<extern "C" fn() -> c_int>("emulated_fault_pending")() != 0;
    fail("", 0, CUresult::CUDA_SUCCESS);
    !pending
}

/// How many allocations of device memory there are.
pub(crate) fn allocations() -> u64 {
    function::<extern "C" fn() -> u64>("emulated_allocations")()
}
