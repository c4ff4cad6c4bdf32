//! `cuda/adamw.cu` to PTX, by the first compiler that this machine has, or the PTX committed to the repository.
//!
//! | `FUSED_ADAMW_PTX`  | who makes the PTX                                                      |
//! | ------------------ | ---------------------------------------------------------------------- |
//! | `auto` (or unset)  | nvcc if there is one, else NVRTC if it loads, else the committed file  |
//! | `nvcc`             | nvcc: `NVCC`, else `PATH`, else `CUDA_HOME/bin`, else `CUDA_PATH/bin`  |
//! | `nvrtc`            | NVRTC, found as cudarc finds it: the system's library path             |
//! | `committed`        | nobody: `cuda/ptx/adamw.ptx`, which `scripts/ptx` made from these files |
//!
//! A compiler that is absent is no error unless it was asked for. A compiler that is present and fails always is:
//! whoever has CUDA should hear that our kernels do not compile there, rather than run other ones in silence.

use std::env;
use std::ffi::OsString;
use std::fs;
use std::panic;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, anyhow, bail, ensure};
use cudarc::nvrtc;

use entries::ENTRIES;

#[path = "../src/entries.rs"]
mod entries;

const SOURCE: &str = "cuda/adamw.cu";
const COMMITTED: &str = "cuda/ptx/adamw.ptx";

/// Writes `OUT_DIR/adamw.ptx` and tells the crate who made it.
pub(crate) fn build() -> Result<()> {
    println!("cargo::rerun-if-changed=build");
    println!("cargo::rerun-if-changed=cuda");

    let arch = var("FUSED_ADAMW_ARCH");
    let flags = flags(arch.as_deref().unwrap_or("compute_75"))?;
    let out = Path::new(&env::var("OUT_DIR")?).join("adamw.ptx");

    let compiled = match var("FUSED_ADAMW_PTX").as_deref().unwrap_or("auto") {
        "auto" => match find_nvcc() {
            Some(nvcc) => Some(by_nvcc(&nvcc, &flags, &out)?),
            None => nvrtc_loads().then(|| by_nvrtc(flags)).transpose()?,
        },
        "nvcc" => {
            let nvcc = find_nvcc().context("FUSED_ADAMW_PTX=nvcc, but there is no nvcc: set NVCC to its path")?;
            Some(by_nvcc(&nvcc, &flags, &out)?)
        }
        "nvrtc" => {
            ensure!(nvrtc_loads(), "FUSED_ADAMW_PTX=nvrtc, but libnvrtc does not load: is it on LD_LIBRARY_PATH?");
            Some(by_nvrtc(flags)?)
        }
        "committed" => None,
        other => bail!("FUSED_ADAMW_PTX={other}: expected auto, nvcc, nvrtc or committed"),
    };

    let (ptx, origin) = match compiled {
        Some(Compiled { by, ptx }) => {
            check(&ptx).with_context(|| failed(&by))?;
            let origin = format!("{by} {}", version(&ptx));
            (ptx, origin)
        }
        None => {
            if arch.is_some() {
                println!("cargo::warning=FUSED_ADAMW_ARCH has no effect: the committed PTX is used");
            }
            (fs::read_to_string(COMMITTED).context(COMMITTED)?, "committed".to_owned())
        }
    };
    fs::write(&out, ptx).with_context(|| out.display().to_string())?;
    println!("cargo::rustc-env=FUSED_ADAMW_PTX_ORIGIN={origin}");
    Ok(())
}

struct Compiled {
    by: String,
    ptx: String,
}

/// The flags, which nvcc and NVRTC spell alike. The defaults of three of them are spelled out because the
/// contract of the crate rests on them; `--fmad=true`, the default of the fourth, would break it.
fn flags(arch: &str) -> Result<Vec<String>> {
    // A virtual architecture: the driver translates it for any later GPU. Not so with a suffix (`compute_90a`).
    let number = arch.strip_prefix("compute_").filter(|n| n.bytes().all(|b| b.is_ascii_digit()));
    let number: u32 = number
        .and_then(|n| n.parse().ok())
        .with_context(|| format!("FUSED_ADAMW_ARCH={arch}: expected compute_NN, without a suffix"))?;
    ensure!(number >= 75, "FUSED_ADAMW_ARCH={arch}: the kernels need compute_75 or later");

    let arch = format!("--gpu-architecture={arch}");
    let rest = ["--fmad=false", "--ftz=false", "--prec-div=true", "--prec-sqrt=true", "--std=c++17"];
    Ok([arch].into_iter().chain(rest.map(String::from)).collect())
}

/// What `NVCC` names, there or not; else the first that is there.
fn find_nvcc() -> Option<PathBuf> {
    let [path, cuda_home, cuda_path] = ["PATH", "CUDA_HOME", "CUDA_PATH"].map(var_os);
    let path = path.iter().flat_map(env::split_paths).collect::<Vec<_>>();
    let toolkits = [cuda_home, cuda_path].into_iter().flatten().map(|root| Path::new(&root).join("bin"));
    let name = format!("nvcc{}", env::consts::EXE_SUFFIX);
    let found = path.into_iter().chain(toolkits).map(|folder| folder.join(&name)).find(|file| file.is_file());
    var_os("NVCC").map(PathBuf::from).or(found)
}

fn by_nvcc(nvcc: &Path, flags: &[String], out: &Path) -> Result<Compiled> {
    let by = "nvcc".to_owned();
    let _ = fs::remove_file(out); // what an earlier build left there is not this nvcc's
    let done = Command::new(nvcc)
        .args(["-O3", "--ptx"])
        .args(flags)
        .arg("-o")
        .arg(out)
        .arg(SOURCE)
        .output()
        .with_context(|| format!("cannot run {}", nvcc.display()))
        .with_context(|| failed(&by))?;
    if !done.status.success() {
        let log = [done.stdout, done.stderr].concat();
        let log = anyhow!("{} ({}):\n{}", nvcc.display(), done.status, String::from_utf8_lossy(&log));
        return Err(log.context(failed(&by)));
    }
    let ptx = fs::read_to_string(out).context("it left no PTX").with_context(|| failed(&by))?;
    Ok(Compiled { by, ptx })
}

/// Whether cudarc can load NVRTC. A call without the library panics. (cudarc's own question, `is_culib_present`,
/// exists in one of its link modes only, and in a workspace with resolver 1 the application chooses our mode.)
fn nvrtc_loads() -> bool {
    println!("cargo::rerun-if-env-changed=LD_LIBRARY_PATH");
    let hook = panic::take_hook();
    panic::set_hook(Box::new(|_| ())); // or a build that succeeds would log a panic
    let (mut major, mut minor) = (0, 0);
    // SAFETY: nvrtcVersion writes two integers, and both pointers are to integers that outlive the call.
    let loads = panic::catch_unwind(move || unsafe { nvrtc::sys::nvrtcVersion(&mut major, &mut minor) }).is_ok();
    panic::set_hook(hook);
    loads
}

fn by_nvrtc(mut flags: Vec<String>) -> Result<Compiled> {
    let by = "nvrtc".to_owned();
    flags.push("--include-path=cuda".to_owned());
    let source = fs::read_to_string(SOURCE).context(SOURCE)?;
    let options = nvrtc::CompileOptions { name: Some(SOURCE.into()), options: flags, ..Default::default() };
    match nvrtc::compile_ptx_with_opts(source, options) {
        Ok(ptx) => Ok(Compiled { by, ptx: ptx.to_src() }),
        Err(nvrtc::CompileError::CompileError { log, .. }) => {
            Err(anyhow!("{}", log.to_string_lossy()).context(failed(&by)))
        }
        Err(other) => Err(other).with_context(|| failed(&by)),
    }
}

/// What no compiler may hand us, whatever it exits with: no kernels, or inexact ones. (Flags also come from
/// variables that nvcc reads, such as `NVCC_APPEND_FLAGS`.)
fn check(ptx: &str) -> Result<()> {
    for entry in ENTRIES {
        ensure!(ptx.contains(&format!(".entry {entry}(")), "its PTX has no entry `{entry}`");
    }
    for inexact in [".ftz", ".approx"] {
        ensure!(!ptx.contains(inexact), "its PTX has `{inexact}` instructions: is --use_fast_math set somewhere?");
    }
    Ok(())
}

fn failed(by: &str) -> String {
    format!("{by} cannot compile {SOURCE} (FUSED_ADAMW_PTX=committed builds without it)")
}

/// `13.0.88 (PTX 9.0, sm_75)`, from the head of the PTX, where nvcc and NVRTC write it alike.
fn version(ptx: &str) -> String {
    let after = |start: &str| ptx.lines().find_map(|line| line.strip_prefix(start)).unwrap_or("?");
    let tools = after("// Cuda compilation tools, release ");
    let tools = tools.split_once(", V").map_or(tools, |(_, version)| version);
    format!("{tools} (PTX {}, {})", after(".version "), after(".target "))
}

/// The value of an environment variable, if it is set and not empty. Cargo asks again when it changes.
fn var_os(name: &str) -> Option<OsString> {
    println!("cargo::rerun-if-env-changed={name}");
    env::var_os(name).filter(|value| !value.is_empty())
}

fn var(name: &str) -> Option<String> {
    var_os(name).map(|value| value.to_string_lossy().into_owned())
}
