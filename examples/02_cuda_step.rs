//! 02: the shortest step on a GPU. Where there is none it says in one line why, and exits 0.
//! Before: `01_train_digits`, the same call in a training run. Next: `03_replay`, which compares with PyTorch.

#[cfg(feature = "cuda")]
fn main() -> anyhow::Result<()> {
    use fused_adamw::{AdamW, AdamWConfig, Device};
    use std::io::Write;

    let mut out = std::io::stdout(); // `println!` panics where it is closed or full
    let device = match Device::cuda_at(0) {
        Ok(device) => device,
        Err(error) => {
            return Ok(writeln!(out, "no step on a GPU: {error}")?);
        }
    };
    let stream = device.stream().expect("a GPU has a stream").clone();

    let lengths = [1_000, 10];
    let mut params =
        lengths.iter().map(|&len| stream.clone_htod(&vec![1.0_f32; len])).collect::<Result<Vec<_>, _>>()?;
    let grads = lengths.iter().map(|&len| stream.clone_htod(&vec![0.5_f32; len])).collect::<Result<Vec<_>, _>>()?;

    let mut opt = AdamW::new(&device, AdamWConfig { lr: 3e-4, weight_decay: 0.1, ..Default::default() }, lengths)?;
    opt.step(params.iter_mut().zip(&grads))?; // one launch, enqueued on the stream

    // The CPU gives the same bits.
    let mut on_cpu = vec![1.0_f32; 10];
    let mut twin = AdamW::new(&Device::cpu(), opt.groups()[0], [10])?;
    twin.step([(&mut on_cpu, &vec![0.5_f32; 10])])?;
    anyhow::ensure!(stream.clone_dtoh(&params[1])? == on_cpu, "the GPU and the CPU differ");
    Ok(writeln!(out, "{device}: stepped {} tensors, p = {} on both devices", opt.len(), on_cpu[0])?)
}

#[cfg(not(feature = "cuda"))]
fn main() -> std::io::Result<()> {
    use std::io::Write;
    writeln!(std::io::stdout(), "no step on a GPU: built without the feature `cuda`")
}
