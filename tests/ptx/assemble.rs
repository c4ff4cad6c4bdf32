//! The pinned tools (`scripts/cuda-compilers`): what ptxas says of a PTX, and the SASS that it makes of it.

use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::Once;
use std::sync::atomic::{AtomicU32, Ordering};
use std::{env, fs, io};

use super::text::kernels;

/// The folder of the pinned compilers. Without one the first call says so.
pub(crate) fn compilers() -> Option<PathBuf> {
    let folder = env::var_os("FUSED_ADAMW_CUDA_COMPILERS").map(PathBuf::from);
    if folder.is_none() {
        let unset = "FUSED_ADAMW_CUDA_COMPILERS is not set (scripts/cuda-compilers)";
        assert!(env::var_os("FUSED_ADAMW_REQUIRE_PTXAS").is_none(), "{unset}");
        // Once, and not by `eprintln!`: a test that passes would keep it to itself.
        static ONCE: Once = Once::new();
        let say = || writeln!(io::stderr(), "SKIPPED: {unset}: registers, spills and SASS are not known");
        ONCE.call_once(|| say().expect("stderr"));
    }
    folder
}

/// A folder of its own for each call, removed when dropped.
struct Scratch(PathBuf);

impl Scratch {
    fn new() -> Self {
        static CALLS: AtomicU32 = AtomicU32::new(0);
        let name = format!("ptxas-{}-{}", std::process::id(), CALLS.fetch_add(1, Ordering::Relaxed));
        let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
        fs::create_dir_all(&folder).expect("a folder");
        Self(folder)
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0); // what is left there costs disk and nothing else
    }
}

pub(crate) struct Ptxas {
    pub(crate) version: &'static str,
    /// In the folder of the pinned compilers.
    path: &'static str,
    /// The `sm_NN` that are assembled for.
    pub(crate) architectures: &'static [u32],
}

/// The one that is in the oldest driver that reads the committed PTX; it knows no Blackwell.
pub(crate) const OLDEST: Ptxas =
    Ptxas { version: "12.0.140", path: "ptxas-12.0.140/bin/ptxas", architectures: &[75, 80, 86, 89, 90] };
pub(crate) const NEWEST: Ptxas =
    Ptxas { version: "13.5.37", path: "nvcc-13.5.37/bin/ptxas", architectures: &[75, 80, 86, 89, 90, 100, 120] };

/// What `ptxas -v` says of a kernel. Memory in bytes: of the stack and of spills, a thread; of shared memory, a block.
#[derive(Debug, Default)]
pub(crate) struct Usage {
    pub(crate) kernel: String,
    pub(crate) registers: u32,
    pub(crate) stack: u32,
    pub(crate) spill_stores: u32,
    pub(crate) spill_loads: u32,
    pub(crate) shared: u32,
    /// With the arguments; not told from sm_90 on.
    pub(crate) constant: Option<u32>,
}

impl Ptxas {
    pub(crate) fn usage(&self, ptx: &str, sm: u32) -> Vec<Usage> {
        let (log, _) = self.assemble(ptx, sm);
        kernels(ptx).into_iter().map(|kernel| usage(&log, kernel)).collect()
    }

    /// Whether it makes anything of a PTX, which may have no kernel.
    pub(crate) fn assembles(&self, ptx: &str, sm: u32) -> bool {
        self.assemble(ptx, sm).1.0.join("cubin").exists()
    }

    /// nvdisasm's text of the machine code.
    pub(crate) fn sass(&self, ptx: &str, sm: u32) -> String {
        let (_, folder) = self.assemble(ptx, sm);
        let done = run("nvdisasm-13.5.37/bin/nvdisasm", &["-c"], &folder.0.join("cubin"));
        String::from_utf8(done.stdout).expect("UTF-8")
    }

    /// What ptxas says, and the folder where it leaves `cubin`.
    fn assemble(&self, ptx: &str, sm: u32) -> (String, Scratch) {
        let folder = Scratch::new();
        let (input, output) = (folder.0.join("ptx"), folder.0.join("cubin"));
        fs::write(&input, ptx).expect("a file");
        let arguments = ["-v", &format!("-arch=sm_{sm}"), "-o", output.to_str().expect("UTF-8")];
        let done = run(self.path, &arguments, &input);
        (String::from_utf8([done.stdout, done.stderr].concat()).expect("UTF-8"), folder)
    }
}

fn run(tool: &str, arguments: &[&str], input: &Path) -> Output {
    let tool = compilers().expect("asked for before").join(tool);
    let done = Command::new(&tool).args(arguments).arg(input).output();
    let done = done.unwrap_or_else(|error| panic!("{}: {error}", tool.display()));
    let log = String::from_utf8_lossy(&done.stderr);
    assert!(done.status.success(), "{} {arguments:?}: {log}", tool.display());
    done
}

fn usage(log: &str, kernel: &str) -> Usage {
    let of_kernel = log.split_once(&format!("Function properties for {kernel}\n"));
    let mut lines = of_kernel.expect("ptxas -v names the kernel").1.lines();
    let (memory, used) = (lines.next().unwrap_or_default(), lines.next().unwrap_or_default());
    let told = |line, what| number_before(line, what).unwrap_or_else(|| panic!("no{what} in: {line}"));
    Usage {
        kernel: kernel.to_owned(),
        registers: told(used, " registers"),
        stack: told(memory, " bytes stack frame"),
        spill_stores: told(memory, " bytes spill stores"),
        spill_loads: told(memory, " bytes spill loads"),
        shared: number_before(used, " bytes smem").unwrap_or(0),
        constant: number_before(used, " bytes cmem[0]"),
    }
}

fn number_before(line: &str, what: &str) -> Option<u32> {
    line.split_once(what)?.0.rsplit(|c: char| !c.is_ascii_digit()).next()?.parse().ok()
}

#[test]
fn what_ptxas_says_is_read() {
    let log = "ptxas info    : Function properties for k\n    8 bytes stack frame, 4 bytes spill stores, 12 bytes spill \
               loads\nptxas info    : Used 80 registers, used 1 barriers, 1024 bytes smem, 4408 bytes cmem[0], 8 bytes cmem[2]\n";
    let told = format!("{:?}", usage(log, "k"));
    let numbers = told.split(|c: char| !c.is_ascii_digit()).filter(|number| !number.is_empty());
    assert_eq!(numbers.collect::<Vec<_>>(), ["80", "8", "4", "12", "1024", "4408"], "{told}");
}
