//! Who plays the driver: the emulated one of `tests/driver` in a process of its own, or the one of this machine.

use std::collections::BTreeMap;
use std::env;
use std::ffi::{CStr, CString, c_char, c_int, c_long};
use std::fs;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::{Once, OnceLock};

use fused_adamw::cudarc::driver::sys::CUresult;
use fused_adamw::{DRIVER_FUNCTIONS, Device};
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
    match folder() {
        Some(folder) => run_child::<F>(folder, switches),
        None => skip::<F>(),
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
            say_what_is_skipped();
        }
    }
}

/// Runs `body`, the whole of a test, where the library in the first place to look is none.
pub(crate) fn without_driver<F: FnOnce()>(body: F) {
    if env::var_os(CHILD).is_some() {
        return body();
    }
    if emulation_is_off() {
        return skip::<F>();
    }
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("no-driver");
    fs::create_dir_all(&folder).unwrap();
    for name in NAMES {
        fs::write(folder.join(name), "not a library").unwrap();
    }
    run_child::<F>(&folder, &[]);
}

/// Runs `body`, the whole of a test, on a driver that has all functions that the crate calls, but for this one. None
/// does anything.
pub(crate) fn driver_without<F: FnOnce()>(function: &str, body: F) {
    const LACKS: &str = "FUSED_ADAMW_TEST_LACKS";
    if env::var_os(CHILD).is_some() {
        let is_meant = env::var(LACKS).as_deref() == Ok(function);
        return if is_meant {
            body()
        };
    }
    if emulation_is_off() {
        return skip::<F>();
    }
    let Some(cxx) = cxx() else { return skip::<F>() };
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("driver-without-{function}"));
    fs::create_dir_all(&folder).unwrap();
    let others = DRIVER_FUNCTIONS.iter().filter(|&&other| other != function);
    let source: String = others.map(|name| format!("extern \"C\" int {name}() {{ return 0; }}\n")).collect();
    fs::write(folder.join("driver.cpp"), source).unwrap();
    let mut compile = Command::new(cxx);
    compile.args(["-shared", "-fPIC", "-o"]).arg(part(&folder, NAMES[0])).arg(folder.join("driver.cpp"));
    assert!(compile.status().unwrap().success());
    fs::copy(part(&folder, NAMES[0]), folder.join(NAMES[1])).unwrap();
    fs::rename(part(&folder, NAMES[0]), folder.join(NAMES[0])).unwrap();
    run_child::<F>(&folder, &[(LACKS, function)]);
}

/// What cudarc and the crate look for, in this order.
const NAMES: [&str; 2] = ["libcuda.so", "libcuda.so.1"];

/// Runs the one test whose body is `F` again, with `folder` the first place in which libcuda is looked for.
fn run_child<F>(folder: &Path, switches: &[(&str, &str)]) {
    let (name, output) = child::<F>(folder, switches);
    let [stdout, stderr] = [&output.stdout, &output.stderr].map(|bytes| String::from_utf8_lossy(bytes));
    assert!(output.status.success(), "{name} with {switches:?}: {}\n{stdout}\n{stderr}", output.status);
    assert!(stdout.contains("1 passed"), "{name} is not the name of a test: {stdout}");
    let passed_on = |line: &&str| ["SKIPPED", "driver calls"].iter().any(|start| line.starts_with(start));
    stderr.lines().filter(passed_on).for_each(say);
}

fn child<F>(folder: &Path, switches: &[(&str, &str)]) -> (String, Output) {
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
    (name, output)
}

/// Runs `body`, the whole of a test, on the emulated driver, which is to stop the process and say `message`; or, built
/// with a sanitizer, to have that stop it.
pub(crate) fn emulated_dies<F: FnOnce()>(switches: &[(&str, &str)], message: &str, body: F) {
    if env::var_os(CHILD).is_some() {
        return body();
    }
    let Some(folder) = folder() else { return skip::<F>() };
    let (name, output) = child::<F>(folder, switches);
    let stderr = String::from_utf8_lossy(&output.stderr);
    let sanitized =
        sanitizer().is_some() && (stderr.contains("ERROR: AddressSanitizer") || stderr.contains("runtime error:"));
    let said = stderr.lines().any(|line| line.starts_with("emulated driver: ") && line.contains(message));
    assert!(!output.status.success() && (said || sanitized), "{name}: {}\n{stderr}", output.status);
}

/// [`emulated_dies`] for what no sanitizer sees, and what the emulator does not see when it is built with one: races
/// and reads of what was never written.
pub(crate) fn emulated_dies_if_told<F: FnOnce()>(switches: &[(&str, &str)], message: &str, body: F) {
    if sanitizer().is_none() {
        emulated_dies(switches, message, body);
    }
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

/// The test whose body is `F` does nothing: there is no emulated driver. The bundle of `scripts/gpu-bundle` counts these.
fn skip<F>() {
    say_what_is_skipped();
    if env::var_os("FUSED_ADAMW_NAME_SKIPPED").is_some() {
        say(&format!("SKIPPED {}", name_of::<F>()));
    }
}

/// One line, however many tests it is about.
fn say_what_is_skipped() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let emulated = built().as_ref().err().map(|why| format!("on the emulated driver ({why})"));
        let gpu = Device::cuda_at(0).err().map(|error| format!("on a GPU ({error})"));
        let places: Vec<_> = emulated.into_iter().chain(gpu).collect();
        say(&format!("SKIPPED {}: every test for it", places.join(" and ")));
    });
}

/// Not by `eprintln!`: a test that passes would keep it to itself.
fn say(line: &str) {
    io::stderr().write_all(format!("{line}\n").as_bytes()).unwrap();
}

/// Where the emulated driver is; `None` where there is none.
fn folder() -> Option<&'static Path> {
    let built = built();
    let required = env::var_os("FUSED_ADAMW_REQUIRE_CXX").is_some() && !emulation_is_off();
    assert!(built.is_ok() || !required, "no emulated driver: {built:?}");
    built.as_deref().ok()
}

/// The emulated driver, built once, or why it is not.
fn built() -> &'static Result<PathBuf, &'static str> {
    static FOLDER: OnceLock<Result<PathBuf, &'static str>> = OnceLock::new();
    FOLDER.get_or_init(|| if emulation_is_off() { Err("FUSED_ADAMW_EMULATED=0") } else { build() })
}

/// Where the sources lie: the emulator's, and the kernels'. Another folder gets an emulated driver of its own.
fn sources() -> [PathBuf; 2] {
    let manifest = Path::new(env!("CARGO_MANIFEST_DIR"));
    let folder = |variable, otherwise| env::var_os(variable).map_or(manifest.join(otherwise), PathBuf::from);
    [folder("FUSED_ADAMW_TEST_DRIVER_SOURCES", "tests/driver"), folder("FUSED_ADAMW_TEST_CUDA", "cuda")]
}

fn build() -> Result<PathBuf, &'static str> {
    let sources = sources();
    let cxx = cxx().ok_or("there is no C++ compiler")?;
    if !cfg!(target_os = "linux") || sources.iter().any(|folder| !folder.exists()) {
        return Err("this is not Linux, or not where the tests were built");
    }
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join(folder_name(&sources));
    fs::create_dir_all(&folder).unwrap();
    let objects = OBJECTS.map(|object| Object::new(object, &folder, &sources, &cxx));
    let stale: Vec<_> = objects.iter().filter(|object| !object.is_current()).collect();
    if !stale.is_empty() || NAMES.iter().any(|name| !folder.join(name).exists()) {
        let children: Vec<_> = stale.iter().map(|object| object.compile(&folder).spawn().unwrap()).collect();
        let compiled = children.into_iter().all(|mut child| child.wait().unwrap().success());
        assert!(compiled, "the emulated driver does not compile");
        stale.iter().for_each(|object| object.keep(&folder));
        link(&cxx, &folder);
    }
    Ok(folder)
}

/// Another process may build, or load, the same files: each name appears at once and whole.
fn part(folder: &Path, name: &str) -> PathBuf {
    folder.join(format!("{name}.{}", std::process::id()))
}

fn link(cxx: &str, folder: &Path) {
    let mut link = Command::new(cxx);
    link.args(["-shared", "-Wl,-z,defs"]).args(sanitize());
    link.args(OBJECTS.map(|(name, _)| folder.join(name).with_extension("o")));
    let linked = link.arg("-o").arg(part(folder, NAMES[0])).status().unwrap().success();
    assert!(linked, "the emulated driver does not link");
    fs::copy(part(folder, NAMES[0]), part(folder, NAMES[1])).unwrap();
    NAMES.into_iter().for_each(|name| fs::rename(part(folder, name), folder.join(name)).unwrap());
}

fn folder_name(sources: &[PathBuf; 2]) -> String {
    let mut name = String::from("emulated-driver");
    if sanitizer().is_some() {
        name += "-sanitized";
    }
    if env::var_os("FUSED_ADAMW_TEST_CUDA").is_some() || env::var_os("FUSED_ADAMW_TEST_DRIVER_SOURCES").is_some() {
        let mut hasher = DefaultHasher::new();
        sources.hash(&mut hasher);
        name += &format!("-{:016x}", hasher.finish());
    }
    name
}

/// Compiled at once, the second with the hooks; and of how many of the folders they are made.
const OBJECTS: [(&str, usize); 2] = [("driver", 1), ("kernels", 2)];

/// A compiled half of the driver. Beside it lies how it was made.
struct Object {
    name: &'static str,
    file: PathBuf,
    made_of: Vec<PathBuf>,
    command: Command,
}

impl Object {
    fn new((name, folders): (&'static str, usize), folder: &Path, sources: &[PathBuf; 2], cxx: &str) -> Self {
        let file = folder.join(name).with_extension("o");
        let command = compile(cxx, sources, name);
        Self { name, file, made_of: sources[..folders].to_vec(), command }
    }

    fn recipe(&self) -> String {
        format!("{:?}", self.command)
    }

    /// Whether it was made by the same command, and is newer than every source.
    fn is_current(&self) -> bool {
        let changed = |path: &Path| fs::metadata(path).and_then(|file| file.modified()).ok();
        let made = changed(&self.file);
        let mut sources = self.made_of.iter().flat_map(|folder| fs::read_dir(folder).unwrap());
        fs::read_to_string(self.file.with_extension("recipe")).is_ok_and(|old| old == self.recipe())
            && made.is_some()
            && sources.all(|file| changed(&file.unwrap().path()) < made)
    }

    fn compile(&self, folder: &Path) -> Command {
        let mut command = Command::new(self.command.get_program());
        command.args(self.command.get_args()).arg("-o").arg(part(folder, self.name));
        command
    }

    fn keep(&self, folder: &Path) {
        fs::rename(part(folder, self.name), &self.file).unwrap();
        fs::write(part(folder, self.name), self.recipe()).unwrap();
        fs::rename(part(folder, self.name), self.file.with_extension("recipe")).unwrap();
    }
}

fn compile(cxx: &str, [driver, cuda]: &[PathBuf; 2], name: &str) -> Command {
    let mut command = Command::new(cxx);
    command.args(["-std=c++17", "-O2", "-Wall", "-Wextra", "-Wno-unknown-pragmas", "-Wno-unused-function", "-fPIC"]);
    command.args(["-ffp-contract=off", "-fno-strict-aliasing", "-fno-extern-tls-init", "-fvisibility=hidden"]);
    match sanitize() {
        // The hooks of tests/driver/access.h, and none of the sanitizer's own library.
        [] if name == "kernels" => command.args(["-fsanitize=thread,bounds", "-fno-sanitize-recover=all"]),
        flags => command.args(flags),
    };
    command.arg("-I").arg(cuda).arg("-c").arg(driver.join(name).with_extension("cpp"));
    command
}

fn sanitize() -> &'static [&'static str] {
    let flags = &["-g", "-fsanitize=address,undefined", "-fno-sanitize-recover=all"];
    if sanitizer().is_some() { flags } else { &[] }
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

/// Bytes of device memory that kernels loaded and stored since this was asked last.
pub(crate) fn traffic() -> (u64, u64) {
    let (mut loads, mut stores) = (0, 0);
    function::<extern "C" fn(*mut u64, *mut u64)>("emulated_traffic")(&raw mut loads, &raw mut stores);
    (loads, stores)
}

/// How many of the driver's objects there are: `streams`, `events`, `modules`, `graphs`.
pub(crate) fn live(what: &str) -> u64 {
    let what = CString::new(what).unwrap();
    function::<extern "C" fn(*const c_char) -> u64>("emulated_live")(what.as_ptr())
}

/// How many allocations of device memory there are.
pub(crate) fn allocations() -> u64 {
    function::<extern "C" fn() -> u64>("emulated_allocations")()
}

/// Whether the driver is built with sanitizers.
pub(crate) fn is_sanitized() -> bool {
    sanitizer().is_some()
}
