//! The variants of `variants.rs`: compiled where the bundle is built; compared bit by bit and timed on the GPU.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result, anyhow, ensure};
use bytemuck::Pod;
use fused_adamw::cudarc::driver::{DeviceRepr, ValidAsZeroBits};
use fused_adamw::{Device, Float, PTX_COMMITTED, Tuning};
use half::bf16;

use crate::bits;
use crate::clock::Clock;
use crate::nvrtc::Nvrtc;
use crate::rows::{Failed, Varied};
use crate::suite::List;
use crate::variants::{VARIANTS, Variant};
use crate::work::{Case, facts, stream_of};

/// Elements of more chunks than a persistent grid has blocks.
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
    let of = |dtype: &str| lists.iter().filter(|list| list.is_varied() && list.dtype == dtype).collect::<Vec<_>>();
    let failed = vary(folder, &of("f32"), |x| x, small)? + vary(folder, &of("bf16"), bf16::from_f32, small)?;
    ensure!(failed == 0, "{failed} times a variant failed");
    Ok(())
}

/// The lists of one dtype; how often a variant failed.
fn vary<T>(folder: &Path, lists: &[&List], of: fn(f32) -> T, small: bool) -> Result<usize>
where
    T: Float + DeviceRepr + ValidAsZeroBits + Pod,
{
    let own = Device::cuda_at(0)?;
    let ready = |variant| {
        let device = tuned(folder, variant, &own, T::DTYPE == f32::DTYPE)?;
        bits::are_the_cpus(&device, of, if small { 20_001 } else { LONG })?;
        Ok(device)
    };
    // The emulated driver has its own kernels, whatever PTX it is given; and those take a chunk each.
    let tried = VARIANTS.iter().filter(|variant| !(small && variant.is_persistent()));
    let variants: Vec<_> = tried.map(|variant| (variant, ready(variant))).collect();
    let mut failed = 0;
    for list in lists {
        failed += time(&own, list, of, &variants, small)?;
    }
    Ok(failed)
}

/// The crate's own is timed once more at the end: so much does the machine drift.
fn time<T>(
    own: &Device,
    list: &List,
    of: fn(f32) -> T,
    variants: &[(&Variant, Result<Device>)],
    small: bool,
) -> Result<usize>
where
    T: Float + DeviceRepr + ValidAsZeroBits + Pod,
{
    let mut case = Case::new(own, list, of)?;
    let mut clock = Clock::brief(stream_of(own), small)?;
    let mut failed = 0;
    for (variant, device) in variants.iter().chain(variants.first()) {
        let device = device.as_ref().map_err(|why| anyhow!("{why:#}"));
        let times = device.and_then(|device| {
            case.set_device(device, list)?;
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

fn tuned(folder: &Path, variant: &Variant, own: &Device, is_f32: bool) -> Result<Device> {
    let file = folder.join(format!("{}.ptx", variant.name));
    let ptx = if variant.constants.is_empty() {
        None
    } else {
        Some(fs::read_to_string(&file).with_context(|| file.display().to_string())?)
    };
    let grid = variant.grid(u32::try_from(facts(own)?.multiprocessors)?, is_f32);
    let tuning = Tuning { ptx: ptx.as_deref(), chunk_len: variant.chunk_len, grid };
    // SAFETY: the crate's kernels, compiled by `compile` with other constants; a grid is for those that are persistent.
    Ok(unsafe { Device::cuda_tuned(stream_of(own), tuning)? })
}
