//! The variants of `variants.rs`: compiled where the bundle is built; compared bit by bit and timed on the GPU.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use fused_adamw::{Device, PTX_COMMITTED, Tuning};

use crate::bits;
use crate::clock::Clock;
use crate::nvrtc::Nvrtc;
use crate::rows::{Failed, Varied};
use crate::suite::{List, MIXED};
use crate::variants::{VARIANTS, Variant};
use crate::work::{Case, Element, by_dtype, stream_of};

/// Elements of the longest tensor whose bits are compared.
const LONG: usize = 2_000_003;

/// Writes `FOLDER/NAME.ptx` of each variant with constants of its own.
pub(crate) fn compile(folder: &Path, cuda: &Path, nvrtc: &Path) -> Result<()> {
    let nvrtc = Nvrtc::in_folder(nvrtc)?;
    let own = nvrtc.compile(cuda, std::iter::empty())?;
    ensure!(own == PTX_COMMITTED, "this NVRTC, with these flags, does not make the committed PTX");
    fs::create_dir_all(folder)?;
    for variant in VARIANTS.iter().filter(|variant| !variant.constants.is_empty()) {
        let ptx = nvrtc.compile(cuda, variant.defines())?;
        ensure!(ptx != own, "{}: its constants change nothing", variant.name);
        fs::write(folder.join(format!("{}.ptx", variant.name)), ptx)?;
    }
    Ok(())
}

/// Every variant on every list that says something of it, whichever of them fails.
pub(crate) fn run(folder: &Path, lists: &[List], small: bool) -> Result<()> {
    let mut failed = 0;
    for list in lists.iter().filter(|list| list.is_varied()) {
        failed += by_dtype!(list, |param, grad| vary(folder, list, param, grad, small)?);
    }
    ensure!(failed == 0, "{failed} times a variant failed");
    Ok(())
}

/// How often a variant failed. The crate's own is timed once more at the end: so much does the machine drift.
fn vary<P: Element, G: Element>(
    folder: &Path,
    list: &List,
    param: fn(f32) -> P,
    grad: fn(f32) -> G,
    small: bool,
) -> Result<usize> {
    let own = Device::cuda_at(0)?;
    let mut case = Case::new(&own, list, param, grad)?;
    let mut clock = Clock::brief(stream_of(&own), small)?;
    let mut failed = 0;
    let tried = VARIANTS.iter().filter(|variant| variant.concerns(list.dtype == MIXED));
    for variant in tried.chain(VARIANTS.first()) {
        let times = tuned(folder, variant, &own).and_then(|device| {
            bits::are_the_cpus(&device, param, grad, if small { 20_001 } else { LONG })?;
            case.set_device(&device, list)?;
            case.times(&mut clock, if small { 1 } else { 21 })
        });
        match times {
            Ok(times) => Varied::new(variant, list, times.ms).print()?,
            Err(why) => {
                failed += 1;
                Failed { by: variant.name.into(), ..Failed::new(list, &why) }.print()?;
            }
        }
    }
    Ok(failed)
}

fn tuned(folder: &Path, variant: &Variant, own: &Device) -> Result<Device> {
    let file = folder.join(format!("{}.ptx", variant.name));
    let ptx = if variant.constants.is_empty() {
        None
    } else {
        Some(fs::read_to_string(&file).with_context(|| file.display().to_string())?)
    };
    let tuning = Tuning { ptx: ptx.as_deref(), chunk_len: variant.chunk_len };
    // SAFETY: the crate's kernels, compiled by `compile` with other constants.
    Ok(unsafe { Device::cuda_tuned(stream_of(own), tuning)? })
}
