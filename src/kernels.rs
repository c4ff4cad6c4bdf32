//! The kernels on a GPU, each in a module of its own that is loaded when the kernel is first needed: a driver compiles the
//! PTX that it loads, all of it, and most lists need one or two kernels of ten.

use crate::cuda_capture::refuse_capture;
use crate::cuda_table::while_doing;
use crate::entries::ENTRIES;
use crate::error::{Error, Result};
use cudarc::driver::{CudaContext, CudaFunction, CudaStream, DriverError, sys, sys::CUresult};
use cudarc::nvrtc::Ptx;
use std::borrow::Cow;
use std::sync::{Arc, OnceLock};

/// The kernels as this build compiled them, and by what.
pub(crate) const PTX: &str = include_str!(concat!(env!("OUT_DIR"), "/adamw.ptx"));
const PTX_ORIGIN: &str = env!("FUSED_ADAMW_PTX_ORIGIN");
/// The kernels as committed: of an older ISA than most compilers emit, for older drivers.
pub(crate) const PTX_COMMITTED: &str = include_str!("../cuda/ptx/adamw.ptx");

/// In the order of [`ENTRIES`].
#[derive(Clone, Copy, Debug)]
pub(crate) enum Kernel {
    /// Lists of f32 alone.
    AdamwF32,
    /// Lists of bf16 alone.
    AdamwBf16,
    /// Lists of f16 alone.
    AdamwF16,
    /// Every list.
    AdamwMixed,
    AdamwFull,
    GradNorm,
    Finalize,
    Collect,
    Accumulate,
    InitMasters,
}

#[derive(Debug)]
pub(crate) struct Kernels {
    ptx: Cow<'static, str>,
    /// Who made the PTX.
    pub(crate) origin: &'static str,
    loaded: [OnceLock<CudaFunction>; ENTRIES.len()],
}

impl Kernels {
    /// Of `ptx`; or of this build, or as committed if the driver is too old for those. None is loaded, but the driver has
    /// said that it takes such PTX.
    pub(crate) fn new(context: &Arc<CudaContext>, ptx: Option<&str>) -> Result<Self> {
        let (ptx, origin) = match ptx {
            Some(ptx) => (Cow::Owned(ptx.to_owned()), "a variant"),
            None => readable(context).map(|(ptx, origin)| (ptx.into(), origin))?,
        };
        Ok(Self { ptx, origin, loaded: [const { OnceLock::new() }; ENTRIES.len()] })
    }

    /// Loaded, if it was not. Not in a capture, in which loading may be refused, and would break it.
    pub(crate) fn get(&self, kernel: Kernel, stream: &CudaStream) -> Result<&CudaFunction> {
        let place = &self.loaded[kernel as usize];
        if let Some(function) = place.get() {
            return Ok(function);
        }
        refuse_capture(stream, "load a kernel")?;
        let name = ENTRIES[kernel as usize];
        let module =
            stream.context().load_module(Ptx::from_src(with(&self.ptx, name))).map_err(while_doing(LOADING))?;
        let function = module.load_function(name).map_err(while_doing("find the kernel in its module"))?;
        // Another thread may have loaded it meanwhile: then this module is unloaded again.
        Ok(place.get_or_init(|| function))
    }
}

/// Opens a kernel in PTX.
const ENTRY: &str = ".visible .entry ";

/// The PTX with one of its kernels alone; what stands between them is kept. With none, for a name that no kernel has.
#[must_use]
pub fn with(ptx: &str, kernel: &str) -> String {
    let mut pieces = ptx.split(ENTRY);
    let mut kept = pieces.next().unwrap_or_default().to_owned();
    for piece in pieces {
        let (entry, between) = piece.split_at(end_of_body(piece));
        if entry.split_once('(').is_some_and(|(name, _)| name == kernel) {
            kept.extend([ENTRY, entry]);
        }
        kept += between;
    }
    kept
}

/// Behind the brace that closes the first one.
fn end_of_body(text: &str) -> usize {
    let mut depth = 0;
    let braces = text.match_indices(['{', '}']);
    let mut depths = braces.map(|(at, brace)| {
        depth += if brace == "{" { 1 } else { -1 };
        (at, depth)
    });
    depths.find(|&(_, depth)| depth == 0).map_or(text.len(), |(at, _)| at + 1)
}

const LOADING: &str = "load the kernels, which need a GPU of compute capability 7.5 or newer";

/// What stands around the kernels, with one that does nothing and is compiled at once.
#[must_use]
pub fn probe(ptx: &str) -> String {
    with(ptx, "none") + ENTRY + "probe()\n{\n\tret;\n}\n"
}

/// The PTX of this build, or the committed one if the driver is too old for that: it is asked.
fn readable(context: &Arc<CudaContext>) -> Result<(&'static str, &'static str)> {
    let too_new = |error: &DriverError| error.0 == CUresult::CUDA_ERROR_UNSUPPORTED_PTX_VERSION;
    let load = |ptx| context.load_module(Ptx::from_src(probe(ptx)));
    match load(PTX) {
        Ok(_) => Ok((PTX, PTX_ORIGIN)),
        Err(error) if too_new(&error) => match load(PTX_COMMITTED) {
            Ok(_) => Ok((PTX_COMMITTED, "committed PTX, the driver is older than the compiler of this build")),
            Err(source) if too_new(&source) => Err(ptx_too_new(source)),
            Err(source) => Err(Error::Driver { doing: LOADING, source }),
        },
        Err(source) => Err(Error::Driver { doing: LOADING, source }),
    }
}

fn ptx_too_new(source: DriverError) -> Error {
    let mut version = 0;
    // SAFETY: writes an integer to the address of one. Its failure leaves 0, which the message shows.
    unsafe { sys::cuDriverGetVersion(&raw mut version) };
    let driver = format!("{}.{}", version / 1000, version % 1000 / 10);
    Error::PtxTooNew { ptx: isa_version(PTX_COMMITTED).into(), driver, source }
}

/// The `8.0` of `.version 8.0`.
fn isa_version(ptx: &str) -> &str {
    ptx.lines().find_map(|line| line.strip_prefix(".version ")).map_or("?", str::trim)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_kernel_stands_alone_and_nothing_else_is_lost() {
        let ptx = ".version 8.0\n.global .u32 A;\n.visible .entry a(\n.param p\n)\n.maxntid 1\n{\n{ x; }\n}\n// of b\n\
                   .visible .entry ab(\n)\n{\ny;\n}\n";
        assert_eq!(
            with(ptx, "a"),
            ".version 8.0\n.global .u32 A;\n.visible .entry a(\n.param p\n)\n.maxntid 1\n{\n{ x; }\n}\n// of b\n\n"
        );
        assert_eq!(with(ptx, "none"), ".version 8.0\n.global .u32 A;\n\n// of b\n\n");
    }

    #[test]
    fn every_kernel_is_in_the_ptx_and_comes_out_of_it_whole() {
        for ptx in [PTX, PTX_COMMITTED] {
            let entries = ptx.matches(ENTRY).count();
            assert_eq!(entries, ENTRIES.len());
            let bare = with(ptx, "none");
            assert!(!bare.contains(".entry") && bare.len() < ptx.len() / 4, "{}", bare.len());
            let alone: usize = ENTRIES.map(|kernel| with(ptx, kernel).len() - bare.len()).iter().sum();
            assert_eq!(alone + bare.len(), ptx.len());
        }
    }
}
