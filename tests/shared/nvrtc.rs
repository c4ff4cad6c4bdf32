//! `cuda/` to PTX with other constants, by the NVRTC of a folder: the one that made the committed PTX.

use std::ffi::{CString, c_char, c_int, c_void};
use std::path::Path;
use std::ptr::{null, null_mut};

use anyhow::{Context, Result, ensure};
use libloading::{Library, Symbol};

/// As in `build/ptx.rs`; that they have not drifted apart shows in the PTX without constants, which is the committed one.
const FLAGS: [&str; 6] = [
    "--gpu-architecture=compute_75",
    "--fmad=false",
    "--ftz=false",
    "--prec-div=true",
    "--prec-sqrt=true",
    "--std=c++17",
];

type Program = *mut c_void;
type Strings = *const *const c_char;
type Create = unsafe extern "C" fn(*mut Program, *const c_char, *const c_char, c_int, Strings, Strings) -> c_int;
type Compile = unsafe extern "C" fn(Program, c_int, Strings) -> c_int;
type Size = unsafe extern "C" fn(Program, *mut usize) -> c_int;
type Text = unsafe extern "C" fn(Program, *mut c_char) -> c_int;
type Destroy = unsafe extern "C" fn(*mut Program) -> c_int;

pub(crate) struct Nvrtc(Library);

impl Nvrtc {
    pub(crate) fn in_folder(folder: &Path) -> Result<Self> {
        let file = folder.join("libnvrtc.so.12");
        // SAFETY: NVIDIA's compiler; its initialisers touch nothing of ours.
        Ok(Self(unsafe { Library::new(&file) }.with_context(|| file.display().to_string())?))
    }

    /// The PTX of `CUDA/adamw.cu`; each of `defines` is `NAME=VALUE`.
    pub(crate) fn compile(&self, cuda: &Path, defines: impl Iterator<Item = String>) -> Result<String> {
        let source = CString::new(std::fs::read(cuda.join("adamw.cu"))?)?;
        let include = format!("--include-path={}", cuda.display());
        let defines = defines.map(|define| format!("--define-macro={define}"));
        let options = FLAGS.into_iter().map(String::from).chain([include]).chain(defines);
        let options = options.map(CString::new).collect::<Result<Vec<_>, _>>()?;
        let program = self.create(&source)?;
        let ptx = self.ptx_of(program, &options);
        self.destroy(program)?;
        ptx
    }

    fn create(&self, source: &CString) -> Result<Program> {
        let mut program = null_mut();
        let create = self.function::<Create>("nvrtcCreateProgram")?;
        // SAFETY: strings that end in 0, no headers, and an address for the program; all outlive the call.
        done(unsafe { create(&raw mut program, source.as_ptr(), c"cuda/adamw.cu".as_ptr(), 0, null(), null()) })?;
        Ok(program)
    }

    fn ptx_of(&self, program: Program, options: &[CString]) -> Result<String> {
        let pointers: Vec<_> = options.iter().map(|option| option.as_ptr()).collect();
        let compile = self.function::<Compile>("nvrtcCompileProgram")?;
        // SAFETY: a program of `create`, and as many strings as are said.
        let compiled = done(unsafe { compile(program, c_int::try_from(pointers.len())?, pointers.as_ptr()) });
        compiled.with_context(|| self.text(program, "nvrtcGetProgramLog").unwrap_or_default())?;
        self.text(program, "nvrtcGetPTX")
    }

    /// What the function of this name says, and the one of the same name with `Size` says the length of.
    fn text(&self, program: Program, name: &str) -> Result<String> {
        let (mut bytes, size, text) = (0, self.function::<Size>(&format!("{name}Size"))?, self.function::<Text>(name)?);
        // SAFETY: a program of `create`, and the address of a number.
        done(unsafe { size(program, &raw mut bytes) })?;
        let mut buffer = vec![0_u8; bytes];
        // SAFETY: as many bytes as it has just asked for.
        done(unsafe { text(program, buffer.as_mut_ptr().cast()) })?;
        buffer.pop(); // the 0
        Ok(String::from_utf8(buffer)?)
    }

    fn destroy(&self, mut program: Program) -> Result<()> {
        let destroy = self.function::<Destroy>("nvrtcDestroyProgram")?;
        // SAFETY: a program of `create`, which nobody uses any more.
        done(unsafe { destroy(&raw mut program) })
    }

    /// `T` is the function's type in `nvrtc.h`.
    fn function<T>(&self, name: &str) -> Result<Symbol<'_, T>> {
        // SAFETY: the callers name the types above, which are those of nvrtc.h.
        unsafe { self.0.get(name) }.with_context(|| name.to_owned())
    }
}

fn done(status: c_int) -> Result<()> {
    ensure!(status == 0, "NVRTC says {status}");
    Ok(())
}
